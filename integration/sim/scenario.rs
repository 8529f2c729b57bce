//! Random meshes, random faults, and what is measured on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng, RngExt};
use weft_crypto::Ciphers;
use weft_mesh::node::Event;
use weft_mesh::path::MeteredPaths;
use weft_mesh::records::{EndpointId, EndpointRecord, Health};

use super::disk::endpoints_on;
use super::model::Model;
use super::null;
use super::weather::Weather;
use super::world::{HostNumber, World};

/// How long hosts may disagree on the way when a cost has changed.
const TREMOR: Duration = Duration::from_millis(500);

/// How long idle traffic is measured.
const IDLE: Duration = Duration::from_secs(30);

/// How long a name may take to be answered everywhere, or nowhere.
const NAME_PATIENCE: Duration = Duration::from_secs(2);

/// A family of runs.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How many hosts, chosen by the seed.
    pub hosts: RangeInclusive<usize>,
    /// Whether frames are really encrypted.
    pub real_crypto: bool,
    /// Faults, one after the other.
    pub faults: usize,
    /// How long the mesh may take to be right again after the last fault.
    pub patience: Duration,
    /// Whether frames are sent between all endpoints at the end.
    pub check_frames: bool,
    /// How long the mesh is left alone before its idle traffic is measured.
    pub settle: Duration,
    /// The share of joined pairs whose line is paid for by the byte.
    pub metered: f64,
}

impl Scenario {
    /// Meshes of 5 to 64 hosts with every kind of fault.
    pub fn faults() -> Self {
        Scenario {
            hosts: 5..=64,
            real_crypto: true,
            faults: 12,
            patience: Duration::from_secs(20),
            check_frames: true,
            settle: Duration::ZERO,
            metered: 0.0,
        }
    }

    /// Meshes of 3 to 20 hosts with every kind of fault, and some lines that are paid for by the byte. Who is lost beyond one may be missed half a minute
    /// later.
    pub fn metered() -> Self {
        Scenario {
            hosts: 3..=20,
            patience: Duration::from_secs(60),
            settle: Duration::from_secs(120),
            metered: 0.5,
            ..Scenario::faults()
        }
    }

