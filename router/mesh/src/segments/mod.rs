//! Segments: endpoint records of all hosts, MACs learnt from frames, and what the data path sees of both.

mod announcements;
pub(crate) mod directory;
pub(crate) mod local;
pub(crate) mod networks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use announcements::Announcements;
use weft_crypto::{HostLabel, Time};

use crate::frame::{GATEWAY_MAC, Mac};
use crate::names::{HIGHEST, LOWEST, Names};
use crate::records::{EndpointId, EndpointRecord, MAX_NAMES, MoreNames, SegmentRecord};
use crate::snapshot::{Hashing, Learnt, Owner, Segment};
use crate::wire::{MIN_MTU, SegmentId};

/// How long a learnt MAC stays without a frame from it.
const LEARNT_LIFETIME: Duration = Duration::from_secs(300);
/// How soon a learnt MAC may move again.
const MOVE_INTERVAL: Duration = Duration::from_secs(1);
/// Learnt MACs of one segment.
const MAX_LEARNT: usize = 4096;
/// Conflicts remembered, so that each is reported once.
const MAX_CONFLICTS: usize = 256;

/// All that is known of segments and endpoints.
pub(crate) struct Segments {
    own: HostLabel,
    hashing: Hashing,
    /// The largest packet that this host's containers take, in bytes.
    container_mtu: u16,
    /// The hosts in a segment, with the name they give it and the largest packet that their containers take there.
    presence: BTreeMap<SegmentId, BTreeMap<HostLabel, SegmentRecord>>,
    /// Names of endpoints that have more than their records take.
    more_names: BTreeMap<(HostLabel, EndpointId), AllNames>,
    /// Segments of this host whose MTU has changed.
    new_mtus: BTreeMap<SegmentId, u16>,
    /// Claims to MACs, the lowest label first.
    macs: BTreeSet<(SegmentId, Mac, HostLabel, EndpointId)>,
    announcements: Announcements,
    /// The addresses of segments' gateways: every host has them, none lets them out.
    gateways: BTreeMap<SegmentId, BTreeSet<IpAddr>>,
    /// The forwarding tables of this host's segments.
    segments: BTreeMap<SegmentId, Segment>,
    changed: BTreeSet<SegmentId>,
    /// Conflicts that were reported.
    conflicts: BTreeSet<(String, HostLabel)>,
    /// All endpoints and their names, as the DNS server sees them, and whether that changed.
    names: Names,
    names_changed: bool,
}

/// All names of one endpoint.
#[derive(Default)]
struct AllNames {
    /// Names in the endpoint's record.
    own: Box<[String]>,
    /// Names in further records.
    parts: BTreeMap<u8, Box<[String]>>,
}

impl AllNames {
    fn joined(&self) -> Box<[String]> {
        self.own.iter().chain(self.parts.values().flatten()).take(MAX_NAMES).cloned().collect()
    }
}

type Hosts = RangeInclusive<HostLabel>;
const ALL: Hosts = LOWEST.0..=HIGHEST.0;

impl Segments {
    pub(crate) fn new(own: HostLabel, container_mtu: u16, hashing: Hashing, now: Time) -> Self {
        Segments {
            own,
            hashing,
            container_mtu,
            presence: BTreeMap::new(),
            more_names: BTreeMap::new(),
            new_mtus: BTreeMap::new(),
            macs: BTreeSet::new(),
            announcements: Announcements::new(now),
            gateways: BTreeMap::new(),
            segments: BTreeMap::new(),
            changed: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            names: Names::new(own),
            names_changed: false,
        }
    }

