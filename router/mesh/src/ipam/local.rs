//! What a host knows and does about one range.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_crypto::{HostLabel, Time};

use super::message::Body;
use super::outbox::Outbox;
use super::paxos::{Acceptor, Ballot, Proposal};
use super::ring::{Change, Range, Ring, RingId};
use super::{ASK_INTERVAL, AllocationId, Announcement, MAX_TOGETHER, Output, PART, Ticket};
use crate::codec::encode;
use crate::stored::Stored;

/// What this host knows and does about one range.
#[derive(Default)]
pub(super) struct Local {
    pub(super) ring: Option<Ring>,
    pub(super) votes: Votes,
    pub(super) leases: Leases,
    pub(super) parts: Parts,
    /// When it was last looked what is waited for.
    pub(super) looked: Time,
    /// This run is known to the ring, or remembers all that the last one did.
    pub(super) is_confirmed: bool,
    /// The ring knows this host from a life of which it has forgotten what it voted for.
    pub(super) is_amnesiac: bool,
    /// A ring that most voters of this host's ring have joined.
    pub(super) deserted_for: Option<RingId>,
    /// Addresses, windows and parts that this host has asked to give back: whenever that is decided, they are not used
    /// again.
    pub(super) leaving: BTreeSet<Leaving>,
    pub(super) pending: Vec<Pending>,
    /// Others want a ring until then.
    pub(super) wanted_until: Time,
    pub(super) give_up: BTreeMap<Ticket, (HostLabel, Time)>,
    pub(super) heard: BTreeMap<HostLabel, Announcement>,
    pub(super) announced: Option<Announcement>,
    pub(super) download: Option<Download>,
    pub(super) asked_state: Time,
    pub(super) cursor: u32,
    pub(super) empty_since: BTreeMap<u32, Time>,
}

/// This host's part in deciding on the next change of a ring.
#[derive(Default)]
pub(super) struct Votes {
    pub(super) acceptor: Acceptor,
    pub(super) running: Option<Running>,
    pub(super) round: u32,
    pub(super) retry_after: Time,
    /// Since when, and when last, another was asked to see to a change in the present state.
    pub(super) wishing: Option<(Time, Time)>,
    /// Changes that others asked this host to see to.
    pub(super) wishes: BTreeMap<HostLabel, (Change, Time)>,
}

/// Addresses that this host has handed out, lent or may not use.
#[derive(Default)]
pub(super) struct Leases {
    pub(super) held: BTreeMap<Ipv4Addr, AllocationId>,
    pub(super) by_id: BTreeMap<AllocationId, Ipv4Addr>,
    /// Addresses that this host does not hand out.
    pub(super) set_aside: BTreeSet<Ipv4Addr>,
    /// Released addresses, until when they rest.
    pub(super) resting: BTreeMap<Ipv4Addr, Time>,
    /// Addresses promised to others, and from which state on they are free again if nothing came of it.
    pub(super) lending: BTreeMap<Ipv4Addr, (HostLabel, u64)>,
    /// Held addresses whose right has to be won anew.
    pub(super) claims: BTreeSet<Ipv4Addr>,
}

/// Parts of a range that are subnets of this host's networks.
#[derive(Default)]
pub(super) struct Parts {
    /// All of them, once this host was told.
    pub(super) wanted: Option<BTreeSet<Range>>,
    /// Parts that are waited for, until when.
    pub(super) taking: BTreeMap<Ticket, (BTreeSet<Range>, Time)>,
    /// Those wanted are all that this host's networks have: others that the ring has for this host are left.
    pub(super) knows_parts: bool,
}

pub(super) struct Running {
    pub(super) proposal: Proposal,
    pub(super) started: Time,
}

pub(super) struct Pending {
    pub(super) ticket: Option<Ticket>,
    pub(super) id: AllocationId,
    pub(super) want: Option<Ipv4Addr>,
    pub(super) within: Option<Range>,
    pub(super) until: Time,
    pub(super) asked: Time,
    pub(super) refused: BTreeSet<HostLabel>,
}

