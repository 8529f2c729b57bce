//! Whether a link still carries: what is heard over it, and questions when nothing is.
//!
//! A link that frames go over is pinged as soon as nothing came back for `QUIET`, and is down after [`DOWN_AFTER`] of silence with
//! [`LOST_PINGS`] pings lost. An idle one is not asked. Each host says a heartbeat over its idle links, the more seldom the
//! more there are, with a promise of when the next one comes: of a host that dies one neighbour or another notices after four
//! seconds at the latest. An idle link is asked when that promise is broken, when something was sent over it and nothing came back, and when
//! there is reason to doubt it: SWIM says that the peer is dead, another host lost its link with it, or this host lost another link or hears nothing at all.

use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::link::IN_USE;
use super::pulse::QUIET;
use super::{Event, Peer, Topology};
use crate::path::Path;

/// Silence, with pings lost, that ends a link; one over TCP is silent while what was lost is sent again (RFC 6298, section 2.4).
const DOWN_AFTER: Duration = Duration::from_millis(250);
const TCP_DOWN_AFTER: Duration = Duration::from_secs(3);
const LOST_PINGS: usize = 3;
/// How long a ping is waited for before it counts as lost in the link's loss, at least.
const PING_LOST: Duration = Duration::from_secs(2);
/// Interval between questions to a silent link.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(25);
/// Interval between pings that measure: of a link that is used or [`YOUNG`], and of an idle one.
const PROBE: Duration = Duration::from_secs(1);
const IDLE_PROBE: Duration = Duration::from_secs(300);
const YOUNG: Duration = Duration::from_secs(5);
/// The same of a used link that loses pings, whose cost should be known again soon.
const LOSSY_PROBE: Duration = Duration::from_millis(250);
const LOSSY: f64 = 0.02;
/// The same while it seems that only unmarked datagrams pass.
const SUSPICIOUS_PROBE: Duration = Duration::from_millis(100);
/// Silence of all links together after which one has to answer. Neighbours with many links of their own promise to say something each fifteen
/// seconds only; a host that nothing is heard of is missed by one that has few links, and so sooner, and should miss the others as soon.
const ALONE: Duration = Duration::from_millis(4500);
/// Silence without a session that ends a link, beyond what the peer promised.
const SESSIONLESS: Duration = Duration::from_secs(2);

/// What a link needs now.
#[derive(Default)]
pub(super) struct Probe {
    /// A ping over this path.
    pub(super) ping: Option<Path>,
    /// To be looked at again soon.
    pub(super) is_silent: bool,
}

impl Peer {
    /// Why its link is to be given up, if it is.
    pub(super) fn reason_to_give_up(&mut self, current: Option<u32>, now: Time) -> Option<&'static str> {
        let heard = self.last_heard();
        let link = self.link.as_mut()?;
        link.on_sent(self.meter.sent.link_wanted(), now);
        let (quiet, patience) = (now.since(heard.max(link.since)), link.patience());
        if current.is_none() && quiet > link.pulse.promised() + SESSIONLESS {
            return Some("there is no session any more");
        }
        let is_lost = self.pings.unanswered(link.path, heard, patience, now) >= LOST_PINGS;
        let is_lost_by_peer = link.pulse.lost_by_peer > heard;
        match self.is_silent(now) {
            true if is_lost => Some("nothing comes back"),
            true if is_lost_by_peer => Some("the other end lost it"),
            _ => None,
        }
    }

    /// Whether its link is due for a ping; with `marks` this host marks what is urgent.
    pub(super) fn probe(&mut self, marks: bool, now: Time) -> Probe {
        let (heard, wanted) = (self.last_heard(), self.meter.sent.link_wanted());
        let Some(link) = &mut self.link else { return Probe::default() };
        let heard_or_new = heard.max(link.since);
        let (quiet, patience, since_ping) = (now.since(heard_or_new), link.patience(), now.since(link.last_ping));
        let lost = self.pings.unanswered(link.path, heard, patience, now);
        // What is lost while hosts meet tells of busy hosts, not of the path.
        let counts_from = link.since + YOUNG;
        for _ in 0..self.pings.give_up(link.path, patience.max(PING_LOST), counts_from, now) {
            link.on_lost_ping();
        }
        link.pulse.note(wanted, heard_or_new, now);
        let is_used = now.since(link.last_used) < IN_USE;
        // A host that only replies falls silent when the link fails: what was asked once is asked on.
        let is_unanswered = lost > 0 || (heard < link.last_ping && since_ping > patience);
        let is_silent = quiet >= QUIET && (is_used || is_unanswered || link.pulse.is_due(heard_or_new, patience, now));
        let interval = match is_used || now.since(link.since) < YOUNG {
            _ if marks && self.marks.are_suspicious() => SUSPICIOUS_PROBE,
            true if link.loss > LOSSY => LOSSY_PROBE,
            false if link.loss <= LOSSY => IDLE_PROBE,
            _ => PROBE,
        };
        let is_due = since_ping >= interval || (is_silent && since_ping >= ASK_AGAIN);
        if is_due {
            link.last_ping = now;
        }
        Probe { ping: is_due.then_some(link.path), is_silent }
    }

    /// Whether a heartbeat has to be said over its link, and over which path. A new one is promised within `promised`; `share` says for
    /// how much of that this host then waits.
    pub(super) fn beat(&mut self, promised: Duration, share: impl FnOnce() -> f64, now: Time) -> Option<Path> {
        let link = self.link.as_mut()?;
        let said = self.meter.sent.link_last().max(link.last_ping);
        link.pulse.beats(said, promised, share, now).then_some(link.path)
    }

    /// When something last came over its link, or that went up.
    pub(super) fn heard_over_link(&self) -> Option<Time> {
        Some(self.last_heard().max(self.link.as_ref()?.since))
    }

    /// Whether its link need not be looked at soon: no frames go over it, and nothing is asked.
    pub(super) fn is_at_rest(&self, now: Time) -> bool {
        let heard = self.last_heard();
        self.link.as_ref().is_some_and(|link| {
            let is_idle = now.since(link.last_used) >= IN_USE && now.since(link.since) >= YOUNG;
            is_idle && heard >= link.last_ping && link.pulse.is_calm(heard)
        })
    }

    /// Whether nothing came over its link for so long that it is lost if pings are, be it the peer's.
    fn is_silent(&self, now: Time) -> bool {
        self.link.as_ref().is_some_and(|link| {
            let bound = if link.path.is_udp() { DOWN_AFTER } else { TCP_DOWN_AFTER };
            now.since(self.last_heard().max(link.since)) > bound.max(link.patience())
        })
    }

    /// Its peer gave the link up.
    pub(super) fn on_lost_by_peer(&mut self, now: Time) {
        if let Some(link) = &mut self.link {
            link.pulse.lost_by_peer = now;
        }
    }

    /// Has its link answer, unless it was heard a moment ago.
    pub(super) fn doubt(&mut self, now: Time) {
        if let Some(link) = &mut self.link {
            link.pulse.doubted = now;
        }
    }
}

