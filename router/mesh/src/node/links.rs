//! Direct paths to peers: finding them, judging them by what comes back, their cost and their MTU.
//!
//! A link is up once a ping to its address was answered. One that carries frames is probed as soon as
//! nothing came back for [`QUIET`], and is down after [`DOWN_AFTER`] of silence with [`LOST_PINGS`] pings lost;
//! an idle one is probed each second.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::{Rng, RngExt};
use weft_crypto::{HostLabel, Time, envelope, session};

use super::peer::{Backoff, Link, Peer, PingSent};
use super::{Event, Node, TargetState};
use crate::records::{Key, LinkRecord, encode};
use crate::routes::announced_cost;
use crate::wire::Lane;
use crate::wire::{Control, MIN_DATAGRAM};

/// Changed costs are announced together, so that they share a batch of records, and the more seldom the more
/// hosts there are to hear of them: what a mesh says about costs in a second is bounded, however large it is.
const COST_INTERVAL: Duration = Duration::from_millis(500);
const COST_INTERVAL_PER_HOST: Duration = Duration::from_millis(50);
/// Silence on a used link that is worth a question.
const QUIET: Duration = Duration::from_millis(100);
/// Silence, with pings lost, that ends a link.
const DOWN_AFTER: Duration = Duration::from_millis(250);
const LOST_PINGS: usize = 3;
/// How many datagrams in how long make a link a used one, and for how long again. Fewer are what hosts say to each other
/// all the time, for themselves or for others: the link is none the less probed as an idle one.
const USE: u64 = 10;
pub(super) const IN_USE: Duration = Duration::from_secs(1);
/// How often a silent link is asked again, and looked at.
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// How often an idle link is probed, and one that lost probes lately: what it costs is to be known again soon.
const IDLE_PROBE: Duration = Duration::from_secs(1);
const LOSSY_PROBE: Duration = Duration::from_millis(250);
const LOSSY: f64 = 0.02;
/// How often the full size of a link is probed, and how long without an answer until it is distrusted.
const SIZE_PROBE: Duration = Duration::from_secs(15);
const SIZE_DISTRUST: Duration = Duration::from_secs(35);
/// How long a link has to be silent before the host that chose its address gives it up for another.
const MOVE_AFTER: Duration = Duration::from_millis(1200);
/// How long a host whose peer chooses the address stays with one: less than [`MOVE_AFTER`], or both would go on looking for
/// each other where the other has just been.
const FOLLOW_AFTER: Duration = Duration::from_secs(1);
/// How often it is said that a link moved.
const SAY_MOVED: Duration = Duration::from_secs(60);
/// How often a peer is asked while it seems that only unmarked datagrams pass.
const SUSPICIOUS_PROBE: Duration = Duration::from_millis(100);
/// Tries after which a target that never answered is said to be silent: some 13 s.
const SILENT: u32 = 8;
/// Longest waits between tries of an address: one that worked or was named, and any other.
const LONGEST_LIKELY: Duration = Duration::from_secs(2);
const LONGEST_UNLIKELY: Duration = Duration::from_secs(30);
/// Tries of addresses in one tick.
const TRIES_PER_TICK: usize = 16;
/// Hosts up to which everybody links with everybody.
const SMALL_MESH: usize = 24;
/// How long a link opened for traffic stays without any.
const ON_DEMAND: Duration = Duration::from_secs(25);
/// How long what was sent over a link that was let go may still come.
const STRAGGLING: Duration = Duration::from_secs(1);
/// How often what others see of this host's addresses is told.
const SEEN_INTERVAL: Duration = Duration::from_secs(30);
/// Addresses at which others see this host, told.
const MAX_SEEN_ADDRESSES: usize = 4;

