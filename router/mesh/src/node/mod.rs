//! The node: routes inputs to components, and their events to each other.
//!
//! It owns no protocol state. Each component owns its own, takes an input with the time, and queues events; after every input the
//! node drains the queues in a fixed order until all are empty.
//!
//! The components are `sessions` (handshakes, keys and lives of peers), `topology` (candidates, links, routes), `presence`
//! (SWIM), `records::sync` (the record store and its exchange), `segments` (endpoints, and what the data path sees of them), `directory`
//! (nicknames of hosts, added names, container networks), `addresses` (the address state machine and the disk) and `publisher` (forwarding tables,
//! and what the node itself sends).

mod commands;
mod control;
mod events;
mod places;
mod report;
mod restore;
mod ways;
mod why;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use weft_crypto::{HostLabel, PeerId, Time};

use crate::addresses::Addresses;
pub use crate::api::*;
use crate::codec::{decode, encode};
use crate::datapath::sink::Punt;
use crate::datapath::snapshot::{Hashing, Snapshot};
use crate::directory::Directory;
use crate::explanation::Explanation;
use crate::ipam::{self, Ipam};
use crate::path::Path;
use crate::presence::Presence;
use crate::publisher::{Publisher, WaitingFrame};
use crate::records::sync::RecordSync;
use crate::records::writes::Writes;
use crate::records::{HostRecord, Key, MAX_INCARNATION};
pub use crate::report::*;
use crate::segments::Segments;
use crate::sessions::{self, Sessions};
use crate::stored::Stored;
use crate::topology::own_addresses::OwnReach;
use crate::topology::{self, SessionTable, Topology};
use crate::wire::{Control, Lane};
use ways::path_view;

/// How often links are looked after, and in a small mesh sessions and all peers; those of a large one, and everything at rest, go by the round.
const TICK: Duration = Duration::from_millis(50);
const ROUND: Duration = Duration::from_millis(250);
const PEERS_PER_TICK: usize = 64;
/// How often what is old or gone is cleared away.
const CLEAR_INTERVAL: Duration = Duration::from_secs(5);

/// The protocol state of a host of the mesh, without I/O, clock or OS randomness: takes inputs, passes time, gives outputs.
pub struct Node {
    parts: Components,
    next_round: Time,
    next_clearing: Time,
}

/// The components, and what they need of each other.
struct Components {
    own: HostLabel,
    peer_id: PeerId,
    /// Tells this life of the host from others.
    boot: u64,
    sessions: Sessions,
    topology: Topology,
    presence: Presence,
    records: RecordSync,
    segments: Segments,
    directory: Directory,
    addresses: Addresses,
    publisher: Publisher,
    /// The DNS server does not know yet which hosts can be reached, or what they are called.
    reach_stale: bool,
    /// When links and sessions are looked after again.
    next_tick: Time,
    outputs: VecDeque<Output>,
}

impl SessionTable for Sessions {
    fn current(&self, peer: HostLabel) -> Option<u32> {
        self.current_index(peer)
    }

    fn is_trying(&self, at: Path, now: Time) -> bool {
        Sessions::is_trying(self, at, now)
    }
}

