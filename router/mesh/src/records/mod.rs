//! What hosts say in records, one file per kind: its tag, its value, its validation.
//!
//! A record is filed under a [`Key`], whose first byte is the kind's tag. `Record::read` turns a key and a value into a
//! checked `Record`; the node routes it to the component that owns its meaning, this host's own records included. To add a
//! kind, write its file, with a struct as value so that fields can be appended, and a `problem()` (one line for people) if
//! people write it; then add it to [`Key`] and `Record`. Every match on them is exhaustive but [`Key::parse`], which a test
//! covers that is. Records of kinds that only newer versions know are
//! stored and passed on unread.

mod endpoint;
mod entry;
mod forgotten;
mod host;
mod life;
mod link;
mod more_names;
mod network;
mod pace;
pub(crate) mod removed;
mod ring;
mod segment;
pub(crate) mod sync;
mod text;
mod told;
pub(crate) mod writes;

pub use endpoint::{EndpointRecord, Health, MAX_NAMES, MAX_NAMES_BYTES, MAX_OWN_NAMES, MAX_SERVICES, Service};
pub use entry::{EntryRecord, MAX_ENTRY_IPS, MAX_ENTRY_NAME};
pub use host::{Advertised, HostRecord, MAX_ADVERTISED, MAX_LOAD};
pub use link::{LinkRecord, MAX_LINKS, METERED_COST};
pub use more_names::MoreNames;
pub use network::{MAX_PARTS, NetworkHead, NetworkRecord, Subnet};
pub use segment::SegmentRecord;
use text::bytes_of;
pub use text::{MAX_DOMAIN_NAME, MAX_NAME, is_domain_name, is_endpoint_name, is_name};
use weft_crypto::{HostLabel, PeerId};

pub use crate::codec::{decode, encode};
use crate::ipam::Announcement;
use crate::ipam::ring::Range;
use crate::wire::SegmentId;

/// The highest incarnation: no host starts that often.
pub const MAX_INCARNATION: u64 = weft_gossip::MAX_INCARNATION;
/// Addresses of one host or endpoint, and subnets of one network.
pub const MAX_LIST: usize = 8;

/// An endpoint's id, chosen at random when it is attached.
pub type EndpointId = [u8; 16];

/// Tells networks of one name apart.
pub type NetworkUid = [u8; 16];

/// The subject of a record: what it is filed under in its origin's log.
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
    /// Returns the key's bytes.
    pub fn encode(self) -> Vec<u8> {
        let (tag, rest): (u8, &[u8]) = match &self {
            Key::Host => (host::TAG, &[]),
            Key::Link(label) => (link::TAG, &label.0),
            Key::Segment(segment) => (segment::TAG, &segment.0),
            Key::Endpoint(id) => (endpoint::TAG, id),
            Key::Forgotten(peer) => (forgotten::TAG, &peer.0),
            Key::Ring(range) => (ring::TAG, &range.to_bytes()),
            Key::Entry(digest) => (entry::TAG, digest),
            Key::Network(uid) => (network::TAG, uid),
            Key::Removed(uid) => (removed::TAG, uid),
            Key::Names(id, part) => return [&[more_names::TAG], &id[..], &[*part]].concat(),
            Key::NetworkPart(uid, part) => return [&[network::PART_TAG], &uid[..], &[*part]].concat(),
        };
        [&[tag], rest].concat()
    }

    /// Reads a key; `None` for a key that only a newer version may know.
    pub fn parse(bytes: &[u8]) -> Option<Key> {
        let (tag, rest) = bytes.split_first()?;
        let numbered = || rest.split_last().and_then(|(part, id)| Some((id.try_into().ok()?, *part)));
        Some(match *tag {
            host::TAG if rest.is_empty() => Key::Host,
            link::TAG => Key::Link(HostLabel(rest.try_into().ok()?)),
            segment::TAG => Key::Segment(SegmentId(rest.try_into().ok()?)),
            endpoint::TAG => Key::Endpoint(rest.try_into().ok()?),
            forgotten::TAG => Key::Forgotten(PeerId(rest.try_into().ok()?)),
            ring::TAG => Key::Ring(Range::from_bytes(rest.try_into().ok()?)?),
            entry::TAG => Key::Entry(rest.try_into().ok()?),
            network::TAG => Key::Network(rest.try_into().ok()?),
            removed::TAG => Key::Removed(rest.try_into().ok()?),
            more_names::TAG => numbered().map(|(id, part)| Key::Names(id, part))?,
            network::PART_TAG => numbered().map(|(uid, part)| Key::NetworkPart(uid, part))?,
            _ => return None,
        })
    }
}

