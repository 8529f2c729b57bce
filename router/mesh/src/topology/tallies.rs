//! What two hosts find out by tallies: by which neighbours what one sends reaches the other.
//!
//! A tally says which tallies of the other came, and how many bytes of frames (loss measurement, as in RFC 6374). Each end judges what it sends
//! itself: what comes back may take another way.

use std::collections::VecDeque;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::avoidance::Avoidances;
use super::frame_loss::{FrameCount, FrameLoss};
use super::handshake_turns::HandshakeTurns;
use crate::bucket::Bucket;
use crate::records::METERED_COST;
use crate::wire::Tally;

/// How long a tally is waited for at least and at most, and how much longer for each unit of the route's cost.
const PATIENCE: Duration = Duration::from_millis(200);
const PATIENCE_PER_COST: Duration = Duration::from_micros(200);
const MOST_PATIENCE: Duration = Duration::from_secs(3);
/// Tallies in a row of which nothing is heard before others are sent by other neighbours, and before it is asked at leisure.
const DOUBTFUL: usize = 2;
const HOPELESS: usize = 6;
/// Neighbours beside the route's that a tally is sent by at once. As many tallies as are remembered have to hold [`HOPELESS`] by the route's.
const AT_ONCE: usize = 3;
/// Tallies in a row that have to be lost by one neighbour, over this time, while so many by others came, for the first to be avoided: a relay that lost
/// a link says so sooner.
const LOST: usize = 4;
const LOST_FOR: Duration = Duration::from_millis(700);
const CAME: usize = 2;
/// Tallies in a row that have to come by a neighbour that is avoided for it to be taken again, and by another than one that loses frames.
const PROOF: usize = 3;
/// How long frames may go by the neighbour before after the route has changed.
const SETTLES: Duration = Duration::from_millis(300);
/// How long a neighbour that loses frames is compared with others, and how long it is looked whether there are any.
const SUSPECTED: Duration = Duration::from_secs(3);
const ALONE: Duration = Duration::from_millis(1500);
/// The time between two tallies by neighbours that have to prove themselves.
const ASKED_BACK: Duration = Duration::from_secs(2);
/// Answers a second, and at once; one where bytes are paid for counts as ten.
const ANSWERS_A_SECOND: u64 = 5;
const ANSWERS_AT_ONCE: u64 = 50;
const METERED_ANSWER: u64 = 10;
/// How long what came of a tally counts, at least and in times that one is waited for.
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
    /// The route's neighbour, and since when it is that.
    route: Option<(HostLabel, Time)>,
    /// Frames that are counted at both ends.
    frames: FrameLoss,
    /// A neighbour by which frames are lost, and since when that is known.
    suspect: Option<(HostLabel, Time)>,
    /// How long what came of a tally counts.
    counts: Duration,
    /// When the host was last asked, by the route and by neighbours that were avoided; when frames last went there, and when it last asked.
    asked: Time,
    asked_back: Time,
    pub(super) used: Time,
    pub(super) asked_for: Time,
    /// When it was last asked without frames, for it has tried a path that is paid for.
    pub(super) doubted: Time,
    answers: Bucket,
    /// Bytes that came under sessions with it, and when that last changed.
    heard: (u64, Time),
    /// The next of the other neighbours.
    turn: usize,
    /// Whose turn it is to carry a handshake.
    pub(super) turns: HandshakeTurns,
    /// Neighbours by which what goes to the host does not arrive.
    pub(super) avoided: Avoidances,
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

impl RouteCheck {
    /// Returns a check whose first tally has this number, which none of another check with the host is likely to have had.
    pub(super) fn new(first: u32, now: Time) -> RouteCheck {
        RouteCheck {
            sent: VecDeque::new(),
            next: first,
            came: None,
            route: None,
            frames: FrameLoss::default(),
            suspect: None,
            counts: COUNTS,
            asked: Time::ZERO,
            asked_back: Time::ZERO,
            used: Time::ZERO,
            asked_for: now,
            doubted: Time::ZERO,
            answers: Bucket::new(ANSWERS_AT_ONCE, now),
            heard: (0, now),
            turn: 0,
            turns: HandshakeTurns::default(),
            avoided: Avoidances::default(),
        }
    }

