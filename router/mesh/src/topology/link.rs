//! A direct path to a peer, judged by what comes back over it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use weft_crypto::Time;

use super::pulse::Pulse;
use super::size::{Load, PathSize};
use crate::path::Path;
use crate::wire::Lane;

/// Pings whose answers are awaited, of one peer.
const MAX_PINGS: usize = 64;
/// Datagrams within [`IN_USE`] that make a link a used one, for as long again. Fewer are what hosts say to each other all the
/// time, for themselves or for others: the link is then probed as an idle one.
const USE: u64 = 10;
pub(super) const IN_USE: Duration = Duration::from_secs(1);
/// How long a link has to be silent before the host that chooses its path gives it up for another.
const MOVE_AFTER: Duration = Duration::from_millis(1200);
/// How long a host whose peer chooses the path stays with one: less than [`MOVE_AFTER`], or both would go on looking for
/// each other where the other has just been.
const FOLLOW_AFTER: Duration = Duration::from_secs(1);
/// Round-trip times that are remembered.
const RTTS: usize = 8;
/// And how many of them are recent.
const RECENT: usize = 3;
const FRESH: Duration = Duration::from_secs(6);
/// Interval between pings of a link that is compared with other paths.
const BESIDE: Duration = Duration::from_millis(900);
/// How long a goodbye may answer the offer to do without the link.
const OFFERED: Duration = Duration::from_secs(5);
/// Datagrams a second from which on a link carries bulk.
const BULK: f64 = 100.0;

/// A direct path that answered.
pub(crate) struct Link {
    pub(crate) path: Path,
    pub(super) since: Time,
    /// When its path last changed, and when that was last reported.
    pub(super) moved: Time,
    pub(super) reported_moved: Time,
    pub(crate) srtt: Option<Duration>,
    /// The last round-trip times, the oldest first.
    rtts: VecDeque<Duration>,
    rtt_at: Time,
    /// When the peer last asked by a path beside this one.
    pub(super) raced_by_peer: Time,
    /// Share of pings unanswered, from 0 to 1, smoothed.
    pub(crate) loss: f64,
    pub(super) last_ping: Time,
    /// When a control message last came by `path`.
    pub(super) last_from_remote: Time,
    /// Datagrams sent until a moment less than [`IN_USE`] ago, and that moment.
    sent_before: (u64, Time),
    /// Datagrams sent until the last tick, and how many in the second before it, smoothed.
    sent_at_tick: (u64, Time),
    rate: f64,
    pub(crate) size: PathSize,
    pub(super) pulse: Pulse,
    /// Cost and size as last announced.
    pub(super) announced: Option<(u32, u16)>,
    pub(super) last_used: Time,
    /// When this host last looked whether it can do without it.
    pub(super) needed_at: Time,
    pub(super) search: Search,
}

impl Link {
    pub(super) fn new(path: Path, now: Time) -> Self {
        Link {
            path,
            since: now,
            moved: now,
            reported_moved: Time::ZERO,
            srtt: None,
            rtts: VecDeque::with_capacity(RTTS),
            rtt_at: now,
            raced_by_peer: Time::ZERO,
            loss: 0.0,
            last_ping: now,
            last_from_remote: now,
            sent_before: (0, now),
            sent_at_tick: (0, now),
            rate: 0.0,
            size: PathSize::new(now),
            pulse: Pulse::new(now),
            announced: None,
            last_used: now,
            needed_at: now,
            search: Search::new(now),
        }
    }

    /// Takes a round-trip time (smoothing after RFC 6298, section 2).
    pub(super) fn on_rtt(&mut self, rtt: Duration, now: Time) {
        self.rtt_at = now;
        self.srtt = Some(self.srtt.map_or(rtt, |srtt| (srtt * 7 + rtt) / 8));
        if self.rtts.len() == RTTS {
            self.rtts.pop_front();
        }
        self.rtts.push_back(rtt);
        self.loss *= 0.95;
    }

