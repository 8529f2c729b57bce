//! Where this host may be reached: its own addresses, and those at which peers see it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::account::mapping;
use crate::bucket::Bucket;
use crate::explanation::Mapping;
use crate::records::{Advertised, MAX_ADVERTISED, MAX_LIST};

/// The shortest time between two announced changes of the addresses that others see, how many may come in a row, and the seconds that earn one
/// more. A NAT that starts again, or another network, leads to one or two; a peer that says something else each time could lead to any number.
const SEEN_SOONEST: Duration = Duration::from_secs(1);
const CHANGES: u64 = 8;
const SECONDS_PER_CHANGE: u64 = 30;
const CHANGE_BUDGET: u64 = CHANGES * SECONDS_PER_CHANGE;
/// Addresses at which others see this host that are announced.
const MAX_SEEN: usize = 4;

/// How this host is set up to be reached.
pub(crate) struct OwnReach {
    /// The UDP port it listens on.
    pub(crate) port: u16,
    /// The ports at which it accepts TCP connections.
    pub(crate) tcp_ports: Vec<u16>,
    /// Addresses of other devices that forward to this host, named by the operator.
    pub(crate) advertised: Advertised,
}

#[cfg(test)]
impl OwnReach {
    pub(super) fn at_port(port: u16) -> Self {
        OwnReach { port, tcp_ports: Vec::new(), advertised: Advertised::default() }
    }
}

/// The addresses of this host.
pub(crate) struct OwnAddresses {
    pub(crate) reach: OwnReach,
    local: Vec<SocketAddr>,
    /// Addresses elsewhere that a NAT was asked to lead to it.
    mapped: Advertised,
    /// Where each neighbour sees this host.
    seen_by: BTreeMap<HostLabel, SocketAddr>,
    /// Whether any has told.
    is_seen: bool,
    /// What of it is announced, when that may change again, and how often.
    seen: Vec<SocketAddr>,
    stays_until: Time,
    changes: Bucket,
}

impl OwnAddresses {
    pub(super) fn new(reach: OwnReach, now: Time) -> Self {
        OwnAddresses {
            reach,
            local: Vec::new(),
            mapped: Advertised::default(),
            seen_by: BTreeMap::new(),
            is_seen: false,
            seen: Vec::new(),
            stays_until: now,
            changes: Bucket::new(CHANGE_BUDGET, now),
        }
    }

    /// Sets the addresses of this host's interfaces. With a new one it may be seen elsewhere, however often that changed before.
    pub(super) fn set_local(&mut self, addresses: Vec<IpAddr>, now: Time) {
        let before = std::mem::take(&mut self.local);
        self.local = addresses.into_iter().map(|ip| SocketAddr::new(ip, self.reach.port)).collect();
        // The order tells only which are likelier.
        if self.local.iter().any(|address| !before.contains(address)) {
            (self.stays_until, self.changes) = (now, Bucket::new(CHANGE_BUDGET, now));
        }
    }

    /// Sets the addresses that a NAT leads to this host.
    pub(crate) fn set_mapped(&mut self, mapped: Advertised) {
        self.mapped = mapped;
    }

    /// The addresses elsewhere that lead to this host, those that its operator named first.
    pub(crate) fn advertised(&self) -> Advertised {
        let both = |named: &[SocketAddr], mapped: &[SocketAddr]| {
            let new = mapped.iter().filter(|mapped| !named.contains(mapped));
            named.iter().chain(new).take(MAX_ADVERTISED).copied().collect()
        };
        let Advertised { udp, tcp } = &self.reach.advertised;
        Advertised { udp: both(udp, &self.mapped.udp), tcp: both(tcp, &self.mapped.tcp) }
    }

    /// The addresses of this host's interfaces, with its port.
    pub(crate) fn local(&self) -> &[SocketAddr] {
        &self.local
    }

    /// The addresses of this host's interfaces that others are told.
    pub(crate) fn announced(&self) -> Vec<SocketAddr> {
        self.local.iter().take(MAX_LIST).copied().collect()
    }

    /// The addresses at which peers see it that others are told.
    pub(crate) fn seen(&self) -> Vec<SocketAddr> {
        self.seen.iter().filter(|seen| !self.local.contains(seen)).copied().collect()
    }

    /// Whether others see this host at a port that is not its own: its NAT may map each destination to another.
    pub(super) fn is_mapped_elsewhere(&self) -> bool {
        self.seen.iter().any(|seen| seen.port() != self.reach.port && !self.local.contains(seen))
    }

    /// How peers see this host.
    pub(super) fn mapping(&self) -> Mapping {
        mapping(self.seen_by.values().copied(), self.is_seen)
    }

    /// Forgets where a lost neighbour saw this host.
    pub(super) fn unsee(&mut self, by: HostLabel) {
        self.seen_by.remove(&by);
    }

