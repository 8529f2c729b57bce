//! A ring: who may hand out which addresses of a range, as its voters have decided.
//!
//! A range is cut into windows. A window is free, or one host has it open and hands out of it without asking others.
//! The ring changes one decided [`Change`] at a time: state `n` and the change give state `n + 1` on every host,
//! and the voters of state `n` decide the change ([`super::paxos`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use weft_crypto::HostLabel;

pub use super::change::{Change, RingId, Start};
pub use super::range::Range;

/// Voters of a ring, at most. Always an odd number: an even one needs more votes and bears no more losses.
pub const MAX_VOTERS: usize = 5;

/// An open window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Window {
    /// The host that holds it.
    pub holder: HostLabel,
    /// Its holder lost track of what it handed out: it is closed to all until the holder is given up.
    pub retired: bool,
}

/// What the voters decided so far.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ring {
    /// Which one.
    pub id: RingId,
    /// Of which range.
    pub range: Range,
    /// How many changes led here.
    pub n: u64,
    /// Who decides the next change.
    pub voters: Vec<HostLabel>,
    /// The members, and the start in which each last showed that it knows what it handed out.
    pub members: BTreeMap<HostLabel, Start>,
    /// The windows that are not free.
    pub windows: BTreeMap<u32, Window>,
    /// Single addresses that a holder let others have, out of its window.
    pub loans: BTreeMap<Ipv4Addr, HostLabel>,
    /// Parts of the range that networks have for themselves, each a ring of its own, and the hosts that have those networks.
    /// No window that overlaps one is opened.
    pub parts: BTreeMap<Range, BTreeSet<HostLabel>>,
    /// Rings that this one goes on from, on an operator's word that most of their voters are off for good, last one first:
    /// a host still in one of them has missed that.
    pub succeeds: Vec<RingId>,
    /// The ring of the same range whose members have met this one's, and which goes on in its place.
    pub superseded_by: Option<RingId>,
}

/// Rings remembered as gone on from.
const MAX_SUCCEEDS: usize = 8;
/// Parts of one ring that networks may have for themselves.
const MAX_PARTS: usize = 64;
/// Changes in one [`Change::All`].
pub const MAX_TOGETHER: usize = 16;

impl Ring {
    /// The ring that a founding makes; `None` for other changes.
    pub fn found(range: Range, change: &Change) -> Option<Ring> {
        let Change::Found { id, founder, start, voters } = change else { return None };
        is_electorate(voters).then(|| Ring {
            id: *id,
            range,
            n: 1,
            voters: voters.clone(),
            members: BTreeMap::from([(*founder, *start)]),
            windows: BTreeMap::new(),
            loans: BTreeMap::new(),
            parts: BTreeMap::new(),
            succeeds: Vec::new(),
            superseded_by: None,
        })
    }

    /// Whether changes may have led to this state, as far as it tells: another host's word, or a file's, need not be so.
    pub(super) fn is_sound(&self) -> bool {
        let are_windows = self.windows.keys().all(|window| *window < self.range.windows());
        let is_inside = |part: &Range| part.length > self.range.length && self.range.contains(part.base);
        is_electorate(&self.voters)
            && are_windows
            && self.loans.keys().all(|address| self.range.hands_out(*address))
            && self.parts.len() <= MAX_PARTS
            && self.parts.keys().all(is_inside)
            && self.succeeds.len() <= MAX_SUCCEEDS
    }

