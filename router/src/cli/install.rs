//! `weft install`: binary, configuration, secret and systemd unit where they belong.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::Value;

use crate::cli::addresses::parse_peer;
use crate::cli::client;
use crate::cli::manual::ManualFile;
use crate::cli::options::{DEFAULT_DOCKER_SOCKET, DEFAULT_SOCKET, LaunchArgs};
use crate::daemon::state;
use crate::docker;
use crate::error::{Doing, Failure, Result};
use crate::host::routing;

const BINARY: &str = "/usr/local/bin/weft";
const CONFIG: &str = "/etc/weft/config.toml";
const SECRET: &str = "/etc/weft/secret";
const UNIT: &str = "/etc/systemd/system/weft.service";
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/weft.service";
const CONFIG_TEXT: &str = "\
# How this host's router runs; see: weft launch --help. Each long option is a key here.
secret-file = \"/etc/weft/secret\"
#name = \"host1\"
#range = \"10.32.0.0/12\"
#dns-domain = \"weft.internal\"
";

/// What to install, and where.
#[derive(clap::Args, Clone, Debug)]
pub struct InstallArgs {
    /// Hosts to link to.
    #[arg(help = "Hosts to link to: host, ip or [ip6], each with an optional :port", value_name = "PEER")]
    peers: Vec<String>,
    /// Take everything away again but configuration, secret and state
    #[arg(long, conflicts_with = "peers")]
    uninstall: bool,
    /// Install below this directory, and start nothing
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// Installs or uninstalls, manual pages and completions with it; returns what to tell the user.
pub fn install(args: &InstallArgs, manual: &[ManualFile]) -> Result<String> {
    let root = args.root.clone().unwrap_or_default();
    let at = |path: &str| match root.as_os_str().is_empty() {
        true => PathBuf::from(path),
        false => root.join(path.trim_start_matches('/')),
    };
    let has_systemd = args.root.is_none() && Path::new("/run/systemd/system").exists();
    if args.uninstall {
        let mut said = String::new();
        if args.root.is_none() {
            remove_networks()?;
        }
        if has_systemd && at(UNIT).exists() {
            systemctl(&["disable", "--now", "weft.service"])?;
        } else if args.root.is_none() {
            // Another program may have started it.
            let _ = ask_router(Method::POST, "/stop");
        }
        if args.root.is_none() {
            eprintln!("removing firewall rules and routing rules ...");
            remove_rules()?;
        }
        for path in [UNIT, WANTED, BINARY].into_iter().chain(manual.iter().map(|file| file.path.as_str())) {
            remove(&at(path))?;
        }
        if has_systemd {
            systemctl(&["daemon-reload"])?;
        }
        said.push_str("weft is removed; /etc/weft and /var/lib/weft are kept: remove them to forget this host\n");
        return Ok(said);
    }
    for peer in &args.peers {
        parse_peer(peer)?;
    }
    let mut said = String::new();
    let binary = std::env::current_exe().and_then(fs::read).doing(|| "cannot read this program".into())?;
    write(&at(BINARY), &binary, 0o755)?;
    for ManualFile { path, bytes } in manual {
        write(&at(path), bytes, 0o644)?;
    }
    if !at(SECRET).exists() {
        write(&at(SECRET), format!("{}\n", state::new_secret()?).as_bytes(), 0o600)?;
        said.push_str("made a new secret; every host of the mesh needs it: copy /etc/weft to the others first\n");
    }
    if !at(CONFIG).exists() {
        write(&at(CONFIG), CONFIG_TEXT.as_bytes(), 0o644)?;
    }
    let text = fs::read_to_string(at(CONFIG)).doing(|| format!("cannot read {}", at(CONFIG).display()))?;
    let config = LaunchArgs::from_toml(&text, &at(CONFIG))?;
    write(&at(UNIT), unit(&args.peers, &config).as_bytes(), 0o644)?;
    if has_systemd {
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "weft.service"])?;
        systemctl(&["restart", "weft.service"])?;
        await_network();
        said.push_str("weft runs; see: weft status\n");
    } else if args.root.is_some() {
        said.push_str("installed; start it there with: systemctl enable --now weft\n");
    } else {
        said.push_str(&format!("installed; no systemd runs here, so start it with: {}\n", start(&args.peers)));
    }
    Ok(said)
}