/// A record as it stands now, read and checked. `None` in a variant: it was unset, or what it says is not valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    Host(Option<HostRecord>),
    Link(HostLabel, Option<LinkRecord>),
    Segment(SegmentId, Option<SegmentRecord>),
    Endpoint(EndpointId, Option<EndpointRecord>),
    Forgotten(PeerId, Option<u64>),
    Ring(Range, Option<Announcement>),
    Entry([u8; 16], Option<EntryRecord>),
    Network(NetworkUid, Option<NetworkHead>),
    Removed(NetworkUid, Option<()>),
    Names(EndpointId, u8, Option<MoreNames>),
    NetworkPart(NetworkUid, u8, Option<Vec<u8>>),
    /// Of a kind that a newer version knows: stored and passed on, without effect here.
    Unknown,
}

impl Record {
    /// Reads what a record says now; `value` is `None` if it was unset.
    pub(crate) fn read(key: &[u8], value: Option<&[u8]>) -> Record {
        let Some(key) = Key::parse(key) else { return Record::Unknown };
        match key {
            Key::Host => Record::Host(value.and_then(host::read)),
            Key::Link(to) => Record::Link(to, value.and_then(link::read)),
            Key::Segment(id) => Record::Segment(id, value.and_then(|value| segment::read(id, value))),
            Key::Endpoint(id) => Record::Endpoint(id, value.and_then(endpoint::read)),
            Key::Forgotten(host) => Record::Forgotten(host, value.and_then(forgotten::read)),
            Key::Ring(range) => Record::Ring(range, value.and_then(ring::read)),
            Key::Entry(digest) => Record::Entry(digest, value.and_then(|value| entry::read(digest, value))),
            Key::Network(uid) => Record::Network(uid, value.and_then(|value| network::read(uid, value))),
            Key::Removed(uid) => Record::Removed(uid, value.map(|_| ())),
            Key::Names(id, part) => Record::Names(id, part, value.and_then(more_names::read)),
            Key::NetworkPart(uid, part) => {
                Record::NetworkPart(uid, part, value.and_then(|value| network::read_part(part, value)))
            }
        }
    }

    /// Returns whether the record holds a valid value.
    pub(crate) fn is_set(&self) -> bool {
        match self {
            Record::Host(value) => value.is_some(),
            Record::Link(_, value) => value.is_some(),
            Record::Segment(_, value) => value.is_some(),
            Record::Endpoint(_, value) => value.is_some(),
            Record::Forgotten(_, value) => value.is_some(),
            Record::Ring(_, value) => value.is_some(),
            Record::Entry(_, value) => value.is_some(),
            Record::Network(_, value) => value.is_some(),
            Record::Removed(_, value) => value.is_some(),
            Record::Names(_, _, value) => value.is_some(),
            Record::NetworkPart(_, _, value) => value.is_some(),
            Record::Unknown => false,
        }
    }
}

/// Returns a short digest, the same on every host. It is not a secret, nor does it withstand an attacker who chooses the
/// bytes: origins are told apart by their keys.
pub fn digest_of(bytes: &[u8]) -> [u8; 16] {
    siphasher::sip128::SipHasher24::new_with_key(b"weft record name").hash(bytes).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written() {
        // Leads through all kinds: a new one does not compile until it has its place here.
        let next = |key: Key| match key {
            Key::Host => Some(Key::Link(HostLabel([1; 6]))),
            Key::Link(_) => Some(Key::Segment(SegmentId([2; 6]))),
            Key::Segment(_) => Some(Key::Endpoint([3; 16])),
            Key::Endpoint(_) => Some(Key::Names([3; 16], 7)),
            Key::Names(..) => Some(Key::NetworkPart([4; 16], 255)),
            Key::NetworkPart(..) => Some(Key::Network([4; 16])),
            Key::Network(_) => Some(Key::Removed([5; 16])),
            Key::Removed(_) => Some(Key::Forgotten(PeerId([6; 32]))),
            Key::Forgotten(_) => Range::new([10, 0, 0, 0].into(), 8).map(Key::Ring),
            Key::Ring(_) => Some(Key::Entry([7; 16])),
            Key::Entry(_) => None,
        };
        let all: Vec<Key> = std::iter::successors(Some(Key::Host), |key| next(*key)).collect();
        let tags: std::collections::BTreeSet<u8> = all.iter().map(|key| key.encode()[0]).collect();
        assert_eq!(tags.len(), all.len(), "a tag of its own for each kind");
        all.iter().for_each(|key| assert_eq!(Key::parse(&key.encode()), Some(*key)));
        assert_eq!(Key::parse(&[10; 3]), None);
        assert_eq!(Key::parse(&[200, 1]), None);
    }

    #[test]
    fn a_record_that_is_unset_unknown_or_not_valid_says_nothing() {
        let host = encode(&HostRecord { name: "host1".into(), ..HostRecord::default() });
        assert!(Record::read(&Key::Host.encode(), Some(&host)).is_set());
        assert_eq!(Record::read(&Key::Host.encode(), Some(&[200])), Record::Host(None));
        assert_eq!(Record::read(&Key::Host.encode(), None), Record::Host(None));
        assert_eq!(Record::read(&[200, 1], Some(&host)), Record::Unknown);
    }
}
