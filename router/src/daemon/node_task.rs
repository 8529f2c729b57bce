//! The task that owns the node: it feeds it what happens and does what it wants done.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc as blocking;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{error, info, warn};
use weft_crypto::PeerId;
use weft_mesh::explanation::Explanation;
use weft_mesh::ipam::ring::Range;
use weft_mesh::ipam::{AllocationId, Request};
use weft_mesh::names::Names;
use weft_mesh::node::{Command, Event, Input, Measures, Networks, Node, Output, Reply, Status, WhatIf};
use weft_mesh::path::Path;
use weft_mesh::sink::Punt;
use weft_mesh::snapshot::Snapshot;
use weft_mesh::wire::SegmentId;

use crate::attach::addresses::Lease;
use crate::daemon::state::{Change, Store};
use crate::dataplane::clock::Clock;
use crate::dataplane::punts::PuntSender;
use crate::dataplane::worker::WorkerHandle;
use crate::error::{Failure, Result};
use crate::observe::happening::{Happening, PeerName};
use crate::observe::observers::Observers;
use crate::transport::Port;

/// How soon what could not be written is tried again.
const WRITE_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);
/// Things for the node taken in one go before what they led to is done.
const PUNTS_PER_TURN: usize = 256;

type Answer = Result<Reply>;

/// A command and where its answer goes.
struct Call {
    command: Command,
    reply: oneshot::Sender<Answer>,
}

/// Sends commands to the node task.
#[derive(Clone)]
pub struct NodeHandle {
    requests: mpsc::Sender<Call>,
    links_changed: Arc<Notify>,
}

impl NodeHandle {
    /// Told when links to other hosts came up or moved.
    pub fn links_changed(&self) -> Arc<Notify> {
        self.links_changed.clone()
    }

    /// Has the node carry out a command that has no result. Returns once its changes are on disk; an error says what kept the
    /// node from it, and nothing was changed.
    pub async fn tell(&self, command: Command) -> Result<()> {
        match self.ask(command).await? {
            Reply::Done => Ok(()),
            other => Err(mismatch(&other)),
        }
    }

    /// Allocates an address of a ring, within some four seconds. An error leaves nothing allocated.
    pub async fn allocate(&self, request: Request) -> Result<Lease> {
        let Request { range, id, .. } = request;
        match self.ask(Command::Allocate(request)).await {
            Ok(Reply::Address(address)) => Ok(Lease { range, id, address }),
            Ok(other) => Err(mismatch(&other)),
            Err(error) => {
                // The ring may have given it after the request timed out: without a lease nothing would release it.
                let _ = self.tell(Command::Release(range, id)).await;
                Err(error)
            }
        }
    }

    /// Releases addresses. What fails is released by the next start.
    pub async fn release(&self, leases: &[Lease]) {
        for lease in leases {
            if let Err(error) = self.tell(Command::Release(lease.range, lease.id)).await {
                warn!(address = %lease.address, "an address could not be released; the next start does it: {error}");
            }
        }
    }

    /// Returns the addresses that this host has from the ring of a range.
    pub async fn leases(&self, range: Range) -> Result<Vec<Lease>> {
        match self.ask(Command::Allocations(range)).await? {
            Reply::Allocations(all) => Ok(all.into_iter().map(|(address, id)| Lease { range, id, address }).collect()),
            other => Err(mismatch(&other)),
        }
    }

    /// Returns the container networks of other hosts, and those that were removed.
    pub async fn networks(&self) -> Result<Networks> {
        match self.ask(Command::Networks).await? {
            Reply::Networks(networks) => Ok(*networks),
            other => Err(mismatch(&other)),
        }
    }

    /// Returns the peers that the operator named, as they were written.
    pub async fn targets(&self) -> Result<Vec<String>> {
        match self.ask(Command::Targets).await? {
            Reply::Targets(targets) => Ok(targets),
            other => Err(mismatch(&other)),
        }
    }

    /// Reports.
    pub async fn status(&self) -> Result<Box<Status>> {
        match self.ask(Command::Status).await? {
            Reply::Status(status) => Ok(status),
            other => Err(mismatch(&other)),
        }
    }

    /// Measures and counts.
    pub async fn measures(&self) -> Result<Box<Measures>> {
        match self.ask(Command::Measure).await? {
            Reply::Measures(measures) => Ok(measures),
            other => Err(mismatch(&other)),
        }
    }

    /// Returns the mesh, and the host that is to be thought away.
    pub async fn what_if(&self, host: String) -> Result<Box<WhatIf>> {
        match self.ask(Command::WhatIf(host)).await? {
            Reply::WhatIf(what_if) => Ok(what_if),
            other => Err(mismatch(&other)),
        }
    }

