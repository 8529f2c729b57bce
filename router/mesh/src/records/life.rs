//! This life of the host's key, beside others: an old disk, a lost store, a second host with the same key.

use std::collections::VecDeque;
use std::time::Duration;

use weft_crypto::Time;

/// How long another host with this host's key counts as being around.
const CLONE_MEMORY: Duration = Duration::from_secs(60);
/// How long news of another host with this key are not repeated.
const CLONE_SILENCE: Duration = Duration::from_secs(600);
/// Times this host writes itself above records it did not write, within [`CLONE_MEMORY`], before it believes in
/// another host with its key.
const MAX_JUMPS: usize = 4;

/// What is known of other lives.
#[derive(Default)]
pub(super) struct Life {
    /// When another host with this key was last heard of, true or not.
    cloned: Option<Time>,
    /// When the key last proved to be used by another; until that is past this host writes nothing above the other.
    contested: Option<Time>,
    jumps: VecDeque<Time>,
}

/// Whether this host may write itself above records of another life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Jump {
    Allowed,
    /// Another host holds the key: neither tries to outdo the other.
    Contested,
    TooOften,
}

impl Life {
    /// Another host proved to hold this host's key; true if that is news.
    pub(super) fn contest(&mut self, now: Time) -> bool {
        self.contested = Some(now);
        self.on_clone(now)
    }

    /// Another host is said to hold this host's key; true if that is news.
    pub(super) fn on_clone(&mut self, now: Time) -> bool {
        let is_news = self.cloned.is_none_or(|seen| now.since(seen) > CLONE_SILENCE);
        self.cloned = Some(now);
        is_news
    }

    pub(super) fn is_cloned(&self, now: Time) -> bool {
        self.cloned.is_some_and(|seen| now.since(seen) < CLONE_MEMORY)
    }

    /// Asks for a jump above another life, and counts it.
    pub(super) fn may_jump(&mut self, now: Time) -> Jump {
        if self.contested.is_some_and(|seen| now.since(seen) < CLONE_MEMORY) {
            self.contested = Some(now);
            return Jump::Contested;
        }
        while self.jumps.front().is_some_and(|at| now.since(*at) > CLONE_MEMORY) {
            self.jumps.pop_front();
        }
        if self.jumps.len() >= MAX_JUMPS {
            return Jump::TooOften;
        }
        self.jumps.push_back(now);
        Jump::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_few_and_none_while_another_host_holds_the_key() {
        let second = |n: u64| Time::ZERO + Duration::from_secs(n);
        let mut life = Life::default();
        let jumps: Vec<Jump> = (0..5).map(|n| life.may_jump(second(n))).collect();
        assert_eq!(jumps, [Jump::Allowed, Jump::Allowed, Jump::Allowed, Jump::Allowed, Jump::TooOften]);
        assert!(life.contest(second(5)) && !life.on_clone(second(6)));
        assert_eq!(life.may_jump(second(64)), Jump::Contested);
        assert_eq!(life.may_jump(second(123)), Jump::Contested, "each try of the other prolongs it");
        assert_eq!(life.may_jump(second(184)), Jump::Allowed);
        assert!(!life.is_cloned(second(184)) && life.on_clone(second(700)));
    }
}
