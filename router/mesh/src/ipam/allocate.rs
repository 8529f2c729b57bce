//! Handing out: from own windows, and from others' where they have room.

use std::net::Ipv4Addr;

use weft_crypto::{HostLabel, Time};

use super::{
    ASK_INTERVAL, AllocationId, Body, Change, Error, Ipam, Leaving, Local, Pending, Range, Request, Ring, RingId,
    STEPS, encode,
};
use crate::stored::Stored;

impl Ipam {
    /// Goes on as far as this host can by itself: alone it decides one change after the other.
    pub(super) fn advance(&mut self, range: Range, now: Time) {
        self.unsettled.insert(range);
        for _ in 0..STEPS {
            if !self.unsettled.remove(&range) {
                return;
            }
            self.advance_once(range, now);
        }
    }

    /// Serves what can be served and starts what the rest takes.
    pub(super) fn advance_once(&mut self, range: Range, now: Time) {
        let Some(local) = self.locals.get(&range) else { return };
        if local.ring.is_none() {
            if !local.pending.is_empty() || !local.parts.taking.is_empty() || local.wanted_until > now {
                self.seek_ring(range, now);
            }
            return;
        }
        let newer = (local.heard.iter())
            .find(|(host, heard)| {
                local.state().0 == heard.ring && heard.n > local.state().1 && self.hosts.reachable.contains(host)
            })
            .map(|(host, _)| *host);
        if let Some(host) = newer
            && let Some((local, outputs)) = self.at(range)
        {
            local.pull(host, range, now, outputs);
        }
        self.serve(range, now);
        if let Some(change) = self.next_change(range, now) {
            let makes_sense = self.locals.get(&range).and_then(|l| l.ring.as_ref()?.after(&change)).is_some();
            if makes_sense {
                self.propose(range, change, now);
            }
        }
    }

    /// Answers the requests that this host can serve alone.
    pub(super) fn serve(&mut self, range: Range, now: Time) {
        let own = self.hosts.own;
        let Some(local) = self.locals.get_mut(&range) else { return };
        local.leases.resting.retain(|address, until| {
            let is_lent_here = local.ring.as_ref().is_some_and(|ring| ring.loans.get(address) == Some(&own));
            *until > now || is_lent_here
        });
        if !local.is_confirmed || local.ring.as_ref().is_none_or(|ring| ring.superseded_by.is_some()) {
            return;
        }
        for pending in std::mem::take(&mut local.pending) {
            let Some(local) = self.locals.get_mut(&range) else { return };
            let Some(ticket) = pending.ticket else {
                local.pending.push(pending);
                continue;
            };
            match local.take(own, &pending, now) {
                Some(Ok(address)) => {
                    let is_new = local.leases.held.insert(address, pending.id).is_none();
                    local.leases.by_id.insert(pending.id, address);
                    local.leases.resting.remove(&address);
                    if is_new {
                        self.outputs.persist(&Stored::Address(range, address), Some(encode(&pending.id)));
                    }
                    self.outputs.reply(ticket, Ok(address));
                }
                Some(Err(error)) => self.outputs.reply(ticket, Err(error)),
                None => local.pending.push(pending),
            }
        }
    }

    /// The change that this host wants next, most urgent first.
    pub(super) fn next_change(&mut self, range: Range, now: Time) -> Option<Change> {
        if let Some(change) = self.meet_rings(range, now) {
            return Some(change);
        }
        let (own, start) = (self.hosts.own, self.start);
        let local = self.locals.get(&range)?;
        let ring = local.ring.as_ref().filter(|ring| ring.superseded_by.is_none())?;
        if let Some((host, _)) = local.give_up.values().next() {
            return Some(Change::GiveUp(vec![*host]));
        }
        if !local.is_confirmed && ring.members.contains_key(&own) && !self.hosts.has_listened(local, ring, now) {
            return None;
        }
        let is_new_voter = ring.voters.contains(&own) && !ring.members.contains_key(&own);
        if is_new_voter || (!local.is_confirmed && ring.mentions(own)) {
            return Some(Change::Register { host: own, start });
        }
        // What was promised out of a window that is another's now cannot be had any more.
        let mut lent = local.leases.lending.iter().map(|(address, (to, _))| Change::Lend {
            address: *address,
            from: own,
            to: *to,
        });
        if let Some(change) = lent.find(|change| ring.after(change).is_some()) {
            return Some(change);
        }
        let takes = |part: &&Range| !ring.has_part(own, **part) && ring.has_room_for(**part);
        if let Some(part) = local.parts.wanted.iter().flatten().find(takes) {
            return Some(Change::TakePart { part: *part, host: own });
        }
        let free = ring.free_window(self.hosts.first_window(ring));
        for pending in &local.pending {
            let window = match pending.want {
                None => match pending.within {
                    Some(within) => ring.free_windows().find(|window| range.window(*window).overlaps(&within)),
                    None => free,
                },
                Some(want) => Some(range.window_of(want)).filter(|window| ring.is_free(*window)),
            };
            if let Some(window) = window {
                return Some(Change::Open { window, host: own, start });
            }
        }
        self.borrow(range, now);
        let local = self.locals.get(&range)?;
        let ring = local.ring.as_ref()?;
        let done = |(address, borrower): (&Ipv4Addr, &HostLabel)| {
            let rests = local.leases.resting.get(address).is_some_and(|until| *until > now);
            let is_wanted = local.pending.iter().any(|pending| pending.want == Some(*address));
            (*borrower == own && !local.leases.held.contains_key(address) && !rests && !is_wanted).then_some(*address)
        };
        if let Some(address) = ring.loans.iter().find_map(done) {
            if let Some((local, outputs)) = self.at(range) {
                local.leave(range, Leaving::Address(address), outputs);
            }
            return Some(Change::Return { address, host: own });
        }
        let local = self.locals.get(&range)?;
        let ring = local.ring.as_ref()?;
        let closing = local.leaving.iter().find_map(|leaving| match leaving {
            Leaving::Window(window) => Some(Change::Close { window: *window, host: own }),
            Leaving::Part(part) => Some(Change::LeavePart { part: *part, host: own }),
            Leaving::Address(_) => None,
        });
        if closing.is_some() {
            return closing;
        }
        let wishes = local.votes.wishes.values().filter(|(_, until)| *until > now).map(|(wish, _)| wish);
        wishes.clone().find(|wish| ring.after(wish).is_some()).cloned()
    }

