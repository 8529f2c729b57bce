//! All seeds of the simulation's families, with what they took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use weft_integration::sim::{Outcome, Scenario, run};
use weft_router::error::Result;

/// Seeds that took longer are named, to be looked at.
const REMARKABLE: Duration = Duration::from_secs(4);

/// Runs one seed and tells what happened in it.
pub fn one(seed: u64, hundred: bool) -> Result<()> {
    let outcome = run(&if hundred { Scenario::hundred() } else { Scenario::faults() }, seed);
    println!("{}", outcome.story.join("\n"));
    println!("seed {seed}: {} hosts, right {:?} after the last fault", outcome.hosts, outcome.convergence);
    Ok(())
}

/// Runs all of them; a wrong one ends the run and names its seed.
pub fn all(count: u64, hundreds: u64) -> Result<()> {
    println!(
        "| family | seeds | hosts | right after the last fault: median, p90, longest | idle B/s a host, median | wall time |"
    );
    println!("|---|---|---|---|---|---|");
    family("faults", &Scenario::faults(), count);
    family("a hundred hosts", &Scenario::hundred(), hundreds);
    Ok(())
}

fn family(name: &str, scenario: &Scenario, count: u64) {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let outcome = run(scenario, seed);
                    let mut done = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    if outcome.convergence > REMARKABLE {
                        eprintln!("{name}: seed {seed}, {} hosts, took {:?}", outcome.hosts, outcome.convergence);
                    }
                    done.push(outcome);
                    if done.len() % 10 == 0 {
                        eprintln!("{name}: {} of {count} seeds right", done.len());
                    }
                }
            });
        }
    });
    let outcomes: Vec<Outcome> = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    if outcomes.is_empty() {
        return;
    }
    let mut times: Vec<Duration> = outcomes.iter().map(|outcome| outcome.convergence).collect();
    times.sort_unstable();
    let mut idle: Vec<f64> = outcomes.iter().map(|outcome| outcome.idle_bytes_per_host).collect();
    idle.sort_by(f64::total_cmp);
    let at = |share: f64| ((outcomes.len() - 1) as f64 * share) as usize;
    let hosts = |pick: fn(std::slice::Iter<'_, Outcome>) -> Option<usize>| pick(outcomes.iter()).unwrap_or(0);
    println!(
        "| {name} | 0 to {} | {} to {} | {:.1?}, {:.1?}, {:.1?} | {:.0} | {:.0?} |",
        count - 1,
        hosts(|outcomes| outcomes.map(|outcome| outcome.hosts).min()),
        hosts(|outcomes| outcomes.map(|outcome| outcome.hosts).max()),
        times[at(0.5)],
        times[at(0.9)],
        times[at(1.0)],
        idle[at(0.5)],
        started.elapsed(),
    );
}