impl Node {
    /// Looks after every link, and with `all` after every peer that should have one.
    pub(super) fn tend_links(&mut self, all: bool, now: Time) {
        self.announces_costs = now >= self.costs_after;
        if self.announces_costs {
            self.costs_after = now + COST_INTERVAL + COST_INTERVAL_PER_HOST * self.hosts.len() as u32;
        }
        if all {
            self.refresh_fingers();
        }
        let labels: Vec<HostLabel> = if all { self.peers.keys().copied().collect() } else { self.neighbours() };
        let mut tries = TRIES_PER_TICK;
        for label in labels {
            let Some(peer) = self.peers.get_mut(&label) else { continue };
            note_traffic(peer, now);
            if peer.link.is_some() {
                self.tend_link(label, now);
            } else if self.wants_link(label, now) {
                self.try_candidates(label, &mut tries, now);
            }
        }
    }

    fn tend_link(&mut self, label: HostLabel, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let (heard, current) = (peer.last_heard(), peer.current);
        let Some(link) = &mut peer.link else { return };
        let sent = peer.meter.sent.link_datagrams.load(std::sync::atomic::Ordering::Relaxed);
        let (before, then) = link.sent_before;
        let is_used = sent.saturating_sub(before) >= USE;
        if is_used {
            link.last_used = now;
        }
        if is_used || now.since(then) >= IN_USE {
            link.sent_before = (sent, now);
        }
        let quiet = now.since(heard.max(link.since));
        let patience = link.patience();
        if current.is_none() && quiet > 2 * IDLE_PROBE {
            self.link_down(label, "there is no session any more", now);
            return;
        }
        let lost = (peer.pings.values())
            .filter(|ping| ping.to == link.remote && !ping.is_probe_of_size)
            .filter(|ping| ping.at >= heard && now.since(ping.at) > patience)
            .count();
        if lost >= LOST_PINGS && quiet > DOWN_AFTER.max(patience) {
            self.link_down(label, "nothing comes back", now);
            return;
        }
        peer.pings.retain(|_, ping| {
            let is_lost = now.since(ping.at) > patience.max(Duration::from_secs(2));
            if is_lost && ping.to == link.remote && !ping.is_probe_of_size {
                link.on_lost_ping();
            }
            !is_lost
        });
        let since_ping = now.since(link.last_ping);
        // Treat recently used links as in use: a host that only replies falls silent when the link fails and would stop probing.
        let is_unanswered = lost > 0 || (heard < link.last_ping && since_ping > patience);
        let is_silent = quiet >= QUIET && (now.since(link.last_used) < IN_USE || is_unanswered);
        if is_silent {
            self.next_tick = self.next_tick.min(now + ASK_AGAIN);
        }
        let remote = link.remote;
        let is_suspicious = self.marks && peer.marks.are_suspicious();
        let interval = match link.loss > LOSSY {
            _ if is_suspicious => SUSPICIOUS_PROBE,
            true => LOSSY_PROBE,
            false => IDLE_PROBE,
        };
        if since_ping >= interval || (is_silent && since_ping >= ASK_AGAIN) {
            link.last_ping = now;
            if let Some(index) = current {
                self.ping(label, index, remote, 0, now);
            }
        }
        self.tend_link_size(label, now);
        self.announce_link(label);
        self.offer_idle(label, now);
    }

    /// Offers the peer to do without a link that was opened for traffic that has ended, in a mesh too large for everyone to
    /// be linked to everyone. The peer may have been told of this host, or have frames for it, and keep the link.
    fn offer_idle(&mut self, label: HostLabel, now: Time) {
        let Some(link) = self.peers.get_mut(&label).and_then(|peer| peer.link.as_mut()) else { return };
        if now.since(link.last_used.max(link.needed_at)) <= ON_DEMAND {
            return;
        }
        link.needed_at = now;
        if self.can_do_without(label, now) && !self.finger_of.contains(&label) {
            self.send_control(label, &Control::Needless, now);
        }
    }

    /// The peer does without the link.
    pub(super) fn on_needless(&mut self, label: HostLabel, now: Time) {
        let link = self.peers.get(&label).and_then(|peer| peer.link.as_ref());
        // Others' frames may go over it, too.
        let is_idle = link.is_some_and(|link| now.since(link.last_used) > ON_DEMAND - IN_USE);
        if is_idle && self.can_do_without(label, now) {
            self.send_control(label, &Control::Bye, now);
            self.let_go(label, "no longer needed", now);
        }
    }

