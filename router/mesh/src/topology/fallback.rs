//! TCP where UDP does not pass, and back to better paths.
//!
//! UDP is tried first, and again while a link goes over TCP: TCP repeats what was lost, and holds back all that came after it. Paths that are not metered are
//! tried again while a link goes over one that is.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::candidates::Learnt;
use super::metered::Metered;
use super::targets::Targets;
use super::{Peer, Topology};
use crate::path::{Path, Transport};
use crate::records::HostRecord;

/// The port that leaves networks which let nothing else out (HTTPS).
const HTTPS: u16 = 443;
/// How long UDP is tried alone: without a route to the peer, and with one along which hosts agree on who asks first.
const ALONE: Duration = Duration::from_secs(1);
const ALONE_WITH_ROUTE: Duration = Duration::from_secs(5);
/// How often better paths are tried again. Each time that one was lost within [`SHORT_LIVED`] doubles it, up to the longest. Each try doubles it
/// where only the peer knows that the link's path is metered, and which others are not.
const RETURN: Duration = Duration::from_secs(20);
const LONGEST_RETURN: Duration = Duration::from_secs(600);
const MOST_DOUBLINGS: u32 = 5;
const SHORT_LIVED: Duration = Duration::from_secs(60);
/// Addresses of a peer that are asked for a TCP connection.
const MAX_ADDRESSES: usize = 4;

/// Whether it is too early for TCP, `waited` after a link was wanted first.
pub(super) fn is_too_early(path: &Path, waited: Duration, has_route: bool) -> bool {
    !path.is_udp() && waited < if has_route { ALONE_WITH_ROUTE } else { ALONE }
}

/// Returns the paths by TCP to a host that says at which ports it accepts connections.
pub(super) fn paths_of(record: &HostRecord) -> impl Iterator<Item = (Path, Learnt)> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for ip in record.addresses.iter().chain(&record.seen).map(SocketAddr::ip) {
        if ips.len() < MAX_ADDRESSES && !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    let learnt = |ip: IpAddr| {
        let is_own = record.addresses.iter().any(|address| address.ip() == ip);
        if is_own { Learnt::Announced } else { Learnt::Seen }
    };
    let paths = move |ip: IpAddr| {
        let learnt = learnt(ip);
        record.tcp.iter().map(move |port| (Path::tcp(SocketAddr::new(ip, *port)), learnt))
    };
    let advertised = record.advertised.tcp.iter().map(|address| (Path::tcp(*address), Learnt::Advertised));
    advertised.chain(ips.into_iter().flat_map(paths))
}

/// When a link that goes over TCP is to return to UDP, or one over a metered path to another.
pub(super) struct Return {
    interval: Duration,
    /// The better path that a worse one was last left for, and when.
    to: Option<(Path, Time)>,
}

impl Default for Return {
    fn default() -> Self {
        Return { interval: RETURN, to: None }
    }
}

impl Return {
    /// A link moves to a better path.
    pub(super) fn on_return(&mut self, to: Path, now: Time) {
        self.to = Some((to, now));
    }

    /// A link over a path was lost.
    pub(super) fn on_loss(&mut self, path: Path, metered: &Metered, now: Time) {
        if let Some((_, since)) = self.to.filter(|(to, _)| metered.compare(to, &path).is_eq()) {
            let is_short = now.since(since) < SHORT_LIVED;
            self.interval = if is_short { (self.interval * 2).min(LONGEST_RETURN) } else { RETURN };
        }
    }
}

impl Targets {
    /// Returns the paths by TCP to an address that the operator named: at its own port, and at the one that is open everywhere.
    pub(super) fn tcp_paths(&self, address: SocketAddr) -> impl Iterator<Item = Path> {
        let ports: BTreeSet<u16> = [address.port(), HTTPS].into();
        ports.into_iter().map(move |port| Path::tcp(SocketAddr::new(address.ip(), port)))
    }

