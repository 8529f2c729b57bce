//! Which hosts are there: SWIM's verdicts, and for how long a host has been gone.
//!
//! A metered host takes no part in SWIM: its one link tells whether it is there. Of hosts beyond metered links routes do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use weft_crypto::{HostLabel, Time};
use weft_gossip::{Membership, MembershipEvent};

/// What comes of a call.
#[derive(Debug)]
pub(crate) enum Event {
    /// A SWIM packet for a peer.
    Packet(HostLabel, Bytes),
    /// SWIM says that a peer is alive, or dead.
    Alive(HostLabel, bool),
}

/// Presence of all peers.
pub(crate) struct Presence {
    membership: Membership,
    /// Whether this host takes part in SWIM.
    takes_part: bool,
    /// How long a host may be gone before its records are dropped.
    grace: Duration,
    /// When each peer was last there.
    last_there: BTreeMap<HostLabel, Time>,
    /// Hosts that SWIM says are alive: it may know of one before this host has met it.
    alive: BTreeSet<HostLabel>,
    /// Whether each host was there when last looked, and whether people were told so.
    told: BTreeMap<HostLabel, (bool, bool)>,
}

impl Presence {
    pub(crate) fn new(own: HostLabel, incarnation: u64, seed: u64, grace: Duration, takes_part: bool) -> Self {
        Presence {
            membership: Membership::new(own, incarnation, seed),
            takes_part,
            grace,
            last_there: BTreeMap::new(),
            alive: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        if let Some((to, packet)) = self.membership.poll_transmit() {
            return Some(Event::Packet(to, packet));
        }
        let (label, is_alive) = match self.membership.poll_event()? {
            MembershipEvent::Up(label) => (label, true),
            MembershipEvent::Down(label) => (label, false),
        };
        Some(Event::Alive(label, is_alive))
    }

    /// Takes note of a peer.
    pub(crate) fn meet(&mut self, peer: HostLabel, now: Time) {
        self.last_there.entry(peer).or_insert(now);
    }

    /// Forgets a peer.
    pub(crate) fn remove(&mut self, peer: HostLabel) {
        self.last_there.remove(&peer);
        self.told.remove(&peer);
    }

    /// Notes SWIM's verdict; false for a host that is not a peer.
    pub(crate) fn set_alive(&mut self, peer: HostLabel, is_alive: bool, now: Time) -> bool {
        if is_alive {
            self.alive.insert(peer);
        } else {
            self.alive.remove(&peer);
        }
        self.last_there.get_mut(&peer).map(|there| *there = now).is_some()
    }

    /// Whether people are to be told that a host is there, as SWIM says first (`is_found`), or that it is gone: neither is there a route to it nor
    /// does SWIM say that it is alive. Of hosts that SWIM never spoke of nothing is told.
    pub(crate) fn take_news(&mut self, peer: HostLabel, has_route: bool, is_found: bool) -> Option<bool> {
        let is_there = has_route || self.alive.contains(&peer);
        let (was_there, was_told) = self.told.get(&peer).copied().unwrap_or((false, false));
        let is_told = match (was_there, is_there) {
            (false, true) => was_told || is_found,
            (true, true) => is_found && !was_told,
            (true, false) => was_told,
            (false, false) => return None,
        };
        self.told.insert(peer, (is_there, is_told || (was_told && was_there == is_there)));
        is_told.then_some(is_there)
    }

    /// An authenticated packet of a peer came.
    pub(crate) fn on_heard(&mut self, peer: HostLabel, now: Time) {
        if let Some(there) = self.last_there.get_mut(&peer) {
            *there = now;
        }
    }

    /// Whether SWIM says that a peer is alive.
    pub(crate) fn is_alive(&self, peer: HostLabel) -> bool {
        self.alive.contains(&peer)
    }

    /// Introduces this host to a new neighbour.
    pub(crate) fn announce(&mut self, peer: HostLabel, now: Time) {
        if self.takes_part {
            self.membership.announce(peer, now);
        }
    }

    /// A link is lost: its host may be, and others with it.
    pub(crate) fn on_link_down(&mut self, now: Time) {
        if self.takes_part {
            self.membership.hurry(now);
        }
    }

    /// Takes a SWIM packet.
    pub(crate) fn receive(&mut self, from: HostLabel, packet: &[u8], now: Time) {
        if self.takes_part {
            self.membership.receive(from, packet, now);
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Time) {
        if self.takes_part {
            self.membership.handle_timeout(now);
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.membership.next_timeout().filter(|_| self.takes_part)
    }

    /// Tells the others that this host stops.
    pub(crate) fn leave(&mut self, now: Time) {
        if self.takes_part {
            self.membership.leave(now);
        }
    }

    /// SWIM packets refused so far.
    pub(crate) fn refused(&self) -> u64 {
        self.membership.rejected()
    }

    /// Returns the peers that have been gone for longer than the grace; those that are alive or reachable are there.
    pub(crate) fn gone(&mut self, is_reachable: impl Fn(HostLabel) -> bool, now: Time) -> Vec<HostLabel> {
        for (label, there) in &mut self.last_there {
            if self.alive.contains(label) || is_reachable(*label) {
                *there = now;
            }
        }
        let gone = self.last_there.iter().filter(|(_, there)| now.since(**there) > self.grace);
        gone.map(|(label, _)| *label).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_gone_when_it_was_neither_alive_nor_reachable_nor_heard_for_the_grace() {
        let label = |n: u8| HostLabel([n; 6]);
        let second = |n: u64| Time::ZERO + Duration::from_secs(n);
        let mut presence = Presence::new(label(0), 1, 7, Duration::from_secs(60), true);
        (1..=4).for_each(|n| presence.meet(label(n), second(0)));
        assert!(presence.set_alive(label(1), true, second(0)) && !presence.set_alive(label(9), true, second(0)));
        presence.on_heard(label(3), second(50));
        let is_reachable = |peer| peer == label(2);
        assert_eq!(presence.gone(is_reachable, second(61)), [label(4)]);
        presence.set_alive(label(1), false, second(70));
        assert_eq!(presence.gone(|_| false, second(120)), [3, 4].map(label));
        assert_eq!(presence.gone(|_| false, second(131)), [1, 2, 3, 4].map(label));
    }

    #[test]
    fn a_host_is_gone_for_people_once_there_is_no_way_to_it_either() {
        let (peer, now) = (HostLabel([1; 6]), Time::ZERO);
        let mut presence = Presence::new(HostLabel([0; 6]), 1, 7, Duration::from_secs(60), true);
        presence.meet(peer, now);
        let mut told = |is_alive, has_route, is_found| {
            presence.set_alive(peer, is_alive, now);
            presence.take_news(peer, has_route, is_found)
        };
        assert_eq!([told(false, true, false), told(false, false, false)], [None, None], "SWIM never spoke of it");
        assert_eq!([told(false, true, false), told(true, true, true)], [None, Some(true)]);
        assert_eq!([told(false, true, false), told(false, false, false)], [None, Some(false)]);
        assert_eq!([told(false, true, false), told(true, true, true)], [Some(true), None]);
        assert_eq!([told(true, false, false), told(false, false, false)], [None, Some(false)]);
    }

    #[test]
    fn a_host_that_takes_no_part_in_swim_says_nothing() {
        let (peer, now) = (HostLabel([1; 6]), Time::ZERO);
        let said = [true, false].map(|takes_part| {
            let mut presence = Presence::new(HostLabel([0; 6]), 1, 7, Duration::from_secs(60), takes_part);
            presence.meet(peer, now);
            presence.announce(peer, now);
            presence.handle_timeout(now + Duration::from_secs(60));
            presence.leave(now + Duration::from_secs(60));
            presence.poll_event().is_some()
        });
        assert_eq!(said, [true, false]);
    }

    #[test]
    fn a_host_that_swim_knew_before_it_was_met_is_alive() {
        let (peer, now) = (HostLabel([1; 6]), Time::ZERO);
        let mut presence = Presence::new(HostLabel([0; 6]), 1, 7, Duration::from_secs(60), true);
        assert!(!presence.set_alive(peer, true, now), "it is no peer yet");
        presence.meet(peer, now);
        assert!(presence.is_alive(peer));
        presence.set_alive(peer, false, now);
        assert!(!presence.is_alive(peer));
    }
}
