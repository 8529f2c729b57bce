//! How often something may be done.

use weft_crypto::Time;

/// A token bucket.
pub(crate) struct Bucket {
    tokens: u64,
    filled: Time,
}

impl Bucket {
    pub(crate) fn new(tokens: u64, now: Time) -> Self {
        Bucket { tokens, filled: now }
    }

    /// Takes `amount` if it is there; the bucket fills at `rate` a second up to `size`.
    pub(crate) fn take(&mut self, amount: u64, rate: u64, size: u64, now: Time) -> bool {
        let earned = (u128::from(rate) * now.since(self.filled).as_nanos() / 1_000_000_000) as u64;
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(size);
            self.filled = now;
        }
        let enough = self.tokens >= amount;
        if enough {
            self.tokens -= amount;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_bucket_allows_a_burst_and_then_what_flows_in() {
        let mut bucket = Bucket::new(3, Time::ZERO);
        let taken = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(1, 2, 3, now)).count();
        assert_eq!(taken(&mut bucket, Time::ZERO), 3);
        assert_eq!(taken(&mut bucket, Time::ZERO + Duration::from_millis(499)), 0);
        assert_eq!(taken(&mut bucket, Time::ZERO + Duration::from_millis(500)), 1);
        assert_eq!(taken(&mut bucket, Time::ZERO + Duration::from_secs(60)), 3);
    }
}
