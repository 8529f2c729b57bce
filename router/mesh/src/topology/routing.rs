//! The graph of announced links, and the routes from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::routes::{Avoided, Graph, Route};
use crate::records::{LinkRecord, MAX_LINKS, METERED_COST};

/// Routes are computed at most this often; in between, changes gather.
const INTERVAL: Duration = Duration::from_millis(100);

/// Routes to all hosts of the mesh.
pub(crate) struct Routing {
    own: HostLabel,
    graph: Graph,
    routes: BTreeMap<HostLabel, Route>,
    /// Of hosts to which the ways are looked at one by one: neighbours that are avoided, and all ways there.
    avoided: Avoided,
    ways: BTreeMap<HostLabel, Vec<HostLabel>>,
    /// Hosts to which frames go, and no free way carries.
    blocked: BTreeSet<HostLabel>,
    /// Hosts with which this one has metered links that hold the mesh together.
    kept_metered: BTreeSet<HostLabel>,
    is_stale: bool,
    /// When routes may be computed again.
    after: Time,
    /// The set of hosts that can be reached, or a cost, changed since it was last asked.
    has_news: bool,
}

impl Routing {
    pub(super) fn new(own: HostLabel, is_stub: bool, now: Time) -> Self {
        let mut graph = Graph::default();
        graph.set_stub(own, is_stub);
        Routing {
            own,
            graph,
            routes: BTreeMap::new(),
            avoided: Avoided::new(),
            ways: BTreeMap::new(),
            blocked: BTreeSet::new(),
            kept_metered: BTreeSet::new(),
            is_stale: false,
            after: now,
            has_news: true,
        }
    }

