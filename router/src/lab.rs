//! Hosts and containers as network namespaces on one machine: what the demo, the tests and the benchmarks stand on.
//!
//! Namespaces have no names and no files: they end with their last holder, so nothing is left behind.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper::Method;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::attach::attachments::AttachRequest;
use crate::attach::netlink::{Net, in_namespace};
use crate::attach::prefix::Prefix;
use crate::cli::client;
use crate::cli::options::TapMode;
use crate::daemon::state;
use crate::error::{Doing, Failure, Result};

/// How long anything in a lab may take to come about.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace: a host or a container.
pub struct Ns {
    fd: OwnedFd,
}

impl Ns {
    /// A fresh one, with its loopback interface up.
    pub fn new() -> Result<Ns> {
        let what = || "cannot make a network namespace".to_owned();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).doing(what)?;
            File::open("/proc/thread-self/ns/net").doing(what)
        });
        let file = thread.join().map_err(|_| Failure::new(what()))??;
        let ns = Ns { fd: file.into() };
        ns.net(async |net| {
            let lo = net.index("lo").await?;
            net.set_up(lo, "lo").await
        })?;
        Ok(ns)
    }

    /// That of a process.
    pub fn of_process(pid: u32) -> Result<Ns> {
        let file = File::open(format!("/proc/{pid}/ns/net")).doing(|| format!("there is no process {pid}"))?;
        Ok(Ns { fd: file.into() })
    }

    /// Another handle of the same one.
    pub fn try_clone(&self) -> Result<Ns> {
        Ok(Ns { fd: self.fd.try_clone().doing(|| "cannot hold a network namespace".into())? })
    }

    /// A path by which other processes can open it, as long as this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs `work` inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.fd, CloneFlags::CLONE_NEWNET).doing(|| "cannot enter a network namespace".into())?;
                Ok(work())
            });
            thread.join().map_err(|_| Failure::new("a thread in a network namespace failed"))?
        })
    }

    /// Sets interfaces up inside.
    pub fn net<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce(Net) -> Result<T> + Send + 'static,
    {
        let fd = self.fd.try_clone().doing(|| "cannot hold a network namespace".into())?;
        in_namespace(Some(fd), work)
    }

    /// Starts a program inside.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        self.run(move || command.spawn().doing(|| format!("cannot start {:?}", command.get_program())))?
    }
}

/// Joins two namespaces by a veth pair with an address at each end.
pub fn wire(a: &Ns, b: &Ns, names: (&str, &str), addresses: (&[Prefix], &[Prefix])) -> Result<()> {
    let (near, far) = (names.0.to_owned(), names.1.to_owned());
    let moved = b.fd.try_clone().doing(|| "cannot hold a network namespace".into())?;
    a.net(async move |net| {
        let temporary = format!("{near}-far");
        net.veth(&near, &temporary).await?;
        let far_index = net.index(&temporary).await?;
        net.move_to(far_index, std::os::fd::AsFd::as_fd(&moved), &far).await
    })?;
    bring_up(a, names.0, addresses.0)?;
    bring_up(b, names.1, addresses.1)
}

/// Gives an interface of a namespace its addresses, and sets it up.
pub fn bring_up(ns: &Ns, name: &str, addresses: &[Prefix]) -> Result<()> {
    let (name, addresses) = (name.to_owned(), addresses.to_vec());
    ns.net(async move |net| {
        // Addresses are to be usable at once, not after duplicate detection.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
        let index = net.index(&name).await?;
        for address in addresses {
            net.add_address(index, address).await?;
        }
        net.set_up(index, &name).await
    })
}

/// A router in a namespace.
pub struct LabHost {
    /// Nickname of the host.
    pub name: String,
    /// Where it runs.
    pub ns: Ns,
    /// Its control socket.
    pub socket: PathBuf,
    dir: PathBuf,
    child: Option<Child>,
}

