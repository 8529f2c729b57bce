//! The report.

use std::sync::atomic::Ordering;

use weft_crypto::{HostLabel, Time};

use super::peer::Peer;
use super::{CLONE_MEMORY, EndpointStatus, LinkStatus, Node, PeerState, PeerStatus, RouteStatus, Status, TargetStatus};
use crate::frame::colons;
use crate::records::{EndpointId, Health};
use crate::wire::OVERHEAD;

impl Node {
    /// What this node knows now.
    pub fn status(&self, now: Time) -> Status {
        Status {
            name: self.name.clone(),
            peer_id: self.identity.peer_id().to_string(),
            cloned: self.cloned.is_some_and(|seen| now.since(seen) < CLONE_MEMORY),
            peers: self.peers.iter().map(|(label, peer)| self.peer_status(*label, peer)).collect(),
            links: (self.graph.iter())
                .map(|(from, to, link)| LinkStatus { from: self.name_of(from), to: self.name_of(to), cost: link.cost })
                .collect(),
            routes: (self.routes.iter())
                .map(|(to, route)| RouteStatus {
                    to: self.name_of(*to),
                    via: self.name_of(route.via),
                    backup: route.backup.map(|label| self.name_of(label)),
                    cost: route.cost,
                    max_datagram: route.max_datagram,
                })
                .collect(),
            endpoints: self.endpoints.iter().map(|(host, id, _)| self.endpoint_status(host, id)).collect(),
            rings: self.ring_reports(),
            fenced: self.fenced(),
            addresses: self.told_addresses(),
            marks: self.marks,
            targets: (self.targets.iter())
                .map(|(name, addresses)| TargetStatus {
                    name: name.clone(),
                    addresses: addresses.clone(),
                    peer: (addresses.iter())
                        .find_map(|address| self.target_addresses.get(address)?.peer)
                        .map(|label| self.name_of(label)),
                    state: self.target_state(addresses),
                })
                .collect(),
        }
    }

    fn peer_status(&self, label: HostLabel, peer: &Peer) -> PeerStatus {
        let route = self.routes.get(&label);
        let hop = self.hop_towards(label);
        let current = peer.current();
        let state = match (current, route) {
            (Some(_), Some(_)) => PeerState::Connected,
            // Without traffic there need not be a session: one is opened by the first frame.
            (None, Some(_)) if peer.retry.failures == 0 => PeerState::Connected,
            (None, Some(_)) => PeerState::Connecting,
            (_, None) if !peer.is_alive && self.store.incarnation_of(peer.id).is_some() => PeerState::Dead,
            (_, None) => PeerState::Unreachable,
        };
        let is_direct = hop.as_ref().is_some_and(|hop| hop.via == label);
        let relay = hop.as_ref().filter(|_| !is_direct).map(|hop| self.name_of(hop.via));
        PeerStatus {
            name: self.name_of(label),
            peer_id: peer.id.to_string(),
            state,
            path: hop.as_ref().map(|_| if is_direct { "direct" } else { "relay" }),
            via: relay,
            transport: hop.as_ref().map(|_| "udp"),
            remote: peer.link.as_ref().map(|link| link.remote),
            cipher: current.map(|session| session.suite.name()),
            rtt_us: peer.link.as_ref().and_then(|link| link.srtt).map(|srtt| srtt.as_micros() as u64),
            mtu: hop.map(|hop| hop.max_datagram.saturating_sub(OVERHEAD)),
            rx_bytes: peer.meter.received.bytes.load(Ordering::Relaxed),
            tx_bytes: peer.meter.sent.bytes.load(Ordering::Relaxed),
        }
    }

    fn endpoint_status(&self, host: HostLabel, id: EndpointId) -> EndpointStatus {
        let record = self.endpoints.get(host, &id);
        let health = record.map_or(Health::Unhealthy, |record| record.health);
        EndpointStatus {
            id: hex::encode(id),
            segment: record.map(|record| record.segment.to_string()).unwrap_or_default(),
            host: self.name_of(host),
            mac: record.map(|record| colons(&record.mac)).unwrap_or_default(),
            ips: record.iter().flat_map(|record| &record.ips).map(|(ip, prefix)| format!("{ip}/{prefix}")).collect(),
            names: record.map(|record| record.names.to_vec()).unwrap_or_default(),
            healthy: health == Health::Healthy,
            health,
        }
    }

    pub(super) fn describe_endpoint(&self, host: HostLabel, id: &EndpointId) -> String {
        let names = self.endpoints.get(host, id).map(|record| record.names.join(", ")).unwrap_or_default();
        let names = if names.is_empty() { "an endpoint".to_owned() } else { names };
        format!("{names} on {}", self.name_of(host))
    }

    /// A host's nickname, with the start of its key if another host has the same: who is dead has namesakes that live.
    pub(super) fn unmistakable(&self, label: HostLabel) -> String {
        let name = self.name_of(label);
        let is_shared = self.hosts.iter().any(|(other, host)| *other != label && host.name == name);
        let key = if label == self.own { Some(self.identity.peer_id()) } else { self.peer_key(label) };
        match key.filter(|_| is_shared || (label != self.own && name == self.name)) {
            Some(key) => format!("{name} ({})", key.short()),
            None => name,
        }
    }

    /// A host's nickname, or the start of its key.
    pub(super) fn name_of(&self, label: HostLabel) -> String {
        if label == self.own {
            return self.name.clone();
        }
        match (self.hosts.get(&label), self.peer_key(label)) {
            (Some(host), _) => host.name.clone(),
            (None, Some(id)) => id.short(),
            (None, None) => format!("{label:?}"),
        }
    }
}
