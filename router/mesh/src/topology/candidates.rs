//! Paths by which a peer may be reached.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use weft_crypto::Time;

use crate::backoff::Backoff;
use crate::path::Path;

/// Paths tried for one peer.
const MAX: usize = 16;
/// Longest waits between tries of an address: a likely one, and any other.
const LONGEST_LIKELY: Duration = Duration::from_secs(2);
const LONGEST_UNLIKELY: Duration = Duration::from_secs(30);

/// The candidates of one peer.
#[derive(Default)]
pub(super) struct Candidates(BTreeMap<Path, Candidate>);

#[derive(Clone, Copy, Default)]
struct Candidate {
    retry: Backoff,
    /// Named by the operator, or a path that worked: worth trying often.
    is_likely: bool,
}

/// A path to try now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Due {
    pub(super) path: Path,
    /// Tries that failed before this one.
    pub(super) failures: u32,
    pub(super) is_likely: bool,
}

impl Candidates {
    /// Adds an address. When the list is full the least likely one makes room, unless all are likely and answer.
    pub(super) fn add(&mut self, path: Path, is_likely: bool) {
        // What the peer asked now may not be this host's address when it is tried.
        let path = path.from_any();
        if self.0.len() >= MAX && !self.0.contains_key(&path) {
            let replaceable = self.0.iter().filter(|(_, c)| !c.is_likely || c.retry.failures() > 2);
            let worst = replaceable.max_by_key(|(_, c)| (!c.is_likely, c.retry.failures()));
            let Some(worst) = worst.map(|(path, _)| *path) else { return };
            self.0.remove(&worst);
        }
        self.0.entry(path).or_default().is_likely |= is_likely;
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys()
    }

    /// The addresses worth keeping across restarts.
    pub(super) fn likely(&self) -> Vec<SocketAddr> {
        self.0.iter().filter(|(_, candidate)| candidate.is_likely).map(|(path, _)| path.remote).collect()
    }

    /// Leaves likely only those that `is_wanted` names.
    pub(super) fn keep_likely(&mut self, is_wanted: impl Fn(&Path) -> bool) {
        for (path, candidate) in &mut self.0 {
            candidate.is_likely &= is_wanted(path);
        }
    }

    /// Starts over with an address that answered, or whose link was lost.
    pub(super) fn reset(&mut self, path: Path, now: Time) {
        if let Some(candidate) = self.0.get_mut(&path.from_any()) {
            candidate.retry.reset(now);
        }
    }

    /// Returns the addresses to try now, `tries` at most, which it counts down; `own` are never tried.
    pub(super) fn due(&mut self, own: &[SocketAddr], tries: &mut usize, jitter: f64, now: Time) -> Vec<Due> {
        let mut due = Vec::new();
        for (path, candidate) in &mut self.0 {
            if *tries > 0 && candidate.retry.is_due(now) && !own.contains(&path.remote) {
                *tries -= 1;
                let Candidate { retry, is_likely } = candidate;
                due.push(Due { path: *path, failures: retry.failures(), is_likely: *is_likely });
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

    fn path(host: u8) -> Path {
        Path::udp(address(host))
    }

    #[test]
    fn a_full_list_gives_up_unlikely_addresses_first_and_never_likely_ones_that_answer() {
        let mut candidates = Candidates::default();
        (0..20).for_each(|host| candidates.add(path(host), host < 15));
        assert_eq!((candidates.paths().count(), candidates.likely().len()), (MAX, 15));
        candidates.add(path(30), true);
        candidates.add(path(31), true);
        assert!(candidates.likely().contains(&address(30)) && !candidates.likely().contains(&address(31)));
    }

    #[test]
    fn due_addresses_are_bounded_back_off_and_leave_out_own_ones() {
        let mut candidates = Candidates::default();
        (0..4).for_each(|host| candidates.add(path(host), host == 0));
        let (mut tries, now) = (2, Time::ZERO);
        let due = candidates.due(&[address(1)], &mut tries, 0.5, now);
        assert_eq!(due.iter().map(|due| due.path).collect::<Vec<_>>(), [path(0), path(2)]);
        assert_eq!(tries, 0);
        let due = candidates.due(&[], &mut 9, 0.5, now);
        assert_eq!(due.iter().map(|due| due.path).collect::<Vec<_>>(), [path(1), path(3)]);
        candidates.reset(path(0), now);
        assert_eq!(candidates.due(&[], &mut 9, 0.5, now).len(), 1);
    }
}
