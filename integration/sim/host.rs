//! A simulated host.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use weft_crypto::{HostLabel, Identity, PeerId, Time};
use weft_mesh::datapath::Datapath;
use weft_mesh::egress::DropReason;
use weft_mesh::names::Names;
use weft_mesh::node::{Event, Node};
use weft_mesh::path::MeteredPaths;
use weft_mesh::records::Advertised;
use weft_mesh::sink::TapOffloads;
use weft_mesh::snapshot::{Hashing, Snapshot};
use weft_mesh::wire::SegmentId;

use super::relaying::Relaying;
use super::weather::FIRST_SPARE;

/// A simulated host.
pub struct Host {
    /// Whose key it has.
    pub seed: [u8; 32],
    /// Its routing label.
    pub label: HostLabel,
    /// Where it is on the network.
    pub address: SocketAddr,
    /// Where else. What it sends comes from either, as from behind a NAT with two ways out.
    pub second: Option<SocketAddr>,
    /// The NAT it is behind: its place in the order in which NATs were made.
    pub nat: Option<usize>,
    /// The ports at which it accepts TCP connections.
    pub tcp_ports: Vec<u16>,
    /// Addresses of NATs that lead to it.
    pub advertised: Advertised,
    /// Its spare ports.
    pub(super) spares: Range<u16>,
    /// What it does with what it is to pass on.
    pub relaying: Relaying,
    /// Whether it relays nothing.
    pub is_stub: bool,
    /// Whether its bytes are paid for.
    pub is_metered: bool,
    /// Which of its paths are.
    pub metered_paths: MeteredPaths,
    /// How many it sent and got, IP and UDP headers included.
    pub carried: u64,
    /// Whether its network lets no UDP pass.
    pub blocks_udp: bool,
    /// Whether what it sends by the urgent lane is marked.
    pub marks: bool,
    /// Its node, while it runs.
    pub node: Option<Node>,
    /// What survives a crash.
    pub disk: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What the data path works with: behind the node by the publication delay.
    pub snapshot: Arc<Snapshot>,
    /// Frames written to its TAPs.
    pub delivered: Vec<(SegmentId, Vec<u8>)>,
    /// What its data path dropped, and why.
    pub dropped: BTreeMap<DropReason, u64>,
    /// What its DNS server answers from.
    pub names: Names,
    /// What it said for the log.
    pub events: Vec<Event>,
    pub(super) path: Datapath,
    pub(super) life: u64,
    pub(super) timer: Time,
    /// When the last publication takes effect.
    pub(super) published: Time,
    pub(super) offloads: TapOffloads,
}

impl Host {
    /// Returns a host that is switched off; its kernel takes offloaded frames if it `offloads`.
    pub(super) fn new(seed: [u8; 32], label: HostLabel, address: SocketAddr, offloads: bool) -> Host {
        let full = TapOffloads { checksum: true, tcp: true, udp: true };
        Host {
            seed,
            label,
            address,
            second: None,
            nat: None,
            tcp_ports: Vec::new(),
            spares: FIRST_SPARE..FIRST_SPARE,
            advertised: Advertised::default(),
            relaying: Relaying::default(),
            is_stub: false,
            is_metered: false,
            metered_paths: MeteredPaths::default(),
            carried: 0,
            blocks_udp: false,
            marks: true,
            node: None,
            disk: BTreeMap::new(),
            snapshot: Arc::new(Snapshot::empty(label, Hashing(0, 0))),
            delivered: Vec::new(),
            dropped: BTreeMap::new(),
            names: Names::default(),
            events: Vec::new(),
            path: Datapath::new(64),
            life: 0,
            timer: Time::ZERO,
            published: Time::ZERO,
            offloads: if offloads { full } else { TapOffloads::NONE },
        }
    }

    /// Returns the host's key.
    pub fn peer_id(&self) -> PeerId {
        Identity::from_seed(&self.seed).peer_id()
    }
}
