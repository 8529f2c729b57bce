//! What the events of each component lead to in the others.

use weft_crypto::{HostLabel, PeerId, Time};

use super::{Components, Event, Output, encode};
use crate::api::Reply;
use crate::path::Path;
use crate::records::sync;
use crate::records::writes::Writes;
use crate::records::{Key, Record};
use crate::sessions::SendKeys;
use crate::stored::Stored;
use crate::topology::Topology;
use crate::topology::prediction::{SPARE_HOPS, SPARE_PORTS};
use crate::wire::{Control, Lane, Step};
use crate::{addresses, presence, sessions, topology};

impl Components {
    /// Carries out the events of all components until none has any.
    pub(super) fn route_events(&mut self, now: Time) {
        loop {
            if let Some(event) = self.sessions.poll_event() {
                self.on_session_event(event, now);
            } else if let Some(event) = self.topology.poll_event() {
                self.on_topology_event(event, now);
            } else if let Some(event) = self.presence.poll_event() {
                self.on_presence_event(event, now);
            } else if let Some(event) = self.records.poll_event() {
                self.on_sync_event(event, now);
            } else if let Some(event) = self.addresses.poll_event() {
                self.on_address_event(event, now);
            } else {
                return;
            }
        }
    }

    fn on_session_event(&mut self, event: sessions::Event, now: Time) {
        use sessions::Event as Said;
        match event {
            Said::Met(peer) => {
                self.topology.meet(peer, self.sessions.meter_of(peer));
                self.presence.meet(peer, now);
                self.sessions.id_of(peer).into_iter().for_each(|id| self.directory.meet(id));
            }
            Said::Packet { direct: Some(to), bytes, .. } => self.publisher.send_packet(to, bytes),
            Said::Packet { direct: None, to, bytes } => {
                let by = |to| self.hop_of_handshake(Step::of(&bytes)?, to, now);
                if let Some((to, hop)) = to.zip(to.and_then(by)) {
                    self.publisher.relay_packet(to, &hop, &bytes, now);
                }
            }
            Said::Message { peer, keys, direct, control } => self.send_under(peer, &keys, direct, &control, now),
            Said::Opened(index, inbound) => self.publisher.open(index, inbound),
            Said::Closed(index) => self.publisher.close(index),
            Said::Current(peer) => {
                if self.sessions.current_index(peer).is_some() {
                    self.topology.on_session(peer);
                }
                // Every route through this neighbour carries its link's index and key.
                let through = self.topology.routing.via(peer);
                through.into_iter().filter(|to| *to != peer).chain([peer]).for_each(|to| self.refresh(to, now));
            }
            Said::Found(peer, at) => self.topology.on_found(peer, at),
            Said::Probe { peer, index, at } => self.topology.ping(peer, index, at, 0, now),
            Said::OwnKeyElsewhere => self.records.on_own_key_elsewhere(now),
            Said::Notice(event) => self.report(event),
        }
    }

