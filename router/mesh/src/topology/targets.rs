//! Peers that the operator named, and those that the operator no longer wants a link with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use weft_crypto::{HostLabel, PeerId, Time};

use super::Peer;
use super::candidates::LONGEST_METERED;
use crate::api::Target;
use crate::backoff::Backoff;
use crate::ipam::Named;
use crate::path::Path;
use crate::report::TargetState;

/// Tries after which a target that never answered is reported as silent: some 13 s.
const SILENT: u32 = 8;
/// Longest wait between two tries.
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// What the operator said about links.
#[derive(Default)]
pub(crate) struct Targets {
    by_name: BTreeMap<String, Vec<SocketAddr>>,
    addresses: BTreeMap<SocketAddr, TargetAddress>,
    /// Peers without a wanted link, by the names they had, with their keys where those were known.
    forgotten: BTreeMap<String, Option<PeerId>>,
}

/// An address that the operator named, until it is known whose it is.
#[derive(Default)]
struct TargetAddress {
    peer: Option<HostLabel>,
    retry: Backoff,
}

impl Targets {
    /// Adds targets, or notes their present addresses. Names are resolved again and again: earlier unanswered tries still
    /// count.
    pub(crate) fn connect(&mut self, targets: &[Target], now: Time) {
        for target in targets {
            for address in &target.addresses {
                self.addresses.entry(*address).or_default().retry.hurry(now);
            }
            self.by_name.insert(target.name.clone(), target.addresses.clone());
        }
        self.drop_unnamed();
    }

    /// Picks up a target from the store.
    pub(crate) fn restore(&mut self, name: String, addresses: Vec<SocketAddr>) {
        for address in &addresses {
            self.addresses.entry(*address).or_default();
        }
        self.by_name.insert(name, addresses);
    }

    /// Picks up a forgotten peer from the store.
    pub(crate) fn restore_forgotten(&mut self, name: String, peer: Option<PeerId>) {
        self.forgotten.insert(name, peer);
    }

    /// Removes a target; returns the peer that was found there.
    pub(super) fn remove(&mut self, name: &str) -> Option<HostLabel> {
        let addresses = self.by_name.remove(name).unwrap_or_default();
        let peer = self.peer_at(&addresses);
        self.drop_unnamed();
        peer
    }

    fn drop_unnamed(&mut self) {
        let named: Vec<SocketAddr> = self.by_name.values().flatten().copied().collect();
        self.addresses.retain(|address, _| named.contains(address));
    }

    /// Notes that no link with a peer is wanted any more.
    pub(crate) fn forget(&mut self, name: String, peer: Option<PeerId>) {
        self.forgotten.insert(name, peer);
    }

    /// Notes that a name is wanted again; false if it was not forgotten.
    pub(crate) fn remember(&mut self, name: &str) -> bool {
        self.forgotten.remove(name).is_some()
    }

    pub(crate) fn is_forgotten_name(&self, name: &str) -> bool {
        self.forgotten.contains_key(name)
    }

    /// Whether the operator no longer wants a link with a peer.
    pub(super) fn is_forgotten(&self, peer: HostLabel) -> bool {
        self.forgotten.values().flatten().any(|id| id.label() == peer)
    }

    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(super) fn has_address(&self, address: &SocketAddr) -> bool {
        self.addresses.contains_key(address)
    }

