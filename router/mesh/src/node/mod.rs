//! The node: one state machine for links, sessions, routes, records and segments.
//!
//! Inputs come with the time; outputs are polled until [`Output::Timeout`], which comes last. Work is spread by
//! what it is about:
//!
//! - `handshakes`: from a first packet to a session;
//! - `rebirth`: lives of a key, one after the other or two at once;
//! - `links`: direct paths, their liveness, cost and MTU;
//! - `talk`: records and SWIM, to and from neighbours;
//! - `publish`: what the data path is to know;
//! - `endpoints`: who is in which segment;
//! - `addresses`: the address state machine's errands;
//! - `directory`: names and container networks;
//! - `status`: the report.

mod addresses;
mod api;
mod directory;
mod endpoints;
mod handshakes;
mod links;
mod peer;
mod publish;
mod rebirth;
mod sessions;
mod status;
mod talk;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

pub use api::*;
use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use weft_crypto::cookie::CookieJar;
use weft_crypto::{Ciphers, HostLabel, Identity, Keyring, PeerId, Time};
use weft_gossip::{Membership, Store};

use crate::datapath::Datapath;
use crate::ipam::{Ipam, Setup};
use crate::records::{
    self, EndpointId, EndpointRecord, EntryRecord, HostRecord, Key, NetworkHead, NetworkRecord, NetworkUid,
    SegmentRecord,
};
use crate::routes::{Graph, Route};
use crate::sink::Punt;
use crate::snapshot::{Hashing, Snapshot};
use crate::wire::{Control, SegmentId};
use addresses::Addresses;
use endpoints::Endpoints;
use handshakes::Handshakes;
use peer::{Backoff, Peer};

/// How often links are looked after, and in a small mesh sessions and all peers; those of a large one go by the round.
const TICK: Duration = Duration::from_millis(50);
const ROUND: Duration = Duration::from_millis(250);
const PEERS_PER_TICK: usize = 64;
/// How often what is old or gone is cleared away.
const CLEAR_INTERVAL: Duration = Duration::from_secs(5);
/// Hosts this one keeps apart.
const MAX_PEERS: usize = 8192;
/// How long another host with this key counts as being around.
const CLONE_MEMORY: Duration = Duration::from_secs(60);
const PERSISTED_INCARNATION: &[u8] = b"incarnation";
const PERSISTED_TARGET: &[u8] = b"target/";
const PERSISTED_FORGOTTEN: &[u8] = b"forgotten/";
/// Where the endpoints of this host are kept, by id.
pub const PERSISTED_ENDPOINT: &[u8] = b"endpoint/";
const PERSISTED_PEER: &[u8] = b"peer/";

/// A host of the mesh, without the host.
pub struct Node {
    identity: Identity,
    own: HostLabel,
    name: String,
    keyring: Keyring,
    ciphers: Ciphers,
    underlay_mtu: usize,
    container_mtu: u16,
    port: u16,
    discovery: bool,
    grace: Duration,
    /// Whether datagrams of the urgent lane leave marked as such.
    marks: bool,
    rng: ChaCha20Rng,
    /// Tells this life of the host from others.
    boot: u64,

    peers: BTreeMap<HostLabel, Peer>,
    by_noise_key: BTreeMap<[u8; 32], HostLabel>,
    by_index: BTreeMap<u32, HostLabel>,
    targets: BTreeMap<String, Vec<SocketAddr>>,
    target_addresses: BTreeMap<SocketAddr, TargetAddress>,
    /// Peers that the user no longer wants to be linked with, by the names they had, with their keys where those were known.
    forgotten: BTreeMap<String, Option<PeerId>>,
    own_addresses: Vec<SocketAddr>,
    /// Where each neighbour sees this host, what of it is told, and when that may change.
    seen_by: BTreeMap<HostLabel, SocketAddr>,
    seen_addresses: Vec<SocketAddr>,
    seen_after: Time,
    handshakes: Handshakes,
    cookies: CookieJar,

