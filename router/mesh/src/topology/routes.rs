//! Link-state routes: Dijkstra's shortest paths, the same on every host that holds the same records.
//!
//! Hysteresis is in the costs that hosts announce, not in the choice of a path: for hosts that agree on the costs each hop leads nearer, so there
//! are no loops once the records are everywhere. Pairs are spread over relays that cost the same by rendezvous hashing (Thaler, Ravishankar, "Using
//! name-based mappings to increase hit rates", 1998): a pair goes by one of them both ways, and by another when that is lost or busy. Over several relays each chooses the next one for itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use siphasher::sip::SipHasher13;
use weft_crypto::HostLabel;

use crate::records::{LinkRecord, METERED_COST};

/// The fixed cost of a hop beside its RTT, so that a relay is only taken where it pays.
const HOP_COST: u32 = 10;
/// Round-trip time that is not worth telling apart.
const RTT_FLOOR: Duration = Duration::from_millis(2);

/// Who says to have a link with whom.
#[derive(Clone, Default, Debug)]
pub struct Graph {
    edges: BTreeMap<HostLabel, BTreeMap<HostLabel, LinkRecord>>,
    /// Hosts that no path leads through (RFC 6987).
    stubs: BTreeSet<HostLabel>,
    /// Steps of load of the relays that announce any.
    loads: BTreeMap<HostLabel, u8>,
}

/// The way to one host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The neighbour to send to.
    pub via: HostLabel,
    /// The neighbour to send to when that one is lost, free of loops by itself (RFC 5286, inequality 1).
    pub backup: Option<HostLabel>,
    /// What the path costs.
    pub cost: u32,
    /// The largest datagram the path takes.
    pub max_datagram: u16,
}

/// Neighbours by which what goes to a host does not arrive, of each host to which the ways are looked at one by one.
pub(super) type Avoided = BTreeMap<HostLabel, BTreeSet<HostLabel>>;

/// The graph with hosts as numbers, and only links that count.
pub(super) struct Indexed {
    pub(super) labels: Vec<HostLabel>,
    pub(super) edges: Vec<Vec<(usize, LinkRecord)>>,
    pub(super) is_stub: Vec<bool>,
    loads: Vec<u8>,
}

#[derive(Clone, Copy)]
pub(super) struct Distance {
    pub(super) cost: u32,
    /// The largest datagram that all paths of this cost take: which of them it goes by is for the hosts on the way to choose.
    max_datagram: u16,
}

/// A host's neighbours, with their distances to all others.
struct Neighbourhood<'g> {
    graph: &'g Indexed,
    start: usize,
    neighbours: Vec<(usize, LinkRecord, Vec<Option<Distance>>)>,
}

/// The paths to a host by one neighbour.
struct Via {
    by: usize,
    /// From here, and from the neighbour.
    cost: u32,
    onward: u32,
    /// From the neighbour to here.
    back: u32,
    max_datagram: u16,
}

impl Graph {
    /// `from` says to have a link to `to`; true if that is news.
    pub fn set(&mut self, from: HostLabel, to: HostLabel, link: LinkRecord) -> bool {
        self.edges.entry(from).or_default().insert(to, link) != Some(link)
    }

    /// `from` no longer says so; true if that is news.
    pub fn unset(&mut self, from: HostLabel, to: HostLabel) -> bool {
        let Some(edges) = self.edges.get_mut(&from) else { return false };
        let was_there = edges.remove(&to).is_some();
        if edges.is_empty() {
            self.edges.remove(&from);
        }
        was_there
    }

    /// Removes a host with all its links.
    pub fn remove(&mut self, host: HostLabel) {
        self.edges.remove(&host);
        for edges in self.edges.values_mut() {
            edges.remove(&host);
        }
        self.stubs.remove(&host);
        self.loads.remove(&host);
    }

    /// A host is a stub, or is not; true if that is news.
    pub fn set_stub(&mut self, host: HostLabel, is_stub: bool) -> bool {
        if is_stub { self.stubs.insert(host) } else { self.stubs.remove(&host) }
    }

    /// Whether a host is a stub.
    pub fn is_stub(&self, host: HostLabel) -> bool {
        self.stubs.contains(&host)
    }

    /// Sets the steps of load that a relay announces; returns whether that is news.
    pub fn set_load(&mut self, host: HostLabel, load: u8) -> bool {
        let before = if load > 0 { self.loads.insert(host, load) } else { self.loads.remove(&host) };
        before.unwrap_or(0) != load
    }

