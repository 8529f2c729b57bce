//! One other host, as this one sees it: sessions, link, addresses, what waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weft_crypto::session::SendKey;
use weft_crypto::{PeerId, Secret, Suite, Time};

use crate::snapshot::{Inbound, Meter};
use crate::vnet::VnetHeader;
use crate::wire::Lane;
use crate::wire::{MIN_DATAGRAM, SegmentId};

/// Frames that wait for a session, in number and bytes.
const MAX_WAITING: usize = 64;
const MAX_WAITING_BYTES: usize = 256 * 1024;
/// Control messages that wait for a session.
const MAX_WAITING_CONTROL: usize = 32;
/// Addresses tried for one peer.
const MAX_CANDIDATES: usize = 16;
/// Pings whose answers are awaited.
const MAX_PINGS: usize = 64;

/// A peer. It stays known as long as it has records, a session or a target.
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) meter: Arc<Meter>,
    /// Live sessions, oldest first.
    pub(super) sessions: Vec<Session>,
    /// The index of the one used for sending.
    pub(super) current: Option<u32>,
    /// A session of a host that says to be this peer reborn, until the old life had time to object.
    pub(super) challenge: Option<Challenge>,
    pub(super) link: Option<Link>,
    /// When the last link was let go: what comes straight from the peer right after it opens no new one.
    pub(super) let_go: Time,
    pub(super) pings: BTreeMap<u32, PingSent>,
    /// Whether datagrams marked as urgent reach it and come back.
    pub(super) marks: Marks,
    /// Where it may be reached.
    pub(super) candidates: BTreeMap<SocketAddr, Candidate>,
    /// When a handshake over relays may be tried next, and how many failed.
    pub(super) retry: Backoff,
    pub(super) waiting: VecDeque<WaitingFrame>,
    pub(super) waiting_bytes: usize,
    pub(super) waiting_control: VecDeque<Vec<u8>>,
    /// SWIM says it is alive.
    pub(super) is_alive: bool,
    /// When it was last known to be there: for the grace.
    pub(super) last_there: Time,
    /// Bytes sent when last looked at, and since when there has been traffic over a relay.
    pub(super) sent_seen: u64,
    pub(super) last_traffic: Time,
    /// Questions asked since anything was heard under the session for sending.
    pub(super) questions: u32,
    pub(super) last_question: Time,
    /// When records were last asked for after a gap.
    pub(super) last_pull: Time,
}

/// What a finished handshake proves about who is at the other end now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// This host started it: the answer was fresh.
    Initiator,
    /// This host answered, and its answer was answered.
    Responder,
    /// This host answered an IK message 1, which may be a replay until a packet under the session was opened.
    Pending,
}

pub(super) struct Session {
    pub(super) index: u32,
    pub(super) remote_index: u32,
    pub(super) send: Arc<SendKey>,
    pub(super) inbound: Arc<Inbound>,
    pub(super) hop_send: [u8; 16],
    pub(super) suite: Suite,
    pub(super) secret: Secret,
    pub(super) boot: u64,
    pub(super) created: Time,
    /// At what age this host replaces it.
    pub(super) renew_after: Duration,
    /// The host with the lower label started it: of two started at once this one is kept.
    pub(super) by_lower: bool,
    pub(super) superseded: Option<Time>,
}

pub(super) struct Challenge {
    pub(super) index: u32,
    pub(super) direct: Option<SocketAddr>,
    pub(super) until: Time,
}

pub(super) struct WaitingFrame {
    pub(super) segment: SegmentId,
    pub(super) vnet: VnetHeader,
    pub(super) frame: Vec<u8>,
}

/// A direct path that answered.
pub(super) struct Link {
    pub(super) remote: SocketAddr,
    pub(super) since: Time,
    /// When its address last changed, and when that was last said.
    pub(super) moved: Time,
    pub(super) said_moved: Time,
    pub(super) srtt: Option<Duration>,
    /// Share of pings unanswered, smoothed.
    pub(super) loss: f64,
    pub(super) last_ping: Time,
    /// When a control message last came from `remote`.
    pub(super) last_from_remote: Time,
    /// Datagrams sent until a moment less than [`IN_USE`](super::links::IN_USE) ago, and that moment.
    pub(super) sent_before: (u64, Time),
    pub(super) max_datagram: usize,
    /// When a ping of the full size was last answered.
    pub(super) size_confirmed: Time,
    pub(super) last_size_probe: Time,
    pub(super) announced: Option<(u32, u16)>,
    pub(super) last_used: Time,
    /// When it was last looked whether this host does without it.
    pub(super) needed_at: Time,
}

impl Link {
    pub(super) fn new(remote: SocketAddr, now: Time) -> Self {
        Link {
            remote,
            since: now,
            moved: now,
            said_moved: Time::ZERO,
            srtt: None,
            loss: 0.0,
            last_ping: now,
            last_from_remote: now,
            sent_before: (0, now),
            max_datagram: MIN_DATAGRAM,
            size_confirmed: now,
            last_size_probe: Time::ZERO,
            announced: None,
            last_used: now,
            needed_at: now,
        }
    }

    /// Takes a round-trip time (smoothing after RFC 6298).
    pub(super) fn on_rtt(&mut self, rtt: Duration) {
        self.srtt = Some(self.srtt.map_or(rtt, |srtt| (srtt * 7 + rtt) / 8));
        self.loss *= 0.95;
    }

