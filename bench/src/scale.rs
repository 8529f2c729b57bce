//! How the cost of a mesh grows with its hosts, in the simulator.

use std::process::Command;
use std::time::{Duration, Instant};

use weft_bench::cpu_time;
use weft_integration::sim::scale::Mesh;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::resident;

/// Measures each size in a process of its own, so that its memory is its own.
pub fn run(sizes: &[usize]) -> Result<()> {
    println!(
        "| hosts | all started at once, right after | right after the last of six faults | one more host: right after, datagrams, kB | idle: B/s a host, datagrams/s a host, CPU ms/s a host | memory a host, kB | wall time |"
    );
    println!("|---|---|---|---|---|---|---|");
    let own = std::env::current_exe().doing(|| "cannot find this program's own file".into())?;
    for hosts in sizes {
        let status = Command::new(&own)
            .args(["scale", "--alone", "--hosts", &hosts.to_string()])
            .status()
            .doing(|| "cannot start a process for one size".into())?;
        if !status.success() {
            return Err(Failure::new(format!("the mesh of {hosts} hosts went wrong; what it said is above")));
        }
    }
    Ok(())
}

/// Measures one size.
pub fn one(hosts: usize) -> Result<()> {
    let started = Instant::now();
    let own = || resident(std::process::id()).unwrap_or(0.0);
    let before = own();
    let (mut mesh, raised) = Mesh::raise(hosts, hosts as u64);
    eprintln!("{hosts} hosts: raised ({:.0?})", started.elapsed());
    let converged = mesh.disturb();
    // Costs settle, what is needed no longer is let go of.
    mesh.rest(Duration::from_secs(120));
    eprintln!("{hosts} hosts: at rest ({:.0?})", started.elapsed());
    let (before_idle, window) = (cpu_time(std::process::id())?, Duration::from_secs(60));
    let idle = mesh.rest(window);
    let cpu = cpu_time(std::process::id())? - before_idle;
    let memory = (own() - before) / hosts as f64;
    let (joined, join) = mesh.join();
    let each = |total: u64| total as f64 / window.as_secs_f64() / hosts as f64;
    let meanwhile = |total: u64, idle: u64| (total as f64 - each(idle) * hosts as f64 * joined.as_secs_f64()).max(0.0);
    println!(
        "| {hosts} | {raised:.1?} | {converged:.1?} | {joined:.1?}, {:.0}, {:.0} | {:.0}, {:.1}, {:.2} | {:.0} | {:.0?} |",
        meanwhile(join.datagrams, idle.datagrams),
        meanwhile(join.bytes, idle.bytes) / 1e3,
        each(idle.bytes),
        each(idle.datagrams),
        cpu.as_secs_f64() * 1e3 / window.as_secs_f64() / hosts as f64,
        memory / 1e3,
        started.elapsed(),
    );
    Ok(())
}
