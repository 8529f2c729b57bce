//! What two hosts find out by tallies: by which neighbours what one sends reaches the other.
//!
//! A tally says which tallies of the other came, and how many bytes of frames (loss measurement, as in RFC 6374). Each end judges what it sends
//! itself: what comes back may take another way.

use std::collections::VecDeque;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::avoidance::Avoidances;
use crate::records::METERED_COST;
use crate::wire::{Step, Tally};

/// How long a tally is waited for at least and at most, and how much longer for each unit of the route's cost.
const PATIENCE: Duration = Duration::from_millis(200);
const PATIENCE_PER_COST: Duration = Duration::from_micros(200);
const MOST_PATIENCE: Duration = Duration::from_secs(3);
/// Tallies in a row of which nothing is heard before others are sent by other neighbours, and before it is asked at leisure.
const DOUBTFUL: usize = 2;
const HOPELESS: usize = 6;
/// Handshakes begun without a session after which nothing may come back.
const VAIN_HANDSHAKES: usize = 4;
/// Neighbours beside the route's that a tally is sent by at once. As many tallies as are remembered have to hold [`HOPELESS`] by the route's.
const AT_ONCE: usize = 3;
/// Tallies in a row that have to be lost by one neighbour, over this time, while another's came, for the first to be avoided: a relay that lost a link
/// says so sooner.
const LOST: usize = 4;
const LOST_FOR: Duration = Duration::from_secs(1);
/// Tallies in a row that have to come by an avoided neighbour for it to be taken again.
const BACK: usize = 3;
/// Frames are counted over this time at least, and over so many bytes if only part of them is lost.
const WINDOW: Duration = Duration::from_millis(1500);
const FEW_BYTES: u64 = 200;
const MANY_BYTES: u64 = 4_000;
/// The time between two tallies by neighbours that have to prove themselves.
const ASKED_BACK: Duration = Duration::from_secs(2);
/// The time between two answers.
const ANSWERED: Duration = Duration::from_millis(20);
/// How long what came of a tally counts, at least and in times that one is waited for; and how long frames are counted.
const COUNTS: Duration = Duration::from_secs(10);
const COUNTS_FOR: u32 = 10;
/// How long after the last use what was found out is kept.
const KEPT: Duration = Duration::from_secs(60);
/// Tallies that are remembered: as many as one of the other host tells of.
const REMEMBERED: usize = 33;

/// How long it may take for a tally along a route of such a cost to come back.
pub(super) fn patience(cost: u32) -> Duration {
    (PATIENCE + PATIENCE_PER_COST * (cost % METERED_COST)).min(MOST_PATIENCE)
}

/// Bytes of frames sent to a host and received from it so far.
#[derive(Clone, Copy)]
pub(super) struct Carried {
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// What is found out about the ways to one host.
pub(super) struct RouteCheck {
    /// The tallies sent last.
    sent: VecDeque<SentTally>,
    /// The number of the next.
    next: u32,
    /// The latest of the other's tallies that came, and which before it, as a [`Tally`] says it.
    came: Option<(u32, u32)>,
    /// Since when frames are counted.
    window: Option<LossWindow>,
    made: Time,
    /// When the host was last asked, by the route and by neighbours that were avoided, and answered; when frames last went there.
    asked: Time,
    asked_back: Time,
    answered: Time,
    pub(super) used: Time,
    /// The next of the other neighbours.
    turn: usize,
    /// Handshakes begun and answered since there was a session.
    begun: usize,
    answers: usize,
    /// Neighbours by which what goes to the host does not arrive.
    pub(super) avoided: Avoidances,
    /// Bytes received of control messages, which are no frames.
    pub(super) control_bytes: u64,
}

struct SentTally {
    number: u32,
    by: HostLabel,
    at: Time,
    /// Whether it asked for one.
    asks: bool,
    /// Bytes of frames sent before it.
    frames: u64,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unknown,
    Came,
    Lost,
}

/// Frames that are counted at both ends.
struct LossWindow {
    by: HostLabel,
    since: Time,
    sent: u64,
    received: u64,
}

impl RouteCheck {
    /// Returns a check whose first tally has a number that no other life of this host is likely to have used.
    pub(super) fn new(first: u32, now: Time) -> RouteCheck {
        RouteCheck {
            sent: VecDeque::new(),
            next: first,
            came: None,
            window: None,
            made: now,
            asked: Time::ZERO,
            asked_back: Time::ZERO,
            answered: Time::ZERO,
            used: Time::ZERO,
            turn: 0,
            begun: 0,
            answers: 0,
            avoided: Avoidances::default(),
            control_bytes: 0,
        }
    }

