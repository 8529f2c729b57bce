//! What nodes say to each other inside sessions: records, SWIM, and small talk.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use weft_crypto::{HostLabel, PeerId, Time, envelope};
use weft_gossip::{Batch, MembershipEvent, Message, Received, StoreEvent};

use super::peer::Session;
use super::{CLONE_MEMORY, Event, Node, PERSISTED_INCARNATION, PERSISTED_PEER};
use crate::ipam::Announcement;
use crate::records::{
    self, EndpointRecord, EntryRecord, HostRecord, Key, LinkRecord, MAX_OWN_NAMES, MoreNames, SegmentRecord,
};
use crate::snapshot::{Hop, Meter, Outbound};
use crate::wire::Lane;
use crate::wire::{Control, MIN_DATAGRAM};

/// Conflicts remembered, so that each is said once.
const MAX_CONFLICTS: usize = 256;
/// How often a neighbour is asked whether it holds the same records.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);
/// How long nothing new has to come until all are asked, and how long that is waited for.
const SETTLED: Duration = Duration::from_millis(300);
const UNSETTLED: Duration = Duration::from_secs(2);
/// How often records are asked for after a gap, at most.
const PULL_INTERVAL: Duration = Duration::from_millis(100);
/// How often a host is told that it was forgotten, at most.
const FORGOTTEN_INTERVAL: Duration = Duration::from_secs(1);
/// How often own changes are signed and sent, at most.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);
/// Times this host writes itself above records it did not write, within [`CLONE_MEMORY`], before it believes in
/// another host with its key.
const MAX_JUMPS: usize = 4;

impl Node {
    /// Takes a control message that was opened under a session with `label`.
    pub(super) fn on_control(
        &mut self,
        index: u32,
        label: HostLabel,
        direct: Option<SocketAddr>,
        size: usize,
        text: &[u8],
        now: Time,
    ) {
        match (Control::decode(text), direct) {
            (Some(Control::Ping { id, lane }), Some(from)) => self.on_ping(label, index, from, (id, lane), size, now),
            (Some(Control::Pong { id, seen, size }), Some(from)) => self.on_pong(label, from, id, seen, size, now),
            (Some(Control::Records(bytes)), _) => self.on_records(label, &bytes, now),
            (Some(Control::Swim(packet)), _) => self.membership.receive(label, &packet, now),
            (Some(Control::Ring(bytes)), _) => self.addresses.receive(label, &bytes, now),
            (Some(Control::AreYouThere), _) => self.send_under(label, index, None, &Control::StillHere, now),
            (Some(Control::StillHere), _) => self.on_still_here(label, index, now),
            (Some(Control::Cloned), _) => self.on_clone(now),
            (Some(Control::Forgotten { host, incarnation }), _) => self.say_forgotten(host, incarnation, now),
            (Some(Control::Bye), _) => self.let_go(label, "the peer said goodbye", now),
            (Some(Control::Needless), _) => self.on_needless(label, now),
            _ => {}
        }
    }

    /// Sends a message along the route; it waits for a session if there is none.
    pub(super) fn send_control(&mut self, label: HostLabel, control: &Control, now: Time) {
        self.send_text(label, control.encode(0), now);
    }

    fn send_text(&mut self, label: HostLabel, text: Vec<u8>, now: Time) {
        if let Some(outbound) = self.snapshot.outbound.get(&label)
            && outbound.send.is_some()
        {
            // Without a route the message is dropped; what matters is sent again.
            let _ = self.path.sender.control(outbound, Lane::Urgent, &text, now);
            return;
        }
        if let Some(peer) = self.peers.get_mut(&label) {
            peer.wait_control(text);
            self.want_session(label, now);
        }
    }

    /// Sends a message under one session, along the route or straight to an address.
    pub(super) fn send_under(
        &mut self,
        label: HostLabel,
        index: u32,
        to: Option<SocketAddr>,
        control: &Control,
        now: Time,
    ) {
        if let Some(to) = to {
            return self.send_text_at(label, index, to, (Lane::Urgent, &control.encode(0)), now);
        }
        let Some(hop) = self.hop_towards(label) else { return };
        let Some(session) = self.peers.get(&label).and_then(|peer| peer.session(index)) else { return };
        let outbound = Outbound {
            send: Some(session.send.clone()),
            link: None,
            envelope: hop.envelope(envelope::MAX_TTL, label),
            hop: Some(hop),
            meter: Arc::default(),
        };
        let _ = self.path.sender.control(&outbound, Lane::Urgent, &control.encode(0), now);
    }

