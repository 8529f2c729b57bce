//! A host without a machine: a node, and the data path beside it.

use std::sync::Arc;
use std::time::Duration;

use weft_crypto::{Ciphers, HostLabel, Identity, Keyring, Time};
use weft_mesh::datapath::Datapath;
use weft_mesh::egress::DropReason;
use weft_mesh::ingress::RxBuffer;
use weft_mesh::node::{Command, Config, Input, Node, Output, Reply, Target};
use weft_mesh::path::Path;
use weft_mesh::sink::{Punt, Sink, TapOffloads};
use weft_mesh::snapshot::{Hashing, Snapshot};
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::SegmentId;

/// Outputs that one input may lead to.
const MAX_OUTPUTS: usize = 20_000;

/// A host, and what it did since it was last looked at.
pub struct Host {
    /// The host's key.
    pub identity: Identity,
    /// Where it can be reached.
    pub path: Path,
    /// Its node.
    pub node: Node,
    /// What its data path works with.
    pub snapshot: Arc<Snapshot>,
    /// Its data path.
    pub datapath: Datapath,
    /// Datagrams that it sent.
    pub sent: Vec<(Path, Vec<u8>)>,
    /// Answers to commands.
    pub replies: Vec<Reply>,
    /// Frames that its containers got.
    pub frames: Vec<(VnetHeader, Vec<u8>)>,
}

impl Host {
    /// Starts host `number`; hosts with one number have one key.
    pub fn new(number: u8, now: Time) -> Host {
        let identity = Identity::from_seed(&[number; 32]);
        let config = Config {
            identity: identity.clone(),
            name: format!("host{number}"),
            keyring: Keyring::insecure(),
            ciphers: Ciphers::native(true),
            underlay_mtu: 1500,
            container_mtu: 1450,
            port: 6783,
            tcp_ports: Vec::new(),
            advertised: Default::default(),
            is_stub: false,
            is_metered: false,
            discovery: true,
            grace: Duration::from_secs(3600),
            founds_alone: false,
            continues: false,
            endpoints: Vec::new(),
            restored: Vec::new(),
        };
        let label = identity.peer_id().label();
        let mut host = Host {
            identity,
            path: Path::udp(([10, 1, 0, number], 6783).into()),
            node: Node::new(config, [number; 32], now),
            snapshot: Arc::new(Snapshot::empty(label, Hashing(0, 0))),
            datapath: Datapath::new(64),
            sent: Vec::new(),
            replies: Vec::new(),
            frames: Vec::new(),
        };
        host.command(Command::SetAddresses(vec![host.path.remote.ip()]), now);
        host
    }

    /// The host's label.
    pub fn label(&self) -> HostLabel {
        self.identity.peer_id().label()
    }

    /// Whether frames to another host go straight to it.
    pub fn has_link(&self, with: &Host) -> bool {
        self.snapshot.outbound.get(&with.label()).is_some_and(|outbound| outbound.link.is_some())
    }

    /// Has the node carry out a command.
    pub fn command(&mut self, command: Command, now: Time) {
        self.input(Input::Command(1, command), now);
    }

    /// Has the node try to reach another host.
    pub fn connect(&mut self, to: &Host, now: Time) {
        let target = Target { name: "peer".into(), addresses: vec![to.path.remote] };
        self.command(Command::Connect(vec![target]), now);
    }

    /// Gives the node an input, and carries out all that it leads to.
    pub fn input(&mut self, input: Input, now: Time) {
        self.node.handle_input(now, input);
        for _ in 0..MAX_OUTPUTS {
            match self.node.poll_output() {
                Output::Timeout(at, why) => {
                    assert!(at >= now, "the node wants to be woken at {at:?}, for {why}, when it is {now:?}");
                    return;
                }
                Output::Transmit { to, data, stride, .. } => {
                    self.sent.extend(data.chunks(stride.max(1)).map(|datagram| (to, datagram.to_vec())));
                }
                Output::Publish(snapshot) => self.snapshot = snapshot,
                Output::Durable(mark) => self.node.handle_input(now, Input::Durable { mark, is_kept: true }),
                Output::Reply(_, Ok(reply)) => self.replies.push(reply),
                Output::Reply(_, Err(_))
                | Output::Open { .. }
                | Output::Spread { .. }
                | Output::Connection { .. }
                | Output::Names(_)
                | Output::Persist { .. }
                | Output::Tap { .. }
                | Output::Mtu(..)
                | Output::Event(_) => {}
            }
        }
        panic!("one input leads to more than {MAX_OUTPUTS} outputs");
    }

