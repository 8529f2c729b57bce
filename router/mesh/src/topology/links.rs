//! Direct paths to peers: finding them, moving with them, and announcing what they cost.
//!
//! A link is up once a ping to its address was answered.

use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use weft_crypto::{HostLabel, Time};

use super::candidates::Learnt;
use super::link::IN_USE;
use super::liveness::{ASK_AGAIN, Probe, to_doubt};
use super::pulse::{METERED_HEARTBEAT, QUIET, longest_silence};
use super::punching::ROUTE_MAY_COME;
use super::racing::straight;
use super::routes::announced_cost;
use super::size::Load;
use super::trial::delay;
use super::{Event, ON_DEMAND, Peer, SMALL_MESH, STRAGGLING, SessionTable, Topology, fallback, metered};
use crate::api::{self, Usage};
use crate::path::Path;
use crate::records::{LinkRecord, METERED_COST};
use crate::wire::{Control, Lane};

/// Changed costs are announced together, so that they share a batch of records, and the more seldom the more
/// hosts there are to hear of them: what a mesh says about costs in a second is bounded, however large it is.
const COST_INTERVAL: Duration = Duration::from_millis(500);
const COST_INTERVAL_PER_HOST: Duration = Duration::from_millis(50);
/// How often a move of one link is reported.
const REPORT_MOVED: Duration = Duration::from_secs(60);
/// How long all are told of a link that was let go, rather than lost.
const TOLD_LET_GO: Duration = Duration::from_secs(60);
/// Tries of addresses in one tick.
const TRIES_PER_TICK: usize = 16;
/// Places that a peer is asked back at, a second and at once.
const ASKED_BACK_A_SECOND: u64 = 1;
pub(super) const ASKED_BACK_AT_ONCE: u64 = 8;

impl Peer {
    /// Whether a packet that comes straight from it may have been sent over a link that was let go a moment ago.
    pub(super) fn was_let_go(&self, now: Time) -> bool {
        self.let_go != Time::ZERO && now.since(self.let_go) < STRAGGLING
    }

    /// Whether it is to be asked where a packet of it came from, unless that was done less than `within` ago; counts as done. Where the NATs
    /// of both hosts map each destination to another port, each answer comes from somewhere new: without a limit there would be no end.
    pub(super) fn may_ask_back(&mut self, from: Path, within: Duration, now: Time) -> bool {
        !self.pings.has_asked(from, within, now)
            && self.asked_back.take(1, ASKED_BACK_A_SECOND, ASKED_BACK_AT_ONCE, now)
    }
}

impl Topology {
    /// Looks after every link, and with `all` after every peer that should have one. Returns whether that can wait for longer the next time:
    /// nothing is used, tried or asked.
    pub(crate) fn tend_links(&mut self, all: bool, sessions: &impl SessionTable, now: Time) -> bool {
        if self.load.tend(now) {
            self.events.push_back(Event::HostChanged);
        }
        self.announces_costs = now >= self.costs_after;
        if self.announces_costs {
            self.costs_after = now + COST_INTERVAL + COST_INTERVAL_PER_HOST * (self.peers.len() + 1) as u32;
        }
        if all {
            self.fingers.refresh(self.own);
            let is_free = |label: &&HostLabel| !self.metered.has_link(&self.routing, **label, self.link(**label));
            let free = self.linked.iter().filter(is_free);
            let heard = free.filter_map(|label| Some((self.peers.get(label)?.heard_over_link()?, *label)));
            let silent = to_doubt(&heard.collect::<Vec<_>>(), now);
            if let Some(peer) = silent.and_then(|silent| self.peers.get_mut(&silent)) {
                peer.doubt(now);
            }
        }
        let labels: Vec<HostLabel> =
            if all { self.peers.keys().copied().collect() } else { self.linked.iter().copied().collect() };
        let (mut tries, mut are_at_rest) = (TRIES_PER_TICK, true);
        for label in labels {
            let Some(peer) = self.peers.get_mut(&label) else { continue };
            peer.note_traffic(now);
            // All have heard by now that it was not lost.
            if peer.told_let_go.take_if(|told| now.since(*told) >= TOLD_LET_GO).is_some() {
                self.events.push_back(Event::Announce(label, None));
            }
            let current = sessions.current(label);
            let may_try = peer.link.is_none() && self.metered.may_try_any(&self.routing, label, peer, now);
            if peer.link.is_some() {
                are_at_rest &= self.tend_link(label, current, now);
            } else if may_try && self.wants_link(label, now) {
                are_at_rest = false;
                self.try_candidates(label, current, &mut tries, now);
            } else if let Some(peer) = self.peers.get_mut(&label) {
                peer.punching.rest();
            }
        }
        self.events.extend(self.prediction.spread(&mut self.peers, &self.addresses, now));
        self.events.extend(self.port_search.search(sessions, &mut self.rng, now));
        super::verification::tend(self, all, sessions, now) && are_at_rest
    }

