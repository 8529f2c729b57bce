//! Addresses under faults: hosts that hand out, crash, part, meet, return from the dead and from old disks. Only the
//! address state machines run here, on a network that loses and delays and disks that lag; so many seeds fit.

mod checks;
mod faults;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weft_crypto::{HostLabel, Time};
use weft_mesh::ipam::ring::Range;
use weft_mesh::ipam::{AllocationId, Announcement, Error, Ipam, Named, Output, PATIENCE, Request, Setup, Ticket};

use super::queue::Queue;

/// How often hosts hear who is there and what the rings' members announce.
const GOSSIP: Duration = Duration::from_millis(200);
/// How long after two rings could meet an address may still be in both.
const FENCED_WITHIN: Duration = Duration::from_secs(2);
/// How much longer than promised an answer may take: what the disk takes.
const SLACK: Duration = Duration::from_millis(500);
const GRACE: Duration = Duration::from_secs(60);

type Disk = BTreeMap<Vec<u8>, Vec<u8>>;

struct Host {
    label: HostLabel,
    ipam: Option<Ipam>,
    disk: Disk,
    /// Written, not yet on disk; and what may be said once it is.
    unsynced: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    held_back: VecDeque<Output>,
    sync_due: bool,
    announced: BTreeMap<Range, Announcement>,
    heard: BTreeMap<HostLabel, BTreeMap<Range, Announcement>>,
    named: Vec<usize>,
    life: u64,
    old_disk: Option<Disk>,
    /// Given up by an operator while it was off.
    given_up: bool,
    /// Parts of the range that its networks ask for, and those it was told that they have.
    wanted_parts: BTreeSet<Range>,
    parts: BTreeSet<Range>,
}

/// A container's address, as the model sees it.
#[derive(Clone, Copy, Debug)]
struct Grant {
    host: usize,
    address: Ipv4Addr,
}

struct Asked {
    host: usize,
    id: AllocationId,
    since: Time,
    life: u64,
    /// The parts asked for, if it was parts.
    parts: Option<BTreeSet<Range>>,
}

enum What {
    Deliver { from: usize, to: usize, life: u64, bytes: Vec<u8> },
    Sync { host: usize, life: u64 },
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hosts in it.
    pub hosts: usize,
    /// Addresses granted in all, and refused or not to be had in time.
    pub granted: usize,
    /// Requests that failed.
    pub refused: usize,
    /// From the last fault until every host could hand out and nothing was in two places.
    pub convergence: Duration,
    /// From when everything was mended until no address was in two places any more, if one was.
    pub fenced: Option<Duration>,
}

struct World {
    now: Time,
    rng: ChaCha8Rng,
    range: Range,
    hosts: Vec<Host>,
    side: Vec<u8>,
    loss: f64,
    queue: Queue<What>,
    next_gossip: Time,
    tickets: BTreeMap<Ticket, Asked>,
    next_ticket: Ticket,
    grants: BTreeMap<AllocationId, Grant>,
    granted: usize,
    refused: usize,
    last_clash: Option<Duration>,
    story: Vec<String>,
}

/// Runs one seed. Panics, with the story, if an address is in two places or an answer does not come.
pub fn run(seed: u64) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let share: f64 = rng.random();
    let count = 3 + (29.0 * share * share).round() as usize;
    let length = [16, 22, 24, 26][rng.random_range(0..4usize)];
    let range = Range::new(Ipv4Addr::new(10, 0, 0, 0), length).expect("a range");
    let mut world = World::new(rng, range, count, seed);
    world.found();
    for _ in 0..30 {
        world.fault();
        let pause = world.rng.random_range(50..3000);
        world.run_for(Duration::from_millis(pause));
    }
    let convergence = world.calm();
    let fenced = world.last_clash;
    Outcome { hosts: count, granted: world.granted, refused: world.refused, convergence, fenced }
}

