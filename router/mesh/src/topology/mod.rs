//! Links with peers and routes over them: candidates, paths, their liveness, cost and size.
//!
//! Call a method with the time, then drain [`Topology::poll_event`]. What links need to know of sessions is passed in as
//! a [`SessionTable`]. In a mesh of up to [`SMALL_MESH`] hosts all link with all; in a larger one each links with its
//! fingers, with the peers that the operator named, and with those that frames go to.

mod account;
mod avoidance;
mod candidates;
mod event;
mod fallback;
mod fingers;
mod frame_loss;
mod handshake_turns;
#[cfg(test)]
mod lab;
mod link;
mod links;
mod liveness;
mod metered;
pub(crate) mod own_addresses;
mod ping;
mod port_search;
pub(crate) mod prediction;
mod pulse;
mod punching;
mod racing;
mod relay_load;
pub mod routes;
mod routing;
mod size;
mod spanning;
mod tallies;
mod targets;
mod trial;
pub(crate) mod verification;
pub mod what_if;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) use candidates::Learnt;
use candidates::{Candidates, Heard};
pub(crate) use event::Event;
use fallback::Return;
use fingers::Fingers;
pub(crate) use link::Link;
use link::{Marks, Pings};
use links::ASKED_BACK_AT_ONCE;
use metered::Metered;
use own_addresses::{OwnAddresses, OwnReach};
use port_search::PortSearch;
use prediction::{Prediction, Spreads};
use punching::Punching;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use relay_load::RelayLoad;
use routes::Route;
use routing::Routing;
use targets::Targets;
use verification::Verification;
use weft_crypto::{HostLabel, PeerId, Time};

use crate::bucket::Bucket;
use crate::datapath::snapshot::Meter;
use crate::path::Path;
use crate::records::{HostRecord, LinkRecord};

/// Hosts up to which all link with all.
const SMALL_MESH: usize = 32;
/// Bytes sent and received where they are paid for, within [`DEMAND_WINDOW`], that justify a direct link; less is relayed.
const DEMAND: u64 = 16 * 1024;
const DEMAND_WINDOW: Duration = Duration::from_secs(5);
/// How long a link opened for traffic stays without any.
const ON_DEMAND: Duration = Duration::from_secs(25);
/// How long datagrams sent over a link that was let go may still come.
const STRAGGLING: Duration = Duration::from_secs(1);

/// What topology asks of sessions.
pub(crate) trait SessionTable {
    /// The index of the session used for sending to a peer.
    fn current(&self, peer: HostLabel) -> Option<u32>;
    /// Whether a handshake straight to an address is under way.
    fn is_trying(&self, at: Path, now: Time) -> bool;
}

/// Links, candidates and routes of this host.
pub(crate) struct Topology {
    own: HostLabel,
    /// Whether this host links with hosts it was not told of.
    discovery: bool,
    /// MTU of the underlay in bytes.
    pub(crate) underlay_mtu: usize,
    /// Whether datagrams of the urgent lane leave marked as such.
    pub(crate) marks: bool,
    /// Hosts whose traffic is paid for by the byte.
    pub(crate) metered: Metered,
    rng: ChaCha20Rng,
    peers: BTreeMap<HostLabel, Peer>,
    /// Peers with a link.
    pub(crate) linked: BTreeSet<HostLabel>,
    /// What the operator said about links.
    pub(crate) targets: Targets,
    /// Where this host may be reached.
    pub(crate) addresses: OwnAddresses,
    /// Announced links, and the routes over them.
    pub(crate) routing: Routing,
    /// Whether routes over other hosts carry.
    pub(crate) verification: Verification,
    /// How busy this host is as a relay.
    pub(crate) load: RelayLoad,
    fingers: Fingers,
    prediction: Prediction,
    port_search: PortSearch,
    /// When changed costs may be announced again, and whether this tick may.
    costs_after: Time,
    announces_costs: bool,
    events: VecDeque<Event>,
}

