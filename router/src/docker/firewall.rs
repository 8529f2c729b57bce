//! Published ports, the way out, and what keeps networks apart on this host: one nftables table of weft's own.
//!
//! The table is written as a whole and carries a digest of itself, so that a look at it tells whether another program took it
//! away or changed it; changes of any rules are heard from the kernel. Packets that may reach a container get
//! [`crate::host::routing::MARK`], without which they have no route to it. Firewalls of the host that drop what they do not know are
//! told to let weft's bridges through (`hostfw`). The table stays when the router stops: containers go on, with the ports
//! and the isolation they have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use tokio::sync::{Notify, mpsc, watch};
use tracing::info;

use super::hostfw::{self, Obstacle};
use super::ports::{Port, UDP};
use super::rules::{BRIDGES, run};
use crate::error::{Doing, Failure, Result};
use crate::host::routing::MARK;

/// How long new rules are waited for: less than an engine's call may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The rules of this host.
pub struct Firewall {
    /// Told when the rules are to be looked at again.
    pub wanted: Notify,
    /// How often rules were asked for, and what came of the last time that they were made.
    asked: AtomicU64,
    applied: watch::Sender<Applied>,
    /// Whether there may be rules.
    has_rules: AtomicBool,
    /// Firewalls of the host that are in the way.
    obstacles: Mutex<Vec<Obstacle>>,
}

/// What came of the last time that rules were made.
#[derive(Default)]
struct Applied {
    /// How often rules had been asked for before they were planned.
    asked: u64,
    /// Why they are not in force, if they are not.
    error: Option<String>,
}

/// What the rules are made from.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Bridges whose containers reach the outside.
    pub open: BTreeSet<String>,
    /// Bridges whose containers do not.
    pub internal: BTreeSet<String>,
    /// Bridges with attached containers only, which have no way out by themselves.
    pub attached: BTreeSet<String>,
    /// Bridges of the engine's own networks.
    pub foreign: BTreeSet<String>,
    /// Addresses at which weft answers DNS.
    pub resolvers: BTreeSet<IpAddr>,
    /// Whether containers that reach the outside have IPv6.
    pub has_ipv6: bool,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.internal.is_empty() && self.attached.is_empty()
    }
}

impl Default for Firewall {
    fn default() -> Self {
        // An earlier router may have left some.
        Firewall {
            wanted: Notify::new(),
            asked: AtomicU64::new(0),
            applied: watch::Sender::default(),
            has_rules: AtomicBool::new(true),
            obstacles: Mutex::default(),
        }
    }
}

impl Firewall {
    /// Has the rules made anew and waits until they are in force. An `Err`: the rules are as they were, or none.
    pub async fn settle(&self) -> Result<()> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        self.wanted.notify_one();
        let mut applied = self.applied.subscribe();
        let made = tokio::time::timeout(PATIENCE, applied.wait_for(|applied| applied.asked >= asked)).await;
        let late = || Failure::new("the firewall rules are not in force after 3 s; try again, and see: weft status");
        match made {
            Ok(Ok(applied)) => match &applied.error {
                Some(error) => Err(Failure::new(format!("the firewall rules cannot be put in force: {error}"))),
                None => Ok(()),
            },
            Ok(Err(_)) | Err(_) => Err(late()),
        }
    }

    /// How often rules were asked for.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Notes what came of rules that were planned after they had been asked for so often.
    pub fn note_applied(&self, asked: u64, error: Option<String>) {
        self.applied.send_replace(Applied { asked, error });
    }

    /// Makes the rules what they are to be, if they are not.
    pub async fn apply(&self, plan: &Plan, ports: &BTreeSet<Port>) -> Result<()> {
        if plan.is_empty() {
            let had_rules = self.has_rules.swap(false, Ordering::Relaxed);
            return if had_rules { remove().await } else { Ok(()) };
        }
        self.has_rules.store(true, Ordering::Relaxed);
        let rules = rules(plan, ports);
        let digest = hex::encode(&weft_mesh::records::digest_of(rules.as_bytes())[..6]);
        if run("nft", &["list", "chain", "inet", "weft", &format!("v{digest}")], "").await.is_err() {
            let text = format!(
                "table inet weft\ndelete table inet weft\ntable inet weft {{\n chain v{digest} {{ }}\n{rules}}}\n"
            );
            run("nft", &["-f", "-"], &text).await?;
            info!(ports = ports.len(), "firewall rules are in place");
        }
        forward(plan);
        let obstacles = hostfw::pass(plan.has_ipv6).await;
        let mut known = self.obstacles.lock().unwrap_or_else(PoisonError::into_inner);
        obstacles.iter().filter(|obstacle| !known.contains(obstacle)).for_each(Obstacle::warn);
        *known = obstacles;
        Ok(())
    }

    /// Firewalls of the host that keep containers from something, as they were last seen.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        self.obstacles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits until rules of any program have changed (`nft monitor`), and again after each call. Its thread ends with the receiver.