    /// The addresses that the operator named.
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.keys().copied()
    }

    /// Whether an address that the operator named leads to a peer.
    pub(crate) fn leads_to(&self, peer: HostLabel) -> bool {
        self.addresses.values().any(|target| target.peer == Some(peer))
    }

    /// Names and addresses.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Vec<SocketAddr>)> {
        self.by_name.iter()
    }

    /// The peer found at a target.
    pub(crate) fn peer_named(&self, name: &str) -> Option<HostLabel> {
        self.peer_at(self.by_name.get(name)?)
    }

    /// The peer found at one of these addresses.
    pub(crate) fn peer_at(&self, addresses: &[SocketAddr]) -> Option<HostLabel> {
        addresses.iter().find_map(|address| self.addresses.get(address)?.peer)
    }

    /// A peer answered over a path: if the operator named the address it leads to, it is the peer that was meant. Returns that address. A host
    /// that answered there itself is not displaced by one that answered at another port.
    pub(super) fn claim(&mut self, path: Path, peer: HostLabel) -> Option<SocketAddr> {
        let address = self.named_at(path)?;
        let target = self.addresses.get_mut(&address)?;
        if target.peer.is_some_and(|known| known != peer) && address != path.remote {
            return None;
        }
        *target = TargetAddress { peer: Some(peer), retry: Backoff::default() };
        Some(address)
    }

    /// Returns the addresses to try now, with the tries so far. `is_busy` tells addresses that need no try: their peer is
    /// known, they are this host's own, or a handshake is under way.
    pub(super) fn due(
        &mut self,
        is_busy: impl Fn(SocketAddr, Option<HostLabel>) -> bool,
        is_metered: bool,
        now: Time,
    ) -> Vec<(SocketAddr, u32)> {
        let mut due = Vec::new();
        for (address, target) in &mut self.addresses {
            if target.retry.is_due(now) && !is_busy(*address, target.peer) {
                due.push((*address, target.retry.failures()));
                target.retry.on_try(now, if is_metered { LONGEST_METERED } else { LONGEST_RETRY }, 0.5);
            }
        }
        due
    }

    /// Returns the names of targets that have just been found silent at their first address, after `tries` of it.
    pub(super) fn fallen_silent(&self, address: SocketAddr, tries: u32, own: &[SocketAddr]) -> Vec<String> {
        let is_silent = |addresses: &[SocketAddr]| {
            addresses.first() == Some(&address) && self.state(addresses, own) == TargetState::Silent
        };
        let silent = self.by_name.iter().filter(|(_, addresses)| tries == SILENT && is_silent(addresses));
        silent.map(|(name, _)| name.clone()).collect()
    }

    /// How a target with these addresses stands.
    pub(crate) fn state(&self, addresses: &[SocketAddr], own: &[SocketAddr]) -> TargetState {
        let mut tried = addresses.iter().filter_map(|address| self.addresses.get(address));
        if addresses.iter().any(|address| own.contains(address)) {
            TargetState::Own
        } else if tried.clone().any(|target| target.peer.is_some()) {
            TargetState::Answered
        } else if tried.any(|target| target.retry.failures() > SILENT) {
            TargetState::Silent
        } else {
            TargetState::Trying
        }
    }

    /// The peers that the operator named, each once, and not this host.
    pub(crate) fn named_hosts(&self, own: &[SocketAddr]) -> Vec<Named> {
        let mut named: Vec<Named> = Vec::new();
        for (name, addresses) in &self.by_name {
            if addresses.iter().any(|address| own.contains(address)) {
                continue;
            }
            let host = self.peer_at(addresses);
            if host.is_none() || !named.iter().any(|other| other.host == host) {
                named.push(Named { name: name.clone(), host });
            }
        }
        named
    }
}

impl Peer {
    /// Whether the operator named any address that it may have.
    pub(super) fn is_at_any(&self, targets: &Targets) -> bool {
        let mut addresses = self.candidates.paths().filter(|path| path.is_udp()).map(|path| path.remote);
        addresses.any(|address| targets.has_address(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 6783))
    }

    fn target(name: &str, host: u8) -> Target {
        Target { name: name.into(), addresses: vec![address(host)] }
    }

    #[test]
    fn a_target_is_tried_falls_silent_once_and_is_answered() {
        let mut targets = Targets::default();
        targets.connect(&[target("host1", 1)], Time::ZERO);
        let (mut now, mut silent) = (Time::ZERO, Vec::new());
        while now < Time::ZERO + Duration::from_secs(60) {
            for (at, tries) in targets.due(|_, _| false, false, now) {
                silent.extend(targets.fallen_silent(at, tries, &[]));
            }
            now += Duration::from_millis(50);
        }
        assert_eq!(silent, ["host1"]);
        assert_eq!(targets.state(&[address(1)], &[]), TargetState::Silent);
        targets.claim(Path::udp(address(1)), HostLabel([1; 6]));
        assert_eq!(targets.state(&[address(1)], &[]), TargetState::Answered);
        assert_eq!(targets.state(&[address(1)], &[address(1)]), TargetState::Own);
        assert_eq!(targets.due(|_, peer| peer.is_some(), false, now), []);
    }

    #[test]
    fn a_host_named_twice_is_one_host_and_goes_with_its_last_name() {
        let mut targets = Targets::default();
        targets.connect(&[target("a", 1), target("b", 2), target("c", 3)], Time::ZERO);
        [1, 2]
            .into_iter()
            .for_each(|host| assert!(targets.claim(Path::udp(address(host)), HostLabel([7; 6])).is_some()));
        let names: Vec<String> = targets.named_hosts(&[address(3)]).into_iter().map(|named| named.name).collect();
        assert_eq!(names, ["a"]);
        assert_eq!(targets.remove("a"), Some(HostLabel([7; 6])));
        assert!(targets.leads_to(HostLabel([7; 6])) && !targets.has_address(&address(1)));
    }
}