    /// The smoothed round-trip time in microseconds.
    pub(crate) fn rtt_us(&self) -> Option<u64> {
        self.srtt.map(|srtt| srtt.as_micros() as u64)
    }

    /// The least of the last round-trip times: what the path takes when no queue and no busy host is in the way.
    pub(super) fn least_rtt(&self) -> Option<Duration> {
        self.rtts.iter().min().copied()
    }

    /// The least of the last few of them, if they are fresh: what the path takes now, with what frames add.
    pub(super) fn recent_rtt(&self, now: Time) -> Option<Duration> {
        let is_fresh = now.since(self.rtt_at) < FRESH;
        self.rtts.iter().rev().take(RECENT).min().copied().filter(|_| is_fresh)
    }

    /// Whether better paths are looked for: frames go to the peer, or come from it.
    pub(super) fn is_raced(&self, now: Time) -> bool {
        let is_peers = self.raced_by_peer != Time::ZERO && now.since(self.raced_by_peer) < FRESH;
        is_peers || self.load(now) > Load::Idle
    }

    /// Returns its path if it is to be asked beside others, for it was not a moment ago.
    pub(super) fn ping_beside(&mut self, now: Time) -> Option<Path> {
        let is_due = now.since(self.last_ping) >= BESIDE;
        if is_due {
            self.last_ping = now;
        }
        is_due.then_some(self.path)
    }

    /// Whether this host has just looked whether it can do without the link, and frames have long not gone over it.
    pub(crate) fn was_offered(&self, now: Time) -> bool {
        self.needed_at != self.since && now.since(self.needed_at) < OFFERED && now.since(self.last_used) > OFFERED
    }

    pub(super) fn on_lost_ping(&mut self) {
        self.loss = self.loss * 0.95 + 0.05;
    }

    /// How long a ping may go unanswered.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(60) + self.srtt.unwrap_or(Duration::from_millis(100)) * 2
    }

    /// Notes how many datagrams were sent over the link so far.
    pub(super) fn on_sent(&mut self, sent: u64, now: Time) {
        let (ticked, at) = self.sent_at_tick;
        let passed = now.since(at).as_secs_f64();
        if passed > 0.0 {
            let share = (passed / IN_USE.as_secs_f64()).min(1.0);
            self.rate += share * (sent.saturating_sub(ticked) as f64 / passed - self.rate);
            self.sent_at_tick = (sent, now);
        }
        let (before, then) = self.sent_before;
        let is_used = sent.saturating_sub(before) >= USE;
        if is_used {
            self.last_used = now;
        }
        if is_used || now.since(then) >= IN_USE {
            self.sent_before = (sent, now);
        }
    }

    /// What goes over the link.
    pub(super) fn load(&self, now: Time) -> Load {
        match now.since(self.last_used) < IN_USE {
            true if self.rate >= BULK => Load::Bulk,
            true => Load::Used,
            false => Load::Idle,
        }
    }

    /// Whether the link may go over to another path that the peer answers on, which is a better one or a worse one (see [`Metered::compare`]):
    /// one of both hosts `chooses`, and leaves a path only once it is silent; the other follows, but to a worse path only once this one is
    /// silent, too. What was under way when either moved is no reason to move again.
    ///
    /// [`Metered::compare`]: super::metered::Metered::compare
    pub(super) fn may_leave(&self, worth: Ordering, chooses: bool, now: Time) -> bool {
        if worth.is_gt() {
            return true;
        }
        let waits = chooses || worth.is_lt();
        let (settled, silent) = if waits { (MOVE_AFTER, MOVE_AFTER) } else { (FOLLOW_AFTER, Duration::ZERO) };
        now.since(self.moved) >= settled && now.since(self.last_from_remote) >= silent
    }

    /// Goes on by another path.
    pub(super) fn move_to(&mut self, path: Path, now: Time) {
        self.path = path;
        self.moved = now;
        self.search = Search::new(now);
        self.last_from_remote = now;
        // The delay of the other path says nothing of this one.
        (self.srtt, self.loss) = (None, 0.0);
        self.rtts.clear();
        self.size.distrust();
    }
}

