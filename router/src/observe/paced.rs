//! Readings that many may ask for, and that are made at times only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinError;

/// How long a reading is given to others that ask, at least.
const FRESH: Duration = Duration::from_secs(1);
/// So many times as long as a reading took nothing is read again: a mesh that takes long to read is read seldom.
const PAUSE: u32 = 20;

/// The last reading. Clones share it.
#[derive(Clone)]
pub struct Paced<T>(Arc<Mutex<Option<Reading<T>>>>);

struct Reading<T> {
    is_fresh_until: Instant,
    value: T,
}

impl<T: Clone + Send + 'static> Paced<T> {
    /// Nothing was read yet.
    pub fn new() -> Paced<T> {
        Paced(Arc::default())
    }

    /// Returns the last reading, or a new one if that is no longer fresh. A client that goes does not end a reading: the next one has it. An
    /// error says that the reading panicked.
    pub async fn get(&self, read: impl Future<Output = T> + Send + 'static) -> Result<T, JoinError> {
        let mut last = self.0.clone().lock_owned().await;
        if let Some(Reading { is_fresh_until, value }) = &*last
            && Instant::now() < *is_fresh_until
        {
            return Ok(value.clone());
        }
        let reading = tokio::spawn(async move {
            let begun = Instant::now();
            let value = read.await;
            let is_fresh_until = Instant::now() + (begun.elapsed() * PAUSE).max(FRESH);
            *last = Some(Reading { is_fresh_until, value: value.clone() });
            value
        });
        reading.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_that_ask_at_once_have_one_reading() {
        let (paced, count) = (Paced::new(), Arc::new(AtomicU32::new(0)));
        let read = || {
            let count = count.clone();
            async move { count.fetch_add(1, Ordering::Relaxed) }
        };
        // One that asks and goes at once.
        drop(tokio::time::timeout(Duration::ZERO, paced.get(read())).await);
        let asked = futures_util::future::join_all((0..10).map(|_| paced.get(read()))).await;
        assert!(asked.into_iter().all(|value| value.is_ok_and(|value| value == 0)));
    }
}
