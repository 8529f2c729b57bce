//! Addresses where a peer may be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use weft_crypto::Time;

use crate::backoff::Backoff;

/// Addresses tried for one peer.
const MAX: usize = 16;
/// Longest waits between tries of an address: a likely one, and any other.
const LONGEST_LIKELY: Duration = Duration::from_secs(2);
const LONGEST_UNLIKELY: Duration = Duration::from_secs(30);

/// The addresses of one peer.
#[derive(Default)]
pub(super) struct Candidates(BTreeMap<SocketAddr, Candidate>);

#[derive(Clone, Copy, Default)]
struct Candidate {
    retry: Backoff,
    /// Named by the operator, or an address the peer was at: worth trying often.
    is_likely: bool,
}

/// An address to try now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Due {
    pub(super) address: SocketAddr,
    /// Tries that failed before this one.
    pub(super) failures: u32,
    pub(super) is_likely: bool,
}

impl Candidates {
    /// Adds an address. When the list is full the least likely one makes room, unless all are likely and answer.
    pub(super) fn add(&mut self, address: SocketAddr, is_likely: bool) {
        if self.0.len() >= MAX && !self.0.contains_key(&address) {
            let replaceable = self.0.iter().filter(|(_, c)| !c.is_likely || c.retry.failures() > 2);
            let worst = replaceable.max_by_key(|(_, c)| (!c.is_likely, c.retry.failures()));
            let Some(worst) = worst.map(|(address, _)| *address) else { return };
            self.0.remove(&worst);
        }
        self.0.entry(address).or_default().is_likely |= is_likely;
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = &SocketAddr> {
        self.0.keys()
    }

    /// The addresses worth keeping across restarts.
    pub(super) fn likely(&self) -> Vec<SocketAddr> {
        self.0.iter().filter(|(_, candidate)| candidate.is_likely).map(|(address, _)| *address).collect()
    }

    /// Leaves likely only those that `is_wanted` names.
    pub(super) fn keep_likely(&mut self, is_wanted: impl Fn(&SocketAddr) -> bool) {
        for (address, candidate) in &mut self.0 {
            candidate.is_likely &= is_wanted(address);
        }
    }

    /// Starts over with an address that answered, or whose link was lost.
    pub(super) fn reset(&mut self, address: SocketAddr, now: Time) {
        if let Some(candidate) = self.0.get_mut(&address) {
            candidate.retry.reset(now);
        }
    }

    /// Returns the addresses to try now, `tries` at most, which it counts down; `own` are never tried.
    pub(super) fn due(&mut self, own: &[SocketAddr], tries: &mut usize, jitter: f64, now: Time) -> Vec<Due> {
        let mut due = Vec::new();
        for (address, candidate) in &mut self.0 {
            if *tries > 0 && candidate.retry.is_due(now) && !own.contains(address) {
                *tries -= 1;
                let Candidate { retry, is_likely } = candidate;
                due.push(Due { address: *address, failures: retry.failures(), is_likely: *is_likely });
                retry.on_try(now, if *is_likely { LONGEST_LIKELY } else { LONGEST_UNLIKELY }, jitter);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 6783))
    }

    #[test]
    fn a_full_list_gives_up_unlikely_addresses_first_and_never_likely_ones_that_answer() {
        let mut candidates = Candidates::default();
        (0..20).for_each(|host| candidates.add(address(host), host < 15));
        assert_eq!((candidates.addresses().count(), candidates.likely().len()), (MAX, 15));
        candidates.add(address(30), true);
        candidates.add(address(31), true);
        assert!(candidates.likely().contains(&address(30)) && !candidates.likely().contains(&address(31)));
    }

    #[test]
    fn due_addresses_are_bounded_back_off_and_leave_out_own_ones() {
        let mut candidates = Candidates::default();
        (0..4).for_each(|host| candidates.add(address(host), host == 0));
        let (mut tries, now) = (2, Time::ZERO);
        let due = candidates.due(&[address(1)], &mut tries, 0.5, now);
        assert_eq!(due.iter().map(|due| due.address).collect::<Vec<_>>(), [address(0), address(2)]);
        assert_eq!(tries, 0);
        let due = candidates.due(&[], &mut 9, 0.5, now);
        assert_eq!(due.iter().map(|due| due.address).collect::<Vec<_>>(), [address(1), address(3)]);
        candidates.reset(address(0), now);
        assert_eq!(candidates.due(&[], &mut 9, 0.5, now).len(), 1);
    }
}