    /// Sends a text under one session straight to an address, link or not. It does not count as use of a link.
    pub(super) fn send_text_at(
        &mut self,
        label: HostLabel,
        index: u32,
        to: SocketAddr,
        (lane, text): (Lane, &[u8]),
        now: Time,
    ) {
        let Some(session) = self.peers.get(&label).and_then(|peer| peer.session(index)) else { return };
        let outbound = straight(label, session, to);
        let _ = self.path.sender.control(&outbound, lane, text, now);
    }

    pub(super) fn neighbours(&self) -> Vec<HostLabel> {
        self.linked.iter().copied().collect()
    }

    /// A new neighbour is told what this host holds, and answers with what it lacks.
    pub(super) fn greet(&mut self, label: HostLabel, now: Time) {
        for digest in self.store.digests() {
            self.send_control(label, &Control::Records(digest.encode()), now);
        }
    }

    /// Asks neighbours whether they hold the same: a random one each second, all of them once what was new has
    /// settled, so that a batch lost on the way is soon found.
    pub(super) fn compare_records(&mut self, now: Time) {
        let has_settled = self.unsettled.is_some_and(|(first, last)| now >= (last + SETTLED).min(first + UNSETTLED));
        if !has_settled && now < self.next_comparison {
            return;
        }
        let neighbours = self.neighbours();
        let summary = Message::Summary { hash: self.store.summary() };
        if has_settled {
            self.unsettled = None;
            for label in &neighbours {
                self.send_control(*label, &Control::Records(summary.encode()), now);
            }
        }
        if now < self.next_comparison || neighbours.is_empty() {
            return;
        }
        self.next_comparison = now + COMPARE_INTERVAL;
        let label = neighbours[self.rng.random_range(0..neighbours.len())];
        self.send_control(label, &Control::Records(summary.encode()), now);
        if self.peers.get(&label).is_some_and(|peer| !peer.is_alive) {
            // An introduction may be lost; SWIM does not repeat it.
            self.membership.announce(label, now);
        }
    }

    fn on_records(&mut self, label: HostLabel, bytes: &[u8], now: Time) {
        let Some(message) = Message::decode(bytes) else { return };
        if let Message::Batches { batches, more } = &message {
            let mut pull = *more;
            for batch in batches {
                match self.store.receive(batch) {
                    Received::New => {
                        self.to_pass_on.push((batch.clone(), label));
                        self.unsettled = Some((self.unsettled.map_or(now, |(first, _)| first), now));
                    }
                    Received::Gap => pull = true,
                    Received::BelowFloor { origin, floor } => self.say_below_floor(label, origin, floor, now),
                    Received::Old | Received::Refused => {}
                }
            }
            if pull {
                self.pull(label, now);
            }
        }
        for reply in self.store.answer(&message) {
            self.send_control(label, &Control::Records(reply.encode()), now);
        }
    }

    /// A forgotten host is back and does not know that it has to start above what it was. Its own records cannot tell
    /// it, for it may have forgotten this host, too: the host that brought its records finds it.
    fn say_below_floor(&mut self, from: HostLabel, origin: PeerId, floor: u64, now: Time) {
        let is_due = self.told_forgotten.get(&origin).is_none_or(|last| now.since(*last) >= FORGOTTEN_INTERVAL);
        if is_due {
            self.told_forgotten.insert(origin, now);
            self.send_control(from, &Control::Forgotten { host: origin, incarnation: floor }, now);
        }
    }

    /// Passes on to a host that it was forgotten, or takes note of it.
    fn say_forgotten(&mut self, host: PeerId, incarnation: u64, now: Time) {
        if host == self.identity.peer_id() {
            if incarnation >= self.store.incarnation() {
                self.jump_above(incarnation, false, now);
            }
        } else if self.hop_towards(host.label()).is_some() {
            self.say_below_floor(host.label(), host, incarnation, now);
        }
    }

    fn pull(&mut self, label: HostLabel, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if now.since(peer.last_pull) >= PULL_INTERVAL {
            peer.last_pull = now;
            self.greet(label, now);
        }
    }

