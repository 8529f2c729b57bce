//! Paths through NATs: who asks first is agreed along the route that there is.
//!
//! In a round one host opens its own NATs by datagrams that get no further than those (a low TTL), then the other asks at all addresses
//! of the first, then the first at all of the other. Nothing then comes to a NAT from outside before its own host has sent
//! that way: many a NAT takes what comes unasked for its own traffic, and maps the host's next datagram to another port, where the peer
//! does not look. The hosts take turns at opening, further each time. (Ford, Srisuresh, Kegel, "Peer-to-Peer Communication Across
//! Network Address Translators", 2005; RFC 5128, section 3.3.)

use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use weft_crypto::{HostLabel, Time};

use super::{Event, Peer, SessionTable, Topology};
use crate::backoff::Backoff;
use crate::bucket::Bucket;
use crate::path::Path;
use crate::wire::{Control, Punch};

/// The longest wait between rounds. It is longer than what a NAT remembers of a datagram that was not answered, 30 s with Linux: in the end
/// both hosts are silent for so long that a NAT which took the peer's datagrams for its own begins anew.
const LONGEST: Duration = Duration::from_secs(64);
/// Rounds that are agreed on over metered links without demand, until something changes.
const METERED_ROUNDS: u32 = 6;
/// How long the host with the higher label leaves it to the other to begin: at first, and since the other last did.
const LEFT_TO_PEER: Duration = Duration::from_secs(4);
const PEER_BEGINS: Duration = Duration::from_secs(90);
/// How long plain tries have before a round, if no NAT is known of.
const PLAIN_TRIES: Duration = Duration::from_secs(2);
/// How long a route is waited for before the outside of a NAT is tried without.
pub(super) const ROUTE_MAY_COME: Duration = Duration::from_secs(1);
/// How long a peer that takes no part in rounds is left to them, and how long one that does.
const ALONE: Duration = Duration::from_secs(20);
const TAKES_PART: Duration = Duration::from_secs(120);
/// How long the peer may take to ask once this host has opened its NATs.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// Routers that an opening datagram passes: as many as there are NATs in a row, and not so many that it arrives.
const FEWEST_HOPS: u8 = 2;
const MOST_HOPS: u8 = 7;
/// Times that all addresses of a peer may be sent to: at once, and within [`BURST_EVERY`]. A member may announce a stranger's address.
const BURSTS: u64 = 8;
const BURST_EVERY: u64 = 10;
/// What a burst takes of its budget, which fills by whole numbers a second.
const BURST: u64 = 1000;

/// What was tried to reach a peer through NATs.
pub(super) struct Punching {
    rounds: Backoff,
    /// Since when a link is wanted.
    wanted: Option<Time>,
    /// Rounds that the peer began, and when the last was.
    joined: u32,
    began: Time,
    /// When this host last had the peer open its NATs: the peer says so then.
    asked_to_open: Option<Time>,
    /// When the peer last took a step, and when this host last opened its NATs for it to ask.
    heard: Time,
    opened: Option<Time>,
    budget: Bucket,
}

impl Default for Punching {
    fn default() -> Self {
        let budget = Bucket::new(BURSTS * BURST, Time::ZERO);
        Punching {
            rounds: Backoff::default(),
            wanted: None,
            joined: 0,
            began: Time::ZERO,
            asked_to_open: None,
            heard: Time::ZERO,
            opened: None,
            budget,
        }
    }
}

impl Punching {
    /// Starts over: there is a link.
    pub(super) fn reset(&mut self, now: Time) {
        self.rounds.reset(now);
        (self.wanted, self.joined) = (None, 0);
    }

    /// How long a link has been wanted, which it is now.
    pub(super) fn waited(&mut self, now: Time) -> Duration {
        now.since(*self.wanted.get_or_insert(now))
    }

    /// No link is wanted any more.
    pub(super) fn rest(&mut self) {
        self.wanted = None;
    }

    /// Begins with the first round again: one of the hosts has new addresses.
    pub(super) fn begin_again(&mut self, now: Time) {
        self.rounds.reset(now);
        self.joined = 0;
    }

    /// Rounds since there was a link or a new address, whichever host began them.
    pub(super) fn rounds(&self) -> u32 {
        self.rounds.failures().max(self.joined)
    }

