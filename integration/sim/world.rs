//! Hosts, the network between them, and the event heap.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use siphasher::sip::SipHasher13;
use weft_crypto::{Ciphers, Identity, Time};
use weft_mesh::datapath::Datapath;
use weft_mesh::ingress::RxBuffer;
use weft_mesh::node::{Command, CommandError, Config, Event, Input, Node, Output, Refusals, Target};
use weft_mesh::path::Path;
use weft_mesh::records::{EndpointId, EndpointRecord, encode};
use weft_mesh::snapshot::{Hashing, Snapshot};
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::Lane;
use weft_mesh::wire::SegmentId;

use super::connections::Connections;
use super::disk::{ATTACHMENT, endpoints_on, keyring};
use super::host::Host;
use super::nat::Nat;
use super::queue::Queue;
use super::sink::HostSink;
use super::weather::{IP_AND_UDP, Weather};

/// A host's number: its place in [`World::hosts`].
pub type HostNumber = usize;

/// Everything.
pub struct World {
    /// The time.
    pub now: Time,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// What the network is like.
    pub weather: Weather,
    /// Longest time between a node's publication and its data path's use of it.
    pub publish_delay: Duration,
    /// All randomness but the nodes' own.
    pub rng: ChaCha8Rng,
    /// Whether the network drops what is marked as urgent.
    pub drops_marked: bool,
    /// Pairs between which the network carries nothing.
    pub cut: BTreeSet<(HostNumber, HostNumber)>,
    /// Bytes of datagrams sent.
    pub bytes_sent: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// How long a host may be gone before the others drop its records.
    pub grace: Duration,
    ciphers: Ciphers,
    discovery: bool,
    pub(super) queue: Queue<What>,
    /// The NATs that hosts are behind.
    pub(super) nats: Vec<Nat>,
    pub(super) connections: Connections,
    trace: SipHasher13,
    pub(super) by_address: BTreeMap<SocketAddr, HostNumber>,
    recorded: Option<Vec<(Path, HostNumber, Vec<u8>)>>,
}

pub(super) enum What {
    Timer {
        host: HostNumber,
        life: u64,
    },
    Deliver {
        host: HostNumber,
        from: Path,
        data: Vec<u8>,
        stride: usize,
    },
    /// A datagram comes to a NAT from outside.
    Arrive {
        nat: usize,
        from: SocketAddr,
        port: u16,
        data: Vec<u8>,
    },
    /// A host passes a datagram on.
    PassOn {
        host: HostNumber,
        to: Path,
        data: Vec<u8>,
    },
    Publish {
        host: HostNumber,
        life: u64,
        snapshot: Arc<Snapshot>,
    },
    Durable {
        host: HostNumber,
        life: u64,
        mark: u64,
    },
}

impl World {
    /// An empty world. `discovery`: whether hosts link beyond the peers they are told of.
    pub fn new(seed: u64, ciphers: Ciphers, discovery: bool) -> Self {
        World {
            // Not the epoch itself: "long ago" has to be in the past.
            now: Time::ZERO + Duration::from_secs(1000),
            hosts: Vec::new(),
            weather: Weather::FAIR,
            publish_delay: Duration::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            drops_marked: false,
            cut: BTreeSet::new(),
            bytes_sent: 0,
            datagrams_sent: 0,
            grace: Duration::from_secs(3600),
            ciphers,
            discovery,
            queue: Queue::default(),
            nats: Vec::new(),
            connections: Connections::default(),
            trace: SipHasher13::new(),
            by_address: BTreeMap::new(),
            recorded: None,
        }
    }

    /// Adds a host that is switched off.
    pub fn add_host(&mut self) -> HostNumber {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        self.add_host_with_key(seed)
    }

    /// Adds a host with a key that another may have, too.
    pub fn add_host_with_key(&mut self, seed: [u8; 32]) -> HostNumber {
        let number = self.hosts.len();
        let ip = IpAddr::from([10, 1, (number / 250) as u8, (number % 250 + 1) as u8]);
        let address = SocketAddr::new(ip, 6783);
        let label = Identity::from_seed(&seed).peer_id().label();
        let host = Host::new(seed, label, address, self.rng.random());
        self.hosts.push(host);
        self.by_address.insert(address, number);
        number
    }

    /// Switches a host on; it finds on its disk what it left there.
    pub fn start(&mut self, number: HostNumber) {
        let mut entropy = [0; 32];
        self.rng.fill_bytes(&mut entropy);
        let host = &mut self.hosts[number];
        host.life += 1;
        host.timer = Time::from_nanos(u64::MAX);
        host.path = Datapath::new(64);
        host.snapshot = Arc::new(Snapshot::empty(host.label, Hashing(0, 0)));
        let config = Config {
            identity: Identity::from_seed(&host.seed),
            name: format!("h{number}"),
            keyring: keyring(),
            ciphers: self.ciphers.clone(),
            underlay_mtu: 1500,
            container_mtu: 1450,
            port: host.address.port(),
            tcp_ports: host.tcp_ports.clone(),
            advertised: host.advertised.clone(),
            is_stub: host.is_stub,
            is_metered: host.is_metered,
            discovery: self.discovery,
            grace: self.grace,
            founds_alone: false,
            // A disk may be another than the host wrote.
            continues: false,
            endpoints: endpoints_on(&host.disk),
            restored: host.disk.clone().into_iter().collect(),
        };
        host.node = Some(Node::new(config, entropy, self.now));
        host.marks = true;
        let addresses = [host.address].into_iter().chain(host.second).map(|address| address.ip()).collect();
        self.command(number, Command::SetMeteredPaths(self.hosts[number].metered_paths.clone()));
        self.command(number, Command::SetAddresses(addresses));
    }

