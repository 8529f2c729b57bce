//! Published ports: what of this host leads to which container, and who else is kept from it.
//!
//! An endpoint publishes while the engine says so (`ProgramExternalConnectivity` to `RevokeExternalConnectivity`). Each port is
//! reserved by a socket that is bound to it, as by any other program. What comes to the socket itself, and not to the container
//! by the firewall's rules, is carried by [`super::proxy`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::AbortHandle;
use tracing::debug;

use super::protocol::PortBinding;
use super::proxy;
use crate::attach::netlink::{in_namespace, is_own_interface};
use crate::attach::prefix::Prefix;
use crate::attach::prefix::{has_ipv6, is_link_local};
use crate::error::{Doing, Failure, Result};
use crate::host::conntrack::{self, Flow};

/// TCP in IP headers (IANA protocol numbers).
pub const TCP: u8 = 6;
/// UDP in IP headers.
pub const UDP: u8 = 17;
/// The port at which weft's gateways answer: a socket for all addresses of the host would be in their way.
const DNS_PORT: u16 = 53;
/// Times another port is tried where any will do and one of the addresses has it taken.
const RANDOM_TRIES: usize = 16;

/// The published ports of this host.
#[derive(Default)]
pub struct Ports {
    /// By the engine's ids of endpoints.
    published: Mutex<BTreeMap<String, Published>>,
}

/// The ports of one endpoint.
struct Published {
    sandbox: String,
    bindings: Vec<PortBinding>,
    ports: Vec<Port>,
    _reserved: Vec<Reservation>,
}

/// A bound socket, with the task that serves it.
struct Reservation(AbortHandle);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One port of the host that the firewall leads to a container.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Port {
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// The host's address; an unspecified one: all of its family.
    pub host: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's address, maybe of another family, and port.
    pub to: SocketAddr,
    /// The bridge that the container is behind.
    pub bridge: String,
}

/// An endpoint whose ports are to be published.
pub struct Publishing<'a> {
    /// The engine's id of it.
    pub id: &'a str,
    /// The container's network namespace.
    pub sandbox: &'a str,
    /// The container's addresses.
    pub ips: Vec<IpAddr>,
    /// The bridge that the container is behind.
    pub bridge: String,
    /// The address of the host that bindings without one mean, if its network has one.
    pub host: Option<Ipv4Addr>,
}

impl Ports {
    /// Publishes what an endpoint is to publish, in place of what it or another one of its container published. Returns the
    /// bindings with the ports that were found for them. An `Err` leaves nothing of it published.
    pub fn publish(&self, endpoint: &Publishing<'_>, bindings: &[PortBinding]) -> Result<Vec<PortBinding>> {
        let mut published = self.lock();
        if let Some(known) = published.get(endpoint.id).filter(|known| is_same(&known.bindings, bindings)) {
            return Ok(known.bindings.clone());
        }
        published.retain(|id, other| id != endpoint.id && other.sandbox != endpoint.sandbox);
        let (mut found, mut ports, mut reserved) = (Vec::new(), Vec::new(), Vec::new());
        for binding in bindings {
            let (hosts, host_port, sockets) = reserve(binding, endpoint.host)?;
            found.push(PortBinding { host_port, host_port_end: host_port, ..binding.clone() });
            let to = |host| target(&endpoint.ips, host).map(|ip| SocketAddr::new(ip, binding.port));
            for (host, socket) in sockets {
                let to = to(host)?;
                let serving = match binding.proto {
                    TCP => proxy::tcp(socket.into(), to),
                    _ => proxy::udp(socket.into(), to),
                };
                reserved.push(Reservation(serving.doing(|| "cannot serve a published port".into())?));
            }
            for host in hosts {
                let (to, bridge) = (to(host)?, endpoint.bridge.clone());
                ports.push(Port { protocol: binding.proto, host, host_port, to, bridge });
            }
        }
        let (sandbox, bindings) = (endpoint.sandbox.to_owned(), found.clone());
        published.insert(endpoint.id.to_owned(), Published { sandbox, bindings, ports, _reserved: reserved });
        Ok(found)
    }

    /// Lets go of an endpoint's ports; returns them.
    pub fn unpublish(&self, id: &str) -> Vec<Port> {
        self.lock().remove(id).map(|published| published.ports).unwrap_or_default()
    }

