//! Which metered links a mesh keeps at rest: as few as hold it together.
//!
//! They are those of a spanning forest over the parts that unmetered links hold together anyway (Kruskal, "On the shortest spanning subtree of a graph and
//! the traveling salesman problem", 1956). All count the same, and are taken in the order of their ends: hosts that know of the same links keep the
//! same ones, and where each host is a part of its own they are those of the first.

use std::collections::BTreeSet;

use weft_crypto::HostLabel;

use super::routes::{Graph, Indexed};

/// Parts of a graph: each place leads to another of its part, or is its root.
struct Parts(Vec<usize>);

impl Parts {
    fn root(&self, mut place: usize) -> usize {
        while self.0[place] != place {
            place = self.0[place];
        }
        place
    }

    /// Makes the parts of two places one.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

impl Graph {
    /// The hosts with which `own` has metered links that are to be kept at rest.
    pub(super) fn kept_metered(&self, own: HostLabel) -> BTreeSet<HostLabel> {
        let is_metered_by = |host| self.of(host).any(|(to, link)| to == own && link.is_metered());
        if !self.of(own).any(|(to, link)| link.is_metered() || is_metered_by(to)) {
            return BTreeSet::new();
        }
        let graph = self.indexed(own);
        let Ok(own) = graph.labels.binary_search(&own) else { return BTreeSet::new() };
        let kept = graph.spanning_metered();
        let of_own = kept.into_iter().filter(|(a, b)| *a == own || *b == own);
        of_own.map(|(a, b)| graph.labels[if a == own { b } else { a }]).collect()
    }
}

impl Indexed {
    fn spanning_metered(&self) -> Vec<(usize, usize)> {
        let mut parts = Parts((0..self.labels.len()).collect());
        // The parts that a host reaches which relays nothing: it belongs to none.
        let mut reached = vec![BTreeSet::new(); self.labels.len()];
        let mut metered = BTreeSet::new();
        for (from, edges) in self.edges.iter().enumerate() {
            for (to, link) in edges {
                let stubs = [from, *to].into_iter().filter(|end| self.is_stub[*end]).count();
                if link.is_metered() {
                    // Links between hosts that relay come first, those between two that do not last.
                    metered.insert((stubs, from.min(*to), from.max(*to)));
                } else if stubs == 0 {
                    parts.join(from, *to);
                } else if stubs == 1 && self.is_stub[from] {
                    reached[from].insert(*to);
                }
            }
        }
        let mut kept = Vec::new();
        for (_, a, b) in metered {
            let roots = |end: usize| -> BTreeSet<usize> {
                let ends = if self.is_stub[end] { reached[end].clone() } else { [end].into() };
                ends.into_iter().map(|end| parts.root(end)).collect()
            };
            if !roots(a).is_disjoint(&roots(b)) {
                continue;
            }
            kept.push((a, b));
            match (self.is_stub[a], self.is_stub[b]) {
                (false, false) => parts.join(a, b),
                (true, false) => {
                    reached[a].insert(b);
                }
                (false, true) => {
                    reached[b].insert(a);
                }
                (true, true) => {}
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{LinkRecord, METERED_COST};

    fn label(n: u8) -> HostLabel {
        HostLabel([0, 0, 0, 0, 0, n])
    }

    fn graph(free: &[(u8, u8)], metered: &[(u8, u8)], stubs: &[u8]) -> Graph {
        let mut graph = Graph::default();
        let free = free.iter().map(|ends| (ends, 10));
        for ((a, b), cost) in free.chain(metered.iter().map(|ends| (ends, METERED_COST + 10))) {
            let link = LinkRecord { cost, max_datagram: 1400 };
            graph.set(label(*a), label(*b), link);
            // One end alone may know what the line costs.
            graph.set(label(*b), label(*a), LinkRecord { cost: 10, ..link });
        }
        for stub in stubs {
            graph.set_stub(label(*stub), true);
        }
        graph
    }

    /// The metered links that either end keeps; both have to.
    fn kept(graph: &Graph) -> Vec<(u8, u8)> {
        let hosts: Vec<u8> = (1..=9).collect();
        let keeps = |a: u8, b: u8| graph.kept_metered(label(a)).contains(&label(b));
        let pairs = hosts.iter().flat_map(|a| hosts.iter().filter(move |b| a < *b).map(move |b| (*a, *b)));
        pairs.filter(|(a, b)| keeps(*a, *b)).inspect(|(a, b)| assert!(keeps(*b, *a), "{a} {b}")).collect()
    }

    #[test]
    fn one_link_joins_two_sites_and_none_is_kept_within_one() {
        let sites = [(1, 2), (2, 3), (4, 5)];
        let all = [(1, 4), (1, 5), (2, 4), (3, 5), (1, 3)];
        assert_eq!(kept(&graph(&sites, &all, &[])), [(1, 4)]);
        assert_eq!(kept(&graph(&sites, &all[1..], &[])), [(1, 5)]);
        assert_eq!(kept(&graph(&[(1, 2), (2, 3), (4, 5), (3, 4)], &all, &[])), [], "there is a free way");
    }

    #[test]
    fn hosts_with_nothing_but_metered_links_keep_those_with_the_first() {
        let all: Vec<(u8, u8)> = (1..6).flat_map(|a| (a + 1..6).map(move |b| (a, b))).collect();
        assert_eq!(kept(&graph(&[], &all, &[])), [(1, 2), (1, 3), (1, 4), (1, 5)]);
    }

    #[test]
    fn a_host_that_relays_nothing_joins_no_sites_and_keeps_its_own_way_to_each() {
        let sites = [(2, 3), (4, 5)];
        // Host 1 has free links with one site, and metered ones with the other.
        let free: Vec<(u8, u8)> = sites.into_iter().chain([(1, 2)]).collect();
        assert_eq!(kept(&graph(&free, &[(1, 4), (1, 5), (3, 4)], &[1])), [(3, 4)]);
        assert_eq!(kept(&graph(&free, &[(1, 4), (1, 5)], &[1])), [(1, 4)], "it is the only way for itself");
        assert_eq!(kept(&graph(&[], &[(1, 2), (1, 3), (2, 3)], &[1, 2])), [(1, 2), (1, 3), (2, 3)][1..]);
        assert_eq!(kept(&graph(&[], &[(1, 2)], &[1, 2])), [(1, 2)]);
    }
}