/// When a host looks for a better path than its link's.
pub(super) struct Search {
    last: Option<Time>,
    count: u32,
}

impl Search {
    fn new(now: Time) -> Self {
        Search { last: Some(now), count: 0 }
    }

    /// When it last did, or when the link came up; none: that is due.
    pub(super) fn last(&self) -> Option<Time> {
        self.last
    }

    /// How often it did.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Has it look at once, and as often as in the beginning.
    pub(super) fn hurry(&mut self) {
        (self.last, self.count) = (None, 0);
    }

    /// It looks now.
    pub(super) fn on_search(&mut self, now: Time) {
        (self.last, self.count) = (Some(now), self.count.saturating_add(1));
    }
}

/// Pings to one peer that were not answered yet.
#[derive(Default)]
pub(super) struct Pings(BTreeMap<u32, PingSent>);

/// A ping that was not answered yet.
pub(super) struct PingSent {
    pub(super) to: Path,
    pub(super) at: Time,
    /// Bytes of the datagram if it probes the path's size.
    pub(super) size: Option<usize>,
    pub(super) lane: Lane,
}

impl Pings {
    pub(super) fn add(&mut self, id: u32, ping: PingSent) {
        while self.0.len() >= MAX_PINGS {
            self.0.pop_first();
        }
        self.0.insert(id, ping);
    }

    /// The path of one that was not answered yet.
    pub(super) fn path_of(&self, id: u32) -> Option<Path> {
        self.0.get(&id).map(|ping| ping.to)
    }

    pub(super) fn take(&mut self, id: u32) -> Option<PingSent> {
        self.0.remove(&id)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether an address was asked less than `within` ago, and did not answer yet.
    pub(super) fn has_asked(&self, to: Path, within: Duration, now: Time) -> bool {
        self.0.values().any(|ping| ping.to.from_any() == to.from_any() && now.since(ping.at) < within)
    }

    /// Pings to an address since a packet was last heard, unanswered for longer than `patience`.
    pub(super) fn unanswered(&self, to: Path, heard: Time, patience: Duration, now: Time) -> usize {
        let is_lost = |ping: &&PingSent| {
            ping.to == to && ping.size.is_none() && ping.at >= heard && now.since(ping.at) > patience
        };
        self.0.values().filter(is_lost).count()
    }

    /// Gives up size probes to an address that are older than `patience`; returns their sizes. Only those count that were sent
    /// before a packet was `heard`: otherwise the path may be lost altogether.
    pub(super) fn lost_size_probes(&mut self, to: Path, patience: Duration, heard: Time, now: Time) -> Vec<usize> {
        let is_lost = |ping: &PingSent| ping.to == to && now.since(ping.at) > patience && ping.at < heard;
        let mut lost = Vec::new();
        self.0.retain(|_, ping| match ping.size.filter(|_| is_lost(ping)) {
            Some(size) => {
                lost.push(size);
                false
            }
            None => true,
        });
        lost
    }

    /// Gives up pings older than `patience`; returns how many of them went to an address, were no size probes, and were sent at `from` or later.
    pub(super) fn give_up(&mut self, to: Path, patience: Duration, from: Time, now: Time) -> usize {
        let mut lost = 0;
        self.0.retain(|_, ping| {
            let is_lost = now.since(ping.at) > patience;
            lost += usize::from(is_lost && ping.to == to && ping.size.is_none() && ping.at >= from);
            !is_lost
        });
        lost
    }
}

/// Whether a network passes datagrams marked as urgent (DSCP, RFC 2474): some drop them. Pings of both kinds tell.
#[derive(Default)]
pub(super) struct Marks {
    /// Marked pings sent, and unmarked ones answered, since a marked one was answered.
    marked: u32,
    unmarked_answered: u32,
    was_marked: bool,
}

impl Marks {
    /// Marked pings that may be lost before an unmarked one is tried, and before, with so many unmarked ones answered, marks
    /// are given up: on a network that loses half of all datagrams that happens once in a thousand times.
    const PATIENCE: u32 = 2;
    const MARKED_LOST: u32 = 12;
    const UNMARKED_ANSWERED: u32 = 6;

