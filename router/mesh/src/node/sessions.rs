//! A session's life: taken into use, asked after, renewed and let go.
//!
//! A new session is used for sending only after a packet under it was opened, so a replayed handshake moves nothing.

use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use weft_crypto::session::REKEY_AFTER_PACKETS;
use weft_crypto::{HostLabel, Keyring, PeerId, Time};

use super::peer::{Peer, Proof, Session};
use super::{Event, Node};
use crate::wire::Control;

/// How long a session is used before a new one is made, at most: a mesh that started at once does not renew all
/// its sessions at once. The initiator of the last one goes first.
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_SPREAD: f64 = 0.3;
const RESPONDER_WAITS: Duration = Duration::from_secs(15);
/// How long a session lives in all.
const EXPIRE_AFTER: Duration = Duration::from_secs(240);
/// How long the last session still receives after a new one is in use.
const RECEIVE_AFTER: Duration = Duration::from_secs(10);
/// Two sessions made within this time were started at once.
const SIMULTANEOUS: Duration = Duration::from_secs(3);
/// Sessions kept with one peer.
const MAX_SESSIONS: usize = 6;
/// Silence from a peer that frames go to, after which it is asked whether it still has the session, and how often
/// it is asked before a new session is made.
const SESSION_QUIET: Duration = Duration::from_secs(1);
/// The same where nothing but pings goes to the peer.
const SESSION_SILENT: Duration = Duration::from_secs(3);
const QUESTION_INTERVAL: Duration = Duration::from_millis(300);
const QUESTIONS: u32 = 3;
/// Longest wait between two tries over relays.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

impl Node {
    /// Makes sure that a session with a peer is there or on its way.
    pub(super) fn want_session(&mut self, label: HostLabel, now: Time) {
        let jitter = self.rng.random();
        let Some(peer) = self.peers.get(&label) else { return };
        let has_route = self.routes.contains_key(&label) || peer.link.is_some();
        if peer.current.is_none() && peer.challenge.is_none() && has_route {
            self.try_handshake(label, jitter, now);
        }
    }

    /// Takes a session into use.
    pub(super) fn accept(
        &mut self,
        label: HostLabel,
        session: Session,
        direct: Option<SocketAddr>,
        proof: Proof,
        now: Time,
    ) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let (index, cipher) = (session.index, session.suite.name());
        let other_life = peer.current().is_some_and(|current| current.boot != session.boot);
        let (id, is_first, loses) =
            (peer.id, peer.current.is_none(), peer.current().is_some_and(|current| !is_preferred(&session, current)));
        self.by_index.insert(index, label);
        self.snapshot.inbound.insert(index, session.inbound.clone());
        self.snapshot_stale = true;
        peer.sessions.push(session);
        let (current, count) = (peer.current, peer.sessions.len());
        let mut spare: Vec<&Session> =
            peer.sessions.iter().filter(|s| Some(s.index) != current && s.index != index).collect();
        // Those that nothing was ever heard under go first: they may be of replayed first messages.
        spare.sort_by_key(|session| session.inbound.last_heard() > session.created);
        let surplus = spare.into_iter().take(count.saturating_sub(MAX_SESSIONS)).map(|session| session.index);
        let surplus: Vec<u32> = surplus.collect();
        if proof != Proof::Pending {
            peer.retry.reset(now);
        }
        surplus.into_iter().for_each(|old| self.drop_session(label, old));
        if let Some(address) = direct.filter(|_| proof != Proof::Pending) {
            if let Some(peer) = self.peers.get_mut(&label) {
                peer.add_candidate(address, true);
            }
            self.claim_target(address, label);
        }
        if is_first {
            self.event(Event::Session { peer: id, cipher });
        }
        if other_life {
            if proof != Proof::Pending {
                self.challenge(label, index, direct, now);
            }
        } else if proof == Proof::Initiator && !loses {
            // The initiator's first packet proves to the responder that the handshake was no replay.
            self.switch_session(label, index, now);
        }
        match direct {
            // What the old life has to say comes first, and a first message may be a replay from anywhere.
            _ if other_life || proof == Proof::Pending => {}
            Some(address) => self.ping(label, index, address, 0, now),
            None if proof == Proof::Initiator => self.send_under(label, index, None, &Control::AreYouThere, now),
            None => {}
        }
    }

    pub(super) fn switch_session(&mut self, label: HostLabel, index: u32, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.switch_to(index, now);
        self.refresh_outbound(label);
        // Every route through this neighbour carries its link's index and key.
        self.refresh_routes_via(label);
        self.send_waiting(label, now);
    }

    /// A packet was opened under a session that is not the one for sending, or came from a new address.
    pub(super) fn on_heard(&mut self, index: u32, label: HostLabel, direct: Option<SocketAddr>, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.last_there = now;
        let Some(session) = peer.session(index) else { return };
        if peer.current().is_some_and(|current| current.boot != session.boot) && session.superseded.is_none() {
            return self.challenge(label, index, direct, now);
        }
        let switch = peer.current != Some(index)
            && peer.current().is_none_or(|current| match session.superseded {
                None => is_preferred(session, current),
                // The peer goes on with another one: the host with the higher label follows, or the other one if it
                // does not.
                Some(_) => {
                    let patience = if self.own > label { SESSION_QUIET } else { SESSION_SILENT };
                    now.since(current.inbound.last_heard()) > patience
                }
            });
        if switch {
            self.switch_session(label, index, now);
        }
        if let Some(from) = direct {
            self.on_heard_from(label, index, from, now);
        }
    }

    /// Sessions that have to be renewed, are over, or wait for an objection that did not come.
    pub(super) fn tend_sessions(&mut self, now: Time) {
        self.handshakes.drop_overdue(now);
        let labels: Vec<HostLabel> = self.peers.keys().copied().collect();
        for label in labels {
            let Some(peer) = self.peers.get_mut(&label) else { continue };
            if peer.challenge.as_ref().is_some_and(|challenge| now >= challenge.until)
                && let Some(challenge) = peer.challenge.take()
            {
                self.rebirth(label, challenge.index, challenge.direct, now);
            }
            let Some(peer) = self.peers.get_mut(&label) else { continue };
            let over: Vec<u32> = (peer.sessions.iter())
                .filter(|session| {
                    now.since(session.created) > EXPIRE_AFTER
                        || session
                            .superseded
                            .is_some_and(|since| now.since(since.max(session.inbound.last_heard())) > RECEIVE_AFTER)
                })
                .map(|session| session.index)
                .collect();
            let question = wants_question(peer, now);
            let renew = needs_renewal(peer, now);
            over.into_iter().for_each(|index| self.drop_session(label, index));
            if let Some(index) = question {
                self.send_under(label, index, None, &Control::AreYouThere, now);
            }
            if renew {
                let jitter = self.rng.random();
                self.try_handshake(label, jitter, now);
            } else if self
                .peers
                .get(&label)
                .is_some_and(|peer| !peer.waiting.is_empty() || !peer.waiting_control.is_empty())
            {
                self.want_session(label, now);
                self.drop_stale_waiting(label);
            }
        }
    }

    /// Starts a handshake if the last one is long enough ago.
    fn try_handshake(&mut self, label: HostLabel, jitter: f64, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if !peer.retry.is_due(now) {
            return;
        }
        let tries = peer.retry.failures;
        peer.retry.on_try(now, LONGEST_RETRY, jitter);
        let direct = peer.link.as_ref().map(|link| link.remote);
        self.start_handshake(Some(label), direct, tries, now);
    }

    /// What waits for a host without a route waits in vain.
    fn drop_stale_waiting(&mut self, label: HostLabel) {
        let is_reachable = self.routes.contains_key(&label);
        if let Some(peer) = self.peers.get_mut(&label)
            && !is_reachable
        {
            peer.drop_waiting();
        }
    }

    /// Ends a session; what was under way in it is lost.
    pub(super) fn drop_session(&mut self, label: HostLabel, index: u32) {
        self.by_index.remove(&index);
        self.snapshot.inbound.remove(&index);
        self.snapshot_stale = true;
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.sessions.retain(|session| session.index != index);
        if peer.current == Some(index) {
            peer.current = None;
            self.refresh_outbound(label);
            self.refresh_routes_via(label);
        }
    }

    /// Uses new secrets; sessions under others end now.
    pub(super) fn set_keyring(&mut self, keyring: Keyring, now: Time) {
        self.snapshot.secrets = keyring.secrets().into();
        self.snapshot_stale = true;
        self.keyring = keyring;
        let keyring = &self.keyring;
        self.handshakes.keep_under(keyring);
        let over: Vec<(HostLabel, u32)> = (self.peers.iter())
            .flat_map(|(label, peer)| peer.sessions.iter().map(|session| (*label, session)))
            .filter(|(_, session)| !keyring.holds(&session.secret))
            .map(|(label, session)| (label, session.index))
            .collect();
        for (label, index) in over {
            self.drop_session(label, index);
            if self.peers.get(&label).is_some_and(|peer| peer.current.is_none()) {
                self.link_down(label, "its session's secret is no longer live", now);
            }
        }
    }

    /// The key of a host met before.
    pub(super) fn peer_key(&self, label: HostLabel) -> Option<PeerId> {
        self.peers.get(&label).map(|peer| peer.id)
    }
}