pub(super) struct Download {
    pub(super) from: HostLabel,
    pub(super) ring: RingId,
    pub(super) n: u64,
    pub(super) parts: Vec<Option<Vec<u8>>>,
}

/// What a host gives back: a lent address, a window, or a part of the range that a network had.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum Leaving {
    Address(Ipv4Addr),
    Window(u32),
    Part(Range),
}

/// A ring as it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) ring: Option<Ring>,
    pub(super) acceptor: Acceptor,
    pub(super) leaving: BTreeSet<Leaving>,
    pub(super) is_confirmed: bool,
}

impl Local {
    pub(super) fn state(&self) -> (RingId, u64) {
        self.ring.as_ref().map(|ring| (ring.id, ring.n)).unwrap_or_default()
    }

    /// The proposal under way, if it is the one with this ballot.
    pub(super) fn proposal(&mut self, ballot: Ballot) -> Option<&mut Proposal> {
        self.votes.running.as_mut().map(|running| &mut running.proposal).filter(|proposal| proposal.ballot == ballot)
    }

    /// A voter that forgot what it voted for does not vote again in the state it finds, unless it is the only one.
    pub(super) fn may_vote(&self) -> bool {
        !self.is_amnesiac || self.ring.as_ref().is_some_and(|ring| ring.voters.len() == 1)
    }

    /// Whether there is something that others have to do, which may have to be asked for again.
    pub(super) fn is_waiting(&self) -> bool {
        let is_moving = self.ring.as_ref().is_some_and(|ring| ring.superseded_by.is_some());
        is_moving
            || !self.votes.wishes.is_empty()
            || !self.pending.is_empty()
            || !self.give_up.is_empty()
            || !self.parts.taking.is_empty()
            || !self.leases.lending.is_empty()
            || !self.leaving.is_empty()
    }

    /// Parts that are to be a network's and cannot be.
    pub(super) fn contested<'a>(&'a self, ring: &'a Ring) -> impl Iterator<Item = Range> + 'a {
        self.parts.wanted.iter().flatten().filter(|part| !ring.has_room_for(**part)).copied()
    }

    /// Whether a state of another host is one to go on from.
    pub(super) fn wants_state(&self, (id, n): (RingId, u64)) -> bool {
        match &self.ring {
            None => true,
            Some(ring) if ring.id == id => n > ring.n,
            Some(ring) => ring.superseded_by == Some(id) || self.deserted_for == Some(id),
        }
    }

    pub(super) fn persist(&self, range: Range, outputs: &mut Outbox) {
        let (ring, acceptor, leaving) = (self.ring.clone(), self.votes.acceptor.clone(), self.leaving.clone());
        let kept = Kept { ring, acceptor, leaving, is_confirmed: self.is_confirmed };
        outputs.persist(&Stored::Ring(range), Some(encode(&kept)));
    }

    /// Notes, before it is asked for, that something is given back.
    pub(super) fn leave(&mut self, range: Range, what: Leaving, outputs: &mut Outbox) {
        if self.leaving.insert(what) {
            self.persist(range, outputs);
        }
    }

    pub(super) fn on_prepare(&mut self, from: HostLabel, range: Range, ballot: Ballot, outputs: &mut Outbox) {
        if !self.may_vote() {
            return;
        }
        let before = self.votes.acceptor.promised;
        let answer = match self.votes.acceptor.prepare(ballot) {
            Ok(accepted) => Body::Promise(ballot, accepted),
            Err(promised) => Body::Refuse(promised),
        };
        if self.votes.acceptor.promised != before {
            self.persist(range, outputs);
        }
        outputs.send(from, range, self.state(), answer);
    }

    pub(super) fn on_accept(
        &mut self,
        from: HostLabel,
        range: Range,
        ballot: Ballot,
        change: Change,
        outputs: &mut Outbox,
    ) {
        let makes_sense = match &self.ring {
            Some(ring) => ring.after(&change).is_some(),
            None => Ring::found(range, &change).is_some(),
        };
        if !makes_sense || !self.may_vote() {
            return;
        }
        let answer = match self.votes.acceptor.accept(ballot, change) {
            Ok(()) => Body::Vote(ballot),
            Err(promised) => Body::Refuse(promised),
        };
        self.persist(range, outputs);
        outputs.send(from, range, self.state(), answer);
    }

