//! Published ports, the way out, and what keeps networks apart on this host: one nftables table of weft's own.
//!
//! The table is written as a whole and carries a digest of itself, so that a look at it tells whether somebody took it
//! away or changed it. Engines whose firewall drops what it does not know are told to let weft's bridges through.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::driver::Endpoint;
use super::protocol::PortBinding;
use crate::error::{Doing, Failure, Result};

const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;
/// Matches the bridges of all segments.
const BRIDGES: &str = "weft*";

/// The published ports of this host.
pub struct Publisher {
    /// Told when the rules are to be looked at again.
    pub wanted: Notify,
    /// By the containers' network namespaces.
    published: Mutex<BTreeMap<String, Published>>,
    /// Whether there may be rules.
    has_rules: AtomicBool,
    /// What was last said about firewalls, so that it is said once.
    said: Mutex<String>,
}

/// The ports of one container. The sockets keep everybody else from them.
struct Published {
    /// Which of its endpoints they lead to.
    endpoint: String,
    ports: Vec<Port>,
    _sockets: Vec<Socket>,
}

/// One published port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Port {
    protocol: u8,
    host: Option<IpAddr>,
    host_port: u16,
    to: SocketAddr,
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
    /// Whether containers that reach the outside have IPv6.
    pub has_ipv6: bool,
}

impl Default for Publisher {
    fn default() -> Self {
        // An earlier router may have left some.
        let has_rules = AtomicBool::new(true);
        Publisher { wanted: Notify::new(), published: Mutex::default(), has_rules, said: Mutex::default() }
    }
}

impl Publisher {
    /// Reserves the ports that an endpoint publishes, unless another one of its container does: the engine gives a
    /// container's ports to each of its endpoints.
    pub fn publish(&self, sandbox: &str, id: &str, endpoint: &Endpoint) -> Result<()> {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if published.contains_key(sandbox) || endpoint.ports.is_empty() {
            return Ok(());
        }
        let (mut ports, mut sockets) = (Vec::new(), Vec::new());
        for binding in &endpoint.ports {
            let (reserved, host_port) = reserve(binding)?;
            sockets.extend(reserved);
            let host = if binding.host_ip.is_empty() { None } else { Some(parse_host(&binding.host_ip)?) };
            let host = host.filter(|host| !host.is_unspecified());
            let to = endpoint.ips.iter().map(|(ip, _)| *ip);
            let to = to.filter(|ip| host.is_none_or(|host| host.is_ipv4() == ip.is_ipv4()));
            ports.extend(to.map(|ip| Port {
                protocol: binding.proto,
                host,
                host_port,
                to: SocketAddr::new(ip, binding.port),
            }));
        }
        published.insert(sandbox.to_owned(), Published { endpoint: id.to_owned(), ports, _sockets: sockets });
        Ok(())
    }

    /// Lets go of an endpoint's ports; whether it had any.
    pub fn unpublish(&self, id: &str) -> bool {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let before = published.len();
        published.retain(|_, published| published.endpoint != id);
        published.len() < before
    }

    /// Makes the rules what they are to be, if they are not.
    pub async fn apply(&self, plan: &Plan) -> Result<()> {
        let ports: BTreeSet<Port> = {
            let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            published.values().flat_map(|published| published.ports.clone()).collect()
        };
        if plan.open.is_empty() && plan.internal.is_empty() && plan.attached.is_empty() {
            return if self.has_rules.load(Ordering::Relaxed) { self.remove().await } else { Ok(()) };
        }
        self.has_rules.store(true, Ordering::Relaxed);
        let rules = rules(plan, &ports);
        let digest = hex::encode(&weft_mesh::records::digest_of(rules.as_bytes())[..6]);
        if run("nft", &["list", "chain", "inet", "weft", &format!("v{digest}")], "").await.is_err() {
            let text = format!(
                "table inet weft\ndelete table inet weft\ntable inet weft {{\n chain v{digest} {{ }}\n{rules}}}\n"
            );
            run("nft", &["-f", "-"], &text).await?;
            info!(ports = ports.len(), "firewall rules are in place");
        }
        forward(plan, !ports.is_empty());
        self.pass_firewalls().await;
        Ok(())
    }

