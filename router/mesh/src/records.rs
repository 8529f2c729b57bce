//! What weft says in records: hosts, links, segments, endpoints, forgotten hosts.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use weft_crypto::{HostLabel, PeerId};

use crate::frame::{GATEWAY_MAC, Mac};
use crate::ipam::ring::Range;
use crate::wire::{MIN_DATAGRAM, SegmentId};

/// The longest name of a host, segment or endpoint, in bytes (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 63;
/// Links of one host.
pub const MAX_LINKS: usize = 1024;
/// The highest incarnation: no host starts that often.
pub const MAX_INCARNATION: u64 = weft_gossip::MAX_INCARNATION;
/// Addresses of one host or endpoint, and subnets of one network.
pub const MAX_LIST: usize = 8;
/// Names of one endpoint: what a Compose file of any size has, and a bound on what a member may make others hold.
pub const MAX_NAMES: usize = 256;
/// Bytes of all names of one endpoint.
pub const MAX_NAMES_BYTES: usize = 8192;
/// Names and their bytes that an endpoint's record takes itself; further ones have records of their own ([`MoreNames`]).
pub const MAX_OWN_NAMES: usize = 16;
/// See there.
pub const MAX_OWN_NAMES_BYTES: usize = 400;
/// Bytes of names in one record of further names.
const MAX_MORE_NAMES_BYTES: usize = 600;
/// What an endpoint serves.
pub const MAX_SERVICES: usize = 16;
/// The longest domain name, in bytes of text (RFC 1035, section 2.3.4).
pub const MAX_DOMAIN_NAME: usize = 253;
/// The longest name that `dns add` takes, in bytes: a domain name less room for a domain.
pub const MAX_ENTRY_NAME: usize = 200;
/// Addresses that a name of `dns add` stands for on one host.
pub const MAX_ENTRY_IPS: usize = 64;

/// An endpoint's id, chosen at random when it is attached.
pub type EndpointId = [u8; 16];

/// What a record is about: its key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// The origin itself.
    Host,
    /// The origin's link to a neighbour.
    Link(HostLabel),
    /// The origin's presence in a segment.
    Segment(SegmentId),
    /// One of the origin's endpoints.
    Endpoint(EndpointId),
    /// A host whose records are to be dropped.
    Forgotten(PeerId),
    /// How far the ring of a range has come ([`crate::ipam::Announcement`]).
    Ring(Range),
    /// A name that an operator added, by a digest of it.
    Entry([u8; 16]),
    /// A container network of the origin.
    Network(NetworkUid),
    /// A container network that was removed.
    Removed(NetworkUid),
    /// Further names of one of the origin's endpoints ([`MoreNames`]), and the number of the part.
    Names(EndpointId, u8),
    /// A part of the description of a container network.
    NetworkPart(NetworkUid, u8),
}

impl Key {
    /// The key's bytes.
    pub fn encode(self) -> Vec<u8> {
        let (kind, rest): (u8, &[u8]) = match &self {
            Key::Host => (1, &[]),
            Key::Link(label) => (2, &label.0),
            Key::Segment(segment) => (3, &segment.0),
            Key::Endpoint(id) => (4, id),
            Key::Forgotten(peer) => (5, &peer.0),
            Key::Ring(range) => (6, &range.to_bytes()),
            Key::Entry(digest) => (7, digest),
            Key::Network(uid) => (8, uid),
            Key::Removed(uid) => (9, uid),
            Key::Names(id, part) => return [&[10], &id[..], &[*part]].concat(),
            Key::NetworkPart(uid, part) => return [&[11], &uid[..], &[*part]].concat(),
        };
        [&[kind], rest].concat()
    }

    /// Reads a key; `None` for one that a newer version may know.
    pub fn parse(bytes: &[u8]) -> Option<Key> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            1 if rest.is_empty() => Key::Host,
            2 => Key::Link(HostLabel(rest.try_into().ok()?)),
            3 => Key::Segment(SegmentId(rest.try_into().ok()?)),
            4 => Key::Endpoint(rest.try_into().ok()?),
            5 => Key::Forgotten(PeerId(rest.try_into().ok()?)),
            6 => Key::Ring(Range::from_bytes(rest.try_into().ok()?)?),
            7 => Key::Entry(rest.try_into().ok()?),
            8 => Key::Network(rest.try_into().ok()?),
            9 => Key::Removed(rest.try_into().ok()?),
            10 => {
                let (part, id) = rest.split_last()?;
                Key::Names(id.try_into().ok()?, *part)
            }
            11 => {
                let (part, uid) = rest.split_last()?;
                Key::NetworkPart(uid.try_into().ok()?, *part)
            }
            _ => return None,
        })
    }
}