    /// Tries addresses that the operator named and that have not answered yet.
    pub(crate) fn tend_targets(&mut self, sessions: &impl SessionTable, now: Time) {
        let is_busy = |address: SocketAddr, peer: Option<HostLabel>| {
            let is_own = self.addresses.local().contains(&address);
            is_own
                || peer.is_some_and(|peer| self.peers.contains_key(&peer))
                || sessions.is_trying(Path::udp(address), now)
        };
        for (at, tries) in self.targets.due(is_busy, self.metered.own, now) {
            for name in self.targets.fallen_silent(at, tries, self.addresses.local()) {
                self.events.push_back(Event::Notice(api::Event::TargetSilent { name, address: at }));
            }
            // UDP first, and once more; then TCP in turn with it.
            self.events.push_back(Event::Handshake { peer: None, at: Path::udp(at), tries });
            let is_used =
                |path: &Path| self.linked.iter().any(|peer| self.link(*peer).is_some_and(|link| link.path == *path));
            let by_tcp: Vec<Path> =
                self.targets.tcp_paths(at).filter(|path| tries % 2 == 1 && !is_used(path)).collect();
            let handshake = |at| Event::Handshake { peer: None, at, tries: tries / 2 };
            self.events.extend(by_tcp.into_iter().map(handshake));
        }
    }

    /// Returns whether the link is at rest.
    fn tend_link(&mut self, label: HostLabel, current: Option<u32>, now: Time) -> bool {
        let Some(peer) = self.peers.get_mut(&label) else { return true };
        if let Some(reason) = peer.reason_to_give_up(current, now) {
            let silent = peer.link.as_ref().map(|link| link.path);
            self.link_down(label, reason, now);
            self.events.extend(silent.and_then(|path| Event::connection(path, Usage::Dead)));
            // What was lost with this link may be lost with others.
            self.peers.values_mut().for_each(|peer| peer.doubt(now));
            return false;
        }
        let Probe { ping, is_silent } = peer.probe(self.marks, now);
        if is_silent {
            self.events.push_back(Event::Wake(now + ASK_AGAIN));
        }
        let is_metered_by = self.routing.is_metered_by(label);
        let [better, unsure] = peer.better_paths(self.addresses.local(), &self.metered, is_metered_by, now);
        let mut tries = !(better.is_empty() && unsure.is_empty());
        if let Some(index) = current {
            self.ask_and_tell(label, index, ping, now);
            better.into_iter().for_each(|path| self.ping(label, index, path, 0, now));
            let question = Control::Trial { id: self.rng.random(), is_answer: false };
            self.events.extend(unsure.into_iter().map(|to| straight(label, index, to, question.clone())));
            let Some(peer) = self.peers.get_mut(&label) else { return true };
            let (trials, beside) = peer.due_trials(self.addresses.local(), &self.metered, &mut self.rng, now);
            tries |= !trials.is_empty() || beside.is_some();
            beside.into_iter().for_each(|path| self.ping(label, index, path, 0, now));
            self.events.extend(trials.into_iter().map(|(to, control)| straight(label, index, to, control)));
        }
        self.announce_link(label, now);
        self.offer_idle(label, now);
        let resting = self.peers.get(&label).filter(|peer| !tries && peer.is_at_rest(now));
        if let Some(peer) = resting {
            peer.meter.sent.rest();
        }
        resting.is_some()
    }

