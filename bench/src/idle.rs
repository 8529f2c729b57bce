//! What routers say and compute while nothing happens: real hosts on one LAN, with a container each.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weft_bench::{cpu_time, in_temporary_dir, weft_binary, write_secret};
use weft_router::attach::prefix::Prefix;
use weft_router::cli::options::TapMode;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{LabHost, Ns, await_true, resident, wire};

use crate::http;

/// Counts what a host sends and receives, IP headers included, and what of it goes to the other site.
const COUNTER: &str = "table ip idle {
    counter sent { }
    counter received { }
    counter crossing { }
    chain out { type filter hook output priority 0; oifname up counter name sent; ip daddr OTHER counter name crossing; }
    chain in { type filter hook input priority 0; iifname up counter name received; }
}";

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// How many hosts
    #[arg(long, value_delimiter = ',', default_values_t = [3, 10, 30])]
    hosts: Vec<usize>,
    /// Seconds from the last connection until traffic is counted
    #[arg(long, default_value_t = 90)]
    settle: u64,
    /// Seconds for which traffic is counted
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Launch the last host with --metered, and print what it sends and receives a day; with --sites, launch all with --metered-link for the line
    #[arg(long)]
    metered: bool,
    /// Half of the hosts are at another site; print what goes over the line between the sites a day
    #[arg(long)]
    sites: bool,
    /// Read each host's metrics every so many seconds, as Prometheus does
    #[arg(long, value_name = "SECONDS")]
    scrape: Option<u64>,
    /// Have each host's page open, too
    #[arg(long)]
    page: bool,
}

/// Measures each size.
pub fn run(options: &Options) -> Result<()> {
    println!("| hosts | all connected after launch | sent a host, IP bytes/s | packets/s | CPU of a core | RSS, MB |");
    println!("|---|---|---|---|---|---|");
    options.hosts.iter().try_for_each(|hosts| in_temporary_dir(|dir| one(*hosts, options, dir)))
}

fn one(count: usize, options: &Options, dir: &Path) -> Result<()> {
    let lan = Ns::new()?;
    lan.net(async |net| {
        let index = net.bridge("lan", 1500).await?;
        net.set_up(index, "lan").await
    })?;
    let place = |number| Place { number, is_far: options.sites && number >= count / 2 };
    let mut hosts: Vec<LabHost> = (0..count).map(|number| host(&lan, &place(number), dir)).collect::<Result<_>>()?;
    let secret = dir.join("secret");
    write_secret(&secret)?;
    let weft = weft_binary()?;
    let started = Instant::now();
    for (number, host) in hosts.iter_mut().enumerate() {
        let mut arguments = vec!["--secret-file".to_owned(), secret.to_string_lossy().into_owned()];
        if number > 0 {
            arguments.push(place(0).address().to_string());
        }
        if options.metered && options.sites {
            arguments.push(format!("--metered-link={}", place(number).other_site()));
        } else if options.metered && number == count - 1 {
            arguments.push("--metered".to_owned());
        }
        host.spawn(&weft, TapMode::Fast, &arguments)?;
    }
    hosts.iter_mut().try_for_each(LabHost::await_up)?;
    await_true("not all hosts are connected", || {
        hosts.iter().try_fold(true, |all, host| Ok(all && host.connected()? == count - 1))
    })?;
    let connected = started.elapsed();
    let containers: Vec<Ns> = hosts.iter().map(|_| container()).collect::<Result<_>>()?;
    for (number, (host, container)) in hosts.iter().zip(&containers).enumerate() {
        host.attach(container, "red", &[&format!("10.32.0.{}/24", number + 11)], &format!("c{number}"))?;
    }
    let pages: Vec<Page> = hosts.iter().filter(|_| options.page).map(Page::open).collect::<Result<_>>()?;
    eprintln!("{count} hosts are connected; they rest");
    std::thread::sleep(Duration::from_secs(options.settle));
    let before = hosts.iter().map(used).collect::<Result<Vec<_>>>()?;
    rest(&hosts, Duration::from_secs(options.seconds), options.scrape.map(Duration::from_secs))?;
    let after = hosts.iter().map(used).collect::<Result<Vec<_>>>()?;
    drop(pages);
    let rate = |pick: fn(&Used) -> f64| {
        let total: f64 = before.iter().zip(&after).map(|(before, after)| pick(after) - pick(before)).sum();
        total / options.seconds as f64 / count as f64
    };
    println!(
        "| {count} | {connected:.1?} | {:.0} | {:.2} | {:.2} % | {:.1} |",
        rate(|used| used.bytes),
        rate(|used| used.packets),
        rate(|used| used.cpu.as_secs_f64()) * 100.0,
        after.iter().map(|used| used.resident).sum::<f64>() / count as f64 / 1e6,
    );
    if options.sites {
        println!(
            "| over the line between two sites | | {:.0} kB a day | | | |",
            rate(|used| used.crossing) * count as f64 * 86.4
        );
    } else if let (true, Some(before), Some(after)) = (options.metered, before.last(), after.last()) {
        let carried = |used: &Used| used.bytes + used.received;
        let a_day = (carried(after) - carried(before)) / options.seconds as f64 * 86_400.0;
        println!("| of these the metered one, sent and received | | {:.0} kB a day | | | |", a_day / 1e3);
    }
    Ok(())
}