/// What topology knows of a peer.
struct Peer {
    meter: Arc<Meter>,
    link: Option<Link>,
    /// When the last link was let go: packets that come straight from the peer right after it open no new one.
    let_go: Time,
    /// Since when others are told that it was let go.
    told_let_go: Option<Time>,
    pings: Pings,
    /// Places where it is asked because a packet came from there.
    asked_back: Bucket,
    /// Whether datagrams marked as urgent reach the peer and come back.
    marks: Marks,
    candidates: Candidates,
    punching: Punching,
    spreads: Spreads,
    back: Return,
    /// Bytes sent when last looked at, and since when there has been traffic.
    sent_seen: u64,
    last_traffic: Time,
    /// Start of the window in which demand is counted, and the bytes sent and received before it.
    window: (Time, u64),
    /// When [`DEMAND`] was last reached.
    last_demand: Time,
    /// Where others see it, by its own word.
    seen: Option<Vec<SocketAddr>>,
    /// What happened to the link lately.
    changes: VecDeque<(Time, String)>,
}

/// How topology is set up.
pub(crate) struct Setup {
    pub(crate) own: HostLabel,
    pub(crate) discovery: bool,
    pub(crate) underlay_mtu: usize,
    /// Whether this host relays nothing between others.
    pub(crate) is_stub: bool,
    pub(crate) is_metered: bool,
    pub(crate) reach: OwnReach,
    pub(crate) entropy: [u8; 32],
}

impl Topology {
    pub(crate) fn new(setup: Setup, now: Time) -> Self {
        Topology {
            own: setup.own,
            discovery: setup.discovery,
            underlay_mtu: setup.underlay_mtu,
            marks: true,
            metered: Metered::new(setup.is_metered, now),
            rng: ChaCha20Rng::from_seed(setup.entropy),
            verification: Verification::new(setup.entropy),
            peers: BTreeMap::new(),
            linked: BTreeSet::new(),
            targets: Targets::default(),
            addresses: OwnAddresses::new(setup.reach, now),
            routing: Routing::new(setup.own, setup.is_stub, now),
            load: RelayLoad::new(),
            fingers: Fingers::default(),
            prediction: Prediction::new(now),
            port_search: PortSearch::new(now),
            costs_after: now,
            announces_costs: false,
            events: VecDeque::new(),
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes note of a peer; `meter` counts what is sent to it and received from it.
    pub(crate) fn meet(&mut self, peer: HostLabel, meter: Arc<Meter>) {
        let is_metered = self.metered.own;
        self.peers.entry(peer).or_insert_with(|| Peer {
            meter,
            link: None,
            let_go: Time::ZERO,
            told_let_go: None,
            pings: Pings::default(),
            asked_back: Bucket::new(ASKED_BACK_AT_ONCE, Time::ZERO),
            marks: Marks::default(),
            candidates: Candidates::new(is_metered),
            punching: Punching::default(),
            spreads: Spreads::default(),
            back: Return::default(),
            sent_seen: 0,
            last_traffic: Time::ZERO,
            window: (Time::ZERO, 0),
            last_demand: Time::ZERO,
            seen: None,
            changes: VecDeque::new(),
        });
    }

    /// Forgets a peer.
    pub(crate) fn remove(&mut self, peer: HostLabel) {
        if self.peers.remove(&peer).is_some_and(|peer| peer.told_let_go.is_some()) {
            self.events.push_back(Event::Announce(peer, None));
        }
        self.linked.remove(&peer);
        self.verification.remove(peer, &mut self.routing);
        self.port_search.end(peer);
        self.addresses.unsee(peer);
    }

    /// A host of the mesh has a record, or (with `None`) no longer: the addresses it announces are candidates.
    pub(crate) fn on_host(&mut self, host: HostLabel, record: Option<&HostRecord>, now: Time) {
        let is_metered = record.is_some_and(|record| record.is_metered);
        self.metered.set(host, is_metered);
        // Only hosts that relay hold the mesh together; one that does not links with some of these.
        let is_stub = record.is_some_and(|record| record.is_stub);
        self.fingers.set(host, record.is_some() && (!is_stub || (host == self.own && !is_metered)));
        self.routing.set_stub(host, is_stub);
        self.routing.set_load(host, record.map_or(0, |record| record.load));
        let Some((peer, record)) = self.peers.get_mut(&host).zip(record) else { return };
        peer.seen = Some(record.seen.clone());
        if !self.discovery {
            return;
        }
        let lists = [
            (&record.advertised.udp, Learnt::Advertised),
            (&record.addresses, Learnt::Announced),
            (&record.seen, Learnt::Seen),
        ];
        let by_udp = lists.into_iter().flat_map(|(all, learnt)| all.iter().map(move |at| (Path::udp(*at), learnt)));
        let heard = peer.candidates.hear(by_udp.chain(fallback::paths_of(record)));
        if heard == Heard::New {
            peer.begin_again(now);
        }
        if heard != Heard::Nothing {
            peer.candidates.forget_refusals();
            let link = peer.link.as_mut().filter(|link| self.metered.has_link_path(&self.routing, host, link));
            link.into_iter().for_each(|link| link.search.hurry());
        }
    }

    /// Adds a path by which a peer may be reached.
    pub(crate) fn add_candidate(&mut self, peer: HostLabel, path: Path, learnt: Learnt) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.candidates.add(path, learnt);
        }
    }

