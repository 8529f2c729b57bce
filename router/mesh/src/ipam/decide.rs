//! Deciding: proposals, votes, and what a decided change leads to.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha20Rng;
use weft_crypto::{HostLabel, Time};

use super::{
    Acceptor, Ballot, Body, Change, Error, Ipam, Leaving, Local, MAX_PENDING, Output, PATIENCE, Pending, Proposal,
    Range, Ring, Running, Step, Ticket, WISH_AGAIN, WISH_PATIENCE, encode,
};
use crate::stored::Stored;

impl Ipam {
    pub(super) fn on_step(&mut self, range: Range, step: Step, now: Time) {
        match step {
            Step::Wait => {}
            Step::Ask(change) => {
                let Some(running) = self.locals.get(&range).and_then(|local| local.votes.running.as_ref()) else {
                    return;
                };
                let (own, ballot, voters) = (self.hosts.own, running.proposal.ballot, running.proposal.voters.clone());
                for voter in voters.iter().copied().filter(|voter| *voter != own) {
                    self.send(voter, range, Body::Accept(ballot, change.clone()));
                }
                if voters.contains(&self.hosts.own) {
                    self.vote_for_own(range, ballot, change, now);
                }
            }
            Step::Decided(change) => {
                let told = self.locals.get(&range).map(|local| self.hosts.to_tell(local)).unwrap_or_default();
                for host in told {
                    self.send(host, range, Body::Decided(change.clone()));
                }
                self.decide(range, &change, now);
            }
        }
    }

    /// The own vote is written down like any other.
    pub(super) fn vote_for_own(&mut self, range: Range, ballot: Ballot, change: Change, now: Time) {
        let own = self.hosts.own;
        let Some(local) = self.locals.get_mut(&range).filter(|local| local.may_vote()) else { return };
        if let Err(promised) = local.votes.acceptor.accept(ballot, change) {
            return local.back_off(promised.round, backoff(&mut self.rng), now);
        }
        if let Some((local, outputs)) = self.at(range) {
            local.persist(range, outputs);
        }
        let running = self.locals.get_mut(&range).and_then(|local| local.votes.running.as_mut());
        let step = running.map(|running| running.proposal.on_vote(own));
        self.on_step(range, step.unwrap_or(Step::Wait), now);
    }

    pub(super) fn propose(&mut self, range: Range, change: Change, now: Time) {
        let own = self.hosts.own;
        let Some(local) = self.locals.get_mut(&range) else { return };
        if local.votes.running.is_some() || now < local.votes.retry_after {
            return;
        }
        let (voters, needed) = match &local.ring {
            Some(ring) => ring.quorum(&change),
            None => self.hosts.founding_quorum(),
        };
        let is_there = |voter: &&HostLabel| **voter == own || self.hosts.reachable.contains(voter);
        if voters.iter().filter(is_there).count() < needed {
            return;
        }
        let first = voters.iter().find(is_there).copied().unwrap_or(own);
        if first != own && self.wish(range, first, &change, now) {
            return;
        }
        let Some(local) = self.locals.get_mut(&range) else { return };
        let change = local.together(change);
        local.votes.round = local.votes.round.max(local.votes.acceptor.promised.round).saturating_add(1);
        let ballot = Ballot { round: local.votes.round, proposer: own };
        let proposal = Proposal::new(ballot, change.clone(), voters.clone(), needed);
        local.votes.running = Some(Running { proposal, started: now });
        if voters.is_empty() {
            // No voter is left to be asked: the operator who gave them up decided.
            return self.on_step(range, Step::Decided(change), now);
        }
        for voter in voters.iter().copied().filter(|voter| *voter != own) {
            self.send(voter, range, Body::Prepare(ballot));
        }
        if voters.contains(&own) && self.locals.get(&range).is_some_and(Local::may_vote) {
            let Some(local) = self.locals.get_mut(&range) else { return };
            let Ok(accepted) = local.votes.acceptor.prepare(ballot) else { return };
            let step = local.votes.running.as_mut().map(|running| running.proposal.on_promise(own, accepted));
            if let Some((local, outputs)) = self.at(range) {
                local.persist(range, outputs);
            }
            self.on_step(range, step.unwrap_or(Step::Wait), now);
        }
    }