    /// The named address that a path leads to, if it leads to one. At the port that is open everywhere one host answers: which, is known only
    /// if no other was named at that address.
    pub(super) fn named_at(&self, path: Path) -> Option<SocketAddr> {
        let is_https = match path.transport {
            Transport::Udp | Transport::SpareUdp(_) => false,
            Transport::Tcp => path.remote.port() == HTTPS,
            Transport::AcceptedTcp => return None,
        };
        if self.has_address(&path.remote) {
            return Some(path.remote);
        }
        let mut there = self.addresses().filter(|address| is_https && address.ip() == path.remote.ip());
        there.next().filter(|_| there.next().is_none())
    }
}

impl Peer {
    /// Returns the paths that are to be tried again now: those better than its link's, and those that may be, if only the peer knows that the
    /// link's path `is_metered_by` it. That end has to go there first. `own` are addresses of this host.
    pub(super) fn better_paths(
        &mut self,
        own: &[SocketAddr],
        metered: &Metered,
        is_metered_by: bool,
        now: Time,
    ) -> [Vec<Path>; 2] {
        let Some(link) = &mut self.link else { return Default::default() };
        let is_sure = !link.path.is_udp() || metered.has_path(&link.path);
        let interval = match is_sure {
            true => self.back.interval,
            false => (RETURN * 2u32.pow(link.search.count().min(MOST_DOUBLINGS))).min(LONGEST_RETURN),
        };
        let is_over = |last| now.since(last) >= interval || metered.changed_since(last);
        if !(is_sure || is_metered_by) || !link.search.last().is_none_or(is_over) {
            return Default::default();
        }
        link.search.on_search(now);
        let in_use = link.path;
        let is_better = |path: &Path| match is_sure {
            true => metered.compare(path, &in_use).is_gt(),
            false => path.is_udp() && !path.may_be(in_use) && !metered.has_path(path),
        };
        let paths = self.candidates.better(own, is_better, now);
        if is_sure { [paths, Vec::new()] } else { [Vec::new(), paths] }
    }
}

