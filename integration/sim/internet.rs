//! Meshes of hosts behind random NATs, what happens to these, and who should have a direct link with whom in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use weft_crypto::{Ciphers, Time};

use super::nat::{Behaviour, Nat};
use super::weather::Weather;
use super::world::{HostNumber, World};
use super::{got, send, start_all};

const HOSTS: std::ops::RangeInclusive<usize> = 4..=12;
const FAULTS: usize = 10;
/// How long frames may be lost after the last fault, and how long direct links may take that need no search.
const WAYS_WITHIN: Duration = Duration::from_secs(10);
const DIRECT_WITHIN: Duration = Duration::from_secs(200);
/// How long it is waited for those where ports have to be found: hosts search for a few peers at a time.
pub const FOUND_WITHIN: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(100);

/// What a pair of hosts can have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    /// A direct link without a search.
    Direct,
    /// One once a port was found.
    Found,
    /// A relay, and maybe a direct link.
    Luck,
    /// A relay.
    Relayed,
}

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hosts in it.
    pub hosts: usize,
    /// Pairs by what they can have.
    pub pairs: BTreeMap<Reach, usize>,
    /// From the last fault until frames of each host came to each other, pairs left out for which it is luck: where each answer comes from
    /// somewhere new a link may carry one way alone.
    pub ways: Duration,
    /// The same until all that can have a direct link without a search had one.
    pub direct: Duration,
    /// The same of those where ports have to be found; `None`: some were not within [`FOUND_WITHIN`].
    pub found: Option<Duration>,
    /// The faults, for people.
    pub story: Vec<String>,
}

/// Runs one seed. Panics, with what happened, if frames of a pair are lost for long, or it has no direct link and needs no search for one.
pub fn run(seed: u64) -> Outcome {
    let mut world = raise(seed);
    world.run_for(Duration::from_secs(3));
    let mut story = Vec::new();
    for _ in 0..FAULTS {
        let what = fault(&mut world);
        story.push(format!("{:?} {what}", world.now));
        let until = world.now + Duration::from_millis(world.rng.random_range(50..8000));
        while world.now < until {
            talk(&mut world);
        }
    }
    world.weather = Weather::FAIR;
    let began = world.now;
    talk(&mut world);
    let is_direct = |world: &World, a, b| world.is_direct(a, b) && world.is_direct(b, a);
    let gets = |world: &World, a, b| reach(world, a, b) == Reach::Luck || (got(world, a, b) && got(world, b, a));
    let has = |kind: Reach| move |world: &World, a, b| reach(world, a, b) != kind || is_direct(world, a, b);
    let told = |lacks: Lacks| format!("seed {seed}: {}\n{}", lacks.0, story.join("\n"));
    let ways =
        talk_until(&mut world, began + WAYS_WITHIN, gets).unwrap_or_else(|lacks| panic!("no way: {}", told(lacks)));
    let direct = talk_until(&mut world, began + DIRECT_WITHIN, has(Reach::Direct))
        .unwrap_or_else(|lacks| panic!("not direct: {}", told(lacks)));
    let found = talk_until(&mut world, began + FOUND_WITHIN, has(Reach::Found)).ok();
    let mut kinds = BTreeMap::new();
    pairs(&world).for_each(|(a, b)| *kinds.entry(reach(&world, a, b)).or_default() += 1);
    let since = |at: Time| at.since(began);
    Outcome {
        hosts: world.hosts.len(),
        pairs: kinds,
        ways: since(ways),
        direct: since(direct),
        found: found.map(since),
        story,
    }
}

/// Pairs for which something does not hold, for people.
struct Lacks(String);

/// Has frames sent until something holds for all pairs; returns when that was, or of which pairs it does not hold at last.
fn talk_until(
    world: &mut World,
    end: Time,
    holds: impl Fn(&World, HostNumber, HostNumber) -> bool,
) -> Result<Time, Lacks> {
    loop {
        let lacks: Vec<(HostNumber, HostNumber)> = pairs(world).filter(|(a, b)| !holds(world, *a, *b)).collect();
        if lacks.is_empty() {
            return Ok(world.now);
        }
        if world.now >= end {
            let of = |host: HostNumber| (world.nat_of(host).map(Nat::behaviour), world.hosts[host].blocks_udp);
            let told = lacks.iter().map(|(a, b)| format!("h{a} {:?} and h{b} {:?}", of(*a), of(*b)));
            return Err(Lacks(told.collect::<Vec<_>>().join("\n")));
        }
        talk(world);
    }
}

