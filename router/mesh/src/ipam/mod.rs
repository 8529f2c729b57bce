//! Addresses for containers, without a server: never one twice in a ring, under any failure.
//!
//! 1. [`ring`]: the range of a ring is cut into windows; its state changes by decided changes only.
//! 2. [`paxos`]: the voters of a state decide the next change; a majority is enough.
//! 3. Here: a host opens a window (a round trip to the voters), then hands out of it alone. Only the host that has
//!    a window open hands out of it, and it remembers what it handed out before it says so. So no address is
//!    held twice; and as nothing but open windows ever belongs to a host, the rest of the range never has to be
//!    taken back from a host that is gone.
//!
//! A sans-I/O state machine: time and messages in, [`Output`]s out. What is sent or answered must wait until what was
//! to be persisted before it is on disk.

mod allocate;
mod api;
mod change;
mod decide;
mod hosts;
mod learn;
mod local;
pub mod message;
mod outbox;
pub mod paxos;
mod range;
pub mod ring;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use weft_crypto::{HostLabel, Time};

pub use api::*;
use hosts::Hosts;
use local::{Download, Kept, Leaving, Local, Pending, Running};
use outbox::Outbox;

use crate::codec::{decode, encode};
use crate::stored::Stored;
use message::{Body, Message, PART};
use paxos::{Acceptor, Ballot, Proposal, Step};
use ring::{Change, MAX_TOGETHER, Range, Ring, RingId, Start, make_odd};

/// What an address is allocated for: the same id gets the same address again.
pub type AllocationId = [u8; 16];
/// Matches a reply to its request.
pub type Ticket = u64;

/// How long a request may wait for what it takes.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// How long a released address rests before it is handed out again.
pub const QUARANTINE: Duration = Duration::from_secs(10);
/// How long answers to a proposal are awaited before it is tried again.
const RETRY: Duration = Duration::from_millis(400);
/// How often a state is asked for, and a holder asked for an address.
const ASK_INTERVAL: Duration = Duration::from_millis(300);
/// How often it is looked whether what is waited for can go on.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often another is asked to see to a change, and how long that is left to it.
const WISH_AGAIN: Duration = Duration::from_millis(150);
const WISH_PATIENCE: Duration = Duration::from_millis(1200);
/// How often voters and spare windows are looked after.
const UPKEEP: Duration = Duration::from_secs(2);
/// How long a window may be empty before it is given back, if its holder has another one.
const EMPTY_FOR: Duration = Duration::from_secs(120);
/// How long a host whose machine started anew listens for the others before it takes its own word for what it may hand out.
const LISTEN: Duration = Duration::from_secs(3);
/// Changes that a host alone decides in one go.
const STEPS: usize = 64;
/// Rings known, requests waiting, and parts of one state, at most.
const MAX_RINGS: usize = 256;
const MAX_PENDING: usize = 1024;
const MAX_PARTS: u16 = 2048;

/// The addresses of this host, and its part in the rings.
pub struct Ipam {
    hosts: Hosts,
    start: Start,
    rng: ChaCha20Rng,
    locals: BTreeMap<Range, Local>,
    /// Ranges whose state changed since it was looked what can go on.
    unsettled: BTreeSet<Range>,
    outputs: Outbox,
    next_upkeep: Time,
}

impl Ipam {
    /// Picks up from what was persisted.
    pub fn new(setup: Setup, kept: &BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        let mut rng = ChaCha20Rng::from_seed(setup.entropy);
        let last: u64 = kept.get(&Stored::Starts.encode()).and_then(|value| decode(value)).unwrap_or(0);
        let start = Start { number: last.saturating_add(1), nonce: rng.next_u64() };
        let hosts = Hosts {
            own: setup.own,
            started: setup.now,
            grace: setup.grace,
            founds_alone: setup.founds_alone,
            named: Vec::new(),
            reachable: BTreeSet::new(),
            given_up: BTreeSet::new(),
            last_seen: BTreeMap::new(),
        };
        let mut ipam = Ipam {
            hosts,
            start,
            rng,
            locals: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            outputs: Outbox::default(),
            next_upkeep: Time::ZERO,
        };
        ipam.outputs.persist(&Stored::Starts, Some(encode(&start.number)));
        ipam.restore(kept, setup.continues);
        ipam
    }