    /// A change and what others wish for, as one.
    pub(super) fn together(&self, change: Change) -> Change {
        let Some(ring) = &self.ring else { return change };
        let makes_sense = |wish: &&Change| **wish != change && ring.after(wish).is_some();
        let wishes = self.votes.wishes.values().map(|(wish, _)| wish).filter(makes_sense);
        let wishes: Vec<Change> = wishes.take(MAX_TOGETHER - 1).cloned().collect();
        // Whose quorum differs stands alone.
        let is_alone = |change: &Change| matches!(change, Change::GiveUp(_));
        if wishes.is_empty() || is_alone(&change) || wishes.iter().any(is_alone) {
            return change;
        }
        Change::All(std::iter::once(change).chain(wishes).collect())
    }

    /// Gives way to another proposer: the next try is in a round above `round`, after `wait`.
    pub(super) fn back_off(&mut self, round: u32, wait: Duration, now: Time) {
        self.votes.round = self.votes.round.max(round);
        self.votes.running = None;
        self.votes.retry_after = now + wait;
    }

    /// Frees addresses promised to others once the state they were promised in has passed without a decision.
    pub(super) fn drop_dead_loans(&mut self, range: Range, outputs: &mut Outbox) {
        let n = self.state().1;
        let ring = self.ring.as_ref();
        self.leases.lending.retain(|address, (_, until)| {
            let is_lent = ring.is_some_and(|ring| ring.loans.contains_key(address));
            let is_dead = n > *until || is_lent;
            if is_dead {
                outputs.persist(&Stored::Lending(range, *address), None);
            }
            !is_dead
        });
    }

    /// Tells all hosts how far the ring has come, if that is news.
    pub(super) fn announce(&mut self, range: Range, own: HostLabel, outputs: &mut Outbox) {
        let Some(ring) = &self.ring else { return };
        // Voters speak for the ring, members for their part in it: a ring whose voters are gone is still seen. That others
        // were given up has to reach them from any host that knows.
        let speaks = ring.mentions(own) || self.announced.is_some() || !ring.succeeds.is_empty();
        if !speaks {
            return;
        }
        let announcement = Announcement {
            ring: ring.id,
            n: ring.n,
            windows: ring.windows.len() as u32,
            succeeds: ring.succeeds.clone(),
            superseded_by: ring.superseded_by,
        };
        if self.announced.as_ref() != Some(&announcement) {
            self.announced = Some(announcement.clone());
            outputs.push(Output::Announce(range, announcement));
        }
    }

    /// Asks a host for the state of a ring, not too often.
    pub(super) fn pull(&mut self, from: HostLabel, range: Range, now: Time, outputs: &mut Outbox) {
        if now.since(self.asked_state) < ASK_INTERVAL && self.asked_state != Time::ZERO {
            return;
        }
        self.asked_state = now;
        outputs.send(from, range, self.state(), Body::Pull);
    }

    /// Sends the ring's state to a host that is in another one.
    pub(super) fn on_pull(&self, from: HostLabel, range: Range, theirs: (RingId, u64), outputs: &mut Outbox) {
        let Some(ring) = &self.ring else { return };
        if (ring.id, ring.n) == theirs {
            return;
        }
        let bytes = encode(ring);
        let parts: Vec<Vec<u8>> = bytes.chunks(PART).map(<[u8]>::to_vec).collect();
        let count = parts.len() as u16;
        for (part, bytes) in (0..).zip(parts) {
            outputs.send(from, range, self.state(), Body::State { part, parts: count, bytes });
        }
    }

    /// The right to an address is lost for good.
    pub(super) fn fence(&mut self, range: Range, id: AllocationId, address: Ipv4Addr, outputs: &mut Outbox) {
        self.leases.claims.remove(&address);
        self.leases.held.remove(&address);
        self.leases.by_id.remove(&id);
        outputs.persist(&Stored::Address(range, address), None);
        outputs.push(Output::Fence(id, address));
    }
}