/// Host 0 is public and named by the others; these are public, behind a NAT of their own or behind one of another host's, and in some networks
/// no UDP passes.
fn raise(seed: u64) -> World {
    let mut world = World::new(seed, Ciphers::native(true), true);
    let count = world.rng.random_range(HOSTS);
    for host in 0..count {
        world.add_host();
        world.hosts[host].tcp_ports = vec![6783];
        if host > 0 {
            settle(&mut world, host);
            world.hosts[host].blocks_udp = world.rng.random_bool(0.1);
        }
    }
    start_all(&mut world);
    world
}

/// Puts a host into a network.
fn settle(world: &mut World, host: HostNumber) {
    let others: Vec<usize> = world.hosts.iter().filter_map(|host| host.nat).collect();
    world.hosts[host].nat = match world.rng.random_range(0..10) {
        0 => None,
        1 | 2 if !others.is_empty() => Some(others[world.rng.random_range(0..others.len())]),
        _ => {
            let all = Behaviour::all();
            let behaviour = all[world.rng.random_range(0..all.len())];
            Some(world.add_nat(behaviour))
        }
    };
}

fn fault(world: &mut World) -> String {
    let host = world.rng.random_range(1..world.hosts.len());
    match (world.rng.random_range(0..7), world.hosts[host].nat) {
        (0 | 1, Some(nat)) => {
            let moves = world.rng.random();
            world.restart_nat(nat, moves);
            format!("the NAT of h{host} starts again{}", if moves { " at another address" } else { "" })
        }
        (2 | 3, _) if !world.hosts[host].blocks_udp => {
            settle(world, host);
            world.roam(host);
            format!("h{host} moves behind {:?}", world.nat_of(host).map(Nat::behaviour))
        }
        (4, _) => {
            world.crash(host);
            world.start(host);
            world.connect(host, &[0]);
            format!("h{host} crashes and starts again")
        }
        (5, _) => {
            world.weather.loss = world.rng.random_range(0.0..0.1);
            format!("so much is lost: {:.2}", world.weather.loss)
        }
        _ => {
            world.run_for(Duration::from_secs(60));
            "nothing happens for a minute".into()
        }
    }
}

/// Each host sends a frame to each other.
fn talk(world: &mut World) {
    world.hosts.iter_mut().for_each(|host| host.delivered.clear());
    for (a, b) in pairs(world) {
        for (from, to) in [(a, b), (b, a)] {
            send(world, from, to);
        }
    }
    world.run_for(STEP);
}

fn pairs(world: &World) -> impl Iterator<Item = (HostNumber, HostNumber)> + use<> {
    let count = world.hosts.len();
    (0..count).flat_map(move |a| (a + 1..count).map(move |b| (a, b)))
}

/// What two hosts can have, as things are.
fn reach(world: &World, a: HostNumber, b: HostNumber) -> Reach {
    let [near, far] = [a, b].map(|host| &world.hosts[host]);
    if near.nat == far.nat {
        return Reach::Direct;
    }
    let (Some(near_nats), Some(far_nats)) = (as_seen(world, a), as_seen(world, b)) else { return Reach::Direct };
    if near.blocks_udp || far.blocks_udp {
        return Reach::Relayed;
    }
    let all = near_nats.iter().flat_map(|near| far_nats.iter().map(|far| between(*near, *far)));
    let all: BTreeSet<Reach> = all.collect();
    if all.len() == 1 { *all.first().unwrap_or(&Reach::Luck) } else { Reach::Luck }
}

/// What hosts can have behind two NATs. Where both map each destination to another port it takes luck, and a search that others have no need of.
fn between(a: Behaviour, b: Behaviour) -> Reach {
    match a.can_be_found_with(b) {
        Some(false) => Reach::Relayed,
        _ if !a.is_known() && !b.is_known() => Reach::Luck,
        _ if a.can_meet(b) => Reach::Direct,
        _ => Reach::Found,
    }
}

/// How the NAT behaves that a host is behind. If others had the host's port first it may be mapped to it for some, and not for others.
fn as_seen(world: &World, host: HostNumber) -> Option<Vec<Behaviour>> {
    let nat = world.nat_of(host)?;
    let behaviour = nat.behaviour();
    let other = Behaviour { preserves_ports: false, ..behaviour };
    let is_shared = world.hosts.iter().filter(|other| other.nat == world.hosts[host].nat).count() > 1;
    let may_be_other = (is_shared || !behaviour.claims_unasked) && nat.has_moved(world.hosts[host].address);
    Some([behaviour].into_iter().chain(may_be_other.then_some(other)).collect())
}
