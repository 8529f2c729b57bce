//! Real Docker engines: each host is a network namespace and a mount namespace with an engine and a router of its own.
//!
//! The engines share the machine's cgroups and nothing else: `/run/docker` (plugin sockets, container namespaces),
//! `/run/containerd` and `/etc/docker` are each host's own. Images are made from Debian's static busybox.

mod inspect;
mod surroundings;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use weft_router::cli::client;
use weft_router::daemon::state;
use weft_router::lab::{Ns, await_true};

use self::surroundings::{answer_names, make_image, run};
use crate::netns::{weft, write_secret};

/// What containers are made from.
pub const IMAGE: &str = "weft-test";
/// How long an engine may take to start or stop.
const ENGINE_PATIENCE: Duration = Duration::from_secs(30);

/// Hosts with engines on one Ethernet.
pub struct Lan {
    /// The hosts.
    pub hosts: Vec<EngineHost>,
    /// A machine beside them, at 10.98.0.254, that knows nothing of containers.
    pub outside: Ns,
    dir: PathBuf,
    ended: Arc<AtomicBool>,
}

/// A host with an engine and a router.
pub struct EngineHost {
    /// Nickname of the host.
    pub name: String,
    /// Address on the LAN.
    pub ip: IpAddr,
    dir: PathBuf,
    ns: Ns,
    /// Keeps the mount namespace.
    holder: Child,
    engine: Option<Child>,
    router: Mutex<Option<Child>>,
    /// How its router runs, beside the usual.
    pub arguments: Vec<String>,
    /// How its engine runs, beside the usual.
    pub engine_arguments: Vec<&'static str>,
}

impl Lan {
    /// Starts hosts with engines and routers, the first of which everybody names.
    pub fn start(name: &str, count: usize) -> Lan {
        Lan::start_with(name, &vec![&[][..]; count])
    }