/// Removes weft's networks from the engine of this host, as long as there is a router that serves them.
fn remove_networks() -> Result<()> {
    let names = networks();
    if names.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
    eprintln!("removing networks {} on this host ...", names.join(", "));
    let used: Vec<String> = serde_json::from_value(ask_router(Method::POST, "/docker/leave")?).unwrap_or_default();
    match used.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "networks {} have containers: remove those first (docker ps -a --filter network=...), then uninstall again",
            used.join(", ")
        ))),
    }
}

/// Takes away what keeps containers apart while no router runs.
fn remove_rules() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "cannot start an event loop".into())?;
    runtime.block_on(docker::firewall::remove())?;
    routing::remove()
}

/// Where an engine runs, its network `weft` is there a moment after the router.
fn await_network() {
    const PATIENCE: Duration = Duration::from_secs(10);
    let end = Instant::now() + PATIENCE;
    while Path::new(DEFAULT_DOCKER_SOCKET).exists() && Instant::now() < end {
        if networks().iter().any(|name| name == docker::NAME) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The engine's networks that the router serves.
fn networks() -> Vec<Value> {
    let status = ask_router(Method::GET, "/status").unwrap_or_default();
    status["docker"]["networks"].as_array().cloned().unwrap_or_default()
}

fn ask_router(method: Method, path: &str) -> Result<Value> {
    let what = || "cannot ask the router".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(what)?;
    runtime.block_on(client::ask(Path::new(DEFAULT_SOCKET), method, path, &Value::Null))
}

/// How the router is started.
fn start(peers: &[String]) -> String {
    let peers: String = peers.iter().map(|peer| format!(" {peer}")).collect();
    format!("{BINARY} launch --config {CONFIG}{peers}")
}

/// The engine looks for its plugin when it starts containers: weft is ready before it starts.
fn unit(peers: &[String], config: &LaunchArgs) -> String {
    let (start, opened) = (start(peers), opened(config));
    format!(
        "[Unit]\n\
         Description=weft, an encrypted mesh network for containers\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         Before=docker.service\n\n\
         [Service]\n\
         Type=notify\n\
         ExecStart={start}\n\
         Restart=always\n\
         RestartSec=250ms\n\
         LimitNOFILE=1048576\n\
         {CONFINEMENT}{opened}\n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// Opens the places outside of the usual ones that a configuration names.
fn opened(config: &LaunchArgs) -> String {
    let parent = |file: &Option<PathBuf>| file.as_deref().and_then(Path::parent).map(Path::to_owned);
    let written =
        [config.state_dir.clone(), parent(&config.log_file), parent(&config.socket), config.plugin_dir.clone()];
    let is_usual =
        |dir: &PathBuf| ["/run", "/var/run", "/var/log", "/var/lib/weft"].iter().any(|usual| dir.starts_with(usual));
    let lines = written.iter().flatten().filter(|dir| !is_usual(dir));
    let mut lines: String = lines.map(|dir| format!("ReadWritePaths=\"-{}\"\n", dir.display())).collect();
    let all = [&config.secret_file, &config.docker_socket].into_iter().cloned().chain(written).flatten();
    if all.into_iter().any(|path| ["/home", "/root", "/run/user"].iter().any(|home| path.starts_with(home))) {
        lines.push_str("ProtectHome=no\n");
    }
    lines
}

/// Confines the router (systemd.exec(5)). It enters containers' network namespaces, whose processes may have more capabilities than it has
/// (SYS_ADMIN, SYS_PTRACE), changes interfaces, routes and rules in them, uses files and sockets of other users (DAC_OVERRIDE), and writes
/// below /run, where engines look for plugins.
const CONFINEMENT: &str = "\
StateDirectory=weft
StateDirectoryMode=0700
ReadWritePaths=/run -/var/log /proc/sys/net
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_DAC_OVERRIDE
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=net
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
";

/// Tells systemd that the router is ready, if systemd wants to know (sd_notify(3)).
pub fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let bytes = path.as_encoded_bytes();
    let sent = match bytes.strip_prefix(b"@") {
        Some(name) => {
            SocketAddr::from_abstract_name(name).and_then(|address| socket.send_to_addr(b"READY=1", &address))
        }
        None => socket.send_to(b"READY=1", &path),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd was not told that weft is ready");
    }
}

/// Written beside and renamed: a running binary goes on, and a crash leaves no half file.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let what = || format!("cannot write {}; run as root, or give --root", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).doing(what)?;
    }
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh).doing(what)?;
    file.set_permissions(Permissions::from_mode(mode)).doing(what)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).doing(what)?;
    fs::rename(&fresh, path).doing(what)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let what = || format!("cannot run systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(arguments).output().doing(what)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::new(format!("{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn places_that_the_configuration_names_are_open_to_the_unit() {
        let opened = |text: &str| opened(&LaunchArgs::from_toml(text, Path::new("config.toml")).unwrap());
        assert_eq!(opened(CONFIG_TEXT), "");
        assert_eq!(opened("state-dir = \"/var/lib/weft/a\"\nlog-file = \"/var/log/weft.log\""), "");
        let elsewhere = "state-dir = \"/srv/weft\"\nlog-file = \"/srv/log/weft.log\"";
        assert_eq!(opened(elsewhere), "ReadWritePaths=\"-/srv/weft\"\nReadWritePaths=\"-/srv/log\"\n");
        assert_eq!(opened("secret-file = \"/root/secret\""), "ProtectHome=no\n");
    }

    #[test]
    fn what_is_installed_is_kept_by_the_next_install_and_goes_with_uninstall() {
        let root = std::env::temp_dir().join(format!("weft-install-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let args = |peers: &[&str], uninstall| InstallArgs {
            peers: peers.iter().map(|peer| (*peer).to_owned()).collect(),
            uninstall,
            root: Some(root.clone()),
        };
        let page = ManualFile { path: "/usr/local/share/man/man1/weft.1".into(), bytes: b".TH".to_vec() };
        let manual = [page];
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert!(install(&args(&[], false), &manual).unwrap().contains("new secret"));
        let secret = read("etc/weft/secret");
        assert_eq!(fs::metadata(root.join("etc/weft/secret")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(root.join("usr/local/bin/weft")).unwrap().mode() & 0o777, 0o755);
        fs::write(root.join("etc/weft/config.toml"), "# mine\n").unwrap();
        install(&args(&["host1", "10.0.0.2:7000"], false), &manual).unwrap();
        assert_eq!((read("etc/weft/secret"), read("etc/weft/config.toml")), (secret, "# mine\n".into()));
        let unit = read("etc/systemd/system/weft.service");
        assert!(
            unit.contains("Before=docker.service\n") && unit.contains("config.toml host1 10.0.0.2:7000\n"),
            "{unit}"
        );
        assert!(install(&args(&["a b"], false), &manual).is_err());
        assert_eq!(read("usr/local/share/man/man1/weft.1"), ".TH");
        install(&args(&[], true), &manual).unwrap();
        assert!(!root.join("usr/local/share/man/man1/weft.1").exists());
        assert!(!root.join("usr/local/bin/weft").exists() && !root.join("etc/systemd/system/weft.service").exists());
        assert!(root.join("etc/weft/secret").exists());
        fs::remove_dir_all(&root).unwrap();
    }
}