    /// Explains the path from one host, container, name or address to another; without `from`, from this host.
    pub async fn explain(&self, from: Option<String>, to: String) -> Result<Box<Explanation>> {
        match self.ask(Command::Why { from, to }).await? {
            Reply::Why(explanation) => Ok(explanation),
            other => Err(mismatch(&other)),
        }
    }

    async fn ask(&self, command: Command) -> Result<Reply> {
        let (reply, answer) = oneshot::channel();
        let stopped = || Failure::new("the router is stopping");
        self.requests.send(Call { command, reply }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// Every command has one kind of reply; another kind is a fault of the node's.
fn mismatch(reply: &Reply) -> Failure {
    Failure::new(format!("the node answered with {reply:?}; please report this"))
}

/// The receiving ends of what workers send the node.
pub struct Punts {
    trusted: mpsc::Receiver<Punt>,
    frames: mpsc::Receiver<Punt>,
    handshakes: mpsc::Receiver<Punt>,
}

/// The queues between workers and node: bounded, what does not fit is dropped and counted.
pub fn punt_queues() -> (PuntSender, Punts) {
    const TRUSTED: usize = 4096;
    const FRAMES: usize = 256;
    const HANDSHAKES: usize = 256;
    let (trusted, inbox) = mpsc::channel(TRUSTED);
    let (frames, yard) = mpsc::channel(FRAMES);
    let (handshakes, doorstep) = mpsc::channel(HANDSHAKES);
    (PuntSender { trusted, frames, handshakes }, Punts { trusted: inbox, frames: yard, handshakes: doorstep })
}

/// The node, and the parts by which the task carries out its outputs.
pub struct Parts {
    /// The node.
    pub node: Node,
    /// The clock that its times come from.
    pub clock: Clock,
    /// Sends its datagrams.
    pub port: Port,
    /// Connections that ended.
    pub closed: mpsc::UnboundedReceiver<Path>,
    /// Where it publishes what the workers need.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Where it publishes what DNS answers from.
    pub names: Arc<ArcSwap<Names>>,
    /// What the workers send it.
    pub punts: Punts,
    /// The worker that writes its frames to TAPs.
    pub worker: WorkerHandle,
    /// What it keeps across restarts.
    pub store: Arc<Store>,
    /// Told what happens to links, sessions and hosts.
    pub observers: Observers,
}

/// Owns the node and carries out its outputs.
pub struct NodeTask {
    node: Node,
    clock: Clock,
    port: Port,
    closed: mpsc::UnboundedReceiver<Path>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    names: Arc<ArcSwap<Names>>,
    punts: Punts,
    worker: WorkerHandle,
    requests: mpsc::Receiver<Call>,
    saver: blocking::Sender<Save>,
    saved: mpsc::UnboundedReceiver<Saved>,
    changes: mpsc::UnboundedSender<EndpointChange>,
    links_changed: Arc<Notify>,
    observers: Observers,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    next_id: u64,
}

/// What the saver writes, and whom it then answers.
#[derive(Default)]
struct Save {
    changes: Vec<Change>,
    replies: Vec<(oneshot::Sender<Answer>, Answer)>,
    /// What the node is to be told once it is written.
    mark: Option<u64>,
}

/// Up to which mark everything was written, or which one could not be.
struct Saved {
    mark: u64,
    is_kept: bool,
}

/// What the mesh has come to say about endpoints of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndpointChange {
    /// An address must not be used any more; with it comes what it was allocated for.
    Fenced(AllocationId, Ipv4Addr),
    /// Containers of a segment are to send packets of this many bytes at most.
    Mtu(SegmentId, u16),
}

impl NodeTask {
    /// A task around a node. The store is written by a thread of its own, so that a slow disk stops nothing.
    pub fn new(parts: Parts) -> (NodeTask, NodeHandle, mpsc::UnboundedReceiver<EndpointChange>) {
        let Parts { node, clock, port, closed, snapshot, names, punts, worker, store, observers } = parts;
        let (requests, inbox) = mpsc::channel(64);
        let (saver, saves) = blocking::channel();
        let (says_saved, saved) = mpsc::unbounded_channel();
        let (changes, changed) = mpsc::unbounded_channel();
        std::thread::spawn(move || save(&store, &saves, &says_saved));
        let (waiting, links_changed) = (BTreeMap::new(), Arc::<Notify>::default());
        let task = NodeTask {
            node,
            clock,
            port,
            closed,
            snapshot,
            names,
            punts,
            worker,
            requests: inbox,
            saver,
            saved,
            changes,
            links_changed: links_changed.clone(),
            observers,
            waiting,
            next_id: 0,
        };
        (task, NodeHandle { requests, links_changed }, changed)
    }

    /// Runs until every handle is gone.
    pub async fn run(mut self) {
        loop {
            let wake = self.drain();
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Call { command, reply }) => {
                        if let Command::SetAddresses(addresses) = &command {
                            self.port.udp.set_addresses(addresses);
                        }
                        self.next_id += 1;
                        self.waiting.insert(self.next_id, reply);
                        self.node.handle_input(self.clock.now(), Input::Command(self.next_id, command));
                    }
                    None => return,
                },
                Some(punt) = self.punts.trusted.recv() => {
                    let now = self.clock.now();
                    self.node.handle_input(now, Input::Punt(punt));
                    for _ in 0..PUNTS_PER_TURN {
                        let Ok(punt) = self.punts.trusted.try_recv() else { break };
                        self.node.handle_input(now, Input::Punt(punt));
                    }
                }
                Some(Saved { mark, is_kept }) = self.saved.recv() => {
                    self.node.handle_input(self.clock.now(), Input::Durable { mark, is_kept });
                }
                Some(punt) = self.punts.frames.recv() => {
                    self.node.handle_input(self.clock.now(), Input::Punt(punt));
                }
                Some(punt) = self.punts.handshakes.recv() => {
                    self.node.handle_input(self.clock.now(), Input::Punt(punt));
                }
                Some(path) = self.closed.recv() => {
                    self.node.handle_input(self.clock.now(), Input::Closed(path));
                }
                () = tokio::time::sleep_until(wake) => {
                    self.node.handle_input(self.clock.now(), Input::Timeout);
                }
            }
        }
    }

    /// Does all that the node wants done; returns when it wants to be woken.
    fn drain(&mut self) -> tokio::time::Instant {
        let Save { mut changes, mut replies, mut mark } = Save::default();
        loop {
            match self.node.poll_output() {
                Output::Transmit { lane, to, data, stride } => {
                    // What matters is sent again; a send that fails is like a datagram lost.
                    let _ = self.port.send_or_open(lane, to, &data, stride);
                }
                Output::Open { to, hops } => drop(self.port.open_nats(to, hops)),
                Output::Spread { towards, count, hops } => self.port.spread(towards, count, &hops),
                Output::Connection { path, usage } => self.port.set_usage(path, usage),
                Output::Publish(snapshot) => self.snapshot.store(snapshot),
                Output::Names(names) => self.names.store(names.into()),
                Output::Reply(id, reply) => {
                    if let Some(sender) = self.waiting.remove(&id) {
                        replies.push((sender, reply.map_err(|error| Failure::new(error.to_string()))));
                    }
                }
                Output::Persist { key, value } => changes.push((key, value)),
                Output::Durable(wanted) => mark = Some(wanted),
                Output::Tap { segment, frame } => self.worker.write(segment, frame),
                Output::Mtu(segment, mtu) => drop(self.changes.send(EndpointChange::Mtu(segment, mtu))),
                Output::Event(event) => {
                    log(&event);
                    observe(&self.observers, &event);
                    match event {
                        // Once the router stops there is no receiver any more.
                        Event::Fenced { id, address } => drop(self.changes.send(EndpointChange::Fenced(id, address))),
                        Event::MarksLost { .. } => self.port.udp.stop_marking(),
                        Event::LinkUp { .. } | Event::LinkMoved { .. } => self.links_changed.notify_one(),
                        _ => {}
                    }
                }
                Output::Timeout(at, _) => {
                    if !changes.is_empty() || !replies.is_empty() || mark.is_some() {
                        // The saver lives as long as the task.
                        let _ = self.saver.send(Save { changes, replies, mark });
                    }
                    return self.clock.instant(at).into();
                }
            }
        }
    }
}

