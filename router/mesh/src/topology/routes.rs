//! Link-state routes: Dijkstra's shortest paths, the same on every host that holds the same records.
//!
//! Hysteresis is in the costs that hosts announce, not in the choice of a path: hosts that agree on
//! the costs agree on the paths, so there are no loops once the records are everywhere. Ties go to the lower label.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use weft_crypto::HostLabel;

use crate::records::LinkRecord;

/// The fixed cost of a hop beside its RTT, so that a relay is only taken where it pays.
const HOP_COST: u32 = 10;
/// Round-trip time that is not worth telling apart.
const RTT_FLOOR: Duration = Duration::from_millis(2);

/// Who says to have a link with whom.
#[derive(Default)]
pub struct Graph {
    edges: BTreeMap<HostLabel, BTreeMap<HostLabel, LinkRecord>>,
    /// Hosts that no path leads through (RFC 6987).
    stubs: BTreeSet<HostLabel>,
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

/// The graph with hosts as numbers, and only links that count.
struct Indexed {
    labels: Vec<HostLabel>,
    edges: Vec<Vec<(usize, LinkRecord)>>,
    is_stub: Vec<bool>,
}

#[derive(Clone, Copy)]
struct Distance {
    cost: u32,
    max_datagram: u16,
    /// The first hop.
    first: usize,
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

    /// A host is a stub, or is not; true if that is news.
    pub fn set_stub(&mut self, host: HostLabel, is_stub: bool) -> bool {
        if is_stub { self.stubs.insert(host) } else { self.stubs.remove(&host) }
    }

    /// Whether a host is a stub.
    pub fn is_stub(&self, host: HostLabel) -> bool {
        self.stubs.contains(&host)
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
        let graph = self.indexed(own);
        let Ok(start) = graph.labels.binary_search(&own) else { return BTreeMap::new() };
        let ours = graph.distances(start);
        let neighbours = &graph.edges[start];
        let theirs: Vec<_> = neighbours.iter().map(|(neighbour, _)| graph.distances(*neighbour)).collect();
        let mut routes = BTreeMap::new();
        for (to, distance) in ours.iter().enumerate().filter(|(to, _)| *to != start) {
            let Some(Distance { cost, max_datagram, first }) = *distance else { continue };
            let backup = (neighbours.iter().zip(&theirs))
                .filter(|((neighbour, _), _)| *neighbour != first)
                .filter(|((neighbour, _), _)| *neighbour == to || !graph.is_stub[*neighbour])
                .filter_map(|((neighbour, link), distances)| {
                    let onward = distances[to]?.cost;
                    let back = distances[start].map_or(u32::MAX, |back| back.cost);
                    let is_loop_free = onward < back.saturating_add(cost);
                    is_loop_free.then_some((link.cost.saturating_add(onward), graph.labels[*neighbour]))
                })
                .min()
                .map(|(_, label)| label);
            routes.insert(graph.labels[to], Route { via: graph.labels[first], backup, cost, max_datagram });
        }
        routes
    }

    /// The next host on the way from one to another.
    pub fn next_hop(&self, from: HostLabel, to: HostLabel) -> Option<HostLabel> {
        let graph = self.indexed(from);
        let place = |label| graph.labels.binary_search(&label).ok();
        let first = graph.distances(place(from)?)[place(to)?]?.first;
        Some(graph.labels[first])
    }

    fn indexed(&self, own: HostLabel) -> Indexed {
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
        Indexed { labels, edges, is_stub }
    }
}

impl Indexed {
    fn distances(&self, start: usize) -> Vec<Option<Distance>> {
        let mut done: Vec<Option<Distance>> = vec![None; self.labels.len()];
        let mut best = vec![u32::MAX; self.labels.len()];
        let mut heap = BinaryHeap::from([Reverse((0, start, start, u16::MAX))]);
        while let Some(Reverse((cost, at, first, max_datagram))) = heap.pop() {
            if done[at].is_some() {
                continue;
            }
            done[at] = Some(Distance { cost, max_datagram, first });
            if at != start && self.is_stub[at] {
                continue;
            }
            for (to, link) in &self.edges[at] {
                let cost = cost.saturating_add(link.cost);
                // Equal costs go on the heap, too: there the lower label wins, the same way everywhere.
                if done[*to].is_none() && cost <= best[*to] {
                    best[*to] = cost;
                    let first = if at == start { *to } else { first };
                    heap.push(Reverse((cost, *to, first, max_datagram.min(link.max_datagram))));
                }
            }
        }
        done
    }
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
        assert_eq!(routes[&label(3)].backup, Some(label(4)));
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
