//! By which neighbours other hosts are reached.

use weft_crypto::{HostLabel, Time, envelope};

use super::Components;
use crate::datapath::snapshot::{Hop, Outbound};
use crate::sessions::PathView;
use crate::topology::Topology;

impl Components {
    /// The next hop towards a host: its own link if that is the best, or the route's neighbour.
    pub(super) fn hop_towards(&self, to: HostLabel) -> Option<Hop> {
        let (via, route) = self.topology.next_hop(to)?;
        self.hop_by(via, route.filter(|_| via != to).map_or(usize::MAX, |route| route.max_datagram.into()))
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
