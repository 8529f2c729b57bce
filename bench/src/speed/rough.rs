//! TCP between containers of two hosts on a wire of 200 Mbit/s that loses datagrams or lets them overtake each other: weft beside kernel
//! VXLAN.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::RngExt;
use weft_bench::in_temporary_dir;
use weft_mesh::vnet::VnetHeader;
use weft_router::attach::prefix::Prefix;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{Ns, bring_up, tcp_throughput};
use weft_sys::{BasicTap, TapIo};

use super::pairs::{Pair, vxlan_over, weft_over};
use super::report::spread_of;
use super::{await_reached, check_root, interrupted};

/// Bits a second, each way.
const RATE: f64 = 200e6;
/// One way.
const DELAY: Duration = Duration::from_millis(2);
/// What waits longer for its turn is dropped.
const QUEUE: Duration = Duration::from_millis(50);
/// Longest frame, and more.
const FRAME: usize = 2048;

/// What is measured, and for how long.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; each measures both once on every wire
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of TCP a measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// How much of what it carries a wire treats badly, in thousandths.
#[derive(Clone, Copy)]
struct Roughness {
    name: &'static str,
    lost: u64,
    /// These have no delay, and overtake others.
    early: u64,
}

const WIRES: [Roughness; 4] = [
    Roughness { name: "nothing", lost: 0, early: 0 },
    Roughness { name: "1 % lost", lost: 10, early: 0 },
    Roughness { name: "5 % lost", lost: 50, early: 0 },
    Roughness { name: "10 % overtake 2 ms of others", lost: 0, early: 100 },
];

/// A wire between two TAPs, until it is dropped.
struct Wire {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    lost: AtomicU64,
    early: AtomicU64,
}

/// Measures TCP of both, in turn, on all wires and with all congestion controls that the kernel allows; prints a table.
pub fn run(options: &Options) -> Result<()> {
    check_root()?;
    in_temporary_dir(|dir| {
        let (mut wires, mut pairs) = (Vec::new(), Vec::new());
        let mut join = |a: &Ns, b: &Ns, names: (&str, &str), addresses: (&[Prefix], &[Prefix])| {
            wires.push(Wire::between(a, b, names, addresses)?);
            Ok(())
        };
        pairs.push(vxlan_over("kernel VXLAN", &mut join)?);
        pairs.push(weft_over("weft", dir, &mut join)?);
        measure_all(options, &wires, &pairs)
    })
}

fn measure_all(options: &Options, wires: &[Wire], pairs: &[Pair]) -> Result<()> {
    let interrupted = interrupted()?;
    pairs.iter().try_for_each(await_reached)?;
    println!("| congestion control | the wire | {} Mbit/s | {} | of VXLAN's |", pairs[0].name, pairs[1].name);
    println!("|---|---|---|---|---|");
    let what = || "cannot read the kernel's congestion controls".to_owned();
    let allowed = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").doing(what)?;
    for control in allowed.split_whitespace() {
        pairs.iter().flat_map(|pair| &pair.containers).try_for_each(|ns| set_congestion_control(ns, control))?;
        for roughness in WIRES {
            wires.iter().for_each(|wire| wire.set(roughness));
            let mut rates = [Vec::new(), Vec::new()];
            for round in 1..=options.rounds {
                eprintln!("{control}, {}: round {round} of {}", roughness.name, options.rounds);
                for (pair, rates) in pairs.iter().zip(&mut rates) {
                    if interrupted.load(Ordering::Relaxed) {
                        return Err(Failure::new("interrupted"));
                    }
                    let [from, to] = &pair.containers;
                    let carried = tcp_throughput(from, to, pair.target, 1, Duration::from_secs(options.seconds))?;
                    rates.push(carried.rate() / 1e6);
                }
            }
            let [Some(vxlan), Some(weft)] = rates.map(|rates| spread_of(rates.into_iter())) else { continue };
            let [near, far] =
                [vxlan, weft].map(|[median, least, most]| format!("{median:.1} ({least:.1} - {most:.1})"));
            println!("| {control} | {} | {near} | {far} | {:.2} |", roughness.name, weft[0] / vxlan[0]);
        }
    }
    Ok(())
}

