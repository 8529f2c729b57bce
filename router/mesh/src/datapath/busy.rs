//! The share of its time that a worker works.

use std::time::Duration;

use weft_crypto::Time;

/// The time over which rests are added up.
const WINDOW: Duration = Duration::from_secs(1);
/// The least share that the node is told, in percent.
const TOLD: u8 = 40;

/// Work and rest of one worker.
#[derive(Default)]
pub(super) struct Busy {
    /// When this window began.
    began: Option<Time>,
    /// The time without anything to do since then.
    rested: Duration,
    has_relayed: bool,
}

impl Busy {
    /// Notes that something was relayed.
    pub(super) fn note_relayed(&mut self) {
        self.has_relayed = true;
    }

    /// Adds a time without anything to do, which ends `now`. Once a second is over, returns the share of it in which the worker worked, in percent, and
    /// whether it relayed, if the share is worth telling.
    pub(super) fn rested(&mut self, rest: Duration, now: Time) -> Option<(u8, bool)> {
        let Some(began) = self.began else {
            self.began = Some(now);
            return None;
        };
        let whole = now.since(began);
        self.rested += rest;
        if whole < WINDOW {
            return None;
        }
        let worked = whole.saturating_sub(self.rested);
        let percent = (worked.as_nanos() * 100 / whole.as_nanos()) as u8;
        let ended = std::mem::replace(self, Busy { began: Some(now), ..Busy::default() });
        (percent >= TOLD).then_some((percent, ended.has_relayed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten times a tenth of a second, of which the worker works for so many percent.
    fn second(busy: &mut Busy, now: &mut Time, percent: u32, relays: bool) -> Vec<(u8, bool)> {
        const PART: Duration = Duration::from_millis(100);
        let parts = (0..10).filter_map(|_| {
            if relays {
                busy.note_relayed();
            }
            *now += PART;
            busy.rested(PART - PART * percent / 100, *now)
        });
        parts.collect()
    }

    #[test]
    fn the_node_is_told_once_a_second_how_busy_a_worker_is() {
        let (mut busy, mut now) = (Busy::default(), Time::ZERO + Duration::from_secs(100));
        assert_eq!(busy.rested(Duration::from_secs(7), now), None, "nothing is known of the time before");
        let told: Vec<_> = [0, 39, 40, 70, 100].map(|percent| second(&mut busy, &mut now, percent, true)).concat();
        assert_eq!(told, [(40, true), (70, true), (100, true)]);
        assert_eq!(second(&mut busy, &mut now, 100, false), [(100, false)]);
    }

    #[test]
    fn a_worker_that_slept_and_is_woken_for_a_moment_is_not_busy() {
        let (mut busy, mut now) = (Busy::default(), Time::ZERO + Duration::from_secs(100));
        second(&mut busy, &mut now, 100, true);
        busy.note_relayed();
        now += Duration::from_secs(60);
        assert_eq!(busy.rested(Duration::from_secs(60), now), None);
        assert_eq!(second(&mut busy, &mut now, 90, true), [(90, true)]);
    }
}