    /// Ends a link because a host wants it so, and not because it is lost.
    pub(super) fn let_go(&mut self, label: HostLabel, reason: &'static str, now: Time) {
        if let Some(peer) = self.peers.get_mut(&label).filter(|peer| peer.link.is_some()) {
            peer.let_go = now;
        }
        self.link_down(label, reason, now);
    }

    /// Whether this host, for its part, needs no direct link with a peer.
    fn can_do_without(&self, label: HostLabel, now: Time) -> bool {
        self.peers.len() > SMALL_MESH && !self.wants_link(label, now)
    }

    /// Whether what comes straight from a peer that there is no link with may have been sent over the last one.
    fn is_straggler(&self, label: HostLabel, now: Time) -> bool {
        let was_let_go = |peer: &Peer| peer.let_go != Time::ZERO && now.since(peer.let_go) < STRAGGLING;
        self.peers.get(&label).is_some_and(was_let_go) && self.can_do_without(label, now)
    }

    /// Finds the largest datagram a link takes: pings of several sizes, the largest answered counts.
    fn tend_link_size(&mut self, label: HostLabel, now: Time) {
        let underlay = self.underlay_mtu;
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let (Some(link), Some(index)) = (&mut peer.link, peer.current) else { return };
        let top = underlay.saturating_sub(if link.remote.is_ipv4() { 28 } else { 48 }).max(MIN_DATAGRAM);
        if link.max_datagram > MIN_DATAGRAM && now.since(link.size_confirmed) > SIZE_DISTRUST {
            // Large datagrams vanish while small ones pass: start over from what every path takes.
            link.max_datagram = MIN_DATAGRAM;
            link.size_confirmed = now;
            link.last_size_probe = Time::ZERO;
            self.routes_stale = true;
            return;
        }
        let eager = link.max_datagram < top && now.since(link.since) < Duration::from_secs(3);
        let interval = if eager { Duration::from_millis(500) } else { SIZE_PROBE };
        if link.last_size_probe != Time::ZERO && now.since(link.last_size_probe) < interval {
            return;
        }
        link.last_size_probe = now;
        let (remote, known) = (link.remote, link.max_datagram);
        let steps = [known, top, 8952, 1472, 1452, 1420, 1372, 1320];
        let sizes = steps.into_iter().enumerate().filter(|(i, size)| *i == 0 || (*size <= top && *size > known));
        for (_, size) in sizes {
            self.ping(label, index, remote, size, now);
        }
    }

    /// Tells the others what the link costs, when that has changed enough.
    fn announce_link(&mut self, label: HostLabel) {
        let own = self.own;
        let Some(link) = self.peers.get_mut(&label).and_then(|peer| peer.link.as_mut()) else { return };
        let Some(srtt) = link.srtt else { return };
        let cost = announced_cost(srtt, link.loss, link.announced.map(|(cost, _)| cost));
        let max_datagram = link.max_datagram.min(usize::from(u16::MAX)) as u16;
        let is_news = link.announced != Some((cost, max_datagram));
        let may_wait = link.announced.is_some_and(|(_, announced)| announced == max_datagram);
        if !is_news || (may_wait && !self.announces_costs) {
            return;
        }
        link.announced = Some((cost, max_datagram));
        let record = LinkRecord { cost, max_datagram };
        self.graph.set(own, label, record);
        self.routes_stale = true;
        // A link record is a few bytes; the number of links is bounded by the number of peers.
        let _ = self.store.put(&Key::Link(label).encode(), encode(&record));
    }

