//! How many questions are under way, of each asker.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How much of each is under way.
pub struct Tally<K>(Mutex<BTreeMap<K, usize>>);

/// One of them; counted until dropped.
pub struct Counted<'a, K: Ord + Copy> {
    tally: &'a Tally<K>,
    key: K,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Tally(Mutex::default())
    }
}

impl<K: Ord + Copy> Tally<K> {
    /// One more; none if there are `most` already.
    pub fn count(&self, key: K, most: usize) -> Option<Counted<'_, K>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(key).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted { tally: self, key })
    }
}

impl<K: Ord + Copy> Drop for Counted<'_, K> {
    fn drop(&mut self) {
        let mut all = self.tally.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1024;

    #[test]
    fn what_one_asker_has_under_way_is_bounded() {
        let all = Tally::default();
        let counted: Vec<_> = (0..LIMIT).map(|_| all.count(1, LIMIT).unwrap()).collect();
        assert!(all.count(1, LIMIT).is_none() && all.count(2, LIMIT).is_some());
        drop(counted);
        assert!(all.count(1, LIMIT).is_some());
    }
}