impl Node {
    /// Returns a node that starts at `now`. `entropy` must be fresh and secret; everything random comes from it.
    pub fn new(config: Config, entropy: [u8; 32], now: Time) -> Self {
        let mut rng = ChaCha20Rng::from_seed(entropy);
        let peer_id = config.identity.peer_id();
        let own = peer_id.label();
        let hashing = Hashing(rng.next_u64(), rng.next_u64());
        let boot = rng.next_u64();
        let restored: BTreeMap<Vec<u8>, Vec<u8>> = config.restored.into_iter().collect();
        let last: Option<u64> = restored.get(&Stored::Incarnation.encode()).and_then(|value| decode(value));
        let incarnation = last.unwrap_or(0).saturating_add(1).min(MAX_INCARNATION);
        let (grace, founds_alone, continues) = (config.grace, config.founds_alone, config.continues);
        let ipam = ipam::Setup { own, entropy: rng.random(), grace, founds_alone, continues, now };
        let Config { discovery, underlay_mtu, port, tcp_ports, advertised, is_metered, .. } = config;
        let is_stub = config.is_stub || is_metered;
        let reach = OwnReach { port, tcp_ports, advertised };
        let entropy = rng.random();
        let topology = topology::Setup { own, discovery, underlay_mtu, is_stub, is_metered, reach, entropy };
        let mut publisher = Publisher::new(Snapshot { is_stub, ..Snapshot::empty(own, hashing) });
        publisher.set_secrets(config.keyring.secrets());
        let identity = config.identity.clone();
        let records = RecordSync::new(identity, incarnation, boot as u32, rng.random(), now);
        let sessions = sessions::Setup {
            identity: config.identity,
            boot,
            keyring: config.keyring,
            ciphers: config.ciphers,
            entropy: rng.random(),
        };
        let parts = Components {
            own,
            peer_id,
            boot,
            sessions: Sessions::new(sessions, now),
            topology: Topology::new(topology, now),
            presence: Presence::new(own, incarnation, rng.next_u64(), grace, !is_metered),
            records,
            segments: Segments::new(own, config.container_mtu, hashing, now),
            directory: Directory::new(peer_id, config.name),
            addresses: Addresses::new(Ipam::new(ipam, &restored)),
            publisher,
            reach_stale: true,
            next_tick: now,
            outputs: VecDeque::new(),
        };
        let mut node = Node { parts, next_round: now, next_clearing: now + CLEAR_INTERVAL };
        node.restore(&restored, now);
        node.restore_endpoints(&config.endpoints);
        node.parts.write_host_record();
        node.finish(now);
        node
    }

    /// This host's key.
    pub fn peer_id(&self) -> PeerId {
        self.parts.peer_id
    }

    /// Reports what this node knows now.
    pub fn status(&self, now: Time) -> Status {
        self.parts.status(now)
    }

    /// Explains the path from one host, container, name or address to another; without `from`, from this host.
    pub fn why(&self, from: Option<&str>, to: &str, now: Time) -> Result<Explanation, CommandError> {
        self.parts.explain_path(from, to, now)
    }

    /// Takes an input; everything it leads to waits in [`Node::poll_output`].
    pub fn handle_input(&mut self, now: Time, input: Input) {
        let mut is_small_talk = false;
        match input {
            Input::Timeout => is_small_talk = true,
            Input::Punt(punt) => is_small_talk = self.handle_punt(punt, now),
            Input::Closed(path) => self.parts.topology.on_closed(path, now),
            Input::Durable { mark, is_kept } => self.parts.addresses.on_durable(mark, is_kept),
            Input::Command(id, command) => {
                if let Some(reply) = self.handle_command(id, command, now) {
                    self.parts.outputs.push_back(Output::Reply(id, reply));
                }
            }
        }
        if !is_small_talk {
            self.parts.next_tick = self.parts.next_tick.min(now + TICK);
        }
        self.parts.presence.handle_timeout(now);
        if now >= self.parts.next_tick {
            // What is done now may want another look sooner.
            self.parts.next_tick = now + ROUND;
            let is_at_rest = self.tick(now);
            let next = now + if is_at_rest { ROUND } else { TICK };
            self.parts.next_tick = self.parts.next_tick.min(next);
        }
        self.finish(now);
    }

    /// Returns the next thing to do; once it is the timeout, there is nothing more until the next input.
    pub fn poll_output(&mut self) -> Output {
        self.parts.outputs.pop_front().unwrap_or_else(|| {
            let tick = (self.parts.next_tick, "links and sessions");
            let swim = self.parts.presence.next_timeout().map(|at| (at, "SWIM"));
            let routes = self.parts.topology.routing.next_timeout().map(|at| (at, "routes"));
            let records = self.parts.records.next_timeout().map(|at| (at, "records"));
            let addresses = self.parts.addresses.next_timeout().map(|at| (at, "addresses"));
            let (at, why) = [swim, routes, records, addresses].into_iter().flatten().fold(tick, std::cmp::min);
            Output::Timeout(at, why)
        })
    }

