//! Whether a packet worker that has nothing to do sleeps at once, or first stays awake for the next packet.
//!
//! Waking a sleeping core takes longer than all that weft does with a packet, and a round trip wakes several. As the
//! kernel does for virtual machines (guest halt polling), a worker looks at how soon the next packet came the last times
//! in the same situation, and stays awake only where that was soon: between a question and its answer, not between two
//! questions that come at unknown times. Where much is carried, or others want the core, it always sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_crypto::Time;

/// How long a worker stays awake, unless it is told.
const AWAKE: Duration = Duration::from_micros(50);
/// After such a pause, slept through, it would have been worth staying awake: waking up takes the rest.
const SOON: Duration = Duration::from_micros(100);
/// Times it was soon, less times it was not: from where on a worker stays awake, and what is remembered at most.
const ENOUGH: u8 = 4;
const MOST: u8 = 8;
/// How many bytes in how long are much: 200 Mbit/s. And how long that lasts: workers hardly ever sleep long then, and the core is
/// worth more to the programs that make or take what is carried.
const BULK: usize = 256 * 1024;
const WHILE: Duration = Duration::from_millis(10);
const AFTER_BULK: Duration = Duration::from_millis(20);
/// How long a worker that carried much is likely to do so again.
const LIGHT: Duration = Duration::from_millis(200);
/// Who offers the core and gets it back only after so long has a hungry neighbour: to it belongs the core for a while, and if it is
/// there again soon after that, for twice as long, up to the longest.
const NEIGHBOUR: Duration = Duration::from_micros(400);
const AFTER_NEIGHBOUR: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(2);
const LONGEST_AFTER_NEIGHBOUR: Duration = Duration::from_secs(64);

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
    /// Whether anything was carried since the last pause.
    has_carried: bool,
    /// Bytes carried since the while began.
    bytes: usize,
    began: Time,
    asleep_until: Time,
    asleep_for: Duration,
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
            has_carried: false,
            bytes: 0,
            began: Time::ZERO,
            asleep_until: Time::ZERO,
            asleep_for: AFTER_NEIGHBOUR,
            own_bulk: Time::ZERO,
            bulk: Arc::default(),
        }
    }

    /// The worker carried so many bytes. Traffic from outside of the mesh does not count: it must not keep workers awake.
    pub fn carried(&mut self, last: Last, bytes: usize) {
        if bytes > 0 {
            self.last = last;
            self.has_carried = true;
            self.bytes += bytes;
        }
    }

    /// There is nothing more to do: how long to stay awake. `None`: sleep, and what comes then tells nothing.
    pub fn begin(&mut self, now: Time) -> Option<Duration> {
        let has_carried = std::mem::take(&mut self.has_carried);
        if self.bytes >= BULK {
            self.own_bulk = now;
            self.bulk.store(now.as_nanos(), Ordering::Relaxed);
        }
        if self.bytes >= BULK || now.since(self.began) >= WHILE {
            (self.began, self.bytes) = (now, 0);
        }
        match self.mode {
            BusyPoll::Fixed(awake) => Some(awake).filter(|awake| !awake.is_zero()),
            BusyPoll::Adaptive => {
                let bulk = Time::from_nanos(self.bulk.load(Ordering::Relaxed));
                let is_quiet = self.is_light(now) && now.since(bulk) >= AFTER_BULK;
                let may_pay = has_carried && is_quiet && now >= self.asleep_until;
                let is_soon = self.soon[self.last as usize] >= ENOUGH;
                may_pay.then_some(if is_soon { AWAKE } else { Duration::ZERO })
            }
        }
    }

    /// Whether it is long ago that this worker carried much.
    pub fn is_light(&self, now: Time) -> bool {
        now.since(self.own_bulk) >= LIGHT
    }

    /// The next packet came so long after a pause began, of which the worker was to be awake for that long.
    pub fn end(&mut self, pause: Duration, awake: Duration) {
        let soon = &mut self.soon[self.last as usize];
        let was_soon = pause < if awake.is_zero() { SOON } else { awake };
        *soon = if was_soon { (*soon + 1).min(MOST) } else { soon.saturating_sub(1) };
    }

    /// Whether the core, offered to others, came back so late that it is theirs for a while: sleep then.
    pub fn is_contended(&mut self, offered: Duration, now: Time) -> bool {
        let is_contended = self.mode == BusyPoll::Adaptive && offered >= NEIGHBOUR;
        if is_contended {
            let is_again = now.since(self.asleep_until) < AGAIN;
            let longer = (self.asleep_for * 2).min(LONGEST_AFTER_NEIGHBOUR);
            self.asleep_for = if is_again { longer } else { AFTER_NEIGHBOUR };
            self.asleep_until = now + self.asleep_for;
            self.soon = [0; 2];
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
        if let Some(awake) = awake {
            pauses.end(length, awake);
        }
        awake
    }

    /// Pauses that expect the next packet soon after frames.
    fn convinced() -> Pauses {
        let mut pauses = Pauses::new(BusyPoll::Adaptive);
        for _ in 0..MOST {
            pause(&mut pauses, Last::Frames, 100, SHORT);
        }
        pauses
    }

    /// Whether it stays awake after a frame, if that is at this time.
    fn stays_awake(pauses: &mut Pauses, now: Time) -> bool {
        pauses.carried(Last::Frames, 100);
        pauses.begin(now) == Some(AWAKE)
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
    fn packets_that_come_right_after_a_worker_went_to_sleep_keep_it_awake_half_of_the_time_at_most() {
        let mut pauses = convinced();
        let between = (AWAKE + SOON) / 2;
        let awake = (0..100).filter(|_| pause(&mut pauses, Last::Frames, 100, between) == Some(AWAKE)).count();
        assert!((1..=50 + usize::from(MOST)).contains(&awake), "{awake}");
    }

    #[test]
    fn a_worker_sleeps_after_nothing_and_beside_bulk() {
        let mut pauses = convinced();
        assert_eq!(pause(&mut pauses, Last::Frames, 0, SHORT), None, "woken for an order, or by a stranger");
        let mut other = pauses.clone();
        // In pieces, of which none is much.
        let pieces = BULK / 1000 + 1;
        for _ in 0..pieces {
            other.carried(Last::Datagrams, 1000);
            other.begin(start());
        }
        assert!(!stays_awake(&mut pauses, start()), "another worker carried much");
        assert!(stays_awake(&mut pauses, start() + AFTER_BULK));
        assert!(!stays_awake(&mut other, start() + AFTER_BULK) && !other.is_light(start() + AFTER_BULK));
        assert!(other.is_light(start() + LIGHT));
        // The same in a longer time is not much.
        for piece in 0..pieces as u32 {
            let now = start() + LIGHT + WHILE * piece;
            assert!(stays_awake(&mut pauses, now));
            pauses.carried(Last::Frames, 1000);
        }
    }

    #[test]
    fn a_worker_leaves_the_core_to_hungry_neighbours_longer_and_longer() {
        let mut pauses = convinced();
        let mut now = start();
        assert!(!pauses.is_contended(SHORT, now));
        for seconds in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert!(pauses.is_contended(LONG, now));
            for _ in 0..MOST {
                assert_ne!(pause(&mut pauses, Last::Frames, 100, SHORT), Some(AWAKE));
            }
            let last = now;
            now += Duration::from_secs(seconds);
            pauses.soon = [MOST; 2];
            assert!(!stays_awake(&mut pauses, last + (now.since(last) - SHORT)), "{seconds}");
            assert!(stays_awake(&mut pauses, now), "{seconds}");
        }
        now += AGAIN;
        assert!(pauses.is_contended(LONG, now));
        pauses.soon = [MOST; 2];
        assert!(stays_awake(&mut pauses, now + AFTER_NEIGHBOUR), "long ago is forgotten");
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
