//! Names of containers, as the DNS server sees them.
//!
//! A [`Names`] is a value: copying one is cheap, changing one leaves copies as they were. Names are kept per segment; a
//! question comes with the segments that whoever asks is in, and hears of no others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use weft_crypto::HostLabel;

use crate::records::{EndpointId, EndpointRecord, Service};
use crate::wire::SegmentId;

type EndpointKey = (HostLabel, EndpointId);

/// All names, and which hosts can be reached.
#[derive(Clone, Default)]
pub struct Names {
    own: HostLabel,
    endpoints: OrdMap<EndpointKey, Arc<EndpointRecord>>,
    by_name: OrdMap<Box<str>, OrdSet<(SegmentId, EndpointKey)>>,
    by_ip: OrdMap<IpAddr, OrdSet<EndpointKey>>,
    /// Names that people added, by name and by the host they were added on.
    entries: OrdMap<Box<str>, OrdMap<HostLabel, Arc<[IpAddr]>>>,
    /// Hosts that can be reached, with the cost of the way there and the nickname.
    reach: Arc<BTreeMap<HostLabel, (u32, String)>>,
}

/// The segments that a question may be answered from.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Those that the asker is in.
    Segments(&'a [SegmentId]),
    /// All: for the operator.
    All,
}

/// Somebody who has a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// How far away, in classes: 0 is this host, each further one about twice as far.
    pub distance: u32,
    /// The nickname of the host that it is on.
    pub host: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its names, the first of them its own.
    pub names: Vec<String>,
    /// Its segment; none for a name that people added.
    pub segment: Option<String>,
    /// What it serves.
    pub services: Vec<Service>,
}

impl Names {
    /// No names yet.
    pub fn new(own: HostLabel) -> Self {
        let reach = Arc::new(BTreeMap::from([(own, (0, String::new()))]));
        Names { own, reach, ..Names::default() }
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.by_name.len() + self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn set(&mut self, host: HostLabel, id: EndpointId, record: &EndpointRecord) {
        self.unset(host, id);
        let (key, segment) = ((host, id), SegmentId::of(&record.segment));
        for name in &record.names {
            self.by_name.entry(folded(name)).or_default().insert((segment, key));
        }
        for (ip, _) in &record.ips {
            self.by_ip.entry(*ip).or_default().insert(key);
        }
        self.endpoints.insert(key, Arc::new(record.clone()));
    }

    pub(crate) fn unset(&mut self, host: HostLabel, id: EndpointId) {
        let key = (host, id);
        let Some(record) = self.endpoints.remove(&key) else { return };
        let segment = SegmentId::of(&record.segment);
        for name in &record.names {
            withdraw(&mut self.by_name, &folded(name), &(segment, key));
        }
        for (ip, _) in &record.ips {
            withdraw(&mut self.by_ip, ip, &key);
        }
    }

    pub(crate) fn set_entry(&mut self, host: HostLabel, name: &str, ips: Option<Vec<IpAddr>>) {
        let key = folded(name);
        let mut hosts = self.entries.get(&key).cloned().unwrap_or_default();
        match ips {
            Some(ips) => drop(hosts.insert(host, ips.into())),
            None => drop(hosts.remove(&host)),
        }
        match hosts.is_empty() {
            true => self.entries.remove(&key).map(drop),
            false => self.entries.insert(key, hosts).map(drop),
        };
    }

    pub(crate) fn set_reach(&mut self, reach: BTreeMap<HostLabel, (u32, String)>) {
        self.reach = Arc::new(reach);
    }

    /// Who has a name, written `name` or `name.network`, and can be reached and is healthy.
    pub fn lookup(&self, scope: Scope, name: &str) -> Vec<Holder> {
        let name = folded(name);
        let mut found = self.named(scope, &name, None);
        if found.is_empty() {
            let splits = name.match_indices('.').map(|(dot, _)| (&name[..dot], &name[dot + 1..]));
            found = splits
                .rev()
                .map(|(own, network)| self.named(scope, own, Some(network)))
                .find(|f| !f.is_empty())
                .unwrap_or_default();
        }
        found
    }

    fn named(&self, scope: Scope, name: &str, network: Option<&str>) -> Vec<Holder> {
        let in_scope = |segment: &SegmentId| match scope {
            Scope::Segments(segments) => segments.contains(segment),
            Scope::All => true,
        };
        let keys = self.by_name.get(name).into_iter().flatten().filter(|(segment, _)| in_scope(segment));
        let endpoints = keys.filter_map(|(_, key)| self.holder(key));
        let endpoints = endpoints.filter(|holder| {
            let segment = holder.segment.as_deref().unwrap_or_default();
            network.is_none_or(|network| segment.eq_ignore_ascii_case(network))
        });
        let entries = self.entries.get(name).filter(|_| network.is_none()).into_iter().flatten();
        let entries = entries.filter_map(|(host, ips)| {
            let (distance, host) = self.place(*host)?;
            Some(Holder {
                distance,
                host,
                ips: ips.to_vec(),
                names: vec![name.to_owned()],
                segment: None,
                services: Vec::new(),
            })
        });
        endpoints.chain(entries).collect()
    }

    /// Who has an address.
    pub fn holder_of(&self, scope: Scope, ip: IpAddr) -> Option<Holder> {
        let in_scope = |holder: &Holder| match scope {
            Scope::Segments(segments) => {
                holder.segment.as_deref().is_some_and(|s| segments.contains(&SegmentId::of(s)))
            }
            Scope::All => true,
        };
        let keys = self.by_ip.get(&ip).into_iter().flatten();
        keys.filter_map(|key| self.holder(key)).find(|holder| in_scope(holder) && !holder.names.is_empty())
    }

    fn holder(&self, key: &EndpointKey) -> Option<Holder> {
        let record = self.endpoints.get(key).filter(|record| record.healthy)?;
        let (distance, host) = self.place(key.0)?;
        Some(Holder {
            distance,
            host,
            ips: record.ips.iter().map(|(ip, _)| *ip).collect(),
            names: record.names.clone(),
            segment: Some(record.segment.clone()),
            services: record.services.clone(),
        })
    }

    /// How far away a host is, and its nickname.
    fn place(&self, host: HostLabel) -> Option<(u32, String)> {
        let (cost, name) = self.reach.get(&host)?;
        let distance = if host == self.own { 0 } else { 1 + cost.max(&1).ilog2() };
        Some((distance, name.clone()))
    }
}

/// Names are compared without regard to case (RFC 4343).
fn folded(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

fn withdraw<K: Ord + Clone, V: Ord + Clone>(map: &mut OrdMap<K, OrdSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
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
            ips: vec![(IpAddr::from([10, 0, 0, ip]), 8)],
            names: vec![name.into()],
            healthy: true,
            services: Vec::new(),
        }
    }

