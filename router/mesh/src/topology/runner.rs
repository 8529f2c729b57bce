//! A path beside the link's, and how it does against it.

use std::time::Duration;

use weft_crypto::Time;

use super::link::Link;

/// How often a path is asked that is new or has just been quicker, and how often any other while frames flow.
const HEAT: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);
/// Questions until a path is new no more.
const NEW: u32 = 6;
/// Answers in a row that have to be quicker: if the round trip alone is, and if it is only the share of lost pings that makes the difference.
const WINS: u32 = 3;
const WINS_BY_LOSS: u32 = 12;
/// How much quicker they have to be: this, and twice as quick.
const LEAST_GAIN: Duration = Duration::from_micros(500);
/// What a path that loses all pings would take longer for it: most of what is lost is sent again.
const LOSS: Duration = Duration::from_millis(300);
/// How long it is remembered what a path took that was left, with frames on it: without them it would seem quick again.
const REMEMBERED: Duration = Duration::from_secs(300);

/// What is known of a path beside the link's.
#[derive(Clone, Copy, Default)]
pub(super) struct Runner {
    /// The question that was not answered yet.
    asked: Option<(u32, Time)>,
    questions: u32,
    next: Time,
    wins: u32,
    /// What it took when it was left, and when that was.
    left: Option<(Duration, Time)>,
}

impl Runner {
    /// Whether it is asked now; while the link `is_used`, again and again.
    pub(super) fn is_due(&self, is_used: bool, now: Time) -> bool {
        now >= self.next && (is_used || self.wins > 0 || self.questions == 0)
    }

    /// It is asked now.
    pub(super) fn ask(&mut self, id: u32, now: Time) {
        if self.asked.is_some() {
            self.wins = 0;
        }
        self.questions = self.questions.saturating_add(1);
        let is_promising = self.wins > 0 || self.questions < NEW;
        self.next = now + if is_promising { HEAT } else { LATER };
        self.asked = Some((id, now));
    }

    /// Takes an answer; true if the path has been quicker than the link often enough.
    pub(super) fn on_answer(&mut self, id: u32, link: &Link, now: Time) -> bool {
        let Some((_, at)) = self.asked.take_if(|(asked, _)| *asked == id) else { return false };
        let known = self.left.filter(|(_, left)| now.since(*left) < REMEMBERED).map(|(took, _)| took);
        let took = now.since(at).max(known.unwrap_or_default());
        let is_quicker = |than: Duration| took * 2 < than && took + LEAST_GAIN < than;
        let Some(rtt) = link.recent_rtt() else { return false };
        let needed = if is_quicker(rtt) { WINS } else { WINS_BY_LOSS };
        self.wins = if is_quicker(rtt + LOSS.mul_f64(link.loss)) { self.wins + 1 } else { 0 };
        if self.wins > 0 {
            self.next = at + HEAT;
        }
        self.wins >= needed
    }

    /// The link leaves it, or goes over to it; with what it `took` when left.
    pub(super) fn start_over(&mut self, took: Option<Duration>, now: Time) {
        self.wins = 0;
        self.left = took.map(|took| (took, now)).or(self.left);
    }
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
        link.on_rtt(Duration::from_millis(30));
        link.loss = loss;
        link
    }

    /// Answers in a row until the path has won; `None` after 30.
    fn wins(took: u64, link: &Link) -> Option<u32> {
        let mut runner = Runner::default();
        (1..=30).find(|round| {
            let now = u64::from(*round) * 1000;
            runner.ask(*round, at(now));
            runner.on_answer(*round, link, at(now + took))
        })
    }

    #[test]
    fn a_path_wins_by_three_quick_answers_or_by_twelve_where_the_link_loses_pings() {
        assert_eq!([1, 10, 14, 16, 30].map(|took| wins(took, &link(0.0))), [Some(3), Some(3), Some(3), None, None]);
        assert_eq!([1, 30, 100].map(|took| wins(took, &link(0.2))), [Some(3), Some(12), None]);
    }

    #[test]
    fn an_answer_that_does_not_come_ends_a_row() {
        let (link, mut runner) = (link(0.0), Runner::default());
        for (id, answers) in [(1, true), (2, true), (3, false), (4, true), (5, true)] {
            runner.ask(id, at(u64::from(id) * 1000));
            let won = answers && runner.on_answer(id, &link, at(u64::from(id) * 1000 + 1));
            assert!(!won, "{id}");
        }
        assert!(!runner.on_answer(5, &link, at(5002)), "an answer counts once");
        runner.ask(6, at(6000));
        assert!(runner.on_answer(6, &link, at(6001)));
    }
}