/// When a session is to be renewed; `jitter` is between 0 and 1.
pub(super) fn renew_after(is_initiator: bool, jitter: f64) -> Duration {
    let first = REKEY_AFTER.mul_f64(1.0 - REKEY_SPREAD * jitter);
    if is_initiator { first } else { first + REKEY_AFTER.mul_f64(REKEY_SPREAD) + RESPONDER_WAITS }
}

/// Whether a session that a packet was just opened under is to replace the one for sending.
fn is_preferred(session: &Session, current: &Session) -> bool {
    // Nothing was ever opened under the current one: the peer may not have it.
    if current.inbound.last_heard() <= current.created {
        return true;
    }
    let apart = session.created.since(current.created).max(current.created.since(session.created));
    if apart < SIMULTANEOUS && session.boot == current.boot && session.by_lower != current.by_lower {
        session.by_lower
    } else {
        session.created > current.created
    }
}

/// The session under which the peer is to be asked whether it is there: frames or pings go to it, nothing comes back.
fn wants_question(peer: &mut Peer, now: Time) -> Option<u32> {
    let heard = peer.current()?.inbound.last_heard();
    let is_used = peer.last_traffic > heard || (peer.link.is_some() && now.since(heard) > SESSION_SILENT);
    if now.since(heard) <= SESSION_QUIET || !is_used {
        peer.questions = 0;
        return None;
    }
    if now.since(peer.last_question) < QUESTION_INTERVAL {
        return None;
    }
    peer.last_question = now;
    peer.questions += 1;
    peer.current
}

/// Whether the session for sending should be replaced by a fresh one.
fn needs_renewal(peer: &Peer, now: Time) -> bool {
    let Some(current) = peer.current() else { return false };
    let is_old = now.since(current.created) > current.renew_after || current.send.used() > REKEY_AFTER_PACKETS;
    if peer.questions > QUESTIONS {
        // The peer may have lost its side of the session.
        return true;
    }
    // A session that nothing uses is left to expire.
    is_old && (peer.link.is_some() || now.since(peer.last_traffic) < REKEY_AFTER)
}
