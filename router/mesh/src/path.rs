//! The way of a datagram between two hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Bound;

/// A path to a peer: what a link, a hop, a punt and a transmit speak of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Path {
    /// What carries the datagrams.
    pub transport: Transport,
    /// The address at the other end.
    pub remote: SocketAddr,
    /// The address of this host that the other end asked, if the kernel might choose another for the answer: a firewall lets in only
    /// what comes from where it was sent to.
    pub local: Option<IpAddr>,
}

/// What carries datagrams between hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// One datagram in one UDP datagram.
    Udp,
    /// The same by a spare port of this host, which a peer found.
    SpareUdp(u16),
    /// A TCP connection that this host opens at need.
    Tcp,
    /// A TCP connection that the other end opened. Once it is closed its remote address leads nowhere.
    AcceptedTcp,
}

/// Which paths of a host lead over a line that is paid for by the byte.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MeteredPaths {
    /// Networks of remote addresses by prefix length in bits and base, and whether paths there are metered.
    networks: BTreeMap<(u8, IpAddr), bool>,
    /// Addresses of this host whose datagrams leave by such a line.
    locals: BTreeSet<IpAddr>,
}

impl MeteredPaths {
    /// Returns those to `networks`, each with its base, its prefix length in bits and whether paths there are metered, and those from this host's
    /// addresses `locals`. Of networks the longest prefix that holds an address counts (RFC 1812, section 5.2.4.3); paths to all other addresses are free.
    pub fn new(
        networks: impl IntoIterator<Item = (IpAddr, u8, bool)>,
        locals: impl IntoIterator<Item = IpAddr>,
    ) -> MeteredPaths {
        let by_length = |(base, length, is_metered)| ((length, network(base, length)), is_metered);
        MeteredPaths {
            networks: networks.into_iter().map(by_length).collect(),
            locals: locals.into_iter().map(|ip| ip.to_canonical()).collect(),
        }
    }

    /// Returns whether a path leads over such a line.
    pub fn contains(&self, path: &Path) -> bool {
        let remote = path.remote.ip().to_canonical();
        let is_local = path.local.is_some_and(|local| self.locals.contains(&local.to_canonical()));
        is_local || self.by_longest(remote)
    }

    /// Returns the networks, the shortest prefixes first.
    pub fn networks(&self) -> impl Iterator<Item = (IpAddr, u8, bool)> {
        self.networks.iter().map(|((length, base), is_metered)| (*base, *length, *is_metered))
    }