    fn restore(&mut self, kept: &BTreeMap<Vec<u8>, Vec<u8>>, continues: bool) {
        for (key, value) in kept.iter().filter_map(|(key, value)| Some((Stored::parse(key)?, value))) {
            match key {
                Stored::Ring(range) => {
                    if let Some(Kept { ring, acceptor, leaving, is_confirmed }) = decode(value) {
                        let local = self.locals.entry(range).or_default();
                        local.ring = ring.filter(|ring| ring.range == range && ring.is_sound());
                        (local.votes.acceptor, local.leaving) = (acceptor, leaving);
                        // A start that was not known to the ring yet is not known by going on, either.
                        local.is_confirmed = continues && is_confirmed;
                    }
                }
                Stored::Address(range, address) => {
                    if let Some(id) = decode::<AllocationId>(value) {
                        let local = self.locals.entry(range).or_default();
                        local.leases.held.insert(address, id);
                        local.leases.by_id.insert(id, address);
                    }
                }
                Stored::Lending(range, address) => {
                    if let Some(lent) = decode(value) {
                        self.locals.entry(range).or_default().leases.lending.insert(address, lent);
                    }
                }
                // Keys of other components.
                _ => {}
            }
        }
        let ranges: Vec<Range> = self.locals.keys().copied().collect();
        for range in ranges {
            if let Some((local, outputs)) = self.at(range) {
                local.persist(range, outputs);
            }
            self.check_rights(range);
            let own = self.hosts.own;
            if let Some((local, outputs)) = self.at(range) {
                local.announce(range, own, outputs);
            }
        }
    }

    /// Asks for an address; an [`Output::Reply`] follows within [`PATIENCE`].
    pub fn allocate(&mut self, ticket: Ticket, request: Request, now: Time) {
        let Request { range, id, want, within } = request;
        if let Some(address) = want.filter(|address| !range.hands_out(*address)) {
            return self.outputs.reply(ticket, Err(Error::Reserved(address)));
        }
        let Some(local) = room(&mut self.locals, range).filter(|local| local.pending.len() < MAX_PENDING) else {
            return self.outputs.reply(ticket, Err(Error::Busy));
        };
        if let Some(address) = want.filter(|address| local.leases.set_aside.contains(address)) {
            return self.outputs.reply(ticket, Err(Error::Reserved(address)));
        }
        let until = now + PATIENCE;
        let refused = BTreeSet::new();
        local.pending.push(Pending { ticket: Some(ticket), id, want, within, until, asked: Time::ZERO, refused });
        self.advance(range, now);
    }

    /// Addresses that this host does not hand out, because a network uses them for something else.
    pub fn set_aside(&mut self, range: Range, addresses: BTreeSet<Ipv4Addr>) {
        if let Some(local) = room(&mut self.locals, range) {
            local.leases.set_aside = addresses;
        }
    }

    /// The parts of a range that networks of this host have for themselves: nothing of them is handed out of the range's own
    /// ring. The first call says which ones this host had before it started. An [`Output::Done`] follows within [`PATIENCE`]; on an
    /// error those that the host had stay its.
    ///
    /// Parts that an earlier call named and this one does not are left; those that only the ring knows of are left once
    /// `is_complete`: a host that lost its store learns of its networks one by one.
    pub fn set_parts(&mut self, ticket: Ticket, range: Range, parts: BTreeSet<Range>, is_complete: bool, now: Time) {
        let own = self.hosts.own;
        let Some(local) = room(&mut self.locals, range) else {
            return self.outputs.push(Output::Done(ticket, Err(Error::Busy)));
        };
        let before = local.parts.wanted.replace(parts.clone()).unwrap_or_else(|| parts.clone());
        local.parts.knows_parts |= is_complete;
        local.parts.taking.insert(ticket, (parts.difference(&before).copied().collect(), now + PATIENCE));
        let is_had = |part: &&Range| local.ring.as_ref().is_some_and(|ring| ring.has_part(own, **part));
        let left: Vec<Range> = before.difference(&parts).filter(is_had).copied().collect();
        for part in left {
            if let Some((local, outputs)) = self.at(range) {
                local.leave(range, Leaving::Part(part), outputs);
            }
        }
        self.look_at_parts(range);
        self.advance(range, now);
    }

    /// Lets go of what was allocated for an id; it rests a while.
    pub fn release(&mut self, range: Range, id: AllocationId, now: Time) {
        let Some(local) = self.locals.get_mut(&range) else { return };
        // A request that is still waiting is not wanted any more.
        local.pending.retain(|pending| pending.id != id || pending.ticket.is_none());
        let Some(address) = local.leases.by_id.remove(&id) else { return };
        local.leases.held.remove(&address);
        local.leases.claims.remove(&address);
        local.pending.retain(|pending| pending.id != id);
        local.leases.resting.insert(address, now + QUARANTINE);
        self.outputs.persist(&Stored::Address(range, address), None);
        self.advance(range, now);
    }

