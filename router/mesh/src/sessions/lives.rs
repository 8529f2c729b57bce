//! Lives of a key: a host that starts again, and two hosts that live with one key.

use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::session::Challenge;
use super::{Event, PathView, Sessions};
use crate::api;
use crate::path::Path;
use crate::wire::Control;

/// How long the old life of a peer has to say that it is still there.
const OBJECTION: Duration = Duration::from_millis(400);

impl Sessions {
    /// Handles a proof of a peer's key by another life of it: reborn, or a second host with the same key. The
    /// life met first gets a chance to object, if there is a way to ask it.
    pub(super) fn challenge(&mut self, label: HostLabel, index: u32, direct: Option<Path>, path: PathView, now: Time) {
        let can_ask = path.via.is_some_and(|via| self.current_index(via).is_some());
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if !can_ask {
            return self.rebirth(label, index, direct, now);
        }
        if let Some(waiting) = &peer.challenge {
            let Some(new) = peer.session(index) else { return };
            let of = peer.session(waiting.index);
            // The other life may have let go of an earlier session when it made this one.
            if of.is_none_or(|of| of.boot == new.boot && of.created <= new.created) {
                let (direct, until) = (direct.or(waiting.direct), waiting.until);
                peer.challenge = Some(Challenge { index, direct, until });
            }
            return;
        }
        let Some(keys) = peer.current().map(|current| current.keys.clone()) else {
            return self.rebirth(label, index, direct, now);
        };
        peer.challenge = Some(Challenge { index, direct, until: now + OBJECTION });
        self.events.push_back(Event::Message { peer: label, keys, direct: None, control: Control::AreYouThere });
    }

    /// Whether a session is of another life of its peer than the one for sending: nothing said in it counts yet.
    pub(crate) fn is_in_doubt(&self, label: HostLabel, index: u32) -> bool {
        let Some(peer) = self.peers.get(&label) else { return false };
        peer.session(index).is_some_and(|session| peer.is_of_another_life(session))
    }

    /// A peer lives again: nothing under its old life's keys will come any more.
    pub(super) fn rebirth(&mut self, label: HostLabel, index: u32, direct: Option<Path>, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.challenge = None;
        let Some(session) = peer.session(index) else { return };
        let notice = api::Event::Session { peer: peer.id, cipher: session.suite.name() };
        let dead: Vec<u32> = peer.all.iter().filter(|old| old.boot != session.boot).map(|old| old.index).collect();
        self.switch_session(label, index, now);
        dead.into_iter().for_each(|old| self.drop_session(label, old));
        self.events.push_back(Event::Notice(notice));
        if let Some(at) = direct {
            self.events.push_back(Event::Probe { peer: label, index, at });
        }
    }

    /// The old life of a peer objected: two hosts live with its key, and the one met first is kept.
    pub(crate) fn on_still_here(&mut self, label: HostLabel, index: u32) {
        let Some(peer) = self.peers.get_mut(&label).filter(|peer| peer.current == Some(index)) else { return };
        let Some(Challenge { index: other, direct, .. }) = peer.challenge.take() else { return };
        let id = peer.id;
        let under = |index: u32| Some(peer.session(index)?.keys.clone());
        let told = [(under(index), None), (under(other).filter(|_| direct.is_some()), direct)];
        for (keys, direct) in told.into_iter().filter_map(|(keys, direct)| Some((keys?, direct))) {
            self.events.push_back(Event::Message { peer: label, keys, direct, control: Control::Cloned });
        }
        self.drop_session(label, other);
        self.events.push_back(Event::Notice(api::Event::PeerCloned(id)));
    }

    /// A host says which life it is in: sessions with others are dead, unless a link proves one of them alive.
    pub(crate) fn on_boot(&mut self, label: HostLabel, boot: u64, has_link: bool) {
        let Some(peer) = self.peers.get(&label).filter(|_| !has_link) else { return };
        let dead: Vec<u32> = peer.all.iter().filter(|s| s.boot != boot).map(|s| s.index).collect();
        dead.into_iter().for_each(|index| self.drop_session(label, index));
    }
}

#[cfg(test)]
mod tests {
    use super::super::lab::*;
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    /// A host connected with another, and a second life of the other that has just proved its key.
    fn two_lives() -> (Host, Host, Host) {
        let (mut a, mut old) = (host(1, 1, keyring(1), at(0)), host(2, 2, keyring(1), at(0)));
        a.sessions.start_handshake(None, Some(old.at), 0, at(1000));
        run(&mut a, &mut old, at(1000));
        let mut new = host(2, 3, keyring(1), at(2000));
        new.at = Path::udp(([192, 0, 2, 3], 6783).into());
        new.sessions.start_handshake(None, Some(a.at), 0, at(5000));
        run(&mut a, &mut new, at(5000));
        (a, old, new)
    }