impl World {
    fn new(rng: ChaCha8Rng, range: Range, count: usize, seed: u64) -> Self {
        let host = |number: usize| Host {
            label: HostLabel([0, 0, (seed % 251) as u8, 0, 1, number as u8]),
            ipam: None,
            disk: Disk::new(),
            unsynced: Vec::new(),
            held_back: VecDeque::new(),
            sync_due: false,
            announced: BTreeMap::new(),
            heard: BTreeMap::new(),
            named: Vec::new(),
            life: 0,
            old_disk: None,
            given_up: false,
            wanted_parts: BTreeSet::new(),
            parts: BTreeSet::new(),
        };
        World {
            now: Time::ZERO + Duration::from_secs(1000),
            rng,
            range,
            hosts: (0..count).map(host).collect(),
            side: vec![0; count],
            loss: 0.0,
            queue: Queue::default(),
            next_gossip: Time::ZERO,
            tickets: BTreeMap::new(),
            next_ticket: 1,
            grants: BTreeMap::new(),
            granted: 0,
            refused: 0,
            last_clash: None,
            story: vec![format!("seed {seed}: {count} hosts, {range}")],
        }
    }

    /// Hosts start in any order, given one list of peers, a list of their own, or two islands apart.
    fn found(&mut self) {
        let count = self.hosts.len();
        let way = self.rng.random_range(0..3);
        for number in 0..count {
            self.hosts[number].named = match way {
                0 => (0..count.min(3)).filter(|peer| *peer != number).collect(),
                1 => (number.saturating_sub(1)..number).collect(),
                _ => (0..count).filter(|peer| peer % 2 == number % 2 && *peer < 6 && *peer != number).collect(),
            };
            if way == 2 {
                self.side[number] = (number % 2) as u8;
            }
        }
        for number in 0..count {
            if self.rng.random_bool(0.8) {
                self.start(number, false);
                let pause = self.rng.random_range(0..500);
                self.run_for(Duration::from_millis(pause));
            }
        }
    }

    fn start(&mut self, number: usize, continues: bool) {
        let mut entropy = [0; 32];
        self.rng.fill_bytes(&mut entropy);
        let host = &mut self.hosts[number];
        host.life += 1;
        host.unsynced.clear();
        host.held_back.clear();
        host.sync_due = false;
        host.announced.clear();
        host.heard.clear();
        let setup = Setup { own: host.label, entropy, grace: GRACE, founds_alone: false, continues, now: self.now };
        host.ipam = Some(Ipam::new(setup, &host.disk));
        self.next_gossip = self.now;
        self.drain(number);
        self.set_parts(number, self.hosts[number].wanted_parts.clone());
    }

    fn stop(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        host.ipam = None;
        host.life += 1;
        host.announced.clear();
        host.parts.clear();
        // The requests ended with it.
        self.tickets.retain(|_, asked| asked.host != number);
    }

