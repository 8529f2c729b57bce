//! What peers, sessions and endpoints cost a host that carries traffic: memory, CPU and round-trip times, with hosts beside it
//! that are nodes in this process behind sockets of their own.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use weft_bench::{cpu_time, in_temporary_dir};
use weft_crypto::{Ciphers, Identity, Keyring, Time};
use weft_mesh::datapath::Datapath;
use weft_mesh::egress::DropReason;
use weft_mesh::ingress::RxBuffer;
use weft_mesh::node::{Command, Config, Input, Node, Output, Target};
use weft_mesh::records::{EndpointId, EndpointRecord, digest_of};
use weft_mesh::sink::{Punt, Sink, TapOffloads};
use weft_mesh::snapshot::{Hashing, Snapshot};
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::SegmentId;
use weft_router::attach::prefix::Prefix;
use weft_router::cli::options::TapMode;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{LabHost, Ns, resident, tcp_throughput, wire};

use super::load::{RoundTrips, round_trips_beside_tcp};
use super::pairs;

/// How much is measured.
#[derive(clap::Args)]
pub struct Options {
    /// Seconds of TCP before memory is looked at
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Hosts that join
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// Endpoints that one more host has
    #[arg(long, default_value_t = 100_000)]
    endpoints: u32,
}

/// Endpoints that come and go in a second; fewer than the batches that a host signs in that time, so that each is one.
const CHANGES_PER_SECOND: u32 = 15;
const WINDOW: Duration = Duration::from_secs(10);
const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 98, 0, 1));
const BESIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 98, 0, 2));

/// Measures, and prints a table.
pub fn run(options: &Options) -> Result<()> {
    in_temporary_dir(|dir| measure(options, dir))
}

fn measure(options: &Options, dir: &Path) -> Result<()> {
    println!("| | |\n|---|---|");
    with_sessions(options, dir)?;
    with_endpoints(options.endpoints, dir)
}

/// Memory: at the start, after traffic, and with more and more hosts.
fn with_sessions(options: &Options, dir: &Path) -> Result<()> {
    const NAME: &str = "sessions";
    let pair = pairs::weft(NAME, 2, TapMode::Fast, &[], dir)?;
    let ([from, to], router) = (&pair.containers, &pair.routers[0]);
    println!("| RSS after start | {:.1} MB |", memory(router)? / 1e6);
    tcp_throughput(from, to, pair.target, 1, Duration::from_secs(options.seconds))?;
    println!("| RSS after {} s of TCP at full speed | {:.1} MB |", options.seconds, memory(router)? / 1e6);

    let (ns, secret) = beside(router, &pairs::secret_of(dir, NAME))?;
    let mut guests: Vec<Guest> =
        (0..options.sessions.max(1) + 1).map(|number| Guest::start(&ns, &secret, number)).collect::<Result<_>>()?;
    // The first one with whom tables are made does not count.
    let (first, others) = guests.split_at_mut(1);
    await_links(router, first, 2)?;
    let before = memory(router)?;
    await_links(router, others, 1 + others.len())?;
    run_for(others, Duration::from_secs(3))?;
    println!("| RSS a further session | {:.1} kB |", (memory(router)? - before) / others.len() as f64 / 1e3);
    Ok(())
}

/// A host with many endpoints joins, and some of them go and come back.
fn with_endpoints(count: u32, dir: &Path) -> Result<()> {
    const NAME: &str = "endpoints";
    let pair = pairs::weft(NAME, 2, TapMode::Fast, &[], dir)?;
    let router = &pair.routers[0];
    let (ns, secret) = beside(router, &pairs::secret_of(dir, NAME))?;
    let mut guest = Guest::start(&ns, &secret, 0)?;
    await_links(router, std::slice::from_mut(&mut guest), 2)?;
    let before = memory(router)?;
    let (changes, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // It lives on in a thread of its own, and changes something when it is told to.
        let living = scope.spawn(|| guest.live(count, &changes, &is_over));
        let outcome = measure_endpoints(count, before, &pair, &changes);
        is_over.store(true, Ordering::Relaxed);
        living.join().map_err(|_| Failure::new("the host beside the two failed"))??;
        outcome
    })
}

/// A namespace beside a router's, and the secret for hosts in it.
fn beside(router: &LabHost, secret: &Path) -> Result<(Ns, String)> {
    let ns = Ns::new()?;
    wire(&router.ns, &ns, ("crowd", "eth0"), (&[Prefix(GATEWAY, 24)], &[Prefix(BESIDE, 24)]))?;
    Ok((ns, std::fs::read_to_string(secret).doing(|| "cannot read the secret".into())?))
}