    /// All ports that are published.
    pub fn all(&self) -> BTreeSet<Port> {
        self.lock().values().flat_map(|published| published.ports.iter().cloned()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Published>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Published ports as `docker ps` writes them, those that follow each other together.
pub fn written(ports: &[PortBinding]) -> Vec<String> {
    let mut runs: Vec<(&PortBinding, u16)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((first, more))
                if (first.proto, &first.host_ip) == (port.proto, &port.host_ip)
                    && u32::from(first.host_port) + u32::from(*more) + 1 == u32::from(port.host_port)
                    && u32::from(first.port) + u32::from(*more) + 1 == u32::from(port.port) =>
            {
                *more += 1;
            }
            _ => runs.push((port, 0)),
        }
    }
    let range = |first: u16, more: u16| if more == 0 { first.to_string() } else { format!("{first}-{}", first + more) };
    let write = |(port, more): (&PortBinding, u16)| {
        let host = match port.host_ip.as_str() {
            "" => "*".to_owned(),
            v6 if v6.contains(':') => format!("[{v6}]"),
            v4 => v4.to_owned(),
        };
        let protocol = if port.proto == TCP { "tcp" } else { "udp" };
        format!("{host}:{}->{}/{protocol}", range(port.host_port, more), range(port.port, more))
    };
    runs.into_iter().map(write).collect()
}

/// Ends tracked connections to ports: what was led elsewhere before, or nowhere, is led anew by the rules there are now.
pub fn end_flows_to(ports: impl IntoIterator<Item = Port>) {
    let ended: BTreeSet<(u8, u16)> = ports.into_iter().map(|port| (port.protocol, port.host_port)).collect();
    tokio::task::spawn_blocking(move || {
        let is_ended = move |flow: &Flow| ended.contains(&(flow.protocol, flow.to.port()));
        if let Err(error) = conntrack::end_flows(is_ended) {
            debug!("connections to a port that changed go on as they were: {error}");
        }
    });
}

/// Whether what is published is what is asked for: a port that was open may have been chosen since.
fn is_same(published: &[PortBinding], wanted: &[PortBinding]) -> bool {
    let fits = |(known, wanted): (&PortBinding, &PortBinding)| {
        let range = wanted.host_port..=wanted.host_port_end.max(wanted.host_port);
        (known.proto, known.port, &known.host_ip) == (wanted.proto, wanted.port, &wanted.host_ip)
            && (wanted.host_port == 0 || range.contains(&known.host_port))
    };
    published.len() == wanted.len() && published.iter().zip(wanted).all(fits)
}

/// The container's address that a host's leads to: of the same family, if it has one.
fn target(ips: &[IpAddr], host: IpAddr) -> Result<IpAddr> {
    let same = ips.iter().find(|ip| ip.is_ipv4() == host.is_ipv4());
    same.or_else(|| ips.first()).copied().ok_or_else(|| Failure::new("a container without addresses publishes nothing"))
}

/// The host's addresses that a binding means, the port's number, and the sockets with the address that each is bound to.
type Reserved = (Vec<IpAddr>, u16, Vec<(IpAddr, Socket)>);

/// Takes a port of this host for a binding, so that no other program does.
fn reserve(binding: &PortBinding, default: Option<Ipv4Addr>) -> Result<Reserved> {
    if ![TCP, UDP].contains(&binding.proto) {
        let message = format!("cannot publish ports of protocol {}, only TCP and UDP", binding.proto);
        return Err(Failure::new(message));
    }
    let hosts = match (binding.host_ip.as_str(), default) {
        ("", Some(host)) => vec![IpAddr::V4(host)],
        ("", None) => {
            let v6 = has_ipv6().then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
            [IpAddr::V4(Ipv4Addr::UNSPECIFIED)].into_iter().chain(v6).collect()
        }
        (text, _) => vec![text.parse().doing(|| format!("{text} is no address to publish on"))?],
    };
    let wanted: Vec<u16> = match binding.host_port {
        0 => vec![0; RANDOM_TRIES],
        first => (first..=binding.host_port_end.max(first)).collect(),
    };
    let mut refused = String::new();
    for port in wanted {
        match take(&hosts, port, binding.proto) {
            Ok((port, sockets)) => return Ok((hosts, port, sockets)),
            Err(error) => refused = error.to_string(),
        }
    }
    let port = match binding.host_port {
        0 => "any port".to_owned(),
        first if binding.host_port_end > first => format!("any port of {first} to {}", binding.host_port_end),
        first => format!("port {first}"),
    };
    Err(Failure::new(format!("cannot publish {port} of this host: {refused}; publish another")))
}

/// Binds one port at all of some addresses; 0 chooses a port that is free at all of them.
fn take(hosts: &[IpAddr], mut port: u16, protocol: u8) -> Result<(u16, Vec<(IpAddr, Socket)>)> {
    let mut sockets = Vec::new();
    for host in hosts {
        // Gateways answer DNS at their own addresses: there is no socket for all of the host's then.
        let places = if host.is_unspecified() && port == DNS_PORT { own_addresses(*host)? } else { vec![*host] };
        for place in places {
            let socket = bind(SocketAddr::new(place, port), protocol).doing(|| format!("{place}"))?;
            let bound = socket.local_addr().ok().and_then(|address| address.as_socket());
            port = bound.map_or(port, |address| address.port());
            sockets.push((place, socket));
        }
    }
    Ok((port, sockets))
}

fn bind(address: SocketAddr, protocol: u8) -> std::io::Result<Socket> {
    let (kind, protocol) = if protocol == TCP { (Type::STREAM, Protocol::TCP) } else { (Type::DGRAM, Protocol::UDP) };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        // What waits after a connection's end is no other program.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(128)?;
    }
    Ok(socket)
}