    /// Returns whether it is only what hosts say to each other at rest.
    fn handle_punt(&mut self, punt: Punt, now: Time) -> bool {
        match punt {
            Punt::Handshake { from, packet } => self.on_handshake(Some(from), &packet, now),
            Punt::RelayedHandshake { packet } => self.on_handshake(None, &packet, now),
            Punt::Heard { index, peer, direct } => self.on_heard(index, peer, direct, false, now),
            Punt::Control { index, peer, direct, size, text } => {
                let control = Control::decode(&text);
                let is_trial = control.as_ref().is_some_and(Control::is_trial);
                let is_small_talk = matches!(control, Some(Control::Heartbeat { .. } | Control::Swim(_)));
                self.on_heard(index, peer, direct, is_trial, now);
                if !self.parts.sessions.is_in_doubt(peer, index)
                    && let Some(control) = control
                {
                    self.on_control(index, peer, direct, size, control, now);
                }
                return is_small_talk;
            }
            Punt::NoSession { host, segment, vnet, frame } => {
                if self.parts.sessions.peer(host).is_some() {
                    self.parts.publisher.wait(host, WaitingFrame { segment, vnet, frame });
                    self.parts.publisher.send_waiting(host, now);
                    self.parts.want_session(host, now);
                }
            }
            Punt::Learn { segment, mac, host } => {
                self.parts.segments.tables.learn(segment, mac, host, now);
            }
            // The tick that this leads to sees what was sent.
            Punt::Woken => {}
            Punt::Busy { percent, relays } => self.parts.topology.load.note(percent, relays, now),
        }
        false
    }

    fn on_handshake(&mut self, from: Option<Path>, packet: &[u8], now: Time) {
        let Components { sessions, topology, .. } = &mut self.parts;
        sessions.on_handshake(from, packet, &|peer| path_view(topology, peer), now);
    }

    /// Looks after everything that time changes. Returns whether nothing is used, tried or asked.
    fn tick(&mut self, now: Time) -> bool {
        let all = now >= self.next_round || self.parts.sessions.peers().nth(PEERS_PER_TICK).is_none();
        let mut is_at_rest = self.parts.topology.tend_links(all, &self.parts.sessions, now);
        self.parts.route_events(now);
        if all {
            self.next_round = now + ROUND;
            is_at_rest &= self.parts.sessions.tend(|peer| path_view(&self.parts.topology, peer), now);
            self.tend_waiting(now);
            self.parts.route_events(now);
        }
        self.parts.topology.tend_targets(&self.parts.sessions, now);
        self.parts.route_events(now);
        self.open_sessions(all, now);
        let Topology { metered, routing, .. } = &self.parts.topology;
        let is_asked = |peer| metered.own || !metered.contains(peer);
        self.parts.records.compare(is_asked, |peer| metered.has_route(routing, peer), now);
        if now >= self.next_clearing {
            self.next_clearing = now + CLEAR_INTERVAL;
            self.parts.segments.age(now);
            self.clear_gone(now);
        }
        is_at_rest && self.parts.publisher.waiting_for().is_empty()
    }

    /// Carries out what an input led to: records first, then routes, then the tables.
    fn finish(&mut self, now: Time) {
        // What others said of rings comes before the address state machine is tended.
        self.parts.read_records(now);
        if self.parts.addresses.wants_hosts(now) {
            let named = self.parts.topology.targets.named_hosts(self.parts.topology.addresses.local());
            self.parts.addresses.set_hosts(named, self.parts.topology.routing.routes().keys().copied(), now);
        }
        self.parts.addresses.tend(now);
        self.parts.route_events(now);
        self.parts.records.flush(now);
        self.parts.read_records(now);
        self.parts.records.pass_on(|origin| self.parts.topology.routing.neighbours_of(origin), now);
        for host in self.parts.topology.routing.recompute(now) {
            self.parts.refresh(host, now);
        }
        self.parts.route_events(now);
        self.publish();
    }