    #[test]
    fn a_second_life_takes_over_when_the_first_does_not_object() {
        let (mut a, old, new) = two_lives();
        assert!(are_connected(&a, &old) && a.sessions.peers[&old.label()].challenge.is_some());
        let in_doubt: Vec<u32> = a.sessions.peers[&old.label()].all.iter().map(|session| session.index).collect();
        assert_eq!(in_doubt.iter().filter(|index| a.sessions.is_in_doubt(old.label(), **index)).count(), 1);
        a.sessions.tend(|_| REACHABLE, at(5000) + OBJECTION);
        assert!(are_connected(&a, &new) && !are_connected(&a, &old));
    }

    #[test]
    fn a_second_life_takes_over_however_many_sessions_it_makes_before() {
        let (mut a, old, mut new) = two_lives();
        for now in (5010..5400).step_by(20).map(at) {
            new.sessions.start_handshake(None, Some(a.at), 0, now);
            run(&mut a, &mut new, now);
        }
        a.sessions.tend(|_| REACHABLE, at(5000) + OBJECTION);
        assert!(are_connected(&a, &new) && !are_connected(&a, &old));
    }

    #[test]
    fn a_session_that_a_second_life_makes_meanwhile_and_uses_later_is_followed() {
        let (mut a, old, mut new) = two_lives();
        new.sessions.start_handshake(Some(a.label()), Some(a.at), 0, at(5010));
        // Answered by IK: only a packet in the session will prove that it was no replay.
        for (_, packet) in new.packets() {
            a.sessions.on_handshake(Some(new.at), &packet, &straight, at(5010));
        }
        for (_, packet) in a.packets() {
            new.sessions.on_handshake(Some(a.at), &packet, &straight, at(5011));
        }
        a.sessions.tend(|_| REACHABLE, at(5000) + OBJECTION);
        let used = new.sessions.current_keys(a.label()).unwrap().remote_index;
        assert_ne!(a.sessions.current_index(old.label()), Some(used));
        a.hear(new.label(), used, at(5500));
        assert_eq!(a.sessions.current_index(old.label()), Some(used));
    }

    #[test]
    fn no_handshake_is_started_while_the_first_life_may_object() {
        for is_challenged in [true, false] {
            let (mut a, old, new) = two_lives();
            let peer = a.sessions.peers.get_mut(&old.label()).unwrap();
            peer.questions = 9;
            peer.challenge.take_if(|_| !is_challenged);
            a.sessions.tend(|_| PathView { link: Some(new.at), last_traffic: at(5010), ..REACHABLE }, at(5010));
            assert_eq!(a.packets().is_empty(), is_challenged);
        }
    }

    #[test]
    fn a_second_life_takes_over_at_once_when_the_first_cannot_be_asked() {
        for is_known in [true, false] {
            let (mut a, mut old) = (host(1, 1, keyring(1), at(0)), host(2, 2, keyring(1), at(0)));
            a.sessions.start_handshake(None, Some(old.at), 0, at(1000));
            run(&mut a, &mut old, at(1000));
            let mut new = host(2, 3, keyring(1), at(2000));
            // By IK, which this host starts, or by XX, which the new life does.
            match is_known {
                true => a.sessions.start_handshake(Some(new.label()), Some(new.at), 0, at(5000)),
                false => new.sessions.start_handshake(None, Some(a.at), 0, at(5000)),
            }
            for _ in 0..4 {
                for (_, packet) in a.packets() {
                    new.sessions.on_handshake(Some(a.at), &packet, &straight, at(5000));
                }
                for (_, packet) in new.packets() {
                    a.sessions.on_handshake(Some(new.at), &packet, &|_| REACHABLE, at(5000));
                }
            }
            let current = a.sessions.current_keys(new.label()).map(|keys| keys.remote_index);
            let has_it = |index: u32| new.sessions.peer(a.label()).is_some_and(|peer| peer.keys(index).is_some());
            assert!(current.is_some_and(has_it), "known: {is_known}");
            assert!(a.sessions.peers[&new.label()].challenge.is_none());
        }
    }

    #[test]
    fn the_first_life_is_kept_when_it_objects_and_both_are_told() {
        let (mut a, old, _) = two_lives();
        a.packets();
        a.events.clear();
        let current = a.sessions.current_index(old.label()).unwrap();
        a.sessions.on_still_here(old.label(), current);
        a.packets();
        let told = a.events.iter().filter(|event| matches!(event, Event::Message { control: Control::Cloned, .. }));
        assert_eq!(told.count(), 2);
        assert!(a.notices().any(|notice| matches!(notice, api::Event::PeerCloned(_))));
        a.sessions.tend(|_| REACHABLE, at(9000));
        assert!(are_connected(&a, &old));
    }

    #[test]
    fn a_host_record_of_another_life_ends_sessions_unless_a_link_proves_them() {
        let (mut a, old, _) = two_lives();
        a.sessions.on_boot(old.label(), 9, true);
        assert!(a.sessions.current_index(old.label()).is_some());
        a.sessions.on_boot(old.label(), 9, false);
        assert!(a.sessions.current_index(old.label()).is_none());
    }
}
