//! This host's endpoints: what attaching, detaching and losing an address write.

use std::net::{IpAddr, Ipv4Addr};

use weft_crypto::HostLabel;

use super::{ALL, Segments};
use crate::datapath::frame::Mac;
use crate::records::writes::Writes;
use crate::records::{EndpointId, EndpointRecord, Key, SegmentRecord};
use crate::wire::SegmentId;

/// Why an endpoint may not be attached. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AttachError {
    /// The record breaks a rule, which the text names.
    Invalid(&'static str),
    /// A segment of another name has the same id.
    SegmentCollision(String),
    /// Another endpoint has the address.
    AddressInUse(IpAddr, HostLabel, EndpointId),
    /// Another endpoint has the MAC.
    MacInUse(HostLabel, EndpointId),
}

impl Segments {
    /// Returns what attaching an endpoint to a segment writes, or confirming that it is there.
    pub(crate) fn attach(&self, id: EndpointId, record: &EndpointRecord) -> Result<Writes, AttachError> {
        if let Some(problem) = record.problem() {
            return Err(AttachError::Invalid(problem));
        }
        let segment = SegmentId::of(&record.segment);
        if let Some(other) = self.collision(&record.segment) {
            return Err(AttachError::SegmentCollision(other.to_owned()));
        }
        for (ip, _) in &record.ips {
            if self.is_gateway(segment, *ip) {
                return Err(AttachError::Invalid("the address is the segment's gateway's; choose another"));
            }
            if let Some((host, other)) = self.other_owner_of_ip(segment, *ip, id) {
                return Err(AttachError::AddressInUse(*ip, host, other));
            }
        }
        match self.other_owner_of_mac(segment, record.mac, id) {
            Some((host, other)) => Err(AttachError::MacInUse(host, other)),
            None => Ok(self.endpoint_writes(id, record)),
        }
    }

    /// Returns what detaching an endpoint writes; `None` if this host does not have it.
    pub(crate) fn detach(&self, id: EndpointId) -> Option<Writes> {
        let record = self.get(self.own, &id)?;
        let mut writes = Writes::default();
        writes.delete(Key::Endpoint(id));
        for part in self.own_parts(id) {
            writes.delete(Key::Names(id, part));
        }
        let is_other = |(other, theirs): (EndpointId, &EndpointRecord)| other != id && theirs.segment == record.segment;
        if !self.local_endpoints().any(is_other) {
            writes.delete(Key::Segment(SegmentId::of(&record.segment)));
        }
        Some(writes)
    }

    /// Returns what this host writes of an endpoint that was there before a restart; `None` if the record breaks a rule.
    pub(crate) fn restore(&self, id: EndpointId, record: &EndpointRecord) -> Option<Writes> {
        record.problem().is_none().then(|| self.endpoint_writes(id, record))
    }

    /// Returns what this host writes when an address of its endpoints turns out to be another's: no record of it names the address
    /// any more.
    pub(crate) fn fence(&self, address: Ipv4Addr) -> Writes {
        let address = IpAddr::V4(address);
        let mut writes = Writes::default();
        for (id, record) in self.local_endpoints().filter(|(_, record)| record.ips.iter().any(|(ip, _)| *ip == address))
        {
            let ips = record.ips.iter().filter(|(ip, _)| *ip != address).copied().collect();
            writes.append(self.endpoint_writes(id, &EndpointRecord { ips, ..record.clone() }));
        }
        writes
    }

    /// Sets the largest packet that this host's containers take, in bytes; returns what that writes.
    pub(crate) fn set_container_mtu(&mut self, mtu: u16) -> Writes {
        let mut writes = Writes::default();
        if std::mem::replace(&mut self.container_mtu, mtu) != mtu {
            for (segment, hosts) in &self.presence {
                if let Some(record) = hosts.get(&self.own) {
                    writes.put(Key::Segment(*segment), &SegmentRecord { mtu, ..record.clone() });
                }
            }
        }
        writes
    }

    /// The records of an endpoint of this host.
    fn endpoint_writes(&self, id: EndpointId, record: &EndpointRecord) -> Writes {
        let mut writes = Writes::default();
        let (own, more) = record.split();
        writes.put(Key::Endpoint(id), &own);
        for (part, names) in (0u8..).zip(&more) {
            writes.put(Key::Names(id, part), names);
        }
        for part in self.own_parts(id).filter(|part| usize::from(*part) >= more.len()) {
            writes.delete(Key::Names(id, part));
        }
        let segment = SegmentRecord { name: record.segment.to_string(), mtu: self.container_mtu };
        writes.put(Key::Segment(SegmentId::of(&segment.name)), &segment);
        writes
    }

    /// Numbers of the records of further names that an endpoint of this host has.
    fn own_parts(&self, id: EndpointId) -> impl Iterator<Item = u8> {
        self.more_names.get(&(self.own, id)).into_iter().flat_map(|all| all.parts.keys().copied())
    }

    fn local_endpoints(&self) -> impl Iterator<Item = (EndpointId, &EndpointRecord)> {
        let own = self.own;
        self.iter().filter(move |(host, ..)| *host == own).map(|(_, id, record)| (id, record))
    }

