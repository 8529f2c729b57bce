//! What peers, sessions and endpoints cost a host that carries traffic: memory, CPU and round-trip times, with hosts beside it
//! that are nodes in this process behind sockets of their own.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weft_bench::{cpu_time, in_temporary_dir};
use weft_router::cli::options::TapMode;
use weft_router::error::{Failure, Result};
use weft_router::lab::{LabHost, resident, tcp_throughput};

use super::guest::{self, Guest, await_links, beside, run_for};
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

const WINDOW: Duration = Duration::from_secs(10);

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
    let changed = f64::from(guest::CHANGES_PER_SECOND) * WINDOW.as_secs_f64();
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