    /// The ring of a range, as far as this host knows it.
    pub fn ring(&self, range: Range) -> Option<&Ring> {
        self.locals.get(&range)?.ring.as_ref()
    }

    /// What this host has handed out of a range, and whether the right to it still has to be won anew.
    pub fn allocations(&self, range: Range) -> impl Iterator<Item = (Ipv4Addr, AllocationId, bool)> {
        let local = self.locals.get(&range).into_iter();
        local.flat_map(|local| {
            local.leases.held.iter().map(|(address, id)| (*address, *id, local.leases.claims.contains(address)))
        })
    }

    /// Takes back what a host had that is off for good; an [`Output::Done`] follows within [`PATIENCE`].
    pub fn give_up(&mut self, ticket: Ticket, host: HostLabel, now: Time) {
        self.hosts.given_up.insert(host);
        let concerned: Vec<Range> = (self.locals.iter())
            .filter(|(_, local)| local.ring.as_ref().is_some_and(|ring| ring.mentions(host)))
            .map(|(range, _)| *range)
            .collect();
        if concerned.is_empty() {
            return self.outputs.push(Output::Done(ticket, Ok(())));
        }
        for range in concerned {
            if let Some(local) = self.locals.get_mut(&range) {
                local.give_up.insert(ticket, (host, now + PATIENCE));
            }
            self.advance(range, now);
        }
    }

    /// The peers the user named, and the hosts that can be reached now.
    pub fn set_hosts(&mut self, named: Vec<Named>, reachable: impl Iterator<Item = HostLabel> + Clone, now: Time) {
        self.hosts.named = named;
        if reachable.clone().eq(self.hosts.reachable.iter().copied()) {
            return;
        }
        let before = std::mem::replace(&mut self.hosts.reachable, reachable.collect());
        self.hosts.given_up.retain(|host| !self.hosts.reachable.contains(host));
        for host in before.difference(&self.hosts.reachable) {
            self.hosts.last_seen.insert(*host, now);
        }
    }

    /// A host announced, by gossip, how far a ring has come; or takes it back.
    pub fn hear(&mut self, from: HostLabel, range: Range, announcement: Option<Announcement>, now: Time) {
        let is_own = from == self.hosts.own;
        let Some(local) = room(&mut self.locals, range).filter(|_| !is_own) else { return };
        match announcement {
            Some(announcement) => drop(local.heard.insert(from, announcement)),
            None => drop(local.heard.remove(&from)),
        }
        self.advance(range, now);
    }