    fn is_joined(&self, a: usize, b: usize) -> bool {
        self.side[a] == self.side[b]
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let event = self.queue.next_at();
            let timer = self.hosts.iter().filter_map(|host| host.ipam.as_ref()?.next_timeout()).min();
            let next = [event, timer, Some(self.next_gossip)].into_iter().flatten().min().unwrap_or(end);
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if self.next_gossip <= self.now {
                self.gossip();
            }
            while let Some((_, what)) = self.queue.pop_until(self.now) {
                self.carry_out(what);
            }
            for number in 0..self.hosts.len() {
                let now = self.now;
                let due = |ipam: &Ipam| ipam.next_timeout().is_some_and(|at| at <= now);
                if self.hosts[number].ipam.as_ref().is_some_and(due) {
                    if let Some(ipam) = &mut self.hosts[number].ipam {
                        ipam.handle_timeout(now);
                        // A timer that stays in the past is looked at again at the next tick.
                        assert!(
                            ipam.next_timeout().is_none_or(|at| at + Duration::from_secs(1) > now),
                            "{}",
                            self.story.join("\n")
                        );
                    }
                    self.drain(number);
                }
            }
            self.now += Duration::from_micros(200);
            self.check();
        }
    }

    fn gossip(&mut self) {
        self.next_gossip = self.now + GOSSIP;
        for number in 0..self.hosts.len() {
            if self.hosts[number].ipam.is_none() {
                continue;
            }
            let there: Vec<usize> = (0..self.hosts.len())
                .filter(|other| *other != number && self.hosts[*other].ipam.is_some() && self.is_joined(number, *other))
                .collect();
            let reachable: BTreeSet<HostLabel> = there.iter().map(|other| self.hosts[*other].label).collect();
            let met = |peer: &usize| {
                let label = self.hosts[*peer].label;
                let is_met = reachable.contains(&label) || self.hosts[number].heard.contains_key(&label);
                Named { name: format!("h{peer}"), host: is_met.then_some(label) }
            };
            let named: Vec<Named> = self.hosts[number].named.iter().map(met).collect();
            let mut news: Vec<(HostLabel, BTreeMap<Range, Announcement>)> =
                there.iter().map(|other| (self.hosts[*other].label, self.hosts[*other].announced.clone())).collect();
            // The records of hosts that are away outlive them, and hosts that come hear them.
            let own = &self.hosts[number];
            let is_news = |(label, _): &(&HostLabel, &BTreeMap<Range, Announcement>)| {
                **label != own.label && !reachable.contains(*label) && !own.heard.contains_key(*label)
            };
            let told = there.iter().flat_map(|other| &self.hosts[*other].heard).filter(is_news);
            let told: BTreeMap<HostLabel, _> = told.map(|(label, heard)| (*label, heard.clone())).collect();
            news.extend(told);
            let now = self.now;
            let host = &mut self.hosts[number];
            let Some(ipam) = &mut host.ipam else { continue };
            ipam.set_hosts(named, reachable.iter().copied(), now);
            for (from, announced) in news {
                let before = host.heard.insert(from, announced.clone()).unwrap_or_default();
                for (range, announcement) in announced {
                    if before.get(&range) != Some(&announcement) {
                        ipam.hear(from, range, Some(announcement), now);
                    }
                }
            }
            self.drain(number);
        }
    }

    /// Takes what a host wants done; what is said waits for the disk.
    fn drain(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        let Some(ipam) = &mut host.ipam else { return };
        while let Some(output) = ipam.poll_output() {
            match output {
                Output::Persist(key, value) => host.unsynced.push((key, value)),
                output => host.held_back.push_back(output),
            }
        }
        let waits = !host.unsynced.is_empty() || !host.held_back.is_empty();
        if waits && !host.sync_due {
            host.sync_due = true;
            let life = host.life;
            let after = Duration::from_micros(self.rng.random_range(50..15_000));
            self.queue.push(self.now + after, What::Sync { host: number, life });
        }
    }

    fn carry_out(&mut self, what: What) {
        match what {
            What::Sync { host: number, life } => {
                let host = &mut self.hosts[number];
                if host.life != life {
                    return;
                }
                host.sync_due = false;
                for (key, value) in std::mem::take(&mut host.unsynced) {
                    match value {
                        Some(value) => drop(host.disk.insert(key, value)),
                        None => drop(host.disk.remove(&key)),
                    }
                }
                let said = std::mem::take(&mut host.held_back);
                said.into_iter().for_each(|output| self.say(number, output));
            }
            What::Deliver { from, to, life, bytes } => {
                if self.hosts[to].life != life || !self.is_joined(from, to) {
                    return;
                }
                let (label, now) = (self.hosts[from].label, self.now);
                if let Some(ipam) = &mut self.hosts[to].ipam {
                    ipam.receive(label, &bytes, now);
                }
                self.drain(to);
            }
        }
    }

    fn say(&mut self, number: usize, output: Output) {
        match output {
            Output::Send(to, bytes) => {
                let Some(to) = self.hosts.iter().position(|host| host.label == to) else { return };
                if !self.is_joined(number, to) || self.rng.random_bool(self.loss) {
                    return;
                }
                let copies = if self.rng.random_bool(0.05) { 2 } else { 1 };
                for _ in 0..copies {
                    let delay = Duration::from_micros(self.rng.random_range(100..30_000));
                    let life = self.hosts[to].life;
                    self.queue.push(self.now + delay, What::Deliver { from: number, to, life, bytes: bytes.clone() });
                }
            }
            Output::Reply(ticket, result) => self.on_reply(ticket, result),
            Output::Announce(range, announcement) => drop(self.hosts[number].announced.insert(range, announcement)),
            Output::Fence(id, _) => {
                self.grants.remove(&id);
            }
            Output::Done(ticket, result) => self.on_done(ticket, result),
            Output::Persist(..) => {}
        }
    }

    fn on_reply(&mut self, ticket: Ticket, result: Result<Ipv4Addr, Error>) {
        let Some(asked) = self.tickets.remove(&ticket) else { return };
        match result {
            Ok(address) => {
                self.granted += 1;
                assert!(self.range.contains(address) && !self.range.is_reserved(address));
                self.grants.insert(asked.id, Grant { host: asked.host, address });
            }
            Err(error) => {
                self.refused += 1;
                self.story.push(format!("{:?} h{}: {error}", self.now, asked.host));
            }
        }
    }

    fn on_done(&mut self, ticket: Ticket, result: Result<(), Error>) {
        let Some(asked) = self.tickets.remove(&ticket) else { return };
        let Some(parts) = asked.parts else { return };
        let Host { wanted_parts, parts: had, .. } = &mut self.hosts[asked.host];
        match result {
            Ok(()) => *had = parts.intersection(wanted_parts).copied().collect(),
            // A network that cannot be made is not; those that are there stay.
            Err(_) => wanted_parts.retain(|part| had.contains(part) || !parts.contains(part)),
        }
    }

    fn allocate(&mut self, host: usize, id: AllocationId, want: Option<Ipv4Addr>) {
        let (ticket, now, range) = (self.next_ticket, self.now, self.range);
        self.next_ticket += 1;
        let life = self.hosts[host].life;
        self.tickets.insert(ticket, Asked { host, id, since: now, life, parts: None });
        if let Some(ipam) = &mut self.hosts[host].ipam {
            ipam.allocate(ticket, Request { range, id, want, within: None }, now);
        }
        self.drain(host);
    }

    /// The networks of a host have these subnets from now on, if that can be.
    fn set_parts(&mut self, host: usize, parts: BTreeSet<Range>) {
        let (ticket, now, range) = (self.next_ticket, self.now, self.range);
        self.next_ticket += 1;
        let Host { ipam: Some(ipam), wanted_parts, parts: had, life, .. } = &mut self.hosts[host] else { return };
        had.retain(|part| parts.contains(part));
        wanted_parts.clone_from(&parts);
        ipam.set_parts(ticket, range, parts.clone(), true, now);
        let asked = Asked { host, id: [0; 16], since: now, life: *life, parts: Some(parts) };
        self.tickets.insert(ticket, asked);
        self.drain(host);
    }

    /// A network with a subnet in the range comes, here or here too, or goes.
    fn change_parts(&mut self, host: usize) -> String {
        let eighth = self.range.size() / 8;
        let base = self.range.base.to_bits() + eighth * self.rng.random_range(0..8);
        let part = Range::new(Ipv4Addr::from_bits(base), self.range.length + 3).expect("an eighth of a range");
        let mut parts = self.hosts[host].wanted_parts.clone();
        let comes = parts.len() < 2 && parts.insert(part);
        if !comes {
            parts.pop_first();
        }
        let story = format!("h{host}'s networks are to have {parts:?}");
        self.set_parts(host, parts);
        story
    }

    fn random_id(&mut self) -> AllocationId {
        let mut id = [0; 16];
        self.rng.fill_bytes(&mut id);
        id
    }

    /// Everything is mended; then every host must be able to hand out, from one ring, with nothing in two places.
    fn calm(&mut self) -> Duration {
        self.loss = 0.0;
        self.side.fill(0);
        self.next_gossip = self.now;
        self.story.push(format!("{:?} calm", self.now));
        for host in 0..self.hosts.len() {
            if self.hosts[host].ipam.is_none() {
                self.reboot(host);
            }
        }
        for host in 0..self.hosts.len() {
            self.set_parts(host, BTreeSet::new());
        }
        let start = self.now;
        loop {
            self.run_for(Duration::from_millis(200));
            if self.clash().is_some() {
                let since = self.now.since(start);
                assert!(since <= FENCED_WITHIN, "{:?} after {since:?}\n{}", self.clash(), self.story.join("\n"));
                self.last_clash = Some(since);
            }
            let Some(problem) = self.problem() else { break };
            let waited = self.now.since(start);
            assert!(waited < Duration::from_secs(30), "after {waited:?}: {problem}\n{}", self.story.join("\n"));
        }
        let convergence = self.now.since(start);
        let (used, asked) = (self.grants.len(), self.hosts.len());
        let ids: Vec<AllocationId> = (0..asked).map(|_| self.random_id()).collect();
        for (host, id) in ids.iter().enumerate() {
            self.allocate(host, *id, None);
        }
        self.run_for(PATIENCE + SLACK);
        let is_large = self.range.size() as usize > 4 * (used + asked) + 300;
        for (host, id) in ids.iter().enumerate().filter(|_| is_large) {
            assert!(self.grants.contains_key(id), "h{host} cannot hand out\n{}", self.story.join("\n"));
        }
        if let Some(problem) = self.problem() {
            panic!("{problem}\n{}", self.story.join("\n"));
        }
        convergence
    }
}
