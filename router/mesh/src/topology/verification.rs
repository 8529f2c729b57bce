//! Whether routes over other hosts carry what is sent along them.
//!
//! A relay whose links answer may still drop what it is to pass on, by a fault or on purpose. Hosts between which frames go over others therefore
//! tell each other once a second what came (see `tallies`). If nothing comes back they do so by other neighbours, too, until one leads there; a neighbour
//! that does not is avoided for this one host. Other hosts are not told: an accusation proves nothing.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use weft_crypto::{HostLabel, Time};

use super::routes::Route;
use super::routing::Routing;
use super::tallies::{Carried, RouteCheck, patience};
use super::{Event, Peer, SessionTable, Topology};
use crate::wire::{Control, Step, Tally};

/// How often a host is asked that frames go to over others, and where bytes are paid for.
const PERIOD: Duration = Duration::from_secs(1);
const METERED_PERIOD: Duration = Duration::from_secs(30);
/// How long after the last frame.
const IN_USE: Duration = Duration::from_secs(5);
/// The stream of its random numbers.
const STREAM: u64 = 1;
/// How often a host is asked without frames, for it tries a path that is paid for.
const DOUBTED: Duration = Duration::from_secs(30);

/// What is found out about routes over other hosts.
pub(crate) struct Verification {
    rng: ChaCha20Rng,
    checks: BTreeMap<HostLabel, RouteCheck>,
}

impl Verification {
    /// Makes one with random numbers of its own stream under a seed that others use, too.
    pub(super) fn new(entropy: [u8; 32]) -> Verification {
        let mut rng = ChaCha20Rng::from_seed(entropy);
        rng.set_stream(STREAM);
        Verification { rng, checks: BTreeMap::new() }
    }

    fn check(&mut self, to: HostLabel, now: Time) -> &mut RouteCheck {
        self.checks.entry(to).or_insert_with(|| RouteCheck::new(self.rng.random(), now))
    }

    /// Forgets a peer.
    pub(super) fn remove(&mut self, peer: HostLabel, routing: &mut Routing) {
        self.checks.remove(&peer);
        routing.unwatch(peer);
    }

    /// A peer asks for a path that is paid for: it may be that nothing of it comes along the route.
    pub(super) fn suspect(&mut self, peer: HostLabel, routing: &Routing, now: Time) {
        if routing.has_route(peer) && !routing.is_metered(peer) {
            let check = self.check(peer, now);
            if now.since(check.doubted) >= DOUBTED {
                (check.doubted, check.used) = (now, now);
            }
        }
    }

    /// There is a session with a peer.
    pub(super) fn on_session(&mut self, peer: HostLabel) {
        if let Some(check) = self.checks.get_mut(&peer) {
            check.on_session();
        }
    }

    /// By which neighbour the next handshake packet for a host goes, if not by the route's.
    pub(crate) fn handshake_by(
        &mut self,
        step: Step,
        to: HostLabel,
        routing: &mut Routing,
        now: Time,
    ) -> Option<HostLabel> {
        let via = routing.route(to).map(|route| route.via).filter(|via| *via != to)?;
        let check = self.check(to, now);
        // Most handshakes come to a session by the route.
        routing.watch(to, check.turns.have_begun());
        let by = check.turns.next(step, via, routing.ways(to));
        if by.is_some() {
            // A session that comes of it is looked at as one in use.
            check.used = now;
        }
        by
    }
}