    /// Has datagrams of `stride` bytes arrive from a path.
    pub fn datagrams(&mut self, from: Path, data: &mut [u8], stride: usize, now: Time) {
        let snapshot = self.snapshot.clone();
        let mut results = Results::default();
        let mut buffers = [RxBuffer { from, data, stride: stride.max(1) }];
        self.datapath.datagrams(&snapshot, now, &mut buffers, &mut results);
        self.carry_out(results, now);
    }

    /// Has a frame arrive from a container.
    pub fn frame(&mut self, segment: SegmentId, vnet: &VnetHeader, frame: &mut [u8], now: Time) {
        let snapshot = self.snapshot.clone();
        let mut results = Results::default();
        self.datapath.frame(&snapshot, segment, vnet, frame, now, &mut results);
        self.carry_out(results, now);
    }

    /// Takes what the data path is about to send.
    pub fn flush(&mut self) {
        for (run, bytes) in self.datapath.sender.batch.runs() {
            self.sent.extend(bytes.chunks(run.stride.max(1)).map(|datagram| (run.to, datagram.to_vec())));
        }
        self.datapath.sender.batch.clear();
    }

    fn carry_out(&mut self, results: Results, now: Time) {
        self.flush();
        self.sent.extend(results.relayed);
        self.frames.extend(results.frames);
        for punt in results.punts {
            self.input(Input::Punt(punt), now);
        }
    }
}

/// Two hosts with a link between them.
pub fn linked(now: &mut Time) -> (Host, Host) {
    let (mut a, mut b) = (Host::new(1, *now), Host::new(2, *now));
    a.connect(&b, *now);
    for _ in 0..200 {
        exchange(&mut a, &mut b, *now);
        if a.has_link(&b) && b.has_link(&a) {
            return (a, b);
        }
        *now += Duration::from_millis(50);
        a.input(Input::Timeout, *now);
        b.input(Input::Timeout, *now);
    }
    panic!("two hosts that hear each other come to no link");
}

/// Carries datagrams between two hosts until neither has any to send; those to others are lost.
pub fn exchange(a: &mut Host, b: &mut Host, now: Time) {
    while !a.sent.is_empty() || !b.sent.is_empty() {
        for (to, mut datagram) in std::mem::take(&mut a.sent) {
            if to == b.path {
                let stride = datagram.len();
                b.datagrams(a.path, &mut datagram, stride, now);
            }
        }
        for (to, mut datagram) in std::mem::take(&mut b.sent) {
            if to == a.path {
                let stride = datagram.len();
                a.datagrams(b.path, &mut datagram, stride, now);
            }
        }
    }
}

/// What comes of a batch.
#[derive(Default)]
struct Results {
    frames: Vec<(VnetHeader, Vec<u8>)>,
    relayed: Vec<(Path, Vec<u8>)>,
    punts: Vec<Punt>,
}

impl Sink for Results {
    fn offloads(&self, _: SegmentId) -> TapOffloads {
        TapOffloads { checksum: true, tcp: true, udp: true }
    }

    fn to_tap(&mut self, _: SegmentId, vnet: &VnetHeader, parts: &[&[u8]]) {
        self.frames.push((*vnet, parts.concat()));
    }

    fn relay(&mut self, to: Path, datagrams: &[u8], stride: usize) {
        self.relayed.extend(datagrams.chunks(stride.max(1)).map(|datagram| (to, datagram.to_vec())));
    }

    fn punt(&mut self, punt: Punt) {
        self.punts.push(punt);
    }

    fn dropped(&mut self, _: DropReason) {}
}