    /// The neighbours by which the host is to be asked now, once a `period` while it answers; without one only those that have to prove themselves.
    pub(super) fn due(
        &mut self,
        via: HostLabel,
        ways: &[HostLabel],
        patience: Duration,
        period: Option<Duration>,
        now: Time,
    ) -> Vec<HostLabel> {
        self.counts = COUNTS.max(patience * COUNTS_FOR).max(period.unwrap_or_default() * 2);
        self.forget_old(now);
        self.note_route(via, now);
        if let Some(period) = period {
            let is_urgent = (1..HOPELESS).contains(&self.silent(via, patience, now)) || self.suspects(via, now);
            if now.since(self.asked) >= if is_urgent { patience } else { period.max(patience) } {
                self.asked = now;
                return self.also(via, ways, patience, now);
            }
        }
        if now.since(self.asked_back) < ASKED_BACK {
            return Vec::new();
        }
        self.asked_back = now;
        self.avoided.on_trial(now).filter(|by| ways.contains(by)).collect()
    }

    /// The neighbours by which a tally goes that answers; none if many did of late.
    pub(super) fn answering(
        &mut self,
        via: HostLabel,
        ways: &[HostLabel],
        patience: Duration,
        is_metered: bool,
        now: Time,
    ) -> Vec<HostLabel> {
        let price = if is_metered { METERED_ANSWER } else { 1 };
        let may_answer = self.answers.take(price, ANSWERS_A_SECOND, ANSWERS_AT_ONCE, now);
        if may_answer { self.also(via, ways, patience, now) } else { Vec::new() }
    }

    /// The route's neighbour, and a few others if it is doubtful.
    fn also(&mut self, via: HostLabel, ways: &[HostLabel], patience: Duration, now: Time) -> Vec<HostLabel> {
        let others: Vec<HostLabel> = ways.iter().copied().filter(|way| *way != via).collect();
        let is_doubtful = self.silent(via, patience, now) >= DOUBTFUL || self.suspects(via, now);
        let count = if is_doubtful { AT_ONCE.min(others.len()) } else { 0 };
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
        self.forget_old(now);
        self.note_route(via, now);
        let is_none = (tally.latest, tally.before) == (0, 0);
        for sent in &mut self.sent {
            let age = now.since(sent.at);
            let is_before = !is_none && tally.latest.wrapping_sub(sent.number).cast_signed() > 0;
            if tally.tells_of(sent.number) {
                sent.fate = Fate::Came;
            } else if sent.fate == Fate::Unknown && age >= if is_before { patience } else { patience * 2 } {
                sent.fate = Fate::Lost;
            }
        }
        if self.loses_frames(via, tally) && !self.suspects(via, now) {
            self.suspect = Some((via, now));
        }
        self.loses_tallies(via) || self.is_worse(via, now)
    }

    fn note_route(&mut self, via: HostLabel, now: Time) {
        if self.route.is_none_or(|(before, _)| before != via) {
            self.route = Some((via, now));
        }
    }

    fn forget_old(&mut self, now: Time) {
        self.sent.retain(|sent| now.since(sent.at) < self.counts);
    }

    /// Whether the last tallies by a neighbour were lost while others came that were sent meanwhile.
    fn loses_tallies(&self, via: HostLabel) -> bool {
        let known = self.sent.iter().rev().filter(|sent| sent.by == via && sent.fate != Fate::Unknown);
        let lost: Vec<Time> = known.take_while(|sent| sent.fate == Fate::Lost).map(|sent| sent.at).collect();
        let (Some(last), Some(first)) = (lost.first(), lost.last()) else { return false };
        let is_meanwhile = |sent: &&SentTally| (*first..=*last).contains(&sent.at);
        let others = self.sent.iter().filter(|sent| sent.by != via && sent.fate == Fate::Came);
        lost.len() >= LOST && last.since(*first) >= LOST_FOR && others.filter(is_meanwhile).count() >= CAME
    }

    fn suspects(&self, via: HostLabel, now: Time) -> bool {
        self.suspect.is_some_and(|(suspect, since)| suspect == via && now.since(since) < SUSPECTED)
    }

