//! Meshes of real routers on real kernels: each host is a network namespace, each container another.

pub mod internet;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use internet::{Edge, Internet};
use serde_json::Value;
use weft_router::attach::prefix::Prefix;
use weft_router::cli::options::TapMode;
use weft_router::daemon::state;
use weft_router::error::{Failure, Result};
use weft_router::lab::{LabHost, Ns, await_true, ping, wire};

/// Hosts, the wires between them, and their containers.
pub struct Mesh {
    /// The hosts.
    pub hosts: Vec<LabHost>,
    /// The containers.
    pub containers: Vec<Container>,
    /// Pairs of hosts with a wire between them.
    pub wires: Vec<(usize, usize)>,
    taps: Vec<TapMode>,
    more: Vec<Vec<String>>,
    secret: PathBuf,
    dir: PathBuf,
}

/// A container on a host.
pub struct Container {
    /// Name that it is found by.
    pub name: String,
    /// Number of its host.
    pub host: usize,
    /// Segment it is in.
    pub segment: &'static str,
    /// Network namespace of the container.
    pub ns: Ns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// An IPv4 and an IPv6 address.
    pub ips: [IpAddr; 2],
}

/// The binary under test: built beside the tests.
pub fn weft() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a file");
    let weft = exe.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("weft");
    assert!(weft.exists(), "{} is not built: run cargo build --release, or scripts/test", weft.display());
    weft
}

impl Mesh {
    /// Starts a host for each entry of `taps`, joined by `wires`, each naming its neighbours.
    pub fn start(name: &str, taps: &[TapMode], wires: &[(usize, usize)]) -> Mesh {
        Mesh::start_with(name, taps, wires, &[])
    }

    /// The same, with further arguments of `launch` for each host.
    pub fn start_with(name: &str, taps: &[TapMode], wires: &[(usize, usize)], more: &[&[&str]]) -> Mesh {
        let mut mesh = Mesh::prepare(name, taps, more);
        for (number, (a, b)) in wires.iter().enumerate() {
            let end = |last| [Prefix(IpAddr::from([10, 99, number as u8, last]), 24)];
            let names = (format!("w{number}"), format!("w{number}"));
            wire(&mesh.hosts[*a].ns, &mesh.hosts[*b].ns, (&names.0, &names.1), (&end(1), &end(2))).expect("a wire");
        }
        mesh.wires = wires.to_vec();
        (0..mesh.hosts.len()).for_each(|number| mesh.launch(number));
        mesh
    }

    /// Starts hosts at the edge of an internet; all others name the first.
    pub fn start_at(name: &str, edges: &[Edge]) -> (Mesh, Internet) {
        let (mut mesh, internet, addresses) = Mesh::join(name, edges);
        (1..edges.len()).for_each(|number| mesh.add_argument(number, &addresses[0].to_string()));
        (0..edges.len()).for_each(|number| mesh.launch(number));
        (mesh, internet)
    }

    /// Hosts at the edge of an internet that are not started yet, and their addresses.
    pub fn join(name: &str, edges: &[Edge]) -> (Mesh, Internet, Vec<Ipv4Addr>) {
        let (mesh, mut internet) = (Mesh::prepare(name, &vec![TapMode::Fast; edges.len()], &[]), Internet::new());
        let joined = mesh.hosts.iter().zip(edges).enumerate();
        let addresses = joined.map(|(number, (host, edge))| internet.join(&host.ns, number as u8, edge)).collect();
        (mesh, internet, addresses)
    }

    /// Adds an argument of `launch` for a host.
    pub fn add_argument(&mut self, number: usize, argument: &str) {
        self.more[number].push(argument.to_owned());
    }

