//! `weft demo`: three hosts and their containers on this machine, in namespaces of its own.
//!
//! A, B and C are hosts; A-B and B-C are joined by a wire, A and C are not. All of it lives in one process
//! tree with its own process, mount and network (and, without root, user) namespaces: when the first process
//! ends, however it ends, the kernel takes everything away.

use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::attach::prefix::Prefix;
use crate::cli::options::TapMode;
use crate::daemon::state;
use crate::error::{Doing, Failure, Result};
use crate::lab::{LabHost, Ns, await_true, ping, tcp_throughput, wire};

const NONE: Option<&str> = None;
/// Where the demo keeps its files: a file system in memory that only it sees.
const DIR: &str = "/mnt";

/// How to run the demo.
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {
    /// Verify that everything works, and exit with 0 or 1
    #[arg(long)]
    pub check: bool,
    /// How frames get in and out of the kernel; default: the fastest this user may have
    #[arg(long)]
    pub tap: Option<TapMode>,
}

/// Sets the stage up and waits for its end.
pub fn run(args: &DemoArgs) -> Result<()> {
    let what = "cannot make the demo's namespaces";
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(|error| {
        Failure::new(format!(
            "{what}: {error}; run it as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
        ))
    })?;
    if !uid.is_root() {
        let write = |file: &str, text: String| std::fs::write(format!("/proc/self/{file}"), text);
        write("setgroups", "deny".into())
            .and_then(|()| write("uid_map", format!("0 {uid} 1")))
            .and_then(|()| write("gid_map", format!("0 {gid} 1")))
            .doing(|| what.into())?;
    }
    let weft = own_binary()?;
    let mut command = Command::new(&weft);
    command.arg("demo-stage").args(args.check.then_some("--check"));
    if let Some(tap) = args.tap {
        command.args(["--tap", tap.name()]);
    }
    let status = command.status().doing(|| format!("cannot start {}", weft.display()))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(_), _) => Err(Failure::new("the demo failed; see above")),
        (None, signal) => Err(Failure::new(format!("the demo was ended by signal {}", signal.unwrap_or(0)))),
    }
}

fn own_binary() -> Result<PathBuf> {
    std::env::current_exe().doing(|| "cannot find this program's own file".into())
}

/// What happens on the stage: the first process of the new namespaces.
pub fn stage(args: &DemoArgs) -> Result<()> {
    let what = || "cannot set the demo's stage".to_owned();
    if std::process::id() != 1 {
        return Err(Failure::Usage("demo-stage is a part of: weft demo".into()));
    }
    // When the demo's first process is gone, so is this one, and with it all others.
    set_pdeathsig(Signal::SIGKILL).doing(what)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).doing(what)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).doing(what)?;
    mount(Some("weft"), DIR, Some("tmpfs"), MsFlags::empty(), Some("mode=700")).doing(what)?;
    let set = Set::build(Path::new(DIR), args.tap.unwrap_or_else(choose_tap))?;
    set.show()?;
    if args.check { set.check() } else { set.play() }
}

/// Hosts, containers, wires.
struct Set {
    hosts: Vec<LabHost>,
    containers: Vec<Container>,
}

struct Container {
    name: String,
    ns: Ns,
    v4: IpAddr,
    v6: IpAddr,
}

impl Set {
    fn build(dir: &Path, tap: TapMode) -> Result<Set> {
        println!("starting three hosts ...");
        let mut hosts =
            ["a", "b", "c"].into_iter().map(|name| LabHost::new(name, dir)).collect::<Result<Vec<LabHost>>>()?;
        let address = |net: u8, host: u8| Prefix(IpAddr::from([10, 99, net, host]), 24);
        wire(&hosts[0].ns, &hosts[1].ns, ("eth0", "eth0"), (&[address(1, 1)], &[address(1, 2)]))?;
        wire(&hosts[1].ns, &hosts[2].ns, ("eth1", "eth0"), (&[address(2, 2)], &[address(2, 3)]))?;
        let secret = dir.join("secret");
        std::fs::write(&secret, state::new_secret()?).doing(|| "cannot write the demo's secret".into())?;
        let weft = own_binary()?;
        for (host, peer) in hosts.iter_mut().zip(["10.99.1.2", "10.99.2.3", "10.99.2.2"]) {
            let arguments = ["--secret-file", &secret.to_string_lossy(), peer].map(String::from);
            host.start(&weft, tap, &arguments)?;
        }
        println!("attaching two containers to each ...");
        let mut containers = Vec::new();
        for (number, host) in (1u8..).zip(&hosts) {
            for member in 1..=2u8 {
                let last = number * 10 + member;
                let (v4, v6) = (IpAddr::from([10, 32, 0, last]), format!("fd77::{last}"));
                let container = Container {
                    name: format!("{}{member}", host.name),
                    ns: Ns::new()?,
                    v4,
                    v6: v6.parse().doing(|| "no address".into())?,
                };
                host.attach(&container.ns, "weft", &[&format!("{v4}/24"), &format!("{v6}/64")], &container.name)?;
                containers.push(container);
            }
        }
        let set = Set { hosts, containers };
        await_true("a and c did not find each other through b", || {
            let (there, back) = (set.hosts[0].peer("c")?, set.hosts[2].peer("a")?);
            Ok(there["cipher"].is_string() && back["cipher"].is_string())
        })?;
        Ok(set)
    }