    /// The ring after a change; `None` if the change makes no sense in this state.
    pub fn after(&self, change: &Change) -> Option<Ring> {
        let mut ring = self.clone();
        match change {
            Change::All(changes) => {
                let simple = |change: &&Change| !matches!(change, Change::All(_));
                for change in changes.iter().take(MAX_TOGETHER).filter(simple) {
                    ring = ring.after(change).unwrap_or(ring);
                }
                ring.n = self.n;
                if ring == *self {
                    return None;
                }
            }
            Change::Revive => {
                ring.superseded_by.take()?;
            }
            _ if self.superseded_by.is_some() => return None,
            Change::Found { .. } => return None,
            Change::Supersede(other) => ring.superseded_by = Some(*other).filter(|other| *other != self.id),
            Change::Open { window, host, start } => {
                let is_free = *window < self.range.windows() && self.is_free(*window);
                if !is_free || !start.may_follow(self.members.get(host).copied()) {
                    return None;
                }
                ring.windows.insert(*window, Window { holder: *host, retired: false });
                ring.members.insert(*host, *start);
            }
            Change::Close { window, host } => {
                let held = ring.windows.remove(window)?;
                if held.holder != *host || held.retired {
                    return None;
                }
            }
            Change::Register { host, start } => {
                let known = self.members.get(host).copied();
                if known == Some(*start) {
                    return None;
                }
                let mut start = *start;
                if !start.may_follow(known) {
                    for held in ring.windows.values_mut().filter(|held| held.holder == *host) {
                        held.retired = true;
                    }
                    // The host takes this number for its own: what it does from here on is remembered again.
                    start.number = known.map_or(0, |known| known.number).saturating_add(1);
                }
                ring.members.insert(*host, start);
            }
            Change::Lend { address, from, to } => {
                let is_theirs = self.range.hands_out(*address)
                    && self.holder_of(*address) == Some(Window { holder: *from, retired: false });
                if !is_theirs || from == to || ring.loans.insert(*address, *to).is_some() {
                    return None;
                }
            }
            Change::Return { address, host } => {
                if ring.loans.remove(address) != Some(*host) {
                    return None;
                }
            }
            Change::TakePart { part, host } => {
                if !self.has_room_for(*part) || !ring.parts.entry(*part).or_default().insert(*host) {
                    return None;
                }
            }
            Change::LeavePart { part, host } => {
                let hosts = ring.parts.get_mut(part).filter(|hosts| hosts.contains(host))?;
                hosts.remove(host);
                ring.parts.retain(|_, hosts| !hosts.is_empty());
            }
            Change::Voters(voters) => {
                if !is_electorate(voters) || !voters.iter().all(|voter| self.members.contains_key(voter)) {
                    return None;
                }
                ring.voters.clone_from(voters);
            }
            Change::GiveUp(hosts) => {
                if !hosts.iter().any(|host| self.mentions(*host)) {
                    return None;
                }
                let left = self.voters.iter().filter(|voter| !hosts.contains(voter)).count();
                if left < self.voters.len() / 2 + 1 {
                    // If the word was wrong, the others may have decided something else: that was another ring.
                    ring.succeeds.insert(0, self.id);
                    ring.succeeds.truncate(MAX_SUCCEEDS);
                    ring.id = self.id_without(hosts);
                }
                ring.windows.retain(|_, held| !hosts.contains(&held.holder));
                // What others were lent out of those windows stays theirs.
                ring.loans.retain(|_, host| !hosts.contains(host));
                ring.parts.values_mut().for_each(|having| having.retain(|host| !hosts.contains(host)));
                ring.parts.retain(|_, having| !having.is_empty());
                ring.members.retain(|host, _| !hosts.contains(host));
                ring.voters.retain(|host| !hosts.contains(host));
                if ring.voters.is_empty() {
                    ring.voters.extend(ring.members.keys().take(1));
                }
                make_odd(&mut ring.voters);
                if ring.voters.is_empty() {
                    return None;
                }
            }
        }
        ring.n = ring.n.saturating_add(1);
        Some(ring)
    }

    /// The id of the ring that goes on without `hosts`: the same for all who are told the same.
    fn id_without(&self, hosts: &[HostLabel]) -> RingId {
        use std::hash::Hasher;
        let mut hasher = siphasher::sip::SipHasher24::new();
        hasher.write_u64(self.id.0);
        hasher.write_u64(self.n);
        hosts.iter().for_each(|host| hasher.write(&host.0));
        RingId(hasher.finish().max(1))
    }

    /// Returns whether `host` may wish for a change: it concerns no other host.
    pub fn may_wish(host: HostLabel, change: &Change) -> bool {
        match change {
            Change::Open { host: who, .. }
            | Change::Close { host: who, .. }
            | Change::Register { host: who, .. }
            | Change::Return { host: who, .. }
            | Change::TakePart { host: who, .. }
            | Change::LeavePart { host: who, .. }
            | Change::Lend { from: who, .. } => *who == host,
            Change::GiveUp(_) => true,
            Change::Found { .. } | Change::Voters(_) | Change::Supersede(_) | Change::Revive | Change::All(_) => false,
        }
    }

    /// Whether a host may have an address of its own containers: out of its window, or lent to it.
    pub fn is_entitled(&self, host: HostLabel, address: Ipv4Addr) -> bool {
        match self.loans.get(&address) {
            Some(borrower) => *borrower == host,
            None => self.holder_of(address).is_some_and(|held| held.holder == host),
        }
    }

    /// Whether a host has anything to do with it.
    pub fn mentions(&self, host: HostLabel) -> bool {
        self.members.contains_key(&host)
            || self.voters.contains(&host)
            || self.windows.values().any(|held| held.holder == host)
            || self.loans.values().any(|borrower| *borrower == host)
            || self.parts.values().any(|hosts| hosts.contains(&host))
    }

    /// Whether a host may hand out of a part of the range as of a ring of its own.
    pub fn has_part(&self, host: HostLabel, part: Range) -> bool {
        self.parts.get(&part).is_some_and(|hosts| hosts.contains(&host))
    }