    /// Returns the steps of load that a relay announces.
    pub fn load_of(&self, host: HostLabel) -> u8 {
        self.loads.get(&host).copied().unwrap_or(0)
    }

    /// Links that `from` says to have.
    pub fn of(&self, from: HostLabel) -> impl Iterator<Item = (HostLabel, LinkRecord)> {
        self.edges.get(&from).into_iter().flatten().map(|(to, link)| (*to, *link))
    }

    /// All links.
    pub fn iter(&self) -> impl Iterator<Item = (HostLabel, HostLabel, LinkRecord)> {
        self.edges.iter().flat_map(|(from, edges)| edges.iter().map(|(to, link)| (*from, *to, *link)))
    }

    /// The routes from `own` to every host that can be reached. An edge between others counts if both ends
    /// say so; this host's own links are what it knows itself.
    pub fn routes(&self, own: HostLabel) -> BTreeMap<HostLabel, Route> {
        self.routes_around(own, &Avoided::new()).0
    }

    /// The same, by other neighbours than the avoided ones where there are any; and of each host that `avoided` names all ways there, avoided or
    /// not, the cheapest first.
    pub(super) fn routes_around(
        &self,
        own: HostLabel,
        avoided: &Avoided,
    ) -> (BTreeMap<HostLabel, Route>, BTreeMap<HostLabel, Vec<HostLabel>>) {
        let graph = self.indexed(own);
        let Some(around) = graph.neighbourhood(own) else { return Default::default() };
        let others = graph.labels.iter().enumerate().filter(|(to, _)| *to != around.start);
        let routes = others.filter_map(|(to, label)| Some((*label, around.route(to, avoided.get(label))?))).collect();
        let index = |label: &HostLabel| graph.labels.binary_search(label).ok();
        let watched =
            avoided.iter().filter_map(|(label, avoided)| Some((*label, around.all_ways(index(label)?, avoided))));
        (routes, watched.collect())
    }

    /// The next host on the way from one to another.
    pub fn next_hop(&self, from: HostLabel, to: HostLabel) -> Option<HostLabel> {
        let graph = self.indexed(from);
        let to = graph.labels.binary_search(&to).ok()?;
        graph.neighbourhood(from)?.first_hop(to).map(|first| graph.labels[first.by])
    }

    pub(super) fn indexed(&self, own: HostLabel) -> Indexed {
        let mut labels: Vec<HostLabel> = self.edges.keys().copied().chain(self.of(own).map(|(to, _)| to)).collect();
        labels.sort_unstable();
        labels.dedup();
        let links = |from: &HostLabel| {
            let counted = self.of(*from).filter_map(|(to, link)| {
                let index = labels.binary_search(&to).ok()?;
                let back = self.edges.get(&to).and_then(|edges| edges.get(from));
                let both = back.map(|back| LinkRecord {
                    cost: link.cost.max(back.cost).max(1),
                    max_datagram: link.max_datagram.min(back.max_datagram),
                });
                Some((index, both.or((*from == own).then_some(link))?))
            });
            counted.collect()
        };
        let edges = labels.iter().map(links).collect();
        let is_stub = labels.iter().map(|label| self.is_stub(*label)).collect();
        let loads = labels.iter().map(|label| self.load_of(*label)).collect();
        Indexed { labels, edges, is_stub, loads }
    }
}