/// A host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its nickname.
    pub name: String,
    /// Where it may be reached.
    pub addresses: Vec<SocketAddr>,
    /// Its boot number: sessions with an earlier life of it are dead.
    pub boot: u64,
}

/// A link, as seen from the origin's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkRecord {
    /// Its cost, in units of 100 µs of round trip, the fixed cost of a hop included.
    pub cost: u32,
    /// The largest datagram it takes, in bytes.
    pub max_datagram: u16,
}

impl LinkRecord {
    /// Whether frames can go over such a link at all.
    pub fn is_usable(&self) -> bool {
        self.cost > 0 && usize::from(self.max_datagram) >= MIN_DATAGRAM
    }
}

/// A segment on the origin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Its name.
    pub name: String,
    /// The largest packet that containers of the origin can receive there, in bytes. The smallest of all hosts in a segment is
    /// the segment's.
    pub mtu: u16,
}

/// A container's attachment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// The segment's name.
    pub segment: Box<str>,
    /// Its MAC.
    pub mac: Mac,
    /// Its addresses with their prefix lengths.
    pub ips: Box<[(IpAddr, u8)]>,
    /// Its names.
    pub names: Box<[String]>,
    /// How it is: names are answered by it.
    pub health: Health,
    /// What it serves.
    pub services: Box<[Service]>,
}

/// How a container is, by its own health check. A name is answered by those of the best kind that there are; one that is
/// unhealthy is answered to itself only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Its check failed, or it is paused.
    Unhealthy,
    /// It has a check that has not come to a result yet.
    Starting,
    /// Its check passed, or it has none.
    #[default]
    Healthy,
}

impl Health {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Health::Unhealthy => "unhealthy",
            Health::Starting => "starting",
            Health::Healthy => "healthy",
        }
    }
}

/// Names of an endpoint beside those in its record, which has room for few.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MoreNames {
    /// The names.
    pub names: Box<[String]>,
}

impl MoreNames {
    /// Whether it may be believed.
    pub fn is_valid(&self) -> bool {
        bytes_of(&self.names) <= MAX_MORE_NAMES_BYTES && self.names.iter().all(|name| is_endpoint_name(name))
    }
}

/// A port that an endpoint serves.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Service {
    /// What it is called: the port's number, unless a label names it.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port.
    pub port: u16,
}

/// A name that an operator added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EntryRecord {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub ips: Vec<IpAddr>,
}

/// A container network, as every host is to have it. It has no upper size: what travels is a [`NetworkHead`] and parts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// What it is called.
    pub name: String,
    /// Tells it from another of the same name, before or after it.
    pub uid: NetworkUid,
    /// Its subnets, if a user chose them.
    pub subnets: Vec<Subnet>,
    /// Whether its containers have IPv4 addresses.
    pub ipv4: bool,
    /// Whether its containers have IPv6 addresses.
    pub ipv6: bool,
    /// Whether its containers reach nothing outside.
    pub internal: bool,
    /// Whether containers may be put into it by hand, in a swarm.
    pub attachable: bool,
    /// The driver's options it was made with, in order.
    pub options: Vec<(String, String)>,
    /// Its labels, in order.
    pub labels: Vec<(String, String)>,
}

/// What tells of a network that its description is there, in so many parts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkHead {
    /// The network's uid.
    pub uid: NetworkUid,
    /// How many parts there are.
    pub parts: u8,
    /// A digest of the parts put together: of two descriptions on their way no part is mixed with the other's.
    pub digest: [u8; 16],
}

/// Bytes of one part, and the most parts there are.
const PART_BYTES: usize = 700;
/// See there.
pub const MAX_PARTS: usize = 24;

/// One subnet of a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subnet {
    /// Its prefix.
    pub prefix: (IpAddr, u8),
    /// The part of it that addresses are handed out of.
    pub part: Option<(IpAddr, u8)>,
    /// Its gateway, if a user chose it.
    pub gateway: Option<IpAddr>,
    /// Addresses that are not handed out.
    pub set_aside: Vec<(String, IpAddr)>,
}