    /// Whether a part of the range can be a network's: it is one already, or none of it is handed out.
    pub fn has_room_for(&self, part: Range) -> bool {
        let is_inside =
            part.length > self.range.length && part.overlaps(&self.range) && !part.contains(self.range.gateway());
        let is_apart = self.parts.keys().all(|other| !other.overlaps(&part)) && self.parts.len() < MAX_PARTS;
        self.parts.contains_key(&part) || (is_inside && is_apart && self.users_of(part).is_empty())
    }

    /// The hosts that hand out of windows in a part of the range, or were lent addresses of it.
    pub fn users_of(&self, part: Range) -> BTreeSet<HostLabel> {
        let holders = self.windows.iter().filter(|(window, _)| self.range.window(**window).overlaps(&part));
        let borrowers = self.loans.iter().filter(|(address, _)| part.contains(**address));
        holders.map(|(_, held)| held.holder).chain(borrowers.map(|(_, host)| *host)).collect()
    }

    /// The part that an address is in, if a network has it.
    pub fn part_of(&self, address: Ipv4Addr) -> Option<Range> {
        self.parts.keys().find(|part| part.contains(address)).copied()
    }

    /// The windows that a host may hand out of.
    pub fn windows_of(&self, host: HostLabel) -> impl Iterator<Item = u32> {
        let own = self.windows.iter().filter(move |(_, held)| held.holder == host && !held.retired);
        own.map(|(window, _)| *window)
    }

    /// Who may hand out an address.
    pub fn holder_of(&self, address: Ipv4Addr) -> Option<Window> {
        self.windows.get(&self.range.window_of(address)).copied()
    }

    /// The first free window from `start` on, around.
    pub fn free_window(&self, start: u32) -> Option<u32> {
        let count = self.range.windows();
        (0..count).map(|step| (start + step) % count).find(|window| self.is_free(*window))
    }

    /// All free windows.
    pub fn free_windows(&self) -> impl Iterator<Item = u32> {
        (0..self.range.windows()).filter(|window| self.is_free(*window))
    }

    /// Whether a window can be opened.
    pub fn is_free(&self, window: u32) -> bool {
        let is_apart = |part: &Range| !part.overlaps(&self.range.window(window));
        !self.windows.contains_key(&window) && self.parts.keys().all(is_apart)
    }

    /// Votes that decide a change. The hosts of a [`Change::GiveUp`] are off, on an operator's word: what they may have
    /// voted for, all others of a majority know too.
    pub fn quorum(&self, change: &Change) -> (Vec<HostLabel>, usize) {
        let majority = self.voters.len() / 2 + 1;
        let gone: &[HostLabel] = if let Change::GiveUp(gone) = change { gone } else { &[] };
        let asked: Vec<HostLabel> = self.voters.iter().copied().filter(|voter| !gone.contains(voter)).collect();
        let needed = majority.min(asked.len());
        (asked, needed)
    }
}

/// An odd number of different hosts, sorted.
fn is_electorate(voters: &[HostLabel]) -> bool {
    (1..=MAX_VOTERS).contains(&voters.len()) && voters.len() % 2 == 1 && voters.is_sorted_by(|a, b| a < b)
}

