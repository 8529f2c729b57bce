//! Pings: what they ask, and what their answers say of a link.

use std::net::SocketAddr;

use rand::Rng;
use weft_crypto::{HostLabel, Time, envelope, session};

use super::candidates::Learnt;
use super::link::{Link, PingSent};
use super::pulse::QUIET;
use super::{Event, Topology};
use crate::path::Path;
use crate::wire::{Control, Lane};

impl Topology {
    /// Asks a peer, straight at an address, whether it hears this; `size` pads the datagram, in bytes.
    pub(crate) fn ping(&mut self, peer: HostLabel, index: u32, to: Path, size: usize, now: Time) {
        let id = self.rng.next_u32();
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.link.is_none() && !self.metered.may_try_path(&self.routing, peer, known, &to, now) {
            return;
        }
        let probed = (size > 0).then_some(size);
        let lane = match &known.link {
            // Whether a network drops what is marked shows only where datagrams are datagrams, and is asked there only.
            _ if !to.is_udp() || !self.marks || probed.is_some() => Lane::Urgent,
            Some(link) if to.is_better(link.path) => Lane::Main,
            _ => known.marks.next_lane(),
        };
        known.pings.add(id, PingSent { to, at: now, size: probed, lane });
        let (control, size) =
            (Control::Ping { id, lane, seen: to.remote }, size.saturating_sub(envelope::LEN + session::OVERHEAD));
        self.events.push_back(Event::Straight { peer, index, to, lane, control, size });
    }

    /// Answers a ping of `size` bytes that came straight from an address; a new peer is pinged in turn. `seen` is the address at which the
    /// peer reached this host.
    pub(crate) fn on_ping(
        &mut self,
        peer: HostLabel,
        index: u32,
        from: Path,
        (id, lane): (u32, Lane),
        (seen, size): (SocketAddr, usize),
        now: Time,
    ) {
        // A peer with which the operator wants no link finds none.
        if self.targets.is_forgotten(peer) {
            return;
        }
        let known = self.peers.get_mut(&peer);
        if let Some(known) = known.filter(|known| self.metered.refuses(&self.routing, peer, known, &from, now)) {
            // The peer may have lost a link by a better path.
            known.doubt(now);
            self.verification.suspect(peer, &self.routing, now);
            self.events.extend([Event::Wake(now), Event::Message(peer, Control::Refused { id })]);
            return;
        }
        if self.link(peer).is_some() {
            self.note_seen(peer, from, seen, now);
        }
        let control = Control::Pong { id, seen: from.remote, size: size.min(usize::from(u16::MAX)) as u16 };
        self.events.push_back(Event::Straight { peer, index, to: from, lane, control, size: 0 });
        let was_let_go = self.peers.get(&peer).is_some_and(|known| known.was_let_go(now));
        if was_let_go && self.can_do_without(peer, now) {
            return;
        }
        let Some(known) = self.peers.get_mut(&peer).filter(|known| known.link.is_none()) else { return };
        known.candidates.add(from, Learnt::Worked);
        if known.may_ask_back(from, QUIET, now) {
            self.ping(peer, index, from, 0, now);
        }
    }

    /// Takes the answer to a ping: `seen` is where the peer sees this host, `size` the size of the ping it got, in bytes.
    pub(crate) fn on_pong(&mut self, peer: HostLabel, from: Path, id: u32, seen: SocketAddr, size: u16, now: Time) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(ping) = known.pings.take(id) else { return };
        if self.marks && from.is_udp() && known.marks.on_answer(ping.lane) {
            // The network drops datagrams marked as urgent: this host marks none any more. Sizes were probed by marked ones.
            self.marks = false;
            let links = self.peers.values_mut().filter_map(|peer| peer.link.as_mut());
            links.for_each(|link| link.size.search_again(now));
            self.events.push_back(Event::MarksLost(peer));
        }
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.link.is_none() {
            known.link = Some(Link::new(from, now));
            self.link_up(peer, from, now);
        }
        let Some(link) = self.peers.get_mut(&peer).and_then(|known| known.link.as_mut()) else { return };
        // Only where it was asked does an answer prove anything.
        if link.path != from
            && ping.to.may_be(from)
            && self.metered.may_move(&self.routing, (self.own, peer), link, &from, now)
        {
            let cause = match self.metered.has_path(&link.path) && !self.metered.has_path(&from) {
                true => "it is not paid for by the byte",
                false if from.is_better(link.path) => "UDP passes there",
                false => "the peer is there now",
            };
            self.move_link(peer, from, cause, now);
        }
        let Some(link) = self.peers.get_mut(&peer).and_then(|known| known.link.as_mut()) else { return };
        if link.path != from {
            return;
        }
        link.last_from_remote = now;
        if ping.size.is_none() {
            link.on_rtt(now.since(ping.at), now);
        } else if link.size.on_answer(usize::from(size)) {
            self.routing.touch();
        }
        self.announce_link(peer, now);
        self.note_seen(peer, from, seen, now);
    }

    fn note_seen(&mut self, by: HostLabel, from: Path, seen: SocketAddr, now: Time) {
        // Where a connection comes from, or what a spare port sends, is no address that others may ask at.
        if !from.is_opened() && self.addresses.note_seen(by, seen, now) {
            self.events.push_back(Event::HostChanged);
            self.peers.values_mut().for_each(|peer| peer.begin_again(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::lab::*;

    #[test]
    fn a_ping_is_answered_where_it_came_from_and_a_new_peer_is_pinged_in_turn() {
        let (mut topology, ..) = topology();
        let from = Path::udp(([192, 0, 2, 7], 6783).into());
        topology.on_ping(PEER, 7, from, (5, Lane::Main), (OWN_ADDRESS, 1300), at(0));
        let said = events(&mut topology);
        let is_pong = |event: &Event| {
            let Event::Straight { to, lane, control, .. } = event else { return false };
            (*to, *lane) == (from, Lane::Main)
                && matches!(control, Control::Pong { id: 5, size: 1300, seen } if *seen == from.remote)
        };
        let is_ping =
            |event: &Event| matches!(event, Event::Straight { to, control: Control::Ping { .. }, .. } if *to == from);
        assert!(said.iter().any(is_pong) && said.iter().any(is_ping), "{said:?}");
        topology.on_ping(PEER, 7, from, (6, Lane::Main), (OWN_ADDRESS, 1300), at(50));
        assert!(!events(&mut topology).iter().any(is_ping), "it was asked a moment ago");
    }

    #[test]
    fn an_answer_to_no_question_changes_nothing() {
        let (mut topology, ..) = topology();
        topology.on_pong(PEER, remote(), 77, remote().remote, 100, at(0));
        assert!(topology.link(PEER).is_none() && events(&mut topology).is_empty());
    }

    #[test]
    fn a_network_that_drops_marked_pings_ends_marks_for_all() {
        let (mut topology, table, meter) = topology();
        topology.tend_links(true, &table, at(0));
        answer(&mut topology, &meter, 1400, at(10));
        let mut said = Vec::new();
        for now in (20..20_000).step_by(50) {
            topology.tend_links(false, &table, at(now));
            for event in events(&mut topology) {
                match event {
                    Event::Straight { lane: Lane::Main, control: Control::Ping { id, .. }, to, .. } => {
                        meter.received.on_link(1, at(now));
                        topology.on_pong(PEER, to, id, to.remote, 100, at(now + 1));
                    }
                    event => said.push(event),
                }
            }
        }
        assert!(!topology.marks && said.iter().any(|event| matches!(event, Event::MarksLost(PEER))));
    }
}