/// Tells networks of one name apart.
pub type NetworkUid = [u8; 16];

impl EndpointRecord {
    /// The record with as many names as it has room for, and records of the rest.
    pub fn split(&self) -> (EndpointRecord, Vec<MoreNames>) {
        let mut bytes = 0;
        let fits = |name: &&String| {
            bytes += name.len();
            bytes <= MAX_OWN_NAMES_BYTES
        };
        let own = self.names.iter().take(MAX_OWN_NAMES).take_while(fits).count();
        let (own, rest) = self.names.split_at(own);
        let mut more: Vec<Vec<String>> = Vec::new();
        for name in rest {
            match more.last_mut().filter(|part| bytes_of(part) + name.len() <= MAX_MORE_NAMES_BYTES) {
                Some(part) => part.push(name.clone()),
                None => more.push(vec![name.clone()]),
            }
        }
        let more = more.into_iter().map(|names| MoreNames { names: names.into() }).collect();
        (EndpointRecord { names: own.into(), ..self.clone() }, more)
    }

    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        let prefix_fits = |(ip, prefix): &(IpAddr, u8)| *prefix <= if ip.is_ipv4() { 32 } else { 128 };
        let usable = |(ip, _): &(IpAddr, u8)| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        if !is_name(&self.segment) {
            Some("a segment's name is 1 to 63 letters, digits, '-', '_' or '.'")
        } else if crate::frame::is_group(&self.mac) || self.mac == [0; 6] || self.mac == GATEWAY_MAC {
            Some("not the MAC of a single interface")
        } else if self.ips.len() > MAX_LIST || self.names.len() > MAX_NAMES || self.services.len() > MAX_SERVICES {
            Some("at most 8 addresses, 256 names and 16 ports")
        } else if bytes_of(&self.names) > MAX_NAMES_BYTES {
            Some("at most 8192 letters in all names")
        } else if !self.services.iter().all(|service| is_name(&service.name) && is_protocol(&service.protocol)) {
            Some("a port has a name and the protocol tcp or udp")
        } else if !self.ips.iter().all(prefix_fits) {
            Some("a prefix length is too large")
        } else if !self.ips.iter().all(usable) {
            Some("not an address for a single interface")
        } else if !self.names.iter().all(|name| is_endpoint_name(name)) {
            Some("a name is 1 to 63 letters, digits, '-', '_' or '.', or a domain name of 253")
        } else {
            None
        }
    }
}

fn is_protocol(text: &str) -> bool {
    matches!(text, "tcp" | "udp")
}

impl EntryRecord {
    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        if self.name.len() > MAX_ENTRY_NAME || !is_domain_name(&self.name) {
            Some("a name is labels of 1 to 63 letters, digits, '-' or '_', with dots between them, 200 bytes in all")
        } else if !(1..=MAX_ENTRY_IPS).contains(&self.ips.len()) {
            Some("a name stands for 1 to 64 addresses on one host")
        } else {
            None
        }
    }

    /// What it is filed under.
    pub fn key(&self) -> Key {
        Key::Entry(digest_of(self.name.to_ascii_lowercase().as_bytes()))
    }
}

impl NetworkRecord {
    /// The records it travels in; none if it is too large for them.
    pub fn split(&self) -> Option<(NetworkHead, Vec<Vec<u8>>)> {
        let bytes = encode(self);
        let parts: Vec<Vec<u8>> = bytes.chunks(PART_BYTES).map(<[u8]>::to_vec).collect();
        let head = NetworkHead { uid: self.uid, parts: parts.len() as u8, digest: digest_of(&bytes) };
        (parts.len() <= MAX_PARTS).then_some((head, parts))
    }

    /// Puts one together from the records it travelled in; none if they are not one network's, or it may not be believed.
    pub fn join<'a>(head: &NetworkHead, parts: impl Iterator<Item = &'a [u8]>) -> Option<NetworkRecord> {
        let bytes: Vec<u8> = parts.take(usize::from(head.parts).min(MAX_PARTS)).flatten().copied().collect();
        let record = decode::<NetworkRecord>(&bytes).filter(|_| digest_of(&bytes) == head.digest)?;
        let few = record.subnets.len() <= MAX_LIST;
        (few && is_name(&record.name) && record.uid == head.uid).then_some(record)
    }

    /// An option it was made with.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str())
    }
}

