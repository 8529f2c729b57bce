//! The largest datagram that a path takes: path MTU discovery by the datagrams themselves (RFC 8899), driven by traffic.
//!
//! Pings of several sizes ask, and the largest that is answered counts. Once it is known, only traffic gives reason to ask
//! again: for the known size, so that a path that takes it no more is noticed by three probes, and now and then for larger
//! ones. What routers say by ICMP is not needed.

use std::time::Duration;

use weft_crypto::Time;

use super::Peer;
use crate::path::Path;
use crate::wire::MIN_DATAGRAM;

/// Interval between searches for a larger size: at first, and later while the path is used.
const FIRST_SEARCHES: Duration = Duration::from_secs(3);
const EAGER_SEARCH: Duration = Duration::from_millis(500);
const SEARCH: Duration = Duration::from_secs(15);
/// Interval between probes of the known size while the path is used, and while it carries bulk.
const CHECK: Duration = Duration::from_secs(1);
const BULK_CHECK: Duration = Duration::from_millis(200);
/// Probes of one size lost in a row that prove that it does not pass (RFC 8899, section 5.1.2).
const MAX_PROBES: u32 = 3;
/// UDP payloads of MTUs in use: 9,000 of jumbo frames, 1,500, and what tunnels and PPPoE leave of it; in bytes.
const USUAL: [usize; 6] = [8952, 1472, 1452, 1420, 1372, 1320];
/// Bytes of IP and UDP headers.
const IPV4_HEADERS: usize = 28;
const IPV6_HEADERS: usize = 48;

/// What is known of a path's size.
pub(crate) struct PathSize {
    /// The largest datagram (UDP payload) that it is known to take, in bytes.
    pub(crate) max_datagram: usize,
    /// Probes of that size that were lost since one was answered.
    lost: u32,
    /// When the first search began, the last one, and when the known size was last asked for.
    since: Time,
    last_search: Time,
    last_check: Time,
}

/// What goes over a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Load {
    Idle,
    Used,
    Bulk,
}

impl PathSize {
    pub(super) fn new(now: Time) -> Self {
        PathSize { max_datagram: MIN_DATAGRAM, lost: 0, since: now, last_search: Time::ZERO, last_check: Time::ZERO }
    }

    /// Returns the sizes to probe now, none above `top`, in bytes.
    fn due(&mut self, top: usize, load: Load, now: Time) -> Vec<usize> {
        let is_eager = self.max_datagram < top && now.since(self.since) < FIRST_SEARCHES;
        let searched = now.since(self.last_search);
        let searches = self.last_search == Time::ZERO
            || (is_eager && searched >= EAGER_SEARCH)
            || (load >= Load::Used && searched >= SEARCH);
        let interval = if load == Load::Bulk { BULK_CHECK } else { CHECK };
        let checks = load >= Load::Used && self.max_datagram > MIN_DATAGRAM && now.since(self.last_check) >= interval;
        if !searches && !checks {
            return Vec::new();
        }
        self.last_check = now;
        let mut sizes = vec![self.max_datagram];
        if searches {
            self.last_search = now;
            let larger = [top].into_iter().chain(USUAL.into_iter().filter(|size| *size < top));
            sizes.extend(larger.filter(|size| *size > self.max_datagram));
        }
        sizes
    }

    /// Takes the answer to a probe; true if the path takes larger datagrams than was known.
    pub(super) fn on_answer(&mut self, size: usize) -> bool {
        if size >= self.max_datagram {
            self.lost = 0;
        }
        let grows = size > self.max_datagram;
        self.max_datagram = self.max_datagram.max(size);
        grows
    }

    /// Takes the loss of a probe on a path that smaller datagrams pass; true if that proves a black hole (RFC 8899, section 4.3): the
    /// size is searched anew then.
    fn on_lost(&mut self, size: usize) -> bool {
        self.lost += u32::from(size == self.max_datagram);
        let is_hole = self.max_datagram > MIN_DATAGRAM && self.lost >= MAX_PROBES;
        if is_hole {
            self.distrust();
        }
        is_hole
    }

    /// Starts over from the size that every path takes.
    pub(super) fn distrust(&mut self) {
        (self.max_datagram, self.lost, self.last_search) = (MIN_DATAGRAM, 0, Time::ZERO);
    }

    /// Whether the first searches are over.
    pub(super) fn is_settled(&self, now: Time) -> bool {
        now.since(self.since) > FIRST_SEARCHES
    }

