//! What must be true of a mesh at rest, said without looking at how it works.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use weft_mesh::names::Scope;
use weft_mesh::records::{EndpointId, EndpointRecord, Health};
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::SegmentId;

use super::world::{HostNumber, World};

/// The reference: which hosts run, which pairs the network joins, who has which endpoint.
#[derive(Default)]
pub struct Model {
    /// Hosts that run.
    pub running: BTreeSet<HostNumber>,
    /// Endpoints that are attached.
    pub endpoints: BTreeMap<HostNumber, BTreeMap<EndpointId, EndpointRecord>>,
    /// Hosts that know of each other from the start: pairs named on either side.
    pub named: BTreeSet<(HostNumber, HostNumber)>,
    /// Those of them whose line is paid for by the byte.
    pub metered: BTreeSet<(HostNumber, HostNumber)>,
}

/// How a datagram is lost on its way.
enum Lost {
    NoHost,
    NoHop,
    /// It is sent to a host that is gone, or over a path that is cut.
    Void,
    Loop,
}

impl Model {
    /// Groups of hosts that can reach each other, through other hosts if need be.
    pub fn islands(&self, world: &World) -> Vec<BTreeSet<HostNumber>> {
        self.groups(|a, b| self.is_joined(world, a, b))
    }

    /// What is wrong, at rest, about lines that are paid for by the byte, if anything: hosts that reach each other by others go by these, and
    /// as few metered links are there as hold together what those leave apart.
    pub fn metered_problem(&self, world: &World) -> Option<String> {
        let parts = self.groups(|a, b| self.is_joined(world, a, b) && !self.metered.contains(&(a.min(b), a.max(b))));
        let metered = |from: HostNumber, to: HostNumber| {
            let status = world.hosts[from].node.as_ref()?.status(world.now);
            Some(status.routes.iter().find(|route| route.to == format!("h{to}"))?.metered)
        };
        let mut pairs = parts.iter().flat_map(pairs);
        if let Some((from, to)) = pairs.find(|(from, to)| metered(*from, *to) != Some(false)) {
            return Some(format!("what h{from} sends to h{to} is paid for, and need not be"));
        }
        let kept: Vec<(HostNumber, HostNumber)> =
            self.metered.iter().copied().filter(|(a, b)| self.running.contains(a) && world.is_direct(*a, *b)).collect();
        let needed = parts.len() - self.islands(world).len();
        (kept.len() != needed).then(|| format!("{needed} metered links would do, and there are {kept:?}"))
    }

    /// Groups of running hosts that are joined, by way of others if need be.
    fn groups(&self, is_joined: impl Fn(HostNumber, HostNumber) -> bool) -> Vec<BTreeSet<HostNumber>> {
        let mut left = self.running.clone();
        let mut islands = Vec::new();
        while let Some(first) = left.pop_first() {
            let (mut island, mut edge) = (BTreeSet::from([first]), vec![first]);
            while let Some(at) = edge.pop() {
                let next: Vec<HostNumber> = left.iter().copied().filter(|to| is_joined(at, *to)).collect();
                for host in next {
                    left.remove(&host);
                    island.insert(host);
                    edge.push(host);
                }
            }
            islands.push(island);
        }
        islands
    }

    fn is_joined(&self, world: &World, a: HostNumber, b: HostNumber) -> bool {
        self.named.contains(&(a.min(b), a.max(b))) && !world.is_cut(a, b)
    }

    /// What is not yet as it should be, if anything.
    pub fn problem(&self, world: &World) -> Option<String> {
        self.islands(world).iter().find_map(|island| self.island_problem(world, island))
    }

    fn island_problem(&self, world: &World, island: &BTreeSet<HostNumber>) -> Option<String> {
        for at in island {
            for to in island.iter().filter(|to| *to != at) {
                if let Some(problem) = self.path_problem(world, *at, *to) {
                    return Some(problem);
                }
            }
            let records = self.records_problem(world, island, *at);
            if let Some(problem) = records.or_else(|| self.names_problem(world, island, *at)) {
                return Some(problem);
            }
        }
        None
    }