    /// A message from a host, proven to be its.
    pub fn receive(&mut self, from: HostLabel, bytes: &[u8], now: Time) {
        let Some(Message { range, ring, n, body }) = Message::decode(bytes) else { return };
        if room(&mut self.locals, range).is_none() {
            return;
        }
        let Some((local, outputs)) = self.at(range) else { return };
        let state = local.state();
        let is_same = state == (ring, n);
        let is_ahead = ring != RingId::default() && (state.0 == RingId::default() || (state.0 == ring && n > state.1));
        match body {
            Body::Prepare(ballot) if is_same => local.on_prepare(from, range, ballot, outputs),
            Body::Accept(ballot, change) if is_same => {
                local.on_accept(from, range, ballot, change, outputs);
            }
            Body::Prepare(_) | Body::Accept(..) => {
                outputs.send(from, range, state, Body::Refuse(Ballot::default()));
                if is_ahead {
                    local.pull(from, range, now, outputs);
                }
            }
            Body::Promise(ballot, accepted) if is_same => {
                let step = local.proposal(ballot).map(|proposal| proposal.on_promise(from, accepted));
                self.on_step(range, step.unwrap_or(Step::Wait), now);
            }
            Body::Vote(ballot) if is_same => {
                let step = local.proposal(ballot).map(|proposal| proposal.on_vote(from));
                self.on_step(range, step.unwrap_or(Step::Wait), now);
            }
            Body::Refuse(promised) if is_same => {
                let is_outbid = local.votes.running.as_ref().is_some_and(|running| running.proposal.ballot < promised);
                if is_outbid {
                    let wait = decide::backoff(&mut self.rng);
                    if let Some((local, _)) = self.at(range) {
                        local.back_off(promised.round, wait, now);
                    }
                }
            }
            Body::Decided(change) if is_same => self.decide(range, &change, now),
            Body::Decided(_) | Body::Refuse(_) if is_ahead => local.pull(from, range, now, outputs),
            Body::Refuse(_) if ring != RingId::default() => {
                // A host that refuses may have joined another ring.
                let heard = Announcement { ring, n, windows: 0, succeeds: Vec::new(), superseded_by: None };
                local.heard.insert(from, heard);
                self.advance(range, now);
            }
            Body::Wish(change) if is_same => self.on_wish(from, range, change, now),
            Body::Wish(_) => outputs.send(from, range, state, Body::Refuse(Ballot::default())),
            Body::Pull => local.on_pull(from, range, (ring, n), outputs),
            Body::State { part, parts, bytes } => self.on_state(from, range, (ring, n), part, parts, bytes, now),
            Body::Borrow { id, want, within } if ring == state.0 => {
                self.on_borrow(from, Request { range, id, want, within }, now);
            }
            Body::NotLent(id) if ring == state.0 => self.on_not_lent(from, range, id, now),
            _ => {}
        }
        if self.unsettled.contains(&range) {
            self.advance(range, now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let ranges: Vec<Range> = self.locals.keys().copied().collect();
        let upkeep = now >= self.next_upkeep;
        if upkeep {
            self.next_upkeep = now + UPKEEP;
        }
        for range in ranges {
            self.expire(range, now);
            if upkeep {
                self.keep_up(range, now);
            }
            self.advance(range, now);
            if let Some(local) = self.locals.get_mut(&range) {
                local.looked = now;
            }
        }
    }

    /// When [`Ipam::handle_timeout`] is next to be called.
    pub fn next_timeout(&self) -> Option<Time> {
        let of_local = |local: &Local| {
            let proposal = local.votes.running.as_ref().map(|running| running.started + RETRY);
            let over = local.pending.iter().map(|pending| pending.until);
            let over = over.chain(local.give_up.values().map(|(_, until)| *until));
            let over = over.chain(local.parts.taking.values().map(|(_, until)| *until)).min();
            let retry = local.is_waiting().then(|| local.votes.retry_after.max(local.looked + LOOK_AGAIN));
            [proposal, over, retry].into_iter().flatten().min()
        };
        let due = self.locals.values().filter_map(of_local).min();
        let upkeep = (!self.locals.is_empty()).then_some(self.next_upkeep);
        [due, upkeep].into_iter().flatten().min()
    }

    /// Returns the outputs in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop()
    }

    /// How the rings stand.
    pub fn status(&self) -> Vec<RingStatus> {
        let of_local = |(range, local): (&Range, &Local)| {
            let ring = local.ring.as_ref();
            let size = range.window_size();
            let count = |is_counted: &dyn Fn(HostLabel) -> bool| {
                ring.map_or(0, |ring| {
                    ring.windows.values().filter(|held| is_counted(held.holder)).count() as u32 * size
                })
            };
            let is_waiting = !local.pending.is_empty() || !local.give_up.is_empty() || !local.parts.taking.is_empty();
            let waiting_for = if is_waiting { self.hosts.waiting_for(local) } else { Vec::new() };
            RingStatus {
                range: *range,
                is_ready: ring.is_some() && waiting_for.is_empty(),
                waiting_for,
                owned: count(&|host| host == self.hosts.own),
                used: local.leases.held.len() as u32,
                unreachable: count(&|host| host != self.hosts.own && !self.hosts.reachable.contains(&host)),
                unopened: range.windows() * size - count(&|_| true),
                voters: ring.map(|ring| ring.voters.clone()).unwrap_or_default(),
                contested: ring.map(|ring| local.contested(ring).collect()).unwrap_or_default(),
            }
        };
        self.locals.iter().map(of_local).collect()
    }

    /// What is known of a range, from now on if there is room.
    /// What is known of a range, and where to put what comes of it.
    fn at(&mut self, range: Range) -> Option<(&mut Local, &mut Outbox)> {
        self.locals.get_mut(&range).map(|local| (local, &mut self.outputs))
    }

    fn send(&mut self, to: HostLabel, range: Range, body: Body) {
        let (ring, n) = self.locals.get(&range).map(Local::state).unwrap_or_default();
        self.outputs.push(Output::Send(to, Message { range, ring, n, body }.encode()));
    }
}

/// Returns what is known of a range, or room for it; `None` if there are too many.
fn room(locals: &mut BTreeMap<Range, Local>, range: Range) -> Option<&mut Local> {
    let has_room = locals.len() < MAX_RINGS || locals.contains_key(&range);
    has_room.then(|| locals.entry(range).or_default())
}
