//! Hosts and paths whose traffic is paid for by the byte.
//!
//! A metered host says so in its record, and relays nothing. A link over a metered path says so in its cost: frames go over it where there is no other
//! way. At rest a mesh keeps as few such links as hold it together (see `spanning`); another is made for frames that would otherwise cross two.
//! An end of a path that does not know that it is metered is told when it tries it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::Peer;
use super::link::Link;
use super::routing::Routing;
use crate::path::{MeteredPaths, Path};

/// How long a host is not tried that did without a link, while there is a route to it, and either has no new address.
const REFUSED: Duration = Duration::from_secs(3600);

/// What a ping leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// An answer.
    Answer,
    /// None, and the link with the peer, which goes by a better path, has to answer: the peer may have lost it.
    AskLink,
    /// None, and the peer is told that no link is wanted by that path.
    Refuse,
}

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

    /// Whether another host is.
    pub(crate) fn contains(&self, host: HostLabel) -> bool {
        self.others.contains(&host)
    }

    /// Whether a path is, by what this host knows of it.
    pub(super) fn has_path(&self, path: &Path) -> bool {
        self.paths.contains(path)
    }

    /// Whether this host and another have as few direct links as they can, since either is metered.
    pub(super) fn is_between(&self, host: HostLabel) -> bool {
        self.own || self.contains(host)
    }

    /// Whether what this host and another say to each other is paid for: either is metered, or the route between them leads over a metered link.
    pub(crate) fn is_paid(&self, routing: &Routing, host: HostLabel) -> bool {
        self.is_between(host) || routing.is_metered(host)
    }

    /// Whether a link with a host is paid for, by the word of either end.
    pub(crate) fn has_link(&self, routing: &Routing, host: HostLabel, link: Option<&Link>) -> bool {
        link.is_some_and(|link| self.is_between(host) || self.has_line(routing, host, link))
    }

    /// Whether a link with a host goes over a path that is paid for, by the word of either end.
    pub(super) fn has_line(&self, routing: &Routing, host: HostLabel, link: &Link) -> bool {
        self.has_path(&link.path) || routing.is_metered_by(host)
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

    /// Whether a metered path to a host may be tried: there is no way to it, or the way is paid for anyway and enough goes there.
    pub(super) fn may_try(&self, routing: &Routing, host: HostLabel, has_demand: bool) -> bool {
        !routing.has_route(host) || (routing.is_metered(host) && has_demand)
    }

    /// Whether the metered link with a host has to stay: there is no way around it, and it holds the mesh together or enough goes there.
    pub(super) fn keeps(&self, routing: &Routing, host: HostLabel, has_demand: bool) -> bool {
        !routing.has_route(host) || (routing.is_metered(host) && (has_demand || routing.keeps(host)))
    }

    /// What a ping of a peer by a path leads to.
    pub(super) fn reply(&self, routing: &Routing, host: HostLabel, peer: &Peer, from: Path, now: Time) -> Reply {
        match &peer.link {
            _ if !self.has_path(&from) => Reply::Answer,
            Some(link) if self.has_path(&link.path) => Reply::Answer,
            Some(_) => Reply::AskLink,
            None if self.may_try(routing, host, peer.has_demand(now)) => Reply::Answer,
            None => Reply::Refuse,
        }
    }

    /// Whether no path to a peer is worth trying: those that are known are metered, or the peer would refuse, and there is a route.
    pub(super) fn leaves_out(&self, routing: &Routing, host: HostLabel, peer: &Peer, now: Time) -> bool {
        let is_refused = peer.refused != Time::ZERO && now.since(peer.refused) < REFUSED;
        let has_free =
            || peer.candidates.paths().next().is_none() || peer.candidates.paths().any(|path| !self.has_path(path));
        !self.may_try(routing, host, peer.has_demand(now)) && (is_refused || !has_free())
    }

    /// Leaves those of the paths to a host that may be tried.
    pub(super) fn affordable(
        &self,
        routing: &Routing,
        host: HostLabel,
        peer: &Peer,
        mut paths: Vec<Path>,
        now: Time,
    ) -> Vec<Path> {
        if !self.may_try(routing, host, peer.has_demand(now)) {
            paths.retain(|path| !self.has_path(path));
        }
        paths
    }

    /// Whether paths that were metered when a link last looked for better ones may be so no longer, or the other way round.
    pub(super) fn changed_since(&self, time: Time) -> bool {
        self.paths_changed > time
    }
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
    use crate::topology::{Event, Topology};
    use crate::wire::{Control, Lane};

    /// A free path to the peer, which `remote()` is not.
    fn free() -> Path {
        Path::udp(([198, 51, 100, 2], 6783).into())
    }

    fn line() -> MeteredPaths {
        MeteredPaths { networks: vec![(remote().remote.ip(), 24, true)], ..MeteredPaths::default() }
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
            topology.recompute_routes(at(now));
            for event in events(topology) {
                match event {
                    Event::Straight { control: Control::Ping { id, .. }, to, size, .. } if carries(to) => {
                        meter.received.on_link(1, at(now));
                        topology.on_pong(PEER, to, id, to.remote, size as u16, at(now + 10));
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
        events.iter().any(|event| matches!(event, Event::Message(PEER, Control::Needless)))
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
        topology.recompute_routes(at(0));
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
        assert!(!has_pong(&said) && !refused(&said), "{said:?}");
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
        topology.add_candidate(PEER, free(), crate::topology::Learnt::Announced);
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
    fn a_host_that_refuses_is_tried_again_after_an_hour_or_when_something_changes() {
        let (mut topology, table, meter) = topology();
        relay(&mut topology, 10);
        topology.on_needless(PEER, at(10));
        let is_tried = |topology: &mut Topology, seconds: u64| {
            let said = talk(topology, &table, &meter, |_| false, seconds * 1000..seconds * 1000 + 200);
            said.iter().any(|event| matches!(event, Event::Straight { to, .. } if *to == remote()))
        };
        assert!(!is_tried(&mut topology, 1) && !is_tried(&mut topology, 3599) && is_tried(&mut topology, 3600));
        let said = |last: u8| HostRecord {
            name: "h".into(),
            addresses: vec![SocketAddr::from(([198, 51, 100, last], 6783))],
            ..HostRecord::default()
        };
        topology.on_host(PEER, Some(&said(1)), at(4_000_000));
        topology.on_needless(PEER, at(4_000_000));
        assert!(!is_tried(&mut topology, 4001));
        topology.on_host(PEER, Some(&said(1)), at(4_100_000));
        assert!(!is_tried(&mut topology, 4100), "it says nothing new");
        topology.on_host(PEER, Some(&said(2)), at(4_200_000));
        assert!(is_tried(&mut topology, 4200));
        topology.on_needless(PEER, at(4_300_000));
        topology.routing.set_own(HostLabel([9; 6]), None);
        assert!(is_tried(&mut topology, 4301), "there is no other way");
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
