//! A session's life: taken into use, asked after, renewed and let go.
//!
//! A new session is used for sending only after a packet under it was opened, so a replayed handshake moves nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use weft_crypto::{HostLabel, Time};

use super::session::{PeerSessions, Proof, SESSION_QUIET, SESSION_SILENT, Session, is_preferred};
use super::{Event, PathView, Sessions};
use crate::api;
use crate::path::Path;
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
        (direct, proof): (Option<Path>, Proof),
        path: PathView,
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
            // It answers: the questions are asked anew before the next handshake.
            peer.questions = 0;
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
                self.challenge(label, index, direct, path, now);
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

    /// Notes that a packet was opened under a session that is not the one for sending, or that came from a new address; returns whether the
    /// session is one of a peer that is not in doubt.
    pub(crate) fn on_heard(
        &mut self,
        index: u32,
        label: HostLabel,
        direct: Option<Path>,
        path: PathView,
        now: Time,
    ) -> bool {
        let Some(peer) = self.peers.get(&label) else { return false };
        let Some(session) = peer.session(index) else { return false };
        if peer.is_of_another_life(session) && session.superseded.is_none() {
            self.challenge(label, index, direct, path, now);
            return false;
        }
        let switch = peer.current != Some(index)
            && peer.current().is_none_or(|current| match session.superseded {
                None => is_preferred(session, current),
                // The peer goes on with another session: the host with the higher label follows, or the other one if it
                // does not. If nothing ever came under this one, the peer may not have it: the end of the handshake may be lost.
                Some(_) => {
                    let heard = current.inbound.last_heard();
                    let is_first = self.own > label || heard <= current.created;
                    now.since(heard.max(current.created)) > if is_first { SESSION_QUIET } else { SESSION_SILENT }
                }
            });
        if switch {
            self.switch_session(label, index, now);
        }
        true
    }

    /// Looks after sessions that have to be renewed, are over, or wait for an objection that did not come. Returns whether that can wait for longer
    /// the next time: there are sessions with all peers, and none is asked after or made.
    pub(crate) fn tend(&mut self, path: impl Fn(HostLabel) -> PathView, now: Time) -> bool {
        self.handshakes.drop_overdue(now);
        let labels: Vec<HostLabel> = self.peers.keys().copied().collect();
        for label in labels {
            self.tend_peer(label, path(label), now);
        }
        self.handshakes.are_none() && self.wanted.is_empty() && self.peers.values().all(PeerSessions::is_at_rest)
    }

    fn tend_peer(&mut self, label: HostLabel, path: PathView, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if let Some(challenge) = peer.challenge.take_if(|challenge| now >= challenge.until) {
            self.rebirth(label, challenge.index, challenge.direct, now);
        }
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let has_link = path.link.is_some();
        peer.note_idle(has_link, path.last_traffic, now);
        let question = peer.question(&path, now);
        let needs_renewal = peer.needs_renewal(has_link, path.last_traffic, now);
        // A fresh session waits already.
        let is_challenged = peer.challenge.is_some();
        let keys = question.and_then(|index| Some(peer.session(index)?.keys.clone()));
        let expired = peer.expired(now);
        if let Some(keys) = keys {
            self.events.push_back(Event::Message { peer: label, keys, direct: None, control: Control::AreYouThere });
        }
        expired.into_iter().for_each(|index| self.drop_session(label, index));
        if needs_renewal && !is_challenged {
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

#[cfg(test)]
mod tests {
    use super::super::handshakes::FIRST_CONTACT;
    use super::super::lab::*;
    use super::*;

    fn second(n: u64) -> Time {
        Time::ZERO + Duration::from_secs(n)
    }

    /// Two hosts with a session that is used from the second named on.
    fn connected(now: Time) -> (Host, Host) {
        let (mut a, mut b) = (host(1, 1, keyring(1), now), host(2, 2, keyring(1), now));
        a.sessions.start_handshake(None, Some(b.at), 0, now);
        run(&mut a, &mut b, now);
        assert!(are_connected(&a, &b));
        (a, b)
    }

    #[test]
    fn an_old_session_in_use_is_renewed_and_the_last_one_goes_after_its_time() {
        let (mut a, mut b) = connected(second(1));
        let first = a.sessions.current_index(b.label());
        let view =
            |now| PathView { link: Some(Path::udp(([192, 0, 2, 2], 6783).into())), last_traffic: now, ..REACHABLE };
        for now in (2..200).map(second) {
            a.sessions.tend(|_| view(now), now);
            run(&mut a, &mut b, now);
        }
        assert!(are_connected(&a, &b));
        let kept = &a.sessions.peers[&b.label()].all;
        assert!(kept.len() <= 2 && kept.iter().all(|session| Some(session.index) != first), "the first one is gone");
    }

    #[test]
    fn a_session_of_neighbours_without_frames_lasts_an_hour_and_ages_from_the_first_one() {
        let (mut a, mut b) = connected(second(1));
        let renewed = |a: &mut Host, b: &mut Host, seconds: std::ops::Range<u64>, last_traffic: Time| {
            let first = a.sessions.current_index(b.label());
            seconds.map(second).find(|now| {
                let view = PathView { link: Some(b.at), last_traffic, ..REACHABLE };
                // What neighbours say over an idle link.
                let heard = a.sessions.peers[&b.label()].current().unwrap().inbound.clone();
                heard.heard.store(now.as_nanos(), std::sync::atomic::Ordering::Relaxed);
                a.sessions.tend(|_| view, *now);
                run(a, b, *now);
                a.sessions.current_index(b.label()) != first
            })
        };
        let idle = renewed(&mut a, &mut b, 2..7000, Time::ZERO).unwrap();
        assert!((second(2520)..=second(3610)).contains(&idle), "{idle:?}");
        let from = idle.as_nanos() / 1_000_000_000 + 1000;
        assert_eq!(renewed(&mut a, &mut b, from - 1000..from, Time::ZERO), None);
        let used = renewed(&mut a, &mut b, from..from + 1000, second(from)).unwrap();
        assert!((second(from + 84)..=second(from + 122)).contains(&used), "{used:?}");
    }

    #[test]
    fn a_session_that_nothing_uses_expires() {
        let (mut a, b) = connected(second(1));
        let view = PathView { last_traffic: Time::ZERO, ..REACHABLE };
        a.sessions.tend(|_| view, second(200));
        assert!(a.packets().is_empty() && a.sessions.current_index(b.label()).is_some());
        a.sessions.tend(|_| view, second(300));
        assert!(a.sessions.current_index(b.label()).is_none());
    }

    #[test]
    fn a_session_that_the_peer_never_had_since_the_end_of_the_handshake_was_lost_is_left_again() {
        for (one, other) in [(1, 2), (2, 1)] {
            let [mut a, mut b] = [one, other].map(|n| host(n, 1, keyring(1), second(1)));
            a.sessions.start_handshake(None, Some(b.at), 0, second(1));
            run(&mut a, &mut b, second(1));
            let first = a.sessions.current_index(b.label()).unwrap();
            let (from, to, again) = (a.at, b.at, second(20));
            a.sessions.start_handshake(Some(b.label()), Some(to), FIRST_CONTACT, again);
            for (_, packet) in a.packets() {
                b.sessions.on_handshake(Some(from), &packet, &straight, again);
            }
            for (_, packet) in b.packets() {
                a.sessions.on_handshake(Some(to), &packet, &straight, again);
            }
            // The third message, and all that is said under the new session, is lost.
            a.packets();
            assert!(a.sessions.current_index(b.label()) != Some(first) && !are_connected(&a, &b));
            a.hear(b.label(), first, again + SESSION_QUIET / 2);
            assert_ne!(a.sessions.current_index(b.label()), Some(first), "an answer may be on its way");
            a.hear(b.label(), first, again + SESSION_QUIET * 2);
            assert!(a.sessions.current_index(b.label()) == Some(first) && are_connected(&a, &b));
        }
    }

    #[test]
    fn a_silent_peer_is_asked_and_then_met_anew() {
        let (mut a, b) = connected(second(1));
        a.events.clear();
        let mut packets = 0;
        for millis in (2000..6000).step_by(50) {
            let now = Time::ZERO + Duration::from_millis(millis);
            a.sessions.tend(|_| PathView { link: Some(b.at), last_traffic: now, ..REACHABLE }, now);
            packets += a.packets().len();
        }
        let asks = |event: &&Event| matches!(event, Event::Message { control: Control::AreYouThere, .. });
        assert!(a.events.iter().filter(asks).count() >= 4);
        assert!(packets > 0, "a new handshake after questions without an answer");
    }

    #[test]
    fn wanted_sessions_are_opened_a_few_at_a_time() {
        let mut a = host(1, 1, keyring(1), second(0));
        let others = (10..40).map(|n| host(n, 1, keyring(1), second(0)).sessions.identity.peer_id());
        let labels: BTreeSet<HostLabel> = others.filter_map(|id| a.sessions.meet(id, second(0))).collect();
        a.sessions.set_wanted(labels);
        let view = PathView { link: Some(Path::udp(([192, 0, 2, 2], 6783).into())), ..REACHABLE };
        a.sessions.open_wanted(|_| PathView { link: None, ..view }, second(1));
        assert_eq!(a.sessions.wanted.len(), 30 - OPENED_PER_TICK);
    }
}