    /// Starts a host with an engine of its own arguments for each entry.
    pub fn start_with(name: &str, engines: &[&[&'static str]]) -> Lan {
        assert!(nix::unistd::geteuid().is_root(), "these tests start engines: run them as root");
        let dir = std::env::temp_dir().join(format!("weft-docker-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        state::open_dir(&dir).expect("a directory for the test");
        let secret = dir.join("secret");
        write_secret(&secret, &[state::new_secret().expect("a secret")]);
        let image = make_image(&dir);
        let outside = Ns::new().expect("a namespace");
        let ns = outside.path();
        run(&["ip", "link", "add", "lan", "type", "bridge"], Some(&ns));
        run(&["ip", "addr", "add", "10.98.0.254/24", "dev", "lan"], Some(&ns));
        run(&["ip", "link", "set", "lan", "up"], Some(&ns));
        let mut hosts = Vec::new();
        for (number, engine) in engines.iter().enumerate() {
            // Two neighbours name each other: no host is founder by accident.
            let peer = format!("10.98.0.{}", if number == 0 { 2 } else { 1 });
            let arguments = vec!["--secret-file".into(), secret.to_string_lossy().into_owned(), peer];
            let mut host = EngineHost::new(number, &dir, &outside, arguments);
            host.engine_arguments = engine.to_vec();
            hosts.push(host);
        }
        let ended = Arc::<AtomicBool>::default();
        answer_names(&outside, ended.clone());
        let mut lan = Lan { hosts, outside, dir, ended };
        for host in &mut lan.hosts {
            host.start_router();
            host.start_engine();
            host.docker(&["import", &image, IMAGE]);
        }
        lan.await_connected();
        lan
    }

    /// Waits until every host is connected with every other, and has the network that stands ready.
    pub fn await_connected(&self) {
        let all = self.hosts.len() - 1;
        for host in &self.hosts {
            await_true(&format!("{} is not connected with everybody", host.name), || {
                let status = host.status();
                let peers = status["peers"].as_array().cloned().unwrap_or_default();
                Ok(peers.iter().filter(|peer| peer["state"] == "connected").count() == all
                    && host.network_exists("weft"))
            })
            .unwrap_or_else(|error| panic!("{error}: {:#}", host.status()));
        }
    }

    /// Pulls a host's network cable.
    pub fn unplug(&self, number: usize) {
        run(&["ip", "link", "set", &format!("e{number}"), "nomaster"], Some(&self.outside.path()));
    }

    /// Plugs it in again.
    pub fn plug(&self, number: usize) {
        run(&["ip", "link", "set", &format!("e{number}"), "master", "lan"], Some(&self.outside.path()));
    }

    /// The directory of this test's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.end();
        }
        self.ended.store(true, Ordering::Relaxed);
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Holds a mount namespace: that of this machine, or (with a fourth argument) the root file system of another with what this
/// one shares: its processes, devices, cgroups and temporary files, and the directory of the binary under test.
const HOLD: &str = r#"
if [ -n "${4:-}" ]; then
  root=$1/root
  mkdir -p "$root"
  mount --bind "$4" "$root"
  mount -t sysfs sysfs "$root/sys"
  mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
  mount --rbind /proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs tmpfs "$root/run"
  mkdir -p "$root/run/lock" "$root/run/old" "$root/run/docker" "$root/run/containerd" "$root/etc/docker" "$root$3"
  touch "$root/etc/resolv.conf"
  mount --bind /tmp "$root/tmp"
  mount --bind "$3" "$root$3"
  cd "$root"
  pivot_root . run/old
  umount -l /run/old
fi
touch "$2"
exec sleep infinity
"#;

/// The root file system of the engine of a host: `WEFT_ENGINE_ROOTS` lists them with colons between them, for one host after
/// the other and round again; an empty one is this machine's.
fn engine_root(number: usize) -> Option<String> {
    let all = std::env::var("WEFT_ENGINE_ROOTS").ok()?;
    let all: Vec<&str> = all.split(':').collect();
    Some(all[number % all.len()].to_owned()).filter(|root| !root.is_empty())
}

impl EngineHost {
    fn new(number: usize, dir: &Path, lan: &Ns, arguments: Vec<String>) -> EngineHost {
        let name = format!("e{number}");
        let ip: IpAddr = IpAddr::from([10, 98, 0, number as u8 + 1]);
        let dir = dir.join(&name);
        let ns = Ns::new().expect("a namespace");
        std::fs::create_dir_all(&dir).expect("a directory");
        let ready = dir.join("ready");
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "--", "sh", "-ec", HOLD, "hold"]).stdin(Stdio::null());
        holder.args([&dir, &ready]).arg(weft().parent().expect("a directory")).args(engine_root(number));
        let holder = ns.spawn(holder).expect("a mount namespace");
        await_true("the mount namespace is not there", || Ok(ready.exists())).expect("a mount namespace of its own");
        let host = EngineHost {
            name,
            ip,
            dir,
            ns,
            holder,
            engine: None,
            router: Mutex::default(),
            arguments,
            engine_arguments: Vec::new(),
        };
        for (own, at) in [("run-docker", "/run/docker"), ("run-containerd", "/run/containerd"), ("etc", "/etc/docker")]
        {
            let own = host.dir.join(own);
            for path in [&own, Path::new(at)] {
                std::fs::create_dir_all(path).expect("a directory");
            }
            assert!(host.run(&["mount", "--bind", &own.to_string_lossy(), at]).status.success(), "cannot mount {at}");
        }
        let resolvers = host.dir.join("resolv.conf");
        std::fs::write(&resolvers, "nameserver 10.98.0.254\n").expect("a file");
        let mount = ["mount", "--bind", &resolvers.to_string_lossy(), "/etc/resolv.conf"];
        assert!(host.run(&mount).status.success(), "cannot mount /etc/resolv.conf");
        let (wire, lan) = (format!("e{number}"), lan.path());
        run(
            &["ip", "link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", &host.ns.path()],
            Some(&lan),
        );
        run(&["ip", "link", "set", &wire, "master", "lan", "up"], Some(&lan));
        for arguments in [
            &["addr", "add", &format!("{ip}/24"), "dev", "eth0"][..],
            &["link", "set", "eth0", "up"],
            &["route", "add", "default", "via", "10.98.0.254"],
        ] {
            run(&[&["ip"], arguments].concat(), Some(&host.ns.path()));
        }
        host
    }

    fn engine_socket(&self) -> PathBuf {
        self.dir.join("engine.sock")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-m", "-n", "--", program]).stdin(Stdio::null());
        command
    }

    /// Runs a program on the host.
    pub fn run(&self, command: &[&str]) -> Output {
        self.command(command[0]).args(&command[1..]).output().expect("the program runs")
    }

    /// Starts the router.
    pub fn start_router(&self) {
        let log = File::options().create(true).append(true).open(self.dir.join("router.log")).expect("a log");
        let mut command = self.command(&weft().to_string_lossy());
        command.arg("launch").args(["--name", &self.name, "--log-level", "debug"]);
        command.args(["--state-dir", &self.dir.join("state").to_string_lossy()]);
        command.args(["--socket", &self.router_socket().to_string_lossy()]);
        command.args(["--docker-socket", &self.engine_socket().to_string_lossy()]);
        command.args(&self.arguments).env_remove("WEFT_SECRET");
        let router = command.stdout(Stdio::null()).stderr(log).spawn().expect("the router starts");
        *self.router() = Some(router);
        await_true(&format!("the router of {} does not answer", self.name), || Ok(self.try_status().is_some()))
            .unwrap_or_else(|error| panic!("{error}; see {}", self.dir.display()));
    }

    fn router(&self) -> MutexGuard<'_, Option<Child>> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in a container's network namespace.
    pub fn inside_container<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let pid = self.docker(&["inspect", "-f", "{{.State.Pid}}", name]).parse().expect("a process");
        Ns::of_process(pid).and_then(|ns| ns.run(work)).expect("the container runs")
    }

    /// Runs `work` in the host's network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.ns.run(work).expect("the namespace is there")
    }