fn measure_endpoints(count: u32, before: f64, pair: &pairs::Pair, changes: &AtomicBool) -> Result<()> {
    let ([from, to], router) = (&pair.containers, &pair.routers[0]);
    let beside = || -> Result<RoundTrips> {
        round_trips_beside_tcp(from, to, pair.target, WINDOW * 2)?
            .ok_or_else(|| Failure::new("too many pings were lost"))
    };
    await_quiet(&pair.routers)?;
    println!("| RSS a known endpoint, of {count} | {:.2} kB |", (memory(router)? - before) / f64::from(count) / 1e3);
    let known = router.status()?["endpoints"].as_array().map_or(0, Vec::len);
    if known < count as usize {
        return Err(Failure::new(format!("of {count} endpoints only {known} are known")));
    }
    await_quiet(&pair.routers)?;
    let quiet = cpu_in(router, WINDOW)?;
    changes.store(true, Ordering::Relaxed);
    let busy = cpu_in(router, WINDOW)?;
    changes.store(false, Ordering::Relaxed);
    let changed = f64::from(CHANGES_PER_SECOND) * WINDOW.as_secs_f64();
    println!("| CPU an endpoint that comes or goes, with those known | {:.0} µs |", (busy - quiet) / changed * 1e6);
    let say = |what: &str, times: RoundTrips| {
        println!(
            "| RTT beside TCP, {what}: p50, p99, p99.9 | {:.0}, {:.0}, {:.0} µs |",
            times.p50, times.p99, times.p999
        );
    };
    for _ in 0..2 {
        say("nothing changes", beside()?);
        changes.store(true, Ordering::Relaxed);
        say("endpoints come and go", beside()?);
        changes.store(false, Ordering::Relaxed);
    }
    Ok(())
}

/// A host without containers: a node behind a socket.
struct Guest {
    node: Node,
    path: Datapath,
    snapshot: Arc<Snapshot>,
    socket: UdpSocket,
    started: Instant,
    wake: Instant,
}

impl Guest {
    fn start(ns: &Ns, secret: &str, number: usize) -> Result<Guest> {
        let what = || "cannot open a socket for a guest".to_owned();
        let socket = ns.run(|| UdpSocket::bind((BESIDE, 0)).doing(what))??;
        let mut rng = rand::rng();
        let identity = Identity::from_seed(&rng.random());
        let label = identity.peer_id().label();
        let config = Config {
            identity,
            name: format!("guest{number}"),
            keyring: Keyring::parse(secret.trim()).map_err(|error| Failure::new(error.to_string()))?,
            ciphers: Ciphers::native(true),
            underlay_mtu: 1500,
            container_mtu: 1450,
            port: socket.local_addr().doing(what)?.port(),
            tcp_ports: Vec::new(),
            advertised: Default::default(),
            is_stub: false,
            is_metered: false,
            discovery: false,
            grace: Duration::from_secs(3600),
            founds_alone: false,
            continues: false,
            endpoints: Vec::new(),
            restored: Vec::new(),
        };
        let started = Instant::now();
        let mut guest = Guest {
            node: Node::new(config, rng.random(), time(started)),
            path: Datapath::new(1),
            snapshot: Arc::new(Snapshot::empty(label, Hashing::default())),
            socket,
            started,
            wake: started,
        };
        let router = Target { name: "router".into(), addresses: vec![SocketAddr::new(GATEWAY, 6783)] };
        guest.take(Input::Command(0, Command::Connect(vec![router])))?;
        Ok(guest)
    }

    /// Lives until told to stop; first everything it has comes, then some of it goes and comes back while `changes` is set.
    fn live(&mut self, endpoints: u32, changes: &AtomicBool, is_over: &AtomicBool) -> Result<()> {
        for number in 0..endpoints {
            self.take(Input::Command(0, Command::attach(id(number), record(number))))?;
            if number % 50 == 0 {
                self.step(Duration::from_micros(100))?;
            }
        }
        let (mut next, mut number) = (Instant::now(), 0);
        while !is_over.load(Ordering::Relaxed) {
            self.step(Duration::from_millis(5))?;
            if changes.load(Ordering::Relaxed) && Instant::now() >= next {
                next = Instant::now() + Duration::from_secs(1) / CHANGES_PER_SECOND;
                let (id, record) = (id(number / 2), record(number / 2));
                let command = if number % 2 == 0 { Command::Detach(id) } else { Command::attach(id, record) };
                self.take(Input::Command(0, command))?;
                number += 1;
            }
        }
        Ok(())
    }