/// The addresses of a family that this host has, but for those in segments of weft's.
fn own_addresses(family: IpAddr) -> Result<Vec<IpAddr>> {
    let is_v4 = family.is_ipv4();
    in_namespace(None, async move |net| {
        let links = net.links().await?;
        let is_outside = |index: u32| links.iter().any(|link| link.index == index && !is_own_interface(&link.name));
        let all =
            net.all_addresses().await?.into_iter().filter(|(index, _)| is_outside(*index)).map(|(_, Prefix(ip, _))| ip);
        Ok(all.filter(|ip| ip.is_ipv4() == is_v4 && !is_link_local(ip)).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(host_ip: &str, host_port: u16, host_port_end: u16) -> PortBinding {
        PortBinding { proto: TCP, port: 80, host_ip: host_ip.into(), host_port, host_port_end }
    }

    fn endpoint(id: &'static str) -> Publishing<'static> {
        let (ips, bridge) = (vec![IpAddr::from([10, 32, 0, 5])], "weft0000000001".into());
        Publishing { id, sandbox: id, ips, bridge, host: None }
    }

    #[tokio::test]
    async fn a_port_is_taken_once_and_let_go_of() {
        let ports = Ports::default();
        let found = ports.publish(&endpoint("a"), &[binding("127.0.0.1", 0, 0)]).unwrap();
        let port = found[0].host_port;
        assert_ne!(port, 0);
        let refused = ports.publish(&endpoint("b"), &[binding("127.0.0.1", port, port)]).unwrap_err().to_string();
        assert!(refused.contains("publish another"), "{refused}");
        // The same again, with what was found or as it was asked for, is the same.
        for again in [binding("127.0.0.1", 0, 0), binding("127.0.0.1", port, port)] {
            assert_eq!(ports.publish(&endpoint("a"), &[again]).unwrap()[0].host_port, port);
        }
        assert_eq!(ports.all().len(), 1);
        assert_eq!(ports.unpublish("a").len(), 1);
        tokio::task::yield_now().await;
        ports.publish(&endpoint("b"), &[binding("127.0.0.1", port, port)]).unwrap();
        let sctp = PortBinding { proto: 132, ..binding("", 0, 0) };
        assert!(ports.publish(&endpoint("c"), &[sctp]).unwrap_err().to_string().contains("only TCP and UDP"));
    }

    #[tokio::test]
    async fn of_a_range_the_first_free_port_is_taken() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let first = taken.local_addr().unwrap().port();
        let ports = Ports::default();
        let found = ports.publish(&endpoint("a"), &[binding("127.0.0.1", first, first.saturating_add(20))]).unwrap();
        assert!(found[0].host_port > first);
    }

    #[tokio::test]
    async fn without_an_address_both_families_are_meant_and_lead_to_what_the_container_has() {
        let ports = Ports::default();
        ports.publish(&endpoint("a"), &[binding("", 0, 0)]).unwrap();
        let hosts: Vec<IpAddr> = ports.all().into_iter().map(|port| port.host).collect();
        let both = [IpAddr::from([0; 4]), IpAddr::from([0u16; 8])];
        assert_eq!(hosts, both[..if has_ipv6() { 2 } else { 1 }]);
        assert!(ports.all().iter().all(|port| port.to.ip() == IpAddr::from([10, 32, 0, 5])));
        let limited = Publishing { host: Some(Ipv4Addr::LOCALHOST), ..endpoint("b") };
        ports.publish(&limited, &[binding("", 0, 0)]).unwrap();
        assert_eq!(ports.all().iter().filter(|port| port.host == Ipv4Addr::LOCALHOST).count(), 1);
    }
}