    /// The neighbours by which the host is to be asked now, once a `period` while it answers.
    pub(super) fn due(
        &mut self,
        via: HostLabel,
        ways: &[HostLabel],
        patience: Duration,
        period: Duration,
        now: Time,
    ) -> Vec<HostLabel> {
        self.forget_old(patience, now);
        let silent = self.silent(via, patience, now);
        let interval = if (1..HOPELESS).contains(&silent) { patience } else { period.max(patience) };
        if now.since(self.asked) >= interval {
            self.asked = now;
            return self.also(via, ways, silent);
        }
        if now.since(self.asked_back) < ASKED_BACK {
            return Vec::new();
        }
        self.asked_back = now;
        self.avoided.on_trial(now).filter(|by| ways.contains(by)).collect()
    }

    /// The neighbours by which a tally goes that answers; none if the last was a moment ago.
    pub(super) fn answering(
        &mut self,
        via: HostLabel,
        ways: &[HostLabel],
        patience: Duration,
        now: Time,
    ) -> Vec<HostLabel> {
        if now.since(self.answered) < ANSWERED {
            return Vec::new();
        }
        self.answered = now;
        let silent = self.silent(via, patience, now);
        self.also(via, ways, silent)
    }

    /// The route's neighbour, and a few others if it is doubtful.
    fn also(&mut self, via: HostLabel, ways: &[HostLabel], silent: usize) -> Vec<HostLabel> {
        let others: Vec<HostLabel> = ways.iter().copied().filter(|way| *way != via).collect();
        let count = if silent >= DOUBTFUL { AT_ONCE.min(others.len()) } else { 0 };
        let turn = self.turn;
        self.turn = turn.wrapping_add(count);
        let next = others.iter().copied().cycle().skip(turn % others.len().max(1)).take(count);
        [via].into_iter().chain(next).collect()
    }

    /// The next tally, which goes by a neighbour.
    pub(super) fn tally(&mut self, by: HostLabel, asks: bool, carried: Carried, now: Time) -> Tally {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back(SentTally { number, by, at: now, asks, frames: carried.sent, fate: Fate::Unknown });
        let (latest, before) = self.came.unwrap_or_default();
        Tally { number, latest, before, received: carried.received, asks }
    }

    /// Takes a tally of the host; returns whether what goes there by the route's neighbour does not arrive.
    pub(super) fn on_tally(&mut self, via: HostLabel, tally: &Tally, patience: Duration, now: Time) -> bool {
        self.note(tally.number);
        self.forget_old(patience, now);
        for sent in &mut self.sent {
            let age = now.since(sent.at);
            let is_before = tally.latest.wrapping_sub(sent.number).cast_signed() > 0;
            if tally.tells_of(sent.number) {
                sent.fate = Fate::Came;
            } else if sent.fate == Fate::Unknown && age >= if is_before { patience } else { patience * 2 } {
                sent.fate = Fate::Lost;
            }
        }
        self.loses_tallies(via) | self.loses_frames(via, tally)
    }

    fn forget_old(&mut self, patience: Duration, now: Time) {
        let counts = COUNTS.max(patience * COUNTS_FOR);
        self.sent.retain(|sent| now.since(sent.at) < counts);
    }

    /// Whether the last tallies by a neighbour were lost while one by another came.
    fn loses_tallies(&self, via: HostLabel) -> bool {
        let known = self.sent.iter().rev().filter(|sent| sent.by == via && sent.fate != Fate::Unknown);
        let lost: Vec<Time> = known.take_while(|sent| sent.fate == Fate::Lost).map(|sent| sent.at).collect();
        let came = |since| self.sent.iter().any(|sent| sent.by != via && sent.fate == Fate::Came && sent.at >= since);
        let is_long = lost.last().is_some_and(|first| lost[0].since(*first) >= LOST_FOR && came(*first));
        lost.len() >= LOST && is_long
    }