    /// Whether this host should try to have a direct link with a peer.
    fn wants_link(&self, label: HostLabel, now: Time) -> bool {
        let Some(peer) = self.peers.get(&label).filter(|_| !self.is_forgotten(label)) else { return false };
        let has_traffic = peer.last_traffic != Time::ZERO && now.since(peer.last_traffic) < ON_DEMAND;
        if self.discovery && (self.peers.len() <= SMALL_MESH || has_traffic || self.fingers.contains(&label)) {
            return true;
        }
        peer.candidates.keys().any(|address| self.target_addresses.contains_key(address))
    }

    /// In a large mesh each host keeps links at distances 1, 2, 4, ... around the ring of labels: log N
    /// links that connect everything (after Chord, SIGCOMM 2001).
    fn refresh_fingers(&mut self) {
        let ring: Vec<HostLabel> = self.hosts.keys().copied().collect();
        let len = ring.len();
        let distances = || (0..usize::BITS).map(|bit| 1 << bit).take_while(|distance| *distance < len);
        let Ok(own) = ring.binary_search(&self.own) else { return };
        self.fingers = distances().map(|distance| ring[(own + distance) % len]).collect();
        self.finger_of = distances().map(|distance| ring[(own + len - distance) % len]).collect();
    }

    fn try_candidates(&mut self, label: HostLabel, tries: &mut usize, now: Time) {
        let jitter = self.rng.random();
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let current = peer.current;
        let mut due = Vec::new();
        for (address, candidate) in &mut peer.candidates {
            if *tries > 0 && candidate.retry.is_due(now) && !self.own_addresses.contains(address) {
                *tries -= 1;
                let failures = candidate.retry.failures;
                let longest = if candidate.is_likely { LONGEST_LIKELY } else { LONGEST_UNLIKELY };
                candidate.retry.on_try(now, longest, jitter);
                due.push((*address, failures, candidate.is_likely));
            }
        }
        for (address, failures, is_likely) in due {
            match current {
                // With a session a ping is enough; but the peer may have lost its side of it.
                Some(index) => {
                    self.ping(label, index, address, 0, now);
                    if failures % 3 == 2 || (is_likely && failures > 0) {
                        self.start_handshake(Some(label), Some(address), failures, now);
                    }
                }
                None => self.start_handshake(Some(label), Some(address), failures, now),
            }
        }
    }

    /// Addresses the user named that have not answered yet.
    pub(super) fn tend_targets(&mut self, now: Time) {
        let mut due = Vec::new();
        for (address, target) in &mut self.target_addresses {
            let is_met = target.peer.is_some_and(|peer| self.peers.contains_key(&peer));
            let is_tried = self.handshakes.is_trying(None, Some(*address));
            if !is_met && !is_tried && target.retry.is_due(now) && !self.own_addresses.contains(address) {
                due.push((*address, target.retry.failures));
                target.retry.on_try(now, LONGEST_LIKELY, 0.5);
            }
        }
        for (address, failures) in due {
            if failures == SILENT {
                self.note_silence(address);
            }
            self.start_handshake(None, Some(address), failures, now);
        }
    }

    /// Reports a silent target once, and not for each of its addresses.
    fn note_silence(&mut self, address: SocketAddr) {
        let silent = self.targets.iter().filter(|(_, addresses)| {
            addresses.first() == Some(&address) && self.target_state(addresses) == TargetState::Silent
        });
        let silent: Vec<String> = silent.map(|(name, _)| name.clone()).collect();
        silent.into_iter().for_each(|name| self.event(Event::TargetSilent { name, address }));
    }

    /// How a target with these addresses stands.
    pub(super) fn target_state(&self, addresses: &[SocketAddr]) -> TargetState {
        let mut tried = addresses.iter().filter_map(|address| self.target_addresses.get(address));
        if addresses.iter().any(|address| self.own_addresses.contains(address)) {
            TargetState::Own
        } else if tried.clone().any(|target| target.peer.is_some()) {
            TargetState::Answered
        } else if tried.any(|target| target.retry.failures > SILENT) {
            TargetState::Silent
        } else {
            TargetState::Trying
        }
    }

