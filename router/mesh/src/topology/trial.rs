//! A path beside the link's, and how it does against it.

use std::time::Duration;

use weft_crypto::Time;

use super::link::Link;

/// How often a path is asked that is new or has just been quicker, and how often any other; one that does not answer ever more seldom.
const NEW_INTERVAL: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(5);
const MOST_DOUBLINGS: u32 = 3;
/// Questions until a path is new no more.
const NEW: u32 = 6;
/// Answers in a row that have to be quicker: if the round trip alone is, and if it is only the share of lost pings that makes the difference.
const WINS: u32 = 3;
const WINS_BY_LOSS: u32 = 12;
/// How much quicker they have to be: this, and twice as quick.
const LEAST_GAIN: Duration = Duration::from_micros(500);
/// Delay that a path which loses all pings is charged with: most lost packets are sent again.
const LOSS: Duration = Duration::from_millis(300);
/// How long the delay of a path that was left is remembered: without frames on it, it would seem quick again.
const REMEMBERED: Duration = Duration::from_secs(300);

/// The record of a path beside the link's.
#[derive(Clone, Copy, Default)]
pub(super) struct Trial {
    /// The question that was not answered yet, and when the next one is due.
    asked: Option<(u32, Time)>,
    next: Time,
    questions: u32,
    /// Questions since the last answer, and answers in a row that were quicker than the link's.
    silent: u32,
    wins: u32,
    /// Its delay when it was left, and when that was.
    left: Option<(Duration, Time)>,
}

impl Trial {
    /// When it is to be asked again.
    pub(super) fn next(&self) -> Time {
        self.next
    }

    /// Questions since the last answer.
    pub(super) fn silent(&self) -> u32 {
        self.silent
    }

    /// It is asked now.
    pub(super) fn ask(&mut self, id: u32, now: Time) {
        let is_row = self.asked.is_none() && now.since(self.next) < INTERVAL;
        self.wins = if is_row { self.wins } else { 0 };
        let is_promising = self.wins > 0 || self.questions < NEW;
        let interval = INTERVAL * 2u32.pow(self.silent.min(MOST_DOUBLINGS));
        self.questions = self.questions.saturating_add(1);
        self.silent = self.silent.saturating_add(1);
        self.next = now + if is_promising { NEW_INTERVAL } else { interval };
        self.asked = Some((id, now));
    }

    /// Takes an answer, unless it answers no question; returns whether the path has been quicker than the link often enough.
    pub(super) fn on_answer(&mut self, id: u32, link: &Link, now: Time) -> Option<bool> {
        let (_, at) = self.asked.take_if(|(asked, _)| *asked == id)?;
        self.silent = 0;
        let known = self.left.filter(|(_, left)| now.since(*left) < REMEMBERED).map(|(took, _)| took);
        let took = now.since(at).max(known.unwrap_or_default());
        let is_quicker = |than: Duration| took * 2 < than && took + LEAST_GAIN < than;
        let Some(rtt) = link.recent_rtt(now) else { return Some(false) };
        let needed = if is_quicker(rtt) { WINS } else { WINS_BY_LOSS };
        self.wins = if is_quicker(delay(rtt, link.loss)) { self.wins + 1 } else { 0 };
        if self.wins > 0 {
            self.next = at + NEW_INTERVAL;
        }
        Some(self.wins >= needed)
    }

    /// The link leaves the path, which then `took` so long, or goes over to it.
    pub(super) fn start_over(&mut self, took: Option<Duration>, now: Time) {
        self.wins = 0;
        self.left = took.map(|took| (took, now)).or(self.left);
    }
}

/// Delay of a path, with its losses.
pub(super) fn delay(rtt: Duration, loss: f64) -> Duration {
    rtt + LOSS.mul_f64(loss)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Path;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    /// A link whose pings take 30 ms, and of which a share is lost.
    fn link(loss: f64) -> Link {
        let mut link = Link::new(Path::udp(([192, 0, 2, 1], 1).into()), at(0));
        (0..40).for_each(|second| link.on_rtt(Duration::from_millis(30), at(second * 1000)));
        link.loss = loss;
        link
    }

    /// Answers in a row until the path has won; `None` after 30.
    fn wins(took: u64, link: &Link) -> Option<u32> {
        let mut trial = Trial::default();
        (1..=30).find(|round| {
            let now = u64::from(*round) * 1000;
            trial.ask(*round, at(now));
            trial.on_answer(*round, link, at(now + took)) == Some(true)
        })
    }

    #[test]
    fn a_path_wins_by_three_quick_answers_or_by_twelve_where_the_link_loses_pings() {
        assert_eq!([1, 10, 14, 16, 30].map(|took| wins(took, &link(0.0))), [Some(3), Some(3), Some(3), None, None]);
        assert_eq!([1, 30, 100].map(|took| wins(took, &link(0.2))), [Some(3), Some(12), None]);
    }

    #[test]
    fn an_answer_that_does_not_come_ends_a_row() {
        let (link, mut trial) = (link(0.0), Trial::default());
        for (id, answers) in [(1, true), (2, true), (3, false), (4, true), (5, true)] {
            trial.ask(id, at(u64::from(id) * 1000));
            let won = answers.then(|| trial.on_answer(id, &link, at(u64::from(id) * 1000 + 1)));
            assert_eq!(won, answers.then_some(Some(false)), "{id}");
        }
        assert_eq!(trial.on_answer(5, &link, at(5002)), None, "an answer counts once");
        trial.ask(6, at(6000));
        assert_eq!(trial.on_answer(6, &link, at(6001)), Some(true));
    }

    #[test]
    fn a_path_left_for_what_it_lost_is_not_gone_back_to_for_its_round_trip() {
        let (mut trial, link) = (Trial::default(), link(0.0));
        trial.start_over(Some(delay(Duration::from_millis(10), 0.3)), at(0));
        let wins = |trial: &mut Trial, from: u64| {
            (1..=20).any(|round| {
                let now = from + u64::from(round) * 1000;
                trial.ask(round, at(now));
                trial.on_answer(round, &link, at(now + 10)) == Some(true)
            })
        };
        assert!(!wins(&mut trial, 0));
        let mut later = Trial { left: None, ..trial };
        assert!(wins(&mut later, 0), "it would be quicker, without what it lost");
    }

    #[test]
    fn a_path_that_does_not_answer_is_asked_ever_more_seldom() {
        let (mut trial, mut asked) = (Trial::default(), Vec::new());
        for second in 0..120 {
            if at(second * 1000) >= trial.next() {
                trial.ask(second as u32, at(second * 1000));
                asked.push(second);
            }
        }
        assert_eq!(asked, [0, 1, 2, 3, 4, 5, 6, 46, 86]);
    }
}
