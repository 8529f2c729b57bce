//! Lives of a key: a host that starts again, and two hosts that live with one key.

use std::net::SocketAddr;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::peer::Challenge;
use super::{CLONE_MEMORY, Event, Node};
use crate::wire::Control;
use crate::wire::Lane;

/// How long the old life of a peer has to say that it is still there.
const OBJECTION: Duration = Duration::from_millis(400);

impl Node {
    /// Handles a proof of a peer's key by another life of it: reborn, or a second host with the same key. The
    /// life met first gets a chance to object.
    pub(super) fn challenge(&mut self, label: HostLabel, index: u32, direct: Option<SocketAddr>, now: Time) {
        let is_reachable = self.hop_towards(label).is_some();
        let Some(peer) = self.peers.get_mut(&label) else { return };
        match peer.current.filter(|_| is_reachable) {
            Some(_) if peer.challenge.is_some() => {}
            Some(current) => {
                peer.challenge = Some(Challenge { index, direct, until: now + OBJECTION });
                self.send_under(label, current, None, &Control::AreYouThere, now);
            }
            None => self.rebirth(label, index, direct, now),
        }
    }

    /// Whether a session is of another life of its peer than the one for sending: nothing said in it counts yet.
    pub(super) fn is_in_doubt(&self, label: HostLabel, index: u32) -> bool {
        self.peers.get(&label).is_some_and(|peer| match (peer.session(index), peer.current()) {
            (Some(session), Some(current)) => session.boot != current.boot,
            _ => false,
        })
    }

    /// A peer lives again: nothing under its old life's keys will come any more.
    pub(super) fn rebirth(&mut self, label: HostLabel, index: u32, direct: Option<SocketAddr>, now: Time) {
        let Some(peer) = self.peers.get(&label) else { return };
        let Some(session) = peer.session(index) else { return };
        let event = Event::Session { peer: peer.id, cipher: session.suite.name() };
        let dead: Vec<u32> = peer.sessions.iter().filter(|old| old.boot != session.boot).map(|old| old.index).collect();
        self.switch_session(label, index, now);
        dead.into_iter().for_each(|old| self.drop_session(label, old));
        self.event(event);
        if let Some(address) = direct {
            self.ping(label, index, address, 0, now);
        }
    }

    /// Another host lives with this host's key. Said once; neither tries to outdo the other.
    pub(super) fn on_clone(&mut self, now: Time) {
        let is_news = self.cloned.is_none_or(|seen| now.since(seen) > 10 * CLONE_MEMORY);
        self.cloned = Some(now);
        if is_news {
            self.event(Event::Cloned);
        }
    }

    /// The old life of a peer objected: two hosts live with its key, and the one met first is kept.
    pub(super) fn on_still_here(&mut self, label: HostLabel, index: u32, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if peer.current != Some(index) {
            return;
        }
        let Some(Challenge { index: other, direct, .. }) = peer.challenge.take() else { return };
        let id = peer.id;
        self.send_under(label, index, None, &Control::Cloned, now);
        if let Some(address) = direct {
            self.send_text_at(label, other, address, (Lane::Urgent, &Control::Cloned.encode(0)), now);
        }
        self.drop_session(label, other);
        self.event(Event::PeerCloned(id));
    }

    /// A host says which life it is in: sessions with others are dead.
    pub(super) fn on_boot(&mut self, label: HostLabel, boot: u64) {
        let Some(peer) = self.peers.get(&label) else { return };
        let dead: Vec<u32> = peer.sessions.iter().filter(|s| s.boot != boot).map(|s| s.index).collect();
        if peer.link.is_none() {
            dead.into_iter().for_each(|index| self.drop_session(label, index));
        }
    }
}
