//! Neighbours that are avoided on the way to one host.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

/// How long a neighbour is avoided, at first and at most. Each time that it fails soon after doubles it.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// How long one without use is remembered beyond its time, at least.
const KEPT: Duration = Duration::from_secs(600);

/// Neighbours by which what goes to one host does not arrive.
#[derive(Default)]
pub(super) struct Avoidances(BTreeMap<HostLabel, Avoidance>);

struct Avoidance {
    /// Until when; then it has to prove itself.
    until: Time,
    length: Duration,
    /// It has done so. What is left tells how long it is avoided if it fails again.
    has_ended: bool,
}

impl Avoidances {
    /// Avoids a neighbour from now on, and returns for how long; `None`: it is avoided already.
    pub(super) fn begin(&mut self, via: HostLabel, now: Time) -> Option<Duration> {
        let length = match self.0.get(&via) {
            Some(before) if !before.has_ended => return None,
            Some(before) => (before.length * 2).min(LONGEST),
            None => FIRST,
        };
        self.0.insert(via, Avoidance { until: now + length, length, has_ended: false });
        Some(length)
    }

    /// Ends those whose time is over and which are proved since then; returns them.
    pub(super) fn end(&mut self, now: Time, is_proved: impl Fn(HostLabel, Time) -> bool) -> Vec<HostLabel> {
        self.0.retain(|_, avoidance| !avoidance.has_ended || now.since(avoidance.until) < avoidance.length * 2);
        let mut ended = Vec::new();
        for (via, avoidance) in self.0.iter_mut().filter(|(_, avoidance)| avoidance.is_on_trial(now)) {
            if is_proved(*via, avoidance.until) {
                avoidance.has_ended = true;
                ended.push(*via);
            }
        }
        ended
    }

    /// Neighbours that have to prove themselves.
    pub(super) fn on_trial(&self, now: Time) -> impl Iterator<Item = HostLabel> {
        self.0.iter().filter(move |(_, avoidance)| avoidance.is_on_trial(now)).map(|(via, _)| *via)
    }

    /// Whether a neighbour is avoided.
    pub(super) fn contains(&self, via: HostLabel) -> bool {
        self.0.get(&via).is_some_and(|avoidance| !avoidance.has_ended)
    }

    /// Whether any is.
    pub(super) fn is_any(&self) -> bool {
        self.0.values().any(|avoidance| !avoidance.has_ended)
    }

    /// Whether all are long past.
    pub(super) fn is_past(&self, now: Time) -> bool {
        self.0.values().all(|avoidance| now >= avoidance.until + KEPT.max(avoidance.length * 2))
    }
}

impl Avoidance {
    fn is_on_trial(&self, now: Time) -> bool {
        !self.has_ended && now >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::lab::at;

    #[test]
    fn a_neighbour_is_avoided_for_longer_each_time_that_it_fails_soon_after() {
        let (mut avoidances, via) = (Avoidances::default(), HostLabel([8; 6]));
        assert_eq!(avoidances.begin(via, at(0)), Some(FIRST));
        assert_eq!((avoidances.begin(via, at(10)), avoidances.contains(via)), (None, true));
        let yes = |_, _| true;
        assert!(avoidances.end(at(59_000), yes).is_empty() && avoidances.on_trial(at(59_000)).next().is_none());
        assert!(avoidances.end(at(60_000), |_, _| false).is_empty() && !avoidances.is_past(at(60_000)));
        assert_eq!(avoidances.end(at(61_000), |_, since| since == at(60_000)), [via]);
        assert!(!avoidances.contains(via) && !avoidances.is_any());
        assert_eq!(avoidances.begin(via, at(100_000)), Some(FIRST * 2));
        assert_eq!(avoidances.end(at(220_000), yes), [via]);
        avoidances.end(at(2_000_000), yes);
        assert_eq!(avoidances.begin(via, at(2_000_000)), Some(FIRST), "that was long ago");
    }
}