    /// Asks holders for what no window can be opened for.
    pub(super) fn borrow(&mut self, range: Range, now: Time) {
        let own = self.hosts.own;
        let Some(local) = self.locals.get_mut(&range) else { return };
        let Some(ring) = &local.ring else { return };
        let mut asks = Vec::new();
        for pending in local.pending.iter_mut().filter(|p| p.asked == Time::ZERO || now.since(p.asked) >= ASK_INTERVAL)
        {
            let holders: Vec<HostLabel> = match pending.want {
                Some(want) => match ring.loans.get(&want) {
                    Some(borrower) => vec![*borrower],
                    None => {
                        ring.holder_of(want).filter(|held| !held.retired).map(|held| held.holder).into_iter().collect()
                    }
                },
                None => ring.windows.values().filter(|held| !held.retired).map(|held| held.holder).collect(),
            };
            let eligible = |host: &&HostLabel| {
                **host != own && self.hosts.reachable.contains(host) && !pending.refused.contains(host)
            };
            let Some(holder) = holders.iter().find(eligible).copied() else { continue };
            pending.asked = now;
            asks.push((holder, Body::Borrow { id: pending.id, want: pending.want, within: pending.within }));
        }
        for (holder, ask) in asks {
            self.send(holder, range, ask);
        }
    }

    pub(super) fn on_borrow(&mut self, from: HostLabel, request: Request, now: Time) {
        let Request { range, id, want, within } = request;
        let own = self.hosts.own;
        let Some(local) = self.locals.get_mut(&range) else { return };
        let Some(ring) = local.ring.as_ref().filter(|ring| local.is_confirmed && ring.superseded_by.is_none()) else {
            return;
        };
        let n = ring.n;
        let has_it = want.is_some_and(|want| ring.loans.get(&want) == Some(&from));
        // Asked again: it is on its way.
        let is_theirs = |(address, (to, _)): (&Ipv4Addr, &(HostLabel, u64))| {
            *to == from
                && want.is_none_or(|want| want == *address)
                && within.is_none_or(|within| within.contains(*address))
        };
        if local.leases.lending.iter().any(is_theirs) {
            return self.advance(range, now);
        }
        if has_it {
            return local.on_pull(from, range, (RingId::default(), 0), &mut self.outputs);
        }
        if let Some(want) = want.filter(|want| ring.loans.get(want) == Some(&own)) {
            // Lent to this host: it goes back to its holder if no container has it any more.
            if local.leases.held.contains_key(&want) {
                return self.send(from, range, Body::NotLent(id));
            }
            local.leases.resting.remove(&want);
            return self.advance(range, now);
        }
        let given = match want {
            // Asked for by name it need not rest.
            Some(want) => Some(want).filter(|want| range.contains(*want) && local.is_free(own, *want, Time::MAX)),
            None => local.free_address(own, within, now),
        };
        let Some(address) = given else {
            return self.send(from, range, Body::NotLent(id));
        };
        let lent = (from, n + 8);
        local.leases.lending.insert(address, lent);
        self.outputs.persist(&Stored::Lending(range, address), Some(encode(&lent)));
        self.advance(range, now);
    }

    pub(super) fn on_not_lent(&mut self, from: HostLabel, range: Range, id: AllocationId, now: Time) {
        let Some(local) = self.locals.get_mut(&range) else { return };
        let Some(position) = local.pending.iter().position(|pending| pending.id == id) else { return };
        local.pending[position].refused.insert(from);
        let Some(address) = local.pending[position].want else {
            return self.advance(range, now);
        };
        let pending = local.pending.remove(position);
        match pending.ticket {
            Some(ticket) => self.outputs.reply(ticket, Err(Error::InUse { address })),
            None => local.fence(range, id, address, &mut self.outputs),
        }
    }
}