    fn path_problem(&self, world: &World, from: HostNumber, to: HostNumber) -> Option<String> {
        let (at, lost) = self.follow(world, from, to).err()?;
        Some(match lost {
            Lost::NoHost => format!("h{at} knows no way to h{to} (from h{from})"),
            Lost::NoHop => format!("h{at} has no next hop to h{to} (from h{from})"),
            Lost::Void => format!("h{at} sends what is for h{to} into the void"),
            Lost::Loop => format!("a routing loop on the way from h{from} to h{to}"),
        })
    }

    /// Follows the published next hops: they must lead there, without a loop. Returns where a datagram is lost, and how.
    fn follow(&self, world: &World, from: HostNumber, to: HostNumber) -> Result<(), (HostNumber, Lost)> {
        let goal = world.hosts[to].label;
        let mut at = from;
        for _ in 0..world.hosts.len() {
            let outbound = world.hosts[at].snapshot.outbound.get(&goal).ok_or((at, Lost::NoHost))?;
            let hop = outbound.hop.as_ref().ok_or((at, Lost::NoHop))?;
            let next = world.host_at(hop.path.remote).filter(|next| world.hosts[*next].label == hop.via);
            match next.ok_or((at, Lost::NoHop))? {
                next if next == to && !world.is_cut(at, next) => return Ok(()),
                next if world.is_cut(at, next) || !self.running.contains(&next) => return Err((at, Lost::Void)),
                next => at = next,
            }
        }
        Err((at, Lost::Loop))
    }

    /// A datagram goes from every host to every other of its island. Those that are lost on a path that fell idle before it was cut are what
    /// tells a router so.
    pub fn talk(&self, world: &World) {
        for island in self.islands(world) {
            for (from, to) in pairs(&island) {
                if let Err((at, Lost::Void)) = self.follow(world, from, to) {
                    let outbound = world.hosts[at].snapshot.outbound.get(&world.hosts[to].label);
                    if let Some(hop) = outbound.and_then(|outbound| outbound.hop.as_ref()) {
                        hop.meter.sent.on_link(1, world.now);
                    }
                }
            }
        }
    }

    /// Every host of an island must know exactly the endpoints that the island's hosts have.
    fn records_problem(&self, world: &World, island: &BTreeSet<HostNumber>, at: HostNumber) -> Option<String> {
        let node = world.hosts[at].node.as_ref()?;
        let status = node.status(world.now);
        let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for endpoint in &status.endpoints {
            known.entry(&endpoint.host).or_default().insert(&endpoint.id);
        }
        let none = BTreeMap::new();
        for host in island {
            let known = known.remove(format!("h{host}").as_str()).unwrap_or_default();
            let real: BTreeSet<String> = self.endpoints.get(host).unwrap_or(&none).keys().map(hex::encode).collect();
            if !known.iter().copied().eq(real.iter().map(String::as_str)) {
                return Some(format!("h{at} believes that h{host} has {known:?}, it has {real:?}"));
            }
        }
        None
    }

    /// Every host of an island must answer each name with exactly its healthy holders in the island.
    fn names_problem(&self, world: &World, island: &BTreeSet<HostNumber>, at: HostNumber) -> Option<String> {
        let mut expected: BTreeMap<(&str, &str), BTreeSet<IpAddr>> = BTreeMap::new();
        for (host, endpoints) in &self.endpoints {
            for record in endpoints.values() {
                for name in &record.names {
                    let ips = expected.entry((&record.segment, name)).or_default();
                    if record.health == Health::Healthy && island.contains(host) {
                        ips.extend(record.ips.iter().map(|(ip, _)| *ip));
                    }
                }
            }
        }
        expected.into_iter().find_map(|((segment, name), ips)| {
            let found = self.answered(world, at, segment, name);
            (found != ips).then(|| format!("h{at} answers {name} in {segment} with {found:?}, it is {ips:?}"))
        })
    }

