//! Whether a link still carries: what is heard over it, and questions when nothing is.
//!
//! A link that frames go over is pinged as soon as nothing came back for [`QUIET`], and is down after [`DOWN_AFTER`] of silence with
//! [`LOST_PINGS`] pings lost. An idle one is not asked. Each host says a heartbeat over its idle links, the more seldom the
//! more there are, with a promise of when the next one comes: of a host that dies one neighbour or another notices within the
//! second. An idle link is asked when that promise is broken, when something was sent over it and nothing came back, and when
//! there is reason to doubt it: another host lost its link with the same peer, or this host lost another link.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use weft_crypto::{HostLabel, Time};

use super::link::IN_USE;
use super::{Event, Topology};
use crate::path::Path;
use crate::wire::{Control, Lane};

/// Silence on a used link that is worth a question.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// Silence, with pings lost, that ends a link.
const DOWN_AFTER: Duration = Duration::from_millis(250);
const LOST_PINGS: usize = 3;
/// How long a ping is waited for before it counts as lost in the link's loss, at least.
const PING_LOST: Duration = Duration::from_secs(2);
/// Interval between questions to a silent link.
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// Interval between pings that measure: of a link that is used or [`YOUNG`], and of an idle one.
const PROBE: Duration = Duration::from_secs(1);
const IDLE_PROBE: Duration = Duration::from_secs(90);
const YOUNG: Duration = Duration::from_secs(5);
/// The same of a used link that loses pings, whose cost should be known again soon.
const LOSSY_PROBE: Duration = Duration::from_millis(250);
const LOSSY: f64 = 0.02;
/// The same while it seems that only unmarked datagrams pass.
const SUSPICIOUS_PROBE: Duration = Duration::from_millis(100);
/// Silence after which a link may be doubted.
const ASLEEP: Duration = Duration::from_millis(250);
/// Silence without a session that ends a link, beyond what the peer promised.
const SESSIONLESS: Duration = Duration::from_secs(2);
/// Time between two heartbeats of a host over all its idle links, and over one of them. NATs and firewalls forget a flow after
/// 30 s (RFC 4787, section 4.3, wants two minutes).
const HEARTBEAT: Duration = Duration::from_millis(1400);
const SOONEST_HEARTBEAT: Duration = Duration::from_secs(2);
const LATEST_HEARTBEAT: Duration = Duration::from_secs(10);
/// How late a heartbeat may come: its sender looks at its links at intervals.
const LATE: Duration = Duration::from_millis(150);

/// What two hosts say to each other over an idle link.
pub(super) struct Pulse {
    /// When this host last said a heartbeat, and the share of the promised time after which it says the next one.
    last_beat: Time,
    share: f64,
    /// How long the peer promised to be silent at most.
    promised: Duration,
    /// When the first datagram was sent of those since which nothing came back.
    unanswered: Option<Time>,
    doubted: Time,
}

impl Pulse {
    pub(super) fn new(now: Time) -> Self {
        Pulse { last_beat: now, share: 1.0, promised: LATEST_HEARTBEAT, unanswered: None, doubted: Time::ZERO }
    }

    /// Notes when something was last sent over the link and heard.
    fn note(&mut self, sent: Time, heard: Time) {
        self.unanswered = match self.unanswered {
            _ if sent <= heard => None,
            Some(first) if first > heard => Some(first),
            _ => Some(sent),
        };
    }

    /// Whether a link last `heard` so long ago has to answer.
    fn is_due(&self, heard: Time, patience: Duration, now: Time) -> bool {
        let quiet = now.since(heard);
        let waits = self.unanswered.is_some_and(|first| now.since(first) >= QUIET);
        quiet >= ASLEEP && (waits || self.doubted > heard || quiet > self.promised + LATE + patience)
    }
}

/// How long a host with so many links may be silent on an idle one.
fn longest_silence(links: usize) -> Duration {
    (HEARTBEAT * links as u32).clamp(SOONEST_HEARTBEAT, LATEST_HEARTBEAT)
}