    /// Passes new batches on. The origin tells its own neighbours; everybody else tells those that are not, so
    /// that in a dense mesh a batch crosses few links. A host that missed it finds out when records are compared.
    pub(super) fn pass_on(&mut self, now: Time) {
        for (batch, from) in std::mem::take(&mut self.to_pass_on) {
            let Ok(parsed) = Batch::parse(&batch) else { continue };
            let origin = parsed.origin.label();
            let told: BTreeSet<HostLabel> = self.graph.of(origin).map(|(to, _)| to).collect();
            let to = self.neighbours().into_iter().filter(|label| *label != from && *label != origin);
            let to: Vec<HostLabel> = to.filter(|label| from != origin || !told.contains(label)).collect();
            self.push(&batch, &to, now);
        }
    }

    fn push(&mut self, batch: &Bytes, to: &[HostLabel], now: Time) {
        let message = Message::Batches { batches: vec![batch.clone()], more: false };
        let text = Control::Records(message.encode()).encode(0);
        for label in to {
            self.send_text(*label, text.clone(), now);
        }
    }

    /// Signs and spreads what this host has to say; changes that come in quick succession share a batch.
    pub(super) fn flush_records(&mut self, now: Time) {
        if now < self.flush_after || !self.store.is_dirty() {
            return;
        }
        self.flush_after = now + FLUSH_INTERVAL;
        let batches = self.store.flush();
        self.tell_neighbours(&batches, now);
    }

    /// Signs what is waiting at once, so that what follows is judged by all that was said before.
    pub(super) fn settle_records(&mut self, now: Time) {
        self.flush_after = now;
        self.flush_records(now);
        self.apply_record_events(now);
    }

    fn tell_neighbours(&mut self, batches: &[Bytes], now: Time) {
        let to = self.neighbours();
        batches.iter().for_each(|batch| self.push(batch, &to, now));
    }

    /// Carries over into links, segments and peers what the records have come to say.
    pub(super) fn apply_record_events(&mut self, now: Time) {
        loop {
            let events = self.store.take_events();
            if events.is_empty() {
                return;
            }
            for event in events {
                match event {
                    StoreEvent::Set { origin, key, value } => self.on_record(origin, &key, Some(&value), now),
                    StoreEvent::Unset { origin, key } => self.on_record(origin, &key, None, now),
                    StoreEvent::OwnAhead { incarnation } => self.jump_above(incarnation, true, now),
                }
            }
        }
    }

    fn on_record(&mut self, origin: PeerId, key: &[u8], value: Option<&[u8]>, now: Time) {
        let label = origin.label();
        let is_own = origin == self.identity.peer_id();
        if !is_own && self.meet(origin, now).is_none() {
            return;
        }
        match Key::parse(key) {
            Some(Key::Host) => {
                self.on_host_record(label, value.and_then(records::decode));
                self.reach_stale = true;
            }
            Some(Key::Link(to)) if !is_own => {
                let link = value.and_then(records::decode::<LinkRecord>).filter(LinkRecord::is_usable);
                let changed = match link.filter(|_| self.graph.of(label).nth(records::MAX_LINKS).is_none()) {
                    Some(link) => self.graph.set(label, to, link),
                    None => self.graph.unset(label, to),
                };
                self.routes_stale |= changed;
            }
            Some(Key::Segment(segment)) => {
                let record = value.and_then(records::decode::<SegmentRecord>);
                match record.filter(|record| crate::wire::SegmentId::of(&record.name) == segment) {
                    Some(record) => self.endpoints.set_presence(label, segment, record.name, record.mtu),
                    None => self.endpoints.unset_presence(label, segment),
                }
            }
            Some(Key::Endpoint(id)) => {
                let record = value.and_then(records::decode::<EndpointRecord>);
                match record.filter(|record| record.problem().is_none() && record.names.len() <= MAX_OWN_NAMES) {
                    Some(record) => {
                        self.endpoints.set(label, id, record.clone());
                        self.warn_of_conflicts(&record);
                    }
                    None => self.endpoints.unset(label, id),
                }
            }
            Some(Key::Names(id, part)) => {
                let more = value.and_then(records::decode::<MoreNames>).filter(MoreNames::is_valid);
                self.endpoints.set_more_names(label, id, part, more);
            }
            Some(Key::Entry(_)) => self.on_entry_record(label, key, value),
            Some(Key::Network(uid)) => self.on_network_head(label, uid, value.and_then(records::decode)),
            Some(Key::NetworkPart(uid, part)) => self.on_network_part(label, uid, part, value),
            Some(Key::Removed(uid)) => match value {
                Some(_) => drop(self.removed_networks.insert((uid, label))),
                None => drop(self.removed_networks.remove(&(uid, label))),
            },
            Some(Key::Ring(range)) => {
                let announcement = value.and_then(records::decode::<Announcement>);
                self.addresses.hear(label, range, announcement, now);
            }
            Some(Key::Forgotten(gone)) => {
                if let Some(incarnation) = value.and_then(records::decode::<u64>) {
                    self.on_forgotten(gone, incarnation, now);
                }
            }
            // Own links are in the graph when they come up.
            Some(Key::Link(_)) => {}
            // Of a kind that a newer version knows: kept and passed on by the store.
            None => {}
        }
    }

