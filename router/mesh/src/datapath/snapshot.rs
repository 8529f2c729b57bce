//! What the data path reads: an immutable picture of sessions, next hops and segments.
//!
//! The node publishes a new one when something changes; the maps share structure, so a change costs
//! the changed entry. Workers take one for a whole batch.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{GenericHashMap, OrdMap};
use siphasher::sip::SipHasher13;
use weft_crypto::session::{ReceiveKey, SendKey};
use weft_crypto::{HostLabel, Secret, Time, envelope};

use crate::datapath::frame::Mac;
use crate::path::Path;
use crate::wire::SegmentId;

/// A persistent hash map with a keyed, seeded hash: neither order nor collisions are up to the outside.
pub type Map<K, V> = GenericHashMap<K, V, Hashing, DefaultSharedPtr>;

/// SipHash-1-3 under a key the node drew.
#[derive(Clone, Copy, Default)]
pub struct Hashing(pub u64, pub u64);

impl BuildHasher for Hashing {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

/// The forwarding tables at one moment.
#[derive(Clone)]
pub struct Snapshot {
    /// This host.
    pub own: HostLabel,
    /// The live network secrets: whose handshakes the node is to see.
    pub secrets: Arc<[Secret]>,
    /// Live sessions by this host's index.
    pub inbound: Map<u32, Arc<Inbound>>,
    /// Every host that has a session or a route.
    pub outbound: Map<HostLabel, Arc<Outbound>>,
    /// The segments of this host.
    pub segments: Map<SegmentId, Arc<Segment>>,
    /// Whether it relays nothing between other hosts.
    pub is_stub: bool,
}

impl Snapshot {
    /// Returns the snapshot of a host without peers.
    pub fn empty(own: HostLabel, hashing: Hashing) -> Self {
        Snapshot {
            own,
            secrets: Arc::new([]),
            inbound: Map::with_hasher(hashing),
            outbound: Map::with_hasher(hashing),
            segments: Map::with_hasher(hashing),
            is_stub: false,
        }
    }
}

/// The receiving side of a session, and of the link it may run over.
pub struct Inbound {
    /// Who sends under it.
    pub peer: HostLabel,
    /// Opens packets.
    pub receive: ReceiveKey,
    /// Checks envelopes that come straight from the peer.
    pub hop_receive: [u8; 16],
    /// Whether it is the session used for sending to the peer, too.
    pub current: AtomicBool,
    /// When a packet was last opened, in nanoseconds.
    pub heard: AtomicU64,
    /// The peer's counters.
    pub meter: Arc<Meter>,
}

impl Inbound {
    /// When a packet was last opened.
    pub fn last_heard(&self) -> Time {
        Time::from_nanos(self.heard.load(Ordering::Relaxed))
    }
}

/// The sending side towards one host.
#[derive(Clone)]
pub struct Outbound {
    /// Seals packets; `None` while there is no session.
    pub send: Option<Arc<SendKey>>,
    /// Where datagrams go next; `None` while there is no route.
    pub hop: Option<Hop>,
    /// The path of the direct link, if there is one.
    pub link: Option<Path>,
    /// The envelope of what this host itself sends there.
    pub envelope: [u8; envelope::LEN],
    /// The peer's counters.
    pub meter: Arc<Meter>,
}

impl Outbound {
    /// The host that it leads to, if there is a way.
    pub fn peer(&self) -> HostLabel {
        envelope::destination(&self.envelope)
    }
}

/// The next hop of a route.
#[derive(Clone)]
pub struct Hop {
    /// The neighbour.
    pub via: HostLabel,
    /// The path to it.
    pub path: Path,
    /// The neighbour's index of the link.
    pub link_index: u32,
    /// Authenticates envelopes to the neighbour.
    pub hop_send: [u8; 16],
    /// The largest datagram (UDP payload, bytes) the whole path takes.
    pub max_datagram: usize,
    /// The neighbour's counters.
    pub meter: Arc<Meter>,
}

impl Hop {
    /// The envelope for a datagram to `destination` over this hop.
    pub fn envelope(&self, ttl: u8, destination: HostLabel) -> [u8; envelope::LEN] {
        envelope::encode(ttl, destination, self.link_index, &self.hop_send)
    }
}

/// Counters of one peer. Sending and receiving workers touch different cache lines.
#[derive(Default)]
pub struct Meter {
    /// What was sent.
    pub sent: Direction,
    /// What was received.
    pub received: Direction,
}

/// One direction's counters.
#[repr(align(64))]
#[derive(Default)]
pub struct Direction {
    /// Bytes of datagrams in sessions with the peer.
    pub bytes: AtomicU64,
    /// Those of them, received, in control messages.
    pub control: AtomicU64,
    /// Datagrams over the direct link with the peer, of all sessions.
    pub link_datagrams: AtomicU64,
    /// Those of them whose loss need not be found out: what they carry is said again anyway.
    pub link_idle: AtomicU64,
    /// When the link last carried a datagram, in nanoseconds.
    pub link_last: AtomicU64,
    /// Bytes of datagrams relayed for the peer.
    pub relayed: AtomicU64,
    /// The node looks at the link seldom, since nothing goes over it.
    rests: AtomicBool,
}

impl Direction {
    /// Notes datagrams on the link.
    pub fn on_link(&self, datagrams: u64, now: Time) {
        self.link_datagrams.fetch_add(datagrams, Ordering::Relaxed);
        self.link_last.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// The node looks at the link seldom from now on: it is to be told of the first frames.
    pub fn rest(&self) {
        self.rests.store(true, Ordering::Relaxed);
    }

    /// Whether the node has to be told that frames go over the link, which is then no longer at rest.
    pub fn take_rest(&self) -> bool {
        // Of a link in use the first load alone is paid for.
        self.rests.load(Ordering::Relaxed) && self.rests.swap(false, Ordering::Relaxed)
    }

    /// One of the datagrams on the link is said again if it is lost.
    pub fn on_idle(&self) {
        self.link_idle.fetch_add(1, Ordering::Relaxed);
    }

    /// Datagrams on the link that must not be lost unnoticed.
    pub fn link_wanted(&self) -> u64 {
        self.link_datagrams.load(Ordering::Relaxed).saturating_sub(self.link_idle.load(Ordering::Relaxed))
    }

    /// When the link last carried a datagram.
    pub fn link_last(&self) -> Time {
        Time::from_nanos(self.link_last.load(Ordering::Relaxed))
    }
}

/// One virtual switch, as this host sees it.
#[derive(Clone)]
pub struct Segment {
    /// The id that frames of the segment carry.
    pub id: SegmentId,
    /// Which host has which MAC, by endpoint records: looked up for each frame.
    pub macs: Map<Mac, HostLabel>,
    /// MACs learnt from frames, that are in no record.
    pub learnt: Map<Mac, Learnt>,
    /// Who has which address: looked up for questions only. In order, since a hash map takes four times as much memory.
    pub ips: OrdMap<IpAddr, Owner>,
    /// The other hosts in the segment.
    pub flood: Arc<[HostLabel]>,
    /// The largest packet that containers of the segment take, in bytes.
    pub mtu: u16,
}

impl Segment {
    /// Returns a switch without ports.
    pub fn empty(id: SegmentId, hashing: Hashing) -> Self {
        let (macs, learnt) = (Map::with_hasher(hashing), Map::with_hasher(hashing));
        Segment { id, macs, learnt, ips: OrdMap::new(), flood: Arc::new([]), mtu: u16::MAX }
    }

