//! From what the node knows to what the data path sees.

use std::sync::Arc;
use std::time::Duration;

use weft_crypto::{HostLabel, Time, envelope};

use super::{Node, Output};
use crate::routes::Route;
use crate::snapshot::{Hop, Outbound};
use crate::wire::Lane;

/// Sessions opened in one go because a segment spans to new hosts.
const SESSIONS_PER_TICK: usize = 8;
/// Routes are computed at most this often; in between, changes gather.
pub(super) const ROUTE_INTERVAL: Duration = Duration::from_millis(100);

impl Node {
    /// The next hop towards a host: its own link if that is the best, or the route's neighbour.
    pub(super) fn hop_towards(&self, to: HostLabel) -> Option<Hop> {
        let route = self.routes.get(&to);
        let via = match route {
            Some(route) => route.via,
            None => self.peers.get(&to).filter(|peer| peer.link.is_some()).map(|_| to)?,
        };
        let neighbour = self.peers.get(&via)?;
        let (link, current) = (neighbour.link.as_ref()?, neighbour.current()?);
        let narrowest = route.filter(|_| via != to).map_or(usize::MAX, |route| route.max_datagram.into());
        Some(Hop {
            via,
            remote: link.remote,
            link_index: current.remote_index,
            hop_send: current.hop_send,
            max_datagram: link.max_datagram.min(narrowest),
            meter: neighbour.meter.clone(),
        })
    }

    /// Brings one host's entry up to date.
    pub(super) fn refresh_outbound(&mut self, to: HostLabel) {
        let hop = self.hop_towards(to);
        let peer = self.peers.get(&to);
        let send = peer.and_then(|peer| peer.current()).map(|session| session.send.clone());
        self.snapshot_stale = true;
        if hop.is_none() && send.is_none() {
            self.snapshot.outbound.remove(&to);
            return;
        }
        let outbound = Outbound {
            send,
            envelope: hop.as_ref().map_or([0; envelope::LEN], |hop| hop.envelope(envelope::MAX_TTL, to)),
            link: peer.and_then(|peer| peer.link.as_ref()).map(|link| link.remote),
            hop,
            meter: peer.map(|peer| peer.meter.clone()).unwrap_or_default(),
        };
        self.snapshot.outbound.insert(to, Arc::new(outbound));
    }

    /// Brings every host's entry up to date that is reached through a neighbour.
    pub(super) fn refresh_routes_via(&mut self, neighbour: HostLabel) {
        let through = |(to, route): (&HostLabel, &Route)| (route.via == neighbour).then_some(*to);
        let affected: Vec<HostLabel> = self.routes.iter().filter_map(through).collect();
        affected.into_iter().for_each(|to| self.refresh_outbound(to));
    }

    /// A neighbour is lost: what went through it takes the precomputed alternative.
    pub(super) fn fail_over(&mut self, neighbour: HostLabel) {
        let affected: Vec<HostLabel> =
            self.routes.iter().filter(|(_, route)| route.via == neighbour).map(|(to, _)| *to).collect();
        let mut all_have_one = true;
        for to in affected {
            let backup = self.routes.get_mut(&to).and_then(|route| {
                route.via = route.backup.take()?;
                Some(())
            });
            if backup.is_none() {
                self.routes.remove(&to);
                self.reach_stale = true;
                all_have_one = false;
            }
            self.refresh_outbound(to);
        }
        self.refresh_outbound(neighbour);
        self.routes_stale = true;
        if !all_have_one {
            self.routes_after = Time::ZERO;
        }
    }

    /// Computes all routes, and refreshes the entries of those that changed.
    pub(super) fn recompute_routes(&mut self, now: Time) {
        let routes = self.graph.routes(self.own);
        let old = std::mem::replace(&mut self.routes, routes);
        self.reach_stale |= self.routes != old;
        let changed: Vec<HostLabel> = (self.routes.iter())
            .filter(|(to, route)| old.get(*to) != Some(*route))
            .map(|(to, _)| *to)
            .chain(old.keys().filter(|to| !self.routes.contains_key(*to)).copied())
            .collect();
        for to in changed {
            self.refresh_outbound(to);
            self.send_waiting(to, now);
        }
        // A link's MTU may have changed without its route.
        let neighbours: Vec<HostLabel> = self.graph.of(self.own).map(|(to, _)| to).collect();
        neighbours.into_iter().for_each(|neighbour| self.refresh_routes_via(neighbour));
    }

    /// Sends what waited for a session, now that there is one.
    pub(super) fn send_waiting(&mut self, label: HostLabel, now: Time) {
        let Some(outbound) = self.snapshot.outbound.get(&label) else { return };
        if outbound.send.is_none() || outbound.hop.is_none() {
            return;
        }
        let Some(peer) = self.peers.get_mut(&label) else { return };
        for text in std::mem::take(&mut peer.waiting_control) {
            let _ = self.path.sender.control(outbound, Lane::Urgent, &text, now);
        }
        peer.waiting_bytes = 0;
        for mut waiting in std::mem::take(&mut peer.waiting) {
            // A frame that cannot be sent now is a frame lost, as on any wire.
            let _ = self.path.sender.send(outbound, waiting.segment, &waiting.vnet, &mut waiting.frame, now);
        }
    }

    /// Opens sessions with the hosts this one shares segments with, a few at a time: floods need them. With `all` it is
    /// looked who they are.
    pub(super) fn tend_segments(&mut self, all: bool, now: Time) {
        if all {
            self.without_session = (self.endpoints.local_segments())
                .flat_map(|segment| self.endpoints.hosts_in(segment))
                .filter(|host| self.routes.contains_key(host) && self.lacks_session(*host, now))
                .collect();
        }
        let mut opened = 0;
        while opened < SESSIONS_PER_TICK
            && let Some(host) = self.without_session.pop_first()
        {
            if self.lacks_session(host, now) {
                self.want_session(host, now);
                opened += 1;
            }
        }
    }

    fn lacks_session(&self, host: HostLabel, now: Time) -> bool {
        self.peers.get(&host).is_some_and(|peer| peer.current.is_none() && peer.retry.is_due(now))
    }

    /// Publishes the tables if anything in them changed.
    pub(super) fn publish(&mut self) {
        for (id, segment) in self.endpoints.take_changed() {
            match segment {
                Some(segment) => self.snapshot.segments.insert(id, segment),
                None => self.snapshot.segments.remove(&id),
            };
            self.snapshot_stale = true;
        }
        if std::mem::take(&mut self.snapshot_stale) {
            self.outputs.push_back(Output::Publish(Arc::new(self.snapshot.clone())));
        }
        for (segment, mtu) in self.endpoints.take_new_mtus() {
            self.outputs.push_back(Output::Mtu(segment, mtu));
        }
        for (segment, frame) in self.endpoints.take_announcements() {
            self.outputs.push_back(Output::Tap { segment, frame });
        }
    }

    /// Turns what was sealed into outputs.
    pub(super) fn drain_batch(&mut self) {
        for (run, bytes) in self.path.sender.batch.runs() {
            let output = Output::Transmit { lane: run.lane, to: run.to, data: bytes.to_vec(), stride: run.stride };
            self.outputs.push_back(output);
        }
        self.path.sender.batch.clear();
    }
}
