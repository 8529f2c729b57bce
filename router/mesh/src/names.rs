//! Names of containers, as the DNS server sees them.
//!
//! A [`Names`] is a value: copying one is cheap, changing one leaves copies as they were. Names are kept per segment; a
//! question comes with the segments that the client is in; other segments stay hidden.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::Serialize;
use weft_crypto::HostLabel;

use crate::records::{EndpointId, EndpointRecord, Health, Service};
use crate::wire::SegmentId;

type EndpointKey = (HostLabel, EndpointId);
/// Stands for a name where there are many: two names may have one.
type NameHash = u64;
type Addresses = Arc<[(IpAddr, u8)]>;
/// Most have one: a tree for each would cost a thousand times its content.
type Few<T> = Arc<[T]>;

/// Keys that no endpoint's is below or above.
pub(crate) const LOWEST: EndpointKey = (HostLabel([0; 6]), [0; 16]);
pub(crate) const HIGHEST: EndpointKey = (HostLabel([0xff; 6]), [0xff; 16]);

/// All names, and which hosts can be reached.
#[derive(Clone, Default)]
pub struct Names {
    own: HostLabel,
    endpoints: OrdMap<EndpointKey, Arc<EndpointRecord>>,
    by_name: OrdSet<(NameHash, SegmentId, EndpointKey)>,
    by_ip: OrdSet<(IpAddr, SegmentId, EndpointKey)>,
    /// How many endpoints are in which segment, by the segments' names.
    segments: OrdMap<Box<str>, Few<(SegmentId, usize)>>,
    /// Names that people added, by name and by the host they were added on.
    entries: OrdMap<Box<str>, Few<(HostLabel, Addresses)>>,
    /// Hosts that can be reached, with the cost of the way there and the nickname.
    reach: Arc<BTreeMap<HostLabel, (u32, String)>>,
}

/// A name that a user added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Added {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub ips: Vec<IpAddr>,
    /// The nickname of the host it was added on, if that can be reached.
    pub host: Option<String>,
}

/// The segments that a question may be answered from.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Those that the asker is in.
    Segments(&'a [SegmentId]),
    /// Those that a container with these addresses is in: it finds itself, however it is.
    Container(&'a [SegmentId], &'a [IpAddr]),
    /// All: for the operator.
    All,
}

/// An endpoint, or an entry that a user added, that has a name and can be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder<'a> {
    /// How far away, in classes: 0 is this host, each further one about twice as far.
    pub distance: u32,
    /// The nickname of the host that it is on, or where the name was added. Several hosts may have one nickname.
    pub host: &'a str,
    /// Its addresses, with their prefix lengths.
    pub ips: &'a [(IpAddr, u8)],
    /// Its names, the first of them its own; none for a name that people added.
    pub names: &'a [String],
    /// Its segment; none for a name that people added.
    pub segment: Option<&'a str>,
    /// What it serves.
    pub services: &'a [Service],
    /// How it is.
    pub health: Health,
}

/// What is known of a name or an address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found<'a> {
    /// Holders that can be answered.
    pub holders: Vec<Holder<'a>>,
    /// Whether any endpoint has the name, healthy and reachable or not: no other resolver is asked then.
    pub is_known: bool,
}

impl Names {
    /// No names yet.
    pub fn new(own: HostLabel) -> Self {
        let reach = Arc::new(BTreeMap::from([(own, (0, String::new()))]));
        Names { own, reach, ..Names::default() }
    }