/// Writes what the node wants kept, then answers. What a full disk did not take is tried again with what comes next.
fn save(store: &Store, saves: &blocking::Receiver<Save>, saved: &mpsc::UnboundedSender<Saved>) {
    let mut unwritten: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
    let mut owed: Option<u64> = None;
    loop {
        let next = if unwritten.is_empty() {
            saves.recv().map_err(|_| blocking::RecvTimeoutError::Disconnected)
        } else {
            saves.recv_timeout(WRITE_AGAIN)
        };
        let Save { changes, replies, mark } = match next {
            Ok(save) => save,
            Err(blocking::RecvTimeoutError::Timeout) => Save::default(),
            Err(blocking::RecvTimeoutError::Disconnected) => return,
        };
        let changes_nothing = changes.is_empty();
        unwritten.extend(changes);
        let written = if unwritten.is_empty() { Ok(()) } else { store.write(unwritten.iter()) };
        match &written {
            Ok(()) => unwritten.clear(),
            Err(error) => error!("{error}"),
        }
        owed = owed.max(mark);
        if let Some(mark) = owed {
            // Marks grow: the last one stands for all.
            let _ = saved.send(Saved { mark, is_kept: written.is_ok() });
            owed = owed.filter(|_| written.is_err());
        }
        for (sender, reply) in replies {
            let kept = written.as_ref().map_err(|error| Failure::new(error.to_string()));
            let kept = if changes_nothing { Ok(&()) } else { kept };
            // The caller may have gone.
            let _ = sender.send(kept.and(reply));
        }
    }
}