    /// Pings along a path, probes the sizes that are due on the link, and says the heartbeat that is.
    fn ask_and_tell(&mut self, label: HostLabel, index: u32, ping: Option<Path>, now: Time) {
        if let Some(path) = ping {
            self.ping(label, index, path, 0, now);
        }
        let promised = match self.metered.has_link(&self.routing, label, self.link(label)) {
            true => METERED_HEARTBEAT,
            false => longest_silence(self.linked.len()),
        };
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let Some(path) = peer.link.as_ref().map(|link| link.path) else { return };
        let beat = peer.beat(promised, || self.rng.random_range(0.75..1.0), now).map(|to| Event::Straight {
            peer: label,
            index,
            to,
            lane: Lane::Main,
            control: Control::Heartbeat { within: promised.as_millis() as u16 },
            size: 0,
        });
        let (sizes, shrinks) = peer.tend_size(self.underlay_mtu, now);
        sizes.into_iter().for_each(|size| self.ping(label, index, path, size, now));
        if shrinks {
            self.routing.touch();
        }
        self.events.extend(beat);
    }

    /// Offers the peer to do without a link that was opened for traffic that has ended, in a mesh too large for all to
    /// be linked to all, or without a metered link that the mesh does not keep. The peer may have been told of this host, or have frames for it, and keep the link.
    fn offer_idle(&mut self, label: HostLabel, now: Time) {
        let Some(link) = self.peers.get_mut(&label).and_then(|peer| peer.link.as_mut()) else { return };
        if now.since(link.last_used.max(link.needed_at)) <= ON_DEMAND {
            return;
        }
        link.needed_at = now;
        let is_path_metered = !self.metered.is_between(label) && self.metered.has_link_path(&self.routing, label, link);
        // Which links it keeps is the choice of a host that relays nothing; which go by metered paths, both ends know.
        let is_stubs_choice = self.routing.is_stub(label) && !self.routing.is_stub(self.own);
        let is_peers_choice = !is_path_metered && (self.fingers.is_finger_of(label) || is_stubs_choice);
        if self.can_do_without(label, now) && !is_peers_choice {
            self.events.push_back(Event::Message(label, Control::Needless));
        }
    }

    /// The peer does without the link.
    pub(crate) fn on_needless(&mut self, label: HostLabel, now: Time) {
        // Others' frames may go over it, too.
        let is_idle = self.link(label).is_some_and(|link| now.since(link.last_used) > ON_DEMAND - IN_USE);
        if is_idle && self.can_do_without(label, now) {
            self.events.push_back(Event::Message(label, Control::Bye));
            self.let_go(label, "no longer needed", true, now);
        }
    }

    /// Ends a link because a host wants it so, and not because it is lost; if it `is_mutual`, both ends go on without.
    pub(crate) fn let_go(&mut self, label: HostLabel, reason: &'static str, is_mutual: bool, now: Time) {
        let Some(peer) = self.peers.get_mut(&label).filter(|peer| peer.link.is_some()) else { return };
        peer.let_go = now;
        self.link_down(label, reason, now);
        if is_mutual && let Some(peer) = self.peers.get_mut(&label) {
            // Others need not fear for their links with either end.
            peer.told_let_go = Some(now);
            self.events.push_back(Event::Announce(label, Some(LinkRecord::LET_GO)));
        }
    }

    /// Announces what the link costs, when that has changed enough.
    pub(super) fn announce_link(&mut self, label: HostLabel, now: Time) {
        let Some(link) = self.peers.get_mut(&label).and_then(|peer| peer.link.as_mut()) else { return };
        let Some(rtt) = link.least_rtt() else { return };
        let is_idle = link.load(now) == Load::Idle;
        let before = link.announced.map(|(cost, _)| cost % METERED_COST);
        let surcharge = if self.metered.has_path(&link.path) { METERED_COST } else { 0 };
        let cost = surcharge + announced_cost(rtt, link.loss, is_idle, before);
        let max_datagram = link.size.max_datagram.min(usize::from(u16::MAX)) as u16;
        let is_news = link.announced != Some((cost, max_datagram));
        let is_known = |(before, announced)| announced == max_datagram && (before < METERED_COST) == (surcharge == 0);
        let may_wait = link.announced.is_some_and(is_known);
        if !is_news || (may_wait && !self.announces_costs) {
            return;
        }
        link.announced = Some((cost, max_datagram));
        let record = LinkRecord { cost, max_datagram };
        self.routing.set_own(label, Some(record));
        self.events.push_back(Event::Announce(label, Some(record)));
    }