impl LabHost {
    /// A host that is not started; what it keeps and logs goes below `dir`.
    pub fn new(name: &str, dir: &Path) -> Result<LabHost> {
        let dir = dir.join(name);
        state::open_dir(&dir)?;
        Ok(LabHost { name: name.into(), ns: Ns::new()?, socket: dir.join("weft.sock"), dir, child: None })
    }

    /// Starts the router and waits until it answers.
    pub fn start(&mut self, weft: &Path, tap: TapMode, arguments: &[String]) -> Result<()> {
        self.spawn(weft, tap, arguments)?;
        self.await_up()
    }

    /// Starts the router.
    pub fn spawn(&mut self, weft: &Path, tap: TapMode, arguments: &[String]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log()).doing(|| "cannot write a log".into())?;
        let mut command = Command::new(weft);
        command
            .args(["launch", "--no-docker", "--name", &self.name, "--tap", tap.name(), "--state-dir"])
            .arg(&self.dir)
            .arg("--socket")
            .arg(&self.socket)
            .args(arguments)
            .env_remove("WEFT_SECRET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(self.ns.spawn(command)?);
        Ok(())
    }

    /// Waits until the router answers.
    pub fn await_up(&mut self) -> Result<()> {
        let what = format!("{} did not come up; its log is in {}", self.name, self.log().display());
        await_true(&what, || {
            if self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_)))) {
                return Err(Failure::new(format!("{} ended: {}", self.name, self.last_log_line())));
            }
            Ok(self.status().is_ok())
        })
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where its log is.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn last_log_line(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").to_owned()
    }

    /// Kills the router without warning.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops the router as `weft stop` does, and waits for its end.
    pub fn stop(&mut self) -> Result<()> {
        self.ask(Method::POST, "/stop", &Value::Null)?;
        if let Some(mut child) = self.child.take() {
            child.wait().doing(|| format!("cannot wait for {}", self.name))?;
        }
        Ok(())
    }

    /// Asks the router.
    pub fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .doing(|| "cannot start an event loop".into())?;
        runtime.block_on(client::ask(&self.socket, method, path, body))
    }

    /// `weft status --json`.
    pub fn status(&self) -> Result<Value> {
        self.ask(Method::GET, "/status", &Value::Null)
    }

    /// What it says about one peer.
    pub fn peer(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        let peer = status["peers"].as_array().into_iter().flatten().find(|peer| peer["name"] == name);
        Ok(peer.cloned().unwrap_or_default())
    }

    /// How many peers it is connected with.
    pub fn connected(&self) -> Result<usize> {
        let status = self.status()?;
        let peers = status["peers"].as_array().into_iter().flatten();
        Ok(peers.filter(|peer| peer["state"] == "connected").count())
    }

    /// `weft attach`.
    pub fn attach(&self, container: &Ns, segment: &str, ips: &[&str], name: &str) -> Result<Value> {
        let request = AttachRequest {
            target: Some(container.path()),
            segment: Some(segment.into()),
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            names: vec![name.into()],
        };
        let request = serde_json::to_value(request).doing(|| "cannot put the request into words".into())?;
        self.ask(Method::POST, "/attach", &request)
    }
}

impl Drop for LabHost {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Bytes that a process has in memory.
pub fn resident(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kilobytes| kilobytes * 1e3)
}

