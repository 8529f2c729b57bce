//! Hosts that are nodes in this process, behind sockets of their own, beside a router's namespace.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use weft_crypto::{Ciphers, Identity, Keyring, Time};
use weft_mesh::datapath::Datapath;
use weft_mesh::egress::DropReason;
use weft_mesh::ingress::RxBuffer;
use weft_mesh::node::{Command, Config, Input, Node, Output, Target};
use weft_mesh::records::{EndpointId, EndpointRecord, digest_of};
use weft_mesh::sink::{Punt, Sink, TapOffloads};
use weft_mesh::snapshot::{Hashing, Snapshot};
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::SegmentId;
use weft_router::attach::prefix::Prefix;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{LabHost, Ns, wire};

/// Endpoints that come and go in a second; fewer than the batches that a host signs in that time, so that each is one.
pub const CHANGES_PER_SECOND: u32 = 15;
const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 98, 0, 1));
const BESIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 98, 0, 2));

/// A namespace beside a router's, and the secret for hosts in it.
pub fn beside(router: &LabHost, secret: &Path) -> Result<(Ns, String)> {
    let ns = Ns::new()?;
    wire(&router.ns, &ns, ("crowd", "eth0"), (&[Prefix(GATEWAY, 24)], &[Prefix(BESIDE, 24)]))?;
    Ok((ns, std::fs::read_to_string(secret).doing(|| "cannot read the secret".into())?))
}

/// A host without containers: a node behind a socket.
pub struct Guest {
    node: Node,
    path: Datapath,
    snapshot: Arc<Snapshot>,
    socket: UdpSocket,
    started: Instant,
    wake: Instant,
}

impl Guest {
    pub fn start(ns: &Ns, secret: &str, number: usize) -> Result<Guest> {
        let what = || "cannot open a socket for a guest".to_owned();
        let socket = ns.run(|| UdpSocket::bind((BESIDE, 0)).doing(what))??;
        let mut rng = rand::rng();
        let identity = Identity::from_seed(&rng.random());
        let label = identity.peer_id().label();
        let config = Config {
            identity,
            name: format!("guest{number}"),
            keyring: Keyring::parse(secret.trim()).map_err(|error| Failure::new(error.to_string()))?,
            ciphers: Ciphers::native(true),
            underlay_mtu: 1500,
            container_mtu: 1450,
            port: socket.local_addr().doing(what)?.port(),
            tcp_ports: Vec::new(),
            advertised: Default::default(),
            is_stub: false,
            is_metered: false,
            discovery: false,
            grace: Duration::from_secs(3600),
            founds_alone: false,
            continues: false,
            endpoints: Vec::new(),
            restored: Vec::new(),
        };
        let started = Instant::now();
        let mut guest = Guest {
            node: Node::new(config, rng.random(), time(started)),
            path: Datapath::new(1),
            snapshot: Arc::new(Snapshot::empty(label, Hashing::default())),
            socket,
            started,
            wake: started,
        };
        let router = Target { name: "router".into(), addresses: vec![SocketAddr::new(GATEWAY, 6783)] };
        guest.take(Input::Command(0, Command::Connect(vec![router])))?;
        Ok(guest)
    }

    /// Lives until told to stop; first everything it has comes, then some of it goes and comes back while `changes` is set.
    pub fn live(&mut self, endpoints: u32, changes: &AtomicBool, is_over: &AtomicBool) -> Result<()> {
        for number in 0..endpoints {
            self.take(Input::Command(0, Command::attach(id(number), record(number))))?;
            if number % 50 == 0 {
                self.step(Duration::from_micros(100))?;
            }
        }
        let (mut next, mut number) = (Instant::now(), 0);
        while !is_over.load(Ordering::Relaxed) {
            self.step(Duration::from_millis(5))?;
            if changes.load(Ordering::Relaxed) && Instant::now() >= next {
                next = Instant::now() + Duration::from_secs(1) / CHANGES_PER_SECOND;
                let (id, record) = (id(number / 2), record(number / 2));
                let command = if number % 2 == 0 { Command::Detach(id) } else { Command::attach(id, record) };
                self.take(Input::Command(0, command))?;
                number += 1;
            }
        }
        Ok(())
    }