    /// How many names there are, those of several holders counted for each.
    pub fn len(&self) -> usize {
        self.by_name.len() + self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An endpoint is there, or there anew.
    pub fn set(&mut self, host: HostLabel, id: EndpointId, record: impl Into<Arc<EndpointRecord>>) {
        let record = record.into();
        self.unset(host, id);
        let (key, segment) = ((host, id), SegmentId::of(&record.segment));
        for name in &record.names {
            self.by_name.insert((hash_of(name), segment, key));
        }
        for (ip, _) in &record.ips {
            self.by_ip.insert((*ip, segment, key));
        }
        self.count_segment(&record, 1);
        self.endpoints.insert(key, record);
    }

    /// An endpoint is gone.
    pub fn unset(&mut self, host: HostLabel, id: EndpointId) {
        let key = (host, id);
        let Some(record) = self.endpoints.remove(&key) else { return };
        let segment = SegmentId::of(&record.segment);
        for name in &record.names {
            self.by_name.remove(&(hash_of(name), segment, key));
        }
        for (ip, _) in &record.ips {
            self.by_ip.remove(&(*ip, segment, key));
        }
        self.count_segment(&record, -1);
    }

    fn count_segment(&mut self, record: &EndpointRecord, change: isize) {
        let (name, segment) = (folded(&record.segment), SegmentId::of(&record.segment));
        let known = self.segments.get(&name).cloned().unwrap_or_default();
        let before = known.iter().find(|(id, _)| *id == segment).map_or(0, |(_, count)| *count);
        let others = known.iter().filter(|(id, _)| *id != segment).copied();
        let after = before.saturating_add_signed(change);
        replace(&mut self.segments, name, others.chain((after > 0).then_some((segment, after))).collect());
    }

    /// A name that people added on a host stands for addresses, or (with `None`) for nothing any more.
    pub fn set_entry(&mut self, host: HostLabel, name: &str, ips: Option<Vec<IpAddr>>) {
        let key = folded(name);
        let known = self.entries.get(&key).cloned().unwrap_or_default();
        let others = known.iter().filter(|(other, _)| *other != host).cloned();
        let own = ips.map(|ips| (host, ips.into_iter().map(|ip| (ip, 0)).collect()));
        replace(&mut self.entries, key, others.chain(own).collect());
    }

    /// Names that people added, with their addresses and the nickname of the host they were added on, as far as that is reached.
    pub fn added(&self) -> Vec<Added> {
        let added = |name: &str, (host, ips): &(HostLabel, Addresses)| Added {
            name: name.to_owned(),
            ips: ips.iter().map(|(ip, _)| *ip).collect(),
            host: self.place(*host).map(|(_, name)| name.to_owned()),
        };
        let entries = self.entries.iter();
        entries.flat_map(|(name, of_hosts)| of_hosts.iter().map(move |entry| added(name, entry))).collect()
    }

    /// Which hosts can be reached, this one included: the cost of the way there, and the nickname.
    pub fn set_reach(&mut self, reach: BTreeMap<HostLabel, (u32, String)>) {
        self.reach = Arc::new(reach);
    }

    /// Who has a name, written `name` or `name.network`.
    pub fn lookup(&self, scope: Scope, name: &str) -> Found<'_> {
        let name = folded(name);
        let whole = self.named(scope, &name, None);
        if whole.is_known {
            return scope.best_of(whole);
        }
        let splits = name.match_indices('.').map(|(dot, _)| (&name[..dot], &name[dot + 1..]));
        let in_network = splits.rev().map(|(own, network)| self.named(scope, own, Some(network)));
        scope.best_of(in_network.into_iter().find(|found| found.is_known).unwrap_or_default())
    }

