//! Other overlays in userspace, each set up by a script of its own as its documentation recommends: `bench/peers`.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{Ns, wire};

use super::pairs::{Pair, hosts};

/// An overlay that is not weft.
pub struct Peer {
    pub name: &'static str,
    script: &'static str,
    from: Source,
    /// Where the second container is.
    target: [u8; 4],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A package of the distribution.
    Debian(&'static str),
    /// One of its backports.
    Backports(&'static str),
    /// A crate with a binary, of this version.
    Crate(&'static str, &'static str),
}

const BRIDGED: [u8; 4] = [10, 32, 0, 2];
const ROUTED: [u8; 4] = [10, 32, 2, 2];

/// All of them.
pub const ALL: [Peer; 8] = [
    Peer { name: "wireguard-go", script: "wireguard-go", from: Source::Backports("wireguard-go"), target: ROUTED },
    Peer { name: "vpncloud", script: "vpncloud", from: Source::Crate("vpncloud", "2.3.0"), target: BRIDGED },
    Peer { name: "boringtun", script: "boringtun", from: Source::Crate("boringtun-cli", "0.7.1"), target: ROUTED },
    Peer { name: "fastd", script: "fastd", from: Source::Debian("fastd"), target: BRIDGED },
    Peer { name: "OpenVPN", script: "openvpn", from: Source::Debian("openvpn"), target: ROUTED },
    Peer { name: "tinc", script: "tinc", from: Source::Debian("tinc"), target: BRIDGED },
    Peer { name: "nebula", script: "nebula", from: Source::Debian("nebula"), target: ROUTED },
    Peer { name: "n2n", script: "n2n", from: Source::Debian("n2n"), target: ROUTED },
];

/// Tools that the set-ups need, and the packages they are in.
const TOOLS: [(&str, &str); 6] = [
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("wg", "wireguard-tools"),
    ("openssl", "openssl"),
];
const BACKPORTS: &str = "/etc/apt/sources.list.d/weft-bench-backports.list";

/// Installs what the wanted ones need and is not there yet.
pub fn install(wanted: impl Fn(&str) -> bool) -> Result<()> {
    let peers: Vec<&Peer> = ALL.iter().filter(|peer| wanted(peer.name)).collect();
    let mut stable: Vec<&str> = TOOLS.iter().filter(|(tool, _)| !is_there(tool)).map(|(_, package)| *package).collect();
    let mut backports = Vec::new();
    for peer in &peers {
        match peer.from {
            Source::Debian(package) if version(package).is_none() => stable.push(package),
            Source::Backports(package) if version(package).is_none_or(|version| !version.contains("~bpo")) => {
                backports.push(package);
            }
            _ => {}
        }
    }
    if !backports.is_empty() {
        let line = "deb http://deb.debian.org/debian bookworm-backports main\n";
        std::fs::write(BACKPORTS, line).doing(|| format!("cannot write {BACKPORTS}"))?;
    }
    if !stable.is_empty() || !backports.is_empty() {
        eprintln!("installing {}", [&stable[..], &backports[..]].concat().join(", "));
        apt(&["update", "-qq"])?;
    }
    if !stable.is_empty() {
        apt(&[&["install", "-y", "-qq", "--no-install-recommends"], &stable[..]].concat())?;
    }
    if !backports.is_empty() {
        let from = ["install", "-y", "-qq", "--no-install-recommends", "-t", "bookworm-backports"];
        let installed = apt(&[&from[..], &backports[..]].concat());
        std::fs::remove_file(BACKPORTS).doing(|| format!("cannot remove {BACKPORTS}"))?;
        installed?;
    }
    for peer in peers {
        if let Source::Crate(name, version) = peer.from {
            cargo_install(name, version)?;
        }
    }
    Ok(())
}

fn is_there(tool: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).exists()))
}

/// The installed version of a package.
fn version(package: &str) -> Option<String> {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Status} ${Version}", package]).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.strip_prefix("install ok installed ").map(str::to_owned)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    succeed(apt)
}

fn cargo_install(name: &str, version: &str) -> Result<()> {
    let root = crate_dir(name, version)?;
    if root.join("bin").join(name).exists() {
        return Ok(());
    }
    eprintln!("building {name} {version}");
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "--quiet", "--locked", "--version", version, "--root"]).arg(root).arg(name);
    succeed(cargo)
}

fn succeed(mut command: Command) -> Result<()> {
    let what = format!("{command:?}");
    match command.status().doing(|| format!("cannot run {what}"))?.success() {
        true => Ok(()),
        false => {
            Err(Failure::new(format!("{what} failed; leave its candidate out with --only, or install it by hand")))
        }
    }
}

/// Where a crate is installed: beside this program, so that it stays until `cargo clean`.
fn crate_dir(name: &str, version: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().doing(|| "cannot find this program's own file".into())?;
    Ok(own.with_file_name("weft-bench-peers").join(format!("{name}-{version}")))
}

impl Peer {
    /// Sets it up between two fresh hosts.
    pub fn start(&self, dir: &Path) -> Result<Pair> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(format!("{}.sh", self.script));
        let (hosts, containers) = (hosts(&mut wire)?, [Ns::new()?, Ns::new()?]);
        let dir = dir.join(self.script);
        std::fs::create_dir(&dir).doing(|| format!("cannot make {}", dir.display()))?;
        let log = File::create(dir.join("log")).doing(|| "cannot write a log".into())?;
        let mut path = std::env::var("PATH").unwrap_or_default();
        if let Source::Crate(name, version) = self.from {
            path = format!("{}:{path}", crate_dir(name, version)?.join("bin").display());
        }
        let mut bash = Command::new("bash");
        bash.arg(script)
            .args(hosts.iter().chain(&containers).map(Ns::path))
            .current_dir(&dir)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut script = bash.spawn().doing(|| format!("cannot start {}", self.name))?;
        // The script stays as long as its daemons, and ends them when it is ended.
        let ready = dir.join("ready");
        let up = weft_router::lab::await_true(&format!("{} did not come up", self.name), || {
            let has_ended = script.try_wait().doing(|| format!("cannot wait for {}", self.name))?.is_some();
            if has_ended {
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                return Err(Failure::new(format!("{} cannot be set up: {}", self.name, log.trim())));
            }
            Ok(ready.exists())
        });
        let version = match self.from {
            Source::Debian(package) | Source::Backports(package) => version(package).unwrap_or_default(),
            Source::Crate(_, version) => version.to_owned(),
        };
        let mut pair = Pair::with_daemons(self.name, version, (hosts, containers), IpAddr::from(self.target));
        pair.add(script);
        up.map(|()| pair)
    }
}