pub fn watch_rules() -> Result<mpsc::Receiver<()>> {
    /// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
    const GROUP: u32 = 7;
    let what = || "cannot follow changes of firewall rules".to_owned();
    let mut socket = Socket::new(NETLINK_NETFILTER).doing(what)?;
    socket.bind_auto().doing(what)?;
    socket.add_membership(GROUP).doing(what)?;
    let (changed, changes) = mpsc::channel(1);
    let follow = move || {
        let mut buffer = Vec::with_capacity(1 << 16);
        loop {
            buffer.clear();
            // Lost messages are changes, too; one pending look stands for all.
            let _ = socket.recv(&mut buffer, 0);
            if let Err(mpsc::error::TrySendError::Closed(())) = changed.try_send(()) {
                return;
            }
        }
    };
    std::thread::Builder::new().name("firewall".into()).spawn(follow).doing(what)?;
    Ok(changes)
}

/// Takes the rules away, those in other firewalls, too.
pub async fn remove() -> Result<()> {
    if run("nft", &["list", "table", "inet", "weft"], "").await.is_ok() {
        run("nft", &["delete", "table", "inet", "weft"], "").await?;
    }
    hostfw::remove().await;
    Ok(())
}

/// Has the kernel forward what the rules let through.
fn forward(plan: &Plan) {
    if plan.open.is_empty() {
        return;
    }
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    if plan.has_ipv6 && std::fs::read("/proc/sys/net/ipv6/conf/all/forwarding").is_ok_and(|old| old.starts_with(b"0")) {
        // A host that forwards no longer listens to routers, unless told to.
        for interface in std::fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
            let path = interface.path().join("accept_ra");
            if std::fs::read(&path).is_ok_and(|accepts| accepts.starts_with(b"1")) {
                let _ = std::fs::write(path, "2");
            }
        }
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
    }
}

