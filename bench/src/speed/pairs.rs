//! Two hosts and a container on each, all in network namespaces of their own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_bench::{weft_binary, write_secret};
use weft_router::attach::prefix::Prefix;
use weft_router::cli::options::TapMode;
use weft_router::daemon::state;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{LabHost, Ns, resident, wire};

/// What is between the hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Underlay {
    /// A veth pair as it is: runs of datagrams cross it whole.
    Veth,
    /// A veth pair without segmentation offloads and with GRO, as plain network cards are: packets cross it one by one.
    Nic,
}

impl Underlay {
    /// Makes an interface part of such an underlay.
    pub fn set(self, ns: &Ns, interface: &str) -> Result<()> {
        let (runs, gro) = if self == Underlay::Veth { ("on", "off") } else { ("off", "on") };
        let mut ethtool = Command::new("ethtool");
        ethtool.args(["-K", interface, "tso", runs, "gso", runs, "tx-udp-segmentation", runs, "gro", gro]);
        run(ns, ethtool).map(drop)
    }
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Underlay::Veth => "plain veth",
            Underlay::Nic => "like a network card",
        })
    }
}

/// Two containers that reach each other some way.
pub struct Pair {
    pub name: String,
    pub version: String,
    pub containers: [Ns; 2],
    /// Where the second container is.
    pub target: IpAddr,
    /// Namespaces, and the names of their interfaces between hosts.
    underlay: Vec<(Ns, Vec<&'static str>)>,
    pub routers: Vec<LabHost>,
    daemons: Vec<Daemon>,
}

/// A process that ends with its pair.
pub struct Daemon(pub Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // A script is to end its daemons: it has to hear of it.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 32, 0, 2));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 32, 0, 3));
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));

impl Pair {
    /// Makes the underlay one kind or the other.
    pub fn set(&self, underlay: Underlay) -> Result<()> {
        let mut interfaces = self.underlay.iter().flat_map(|(ns, names)| names.iter().map(move |name| (ns, name)));
        interfaces.try_for_each(|(ns, name)| underlay.set(ns, name))
    }

    /// Memory of each router or daemon, in MB.
    pub fn rss(&self) -> Vec<f64> {
        let routers = self.routers.iter().filter_map(LabHost::pid);
        let started = |script: &Daemon| {
            let path = format!("/proc/{0}/task/{0}/children", script.0.id());
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let daemons: Vec<u32> = self
            .daemons
            .iter()
            .map(started)
            .flat_map(|all| all.split_whitespace().flat_map(str::parse).collect::<Vec<_>>())
            .collect();
        routers.chain(daemons).filter_map(resident).map(|bytes| bytes / 1e6).collect()
    }

    /// A pair around two hosts that a script set up.
    pub fn with_daemons(name: &str, version: String, (hosts, containers): ([Ns; 2], [Ns; 2]), target: IpAddr) -> Pair {
        Pair {
            name: name.to_owned(),
            version,
            containers,
            target,
            underlay: hosts.into_iter().map(|ns| (ns, vec!["eth0"])).collect(),
            routers: Vec::new(),
            daemons: Vec::new(),
        }
    }

    /// Adds a process that ends with the pair.
    pub fn add(&mut self, child: Child) {
        self.daemons.push(Daemon(child));
    }
}

/// Runs a command to its end in a namespace.
pub fn run(ns: &Ns, mut command: Command) -> Result<String> {
    let output = ns.run(|| command.output().doing(|| format!("cannot run {:?}", command.get_program())))??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::new(format!("{:?} failed: {}", command.get_program(), said.trim())))
}

/// Joins two namespaces by interfaces with these names and addresses.
pub type Join<'a> = &'a mut dyn FnMut(&Ns, &Ns, (&str, &str), (&[Prefix], &[Prefix])) -> Result<()>;

/// Two hosts on one wire.
pub fn hosts(join: Join<'_>) -> Result<[Ns; 2]> {
    let hosts = [Ns::new()?, Ns::new()?];
    join(&hosts[0], &hosts[1], ("eth0", "eth0"), (&[Prefix(NEAR, 24)], &[Prefix(FAR, 24)]))?;
    Ok(hosts)
}

/// The containers' bridges joined by the wire itself.
pub fn bridged(name: &str) -> Result<Pair> {
    in_bridges(name, 1500, |_, _| Vec::new(), "eth0", &mut wire)
}

/// A kernel VXLAN device between two bridges, in clear, as its documentation has it: MTU 1450, checksums offloaded.
pub fn vxlan(name: &str) -> Result<Pair> {
    vxlan_over(name, &mut wire)
}

