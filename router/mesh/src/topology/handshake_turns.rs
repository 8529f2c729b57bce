//! By which neighbours handshakes go that are relayed.

use weft_crypto::HostLabel;

use crate::wire::Step;

/// Handshakes begun without a session after which it may be that nothing comes along the route.
const IN_VAIN: usize = 4;

/// Whose turn it is to carry a handshake with one host: while no session comes of them all neighbours that lead there have theirs, at both ends.
#[derive(Default)]
pub(super) struct HandshakeTurns {
    /// Handshakes begun and answered since there was a session.
    begun: usize,
    answered: usize,
}

impl HandshakeTurns {
    /// Returns which of the other neighbours the next packet goes by, if not by the route's. What follows an answer goes the way of what was answered.
    pub(super) fn next(&mut self, step: Step, via: HostLabel, ways: &[HostLabel]) -> Option<HostLabel> {
        let others: Vec<HostLabel> = ways.iter().copied().filter(|way| *way != via).collect();
        let turn = match step {
            Step::First(_) => take(&mut self.begun),
            Step::Second | Step::Cookie => take(&mut self.answered),
            Step::Third => self.begun.saturating_sub(1),
        };
        (turn % (others.len() + 1)).checked_sub(1).and_then(|turn| others.get(turn).copied())
    }

    /// Whether one is under way or came to nothing.
    pub(super) fn have_begun(&self) -> bool {
        self.begun.max(self.answered) > 0
    }

    /// There is a session: the next handshake begins with the route.
    pub(super) fn on_session(&mut self) {
        *self = HandshakeTurns::default();
    }

    /// Whether several came to nothing.
    pub(super) fn are_in_vain(&self) -> bool {
        self.begun >= IN_VAIN
    }
}

/// The count before one more.
fn take(count: &mut usize) -> usize {
    std::mem::replace(count, count.wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use weft_crypto::handshake::Pattern;

    use super::*;

    #[test]
    fn all_neighbours_have_their_turn_and_an_end_follows_its_beginning() {
        let ways @ [via, other, third] = [11, 12, 13].map(|n| HostLabel([n; 6]));
        let (mut turns, first) = (HandshakeTurns::default(), Step::First(Pattern::Xx));
        let mut next = |step| turns.next(step, via, &ways);
        assert_eq!([first, first, Step::Third, Step::Second].map(&mut next), [None, Some(other), Some(other), None]);
        assert_eq!([first, first, Step::Second].map(&mut next), [Some(third), None, Some(other)]);
        assert!(turns.are_in_vain());
        turns.on_session();
        assert_eq!((turns.next(first, via, &ways), turns.are_in_vain()), (None, false));
    }
}
