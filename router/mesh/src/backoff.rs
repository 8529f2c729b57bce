//! Exponential backoff between tries.

use std::time::Duration;

use weft_crypto::Time;

/// The first wait; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(500);

/// When something that failed may be tried again.
#[derive(Clone, Copy, Default)]
pub(crate) struct Backoff {
    next: Time,
    failures: u32,
}

impl Backoff {
    /// Tries since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn is_due(&self, now: Time) -> bool {
        now >= self.next
    }

    /// Notes a try: the next one is twice as far off, at most `longest`. `jitter` in 0..1 spreads tries by a quarter to
    /// either side.
    pub(crate) fn on_try(&mut self, now: Time, longest: Duration, jitter: f64) {
        self.on_try_from(now, FIRST, longest, jitter);
    }

    /// The same, where the first wait is `first`.
    pub(crate) fn on_try_from(&mut self, now: Time, first: Duration, longest: Duration, jitter: f64) {
        let doubled = first * 2u32.pow(self.failures.min(9));
        self.failures += 1;
        self.next = now + doubled.min(longest).mul_f64(0.75 + jitter / 2.0);
    }

    /// Allows a try at `now`; those that failed still count.
    pub(crate) fn hurry(&mut self, now: Time) {
        self.next = now;
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self, now: Time) {
        *self = Backoff { next: now, failures: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        let (mut now, longest) = (Time::ZERO, Duration::from_secs(2));
        for wait in [500, 1000, 2000, 2000].map(Duration::from_millis) {
            backoff.on_try(now, longest, 0.5);
            assert!(!backoff.is_due(now + (wait - Duration::from_millis(1))) && backoff.is_due(now + wait));
            now += wait;
        }
        assert_eq!(backoff.failures(), 4);
        backoff.on_try(now, longest, 0.0);
        backoff.hurry(now);
        assert!(backoff.is_due(now) && backoff.failures() == 5);
        backoff.reset(now);
        assert_eq!(backoff.failures(), 0);
    }
}
