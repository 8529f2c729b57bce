//! The report of a node: what `weft status` prints, as plain values.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Serialize;

use crate::records::{Advertised, Health};

/// How a peer stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Session and route are there.
    Connected,
    /// On the way.
    Connecting,
    /// No route.
    Unreachable,
    /// SWIM declared it dead.
    Dead,
}

impl PeerState {
    /// As reports have it.
    pub fn name(self) -> &'static str {
        match self {
            PeerState::Connected => "connected",
            PeerState::Connecting => "connecting",
            PeerState::Unreachable => "unreachable",
            PeerState::Dead => "dead",
        }
    }
}

/// One peer in a report.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Nickname.
    pub name: String,
    /// Key, in hex.
    pub peer_id: String,
    /// How it stands.
    pub state: PeerState,
    /// `direct` or `relay`.
    pub path: Option<&'static str>,
    /// The relay's nickname.
    pub via: Option<String>,
    /// `udp`, `tcp` or none.
    pub transport: Option<&'static str>,
    /// Address of the direct link.
    pub remote: Option<SocketAddr>,
    /// Cipher suite of the session.
    pub cipher: Option<&'static str>,
    /// Smoothed round-trip time of the direct link, in microseconds.
    pub rtt_us: Option<u64>,
    /// Share of pings over the direct link that were lost of late, 0 to 1.
    pub loss: Option<f64>,
    /// Largest frame the path takes whole, in bytes.
    pub mtu: Option<usize>,
    /// Whether it relays between other hosts.
    pub relays: bool,
    /// Its load as a relay, in steps up to four: with each it wins half as often against others of the same cost.
    pub load: u8,
    /// Whether what it says and hears is paid for by the byte.
    pub metered: bool,
    /// Bytes received in sessions with it.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// One link in a report.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// One end's nickname.
    pub from: String,
    /// The other end's.
    pub to: String,
    /// The beginnings of both keys: nicknames need not be unique.
    pub from_id: String,
    /// The other end's.
    pub to_id: String,
    /// Announced cost, without what a metered one costs in addition.
    pub cost: u32,
    /// Whether it is paid for by the byte: frames go over it where there is no other way.
    pub metered: bool,
}

/// One route in a report.
#[derive(Clone, Debug, Serialize)]
pub struct RouteStatus {
    /// Where to, nickname.
    pub to: String,
    /// Through which neighbour.
    pub via: String,
    /// Through which when that is lost.
    pub backup: Option<String>,
    /// Neighbours by which what goes there does not arrive, though the links with them are up.
    pub avoided: Vec<String>,
    /// Cost of the path, without what metered links cost in addition.
    pub cost: u32,
    /// Whether it leads over a metered link.
    pub metered: bool,
    /// Largest datagram in bytes.
    pub max_datagram: u16,
}

/// One endpoint in a report.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// Id in hex.
    pub id: String,
    /// Segment name.
    pub segment: String,
    /// Host nickname.
    pub host: String,
    /// The beginning of the host's key.
    pub host_id: String,
    /// MAC.
    pub mac: String,
    /// Addresses with prefix lengths.
    pub ips: Vec<String>,
    /// Names.
    pub names: Vec<String>,
    /// Whether it is healthy.
    pub healthy: bool,
    /// How it is: healthy, starting or unhealthy.
    pub health: Health,
}

/// One target in a report.
#[derive(Clone, Debug, Serialize)]
pub struct TargetStatus {
    /// As the user wrote it.
    pub name: String,
    /// What it resolves to.
    pub addresses: Vec<SocketAddr>,
    /// The peer found there.
    pub peer: Option<String>,
    /// How it stands.
    pub state: TargetState,
}

/// How a target stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetState {
    /// It is this host.
    Own,
    /// A peer was found there.
    Answered,
    /// It is being tried.
    Trying,
    /// It was tried several times without an answer.
    Silent,
}

/// One ring of addresses in a report.
#[derive(Clone, Debug, Serialize)]
pub struct RingReport {
    /// The range that the ring hands out of, as ADDR/LEN.
    pub range: String,
    /// `ready` or `waiting`.
    pub state: &'static str,
    /// Who is waited for.
    pub waiting_for: Vec<String>,
    /// Addresses in this host's windows.
    pub owned: u32,
    /// Addresses handed out by this host.
    pub used: u32,
    /// Addresses in windows of hosts that cannot be reached.
    pub unreachable: u32,
    /// Addresses in windows that no host has.
    pub unopened: u32,
    /// Who decides.
    pub voters: Vec<String>,
    /// Subnets of this host's networks of which addresses are handed out in this range, too.
    pub contested: Vec<String>,
}

/// What a node knows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// This host's nickname.
    pub name: String,
    /// Its key, in hex.
    pub peer_id: String,
    /// Whether another host lives with its key.
    pub cloned: bool,
    /// All peers.
    pub peers: Vec<PeerStatus>,
    /// All links of the mesh.
    pub links: Vec<LinkStatus>,
    /// Routes from here.
    pub routes: Vec<RouteStatus>,
    /// All endpoints.
    pub endpoints: Vec<EndpointStatus>,
    /// Hosts to link to.
    pub targets: Vec<TargetStatus>,
    /// Where this host may be reached: what it tells the others.
    pub addresses: Vec<SocketAddr>,
    /// Addresses elsewhere that lead to it.
    pub advertised: Advertised,
    /// Whether datagrams of the urgent lane leave marked as such.
    pub marks: bool,
    /// The load of this host as a relay, in steps up to four.
    pub load: u8,
    /// Rings of addresses.
    pub rings: Vec<RingReport>,
    /// Addresses that this host handed out and lost to others.
    pub fenced: Vec<Ipv4Addr>,
    /// What was refused or given up outside the data path.
    pub refused: Refusals,
    /// A hash over the versions of all records, in hex: hosts that hold the same have the same.
    pub records_digest: String,
}

/// What a node measures and counts. In contrast to [`Status`] it lists nothing that grows with the mesh but peers.
#[derive(Clone, Debug)]
pub struct Measures {
    /// All peers.
    pub peers: Vec<PeerStatus>,
    /// Rings of addresses.
    pub rings: Vec<RingReport>,
    /// What was refused or given up outside the data path.
    pub refused: Refusals,
    /// Bytes relayed for other hosts, those that are gone included.
    pub relayed_bytes: u64,
    /// The load of this host as a relay, in steps up to four.
    pub load: u8,
    /// Endpoints of this host.
    pub own_endpoints: usize,
    /// Valid records held, by kind.
    pub records: [(&'static str, usize); 5],
}

/// What a node refused or gave up so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Refusals {
    /// Handshake packets of no member, damaged or replayed.
    pub handshakes: u64,
    /// SWIM packets that are not valid.
    pub swim_packets: u64,
    /// Batches of records that are malformed, forged or over a limit.
    pub record_batches: u64,
    /// Records that are not valid by the rules of their kind.
    pub records: u64,
    /// Records held now, of kinds that only newer versions know.
    pub unknown_records: u64,
    /// Frames for which there was no session in time.
    pub waiting_frames: u64,
}