    /// Whether this host should try to have a direct link with a peer.
    pub(super) fn wants_link(&self, label: HostLabel, now: Time) -> bool {
        let Some(peer) = self.peers.get(&label).filter(|_| !self.targets.is_forgotten(label)) else { return false };
        let is_named = |peer: &Peer| peer.is_at_any(&self.targets);
        if self.metered.is_between(label) {
            let rank = |label: &HostLabel| (!self.peers.get(label).is_some_and(is_named), *label);
            let relays = || self.linked.iter().filter(|label| !self.routing.is_stub(**label));
            let is_first = || relays().min_by_key(|label| rank(label)).is_none_or(|first| *first == label);
            // One link with a host that relays is kept at rest, which the metered host chooses; all, if it has none.
            let is_kept = if self.metered.own { is_first() } else { is_named(peer) };
            return is_kept || (self.discovery && peer.has_demand(now));
        }
        let has_traffic = peer.last_traffic != Time::ZERO && now.since(peer.last_traffic) < ON_DEMAND;
        let is_wanted = is_named(peer)
            || (self.discovery && (self.peers.len() <= SMALL_MESH || has_traffic || self.fingers.contains(label)));
        match self.metered.has_link(&self.routing, label, peer.link.as_ref()) {
            true => self.metered.keeps(&self.routing, label, is_wanted && peer.has_demand(now)),
            false => is_wanted,
        }
    }

    /// Whether this host, for its part, needs no direct link with a peer.
    pub(super) fn can_do_without(&self, label: HostLabel, now: Time) -> bool {
        let is_metered = self.metered.has_route(&self.routing, label)
            || self.metered.has_link(&self.routing, label, self.link(label));
        (is_metered || self.peers.len() > SMALL_MESH) && !self.wants_link(label, now)
    }

    fn try_candidates(&mut self, label: HostLabel, current: Option<u32>, tries: &mut usize, now: Time) {
        // Along a route two hosts can agree on who asks first.
        let has_route = self.routing.has_route(label);
        if has_route {
            self.punch(label, now);
        }
        let jitter = self.rng.random();
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let may_try = |path: &Path| self.metered.may_try_path(&self.routing, label, peer, path, now);
        let may_try_all = peer.candidates.paths().all(may_try);
        if has_route && !self.metered.own && may_try_all {
            self.prediction.note_due(label, peer, &self.addresses, now);
        }
        let waited = peer.punching.waited(now);
        let is_left_to_rounds = has_route && peer.punching.is_under_way(waited, now);
        let is_punched =
            |path: &Path| (is_left_to_rounds || waited < ROUTE_MAY_COME) && !self.targets.has_address(&path.remote);
        let is_too_early = |path: &Path| fallback::is_too_early(path, waited, has_route);
        let may_pay =
            self.metered.may_try(&self.routing, label, peer, now) && waited >= metered::patience(self.own, label);
        let is_unwanted = |path: &Path, is_likely: bool, is_refused: bool| {
            let is_metered = is_refused || self.metered.has_path(path);
            (is_metered && !may_pay) || (!is_likely && is_too_early(path))
        };
        let own = self.addresses.local();
        for due in peer.candidates.due(own, is_unwanted, is_punched, tries, jitter, now) {
            // With a session a ping is enough; but the peer may have lost its side of it.
            if let Some(index) = current {
                self.ping(label, index, due.path, 0, now);
            }
            let is_doubtful = due.failures % 3 == 2 || (due.is_likely && due.failures > 0);
            if current.is_none() || is_doubtful {
                let handshake = Event::Handshake { peer: Some(label), at: due.path, tries: due.failures };
                self.events.push_back(handshake);
            }
        }
    }