    /// Leaves a change to the first voter that is there; false if it has had its chance.
    pub(super) fn wish(&mut self, range: Range, first: HostLabel, change: &Change, now: Time) -> bool {
        let change = match change {
            Change::Found { .. } => None,
            change if Ring::may_wish(self.hosts.own, change) => Some(change.clone()),
            _ => return false,
        };
        let Some(local) = self.locals.get_mut(&range) else { return false };
        let since = local.votes.wishing.map_or(now, |(since, _)| since);
        if now.since(since) > WISH_PATIENCE {
            return false;
        }
        let is_due = local.votes.wishing.is_none_or(|(_, last)| now.since(last) >= WISH_AGAIN);
        if is_due {
            local.votes.wishing = Some((since, now));
            self.send(first, range, Body::Wish(change));
        }
        true
    }

    pub(super) fn on_wish(&mut self, from: HostLabel, range: Range, change: Option<Change>, now: Time) {
        let Some(local) = self.locals.get_mut(&range) else { return };
        match change {
            None => local.wanted_until = now + PATIENCE,
            Some(change) if Ring::may_wish(from, &change) && local.votes.wishes.len() < MAX_PENDING => {
                local.votes.wishes.insert(from, (change, now + WISH_PATIENCE));
            }
            Some(_) => return,
        }
        self.advance(range, now);
    }

    /// A change is decided: on to the next state.
    pub(super) fn decide(&mut self, range: Range, change: &Change, now: Time) {
        let Some(local) = self.locals.get(&range) else { return };
        let next = match &local.ring {
            Some(ring) => ring.after(change),
            None => Ring::found(range, change),
        };
        if let Some(next) = next {
            self.adopt(range, next, now);
        }
    }

    /// Takes over a state that was decided.
    pub(super) fn adopt(&mut self, range: Range, ring: Ring, now: Time) {
        let (own, nonce) = (self.hosts.own, self.start.nonce);
        let Some(local) = self.locals.get_mut(&range) else { return };
        let is_stranger = local.ring.is_none() && local.votes.acceptor.accepted.is_none();
        (local.votes.acceptor, local.votes.running, local.votes.round) = (Acceptor::default(), None, 0);
        (local.votes.wishing, local.deserted_for) = (None, None);
        // A wish may have been granted and taken back in states that this host has not seen: it holds for the next state only, and
        // is repeated.
        let is_next =
            local.ring.as_ref().is_none_or(|before| before.id == ring.id && before.n.saturating_add(1) == ring.n);
        local.votes.wishes.retain(|_, (wish, until)| is_next && *until > now && ring.after(wish).is_some());
        let known = ring.members.get(&own).copied();
        let is_known = known.is_some_and(|known| known.nonce == nonce);
        local.is_amnesiac |= is_stranger && known.is_some() && !is_known;
        local.is_confirmed |= is_known || known.is_none();
        local.is_amnesiac &= !is_known;
        local.leaving.retain(|leaving| match leaving {
            Leaving::Address(address) => ring.loans.get(address) == Some(&own),
            Leaving::Window(window) => ring.windows.get(window).is_some_and(|held| held.holder == own),
            Leaving::Part(part) => ring.has_part(own, *part),
        });
        local.ring = Some(ring);
        if let Some(known) = known.filter(|known| is_known && known.number > self.start.number) {
            self.start = known;
            self.outputs.persist(&Stored::Starts, Some(encode(&known.number)));
        }
        if let Some((local, outputs)) = self.at(range) {
            local.persist(range, outputs);
        }
        self.answer_given_up(range);
        self.look_at_parts(range);
        if let Some((local, outputs)) = self.at(range) {
            local.drop_dead_loans(range, outputs);
        }
        self.check_rights(range);
        let own = self.hosts.own;
        if let Some((local, outputs)) = self.at(range) {
            local.announce(range, own, outputs);
        }
        self.unsettled.insert(range);
    }