    /// Whether the outside of a NAT is left to rounds, if there is a route: while they are new, or the peer takes part in them.
    pub(super) fn is_under_way(&self, waited: Duration, now: Time) -> bool {
        waited < ALONE || (self.heard != Time::ZERO && now.since(self.heard) < TAKES_PART)
    }

    /// Whether all addresses of the peer may be sent to once more; counts as done.
    fn may_burst(&mut self, now: Time) -> bool {
        self.budget.take(BURST, BURST / BURST_EVERY, BURSTS * BURST, now)
    }
}

impl Topology {
    /// Begins a round with a peer that there is a route to, and no link with, if it is time.
    pub(super) fn punch(&mut self, label: HostLabel, now: Time) {
        let is_behind_nat = !self.addresses.seen().is_empty();
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let is_spared = self.routing.is_metered(label) && !peer.has_demand(now);
        let punching = &mut peer.punching;
        let waited = punching.waited(now);
        let peer_begins = punching.began != Time::ZERO && now.since(punching.began) < PEER_BEGINS;
        let is_peers_turn = label < self.own && (waited < LEFT_TO_PEER || peer_begins);
        let has_nat = is_behind_nat || peer.candidates.has_mapped();
        let rests = is_spared && punching.rounds.failures() >= METERED_ROUNDS;
        if is_peers_turn || rests || !(has_nat || waited >= PLAIN_TRIES) || !punching.rounds.is_due(now) {
            return;
        }
        let round = punching.rounds.failures();
        if round % 2 == 0 && !punching.may_burst(now) {
            return;
        }
        punching.rounds.on_try(now, LONGEST, self.rng.random());
        let further = (round / 2) as u8 % (MOST_HOPS - FEWEST_HOPS + 1);
        let hops = FEWEST_HOPS + further;
        let step = if round % 2 == 0 {
            punching.opened = Some(now);
            let mut to = peer.others(self.addresses.local());
            to.retain(|path| self.metered.may_try_path(&self.routing, label, peer, path, now));
            self.events.extend(to.into_iter().map(|to| Event::Open { to, hops }));
            Punch::Opened
        } else {
            punching.asked_to_open = Some(now);
            Punch::Open { hops }
        };
        self.events.push_back(Event::Message(label, Control::Punch(step)));
    }

    /// Takes a peer's step of a round.
    pub(crate) fn on_punch(&mut self, label: HostLabel, step: Punch, sessions: &impl SessionTable, now: Time) {
        let is_wanted = !self.targets.is_forgotten(label) && self.link(label).is_none();
        let is_searched = step == Punch::Spread && is_wanted && !self.metered.own && self.wants_link(label, now);
        let (Some(peer), Some(index)) = (self.peers.get_mut(&label), sessions.current(label)) else { return };
        // The peer has no link with this host any more, or not yet.
        peer.doubt(now);
        if !self.metered.may_try_any(&self.routing, label, peer, now) {
            return;
        }
        peer.punching.heard = now;
        if step == Punch::Spread {
            let own = self.addresses.local();
            let outside = peer.seen.iter().flatten().next().map(|seen| Path::udp(*seen));
            let may_try = |path: Path| self.metered.may_try_path(&self.routing, label, peer, &path, now);
            if is_searched && outside.is_some_and(may_try) && self.port_search.begin(label, peer, own, now) {
                self.events.push_back(Event::Wake(now));
            }
            return;
        }
        // Spare ports are no round.
        let is_reply = |asked: Time| step == Punch::Opened && now.since(asked) < ASKED_WITHIN;
        let begins = step != Punch::Asked && !peer.punching.asked_to_open.take().is_some_and(is_reply);
        if begins {
            (peer.punching.joined, peer.punching.began) = (peer.punching.joined.saturating_add(1), now);
        }
        // One round costs either host one burst: what it opens and what it asks then go to the same addresses.
        let opened = peer.punching.opened.filter(|opened| step == Punch::Asked && now.since(*opened) < ASKED_WITHIN);
        peer.punching.opened = None;
        let may_ask = opened.is_some() || peer.punching.may_burst(now);
        if !is_wanted || !may_ask {
            return;
        }
        let mut to = peer.others(self.addresses.local());
        to.retain(|path| self.metered.may_try_path(&self.routing, label, peer, path, now));
        let next = match step {
            Punch::Open { hops } => {
                let hops = hops.clamp(FEWEST_HOPS, MOST_HOPS);
                peer.punching.opened = Some(now);
                self.events.extend(to.into_iter().map(|to| Event::Open { to, hops }));
                Some(Punch::Opened)
            }
            Punch::Opened | Punch::Asked => {
                to.into_iter().for_each(|path| self.ping(label, index, path, 0, now));
                (step == Punch::Opened).then_some(Punch::Asked)
            }
            Punch::Spread => None,
        };
        self.events.extend(next.map(|step| Event::Message(label, Control::Punch(step))));
    }
}