/// Of links, each with when something last came over it, the one that has to answer because nothing came over any for a while: this host may be
/// cut off.
pub(super) fn to_doubt(links: &[(Time, HostLabel)], now: Time) -> Option<HostLabel> {
    let ((last, _), (_, silent)) = (links.iter().max()?, links.iter().min()?);
    (now.since(*last) > ALONE).then_some(*silent)
}

impl Topology {
    /// SWIM says that a peer is dead: if there is a link with it, that has to answer.
    pub(crate) fn on_dead(&mut self, label: HostLabel, now: Time) {
        if let Some(peer) = self.peers.get_mut(&label) {
            peer.doubt(now);
            self.events.push_back(Event::Wake(now));
        }
    }

    /// The peer promises to say something over the link again within so many milliseconds.
    pub(crate) fn on_heartbeat(&mut self, label: HostLabel, from: Path, within: u16, now: Time) {
        let Some(link) = self.peers.get_mut(&label).and_then(|peer| peer.link.as_mut()) else { return };
        link.pulse.promise(within);
        if link.path == from {
            link.last_from_remote = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datapath::snapshot::Meter;
    use crate::topology::Event;
    use crate::topology::lab::*;
    use crate::wire::Control;

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
    fn an_idle_link_is_not_pinged_and_says_a_heartbeat_each_four_seconds() {
        let (mut topology, table, meter) = idle();
        let (mut pings, mut beats) = (0, 0);
        for now in (60_000..80_000).step_by(50) {
            if now % 1500 == 0 {
                meter.received.on_link(1, at(now));
                topology.on_heartbeat(PEER, remote(), 4000, at(now));
            }
            topology.tend_links(true, &table, at(now));
            let (asked, said) = said(&mut topology);
            (pings, beats) = (pings + asked, beats + said);
        }
        assert_eq!(pings, 0);
        assert!((5..=7).contains(&beats), "{beats}");
    }

    #[test]
    fn a_broken_promise_is_asked_about_and_ends_the_link() {
        let (mut topology, table, _) = idle();
        topology.on_heartbeat(PEER, remote(), 4000, at(60_000));
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
        assert!(asked.is_some_and(|at| (64_350..64_700).contains(&at)), "{asked:?}");
        assert!(down.is_some_and(|at| at < 65_000), "{down:?}");
    }

    #[test]
    fn a_host_that_hears_nothing_at_all_doubts_a_link_before_a_long_promise_is_broken() {
        let (mut topology, table, _) = idle();
        topology.on_heartbeat(PEER, remote(), 15_000, at(60_000));
        let is_down = |event: &Event| matches!(event, Event::LinkDown(PEER, "nothing comes back"));
        let down = (60_000..70_000).step_by(50).find(|now| {
            topology.tend_links(true, &table, at(*now));
            events(&mut topology).iter().any(is_down)
        });
        assert!(down.is_some_and(|at| (64_500..65_500).contains(&at)), "{down:?}");
        let [one, other] = [7, 8].map(|n| HostLabel([n; 6]));
        assert_eq!(to_doubt(&[(at(1000), one), (at(2000), other)], at(6400)), None, "one is heard");
        assert_eq!(to_doubt(&[(at(1000), one), (at(2000), other)], at(6600)), Some(one));
    }

    #[test]
    fn an_idle_link_wakes_with_the_first_datagram_and_with_doubt() {
        let (mut topology, table, meter) = idle();
        topology.tend_links(true, &table, at(61_500));
        said(&mut topology);
        meter.sent.on_link(1, at(61_510));
        topology.tend_links(true, &table, at(61_550));
        assert_eq!(said(&mut topology).0, 0, "an answer may be on its way");
        topology.tend_links(true, &table, at(61_610));
        assert_eq!(said(&mut topology).0, 1);

        let (mut topology, table, meter) = idle();
        topology.peers.get_mut(&PEER).unwrap().doubt(at(60_100));
        topology.tend_links(true, &table, at(60_150));
        assert_eq!(said(&mut topology).0, 0, "it was heard a moment ago");
        meter.received.on_link(1, at(60_200));
        topology.tend_links(true, &table, at(61_500));
        assert_eq!(said(&mut topology).0, 0, "it was heard since");
        topology.on_dead(PEER, at(61_500));
        topology.tend_links(true, &table, at(61_550));
        assert_eq!(said(&mut topology).0, 1);
    }
}