    /// Whether paths to an address are metered by the longest prefix that holds it.
    fn by_longest(&self, ip: IpAddr) -> bool {
        let mut end = Bound::Unbounded;
        // The lengths that there are, the longest first.
        while let Some(((length, _), _)) = self.networks.range((Bound::Unbounded, end)).next_back() {
            if let Some(is_metered) = self.networks.get(&(*length, network(ip, *length))) {
                return *is_metered;
            }
            end = Bound::Excluded((*length, IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        }
        false
    }
}

/// Returns the first `length` bits of an address, and zeros behind them.
pub fn network(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

impl Path {
    /// Returns the path by UDP to an address.
    pub const fn udp(remote: SocketAddr) -> Path {
        Path { transport: Transport::Udp, remote, local: None }
    }

    /// Returns the path by a TCP connection to an address.
    pub const fn tcp(remote: SocketAddr) -> Path {
        Path { transport: Transport::Tcp, remote, local: None }
    }

    /// Returns the path by a TCP connection that was accepted from an address.
    pub const fn accepted_tcp(remote: SocketAddr) -> Path {
        Path { transport: Transport::AcceptedTcp, remote, local: None }
    }

    /// Whether datagrams go by UDP.
    pub(crate) fn is_udp(self) -> bool {
        matches!(self.transport, Transport::Udp | Transport::SpareUdp(_))
    }

    /// Whether it lasts only while it is open here, as a connection does.
    pub(crate) fn is_opened(self) -> bool {
        self.transport != Transport::Udp
    }

    /// Whether it can be tried at any time: it leads to where the peer waits for others.
    pub(crate) fn is_lasting(self) -> bool {
        matches!(self.transport, Transport::Udp | Transport::Tcp)
    }

    /// Returns the same path from the address that the kernel chooses.
    pub const fn from_any(self) -> Path {
        Path { local: None, ..self }
    }

    /// Whether a link is to go over it rather than over one that works, once it answers: UDP rather than TCP, which repeats what was
    /// lost and holds back all that came after it.
    pub(crate) fn is_better(self, than: Path) -> bool {
        self.is_udp() && !than.is_udp()
    }

    /// Whether both are one path as far as is known: an address of this host that is not known may be any.
    pub(crate) fn may_be(self, other: Path) -> bool {
        let is_local_known = self.local.is_some() && other.local.is_some();
        self.from_any() == other.from_any() && (!is_local_known || self.local == other.local)
    }
}

impl Transport {
    /// Returns the transport's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Udp | Transport::SpareUdp(_) => "udp",
            Transport::Tcp | Transport::AcceptedTcp => "tcp",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport.name(), self.remote)?;
        match self.transport {
            Transport::SpareUdp(port) => write!(f, " from port {port}"),
            Transport::Udp | Transport::Tcp | Transport::AcceptedTcp => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_whose_local_address_is_not_known_may_be_from_any() {
        let any = Path::udp("192.0.2.1:6783".parse().unwrap());
        let [first, second] = ["10.0.0.1", "10.0.0.2"].map(|local| Path { local: local.parse().ok(), ..any });
        assert!(any.may_be(any) && any.may_be(first) && first.may_be(any) && first.may_be(first));
        assert!(!first.may_be(second) && !any.may_be(Path::udp("192.0.2.2:6783".parse().unwrap())));
    }

    #[test]
    fn the_longest_prefix_says_whether_a_path_is_paid_for_and_so_does_the_address_it_leaves_by() {
        let to = |text: &str, length, is_metered| (text.parse().unwrap(), length, is_metered);
        let networks = [
            to("0.0.0.0", 0, true),
            to("10.0.0.0", 8, false),
            to("10.7.0.0", 16, true),
            to("10.7.9.8", 32, false),
            to("2001:db8::", 32, true),
        ];
        let metered = MeteredPaths::new(networks, ["100.64.0.5".parse().unwrap()]);
        let is_metered = |remote: &str| metered.contains(&Path::udp(remote.parse().unwrap()));
        for remote in ["192.0.2.1:1", "10.7.9.9:1", "[2001:db8:1::1]:1", "[::ffff:192.0.2.1]:1"] {
            assert!(is_metered(remote), "{remote}");
        }
        for remote in ["10.8.0.1:1", "10.0.0.1:1", "10.7.9.8:1", "[2001:db9::1]:1", "[::1]:1"] {
            assert!(!is_metered(remote), "{remote}");
        }
        let lan = Path::udp("10.0.0.1:6783".parse().unwrap());
        assert!(metered.contains(&Path { local: "100.64.0.5".parse().ok(), ..lan }));
        assert!(!metered.contains(&Path { local: "10.0.0.5".parse().ok(), ..lan }));
        assert!(!MeteredPaths::default().contains(&lan));
    }

    #[test]
    fn a_path_is_written_as_people_name_it() {
        let path = Path::udp("[2001:db8::1]:6783".parse().unwrap());
        assert_eq!(path.to_string(), "udp://[2001:db8::1]:6783");
        assert_eq!(Path::accepted_tcp(path.remote).to_string(), "tcp://[2001:db8::1]:6783");
        let spare = Path { transport: Transport::SpareUdp(40_000), ..path };
        assert_eq!(spare.to_string(), "udp://[2001:db8::1]:6783 from port 40000");
    }
}
