//! Published ports, the way out, and what keeps networks apart on this host: one nftables table of weft's own.
//!
//! The table is written as a whole and carries a digest of itself, so that a look at it tells whether somebody took it
//! away or changed it. Engines whose firewall drops what it does not know are told to let weft's bridges through.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::Stdio;
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
/// Matches the bridges of all segments.
const BRIDGES: &str = "weft*";

/// The published ports of this host.
#[derive(Default)]
pub struct Publisher {
    /// Told when the rules are to be looked at again.
    pub wanted: Notify,
    published: Mutex<BTreeMap<String, Published>>,
    /// What was last said about firewalls, so that it is said once.
    said: Mutex<String>,
}

/// The ports of one endpoint. The sockets keep everybody else from them.
struct Published {
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
}

impl Publisher {
    /// Reserves the ports that an endpoint publishes.
    pub fn publish(&self, id: &str, endpoint: &Endpoint) -> Result<()> {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if published.contains_key(id) || endpoint.ports.is_empty() {
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
        published.insert(id.to_owned(), Published { ports, _sockets: sockets });
        Ok(())
    }

    /// Lets go of an endpoint's ports.
    pub fn unpublish(&self, id: &str) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Makes the rules what they are to be, if they are not.
    pub async fn apply(&self, plan: &Plan) -> Result<()> {
        let ports: BTreeSet<Port> = {
            let published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            published.values().flat_map(|published| published.ports.clone()).collect()
        };
        if plan.open.is_empty() && plan.internal.is_empty() {
            return self.remove().await;
        }
        let rules = rules(plan, &ports);
        let digest = hex::encode(&weft_mesh::records::digest_of(rules.as_bytes())[..6]);
        if !run("nft", &["list", "chain", "inet", "weft", &format!("v{digest}")], "").await.is_ok_and(|_| true) {
            let text = format!(
                "table inet weft\ndelete table inet weft\ntable inet weft {{\n chain v{digest} {{ }}\n{rules}}}\n"
            );
            run("nft", &["-f", "-"], &text).await?;
            for bridge in &plan.open {
                // What is published is published to this host itself, too.
                let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), "1");
            }
            let _ = std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
            info!(ports = ports.len(), "firewall rules are in place");
        }
        self.pass_firewalls().await;
        Ok(())
    }

    /// Takes the rules away.
    pub async fn remove(&self) -> Result<()> {
        if run("nft", &["list", "table", "inet", "weft"], "").await.is_ok() {
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
            let has_user_chain = rules.lines().any(|line| line == "-N DOCKER-USER");
            let drops = rules.lines().any(|line| matches!(line, "-P FORWARD DROP" | "-P FORWARD REJECT"));
            let chain = match (has_user_chain, drops) {
                (true, _) => "DOCKER-USER",
                (false, true) => "FORWARD",
                (false, false) => continue,
            };
            for rule in PASS {
                if run(program, &[&["-w", "2", "-C", chain], rule].concat(), "").await.is_ok() {
                    continue;
                }
                if let Err(error) = run(program, &[&["-w", "2", "-I", chain], rule].concat(), "").await {
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

/// What a firewall in front has to let through; weft's own table decides what of it goes on.
const PASS: [&[&str]; 2] = [&["-i", "weft+", "-j", "ACCEPT"], &["-o", "weft+", "-j", "ACCEPT"]];

fn rules(plan: &Plan, ports: &BTreeSet<Port>) -> String {
    let mut text = String::new();
    let quoted =
        |names: &BTreeSet<String>| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let mut nat = String::new();
    for Port { protocol, host, host_port, to } in ports {
        let (family, name) = if to.is_ipv4() { ("ip", "ipv4") } else { ("ip6", "ipv6") };
        let protocol = if *protocol == UDP { "udp" } else { "tcp" };
        let host = host.map(|host| format!("{family} daddr {host} ")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(
            nat,
            "  meta nfproto {name} {host}fib daddr type local {protocol} dport {host_port} dnat {family} to {to}"
        );
    }
    let _ = write!(
        text,
        " chain prerouting {{\n  type nat hook prerouting priority -101; policy accept;\n{nat} }}\n \
         chain output {{\n  type nat hook output priority -101; policy accept;\n{nat} }}\n \
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
    for bridge in plan.open.iter().chain(&plan.internal) {
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
         oifname \"{BRIDGES}\" drop\n }}\n"
    );
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
    let host = if host_ip.is_empty() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { parse_host(host_ip)? };
    let take = |port: u16| {
        let domain = if host.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        if host == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            socket.set_only_v6(false)?;
        }
        socket.bind(&SocketAddr::new(host, port).into())?;
        Ok::<Socket, std::io::Error>(socket)
    };
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
        let plan = Plan { open: BTreeSet::from(["weft1".into()]), internal: BTreeSet::from(["weft2".into()]) };
        let text = rules(&plan, &ports);
        for expected in [
            "meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.32.0.5:80",
            "meta nfproto ipv4 ip daddr 192.0.2.1 fib daddr type local udp dport 53 dnat ip to 10.32.0.5:80",
            "iifname { \"weft1\" } oifname != \"weft*\" masquerade",
            "iifname { \"weft2\" } drop",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
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
