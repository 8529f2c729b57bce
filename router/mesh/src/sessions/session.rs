//! One peer's sessions: which of them is used for sending, which still receive.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weft_crypto::session::{REKEY_AFTER_PACKETS, SendKey};
use weft_crypto::{HostLabel, PeerId, Secret, Suite, Time, envelope};

use super::PathView;
use crate::backoff::Backoff;
use crate::datapath::snapshot::{Hop, Inbound, Meter, Outbound};
use crate::path::Path;
use crate::wire::MIN_DATAGRAM;

/// Age at which a session is replaced, at most, from when frames first went under it: what neighbours say over an idle link does not count.
/// The initiator of the last handshake goes first; the spread keeps a mesh that started at once from renewing all its sessions at once.
pub(super) const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_SPREAD: f64 = 0.3;
const RESPONDER_WAITS: Duration = Duration::from_secs(15);
/// Lifetime of a session, counted so.
const EXPIRE_AFTER: Duration = Duration::from_secs(240);
/// The same ages of a session of neighbours under which no frames go, from when it was made.
const IDLE_REKEY_AFTER: Duration = Duration::from_secs(3600);
const IDLE_EXPIRE_AFTER: Duration = Duration::from_secs(7200);
/// How long a superseded session still receives: its peer may say little.
const RECEIVE_AFTER: Duration = Duration::from_secs(30);
/// Two sessions made within this time were started at once.
const SIMULTANEOUS: Duration = Duration::from_secs(3);
/// Sessions kept with one peer.
const MAX_SESSIONS: usize = 6;
/// Silence from a peer that frames go to, after which it is asked whether it still has the session.
pub(super) const SESSION_QUIET: Duration = Duration::from_secs(1);
/// The same where nothing but heartbeats goes to the peer: longer than between two of them.
pub(super) const SESSION_SILENT: Duration = Duration::from_secs(15);
/// The same of a metered host, or with one.
const METERED_SILENT: Duration = Duration::from_secs(30);
/// Interval between questions, and their number before a new session is made.
const QUESTION_INTERVAL: Duration = Duration::from_millis(300);
const QUESTIONS: u32 = 3;

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

/// One session with a peer.
pub(crate) struct Session {
    pub(super) index: u32,
    pub(crate) keys: SendKeys,
    pub(super) inbound: Arc<Inbound>,
    pub(crate) suite: Suite,
    pub(super) secret: Secret,
    pub(super) boot: u64,
    pub(super) created: Time,
    /// Its age counts from here: when it was made, or for neighbours, when frames first went under it.
    pub(super) ages_from: Time,
    /// At what age this host replaces it.
    pub(super) renew_after: Duration,
    /// The host with the lower label started it: of two started at once this one is kept.
    pub(super) by_lower: bool,
    pub(super) superseded: Option<Time>,
}

/// The sending side of a session.
#[derive(Clone)]
pub(crate) struct SendKeys {
    /// Seals packets to the peer.
    pub(crate) seal: Arc<SendKey>,
    /// The peer's index of the session.
    pub(crate) remote_index: u32,
    /// Authenticates envelopes that go straight to the peer.
    pub(crate) hop: [u8; 16],
}

impl SendKeys {
    /// Returns the sending side over a hop, to `peer` at its end.
    pub(crate) fn over(&self, hop: Hop, peer: HostLabel) -> Outbound {
        let envelope = hop.envelope(envelope::MAX_TTL, peer);
        Outbound { send: Some(self.seal.clone()), link: None, envelope, hop: Some(hop), meter: Arc::default() }
    }

    /// Returns the sending side straight to an address, link or not. What is sent there does not count as use of a link.
    pub(crate) fn straight(&self, peer: HostLabel, to: Path) -> Outbound {
        let hop = Hop {
            via: peer,
            path: to,
            link_index: self.remote_index,
            hop_send: self.hop,
            max_datagram: MIN_DATAGRAM,
            meter: Arc::new(Meter::default()),
        };
        self.over(hop, peer)
    }
}

/// A session of a host that proved a peer's key in another life, and the time until which the life met first may object.
pub(super) struct Challenge {
    pub(super) index: u32,
    pub(super) direct: Option<Path>,
    pub(super) until: Time,
}

/// A peer's sessions.
pub(crate) struct PeerSessions {
    pub(super) id: PeerId,
    pub(super) meter: Arc<Meter>,
    /// Live sessions, oldest first.
    pub(super) all: Vec<Session>,
    /// The index of the session used for sending.
    pub(super) current: Option<u32>,
    pub(super) challenge: Option<Challenge>,
    /// Handshakes over relays.
    pub(super) retry: Backoff,
    /// Questions asked since anything was heard under the session for sending.
    pub(super) questions: u32,
    last_question: Time,
}

impl PeerSessions {
    pub(super) fn new(id: PeerId, now: Time) -> Self {
        PeerSessions {
            id,
            meter: Arc::default(),
            all: Vec::new(),
            current: None,
            challenge: None,
            retry: Backoff::default(),
            questions: 0,
            last_question: now,
        }
    }

    /// Whether nothing is asked or waited for.
    pub(super) fn is_at_rest(&self) -> bool {
        self.current.is_some() && self.challenge.is_none() && self.questions == 0
    }

    /// The session used for sending.
    pub(crate) fn current(&self) -> Option<&Session> {
        self.session(self.current?)
    }

    /// The sending side of one session.
    pub(crate) fn keys(&self, index: u32) -> Option<&SendKeys> {
        Some(&self.session(index)?.keys)
    }