    pub(super) fn on_lost_ping(&mut self) {
        self.loss = self.loss * 0.95 + 0.05;
    }

    /// How long a ping may go unanswered.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(60) + self.srtt.unwrap_or(Duration::from_millis(100)) * 2
    }
}

pub(super) struct PingSent {
    pub(super) to: SocketAddr,
    pub(super) at: Time,
    pub(super) is_probe_of_size: bool,
    pub(super) lane: Lane,
}

/// Whether a network passes what is marked as urgent (DSCP, RFC 2474): some drop it. Pings of both kinds tell.
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

    /// The lane that the next ping leaves by.
    pub(super) fn next_lane(&mut self) -> Lane {
        let is_marked = self.marked < Self::PATIENCE || !self.was_marked;
        self.was_marked = is_marked;
        self.marked += u32::from(is_marked);
        if is_marked { Lane::Urgent } else { Lane::Main }
    }

    /// A ping was answered; whether marks are to be given up.
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

/// An address where the peer may be.
#[derive(Clone, Copy, Default)]
pub(super) struct Candidate {
    pub(super) retry: Backoff,
    /// Named by the user, or the peer's own source address: worth trying often.
    pub(super) is_likely: bool,
}

/// When to try again.
#[derive(Clone, Copy, Default)]
pub(super) struct Backoff {
    pub(super) next: Time,
    pub(super) failures: u32,
}

impl Backoff {
    pub(super) fn is_due(&self, now: Time) -> bool {
        now >= self.next
    }

    /// Notes a try: the next one is twice as far off, at most `longest`; `jitter` in 0..1 spreads them.
    pub(super) fn on_try(&mut self, now: Time, longest: Duration, jitter: f64) {
        let doubled = Duration::from_millis(500) * 2u32.pow(self.failures.min(8));
        self.failures += 1;
        self.next = now + doubled.min(longest).mul_f64(0.75 + jitter / 2.0);
    }

    pub(super) fn reset(&mut self, now: Time) {
        *self = Backoff { next: now, failures: 0 };
    }
}

impl Peer {
    pub(super) fn new(id: PeerId, now: Time) -> Self {
        Peer {
            id,
            meter: Arc::default(),
            sessions: Vec::new(),
            current: None,
            challenge: None,
            link: None,
            let_go: Time::ZERO,
            pings: BTreeMap::new(),
            marks: Marks::default(),
            candidates: BTreeMap::new(),
            retry: Backoff::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_control: VecDeque::new(),
            is_alive: false,
            last_there: now,
            sent_seen: 0,
            last_traffic: Time::ZERO,
            questions: 0,
            last_question: now,
            last_pull: Time::ZERO,
        }
    }

    pub(super) fn current(&self) -> Option<&Session> {
        self.session(self.current?)
    }

    pub(super) fn session(&self, index: u32) -> Option<&Session> {
        self.sessions.iter().find(|session| session.index == index)
    }

    /// When anything was last opened that came straight from the peer.
    pub(super) fn last_heard(&self) -> Time {
        self.meter.received.link_last()
    }

    /// Makes `index` the session for sending; the others have some time left to receive.
    pub(super) fn switch_to(&mut self, index: u32, now: Time) {
        self.current = Some(index);
        self.let_go = Time::ZERO;
        for session in &mut self.sessions {
            let is_current = session.index == index;
            session.inbound.current.store(is_current, Ordering::Relaxed);
            session.superseded = match session.superseded {
                _ if is_current => None,
                None => Some(now),
                superseded => superseded,
            };
        }
    }

    pub(super) fn add_candidate(&mut self, address: SocketAddr, is_likely: bool) {
        if self.candidates.len() >= MAX_CANDIDATES && !self.candidates.contains_key(&address) {
            let replaceable = self.candidates.iter().filter(|(_, c)| !c.is_likely || c.retry.failures > 2);
            let worst = replaceable.max_by_key(|(_, c)| (!c.is_likely, c.retry.failures));
            let Some(worst) = worst.map(|(address, _)| *address) else { return };
            self.candidates.remove(&worst);
        }
        self.candidates.entry(address).or_default().is_likely |= is_likely;
    }

    pub(super) fn add_ping(&mut self, id: u32, ping: PingSent) {
        while self.pings.len() >= MAX_PINGS {
            self.pings.pop_first();
        }
        self.pings.insert(id, ping);
    }

    /// Keeps a frame for when there is a session; false if there is no room.
    pub(super) fn wait(&mut self, frame: WaitingFrame) -> bool {
        let has_room = self.waiting.len() < MAX_WAITING && self.waiting_bytes + frame.frame.len() <= MAX_WAITING_BYTES;
        if has_room {
            self.waiting_bytes += frame.frame.len();
            self.waiting.push_back(frame);
        }
        has_room
    }

    pub(super) fn wait_control(&mut self, text: Vec<u8>) {
        if self.waiting_control.len() >= MAX_WAITING_CONTROL {
            self.waiting_control.pop_front();
        }
        self.waiting_control.push_back(text);
    }

    pub(super) fn drop_waiting(&mut self) {
        self.waiting.clear();
        self.waiting_control.clear();
        self.waiting_bytes = 0;
    }
}