    fn show(&self) -> Result<()> {
        let path = self.hosts[0].peer("c")?;
        println!();
        println!("   a1 a2            b1 b2            c1 c2      containers: 10.32.0.x, fd77::x");
        println!("     |                |                |");
        println!("  +-----+  wire    +-----+  wire    +-----+");
        println!("  |  a  |----------|  b  |----------|  c  |     hosts: 10.99.1.x, 10.99.2.x");
        println!("  +-----+          +-----+          +-----+     a and c cannot reach each other");
        println!();
        println!(
            "a to c: {} by {}, {} end to end: b passes on what it cannot read",
            text(&path["path"]),
            text(&path["via"]),
            text(&path["cipher"])
        );
        let (from, to) = (&self.containers[0], &self.containers[4]);
        let rate = tcp_throughput(&from.ns, &to.ns, to.v4, 1, Duration::from_secs(2))?.rate();
        println!("TCP from {} to {}: {:.2} Gbit/s", from.name, to.name, rate / 1e9);
        Ok(())
    }

    /// Pings until the output is closed.
    fn play(&self) -> Result<()> {
        println!("pinging; Ctrl-C ends the demo and leaves nothing behind");
        let (from, to) = (&self.containers[0], &self.containers[4]);
        loop {
            let rtt = ping(&from.ns, to.v4, 56, Duration::from_secs(1))?;
            let path = self.hosts[0].peer("c")?;
            let how = format!("{} by {}, {}", text(&path["path"]), text(&path["via"]), text(&path["cipher"]));
            match rtt {
                Some(rtt) => println!("{} ({}) to {} ({}): {rtt:.0?}  [{how}]", from.name, from.v4, to.name, to.v4),
                None => println!("{} to {}: no answer  [{how}]", from.name, to.name),
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn check(&self) -> Result<()> {
        let path = self.hosts[0].peer("c")?;
        let expected = path["path"] == "relay" && path["via"] == "b" && path["cipher"].is_string();
        if !expected {
            return Err(Failure::new(format!("a reaches c in another way than by b: {path}")));
        }
        let mut pairs = 0;
        for from in &self.containers {
            for to in self.containers.iter().filter(|to| to.name != from.name) {
                for ip in [to.v4, to.v6] {
                    await_true(&format!("{} does not reach {} ({ip})", from.name, to.name), || {
                        Ok(ping(&from.ns, ip, 1000, Duration::from_secs(1))?.is_some())
                    })?;
                    pairs += 1;
                }
            }
        }
        let (from, to) = (&self.containers[0], &self.containers[4]);
        await_true("large pings do not get through", || {
            Ok(ping(&from.ns, to.v4, 9000, Duration::from_secs(1))?.is_some())
        })?;
        println!(
            "check: {pairs} pings between all containers, IPv4 and IPv6, and 9000 bytes through the relay: all right"
        );
        Ok(())
    }
}

/// The fast way in and out, unless this user may not have it.
fn choose_tap() -> TapMode {
    let tun = std::fs::File::options().read(true).write(true).open(weft_sys::TUN_DEVICE);
    if tun.is_ok() {
        return TapMode::Fast;
    }
    println!("may not open {}: using packet sockets instead", weft_sys::TUN_DEVICE);
    TapMode::Packet
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