    fn on_topology_event(&mut self, event: topology::Event, now: Time) {
        use topology::Event as Said;
        match event {
            Said::Straight { peer, index, to, lane, control, size } => {
                if let Some(keys) = self.sessions.peer(peer).and_then(|peer| peer.keys(index)) {
                    let outbound = keys.straight(peer, to);
                    self.publisher.send_over(&outbound, lane, &control.encode(size), true, now);
                }
            }
            Said::Message(peer, control) => self.send(peer, &control, now),
            Said::By { peer, by, control } => {
                let keys = self.sessions.current_keys(peer);
                if let Some(outbound) = keys.and_then(|keys| Some(keys.over(self.hop_by(by, usize::MAX)?, peer))) {
                    // With the frames: it is to say whether they arrive.
                    self.publisher.send_over(&outbound, Lane::Main, &control.encode(0), true, now);
                }
            }
            Said::Avoided { to, via, length } => {
                let relay = self.directory.name_of(via);
                self.report_of(to, |peer, host| Event::RelayAvoided { peer, host, relay, length });
            }
            Said::Connection { path, usage } => self.outputs.push_back(Output::Connection { path, usage }),
            Said::Spread { towards } => {
                self.outputs.push_back(Output::Spread { towards, count: SPARE_PORTS, hops: SPARE_HOPS });
            }
            Said::Open { to, hops } => self.outputs.push_back(Output::Open { to, hops }),
            Said::Handshake { peer, at, tries } => self.sessions.start_handshake(peer, Some(at), tries, now),
            Said::Announce(to, record) => {
                let mut writes = Writes::default();
                match record {
                    Some(record) => writes.put(Key::Link(to), &record),
                    None => writes.delete(Key::Link(to)),
                }
                // A link record is a few bytes; the number of links is bounded by the number of peers.
                let _ = self.commit(writes);
            }
            Said::HostChanged => self.write_host_record(),
            Said::Up(peer, likely) => {
                if let Some(id) = self.sessions.id_of(peer) {
                    self.persist(&Stored::Peer(id), Some(encode(&likely)));
                }
                self.sessions.on_path_change(peer, now);
                self.refresh(peer, now);
                let Topology { metered, routing, .. } = &self.topology;
                if !metered.has_link(routing, peer, self.topology.link(peer)) {
                    self.presence.announce(peer, now);
                }
                self.records.on_link_up(peer, now);
            }
            Said::Down(peer) => {
                self.sessions.on_path_change(peer, now);
                self.records.on_link_down(peer);
                self.presence.on_link_down(now);
            }
            Said::Refresh(to) => self.refresh(to, now),
            Said::Wake(at) => self.next_tick = self.next_tick.min(at),
            Said::MarksLost(peer) => self.report_of(peer, |peer, host| Event::MarksLost { peer, host }),
            Said::LinkUp(peer, remote) => self.report_of(peer, |peer, host| Event::LinkUp { peer, host, remote }),
            Said::LinkDown(peer, reason) => self.report_of(peer, |peer, host| Event::LinkDown { peer, host, reason }),
            Said::LinkMoved(peer, remote) => self.report_of(peer, |peer, host| Event::LinkMoved { peer, host, remote }),
            Said::Notice(event) => self.report(event),
        }
    }

    fn on_presence_event(&mut self, event: presence::Event, now: Time) {
        match event {
            // Of hosts beyond a metered link routes tell whether they are there: SWIM would pay for each question.
            presence::Event::Packet(to, _) if self.topology.metered.has_route(&self.topology.routing, to) => {}
            presence::Event::Packet(to, packet) => self.send_repeated(to, &Control::Swim(packet.to_vec()), now),
            presence::Event::Alive(peer, is_alive) => {
                let is_peer = self.presence.set_alive(peer, is_alive, now);
                if !is_alive {
                    self.topology.on_dead(peer, now);
                    self.believe_forgotten(Some(peer));
                }
                if is_peer {
                    self.tell_presence(peer, is_alive);
                }
            }
        }
    }

    /// Reports that a host came or is gone, after SWIM found it (`is_found`) or doubts it, or the way there changed.
    pub(super) fn tell_presence(&mut self, peer: HostLabel, is_found: bool) {
        let has_route = self.topology.routing.has_route(peer);
        if let Some(is_there) = self.presence.take_news(peer, has_route, is_found) {
            let name = self.directory.name_of(peer);
            self.report(if is_there { Event::PeerAlive(name) } else { Event::PeerDead(name) });
        }
    }