    /// Hosts that are neither joined nor started.
    fn prepare(name: &str, taps: &[TapMode], more: &[&[&str]]) -> Mesh {
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        let dir = std::env::temp_dir().join(format!("weft-netns-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        state::open_dir(&dir).expect("a directory for the test");
        let secret = dir.join("secret");
        write_secret(&secret, &[state::new_secret().expect("a secret")]);
        let hosts: Vec<LabHost> =
            (0..taps.len()).map(|n| LabHost::new(&format!("h{n}"), &dir).expect("a host")).collect();
        let words = |number: usize| -> Vec<String> {
            more.get(number).copied().unwrap_or_default().iter().map(|word| (*word).to_owned()).collect()
        };
        let more = (0..hosts.len()).map(words).collect();
        Mesh { hosts, containers: Vec::new(), wires: Vec::new(), taps: taps.to_vec(), more, secret, dir }
    }

    /// Starts (again) the router of a host.
    pub fn launch(&mut self, number: usize) {
        let mut arguments = vec!["--secret-file".into(), self.secret.to_string_lossy().into_owned()];
        for (wire, (a, b)) in self.wires.iter().enumerate() {
            if *a == number || *b == number {
                arguments.push(format!("10.99.{wire}.{}", if *a == number { 2 } else { 1 }));
            }
        }
        // Some workers never sleep for long: nothing may hang on whether they do.
        if number % 3 == 1 {
            arguments.extend(["--busy-poll".into(), "50".into()]);
        }
        arguments.extend(self.more[number].iter().cloned());
        let tap = self.taps[number];
        self.hosts[number].start(&weft(), tap, &arguments).expect("the router starts");
    }

    /// The file all hosts read their secrets from.
    pub fn secret_file(&self) -> &PathBuf {
        &self.secret
    }

    /// The directory of this mesh's files.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Gives a host a new container in a segment.
    pub fn add_container(&mut self, host: usize, segment: &'static str) -> usize {
        let number = self.containers.len() + 1;
        let v4 = Ipv4Addr::new(10, 32, 0, 10 + number as u8);
        let v6: IpAddr = format!("fd77::{number}").parse().expect("an address");
        let ns = Ns::new().expect("a container");
        let name = format!("c{number}");
        let ips = [format!("{v4}/24"), format!("{v6}/64")];
        self.hosts[host].attach(&ns, segment, &[&ips[0], &ips[1]], &name).expect("the container is attached");
        self.containers.push(Container { name, host, segment, ns, v4, ips: [v4.into(), v6] });
        self.containers.len() - 1
    }

    /// Waits until every host is connected with every other.
    pub fn await_connected(&self) {
        let all = self.hosts.len() - 1;
        for host in &self.hosts {
            await_true(&format!("{} is not connected with everybody", host.name), || Ok(host.connected()? == all))
                .unwrap_or_else(|error| panic!("{error}: {:#}", host.status().unwrap_or_default()["peers"]));
        }
    }

    /// Waits until every container reaches every other of its segment.
    pub fn await_all_reach_all(&self, payload: usize) {
        for from in &self.containers {
            for to in self.containers.iter().filter(|to| to.name != from.name && to.segment == from.segment) {
                for ip in to.ips {
                    let what =
                        format!("{} (h{}) does not reach {} (h{}, {ip})", from.name, from.host, to.name, to.host);
                    await_true(&what, || Ok(ping(&from.ns, ip, payload, Duration::from_secs(1))?.is_some()))
                        .unwrap_or_else(|error| panic!("{error}"));
                }
            }
        }
    }

    /// Drops everything on a wire, both ways, silently.
    pub fn cut(&self, wire: usize) {
        let (a, b) = self.wires[wire];
        for host in [a, b] {
            let table = format!("table inet cut{wire}");
            let hook = |hook: &str| format!("chain {hook} {{ type filter hook {hook} priority 0; ");
            nft(
                &self.hosts[host].ns,
                &format!(
                    "{table} {{ {} iifname w{wire} drop; }} {} oifname w{wire} drop; }} }}",
                    hook("input"),
                    hook("output")
                ),
            );
        }
    }

    /// Undoes [`Mesh::cut`].
    pub fn mend(&self, wire: usize) {
        let (a, b) = self.wires[wire];
        for host in [a, b] {
            nft(&self.hosts[host].ns, &format!("delete table inet cut{wire}"));
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the logs are in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Writes a secret file that only its owner may read.
pub fn write_secret(path: &std::path::Path, secrets: &[String]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, secrets.join("\n")).expect("a secret file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a secret file");
}

/// The peers of a status report.
pub fn peers(status: &Value) -> impl Iterator<Item = &Value> {
    status["peers"].as_array().into_iter().flatten()
}

/// Runs an nftables ruleset in a namespace; it has to work.
pub fn nft(ns: &Ns, rules: &str) {
    succeed(rules, &run_with(ns, "nft", &[&rules.replace("} ", "}\n")]));
}

/// Runs `ip` in a namespace; it has to work. Returns what it prints.
pub fn ip(ns: &Ns, command: &str) -> String {
    let output = run(ns, "ip", command);
    succeed(command, &output);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program in a namespace with the words of a command.
pub fn run(ns: &Ns, program: &str, command: &str) -> Output {
    run_with(ns, program, &command.split_whitespace().collect::<Vec<_>>())
}

fn run_with(ns: &Ns, program: &str, arguments: &[&str]) -> Output {
    let output = ns.run(|| Command::new(program).args(arguments).output()).expect("the namespace is there");
    output.unwrap_or_else(|error| panic!("{program}: {error}; scripts/test installs it"))
}

fn succeed(command: &str, output: &Output) {
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sends one UDP datagram to a group or broadcast address from `from`; whether `to`, listening there, hears it.
pub fn group_datagram_arrives(from: &Container, to: &Container, group: Ipv4Addr) -> Result<bool> {
    let error = |error: std::io::Error| Failure::new(error.to_string());
    let receiver = to.ns.run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353))?;
        if group.is_multicast() {
            socket.join_multicast_v4(&group, &to.v4)?;
        }
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    })?;
    let receiver = receiver.map_err(error)?;
    let sent = from.ns.run(|| -> std::io::Result<()> {
        let socket = UdpSocket::bind((from.v4, 0))?;
        socket.set_broadcast(true)?;
        socket.send_to(b"who is there?", (group, 5353)).map(drop)
    })?;
    sent.map_err(error)?;
    let mut buffer = [0; 64];
    Ok(receiver.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == b"who is there?"))
}

/// A program of Debian's that is not installed.
pub fn tool(name: &str) -> PathBuf {
    let path = PathBuf::from("/var/cache/weft-tools/usr/bin").join(name);
    assert!(path.exists(), "{} is missing: run scripts/debian-tools, as scripts/test does", path.display());
    path
}

/// A process that ends with the test.
pub struct Running(pub std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
