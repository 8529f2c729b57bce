//! What peers say to each other: each control message, to the component that it is for.

use weft_crypto::{HostLabel, Time};

use super::{Node, path_view};
use crate::path::Path;
use crate::topology::verification;
use crate::wire::Control;

impl Node {
    /// Notes that a packet of a peer was opened; one that `is_trial` says nothing of where the peer is.
    pub(super) fn on_heard(&mut self, index: u32, peer: HostLabel, direct: Option<Path>, is_trial: bool, now: Time) {
        self.parts.presence.on_heard(peer, now);
        let is_known = self.parts.sessions.on_heard(index, peer, direct, path_view(&self.parts.topology, peer), now);
        self.parts.route_events(now);
        if let Some(from) = direct.filter(|_| is_known && !is_trial) {
            let is_current = self.parts.sessions.current_index(peer) == Some(index);
            self.parts.topology.on_heard_from(peer, index, is_current, from, now);
            self.parts.route_events(now);
        }
    }

    /// Takes a control message that was opened under a session with a peer.
    pub(super) fn on_control(
        &mut self,
        index: u32,
        peer: HostLabel,
        direct: Option<Path>,
        size: usize,
        control: Control,
        now: Time,
    ) {
        match control {
            Control::Ping { id, lane, seen } => {
                if let Some(from) = direct {
                    self.parts.topology.on_ping(peer, index, from, (id, lane), (seen, size), now);
                }
            }
            Control::Pong { id, seen, size } => {
                if let Some(from) = direct {
                    self.parts.topology.on_pong(peer, from, id, seen, size, now);
                }
            }
            Control::Heartbeat { within } => {
                if let Some(from) = direct {
                    self.parts.topology.on_heartbeat(peer, from, within, now);
                }
            }
            Control::Records(bytes) => self.parts.records.receive(peer, &bytes, now),
            Control::Swim(packet) => self.parts.presence.receive(peer, &packet, now),
            Control::Ring(bytes) => self.parts.addresses.ipam().receive(peer, &bytes, now),
            Control::AreYouThere => {
                if let Some(keys) = self.parts.sessions.peer(peer).and_then(|known| known.keys(index)).cloned() {
                    self.parts.send_under(peer, &keys, None, &Control::StillHere, now);
                }
            }
            Control::StillHere => self.parts.sessions.on_still_here(peer, index),
            Control::Cloned => self.parts.records.on_clone(now),
            Control::Forgotten { host, incarnation } => {
                let is_reachable = self.parts.hop_towards(host.label()).is_some();
                self.parts.records.on_told_forgotten(host, incarnation, is_reachable, now);
            }
            Control::Bye => {
                // The peer stops, or does without the link as this host offered.
                let is_mutual = self.parts.topology.link(peer).is_some_and(|link| link.was_offered(now));
                self.parts.topology.let_go(peer, "the peer said goodbye", is_mutual, now);
            }
            Control::Needless => self.parts.topology.on_needless(peer, now),
            Control::Refused { id } => self.parts.topology.on_refused(peer, id, now),
            Control::Tally(tally) => verification::on_tally(&mut self.parts.topology, peer, &tally, now),
            Control::Trial { id, is_answer } => {
                if let Some(from) = direct {
                    self.parts.topology.on_trial(peer, index, from, (id, is_answer), now);
                }
            }
            Control::Punch(punch) => self.parts.topology.on_punch(peer, punch, &self.parts.sessions, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::{NOW, node};

    #[test]
    fn messages_under_a_session_that_is_not_there_change_nothing() {
        let mut node = node(1, &BTreeMap::new());
        let (stranger, from) = (HostLabel([9; 6]), Path::udp(([192, 0, 2, 9], 6783).into()));
        node.on_heard(5, stranger, Some(from), false, NOW);
        for control in [Control::Trial { id: 1, is_answer: false }, Control::Bye, Control::Heartbeat { within: 1 }] {
            node.on_control(5, stranger, Some(from), 100, control, NOW);
        }
        assert!(node.status(NOW).peers.is_empty() && node.parts.topology.link(stranger).is_none());
    }
}
