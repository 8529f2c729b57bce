//! How fast containers of two hosts reach each other: weft beside kernel VXLAN, no overlay at all, and other overlays in
//! userspace, in turn, over two kinds of underlay.

mod candidates;
pub mod floor;
pub mod growth;
mod guest;
mod load;
pub mod pairs;
mod peers;
mod report;
pub mod rough;
pub mod seen;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weft_bench::in_temporary_dir;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{await_true, tcp_throughput};

use load::Cpu;
use pairs::{Pair, Underlay};

/// What is measured, and for how long.
#[derive(clap::Args)]
pub struct Options {
    /// Rounds; each measures every candidate once on every underlay
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Seconds of TCP a measurement
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
    /// Only candidates with one of these in their name
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Write performance.json, .md and two plots into this directory, too
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Another build of weft to measure in turn with this one, and no other variants of either
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Only TCP with one stream and round-trip times with nothing beside, and of weft's variants only the default
    #[arg(long)]
    pub quick: bool,
}

impl Options {
    /// weft beside VXLAN and wireguard-go, for daily use: less than three minutes.
    pub fn quick() -> Self {
        let only = ["VXLAN", "weft", "wireguard-go"].map(str::to_owned).into();
        Options { rounds: 3, seconds: 2, only, out: None, against: None, quick: true }
    }
}

/// What one measurement found. What was not measured is not a number.
#[derive(Clone, Copy, serde::Serialize)]
pub struct Sample {
    /// Gbit/s of one TCP stream.
    pub tcp: f64,
    /// Seconds of CPU of the whole machine, for a gigabyte of it.
    pub cpu_per_gigabyte: f64,
    /// Gbit/s of four streams together.
    pub tcp_four: f64,
    /// How often their sender saw that segments had overtaken others.
    pub reorderings: f64,
    /// Datagrams of 64 bytes a second, in thousands, of which less than one in a hundred was lost.
    pub small_kpps: f64,
    /// The same of 1,400 bytes.
    pub large_kpps: f64,
    /// Round-trip times in microseconds: nothing else going on.
    pub rtt_p50: f64,
    /// Ninety-nine of a hundred.
    pub rtt_p99: f64,
    /// A question by UDP and its answer, between two processes, one after the other.
    pub answer_p50: f64,
    /// Ninety-nine of a hundred.
    pub answer_p99: f64,
    /// Echo requests again, beside one TCP stream.
    pub busy_p50: f64,
    /// Ninety-nine of a hundred.
    pub busy_p99: f64,
    /// Share of the machine's CPU that went elsewhere (steal).
    pub steal: f64,
}

/// All samples of one candidate on one underlay.
pub struct Series {
    pub name: String,
    pub version: String,
    pub underlay: Underlay,
    pub samples: Vec<Sample>,
    /// Memory of each router at the end, in MB.
    pub rss: Vec<f64>,
}

/// Measures all candidates in turn.
pub fn run(options: &Options) -> Result<()> {
    check_root()?;
    let series = in_temporary_dir(|dir| measure_all(options, dir))?;
    report::print(&series, options)
}

fn check_root() -> Result<()> {
    match nix::unistd::geteuid().is_root() {
        true => Ok(()),
        false => Err(Failure::new("the benchmark makes network namespaces: run it as root")),
    }
}

fn measure_all(options: &Options, dir: &std::path::Path) -> Result<Vec<Series>> {
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part.as_str()));
    let interrupted = interrupted()?;
    let goes_on = || match interrupted.load(Ordering::Relaxed) {
        true => Err(Failure::new("interrupted; nothing is reported")),
        false => Ok(()),
    };
    peers::install(wanted)?;
    let pairs = candidates::all(dir, options, |name| goes_on().map(|()| wanted(name)))?;
    let mut series = Vec::new();
    for underlay in [Underlay::Veth, Underlay::Nic] {
        pairs.iter().try_for_each(|pair| pair.set(underlay))?;
        let mut samples: Vec<Vec<Sample>> = pairs.iter().map(|_| Vec::new()).collect();
        for round in 1..=options.rounds {
            for (pair, samples) in pairs.iter().zip(&mut samples) {
                eprintln!("{underlay}, round {round} of {}: {}", options.rounds, pair.name);
                samples.push(measure(pair, samples.last(), options)?);
                goes_on()?;
            }
        }
        series.extend(pairs.iter().zip(samples).map(|(pair, samples)| Series {
            name: pair.name.clone(),
            version: pair.version.clone(),
            underlay,
            samples,
            rss: pair.rss(),
        }));
    }
    Ok(series)
}

/// Whether a signal asked this to end: set-ups are taken down before it does.
fn interrupted() -> Result<Arc<AtomicBool>> {
    let what = || "cannot wait for signals".to_owned();
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, flag.clone()).doing(what)?;
    }
    Ok(flag)
}

/// Waits until the containers of a pair reach each other.
fn await_reached(pair: &Pair) -> Result<()> {
    await_true(&format!("{}: the containers do not reach each other", pair.name), || {
        Ok(load::round_trips(&pair.containers[0], pair.target, 1, Duration::ZERO)?.is_some())
    })
}

fn measure(pair: &Pair, earlier: Option<&Sample>, options: &Options) -> Result<Sample> {
    let [from, to] = &pair.containers;
    let (target, duration) = (pair.target, Duration::from_secs(options.seconds));
    await_reached(pair)?;
    // Paths settle, caches fill.
    tcp_throughput(from, to, target, 1, Duration::from_millis(300))?;

    let start = Cpu::read()?;
    let tcp = tcp_throughput(from, to, target, 1, duration)?;
    let spent = Cpu::read()?.since(&start);
    let idle = load::round_trips(from, target, 500, Duration::from_millis(1))?;
    let missing = || Failure::new(format!("{}: too many pings were lost", pair.name));
    let idle = idle.ok_or_else(missing)?;
    let answers = load::answers(from, to, target, 2000)?.ok_or_else(missing)?;
    let mut sample = Sample {
        tcp: tcp.rate() / 1e9,
        cpu_per_gigabyte: spent.busy / (tcp.bytes as f64 / 1e9),
        tcp_four: f64::NAN,
        reorderings: f64::NAN,
        small_kpps: f64::NAN,
        large_kpps: f64::NAN,
        rtt_p50: idle.p50,
        rtt_p99: idle.p99,
        answer_p50: answers.p50,
        answer_p99: answers.p99,
        busy_p50: f64::NAN,
        busy_p99: f64::NAN,
        steal: 0.0,
    };
    if !options.quick {
        let guess = |value: fn(&Sample) -> f64| earlier.map_or(60.0, value).max(5.0) * 1e3;
        let before = load::reorderings(from)?;
        sample.tcp_four = tcp_throughput(from, to, target, 4, duration)?.rate() / 1e9;
        sample.reorderings = load::reorderings(from)? - before;
        sample.small_kpps = load::loss_free(from, to, target, 64, guess(|earlier| earlier.small_kpps))? / 1e3;
        sample.large_kpps = load::loss_free(from, to, target, 1400, guess(|earlier| earlier.large_kpps))? / 1e3;
        let beside = load::round_trips_beside_tcp(from, to, target, duration)?.ok_or_else(missing)?;
        (sample.busy_p50, sample.busy_p99) = (beside.p50, beside.p99);
    }
    sample.steal = Cpu::read()?.since(&start).steal;
    Ok(sample)
}
