//! What time brings: requests that waited too long, voters that are gone, windows to spare or to give back.

use std::net::Ipv4Addr;

use weft_crypto::{HostLabel, Time};

use super::{
    Awaited, Change, EMPTY_FOR, Error, Ipam, Leaving, Local, MAX_VOTERS, Output, Pending, RETRY, Range, Ring, Ticket,
    make_odd,
};

impl Ipam {
    /// Ends what has waited too long.
    pub(super) fn expire(&mut self, range: Range, now: Time) {
        let Some(local) = self.locals.get_mut(&range) else { return };
        if local.votes.running.as_ref().is_some_and(|running| now.since(running.started) >= RETRY) {
            let round = local.votes.round;
            self.back_off(range, round, now);
        }
        let Some(local) = self.locals.get(&range) else { return };
        let over: Vec<(Ticket, Error)> = (local.pending.iter().filter(|pending| pending.until <= now))
            .filter_map(|pending| Some((pending.ticket?, self.reason(range, local, pending))))
            .collect();
        let given_up: Vec<Ticket> =
            local.give_up.iter().filter(|(_, (_, until))| *until <= now).map(|(ticket, _)| *ticket).collect();
        let is_taking_over = local.parts.taking.values().any(|(_, until)| *until <= now);
        if over.is_empty() && given_up.is_empty() && !is_taking_over {
            return;
        }
        let waiting_for = self.waiting_for(local);
        let Some(local) = self.locals.get_mut(&range) else { return };
        local.pending.retain(|pending| pending.until > now);
        local.give_up.retain(|_, (_, until)| *until > now);
        let mut taking = Vec::new();
        local.parts.taking.retain(|ticket, (taken, until)| {
            if *until <= now {
                local.parts.wanted.iter_mut().for_each(|parts| parts.retain(|part| !taken.contains(part)));
                taking.push(*ticket);
            }
            *until > now
        });
        for (ticket, error) in over {
            self.reply(ticket, Err(error));
        }
        for ticket in given_up.into_iter().chain(taking) {
            let error = Error::Waiting { range, waiting_for: waiting_for.clone() };
            self.outputs.push_back(Output::Done(ticket, Err(error)));
        }
    }

    pub(super) fn reason(&self, range: Range, local: &Local, pending: &Pending) -> Error {
        let holder = pending.want.and_then(|want| local.ring.as_ref()?.holder_of(want)).map(|held| held.holder);
        let is_full = local.ring.as_ref().is_some_and(|ring| ring.free_window(0).is_none());
        match holder {
            Some(holder) if holder != self.own => Error::Waiting { range, waiting_for: vec![Awaited::Host(holder)] },
            None if is_full && local.is_confirmed => Error::Full(range),
            _ => Error::Waiting { range, waiting_for: self.waiting_for(local) },
        }
    }

    /// Who keeps this host from going on.
    pub(super) fn waiting_for(&self, local: &Local) -> Vec<Awaited> {
        let is_away = |host: &HostLabel| *host != self.own && !self.reachable.contains(host);
        match &local.ring {
            Some(ring) => {
                let silent: Vec<HostLabel> = match &local.votes.running {
                    Some(running) => running.proposal.missing().filter(|host| *host != self.own).collect(),
                    None => ring.voters.iter().copied().filter(is_away).collect(),
                };
                silent.into_iter().map(Awaited::Host).collect()
            }
            None if !local.heard.is_empty() => local.heard.keys().copied().filter(is_away).map(Awaited::Host).collect(),
            None => (self.named.iter().filter(|named| named.host.is_none_or(|host| is_away(&host))))
                .map(|named| named.host.map_or_else(|| Awaited::Peer(named.name.clone()), Awaited::Host))
                .collect(),
        }
    }

    /// Keeps enough voters, a spare window, and no window for nothing.
    pub(super) fn keep_up(&mut self, range: Range, now: Time) {
        let own = self.own;
        let Some(local) = self.locals.get_mut(&range) else { return };
        let Some(ring) = local.ring.clone().filter(|ring| ring.superseded_by.is_none() && local.is_confirmed) else {
            return;
        };
        let free_in = |window: u32| range.addresses(window).filter(|address| local.is_free(own, *address, now)).count();
        let windows: Vec<(u32, usize)> = ring.windows_of(own).map(|window| (window, free_in(window))).collect();
        let free: usize = windows.iter().map(|(_, free)| free).sum();
        let is_empty = |window: u32| {
            let is_in = |address: &Ipv4Addr| range.window_of(*address) == window;
            let used = local.leases.held.keys().chain(local.leases.resting.keys()).chain(local.leases.lending.keys());
            !used.chain(ring.loans.keys()).any(is_in)
        };
        let empty: Vec<u32> = windows.iter().map(|(window, _)| *window).filter(|window| is_empty(*window)).collect();
        local.empty_since.retain(|window, _| empty.contains(window));
        for window in &empty {
            local.empty_since.entry(*window).or_insert(now);
        }
        let stale =
            local.empty_since.iter().find(|(_, since)| now.since(**since) >= EMPTY_FOR).map(|(window, _)| *window);
        let change = if let Some(voters) = self.better_voters(&ring, now) {
            Some(Change::Voters(voters))
        } else if !windows.is_empty() && free * 4 < range.window_size() as usize {
            ring.free_window(self.first_window(&ring)).map(|window| Change::Open {
                window,
                host: own,
                start: self.start,
            })
        } else {
            stale.filter(|_| windows.len() > 1).map(|window| Change::Close { window, host: own })
        };
        if let Some(change) = change.filter(|change| ring.after(change).is_some()) {
            if let Change::Close { window, .. } = change {
                self.leave(range, Leaving::Window(window));
            }
            self.propose(range, change, now);
        }
    }

    /// Other voters, if they would do better: one for one or two members, three for up to four, five beyond; those
    /// gone past the grace replaced by members that are there. The first voter that is there sees to it.
    pub(super) fn better_voters(&self, ring: &Ring, now: Time) -> Option<Vec<HostLabel>> {
        let is_there = |host: &HostLabel| *host == self.own || self.reachable.contains(host);
        let speaks = ring.voters.iter().find(|voter| is_there(voter)) == Some(&self.own);
        if !speaks {
            return None;
        }
        let is_lost = |host: &HostLabel| {
            !is_there(host) && self.last_seen.get(host).is_none_or(|seen| now.since(*seen) > self.grace)
        };
        let there: Vec<HostLabel> = ring.members.keys().copied().filter(is_there).collect();
        let size = match there.len() {
            0..=2 => 1,
            3 | 4 => 3,
            _ => MAX_VOTERS,
        };
        let mut voters: Vec<HostLabel> =
            ring.voters.iter().copied().filter(|voter| !is_lost(voter) && ring.members.contains_key(voter)).collect();
        for member in there {
            if voters.len() < size && !voters.contains(&member) {
                voters.push(member);
            }
        }
        make_odd(&mut voters);
        voters.sort_unstable();
        (!voters.is_empty() && voters != ring.voters).then_some(voters)
    }
}