/// Lets time pass, and reads all metrics in between.
fn rest(hosts: &[LabHost], time: Duration, scrape: Option<Duration>) -> Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(scrape.map_or(left, |interval| interval.min(left)));
        if scrape.is_some() {
            hosts.iter().try_for_each(read_metrics)?;
        }
    }
    Ok(())
}

fn read_metrics(host: &LabHost) -> Result<()> {
    match http::get(host, "/metrics")?.contains("weft_peers") {
        true => Ok(()),
        false => Err(Failure::new(format!("cannot read the metrics of {}", host.name))),
    }
}

/// Stands for a browser with a host's page open: reads server-sent events until it is dropped.
struct Page {
    stream: TcpStream,
    reader: Option<JoinHandle<()>>,
}

impl Page {
    fn open(host: &LabHost) -> Result<Page> {
        let what = || format!("cannot open the page of {}", host.name);
        let stream = http::ask(host, "/live")?;
        let mut reading = stream.try_clone().doing(what)?;
        let mut status = [0; 12];
        reading.read_exact(&mut status).doing(what)?;
        if !status.ends_with(b"200") {
            return Err(Failure::new(what()));
        }
        let reader = std::thread::spawn(move || drop(std::io::copy(&mut reading, &mut std::io::sink())));
        Ok(Page { stream, reader: Some(reader) })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.reader.take().map(JoinHandle::join);
    }
}

/// A container without IPv6, as an engine makes them: with it, it would ask for routers, in a segment that has none.
fn container() -> Result<Ns> {
    let container = Ns::new()?;
    container
        .run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))?
        .doing(|| "cannot switch IPv6 off".into())?;
    Ok(container)
}

/// Where a host is on the LAN.
struct Place {
    number: usize,
    /// Whether it is at the second site, which has the upper half of the addresses.
    is_far: bool,
}

impl Place {
    fn address(&self) -> Ipv4Addr {
        let first = if self.is_far { 129 } else { 1 };
        Ipv4Addr::new(198, 51, 100, first + self.number as u8)
    }

    fn other_site(&self) -> Prefix {
        Prefix([198, 51, 100, if self.is_far { 0 } else { 128 }].into(), 25)
    }
}

/// A host on the LAN that is not started.
fn host(lan: &Ns, place: &Place, dir: &Path) -> Result<LabHost> {
    let host = LabHost::new(&format!("h{}", place.number), dir)?;
    let port = format!("port{}", place.number);
    wire(lan, &host.ns, (&port, "up"), (&[], &[Prefix(place.address().into(), 24)]))?;
    lan.net(async move |net| {
        let (port, bridge) = (net.index(&port).await?, net.index("lan").await?);
        net.set_master(port, bridge).await
    })?;
    nft(&host, &[&COUNTER.replace("OTHER", &place.other_site().to_string())])?;
    Ok(host)
}

/// Runs nft on a host; returns what it prints.
fn nft(host: &LabHost, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = host.ns.run(|| Command::new("nft").args(arguments).output())?;
    let output = output.doing(|| "cannot run nft: install nftables".into())?;
    let failure = || Failure::new(format!("nft fails: {}", String::from_utf8_lossy(&output.stderr)));
    if output.status.success() { Ok(output.stdout) } else { Err(failure()) }
}

/// What a router used so far.
struct Used {
    bytes: f64,
    received: f64,
    crossing: f64,
    packets: f64,
    cpu: Duration,
    resident: f64,
}

fn used(host: &LabHost) -> Result<Used> {
    let gone = || Failure::new(format!("{} is gone", host.name));
    let listed = nft(host, &["-j", "list", "counters"])?;
    let listed: serde_json::Value = serde_json::from_slice(&listed).doing(|| "cannot read nft's answer".into())?;
    let counters = || listed["nftables"].as_array().into_iter().flatten().map(|item| &item["counter"]);
    let named = |name: &str| counters().find(|counter| counter["name"] == name).ok_or_else(gone);
    let (sent, received, crossing) = (named("sent")?, named("received")?, named("crossing")?);
    let pid = host.pid().ok_or_else(gone)?;
    Ok(Used {
        bytes: sent["bytes"].as_f64().unwrap_or(0.0),
        received: received["bytes"].as_f64().unwrap_or(0.0),
        crossing: crossing["bytes"].as_f64().unwrap_or(0.0),
        packets: sent["packets"].as_f64().unwrap_or(0.0),
        cpu: cpu_time(pid)?,
        resident: resident(pid).ok_or_else(gone)?,
    })
}