/// Waits until something is true, at most [`PATIENCE`].
pub fn await_true(what: &str, mut is_true: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !is_true()? {
        if Instant::now() > end {
            return Err(Failure::new(format!("{what} (waited {PATIENCE:?})")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Sends an echo request from within `ns` and waits for its answer; the round-trip time, or none.
pub fn ping(ns: &Ns, to: IpAddr, payload: usize, patience: Duration) -> Result<Option<Duration>> {
    ns.run(move || {
        Echo::open(to).and_then(|mut echo| echo.ask(payload, patience)).doing(|| format!("cannot ping {to}"))
    })?
}

/// A socket for echo requests, in the namespace of the thread that opened it.
pub struct Echo {
    socket: Socket,
    to: IpAddr,
    sequence: u16,
}

impl Echo {
    /// Opens one to ask `to`.
    pub fn open(to: IpAddr) -> std::io::Result<Echo> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        Ok(Echo { socket, to, sequence: Instant::now().elapsed().subsec_nanos() as u16 })
    }

    /// Asks once, with `payload` bytes; the round-trip time, or none when no answer came in time.
    pub fn ask(&mut self, payload: usize, patience: Duration) -> std::io::Result<Option<Duration>> {
        let (request, reply) = if self.to.is_ipv4() { (8u8, 0u8) } else { (128, 129) };
        self.sequence = self.sequence.wrapping_add(1);
        let id = (std::process::id() as u16) ^ (self.socket.as_raw_fd() as u16) << 8;
        let mut message = vec![request, 0, 0, 0];
        message.extend_from_slice(&id.to_be_bytes());
        message.extend_from_slice(&self.sequence.to_be_bytes());
        message.resize(8 + payload, 0x5a);
        if self.to.is_ipv4() {
            // The kernel fills in the checksum for ICMPv6 only.
            weft_mesh::frame::complete_checksum(&mut message, 0, 2);
        }
        let mut answer = vec![0; 66_000];
        let started = Instant::now();
        match self.socket.send_to(&message, &SocketAddr::new(self.to, 0).into()) {
            Err(error) if error.kind() == std::io::ErrorKind::NetworkUnreachable => return Ok(None),
            result => result?,
        };
        while let Some(left) = patience.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left))?;
            let Ok(len) = (&self.socket).read(&mut answer) else { return Ok(None) };
            let header = if self.to.is_ipv4() { usize::from(answer[0] & 15) * 4 } else { 0 };
            let Some(echoed) = answer[..len].get(header..) else { continue };
            if echoed.first() == Some(&reply) && echoed.get(4..) == message.get(4..) {
                return Ok(Some(started.elapsed()));
            }
        }
        Ok(None)
    }
}

/// What TCP connections carried, and in what time: until the last byte arrived.
#[derive(Clone, Copy)]
pub struct Carried {
    /// Bytes that arrived.
    pub bytes: u64,
    /// How long that took.
    pub time: Duration,
}

impl Carried {
    /// Bits a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.time.as_secs_f64()
    }
}

/// Carries bytes over so many TCP connections from `from` to `to` for a while.
pub fn tcp_throughput(from: &Ns, to: &Ns, address: IpAddr, streams: usize, duration: Duration) -> Result<Carried> {
    let what = || format!("cannot carry TCP to {address}");
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)).doing(what))??;
    // Accepting, too, has an end.
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).doing(what)?;
    let target = listener.local_addr().doing(what)?;
    std::thread::scope(|scope| {
        let senders: Vec<_> =
            (0..streams).map(|_| scope.spawn(move || from.run(move || send_for(target, duration)))).collect();
        let started = Instant::now();
        let receivers: Vec<_> = (0..streams)
            .map(|_| listener.accept().map(|(stream, _)| scope.spawn(move || drain(stream))))
            .collect::<std::io::Result<_>>()
            .doing(what)?;
        let mut bytes = 0;
        for receiver in receivers {
            bytes += receiver.join().map_err(|_| Failure::new(what()))?.doing(what)?;
        }
        let time = started.elapsed();
        for sender in senders {
            sender.join().map_err(|_| Failure::new(what()))??.doing(what)?;
        }
        Ok(Carried { bytes, time })
    })
}

fn send_for(target: SocketAddr, duration: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let (buffer, end) = (vec![0x77; 1 << 17], Instant::now() + duration);
    while Instant::now() < end {
        let _ = stream.write(&buffer)?;
    }
    Ok(())
}

/// Reads all there is; how many bytes.
fn drain(mut stream: TcpStream) -> std::io::Result<u64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut buffer, mut total) = (vec![0; 1 << 17], 0u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            read => total += read as u64,
        }
    }
}
