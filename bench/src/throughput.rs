//! Containers of two hosts on one machine: veth underlay, bridge and TAP (or VXLAN device) on each side.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use rtnetlink::LinkVxlan;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{LabHost, Ns, await_true, ping, tcp_throughput, wire};
use weft_router::options::TapMode;
use weft_router::state;

const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 32, 0, 1));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 32, 0, 2));
const PINGS: usize = 500;

/// Two containers that reach each other some way.
struct Candidate {
    name: &'static str,
    containers: [Ns; 2],
    /// What has to stay for it to work.
    hosts: Vec<LabHost>,
    _namespaces: Vec<Ns>,
    samples: Vec<Sample>,
}

struct Sample {
    gigabits: f64,
    cpu_per_gigabyte: f64,
    rtt_p50: Duration,
    rtt_p99: Duration,
}

/// Measures all candidates, one after the other, so many times.
pub fn run(rounds: usize, seconds: u64) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new("the benchmark makes network namespaces: run it as root"));
    }
    let dir = std::env::temp_dir().join(format!("weft-bench-{}", std::process::id()));
    state::open_dir(&dir)?;
    let mut candidates =
        vec![vxlan()?, routers("weft fast", TapMode::Fast, &dir)?, routers("weft basic", TapMode::Basic, &dir)?];
    for round in 1..=rounds {
        for candidate in &mut candidates {
            eprintln!("round {round} of {rounds}: {}", candidate.name);
            let sample = measure(candidate, Duration::from_secs(seconds))?;
            candidate.samples.push(sample);
        }
    }
    report(&candidates, rounds, seconds);
    drop(candidates);
    std::fs::remove_dir_all(&dir).doing(|| format!("cannot remove {}", dir.display()))
}

fn measure(candidate: &Candidate, duration: Duration) -> Result<Sample> {
    let [from, to] = &candidate.containers;
    await_true(&format!("{}: the containers do not reach each other", candidate.name), || {
        Ok(ping(from, SECOND, 56, Duration::from_millis(500))?.is_some())
    })?;
    let before = busy_seconds()?;
    let rate = tcp_throughput(from, to, SECOND, duration)?;
    let cpu = busy_seconds()? - before;
    let mut rtts = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        rtts.extend(ping(from, SECOND, 56, Duration::from_millis(500))?);
        std::thread::sleep(Duration::from_millis(1));
    }
    rtts.sort_unstable();
    if rtts.len() < PINGS * 9 / 10 {
        return Err(Failure::new(format!("{}: {} of {PINGS} pings were lost", candidate.name, PINGS - rtts.len())));
    }
    let gigabytes = rate * duration.as_secs_f64() / 8e9;
    Ok(Sample {
        gigabits: rate / 1e9,
        cpu_per_gigabyte: cpu / gigabytes,
        rtt_p50: rtts[rtts.len() / 2],
        rtt_p99: rtts[rtts.len() * 99 / 100],
    })
}

/// CPU time that the whole machine has spent on anything, in seconds.
fn busy_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat").doing(|| "cannot read /proc/stat".into())?;
    let fields: Vec<f64> = stat.lines().next().unwrap_or("").split_whitespace().skip(1).flat_map(str::parse).collect();
    // user, nice, system, idle, iowait, irq, softirq: all but idle and iowait, in hundredths.
    let busy = fields.iter().take(7).enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, ticks)| ticks);
    Ok(busy.sum::<f64>() / 100.0)
}

fn report(candidates: &[Candidate], rounds: usize, seconds: u64) {
    let median = |candidate: &Candidate, value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = candidate.samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    println!("{rounds} rounds of {seconds} s, {cores} cores shared by both hosts and both ends; median (min - max)\n");
    println!("| | TCP 1 stream Gbit/s | of VXLAN | CPU s/GB, whole machine | RTT p50 µs | RTT p99 µs |");
    println!("|---|---|---|---|---|---|");
    let (vxlan, ..) = median(&candidates[0], |sample| sample.gigabits);
    for candidate in candidates {
        let column = |value: fn(&Sample) -> f64, digits: usize| {
            let (middle, least, most) = median(candidate, value);
            format!("{middle:.digits$} ({least:.digits$} - {most:.digits$})")
        };
        println!(
            "| {} | {} | {:.2} | {} | {} | {} |",
            candidate.name,
            column(|sample| sample.gigabits, 2),
            median(candidate, |sample| sample.gigabits).0 / vxlan,
            column(|sample| sample.cpu_per_gigabyte, 2),
            column(|sample| sample.rtt_p50.as_secs_f64() * 1e6, 0),
            column(|sample| sample.rtt_p99.as_secs_f64() * 1e6, 0),
        );
    }
    println!();
    for host in candidates.iter().flat_map(|candidate| &candidate.hosts) {
        let status = host.pid().map(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
        let rss = status.unwrap_or_default().lines().find_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned));
        println!("{} {}: RSS {}", host.name, host.pid().unwrap_or(0), rss.unwrap_or_default().trim());
    }
}