    fn on_entry_record(&mut self, label: HostLabel, key: &[u8], value: Option<&[u8]>) {
        let record = value.and_then(records::decode::<EntryRecord>);
        let record = record.filter(|record| record.problem().is_none() && record.key().encode() == key);
        let gone = match &record {
            Some(record) => self.entries.insert((label, key.to_vec()), record.clone()),
            None => self.entries.remove(&(label, key.to_vec())),
        };
        if let Some(gone) = gone {
            self.endpoints.names.set_entry(label, &gone.name, None);
        }
        if let Some(record) = record {
            self.endpoints.names.set_entry(label, &record.name, Some(record.ips));
        }
        self.endpoints.names_changed = true;
    }

    fn on_host_record(&mut self, label: HostLabel, record: Option<HostRecord>) {
        let Some(record) = record.filter(|record| records::is_name(&record.name)) else {
            self.hosts.remove(&label);
            return;
        };
        if let Some(peer) = self.peers.get_mut(&label)
            && self.discovery
        {
            for address in record.addresses.iter().take(records::MAX_LIST) {
                peer.add_candidate(*address, false);
            }
        }
        self.on_boot(label, record.boot);
        self.hosts.insert(label, record);
    }

    /// A host says that another is gone for good. It is believed of hosts that this one does not reach either, and never
    /// beyond what is known of them.
    fn on_forgotten(&mut self, gone: PeerId, incarnation: u64, now: Time) {
        if gone == self.identity.peer_id() {
            return self.say_forgotten(gone, incarnation, now);
        }
        let is_there = self.peers.get(&gone.label()).is_some_and(|peer| peer.is_alive || peer.link.is_some());
        if is_there || self.routes.contains_key(&gone.label()) {
            return;
        }
        if let Some(held) = self.store.incarnation_of(gone) {
            self.store.forget(gone, incarnation.min(held));
        }
    }

    /// Writes this host above records of it that another life wrote, unless that life goes on: `signed` by this host's key
    /// they are, again and again, only if another host has it.
    fn jump_above(&mut self, incarnation: u64, signed: bool, now: Time) {
        if incarnation < self.store.incarnation() || incarnation >= records::MAX_INCARNATION {
            return;
        }
        if self.contested.is_some_and(|seen| now.since(seen) < CLONE_MEMORY) {
            self.contested = Some(now);
            return;
        }
        while self.jumps.front().is_some_and(|at| now.since(*at) > CLONE_MEMORY) {
            self.jumps.pop_front();
        }
        if self.jumps.len() >= MAX_JUMPS {
            if signed {
                self.contested = Some(now);
                self.on_clone(now);
            }
            return;
        }
        self.jumps.push_back(now);
        let (incarnation, batches) = self.store.jump_above(incarnation);
        self.persist(PERSISTED_INCARNATION, Some(records::encode(&incarnation)));
        self.event(Event::Reincarnated(incarnation));
        self.tell_neighbours(&batches, now);
    }

    /// Says so, once, where an endpoint that came has what one of this host's has.
    fn warn_of_conflicts(&mut self, record: &EndpointRecord) {
        for (what, host) in self.endpoints.conflicts(record) {
            let conflict = (what.clone(), host);
            if self.conflicts.len() < MAX_CONFLICTS && self.conflicts.insert(conflict) {
                self.event(Event::Conflict { what, by: self.name_of(host) });
            }
        }
    }

