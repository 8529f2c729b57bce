//! Lives of a key: a host that starts again, and two hosts that live with one key.

use std::net::SocketAddr;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::session::Challenge;
use super::{Event, Sessions};
use crate::api;
use crate::wire::Control;

/// How long the old life of a peer has to say that it is still there.
const OBJECTION: Duration = Duration::from_millis(400);

impl Sessions {
    /// Handles a proof of a peer's key by another life of it: reborn, or a second host with the same key. The
    /// life met first gets a chance to object.
    pub(super) fn challenge(&mut self, label: HostLabel, index: u32, direct: Option<SocketAddr>, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if peer.challenge.is_some() {
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
    pub(super) fn rebirth(&mut self, label: HostLabel, index: u32, direct: Option<SocketAddr>, now: Time) {
        let Some(peer) = self.peers.get(&label) else { return };
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