    fn on_sync_event(&mut self, event: sync::Event, now: Time) {
        use sync::Event as Said;
        match event {
            Said::Records(to, bytes) => self.send_by_link(to, &Control::Records(bytes), now),
            Said::Question(to, bytes) => self.send_repeated(to, &Control::Records(bytes), now),
            Said::Forgotten { to, host, incarnation } => {
                self.send(to, &Control::Forgotten { host, incarnation }, now);
            }
            Said::Record(origin, record) => self.on_record(origin, record, now),
            Said::Incarnation(incarnation) => self.persist(&Stored::Incarnation, Some(encode(&incarnation))),
            Said::Reincarnated(incarnation) => {
                self.persist(&Stored::Incarnation, Some(encode(&incarnation)));
                self.report(Event::Reincarnated(incarnation));
            }
            Said::Cloned => self.report(Event::Cloned),
            Said::Compared(peer) => {
                let is_metered = self.topology.metered.has_route(&self.topology.routing, peer);
                if !self.presence.is_alive(peer) && !is_metered {
                    // An introduction may be lost; SWIM does not repeat it.
                    self.presence.announce(peer, now);
                }
            }
        }
    }

    /// Hands a record to the component that owns its meaning.
    fn on_record(&mut self, origin: PeerId, record: Record, now: Time) {
        let host = origin.label();
        let is_own = origin == self.peer_id;
        if !is_own {
            if self.sessions.meet(origin, now).is_none() {
                return;
            }
            // The other components have to know the peer before its record.
            while let Some(event) = self.sessions.poll_event() {
                self.on_session_event(event, now);
            }
        }
        match record {
            Record::Host(record) => {
                self.topology.on_host(host, record.as_ref(), now);
                if let Some(record) = &record {
                    self.sessions.on_boot(host, record.boot, self.topology.link(host).is_some());
                }
                self.directory.on_host(host, record);
                self.reach_stale = true;
            }
            Record::Link(to, link) => {
                // Own links are in the graph when they come up.
                if !is_own {
                    self.topology.on_link_record(host, to, link, now);
                }
            }
            Record::Segment(id, record) => self.segments.on_segment(host, id, record),
            Record::Endpoint(id, record) => {
                for (what, by) in self.segments.on_endpoint(host, id, record) {
                    self.report(Event::Conflict { what, by: self.directory.name_of(by) });
                }
            }
            Record::Names(id, part, names) => self.segments.on_more_names(host, id, part, names),
            Record::Entry(digest, record) => {
                for change in self.directory.on_entry(host, digest, record) {
                    self.segments.set_entry(host, &change.name, change.ips);
                }
            }
            Record::Network(uid, head) => self.directory.networks.on_head(host, uid, head),
            Record::NetworkPart(uid, part, bytes) => self.directory.networks.on_part(host, uid, part, bytes),
            Record::Removed(uid, removed) => self.directory.networks.on_removed(host, uid, removed.is_some()),
            Record::Ring(range, announcement) => self.addresses.ipam().hear(host, range, announcement, now),
            Record::Forgotten(gone, incarnation) => {
                self.records.on_forgotten_record(origin, gone, incarnation, now);
                self.believe_forgotten(Some(gone.label()));
            }
            Record::Unknown => {}
        }
    }

    /// Drops the records of hosts that are said to be gone, and are not there: all, or the one with a label.
    pub(super) fn believe_forgotten(&mut self, only: Option<HostLabel>) {
        let Components { records, topology, presence, .. } = self;
        records.believe_forgotten(only, |host| {
            let has_path = topology.link(host).is_some() || topology.routing.has_route(host);
            has_path || presence.is_alive(host)
        });
    }

    fn on_address_event(&mut self, event: addresses::Event, now: Time) {
        use addresses::Event as Said;
        match event {
            Said::Persist(key, value) => self.outputs.push_back(Output::Persist { key, value }),
            Said::Durable(mark) => self.outputs.push_back(Output::Durable(mark)),
            Said::Send(to, bytes) => self.send(to, &Control::Ring(bytes), now),
            Said::Announce(range, announcement) => {
                let mut writes = Writes::default();
                writes.put(Key::Ring(range), &announcement);
                // A ring's announcement is far below the limits of a record.
                let _ = self.commit(writes);
            }
            Said::Address(id, result) => {
                let result = result.map(Reply::Address).map_err(|error| self.explain(error));
                self.outputs.push_back(Output::Reply(id, result));
            }
            Said::Done(id, result, reclaimed) => {
                if let Some(host) = reclaimed.and_then(|host| self.sessions.id_of(host)) {
                    self.records.forget_records(host);
                }
                let result = result.map(|()| Reply::Done).map_err(|error| self.explain(error));
                self.outputs.push_back(Output::Reply(id, result));
            }
            Said::NotKept(id) => {
                self.outputs.push_back(Output::Reply(id, Err(crate::api::CommandError::NotKept)));
            }
            Said::Fenced(id, address) => {
                // Records that had room with an address more have room without it.
                let _ = self.commit(self.segments.fence(address));
                self.report(Event::Fenced { id, address });
            }
        }
    }

