//! What would become of the paths of the mesh without a host: routes are a pure function of what hosts announce.

use std::collections::BTreeMap;

use weft_crypto::HostLabel;

use super::routes::{Distance, Graph, Indexed};
use crate::records::{LinkRecord, METERED_COST};

/// The mesh as it is, and a host that is thought away. [`WhatIf::outcome`] takes a Dijkstra for each host, twice: seconds for a thousand
/// hosts, which a node has no time for.
#[derive(Clone, Debug)]
pub struct WhatIf {
    /// What hosts announce.
    pub(crate) graph: Graph,
    /// The host that computes, whose own links count although the other end may not have said so yet.
    pub(crate) own: HostLabel,
    /// The host that is thought away.
    pub(crate) without: HostLabel,
    /// Nicknames.
    pub(crate) names: BTreeMap<HostLabel, String>,
}

/// What would become of them. Paths to and from the host itself are left out.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct WithoutHost {
    /// The host's nickname.
    pub host: String,
    /// Pairs of other hosts that have a path.
    pub pairs: usize,
    /// Pairs that would have none.
    pub lost: Vec<[String; 2]>,
    /// Pairs whose path would be another.
    pub moved: Vec<Detour>,
}

/// A pair of hosts whose path leads over the host now.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Detour {
    /// The two hosts.
    pub between: [String; 2],
    /// The hosts that would relay, in order.
    pub via: Vec<String>,
    /// What the path would cost: some 10 for each hop, and 10 for each millisecond of round-trip time above two.
    pub cost: u32,
    /// What it costs now.
    pub cost_now: u32,
    /// Whether the path would lead over a metered link; costs are without what that costs in addition.
    pub metered: bool,
}

impl WhatIf {
    /// Computes what would become of all paths.
    pub fn outcome(&self) -> WithoutHost {
        let before = AllPaths::of(&self.graph, self.own);
        let mut graph = self.graph.clone();
        graph.remove(self.without);
        let after = AllPaths::of(&graph, self.own);
        let name = |host: HostLabel| self.names.get(&host).cloned().unwrap_or_else(|| hex::encode(host.0));
        let (mut pairs, mut lost, mut moved) = (0, Vec::new(), Vec::new());
        let hosts: Vec<HostLabel> = before.hosts().filter(|host| *host != self.without).collect();
        for (number, near) in hosts.iter().enumerate() {
            for far in &hosts[number + 1..] {
                let Some(now) = before.path(*near, *far) else { continue };
                pairs += 1;
                if !now.relays.contains(&self.without) {
                    continue;
                }
                let between = [name(*near), name(*far)];
                match after.path(*near, *far) {
                    None => lost.push(between),
                    Some(path) => moved.push(Detour {
                        between,
                        via: path.relays.into_iter().map(name).collect(),
                        cost: path.cost % METERED_COST,
                        cost_now: now.cost % METERED_COST,
                        metered: path.cost >= METERED_COST,
                    }),
                }
            }
        }
        WithoutHost { host: name(self.without), pairs, lost, moved }
    }
}

/// The shortest paths between all hosts.
struct AllPaths {
    graph: Indexed,
    /// From each host to each.
    distances: Vec<Vec<Option<Distance>>>,
}

struct FoundPath {
    cost: u32,
    relays: Vec<HostLabel>,
}

impl AllPaths {
    fn of(graph: &Graph, own: HostLabel) -> AllPaths {
        let graph = graph.indexed(own);
        let distances = (0..graph.labels.len()).map(|from| graph.distances(from)).collect();
        AllPaths { graph, distances }
    }

    fn hosts(&self) -> impl Iterator<Item = HostLabel> {
        self.graph.labels.iter().copied()
    }

    /// The path that frames take, each host on the way choosing its next as it does for itself.
    fn path(&self, from: HostLabel, to: HostLabel) -> Option<FoundPath> {
        let index = |host: HostLabel| self.graph.labels.binary_search(&host).ok();
        let (mut at, to) = (index(from)?, index(to)?);
        let (cost, _) = self.next(at, to)?;
        let mut relays = Vec::new();
        // Each hop costs less than the one before, so there are no circles; hosts that learn of each other meanwhile are no reason for one.
        for _ in 0..self.graph.labels.len() {
            let (_, next) = self.next(at, to)?;
            if next == to {
                return Some(FoundPath { cost, relays });
            }
            relays.push(self.graph.labels[next]);
            at = next;
        }
        None
    }

