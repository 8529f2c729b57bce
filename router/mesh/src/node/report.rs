//! The report, and what errors say in words.

use std::sync::atomic::Ordering;

use weft_crypto::{HostLabel, PeerId, Time};

use super::places::Places;
use super::{
    CommandError, Components, EndpointStatus, LinkStatus, Measures, PeerState, PeerStatus, Refusals, RingReport,
    RouteStatus, Status, TargetStatus,
};
use crate::datapath::frame::colons;
use crate::ipam::{Awaited, Error};
use crate::records::{EndpointId, EndpointRecord, METERED_COST};
use crate::wire::OVERHEAD;

impl Components {
    /// Reports what this node knows now.
    pub(super) fn status(&self, now: Time) -> Status {
        let name = |host: HostLabel| self.directory.name_of(host);
        let id = |host: HostLabel| self.directory.id_of(host);
        let (routing, own) = (&self.topology.routing, &self.topology.addresses);
        let links = routing.links();
        let routes = routing.routes().iter();
        let endpoints = self.segments.iter();
        Status {
            name: self.directory.own_name().to_owned(),
            peer_id: self.peer_id.to_string(),
            cloned: self.records.is_cloned(now),
            peers: self.sessions.peers().map(|(label, id)| self.peer_status(label, id)).collect(),
            links: links
                .map(|(from, to, link)| LinkStatus {
                    from: name(from),
                    to: name(to),
                    from_id: id(from),
                    to_id: id(to),
                    cost: link.cost % METERED_COST,
                    metered: link.is_metered(),
                })
                .collect(),
            routes: routes
                .map(|(to, route)| RouteStatus {
                    to: name(*to),
                    via: name(route.via),
                    backup: route.backup.map(name),
                    avoided: Places(self).avoided(*to),
                    cost: route.cost % METERED_COST,
                    metered: routing.is_metered(*to),
                    max_datagram: route.max_datagram,
                })
                .collect(),
            endpoints: endpoints
                .map(|(host, endpoint, record)| endpoint_status(name(host), id(host), endpoint, record))
                .collect(),
            targets: self.target_reports(),
            addresses: own.announced().into_iter().chain(own.seen()).collect(),
            advertised: own.advertised(),
            marks: self.topology.marks,
            load: self.topology.load.level(),
            rings: self.ring_reports(),
            fenced: self.addresses.fenced(),
            refused: self.refusals(),
            records_digest: format!("{:016x}", self.records.digest()),
        }
    }

    /// Reports what this node measures and counts.
    pub(super) fn measures(&self) -> Measures {
        let (hosts, names, networks) = self.directory.counts();
        let meters = self.sessions.peers().map(|(label, _)| self.sessions.meter_of(label));
        let relayed = meters.map(|meter| meter.received.relayed.load(Ordering::Relaxed));
        Measures {
            peers: self.sessions.peers().map(|(label, id)| self.peer_status(label, id)).collect(),
            rings: self.ring_reports(),
            refused: self.refusals(),
            load: self.topology.load.level(),
            relayed_bytes: self.sessions.relayed_for_gone + relayed.sum::<u64>(),
            own_endpoints: self.segments.iter().filter(|(host, ..)| *host == self.own).count(),
            records: [
                ("host", hosts),
                ("link", self.topology.routing.links().count()),
                ("endpoint", self.segments.iter().count()),
                ("name", names),
                ("network", networks),
            ],
        }
    }

    fn peer_status(&self, label: HostLabel, id: PeerId) -> PeerStatus {
        let hop = self.hop_towards(label);
        let link = self.topology.link(label);
        let current = self.sessions.peer(label).and_then(|peer| peer.current());
        let meter = self.sessions.meter_of(label);
        let state = match (current, self.topology.routing.has_route(label)) {
            (Some(_), true) => PeerState::Connected,
            // Without traffic there need not be a session: one is opened by the first frame.
            (None, true) if self.sessions.peer(label).is_some_and(|peer| peer.failures() == 0) => PeerState::Connected,
            (None, true) => PeerState::Connecting,
            (_, false) if !self.presence.is_alive(label) && self.records.holds(id) => PeerState::Dead,
            (_, false) => PeerState::Unreachable,
        };
        let is_direct = hop.as_ref().is_some_and(|hop| hop.via == label);
        PeerStatus {
            name: self.directory.name_of(label),
            peer_id: id.to_string(),
            state,
            path: hop.as_ref().map(|_| if is_direct { "direct" } else { "relay" }),
            via: hop.as_ref().filter(|_| !is_direct).map(|hop| self.directory.name_of(hop.via)),
            transport: hop.as_ref().map(|hop| hop.path.transport.name()),
            remote: link.map(|link| link.path.remote),
            cipher: current.map(|session| session.suite.name()),
            rtt_us: link.and_then(|link| link.rtt_us()),
            loss: link.map(|link| link.loss),
            mtu: hop.map(|hop| hop.max_datagram.saturating_sub(OVERHEAD)),
            relays: !self.topology.routing.is_stub(label),
            load: self.topology.routing.load_of(label),
            metered: self.topology.metered.contains(label),
            rx_bytes: meter.received.bytes.load(Ordering::Relaxed),
            tx_bytes: meter.sent.bytes.load(Ordering::Relaxed),
        }
    }