    fn named(&self, scope: Scope, name: &str, network: Option<&str>) -> Found<'_> {
        let mut found = Found::default();
        let hash = hash_of(name);
        let keys = self.by_name.range((hash, SegmentId::LOWEST, LOWEST)..=(hash, SegmentId::HIGHEST, HIGHEST));
        for (_, _, key) in keys.filter(|(_, segment, _)| scope.contains(segment)) {
            let Some(record) = self.endpoints.get(key) else { continue };
            let is_its = record.names.iter().any(|own| own.eq_ignore_ascii_case(name));
            if is_its && network.is_none_or(|network| record.segment.eq_ignore_ascii_case(network)) {
                found.is_known = true;
                found.holders.extend(self.holder(key.0, record));
            }
        }
        let entries =
            self.entries.get(name).filter(|_| network.is_none()).into_iter().flat_map(|entries| entries.iter());
        for (host, ips) in entries {
            found.is_known = true;
            let place = self.place(*host);
            found.holders.extend(place.map(|(distance, host)| Holder {
                distance,
                host,
                ips,
                names: &[],
                segment: None,
                services: &[],
                health: Health::Healthy,
            }));
        }
        found
    }

    /// Who has an address, and a name.
    pub fn holder_of(&self, scope: Scope, ip: IpAddr) -> Found<'_> {
        let mut found = Found::default();
        for (_, _, key) in self.having(ip).filter(|(_, segment, _)| scope.contains(segment)) {
            if let Some(record) = self.endpoints.get(key).filter(|record| !record.names.is_empty()) {
                found.is_known = true;
                found.holders.extend(self.holder(key.0, record));
            }
        }
        scope.best_of(found)
    }

    /// Returns the segments in which an endpoint has an address.
    pub fn segments_of(&self, ip: IpAddr) -> Vec<SegmentId> {
        self.having(ip).map(|(_, segment, _)| *segment).collect()
    }

    fn having(&self, ip: IpAddr) -> impl Iterator<Item = &(IpAddr, SegmentId, EndpointKey)> {
        self.by_ip.range((ip, SegmentId::LOWEST, LOWEST)..=(ip, SegmentId::HIGHEST, HIGHEST))
    }

    /// Endpoints in a segment with an address, of the hosts of a range of labels, the lowest first.
    pub(crate) fn claims(
        &self,
        segment: SegmentId,
        ip: IpAddr,
        hosts: RangeInclusive<HostLabel>,
    ) -> impl Iterator<Item = EndpointKey> {
        let range = (ip, segment, (*hosts.start(), LOWEST.1))..=(ip, segment, (*hosts.end(), HIGHEST.1));
        self.by_ip.range(range).map(|(_, _, key)| *key)
    }

    /// All endpoints with their hosts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (HostLabel, EndpointId, &EndpointRecord)> {
        self.endpoints.iter().map(|((host, id), record)| (*host, *id, &**record))
    }

    /// One endpoint.
    pub(crate) fn get(&self, host: HostLabel, id: EndpointId) -> Option<&Arc<EndpointRecord>> {
        self.endpoints.get(&(host, id))
    }

    /// Returns whether a segment of this name has endpoints.
    pub fn has_segment(&self, scope: Scope, name: &str) -> bool {
        let ids = self.segments.get(&folded(name));
        ids.into_iter().flat_map(|ids| ids.iter()).any(|(segment, _)| scope.contains(segment))
    }

    fn holder<'a>(&'a self, host: HostLabel, record: &'a EndpointRecord) -> Option<Holder<'a>> {
        let (distance, host) = self.place(host)?;
        let EndpointRecord { ips, names, segment, services, health, .. } = record;
        Some(Holder { distance, host, ips, names, segment: Some(segment), services, health: *health })
    }

    /// How far away a host is, and its nickname.
    fn place(&self, host: HostLabel) -> Option<(u32, &str)> {
        let (cost, name) = self.reach.get(&host)?;
        let distance = if host == self.own { 0 } else { 1 + cost.max(&1).ilog2() };
        Some((distance, name))
    }
}

impl Scope<'_> {
    fn contains(&self, segment: &SegmentId) -> bool {
        match self {
            Scope::Segments(segments) | Scope::Container(segments, _) => segments.contains(segment),
            Scope::All => true,
        }
    }

    /// Leaves those of the best health that there is, and the asker itself.
    fn best_of<'f>(&self, mut found: Found<'f>) -> Found<'f> {
        let best = found.holders.iter().map(|holder| holder.health).max().unwrap_or_default().max(Health::Starting);
        let is_asker = |holder: &Holder| match self {
            Scope::Container(_, own) => holder.segment.is_some() && holder.ips.iter().any(|(ip, _)| own.contains(ip)),
            Scope::Segments(_) | Scope::All => false,
        };
        found.holders.retain(|holder| holder.health == best || is_asker(holder));
        found
    }
}

fn hash_of(name: &str) -> NameHash {
    use std::hash::Hasher;
    let mut hasher = siphasher::sip::SipHasher13::new();
    name.bytes().for_each(|byte| hasher.write_u8(byte.to_ascii_lowercase()));
    hasher.finish()
}