    /// The next host on the way, and what the way costs.
    fn next(&self, at: usize, to: usize) -> Option<(u32, usize)> {
        let by = |(next, link): &(usize, LinkRecord)| {
            let may_relay = *next == to || !self.graph.is_stub[*next];
            let onward = self.distances[*next][to].filter(|_| may_relay)?;
            Some((link.cost.saturating_add(onward.cost), *next))
        };
        let all = || self.graph.edges[at].iter().filter_map(by);
        let least = all().map(|(cost, _)| cost).min()?;
        all().filter(|(cost, _)| *cost == least).max_by_key(|(_, next)| (*next == to, self.graph.bid(at, to, *next)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(n: u8) -> HostLabel {
        HostLabel([0, 0, 0, 0, 0, n])
    }

    fn what_if(links: &[(u8, u8, u32)], stubs: &[u8], without: u8) -> WhatIf {
        let mut graph = Graph::default();
        for (a, b, cost) in links {
            let link = LinkRecord { cost: *cost, max_datagram: 1400 };
            graph.set(label(*a), label(*b), link);
            graph.set(label(*b), label(*a), link);
        }
        for stub in stubs {
            graph.set_stub(label(*stub), true);
        }
        let names = (0..10).map(|n| (label(n), format!("h{n}"))).collect();
        WhatIf { graph, own: label(1), without: label(without), names }
    }

    fn pair(a: &str, b: &str) -> [String; 2] {
        [a.to_owned(), b.to_owned()]
    }

    #[test]
    fn pairs_that_a_host_relays_for_are_lost_or_go_another_way() {
        // 1 and 2 meet at 3, and at a price at 4; 5 is behind 3 alone.
        let links = [(1, 3, 10), (2, 3, 10), (1, 4, 100), (2, 4, 100), (3, 5, 10), (3, 4, 10)];
        let outcome = what_if(&links, &[], 3).outcome();
        let moved = |a: &str, b: &str, via: &str, cost, cost_now| Detour {
            between: pair(a, b),
            via: via.split_whitespace().map(str::to_owned).collect(),
            cost,
            cost_now,
            metered: false,
        };
        assert_eq!(outcome.pairs, 6);
        assert_eq!(outcome.lost, [pair("h1", "h5"), pair("h2", "h5"), pair("h4", "h5")]);
        assert_eq!(
            outcome.moved,
            [moved("h1", "h2", "h4", 200, 20), moved("h1", "h4", "", 100, 20), moved("h2", "h4", "", 100, 20)]
        );
    }

    #[test]
    fn a_host_that_relays_for_none_is_missed_by_none() {
        let triangle = [(1, 2, 10), (2, 3, 10), (1, 3, 10)];
        let outcome = what_if(&triangle, &[], 2).outcome();
        assert_eq!((outcome.pairs, outcome.lost.len(), outcome.moved.len()), (1, 0, 0));
    }

    #[test]
    fn paths_are_those_that_hosts_choose() {
        let mut links = vec![(1, 9, 90)];
        links.extend((2..8).flat_map(|relay| [(1, relay, 10), (relay, 9, 10)]));
        let what_if = what_if(&links, &[4], 3);
        let all = AllPaths::of(&what_if.graph, label(1));
        for (from, to) in [(1, 9), (9, 1), (2, 3), (5, 7)] {
            let path = all.path(label(from), label(to)).unwrap();
            let next = path.relays.first().copied().unwrap_or(label(to));
            assert_eq!(what_if.graph.next_hop(label(from), label(to)), Some(next), "{from} to {to}");
        }
    }

    #[test]
    fn the_host_that_stands_alone_afterwards_loses_all() {
        let outcome = what_if(&[(1, 2, 10), (2, 3, 10)], &[], 2).outcome();
        assert_eq!(outcome.lost, [pair("h1", "h3")]);
        let stub = what_if(&[(1, 2, 10), (2, 3, 10)], &[2], 9).outcome();
        assert_eq!((stub.pairs, stub.lost.len()), (2, 0), "through a stub there is no path anyway");
    }
}