    /// Whether the host received less than half of the frames sent to it between two of its tallies, or none.
    fn loses_frames(&mut self, via: HostLabel, tally: &Tally) -> bool {
        let Some(last) = self.sent.iter().find(|sent| sent.number == tally.latest) else { return false };
        let next = LossWindow { by: via, since: last.at, sent: last.frames, received: tally.received };
        let Some(window) = &self.window else {
            self.window = Some(next);
            return false;
        };
        // Another life of the host counts anew.
        let counts_on = window.by == via && tally.received >= window.received;
        let (sent, received) = (next.sent.saturating_sub(window.sent), next.received.saturating_sub(window.received));
        let is_long = next.since.since(window.since) >= WINDOW;
        let is_lossy = match received {
            0 => sent >= FEW_BYTES,
            _ => sent >= MANY_BYTES && received * 2 < sent,
        };
        // Few frames of which none came are counted on for a while.
        if !counts_on || (is_long && (is_lossy || received > 0 || next.since.since(window.since) >= COUNTS)) {
            self.window = Some(next);
        }
        counts_on && is_long && is_lossy
    }

    /// Notes that a tally of the host came.
    fn note(&mut self, number: u32) {
        self.came = Some(match self.came {
            Some((latest, before)) => match number.wrapping_sub(latest).cast_signed() {
                0 => (latest, before),
                ahead @ 1..=31 => (number, before << ahead | 1 << (ahead - 1)),
                behind @ -32..=-1 => (latest, before | 1 << (-behind - 1)),
                // Much is lost between them, or the host lives anew.
                _ => (number, 0),
            },
            None => (number, 0),
        });
    }

    /// How many tallies in a row, sent by a neighbour lately, nothing was heard of.
    fn silent(&self, by: HostLabel, patience: Duration, now: Time) -> usize {
        let is_unheard = |sent: &&SentTally| match sent.fate {
            Fate::Unknown => sent.asks && now.since(sent.at) >= patience,
            fate => fate == Fate::Lost,
        };
        let is_known = |sent: &&SentTally| sent.fate != Fate::Unknown || is_unheard(sent);
        let sent = self.sent.iter().rev().filter(|sent| sent.by == by);
        sent.filter(is_known).take_while(is_unheard).count()
    }

    /// Whether other ways may be needed soon.
    pub(super) fn is_doubtful(&self, via: HostLabel, patience: Duration, now: Time) -> bool {
        self.avoided.is_any() || self.silent(via, patience, now) > 0
    }

    /// Whether it has been asked in vain by a neighbour for some time, or handshakes come to nothing.
    pub(super) fn is_silent(&self, by: HostLabel, patience: Duration, now: Time) -> bool {
        self.silent(by, patience, now) >= HOPELESS || self.begun >= VAIN_HANDSHAKES
    }

    /// Whether something is asked that was not answered yet.
    pub(super) fn is_asking(&self) -> bool {
        self.sent.back().is_some_and(|sent| sent.asks && sent.fate == Fate::Unknown)
    }

    /// Avoids a neighbour from now on, and returns for how long; `None`: it is avoided already.
    pub(super) fn avoid(&mut self, via: HostLabel, now: Time) -> Option<Duration> {
        self.window = None;
        self.avoided.begin(via, now)
    }

    /// Ends the avoidance of neighbours that have proved themselves, and returns them.
    pub(super) fn take_back(&mut self, now: Time) -> Vec<HostLabel> {
        let sent = &self.sent;
        self.avoided.end(now, |by, since| {
            let known =
                sent.iter().rev().filter(|sent| sent.by == by && sent.at >= since && sent.fate != Fate::Unknown);
            let mut last = known.take(BACK).map(|sent| sent.fate == Fate::Came);
            (0..BACK).all(|_| last.next() == Some(true))
        })
    }