fn underlay() -> [(IpAddr, u8); 2] {
    [(IpAddr::from([10, 99, 0, 1]), 24), (IpAddr::from([10, 99, 0, 2]), 24)]
}

/// Two routers and a container on each.
fn routers(name: &'static str, tap: TapMode, dir: &std::path::Path) -> Result<Candidate> {
    let dir = dir.join(name.replace(' ', "-"));
    state::open_dir(&dir)?;
    let mut hosts = vec![LabHost::new("a", &dir)?, LabHost::new("b", &dir)?];
    let [near, far] = underlay();
    wire(&hosts[0].ns, &hosts[1].ns, ("eth0", "eth0"), (&[near], &[far]))?;
    let secret = dir.join("secret");
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    std::fs::write(&secret, state::new_secret()?).doing(|| "cannot write the secret".into())?;
    nix::sys::stat::umask(mask);
    let weft = weft()?;
    for (host, peer) in hosts.iter_mut().zip([far, near]) {
        let arguments = ["--secret-file".into(), secret.to_string_lossy().into_owned(), peer.0.to_string()];
        host.start(&weft, tap, &arguments)?;
    }
    let containers = [Ns::new()?, Ns::new()?];
    hosts[0].attach(&containers[0], "bench", &[&format!("{FIRST}/24")], "first")?;
    hosts[1].attach(&containers[1], "bench", &[&format!("{SECOND}/24")], "second")?;
    Ok(Candidate { name, containers, hosts, _namespaces: Vec::new(), samples: Vec::new() })
}

fn weft() -> Result<PathBuf> {
    let own = std::env::current_exe().doing(|| "cannot find this program's own file".into())?;
    let weft = own.with_file_name("weft");
    if weft.exists() { Ok(weft) } else { Err(Failure::new("weft is not built: run cargo build --release first")) }
}

/// A kernel VXLAN device between two bridges, in clear, as its documentation has it: MTU 1450, checksums offloaded.
fn vxlan() -> Result<Candidate> {
    let namespaces = vec![Ns::new()?, Ns::new()?];
    let [near, far] = underlay();
    wire(&namespaces[0], &namespaces[1], ("eth0", "eth0"), (&[near], &[far]))?;
    let containers = [Ns::new()?, Ns::new()?];
    let ends = [(near.0, far.0, FIRST), (far.0, near.0, SECOND)];
    for ((host, container), (local, remote, inner)) in namespaces.iter().zip(&containers).zip(ends) {
        wire(host, container, ("veth0", "eth0"), (&[], &[(inner, 24)]))?;
        container.net(async |net| {
            let index = net.index("eth0").await?;
            net.set_mtu(index, 1450).await
        })?;
        host.net(async move |net| {
            let bridge = net.bridge("br0", 1450).await?;
            let lower = net.index("eth0").await?;
            let vxlan = LinkVxlan::new("vxlan0", 42).link(lower).port(4789);
            let vxlan = match (local, remote) {
                (IpAddr::V4(local), IpAddr::V4(remote)) => vxlan.local(local).remote(remote),
                _ => return Err(Failure::new("the underlay is IPv4")),
            };
            net.handle().link().add(vxlan.build()).execute().await.doing(|| "cannot make a VXLAN device".into())?;
            for name in ["vxlan0", "veth0"] {
                let index = net.index(name).await?;
                net.set_mtu(index, 1450).await?;
                net.set_master(index, bridge).await?;
                net.set_up(index, name).await?;
            }
            Ok(())
        })?;
    }
    Ok(Candidate {
        name: "kernel VXLAN, no encryption",
        containers,
        hosts: Vec::new(),
        _namespaces: namespaces,
        samples: Vec::new(),
    })
}