impl Indexed {
    fn neighbourhood(&self, from: HostLabel) -> Option<Neighbourhood<'_>> {
        let start = self.labels.binary_search(&from).ok()?;
        let neighbours = self.edges[start].iter().map(|(to, link)| (*to, *link, self.distances(*to))).collect();
        Some(Neighbourhood { graph: self, start, neighbours })
    }

    /// Returns the bid of a relay for a pair of hosts; the highest bid wins. With each step of load it wins half as often (weighted rendezvous hashing: Schindelhauer,
    /// Schomaker, "Weighted distributed hash tables", 2005; a number below one wins by its square half as often).
    pub(super) fn bid(&self, near: usize, far: usize, relay: usize) -> u64 {
        let share = share(self.labels[near], self.labels[far], self.labels[relay]);
        (0..self.loads[relay]).fold(share, |bid, _| ((u128::from(bid) * u128::from(bid)) >> 64) as u64)
    }

    pub(super) fn distances(&self, start: usize) -> Vec<Option<Distance>> {
        let mut best: Vec<Option<Distance>> = vec![None; self.labels.len()];
        let mut is_done = vec![false; self.labels.len()];
        best[start] = Some(Distance { cost: 0, max_datagram: u16::MAX });
        let mut heap = BinaryHeap::from([Reverse((0, start))]);
        while let Some(Reverse((_, at))) = heap.pop() {
            // All that lead here at the least cost are done: each link costs something.
            let Some(here) = best[at].filter(|_| !std::mem::replace(&mut is_done[at], true)) else { continue };
            if at != start && self.is_stub[at] {
                continue;
            }
            for (to, link) in self.edges[at].iter().filter(|(to, _)| !is_done[*to]) {
                let cost = here.cost.saturating_add(link.cost);
                let max_datagram = here.max_datagram.min(link.max_datagram);
                match &mut best[*to] {
                    Some(known) if known.cost < cost => {}
                    Some(known) if known.cost == cost => known.max_datagram = known.max_datagram.min(max_datagram),
                    known => {
                        *known = Some(Distance { cost, max_datagram });
                        heap.push(Reverse((cost, *to)));
                    }
                }
            }
        }
        best
    }
}

impl Neighbourhood<'_> {
    fn route(&self, to: usize, avoided: Option<&BTreeSet<HostLabel>>) -> Option<Route> {
        let first = self.first_hop(to)?;
        let label = |via: &Via| self.graph.labels[via.by];
        let is_avoided = |via: &Via| avoided.is_some_and(|avoided| avoided.contains(&label(via)));
        let rank = |via: &Via| (via.cost, label(via));
        if is_avoided(&first) {
            let mut ways: Vec<Via> = self.ways(to, &first).filter(|via| !is_avoided(via)).collect();
            ways.sort_unstable_by_key(rank);
            if let [Via { by, cost, max_datagram, .. }, others @ ..] = &ways[..] {
                let backup = others.first().map(label);
                return Some(Route { via: self.graph.labels[*by], backup, cost: *cost, max_datagram: *max_datagram });
            }
        }
        let is_loop_free = |via: &Via| via.by != first.by && via.onward < via.back.saturating_add(first.cost);
        let backups = self.by_neighbours(to).filter(|via| is_loop_free(via) && !is_avoided(via));
        let backup = backups.map(|via| rank(&via)).min().map(|(_, label)| label);
        let Via { by, cost, max_datagram, .. } = first;
        Some(Route { via: self.graph.labels[by], backup, cost, max_datagram })
    }

    /// The neighbours that lead to a host while others avoid theirs, the cheapest first; those where bytes are paid for only if of the others all but one are
    /// avoided.
    fn all_ways(&self, to: usize, avoided: &BTreeSet<HostLabel>) -> Vec<HostLabel> {
        let Some(first) = self.first_hop(to) else { return Vec::new() };
        let ways = self.ways(to, &first).map(|via| (via.cost, self.graph.labels[via.by]));
        let mut ways: Vec<(u32, HostLabel)> = ways.collect();
        ways.sort_unstable();
        let is_free = |cost: u32| cost < METERED_COST;
        let free = ways.iter().filter(|(cost, label)| is_free(*cost) && !avoided.contains(label)).count();
        ways.into_iter().filter(|(cost, _)| is_free(*cost) || free <= 1).map(|(_, label)| label).collect()
    }

    /// The neighbours that are nearer to a host (RFC 5286, inequality 3), and those that go to it straight, as nothing costs them less. So each hop leads nearer or
    /// to the end, also if hosts on the way avoid some: with inequality 1 two hosts that avoid each the other's way would send in a circle.
    fn ways(&self, to: usize, first: &Via) -> impl Iterator<Item = Via> {
        let goes_straight = move |via: &Via| {
            let links = &self.graph.edges[via.by];
            let link = links.binary_search_by_key(&to, |(end, _)| *end).ok().map(|at| links[at].1);
            via.by == to || link.is_some_and(|link| link.cost == via.onward)
        };
        self.by_neighbours(to).filter(move |via| via.onward < first.cost || goes_straight(via))
    }

    /// By the host itself if nothing costs less, or by one of the neighbours by which it costs the same.
    fn first_hop(&self, to: usize) -> Option<Via> {
        let cost = self.by_neighbours(to).map(|via| via.cost).min()?;
        let bid = |by: usize| self.graph.bid(self.start, to, by);
        self.by_neighbours(to).filter(|via| via.cost == cost).max_by_key(|via| (via.by == to, bid(via.by)))
    }

    fn by_neighbours(&self, to: usize) -> impl Iterator<Item = Via> {
        let may_relay = move |neighbour: usize| neighbour == to || !self.graph.is_stub[neighbour];
        let reaching = self.neighbours.iter().filter(move |(neighbour, ..)| may_relay(*neighbour));
        reaching.filter_map(move |(neighbour, link, theirs)| {
            let Distance { cost: onward, max_datagram } = theirs[to]?;
            let max_datagram = max_datagram.min(link.max_datagram);
            let back = theirs[self.start].map_or(u32::MAX, |back| back.cost);
            Some(Via { by: *neighbour, cost: link.cost.saturating_add(onward), onward, back, max_datagram })
        })
    }
}