    /// All endpoints with their hosts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (HostLabel, EndpointId, &EndpointRecord)> {
        self.names.iter()
    }

    /// One endpoint.
    pub(crate) fn get(&self, host: HostLabel, id: &EndpointId) -> Option<&EndpointRecord> {
        self.names.get(host, *id).map(|record| &**record)
    }

    /// The hosts known to be in a segment.
    pub(crate) fn hosts_in(&self, segment: SegmentId) -> impl Iterator<Item = HostLabel> {
        self.presence.get(&segment).into_iter().flat_map(|hosts| hosts.keys().copied())
    }

    /// The segments of this host.
    pub(crate) fn local_segments(&self) -> impl Iterator<Item = SegmentId> {
        self.segments.keys().copied()
    }

    /// A host is in a segment, or (with `None`) left it.
    pub(crate) fn on_segment(&mut self, host: HostLabel, segment: SegmentId, record: Option<SegmentRecord>) {
        match record {
            Some(record) => self.enter(host, segment, record),
            None => self.leave(host, segment),
        }
    }

    fn enter(&mut self, host: HostLabel, segment: SegmentId, record: SegmentRecord) {
        self.presence.entry(segment).or_default().insert(host, record);
        if host == self.own && !self.segments.contains_key(&segment) {
            self.open(segment);
        }
        self.refresh_flood(segment);
        self.refresh_mtu(segment);
    }

    fn leave(&mut self, host: HostLabel, segment: SegmentId) {
        if let Some(hosts) = self.presence.get_mut(&segment) {
            hosts.remove(&host);
            if hosts.is_empty() {
                self.presence.remove(&segment);
            }
        }
        if host == self.own {
            self.segments.remove(&segment);
            self.announcements.leave(segment);
            self.changed.insert(segment);
        }
        self.refresh_flood(segment);
        self.refresh_mtu(segment);
    }

    /// Packets of a segment are no larger than all of its hosts' containers take.
    fn refresh_mtu(&mut self, segment: SegmentId) {
        let smallest = self.presence.get(&segment).and_then(|hosts| hosts.values().map(|record| record.mtu).min());
        let (Some(switch), Some(mtu)) = (self.segments.get_mut(&segment), smallest) else { return };
        let mtu = mtu.max(MIN_MTU as u16);
        if switch.mtu != mtu {
            switch.mtu = mtu;
            self.new_mtus.insert(segment, mtu);
            self.changed.insert(segment);
        }
    }

    /// Segments of this host whose MTU has changed since the last call, with the new one in bytes.
    pub(crate) fn take_new_mtus(&mut self) -> BTreeMap<SegmentId, u16> {
        std::mem::take(&mut self.new_mtus)
    }

    fn refresh_flood(&mut self, segment: SegmentId) {
        let own = self.own;
        let hosts: Arc<[HostLabel]> = self.hosts_in(segment).filter(|host| *host != own).collect();
        if let Some(switch) = self.segments.get_mut(&segment)
            && switch.flood != hosts
        {
            switch.flood = hosts;
            self.changed.insert(segment);
        }
    }

    /// Builds a segment's tables when this host enters it.
    fn open(&mut self, segment: SegmentId) {
        self.segments.insert(segment, Segment::empty(segment, self.hashing));
        let macs: Vec<Mac> = self.macs.iter().filter(|claim| claim.0 == segment).map(|claim| claim.1).collect();
        let inside = self.iter().filter(|(_, _, record)| SegmentId::of(&record.segment) == segment);
        let mut ips: Vec<IpAddr> = inside.flat_map(|(_, _, record)| record.ips.iter().map(|(ip, _)| *ip)).collect();
        ips.extend(self.gateways.get(&segment).into_iter().flatten());
        self.refresh_mac(segment, GATEWAY_MAC);
        macs.into_iter().for_each(|mac| self.refresh_mac(segment, mac));
        ips.into_iter().for_each(|ip| self.refresh_ip(segment, ip));
        self.changed.insert(segment);
    }

    /// The segment's gateway has these addresses on every host.
    pub(crate) fn set_gateways(&mut self, segment: SegmentId, gateways: BTreeSet<IpAddr>) {
        let before = match gateways.is_empty() {
            true => self.gateways.remove(&segment),
            false => self.gateways.insert(segment, gateways.clone()),
        };
        let concerned: BTreeSet<IpAddr> = before.into_iter().flatten().chain(gateways).collect();
        self.refresh_mac(segment, GATEWAY_MAC);
        concerned.into_iter().for_each(|ip| self.refresh_ip(segment, ip));
    }

    /// Whether an address is the gateway's.
    pub(crate) fn is_gateway(&self, segment: SegmentId, ip: IpAddr) -> bool {
        self.gateways.get(&segment).is_some_and(|gateways| gateways.contains(&ip))
    }

    /// A host has an endpoint, or (with `None`) no longer. Returns the conflicts with this host's endpoints that are news:
    /// the claim, and the host whose right is better.
    pub(crate) fn on_endpoint(
        &mut self,
        host: HostLabel,
        id: EndpointId,
        record: Option<EndpointRecord>,
    ) -> Vec<(String, HostLabel)> {
        match record {
            Some(record) => {
                self.set(host, id, record.clone());
                self.new_conflicts(&record)
            }
            None => {
                self.unset(host, id);
                Vec::new()
            }
        }
    }

    fn set(&mut self, host: HostLabel, id: EndpointId, mut record: EndpointRecord) {
        self.unset(host, id);
        if let Some(all) = self.more_names.get_mut(&(host, id)) {
            all.own = std::mem::take(&mut record.names);
            record.names = all.joined();
        }
        let record = Arc::new(record);
        self.names.set(host, id, record.clone());
        self.names_changed = true;
        let segment = SegmentId::of(&record.segment);
        self.macs.insert((segment, record.mac, host, id));
        self.refresh_mac(segment, record.mac);
        record.ips.iter().for_each(|(ip, _)| self.refresh_ip(segment, *ip));
    }

    /// An endpoint has further names, or (with `None`) no longer those of this part.
    pub(crate) fn on_more_names(&mut self, host: HostLabel, id: EndpointId, part: u8, more: Option<MoreNames>) {
        let record = self.names.get(host, id).map(|record| (**record).clone());
        let at = (host, id);
        if more.is_some() && !self.more_names.contains_key(&at) {
            let own = record.as_ref().map(|record| record.names.clone()).unwrap_or_default();
            self.more_names.insert(at, AllNames { own, parts: BTreeMap::new() });
        }
        let Some(all) = self.more_names.get_mut(&at) else { return };
        match more {
            Some(more) => all.parts.insert(part, more.names),
            None => all.parts.remove(&part),
        };
        let (own, is_done) = (all.own.clone(), all.parts.is_empty());
        if is_done {
            self.more_names.remove(&at);
        }
        if let Some(record) = record {
            self.set(host, id, EndpointRecord { names: own, ..record });
        }
    }

    fn unset(&mut self, host: HostLabel, id: EndpointId) {
        let Some(record) = self.names.get(host, id).cloned() else { return };
        self.names.unset(host, id);
        self.names_changed = true;
        let segment = SegmentId::of(&record.segment);
        self.macs.remove(&(segment, record.mac, host, id));
        self.refresh_mac(segment, record.mac);
        record.ips.iter().for_each(|(ip, _)| self.refresh_ip(segment, *ip));
    }

    /// Of several claims the lowest label's holds, on every host alike.
    fn refresh_mac(&mut self, segment: SegmentId, mac: Mac) {
        if !self.segments.contains_key(&segment) {
            return;
        }
        let claim = self.mac_claims(segment, mac, ALL).next().map(|(host, _)| host);
        let claim = if mac == GATEWAY_MAC { Some(self.own) } else { claim };
        let Some(switch) = self.segments.get_mut(&segment) else { return };
        match claim {
            Some(host) => {
                switch.learnt.remove(&mac);
                switch.macs.insert(mac, host);
            }
            None => {
                switch.macs.remove(&mac);
            }
        }
        self.changed.insert(segment);
    }

    fn refresh_ip(&mut self, segment: SegmentId, ip: IpAddr) {
        if !self.segments.contains_key(&segment) {
            return;
        }
        let claim = self.ip_claims(segment, ip, ALL).next();
        let owner = claim.and_then(|(host, id)| Some(Owner { mac: self.get(host, &id)?.mac, host }));
        let is_gateway = self.is_gateway(segment, ip);
        let owner = if is_gateway { Some(Owner { mac: GATEWAY_MAC, host: self.own }) } else { owner };
        let Some(switch) = self.segments.get_mut(&segment) else { return };
        let before = match owner {
            Some(owner) => switch.ips.insert(ip, owner),
            None => switch.ips.remove(&ip),
        };
        self.changed.insert(segment);
        let moved =
            self.announcements.note_move((segment, ip), before.map(|owner| owner.mac), owner.map(|owner| owner.mac));
        if let Some(owner) = owner.filter(|_| moved) {
            self.announce((segment, ip), owner);
        }
    }

    /// Tells containers of this host at which MAC an address is. An IPv6 address of this host is not announced to its owner: it may
    /// be looking whether another has it (RFC 4862, section 5.4), and would take this for one.
    fn announce(&mut self, (segment, ip): (SegmentId, IpAddr), owner: Owner) {
        let inside = (segment, [0; 6], *ALL.start(), LOWEST.1)..=(segment, [0xff; 6], *ALL.end(), HIGHEST.1);
        let others = self.macs.range(inside).filter(|(_, mac, host, _)| *host == self.own && *mac != owner.mac);
        let may_tell_all = owner.host != self.own || ip.is_ipv4();
        self.announcements.push(segment, (owner.mac, ip), (!may_tell_all).then(|| others.map(|(_, mac, ..)| *mac)));
    }

    /// Frames for the containers of segments of this host, since the last call.
    pub(crate) fn take_announcements(&mut self) -> Vec<(SegmentId, Vec<u8>)> {
        self.announcements.take()
    }

    /// A frame came from a MAC that no record has. True if the table changed.
    pub(crate) fn learn(&mut self, segment: SegmentId, mac: Mac, host: HostLabel, now: Time) -> bool {
        let Some(switch) = self.segments.get_mut(&segment) else { return false };
        if switch.macs.contains_key(&mac) {
            return false;
        }
        match switch.learnt.get(&mac) {
            Some(learnt) if learnt.host == host || now.since(learnt.moved) < MOVE_INTERVAL => return false,
            None if switch.learnt.len() >= MAX_LEARNT => return false,
            _ => {}
        }
        switch.learnt.insert(mac, Learnt { host, moved: now, seen: Arc::new(AtomicU64::new(now.as_nanos())) });
        self.changed.insert(segment);
        true
    }

    /// Drops learnt MACs that have been silent; notes that time has passed.
    pub(crate) fn age(&mut self, now: Time) {
        self.announcements.age(now);
        let is_live =
            |learnt: &Learnt| now.since(Time::from_nanos(learnt.seen.load(Ordering::Relaxed))) < LEARNT_LIFETIME;
        for (id, switch) in &mut self.segments {
            // What is published shares the table: it is not copied for nothing.
            if !switch.learnt.values().all(is_live) {
                switch.learnt.retain(|_, learnt| is_live(learnt));
                self.changed.insert(*id);
            }
        }
    }

    /// Segments whose tables changed since the last call; `None` for one that is gone.
    pub(crate) fn take_changed(&mut self) -> Vec<(SegmentId, Option<Arc<Segment>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id, self.segments.get(&id).cloned().map(Arc::new))).collect()
    }

    /// Returns the conflicts of a record with this host's endpoints that were not reported yet.
    fn new_conflicts(&mut self, record: &EndpointRecord) -> Vec<(String, HostLabel)> {
        let mut news = self.conflicts(record);
        news.retain(|conflict| self.conflicts.len() < MAX_CONFLICTS && self.conflicts.insert(conflict.clone()));
        news
    }

    /// Returns the addresses and MAC in `record` that a local endpoint also claims and another host wins.
    fn conflicts(&self, record: &EndpointRecord) -> Vec<(String, HostLabel)> {
        let segment = SegmentId::of(&record.segment);
        let own = self.own..=self.own;
        let winner = |first: Option<(HostLabel, EndpointId)>, has_own: bool| {
            first.map(|(host, _)| host).filter(|host| has_own && *host != self.own)
        };
        let ips = record.ips.iter().filter_map(|(ip, _)| {
            let has_own = self.ip_claims(segment, *ip, own.clone()).next().is_some();
            Some((ip.to_string(), winner(self.ip_claims(segment, *ip, ALL).next(), has_own)?))
        });
        let has_own = self.mac_claims(segment, record.mac, own.clone()).next().is_some();
        let mac = winner(self.mac_claims(segment, record.mac, ALL).next(), has_own);
        ips.chain(mac.map(|host| ("its MAC".to_owned(), host))).collect()
    }

    /// A name that an operator added on a host stands for addresses, or (with `None`) for nothing any more.
    pub(crate) fn set_entry(&mut self, host: HostLabel, name: &str, ips: Option<Vec<IpAddr>>) {
        self.names.set_entry(host, name, ips);
        self.names_changed = true;
    }

    /// Sets the hosts that can be reached: the cost of the way to each, and its nickname.
    pub(crate) fn set_reach(&mut self, reach: BTreeMap<HostLabel, (u32, String)>) {
        self.names.set_reach(reach);
        self.names_changed = true;
    }

    /// The names for the DNS server, if they changed since the last call.
    pub(crate) fn take_names(&mut self) -> Option<Names> {
        std::mem::take(&mut self.names_changed).then(|| self.names.clone())
    }

    /// Claims to a MAC, the lowest label first.
    fn mac_claims(&self, segment: SegmentId, mac: Mac, hosts: Hosts) -> impl Iterator<Item = (HostLabel, EndpointId)> {
        let range = (segment, mac, *hosts.start(), LOWEST.1)..=(segment, mac, *hosts.end(), HIGHEST.1);
        self.macs.range(range).map(|(_, _, host, id)| (*host, *id))
    }

    /// Claims to an address, the lowest label first.
    fn ip_claims(&self, segment: SegmentId, ip: IpAddr, hosts: Hosts) -> impl Iterator<Item = (HostLabel, EndpointId)> {
        self.names.claims(segment, ip, hosts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbour::announcement;

    fn host(n: u8) -> HostLabel {
        HostLabel([n; 6])
    }

    fn record(mac: u8, ip: [u8; 4]) -> EndpointRecord {
        let ips = [(IpAddr::from(ip), 24)].into();
        EndpointRecord {
            segment: "s".into(),
            mac: [2, 0, 0, 0, 0, mac],
            ips,
            names: [].into(),
            health: Default::default(),
            services: [].into(),
        }
    }

    fn present(mtu: u16) -> Option<SegmentRecord> {
        Some(SegmentRecord { name: "s".into(), mtu })
    }

    fn table() -> (Segments, SegmentId) {
        let segment = SegmentId::of("s");
        let mut table = Segments::new(host(1), 1450, Hashing(1, 2), Time::ZERO);
        table.on_segment(host(1), segment, present(1450));
        (table, segment)
    }

    #[test]
    fn records_beat_what_was_learnt_and_the_next_claim_takes_over() {
        let (mut table, segment) = table();
        let mac = [2, 0, 0, 0, 0, 9];
        let port = |table: &Segments| table.segments[&segment].port(&mac).map(|port| (port.host, port.is_recorded()));
        assert!(table.learn(segment, mac, host(5), Time::ZERO));
        table.set(host(3), [3; 16], record(9, [10, 0, 0, 9]));
        assert_eq!(port(&table), Some((host(3), true)));
        assert!(!table.learn(segment, mac, host(5), Time::ZERO));
        table.set(host(2), [2; 16], record(9, [10, 0, 0, 9]));
        assert_eq!(port(&table), Some((host(2), true)));
        table.unset(host(2), [2; 16]);
        assert_eq!(port(&table), Some((host(3), true)));
        table.unset(host(3), [3; 16]);
        assert_eq!(port(&table), None);
        assert_eq!(table.segments[&segment].ips.len(), 0);
    }

    #[test]
    fn neighbours_are_told_of_an_address_that_is_at_another_mac_and_of_nothing_else() {
        let (mut table, segment) = table();
        let ip = IpAddr::from([10, 0, 0, 9]);
        let told = |table: &mut Segments| table.take_announcements();
        table.set(host(3), [1; 16], record(5, [10, 0, 0, 5]));
        let first = (segment, announcement([2, 0, 0, 0, 0, 5], IpAddr::from([10, 0, 0, 5])));
        assert!(told(&mut table).contains(&first), "before this life of the router it may have been at another");
        table.age(Time::ZERO + Duration::from_secs(600));
        table.set(host(3), [3; 16], record(9, [10, 0, 0, 9]));
        assert_eq!(told(&mut table), [], "no neighbour knew another");
        table.unset(host(3), [3; 16]);
        table.set(host(3), [4; 16], record(9, [10, 0, 0, 9]));
        assert_eq!(told(&mut table), [], "the same again");
        table.unset(host(3), [4; 16]);
        table.set(host(4), [5; 16], record(8, [10, 0, 0, 9]));
        assert_eq!(told(&mut table), [(segment, announcement([2, 0, 0, 0, 0, 8], ip))]);
        // An older right to it, of another host.
        table.set(host(2), [6; 16], record(7, [10, 0, 0, 9]));
        assert_eq!(told(&mut table), [(segment, announcement([2, 0, 0, 0, 0, 7], ip))]);
        table.set(host(5), [7; 16], record(6, [10, 0, 0, 9]));
        assert_eq!(told(&mut table), []);
        // A container of this host that comes up would take it for another with its address.
        let v6 = |mac: u8| EndpointRecord { ips: [("fd00::9".parse().unwrap(), 64)].into(), ..record(mac, [0; 4]) };
        table.set(host(1), [9; 16], record(4, [10, 0, 0, 4]));
        table.set(host(1), [8; 16], v6(2));
        table.set(host(1), [8; 16], v6(3));
        let expected = announcement([2, 0, 0, 0, 0, 3], "fd00::9".parse().unwrap());
        assert_eq!(told(&mut table), [(segment, [&[2, 0, 0, 0, 0, 4], &expected[6..]].concat())]);
    }

    #[test]
    fn learnt_macs_move_slowly_and_age() {
        let (mut table, segment) = table();
        let mac = [2, 0, 0, 0, 0, 9];
        let at = |millis| Time::ZERO + Duration::from_millis(millis);
        assert!(table.learn(segment, mac, host(5), at(0)));
        assert!(!table.learn(segment, mac, host(6), at(500)));
        assert!(table.learn(segment, mac, host(6), at(1500)));
        table.age(at(200_000));
        assert!(table.segments[&segment].port(&mac).is_some());
        table.age(at(302_000));
        assert!(table.segments[&segment].port(&mac).is_none());
    }

    #[test]
    fn a_segment_has_the_smallest_mtu_of_its_hosts() {
        let (mut table, segment) = table();
        assert_eq!(table.take_new_mtus(), BTreeMap::from([(segment, 1450)]));
        table.on_segment(host(2), segment, present(8950));
        assert_eq!(table.take_new_mtus(), BTreeMap::new());
        table.on_segment(host(3), segment, present(1300));
        assert_eq!(table.take_new_mtus(), BTreeMap::from([(segment, 1300)]));
        table.on_segment(host(3), segment, present(7));
        assert_eq!(table.take_new_mtus(), BTreeMap::from([(segment, 1280)]), "no member makes it unusable");
        table.on_segment(host(3), segment, None);
        assert_eq!(table.take_new_mtus(), BTreeMap::from([(segment, 1450)]));
        assert_eq!(table.segments[&segment].mtu, 1450);
    }

    #[test]
    fn further_names_come_and_go_in_any_order() {
        let (mut table, _) = table();
        let more = |name: &str| Some(MoreNames { names: [name.to_owned()].into() });
        let names = |table: &Segments| table.get(host(3), &[3; 16]).map(|record| record.names.join(" "));
        let named = || EndpointRecord { names: ["web".into()].into(), ..record(9, [10, 0, 0, 9]) };
        table.on_more_names(host(3), [3; 16], 1, more("b"));
        assert_eq!(names(&table), None);
        table.set(host(3), [3; 16], named());
        table.on_more_names(host(3), [3; 16], 0, more("a"));
        assert_eq!(names(&table).as_deref(), Some("web a b"));
        table.set(host(3), [3; 16], named());
        assert_eq!(names(&table).as_deref(), Some("web a b"));
        table.on_more_names(host(3), [3; 16], 1, None);
        table.on_more_names(host(3), [3; 16], 0, None);
        assert_eq!(names(&table).as_deref(), Some("web"));
        assert!(table.more_names.is_empty());
    }

    #[test]
    fn a_segment_entered_late_has_all_that_was_known() {
        let mut table = Segments::new(host(1), 1450, Hashing(1, 2), Time::ZERO);
        let segment = SegmentId::of("s");
        table.set(host(3), [3; 16], record(9, [10, 0, 0, 9]));
        table.on_segment(host(3), segment, present(1450));
        assert!(table.segments.is_empty());
        table.on_segment(host(1), segment, present(1450));
        let switch = &table.segments[&segment];
        // The gateway's MAC is there, too.
        assert_eq!((switch.macs.len(), switch.ips.len(), &switch.flood[..]), (2, 1, &[host(3)][..]));
    }
}