    /// Looks after frames and messages that wait for a session.
    fn tend_waiting(&mut self, now: Time) {
        for peer in self.parts.publisher.waiting_for() {
            self.parts.want_session(peer, now);
            if !self.parts.topology.routing.has_route(peer) {
                self.parts.publisher.drop_waiting(peer);
            }
        }
    }

    /// Opens sessions with the hosts this one shares segments with, where bytes are not paid for. With `all` it is looked which these are.
    fn open_sessions(&mut self, all: bool, now: Time) {
        if all {
            let sharing = self.parts.segments.tables.ids().flat_map(|segment| self.parts.segments.hosts_in(segment));
            let is_wanted = |host: &HostLabel| {
                !self.parts.topology.metered.has_route(&self.parts.topology.routing, *host)
                    && self.parts.topology.routing.has_route(*host)
                    && self.parts.sessions.is_wanting(*host, now)
            };
            self.parts.sessions.set_wanted(sharing.filter(is_wanted).collect());
        }
        self.parts.sessions.open_wanted(|peer| path_view(&self.parts.topology, peer), now);
    }

    /// Drops the records of hosts that have been gone for longer than the grace. One host of those that reach each other says so
    /// for all: the one with the lowest label.
    fn clear_gone(&mut self, now: Time) {
        let gone = self.parts.presence.gone(|host| self.parts.topology.routing.has_route(host), now);
        let speaks = self.parts.topology.routing.routes().keys().next().is_none_or(|first| self.parts.own < *first);
        self.parts.records.take_back_forgotten(now);
        self.parts.believe_forgotten(None);
        for label in gone {
            let Some(id) = self.parts.sessions.id_of(label) else { continue };
            if self.parts.records.holds(id) {
                if speaks {
                    self.parts.records.forget_records(id);
                }
            } else if !self.parts.topology.targets.leads_to(label) {
                self.drop_peer(label, id, now);
            }
        }
    }

    fn drop_peer(&mut self, label: HostLabel, id: PeerId, now: Time) {
        self.parts.sessions.remove(label);
        self.parts.topology.remove(label);
        self.parts.presence.remove(label);
        self.parts.records.remove(label);
        self.parts.directory.remove(label);
        self.parts.publisher.drop_waiting(label);
        self.parts.persist(&Stored::Peer(id), None);
        self.parts.refresh(label, now);
    }

    /// Publishes tables, names and frames for containers if anything in them changed, and datagrams to send.
    fn publish(&mut self) {
        if self.parts.topology.routing.take_news() | std::mem::take(&mut self.parts.reach_stale) {
            let routes = self.parts.topology.routing.routes().iter().map(|(host, route)| (*host, route.cost));
            let reach = routes.chain([(self.parts.own, 0)]);
            let reach = reach.map(|(host, cost)| (host, (cost, self.parts.directory.name_of(host)))).collect();
            self.parts.segments.set_reach(reach);
        }
        for (id, segment) in self.parts.segments.tables.take_changed() {
            self.parts.publisher.set_segment(id, segment);
        }
        let mtus =
            self.parts.segments.tables.take_new_mtus().into_iter().map(|(segment, mtu)| Output::Mtu(segment, mtu));
        let frames = self.parts.segments.take_announcements().into_iter();
        self.parts.outputs.extend(self.parts.publisher.take_snapshot().map(Output::Publish));
        self.parts.outputs.extend(mtus);
        self.parts.outputs.extend(frames.map(|(segment, frame)| Output::Tap { segment, frame }));
        self.parts.outputs.extend(self.parts.segments.take_names().map(|names| Output::Names(Box::new(names))));
        let transmits = self.parts.publisher.take_transmits().into_iter();
        self.parts.outputs.extend(transmits.map(|sent| {
            let crate::publisher::Transmit { lane, to, data, stride } = sent;
            Output::Transmit { lane, to, data, stride }
        }));
    }
}