    /// Where a MAC lives: what records say counts.
    pub fn port(&self, mac: &Mac) -> Option<Port<'_>> {
        match self.macs.get(mac) {
            Some(host) => Some(Port { host: *host, seen: None }),
            None if self.learnt.is_empty() => None,
            None => self.learnt.get(mac).map(|learnt| Port { host: learnt.host, seen: Some(&learnt.seen) }),
        }
    }
}

/// Where a MAC lives that no endpoint record has.
#[derive(Clone)]
pub struct Learnt {
    /// The host.
    pub host: HostLabel,
    /// When it came there.
    pub moved: Time,
    /// When the last frame from it was seen, in nanoseconds; it ages by it.
    pub seen: Arc<AtomicU64>,
}

/// Where a MAC lives.
#[derive(Clone, Copy)]
pub struct Port<'s> {
    /// The host.
    pub host: HostLabel,
    /// Of one learnt from frames: when the last one from it was seen. None: it stands in an endpoint record, and is not to be
    /// overridden by what frames say.
    seen: Option<&'s AtomicU64>,
}

impl Port<'_> {
    /// Whether it stands in an endpoint record.
    pub fn is_recorded(&self) -> bool {
        self.seen.is_none()
    }

    /// A frame came from it.
    pub fn note(&self, now: Time) {
        if let Some(seen) = self.seen {
            seen.store(now.as_nanos(), Ordering::Relaxed);
        }
    }
}

/// Who has an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Its MAC.
    pub mac: Mac,
    /// The host that the address's endpoint is on.
    pub host: HostLabel,
}