/// What a relay without load bids for a pair of hosts, as a fraction of 2^64.
fn share(near: HostLabel, far: HostLabel, relay: HostLabel) -> u64 {
    SipHasher13::new().hash(&[near.min(far).0, near.max(far).0, relay.0].concat())
}

/// The cost of a link to announce, given what was announced before: in steps of a quarter, so that a trembling round-trip time moves no
/// routes; while the link `is_idle`, of twice that cost, for no frame would be quicker. `loss` is the share of probes lost.
pub fn announced_cost(rtt: Duration, loss: f64, is_idle: bool, announced: Option<u32>) -> u32 {
    let above = rtt.saturating_sub(RTT_FLOOR).as_micros() as f64 / 100.0;
    // A lost packet costs what a retransmission does: a second or so, weighed by how often. The share is known
    // from few probes only, so it counts in steps: each doubles the one before.
    let loss_class = [0.02, 0.04, 0.08, 0.16, 0.32].into_iter().rfind(|step| loss > *step);
    let wanted = f64::from(HOP_COST) + above + loss_class.unwrap_or(0.0) * 3_000.0;
    let tolerated = |old: f64| if is_idle { old.min(wanted) + 20.0 } else { old * 0.25 + 2.0 };
    match announced {
        Some(old) if (wanted - f64::from(old)).abs() <= tolerated(old.into()) => old,
        _ => wanted.min(1e6) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(n: u8) -> HostLabel {
        HostLabel([0, 0, 0, 0, 0, n])
    }

    fn graph(links: &[(u8, u8, u32)]) -> Graph {
        let mut graph = Graph::default();
        for (a, b, cost) in links {
            let link = LinkRecord { cost: *cost, max_datagram: 1000 + u16::from(*a) };
            graph.set(label(*a), label(*b), link);
            graph.set(label(*b), label(*a), link);
        }
        graph
    }

    #[test]
    fn the_cheapest_path_wins_and_its_alternative_is_known() {
        let graph = graph(&[(1, 2, 10), (2, 4, 10), (1, 3, 10), (3, 4, 15), (4, 5, 1)]);
        let routes = graph.routes(label(1));
        let expected = Route { via: label(2), backup: Some(label(3)), cost: 21, max_datagram: 1001 };
        assert_eq!(routes[&label(5)], expected);
        assert_eq!(routes.len(), 4);
    }

    #[test]
    fn pairs_are_spread_over_relays_of_one_cost_and_go_by_one_of_them_both_ways() {
        // Hosts 10 to 59 see each other by the relays 1 to 4 alone.
        let links: Vec<_> = (10..60).flat_map(|host| (1..5).map(move |relay| (relay, host, 10))).collect();
        let mut graph = graph(&links);
        let routes = |graph: &Graph| -> BTreeMap<HostLabel, BTreeMap<HostLabel, Route>> {
            (10..60).map(label).map(|host| (host, graph.routes(host))).collect()
        };
        let before = routes(&graph);
        let pairs: Vec<_> = (10..60).flat_map(|from| (from + 1..60).map(move |to| (label(from), label(to)))).collect();
        assert_eq!(share(label(2), label(1), label(3)), share(label(1), label(2), label(3)));
        assert_eq!(share(label(1), label(2), label(3)), 16_084_302_555_799_932_868, "other versions choose alike");
        let mut shares = BTreeMap::new();
        for (from, to) in &pairs {
            let (there, back) = (before[from][to], before[to][from]);
            let size = 1000 + u16::from(there.via.0[5]);
            assert_eq!((there.via, there.cost, there.max_datagram), (back.via, 20, size), "what this relay takes");
            assert_eq!(graph.next_hop(*from, *to), Some(there.via));
            *shares.entry(there.via).or_insert(0) += 1;
        }
        assert!(shares.len() == 4 && shares.values().all(|share| (250..360).contains(share)), "{shares:?}");
        // A busy relay keeps the pairs that it had with the highest bids.
        for (load, least, most) in [(1, 130, 220), (4, 5, 40)] {
            assert!(graph.set_load(label(3), load) && !graph.set_load(label(3), load));
            let busy = routes(&graph);
            let kept = |(from, to): &&(HostLabel, HostLabel)| {
                assert_eq!(busy[from][to].via, busy[to][from].via);
                assert!(busy[from][to].via == before[from][to].via || before[from][to].via == label(3));
                busy[from][to].via == label(3)
            };
            let kept = pairs.iter().filter(kept).count();
            assert!((least..most).contains(&kept), "{kept} at load {load}");
        }
        assert!(graph.set_load(label(3), 0));
        for host in 10..60 {
            graph.unset(label(4), label(host));
        }
        let after = routes(&graph);
        let kept = |from, to| before[from][to].via == label(4) || after[from][to].via == before[from][to].via;
        assert!(pairs.iter().all(|(from, to)| kept(from, to)), "a relay that is lost moves its own pairs alone");
    }

    #[test]
    fn a_link_that_one_end_does_not_claim_is_none() {
        let mut graph = graph(&[(1, 2, 10), (2, 3, 10)]);
        graph.unset(label(3), label(2));
        assert!(!graph.routes(label(1)).contains_key(&label(3)));
        graph.unset(label(2), label(1));
        assert!(graph.routes(label(1)).contains_key(&label(2)), "one's own link needs no second opinion");
    }

    #[test]
    fn backups_never_lead_back() {
        // In a ring the other neighbour of a near host would send it straight back.
        let graph = graph(&[(1, 2, 10), (2, 3, 10), (3, 4, 10), (4, 1, 10)]);
        let routes = graph.routes(label(1));
        assert_eq!(routes[&label(2)].backup, None);
        let far = routes[&label(3)];
        assert_eq!(BTreeSet::from([Some(far.via), far.backup]), [2, 4].map(|host| Some(label(host))).into());
    }

    #[test]
    fn no_path_leads_through_a_stub_and_paths_lead_to_it_and_from_it() {
        let mut graph = graph(&[(1, 2, 10), (2, 4, 10), (1, 3, 10), (3, 4, 15)]);
        assert!(graph.set_stub(label(2), true) && !graph.set_stub(label(2), true));
        let routes = graph.routes(label(1));
        assert_eq!(routes[&label(2)].via, label(2));
        let to_far = routes[&label(4)];
        assert_eq!((to_far.via, to_far.backup, to_far.cost), (label(3), None, 25));
        assert_eq!(graph.routes(label(2)).len(), 3, "it reaches all others itself");
        assert_eq!(graph.next_hop(label(4), label(1)), Some(label(3)));
        graph.set_stub(label(3), true);
        assert!(!graph.routes(label(1)).contains_key(&label(4)));
        assert!(graph.set_stub(label(2), false) && graph.routes(label(1)).contains_key(&label(4)));
    }

    #[test]
    fn costs_move_in_steps() {
        let cost = |millis: f64, loss, announced| {
            announced_cost(Duration::from_secs_f64(millis / 1e3), loss, false, announced)
        };
        let lan = cost(0.3, 0.0, None);
        assert_eq!(lan, cost(1.9, 0.0, Some(lan)));
        let wan = cost(50.0, 0.0, None);
        assert_eq!(wan, cost(55.0, 0.0, Some(wan)));
        assert!(cost(80.0, 0.0, Some(wan)) > wan);
        assert!(cost(0.3, 0.1, Some(lan)) > lan);
        let idle = |millis, loss, announced| announced_cost(Duration::from_millis(millis), loss, true, Some(announced));
        assert_eq!((idle(4, 0.0, lan), idle(80, 0.0, wan)), (lan, wan));
        assert!(idle(200, 0.0, wan) > wan && idle(0, 0.1, lan) > lan);
        assert_eq!(idle(0, 0.0, idle(0, 0.1, lan)), lan, "a loss that is over is no longer told");
    }
}
