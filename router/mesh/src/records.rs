//! What weft says in records: hosts, links, segments, endpoints, forgotten hosts.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use weft_crypto::{HostLabel, PeerId};

use crate::frame::Mac;
use crate::wire::{MIN_DATAGRAM, SegmentId};

/// The longest name of a host, segment or endpoint, in bytes (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 63;
/// Links of one host.
pub const MAX_LINKS: usize = 1024;
/// The highest incarnation: no host starts that often.
pub const MAX_INCARNATION: u64 = weft_gossip::MAX_INCARNATION;
/// Addresses of one host or endpoint, and names of one endpoint.
pub const MAX_LIST: usize = 8;

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
    pub segment: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its addresses with their prefix lengths.
    pub ips: Vec<(IpAddr, u8)>,
    /// Its names.
    pub names: Vec<String>,
    /// Whether it may be answered for.
    pub healthy: bool,
}

impl EndpointRecord {
    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        let prefix_fits = |(ip, prefix): &(IpAddr, u8)| *prefix <= if ip.is_ipv4() { 32 } else { 128 };
        let usable = |(ip, _): &(IpAddr, u8)| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        if !is_name(&self.segment) {
            Some("a segment's name is 1 to 63 letters, digits, '-', '_' or '.'")
        } else if crate::frame::is_group(&self.mac) || self.mac == [0; 6] {
            Some("not the MAC of a single interface")
        } else if self.ips.len() > MAX_LIST || self.names.len() > MAX_LIST {
            Some("at most 8 addresses and 8 names")
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
