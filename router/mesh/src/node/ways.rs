//! By which neighbours other hosts are reached.

use weft_crypto::{HostLabel, Time, envelope};

use super::Components;
use crate::datapath::snapshot::{Hop, Outbound};
use crate::sessions::PathView;
use crate::topology::Topology;
use crate::wire::Step;

impl Components {
    /// The next hop towards a host: its own link if that is the best, or the route's neighbour.
    pub(super) fn hop_towards(&self, to: HostLabel) -> Option<Hop> {
        let (via, route) = self.topology.next_hop(to)?;
        self.hop_by(via, route.filter(|_| via != to).map_or(usize::MAX, |route| route.max_datagram.into()))
    }

    /// The next hop of a handshake packet for a host: while no session comes of them each way there has its turn.
    pub(super) fn hop_of_handshake(&mut self, step: Step, to: HostLabel, now: Time) -> Option<Hop> {
        let Topology { verification, routing, .. } = &mut self.topology;
        let by = verification.handshake_by(step, to, routing, now);
        by.and_then(|by| self.hop_by(by, usize::MAX)).or_else(|| self.hop_towards(to))
    }

    /// The hop over the link with a neighbour, if it is up; what lies beyond takes datagrams of `narrowest` bytes.
    pub(super) fn hop_by(&self, via: HostLabel, narrowest: usize) -> Option<Hop> {
        let (link, keys) = (self.topology.link(via)?, self.sessions.current_keys(via)?);
        Some(Hop {
            via,
            path: link.path,
            link_index: keys.remote_index,
            hop_send: keys.hop,
            max_datagram: link.size.max_datagram.min(narrowest),
            meter: self.sessions.meter_of(via),
        })
    }

    /// Brings a host's entry in the forwarding table up to date, and sends what waited for it.
    pub(super) fn refresh(&mut self, to: HostLabel, now: Time) {
        let hop = self.hop_towards(to);
        let outbound = Outbound {
            send: self.sessions.current_keys(to).map(|keys| keys.seal.clone()),
            envelope: hop.as_ref().map_or([0; envelope::LEN], |hop| hop.envelope(envelope::MAX_TTL, to)),
            link: self.topology.link(to).map(|link| link.path),
            hop,
            meter: self.sessions.meter_of(to),
        };
        self.publisher.set_outbound(to, outbound);
        self.publisher.send_waiting(to, now);
        self.tell_presence(to, false);
    }
}

/// What sessions need to know of the way to a peer.
pub(super) fn path_view(topology: &Topology, peer: HostLabel) -> PathView {
    let link = topology.link(peer).map(|link| link.path);
    let is_reachable = link.is_some() || topology.routing.has_route(peer);
    let via = topology.next_hop(peer).map(|(via, _)| via).filter(|via| topology.link(*via).is_some());
    let is_metered = topology.metered.has_route(&topology.routing, peer);
    PathView { is_reachable, via, link, last_traffic: topology.last_traffic(peer), is_metered }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::records::{HostRecord, Key};
    use crate::testing::{NOW, hear, node};

    #[test]
    fn a_host_that_is_known_by_its_records_alone_cannot_be_reached() {
        let mut node = node(1, &BTreeMap::new());
        let record = HostRecord { name: "far".into(), ..HostRecord::default() };
        hear(&mut node, 2, 1, &[(Key::Host, crate::codec::encode(&record))]);
        let far = node.parts.directory.find("far").unwrap();
        let view = path_view(&node.parts.topology, far);
        assert!(!view.is_reachable && view.via.is_none() && view.link.is_none());
        let hops = [node.parts.hop_of_handshake(Step::Second, far, NOW), node.parts.hop_towards(far)];
        assert!(hops.iter().all(Option::is_none) && node.parts.hop_by(far, 1472).is_none());
    }
}