impl Topology {
    /// Why a link is to be given up, if it is.
    pub(super) fn reason_to_give_up(
        &mut self,
        label: HostLabel,
        current: Option<u32>,
        now: Time,
    ) -> Option<&'static str> {
        let peer = self.peers.get_mut(&label)?;
        let heard = peer.last_heard();
        let link = peer.link.as_mut()?;
        link.on_sent(peer.meter.sent.link_datagrams.load(Ordering::Relaxed), now);
        let (quiet, patience) = (now.since(heard.max(link.since)), link.patience());
        if current.is_none() && quiet > link.pulse.promised + SESSIONLESS {
            return Some("there is no session any more");
        }
        let is_lost = peer.pings.unanswered(link.path, heard, patience, now) >= LOST_PINGS;
        (is_lost && quiet > DOWN_AFTER.max(patience)).then_some("nothing comes back")
    }

    /// Pings a link that is due for it.
    pub(super) fn probe(&mut self, label: HostLabel, current: Option<u32>, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let (heard, sent) = (peer.last_heard(), peer.meter.sent.link_last());
        let Some(link) = &mut peer.link else { return };
        let heard_or_new = heard.max(link.since);
        let (quiet, patience, since_ping) = (now.since(heard_or_new), link.patience(), now.since(link.last_ping));
        let lost = peer.pings.unanswered(link.path, heard, patience, now);
        for _ in 0..peer.pings.give_up(link.path, patience.max(PING_LOST), now) {
            link.on_lost_ping();
        }
        link.pulse.note(sent, heard_or_new);
        let is_used = now.since(link.last_used) < IN_USE;
        // A host that only replies falls silent when the link fails: what was asked once is asked on.
        let is_unanswered = lost > 0 || (heard < link.last_ping && since_ping > patience);
        let is_silent = quiet >= QUIET && (is_used || is_unanswered || link.pulse.is_due(heard_or_new, patience, now));
        if is_silent {
            self.events.push_back(Event::Wake(now + ASK_AGAIN));
        }
        let interval = match is_used || now.since(link.since) < YOUNG {
            _ if self.marks && peer.marks.are_suspicious() => SUSPICIOUS_PROBE,
            true if link.loss > LOSSY => LOSSY_PROBE,
            false if link.loss <= LOSSY => IDLE_PROBE,
            _ => PROBE,
        };
        if since_ping >= interval || (is_silent && since_ping >= ASK_AGAIN) {
            link.last_ping = now;
            let path = link.path;
            if let Some(index) = current {
                self.ping(label, index, path, 0, now);
            }
        }
    }

    /// Says a heartbeat over a link over which nothing was said for long.
    pub(super) fn beat(&mut self, label: HostLabel, current: Option<u32>, now: Time) {
        let promised = longest_silence(self.linked.len());
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let Some((link, index)) = peer.link.as_mut().zip(current) else { return };
        let said = peer.meter.sent.link_last().max(link.pulse.last_beat).max(link.last_ping);
        if now.since(said) < promised.mul_f64(link.pulse.share) {
            return;
        }
        // Those of several hosts and links spread out.
        (link.pulse.last_beat, link.pulse.share) = (now, self.rng.random_range(0.75..1.0));
        let control = Control::Heartbeat { within: promised.as_millis() as u16 };
        self.events.push_back(Event::Straight {
            peer: label,
            index,
            to: link.path,
            lane: Lane::Main,
            control,
            size: 0,
        });
    }

    /// The peer promises to say something over the link again within so many milliseconds.
    pub(crate) fn on_heartbeat(&mut self, label: HostLabel, from: Path, within: u16, now: Time) {
        let Some(link) = self.peers.get_mut(&label).and_then(|peer| peer.link.as_mut()) else { return };
        let promised = Duration::from_millis(within.into());
        link.pulse.promised = promised.clamp(SOONEST_HEARTBEAT, LATEST_HEARTBEAT);
        if link.path == from {
            link.last_from_remote = now;
        }
    }

    /// Has a link answer, unless it was heard a moment ago.
    pub(super) fn doubt(&mut self, label: HostLabel, now: Time) {
        if let Some(link) = self.peers.get_mut(&label).and_then(|peer| peer.link.as_mut()) {
            link.pulse.doubted = now;
        }
    }

    /// Has all links answer: what was lost with one may be lost with others.
    pub(super) fn doubt_all(&mut self, now: Time) {
        for label in self.linked.clone() {
            self.doubt(label, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datapath::snapshot::Meter;
    use crate::topology::lab::*;

    /// Pings and heartbeats among what is to be sent.
    fn said(topology: &mut Topology) -> (usize, usize) {
        let said = events(topology);
        let count = |is: fn(&Control) -> bool| {
            said.iter().filter(|event| matches!(event, Event::Straight { control, .. } if is(control))).count()
        };
        (
            count(|control| matches!(control, Control::Ping { .. })),
            count(|control| matches!(control, Control::Heartbeat { .. })),
        )
    }

    /// A link that has been idle for a minute, heard last at 60 s.
    fn idle() -> (Topology, Table, Arc<Meter>) {
        let (mut topology, table, meter) = topology();
        for now in (0..60_000).step_by(50) {
            topology.tend_links(true, &table, at(now));
            answer(&mut topology, &meter, 1472, at(now + 10));
        }
        meter.received.on_link(1, at(60_000));
        (topology, table, meter)
    }

    #[test]
    fn an_idle_link_is_not_pinged_and_says_a_heartbeat_each_two_seconds() {
        let (mut topology, table, meter) = idle();
        let (mut pings, mut beats) = (0, 0);
        for now in (60_000..80_000).step_by(50) {
            if now % 1500 == 0 {
                meter.received.on_link(1, at(now));
                topology.on_heartbeat(PEER, remote(), 2000, at(now));
            }
            topology.tend_links(true, &table, at(now));
            let (asked, said) = said(&mut topology);
            (pings, beats) = (pings + asked, beats + said);
        }
        assert_eq!(pings, 0);
        assert!((10..=14).contains(&beats), "{beats}");
    }

    #[test]
    fn a_broken_promise_is_asked_about_and_ends_the_link() {
        let (mut topology, table, _) = idle();
        topology.on_heartbeat(PEER, remote(), 3000, at(60_000));
        let mut asked = None;
        let down = (60_000..70_000).step_by(50).find(|now| {
            topology.tend_links(true, &table, at(*now));
            let events = events(&mut topology);
            let is_ping = |event: &Event| matches!(event, Event::Straight { control: Control::Ping { .. }, .. });
            if events.iter().any(is_ping) {
                asked.get_or_insert(*now);
            }
            events.iter().any(|event| matches!(event, Event::LinkDown(PEER, "nothing comes back")))
        });
        assert!(asked.is_some_and(|at| (63_150..63_500).contains(&at)), "{asked:?}");
        assert!(down.is_some_and(|at| at < 64_000), "{down:?}");
    }

    #[test]
    fn an_idle_link_wakes_with_the_first_datagram_and_with_doubt() {
        let (mut topology, table, meter) = idle();
        topology.tend_links(true, &table, at(61_500));
        said(&mut topology);
        meter.sent.on_link(1, at(61_550));
        topology.tend_links(true, &table, at(61_600));
        assert_eq!(said(&mut topology).0, 0, "an answer may be on its way");
        topology.tend_links(true, &table, at(61_650));
        assert_eq!(said(&mut topology).0, 1);

        let (mut topology, table, meter) = idle();
        topology.doubt(PEER, at(60_100));
        topology.tend_links(true, &table, at(60_150));
        assert_eq!(said(&mut topology).0, 0, "it was heard a moment ago");
        meter.received.on_link(1, at(60_200));
        topology.tend_links(true, &table, at(61_500));
        assert_eq!(said(&mut topology).0, 0, "it was heard since");
        topology.doubt(PEER, at(61_500));
        topology.tend_links(true, &table, at(61_550));
        assert_eq!(said(&mut topology).0, 1);
    }

    #[test]
    fn the_more_links_the_longer_each_is_silent() {
        let seconds = |links| longest_silence(links).as_secs_f64();
        assert_eq!([1, 2, 3, 9, 23].map(seconds), [2.0, 2.8, 4.2, 10.0, 10.0]);
    }
}