    /// Switches a host off, without warning.
    pub fn crash(&mut self, number: HostNumber) {
        let host = &mut self.hosts[number];
        host.node = None;
        host.life += 1;
    }

    /// Names peers to a host.
    pub fn connect(&mut self, number: HostNumber, peers: &[HostNumber]) {
        let target = |peer: &HostNumber| Target {
            name: format!("h{peer}"),
            addresses: [self.hosts[*peer].address].into_iter().chain(self.hosts[*peer].second).collect(),
        };
        let targets = peers.iter().map(target).collect();
        self.command(number, Command::Connect(targets));
    }

    /// Attaches an endpoint; panics if the node refuses.
    pub fn attach(&mut self, number: HostNumber, id: EndpointId, record: EndpointRecord) {
        let host = &mut self.hosts[number];
        if host.node.is_some() {
            host.disk.insert([ATTACHMENT, &id].concat(), encode(&record));
        }
        self.command(number, Command::attach(id, record));
    }

    /// Detaches an endpoint.
    pub fn detach(&mut self, number: HostNumber, id: EndpointId) {
        let host = &mut self.hosts[number];
        if host.node.is_some() {
            host.disk.remove(&[ATTACHMENT, &id].concat());
        }
        self.command(number, Command::Detach(id));
    }

    /// A frame leaves a container on a host.
    pub fn send_frame(&mut self, number: HostNumber, segment: SegmentId, vnet: &VnetHeader, frame: &mut [u8]) {
        let host = &mut self.hosts[number];
        let snapshot = host.snapshot.clone();
        let mut sink = HostSink::new(host.offloads);
        host.path.frame(&snapshot, segment, vnet, frame, self.now, &mut sink);
        self.carry_out(number, sink);
    }

    /// Keeps (or no longer keeps) a copy of every datagram that arrives; returns what was kept: from where, at which host, and the datagram.
    pub fn record_datagrams(&mut self, keep: bool) -> Vec<(Path, HostNumber, Vec<u8>)> {
        std::mem::replace(&mut self.recorded, keep.then(Vec::new)).unwrap_or_default()
    }

    /// What people can see of a host's state, less its counters.
    pub fn state_of(&self, number: HostNumber) -> String {
        let Some(node) = &self.hosts[number].node else { return String::new() };
        let mut status = node.status(self.now);
        for peer in &mut status.peers {
            (peer.rx_bytes, peer.tx_bytes) = (0, 0);
        }
        status.refused = Refusals::default();
        let (events, delivered) = (&self.hosts[number].events, &self.hosts[number].delivered);
        format!("{status:?} {events:?} {delivered:?}")
    }

    /// What a host refused so far.
    pub fn refused_by(&self, number: HostNumber) -> Refusals {
        self.hosts[number].node.as_ref().map(|node| node.status(self.now).refused).unwrap_or_default()
    }

    /// A datagram from nowhere in particular arrives at a host.
    pub fn inject(&mut self, number: HostNumber, from: SocketAddr, data: Vec<u8>) {
        let stride = data.len().max(1);
        self.deliver(number, Path::udp(from), data, stride);
    }

