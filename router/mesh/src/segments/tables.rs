//! The forwarding tables of this host's segments, as the data path will see them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use crate::datapath::frame::Mac;
use crate::datapath::snapshot::{Hashing, Learnt, Owner, Segment};
use crate::wire::{MIN_MTU, SegmentId};

/// How long a learnt MAC stays without a frame from it.
const LEARNT_LIFETIME: Duration = Duration::from_secs(300);
/// How soon a learnt MAC may move again.
const MOVE_INTERVAL: Duration = Duration::from_secs(1);
/// Learnt MACs of one segment.
const MAX_LEARNT: usize = 4096;

/// One table for each segment of this host, and which of them changed.
pub(crate) struct Tables {
    hashing: Hashing,
    segments: BTreeMap<SegmentId, Segment>,
    changed: BTreeSet<SegmentId>,
    new_mtus: BTreeMap<SegmentId, u16>,
}

impl Tables {
    pub(super) fn new(hashing: Hashing) -> Self {
        Tables { hashing, segments: BTreeMap::new(), changed: BTreeSet::new(), new_mtus: BTreeMap::new() }
    }

    /// The segments of this host.
    pub(crate) fn ids(&self) -> impl Iterator<Item = SegmentId> {
        self.segments.keys().copied()
    }

    pub(super) fn contains(&self, segment: SegmentId) -> bool {
        self.segments.contains_key(&segment)
    }

    /// Adds an empty table.
    pub(super) fn open(&mut self, segment: SegmentId) {
        self.segments.insert(segment, Segment::empty(segment, self.hashing));
        self.changed.insert(segment);
    }

    pub(super) fn close(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
        self.changed.insert(segment);
    }

    /// Sets the other hosts of a segment.
    pub(super) fn set_flood(&mut self, segment: SegmentId, hosts: Arc<[HostLabel]>) {
        if let Some(table) = self.segments.get_mut(&segment)
            && table.flood != hosts
        {
            table.flood = hosts;
            self.changed.insert(segment);
        }
    }

    /// Sets the largest packet of a segment, in bytes: no member makes it smaller than [`MIN_MTU`].
    pub(super) fn set_mtu(&mut self, segment: SegmentId, mtu: u16) {
        let mtu = mtu.max(MIN_MTU as u16);
        if let Some(table) = self.segments.get_mut(&segment)
            && table.mtu != mtu
        {
            table.mtu = mtu;
            self.new_mtus.insert(segment, mtu);
            self.changed.insert(segment);
        }
    }

    /// Sets the host that has a MAC by its records; they beat what was learnt.
    pub(super) fn set_mac(&mut self, segment: SegmentId, mac: Mac, host: Option<HostLabel>) {
        let Some(table) = self.segments.get_mut(&segment) else { return };
        match host {
            Some(host) => {
                table.learnt.remove(&mac);
                table.macs.insert(mac, host);
            }
            None => drop(table.macs.remove(&mac)),
        }
        self.changed.insert(segment);
    }

    /// Sets the owner of an address; returns the MAC it was at.
    pub(super) fn set_ip(&mut self, segment: SegmentId, ip: IpAddr, owner: Option<Owner>) -> Option<Mac> {
        let table = self.segments.get_mut(&segment)?;
        self.changed.insert(segment);
        let before = match owner {
            Some(owner) => table.ips.insert(ip, owner),
            None => table.ips.remove(&ip),
        };
        before.map(|owner| owner.mac)
    }

    /// Learns that a frame came from a MAC that no record has. True if the table changed.
    pub(crate) fn learn(&mut self, segment: SegmentId, mac: Mac, host: HostLabel, now: Time) -> bool {
        let Some(table) = self.segments.get_mut(&segment) else { return false };
        if table.macs.contains_key(&mac) {
            return false;
        }
        match table.learnt.get(&mac) {
            Some(learnt) if learnt.host == host || now.since(learnt.moved) < MOVE_INTERVAL => return false,
            None if table.learnt.len() >= MAX_LEARNT => return false,
            _ => {}
        }
        table.learnt.insert(mac, Learnt { host, moved: now, seen: Arc::new(AtomicU64::new(now.as_nanos())) });
        self.changed.insert(segment);
        true
    }

    /// Drops learnt MACs that have been silent.
    pub(super) fn age(&mut self, now: Time) {
        let is_live =
            |learnt: &Learnt| now.since(Time::from_nanos(learnt.seen.load(Ordering::Relaxed))) < LEARNT_LIFETIME;
        for (id, table) in &mut self.segments {
            // The published table shares this one's memory: it is not copied for nothing.
            if !table.learnt.values().all(is_live) {
                table.learnt.retain(|_, learnt| is_live(learnt));
                self.changed.insert(*id);
            }
        }
    }

    /// Segments whose tables changed since the last call; `None` for a segment this host left.
    pub(crate) fn take_changed(&mut self) -> Vec<(SegmentId, Option<Arc<Segment>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.segments.get(&id).cloned().map(Arc::new))).collect()
    }

    /// Segments of this host whose MTU has changed since the last call, with the new one in bytes.
    pub(crate) fn take_new_mtus(&mut self) -> BTreeMap<SegmentId, u16> {
        std::mem::take(&mut self.new_mtus)
    }

    #[cfg(test)]
    pub(super) fn get(&self, segment: SegmentId) -> &Segment {
        &self.segments[&segment]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    fn host(n: u8) -> HostLabel {
        HostLabel([n; 6])
    }

    #[test]
    fn learnt_macs_move_slowly_age_and_give_way_to_records() {
        let segment = SegmentId::of("s");
        let mut tables = Tables::new(Hashing(1, 2));
        tables.open(segment);
        let at = |millis| Time::ZERO + Duration::from_millis(millis);
        assert!(tables.learn(segment, MAC, host(5), at(0)));
        assert!(!tables.learn(segment, MAC, host(6), at(500)));
        assert!(tables.learn(segment, MAC, host(6), at(1500)));
        tables.age(at(200_000));
        assert!(tables.get(segment).port(&MAC).is_some());
        tables.age(at(302_000));
        assert!(tables.get(segment).port(&MAC).is_none());
        tables.learn(segment, MAC, host(5), at(303_000));
        tables.set_mac(segment, MAC, Some(host(7)));
        assert!(!tables.learn(segment, MAC, host(5), at(305_000)));
        assert_eq!(tables.get(segment).port(&MAC).map(|port| (port.host, port.is_recorded())), Some((host(7), true)));
    }

    #[test]
    fn only_tables_that_changed_are_given_out() {
        let segment = SegmentId::of("s");
        let mut tables = Tables::new(Hashing(1, 2));
        tables.open(segment);
        assert_eq!(tables.take_changed().len(), 1);
        tables.set_mtu(segment, 1450);
        assert_eq!((tables.take_changed().len(), tables.take_new_mtus().len()), (1, 1));
        tables.set_mtu(segment, 1450);
        assert_eq!((tables.take_changed().len(), tables.take_new_mtus().len()), (0, 0));
        tables.close(segment);
        assert!(matches!(tables.take_changed()[..], [(_, None)]));
        assert!(!tables.learn(segment, MAC, host(5), Time::ZERO));
    }
}
