//! Hosts and paths whose traffic is paid for by the byte.
//!
//! A metered host says so in its record, and relays nothing. A link over a metered path says so in its cost: frames go over it where there is no other
//! way. At rest a mesh keeps as few such links as hold it together (see `spanning`); another is made for frames that go over a metered link anyway.
//! An end of a path that does not know that it is metered is told when it tries it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::link::Link;
use super::routing::Routing;
use super::{Peer, Topology};
use crate::path::{MeteredPaths, Path};

/// How long after a link was wanted first metered paths are tried, at least and at most: another may answer, or another pair may have one. All pairs whose
/// only way was lost want one at the same time.
const PATIENCE: Duration = Duration::from_secs(1);
const MOST_PATIENCE: Duration = Duration::from_secs(3);

/// Which hosts are metered, and which paths of this one.
pub(crate) struct Metered {
    /// Whether this host is.
    pub(crate) own: bool,
    others: BTreeSet<HostLabel>,
    paths: MeteredPaths,
    /// When they last changed.
    paths_changed: Time,
}

impl Metered {
    pub(super) fn new(own: bool, now: Time) -> Self {
        Metered { own, others: BTreeSet::new(), paths: MeteredPaths::default(), paths_changed: now }
    }

    /// Takes note of whether another host is.
    pub(super) fn set(&mut self, host: HostLabel, is_metered: bool) {
        if is_metered {
            self.others.insert(host);
        } else {
            self.others.remove(&host);
        }
    }

    /// Sets which paths are.
    pub(crate) fn set_paths(&mut self, paths: MeteredPaths, now: Time) {
        if self.paths != paths {
            (self.paths, self.paths_changed) = (paths, now);
        }
    }

    /// Whether paths may be metered, or not, that were otherwise at a time.
    pub(super) fn changed_since(&self, time: Time) -> bool {
        self.paths_changed > time
    }

    /// Whether another host is.
    pub(crate) fn contains(&self, host: HostLabel) -> bool {
        self.others.contains(&host)
    }

    /// Whether this host or another is.
    pub(super) fn is_between(&self, host: HostLabel) -> bool {
        self.own || self.contains(host)
    }

    /// Whether a path is, by what this host knows of it.
    pub(super) fn has_path(&self, path: &Path) -> bool {
        self.paths.contains(path)
    }

    /// Whether a link with a host is: either host is, or its path, by the word of either.
    pub(crate) fn has_link(&self, routing: &Routing, host: HostLabel, link: Option<&Link>) -> bool {
        link.is_some_and(|link| self.is_between(host) || self.has_link_path(routing, host, link))
    }

    /// Whether the path of a link with a host is, by the word of either.
    pub(super) fn has_link_path(&self, routing: &Routing, host: HostLabel, link: &Link) -> bool {
        self.has_path(&link.path) || routing.is_metered_by(host)
    }

    /// Whether the way between this host and another is: either host is, or a link on the route.
    pub(crate) fn has_route(&self, routing: &Routing, host: HostLabel) -> bool {
        self.is_between(host) || routing.is_metered(host)
    }

    /// Whether a path is the better one for a link (`Greater`), or the worse one: what is not metered before what is, and then UDP before TCP,
    /// which repeats what was lost and holds back all that came after it.
    pub(super) fn compare(&self, path: &Path, than: &Path) -> Ordering {
        let worth = |path: &Path| (!self.has_path(path), path.is_udp());
        worth(path).cmp(&worth(than))
    }

    /// Whether the link of the host `own` with another may go over to a path that the other answers on, or was heard from. Of the two the lower one
    /// chooses the path, unless the other says that the link is metered: it knows what is not.
    pub(super) fn may_move(
        &self,
        routing: &Routing,
        (own, other): (HostLabel, HostLabel),
        link: &Link,
        to: &Path,
        now: Time,
    ) -> bool {
        link.may_leave(self.compare(to, &link.path), own < other && !routing.is_metered_by(other), now)
    }

    /// Whether metered paths to a peer may be tried: there is no way to it, or none that carries, or one that is metered, and enough goes there.
    pub(super) fn may_try(&self, routing: &Routing, host: HostLabel, peer: &Peer, now: Time) -> bool {
        let has_way = routing.has_route(host) && !routing.is_blocked(host);
        !has_way || (routing.is_metered(host) && peer.has_demand(now))
    }