    /// Hosts that were to be given up are.
    pub(super) fn answer_given_up(&mut self, range: Range) {
        let Some(local) = self.locals.get_mut(&range) else { return };
        let done: Vec<Ticket> = match &local.ring {
            Some(ring) => {
                let is_done = |(host, _): &(HostLabel, Time)| !ring.mentions(*host);
                local.give_up.iter().filter(|(_, wanted)| is_done(wanted)).map(|(ticket, _)| *ticket).collect()
            }
            None => Vec::new(),
        };
        for ticket in done {
            if let Some(local) = self.locals.get_mut(&range) {
                local.give_up.remove(&ticket);
            }
            if !self.locals.values().any(|local| local.give_up.contains_key(&ticket)) {
                self.outputs.push(Output::Done(ticket, Ok(())));
            }
        }
    }

    /// Parts that are no network's any more are left, and who waits for others hears whether they are had.
    pub(super) fn look_at_parts(&mut self, range: Range) {
        let own = self.hosts.own;
        let Some(local) = self.locals.get_mut(&range) else { return };
        let Some(parts) = &mut local.parts.wanted else { return };
        let ring = local.ring.as_ref().filter(|ring| local.is_confirmed && ring.superseded_by.is_none());
        let mut answers = Vec::new();
        local.parts.taking.retain(|ticket, (taken, _)| {
            let refused = taken.iter().find(|part| ring.is_some_and(|ring| !ring.has_room_for(**part)));
            let has = |part: &Range| {
                !local.leaving.contains(&Leaving::Part(*part)) && ring.is_some_and(|ring| ring.has_part(own, *part))
            };
            let answer = match (refused, ring) {
                (Some(part), Some(ring)) => {
                    let by = ring.users_of(*part).into_iter().collect();
                    Err(Error::PartInUse { part: *part, range, by })
                }
                _ if taken.iter().all(has) => Ok(()),
                _ => return true,
            };
            if answer.is_err() {
                parts.retain(|part| !taken.contains(part));
            }
            answers.push((*ticket, answer));
            false
        });
        let unwanted = |part: &&Range| {
            local.parts.knows_parts && ring.is_some_and(|ring| ring.has_part(own, **part)) && !parts.contains(part)
        };
        let left: Vec<Range> = ring.iter().flat_map(|ring| ring.parts.keys().filter(unwanted)).copied().collect();
        for part in left {
            if let Some((local, outputs)) = self.at(range) {
                local.leave(range, Leaving::Part(part), outputs);
            }
        }
        answers.into_iter().for_each(|(ticket, answer)| self.outputs.push(Output::Done(ticket, answer)));
    }

    /// Finds handed-out addresses that this host has no right to in the present ring.
    pub(super) fn check_rights(&mut self, range: Range) {
        let own = self.hosts.own;
        let Some(local) = self.locals.get_mut(&range) else { return };
        let Some(ring) = local.ring.as_ref().filter(|ring| ring.superseded_by.is_none()) else { return };
        let mut lost = Vec::new();
        for (address, id) in &local.leases.held {
            if ring.is_entitled(own, *address) {
                local.leases.claims.remove(address);
            } else if ring.part_of(*address).is_some()
                || ring.loans.contains_key(address)
                || ring.holder_of(*address).is_some_and(|held| held.retired)
            {
                lost.push((*id, *address));
            } else if local.leases.claims.insert(*address) {
                let refused = BTreeSet::new();
                let (until, asked) = (Time::from_nanos(u64::MAX), Time::ZERO);
                let (want, within) = (Some(*address), None);
                local.pending.push(Pending { ticket: None, id: *id, want, within, until, asked, refused });
            }
        }
        let claims = &local.leases.claims;
        local.pending.retain(|p| p.ticket.is_some() || p.want.is_some_and(|want| claims.contains(&want)));
        for (id, address) in lost {
            if let Some((local, outputs)) = self.at(range) {
                local.fence(range, id, address, outputs);
            }
        }
    }
}

/// How long to wait before the next try, so that two proposers do not disturb each other again and again.
pub(super) fn backoff(rng: &mut ChaCha20Rng) -> Duration {
    Duration::from_millis(rng.random_range(20..300))
}
