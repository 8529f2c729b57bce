//! Segments: endpoint records of all hosts, MACs learnt from frames, and what the data path sees of both.

mod announcements;
pub(crate) mod local;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use announcements::Announcements;
use tables::Tables;
use weft_crypto::{HostLabel, Time};

use crate::datapath::frame::{GATEWAY_MAC, Mac};
use crate::datapath::snapshot::{Hashing, Owner};
use crate::names::{HIGHEST, LOWEST, Names};
use crate::records::{EndpointId, EndpointRecord, MAX_NAMES, MoreNames, SegmentRecord};
use crate::wire::SegmentId;

/// Conflicts remembered, so that each is reported once.
const MAX_CONFLICTS: usize = 256;

/// All that is known of segments and endpoints.
pub(crate) struct Segments {
    own: HostLabel,
    /// The largest packet that this host's containers take, in bytes.
    container_mtu: u16,
    /// The hosts in a segment, with the name they give it and the largest packet that their containers take there.
    presence: BTreeMap<SegmentId, BTreeMap<HostLabel, SegmentRecord>>,
    /// Names of endpoints that have more than their records take.
    more_names: BTreeMap<(HostLabel, EndpointId), AllNames>,
    /// Claims to MACs, the lowest label first.
    macs: BTreeSet<(SegmentId, Mac, HostLabel, EndpointId)>,
    announcements: Announcements,
    /// The addresses of segments' gateways: every host has them, none lets them out.
    gateways: BTreeMap<SegmentId, BTreeSet<IpAddr>>,
    /// The forwarding tables of this host's segments.
    pub(crate) tables: Tables,
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
            container_mtu,
            presence: BTreeMap::new(),
            more_names: BTreeMap::new(),
            macs: BTreeSet::new(),
            announcements: Announcements::new(now),
            gateways: BTreeMap::new(),
            tables: Tables::new(hashing),
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

    /// A host is in a segment, or (with `None`) left it.
    pub(crate) fn on_segment(&mut self, host: HostLabel, segment: SegmentId, record: Option<SegmentRecord>) {
        match record {
            Some(record) => self.enter(host, segment, record),
            None => self.leave(host, segment),
        }
    }

    fn enter(&mut self, host: HostLabel, segment: SegmentId, record: SegmentRecord) {
        self.presence.entry(segment).or_default().insert(host, record);
        if host == self.own && !self.tables.contains(segment) {
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
            self.tables.close(segment);
            self.announcements.leave(segment);
        }
        self.refresh_flood(segment);
        self.refresh_mtu(segment);
    }

    /// Packets of a segment are no larger than all of its hosts' containers take.
    fn refresh_mtu(&mut self, segment: SegmentId) {
        let smallest = self.presence.get(&segment).and_then(|hosts| hosts.values().map(|record| record.mtu).min());
        smallest.into_iter().for_each(|mtu| self.tables.set_mtu(segment, mtu));
    }

    fn refresh_flood(&mut self, segment: SegmentId) {
        let hosts = self.hosts_in(segment).filter(|host| *host != self.own).collect();
        self.tables.set_flood(segment, hosts);
    }

    /// Builds a segment's tables when this host enters it.
    fn open(&mut self, segment: SegmentId) {
        self.tables.open(segment);
        let macs: Vec<Mac> = self.macs.iter().filter(|claim| claim.0 == segment).map(|claim| claim.1).collect();
        let inside = self.iter().filter(|(_, _, record)| SegmentId::of(&record.segment) == segment);
        let mut ips: Vec<IpAddr> = inside.flat_map(|(_, _, record)| record.ips.iter().map(|(ip, _)| *ip)).collect();
        ips.extend(self.gateways.get(&segment).into_iter().flatten());
        self.refresh_mac(segment, GATEWAY_MAC);
        macs.into_iter().for_each(|mac| self.refresh_mac(segment, mac));
        ips.into_iter().for_each(|ip| self.refresh_ip(segment, ip));
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
        if !self.tables.contains(segment) {
            return;
        }
        let claim = self.mac_claims(segment, mac, ALL).next().map(|(host, _)| host);
        let claim = if mac == GATEWAY_MAC { Some(self.own) } else { claim };
        self.tables.set_mac(segment, mac, claim);
    }

    fn refresh_ip(&mut self, segment: SegmentId, ip: IpAddr) {
        if !self.tables.contains(segment) {
            return;
        }
        let claim = self.ip_claims(segment, ip, ALL).next();
        let owner = claim.and_then(|(host, id)| Some(Owner { mac: self.get(host, &id)?.mac, host }));
        let is_gateway = self.is_gateway(segment, ip);
        let owner = if is_gateway { Some(Owner { mac: GATEWAY_MAC, host: self.own }) } else { owner };
        let before = self.tables.set_ip(segment, ip, owner);
        let moved = self.announcements.note_move((segment, ip), before, owner.map(|owner| owner.mac));
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

    /// Drops learnt MACs that have been silent; notes that time has passed.
    pub(crate) fn age(&mut self, now: Time) {
        self.announcements.age(now);
        self.tables.age(now);
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
    use std::time::Duration;

    use super::*;
    use crate::datapath::neighbour::announcement;

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
        let port = |table: &Segments| table.tables.get(segment).port(&mac).map(|port| (port.host, port.is_recorded()));
        assert!(table.tables.learn(segment, mac, host(5), Time::ZERO));
        table.set(host(3), [3; 16], record(9, [10, 0, 0, 9]));
        assert_eq!(port(&table), Some((host(3), true)));
        assert!(!table.tables.learn(segment, mac, host(5), Time::ZERO));
        table.set(host(2), [2; 16], record(9, [10, 0, 0, 9]));
        assert_eq!(port(&table), Some((host(2), true)));
        table.unset(host(2), [2; 16]);
        assert_eq!(port(&table), Some((host(3), true)));
        table.unset(host(3), [3; 16]);
        assert_eq!(port(&table), None);
        assert_eq!(table.tables.get(segment).ips.len(), 0);
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
    fn a_segment_has_the_smallest_mtu_of_its_hosts() {
        let (mut table, segment) = table();
        assert_eq!(table.tables.take_new_mtus(), BTreeMap::from([(segment, 1450)]));
        table.on_segment(host(2), segment, present(8950));
        assert_eq!(table.tables.take_new_mtus(), BTreeMap::new());
        table.on_segment(host(3), segment, present(1300));
        assert_eq!(table.tables.take_new_mtus(), BTreeMap::from([(segment, 1300)]));
        table.on_segment(host(3), segment, present(7));
        assert_eq!(table.tables.take_new_mtus(), BTreeMap::from([(segment, 1280)]), "no member makes it unusable");
        table.on_segment(host(3), segment, None);
        assert_eq!(table.tables.take_new_mtus(), BTreeMap::from([(segment, 1450)]));
        assert_eq!(table.tables.get(segment).mtu, 1450);
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
        assert!(table.tables.ids().next().is_none());
        table.on_segment(host(1), segment, present(1450));
        let switch = table.tables.get(segment);
        // The gateway's MAC is there, too.
        assert_eq!((switch.macs.len(), switch.ips.len(), &switch.flood[..]), (2, 1, &[host(3)][..]));
    }
}