    pub(super) fn link_up(&mut self, label: HostLabel, path: Path, now: Time) {
        self.linked.insert(label);
        self.on_found(label, path);
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.told_let_go = None;
        peer.candidates.reset(path, now);
        peer.candidates.on_answer(path);
        peer.punching.reset(now);
        peer.spreads.reset(now);
        self.port_search.end(label);
        peer.note(format!("up by {path}"), now);
        self.events.extend(Event::connection(path, Usage::InUse));
        let likely = peer.candidates.likely();
        self.events.push_back(Event::LinkUp(label, path.remote));
        self.events.push_back(Event::Up(label, likely));
    }

    /// Ends a link. Routes over it take their precomputed alternative at once; the rest is computed anew.
    pub(crate) fn link_down(&mut self, label: HostLabel, reason: &'static str, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let Some(link) = peer.link.take() else { return };
        self.linked.remove(&label);
        peer.note(format!("ended over {}: {reason}", link.path), now);
        peer.pings.clear();
        peer.candidates.reset(link.path, now);
        peer.back.on_loss(link.path, &self.metered, now);
        self.events.extend(Event::connection(link.path, Usage::Idle));
        self.addresses.unsee(label);
        self.routing.set_own(label, None);
        let affected = self.routing.fail_over(label);
        self.events.push_back(Event::Announce(label, None));
        self.events.extend(affected.into_iter().chain([label]).map(Event::Refresh));
        self.events.push_back(Event::Down(label));
        self.events.push_back(Event::LinkDown(label, reason));
    }

    /// Takes note of an authenticated packet that came straight from a peer, under the session for sending if `is_current`.
    pub(crate) fn on_heard_from(&mut self, label: HostLabel, index: u32, is_current: bool, from: Path, now: Time) {
        let own = self.own;
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let Some(link) = &mut peer.link else {
            let is_late = peer.was_let_go(now) && self.can_do_without(label, now);
            let Some(peer) = self.peers.get_mut(&label).filter(|_| is_current && !is_late) else { return };
            if peer.may_ask_back(from, Duration::MAX, now) {
                self.ping(label, index, from, 0, now);
            }
            return;
        };
        if link.path.may_be(from) {
            link.last_from_remote = now;
            if link.path != from {
                // This host has more addresses than before, or one again.
                link.path = from;
                self.events.push_back(Event::Refresh(label));
            }
            return;
        }
        // A packet may come from anywhere: the link moves once the peer has answered there.
        let may_move = self.metered.may_move(&self.routing, (own, label), link, &from, now);
        if is_current && may_move && peer.may_ask_back(from, QUIET, now) {
            self.ping(label, index, from, 0, now);
        }
    }