/// Drops one of an even number.
pub fn make_odd(voters: &mut Vec<HostLabel>) {
    voters.truncate(MAX_VOTERS);
    if voters.len().is_multiple_of(2) {
        voters.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> HostLabel {
        HostLabel([0, 0, 0, 0, 0, n])
    }

    fn range(text: &str) -> Range {
        let (base, length) = text.split_once('/').unwrap();
        Range::new(base.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    fn start(number: u64) -> Start {
        Start { number, nonce: number * 100 }
    }

    fn ring() -> Ring {
        let found = Change::Found { id: RingId(1), founder: host(1), start: start(1), voters: vec![host(1)] };
        Ring::found(range("10.32.0.0/24"), &found).unwrap()
    }

    #[test]
    fn a_window_has_one_holder_and_only_that_one_closes_it() {
        let open = |window, n| Change::Open { window, host: host(n), start: start(1) };
        let ring = ring().after(&open(3, 1)).unwrap();
        assert_eq!(ring.after(&open(3, 2)), None);
        assert_eq!(ring.after(&open(64, 2)), None);
        assert_eq!(ring.after(&Change::Close { window: 3, host: host(2) }), None);
        let closed = ring.after(&Change::Close { window: 3, host: host(1) }).unwrap();
        assert!(closed.windows.is_empty() && closed.n == 3);
    }

    #[test]
    fn nothing_is_handed_out_of_a_part_that_networks_have_until_the_last_one_is_gone() {
        let part = range("10.32.0.64/26");
        let take = |part, n| Change::TakePart { part, host: host(n) };
        let leave = |n| Change::LeavePart { part, host: host(n) };
        let open = |window| Change::Open { window, host: host(1), start: start(1) };
        let ring = ring().after(&take(part, 1)).unwrap().after(&take(part, 2)).unwrap();
        assert_eq!(ring.after(&take(part, 2)), None, "it has it already");
        // Windows of four addresses: 16 to 31 are the part.
        assert!((16..32).all(|window| ring.after(&open(window)).is_none()));
        assert_eq!(ring.free_windows().count(), 48);
        assert_eq!(ring.part_of(Ipv4Addr::new(10, 32, 0, 70)), Some(part));
        assert_eq!(ring.after(&leave(3)), None, "only its holder leaves it");
        let left = ring.after(&leave(1)).unwrap();
        assert!(left.after(&open(20)).is_none());
        let free = left.after(&leave(2)).unwrap().after(&open(20)).unwrap();
        assert_eq!(free.after(&take(part, 1)), None, "it is handed out of");
        assert_eq!(free.users_of(part), [host(1)].into());
        for refused in ["10.32.0.0/24", "10.32.0.0/26", "10.33.0.0/26", "10.0.0.0/8"] {
            assert_eq!(free.after(&take(range(refused), 1)), None, "{refused}");
        }
        assert_eq!(ring.after(&take(range("10.32.0.64/27"), 1)), None, "it overlaps another network's");
        let without = ring.after(&Change::GiveUp(vec![host(2)])).unwrap();
        assert!(without.has_part(host(1), part) && !without.mentions(host(2)));
    }

    #[test]
    fn a_host_with_an_old_disk_loses_the_use_of_its_windows() {
        let ring = ring().after(&Change::Open { window: 0, host: host(2), start: start(5) }).unwrap();
        let register = |start| Change::Register { host: host(2), start };
        assert_eq!(ring.after(&register(start(5))), None, "it is known already");
        let next = ring.after(&register(start(6))).unwrap();
        assert_eq!(next.windows_of(host(2)).collect::<Vec<_>>(), [0]);
        let old = ring.after(&register(Start { number: 5, nonce: 77 })).unwrap();
        assert_eq!(old.windows_of(host(2)).count(), 0);
        assert_eq!(old.members[&host(2)], Start { number: 6, nonce: 77 });
        assert_eq!(old.after(&Change::Close { window: 0, host: host(2) }), None);
        let free = old.after(&Change::GiveUp(vec![host(2)])).unwrap();
        assert!(free.windows.is_empty());
    }

    #[test]
    fn a_lent_address_stays_lent_when_its_lender_is_given_up() {
        let ring = ring().after(&Change::Open { window: 2, host: host(2), start: start(1) }).unwrap();
        let address = Ipv4Addr::new(10, 32, 0, 9);
        let lend = Change::Lend { address, from: host(2), to: host(3) };
        assert_eq!(ring.after(&Change::Lend { address, from: host(1), to: host(3) }), None);
        let ring = ring.after(&lend).unwrap();
        assert_eq!(ring.after(&lend), None);
        let ring = ring.after(&Change::GiveUp(vec![host(2)])).unwrap();
        assert_eq!(ring.loans[&address], host(3));
        assert_eq!(ring.after(&Change::Return { address, host: host(2) }), None);
        assert!(ring.after(&Change::Return { address, host: host(3) }).unwrap().loans.is_empty());
        assert!(ring.after(&Change::GiveUp(vec![host(3)])).unwrap().loans.is_empty());
    }

    #[test]
    fn giving_hosts_up_leaves_an_odd_number_of_voters_that_still_outvote_what_may_be_decided() {
        let mut ring = ring();
        for n in 2..=5 {
            ring = ring.after(&Change::Open { window: n.into(), host: host(n), start: start(1) }).unwrap();
        }
        ring = ring.after(&Change::Voters((1..=5).map(host).collect())).unwrap();
        let give_up = |hosts: &[u8]| Change::GiveUp(hosts.iter().copied().map(host).collect());
        assert_eq!(ring.quorum(&give_up(&[])).1, 3);
        assert_eq!(ring.quorum(&give_up(&[5])), ((1..=4).map(host).collect(), 3));
        assert_eq!(ring.quorum(&give_up(&[4, 5])), ((1..=3).map(host).collect(), 3));
        let without_one = ring.after(&give_up(&[5])).unwrap();
        assert_eq!((without_one.id, without_one.voters), (ring.id, (1..=3).map(host).collect::<Vec<_>>()));
        // Without its majority it is another ring, which says from which it goes on.
        let minority = ring.after(&give_up(&[3, 4, 5])).unwrap();
        assert!(minority.id != ring.id && minority.succeeds == [ring.id] && minority.voters == [host(1)]);
        assert_eq!(ring.after(&Change::Voters(vec![host(1), host(2)])), None);
        assert_eq!(ring.after(&Change::Voters(vec![host(9)])), None);
    }
}