    /// Notes where a peer sees this host: it may be the way in through a NAT. True if what is announced changed. Only what most
    /// peers see is announced, and not every change of it: a NAT may show each peer another address, and a peer may say
    /// anything.
    pub(super) fn note_seen(&mut self, by: HostLabel, seen: SocketAddr, now: Time) -> bool {
        self.is_seen = true;
        if self.local.contains(&seen) {
            self.seen_by.remove(&by);
        } else {
            self.seen_by.insert(by, seen);
        }
        if now < self.stays_until {
            // The next answer of any peer tells again.
            return false;
        }
        let mut counts: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        self.seen_by.values().for_each(|address| *counts.entry(*address).or_default() += 1);
        let mut counts: Vec<(SocketAddr, usize)> = counts.into_iter().collect();
        counts.sort_by_key(|(address, count)| (Reverse(*count), *address));
        let seen: Vec<SocketAddr> = counts.into_iter().take(MAX_SEEN).map(|(address, _)| address).collect();
        let is_told = seen != self.seen && self.changes.take(SECONDS_PER_CHANGE, 1, CHANGE_BUDGET, now);
        if is_told {
            (self.seen, self.stays_until) = (seen, now + SEEN_SOONEST);
        }
        is_told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_peers_see_is_announced_and_changes_seldom() {
        let at = |host: u8| SocketAddr::from(([192, 0, 2, host], 6783));
        let peer = |n: u8| HostLabel([n; 6]);
        let second = |n: u64| Time::ZERO + Duration::from_secs(n);
        let mut addresses = OwnAddresses::new(OwnReach::at_port(6783), second(0));
        addresses.set_local(vec![[192, 0, 2, 1].into()], second(0));
        assert!(!addresses.note_seen(peer(1), at(1), second(1)), "it is known as a local one");
        assert!(addresses.note_seen(peer(1), at(9), second(2)));
        assert_eq!((addresses.announced(), addresses.seen()), (vec![at(1)], vec![at(9)]));
        assert!(addresses.note_seen(peer(2), at(8), second(3)));
        assert!(!addresses.note_seen(peer(3), at(8), second(6)), "the order of these two is what it was");
        assert_eq!(addresses.seen(), [at(8), at(9)]);
        addresses.unsee(peer(1));
        assert!(addresses.note_seen(peer(5), at(8), second(66)));
        assert_eq!(addresses.seen(), [at(8)]);
    }

    #[test]
    fn mapped_addresses_are_advertised_after_those_that_the_operator_named() {
        let at = |port: u16| SocketAddr::from(([203, 0, 113, 1], port));
        let named = Advertised { udp: vec![at(1), at(2)], tcp: Vec::new() };
        let mut addresses = OwnAddresses::new(OwnReach { advertised: named, ..OwnReach::at_port(6783) }, Time::ZERO);
        let mapped = [2, 3, 4, 5].map(at).to_vec();
        addresses.set_mapped(Advertised { udp: mapped, tcp: vec![at(9)] });
        let Advertised { udp, tcp } = addresses.advertised();
        assert_eq!((udp, tcp), ([1, 2, 3, 4].map(at).to_vec(), vec![at(9)]));
        addresses.set_mapped(Advertised::default());
        assert_eq!(addresses.advertised(), addresses.reach.advertised);
    }

    #[test]
    fn an_address_that_changes_while_changes_are_held_back_is_announced_afterwards() {
        let at = |host: u8| SocketAddr::from(([192, 0, 2, host], 6783));
        let peer = HostLabel([1; 6]);
        let moment = |n: u64| Time::ZERO + Duration::from_millis(n);
        let mut addresses = OwnAddresses::new(OwnReach::at_port(6783), moment(0));
        assert!(addresses.note_seen(peer, at(8), moment(0)));
        assert!(!addresses.note_seen(peer, at(9), moment(500)));
        assert!(addresses.note_seen(peer, at(9), moment(1000)), "the same address again, once it may be told");
        assert_eq!(addresses.seen(), [at(9)]);
    }

    #[test]
    fn a_peer_that_says_something_else_each_time_changes_what_is_announced_ever_more_seldom() {
        let mut addresses = OwnAddresses::new(OwnReach::at_port(6783), Time::ZERO);
        let changes = (0..600u64).filter(|second| {
            let seen = SocketAddr::from(([198, 51, (second / 250) as u8, (second % 250) as u8], 6783));
            addresses.note_seen(HostLabel([1; 6]), seen, Time::ZERO + Duration::from_secs(*second))
        });
        assert!((15..30).contains(&changes.count()));
    }

    #[test]
    fn a_host_that_moves_often_tells_each_time_within_a_second() {
        let mut addresses = OwnAddresses::new(OwnReach::at_port(6783), Time::ZERO);
        for moved in 0..30u8 {
            let now = Time::ZERO + Duration::from_secs(4 * u64::from(moved));
            addresses.set_local(vec![[10, 0, moved, 1].into()], now);
            addresses.set_local(vec![[10, 0, moved, 1].into()], now + Duration::from_secs(2));
            let seen = |n: u8| SocketAddr::from(([198, 51, 100, moved], 6783 + u16::from(n)));
            assert!(addresses.note_seen(HostLabel([1; 6]), seen(0), now));
            assert!(addresses.note_seen(HostLabel([1; 6]), seen(1), now + SEEN_SOONEST), "its NAT starts again");
        }
    }
}