fn rules(plan: &Plan, ports: &BTreeSet<Port>) -> String {
    let quoted =
        |names: &BTreeSet<String>| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let (mut from_outside, mut from_here) = (own_resolvers(plan), own_resolvers(plan));
    for (group, led) in groups(ports) {
        for lead in leads(&group, &led) {
            let Group { is_v4, host, bridge, .. } = &group;
            let (family, name, loopback) = if *is_v4 { ("ip", "ipv4", "127.0.0.0/8") } else { ("ip6", "ipv6", "::1") };
            let host = host.map_or_else(String::new, |host| format!("{family} daddr {host} "));
            let wanted = format!("meta nfproto {name} {host}fib daddr type local");
            // What cannot be led back to the bridge it came from is for the socket of the port.
            let _ = writeln!(from_outside, "  iifname != \"{bridge}\" {wanted} {lead}");
            let _ = writeln!(from_here, "  {wanted} {family} daddr != {loopback} {lead}");
        }
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        " chain prerouting {{\n  type nat hook prerouting priority -101; policy accept;\n{from_outside} }}\n \
         chain admit {{\n  type filter hook prerouting priority -90; policy accept;\n  \
         iifname \"{BRIDGES}\" meta mark set meta mark | {MARK:#x}\n  \
         ct status dnat meta mark set meta mark | {MARK:#x}\n  \
         ct state established,related meta mark set meta mark | {MARK:#x}\n }}\n \
         chain output {{\n  type nat hook output priority -101; policy accept;\n{from_here} }}\n \
         chain postrouting {{\n  type nat hook postrouting priority 99; policy accept;\n  \
         iifname \"{BRIDGES}\" oifname \"{BRIDGES}\" ct status dnat masquerade\n"
    );
    if !plan.open.is_empty() {
        let _ = writeln!(text, "  iifname {{ {} }} oifname != \"{BRIDGES}\" masquerade", quoted(&plan.open));
    }
    let _ = write!(
        text,
        " }}\n chain input {{\n  type filter hook input priority -10; policy accept;\n  \
         iifname \"{BRIDGES}\" ip daddr 127.0.0.0/8 drop\n }}\n \
         chain forward {{\n  type filter hook forward priority -10; policy accept;\n"
    );
    for bridge in plan.open.iter().chain(&plan.internal).chain(&plan.attached) {
        let _ = writeln!(text, "  iifname \"{bridge}\" oifname \"{bridge}\" accept");
    }
    if !plan.internal.is_empty() {
        let internal = quoted(&plan.internal);
        let _ = writeln!(text, "  iifname {{ {internal} }} drop\n  oifname {{ {internal} }} drop");
    }
    let _ = write!(
        text,
        "  oifname \"{BRIDGES}\" ct state established,related accept\n  \
         oifname \"{BRIDGES}\" ct status dnat accept\n  \
         oifname \"{BRIDGES}\" drop\n  \
         iifname \"{BRIDGES}\" ct status dnat accept\n"
    );
    // The engine keeps its own networks apart; weft's are none of those.
    for other in &plan.foreign {
        let _ = writeln!(text, "  iifname \"{BRIDGES}\" oifname \"{other}\" drop");
    }
    text.push_str(" }\n");
    text
}

/// Questions to weft's own resolvers stay theirs, even if a container publishes port 53.
fn own_resolvers(plan: &Plan) -> String {
    let mut text = String::new();
    for (family, is_v4) in [("ip", true), ("ip6", false)] {
        let own = plan.resolvers.iter().filter(|ip| ip.is_ipv4() == is_v4).map(IpAddr::to_string);
        let own: Vec<String> = own.collect();
        if !own.is_empty() {
            let _ = writeln!(
                text,
                "  {family} daddr {{ {} }} meta l4proto {{ tcp, udp }} th dport 53 return",
                own.join(", ")
            );
        }
    }
    text
}

/// Ports that one rule, or two, can lead.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    is_v4: bool,
    protocol: u8,
    host: Option<IpAddr>,
    bridge: String,
}

/// What the firewall leads, in groups. The other ports are carried by their sockets: those of the loopback, and those of a
/// family that the container does not have.
fn groups(ports: &BTreeSet<Port>) -> BTreeMap<Group, Vec<&Port>> {
    let mut groups: BTreeMap<Group, Vec<&Port>> = BTreeMap::new();
    for port in ports.iter().filter(|port| port.host.is_ipv4() == port.to.is_ipv4() && !port.host.is_loopback()) {
        let Port { protocol, host, bridge, .. } = port;
        let named = Some(*host).filter(|host| !host.is_unspecified());
        let group = Group { is_v4: host.is_ipv4(), protocol: *protocol, host: named, bridge: bridge.clone() };
        groups.entry(group).or_default().push(port);
    }
    groups
}