    /// Sends a message under one session, along the route or straight to an address.
    pub(super) fn send_under(
        &mut self,
        peer: HostLabel,
        keys: &SendKeys,
        direct: Option<Path>,
        control: &Control,
        now: Time,
    ) {
        let outbound = match direct {
            Some(to) => Some(keys.straight(peer, to)),
            None => self.hop_towards(peer).map(|hop| keys.over(hop, peer)),
        };
        if let Some(outbound) = outbound {
            self.publisher.send_over(&outbound, Lane::Urgent, &control.encode(0), true, now);
        }
    }

    fn report(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn report_of(&mut self, peer: HostLabel, event: impl FnOnce(PeerId, String) -> Event) {
        if let Some(id) = self.sessions.id_of(peer) {
            self.report(event(id, self.directory.name_of(peer)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_crypto::Identity;

    use super::*;
    use crate::api::Command;
    use crate::codec::encode as value;
    use crate::ipam::Announcement;
    use crate::ipam::ring::{Range, RingId};
    use crate::records::{EndpointRecord, HostRecord};
    use crate::testing::{NOW, command, endpoint, hear, node};

    #[test]
    fn records_reach_the_components_that_own_their_meaning() {
        let mut node = node(1, &BTreeMap::new());
        let host =
            HostRecord { name: "far".into(), addresses: vec![([192, 0, 2, 2], 6783).into()], ..HostRecord::default() };
        let peer = Identity::from_seed(&[2; 32]).peer_id();
        hear(&mut node, 2, 1, &[(Key::Host, value(&host)), (Key::Endpoint([7; 16]), value(&endpoint(7)))]);
        let status = node.status(NOW);
        let names: Vec<&str> = status.peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["far"], "sessions know the peer, the directory its name");
        assert_eq!(status.endpoints.len(), 1, "segments know its endpoint");
        assert_eq!(node.parts.directory.name_of(peer.label()), "far");
        // A later life without them takes both back.
        hear(&mut node, 2, 2, &[(Key::Removed([3; 16]), vec![1])]);
        assert!(node.status(NOW).endpoints.is_empty());
        assert!(node.parts.directory.networks.removed().contains(&[3; 16]));
    }

    #[test]
    fn a_claim_on_a_local_endpoints_address_is_reported() {
        let mut node = node(1, &BTreeMap::new());
        command(&mut node, Command::attach([9; 16], endpoint(7))).unwrap();
        let record = value(&EndpointRecord { mac: [2; 6], ..endpoint(7) });
        let said = hear(&mut node, 2, 1, &[(Key::Endpoint([1; 16]), record)]);
        assert!(said.events.iter().any(|event| matches!(event, Event::Conflict { .. })), "{:?}", said.events);
    }

    #[test]
    fn a_ring_heard_of_is_tended_with_the_input_that_told_of_it() {
        let mut node = node(1, &BTreeMap::new());
        let range = Range::new([10, 40, 0, 0].into(), 24).unwrap();
        let announcement =
            Announcement { ring: RingId::default(), n: 3, windows: 2, succeeds: Vec::new(), superseded_by: None };
        let said = hear(&mut node, 2, 1, &[(Key::Ring(range), value(&announcement))]);
        assert!(said.wake.is_some_and(|at| at >= NOW), "{:?}", said.wake);
    }
}