    /// Whether another neighbour is better than one that loses frames, or there is no other.
    fn is_worse(&self, via: HostLabel, now: Time) -> bool {
        let Some((_, since)) = self.suspect.filter(|_| self.suspects(via, now)) else { return false };
        let mut others =
            self.sent.iter().filter(|sent| sent.by != via && sent.at >= since).map(|sent| sent.by).peekable();
        if others.peek().is_none() {
            return now.since(since) >= ALONE;
        }
        others.any(|by| proves(&self.sent, by, since))
    }

    /// Whether the host got too few of the frames that went by a neighbour.
    fn loses_frames(&mut self, via: HostLabel, tally: &Tally) -> bool {
        // Frames sent before another tally may have gone by the neighbour before.
        let settled = self.route.map_or(Time::ZERO, |(_, since)| since + SETTLES);
        let is_last = |sent: &&SentTally| sent.number == tally.latest && sent.by == via && sent.at >= settled;
        let last = self.sent.iter().find(is_last);
        let count = last.map(|last| FrameCount { by: via, at: last.at, sent: last.frames, received: tally.received });
        count.is_some_and(|count| self.frames.note(count))
    }

    /// Notes that a tally of the host came.
    fn note(&mut self, number: u32) {
        self.came = Some(match self.came {
            Some((latest, before)) => match number.wrapping_sub(latest).cast_signed() {
                0 => (latest, before),
                ahead @ 1..=32 => (number, before.checked_shl(ahead as u32).unwrap_or(0) | 1 << (ahead - 1)),
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
        self.avoided.is_any() || self.suspects(via, now) || self.silent(via, patience, now) > 0
    }

    /// Notes how many bytes came under sessions with the host so far.
    pub(super) fn note_heard(&mut self, bytes: u64, now: Time) {
        if self.heard.0 != bytes {
            self.heard = (bytes, now);
        }
    }

    /// Whether nothing comes back of what is sent by a neighbour, or handshakes come to nothing. A host of an older version says no tallies, and other
    /// things.
    pub(super) fn is_silent(&self, by: HostLabel, patience: Duration, now: Time) -> bool {
        let says_nothing = || self.came.is_some() || now.since(self.heard.1) >= patience * HOPELESS as u32;
        (self.silent(by, patience, now) >= HOPELESS && says_nothing()) || self.turns.are_in_vain()
    }

    /// Whether an answer may be on its way.
    pub(super) fn is_asking(&self, patience: Duration, now: Time) -> bool {
        let is_open = |sent: &SentTally| sent.asks && sent.fate == Fate::Unknown && now.since(sent.at) < patience;
        self.sent.back().is_some_and(is_open)
    }

    /// There is another session with the host: frames sent under the last one may be lost for that.
    pub(super) fn on_session(&mut self) {
        self.turns.on_session();
        (self.frames, self.suspect) = (FrameLoss::default(), None);
    }

    /// Avoids a neighbour from now on, and returns for how long; `None`: it is avoided already.
    pub(super) fn avoid(&mut self, via: HostLabel, now: Time) -> Option<Duration> {
        (self.frames, self.suspect) = (FrameLoss::default(), None);
        self.avoided.begin(via, now)
    }

    /// Ends the avoidance of neighbours that have proved themselves, or no longer lead there; returns them.
    pub(super) fn take_back(&mut self, ways: &[HostLabel], now: Time) -> Vec<HostLabel> {
        let is_gone = |by| !ways.is_empty() && !ways.contains(&by);
        self.avoided.end(now, |by, since| is_gone(by) || proves(&self.sent, by, since))
    }

    /// Whether what was found out is no longer needed.
    pub(super) fn is_over(&self, now: Time) -> bool {
        now.since(self.used.max(self.asked_for)) >= KEPT && self.avoided.is_past(now)
    }
}

/// Whether the last tallies that were sent by a neighbour since then came.
fn proves(sent: &VecDeque<SentTally>, by: HostLabel, since: Time) -> bool {
    let known = sent.iter().rev().filter(|sent| sent.by == by && sent.at >= since && sent.fate != Fate::Unknown);
    let last: Vec<Fate> = known.take(PROOF).map(|sent| sent.fate).collect();
    last == [Fate::Came; PROOF]
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

    const NOTHING: Carried = Carried { sent: 0, received: 0 };

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
            let by = check.due(VIA, &WAYS, SHORT, Some(SECOND), at(now));
            for by in &by {
                check.tally(*by, true, NOTHING, at(now));
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
        assert_eq!(check.tally(VIA, true, NOTHING, at(0)).latest, 0);
        let told = |check: &mut RouteCheck, numbers: &[u32]| -> Vec<u32> {
            numbers.iter().for_each(|number| check.note(*number));
            let tally = check.tally(VIA, true, NOTHING, at(0));
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
        assert!(check.is_silent(VIA, SHORT, at(9000)) && !check.is_asking(SHORT, at(9000)));
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
        // Bytes sent and received, and whether that is too few.
        let cases = [(100_000, 40_000, true), (100_000, 60_000, false)];
        for (sent, received, is_lossy) in cases {
            for (other, found) in [(Some(OTHER), 3100), (None, 4200)] {
                let mut check = check();
                let mut say = |number, now, by, sent, received| {
                    check.tally(by, true, Carried { sent, received: 0 }, at(now));
                    check.on_tally(VIA, &answer(number, &[999 + number], received), SHORT, at(now))
                };
                assert!(!say(1, 500, VIA, 4_000_000, 0), "they may have gone by another");
                assert!(!say(2, 1000, VIA, 5_000_000, 77));
                assert!(!say(3, 1500, VIA, 5_000_000 + sent, 77 + received), "too soon");
                assert!(!say(4, 2500, VIA, 5_000_000 + sent, 77 + received), "others may be as bad");
                let by = other.unwrap_or(VIA);
                let worse = (2500..5000)
                    .step_by(200)
                    .zip(5..)
                    .find(|(now, number)| say(*number, *now, by, 5_000_000 + sent, 77 + received));
                let at = worse.map(|(at, _)| at);
                assert!(
                    if is_lossy { at.is_some_and(|at| at <= found) } else { at.is_none() },
                    "{sent} {received} {at:?}"
                );
            }
        }
    }

    #[test]
    fn no_neighbour_is_to_blame_for_a_host_that_was_not_there_and_comes_back() {
        let mut check = check();
        ask(&mut check, 5000..7900);
        // Of the first round after it is back the tally by another neighbour came first, and was answered.
        let asked = ask(&mut check, 8000..8010);
        let [.., (_, by)] = &asked[..] else { panic!() };
        assert_eq!(by.len(), 3);
        let last = check.next - 1;
        assert!(!check.on_tally(VIA, &answer(1, &[last], 0), SHORT, at(8002)));
        assert!(!check.on_tally(VIA, &answer(2, &[last - 2, last - 1, last], 0), SHORT, at(8300)));
        for tally in [Tally { received: u64::MAX, ..answer(3, &[last], 0) }, answer(u32::MAX, &[u32::MAX, 0], 1 << 63)]
        {
            check.on_tally(VIA, &tally, SHORT, at(8400));
        }
    }

    #[test]
    fn an_avoided_neighbour_is_taken_back_once_tallies_come_by_it() {
        let mut check = check();
        assert!(check.avoid(VIA, at(0)).is_some() && check.avoid(VIA, at(10)).is_none());
        let mut said = 0;
        let mut prove = |check: &mut RouteCheck, from: u64| {
            (0..20).map(|step| from + 500 * step).find(|now| {
                for by in check.due(OTHER, &WAYS, SHORT, Some(SECOND), at(*now)) {
                    let tally = check.tally(by, true, NOTHING, at(*now));
                    said += 1;
                    check.on_tally(OTHER, &answer(said, &[tally.number], 0), SHORT, at(*now));
                }
                check.take_back(&WAYS, at(*now)) == [VIA]
            })
        };
        assert_eq!(prove(&mut check, 40_000), None, "it has its time");
        assert!(prove(&mut check, 60_000).is_some_and(|at| at < 67_000));
        assert!(!check.avoided.contains(VIA));
    }
}