    /// By which other neighbour the next handshake packet goes, if not by the route's. While no session comes of them all have their turn, at both
    /// ends; what follows an answer goes the way of what was answered.
    pub(super) fn handshake_by(
        &mut self,
        step: Step,
        via: HostLabel,
        ways: &[HostLabel],
        now: Time,
    ) -> Option<HostLabel> {
        let others: Vec<HostLabel> = ways.iter().copied().filter(|way| *way != via).collect();
        let turn = match step {
            Step::First(_) => next(&mut self.begun),
            Step::Second | Step::Cookie => next(&mut self.answers),
            Step::Third => self.begun.saturating_sub(1),
        };
        if turn > 0 {
            self.used = now;
        }
        (turn % (others.len() + 1)).checked_sub(1).and_then(|turn| others.get(turn).copied())
    }

    /// There is a session: the next handshake begins with the route.
    pub(super) fn on_session(&mut self) {
        (self.begun, self.answers) = (0, 0);
    }

    /// Whether what was found out is no longer needed.
    pub(super) fn is_over(&self, now: Time) -> bool {
        now.since(self.used.max(self.made)) >= KEPT && self.avoided.is_past(now)
    }
}

/// The count before one more.
fn next(count: &mut usize) -> usize {
    std::mem::replace(count, count.wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::lab::at;

    const VIA: HostLabel = HostLabel([11; 6]);
    const OTHER: HostLabel = HostLabel([12; 6]);
    const THIRD: HostLabel = HostLabel([13; 6]);
    const WAYS: [HostLabel; 3] = [VIA, OTHER, THIRD];
    const SHORT: Duration = PATIENCE;
    const SECOND: Duration = Duration::from_secs(1);

    fn check() -> RouteCheck {
        RouteCheck::new(1000, at(0))
    }

    fn nothing() -> Carried {
        Carried { sent: 0, received: 0 }
    }

    /// The host's tally, which says that these of this host's came.
    fn answer(number: u32, came: &[u32], received: u64) -> Tally {
        let latest = came.iter().copied().max().unwrap_or(0);
        let before = came.iter().filter(|came| **came < latest).fold(0, |mask, came| mask | 1 << (latest - came - 1));
        Tally { number, latest, before, received, asks: false }
    }

    /// Asks from one time to another, without an answer; returns when, and by whom.
    fn ask(check: &mut RouteCheck, millis: std::ops::Range<u64>) -> Vec<(u64, Vec<HostLabel>)> {
        let mut asked = Vec::new();
        for now in millis.step_by(50) {
            let by = check.due(VIA, &WAYS, SHORT, SECOND, at(now));
            for by in &by {
                check.tally(*by, true, nothing(), at(now));
            }
            if !by.is_empty() {
                asked.push((now, by));
            }
        }
        asked
    }

    #[test]
    fn a_tally_tells_which_of_the_others_came() {
        let mut check = check();
        assert_eq!(check.tally(VIA, true, nothing(), at(0)).latest, 0);
        let told = |check: &mut RouteCheck, numbers: &[u32]| -> Vec<u32> {
            numbers.iter().for_each(|number| check.note(*number));
            let tally = check.tally(VIA, true, nothing(), at(0));
            (0..200).filter(|number| tally.tells_of(*number)).collect()
        };
        assert_eq!(told(&mut check, &[50, 53, 51]), [50, 51, 53]);
        assert_eq!(told(&mut check, &[84]), [53, 84], "no further back than 32");
        assert_eq!(told(&mut check, &[52, 84]), [52, 53, 84]);
        assert_eq!(told(&mut check, &[10]), [10], "it lives anew");
        assert_eq!(told(&mut check, &[150]), [150]);
    }

    #[test]
    fn a_host_that_does_not_answer_is_asked_sooner_then_by_others_too_then_at_leisure() {
        let mut check = check();
        let asked = ask(&mut check, 5000..9000);
        let times: Vec<u64> = asked.iter().map(|(at, _)| at - 5000).collect();
        assert_eq!(times, [0, 200, 400, 600, 800, 1000, 2000, 3000]);
        let numbers: Vec<usize> = asked.iter().map(|(_, by)| by.len()).collect();
        assert_eq!(numbers, [1, 1, 3, 3, 3, 3, 3, 3]);
        assert!(check.is_silent(VIA, SHORT, at(9000)) && check.is_asking());
        let all: Vec<u32> = (1000..1040).collect();
        assert!(!check.on_tally(VIA, &answer(1, &all[..33], 0), SHORT, at(9000)));
        assert!(!check.is_silent(VIA, SHORT, at(9000)));
        assert_eq!(ask(&mut check, 9000..9100), [(9000, vec![VIA])]);
    }

    #[test]
    fn a_neighbour_that_loses_tallies_is_found_out_by_another_that_does_not() {
        let mut check = check();
        ask(&mut check, 5000..6500);
        // By the route's neighbour went 1000, 1001, 1002 and each third after it.
        let by_via: Vec<u32> = [1000, 1001].into_iter().chain((1002..1014).step_by(3)).collect();
        let none = answer(1, &[], 0);
        assert!(!check.on_tally(VIA, &none, SHORT, at(6500)), "the host may not be there");
        let others: Vec<u32> = (1002..1014).filter(|number| !by_via.contains(number)).collect();
        assert!(check.on_tally(VIA, &answer(2, &others, 0), SHORT, at(6500)));
        assert!(!check.on_tally(VIA, &answer(3, &[1011], 0), SHORT, at(6500)), "the last of all came by it");
    }

    #[test]
    fn a_neighbour_that_loses_frames_is_found_out_by_their_bytes() {
        // Bytes sent and received within a second and a half, and whether that is too few.
        let cases =
            [(200, 0, true), (150, 0, false), (100_000, 40_000, true), (100_000, 60_000, false), (3_000, 1_000, false)];
        for (sent, received, is_lossy) in cases {
            let mut check = check();
            let mut say = |number, now, sent, received| {
                check.tally(VIA, true, Carried { sent, received: 0 }, at(now));
                check.on_tally(VIA, &answer(number, &[999 + number], received), SHORT, at(now))
            };
            assert!(!say(1, 1000, 5_000_000, 77));
            assert!(!say(2, 2000, 5_000_000 + sent, 77 + received), "too soon");
            assert_eq!(say(3, 2500, 5_000_000 + sent, 77 + received), is_lossy, "{sent} sent, {received} received");
        }
        let mut check = check();
        for (number, received) in [(1, 1000), (2, 0)] {
            check.tally(
                VIA,
                true,
                Carried { sent: u64::from(number) * 9_000, received: 0 },
                at(2000 * u64::from(number)),
            );
            let now = at(2000 * u64::from(number));
            assert!(!check.on_tally(VIA, &answer(number, &[999 + number], received), SHORT, now), "it counts anew");
        }
    }

    #[test]
    fn an_avoided_neighbour_is_taken_back_once_tallies_come_by_it() {
        let mut check = check();
        assert!(check.avoid(VIA, at(0)).is_some() && check.avoid(VIA, at(10)).is_none());
        let mut said = 0;
        let mut prove = |check: &mut RouteCheck, from: u64| {
            (0..20).map(|step| from + 500 * step).find(|now| {
                for by in check.due(OTHER, &WAYS, SHORT, SECOND, at(*now)) {
                    let tally = check.tally(by, true, nothing(), at(*now));
                    said += 1;
                    check.on_tally(OTHER, &answer(said, &[tally.number], 0), SHORT, at(*now));
                }
                check.take_back(at(*now)) == [VIA]
            })
        };
        assert_eq!(prove(&mut check, 40_000), None, "it has its time");
        assert!(prove(&mut check, 60_000).is_some_and(|at| at < 67_000));
        assert!(!check.avoided.contains(VIA));
    }

    #[test]
    fn handshakes_take_turns_at_both_ends_and_their_ends_follow_their_beginnings() {
        let (mut check, first) = (check(), Step::First(weft_crypto::handshake::Pattern::Xx));
        let mut by = |step| check.handshake_by(step, VIA, &WAYS, at(0));
        assert_eq!([first, first, Step::Third, Step::Second].map(&mut by), [None, Some(OTHER), Some(OTHER), None]);
        assert_eq!([first, first, Step::Second].map(&mut by), [Some(THIRD), None, Some(OTHER)]);
        check.on_session();
        assert_eq!(check.handshake_by(first, VIA, &WAYS, at(0)), None);
    }
}
