//! What time brings: requests that waited too long, voters that are gone, windows to spare or to give back.

use std::net::Ipv4Addr;

use weft_crypto::Time;

use super::decide::backoff;
use super::{Change, EMPTY_FOR, Error, Ipam, Leaving, Output, RETRY, Range, Ticket};

impl Ipam {
    /// Ends what has waited too long.
    pub(super) fn expire(&mut self, range: Range, now: Time) {
        let Some(local) = self.locals.get_mut(&range) else { return };
        if local.votes.running.as_ref().is_some_and(|running| now.since(running.started) >= RETRY) {
            local.back_off(local.votes.round, backoff(&mut self.rng), now);
        }
        let Some(local) = self.locals.get(&range) else { return };
        let over: Vec<(Ticket, Error)> = (local.pending.iter().filter(|pending| pending.until <= now))
            .filter_map(|pending| Some((pending.ticket?, self.hosts.reason(range, local, pending))))
            .collect();
        let given_up: Vec<Ticket> =
            local.give_up.iter().filter(|(_, (_, until))| *until <= now).map(|(ticket, _)| *ticket).collect();
        let is_taking_over = local.parts.taking.values().any(|(_, until)| *until <= now);
        if over.is_empty() && given_up.is_empty() && !is_taking_over {
            return;
        }
        let waiting_for = self.hosts.waiting_for(local);
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
            self.outputs.reply(ticket, Err(error));
        }
        for ticket in given_up.into_iter().chain(taking) {
            let error = Error::Waiting { range, waiting_for: waiting_for.clone() };
            self.outputs.push(Output::Done(ticket, Err(error)));
        }
    }

    /// Keeps enough voters, a spare window, and no window for nothing.
    pub(super) fn keep_up(&mut self, range: Range, now: Time) {
        let own = self.hosts.own;
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
        let change = if let Some(voters) = self.hosts.better_voters(&ring, now) {
            Some(Change::Voters(voters))
        } else if !windows.is_empty() && free * 4 < range.window_size() as usize {
            ring.free_window(self.hosts.first_window(&ring)).map(|window| Change::Open {
                window,
                host: own,
                start: self.start,
            })
        } else {
            stale.filter(|_| windows.len() > 1).map(|window| Change::Close { window, host: own })
        };
        if let Some(change) = change.filter(|change| ring.after(change).is_some()) {
            if let Change::Close { window, .. } = change
                && let Some((local, outputs)) = self.at(range)
            {
                local.leave(range, Leaving::Window(window), outputs);
            }
            self.propose(range, change, now);
        }
    }
}