    /// Another name with the same id, if some host uses one.
    fn collision(&self, name: &str) -> Option<&str> {
        let hosts = self.presence.get(&SegmentId::of(name))?;
        hosts.values().map(|record| record.name.as_str()).find(|other| *other != name)
    }

    fn other_owner_of_ip(&self, segment: SegmentId, ip: IpAddr, id: EndpointId) -> Option<(HostLabel, EndpointId)> {
        self.ip_claims(segment, ip, ALL).find(|claim| *claim != (self.own, id))
    }

    fn other_owner_of_mac(&self, segment: SegmentId, mac: Mac, id: EndpointId) -> Option<(HostLabel, EndpointId)> {
        self.mac_claims(segment, mac, ALL).find(|claim| *claim != (self.own, id))
    }
}

#[cfg(test)]
mod tests {
    use weft_crypto::Time;

    use super::*;
    use crate::datapath::snapshot::Hashing;
    use crate::records::Record;

    const OWN: HostLabel = HostLabel([1; 6]);

    fn record(mac: u8, ip: [u8; 4], names: usize) -> EndpointRecord {
        EndpointRecord {
            segment: "s".into(),
            mac: [2, 0, 0, 0, 0, mac],
            ips: [(IpAddr::from(ip), 24)].into(),
            names: (0..names).map(|n| format!("name-{n}")).collect(),
            health: Default::default(),
            services: [].into(),
        }
    }

    /// Does what records of this host that were written lead to.
    fn apply(segments: &mut Segments, writes: &Writes) {
        for (key, value) in &writes.records {
            match Record::read(key, value.as_deref()) {
                Record::Segment(id, record) => segments.on_segment(OWN, id, record),
                Record::Endpoint(id, record) => drop(segments.on_endpoint(OWN, id, record)),
                Record::Names(id, part, more) => segments.on_more_names(OWN, id, part, more),
                record => panic!("{record:?}"),
            }
        }
    }

    #[test]
    fn attaching_refuses_what_others_have_and_detaching_leaves_nothing() {
        let mut segments = Segments::new(OWN, 1450, Hashing(1, 2), Time::ZERO);
        let attached = segments.attach([1; 16], &record(1, [10, 0, 0, 1], 100)).unwrap();
        apply(&mut segments, &attached);
        assert_eq!(segments.get(OWN, &[1; 16]).map(|record| record.names.len()), Some(100));
        let address = segments.attach([2; 16], &record(2, [10, 0, 0, 1], 0)).unwrap_err();
        assert_eq!(address, AttachError::AddressInUse([10, 0, 0, 1].into(), OWN, [1; 16]));
        let mac = segments.attach([2; 16], &record(1, [10, 0, 0, 2], 0)).unwrap_err();
        assert_eq!(mac, AttachError::MacInUse(OWN, [1; 16]));
        assert!(segments.attach([1; 16], &record(1, [10, 0, 0, 1], 0)).is_ok(), "the endpoint itself again");
        segments.set_gateways(SegmentId::of("s"), [[10, 0, 0, 254].into()].into());
        let gateway = segments.attach([3; 16], &record(3, [10, 0, 0, 254], 0));
        assert!(matches!(gateway, Err(AttachError::Invalid(_))));
        let detached = segments.detach([1; 16]).unwrap();
        let put: Vec<_> = attached.records.iter().map(|(key, _)| key).collect();
        assert!(detached.records.iter().all(|(key, value)| value.is_none() && put.contains(&key)));
        assert_eq!(detached.records.len(), put.len());
        apply(&mut segments, &detached);
        assert!(segments.detach([1; 16]).is_none() && segments.tables.ids().next().is_none());
    }

    #[test]
    fn a_fenced_address_is_in_no_record_and_fewer_names_drop_their_surplus_records() {
        let mut segments = Segments::new(OWN, 1450, Hashing(1, 2), Time::ZERO);
        let writes = segments.attach([1; 16], &record(1, [10, 0, 0, 1], 100)).unwrap();
        apply(&mut segments, &writes);
        let writes = segments.fence([10, 0, 0, 1].into());
        apply(&mut segments, &writes);
        assert_eq!(segments.get(OWN, &[1; 16]).map(|record| record.ips.len()), Some(0));
        assert!(segments.fence([10, 0, 0, 1].into()).records.is_empty());
        let writes = segments.attach([1; 16], &record(1, [10, 0, 0, 1], 1)).unwrap();
        assert!(writes.records.iter().any(|(_, value)| value.is_none()));
        apply(&mut segments, &writes);
        assert_eq!(segments.get(OWN, &[1; 16]).map(|record| record.names.len()), Some(1));
    }

    #[test]
    fn a_new_mtu_is_written_for_each_segment_of_this_host() {
        let mut segments = Segments::new(OWN, 1450, Hashing(1, 2), Time::ZERO);
        let writes = segments.attach([1; 16], &record(1, [10, 0, 0, 1], 0)).unwrap();
        apply(&mut segments, &writes);
        assert!(segments.set_container_mtu(1450).records.is_empty());
        let writes = segments.set_container_mtu(1400);
        apply(&mut segments, &writes);
        assert_eq!(segments.tables.take_new_mtus().into_values().collect::<Vec<_>>(), [1400]);
    }
}
