//! How fast records are told: what comes after a rest at once, what comes in quick succession together.

use std::time::Duration;

use weft_crypto::Time;

use crate::bucket::Bucket;

/// How often own changes are signed and sent, at most; and, after [`BURST`] times in quick succession, these and what others changed: the more
/// seldom the more neighbours are told.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
const FLUSH_MILLIS_PER_NEIGHBOUR: u64 = 10;
const PASS_MILLIS_PER_NEIGHBOUR: u64 = 4;
/// Neighbours that count for it.
const MANY: u64 = 25;
const BURST: u64 = 4;
/// Milliseconds of rest that a second of rest saves for later.
const SAVED_A_SECOND: u64 = 200;
/// Batches that are passed on without waiting.
const PASS_AT_ONCE: usize = 256;
/// How often a new neighbour is told at once what this host holds; else records are compared soon.
const GREET_INTERVAL: Duration = Duration::from_millis(100);

/// How often a neighbour is asked whether it holds the same records: each time nothing was new doubles the wait.
const COMPARE_SOONEST: Duration = Duration::from_secs(1);
const COMPARE_LATEST: Duration = Duration::from_secs(16);
/// The latter over metered links.
const METERED_COMPARE_LATEST: Duration = Duration::from_secs(300);

/// When what waits may be told, and neighbours be asked whether they hold the same.
pub(super) struct Pace {
    flush_after: Time,
    pass_after: Time,
    greet_after: Time,
    /// Milliseconds between flushes, and between passings on, that were not used.
    flush_budget: Bucket,
    pass_budget: Bucket,
    /// When neighbours are asked whether they hold the same, and when those that the way to is metered.
    free: Comparisons,
    metered: Comparisons,
}

/// When some neighbour is asked whether it holds the same records.
struct Comparisons {
    last: Time,
    interval: Duration,
    longest: Duration,
}

impl Comparisons {
    /// Asks at once, and then each time after up to twice as long, up to the `longest`.
    fn new(longest: Duration, now: Time) -> Self {
        Comparisons { last: now, interval: Duration::ZERO, longest }
    }

    fn is_due(&mut self, now: Time) -> bool {
        let is_due = now.since(self.last) >= self.interval;
        if is_due {
            self.last = now;
            self.interval = (self.interval * 2).clamp(COMPARE_SOONEST, self.longest);
        }
        is_due
    }
}

impl Pace {
    pub(super) fn new(now: Time) -> Self {
        let full = || Bucket::new(BURST * 1000, now);
        Pace {
            flush_after: now,
            pass_after: now,
            greet_after: now,
            flush_budget: full(),
            pass_budget: full(),
            free: Comparisons::new(COMPARE_LATEST, now),
            metered: Comparisons::new(METERED_COMPARE_LATEST, now),
        }
    }

    /// When own changes may be signed and sent.
    pub(super) fn flush_after(&self) -> Time {
        self.flush_after
    }

    /// When others' changes may be passed on.
    pub(super) fn pass_after(&self) -> Time {
        self.pass_after
    }

    /// Own changes may be sent at once, although others were a moment ago.
    pub(super) fn hurry(&mut self, now: Time) {
        self.flush_after = now;
    }

    /// Own changes are sent to so many neighbours.
    pub(super) fn on_flush(&mut self, neighbours: usize, now: Time) {
        self.flush_after =
            now + FLUSH_INTERVAL + pause(&mut self.flush_budget, FLUSH_MILLIS_PER_NEIGHBOUR, neighbours, now);
    }

    /// Whether so many batches of others may be passed on; a host with so many neighbours does so.
    pub(super) fn may_pass(&mut self, batches: usize, neighbours: usize, now: Time) -> bool {
        if batches == 0 || (now < self.pass_after && batches < PASS_AT_ONCE) {
            return false;
        }
        self.pass_after = now + pause(&mut self.pass_budget, PASS_MILLIS_PER_NEIGHBOUR, neighbours, now);
        true
    }

    /// Something is new here: some neighbour is soon asked whether there is more.
    pub(super) fn on_news(&mut self) {
        (self.free.interval, self.metered.interval) = (COMPARE_SOONEST, COMPARE_SOONEST);
    }

    /// Whether some neighbour is to be asked whether it holds the same, and one of those that the way to is metered.
    pub(super) fn may_compare(&mut self, now: Time) -> [bool; 2] {
        [self.free.is_due(now), self.metered.is_due(now)]
    }

    /// Whether a new neighbour is to be told at once what this host holds. Of many links at once the first tell: what those neighbours hold, the
    /// others need not send.
    pub(super) fn may_greet(&mut self, now: Time) -> bool {
        self.on_news();
        let may = now >= self.greet_after;
        if may {
            self.greet_after = now + GREET_INTERVAL;
        }
        may
    }
}

/// How long to wait after something that so many neighbours were told, `millis` for each: not at all while `budget` has some from earlier.
fn pause(budget: &mut Bucket, millis: u64, neighbours: usize, now: Time) -> Duration {
    let interval = millis * (neighbours as u64).min(MANY);
    let is_saved = budget.take(interval, SAVED_A_SECOND, BURST * interval, now);
    if is_saved { Duration::ZERO } else { Duration::from_millis(interval) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    /// Flushes in ten seconds of a host that always has something to tell.
    fn flushes(neighbours: usize) -> usize {
        let mut pace = Pace::new(at(0));
        let tick = |now: &u64| {
            let is_due = at(*now) >= pace.flush_after();
            if is_due {
                pace.on_flush(neighbours, at(*now));
            }
            is_due
        };
        (0..10_000).step_by(10).filter(tick).count()
    }

    #[test]
    fn changes_in_quick_succession_are_told_the_more_seldom_the_more_are_told() {
        let [one, many] = [1, 25].map(flushes);
        assert!((150..=200).contains(&one), "{one}");
        assert!((30..=45).contains(&many), "{many}");
    }

    #[test]
    fn one_is_asked_ever_more_seldom() {
        let mut pace = Pace::new(at(0));
        pace.on_news();
        let due: Vec<[bool; 2]> = (1000..601_000).step_by(50).map(|now| pace.may_compare(at(now))).collect();
        let asked = [0, 1].map(|class| due.iter().filter(|due| due[class]).count());
        assert!((39..=43).contains(&asked[0]) && (9..=11).contains(&asked[1]), "{asked:?}");
    }

    #[test]
    fn what_comes_after_a_rest_is_told_at_once() {
        let mut pace = Pace::new(at(0));
        for now in [0, 50, 100, 150] {
            assert!(at(now) >= pace.flush_after(), "{now}");
            pace.on_flush(25, at(now));
            assert!(pace.may_pass(1, 25, at(now)), "{now}");
        }
        assert!((0..50).all(|_| !pace.may_pass(0, 25, at(200))));
        assert!(pace.may_greet(at(0)) && !pace.may_greet(at(50)) && pace.may_greet(at(100)));
    }
}