/// Asks the hosts that frames go to over others; with `all` it is looked which these are. Returns whether nothing is asked.
pub(super) fn tend(topology: &mut Topology, all: bool, sessions: &impl SessionTable, now: Time) -> bool {
    let Topology { verification, routing, metered, peers, events, .. } = topology;
    if all {
        let is_relayed = |to| routing.route(to).is_some_and(|route| route.via != to);
        for (to, _) in peers.iter().filter(|(_, peer)| peer.is_used(now)) {
            // A direct link may be used for want of other ways.
            if is_relayed(*to) || verification.checks.contains_key(to) {
                verification.check(*to, now).used = now;
            }
        }
        let is_over = |(to, check): (&HostLabel, &RouteCheck)| check.is_over(now).then_some(*to);
        let over: Vec<HostLabel> = verification.checks.iter().filter_map(is_over).collect();
        over.into_iter().for_each(|to| verification.remove(to, routing));
    }
    let mut is_nothing_asked = true;
    for (to, check) in &mut verification.checks {
        let is_used = now.since(check.used) < IN_USE;
        // An end that only answers looks whether what it avoids carries again.
        let is_due = is_used || (check.avoided.is_any() && now.since(check.asked_for) < IN_USE);
        let is_relayed = |route: &Route| route.via != *to || check.avoided.is_any();
        let route = routing.route(*to).copied().filter(is_relayed);
        let Some((peer, route)) = peers.get(to).zip(route).filter(|_| is_due) else {
            routing.set_blocked(*to, false);
            continue;
        };
        let patience = patience(route.cost);
        check.note_heard(peer.meter.received.bytes.load(Ordering::Relaxed), now);
        let carries_not = check.avoided.contains(route.via) || check.is_silent(route.via, patience, now);
        routing.set_blocked(*to, is_used && (carries_not || route.via == *to));
        if sessions.current(*to).is_none() {
            continue;
        }
        if check.is_doubtful(route.via, patience, now) {
            routing.watch(*to, true);
        }
        let period = if metered.has_route(routing, *to) { METERED_PERIOD } else { PERIOD };
        for by in check.due(route.via, routing.ways(*to), patience, is_used.then_some(period), now) {
            events.push_back(said(*to, by, check.tally(by, true, carried(peer), now)));
        }
        is_nothing_asked &= !check.is_asking(patience, now);
    }
    is_nothing_asked
}

/// Takes a tally of a peer: the way there may have to avoid a neighbour, and the peer may want one.
pub(crate) fn on_tally(topology: &mut Topology, from: HostLabel, tally: &Tally, now: Time) {
    let Topology { verification, routing, metered, peers, events, .. } = topology;
    let (Some(peer), Some(route)) = (peers.get(&from), routing.route(from).copied()) else { return };
    let check = verification.check(from, now);
    let patience = patience(route.cost);
    if check.on_tally(route.via, tally, patience, now)
        && route.via != from
        && let Some(length) = check.avoid(route.via, now)
    {
        routing.set_avoided(from, route.via, true);
        events.push_back(Event::Avoided { to: from, via: route.via, length });
    }
    if check.is_doubtful(route.via, patience, now) {
        routing.watch(from, true);
    }
    for via in check.take_back(routing.ways(from), now) {
        routing.set_avoided(from, via, false);
    }
    if tally.asks {
        check.asked_for = now;
        let ways = [route.via].into_iter().chain(routing.ways(from).iter().copied());
        let via = ways.into_iter().find(|via| !check.avoided.contains(*via)).unwrap_or(route.via);
        let is_metered = metered.has_route(routing, from);
        for by in check.answering(via, routing.ways(from), patience, is_metered, now) {
            // An answer that others join, for nothing is heard of those before, asks whether it came.
            let asks = by != via;
            events.push_back(said(from, by, check.tally(by, asks, carried(peer), now)));
        }
    }
}

fn said(peer: HostLabel, by: HostLabel, tally: Tally) -> Event {
    Event::By { peer, by, control: Control::Tally(tally) }
}

fn carried(Peer { meter, .. }: &Peer) -> Carried {
    let received = meter.received.bytes.load(Ordering::Relaxed);
    let control = meter.received.control.load(Ordering::Relaxed);
    Carried { sent: meter.sent.bytes.load(Ordering::Relaxed), received: received.saturating_sub(control) }
}