    fn reach<const N: usize>(hosts: [(HostLabel, u32); N]) -> BTreeMap<HostLabel, (u32, String)> {
        hosts.map(|(host, cost)| (host, (cost, format!("{host:?}")))).into()
    }

    fn ips(found: &[Holder]) -> Vec<IpAddr> {
        found.iter().flat_map(|holder| holder.ips.clone()).collect()
    }

    #[test]
    fn a_name_is_found_in_the_segments_of_whoever_asks_only() {
        let mut names = Names::new(host(1));
        names.set(host(1), [1; 16], &record("app", "Web", 1));
        names.set(host(1), [2; 16], &record("db", "web", 2));
        let (app, db) = (SegmentId::of("app"), SegmentId::of("db"));
        let one = [IpAddr::from([10, 0, 0, 1])];
        assert_eq!(ips(&names.lookup(Scope::Segments(&[app]), "wEb")), one);
        assert_eq!(ips(&names.lookup(Scope::Segments(&[app]), "web.APP")), one);
        assert!(names.lookup(Scope::Segments(&[app]), "web.db").is_empty());
        assert_eq!(names.lookup(Scope::Segments(&[app, db]), "web").len(), 2);
        assert_eq!(names.lookup(Scope::All, "web").len(), 2);
        assert!(names.holder_of(Scope::Segments(&[app]), [10, 0, 0, 2].into()).is_none());
        names.unset(host(1), [1; 16]);
        assert!(names.lookup(Scope::Segments(&[app]), "web").is_empty());
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn who_is_out_of_reach_or_unwell_is_not_named() {
        let mut names = Names::new(host(1));
        names.set(host(2), [1; 16], &record("app", "web", 1));
        names.set(host(3), [2; 16], &EndpointRecord { healthy: false, ..record("app", "web", 2) });
        assert!(names.lookup(Scope::All, "web").is_empty());
        names.set_reach(reach([(host(1), 0), (host(2), 9), (host(3), 5)]));
        let before = names.clone();
        assert_eq!(ips(&names.lookup(Scope::All, "web")), [IpAddr::from([10, 0, 0, 1])]);
        names.set_reach(reach([(host(1), 0)]));
        assert!(names.lookup(Scope::All, "web").is_empty());
        assert_eq!(before.lookup(Scope::All, "web").len(), 1);
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
        names.set(host(1), [1; 16], &record("app", "web.1", 1));
        assert_eq!(names.lookup(Scope::All, "web.1").len(), 1);
        assert_eq!(names.lookup(Scope::All, "web.1.app").len(), 1);
        assert!(names.lookup(Scope::All, "web").is_empty());
    }
}