    /// Runs until the time has come.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some((at, what)) = self.queue.pop_until(end) {
            self.now = at;
            self.step(what);
        }
        self.now = end;
    }

    /// A hash over all that happened: equal for equal runs.
    pub fn trace_hash(&self) -> u64 {
        self.trace.finish()
    }

    fn step(&mut self, what: What) {
        self.trace.write_u64(self.now.as_nanos());
        match what {
            What::Timer { host, life } => {
                let due = self.hosts[host].life == life && self.hosts[host].timer <= self.now;
                if due && self.hosts[host].node.is_some() {
                    self.trace.write_u64(host as u64);
                    self.hosts[host].timer = Time::from_nanos(u64::MAX);
                    self.input(host, Input::Timeout);
                }
            }
            What::Deliver { host, from, data, stride } => {
                self.trace.write(&data);
                if let Some(recorded) = &mut self.recorded {
                    recorded.push((from, host, data.clone()));
                }
                self.deliver(host, from, data, stride);
            }
            What::Arrive { nat, from, port, data } => {
                self.trace.write(&data);
                self.arrive(nat, from, port, data);
            }
            What::PassOn { host, to, data } => {
                let stride = data.len();
                self.transmit(host, Lane::Main, to, data, stride);
            }
            What::Publish { host, life, snapshot } => {
                if self.hosts[host].life == life {
                    self.hosts[host].snapshot = snapshot;
                }
            }
            What::Durable { host, life, mark } => {
                if self.hosts[host].life == life {
                    self.input(host, Input::Durable { mark, is_kept: true });
                }
            }
        }
    }

    pub(super) fn deliver(&mut self, number: HostNumber, from: Path, mut data: Vec<u8>, stride: usize) {
        let host = &mut self.hosts[number];
        if host.node.is_none() {
            return;
        }
        host.carried += (data.len() + IP_AND_UDP) as u64;
        let snapshot = host.snapshot.clone();
        let mut sink = HostSink::new(host.offloads);
        host.path.datagrams(&snapshot, self.now, &mut [RxBuffer { from, data: &mut data, stride }], &mut sink);
        self.carry_out(number, sink);
    }

    /// Does what a worker does with the results of a batch.
    fn carry_out(&mut self, number: HostNumber, sink: HostSink) {
        let host = &mut self.hosts[number];
        for reason in sink.dropped {
            *host.dropped.entry(reason).or_default() += 1;
        }
        for (segment, frame) in sink.frames {
            host.delivered.push((segment, frame));
        }
        let runs: Vec<(Lane, Path, Vec<u8>, usize)> =
            host.path.sender.batch.runs().map(|(run, bytes)| (run.lane, run.to, bytes.to_vec(), run.stride)).collect();
        host.path.sender.batch.clear();
        for (lane, to, data, stride) in runs {
            self.transmit(number, lane, to, data, stride);
        }
        for (to, data, stride) in sink.relayed {
            self.pass_on(number, to, data, stride);
        }
        for punt in sink.punts {
            if self.hosts[number].node.is_some() {
                self.input(number, Input::Punt(punt));
            }
        }
    }

    /// Gives a host a command.
    pub fn command(&mut self, number: HostNumber, command: Command) {
        self.input(number, Input::Command(0, command));
    }

    fn input(&mut self, number: HostNumber, input: Input) {
        let now = self.now;
        let Some(node) = &mut self.hosts[number].node else { return };
        node.handle_input(now, input);
        let mut outputs = 0;
        loop {
            outputs += 1;
            assert!(outputs < 50_000, "the queues of h{number} grow without bound");
            let Some(node) = &mut self.hosts[number].node else { return };
            match node.poll_output() {
                Output::Timeout(at, why) => {
                    assert!(at >= now, "h{number} wants to be woken in the past, for {why}: {at:?} at {now:?}");
                    self.set_timer(number, at);
                    return;
                }
                output => self.carry_out_output(number, output),
            }
        }
    }

    fn carry_out_output(&mut self, number: HostNumber, output: Output) {
        match output {
            Output::Transmit { lane, to, data, stride } => self.transmit(number, lane, to, data, stride),
            Output::Open { to, .. } => self.open_nats(number, to),
            Output::Spread { towards, count, .. } => self.spread(number, &towards, count),
            Output::Publish(snapshot) => {
                let delay = self.rng.random_range(0..=self.publish_delay.as_nanos() as u64);
                let life = self.hosts[number].life;
                // However long it takes: a newer one never comes before an older one.
                let last = self.hosts[number].published;
                let at = last.max(self.now + Duration::from_nanos(delay));
                self.hosts[number].published = at;
                if at == self.now {
                    self.hosts[number].snapshot = snapshot;
                } else {
                    self.queue.push(at, What::Publish { host: number, life, snapshot });
                }
            }
            Output::Names(names) => self.hosts[number].names = *names,
            // It has to be tried again.
            Output::Reply(_, Err(CommandError::StillThere(_))) => {}
            Output::Reply(_, reply) => assert!(reply.is_ok(), "h{number} refused a command: {reply:?}"),
            Output::Persist { key, value } => {
                let disk = &mut self.hosts[number].disk;
                match value {
                    Some(value) => disk.insert(key, value),
                    None => disk.remove(&key),
                };
            }
            Output::Durable(mark) => {
                let delay = Duration::from_micros(self.rng.random_range(100..4000));
                let life = self.hosts[number].life;
                self.queue.push(self.now + delay, What::Durable { host: number, life, mark });
            }
            Output::Event(event) => {
                if let Event::MarksLost { .. } = event {
                    self.hosts[number].marks = false;
                }
                self.hosts[number].events.push(event);
            }
            // What containers here know of each other's MACs, the model knows.
            Output::Tap { .. } | Output::Mtu(..) | Output::Timeout(..) | Output::Connection { .. } => {}
        }
    }

    fn set_timer(&mut self, number: HostNumber, at: Time) {
        let host = &mut self.hosts[number];
        if at < host.timer || host.timer <= self.now {
            host.timer = at;
            let life = host.life;
            self.queue.push(at, What::Timer { host: number, life });
        }
    }
}
