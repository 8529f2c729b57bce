//! The load of a relay, as it announces it.
//!
//! With each step up it wins half as often against other relays of the same cost. It steps up while it works nearly all the time, and down after a
//! minute in which it was less busy than [`Punt::Busy`](crate::datapath::sink::Punt::Busy) tells of: with twice as many small pairs it then stays below what
//! made it step up. One large pair may be all of its load, and come back with the step down: so the minute doubles, up to an hour, each time the
//! step is taken back.

use std::time::Duration;

use weft_crypto::Time;

use crate::records::MAX_LOAD;

/// The share of the time, in percent, from which on a relay works nearly all of it.
const HIGH: u8 = 90;
/// The time that it does so before it steps up, and the longest between two reports of that time: workers report once a second.
const LASTS: Duration = Duration::from_secs(3);
const GAP: Duration = Duration::from_millis(2500);
/// The time that others take to follow a step.
const SETTLES: Duration = Duration::from_secs(10);
/// The time without a busy worker before it steps down, at first and at most.
const CALM: Duration = Duration::from_secs(60);
const LONGEST_CALM: Duration = Duration::from_secs(3600);

/// The load that this host announces.
pub(crate) struct RelayLoad {
    level: u8,
    changed: Time,
    /// The last report of a busy worker.
    busy: Time,
    /// The first and the last report, in a row, of workers that work nearly all the time and relay.
    high: Option<(Time, Time)>,
    /// The time without a busy worker before the next step down, and whether the last step was one.
    calm: Duration,
    is_down: bool,
    /// Whether the level is yet to be announced.
    has_news: bool,
}

impl RelayLoad {
    pub(super) fn new() -> Self {
        RelayLoad {
            level: 0,
            changed: Time::ZERO,
            busy: Time::ZERO,
            high: None,
            calm: CALM,
            is_down: false,
            has_news: false,
        }
    }

    /// Returns the steps that it announces.
    pub(crate) fn level(&self) -> u8 {
        self.level
    }

    /// Notes that a worker worked for so many percent of the last second, and whether it relayed.
    pub(crate) fn note(&mut self, percent: u8, relays: bool, now: Time) {
        self.busy = now;
        if percent < HIGH || !relays {
            return;
        }
        let began = self.high.filter(|(_, last)| now.since(*last) <= GAP).map_or(now, |(began, _)| began);
        self.high = Some((began, now));
        let is_settled = self.level == 0 || now.since(self.changed) >= SETTLES;
        if self.level < MAX_LOAD && is_settled && now.since(began) >= LASTS {
            if std::mem::take(&mut self.is_down) {
                let is_taken_back = now.since(self.changed) < self.calm;
                self.calm = if is_taken_back { (self.calm * 2).min(LONGEST_CALM) } else { CALM };
            }
            self.step(self.level + 1, now);
        }
    }

    /// Returns whether there is another level to announce.
    pub(super) fn tend(&mut self, now: Time) -> bool {
        if self.level > 0 && now.since(self.busy.max(self.changed)) >= self.calm {
            self.is_down = true;
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
            percent.into_iter().for_each(|percent| load.note(percent, true, now));
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
            load.note(50, true, at(second * 1000));
            load.note(99, true, at(second * 1000 + 300));
            load.note(100, false, at(second * 1000 + 700));
        }
        assert_eq!(load.level(), 1);
    }

    #[test]
    fn a_host_that_is_busy_for_itself_does_not_step_up_and_stays_where_it_is() {
        let mut load = RelayLoad::new();
        let busy_for_itself = |load: &mut RelayLoad, seconds: std::ops::Range<u64>| {
            seconds.into_iter().for_each(|second| load.note(100, false, at(second * 1000)));
        };
        busy_for_itself(&mut load, 100..200);
        assert_eq!(load.level(), 0);
        assert_eq!(steps(&mut load, 200..204, Some(100)), [(203, 1)]);
        busy_for_itself(&mut load, 204..1000);
        assert_eq!(steps(&mut load, 1000..1060, None), [(1059, 0)]);
    }

    #[test]
    fn a_pair_that_comes_back_with_each_step_down_makes_these_rarer() {
        let mut load = RelayLoad::new();
        let (mut ups, mut has_pair) = (Vec::new(), true);
        for second in 100..20_000 {
            if has_pair {
                load.note(100, true, at(second * 1000));
            }
            if load.tend(at(second * 1000)) {
                has_pair = load.level() == 0;
                ups.extend((!has_pair).then_some(second));
            }
        }
        let waits: Vec<u64> = ups.windows(2).map(|ups| (ups[1] - ups[0]) / 60).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60], "minutes");
    }
}
