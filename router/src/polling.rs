//! Whether a packet worker that has nothing to do sleeps at once, or first stays awake for the next packet.
//!
//! Waking a sleeping core takes longer than all that weft does with a packet, and a round trip wakes several. As the
//! kernel does for virtual machines (guest halt polling), a worker looks at how soon the next packet came the last times
//! in the same situation, and stays awake only where that was soon: between a question and its answer, not between two
//! questions of which nobody knows when they come. Where much is carried, or others want the core, it always sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_crypto::Time;

/// How long a worker stays awake, unless it is told.
const AWAKE: Duration = Duration::from_micros(50);
/// The next packet was worth being awake for, the time that waking took included.
const SOON: Duration = Duration::from_micros(100);
/// Times it was soon, less times it was not: from where on a worker stays awake, and what is remembered at most.
const ENOUGH: u8 = 4;
const MOST: u8 = 8;
/// What is carried at once if much is, in bytes; and how long that lasts. Then workers hardly ever sleep long, and the core
/// is worth more to whoever makes or takes what is carried.
const BULK: usize = 16 * 1024;
const AFTER_BULK: Duration = Duration::from_millis(20);
/// How long a worker that carried much is likely to do so again.
const LIGHT: Duration = Duration::from_millis(200);
/// Who offers the core and gets it back only after so long has a hungry neighbour: to it belongs the core for a while.
const NEIGHBOUR: Duration = Duration::from_micros(400);
const AFTER_NEIGHBOUR: Duration = Duration::from_secs(1);

/// How long to stay awake: found out, or told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusyPoll {
    /// As long as it pays.
    Adaptive,
    /// So long each time.
    Fixed(Duration),
}

/// What a worker did last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Last {
    /// It took frames from a TAP.
    Frames,
    /// It took datagrams, and no frame followed.
    Datagrams,
}

/// What one worker knows about pauses between packets. Clones share when much was carried.
#[derive(Clone)]
pub struct Pauses {
    mode: BusyPoll,
    soon: [u8; 2],
    last: Last,
    /// Bytes since the last pause.
    bytes: usize,
    asleep_until: Time,
    /// When this worker last carried much.
    own_bulk: Time,
    /// When any worker did, in nanoseconds.
    bulk: Arc<AtomicU64>,
}

impl Pauses {
    /// Nothing is known yet.
    pub fn new(mode: BusyPoll) -> Self {
        Pauses {
            mode,
            soon: [0; 2],
            last: Last::Datagrams,
            bytes: 0,
            asleep_until: Time::ZERO,
            own_bulk: Time::ZERO,
            bulk: Arc::default(),
        }
    }

    /// The worker took so many bytes.
    pub fn carried(&mut self, last: Last, bytes: usize) {
        if bytes > 0 {
            self.last = last;
            self.bytes += bytes;
        }
    }

