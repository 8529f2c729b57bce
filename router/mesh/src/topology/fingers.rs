//! Whom to link with in a large mesh.

use std::collections::BTreeSet;

use weft_crypto::HostLabel;

/// Hosts at distances 1, 2, 4, ... around the ring of labels: log N links that connect everything (after Chord, SIGCOMM
/// 2001).
#[derive(Default)]
pub(super) struct Fingers {
    /// All hosts of the mesh that relay, and this one.
    hosts: BTreeSet<HostLabel>,
    is_stale: bool,
    /// Hosts that this one links with.
    to: BTreeSet<HostLabel>,
    /// Hosts that link with this one.
    from: BTreeSet<HostLabel>,
}

impl Fingers {
    /// Adds or removes a host that relays, or this one.
    pub(super) fn set(&mut self, host: HostLabel, is_there: bool) {
        self.is_stale |= if is_there { self.hosts.insert(host) } else { self.hosts.remove(&host) };
    }

    /// Computes the fingers of `own` anew if hosts have come or gone.
    pub(super) fn refresh(&mut self, own: HostLabel) {
        if !std::mem::take(&mut self.is_stale) {
            return;
        }
        let ring: Vec<HostLabel> = self.hosts.iter().copied().collect();
        let len = ring.len();
        let distances = || (0..usize::BITS).map(|bit| 1 << bit).take_while(|distance| *distance < len);
        let Ok(own) = ring.binary_search(&own) else { return };
        self.to = distances().map(|distance| ring[(own + distance) % len]).collect();
        self.from = distances().map(|distance| ring[(own + len - distance) % len]).collect();
    }

    pub(super) fn contains(&self, host: HostLabel) -> bool {
        self.to.contains(&host)
    }

    pub(super) fn is_finger_of(&self, host: HostLabel) -> bool {
        self.from.contains(&host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingers_are_at_powers_of_two_around_the_ring_and_mutual() {
        let label = |n: u8| HostLabel([n; 6]);
        let mut fingers = Fingers::default();
        (0..10).for_each(|n| fingers.set(label(n), true));
        fingers.refresh(label(8));
        assert_eq!(fingers.to, [9, 0, 2, 6].map(label).into());
        assert_eq!(fingers.from, [7, 6, 4, 0].map(label).into());
        fingers.set(label(9), false);
        fingers.refresh(label(8));
        assert!(fingers.contains(label(0)) && fingers.is_finger_of(label(7)));
    }
}