    /// Takes what has arrived, waiting at most so long, and does what is due.
    pub fn step(&mut self, wait: Duration) -> Result<()> {
        let what = || "cannot receive".to_owned();
        let mut buffer = [0; 2048];
        self.socket.set_read_timeout(Some(wait)).doing(what)?;
        match self.socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                let mut sink = Punts::default();
                let datagram =
                    RxBuffer { from: weft_mesh::path::Path::udp(from), data: &mut buffer[..len], stride: len.max(1) };
                self.path.datagrams(&self.snapshot.clone(), time(self.started), &mut [datagram], &mut sink);
                sink.0.into_iter().try_for_each(|punt| self.take(Input::Punt(punt)))?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).doing(what),
        }
        if Instant::now() >= self.wake { self.take(Input::Timeout) } else { Ok(()) }
    }

    pub fn take(&mut self, input: Input) -> Result<()> {
        self.node.handle_input(time(self.started), input);
        loop {
            match self.node.poll_output() {
                Output::Transmit { to, data, stride, .. } => {
                    for datagram in data.chunks(stride.max(1)) {
                        // What does not leave is like what is lost on the way.
                        let _ = self.socket.send_to(datagram, to.remote);
                    }
                }
                Output::Publish(snapshot) => self.snapshot = snapshot,
                Output::Durable(mark) => {
                    self.node.handle_input(time(self.started), Input::Durable { mark, is_kept: true });
                }
                Output::Reply(_, Err(error)) => return Err(Failure::new(format!("a guest refuses: {error}"))),
                Output::Timeout(at, _) => {
                    let wait = at.since(time(self.started));
                    self.wake = Instant::now() + wait;
                    return Ok(());
                }
                Output::Connection { .. }
                | Output::Open { .. }
                | Output::Spread { .. }
                | Output::Reply(..)
                | Output::Names(_)
                | Output::Persist { .. }
                | Output::Tap { .. }
                | Output::Mtu(..)
                | Output::Event(_) => {}
            }
        }
    }
}

#[derive(Default)]
struct Punts(Vec<Punt>);

impl Sink for Punts {
    fn offloads(&self, _: SegmentId) -> TapOffloads {
        TapOffloads::NONE
    }
    fn to_tap(&mut self, _: SegmentId, _: &VnetHeader, _: &[&[u8]]) {}
    fn relay(&mut self, _: weft_mesh::path::Path, _: &[u8], _: usize) {}
    fn punt(&mut self, punt: Punt) {
        self.0.push(punt);
    }
    fn dropped(&mut self, _: DropReason) {}
}

fn time(started: Instant) -> Time {
    Time::ZERO + Duration::from_secs(3600) + started.elapsed()
}

/// Like those drawn at random: not one after the other.
pub fn id(number: u32) -> EndpointId {
    digest_of(&number.to_be_bytes())
}

pub fn record(number: u32) -> EndpointRecord {
    let [_, a, b, c] = number.to_be_bytes();
    EndpointRecord {
        segment: "bench".into(),
        mac: [2, 9, 9, a, b, c],
        ips: [(IpAddr::from([10, 64 + a, b, c]), 9)].into(),
        names: [format!("endpoint-{number}")].into(),
        health: Default::default(),
        services: [].into(),
    }
}

pub fn run_for(guests: &mut [Guest], duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        guests.iter_mut().try_for_each(|guest| guest.step(Duration::from_micros(20)))?;
    }
    Ok(())
}

pub fn await_links(router: &LabHost, guests: &mut [Guest], count: usize) -> Result<()> {
    let started = Instant::now();
    loop {
        run_for(guests, Duration::from_millis(200))?;
        let up = router.connected()?;
        if up >= count {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(90) {
            return Err(Failure::new(format!("only {up} of {count} hosts came together")));
        }
    }
}
