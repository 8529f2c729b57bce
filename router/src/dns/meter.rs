//! What came of questions, for metrics.

use std::time::{Duration, Instant};

use crate::observe::tallies::Tallies;

/// What came of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuestionResult {
    /// Answered from memory.
    Answered,
    /// There is no such name (NXDOMAIN).
    NoSuchName,
    /// Refused, or not understood.
    Refused,
    /// Others answered.
    Forwarded,
    /// Others did not answer.
    NotForwarded,
    /// It was no question.
    Dropped,
}

impl QuestionResult {
    const ALL: [QuestionResult; 6] = [
        QuestionResult::Answered,
        QuestionResult::NoSuchName,
        QuestionResult::Refused,
        QuestionResult::Forwarded,
        QuestionResult::NotForwarded,
        QuestionResult::Dropped,
    ];

    /// The result that an answer gives from memory (RFC 1035, section 4.1.1).
    pub fn of(answer: &[u8]) -> Self {
        match answer.get(3).map(|flags| flags & 0x0f) {
            Some(0) => QuestionResult::Answered,
            Some(3) => QuestionResult::NoSuchName,
            _ => QuestionResult::Refused,
        }
    }

    /// The result of a question that others were asked.
    pub fn of_others(answer: Option<&[u8]>) -> Self {
        if answer.is_some() { QuestionResult::Forwarded } else { QuestionResult::NotForwarded }
    }

    fn name(self) -> &'static str {
        match self {
            QuestionResult::Answered => "answered",
            QuestionResult::NoSuchName => "no_such_name",
            QuestionResult::Refused => "refused",
            QuestionResult::Forwarded => "forwarded",
            QuestionResult::NotForwarded => "not_forwarded",
            QuestionResult::Dropped => "dropped",
        }
    }
}

/// Has every result counted from the start.
pub fn prepare(tallies: &Tallies) {
    QuestionResult::ALL.iter().for_each(|result| tallies.dns_questions(result.name(), 0, Duration::ZERO));
}

/// Questions that are answered together.
pub struct Turn {
    since: Instant,
    counts: [u32; QuestionResult::ALL.len()],
}

impl Turn {
    /// Begins with the first question.
    pub fn begin() -> Turn {
        Turn { since: Instant::now(), counts: Default::default() }
    }

    /// One more question.
    pub fn note(&mut self, result: QuestionResult) {
        self.counts[result as usize] += 1;
    }

    /// All are answered.
    pub fn end(self, tallies: &Tallies) {
        let time = self.since.elapsed();
        for (result, count) in QuestionResult::ALL.into_iter().zip(self.counts).filter(|(_, count)| *count > 0) {
            tallies.dns_questions(result.name(), count, time);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn an_answer_tells_what_came_of_its_question() {
        let answer = |code: u8| [0, 0, 0x84, 0x80 | code];
        assert_eq!(QuestionResult::of(&answer(0)), QuestionResult::Answered);
        assert_eq!(QuestionResult::of(&answer(3)), QuestionResult::NoSuchName);
        assert_eq!(QuestionResult::of(&answer(5)), QuestionResult::Refused);
        let (tallies, mut turn) = (Tallies::default(), Turn::begin());
        prepare(&tallies);
        [0, 0, 3].iter().for_each(|code| turn.note(QuestionResult::of(&answer(*code))));
        turn.end(&tallies);
        let mut registry = Registry::default();
        tallies.register(&mut registry);
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry).unwrap();
        for line in
            ["weft_dns_questions_total{result=\"answered\"} 2", "weft_dns_questions_total{result=\"no_such_name\"} 1"]
        {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.contains("weft_dns_questions_total{result=\"refused\"} 0"), "{text}");
    }
}