    store: Store,
    /// When own changes may be signed and sent again.
    flush_after: Time,
    /// Batches that came in and were new, and from whom.
    to_pass_on: Vec<(Bytes, HostLabel)>,
    membership: Membership,
    graph: Graph,
    routes: BTreeMap<HostLabel, Route>,
    routes_stale: bool,
    /// The DNS server is not yet told who can be reached.
    reach_stale: bool,
    /// When routes may be computed again.
    routes_after: Time,
    /// When changed costs of links may be announced again, and whether this tick may.
    costs_after: Time,
    announces_costs: bool,
    endpoints: Endpoints,
    addresses: Addresses,
    /// Names that people added, as their records stand.
    entries: BTreeMap<(HostLabel, Vec<u8>), EntryRecord>,
    /// Container networks, by the host that has them, and those that were removed, with who says so.
    networks: BTreeMap<(HostLabel, NetworkUid), NetworkRecord>,
    /// The records they are put together from.
    network_heads: BTreeMap<(HostLabel, NetworkUid), NetworkHead>,
    network_parts: BTreeMap<(HostLabel, NetworkUid, u8), Vec<u8>>,
    removed_networks: BTreeSet<(NetworkUid, HostLabel)>,
    /// Those that this host speaks of, in the order of their removal.
    own_removed: BTreeMap<u64, NetworkUid>,
    hosts: BTreeMap<HostLabel, HostRecord>,
    /// Hosts that this one is linked with.
    linked: BTreeSet<HostLabel>,
    /// Whom this host is to be linked with in a large mesh, and who with it.
    fingers: BTreeSet<HostLabel>,
    finger_of: BTreeSet<HostLabel>,
    /// Hosts in this host's segments without a session.
    without_session: BTreeSet<HostLabel>,
    /// When another host with this one's key was last heard of, true or not.
    cloned: Option<Time>,
    jumps: VecDeque<Time>,
    conflicts: BTreeSet<(String, HostLabel)>,
    /// When this host's key last proved to be used by another; until that is past it writes nothing above the other.
    contested: Option<Time>,
    /// When hosts that were forgotten were last told so.
    told_forgotten: BTreeMap<PeerId, Time>,

    snapshot: Snapshot,
    snapshot_stale: bool,
    path: Datapath,
    outputs: VecDeque<Output>,
    next_tick: Time,
    next_round: Time,
    next_comparison: Time,
    /// When the first and the last of the records came that neighbours were not yet asked about.
    unsettled: Option<(Time, Time)>,
    next_clearing: Time,
}

/// An address the user named, until it is known whose it is.
#[derive(Default)]
struct TargetAddress {
    peer: Option<HostLabel>,
    retry: Backoff,
}

impl Node {
    /// A node at `now`. `entropy` must be fresh and secret; everything random comes from it.
    pub fn new(config: Config, entropy: [u8; 32], now: Time) -> Self {
        let mut rng = ChaCha20Rng::from_seed(entropy);
        let own = config.identity.peer_id().label();
        let hashing = Hashing(rng.next_u64(), rng.next_u64());
        let boot = rng.next_u64();
        let restored: BTreeMap<Vec<u8>, Vec<u8>> = config.restored.into_iter().collect();
        let last: Option<u64> = restored.get(PERSISTED_INCARNATION).and_then(|value| records::decode(value));
        let incarnation = last.unwrap_or(0).saturating_add(1).min(records::MAX_INCARNATION);
        let keyring_secrets = config.keyring.secrets().into();
        let (grace, founds_alone, continues) = (config.grace, config.founds_alone, config.continues);
        let setup = Setup { own, entropy: rng.random(), grace, founds_alone, continues, now };
        let ipam = Ipam::new(setup, &restored);
        let mut node = Node {
            own,
            name: config.name,
            keyring: config.keyring,
            ciphers: config.ciphers,
            underlay_mtu: config.underlay_mtu,
            container_mtu: config.container_mtu,
            port: config.port,
            discovery: config.discovery,
            grace: config.grace,
            marks: true,
            boot,
            peers: BTreeMap::new(),
            by_noise_key: BTreeMap::new(),
            by_index: BTreeMap::new(),
            targets: BTreeMap::new(),
            target_addresses: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            own_addresses: Vec::new(),
            seen_by: BTreeMap::new(),
            seen_addresses: Vec::new(),
            seen_after: now,
            handshakes: Handshakes::default(),
            cookies: CookieJar::new(rng.random(), now),
            store: Store::new(config.identity.clone(), incarnation, boot as u32),
            flush_after: now,
            to_pass_on: Vec::new(),
            membership: Membership::new(own, incarnation, rng.next_u64()),
            graph: Graph::default(),
            routes: BTreeMap::new(),
            routes_stale: false,
            reach_stale: true,
            routes_after: now,
            costs_after: now,
            announces_costs: false,
            endpoints: Endpoints::new(own, hashing, now),
            addresses: Addresses::new(ipam),
            entries: BTreeMap::new(),
            networks: BTreeMap::new(),
            network_heads: BTreeMap::new(),
            network_parts: BTreeMap::new(),
            removed_networks: BTreeSet::new(),
            own_removed: BTreeMap::new(),
            hosts: BTreeMap::new(),
            linked: BTreeSet::new(),
            fingers: BTreeSet::new(),
            finger_of: BTreeSet::new(),
            without_session: BTreeSet::new(),
            cloned: None,
            jumps: VecDeque::new(),
            conflicts: BTreeSet::new(),
            contested: None,
            told_forgotten: BTreeMap::new(),
            snapshot: Snapshot { secrets: keyring_secrets, ..Snapshot::empty(own, hashing) },
            snapshot_stale: true,
            path: Datapath::new(64),
            outputs: VecDeque::new(),
            next_tick: now,
            next_round: now,
            next_comparison: now,
            unsettled: None,
            next_clearing: now + CLEAR_INTERVAL,
            identity: config.identity,
            rng,
        };
        node.persist(PERSISTED_INCARNATION, Some(records::encode(&incarnation)));
        node.restore(&restored, now);
        node.restore_directory(&restored);
        node.write_host_record();
        node.finish(now);
        node
    }