/// The ends of rules that lead a group's ports: those that keep their numbers by ranges, the others by a map.
fn leads(group: &Group, ports: &[&Port]) -> Vec<String> {
    let protocol = if group.protocol == UDP { "udp" } else { "tcp" };
    let family = if group.is_v4 { "ip" } else { "ip6" };
    let mut kept: BTreeMap<IpAddr, BTreeSet<u16>> = BTreeMap::new();
    let mut changed = Vec::new();
    for port in ports {
        if port.host_port == port.to.port() {
            kept.entry(port.to.ip()).or_default().insert(port.host_port);
        } else {
            changed.push(format!("{} : {} . {}", port.host_port, port.to.ip(), port.to.port()));
        }
    }
    let by_range = kept
        .into_iter()
        .map(|(ip, numbers)| format!("{protocol} dport {{ {} }} dnat {family} to {ip}", ranges(&numbers).join(", ")));
    let by_map =
        (!changed.is_empty()).then(|| format!("dnat {family} to {protocol} dport map {{ {} }}", changed.join(", ")));
    by_range.chain(by_map).collect()
}

fn ranges(numbers: &BTreeSet<u16>) -> Vec<String> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*number) => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let written = |(first, last): (u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.into_iter().map(written).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::ports::TCP;
    use super::*;

    fn port(protocol: u8, host: &str, host_port: u16, to: &str) -> Port {
        let (host, to): (IpAddr, SocketAddr) = (host.parse().unwrap(), to.parse().unwrap());
        Port { protocol, host, host_port, to, bridge: "weft1".into() }
    }

    #[test]
    fn rules_name_what_is_published_and_what_is_open() {
        let ports = BTreeSet::from([
            port(TCP, "0.0.0.0", 8080, "10.32.0.5:80"),
            port(TCP, "::", 8080, "[fd00::5]:80"),
            port(UDP, "192.0.2.1", 53, "10.32.0.5:53"),
        ]);
        let one = |name: &str| BTreeSet::from([name.to_owned()]);
        let plan = Plan {
            open: one("weft1"),
            internal: one("weft2"),
            attached: one("weft3"),
            foreign: one("docker0"),
            resolvers: ["10.32.0.1".parse().unwrap()].into(),
            has_ipv6: false,
        };
        let text = rules(&plan, &ports);
        for expected in [
            "iifname != \"weft1\" meta nfproto ipv4 fib daddr type local dnat ip to tcp dport map { 8080 : 10.32.0.5 . 80 }",
            "iifname != \"weft1\" meta nfproto ipv6 fib daddr type local dnat ip6 to tcp dport map { 8080 : fd00::5 . 80 }",
            "meta nfproto ipv4 ip daddr 192.0.2.1 fib daddr type local udp dport { 53 } dnat ip to 10.32.0.5",
            "ip daddr { 10.32.0.1 } meta l4proto { tcp, udp } th dport 53 return",
            "ct status dnat meta mark set meta mark | 0x8000000",
            "iifname { \"weft1\" } oifname != \"weft*\" masquerade",
            "iifname { \"weft2\" } drop",
            "iifname \"weft3\" oifname \"weft3\" accept",
            "iifname \"weft*\" oifname \"docker0\" drop",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        assert!(text.find("th dport 53 return").unwrap() < text.find("udp dport { 53 }").unwrap());
    }

    #[test]
    fn what_the_kernel_cannot_lead_is_left_to_sockets() {
        let ports = BTreeSet::from([
            port(TCP, "127.0.0.1", 9, "10.32.0.5:80"),
            port(TCP, "::1", 9, "[fd00::5]:80"),
            port(TCP, "::", 9, "10.32.0.5:80"),
        ]);
        assert!(!rules(&Plan::default(), &ports).contains("dnat ip"));
    }

    #[test]
    fn ranges_are_ranges() {
        let ports = (10_000..=20_000u16).map(|number| port(UDP, "0.0.0.0", number, &format!("10.32.0.5:{number}")));
        let text = rules(&Plan::default(), &ports.collect());
        assert!(text.contains("udp dport { 10000-20000 } dnat ip to 10.32.0.5\n"), "{text}");
        assert_eq!(ranges(&[1, 2, 3, 7, u16::MAX].into()), ["1-3", "7", "65535"]);
    }
}