    fn target_reports(&self) -> Vec<TargetStatus> {
        let (targets, own) = (&self.topology.targets, self.topology.addresses.local());
        let report = |(name, addresses): (&String, &Vec<_>)| TargetStatus {
            name: name.clone(),
            addresses: addresses.clone(),
            peer: targets.peer_at(addresses).map(|label| self.directory.name_of(label)),
            state: targets.state(addresses, own),
        };
        targets.iter().map(report).collect()
    }

    fn ring_reports(&self) -> Vec<RingReport> {
        let report = |ring: crate::ipam::RingStatus| RingReport {
            range: ring.range.to_string(),
            state: if ring.is_ready { "ready" } else { "waiting" },
            waiting_for: self.names_awaited(&ring.waiting_for),
            owned: ring.owned,
            used: ring.used,
            unreachable: ring.unreachable,
            unopened: ring.unopened,
            voters: ring.voters.iter().map(|voter| self.directory.unmistakable(*voter)).collect(),
            contested: ring.contested.iter().map(ToString::to_string).collect(),
        };
        self.addresses.rings().into_iter().map(report).collect()
    }

    fn refusals(&self) -> Refusals {
        let (record_batches, records, unknown_records) = self.records.counts();
        Refusals {
            handshakes: self.sessions.refused(),
            swim_packets: self.presence.refused(),
            record_batches,
            records,
            unknown_records: unknown_records as u64,
            waiting_frames: self.publisher.lost_frames(),
        }
    }

    pub(super) fn describe_endpoint(&self, host: HostLabel, id: &EndpointId) -> String {
        let names = self.segments.get(host, id).map(|record| record.names.join(", ")).unwrap_or_default();
        let names = if names.is_empty() { "an endpoint".to_owned() } else { names };
        format!("{names} on {}", self.directory.name_of(host))
    }

    pub(super) fn explain(&self, error: Error) -> CommandError {
        match error {
            Error::Waiting { range, waiting_for } => {
                CommandError::NoAddress { range, waiting_for: self.names_awaited(&waiting_for) }
            }
            Error::PartInUse { part, range, by } => {
                let by = by.iter().map(|host| self.directory.unmistakable(*host)).collect();
                CommandError::SubnetInUse { part, range, by }
            }
            error => CommandError::Address(error),
        }
    }

    fn names_awaited(&self, awaited: &[Awaited]) -> Vec<String> {
        let name = |awaited: &Awaited| match awaited {
            Awaited::Host(host) => self.directory.unmistakable(*host),
            Awaited::Peer(name) => name.clone(),
        };
        awaited.iter().map(name).collect()
    }
}

fn endpoint_status(host: String, host_id: String, id: EndpointId, record: &EndpointRecord) -> EndpointStatus {
    EndpointStatus {
        id: hex::encode(id),
        segment: record.segment.to_string(),
        host,
        host_id,
        mac: colons(&record.mac),
        ips: record.ips.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect(),
        names: record.names.to_vec(),
        healthy: record.health == crate::records::Health::Healthy,
        health: record.health,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::{Command, Reply, Target};
    use crate::records::Key;
    use crate::report::TargetState;
    use crate::testing::{NOW, command, endpoint, hear, node};

    #[test]
    fn a_lone_host_reports_its_endpoints_addresses_and_targets() {
        let mut node = node(1, &BTreeMap::new());
        let target = Target { name: "host2".into(), addresses: Vec::new() };
        command(&mut node, Command::SetAddresses(vec![[192, 0, 2, 1].into()])).unwrap();
        command(&mut node, Command::attach([1; 16], endpoint(1))).unwrap();
        command(&mut node, Command::Connect(vec![target])).unwrap();
        let status = node.status(NOW);
        assert_eq!((status.name.as_str(), status.peers.len(), status.cloned), ("host1", 0, false));
        assert_eq!(status.addresses, [([192, 0, 2, 1], 6783).into()]);
        let endpoint = &status.endpoints[0];
        assert_eq!((endpoint.host.as_str(), endpoint.segment.as_str()), ("host1", "app"));
        assert_eq!(
            (&endpoint.ips[..], &endpoint.names[..]),
            (&["10.32.0.1/12".to_owned()][..], &["web1".to_owned()][..])
        );
        assert!(
            matches!(status.targets[0].state, TargetState::Trying | TargetState::Silent),
            "{:?}",
            status.targets[0].state
        );
    }

    #[test]
    fn what_is_measured_is_what_the_report_says() {
        let mut node = node(1, &BTreeMap::new());
        command(&mut node, Command::attach([1; 16], endpoint(1))).unwrap();
        hear(&mut node, 2, 1, &[(Key::Removed([1; 16]), vec![1])]);
        let Ok(Reply::Measures(measures)) = command(&mut node, Command::Measure) else { panic!("not measured") };
        let status = node.status(NOW);
        assert_eq!((measures.own_endpoints, measures.peers.len()), (1, status.peers.len()));
        assert!(measures.records.contains(&("endpoint", status.endpoints.len())), "{:?}", measures.records);
        assert_eq!(measures.refused, status.refused);
    }

    #[test]
    fn what_was_refused_is_counted() {
        let mut node = node(1, &BTreeMap::new());
        assert_eq!(node.status(NOW).refused, Refusals::default());
        // A host record that cannot be read, beside a valid record.
        let valid = Key::Removed([1; 16]);
        hear(&mut node, 2, 1, &[(Key::Host, vec![0xff; 4]), (valid, vec![1])]);
        assert_eq!(node.status(NOW).refused.records, 1);
    }
}