impl Peer {
    /// What did not lead to a link is tried again: one of the hosts has new addresses.
    pub(super) fn begin_again(&mut self, now: Time) {
        self.candidates.forget_refusals();
        self.punching.begin_again(now);
        self.spreads.hurry(now);
    }

    /// Its paths by UDP to all addresses that are none of this host's `own`.
    pub(super) fn others(&self, own: &[SocketAddr]) -> Vec<Path> {
        self.candidates.paths().filter(|path| path.is_udp() && !own.contains(&path.remote)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::HostRecord;
    use crate::topology::lab::*;

    /// Topology of a host that has a session with a peer behind a NAT, and a route to it.
    fn topology_with_nat() -> (Topology, Table) {
        let mut topology = lone();
        topology.meet(PEER, Default::default());
        let record = HostRecord { name: "host2".into(), seen: vec![remote().remote], ..HostRecord::default() };
        topology.on_host(PEER, Some(&record), at(0));
        (topology, Table([(PEER, 7)].into()))
    }

    /// What is said: openings with their hops, pings, and steps.
    fn said(topology: &mut Topology) -> (Vec<u8>, usize, Vec<Punch>) {
        let (mut hops, mut pings, mut steps) = (Vec::new(), 0, Vec::new());
        for event in events(topology) {
            match event {
                Event::Open { hops: so_far, to } if to == remote() => hops.push(so_far),
                Event::Straight { control: Control::Ping { .. }, to, .. } if to == remote() => pings += 1,
                Event::Message(PEER, Control::Punch(step)) => steps.push(step),
                event => panic!("{event:?}"),
            }
        }
        (hops, pings, steps)
    }

    #[test]
    fn hosts_take_turns_at_opening_and_each_round_goes_further() {
        let (mut topology, table) = topology_with_nat();
        let mut rounds = Vec::new();
        for now in (0..20_000).step_by(50) {
            topology.punch(PEER, at(now));
            match said(&mut topology) {
                (hops, 0, steps) if hops.is_empty() && steps.is_empty() => {}
                (hops, 0, steps) if steps == [Punch::Opened] => rounds.push(("opens", hops[0])),
                (none, 0, steps) if none.is_empty() && matches!(steps[..], [Punch::Open { .. }]) => {
                    let Punch::Open { hops } = steps[0] else { unreachable!() };
                    rounds.push(("has opened", hops));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(rounds[..4], [("opens", 2), ("has opened", 2), ("opens", 3), ("has opened", 3)]);
        topology.on_punch(PEER, Punch::Opened, &table, at(60_000));
        assert_eq!(said(&mut topology), (vec![], 1, vec![Punch::Asked]));
        topology.on_punch(PEER, Punch::Asked, &table, at(60_000));
        assert_eq!(said(&mut topology), (vec![], 1, vec![]));
        topology.on_punch(PEER, Punch::Open { hops: 200 }, &table, at(60_000));
        assert_eq!(said(&mut topology), (vec![MOST_HOPS], 0, vec![Punch::Opened]));
    }

    #[test]
    fn a_member_cannot_have_addresses_flooded() {
        let (mut topology, table) = topology_with_nat();
        for millis in 0..60_000 {
            topology.on_punch(PEER, Punch::Opened, &table, at(millis));
        }
        let (_, pings, _) = said(&mut topology);
        assert!(pings <= (BURSTS + 60 / BURST_EVERY) as usize, "{pings}");
    }

    #[test]
    fn the_outside_of_a_nat_is_tried_without_a_route_only_if_none_comes() {
        let (mut topology, table) = topology_with_nat();
        let first = (0..3000).step_by(50).find(|now| {
            topology.tend_links(true, &table, at(*now));
            events(&mut topology).iter().any(|event| matches!(event, Event::Straight { .. }))
        });
        assert_eq!(first.map(at), Some(Time::ZERO + ROUTE_MAY_COME));
    }
}