    /// Whether a path to a peer may be tried.
    pub(super) fn may_try_path(&self, routing: &Routing, host: HostLabel, peer: &Peer, path: &Path, now: Time) -> bool {
        let is_metered = || self.has_path(path) || peer.candidates.is_refused(path, now);
        !is_metered() || self.may_try(routing, host, peer, now)
    }

    /// Whether any path to a peer may be tried, or none is known.
    pub(super) fn may_try_any(&self, routing: &Routing, host: HostLabel, peer: &Peer, now: Time) -> bool {
        let mut paths = peer.candidates.paths().peekable();
        paths.peek().is_none() || paths.any(|path| self.may_try_path(routing, host, peer, path, now))
    }

    /// Whether a ping of a peer by a path is refused, for that is metered and there is another way.
    pub(super) fn refuses(&self, routing: &Routing, host: HostLabel, peer: &Peer, from: &Path, now: Time) -> bool {
        self.has_path(from)
            && match &peer.link {
                Some(link) => self.compare(from, &link.path).is_lt(),
                None => !self.may_try(routing, host, peer, now),
            }
    }

    /// Whether a metered link with a host has to stay: all ways there are metered or do not carry, and the link holds the mesh together or `has_demand`,
    /// for enough frames go there.
    pub(super) fn keeps(&self, routing: &Routing, host: HostLabel, has_demand: bool) -> bool {
        let is_needed = has_demand || routing.is_kept(host);
        !routing.has_route(host) || routing.is_blocked(host) || (routing.is_metered(host) && is_needed)
    }
}

impl Topology {
    /// The peer refuses a link by the path of a ping.
    pub(crate) fn on_refused(&mut self, label: HostLabel, id: u32, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        // A link by that path is lost with its pings, unless something is heard by another.
        if let Some(path) = peer.pings.path_of(id) {
            peer.candidates.on_refused(path, now);
        }
    }
}