    /// A random partial mesh of 100 hosts, which has five seconds.
    pub fn hundred() -> Self {
        Scenario {
            hosts: 100..=100,
            real_crypto: false,
            faults: 6,
            patience: Duration::from_secs(5),
            check_frames: false,
            settle: Duration::from_secs(120),
            metered: 0.0,
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hosts in it.
    pub hosts: usize,
    /// From the last fault until everything was right.
    pub convergence: Duration,
    /// Hash over all that happened.
    pub trace: u64,
    /// Bytes a second that each host sent at rest.
    pub idle_bytes_per_host: f64,
    /// From an endpoint's coming until every host that can be reached answered its name.
    pub registration: Duration,
    /// From its going until none did.
    pub departure: Duration,
    /// The faults, for people.
    pub story: Vec<String>,
}

/// Runs one seed. Panics, with the seed, if something is wrong that must not be.
pub fn run(scenario: &Scenario, seed: u64) -> Outcome {
    let guard = SeedGuard(seed);
    let ciphers = if scenario.real_crypto { Ciphers::native(seed.is_multiple_of(2)) } else { null::ciphers() };
    let mut world = World::new(seed, ciphers, true);
    let mut drama = Drama::default();
    // Small meshes more often: they cost less, and most mistakes fit into them.
    let (fewest, most) = (*scenario.hosts.start(), *scenario.hosts.end());
    let share: f64 = world.rng.random();
    let count = fewest + ((most - fewest) as f64 * share * share).round() as usize;
    // All linked with all is for small meshes; it grows with the square.
    let densest = if count <= 24 { 1.0 } else { 0.1 };
    let density = [0.0, 0.05, 0.2, densest][world.rng.random_range(0..4usize)];
    drama.raise(&mut world, count, density, scenario.metered);
    world.run_for(Duration::from_secs(5));
    drama.act(&mut world, scenario.faults);
    let convergence = drama.await_rest(&mut world, scenario.patience);
    if scenario.check_frames {
        drama.model.check_frames(&mut world);
    }
    world.run_for(scenario.settle);
    if let Some(problem) = drama.model.metered_problem(&world) {
        panic!("{problem}\n{}", drama.story.join("\n"));
    }
    let before = world.bytes_sent;
    world.run_for(IDLE);
    drama.await_rest(&mut world, TREMOR);
    let idle_bytes_per_host = (world.bytes_sent - before) as f64 / IDLE.as_secs_f64() / count as f64;
    let (registration, departure) = drama.time_names(&mut world);
    std::mem::forget(guard);
    Outcome {
        hosts: count,
        convergence,
        trace: world.trace_hash(),
        idle_bytes_per_host,
        registration,
        departure,
        story: drama.story,
    }
}

/// Prints the seed if the run panics.
struct SeedGuard(u64);

impl Drop for SeedGuard {
    fn drop(&mut self) {
        eprintln!("seed {}: run it again with: cargo run --release -p weft-bench -- sim --seed {}", self.0, self.0);
    }
}

/// What happens to a mesh, and what should have come of it.
#[derive(Default)]
pub(super) struct Drama {
    pub(super) model: Model,
    story: Vec<String>,
    partition: Vec<(HostNumber, HostNumber)>,
    old_disks: BTreeMap<HostNumber, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Drama {
    /// A random connected underlay, on which such a share of the pairs is joined, and of these such a share by a line that is paid for by
    /// the byte; each host is told of its neighbours or they of it.
    pub(super) fn raise(&mut self, world: &mut World, count: usize, density: f64, metered: f64) {
        for _ in 0..count {
            world.add_host();
        }
        for a in 0..count {
            // A tree first, so that there is one island to start with.
            let parent = if a > 0 { Some(world.rng.random_range(0..a)) } else { None };
            for b in 0..a {
                let joined = Some(b) == parent || world.rng.random_bool(density);
                if joined {
                    self.model.named.insert((b, a));
                } else {
                    world.cut(a, b);
                }
            }
        }
        if metered > 0.0 {
            self.meter_lines(world, metered);
        }
        for host in 0..count {
            world.start(host);
            self.model.running.insert(host);
            self.name_peers(world, host);
            let endpoints = world.rng.random_range(0..3);
            (0..endpoints).for_each(|_| self.attach(world, host));
        }
    }

    /// Makes a share of the lines metered, each by the word of one of its ends or of both.
    fn meter_lines(&mut self, world: &mut World, share: f64) {
        let mut others = vec![Vec::new(); world.hosts.len()];
        for (a, b) in self.model.named.clone() {
            if !world.rng.random_bool(share) {
                continue;
            }
            self.model.metered.insert((a, b));
            let first_knowing = world.rng.random_range(0..2usize);
            let knowing = world.rng.random_range(1..=2usize);
            for (host, other) in [(a, b), (b, a), (a, b)].iter().skip(first_knowing).take(knowing) {
                others[*host].push((world.hosts[*other].address.ip(), 32, true));
            }
        }
        for (host, others) in world.hosts.iter_mut().zip(others) {
            host.metered_paths = MeteredPaths::new(others, []);
        }
    }

    fn name_peers(&mut self, world: &mut World, host: HostNumber) {
        let named: Vec<HostNumber> = self.model.named.iter().filter(|(_, b)| *b == host).map(|(a, _)| *a).collect();
        world.connect(host, &named);
    }

    fn attach(&mut self, world: &mut World, host: HostNumber) {
        let mut id: EndpointId = [0; 16];
        world.rng.fill_bytes(&mut id);
        let number = world.rng.next_u32();
        let [a, b, c, d] = number.to_be_bytes();
        let segment = ["red", "blue"][world.rng.random_range(0..2usize)];
        let record = EndpointRecord {
            segment: segment.into(),
            mac: [2, host as u8, a, b, c, d],
            ips: [(IpAddr::from([10, 32 | (a & 15), b, c]), 12)].into(),
            // Several have one name, and some are unwell.
            names: [format!("web-{}", number % 8)].into(),
            health: if number.is_multiple_of(5) { Health::Unhealthy } else { Health::Healthy },
            services: [].into(),
        };
        if !self.is_taken(&record) {
            world.attach(host, id, record.clone());
            self.model.endpoints.entry(host).or_default().insert(id, record);
        }
    }

    fn is_taken(&self, record: &EndpointRecord) -> bool {
        self.model.endpoints.values().flat_map(BTreeMap::values).any(|other| other.ips == record.ips)
    }

    fn fault(&mut self, world: &mut World) {
        let host = world.rng.random_range(0..world.hosts.len());
        let is_running = self.model.running.contains(&host);
        let what = match world.rng.random_range(0..12) {
            0 | 1 => self.toggle_wire(world),
            2 if is_running => {
                world.crash(host);
                self.model.running.remove(&host);
                format!("h{host} crashes")
            }
            3 if is_running => {
                world.crash(host);
                world.start(host);
                format!("h{host} crashes and starts again")
            }
            4 => {
                world.crash(host);
                world.hosts[host].disk.clear();
                self.model.endpoints.remove(&host);
                self.restart(world, host);
                format!("h{host} loses its state and starts again")
            }
            5 => {
                let disk = world.hosts[host].disk.clone();
                self.old_disks.entry(host).or_insert(disk);
                format!("h{host}'s disk is copied")
            }
            6 if self.old_disks.contains_key(&host) => self.restore_disk(world, host),
            7 => {
                self.weather(world);
                format!("the weather turns: {:?}", world.weather)
            }
            8 => self.part(world),
            9 if is_running => {
                self.attach(world, host);
                format!("an endpoint comes to h{host}")
            }
            10 if is_running => self.detach(world, host),
            _ if !is_running => {
                self.restart(world, host);
                format!("h{host} comes back")
            }
            _ => self.toggle_wire(world),
        };
        self.story.push(format!("{:?} {what}", world.now));
    }

    /// Faults, one after the other, then calm.
    pub(super) fn act(&mut self, world: &mut World, faults: usize) {
        for _ in 0..faults {
            self.fault(world);
            let pause = world.rng.random_range(50..2000);
            world.run_for(Duration::from_millis(pause));
        }
        self.calm(world);
    }

    pub(super) fn restart(&mut self, world: &mut World, host: HostNumber) {
        world.start(host);
        self.model.running.insert(host);
        // Peers named on the command line are named again at each start.
        self.name_peers(world, host);
    }

    fn restore_disk(&mut self, world: &mut World, host: HostNumber) -> String {
        world.crash(host);
        let disk = self.old_disks.remove(&host).unwrap_or_default();
        let restored: BTreeMap<EndpointId, EndpointRecord> = endpoints_on(&disk).into_iter().collect();
        let attached = self.model.endpoints.entry(host).or_default();
        attached.retain(|id, _| restored.contains_key(id));
        // An endpoint that was detached since is attached again: the old disk says so.
        for (id, record) in restored {
            attached.entry(id).or_insert(record);
        }
        world.hosts[host].disk = disk;
        self.restart(world, host);
        format!("h{host} starts again from an old disk")
    }

    fn toggle_wire(&mut self, world: &mut World) -> String {
        let wires: Vec<(HostNumber, HostNumber)> = self.model.named.iter().copied().collect();
        let (a, b) = wires[world.rng.random_range(0..wires.len())];
        if world.is_cut(a, b) {
            world.heal(a, b);
            format!("h{a} - h{b} is mended")
        } else {
            world.cut(a, b);
            format!("h{a} - h{b} is cut")
        }
    }

    /// Cuts the mesh in two, or makes it whole.
    fn part(&mut self, world: &mut World) -> String {
        if !self.partition.is_empty() {
            for (a, b) in std::mem::take(&mut self.partition) {
                world.heal(a, b);
            }
            return "the partition heals".into();
        }
        let sides: Vec<bool> = (0..world.hosts.len()).map(|_| world.rng.random()).collect();
        let crossing = self.model.named.iter().filter(|(a, b)| sides[*a] != sides[*b] && !world.is_cut(*a, *b));
        self.partition = crossing.copied().collect();
        for (a, b) in self.partition.clone() {
            world.cut(a, b);
        }
        "the mesh is parted in two".into()
    }

    fn weather(&mut self, world: &mut World) {
        let rng = &mut world.rng;
        let longest = Duration::from_millis(rng.random_range(1..80));
        world.weather = Weather {
            loss: rng.random_range(0.0..0.3),
            duplication: rng.random_range(0.0..0.2),
            delay: (Duration::from_micros(100), longest),
        };
        world.publish_delay = Duration::from_millis(rng.random_range(0..30));
    }

    fn detach(&mut self, world: &mut World, host: HostNumber) -> String {
        let first = self.model.endpoints.get_mut(&host).and_then(BTreeMap::pop_first);
        match first {
            Some((id, _)) => {
                world.detach(host, id);
                format!("an endpoint leaves h{host}")
            }
            None => format!("h{host} has no endpoint to lose"),
        }
    }

    /// The last faults: good weather, and a random part of what is broken mended.
    fn calm(&mut self, world: &mut World) {
        world.weather = Weather::FAIR;
        world.publish_delay = Duration::ZERO;
        if world.rng.random() {
            for (a, b) in std::mem::take(&mut self.partition) {
                world.heal(a, b);
            }
        }
        self.story.push(format!("{:?} calm", world.now));
    }

    /// How long a new name takes to be answered everywhere, and an old one to be answered nowhere.
    fn time_names(&mut self, world: &mut World) -> (Duration, Duration) {
        let islands = self.model.islands(world);
        let island = islands.into_iter().max_by_key(BTreeSet::len).unwrap_or_default();
        let Some(host) = island.first().copied() else { return Default::default() };
        let (segment, name, id) = ("red", "late", [0xee; 16]);
        let ip = IpAddr::from([10, 47, 255, 254]);
        let record = EndpointRecord {
            segment: segment.into(),
            mac: [2, 0xee, 0, 0, 0, 1],
            ips: [(ip, 12)].into(),
            names: [name.into()].into(),
            health: Health::Healthy,
            services: [].into(),
        };
        world.attach(host, id, record);
        let await_all = |world: &mut World, expected: &BTreeSet<IpAddr>| {
            let start = world.now;
            while island.iter().any(|at| self.model.answered(world, *at, segment, name) != *expected) {
                assert!(
                    world.now.since(start) < NAME_PATIENCE,
                    "a name is not known or not gone after {NAME_PATIENCE:?}"
                );
                world.run_for(Duration::from_millis(5));
            }
            world.now.since(start)
        };
        let registration = await_all(world, &BTreeSet::from([ip]));
        world.detach(host, id);
        (registration, await_all(world, &BTreeSet::new()))
    }

    /// Runs until everything is right; how long that took. Panics if it takes longer than `patience`.
    pub(super) fn await_rest(&mut self, world: &mut World, patience: Duration) -> Duration {
        let start = world.now;
        let mut said = String::new();
        loop {
            let Some(problem) = self.model.problem(world) else { return world.now.since(start) };
            if problem != said {
                self.story.push(format!("{:?} {problem}", world.now));
                said.clone_from(&problem);
            }
            if world.now.since(start) >= patience {
                panic!("not right after {patience:?}: {problem}\n{}", self.story.join("\n"));
            }
            self.model.talk(world);
            world.run_for(Duration::from_millis(100));
        }
    }
}

/// Whether a host said that its key is used twice.
pub fn said_cloned(world: &World, host: HostNumber) -> usize {
    world.hosts[host].events.iter().filter(|event| **event == Event::Cloned).count()
}
