//! A host: its nickname, where it may be reached, which life it is in.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{MAX_LIST, decode, is_name};

pub(super) const TAG: u8 = 1;
/// Addresses by one transport that one host may advertise.
pub const MAX_ADVERTISED: usize = 4;
/// The most steps of [`HostRecord::load`].
pub const MAX_LOAD: u8 = 4;
/// TCP ports of one host that others take note of.
const MAX_TCP_PORTS: usize = 4;

/// What a host says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostRecord {
    /// Nickname; other hosts may have the same.
    pub name: String,
    /// Addresses of its interfaces, [`MAX_LIST`] at most.
    pub addresses: Vec<SocketAddr>,
    /// Addresses at which others see it, [`MAX_LIST`] at most: of a NAT before it, maybe.
    pub seen: Vec<SocketAddr>,
    /// Ports at which it accepts TCP connections, four at most.
    pub tcp: Vec<u16>,
    /// Boot number: sessions with another life of the host are dead.
    pub boot: u64,
    /// Addresses of other devices that forward to it: named by its operator, or mapped by its NAT when asked.
    pub advertised: Advertised,
    /// Whether it relays nothing between other hosts (a stub router: RFC 6987).
    pub is_stub: bool,
    /// Whether what it says and hears is paid for by the byte: it takes no part in SWIM, has a link with one host at rest, and chooses it itself.
    pub is_metered: bool,
    /// Its load as a relay, in steps up to [`MAX_LOAD`]: with each it wins half as often against others of the same cost.
    pub load: u8,
}

/// Addresses that are on none of a host's interfaces and lead to it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Advertised {
    /// By UDP, [`MAX_ADVERTISED`] at most.
    pub udp: Vec<SocketAddr>,
    /// By TCP, as many at most.
    pub tcp: Vec<SocketAddr>,
}

/// Reads a record; `None` if its name is not a name. Surplus addresses are dropped.
pub(super) fn read(value: &[u8]) -> Option<HostRecord> {
    let mut record: HostRecord = decode(value).filter(|record: &HostRecord| is_name(&record.name))?;
    let Advertised { udp, tcp } = &mut record.advertised;
    let lists = [&mut record.addresses, &mut record.seen, udp, tcp];
    // An IPv4 address in the clothes of IPv6 would be another one to all that looks at it, and the same to the kernel.
    lists.into_iter().flatten().for_each(|address| address.set_ip(address.ip().to_canonical()));
    record.addresses.truncate(MAX_LIST);
    record.seen.truncate(MAX_LIST);
    record.tcp.truncate(MAX_TCP_PORTS);
    record.advertised.udp.truncate(MAX_ADVERTISED);
    record.advertised.tcp.truncate(MAX_ADVERTISED);
    record.load = record.load.min(MAX_LOAD);
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::encode;

    #[test]
    fn a_host_without_a_usable_name_is_refused_and_surplus_is_dropped() {
        let addresses = vec![SocketAddr::from(([192, 0, 2, 1], 6783)); 20];
        let record = |name: &str| {
            let (addresses, seen) = (addresses.clone(), addresses.clone());
            let advertised = Advertised { udp: addresses.clone(), tcp: addresses.clone() };
            HostRecord {
                name: name.into(),
                addresses,
                seen,
                tcp: vec![443; 9],
                boot: 7,
                advertised,
                is_stub: true,
                is_metered: true,
                load: 200,
            }
        };
        let read_back = read(&encode(&record("host1"))).unwrap();
        let lengths = (read_back.addresses.len(), read_back.seen.len(), read_back.tcp.len());
        assert_eq!(lengths, (MAX_LIST, MAX_LIST, MAX_TCP_PORTS));
        let Advertised { udp, tcp } = &read_back.advertised;
        assert_eq!((udp.len(), tcp.len(), read_back.load), (MAX_ADVERTISED, MAX_ADVERTISED, MAX_LOAD));
        assert_eq!(read(&encode(&record("two words"))), None);
        let mapped = HostRecord { seen: vec!["[::ffff:127.0.0.1]:7".parse().unwrap()], ..record("host1") };
        assert_eq!(read(&encode(&mapped)).unwrap().seen, ["127.0.0.1:7".parse().unwrap()]);
        assert_eq!(read(&[1, 2]), None);
    }
}