    /// This host.
    pub fn peer_id(&self) -> PeerId {
        self.identity.peer_id()
    }

    /// Takes an input; all it leads to waits in [`Node::poll_output`].
    pub fn handle_input(&mut self, now: Time, input: Input) {
        match input {
            Input::Timeout => {}
            Input::Punt(punt) => self.handle_punt(punt, now),
            Input::Durable { mark, is_kept } => self.on_durable(mark, is_kept, now),
            Input::Command(id, command) => {
                if let Some(reply) = self.handle_command(id, command, now) {
                    self.outputs.push_back(Output::Reply(id, reply));
                }
            }
        }
        self.membership.handle_timeout(now);
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now);
        }
        self.finish(now);
    }

    /// What is to be done; once it is the timeout, there is nothing more until the next input.
    pub fn poll_output(&mut self) -> Output {
        self.outputs.pop_front().unwrap_or_else(|| {
            let tick = (self.next_tick, "links and sessions");
            let swim = self.membership.next_timeout().map(|at| (at, "SWIM"));
            let routes = self.routes_stale.then_some((self.routes_after, "routes"));
            let records = self.store.is_dirty().then_some((self.flush_after, "records"));
            let addresses = self.addresses.next_timeout().map(|at| (at, "addresses"));
            let (at, why) = [swim, routes, records, addresses].into_iter().flatten().fold(tick, std::cmp::min);
            Output::Timeout(at, why)
        })
    }

    fn handle_punt(&mut self, punt: Punt, now: Time) {
        match punt {
            Punt::Handshake { from, packet } => self.on_handshake(Some(from), &packet, now),
            Punt::RelayedHandshake { packet } => self.on_handshake(None, &packet, now),
            Punt::Heard { index, peer, direct } => self.on_heard(index, peer, direct, now),
            Punt::Control { index, peer, direct, size, text } => {
                self.on_heard(index, peer, direct, now);
                if !self.is_in_doubt(peer, index) {
                    self.on_control(index, peer, direct, size, &text, now);
                }
            }
            Punt::NoSession { host, segment, vnet, frame } => {
                if let Some(peer) = self.peers.get_mut(&host) {
                    peer.wait(peer::WaitingFrame { segment, vnet, frame });
                    self.send_waiting(host, now);
                    self.want_session(host, now);
                }
            }
            Punt::Learn { segment, mac, host } => {
                self.endpoints.learn(segment, mac, host, now);
            }
        }
    }

    /// Carries out a command; `None`: its answer comes later.
    fn handle_command(&mut self, id: CommandId, command: Command, now: Time) -> Option<Result<Reply, CommandError>> {
        match command {
            Command::Connect(targets) => {
                targets.iter().for_each(|target| self.remember(&target.name));
                self.connect(targets, now);
            }
            Command::ConnectUnlessForgotten(mut targets) => {
                targets.retain(|target| !self.forgotten.contains_key(&target.name));
                self.connect(targets, now);
            }
            Command::Forget(names) => return Some(self.forget_targets(&names, now)),
            Command::Attach(id, record) => return Some(self.attach(id, record, now)),
            Command::Detach(id) => return Some(self.detach(id, now)),
            Command::SetKeyring(keyring) => self.set_keyring(keyring, now),
            Command::SetAddresses(addresses) => {
                self.own_addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect();
                self.write_host_record();
            }
            Command::SetMtu(underlay, containers) => return Some(self.set_mtu(underlay, containers)),
            Command::Status => return Some(Ok(Reply::Status(Box::new(self.status(now))))),
            Command::Targets => return Some(Ok(Reply::Targets(self.targets.keys().cloned().collect()))),
            Command::SetGateways(segment, gateways) => self.endpoints.set_gateways(segment, gateways),
            Command::Leave => self.leave(now),
            Command::AddName(name, ips) => {
                // Records received a moment ago count.
                self.settle_records(now);
                return Some(self.add_name(&name, &ips));
            }
            Command::RemoveName(name, ips) => {
                self.settle_records(now);
                return Some(self.remove_name(&name, &ips));
            }
            Command::SetNetwork(record) => return Some(self.set_network(&record)),
            Command::UnsetNetwork(uid) => self.delete_network(uid),
            Command::RemoveNetwork(uid) => return Some(self.remove_network(uid)),
            Command::Networks => return Some(Ok(Reply::Networks(Box::new(self.known_networks())))),
            Command::Allocate(request) => {
                self.addresses.allocate(id, request, now);
                return None;
            }
            Command::Release(range, allocation) => self.addresses.release(range, allocation, now),
            Command::Unfence(address) => self.addresses.unfence(address),
            Command::SetAside(range, addresses) => self.addresses.set_aside(range, addresses),
            Command::SetParts(range, parts, is_complete) => {
                self.addresses.set_parts(id, range, parts, is_complete, now);
                return None;
            }
            Command::Allocations(range) => return Some(Ok(Reply::Allocations(self.addresses.allocations(range)))),
            Command::Reclaim(name) => match self.host_to_reclaim(&name) {
                Ok(host) => {
                    self.addresses.reclaim(id, host, now);
                    return None;
                }
                Err(error) => return Some(Err(error)),
            },
        }
        Some(Ok(Reply::Done))
    }

    /// Looks after everything that time changes.
    fn tick(&mut self, now: Time) {
        let all = now >= self.next_round || self.peers.len() <= PEERS_PER_TICK;
        self.tend_links(all, now);
        if all {
            self.next_round = now + ROUND;
            self.tend_sessions(now);
        }
        self.tend_targets(now);
        self.tend_segments(all, now);
        self.compare_records(now);
        if now >= self.next_clearing {
            self.next_clearing = now + CLEAR_INTERVAL;
            self.endpoints.age(now);
            self.tend_gone(now);
        }
    }

    /// Carries out what the input led to: records first, then routes, then the snapshot.
    fn finish(&mut self, now: Time) {
        self.tend_membership(now);
        self.tend_addresses(now);
        self.flush_records(now);
        self.apply_record_events(now);
        self.pass_on(now);
        if self.routes_stale && now >= self.routes_after {
            self.routes_stale = false;
            self.routes_after = now + publish::ROUTE_INTERVAL;
            self.recompute_routes(now);
        }
        self.publish();
        self.publish_names();
        self.drain_batch();
    }

    fn connect(&mut self, targets: Vec<Target>, now: Time) {
        for target in targets {
            let key = [PERSISTED_TARGET, target.name.as_bytes()].concat();
            self.persist(&key, Some(records::encode(&target.addresses)));
            for address in &target.addresses {
                // Names are looked up again and again: earlier unanswered attempts still count.
                self.target_addresses.entry(*address).or_default().retry.next = now;
            }
            self.targets.insert(target.name, target.addresses);
        }
        let named: Vec<SocketAddr> = self.targets.values().flatten().copied().collect();
        self.target_addresses.retain(|address, _| named.contains(address));
        self.addresses.look_at_hosts();
        self.tend_targets(now);
    }

    fn forget_targets(&mut self, names: &[String], now: Time) -> Result<Reply, CommandError> {
        if let Some(unknown) = names.iter().find(|name| !self.targets.contains_key(*name)) {
            return Err(CommandError::UnknownTarget(unknown.clone()));
        }
        for name in names {
            let addresses = self.targets.remove(name).unwrap_or_default();
            let peer = addresses.iter().find_map(|address| self.target_addresses.get(address)?.peer);
            if let Some(label) = peer {
                self.send_control(label, &Control::Bye, now);
                self.let_go(label, "it was forgotten", now);
            }
            let peer = peer.and_then(|label| self.peer_key(label));
            self.persist(&[PERSISTED_TARGET, name.as_bytes()].concat(), None);
            self.persist(&[PERSISTED_FORGOTTEN, name.as_bytes()].concat(), Some(records::encode(&peer)));
            self.forgotten.insert(name.clone(), peer);
        }
        let named: Vec<SocketAddr> = self.targets.values().flatten().copied().collect();
        self.target_addresses.retain(|address, _| named.contains(address));
        for peer in self.peers.values_mut() {
            for (address, candidate) in &mut peer.candidates {
                candidate.is_likely &= named.contains(address);
            }
        }
        Ok(Reply::Done)
    }

    /// A peer is named again: it is no longer forgotten.
    fn remember(&mut self, name: &str) {
        if self.forgotten.remove(name).is_some() {
            self.persist(&[PERSISTED_FORGOTTEN, name.as_bytes()].concat(), None);
        }
    }

    /// Whether the user no longer wants to be linked with a host.
    fn is_forgotten(&self, label: HostLabel) -> bool {
        self.forgotten.values().flatten().any(|id| id.label() == label)
    }

    fn attach(&mut self, id: EndpointId, record: EndpointRecord, now: Time) -> Result<Reply, CommandError> {
        self.settle_records(now);
        if let Some(problem) = record.problem() {
            return Err(CommandError::Invalid(problem));
        }
        let segment = SegmentId::of(&record.segment);
        if let Some(other) = self.endpoints.collision(&record.segment) {
            return Err(CommandError::SegmentCollision(record.segment.into(), other.to_owned()));
        }
        for (ip, _) in &record.ips {
            if self.endpoints.is_gateway(segment, *ip) {
                return Err(CommandError::Invalid("the address is the segment's gateway's; choose another"));
            }
            if let Some((host, other)) = self.endpoints.owner_of_ip(segment, *ip, id) {
                let mut owner = self.describe_endpoint(host, &other);
                if host != self.own && !self.routes.contains_key(&host) {
                    owner.push_str(" (out of reach; if that host is off for good: weft reclaim)");
                }
                return Err(CommandError::AddressInUse { ip: *ip, owner, segment: record.segment.into() });
            }
        }
        if let Some((host, other)) = self.endpoints.owner_of_mac(segment, record.mac, id) {
            return Err(CommandError::MacInUse { owner: self.describe_endpoint(host, &other) });
        }
        self.write_endpoint(id, record)?;
        // A look-up after this answer finds it.
        self.settle_records(now);
        Ok(Reply::Done)
    }

    /// Writes the records of an endpoint of this host, and keeps it across restarts.
    fn write_endpoint(&mut self, id: EndpointId, record: EndpointRecord) -> Result<(), CommandError> {
        let (own, more) = record.split();
        self.store.put(&Key::Endpoint(id).encode(), records::encode(&own))?;
        for (part, names) in (0u8..).zip(&more) {
            self.store.put(&Key::Names(id, part).encode(), records::encode(names))?;
        }
        self.delete_names(id, more.len());
        let segment = SegmentRecord { name: record.segment.to_string(), mtu: self.container_mtu };
        self.store.put(&Key::Segment(SegmentId::of(&segment.name)).encode(), records::encode(&segment))?;
        self.persist(&[PERSISTED_ENDPOINT, &id].concat(), Some(records::encode(&record)));
        Ok(())
    }

    /// Deletes the records of an endpoint's further names, from a part on.
    fn delete_names(&mut self, id: EndpointId, from: usize) {
        let keys = (from..=usize::from(u8::MAX)).map(|part| Key::Names(id, part as u8).encode());
        let there: Vec<Vec<u8>> = keys.take_while(|key| self.store.own(key).is_some()).collect();
        there.iter().for_each(|key| self.store.delete(key));
    }

    fn set_mtu(&mut self, underlay: usize, containers: u16) -> Result<Reply, CommandError> {
        self.underlay_mtu = underlay;
        if std::mem::replace(&mut self.container_mtu, containers) != containers {
            let segments: Vec<SegmentId> = self.endpoints.local_segments().collect();
            for key in segments.into_iter().map(|segment| Key::Segment(segment).encode()) {
                let record = self.store.own(&key).and_then(records::decode::<SegmentRecord>);
                if let Some(record) = record {
                    self.store.put(&key, records::encode(&SegmentRecord { mtu: containers, ..record }))?;
                }
            }
        }
        Ok(Reply::Done)
    }

    fn detach(&mut self, id: EndpointId, now: Time) -> Result<Reply, CommandError> {
        self.settle_records(now);
        let Some(record) = self.endpoints.get(self.own, &id).cloned() else {
            return Err(CommandError::UnknownEndpoint);
        };
        self.store.delete(&Key::Endpoint(id).encode());
        self.delete_names(id, 0);
        self.persist(&[PERSISTED_ENDPOINT, &id].concat(), None);
        let is_last = !self
            .endpoints
            .iter()
            .any(|(host, other, theirs)| host == self.own && other != id && theirs.segment == record.segment);
        if is_last {
            self.store.delete(&Key::Segment(SegmentId::of(&record.segment)).encode());
        }
        Ok(Reply::Done)
    }

    fn restore(&mut self, restored: &BTreeMap<Vec<u8>, Vec<u8>>, now: Time) {
        for (key, value) in restored {
            if let Some(id) = key.strip_prefix(PERSISTED_ENDPOINT).and_then(|id| EndpointId::try_from(id).ok()) {
                let record = records::decode::<EndpointRecord>(value).filter(|record| record.problem().is_none());
                // Nothing that was once written can be over a limit now.
                let _ = record.map(|record| self.write_endpoint(id, record));
            } else if let Some(name) = key.strip_prefix(PERSISTED_TARGET) {
                let (Ok(name), Some(addresses)) = (String::from_utf8(name.to_vec()), records::decode(value)) else {
                    continue;
                };
                let addresses: Vec<SocketAddr> = addresses;
                for address in &addresses {
                    self.target_addresses.entry(*address).or_default();
                }
                self.targets.insert(name, addresses);
            } else if let Some(name) = key.strip_prefix(PERSISTED_FORGOTTEN) {
                if let (Ok(name), Some(peer)) = (String::from_utf8(name.to_vec()), records::decode(value)) {
                    self.forgotten.insert(name, peer);
                }
            } else if let Some(id) = key.strip_prefix(PERSISTED_PEER).and_then(|id| <[u8; 32]>::try_from(id).ok())
                && let Some(addresses) = records::decode::<Vec<SocketAddr>>(value)
                && let Some(label) = self.meet(PeerId(id), now)
                && let Some(peer) = self.peers.get_mut(&label)
            {
                addresses.into_iter().for_each(|address| peer.add_candidate(address, false));
            }
        }
    }

    /// The peer with this key, made known if it was not; `None` for this host itself, a key that is no key, or a
    /// table that is full.
    fn meet(&mut self, id: PeerId, now: Time) -> Option<HostLabel> {
        let label = id.label();
        if id == self.identity.peer_id() || label == self.own {
            return None;
        }
        match self.peers.get(&label) {
            Some(peer) => (peer.id == id).then_some(label),
            None if self.peers.len() >= MAX_PEERS => None,
            None => {
                self.by_noise_key.insert(id.noise_public()?, label);
                self.peers.insert(label, Peer::new(id, now));
                Some(label)
            }
        }
    }

    /// Where this host may be reached: what it has, and what others see.
    fn told_addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = self.own_addresses.clone();
        for seen in &self.seen_addresses {
            if !addresses.contains(seen) {
                addresses.push(*seen);
            }
        }
        addresses.truncate(records::MAX_LIST);
        addresses
    }

    fn write_host_record(&mut self) {
        let addresses = self.told_addresses();
        let record = HostRecord { name: self.name.clone(), addresses, boot: self.boot };
        // A name and eight addresses are far below the limit.
        let _ = self.store.put(&Key::Host.encode(), records::encode(&record));
    }

    fn persist(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        self.outputs.push_back(Output::Persist { key: key.to_vec(), value });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn random_index(&mut self) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if index != 0 && !self.by_index.contains_key(&index) && !self.handshakes.uses(index) {
                return index;
            }
        }
    }
}
