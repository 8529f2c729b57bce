//! This host and the others, as far as addresses concern them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::local::{Local, Pending};
use super::ring::{MAX_VOTERS, Range, Ring, make_odd};
use super::{Awaited, Error, LISTEN, Named};

/// Which hosts there are: named, reachable, given up.
pub(super) struct Hosts {
    pub(super) own: HostLabel,
    pub(super) started: Time,
    pub(super) grace: Duration,
    /// Found a ring although peers are named.
    pub(super) founds_alone: bool,
    pub(super) named: Vec<Named>,
    pub(super) reachable: BTreeSet<HostLabel>,
    /// Hosts that an operator said are off for good: they are not waited for until they are reached again.
    pub(super) given_up: BTreeSet<HostLabel>,
    /// When hosts that can no longer be reached were last reached.
    pub(super) last_seen: BTreeMap<HostLabel, Time>,
}

impl Hosts {
    /// Whom a founding takes: the peers named that were met, and this host.
    pub(super) fn electorate(&self) -> Vec<HostLabel> {
        if self.founds_alone {
            return vec![self.own];
        }
        let mut all: Vec<HostLabel> =
            self.named.iter().filter_map(|named| named.host).filter(|host| !self.given_up.contains(host)).collect();
        all.push(self.own);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Who decides on a founding, and how many it takes: a majority of all named, met or not, and this host.
    pub(super) fn founding_quorum(&self) -> (Vec<HostLabel>, usize) {
        let electorate = self.electorate();
        let met = |named: &&Named| named.host.is_some();
        let strangers = if self.founds_alone { 0 } else { self.named.len() - self.named.iter().filter(met).count() };
        let needed = (electorate.len() + strangers) / 2 + 1;
        (electorate, needed)
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

    /// Whether what the others have decided meanwhile has had time to reach this host.
    pub(super) fn has_listened(&self, local: &Local, ring: &Ring, now: Time) -> bool {
        let others = ring.members.keys().filter(|host| **host != self.own);
        let is_heard = |host: &HostLabel| !self.reachable.contains(host) || local.heard.contains_key(host);
        let is_alone = !others.clone().any(|host| self.reachable.contains(host));
        now.since(self.started) >= LISTEN || (!is_alone && others.clone().all(is_heard)) || others.count() == 0
    }

    /// Where this host begins to look for a free window: elsewhere than others, so that several can open one at once, and at the
    /// beginning of a large range, so that networks can have parts of the rest.
    pub(super) fn first_window(&self, ring: &Ring) -> u32 {
        use std::hash::Hasher;
        let mut hasher = siphasher::sip::SipHasher13::new();
        hasher.write(&self.own.0);
        hasher.write_u64(ring.n);
        let windows = ring.range.windows();
        (hasher.finish() % u64::from((windows / 8).max(64).min(windows))) as u32
    }

    /// Returns the hosts that hear of a decision at once, voters and members; all others hear by gossip.
    pub(super) fn to_tell(&self, local: &Local) -> BTreeSet<HostLabel> {
        let members = local.ring.iter().flat_map(|ring| ring.members.keys().chain(&ring.voters));
        let asked = local.votes.running.iter().flat_map(|running| &running.proposal.voters);
        let all = members.chain(asked).chain(local.votes.wishes.keys()).copied();
        all.filter(|host| *host != self.own && self.reachable.contains(host)).collect()
    }
}