impl Topology {
    /// A connection was closed. A link that goes over it is lost.
    pub(crate) fn on_closed(&mut self, path: Path, now: Time) {
        let uses = |label: &&HostLabel| self.link(**label).is_some_and(|link| link.path == path);
        let lost: Vec<HostLabel> = self.linked.iter().filter(uses).copied().collect();
        lost.into_iter().for_each(|label| self.link_down(label, "its connection was closed", now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Target, Usage};
    use crate::topology::Event;
    use crate::topology::lab::*;
    use crate::wire::Control;

    fn tcp(port: u16) -> Path {
        Path::tcp(SocketAddr::new(remote().remote.ip(), port))
    }

    fn record() -> HostRecord {
        HostRecord { name: "host2".into(), addresses: vec![remote().remote], tcp: vec![443], ..HostRecord::default() }
    }

    /// The paths that are pinged.
    fn pinged(topology: &mut Topology) -> Vec<Path> {
        let ping = |event| match event {
            Event::Straight { to, control: Control::Ping { .. }, size: 0, .. } => Some(to),
            _ => None,
        };
        events(topology).into_iter().filter_map(ping).collect()
    }

    #[test]
    fn tcp_is_tried_once_udp_had_its_time() {
        let (mut topology, table, _) = topology();
        topology.on_host(PEER, Some(&record()), at(0));
        let first = (0..3000).step_by(50).find(|now| {
            topology.tend_links(true, &table, at(*now));
            pinged(&mut topology).contains(&tcp(443))
        });
        assert_eq!(first.map(at), Some(Time::ZERO + ALONE));
    }

    #[test]
    fn a_link_over_tcp_is_used_at_once_kept_open_and_left_for_udp_that_answers() {
        let (mut topology, table, meter) = topology();
        topology.on_host(PEER, Some(&record()), at(0));
        let uses = |topology: &mut Topology, passes_udp: bool, now: u64| {
            topology.tend_links(true, &table, at(now));
            let mut uses = Vec::new();
            for event in std::iter::from_fn(|| topology.poll_event()).collect::<Vec<_>>() {
                match event {
                    Event::Straight { control: Control::Ping { id, .. }, to, size, .. }
                        if passes_udp || !to.is_udp() =>
                    {
                        meter.received.on_link(1, at(now));
                        topology.on_pong(PEER, to, id, to.remote, size as u16, at(now + 10));
                    }
                    Event::Connection { path, usage } => uses.push((path, usage)),
                    _ => {}
                }
            }
            uses
        };
        let mut used = Vec::new();
        for now in (0..30_000).step_by(50) {
            used.extend(uses(&mut topology, false, now));
        }
        assert_eq!(used, [(tcp(443), Usage::InUse)]);
        assert_eq!(topology.link(PEER).map(|link| link.path), Some(tcp(443)));
        assert!(topology.addresses.seen().is_empty(), "where a connection comes from is no address for datagrams");
        let moved = (30_000..60_000).step_by(50).find(|now| !uses(&mut topology, true, *now).is_empty());
        assert!(moved.is_some_and(|now| now < 52_000), "{moved:?}");
        assert_eq!(topology.link(PEER).map(|link| link.path), Some(remote()));
    }

    #[test]
    fn the_way_back_is_sought_at_every_address_and_more_seldom_where_udp_does_not_last() {
        let (mut topology, table, meter) = topology();
        let named = Path::udp(([198, 51, 100, 1], 6783).into());
        topology.targets.connect(&[Target { name: "host2".into(), addresses: vec![named.remote] }], at(0));
        topology.on_found(PEER, Path::tcp(([198, 51, 100, 1], 443).into()));
        let mut came_back = Vec::new();
        for now in (0..400_000).step_by(50) {
            // UDP is answered only while the link goes over TCP: each time that it goes over to UDP it is lost.
            let by_tcp = topology.link(PEER).is_some_and(|link| !link.path.is_udp());
            topology.tend_links(true, &table, at(now));
            for event in std::iter::from_fn(|| topology.poll_event()).collect::<Vec<_>>() {
                if let Event::Straight { control: Control::Ping { id, .. }, to, size, .. } = event
                    && (by_tcp || !to.is_udp())
                {
                    meter.received.on_link(1, at(now));
                    topology.on_pong(PEER, to, id, to.remote, size as u16, at(now + 10));
                }
            }
            if by_tcp && topology.link(PEER).is_some_and(|link| link.path.is_udp()) {
                came_back.push(now / 1000);
            }
        }
        assert!(topology.peers[&PEER].candidates.paths().any(|path| *path == named));
        assert!((2..=5).contains(&came_back.len()), "{came_back:?}");
    }

    #[test]
    fn a_connection_that_closes_takes_its_link_with_it() {
        let (mut topology, ..) = topology();
        let from = Path::accepted_tcp(([192, 0, 2, 2], 50_000).into());
        topology.ping(PEER, 7, from, 0, at(0));
        let Some(Event::Straight { control: Control::Ping { id, .. }, .. }) = topology.poll_event() else { panic!() };
        topology.on_pong(PEER, from, id, from.remote, 0, at(10));
        assert!(topology.link(PEER).is_some());
        assert!(!topology.peers[&PEER].candidates.paths().any(|path| *path == from), "it cannot be opened from here");
        topology.on_closed(Path::accepted_tcp(([192, 0, 2, 2], 50_001).into()), at(20));
        assert!(topology.link(PEER).is_some());
        topology.on_closed(from, at(20));
        assert!(topology.link(PEER).is_none());
    }

    #[test]
    fn a_named_host_that_answers_at_the_port_open_everywhere_is_the_one_named() {
        let at = |port| SocketAddr::new([192, 0, 2, 2].into(), port);
        let mut targets = Targets::default();
        let target = |name: &str, port| Target { name: name.into(), addresses: vec![at(port)] };
        targets.connect(&[target("a", 6783)], Time::ZERO);
        assert_eq!(targets.tcp_paths(at(6783)).collect::<Vec<_>>(), [Path::tcp(at(443)), Path::tcp(at(6783))]);
        assert_eq!(targets.named_at(Path::tcp(at(443))), Some(at(6783)));
        assert_eq!(targets.named_at(Path::udp(at(443))), None);
        assert_eq!(
            targets.named_at(Path::accepted_tcp(at(6783))),
            None,
            "any host behind that address may come from there"
        );
        targets.connect(&[target("b", 6784)], Time::ZERO);
        assert_eq!(targets.named_at(Path::tcp(at(443))), None, "it may be either");
    }
}
