//! Neighbours that were told something, until they say that they hold the same: a batch that was lost on the way is soon found, and so is
//! one that was lost with the first question about it.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

/// How long nothing new has to be told to a neighbour until it is asked, and how long that is waited for.
const SETTLED: Duration = Duration::from_millis(300);
const UNSETTLED: Duration = Duration::from_secs(2);
/// The wait for an answer to the first question, which doubles with each, and their number. Then what is compared at intervals has to do.
const AGAIN: Duration = Duration::from_secs(1);
const QUESTIONS: u32 = 5;

/// What a neighbour is asked about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum About {
    /// What this host wrote.
    Own,
    /// Everything.
    All,
}

/// Neighbours that were told something.
#[derive(Default)]
pub(super) struct Told {
    peers: BTreeMap<HostLabel, Telling>,
}

struct Telling {
    about: About,
    /// When it was first and last told something since it was asked.
    first: Time,
    last: Time,
    asked: Time,
    questions: u32,
}

impl Telling {
    fn is_due(&self, now: Time) -> bool {
        match self.questions.checked_sub(1) {
            None => now >= (self.last + SETTLED).min(self.first + UNSETTLED),
            Some(before) => now >= self.asked + AGAIN * 2u32.pow(before),
        }
    }
}

impl Told {
    /// Neighbours are told something.
    pub(super) fn tell(&mut self, peers: impl IntoIterator<Item = HostLabel>, about: About, now: Time) {
        for peer in peers {
            let new = Telling { about, first: now, last: now, asked: now, questions: 0 };
            let telling = self.peers.entry(peer).or_insert(new);
            if telling.questions > 0 {
                telling.first = now;
            }
            (telling.about, telling.last, telling.questions) = (about.max(telling.about), now, 0);
        }
    }

    /// There is no link with it any more.
    pub(super) fn remove(&mut self, peer: HostLabel) {
        self.peers.remove(&peer);
    }

    /// A neighbour says that it holds the same, or (not `is_same`) what it holds. About everything that is answer enough: it changes all
    /// the time, and what one lacks the other sends. About what this host wrote it is asked until it has it.
    pub(super) fn on_answer(&mut self, peer: HostLabel, is_same: bool) {
        let is_answer = |telling: &Telling| telling.questions > 0 && (is_same || telling.about == About::All);
        if self.peers.get(&peer).is_some_and(is_answer) {
            self.peers.remove(&peer);
        }
    }

    /// Returns whom to ask now, and about what.
    pub(super) fn ask(&mut self, now: Time) -> Vec<(HostLabel, About)> {
        self.peers.retain(|_, telling| telling.questions < QUESTIONS || !telling.is_due(now));
        let due = self.peers.iter_mut().filter(|(_, telling)| telling.is_due(now));
        let ask = |(peer, telling): (&HostLabel, &mut Telling)| {
            (telling.asked, telling.questions) = (now, telling.questions + 1);
            (*peer, telling.about)
        };
        due.map(ask).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: HostLabel = HostLabel([1; 6]);

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    /// When a neighbour is asked, looking each 100 ms.
    fn asked(told: &mut Told, from: u64, to: u64) -> Vec<u64> {
        (from..to).step_by(100).filter(|now| !told.ask(at(*now)).is_empty()).collect()
    }

    #[test]
    fn a_neighbour_is_asked_once_that_has_settled_and_again_until_it_answers() {
        let mut told = Told::default();
        told.tell([PEER], About::Own, at(0));
        told.tell([PEER], About::Own, at(200));
        assert_eq!(asked(&mut told, 0, 60_000), [500, 1500, 3500, 7500, 15_500]);
        told.tell([PEER], About::Own, at(60_000));
        assert_eq!(asked(&mut told, 60_000, 61_000), [60_300]);
        told.on_answer(PEER, false);
        assert_eq!(asked(&mut told, 61_000, 62_000), [61_300], "it lacks something");
        told.on_answer(PEER, true);
        assert_eq!(asked(&mut told, 62_000, 90_000), [0; 0]);
    }

    #[test]
    fn what_is_told_after_a_question_is_asked_about_anew() {
        let mut told = Told::default();
        told.tell([PEER], About::All, at(0));
        assert_eq!(told.ask(at(300)), [(PEER, About::All)]);
        told.tell([PEER], About::Own, at(350));
        told.on_answer(PEER, true);
        assert_eq!(told.ask(at(650)), [(PEER, About::All)], "the answer is older");
        told.on_answer(PEER, false);
        assert_eq!(asked(&mut told, 700, 30_000), [0; 0]);
    }

    #[test]
    fn what_goes_on_changing_is_asked_about_all_the_same() {
        let mut told = Told::default();
        let mut asked = Vec::new();
        for now in (0..5000).step_by(100) {
            told.tell([PEER], About::Own, at(now));
            asked.extend((!told.ask(at(now)).is_empty()).then_some(now));
        }
        assert_eq!(asked, [2000, 4100]);
    }
}