impl Local {
    /// An address for a request, or why there cannot be one; `None`: it takes others.
    pub(super) fn take(&mut self, own: HostLabel, pending: &Pending, now: Time) -> Option<Result<Ipv4Addr, Error>> {
        let ring = self.ring.as_ref()?;
        if let Some(address) = self.leases.by_id.get(&pending.id).copied() {
            // Asked again: the same answer, once it is certain that it still holds.
            return match pending.want {
                Some(want) if want != address => Some(Err(Error::InUse { address: want })),
                _ => (!self.leases.claims.contains(&address)).then_some(Ok(address)),
            };
        }
        // No window is open in a part, so no host is entitled to an address of it.
        if let Some(address) = pending.want
            && let Some(part) = ring.part_of(address)
        {
            return Some(Err(Error::OfNetwork { address, part }));
        }
        match pending.want {
            Some(want) if self.leases.held.contains_key(&want) => Some(Err(Error::InUse { address: want })),
            // Asked for by name it need not rest.
            Some(want) if self.is_leaving(ring, want) => None,
            Some(want) if ring.is_entitled(own, want) && !self.leases.lending.contains_key(&want) => {
                let is_usable =
                    ring.loans.contains_key(&want) || ring.holder_of(want).is_some_and(|held| !held.retired);
                is_usable.then_some(Ok(want))
            }
            // The borrower may not use it any more: it is asked.
            Some(want) => match ring.loans.get(&want) {
                Some(borrower) if *borrower != own && pending.refused.contains(borrower) => {
                    Some(Err(Error::InUse { address: want }))
                }
                _ => None,
            },
            None => {
                let spare = ring.loans.iter().find(|(address, borrower)| {
                    **borrower == own
                        && !self.leaving.contains(&Leaving::Address(**address))
                        && !self.leases.held.contains_key(address)
                        && !self.leases.resting.contains_key(address)
                        && pending.within.is_none_or(|within| within.contains(**address))
                });
                let spare = spare.map(|(address, _)| *address);
                let found = self.free_address(own, pending.within, now).or(spare);
                found.or_else(|| self.resting_address(own, pending.within)).map(Ok)
            }
        }
    }

    fn is_leaving(&self, ring: &Ring, address: Ipv4Addr) -> bool {
        let window = Leaving::Window(ring.range.window_of(address));
        self.leaving.contains(&Leaving::Address(address)) || self.leaving.contains(&window)
    }

    /// Returns whether an address of an own window is free.
    pub(super) fn is_free(&self, own: HostLabel, address: Ipv4Addr, now: Time) -> bool {
        let Some(ring) = &self.ring else { return false };
        ring.holder_of(address).is_some_and(|held| held.holder == own && !held.retired)
            && !ring.range.is_reserved(address)
            && !self.leases.set_aside.contains(&address)
            && !self.leases.held.contains_key(&address)
            && !ring.loans.contains_key(&address)
            && !self.leases.lending.contains_key(&address)
            && !self.is_leaving(ring, address)
            && self.leases.resting.get(&address).is_none_or(|until| *until <= now)
    }

    /// Returns the own address that has rested longest, if there is no window left to take others from: a container that
    /// is started again in a small network gets one at once.
    fn resting_address(&self, own: HostLabel, within: Option<Range>) -> Option<Ipv4Addr> {
        let ring = self.ring.as_ref()?;
        let has_window =
            ring.free_windows().any(|window| within.is_none_or(|within| ring.range.window(window).overlaps(&within)));
        let rested = |address: &&Ipv4Addr| {
            within.is_none_or(|within| within.contains(**address)) && self.is_free(own, **address, Time::MAX)
        };
        let mut resting: Vec<(&Time, &Ipv4Addr)> = self
            .leases
            .resting
            .iter()
            .filter(|(address, _)| rested(address))
            .map(|(address, until)| (until, address))
            .collect();
        resting.sort_unstable();
        resting.first().filter(|_| !has_window).map(|(_, address)| **address)
    }

    /// The next free address of the own windows, round and round: what was just released comes last.
    pub(super) fn free_address(&mut self, own: HostLabel, within: Option<Range>, now: Time) -> Option<Ipv4Addr> {
        let ring = self.ring.as_ref()?;
        let windows: Vec<u32> = ring.windows_of(own).collect();
        let is_within = |address: &Ipv4Addr| within.is_none_or(|within| within.contains(*address));
        let all = || windows.iter().flat_map(|window| ring.range.addresses(*window)).filter(is_within);
        let is_free = |address: &Ipv4Addr| self.is_free(own, *address, now);
        let next = all().filter(|address| address.to_bits() > self.cursor).find(is_free);
        let found = next.or_else(|| all().find(is_free))?;
        self.cursor = found.to_bits();
        Some(found)
    }
}
