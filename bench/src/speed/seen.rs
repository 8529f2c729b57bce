//! Cost of observing a large mesh: metrics and page of a router that knows many hosts and endpoints.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use weft_bench::{cpu_time, in_temporary_dir};
use weft_mesh::node::{Command, Input};
use weft_router::cli::options::TapMode;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{LabHost, resident};

use super::guest::{Guest, await_links, beside, id, record, run_for};
use super::pairs;
use crate::http;

/// Size of the mesh.
#[derive(clap::Args)]
pub struct Options {
    /// Hosts
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// How many of them are linked with the router; the others have been, and are gone
    #[arg(long, default_value_t = 300)]
    linked: usize,
    /// Endpoints
    #[arg(long, default_value_t = 10_000)]
    endpoints: u32,
    /// Seconds for which all stays as it is, to look at the page by hand
    #[arg(long, default_value_t = 0)]
    stay: u64,
}

/// Hosts that join at once.
const BATCH: usize = 50;
const TIMES: usize = 9;
const WINDOW: Duration = Duration::from_secs(20);

/// Measures, and prints a table.
pub fn run(options: &Options) -> Result<()> {
    in_temporary_dir(|dir| measure(options, dir))
}

fn measure(options: &Options, dir: &Path) -> Result<()> {
    const NAME: &str = "seen";
    let pair = pairs::weft(NAME, 1, TapMode::Fast, &[], dir)?;
    let router = &pair.routers[0];
    let (ns, secret) = beside(router, &pairs::secret_of(dir, NAME))?;
    let each = options.endpoints / (options.hosts.max(2) - 1) as u32 + 1;
    let (mut linked, mut next) = (Vec::new(), 0u32);
    // The router is one.
    let hosts = options.hosts.max(options.linked + 1) - 1;
    for first in (0..hosts).step_by(BATCH) {
        let mut guests: Vec<Guest> = (first..hosts.min(first + BATCH))
            .map(|number| Guest::start(&ns, &secret, number))
            .collect::<Result<_>>()?;
        for guest in &mut guests {
            for number in next..next + each {
                guest.take(Input::Command(0, Command::attach(id(number), record(number))))?;
            }
            next += each;
        }
        let expected = linked.len() + guests.len();
        linked.append(&mut guests);
        await_links(router, &mut linked, expected)?;
        await_endpoints(router, &mut linked, next)?;
        eprintln!("{} hosts have come, with {next} endpoints", first + BATCH);
        if first + BATCH <= hosts.saturating_sub(options.linked) {
            linked.clear();
        }
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let living = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                run_for(&mut linked, Duration::from_millis(50))?;
            }
            Ok::<(), Failure>(())
        });
        let outcome = look(options, router);
        is_over.store(true, Ordering::Relaxed);
        living.join().map_err(|_| Failure::new("the hosts beside the router failed"))??;
        outcome
    })
}

fn look(options: &Options, router: &LabHost) -> Result<()> {
    // The router notices which hosts are gone, and has synchronised.
    std::thread::sleep(Duration::from_secs(60));
    println!(
        "| {} hosts, {} of them linked, {} endpoints | |\n|---|---|",
        options.hosts, options.linked, options.endpoints
    );
    for path in ["/metrics", "/"] {
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..TIMES {
            // The router caches a reading for a second.
            std::thread::sleep(Duration::from_millis(1100));
            let started = Instant::now();
            bytes = http::get(router, path)?.len();
            times.push(started.elapsed());
        }
        times.sort_unstable();
        let (median, most) = (times[TIMES / 2], times[TIMES - 1]);
        println!(
            "| {path}: median, longest of {TIMES}, size | {median:.0?}, {most:.0?}, {:.2} MB |",
            bytes as f64 / 1e6
        );
    }
    let pid = router.pid().ok_or_else(|| Failure::new("the router has ended"))?;
    let cpu = || -> Result<f64> {
        let before = cpu_time(pid)?;
        std::thread::sleep(WINDOW);
        Ok(cpu_time(pid)?.saturating_sub(before).as_secs_f64() / WINDOW.as_secs_f64() * 100.0)
    };
    let without = cpu()?;
    let started = Instant::now();
    let (mut page, bytes) = open_page(router)?;
    println!("| all rows for a page that opens | {:.0?}, {:.2} MB |", started.elapsed(), bytes as f64 / 1e6);
    let reader = std::thread::spawn(move || std::io::copy(&mut page, &mut std::io::sink()));
    println!("| CPU of a core without the page, and with it | {without:.1} %, {:.1} % |", cpu()?);
    println!("| RSS | {:.0} MB |", resident(pid).unwrap_or(0.0) / 1e6);
    if options.stay > 0 {
        eprintln!("the router is process {pid}; look at http://127.0.0.1:6784/ in its network namespace");
        std::thread::sleep(Duration::from_secs(options.stay));
    }
    drop(reader);
    Ok(())
}

/// Reads until the event that has all rows.
fn open_page(router: &LabHost) -> Result<(BufReader<TcpStream>, usize)> {
    let mut stream = BufReader::new(http::ask(router, "/live")?);
    let (mut bytes, mut is_wanted) = (0, false);
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line).doing(|| "cannot read what the page shows".into())? {
            0 => return Err(Failure::new("the page was told nothing")),
            read => bytes += read,
        }
        is_wanted |= line.starts_with("event: changed");
        if is_wanted && line.trim().is_empty() {
            return Ok((stream, bytes));
        }
    }
}

fn await_endpoints(router: &LabHost, guests: &mut [Guest], count: u32) -> Result<()> {
    let started = Instant::now();
    loop {
        run_for(guests, Duration::from_millis(100))?;
        let known = router.status()?["endpoints"].as_array().map_or(0, Vec::len);
        if known >= count as usize {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(60) {
            return Err(Failure::new(format!("of {count} endpoints only {known} are known")));
        }
    }
}