    /// Has a link go on over another path.
    pub(super) fn move_link(&mut self, label: HostLabel, to: Path, cause: &'static str, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let Some(link) = &mut peer.link else { return };
        // One port may have both.
        let connections = [Event::connection(link.path, Usage::Idle), Event::connection(to, Usage::InUse)];
        if self.metered.compare(&to, &link.path).is_gt() {
            peer.back.on_return(to, now);
        }
        let what = format!("moved from {} to {to}: {cause}", link.path);
        let took = link.recent_rtt(now).map(|rtt| delay(rtt, link.loss));
        let trials = [(link.path, took), (to, None)];
        link.move_to(to, now);
        let is_reported = link.reported_moved != Time::ZERO && now.since(link.reported_moved) < REPORT_MOVED;
        if !is_reported {
            link.reported_moved = now;
            self.events.push_back(Event::LinkMoved(label, to.remote));
        }
        peer.candidates.add(to, Learnt::Worked);
        peer.candidates.on_answer(to);
        for (path, took) in trials {
            peer.candidates.trial(path).into_iter().for_each(|trial| trial.start_over(took, now));
        }
        peer.note(what, now);
        self.routing.touch();
        self.events.extend(connections.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::topology::SMALL_MESH;
    use crate::topology::lab::*;

    #[test]
    fn a_candidate_that_answers_becomes_a_link_and_one_that_falls_silent_is_given_up() {
        let (mut topology, table, meter) = topology();
        topology.tend_links(true, &table, at(0));
        let (pings, others) = answer(&mut topology, &meter, 1400, at(10));
        assert_eq!(pings, 1);
        assert!(others.is_empty(), "{others:?}");
        let more = events(&mut topology);
        let is_up = |event: &Event| matches!(event, Event::Up(PEER, likely) if *likely == [remote().remote]);
        assert!(more.iter().any(is_up), "{more:?}");
        assert!(more.iter().any(|event| matches!(event, Event::Announce(PEER, Some(_)))), "{more:?}");
        assert!(more.iter().any(|event| matches!(event, Event::HostChanged)));
        let mut now = 10;
        let down = loop {
            now += 50;
            topology.tend_links(false, &table, at(now));
            if events(&mut topology).iter().any(|event| matches!(event, Event::LinkDown(PEER, "nothing comes back"))) {
                break now;
            }
            assert!(now < 5000, "the link stays up");
        };
        assert!((250..1000).contains(&down), "{down}");
        assert!(topology.linked.is_empty() && topology.routing.routes().is_empty());
    }

    #[test]
    fn a_link_moves_to_where_the_peer_is_heard_only_after_the_old_address_fell_silent() {
        let (mut topology, table, meter) = topology();
        topology.tend_links(true, &table, at(0));
        answer(&mut topology, &meter, 1400, at(10));
        let elsewhere = Path::udp(([192, 0, 2, 3], 6783).into());
        events(&mut topology);
        topology.on_heard_from(PEER, 7, true, elsewhere, at(500));
        topology.on_heard_from(PEER, 7, false, elsewhere, at(1300));
        assert!(events(&mut topology).is_empty(), "the old address is not silent yet, or the session is an old one");
        topology.on_heard_from(PEER, 7, true, elsewhere, at(1300));
        assert_eq!(topology.link(PEER).map(|link| link.path), Some(remote()), "a packet may be replayed from anywhere");
        let asked = events(&mut topology);
        let [Event::Straight { control: Control::Ping { id, .. }, to, .. }] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(*to, elsewhere);
        topology.on_pong(PEER, Path::udp(([192, 0, 2, 4], 6783).into()), *id, OWN_ADDRESS, 0, at(1310));
        assert_eq!(
            topology.link(PEER).map(|link| link.path),
            Some(remote()),
            "only an answer from where it was asked counts"
        );
        topology.on_heard_from(PEER, 7, true, elsewhere, at(1600));
        answer(&mut topology, &meter, 1400, at(1610));
        assert_eq!(topology.link(PEER).map(|link| link.path), Some(elsewhere));
    }

    #[test]
    fn in_a_large_mesh_an_idle_link_is_offered_and_let_go_when_the_peer_agrees() {
        let (mut topology, table, meter) = topology();
        topology.tend_links(true, &table, at(0));
        answer(&mut topology, &meter, 1400, at(10));
        let others = (10..).map(|n| HostLabel([n; 6])).take(SMALL_MESH);
        others.for_each(|label| topology.meet(label, Arc::default()));
        let mut is_offered = false;
        for now in (50..60_000).step_by(50) {
            meter.received.on_link(1, at(now));
            topology.tend_links(false, &table, at(now));
            let offers = events(&mut topology);
            is_offered |= offers.iter().any(|event| matches!(event, Event::Message(PEER, Control::Needless)));
        }
        assert!(is_offered);
        topology.on_needless(PEER, at(60_000));
        assert!(events(&mut topology).iter().any(|event| matches!(event, Event::Message(PEER, Control::Bye))));
        assert!(topology.linked.is_empty());
    }

    #[test]
    fn a_peer_that_the_operator_forgot_is_not_answered() {
        let (mut topology, ..) = topology();
        let id = |_| Some(weft_crypto::Identity::from_seed(&[9; 32]).peer_id());
        let forgotten = id(PEER).map(|id| id.label()).unwrap();
        topology.targets.connect(&[api::Target { name: "host2".into(), addresses: vec![remote().remote] }], at(0));
        topology.on_found(forgotten, remote());
        topology.meet(forgotten, Arc::default());
        assert_eq!(topology.forget("host2", id, at(1)), id(PEER));
        events(&mut topology);
        topology.on_ping(forgotten, 7, remote(), (1, crate::wire::Lane::Main), (OWN_ADDRESS, 100), at(2));
        assert_eq!(events(&mut topology).len(), 0);
    }
}