    /// Handshakes over relays that failed in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.retry.failures()
    }

    pub(super) fn session(&self, index: u32) -> Option<&Session> {
        self.all.iter().find(|session| session.index == index)
    }

    /// Whether a session is of another life of the peer than the one for sending.
    pub(super) fn is_of_another_life(&self, session: &Session) -> bool {
        self.current().is_some_and(|current| current.boot != session.boot)
    }

    /// Makes `index` the session for sending; the others have some time left to receive, but one made later that the peer has not used yet.
    pub(super) fn switch_to(&mut self, index: u32, now: Time) {
        self.current = Some(index);
        let is_to_come = |session: &Session| {
            let is_unused = session.inbound.last_heard() <= session.created;
            is_unused && self.session(index).is_some_and(|current| is_later(session, current))
        };
        let to_come: Vec<u32> = self.all.iter().filter(|session| is_to_come(session)).map(|s| s.index).collect();
        for session in &mut self.all {
            let is_current = session.index == index;
            session.inbound.current.store(is_current, Ordering::Relaxed);
            session.superseded = match session.superseded {
                _ if is_current => None,
                None if !to_come.contains(&session.index) => Some(now),
                superseded => superseded,
            };
        }
    }

    /// The sessions that a newly added one pushes out.
    pub(super) fn surplus(&self, added: u32) -> Vec<u32> {
        let challenging = self.challenge.as_ref().map(|challenge| challenge.index);
        let kept = [self.current, challenging, Some(added)];
        let is_spare = |session: &&Session| !kept.contains(&Some(session.index));
        let mut spare: Vec<&Session> = self.all.iter().filter(is_spare).collect();
        // Sessions under which nothing was ever heard go first: they may be of replayed first messages.
        spare.sort_by_key(|session| session.inbound.last_heard() > session.created);
        let count = self.all.len().saturating_sub(MAX_SESSIONS);
        spare.into_iter().take(count).map(|session| session.index).collect()
    }

    /// The sessions whose time is over.
    pub(super) fn expired(&self, now: Time) -> Vec<u32> {
        let is_over = |session: &&Session| {
            let is_silent = |since: Time| now.since(since.max(session.inbound.last_heard())) > RECEIVE_AFTER;
            now.since(session.ages_from) > EXPIRE_AFTER
                || now.since(session.created) > IDLE_EXPIRE_AFTER
                || session.superseded.is_some_and(is_silent)
        };
        self.all.iter().filter(is_over).map(|session| session.index).collect()
    }

    /// Keeps the session for sending from aging while it is one of neighbours and no frames go under it: they last went at `last_traffic`.
    pub(super) fn note_idle(&mut self, has_link: bool, last_traffic: Time, now: Time) {
        let current = self.current;
        let Some(session) = self.all.iter_mut().find(|session| Some(session.index) == current) else { return };
        if has_link && last_traffic <= session.ages_from {
            session.ages_from = now;
        }
    }

    /// The session under which the peer is to be asked whether it is there: frames or pings go to it, nothing comes back.
    pub(super) fn question(&mut self, path: &PathView, now: Time) -> Option<u32> {
        let heard = self.current()?.inbound.last_heard();
        let silent = if path.is_metered { METERED_SILENT } else { SESSION_SILENT };
        let is_used = path.last_traffic > heard || (path.link.is_some() && now.since(heard) > silent);
        if now.since(heard) <= SESSION_QUIET || !is_used {
            self.questions = 0;
            return None;
        }
        if now.since(self.last_question) < QUESTION_INTERVAL {
            return None;
        }
        self.last_question = now;
        self.questions += 1;
        self.current
    }

    /// Whether the session for sending should be replaced by a fresh one. A session that nothing uses is left to expire.
    pub(super) fn needs_renewal(&self, has_link: bool, last_traffic: Time, now: Time) -> bool {
        let Some(current) = self.current() else { return false };
        // After so many questions the peer may have lost its side of the session.
        if self.questions > QUESTIONS {
            return true;
        }
        let idle_after = IDLE_REKEY_AFTER.mul_f64(current.renew_after.div_duration_f64(REKEY_AFTER));
        let is_old = now.since(current.ages_from) > current.renew_after
            || now.since(current.created) > idle_after
            || current.keys.seal.used() > REKEY_AFTER_PACKETS;
        is_old && (has_link || now.since(last_traffic) < REKEY_AFTER)
    }
}

/// Returns the age at which a session is to be renewed; `jitter` is between 0 and 1.
pub(super) fn renew_after(is_initiator: bool, jitter: f64) -> Duration {
    let first = REKEY_AFTER.mul_f64(1.0 - REKEY_SPREAD * jitter);
    if is_initiator { first } else { first + REKEY_AFTER.mul_f64(REKEY_SPREAD) + RESPONDER_WAITS }
}

/// Whether a session that a packet was just opened under is to replace the one for sending.
pub(super) fn is_preferred(session: &Session, current: &Session) -> bool {
    // Nothing was ever opened under the current one: the peer may not have it.
    if current.inbound.last_heard() <= current.created {
        return true;
    }
    is_later(session, current)
}

/// Whether a session counts as made later than another: of two that were started at once, that of the host with the lower label.
fn is_later(session: &Session, current: &Session) -> bool {
    let apart = session.created.since(current.created).max(current.created.since(session.created));
    if apart < SIMULTANEOUS && session.boot == current.boot && session.by_lower != current.by_lower {
        session.by_lower
    } else {
        session.created > current.created
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initiator_renews_before_the_responder_at_any_jitter() {
        for jitter in [0.0, 0.5, 1.0] {
            assert!(renew_after(true, jitter) <= REKEY_AFTER);
            assert!(renew_after(true, 0.0) < renew_after(false, jitter));
            assert!(renew_after(false, jitter) < EXPIRE_AFTER);
        }
    }
}