    /// Takes the rules away.
    pub async fn remove(&self) -> Result<()> {
        self.has_rules.store(false, Ordering::Relaxed);
        if run("nft", &["list", "table", "inet", "weft"], "").await.is_ok() {
            // Without the table nothing would keep containers from the host's loopback.
            for bridge in bridges() {
                let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), "0");
            }
            run("nft", &["delete", "table", "inet", "weft"], "").await?;
        }
        for program in ["iptables", "ip6tables"] {
            for chain in ["DOCKER-USER", "FORWARD"] {
                for rule in PASS {
                    let arguments = [&["-w", "2", "-D", chain], rule].concat();
                    while run(program, &arguments, "").await.is_ok() {}
                }
            }
        }
        Ok(())
    }

    /// Frames between containers of one bridge pass the firewall, too, where `br_netfilter` is loaded; a firewall that
    /// forwards only what it knows has to know weft.
    async fn pass_firewalls(&self) {
        for program in ["iptables", "ip6tables"] {
            let Ok(rules) = run(program, &["-w", "2", "-S"], "").await else { continue };
            let Some((chain, at)) = place(&rules) else { continue };
            for rule in PASS {
                let written = format!("-A {chain} {}", rule.join(" "));
                if rules.lines().any(|line| line == written) {
                    continue;
                }
                let at = at.to_string();
                if let Err(error) = run(program, &[&["-w", "2", "-I", chain, &at], rule].concat(), "").await {
                    let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                    let text = error.to_string();
                    if *said != text {
                        warn!("containers may not reach each other: {text}");
                        *said = text;
                    }
                }
            }
        }
    }
}

/// In which chain of a firewall, and before which of its rules, weft's have to be: after what the administrator says,
/// and before what drops the rest. None: it drops nothing.
fn place(rules: &str) -> Option<(&'static str, usize)> {
    const USER: &str = "DOCKER-USER";
    if rules.lines().any(|line| line.strip_prefix("-N ") == Some(USER)) {
        let own: Vec<&str> = rules.lines().filter_map(|line| line.strip_prefix("-A DOCKER-USER ")).collect();
        return Some((USER, own.iter().position(|rule| *rule == "-j RETURN").unwrap_or(own.len()) + 1));
    }
    let drops = |line: &str| {
        matches!(line, "-P FORWARD DROP" | "-P FORWARD REJECT")
            || line.starts_with("-A FORWARD -j REJECT")
            || line == "-A FORWARD -j DROP"
    };
    rules.lines().any(drops).then_some(("FORWARD", 1))
}

/// Has the kernel forward what the rules let through.
fn forward(plan: &Plan, is_published: bool) {
    // What is published is published to this host itself, too.
    let local = if is_published { "1" } else { "0" };
    for bridge in &plan.open {
        let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), local);
    }
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

fn bridges() -> Vec<String> {
    let interfaces = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let names = interfaces.filter_map(|interface| interface.file_name().into_string().ok());
    names.filter(|name| name.starts_with("weft")).collect()
}

/// What a firewall in front has to let through; weft's own table decides what of it goes on.
const PASS: [&[&str]; 2] = [&["-i", "weft+", "-j", "ACCEPT"], &["-o", "weft+", "-j", "ACCEPT"]];

