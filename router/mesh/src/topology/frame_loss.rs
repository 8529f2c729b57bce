//! Whether frames are lost on their way to a host, by what both ends count.

use std::time::Duration;

use weft_crypto::{HostLabel, Time};

/// Frames are counted over this time at least, and at most if few went.
const LEAST: Duration = Duration::from_millis(900);
const MOST: Duration = Duration::from_secs(10);
/// Bytes of which none come, or less than half, if too many are lost: more than a frame or two.
const FEW: u64 = 200;
const MANY: u64 = 2_500;

/// Bytes of frames that had gone to a host at a time, and of those that it got.
#[derive(Clone, Copy)]
pub(super) struct FrameCount {
    /// The neighbour that they went by.
    pub(super) by: HostLabel,
    pub(super) at: Time,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Frames that are counted, since the last time that it was looked how many came.
#[derive(Default)]
pub(super) struct FrameLoss(Option<FrameCount>);

impl FrameLoss {
    /// Takes a count; returns whether too many were lost since the one that it is compared with.
    pub(super) fn note(&mut self, now: FrameCount) -> bool {
        let Some(then) = self.0.filter(|then| then.by == now.by && now.received >= then.received) else {
            // The first, by another neighbour, or of another life of the host, which counts anew.
            self.0 = Some(now);
            return false;
        };
        let (sent, received) = (now.sent.saturating_sub(then.sent), now.received - then.received);
        let span = now.at.since(then.at);
        let is_lossy = match received {
            0 => sent >= FEW,
            _ => sent >= MANY && received < sent / 2,
        };
        if span >= LEAST && (is_lossy || sent >= MANY || span >= MOST) {
            self.0 = Some(now);
        }
        span >= LEAST && is_lossy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::lab::at;

    #[test]
    fn frames_of_which_none_come_or_less_than_half_are_too_many_lost() {
        let cases = [
            (200, 0, true),
            (150, 0, false),
            (100_000, 40_000, true),
            (100_000, 60_000, false),
            (2_000, 100, false),
            (100_000, u64::MAX - 77, false),
        ];
        for (sent, received, is_lossy) in cases {
            let mut loss = FrameLoss::default();
            let mut note = |millis, sent: u64, received| {
                loss.note(FrameCount { by: HostLabel([8; 6]), at: at(millis), sent: 5_000_000 + sent, received })
            };
            assert!(!note(1000, 0, 77));
            assert!(!note(1500, sent, 77 + received), "too soon");
            assert_eq!(note(2000, sent, 77 + received), is_lossy, "{sent} sent, {received} received");
        }
    }

    #[test]
    fn a_host_that_lives_anew_counts_anew_and_so_does_another_neighbour() {
        let mut loss = FrameLoss::default();
        for (by, millis, received) in [(8, 0, 1000), (8, 2000, 0), (9, 4000, 0), (8, 6000, 0)] {
            assert!(!loss.note(FrameCount { by: HostLabel([by; 6]), at: at(millis), sent: millis * 9, received }));
        }
    }

    #[test]
    fn single_frames_that_are_lost_are_no_reason_within_minutes() {
        let mut loss = FrameLoss::default();
        for number in 0..10 {
            let count = FrameCount { by: HostLabel([8; 6]), at: at(number * 20_000), sent: number * 150, received: 0 };
            assert!(!loss.note(count));
        }
    }
}