impl Peer {
    /// Whether frames went to it lately.
    fn is_used(&self, now: Time) -> bool {
        self.last_traffic != Time::ZERO && now.since(self.last_traffic) < IN_USE
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datapath::snapshot::Meter;
    use crate::records::LinkRecord;
    use crate::topology::lab::*;

    const CHEAP: HostLabel = HostLabel([8; 6]);
    const DEAR: HostLabel = HostLabel([9; 6]);

    /// A host to which two others lead, and frames go all the time.
    struct Case {
        topology: Topology,
        table: Table,
        meter: Arc<Meter>,
    }

    impl Case {
        fn new() -> Case {
            let mut topology = lone();
            let meter = Arc::<Meter>::default();
            topology.meet(PEER, meter.clone());
            for (relay, cost) in [(CHEAP, 10), (DEAR, 15)] {
                let link = Some(LinkRecord { cost, max_datagram: 1472 });
                topology.routing.set_own(relay, link);
                for (from, to) in [(relay, OWN), (relay, PEER), (PEER, relay)] {
                    topology.routing.hear(from, to, link);
                }
            }
            topology.routing.recompute(at(0));
            Case { topology, table: Table([(PEER, 7)].into()), meter }
        }

        /// Passes time; the peer answers each tally by a neighbour that `carries`, by some way. Returns what is said of avoided neighbours, and when.
        fn pass(&mut self, carries: impl Fn(HostLabel) -> bool, millis: std::ops::Range<u64>) -> Vec<(u64, HostLabel)> {
            let (mut avoided, mut said, mut came) = (Vec::new(), millis.start as u32, (0u32, 0u64));
            for now in millis.step_by(50) {
                self.meter.sent.bytes.fetch_add(150, Ordering::Relaxed);
                self.topology.tend_links(true, &self.table, at(now));
                for event in events(&mut self.topology) {
                    match event {
                        Event::By { peer: PEER, by, control: Control::Tally(tally) } if carries(by) => {
                            came = (tally.number, came.1 << u64::from(tally.number - came.0).min(63) | 1);
                            said += 1;
                            let before = (came.1 >> 1) as u32;
                            // Frames that went by the same way count as come.
                            let received = self.meter.sent.bytes.load(Ordering::Relaxed);
                            let answer = Tally { number: said, latest: came.0, before, received, asks: false };
                            on_tally(&mut self.topology, PEER, &answer, at(now));
                        }
                        Event::Avoided { to: PEER, via, .. } => avoided.push((now, via)),
                        _ => {}
                    }
                }
                self.topology.routing.recompute(at(now));
            }
            avoided
        }

        fn via(&self) -> HostLabel {
            self.topology.routing.route(PEER).unwrap().via
        }
    }

    #[test]
    fn a_relay_that_drops_what_it_should_pass_on_is_avoided_for_the_host_alone() {
        let mut case = Case::new();
        assert_eq!((case.pass(|_| true, 1000..20_000), case.via()), (vec![], CHEAP));
        let avoided = case.pass(|by| by != CHEAP, 20_000..30_000);
        assert!(matches!(avoided[..], [(20_000..23_000, CHEAP)]), "{avoided:?}");
        assert_eq!((case.via(), case.topology.routing.route(CHEAP).unwrap().via), (DEAR, CHEAP));
        assert_eq!(case.pass(|by| by != CHEAP, 30_000..70_000), [], "it goes another way");
        assert_eq!(case.topology.routing.avoided(PEER).collect::<Vec<_>>(), [CHEAP]);
        case.pass(|_| true, 70_000..100_000);
        assert_eq!((case.via(), case.topology.routing.avoided(PEER).count()), (CHEAP, 0));
    }

    #[test]
    fn a_host_that_no_way_leads_to_is_blocked_and_no_neighbour_is_to_blame() {
        let mut case = Case::new();
        assert_eq!(case.pass(|_| false, 1000..10_000), []);
        assert!(case.topology.routing.is_blocked(PEER));
        case.pass(|_| true, 10_000..12_000);
        assert!(!case.topology.routing.is_blocked(PEER));
    }

    #[test]
    fn a_tally_that_asks_is_answered_and_a_strangers_is_not() {
        let mut case = Case::new();
        let question = Tally { number: 5, latest: 0, before: 0, received: 0, asks: true };
        on_tally(&mut case.topology, PEER, &question, at(1000));
        let said = events(&mut case.topology);
        let answers = |event: &Event| {
            matches!(
                event,
                Event::By { peer: PEER, by: CHEAP, control: Control::Tally(Tally { latest: 5, asks: false, .. }) }
            )
        };
        assert!(said.len() == 1 && said.iter().all(answers), "{said:?}");
        on_tally(&mut case.topology, HostLabel([77; 6]), &question, at(2000));
        assert!(events(&mut case.topology).is_empty());
        (6..1000).for_each(|number| on_tally(&mut case.topology, PEER, &Tally { number, ..question }, at(2000)));
        assert!(events(&mut case.topology).len() <= 50, "no more than a few");
    }
}