/// A short digest of something: the same on every host, and no secret.
pub fn digest_of(bytes: &[u8]) -> [u8; 16] {
    siphasher::sip128::SipHasher24::new_with_key(b"weft record name").hash(bytes).as_bytes()
}

/// Whether `text` may be the name of a host, a segment or an endpoint.
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(allowed) && text.starts_with(|c: char| c != '.')
}

/// Whether `text` is labels of 1 to 63 letters, digits, '-' or '_', with dots between them (RFC 1035, section 2.3.1, as
/// engines take it).
pub fn is_domain_name(text: &str) -> bool {
    text.len() <= MAX_DOMAIN_NAME && text.split('.').all(is_name)
}

/// Whether `text` may be the name of an endpoint.
pub fn is_endpoint_name(text: &str) -> bool {
    is_name(text) || is_domain_name(text)
}

fn bytes_of(names: &[String]) -> usize {
    names.iter().map(String::len).sum()
}

/// Encodes a record's value.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising plain data into a Vec has no way to fail.
    postcard::to_allocvec(value).expect("plain data")
}

/// Decodes a record's value; `None` if it is no such value. Fields that a newer version added are passed over.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    postcard::take_from_bytes(bytes).ok().map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written() {
        let all = [
            Key::Host,
            Key::Link(HostLabel([1; 6])),
            Key::Segment(SegmentId([2; 6])),
            Key::Endpoint([3; 16]),
            Key::Names([3; 16], 7),
            Key::NetworkPart([4; 16], 255),
            Key::Network([4; 16]),
            Key::Removed([5; 16]),
        ];
        all.iter().for_each(|key| assert_eq!(Key::parse(&key.encode()), Some(*key)));
        assert_eq!(Key::parse(&[10; 3]), None);
        assert_eq!(Key::parse(&[200, 1]), None);
    }

    #[test]
    fn a_network_is_put_together_from_its_own_parts_only() {
        let label = |number: usize| (format!("com.example.{number}"), "x".repeat(400));
        let record =
            NetworkRecord { name: "app".into(), labels: (0..20).map(label).collect(), ..NetworkRecord::default() };
        let (head, parts) = record.split().unwrap();
        assert!(parts.len() > 10 && parts.iter().all(|part| part.len() <= 700));
        let joined = |parts: &[Vec<u8>]| NetworkRecord::join(&head, parts.iter().map(Vec::as_slice));
        assert_eq!(joined(&parts), Some(record.clone()));
        let other = NetworkRecord { internal: true, ..record.clone() }.split().unwrap().1;
        assert_eq!(joined(&[&other[..1], &parts[1..]].concat()), None, "a part of another description");
        assert_eq!(joined(&parts[1..]), None);
        let vast = NetworkRecord { labels: (0..200).map(label).collect(), ..record };
        assert_eq!(vast.split(), None);
    }

    #[test]
    fn an_endpoint_with_many_names_fits_its_records_and_keeps_them_all() {
        let long = |number: usize| format!("service-{number}.{}.example", "x".repeat(60));
        let names: Box<[String]> = (0..100).map(long).collect();
        let record = EndpointRecord {
            segment: "app".into(),
            mac: [2; 6],
            ips: [("fd00::1".parse().unwrap(), 64); MAX_LIST].into(),
            names: names.clone(),
            health: Health::Starting,
            services: [].into(),
        };
        assert_eq!(record.problem(), None);
        let (own, more) = record.split();
        assert!(encode(&own).len() <= 768 && more.iter().all(|part| part.is_valid() && encode(part).len() <= 768));
        let all: Vec<String> = own.names.iter().chain(more.iter().flat_map(|part| &part.names)).cloned().collect();
        assert_eq!(all[..], names[..]);
        let few = EndpointRecord { names: ["web".into()].into(), ..record };
        assert_eq!(few.split(), (few.clone(), Vec::new()));
    }

    #[test]
    fn names_are_those_that_containers_and_domains_have() {
        for (name, is_one) in [
            ("web", true),
            ("web.shop.example", true),
            ("a_b-c.1", true),
            (&"x".repeat(64), false),
            (&format!("{0}.{0}.{0}", "x".repeat(63)), true),
            (&vec!["x".repeat(63); 5].join("."), false),
            (".web", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(is_endpoint_name(name), is_one, "{name}");
        }
    }
}