    /// A finished handshake proves that a peer is at an address.
    pub(crate) fn on_found(&mut self, peer: HostLabel, path: Path) {
        self.add_candidate(peer, path, Learnt::Worked);
        if let Some(named) = self.targets.claim(path, peer) {
            self.add_candidate(peer, Path::udp(named), Learnt::Announced);
        }
    }

    /// A session with a peer is used for sending from now on: packets under the last link have had their time.
    pub(crate) fn on_session(&mut self, peer: HostLabel) {
        self.verification.on_session(peer);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.let_go = Time::ZERO;
        }
    }

    /// Sets the addresses of this host's interfaces.
    pub(crate) fn set_local_addresses(&mut self, addresses: Vec<IpAddr>, now: Time) {
        self.addresses.set_local(addresses, now);
        self.peers.values_mut().for_each(|peer| peer.begin_again(now));
        self.events.push_back(Event::HostChanged);
    }

    /// No longer links with a peer by a name; `id_of` gives the key of a peer. Returns that peer's key.
    pub(crate) fn forget(
        &mut self,
        name: &str,
        id_of: impl Fn(HostLabel) -> Option<PeerId>,
        now: Time,
    ) -> Option<PeerId> {
        let peer = self.targets.remove(name);
        if let Some(peer) = peer {
            self.let_go(peer, "it was forgotten", false, now);
            self.port_search.end(peer);
        }
        let id = peer.and_then(id_of);
        self.targets.forget(name.to_owned(), id);
        for peer in self.peers.values_mut() {
            peer.candidates.keep_likely(|path| self.targets.named_at(*path).is_some());
        }
        id
    }

    /// The link with a peer.
    pub(crate) fn link(&self, peer: HostLabel) -> Option<&Link> {
        self.peers.get(&peer)?.link.as_ref()
    }

    /// Another host announces a link, or (with `None`) takes it back: a link with the host that it lost may be lost, too. The end of a link
    /// that only answered sends nothing any more, and would ask when the other has asked long enough.
    pub(crate) fn on_link_record(&mut self, from: HostLabel, to: HostLabel, link: Option<LinkRecord>, now: Time) {
        if link.is_none() && self.routing.link(from, to).is_some() {
            let (is_own, other) = if to == self.own { (true, from) } else { (false, to) };
            if let Some(peer) = self.peers.get_mut(&other) {
                peer.doubt(now);
                if is_own {
                    peer.on_lost_by_peer(now);
                    self.events.push_back(Event::Wake(now));
                }
            }
        }
        self.routing.hear(from, to, link.filter(|link| *link != LinkRecord::LET_GO));
    }

    /// The neighbour that datagrams for a host go to, and the route if there is one: a link is a way before routes know of it.
    pub(crate) fn next_hop(&self, to: HostLabel) -> Option<(HostLabel, Option<&Route>)> {
        match self.routing.route(to) {
            Some(route) => Some((route.via, Some(route))),
            None => self.link(to).map(|_| (to, None)),
        }
    }

    /// When frames last went to a peer.
    pub(crate) fn last_traffic(&self, peer: HostLabel) -> Time {
        self.peers.get(&peer).map_or(Time::ZERO, |peer| peer.last_traffic)
    }
}

impl Peer {
    /// When a packet was last opened that came straight from the peer.
    fn last_heard(&self) -> Time {
        self.meter.received.link_last()
    }

