//! The clock of a router.

use std::time::{Duration, Instant};

use weft_crypto::Time;

/// The clock that nodes and workers share: nanoseconds since the router's start.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now, an hour after its epoch, so that "long ago" is in the past.
    pub fn start() -> Self {
        Clock(Instant::now())
    }

    /// The time.
    pub fn now(&self) -> Time {
        Time::from_nanos(3_600_000_000_000 + self.0.elapsed().as_nanos() as u64)
    }

    /// When that time is, for timers.
    pub fn instant(&self, time: Time) -> Instant {
        self.0 + Duration::from_nanos(time.as_nanos().saturating_sub(3_600_000_000_000))
    }
}
