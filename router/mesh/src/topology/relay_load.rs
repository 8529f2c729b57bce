//! How little of its time a relay has to spare for others' frames, as it announces it.
//!
//! With each step up, other hosts choose it for half as many of the pairs that have other relays at the same cost. It steps up while it works nearly
//! all the time, and down after a minute in which it was less busy than [`Punt::Busy`](crate::datapath::sink::Punt::Busy) tells of: with twice the
//! pairs it then stays below what made it step up, so it does not go back and forth.

use std::time::Duration;

use weft_crypto::Time;

use crate::records::MAX_LOAD;

/// Percent of the time from which on a relay works nearly all of it.
const HIGH: u8 = 90;
/// How long it does so before it steps up, and between two reports of that time.
const LASTS: Duration = Duration::from_secs(3);
const GAP: Duration = Duration::from_millis(1500);
/// How long others take to follow a step.
const SETTLES: Duration = Duration::from_secs(10);
/// How long it is not busy before it steps down.
const CALM: Duration = Duration::from_secs(60);

/// What this host announces of its load.
pub(crate) struct RelayLoad {
    level: u8,
    changed: Time,
    /// When it was last told that a worker is busy.
    busy: Time,
    /// Since when one works nearly all the time, and the last report of that.
    high: Option<(Time, Time)>,
    /// The level is not announced yet.
    has_news: bool,
}

impl RelayLoad {
    pub(super) fn new() -> Self {
        RelayLoad { level: 0, changed: Time::ZERO, busy: Time::ZERO, high: None, has_news: false }
    }

    /// The steps it announces.
    pub(crate) fn level(&self) -> u8 {
        self.level
    }

    /// A worker that relays worked for so many percent of the last second.
    pub(crate) fn note(&mut self, percent: u8, now: Time) {
        self.busy = now;
        if percent < HIGH {
            return;
        }
        let began = self.high.filter(|(_, last)| now.since(*last) <= GAP).map_or(now, |(began, _)| began);
        self.high = Some((began, now));
        let is_settled = self.level == 0 || now.since(self.changed) >= SETTLES;
        if self.level < MAX_LOAD && is_settled && now.since(began) >= LASTS {
            self.step(self.level + 1, now);
        }
    }

    /// Returns whether there is another level to announce.
    pub(super) fn tend(&mut self, now: Time) -> bool {
        if self.level > 0 && now.since(self.busy.max(self.changed)) >= CALM {
            self.step(self.level - 1, now);
        }
        std::mem::take(&mut self.has_news)
    }

    fn step(&mut self, level: u8, now: Time) {
        (self.level, self.changed, self.has_news) = (level, now, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::lab::at;

    /// Reports once a second; when the level changed, and to what.
    fn steps(load: &mut RelayLoad, seconds: std::ops::Range<u64>, percent: Option<u8>) -> Vec<(u64, u8)> {
        let changed = seconds.filter_map(|second| {
            let now = at(second * 1000);
            percent.into_iter().for_each(|percent| load.note(percent, now));
            load.tend(now).then_some((second, load.level()))
        });
        changed.collect()
    }

    #[test]
    fn a_busy_relay_steps_up_and_a_calm_one_down() {
        let mut load = RelayLoad::new();
        assert_eq!(steps(&mut load, 100..200, Some(89)), []);
        assert_eq!(steps(&mut load, 200..203, Some(100)), [], "it may be a burst");
        assert_eq!(steps(&mut load, 300..400, Some(95)), [(303, 1), (313, 2), (323, 3), (333, 4)]);
        assert_eq!(steps(&mut load, 400..600, Some(41)), [], "with twice the pairs it would be busy");
        assert_eq!(steps(&mut load, 600..1000, None), [(659, 3), (719, 2), (779, 1), (839, 0)]);
    }

    #[test]
    fn reports_of_other_workers_change_nothing_about_a_busy_one() {
        let mut load = RelayLoad::new();
        for second in 100..104 {
            load.note(50, at(second * 1000));
            load.note(99, at(second * 1000 + 300));
            load.note(45, at(second * 1000 + 700));
        }
        assert_eq!(load.level(), 1);
    }
}