    /// Takes what has arrived, waiting at most so long, and does what is due.
    fn step(&mut self, wait: Duration) -> Result<()> {
        let what = || "cannot receive".to_owned();
        let mut buffer = [0; 2048];
        self.socket.set_read_timeout(Some(wait)).doing(what)?;
        match self.socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                let mut sink = Punts::default();
                let datagram =
                    RxBuffer { from: weft_mesh::path::Path::udp(from), data: &mut buffer[..len], stride: len.max(1) };
                self.path.datagrams(&self.snapshot.clone(), time(self.started), &mut [datagram], &mut sink);
                sink.0.into_iter().try_for_each(|punt| self.take(Input::Punt(punt)))?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).doing(what),
        }
        if Instant::now() >= self.wake { self.take(Input::Timeout) } else { Ok(()) }
    }

    fn take(&mut self, input: Input) -> Result<()> {
        self.node.handle_input(time(self.started), input);
        loop {
            match self.node.poll_output() {
                Output::Transmit { to, data, stride, .. } => {
                    for datagram in data.chunks(stride.max(1)) {
                        // What does not leave is like what is lost on the way.
                        let _ = self.socket.send_to(datagram, to.remote);
                    }
                }
                Output::Publish(snapshot) => self.snapshot = snapshot,
                Output::Durable(mark) => {
                    self.node.handle_input(time(self.started), Input::Durable { mark, is_kept: true });
                }
                Output::Reply(_, Err(error)) => return Err(Failure::new(format!("a guest refuses: {error}"))),
                Output::Timeout(at, _) => {
                    let wait = at.since(time(self.started));
                    self.wake = Instant::now() + wait;
                    return Ok(());
                }
                Output::Connection { .. }
                | Output::Open { .. }
                | Output::Spread { .. }
                | Output::Reply(..)
                | Output::Names(_)
                | Output::Persist { .. }
                | Output::Tap { .. }
                | Output::Mtu(..)
                | Output::Event(_) => {}
            }
        }
    }
}

#[derive(Default)]
struct Punts(Vec<Punt>);

impl Sink for Punts {
    fn offloads(&self, _: SegmentId) -> TapOffloads {
        TapOffloads::NONE
    }
    fn to_tap(&mut self, _: SegmentId, _: &VnetHeader, _: &[&[u8]]) {}
    fn relay(&mut self, _: weft_mesh::path::Path, _: &[u8], _: usize) {}
    fn punt(&mut self, punt: Punt) {
        self.0.push(punt);
    }
    fn dropped(&mut self, _: DropReason) {}
}

fn time(started: Instant) -> Time {
    Time::ZERO + Duration::from_secs(3600) + started.elapsed()
}

/// Like those drawn at random: not one after the other.
fn id(number: u32) -> EndpointId {
    digest_of(&number.to_be_bytes())
}

fn record(number: u32) -> EndpointRecord {
    let [_, a, b, c] = number.to_be_bytes();
    EndpointRecord {
        segment: "bench".into(),
        mac: [2, 9, 9, a, b, c],
        ips: [(IpAddr::from([10, 64 + a, b, c]), 9)].into(),
        names: [format!("endpoint-{number}")].into(),
        health: Default::default(),
        services: [].into(),
    }
}

fn run_for(guests: &mut [Guest], duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        guests.iter_mut().try_for_each(|guest| guest.step(Duration::from_micros(20)))?;
    }
    Ok(())
}

fn await_links(router: &LabHost, guests: &mut [Guest], count: usize) -> Result<()> {
    let started = Instant::now();
    loop {
        run_for(guests, Duration::from_millis(200))?;
        let up = router.connected()?;
        if up >= count {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(90) {
            return Err(Failure::new(format!("only {up} of {count} hosts came together")));
        }
    }
}

fn memory(host: &LabHost) -> Result<f64> {
    resident(pid(host)?).ok_or_else(|| Failure::new("the router's memory is not known"))
}

fn pid(host: &LabHost) -> Result<u32> {
    host.pid().ok_or_else(|| Failure::new("the router has ended"))
}

/// Waits until routers have had little to do for some seconds: nothing comes any more that they do not know.
fn await_quiet(routers: &[LabHost]) -> Result<()> {
    let mut quiet = 0;
    for _ in 0..120 {
        let spent = routers.iter().map(|router| cpu_in(router, Duration::from_secs(1))).sum::<Result<f64>>()?;
        quiet = if spent < 0.05 * routers.len() as f64 { quiet + 1 } else { 0 };
        if quiet == 3 {
            return Ok(());
        }
    }
    Err(Failure::new("the routers are still busy after four minutes"))
}

/// Seconds of CPU that a router's threads take in a while.
fn cpu_in(host: &LabHost, window: Duration) -> Result<f64> {
    let before = cpu_time(pid(host)?)?;
    std::thread::sleep(window);
    Ok(cpu_time(pid(host)?)?.saturating_sub(before).as_secs_f64())
}