/// Names are compared without regard to case (RFC 4343).
fn folded(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

fn replace<K: Ord + Clone, V: Clone>(map: &mut OrdMap<K, Few<V>>, key: K, values: Vec<V>) {
    match values.is_empty() {
        true => map.remove(&key).map(drop),
        false => map.insert(key, values.into()).map(drop),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> HostLabel {
        HostLabel([n; 6])
    }

    fn record(segment: &str, name: &str, ip: u8) -> EndpointRecord {
        EndpointRecord {
            segment: segment.into(),
            mac: [2, 0, 0, 0, 0, ip],
            ips: [(IpAddr::from([10, 0, 0, ip]), 8)].into(),
            names: [name.into()].into(),
            health: Health::Healthy,
            services: [].into(),
        }
    }

    fn reach<const N: usize>(hosts: [(HostLabel, u32); N]) -> BTreeMap<HostLabel, (u32, String)> {
        hosts.map(|(host, cost)| (host, (cost, format!("{host:?}")))).into()
    }

    fn ips(found: &Found) -> Vec<IpAddr> {
        found.holders.iter().flat_map(|holder| holder.ips).map(|(ip, _)| *ip).collect()
    }

    #[test]
    fn a_name_is_found_in_the_segments_of_the_asker_only() {
        let mut names = Names::new(host(1));
        names.set(host(1), [1; 16], record("app", "Web", 1));
        names.set(host(1), [2; 16], record("db", "web", 2));
        let (app, db) = (SegmentId::of("app"), SegmentId::of("db"));
        let one = [IpAddr::from([10, 0, 0, 1])];
        assert_eq!(ips(&names.lookup(Scope::Segments(&[app]), "wEb")), one);
        assert_eq!(ips(&names.lookup(Scope::Segments(&[app]), "web.APP")), one);
        assert!(!names.lookup(Scope::Segments(&[app]), "web.db").is_known);
        assert_eq!(names.lookup(Scope::Segments(&[app, db]), "web").holders.len(), 2);
        assert_eq!(names.lookup(Scope::All, "web").holders.len(), 2);
        assert!(names.has_segment(Scope::Segments(&[app]), "APP") && !names.has_segment(Scope::Segments(&[app]), "db"));
        assert!(!names.holder_of(Scope::Segments(&[app]), [10, 0, 0, 2].into()).is_known);
        names.unset(host(1), [1; 16]);
        assert!(!names.lookup(Scope::Segments(&[app]), "web").is_known && !names.has_segment(Scope::All, "app"));
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn who_is_out_of_reach_or_unwell_is_not_named() {
        let mut names = Names::new(host(1));
        names.set(host(2), [1; 16], record("app", "web", 1));
        names.set(host(3), [2; 16], EndpointRecord { health: Health::Unhealthy, ..record("app", "web", 2) });
        let found = names.lookup(Scope::All, "web");
        assert!(found.is_known && found.holders.is_empty(), "no other resolver is to answer for it");
        names.set_reach(reach([(host(1), 0), (host(2), 9), (host(3), 5)]));
        let before = names.clone();
        assert_eq!(ips(&names.lookup(Scope::All, "web")), [IpAddr::from([10, 0, 0, 1])]);
        names.set_reach(reach([(host(1), 0)]));
        assert!(names.lookup(Scope::All, "web").holders.is_empty());
        assert_eq!(before.lookup(Scope::All, "web").holders.len(), 1);
    }

    #[test]
    fn the_healthiest_holders_are_named_and_an_asker_finds_itself() {
        let mut names = Names::new(host(1));
        let app = [SegmentId::of("app")];
        let set = |names: &mut Names, number: u8, health| {
            names.set(host(1), [number; 16], EndpointRecord { health, ..record("app", "web", number) });
        };
        let own = [IpAddr::from([10, 0, 0, 2])];
        let found = |names: &Names, scope: Scope| ips(&names.lookup(scope, "web"));
        set(&mut names, 2, Health::Starting);
        set(&mut names, 3, Health::Unhealthy);
        assert_eq!(found(&names, Scope::Segments(&app)), own, "nothing healthier has the name");
        set(&mut names, 2, Health::Unhealthy);
        assert!(found(&names, Scope::Segments(&app)).is_empty());
        assert_eq!(found(&names, Scope::Container(&app, &own)), own, "a container finds itself, however it is");
        set(&mut names, 4, Health::Healthy);
        assert_eq!(found(&names, Scope::Segments(&app)), [IpAddr::from([10, 0, 0, 4])]);
        assert_eq!(found(&names, Scope::Container(&app, &own)).len(), 2);
    }

    #[test]
    fn names_that_people_added_are_everywhere_until_taken_back() {
        let mut names = Names::new(host(1));
        let ip = IpAddr::from([192, 0, 2, 1]);
        names.set_entry(host(1), "printer.office", Some(vec![ip]));
        assert_eq!(ips(&names.lookup(Scope::Segments(&[]), "Printer.Office")), [ip]);
        names.set_entry(host(1), "printer.office", None);
        assert!(names.is_empty());
    }

    #[test]
    fn a_name_with_dots_is_taken_whole_before_it_is_taken_apart() {
        let mut names = Names::new(host(1));
        names.set(host(1), [1; 16], record("app", "web.1", 1));
        assert_eq!(names.lookup(Scope::All, "web.1").holders.len(), 1);
        assert_eq!(names.lookup(Scope::All, "web.1.app").holders.len(), 1);
        assert!(!names.lookup(Scope::All, "web").is_known);
    }
}