    /// What a host answers to a name in a segment.
    pub fn answered(&self, world: &World, at: HostNumber, segment: &str, name: &str) -> BTreeSet<IpAddr> {
        let found = world.hosts[at].names.lookup(Scope::Segments(&[SegmentId::of(segment)]), name);
        found.holders.iter().flat_map(|holder| holder.ips).map(|(ip, _)| *ip).collect()
    }

    /// Sends frames between all endpoints of a segment within each island, and checks that each arrives once, there and
    /// nowhere else. A frame may be lost while sessions are opened and while costs settle after bad weather, but not
    /// in every round; a frame that arrives twice or at the wrong host is wrong at once.
    pub fn check_frames(&self, world: &mut World) {
        const ROUNDS: u8 = 10;
        let mut clean = 0;
        for round in 0..ROUNDS {
            let missing = self.frame_round(world, round);
            clean = if missing.is_none() { clean + 1 } else { 0 };
            match missing {
                Some(missing) if round + 1 == ROUNDS => panic!("{missing}"),
                _ if clean == 2 => return,
                _ => {}
            }
        }
        panic!("frames are lost in every other round on a mesh at rest");
    }

    /// One frame for every pair; what is missing, if anything.
    fn frame_round(&self, world: &mut World, round: u8) -> Option<String> {
        for host in &mut world.hosts {
            host.delivered.clear();
            host.dropped.clear();
        }
        let mut expected: BTreeMap<(HostNumber, Vec<u8>), usize> = BTreeMap::new();
        for island in self.islands(world) {
            for (from, to) in pairs(&island) {
                self.send_between(world, from, to, round, &mut expected);
            }
        }
        world.run_for(Duration::from_secs(if round == 0 { 5 } else { 2 }));
        for (number, host) in world.hosts.iter().enumerate() {
            for (_, frame) in host.delivered.iter().filter(|(_, frame)| frame[12..14] == [0x88, 0xb5]) {
                let late = frame[14] != round;
                let left = expected.get_mut(&(number, frame.clone()));
                match left {
                    Some(left) => {
                        assert!(*left > 0, "h{number} got a frame twice: {:?}", &frame[..14]);
                        *left -= 1;
                    }
                    None => assert!(late, "h{number} got a frame that is not for it: {:?}", &frame[..14]),
                }
            }
        }
        let missing = expected.values().filter(|left| **left > 0).count();
        let ((to, frame), _) = expected.iter().find(|(_, left)| **left > 0)?;
        let dropped: Vec<_> = world.hosts.iter().map(|host| &host.dropped).enumerate().collect();
        let from = frame[7];
        Some(format!("round {round}: {missing} frames missing, one from h{from} to h{to}; dropped: {dropped:?}"))
    }

    fn send_between(
        &self,
        world: &mut World,
        from: HostNumber,
        to: HostNumber,
        round: u8,
        expected: &mut BTreeMap<(HostNumber, Vec<u8>), usize>,
    ) {
        let none = BTreeMap::new();
        let (ours, theirs) = (self.endpoints.get(&from).unwrap_or(&none), self.endpoints.get(&to).unwrap_or(&none));
        for (source, destination) in ours.values().flat_map(|a| theirs.values().map(move |b| (a, b))) {
            if source.segment != destination.segment {
                continue;
            }
            let mut frame = Vec::new();
            frame.extend_from_slice(&destination.mac);
            frame.extend_from_slice(&source.mac);
            frame.extend_from_slice(&[0x88, 0xb5, round]);
            frame.resize(64 + usize::from(round % 2) * 1200, round);
            *expected.entry((to, frame.clone())).or_default() += 1;
            world.send_frame(from, SegmentId::of(&source.segment), &VnetHeader::default(), &mut frame);
        }
    }
}

fn pairs(island: &BTreeSet<HostNumber>) -> Vec<(HostNumber, HostNumber)> {
    island.iter().flat_map(|a| island.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b).collect()
}