    /// Returns the lane that the next ping leaves by.
    pub(super) fn next_lane(&mut self) -> Lane {
        let is_marked = self.marked < Self::PATIENCE || !self.was_marked;
        self.was_marked = is_marked;
        self.marked += u32::from(is_marked);
        if is_marked { Lane::Urgent } else { Lane::Main }
    }

    /// Takes the answer to a ping; returns whether marks should be given up.
    pub(super) fn on_answer(&mut self, lane: Lane) -> bool {
        if lane == Lane::Urgent {
            *self = Marks::default();
            return false;
        }
        self.unmarked_answered += 1;
        self.marked >= Self::MARKED_LOST && self.unmarked_answered >= Self::UNMARKED_ANSWERED
    }

    /// Whether unmarked pings are answered and marked ones are not.
    pub(super) fn are_suspicious(&self) -> bool {
        self.marked >= Self::PATIENCE && self.unmarked_answered > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MIN_DATAGRAM;

    fn path(host: u8) -> Path {
        Path::udp(([192, 0, 2, host], 1).into())
    }

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_link_is_used_from_ten_datagrams_a_second_on() {
        let mut link = Link::new(path(1), at(0));
        link.on_sent(9, at(900));
        assert_eq!(link.last_used, at(0));
        link.on_sent(10, at(950));
        assert_eq!(link.last_used, at(950));
        link.on_sent(19, at(2000));
        link.on_sent(28, at(3000));
        assert_eq!(link.last_used, at(950), "nine in each second");
    }

    #[test]
    fn the_size_is_distrusted_when_the_link_moves() {
        let mut link = Link::new(path(1), at(0));
        link.size.on_answer(1472);
        link.move_to(path(2), at(3));
        assert_eq!(link.size.max_datagram, MIN_DATAGRAM);
    }

    #[test]
    fn marks_are_given_up_only_if_unmarked_pings_are_answered_and_marked_ones_are_not() {
        let mut marks = Marks::default();
        let mut given_up = false;
        for _ in 0..60 {
            let lane = marks.next_lane();
            given_up |= lane == Lane::Main && marks.on_answer(lane);
        }
        assert!(given_up && marks.are_suspicious());
        let mut marks = Marks::default();
        let lost = (0..60).any(|_| {
            let lane = marks.next_lane();
            marks.on_answer(lane)
        });
        assert!(!lost && !marks.are_suspicious());
    }

    #[test]
    fn lost_pings_are_counted_by_address_and_size_probes_are_not() {
        let (here, there) = (path(1), path(2));
        let mut pings = Pings::default();
        for (id, to, size) in [(1, here, None), (2, there, None), (3, here, Some(1400)), (4, here, None)] {
            pings.add(id, PingSent { to, at: at(u64::from(id)), size, lane: Lane::Urgent });
        }
        let patience = Duration::from_millis(100);
        assert_eq!(pings.unanswered(here, at(2), patience, at(200)), 1);
        assert!(pings.has_asked(there, patience, at(100)) && !pings.has_asked(there, patience, at(102)));
        assert_eq!(pings.lost_size_probes(here, patience, at(3), at(200)), [], "nothing was heard after it");
        assert_eq!(pings.lost_size_probes(here, patience, at(4), at(200)), [1400]);
        assert_eq!(pings.give_up(here, patience, at(2), at(200)), 1, "one was sent before");
        assert!(pings.take(4).is_none());
    }
}