    /// When routes are to be computed, if they are.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.is_stale.then_some(self.after)
    }

    /// Routes need computing: a link of this host changed.
    pub(super) fn touch(&mut self) {
        self.is_stale = true;
    }

    /// Another host announces a link, or (with `None`) takes it back.
    pub(crate) fn hear(&mut self, from: HostLabel, to: HostLabel, link: Option<LinkRecord>) {
        let link = link.filter(|_| self.graph.of(from).nth(MAX_LINKS).is_none());
        self.is_stale |= match link {
            Some(link) => self.graph.set(from, to, link),
            None => self.graph.unset(from, to),
        };
    }

    /// A host relays nothing between others, or does.
    pub(super) fn set_stub(&mut self, host: HostLabel, is_stub: bool) {
        self.is_stale |= host != self.own && self.graph.set_stub(host, is_stub);
    }

    /// Sets the steps of load that a relay announces.
    pub(super) fn set_load(&mut self, host: HostLabel, load: u8) {
        self.is_stale |= self.graph.set_load(host, load);
    }

    /// The ways to a host are looked at one by one from now on; soon if it `is_urgent`.
    pub(super) fn watch(&mut self, to: HostLabel, is_urgent: bool) {
        self.avoided.entry(to).or_default();
        self.is_stale |= is_urgent && !self.ways.contains_key(&to);
    }

    /// They are no longer.
    pub(super) fn unwatch(&mut self, to: HostLabel) {
        self.ways.remove(&to);
        self.blocked.remove(&to);
        self.is_stale |= self.avoided.remove(&to).is_some_and(|avoided| !avoided.is_empty());
    }

    /// Has the route to a host avoid a neighbour, or no longer.
    pub(super) fn set_avoided(&mut self, to: HostLabel, via: HostLabel, is_avoided: bool) {
        let avoided = self.avoided.entry(to).or_default();
        self.is_stale |= if is_avoided { avoided.insert(via) } else { avoided.remove(&via) };
    }

    /// Frames go to a host to which no free way carries, or not.
    pub(super) fn set_blocked(&mut self, to: HostLabel, is_blocked: bool) {
        if is_blocked {
            self.blocked.insert(to)
        } else {
            self.blocked.remove(&to)
        };
    }

    /// Whether frames go to a host to which no free way carries.
    pub(super) fn is_blocked(&self, to: HostLabel) -> bool {
        self.blocked.contains(&to)
    }

    /// Neighbours by which what goes to a host does not arrive.
    pub(crate) fn avoided(&self, to: HostLabel) -> impl Iterator<Item = HostLabel> {
        self.avoided.get(&to).into_iter().flatten().copied()
    }

    /// The neighbours that lead to a host which is looked at, the cheapest first.
    pub(super) fn ways(&self, to: HostLabel) -> &[HostLabel] {
        self.ways.get(&to).map_or(&[], |ways| ways)
    }

    /// Returns the steps of load that a relay announces.
    pub(crate) fn load_of(&self, host: HostLabel) -> u8 {
        self.graph.load_of(host)
    }

    /// Whether a host relays nothing between others.
    pub(crate) fn is_stub(&self, host: HostLabel) -> bool {
        self.graph.is_stub(host)
    }

    /// This host has a link, or (with `None`) lost it.
    pub(super) fn set_own(&mut self, to: HostLabel, link: Option<LinkRecord>) {
        match link {
            Some(link) => drop(self.graph.set(self.own, to, link)),
            None => drop(self.graph.unset(self.own, to)),
        }
        self.is_stale = true;
    }

    /// Neighbours of a host, by its own announcements.
    pub(crate) fn neighbours_of(&self, host: HostLabel) -> impl Iterator<Item = HostLabel> {
        self.graph.of(host).map(|(to, _)| to)
    }

    /// Whether there is a route to a host.
    pub(crate) fn has_route(&self, to: HostLabel) -> bool {
        self.route(to).is_some()
    }

    /// Whether the route to a host leads over a link that is paid for by the byte.
    pub(crate) fn is_metered(&self, to: HostLabel) -> bool {
        self.route(to).is_some_and(|route| route.cost >= METERED_COST)
    }

    /// Whether a neighbour says that the link with it is paid for by the byte.
    pub(super) fn is_metered_by(&self, neighbour: HostLabel) -> bool {
        self.link(neighbour, self.own).is_some_and(LinkRecord::is_metered)
    }

    /// Whether a metered link with a host is kept at rest.
    pub(super) fn is_kept(&self, neighbour: HostLabel) -> bool {
        self.kept_metered.contains(&neighbour)
    }

    /// The link that a host announces with another.
    pub(crate) fn link(&self, from: HostLabel, to: HostLabel) -> Option<LinkRecord> {
        self.graph.of(from).find(|(host, _)| *host == to).map(|(_, link)| link)
    }

    /// The next host on another host's way to a third, by what all announce.
    pub(crate) fn next_of(&self, at: HostLabel, to: HostLabel) -> Option<HostLabel> {
        self.graph.next_hop(at, to)
    }

    /// What all hosts announce.
    pub(crate) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// All announced links.
    pub(crate) fn links(&self) -> impl Iterator<Item = (HostLabel, HostLabel, LinkRecord)> {
        self.graph.iter()
    }

    pub(crate) fn routes(&self) -> &BTreeMap<HostLabel, Route> {
        &self.routes
    }

    pub(crate) fn route(&self, to: HostLabel) -> Option<&Route> {
        self.routes.get(&to)
    }

    /// Hosts whose route goes through a neighbour.
    pub(crate) fn via(&self, neighbour: HostLabel) -> Vec<HostLabel> {
        self.routes.iter().filter(|(_, route)| route.via == neighbour).map(|(to, _)| *to).collect()
    }

    /// Whether hosts became reachable or unreachable, or a route's cost changed, since the last call.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// A neighbour is lost: routes through it take their precomputed alternative, or end. Returns their hosts.
    pub(super) fn fail_over(&mut self, neighbour: HostLabel) -> Vec<HostLabel> {
        let affected = self.via(neighbour);
        for to in &affected {
            let Some(route) = self.routes.get_mut(to) else { continue };
            match route.backup.take() {
                Some(backup) => route.via = backup,
                None => {
                    self.routes.remove(to);
                    self.has_news = true;
                    self.after = Time::ZERO;
                }
            }
        }
        self.is_stale = true;
        affected
    }

    /// Computes all routes if that is due; returns the hosts whose entries in the forwarding table have to be refreshed.
    pub(crate) fn recompute(&mut self, now: Time) -> Vec<HostLabel> {
        if !self.is_stale || now < self.after {
            return Vec::new();
        }
        (self.is_stale, self.after) = (false, now + INTERVAL);
        let (routes, ways) = self.graph.routes_around(self.own, &self.avoided);
        self.ways = ways;
        self.kept_metered = self.graph.kept_metered(self.own);
        let old = std::mem::replace(&mut self.routes, routes);
        self.has_news |= self.routes != old;
        let new = self.routes.iter().filter(|(to, route)| old.get(*to) != Some(*route)).map(|(to, _)| *to);
        let gone = old.keys().filter(|to| !self.routes.contains_key(*to)).copied();
        // A link's size may have changed without any route.
        let resized = self.neighbours_of(self.own).flat_map(|neighbour| self.via(neighbour));
        new.chain(gone).chain(resized).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(n: u8) -> HostLabel {
        HostLabel([n; 6])
    }

    fn link(cost: u32) -> Option<LinkRecord> {
        Some(LinkRecord { cost, max_datagram: 1472 })
    }

    /// Host 1 with neighbours 2 and 3, both linked with 4.
    fn square() -> Routing {
        let mut routing = Routing::new(label(1), false, Time::ZERO);
        for (a, b, cost) in [(2, 4, 10), (3, 4, 20), (1, 2, 10), (1, 3, 10)] {
            routing.hear(label(b), label(a), link(cost));
            match a {
                1 => routing.set_own(label(b), link(cost)),
                _ => routing.hear(label(a), label(b), link(cost)),
            }
        }
        routing
    }

    #[test]
    fn routes_are_computed_at_intervals_and_fail_over_at_once() {
        let mut routing = square();
        let mut changed = routing.recompute(Time::ZERO);
        changed.sort_unstable();
        assert_eq!(changed, [2, 3, 4].map(label));
        assert_eq!(routing.route(label(4)).map(|route| (route.via, route.cost)), Some((label(2), 20)));
        assert!(routing.take_news() && !routing.take_news());
        routing.set_own(label(2), None);
        assert_eq!(routing.fail_over(label(2)), [2, 4].map(label));
        assert_eq!(routing.route(label(4)).map(|route| route.via), Some(label(3)));
        let soon = Time::ZERO + Duration::from_millis(1);
        assert!(!routing.recompute(soon).is_empty(), "at once, for host 2 lost its only route");
        routing.touch();
        assert_eq!(routing.recompute(soon), [], "not before the interval is over");
        assert_eq!(routing.next_timeout(), Some(soon + INTERVAL));
    }

    #[test]
    fn a_host_may_announce_only_so_many_links() {
        let mut routing = square();
        let far = |n: usize| HostLabel([9, 9, 0, 0, (n >> 8) as u8, n as u8]);
        (0..2 * MAX_LINKS).for_each(|n| routing.hear(label(4), far(n), link(1)));
        assert!(routing.neighbours_of(label(4)).count() <= MAX_LINKS + 1);
        assert!(routing.links().count() < MAX_LINKS + 10);
    }
}