    /// There is nothing more to do: how long to stay awake. `None`: sleep, and what comes then tells nothing.
    pub fn begin(&mut self, now: Time) -> Option<Duration> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes >= BULK {
            self.own_bulk = now;
            self.bulk.store(now.as_nanos(), Ordering::Relaxed);
        }
        match self.mode {
            BusyPoll::Fixed(awake) => Some(awake).filter(|awake| !awake.is_zero()),
            BusyPoll::Adaptive => {
                let bulk = Time::from_nanos(self.bulk.load(Ordering::Relaxed));
                let may_pay = bytes > 0 && now.since(bulk) >= AFTER_BULK && now >= self.asleep_until;
                let is_soon = self.soon[self.last as usize] >= ENOUGH;
                may_pay.then_some(if is_soon { AWAKE } else { Duration::ZERO })
            }
        }
    }

    /// Whether it is long ago that this worker carried much.
    pub fn is_light(&self, now: Time) -> bool {
        now.since(self.own_bulk) >= LIGHT
    }

    /// The next packet came so long after a pause began for which [`Pauses::begin`] named a time.
    pub fn end(&mut self, pause: Duration) {
        let soon = &mut self.soon[self.last as usize];
        *soon = if pause < SOON { (*soon + 1).min(MOST) } else { soon.saturating_sub(1) };
    }

    /// Whether the core, offered to others, came back so late that it is theirs for a while: sleep then.
    pub fn is_contended(&mut self, offered: Duration, now: Time) -> bool {
        let is_contended = self.mode == BusyPoll::Adaptive && offered >= NEIGHBOUR;
        if is_contended {
            self.asleep_until = now + AFTER_NEIGHBOUR;
        }
        is_contended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(1);
    const SHORT: Duration = Duration::from_micros(30);

    fn start() -> Time {
        Time::ZERO + Duration::from_secs(100)
    }

    /// A pause after so many bytes that lasts so long; how long the worker stayed awake at most.
    fn pause(pauses: &mut Pauses, last: Last, bytes: usize, length: Duration) -> Option<Duration> {
        pauses.carried(last, bytes);
        let awake = pauses.begin(start());
        if awake.is_some() {
            pauses.end(length);
        }
        awake
    }

    #[test]
    fn a_worker_stays_awake_where_the_next_packet_was_soon() {
        let mut pauses = Pauses::new(BusyPoll::Adaptive);
        for _ in 0..ENOUGH {
            assert_eq!(pause(&mut pauses, Last::Frames, 100, SHORT), Some(Duration::ZERO));
            // Each answer is followed by a long silence: that is another situation.
            assert_eq!(pause(&mut pauses, Last::Datagrams, 100, LONG), Some(Duration::ZERO));
        }
        for _ in 0..MOST {
            assert_eq!(pause(&mut pauses, Last::Frames, 100, SHORT), Some(AWAKE));
            assert_eq!(pause(&mut pauses, Last::Datagrams, 100, LONG), Some(Duration::ZERO));
        }
        // Once nothing comes soon any more, a worker was awake in vain a few times, and then never again.
        let awake = (0..100).filter(|_| pause(&mut pauses, Last::Frames, 100, LONG) == Some(AWAKE)).count();
        assert_eq!(awake, usize::from(MOST - ENOUGH) + 1);
    }

    #[test]
    fn a_worker_sleeps_beside_bulk_hungry_neighbours_and_after_nothing() {
        let mut pauses = Pauses::new(BusyPoll::Adaptive);
        for _ in 0..MOST {
            pause(&mut pauses, Last::Frames, 100, SHORT);
        }
        assert_eq!(pause(&mut pauses, Last::Frames, 0, SHORT), None, "woken for an order, not for a packet");
        let mut other = pauses.clone();
        other.carried(Last::Datagrams, BULK);
        assert_eq!(other.begin(start()), None);
        assert_eq!(pause(&mut pauses, Last::Frames, 100, SHORT), None, "another worker carried much");
        let later = start() + AFTER_BULK;
        pauses.carried(Last::Frames, 100);
        assert_eq!(pauses.begin(later), Some(AWAKE));
        assert!(!pauses.is_contended(SHORT, later));
        assert!(pauses.is_contended(LONG, later));
        pauses.carried(Last::Frames, 100);
        assert_eq!(pauses.begin(later + AFTER_NEIGHBOUR / 2), None);
        pauses.carried(Last::Frames, 100);
        assert_eq!(pauses.begin(later + AFTER_NEIGHBOUR), Some(AWAKE));
    }

    #[test]
    fn a_worker_does_as_it_is_told() {
        let mut never = Pauses::new(BusyPoll::Fixed(Duration::ZERO));
        (0..MOST).for_each(|_| assert_eq!(pause(&mut never, Last::Frames, 100, SHORT), None));
        let mut always = Pauses::new(BusyPoll::Fixed(LONG));
        assert_eq!(pause(&mut always, Last::Frames, BULK, LONG), Some(LONG));
        assert!(!always.is_contended(LONG, start()));
    }
}