fn set_congestion_control(ns: &Ns, name: &str) -> Result<()> {
    let set = || std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", name);
    ns.run(set)?.doing(|| format!("the kernel has no congestion control {name}"))
}

impl Wire {
    /// Joins two namespaces, with an address at each end.
    fn between(a: &Ns, b: &Ns, names: (&str, &str), addresses: (&[Prefix], &[Prefix])) -> Result<Wire> {
        let taps = [end(a, names.0, addresses.0)?, end(b, names.1, addresses.1)?];
        let shared = Arc::new(Shared::default());
        let carried = shared.clone();
        let thread = std::thread::Builder::new().name("wire".into()).spawn(move || carry(taps, &carried));
        Ok(Wire { shared, thread: Some(thread.doing(|| "cannot start a thread".into())?) })
    }

    fn set(&self, roughness: Roughness) {
        self.shared.lost.store(roughness.lost, Ordering::Relaxed);
        self.shared.early.store(roughness.early, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("weft-bench: a wire failed: {error}");
        }
    }
}

fn end(ns: &Ns, name: &str, addresses: &[Prefix]) -> Result<BasicTap> {
    let tap = ns.run(|| BasicTap::open(name)).and_then(|tap| tap.doing(|| "cannot open a TAP".into()))?;
    bring_up(ns, name, addresses)?;
    Ok(tap)
}

/// Carries frames both ways until it is over.
fn carry(mut taps: [BasicTap; 2], shared: &Shared) -> io::Result<()> {
    let mut rng = rand::rng();
    let mut on_the_way = BinaryHeap::new();
    // When the last frame of each direction has left the sender.
    let mut sent = [Instant::now(); 2];
    let (mut buffer, mut number) = (vec![0; FRAME], 0u64);
    while !shared.is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        for from in [0, 1] {
            loop {
                let len = match taps[from].read(&mut buffer) {
                    Ok((_, len)) => len,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                let leaves = sent[from].max(now) + Duration::from_secs_f64(len as f64 * 8.0 / RATE);
                if leaves.duration_since(now) > QUEUE {
                    continue;
                }
                sent[from] = leaves;
                if rng.random_range(0..1000) < shared.lost.load(Ordering::Relaxed) {
                    continue;
                }
                let is_early = rng.random_range(0..1000) < shared.early.load(Ordering::Relaxed);
                let at = if is_early { leaves } else { leaves + DELAY };
                number += 1;
                on_the_way.push(Reverse((at, number, 1 - from, buffer[..len].to_vec())));
            }
        }
        let now = Instant::now();
        while let Some(Reverse((_, _, to, frame))) = next_due(&mut on_the_way, now) {
            match taps[to].write(&VnetHeader::default(), &[&frame]) {
                Ok(()) => {}
                // An interface that is going away.
                Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => {}
                Err(error) => return Err(error),
            }
        }
        let due = on_the_way.peek().map(|Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
        rest(&taps, due.unwrap_or(Duration::from_millis(100)))?;
    }
    Ok(())
}

type OnTheWay = Reverse<(Instant, u64, usize, Vec<u8>)>;

fn next_due(on_the_way: &mut BinaryHeap<OnTheWay>, now: Instant) -> Option<OnTheWay> {
    on_the_way.peek().is_some_and(|Reverse((at, ..))| *at <= now).then(|| on_the_way.pop()).flatten()
}

/// Waits for a frame, or for so long.
fn rest(taps: &[BasicTap; 2], longest: Duration) -> io::Result<()> {
    let timeout = PollTimeout::from(longest.as_millis().min(100) as u16);
    if longest < Duration::from_millis(1) {
        std::thread::sleep(longest.min(Duration::from_micros(100)));
        return Ok(());
    }
    let mut fds = taps.each_ref().map(|tap| PollFd::new(tap.fd(), PollFlags::POLLIN));
    poll(&mut fds, timeout).map(drop).or_else(|error| if error == nix::Error::EINTR { Ok(()) } else { Err(error) })?;
    Ok(())
}