/// How long after a link between two hosts was wanted first metered paths are tried.
pub(super) fn patience(own: HostLabel, other: HostLabel) -> Duration {
    let share = u32::from(own.0[5] ^ other.0[5]);
    PATIENCE + (MOST_PATIENCE - PATIENCE) * share / u32::from(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::api::Usage;
    use crate::datapath::snapshot::Meter;
    use crate::records::{HostRecord, LinkRecord, METERED_COST};
    use crate::topology::lab::*;
    use crate::topology::{Event, Learnt, verification};
    use crate::wire::{Control, Lane, Tally};

    /// A free path to the peer, which `remote()` is not.
    fn free() -> Path {
        Path::udp(([198, 51, 100, 2], 6783).into())
    }

    fn line() -> MeteredPaths {
        MeteredPaths::new([(remote().remote.ip(), 24, true)], [])
    }

    /// What is said between the host and its peer, which answers each ping by a path that carries anything, while time passes.
    fn talk(
        topology: &mut Topology,
        table: &Table,
        meter: &Meter,
        carries: impl Fn(Path) -> bool,
        millis: std::ops::Range<u64>,
    ) -> Vec<Event> {
        let mut all = Vec::new();
        for now in millis.step_by(50) {
            topology.tend_links(true, table, at(now));
            topology.routing.recompute(at(now));
            for event in events(topology) {
                match event {
                    Event::Straight { control: Control::Ping { id, .. }, to, size, .. } if carries(to) => {
                        meter.received.on_link(1, at(now));
                        topology.on_pong(PEER, to, id, to.remote, size as u16, at(now + 10));
                    }
                    // The route carries.
                    Event::By { peer: PEER, control: Control::Tally(Tally { number, .. }), .. } => {
                        let received = meter.sent.bytes.load(std::sync::atomic::Ordering::Relaxed);
                        let tally = Tally { number, latest: number, before: u32::MAX, received, asks: false };
                        verification::on_tally(topology, PEER, &tally, at(now));
                    }
                    event => all.push(event),
                }
            }
        }
        all
    }

    fn path(topology: &Topology) -> Option<Path> {
        topology.link(PEER).map(|link| link.path)
    }

    fn announced(events: &[Event]) -> Vec<bool> {
        let cost = |event: &Event| match event {
            Event::Announce(PEER, Some(link)) => Some(link.is_metered()),
            _ => None,
        };
        let mut all: Vec<bool> = events.iter().filter_map(cost).collect();
        // A size that is found is told, too.
        all.dedup();
        all
    }

    fn refused(events: &[Event]) -> bool {
        events.iter().any(|event| matches!(event, Event::Message(PEER, Control::Refused { id: 1 })))
    }

    fn ping(topology: &mut Topology, from: Path, now: Time) -> Vec<Event> {
        topology.on_ping(PEER, 7, from, (1, Lane::Main), (OWN_ADDRESS, 100), now);
        events(topology)
    }

    fn has_pong(events: &[Event]) -> bool {
        events.iter().any(|event| matches!(event, Event::Straight { control: Control::Pong { .. }, .. }))
    }

    /// A route to the peer by another host, over links of such a cost.
    fn relay(topology: &mut Topology, cost: u32) {
        let (relay, link) = (HostLabel([9; 6]), LinkRecord { cost, max_datagram: 1400 });
        topology.meet(relay, Arc::default());
        topology.routing.set_own(relay, Some(link));
        for (a, b) in [(relay, OWN), (relay, PEER), (PEER, relay)] {
            topology.routing.hear(a, b, Some(link));
        }
        topology.routing.recompute(at(0));
    }

    #[test]
    fn what_hosts_say_to_each_other_is_paid_for_if_either_is_metered() {
        let [a, b] = [1, 2].map(|n| HostLabel([n; 6]));
        let mut metered = Metered::new(false, at(0));
        metered.set(a, true);
        assert!(metered.is_between(a) && !metered.is_between(b));
        metered.set(a, false);
        assert!(!metered.contains(a));
        assert!(Metered::new(true, at(0)).is_between(b) && !Metered::new(true, at(0)).contains(b));
    }

    #[test]
    fn a_path_without_price_is_better_by_tcp_than_a_paid_one_by_udp() {
        let mut metered = Metered::new(false, at(0));
        metered.set_paths(line(), at(0));
        let [paid_tcp, free_tcp] = [remote(), free()].map(|path| Path::tcp(path.remote));
        let order = [paid_tcp, remote(), free_tcp, free()];
        assert!(order.is_sorted_by(|a, b| metered.compare(b, a).is_gt()));
    }

    #[test]
    fn a_link_leaves_a_metered_path_for_a_free_one_and_comes_back_when_that_is_lost() {
        let (mut topology, table, meter) = topology();
        topology.metered.set_paths(line(), at(0));
        let both =
            HostRecord { name: "h".into(), addresses: vec![remote().remote, free().remote], ..HostRecord::default() };
        let only = |way: Path| move |path: Path| path == way;
        let said = talk(&mut topology, &table, &meter, only(remote()), 0..5000);
        assert_eq!((path(&topology), announced(&said)), (Some(remote()), vec![true]));
        assert!(topology.routing.is_metered(PEER));
        topology.on_host(PEER, Some(&both), at(5000));
        let said = talk(&mut topology, &table, &meter, |_| true, 5000..8000);
        assert_eq!((path(&topology), announced(&said)), (Some(free()), vec![false]), "as soon as it is said");
        assert!(!topology.routing.is_metered(PEER));
        // The peer asks by the metered path, for the other is lost: that is asked, and lost here, too.
        let said = ping(&mut topology, remote(), at(8000));
        assert!(!has_pong(&said), "{said:?}");
        let said = talk(&mut topology, &table, &meter, only(remote()), 8000..12_000);
        assert!(said.iter().any(|event| matches!(event, Event::LinkDown(PEER, _))));
        assert_eq!(path(&topology), Some(remote()));
        assert!(has_pong(&ping(&mut topology, remote(), at(12_000))));
        // It is tried again, though nothing is new.
        talk(&mut topology, &table, &meter, |_| true, 12_000..60_000);
        assert_eq!(path(&topology), Some(free()));
    }

    #[test]
    fn a_quick_metered_path_beside_a_free_link_is_not_compared() {
        let (mut topology, table, meter) = topology();
        topology.metered.set_paths(line(), at(0));
        topology.add_candidate(PEER, free(), Learnt::Announced);
        talk(&mut topology, &table, &meter, |path| path == free(), 0..3000);
        let mut asked = 0;
        for now in (3000..10_000).step_by(50) {
            meter.sent.on_link(20, at(now));
            let said = talk(&mut topology, &table, &meter, |path| path == free(), now..now + 50);
            asked += said
                .iter()
                .filter(|event| matches!(event, Event::Straight { control: Control::Trial { .. }, .. }))
                .count();
        }
        assert_eq!(asked, 0);
        topology.on_trial(PEER, 7, remote(), (1, false), at(10_000));
        assert!(events(&mut topology).is_empty());
        topology.on_trial(PEER, 7, Path::udp(([203, 0, 113, 9], 1).into()), (1, false), at(10_000));
        assert_eq!(events(&mut topology).len(), 1, "another free one is");
    }

    #[test]
    fn a_peer_that_asks_by_a_metered_path_is_refused_while_there_is_another_way() {
        for (cost, is_refused_with_demand) in [(10, true), (METERED_COST + 10, false)] {
            let (mut topology, table, meter) = topology();
            topology.metered.set_paths(line(), at(0));
            assert!(has_pong(&ping(&mut topology, remote(), at(0))), "there is no way yet");
            relay(&mut topology, cost);
            let said = ping(&mut topology, remote(), at(50));
            assert!(refused(&said) && !has_pong(&said));
            let tried = |topology: &mut Topology, now: u64| {
                let said = talk(topology, &table, &meter, |_| false, now..now + 5000);
                said.iter()
                    .any(|event| matches!(event, Event::Straight { .. } | Event::Handshake { .. } | Event::Open { .. }))
            };
            assert!(!tried(&mut topology, 100));
            // Half of what is demanded goes to the peer, and half comes from it.
            meter.sent.bytes.fetch_add(8 * 1024, std::sync::atomic::Ordering::Relaxed);
            meter.received.bytes.fetch_add(8 * 1024, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(
                tried(&mut topology, 6000),
                !is_refused_with_demand,
                "a link is of use if the way is paid for, too"
            );
            assert_eq!(refused(&ping(&mut topology, remote(), at(11_000))), is_refused_with_demand);
        }
    }

    #[test]
    fn a_peer_that_asks_by_a_metered_path_is_answered_once_the_free_way_turns_out_not_to_carry() {
        let (mut topology, table, _) = topology();
        topology.metered.set_paths(line(), at(0));
        relay(&mut topology, 10);
        let answered = |topology: &mut Topology, millis: std::ops::Range<u64>| {
            let mut asked = millis.step_by(50).filter(|now| {
                topology.tend_links(true, &table, at(*now));
                events(topology);
                now % 1000 == 0 && has_pong(&ping(topology, remote(), at(*now)))
            });
            asked.next()
        };
        let first = answered(&mut topology, 1000..10_000);
        assert!(first.is_some_and(|first| (2000..4000).contains(&first)), "{first:?}");
    }

    #[test]
    fn a_refused_path_is_tried_again_after_an_hour_or_when_something_changes_and_others_meanwhile() {
        let (mut topology, table, meter) = topology();
        relay(&mut topology, 10);
        /// The paths that are tried in the first moments of a second; each ping by `remote()` is refused.
        fn tried(topology: &mut Topology, table: &Table, meter: &Meter, second: u64) -> BTreeSet<Path> {
            let mut tried = BTreeSet::new();
            for event in talk(topology, table, meter, |_| false, second * 1000..second * 1000 + 200) {
                let Event::Straight { to, control: Control::Ping { id, .. }, .. } = event else { continue };
                tried.insert(to);
                if to == remote() {
                    topology.on_refused(PEER, id, at(second * 1000));
                }
            }
            tried
        }
        let said = |last: u8| HostRecord {
            name: "h".into(),
            addresses: vec![SocketAddr::from(([198, 51, 100, last], 6783))],
            ..HostRecord::default()
        };
        let has = |paths: &BTreeSet<Path>| (paths.contains(&remote()), !paths.is_empty());
        let at_second = |topology: &mut Topology, second| has(&tried(topology, &table, &meter, second));
        assert_eq!(at_second(&mut topology, 1), (true, true));
        topology.on_refused(PEER, 12_345, at(1500));
        assert_eq!(at_second(&mut topology, 3599), (false, false), "no other path is known");
        topology.on_host(PEER, Some(&said(2)), at(3_599_500));
        assert_eq!(at_second(&mut topology, 3600), (true, true), "something is new");
        assert_eq!(at_second(&mut topology, 3700), (false, true), "the other path is not refused");
        assert_eq!(at_second(&mut topology, 7300), (true, true));
        let outcomes = crate::explanation::LinkAccount::of(&topology, PEER, at(7_300_000)).unwrap().candidates;
        assert!(outcomes.iter().any(|candidate| candidate.outcome == crate::explanation::Outcome::Spared));
        assert_eq!(at_second(&mut topology, 7400), (false, true));
        topology.routing.set_own(HostLabel([9; 6]), None);
        topology.routing.recompute(at(7_400_300));
        assert!(at_second(&mut topology, 7500).0, "there is no other way");
    }

    #[test]
    fn a_link_that_the_peer_refuses_for_it_lost_its_end_is_lost() {
        let (mut topology, table, meter) = topology();
        talk(&mut topology, &table, &meter, |_| true, 0..1000);
        relay(&mut topology, 10);
        assert_eq!(path(&topology), Some(remote()));
        for now in (1000..40_000).step_by(50) {
            for event in talk(&mut topology, &table, &meter, |_| false, now..now + 50) {
                if let Event::Straight { control: Control::Ping { id, .. }, .. } = event {
                    topology.on_refused(PEER, id, at(now));
                }
            }
        }
        assert_eq!(path(&topology), None);
    }

    #[test]
    fn an_end_that_knows_of_the_price_only_by_the_other_looks_for_others_ever_more_seldom() {
        let (mut topology, table, meter) = topology();
        topology.add_candidate(PEER, free(), Learnt::Announced);
        let metered = LinkRecord { cost: METERED_COST + 10, max_datagram: 1400 };
        talk(&mut topology, &table, &meter, |path| path == remote(), 0..1000);
        topology.on_link_record(PEER, OWN, Some(metered), at(1000));
        let mut asked = Vec::new();
        for second in 1..1000 {
            meter.received.on_link(1, at(second * 1000));
            let said =
                talk(&mut topology, &table, &meter, |path| path == remote(), second * 1000..second * 1000 + 1000);
            asked.extend(
                said.iter().any(|event| matches!(event, Event::Straight { to, .. } if *to == free())).then_some(second),
            );
        }
        assert_eq!(asked, [20, 60, 140, 300, 620]);
        assert_eq!(path(&topology), Some(remote()));
        talk(&mut topology, &table, &meter, |_| true, 1_000_000..1_300_000);
        assert_eq!(path(&topology), Some(remote()), "it may be metered, too");
        topology.on_heard_from(PEER, 7, true, free(), at(1_300_000));
        talk(&mut topology, &table, &meter, |_| true, 1_300_000..1_301_000);
        assert_eq!(path(&topology), Some(free()), "the peer has gone there");
    }

    #[test]
    fn rounds_that_are_agreed_on_over_metered_links_end() {
        for (cost, expected) in [(10, 50..100), (METERED_COST + 10, 6..7)] {
            let (mut topology, table, meter) = topology();
            topology.metered.set_paths(line(), at(0));
            // Nothing leads there, and there is no price on it either.
            topology.add_candidate(PEER, Path::udp("[2001:db8::9]:6783".parse().unwrap()), Learnt::Seen);
            relay(&mut topology, cost);
            let said = talk(&mut topology, &table, &meter, |_| false, 0..3_700_000);
            let rounds = said.iter().filter(|event| matches!(event, Event::Message(PEER, Control::Punch(_)))).count();
            assert!(expected.contains(&rounds), "{rounds} at a cost of {cost}");
        }
    }

    #[test]
    fn a_connection_over_a_metered_path_is_left_for_a_free_one() {
        let (mut topology, table, meter) = topology();
        topology.metered.set_paths(line(), at(0));
        let tcp = Path::tcp(SocketAddr::new(remote().remote.ip(), 443));
        let record =
            HostRecord { name: "h".into(), addresses: vec![remote().remote], tcp: vec![443], ..HostRecord::default() };
        topology.on_host(PEER, Some(&record), at(0));
        talk(&mut topology, &table, &meter, |path| path == tcp, 0..5000);
        assert_eq!(path(&topology), Some(tcp));
        let elsewhere = Path::tcp(SocketAddr::new(free().remote.ip(), 443));
        let record = HostRecord { addresses: vec![remote().remote, free().remote], ..record };
        topology.on_host(PEER, Some(&record), at(5000));
        let said = talk(&mut topology, &table, &meter, |path| path == tcp || path == elsewhere, 5000..8000);
        assert_eq!(path(&topology), Some(elsewhere));
        let freed = |event: &Event| matches!(event, Event::Connection { path, usage: Usage::Idle } if *path == tcp);
        assert!(said.iter().any(freed));
    }
}