/// Counts an event, and notes it.
fn observe(Observers { tallies, recorder, .. }: &Observers, event: &Event) {
    match event {
        Event::LinkUp { .. } => tallies.path_change("up"),
        Event::LinkMoved { .. } => tallies.path_change("moved"),
        Event::LinkDown { reason, .. } => tallies.path_change(reason),
        Event::Session { .. } => return tallies.session(),
        Event::RelayAvoided { .. } => tallies.relay_avoided(),
        _ => {}
    }
    let named = |peer: String, id: PeerId| PeerName { peer, peer_id: id.short() };
    recorder.note(&match event.clone() {
        Event::LinkUp { peer, host, remote } => {
            Happening::LinkUp { peer: named(host, peer), remote: remote.to_string() }
        }
        Event::LinkMoved { peer, host, remote } => {
            Happening::LinkMoved { peer: named(host, peer), remote: remote.to_string() }
        }
        Event::LinkDown { peer, host, reason } => Happening::LinkDown { peer: named(host, peer), cause: reason },
        Event::RelayAvoided { peer, host, relay, length } => {
            Happening::RelayAvoided { peer: named(host, peer), relay, seconds: length.as_secs() }
        }
        Event::MarksLost { host, .. } => Happening::MarksLost { peer: host },
        Event::TargetSilent { name, address } => Happening::TargetSilent { name, address: address.to_string() },
        Event::PeerDead(peer) => Happening::PeerGone { peer },
        Event::PeerAlive(peer) => Happening::PeerBack { peer },
        Event::Cloned => Happening::Cloned { key: "this host's".into() },
        Event::PeerCloned(peer) => Happening::Cloned { key: peer.short() },
        Event::Reincarnated(_) => Happening::Reincarnated,
        Event::Fenced { address, .. } => Happening::Fenced { address: address.to_string() },
        Event::Conflict { what, by } => Happening::Conflict { what, by },
        Event::Session { .. } => return,
    });
}

fn log(event: &Event) {
    match event {
        Event::LinkUp { peer, host, remote } => info!(host, peer = %peer.short(), %remote, "link up"),
        Event::LinkDown { peer, host, reason } => info!(host, peer = %peer.short(), reason, "link down"),
        Event::LinkMoved { peer, host, remote } => info!(host, peer = %peer.short(), %remote, "link moved"),
        Event::RelayAvoided { peer, host, relay, length } => warn!(
            host,
            peer = %peer.short(),
            "what goes to this host by {relay} does not arrive, though the link with {relay} is up: other ways are taken for {} s; see \
             weft status drops there",
            length.as_secs()
        ),
        Event::MarksLost { peer, host } => warn!(
            host,
            peer = %peer.short(),
            "the network to this host drops packets marked AF21 (low-latency data): this router marks none any more, and small \
             packets may wait behind large transfers"
        ),
        Event::Session { peer, cipher } => info!(peer = %peer.short(), cipher, "session"),
        Event::TargetSilent { name, address } => warn!(
            "{name} does not answer at {address}: is weft up there, does UDP get through, and has it the same secret?"
        ),
        Event::PeerDead(host) => info!(host, "host is gone"),
        Event::PeerAlive(host) => info!(host, "host is alive"),
        Event::Cloned => warn!(
            "another host lives with this host's key: on the copy, stop weft, remove 'identity' and 'store.redb' from its state directory and start it again"
        ),
        Event::PeerCloned(peer) => {
            warn!(peer = %peer.short(), "two hosts live with one key (a cloned machine?); the one met first is kept");
        }
        Event::Reincarnated(incarnation) => {
            info!(incarnation, "found records of an earlier life of this host and wrote it above them");
        }
        Event::Fenced { address, .. } => {
            warn!(%address, "belongs to another host since two parts of the mesh met; its endpoint here is cut off");
        }
        Event::Conflict { what, by } => {
            warn!(what, by, "also claimed by another host, which has the older right; detach one of the two");
        }
    }
}