fn rules(plan: &Plan, ports: &BTreeSet<Port>) -> String {
    let mut text = String::new();
    let quoted =
        |names: &BTreeSet<String>| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let (mut from_outside, mut from_here) = (String::new(), String::new());
    for Port { protocol, host, host_port, to } in ports {
        let (family, name) = if to.is_ipv4() { ("ip", "ipv4") } else { ("ip6", "ipv6") };
        let protocol = if *protocol == UDP { "udp" } else { "tcp" };
        let is_local = host.is_some_and(|host| host.is_loopback());
        let host = host.map(|host| format!("{family} daddr {host} ")).unwrap_or_default();
        let rule = format!(
            "  meta nfproto {name} {host}fib daddr type local {protocol} dport {host_port} dnat {family} to {to}\n"
        );
        from_here.push_str(&rule);
        if !is_local {
            from_outside.push_str(&rule);
        }
    }
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        " chain prerouting {{\n  type nat hook prerouting priority -101; policy accept;\n  \
         iifname \"{BRIDGES}\" meta l4proto {{ tcp, udp }} th dport 53 return\n{from_outside} }}\n \
         chain output {{\n  type nat hook output priority -101; policy accept;\n{from_here} }}\n \
         chain postrouting {{\n  type nat hook postrouting priority 99; policy accept;\n  \
         oifname \"{BRIDGES}\" ip saddr 127.0.0.0/8 masquerade\n  \
         iifname \"{BRIDGES}\" oifname \"{BRIDGES}\" ct status dnat masquerade\n"
    );
    if !plan.open.is_empty() {
        let _ = writeln!(text, "  iifname {{ {} }} oifname != \"{BRIDGES}\" masquerade", quoted(&plan.open));
    }
    let _ = write!(
        text,
        " }}\n chain input {{\n  type filter hook input priority -10; policy accept;\n  \
         iifname \"{BRIDGES}\" ip daddr 127.0.0.0/8 ct status dnat accept\n  \
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

/// Takes a port of this host, so that nobody else does; returns its number.
fn reserve(binding: &PortBinding) -> Result<(Vec<Socket>, u16)> {
    let PortBinding { proto, host_ip, host_port, host_port_end, .. } = binding;
    let (kind, protocol) = match *proto {
        TCP => (Type::STREAM, Protocol::TCP),
        UDP => (Type::DGRAM, Protocol::UDP),
        other => return Err(Failure::new(format!("cannot publish ports of protocol {other}, only TCP and UDP"))),
    };
    let everywhere = if has_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let host = if host_ip.is_empty() { everywhere } else { parse_host(host_ip)? };
    let take = |port: u16| {
        let domain = if host.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        if host == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            socket.set_only_v6(false)?;
        }
        socket.bind(&SocketAddr::new(host, port).into())?;
        Ok::<Socket, std::io::Error>(socket)
    };
    if *host_port == DNS_PORT {
        // Gateways answer there: it cannot be taken for this host as a whole.
        return Ok((Vec::new(), DNS_PORT));
    }
    let mut refused = None;
    for port in *host_port..=(*host_port_end).max(*host_port) {
        match take(port) {
            Ok(socket) => {
                let address = socket.local_addr().ok().and_then(|address| address.as_socket());
                return Ok((vec![socket], address.map_or(port, |address| address.port())));
            }
            Err(error) => refused = Some(error),
        }
    }
    let error = refused.map(|error| error.to_string()).unwrap_or_default();
    Err(Failure::new(format!("cannot publish port {host_port} of this host: {error}; publish another")))
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

fn parse_host(text: &str) -> Result<IpAddr> {
    text.parse().doing(|| format!("{text} is no address to publish on"))
}

/// Runs a program to its end; returns what it printed.
async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let what = || format!("cannot run {program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .doing(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.doing(what)?;
    }
    let output = child.wait_with_output().await.doing(what)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{}: {}", what(), error.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_what_is_published_and_what_is_open() {
        let to = SocketAddr::from(([10, 32, 0, 5], 80));
        let ports = BTreeSet::from([
            Port { protocol: TCP, host: None, host_port: 8080, to },
            Port { protocol: UDP, host: Some(IpAddr::from([192, 0, 2, 1])), host_port: 53, to },
        ]);
        let one = |name: &str| BTreeSet::from([name.to_owned()]);
        let plan = Plan {
            open: one("weft1"),
            internal: one("weft2"),
            attached: one("weft3"),
            foreign: one("docker0"),
            has_ipv6: false,
        };
        let text = rules(&plan, &ports);
        for expected in [
            "meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.32.0.5:80",
            "meta nfproto ipv4 ip daddr 192.0.2.1 fib daddr type local udp dport 53 dnat ip to 10.32.0.5:80",
            "iifname { \"weft1\" } oifname != \"weft*\" masquerade",
            "iifname { \"weft2\" } drop",
            "iifname \"weft3\" oifname \"weft3\" accept",
            "iifname \"weft*\" oifname \"docker0\" drop",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
    }

    #[test]
    fn what_is_published_on_the_loopback_is_not_reached_from_outside() {
        let host = Some(IpAddr::from([127, 0, 0, 1]));
        let port = Port { protocol: TCP, host, host_port: 9, to: SocketAddr::from(([10, 32, 0, 5], 80)) };
        let text = rules(&Plan::default(), &BTreeSet::from([port]));
        let (before, after) = text.split_once("chain output").unwrap();
        assert!(!before.contains("dport 9") && after.contains("dport 9"));
    }

    #[test]
    fn rules_come_after_the_administrators() {
        let docker =
            "-P FORWARD DROP\n-N DOCKER-USER\n-A DOCKER-USER -s 192.0.2.1/32 -j DROP\n-A DOCKER-USER -j RETURN";
        assert_eq!(place(docker), Some(("DOCKER-USER", 2)));
        assert_eq!(place("-P FORWARD DROP\n-N DOCKER-USER"), Some(("DOCKER-USER", 1)));
        assert_eq!(place("-P FORWARD DROP"), Some(("FORWARD", 1)));
        assert_eq!(place("-P FORWARD ACCEPT\n-P INPUT DROP"), None);
    }

    #[test]
    fn a_port_is_reserved_once() {
        let binding = |host_port, host_port_end| PortBinding {
            proto: TCP,
            port: 80,
            host_ip: "127.0.0.1".into(),
            host_port,
            host_port_end,
        };
        let (_held, port) = reserve(&binding(0, 0)).unwrap();
        assert!(reserve(&binding(port, port)).unwrap_err().to_string().contains("publish another"));
        let sctp = PortBinding { proto: 132, ..binding(0, 0) };
        assert!(reserve(&sctp).is_err());
    }
}