/// The same over another wire.
pub fn vxlan_over(name: &str, join: Join<'_>) -> Result<Pair> {
    let device = |local: Ipv4Addr, remote: Ipv4Addr| {
        let port = "4789".to_owned();
        let fixed = ["link", "add", "vxlan0", "mtu", "1450", "type", "vxlan", "id", "42", "dev", "eth0", "dstport"];
        let mut arguments: Vec<String> = fixed.map(str::to_owned).into();
        arguments.extend([port, "local".into(), local.to_string(), "remote".into(), remote.to_string()]);
        arguments
    };
    in_bridges(name, 1450, device, "vxlan0", join)
}

fn in_bridges(
    name: &str,
    mtu: u32,
    device: impl Fn(Ipv4Addr, Ipv4Addr) -> Vec<String>,
    uplink: &'static str,
    join: Join<'_>,
) -> Result<Pair> {
    let (hosts, containers) = (hosts(join)?, [Ns::new()?, Ns::new()?]);
    let ends = [(NEAR, FAR, FIRST), (FAR, NEAR, SECOND)];
    for ((host, container), (local, remote, inner)) in hosts.iter().zip(&containers).zip(ends) {
        wire(host, container, ("veth0", "eth0"), (&[], &[Prefix(inner, 24)]))?;
        container.net(async move |net| {
            let index = net.index("eth0").await?;
            net.set_mtu(index, mtu).await
        })?;
        let (IpAddr::V4(local), IpAddr::V4(remote)) = (local, remote) else {
            return Err(Failure::new("the underlay is IPv4"));
        };
        let arguments = device(local, remote);
        if !arguments.is_empty() {
            let mut ip = Command::new("ip");
            ip.args(arguments);
            run(host, ip)?;
        }
        host.net(async move |net| {
            let bridge = net.bridge("br0", mtu).await?;
            for name in [uplink, "veth0"] {
                let index = net.index(name).await?;
                net.set_mtu(index, mtu).await?;
                net.set_master(index, bridge).await?;
                net.set_up(index, name).await?;
            }
            Ok(())
        })?;
    }
    let kernel = nix::sys::utsname::uname().doing(|| "cannot ask for the kernel's version".into())?;
    let version = kernel.release().to_string_lossy().into_owned();
    Ok(Pair::with_daemons(name, version, (hosts, containers), SECOND))
}

/// So many routers in a row, each linked to its neighbours only, and a container on the first and the last.
pub fn weft(name: &str, count: usize, tap: TapMode, arguments: &[&str], dir: &Path) -> Result<Pair> {
    weft_of(&weft_binary()?, name, count, tap, arguments, dir)
}

/// The same of another build.
pub fn weft_of(weft: &Path, name: &str, count: usize, tap: TapMode, arguments: &[&str], dir: &Path) -> Result<Pair> {
    weft_on(weft, name, count, tap, arguments, dir, &mut wire)
}

/// Two routers with default arguments over another wire.
pub fn weft_over(name: &str, dir: &Path, join: Join<'_>) -> Result<Pair> {
    weft_on(&weft_binary()?, name, 2, TapMode::Fast, &[], dir, join)
}

fn weft_on(
    weft: &Path,
    name: &str,
    count: usize,
    tap: TapMode,
    arguments: &[&str],
    dir: &Path,
    join: Join<'_>,
) -> Result<Pair> {
    let secret = secret_of(dir, name);
    let dir = secret.with_file_name("");
    state::open_dir(&dir)?;
    write_secret(&secret)?;

    let mut hosts: Vec<LabHost> =
        (0..count).map(|number| LabHost::new(&format!("h{number}"), &dir)).collect::<Result<_>>()?;
    for (number, pair) in hosts.windows(2).enumerate() {
        let ends = [1, 2].map(|end| IpAddr::from([10, 99, number as u8, end]));
        join(&pair[0].ns, &pair[1].ns, ("eth1", "eth0"), (&[Prefix(ends[0], 24)], &[Prefix(ends[1], 24)]))?;
    }
    for (number, host) in hosts.iter_mut().enumerate() {
        let mut all = vec!["--secret-file".to_owned(), secret.to_string_lossy().into_owned()];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        if number > 0 {
            all.push(format!("10.99.{}.1", number - 1));
        }
        host.start(weft, tap, &all)?;
    }
    let containers = [Ns::new()?, Ns::new()?];
    hosts[0].attach(&containers[0], "bench", &[&format!("{FIRST}/24")], "first")?;
    hosts[count - 1].attach(&containers[1], "bench", &[&format!("{SECOND}/24")], "second")?;

    let mut underlay = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let before = (number > 0).then_some("eth0");
        let after = (number + 1 < count).then_some("eth1");
        underlay.push((host.ns.try_clone()?, before.into_iter().chain(after).collect()));
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let (name, daemons) = (name.to_owned(), Vec::new());
    Ok(Pair { name, version, containers, target: SECOND, underlay, routers: hosts, daemons })
}

/// Where the network secret of a pair is.
pub fn secret_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(name.replace([' ', ','], "-")).join("secret")
}
