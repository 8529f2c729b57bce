//! Meshes in which some hosts do not pass on what they should, and which pairs must be joined nevertheless.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use weft_crypto::Ciphers;

use super::relaying::Relaying;
use super::world::{HostNumber, World};
use super::{got, send, start_all};

const HOSTS: std::ops::RangeInclusive<usize> = 4..=12;
/// The share of hosts that become faulty.
const FAULTY: f64 = 0.3;
/// How long pairs may be apart: each relay that is taken in vain costs two or three seconds.
const JOINED_WITHIN: Duration = Duration::from_secs(30);
/// How long they must stay together after that.
const STAY: Duration = Duration::from_secs(5);
/// Time between two frames of a pair.
const PACE: Duration = Duration::from_millis(200);

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hosts in it.
    pub hosts: usize,
    /// Those of them that became faulty.
    pub faulty: usize,
    /// Pairs, each way by itself, that faulty relays parted and others can join.
    pub parted: usize,
    /// How long the last of them was apart.
    pub apart: Duration,
}

/// One host's routes: by which neighbour to which host, and at what cost.
type Routes = BTreeMap<HostNumber, (HostNumber, u32)>;

/// Runs one seed. Panics if a pair is still apart that relays without a fault can join.
pub fn run(seed: u64) -> Outcome {
    let mut world = raise(seed);
    world.run_for(Duration::from_secs(10));
    let hosts = world.hosts.len();
    let apart = |world: &World, (a, b)| world.is_cut(a, b);
    let pairs: Vec<(HostNumber, HostNumber)> = (0..hosts)
        .flat_map(|a| (0..hosts).map(move |b| (a, b)))
        .filter(|(a, b)| a != b && apart(&world, (*a, *b)))
        .collect();
    for _ in 0..20 {
        talk(&mut world, &pairs);
    }
    let routes: Vec<Routes> = (0..hosts).map(|host| routes(&world, host)).collect();
    let faulty: BTreeSet<HostNumber> = (0..hosts).filter(|_| world.rng.random_bool(FAULTY)).collect();
    for host in &faulty {
        world.hosts[*host].relaying = fault(&mut world);
    }
    let can_be_joined =
        |(a, b): &(HostNumber, HostNumber)| has_way(&routes, &faulty, *a, *b) && has_way(&routes, &faulty, *b, *a);
    let pairs: Vec<_> = pairs.into_iter().filter(can_be_joined).collect();
    let (began, mut parted, mut last) = (world.now, BTreeSet::new(), Duration::ZERO);
    while world.now < began + JOINED_WITHIN + STAY {
        let lost = talk(&mut world, &pairs);
        let after = world.now.since(began);
        assert!(
            lost.is_empty() || after <= JOINED_WITHIN,
            "seed {seed}: {lost:?} are apart, {faulty:?} of {hosts} are faulty; {}",
            lost.iter().map(|(a, b)| told(&world, *a, *b) + &told(&world, *b, *a)).collect::<String>()
        );
        if !lost.is_empty() {
            last = after;
        }
        parted.extend(lost);
    }
    Outcome { hosts, faulty: faulty.len(), parted: parted.len(), apart: last }
}

/// Hosts of which half the pairs have no wire.
fn raise(seed: u64) -> World {
    let mut world = World::new(seed, Ciphers::native(true), true);
    let hosts = world.rng.random_range(HOSTS);
    (0..hosts).for_each(|_| {
        world.add_host();
    });
    for a in 0..hosts {
        for b in 0..a {
            if world.rng.random_bool(0.5) {
                world.cut(a, b);
            }
        }
    }
    start_all(&mut world);
    for host in 0..hosts {
        let wired: Vec<HostNumber> = (0..hosts).filter(|other| *other != host && !world.is_cut(host, *other)).collect();
        world.connect(host, &wired);
    }
    world
}

/// What a host tells of its way to another, and what the hosts on it do.
fn told(world: &World, from: HostNumber, to: HostNumber) -> String {
    let why = world.hosts[from].node.as_ref().and_then(|node| node.why(None, &format!("h{to}"), world.now).ok());
    let way = why.map(|why| (why.hops.into_iter().map(|hop| hop.peer).collect::<Vec<_>>(), why.avoided));
    let faults = world.hosts.iter().enumerate().filter(|(_, host)| host.relaying != Relaying::default());
    let faults: Vec<_> = faults.map(|(number, host)| (number, &host.relaying)).collect();
    format!("h{from} to h{to}: {way:?}; {faults:?}")
}

fn fault(world: &mut World) -> Relaying {
    let all = Relaying::none();
    match world.rng.random_range(0..5) {
        0 => all,
        1 => Relaying { corrupts: true, ..Relaying::default() },
        2 => Relaying { spares_up_to: 180, ..all },
        3 => Relaying { drops: 0.9, ..all },
        _ => {
            let only = world.rng.random_range(0..world.hosts.len());
            Relaying { only_to: Some(world.hosts[only].address), ..all }
        }
    }
}

fn routes(world: &World, host: HostNumber) -> Routes {
    let number = |name: &str| name[1..].parse().expect("hosts are called h and their number");
    let status = world.hosts[host].node.as_ref().map(|node| node.status(world.now));
    let routes = status.into_iter().flat_map(|status| status.routes);
    routes.map(|route| (number(&route.to), (number(&route.via), route.cost))).collect()
}

/// Whether a neighbour of one host leads to another by relays without a fault: one that is nearer to it, or goes to it straight.
fn has_way(routes: &[Routes], faulty: &BTreeSet<HostNumber>, from: HostNumber, to: HostNumber) -> bool {
    let Some((_, cost)) = routes[from].get(&to) else { return false };
    let neighbours = routes[from].iter().filter(|(host, (via, _))| *host == via).map(|(host, _)| *host);
    neighbours.into_iter().any(|neighbour| {
        let Some((via, onward)) = routes[neighbour].get(&to) else { return false };
        (onward < cost || *via == to) && is_honest(routes, faulty, neighbour, to)
    })
}

/// Whether what a relay passes on to a host arrives.
fn is_honest(routes: &[Routes], faulty: &BTreeSet<HostNumber>, mut at: HostNumber, to: HostNumber) -> bool {
    for _ in 0..routes.len() {
        if at == to {
            return true;
        }
        let Some((via, _)) = routes[at].get(&to).filter(|_| !faulty.contains(&at)) else { return false };
        at = *via;
    }
    false
}

/// Sends a frame between each pair; returns those whose frame did not arrive.
fn talk(world: &mut World, pairs: &[(HostNumber, HostNumber)]) -> BTreeSet<(HostNumber, HostNumber)> {
    world.hosts.iter_mut().for_each(|host| host.delivered.clear());
    pairs.iter().for_each(|(a, b)| send(world, *a, *b));
    world.run_for(PACE);
    pairs.iter().copied().filter(|(a, b)| !got(world, *a, *b)).collect()
}