    /// Searches as eagerly as at first: earlier probes were lost for another reason than their size.
    pub(super) fn search_again(&mut self, now: Time) {
        (self.since, self.last_search) = (now, Time::ZERO);
    }
}

/// The largest datagram that this host's own interface lets onto a path, in bytes.
pub(super) fn top(path: Path, underlay_mtu: usize) -> usize {
    let headers = if path.remote.is_ipv4() { IPV4_HEADERS } else { IPV6_HEADERS };
    underlay_mtu.saturating_sub(headers).max(MIN_DATAGRAM)
}

impl Peer {
    /// The sizes to probe now on its link, in bytes of a datagram, and whether the link takes less than was known.
    pub(super) fn tend_size(&mut self, underlay_mtu: usize, now: Time) -> (Vec<usize>, bool) {
        let heard = self.last_heard();
        let Some(link) = &mut self.link else { return (Vec::new(), false) };
        let lost = self.pings.lost_size_probes(link.path, link.patience(), heard, now);
        let shrinks = lost.into_iter().filter(|size| link.size.on_lost(*size)).count() > 0;
        let top = top(link.path, underlay_mtu);
        let load = link.load(now);
        (link.size.due(top, load, now), shrinks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::lab::*;

    #[test]
    fn the_largest_size_answered_counts() {
        let (mut topology, table, meter) = topology();
        for now in (0..4000).step_by(50) {
            topology.tend_links(true, &table, at(now));
            answer(&mut topology, &meter, 1430, at(now + 10));
        }
        assert_eq!(topology.link(PEER).map(|link| link.size.max_datagram), Some(1420));
    }

    #[test]
    fn an_idle_path_is_asked_until_its_size_is_known_and_no_more() {
        let mut size = PathSize::new(at(0));
        assert_eq!(size.due(1472, Load::Idle, at(1)), [MIN_DATAGRAM, 1472, 1452, 1420, 1372, 1320]);
        assert!(size.on_answer(1420) && !size.on_answer(1372));
        assert_eq!(size.due(1472, Load::Idle, at(501)), [1420, 1472, 1452]);
        assert_eq!(size.due(1472, Load::Idle, at(60_000)), []);
        assert_eq!(size.due(1472, Load::Used, at(60_000)), [1420, 1472, 1452]);
        assert_eq!(size.due(1472, Load::Used, at(61_000)), [1420]);
        assert_eq!(size.due(1472, Load::Bulk, at(61_200)), [1420]);
    }

    #[test]
    fn a_path_that_takes_less_than_before_is_noticed_by_traffic_and_grows_back() {
        let (mut topology, table, meter) = topology();
        // From 10 s to 30 s the path takes 1,400 bytes; frames flow from 5 s on.
        let takes = |now: u64| if (10_000..30_000).contains(&now) { 1400 } else { 1472 };
        let (mut shrunk, mut grown) = (None, None);
        for now in (0..60_000).step_by(50) {
            if now >= 5000 {
                meter.sent.on_link(20, at(now));
            }
            topology.tend_links(true, &table, at(now));
            answer(&mut topology, &meter, takes(now), at(now + 10));
            match topology.link(PEER).map(|link| link.size.max_datagram) {
                Some(1372) if shrunk.is_none() => shrunk = Some(now),
                Some(1472) if now > 30_000 && grown.is_none() => grown = Some(now),
                _ => {}
            }
        }
        assert!(shrunk.is_some_and(|at| (10_000..11_000).contains(&at)), "{shrunk:?}");
        assert!(grown.is_some_and(|at| at < 46_000), "{grown:?}");
    }

    #[test]
    fn probes_lost_with_all_else_prove_nothing_of_size() {
        let (mut topology, table, meter) = topology();
        for now in (0..2000).step_by(50) {
            meter.sent.on_link(20, at(now));
            topology.tend_links(true, &table, at(now));
            answer(&mut topology, &meter, 1472, at(now + 10));
        }
        // Nothing comes back for a moment, then all does.
        for now in (2000..2100).step_by(50) {
            meter.sent.on_link(20, at(now));
            topology.tend_links(true, &table, at(now));
            events(&mut topology);
        }
        for now in (2100..4000).step_by(50) {
            meter.sent.on_link(20, at(now));
            topology.tend_links(true, &table, at(now));
            answer(&mut topology, &meter, 1472, at(now + 10));
            assert_eq!(topology.link(PEER).map(|link| link.size.max_datagram), Some(1472), "{now}");
        }
    }
}