    /// Kills the router without warning.
    pub fn kill_router(&self) {
        if let Some(mut router) = self.router().take() {
            // nsenter became the router: there is no process between.
            let _ = router.kill();
            let _ = router.wait();
        }
    }

    /// Kills the router and takes all it remembered away.
    pub fn lose_state(&self) {
        self.kill_router();
        std::fs::remove_dir_all(self.dir.join("state")).expect("there is state");
    }

    /// Stops the router as `weft stop` does.
    pub fn stop_router(&self) {
        let socket = self.router_socket();
        assert!(self.run(&[&weft().to_string_lossy(), "--socket", &socket.to_string_lossy(), "stop"]).status.success());
        if let Some(mut router) = self.router().take() {
            let _ = router.wait();
        }
    }

    /// Starts the engine and waits until it answers.
    pub fn start_engine(&mut self) {
        let dir = self.dir.clone();
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        // After a kill the first start may find the old containerd; the second never does.
        for _ in 0..3 {
            let log = File::options().create(true).append(true).open(self.dir.join("engine.log")).expect("a log");
            let mut command = self.command("dockerd");
            command.args([
                "--data-root",
                &path("data"),
                "--exec-root",
                "/run/docker",
                "--pidfile",
                &path("engine.pid"),
            ]);
            command.args(["-H", &format!("unix://{}", self.engine_socket().display())]).args(&self.engine_arguments);
            let engine =
                command.stdout(Stdio::null()).stderr(log).spawn().expect("dockerd is there: apt install docker.io");
            self.engine = Some(engine);
            let end = Instant::now() + ENGINE_PATIENCE;
            while Instant::now() < end {
                if self.try_docker(&["version"]).status.success() {
                    return;
                }
                let engine = self.engine.as_mut().map(|engine| engine.try_wait());
                if matches!(engine, Some(Ok(Some(_)))) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        panic!("the engine of {} does not start; see {}", self.name, self.dir.display());
    }

    /// Ends the engine, by request or without warning.
    pub fn end_engine(&mut self, signal: Signal) {
        if let Some(mut engine) = self.engine.take() {
            let _ = kill(Pid::from_raw(engine.id() as i32), signal);
            let _ = engine.wait();
        }
        let _ = std::fs::remove_file(self.dir.join("engine.pid"));
    }

    /// Talks to the engine; it has to work.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.try_docker(arguments);
        assert!(
            output.status.success(),
            "{}: docker {}: {}; see {}",
            self.name,
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr),
            self.dir.display()
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Talks to the engine.
    pub fn try_docker(&self, arguments: &[&str]) -> Output {
        let socket = format!("unix://{}", self.engine_socket().display());
        // The client that belongs to the engine, where there are several.
        let client = if Path::new("/usr/bin/docker").exists() { "/usr/bin/docker" } else { "docker" };
        self.command(client).args(["-H", &socket]).args(arguments).output().expect("docker runs")
    }

    /// Runs Compose on the host: the program of its own, or the client's part.
    pub fn compose(&self, arguments: &[&str]) -> Output {
        let socket = format!("unix://{}", self.engine_socket().display());
        let is_own = self.run(&["sh", "-c", "command -v docker-compose"]).status.success();
        let mut command = self.command(if is_own { "docker-compose" } else { "docker" });
        command.args(if is_own { &[][..] } else { &["compose"] }).args(arguments);
        command.env("DOCKER_HOST", socket).output().expect("Compose is there: apt install docker-compose")
    }

    /// A path of the host's network namespace.
    pub fn ns_path(&self) -> String {
        self.ns.path()
    }

    /// Starts a container that waits.
    pub fn sleeper(&self, name: &str, network: &str, more: &[&str]) {
        let arguments = [&["run", "-d", "--name", name, "--network", network], more, &[IMAGE, "sleep", "100000"]];
        self.docker(&arguments.concat());
    }

    /// A container's address in a network, by the engine's word.
    pub fn ip(&self, container: &str, network: &str) -> IpAddr {
        let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
        let text = self.docker(&["inspect", "-f", &format, container]);
        text.parse().unwrap_or_else(|_| panic!("{container} has no address in {network}: {text}"))
    }

    /// Whether a container's ping arrives.
    pub fn pings(&self, container: &str, to: &str) -> bool {
        self.try_docker(&["exec", container, "ping", "-c", "1", "-W", "1", to]).status.success()
    }

    /// What a container's resolver says to a name: addresses, sorted, or names for an address.
    pub fn resolve(&self, container: &str, name: &str) -> Vec<String> {
        let output = self.try_docker(&["exec", container, "nslookup", name]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().skip_while(|line| !line.is_empty());
        let found = lines.filter_map(|line| line.strip_prefix("Address: ").or_else(|| line.split("name = ").nth(1)));
        let mut found: Vec<String> = found.map(|found| found.trim().to_owned()).collect();
        found.sort();
        found
    }

    /// Waits until a name has exactly these addresses for a container; how long it took.
    pub fn await_resolved(&self, container: &str, name: &str, expected: &[IpAddr], patience: Duration) -> Duration {
        let mut expected: Vec<String> = expected.iter().map(IpAddr::to_string).collect();
        expected.sort();
        let started = Instant::now();
        loop {
            let found = self.resolve(container, name);
            if found == expected {
                return started.elapsed();
            }
            assert!(
                started.elapsed() < patience,
                "{container} on {} finds {name} at {found:?}, not {expected:?}; see {}",
                self.name,
                self.dir.display()
            );
        }
    }

    /// Whether the engine has a network.
    pub fn network_exists(&self, name: &str) -> bool {
        self.try_docker(&["network", "inspect", name]).status.success()
    }

    /// `weft status --json`.
    pub fn status(&self) -> Value {
        self.try_status().unwrap_or_else(|| panic!("the router of {} does not answer", self.name))
    }

    fn try_status(&self) -> Option<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(client::ask(&self.router_socket(), hyper::Method::GET, "/status", &Value::Null)).ok()
    }

    /// Runs `weft`.
    pub fn weft(&self, arguments: &[&str]) -> Output {
        let socket = self.router_socket();
        self.run(&[&[&*weft().to_string_lossy(), "--socket", &socket.to_string_lossy()], arguments].concat())
    }

    fn router_socket(&self) -> PathBuf {
        self.dir.join("weft.sock")
    }

    /// Simulates a power failure: engine, router and containers end at once, and interfaces are gone.
    pub fn crash(&mut self) {
        self.kill_router();
        let containers = self.docker(&["ps", "-q", "--no-trunc"]);
        let pids = containers.lines().map(|id| self.docker(&["inspect", "-f", "{{.State.Pid}}", id]));
        let pids: Vec<i32> = pids.filter_map(|pid| pid.parse().ok()).collect();
        self.end_engine(Signal::SIGKILL);
        self.end_containerd();
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for name in self.interfaces() {
            let _ = self.run(&["ip", "link", "del", &name]);
        }
    }

    fn end_containerd(&self) {
        let pid = std::fs::read_to_string(self.dir.join("run-docker/containerd/containerd.pid"));
        if let Some(pid) = pid.ok().and_then(|pid| pid.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn end(&mut self) {
        if self.engine.is_some() {
            let all = self.try_docker(&["ps", "-aq"]);
            let all = String::from_utf8_lossy(&all.stdout).into_owned();
            if !all.trim().is_empty() {
                let ids: Vec<&str> = all.split_whitespace().collect();
                let _ = self.try_docker(&[&["rm", "-f"], &ids[..]].concat());
            }
        }
        self.end_engine(Signal::SIGTERM);
        self.end_containerd();
        self.kill_router();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The name that only the resolver outside knows, and its address.
pub const OUTSIDE_NAME: (&str, IpAddr) = ("outside.example", IpAddr::V4(Ipv4Addr::new(192, 0, 2, 99)));
