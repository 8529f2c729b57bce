//! Hosts whose traffic is paid for by the byte.

use std::collections::BTreeSet;

use weft_crypto::HostLabel;

/// Which hosts are metered.
pub(crate) struct Metered {
    /// Whether this host is.
    pub(crate) own: bool,
    others: BTreeSet<HostLabel>,
}

impl Metered {
    pub(super) fn new(own: bool) -> Self {
        Metered { own, others: BTreeSet::new() }
    }

    /// Takes note of whether another host is.
    pub(super) fn set(&mut self, host: HostLabel, is_metered: bool) {
        if is_metered {
            self.others.insert(host);
        } else {
            self.others.remove(&host);
        }
    }

    /// Whether another host is.
    pub(crate) fn contains(&self, host: HostLabel) -> bool {
        self.others.contains(&host)
    }

    /// Whether what this host and another say to each other is paid for, by either.
    pub(crate) fn is_between(&self, host: HostLabel) -> bool {
        self.own || self.contains(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_say_to_each_other_is_paid_for_if_either_is_metered() {
        let [a, b] = [1, 2].map(|n| HostLabel([n; 6]));
        let mut metered = Metered::new(false);
        metered.set(a, true);
        assert!(metered.is_between(a) && !metered.is_between(b));
        metered.set(a, false);
        assert!(!metered.contains(a));
        assert!(Metered::new(true).is_between(b) && !Metered::new(true).contains(b));
    }
}
