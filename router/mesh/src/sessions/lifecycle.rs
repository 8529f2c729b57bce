//! A session's life: taken into use, asked after, renewed and let go.
//!
//! A new session is used for sending only after a packet under it was opened, so a replayed handshake moves nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use weft_crypto::{HostLabel, Time};

use super::session::{Proof, SESSION_QUIET, SESSION_SILENT, Session, is_preferred};
use super::{Event, PathView, Sessions};
use crate::api;
use crate::wire::Control;

/// Longest wait between two handshakes over relays.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Sessions opened in one go because a segment spans to new hosts.
const OPENED_PER_TICK: usize = 8;

impl Sessions {
    /// Starts a handshake if a reachable peer has no session and the last try is long enough ago.
    pub(crate) fn want(&mut self, peer: HostLabel, path: PathView, now: Time) {
        let Some(sessions) = self.peers.get(&peer) else { return };
        if sessions.current.is_none() && sessions.challenge.is_none() && path.is_reachable {
            self.try_handshake(peer, path, now);
        }
    }

    /// Sets the peers that sessions should be opened with: floods need them.
    pub(crate) fn set_wanted(&mut self, wanted: BTreeSet<HostLabel>) {
        self.wanted = wanted;
    }

    /// Starts handshakes with wanted peers, a few at a time.
    pub(crate) fn open_wanted(&mut self, path: impl Fn(HostLabel) -> PathView, now: Time) {
        let mut opened = 0;
        while opened < OPENED_PER_TICK
            && let Some(peer) = self.wanted.pop_first()
        {
            if self.is_wanting(peer, now) {
                self.want(peer, path(peer), now);
                opened += 1;
            }
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
        let (index, cipher, keys) = (session.index, session.suite.name(), session.keys.clone());
        let is_of_another_life = peer.is_of_another_life(&session);
        let (id, is_first) = (peer.id, peer.current.is_none());
        let loses = peer.current().is_some_and(|current| !is_preferred(&session, current));
        self.events.push_back(Event::Opened(index, session.inbound.clone()));
        peer.all.push(session);
        if proof != Proof::Pending {
            peer.retry.reset(now);
        }
        let surplus = peer.surplus(index);
        self.indices.insert(index);
        surplus.into_iter().for_each(|old| self.drop_session(label, old));
        if let Some(address) = direct.filter(|_| proof != Proof::Pending) {
            self.events.push_back(Event::Found(label, address));
        }
        if is_first {
            self.events.push_back(Event::Notice(api::Event::Session { peer: id, cipher }));
        }
        if is_of_another_life {
            // The old life is asked first, and a first message may be a replay from anywhere.
            if proof != Proof::Pending {
                self.challenge(label, index, direct, now);
            }
            return;
        }
        if proof == Proof::Initiator && !loses {
            // The initiator's first packet proves to the responder that the handshake was no replay.
            self.switch_session(label, index, now);
        }
        match direct {
            _ if proof == Proof::Pending => {}
            Some(at) => self.events.push_back(Event::Probe { peer: label, index, at }),
            None if proof == Proof::Initiator => {
                self.events.push_back(Event::Message {
                    peer: label,
                    keys,
                    direct: None,
                    control: Control::AreYouThere,
                });
            }
            None => {}
        }
    }

    pub(super) fn switch_session(&mut self, peer: HostLabel, index: u32, now: Time) {
        let Some(sessions) = self.peers.get_mut(&peer) else { return };
        sessions.switch_to(index, now);
        self.events.push_back(Event::Current(peer));
    }

    /// Notes that a packet was opened under a session that is not the one for sending, or that came from a new address.
    pub(crate) fn on_heard(
        &mut self,
        index: u32,
        label: HostLabel,
        direct: Option<SocketAddr>,
        path: PathView,
        now: Time,
    ) {
        let Some(peer) = self.peers.get(&label) else { return };
        let Some(session) = peer.session(index) else { return };
        if peer.is_of_another_life(session) && session.superseded.is_none() {
            return match path.is_reachable {
                true => self.challenge(label, index, direct, now),
                false => self.rebirth(label, index, direct, now),
            };
        }
        let switch = peer.current != Some(index)
            && peer.current().is_none_or(|current| match session.superseded {
                None => is_preferred(session, current),
                // The peer goes on with another session: the host with the higher label follows, or the other one if it
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
            let is_current = self.current_index(label) == Some(index);
            self.events.push_back(Event::HeardFrom { peer: label, index, is_current, from });
        }
    }

    /// Looks after sessions that have to be renewed, are over, or wait for an objection that did not come.
    pub(crate) fn tend(&mut self, path: impl Fn(HostLabel) -> PathView, now: Time) {
        self.handshakes.drop_overdue(now);
        let labels: Vec<HostLabel> = self.peers.keys().copied().collect();
        for label in labels {
            self.tend_peer(label, path(label), now);
        }
    }

    fn tend_peer(&mut self, label: HostLabel, path: PathView, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if let Some(challenge) = peer.challenge.take_if(|challenge| now >= challenge.until) {
            self.rebirth(label, challenge.index, challenge.direct, now);
        }
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let has_link = path.link.is_some();
        let question = peer.question(has_link, path.last_traffic, now);
        let needs_renewal = peer.needs_renewal(has_link, path.last_traffic, now);
        let keys = question.and_then(|index| Some(peer.session(index)?.keys.clone()));
        let expired = peer.expired(now);
        if let Some(keys) = keys {
            self.events.push_back(Event::Message { peer: label, keys, direct: None, control: Control::AreYouThere });
        }
        expired.into_iter().for_each(|index| self.drop_session(label, index));
        if needs_renewal {
            self.try_handshake(label, path, now);
        }
    }

    /// Starts a handshake if the last one is long enough ago.
    fn try_handshake(&mut self, label: HostLabel, path: PathView, now: Time) {
        let jitter = self.rng.random();
        let Some(peer) = self.peers.get_mut(&label).filter(|peer| peer.retry.is_due(now)) else { return };
        let tries = peer.retry.failures();
        peer.retry.on_try(now, LONGEST_RETRY, jitter);
        self.start_handshake(Some(label), path.link, tries, now);
    }

    /// Ends a session; what was under way in it is lost.
    pub(super) fn drop_session(&mut self, label: HostLabel, index: u32) {
        self.indices.remove(&index);
        self.events.push_back(Event::Closed(index));
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.all.retain(|session| session.index != index);
        if peer.current == Some(index) {
            peer.current = None;
            self.events.push_back(Event::Current(label));
        }
    }
}