    /// A host answered from an address: if the user named that address, it is whom the user meant.
    pub(super) fn claim_target(&mut self, address: SocketAddr, label: HostLabel) {
        if let Some(target) = self.target_addresses.get_mut(&address) {
            target.peer = Some(label);
            target.retry = Backoff::default();
        }
    }

    /// Asks a peer, straight at an address, whether it hears this; `size` pads the datagram.
    pub(super) fn ping(&mut self, label: HostLabel, index: u32, to: SocketAddr, size: usize, now: Time) {
        let id = self.rng.next_u32();
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let is_probe_of_size = size > 0;
        let lane = if self.marks && !is_probe_of_size { peer.marks.next_lane() } else { Lane::Urgent };
        peer.add_ping(id, PingSent { to, at: now, is_probe_of_size, lane });
        let text = Control::Ping { id, lane }.encode(size.saturating_sub(envelope::LEN + session::OVERHEAD));
        self.send_text_at(label, index, to, (lane, &text), now);
    }

    pub(super) fn on_ping(
        &mut self,
        label: HostLabel,
        index: u32,
        from: SocketAddr,
        (id, lane): (u32, Lane),
        size: usize,
        now: Time,
    ) {
        // One that the user wants no link with finds none.
        if self.is_forgotten(label) {
            return;
        }
        let pong = Control::Pong { id, seen: from, size: size.min(usize::from(u16::MAX)) as u16 };
        self.send_text_at(label, index, from, (lane, &pong.encode(0)), now);
        if self.is_straggler(label, now) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let is_new = peer.link.is_none();
        let asked_lately = peer.pings.values().any(|ping| ping.to == from && now.since(ping.at) < QUIET);
        if is_new {
            peer.add_candidate(from, true);
            if !asked_lately {
                self.ping(label, index, from, 0, now);
            }
        }
    }