impl Components {
    /// Carries over into the components what records have come to say.
    fn read_records(&mut self, now: Time) {
        self.route_events(now);
        while self.records.read_records(now) {
            self.route_events(now);
        }
    }

    /// Signs what is waiting at once, so that what follows is judged by all that was said before.
    fn settle(&mut self, now: Time) {
        self.records.flush_now(now);
        self.read_records(now);
    }

    /// Changes this host's records and the store, or, with an error, neither.
    fn commit(&mut self, writes: Writes) -> Result<(), CommandError> {
        self.records.write(&writes)?;
        self.outputs.extend(writes.stored.into_iter().map(|(key, value)| Output::Persist { key, value }));
        Ok(())
    }

    fn persist(&mut self, key: &Stored, value: Option<Vec<u8>>) {
        self.outputs.push_back(Output::Persist { key: key.encode(), value });
    }

    fn write_host_record(&mut self) {
        let (addresses, seen) = (self.topology.addresses.announced(), self.topology.addresses.seen());
        let mut writes = Writes::default();
        let name = self.directory.own_name().to_owned();
        let (tcp, advertised) = (self.topology.addresses.reach.tcp_ports.clone(), self.topology.addresses.advertised());
        let (is_stub, is_metered) = (self.topology.routing.is_stub(self.own), self.topology.metered.own);
        let (boot, load) = (self.boot, self.topology.load.level());
        let record = HostRecord { name, addresses, seen, tcp, boot, advertised, is_stub, is_metered, load };
        writes.put(Key::Host, &record);
        // A name and a few short lists are far below the limit.
        let _ = self.commit(writes);
    }

    /// Sends a message along the route to a peer; it waits for a session if there is none.
    fn send(&mut self, peer: HostLabel, control: &Control, now: Time) {
        self.send_along(peer, control, false, now);
    }

    /// The same, of a message that is sent again in any case: no link has to wake for it.
    fn send_repeated(&mut self, peer: HostLabel, control: &Control, now: Time) {
        self.send_along(peer, control, true, now);
    }

    fn send_along(&mut self, peer: HostLabel, control: &Control, is_repeated: bool, now: Time) {
        if self.sessions.peer(peer).is_some() && !self.publisher.send(peer, control.encode(0), is_repeated, now) {
            self.want_session(peer, now);
        }
    }

    /// Sends a message over the link with a peer, or along the route if there is none. While hosts hear of a cost one after the other, the route
    /// may lead in a circle, and what they are to hear must not.
    fn send_by_link(&mut self, peer: HostLabel, control: &Control, now: Time) {
        let keys = self.sessions.current_keys(peer);
        let over = keys.and_then(|keys| Some(keys.over(self.hop_by(peer, usize::MAX)?, peer)));
        match over {
            Some(over) => self.publisher.send_over(&over, Lane::Urgent, &control.encode(0), false, now),
            None => self.send(peer, control, now),
        }
    }

    fn want_session(&mut self, peer: HostLabel, now: Time) {
        self.sessions.want(peer, path_view(&self.topology, peer), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, listen, node};

    #[test]
    fn time_alone_keeps_a_lone_node_quiet_and_asks_for_no_time_that_has_passed() {
        let mut node = node(1, &BTreeMap::new());
        let mut disk = BTreeMap::new();
        let mut now = NOW;
        for _ in 0..1000 {
            let wake = listen(&mut node, &mut disk).wake.expect("there is always a next time");
            assert!(wake > now || now == NOW, "{wake:?} at {now:?}");
            now = now.max(wake);
            node.handle_input(now, Input::Timeout);
        }
        assert!(now > NOW + Duration::from_secs(10), "{now:?}");
        assert!(node.status(now).peers.is_empty());
    }
}
