//! All seeds of the simulation's families, with what they took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use weft_integration::sim::internet::Reach;
use weft_integration::sim::{Outcome, Scenario, addresses, faulty, internet, run};
use weft_router::error::Result;

/// Seeds that took longer are named, to be looked at.
const REMARKABLE: Duration = Duration::from_secs(4);

/// What is simulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Family {
    /// Meshes of 5 to 64 hosts with every kind of fault.
    Faults,
    /// Meshes of 100 hosts.
    Hundred,
    /// Meshes of 3 to 20 hosts, some of whose lines are paid for by the byte.
    Metered,
    /// Meshes of 4 to 12 hosts, some of which do not pass on what they should.
    Relays,
    /// Hosts behind NATs, to which things happen.
    Nats,
    /// Hosts that hand out addresses.
    Addresses,
}

/// Runs one seed and tells what happened in it.
pub fn one(seed: u64, family: Family) -> Result<()> {
    let scenario = match family {
        Family::Faults => Scenario::faults(),
        Family::Hundred => Scenario::hundred(),
        Family::Metered => Scenario::metered(),
        Family::Addresses => {
            println!("{:#?}", addresses::run(seed));
            return Ok(());
        }
        Family::Relays => {
            println!("{:#?}", faulty::run(seed));
            return Ok(());
        }
        Family::Nats => {
            println!("{:#?}", internet::run(seed));
            return Ok(());
        }
    };
    let outcome = run(&scenario, seed);
    println!("{}", outcome.story.join("\n"));
    println!("seed {seed}: {} hosts, right {:?} after the last fault", outcome.hosts, outcome.convergence);
    Ok(())
}

/// Runs all of them; a wrong one ends the run and names its seed.
pub fn all(&[faults, hundreds, metered]: &[u64; 3], [nats, relays, with_addresses]: [u64; 3]) -> Result<()> {
    println!(
        "| family | seeds | hosts | right after the last fault: median, p90, longest | a name known everywhere | a name gone | idle B/s a host, median | wall time |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    family("faults", &Scenario::faults(), faults);
    family("a hundred hosts", &Scenario::hundred(), hundreds);
    family("metered lines", &Scenario::metered(), metered);
    println!(
        "\n| family | seeds | hosts | pairs: direct, found, luck, relayed | frames come again: median, p90, longest | direct: the same | found: the same | wall time |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    nat_family(nats);
    println!(
        "\n| family | seeds | hosts | pairs parted, each way by itself | together again: median, p90, longest | wall time |"
    );
    println!("|---|---|---|---|---|---|");
    relay_family(relays);
    println!(
        "\n| family | seeds | hosts | right after the last fault: median, p90, longest | granted | refused | wall time |"
    );
    println!("|---|---|---|---|---|---|---|");
    address_family(with_addresses);
    Ok(())
}

fn nat_family(count: u64) {
    let started = Instant::now();
    let outcomes = on_all_cores("NATs", count, internet::run);
    if outcomes.is_empty() {
        return;
    }
    let missed = outcomes.iter().filter(|outcome| outcome.found.is_none()).count();
    eprintln!("NATs: in {missed} seeds a port was not found within {:?}", internet::FOUND_WITHIN);
    let pairs = |reach: Reach| outcomes.iter().filter_map(|outcome| outcome.pairs.get(&reach)).sum::<usize>();
    println!(
        "| NATs | 0 to {} | {} | {}, {}, {}, {} | {} | {} | {} | {:.0?} |",
        count - 1,
        sizes(outcomes.iter().map(|outcome| outcome.hosts)),
        pairs(Reach::Direct),
        pairs(Reach::Found),
        pairs(Reach::Luck),
        pairs(Reach::Relayed),
        spread(outcomes.iter().map(|outcome| outcome.ways)),
        spread(outcomes.iter().map(|outcome| outcome.direct)),
        spread(outcomes.iter().map(|outcome| outcome.found.unwrap_or(internet::FOUND_WITHIN))),
        started.elapsed(),
    );
}

fn relay_family(count: u64) {
    let started = Instant::now();
    let outcomes = on_all_cores("faulty relays", count, faulty::run);
    if outcomes.is_empty() {
        return;
    }
    println!(
        "| faulty relays | 0 to {} | {} | {} | {} | {:.0?} |",
        count - 1,
        sizes(outcomes.iter().map(|outcome| outcome.hosts)),
        outcomes.iter().map(|outcome| outcome.parted).sum::<usize>(),
        spread(outcomes.iter().filter(|outcome| outcome.parted > 0).map(|outcome| outcome.apart)),
        started.elapsed(),
    );
}

fn address_family(count: u64) {
    let started = Instant::now();
    let outcomes = on_all_cores("addresses", count, addresses::run);
    if outcomes.is_empty() {
        return;
    }
    let mut fenced: Vec<Duration> = outcomes.iter().filter_map(|outcome| outcome.fenced).collect();
    fenced.sort_unstable();
    eprintln!(
        "addresses: in {} seeds an address was in two rings when they met; the last one was given up after {:?}",
        fenced.len(),
        fenced.last().copied().unwrap_or_default()
    );
    println!(
        "| addresses | 0 to {} | {} | {} | {} | {} | {:.0?} |",
        count - 1,
        sizes(outcomes.iter().map(|outcome| outcome.hosts)),
        spread(outcomes.iter().map(|outcome| outcome.convergence)),
        outcomes.iter().map(|outcome| outcome.granted).sum::<usize>(),
        outcomes.iter().map(|outcome| outcome.refused).sum::<usize>(),
        started.elapsed(),
    );
}

/// The fewest hosts and the most.
fn sizes(hosts: impl Iterator<Item = usize> + Clone) -> String {
    format!("{} to {}", hosts.clone().min().unwrap_or(0), hosts.max().unwrap_or(0))
}

/// Median, nine tenths and longest of at least one time.
fn spread(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("{:.1?}, {:.1?}, {:.1?}", at(0.5), at(0.9), at(1.0))
}

/// Runs seeds 0 to `count` on all cores.
fn on_all_cores<T: Send>(name: &str, count: u64, run: impl Fn(u64) -> T + Sync) -> Vec<T> {
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
                    let outcome = run(seed);
                    let mut done = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push(outcome);
                    if done.len() % (count as usize / 20).max(1) == 0 {
                        eprintln!("{name}: {} of {count} seeds right", done.len());
                    }
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn family(name: &str, scenario: &Scenario, count: u64) {
    let started = Instant::now();
    let outcomes: Vec<Outcome> = on_all_cores(name, count, |seed| {
        let outcome = run(scenario, seed);
        if outcome.convergence > REMARKABLE {
            eprintln!("{name}: seed {seed}, {} hosts, took {:?}", outcome.hosts, outcome.convergence);
        }
        outcome
    });
    if outcomes.is_empty() {
        return;
    }
    let mut idle: Vec<f64> = outcomes.iter().map(|outcome| outcome.idle_bytes_per_host).collect();
    idle.sort_by(f64::total_cmp);
    println!(
        "| {name} | 0 to {} | {} | {} | {} | {} | {:.0} | {:.0?} |",
        count - 1,
        sizes(outcomes.iter().map(|outcome| outcome.hosts)),
        spread(outcomes.iter().map(|outcome| outcome.convergence)),
        spread(outcomes.iter().map(|outcome| outcome.registration)),
        spread(outcomes.iter().map(|outcome| outcome.departure)),
        idle[(idle.len() - 1) / 2],
        started.elapsed(),
    );
}