    pub(super) fn on_pong(
        &mut self,
        label: HostLabel,
        from: SocketAddr,
        id: u32,
        seen: SocketAddr,
        size: u16,
        now: Time,
    ) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let Some(ping) = peer.pings.remove(&id) else { return };
        let rtt = now.since(ping.at);
        if self.marks && peer.marks.on_answer(ping.lane) {
            self.do_without_marks(label, now);
        }
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if peer.link.is_none() {
            peer.link = Some(Link::new(from, now));
            self.linked.insert(label);
            self.link_up(label, from, now);
        }
        let Some(link) = self.peers.get_mut(&label).and_then(|peer| peer.link.as_mut()) else { return };
        if link.remote != from {
            return;
        }
        link.last_from_remote = now;
        if ping.is_probe_of_size {
            let size = usize::from(size);
            if size >= link.max_datagram {
                link.size_confirmed = now;
            }
            if size > link.max_datagram {
                link.max_datagram = size;
                self.routes_stale = true;
            }
        } else {
            link.on_rtt(rtt);
        }
        self.announce_link(label);
        self.note_seen_address(label, seen, now);
    }

    /// The network to a peer drops what is marked as urgent: this host marks nothing any more.
    fn do_without_marks(&mut self, label: HostLabel, now: Time) {
        self.marks = false;
        // Sizes were probed by marked datagrams.
        for link in self.peers.values_mut().filter_map(|peer| peer.link.as_mut()) {
            (link.since, link.last_size_probe) = (now, Time::ZERO);
        }
        if let Some(id) = self.peer_key(label) {
            self.event(Event::MarksLost { peer: id });
        }
    }

    fn link_up(&mut self, label: HostLabel, remote: SocketAddr, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let id = peer.id;
        peer.add_candidate(remote, true);
        if let Some(candidate) = peer.candidates.get_mut(&remote) {
            candidate.retry.reset(now);
        }
        peer.retry.reset(now);
        self.claim_target(remote, label);
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let likely: Vec<SocketAddr> =
            peer.candidates.iter().filter(|(_, candidate)| candidate.is_likely).map(|(address, _)| *address).collect();
        self.persist(&[super::PERSISTED_PEER, &id.0].concat(), Some(encode(&likely)));
        self.event(Event::LinkUp { peer: id, remote });
        self.refresh_outbound(label);
        self.membership.announce(label, now);
        self.greet(label, now);
    }

    /// Ends a link. Routes over it take their precomputed alternative at once; the rest is computed anew.
    pub(super) fn link_down(&mut self, label: HostLabel, reason: &'static str, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let Some(link) = peer.link.take() else { return };
        self.linked.remove(&label);
        peer.pings.clear();
        if let Some(candidate) = peer.candidates.get_mut(&link.remote) {
            candidate.retry.reset(now);
        }
        peer.retry.reset(now);
        let id = peer.id;
        self.graph.unset(self.own, label);
        self.seen_by.remove(&label);
        self.store.delete(&Key::Link(label).encode());
        self.fail_over(label);
        self.event(Event::LinkDown { peer: id, reason });
    }

    /// An authenticated packet came straight from a peer.
    pub(super) fn on_heard_from(&mut self, label: HostLabel, index: u32, from: SocketAddr, now: Time) {
        let own = self.own;
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let (id, is_current) = (peer.id, peer.current == Some(index));
        let Some(link) = &mut peer.link else {
            let asked = peer.pings.values().any(|ping| ping.to == from);
            if is_current && !asked && !self.is_straggler(label, now) {
                self.ping(label, index, from, 0, now);
            }
            return;
        };
        if link.remote == from {
            link.last_from_remote = now;
            return;
        }
        // Of two hosts with several paths between them the one with the lower label chooses, and leaves an address only once
        // that is silent; the other follows. What was under way when either moved is no reason to move again.
        let (settled, silent) = if own < label { (MOVE_AFTER, MOVE_AFTER) } else { (FOLLOW_AFTER, Duration::ZERO) };
        let is_settled = now.since(link.moved) >= settled && now.since(link.last_from_remote) >= silent;
        if !is_settled || !is_current {
            return;
        }
        link.remote = from;
        link.moved = now;
        link.last_from_remote = now;
        link.max_datagram = MIN_DATAGRAM;
        link.size_confirmed = now;
        link.last_size_probe = Time::ZERO;
        let is_said = link.said_moved != Time::ZERO && now.since(link.said_moved) < SAY_MOVED;
        if !is_said {
            link.said_moved = now;
        }
        peer.add_candidate(from, true);
        self.routes_stale = true;
        if !is_said {
            self.event(Event::LinkMoved { peer: id, remote: from });
        }
        self.ping(label, index, from, 0, now);
    }

    /// A peer sees this host at an address: it may be the way in through a NAT. Only what most peers see is told, and
    /// not every change of it: a NAT may show each peer another address, and a peer may say anything.
    fn note_seen_address(&mut self, by: HostLabel, seen: SocketAddr, now: Time) {
        if self.own_addresses.contains(&seen) {
            self.seen_by.remove(&by);
        } else if self.seen_by.insert(by, seen) == Some(seen) {
            return;
        }
        if !self.seen_addresses.is_empty() && now < self.seen_after {
            return;
        }
        let mut seen: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        self.seen_by.values().for_each(|address| *seen.entry(*address).or_default() += 1);
        let mut seen: Vec<(SocketAddr, usize)> = seen.into_iter().collect();
        seen.sort_by_key(|(address, count)| (std::cmp::Reverse(*count), *address));
        let seen: Vec<SocketAddr> = seen.into_iter().take(MAX_SEEN_ADDRESSES).map(|(address, _)| address).collect();
        if seen != self.seen_addresses {
            self.seen_addresses = seen;
            self.seen_after = now + SEEN_INTERVAL;
            self.write_host_record();
        }
    }
}

/// Notes whether frames went to the peer lately: a path worth shortening, a session worth keeping.
fn note_traffic(peer: &mut Peer, now: Time) {
    let sent = peer.meter.sent.bytes.load(std::sync::atomic::Ordering::Relaxed);
    if sent != peer.sent_seen {
        peer.sent_seen = sent;
        peer.last_traffic = now;
    }
}