    /// Carries SWIM's packets and findings.
    pub(super) fn tend_membership(&mut self, now: Time) {
        while let Some((to, packet)) = self.membership.poll_transmit() {
            self.send_control(to, &Control::Swim(packet.to_vec()), now);
        }
        while let Some(event) = self.membership.poll_event() {
            let (label, is_alive) = match event {
                MembershipEvent::Up(label) => (label, true),
                MembershipEvent::Down(label) => (label, false),
            };
            if let Some(peer) = self.peers.get_mut(&label) {
                peer.is_alive = is_alive;
                peer.last_there = now;
                let name = self.name_of(label);
                self.event(if is_alive { Event::PeerAlive(name) } else { Event::PeerDead(name) });
            }
        }
    }

    /// Drops the records of hosts that have been gone for longer than the grace. One host of those that
    /// reach each other says so for all: the one with the lowest label.
    pub(super) fn tend_gone(&mut self, now: Time) {
        for (label, peer) in &mut self.peers {
            if peer.is_alive || self.routes.contains_key(label) {
                peer.last_there = now;
            }
        }
        let speaks = self.routes.keys().next().is_none_or(|first| self.own < *first);
        let gone: Vec<PeerId> =
            (self.peers.values()).filter(|peer| now.since(peer.last_there) > self.grace).map(|peer| peer.id).collect();
        self.told_forgotten.retain(|_, told| now.since(*told) < FORGOTTEN_INTERVAL);
        self.take_back_forgotten();
        for id in gone {
            let label = id.label();
            match self.store.incarnation_of(id) {
                Some(_) if speaks => self.forget_records(id),
                Some(_) => {}
                None => {
                    let is_named = self.target_addresses.values().any(|target| target.peer == Some(label));
                    if !is_named {
                        self.drop_peer(label);
                    }
                }
            }
        }
    }

    /// Has all hosts that do not reach a host drop what it said.
    pub(super) fn forget_records(&mut self, id: PeerId) {
        if let Some(incarnation) = self.store.incarnation_of(id) {
            // A number is far below the limit.
            let _ = self.store.put(&Key::Forgotten(id).encode(), records::encode(&incarnation));
        }
    }

    /// Hosts that were forgotten and are back in a new incarnation need no mention any more.
    fn take_back_forgotten(&mut self) {
        let back: Vec<Vec<u8>> = (self.store.all_own())
            .filter(|(key, value)| match (Key::parse(key), records::decode::<u64>(value)) {
                (Some(Key::Forgotten(host)), Some(floor)) => {
                    self.store.incarnation_of(host).is_some_and(|incarnation| incarnation > floor)
                }
                _ => false,
            })
            .map(|(key, _)| key.to_vec())
            .collect();
        back.iter().for_each(|key| self.store.delete(key));
    }

    fn drop_peer(&mut self, label: HostLabel) {
        let Some(peer) = self.peers.get(&label) else { return };
        let (id, sessions): (PeerId, Vec<u32>) = (peer.id, peer.sessions.iter().map(|s| s.index).collect());
        sessions.into_iter().for_each(|index| self.drop_session(label, index));
        self.persist(&[PERSISTED_PEER, &id.0].concat(), None);
        if let Some(key) = id.noise_public() {
            self.by_noise_key.remove(&key);
        }
        self.peers.remove(&label);
        self.linked.remove(&label);
        self.hosts.remove(&label);
        self.refresh_outbound(label);
    }

    /// Says goodbye to the neighbours, so that they need not find out.
    pub(super) fn leave(&mut self, now: Time) {
        self.membership.leave(now);
        self.tend_membership(now);
        for label in self.neighbours() {
            self.send_control(label, &Control::Bye, now);
        }
    }
}

/// The sending side of a session straight to an address.
fn straight(label: HostLabel, session: &Session, to: SocketAddr) -> Outbound {
    let hop = Hop {
        via: label,
        remote: to,
        link_index: session.remote_index,
        hop_send: session.hop_send,
        max_datagram: MIN_DATAGRAM,
        meter: Arc::new(Meter::default()),
    };
    Outbound {
        send: Some(session.send.clone()),
        link: None,
        envelope: hop.envelope(envelope::MAX_TTL, label),
        hop: Some(hop),
        meter: Arc::default(),
    }
}