    /// Notes whether frames went to the peer lately: a path worth shortening, a session worth keeping.
    fn note_traffic(&mut self, now: Time) {
        let sent = self.meter.sent.bytes.load(Ordering::Relaxed);
        if sent != self.sent_seen {
            self.sent_seen = sent;
            self.last_traffic = now;
        }
        let both = sent + self.meter.received.bytes.load(Ordering::Relaxed);
        let is_reached = both.saturating_sub(self.window.1) >= DEMAND;
        if is_reached {
            self.last_demand = now;
        }
        if is_reached || now.since(self.window.0) >= DEMAND_WINDOW {
            self.window = (now, both);
        }
    }

    /// Whether enough went to the peer lately, and came from it, for a link that is paid for.
    fn has_demand(&self, now: Time) -> bool {
        self.last_demand != Time::ZERO && now.since(self.last_demand) < ON_DEMAND
    }
}

#[cfg(test)]
mod tests {
    use super::lab::*;
    use super::*;

    #[test]
    fn announced_addresses_are_candidates_and_hosts_of_a_large_mesh_are_fingers() {
        let (mut topology, ..) = topology();
        let record = |addresses| HostRecord { name: "host2".into(), addresses, ..HostRecord::default() };
        topology.on_host(PEER, Some(&record(vec![([192, 0, 2, 9], 6783).into()])), at(0));
        assert_eq!(topology.peers[&PEER].candidates.paths().count(), 2);
        assert!(topology.wants_link(PEER, at(0)), "all link with all in a small mesh");
        let others = (10..).map(|n| HostLabel([n; 6])).take(SMALL_MESH);
        others.for_each(|label| topology.meet(label, Arc::default()));
        assert!(!topology.wants_link(PEER, at(0)) && topology.can_do_without(PEER, at(0)));
        [OWN, PEER].into_iter().for_each(|label| topology.on_host(label, Some(&record(Vec::new())), at(0)));
        topology.fingers.refresh(OWN);
        assert!(topology.wants_link(PEER, at(0)));
    }

    #[test]
    fn a_link_is_a_way_before_there_are_routes_and_a_route_after() {
        let (mut topology, table, meter) = topology();
        assert!(topology.next_hop(PEER).is_none());
        topology.tend_links(true, &table, at(0));
        answer(&mut topology, &meter, 1400, at(10));
        assert!(matches!(topology.next_hop(PEER), Some((PEER, None))));
        topology.routing.recompute(at(200));
        assert!(matches!(topology.next_hop(PEER), Some((PEER, Some(_)))) && topology.routing.has_route(PEER));
        topology.remove(PEER);
        assert!(topology.link(PEER).is_none() && topology.linked.is_empty());
    }

    #[test]
    fn a_link_that_others_let_go_is_no_reason_to_doubt_and_one_that_they_lost_is() {
        let (mut topology, table, meter) = topology();
        topology.tend_links(true, &table, at(0));
        answer(&mut topology, &meter, 1400, at(10));
        let other = HostLabel([9; 6]);
        let link = LinkRecord { cost: 10, max_datagram: 1472 };
        let doubted = |topology: &Topology| topology.link(PEER).unwrap().pulse.doubted;
        for said in [Some(link), Some(LinkRecord::LET_GO), None] {
            topology.on_link_record(other, PEER, said, at(100));
            assert_eq!(
                (doubted(&topology), topology.routing.link(other, PEER).is_some()),
                (Time::ZERO, said == Some(link))
            );
        }
        topology.on_link_record(other, PEER, Some(link), at(200));
        topology.on_link_record(other, PEER, None, at(300));
        assert_eq!(doubted(&topology), at(300));
    }

    #[test]
    fn a_silent_link_that_its_other_end_lost_is_lost_and_one_just_heard_of_is_asked() {
        let (mut topology, table, meter) = topology();
        topology.tend_links(true, &table, at(0));
        answer(&mut topology, &meter, 1400, at(10));
        let link = LinkRecord { cost: 10, max_datagram: 1472 };
        for (now, is_lost) in [(at(100), false), (at(400), true)] {
            topology.on_link_record(PEER, OWN, Some(link), now);
            topology.on_link_record(PEER, OWN, None, now);
            topology.tend_links(true, &table, now);
            let doubted = topology.link(PEER).map(|link| link.pulse.doubted);
            assert_eq!(doubted, (!is_lost).then_some(now));
        }
    }
}
