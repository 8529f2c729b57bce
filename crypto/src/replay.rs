//! The anti-replay window over 64-bit counters (RFC 6479's block-wise sliding bitmap).

const BLOCK_BITS: u64 = u64::BITS as u64;
const BLOCKS: u64 = 256;

/// How far behind the newest counter a packet may still arrive, in packets.
pub const WINDOW: u64 = (BLOCKS - 1) * BLOCK_BITS;

/// Which counters of one session have been seen.
#[derive(Clone)]
pub struct ReplayWindow {
    bitmap: [u64; BLOCKS as usize],
    /// One above the highest counter seen.
    next: u64,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        ReplayWindow { bitmap: [0; BLOCKS as usize], next: 0 }
    }
}

impl ReplayWindow {
    /// Whether `counter` is new and inside the window. Changes nothing: call it before the tag is verified.
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        self.next - 1 - counter < WINDOW && self.block(counter) & Self::bit(counter) == 0
    }

    /// Marks `counter` as seen: only for a packet whose tag verified. False if it is a replay or too old.
    pub fn mark(&mut self, counter: u64) -> bool {
        if !self.is_fresh(counter) {
            return false;
        }
        if counter >= self.next {
            let newest = self.next.saturating_sub(1) / BLOCK_BITS;
            let target = counter / BLOCK_BITS;
            for block in (newest + 1)..=target.min(newest + BLOCKS) {
                self.bitmap[(block % BLOCKS) as usize] = 0;
            }
            self.next = counter + 1;
        }
        self.bitmap[(counter / BLOCK_BITS % BLOCKS) as usize] |= Self::bit(counter);
        true
    }

    fn block(&self, counter: u64) -> u64 {
        self.bitmap[(counter / BLOCK_BITS % BLOCKS) as usize]
    }

    fn bit(counter: u64) -> u64 {
        1 << (counter % BLOCK_BITS)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::RngExt;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn agrees_with_a_set_under_reordering_jumps_and_replays() {
        for seed in 0..20 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (mut window, mut seen, mut base) = (ReplayWindow::default(), BTreeSet::new(), 0u64);
            for _ in 0..20_000 {
                base += match rng.random_range(0..1000) {
                    0 => rng.random_range(0..40_000),
                    1..500 => 1,
                    _ => 0,
                };
                let counter = base.saturating_sub(rng.random_range(0..2 * WINDOW) * rng.random_range(0..2));
                let newest = seen.last().copied().unwrap_or(0);
                let expected = !seen.contains(&counter) && (counter >= newest || newest - counter < WINDOW);
                assert_eq!(window.is_fresh(counter), expected, "seed {seed} counter {counter} newest {newest}");
                assert_eq!(window.mark(counter), expected);
                if expected {
                    seen.insert(counter);
                }
            }
        }
    }

    #[test]
    fn extremes_neither_overflow_nor_reopen_the_window() {
        let mut window = ReplayWindow::default();
        assert!(window.mark(0) && !window.mark(0));
        assert!(window.mark(u64::MAX - 1) && !window.mark(u64::MAX - 1));
        assert!(!window.mark(u64::MAX) && !window.mark(0));
    }
}
