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
/// Names of one endpoint, and what it serves.
pub const MAX_NAMES: usize = 16;
/// Bytes of all names of one endpoint.
pub const MAX_NAMES_BYTES: usize = 400;
/// The longest name that `dns add` takes, in bytes (RFC 1035, section 2.3.4, less room for a domain).
pub const MAX_ENTRY_NAME: usize = 200;

/// An endpoint's id, chosen at random by whoever attaches it.
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
    /// A name that somebody added, by a digest of it.
    Entry([u8; 16]),
    /// A container network of the origin.
    Network(NetworkUid),
    /// A container network that somebody removed.
    Removed(NetworkUid),
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
    /// Whether it may be answered for.
    pub healthy: bool,
    /// What it serves.
    pub services: Box<[Service]>,
}

/// A port that an endpoint serves.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Service {
    /// What it is called: the port's number, unless somebody named it.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port.
    pub port: u16,
}

/// A name that somebody added by hand.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EntryRecord {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub ips: Vec<IpAddr>,
}

/// A container network, as every host is to have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// What it is called.
    pub name: String,
    /// Tells it from another of the same name, before or after it.
    pub uid: NetworkUid,
    /// Its segment, if it is not its name.
    pub segment: Option<String>,
    /// Its subnets, if somebody chose them.
    pub subnets: Vec<Subnet>,
    /// Whether its containers have IPv6 addresses.
    pub ipv6: bool,
    /// Whether its containers reach nothing outside.
    pub internal: bool,
    /// Its containers' MTU, if somebody chose it.
    pub mtu: Option<u16>,
}

/// One subnet of a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subnet {
    /// Its prefix.
    pub prefix: (IpAddr, u8),
    /// The part of it that addresses are handed out of.
    pub part: Option<(IpAddr, u8)>,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Addresses that are not handed out.
    pub set_aside: Vec<(String, IpAddr)>,
}

/// Tells networks of one name apart.
pub type NetworkUid = [u8; 16];

impl EndpointRecord {
    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        let prefix_fits = |(ip, prefix): &(IpAddr, u8)| *prefix <= if ip.is_ipv4() { 32 } else { 128 };
        let usable = |(ip, _): &(IpAddr, u8)| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        if !is_name(&self.segment) {
            Some("a segment's name is 1 to 63 letters, digits, '-', '_' or '.'")
        } else if crate::frame::is_group(&self.mac) || self.mac == [0; 6] || self.mac == GATEWAY_MAC {
            Some("not the MAC of a single interface")
        } else if self.ips.len() > MAX_LIST || self.names.len() > MAX_NAMES || self.services.len() > MAX_NAMES {
            Some("at most 8 addresses, 16 names and 16 ports")
        } else if self.names.iter().map(String::len).sum::<usize>() > MAX_NAMES_BYTES {
            Some("at most 400 letters in all names")
        } else if !self.services.iter().all(|service| is_name(&service.name) && is_protocol(&service.protocol)) {
            Some("a port has a name and the protocol tcp or udp")
        } else if !self.ips.iter().all(prefix_fits) {
            Some("a prefix length is too large")
        } else if !self.ips.iter().all(usable) {
            Some("not an address for a single interface")
        } else if !self.names.iter().all(|name| is_name(name)) {
            Some("a name is 1 to 63 letters, digits, '-', '_' or '.'")
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
        let is_label = |label: &str| label.len() <= MAX_NAME && is_name(label);
        if self.name.len() > MAX_ENTRY_NAME || !self.name.split('.').all(is_label) {
            Some("a name is labels of 1 to 63 letters, digits, '-' or '_', with dots between them, 200 bytes in all")
        } else if !(1..=MAX_LIST).contains(&self.ips.len()) {
            Some("a name stands for 1 to 8 addresses")
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
    /// Whether it may be believed.
    pub fn is_valid(&self) -> bool {
        let few = self.subnets.len() <= MAX_LIST && self.subnets.iter().all(|s| s.set_aside.len() <= MAX_LIST);
        few && is_name(&self.name) && self.segment.as_deref().is_none_or(is_name)
    }

    /// What it is filed under.
    pub fn key(&self) -> Key {
        Key::Network(self.uid)
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

/// Encodes a record's value.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising plain data into a Vec has no way to fail.
    postcard::to_allocvec(value).expect("plain data")
}

/// Decodes a record's value; `None` if it is no such value. Fields that a newer version added are passed over.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    postcard::take_from_bytes(bytes).ok().map(|(value, _)| value)
}
