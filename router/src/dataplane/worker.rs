//! The packet workers: one thread each, both directions, all segments.
//!
//! 1. TAP → [`Datapath::frame`]: a batch of frames and super-frames is read, cut and sealed into runs.
//! 2. Each run is one `sendmsg` with `UDP_SEGMENT`.
//! 3. UDP → [`Datapath::datagrams`]: a batch of GRO runs is opened in place, the urgent lane's first; relay runs go out
//!    again from the buffers they came in, frames are joined and written to the TAP in one `writev`.
//!
//! 4. What comes over TCP connections, which are spread among the workers, goes the way of what comes by UDP.
//!
//! One snapshot and one clock reading per batch. What is not for the data path goes to the node.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use quinn_udp::RecvMeta;
use tokio::sync::oneshot;
use weft_crypto::Time;
use weft_mesh::datapath::Datapath;
use weft_mesh::datapath::metering::FlowTable;
use weft_mesh::egress::DropReason;
use weft_mesh::frame::MAX_FRAME;
use weft_mesh::ingress::RxBuffer;
use weft_mesh::path::Path;
use weft_mesh::sink::{Punt, Sink, TapOffloads};
use weft_mesh::snapshot::Snapshot;
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::Lane;
use weft_mesh::wire::SegmentId;
use weft_sys::{TapIo, is_gone};

use crate::dataplane::clock::Clock;
use crate::dataplane::counters::Counters;
use crate::dataplane::polling::{Last, Pauses};
use crate::dataplane::punts::PuntSender;
use crate::dataplane::spares::Spares;
use crate::dataplane::streams::{BYTES_PER_READ, Streams};
use crate::error::{Doing, Result};
use crate::transport::Port;
use crate::transport::spare::SparePort;
use crate::transport::tcp::connection::Connection;
use crate::transport::udp::{BATCH, BUFFER, UdpPort};

/// What epoll says when something is there: datagrams of the lane with this number, an order, or something at the TAP, the spare port or the connection
/// with this number or a higher one; the number after a connection's says that it has room.
const WAKE: u64 = Lane::ALL.len() as u64;
const FIRST: u64 = WAKE + 1;
/// Frames read from one TAP before others get their turn, or flushes; and bytes sealed before they are sent.
const FRAMES_PER_TURN: usize = 64;
const FLUSHES_PER_TURN: usize = 2;
const BYTES_PER_FLUSH: usize = 256 * 1024;

/// How long a worker that carries little needs the core at a time: the least there is to ask for.
const SHORT_TURN: Duration = Duration::from_micros(100);

/// How often a worker asks its sockets what they lost.
const LOOK_FOR_LOST: Duration = Duration::from_secs(1);

enum Order {
    Add(SegmentId, Box<dyn TapIo>),
    Remove(SegmentId),
    Write(SegmentId, Vec<u8>),
    Receive(Arc<Connection>),
    Listen(Vec<Arc<SparePort>>),
    Tidy,
    Meter(Option<Box<FlowTable>>, oneshot::Sender<Option<Box<FlowTable>>>),
    Stop,
}

/// A running worker.
pub struct Worker {
    handle: WorkerHandle,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Gives a worker orders.
#[derive(Clone)]
pub struct WorkerHandle {
    orders: Sender<Order>,
    waker: Arc<EventFd>,
}

impl WorkerHandle {
    /// Has a frame written to a segment's TAP, if the segment is there.
    pub fn write(&self, segment: SegmentId, frame: Vec<u8>) {
        self.order(Order::Write(segment, frame));
    }

    /// Has what comes over an open connection received.
    pub fn receive(&self, connection: Arc<Connection>) {
        self.order(Order::Receive(connection));
    }

    /// Has what comes by spare ports received from now on.
    pub fn listen(&self, ports: Vec<Arc<SparePort>>) {
        self.order(Order::Listen(ports));
    }

    /// Has closed spare ports let go.
    pub fn tidy(&self) {
        self.order(Order::Tidy);
    }

    /// Has it count packets by flow into this table from now on, or no more. Returns the table that was in use; none if the worker has ended.
    pub async fn meter_into(&self, table: Option<Box<FlowTable>>) -> Option<Box<FlowTable>> {
        let (answer, filled) = oneshot::channel();
        self.order(Order::Meter(table, answer));
        filled.await.ok().flatten()
    }

    fn order(&self, order: Order) {
        // A worker ends only when told to; then no orders follow.
        let _ = self.orders.send(order);
        let _ = self.waker.write(1);
    }
}

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    /// When a worker with nothing to do stays awake.
    pub pauses: Pauses,
    /// The forwarding tables.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The way to the node.
    pub punts: PuntSender,
    /// What was dropped.
    pub counters: Arc<Counters>,
    /// The time.
    pub clock: Clock,
}

impl Worker {
    /// Starts a worker on its sockets. It works with what `snapshot` holds, tells the node by a `PuntSender`, and asks `pauses`
    /// whether to sleep.
    pub fn start(number: usize, port: Port, shared: &Shared) -> Result<Worker> {
        let Shared { pauses, snapshot, punts, counters, clock } = shared.clone();
        let what = || "cannot start a packet worker".to_owned();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing(what)?;
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).doing(what)?;
        let waker = Arc::new(waker);
        epoll.add(&*waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKE)).doing(what)?;
        for lane in Lane::ALL {
            epoll.add(port.udp.fd(lane), EpollEvent::new(EpollFlags::EPOLLIN, lane as u64)).doing(what)?;
        }
        let (orders, inbox) = channel();
        let path = Datapath::new(port.udp.max_segments());
        let out = Outlets { taps: BTreeMap::new(), port, lane: Lane::Main, lost: (0, Time::ZERO), punts, counters };
        let run = Run {
            epoll,
            pauses,
            is_light: false,
            waker: waker.clone(),
            inbox,
            path,
            out,
            snapshot,
            clock,
            streams: Streams::default(),
            spares: Spares::default(),
            next_number: FIRST,
            ready: Vec::new(),
            frame: vec![0; MAX_FRAME + 1],
            buffers: vec![0; BATCH * BUFFER],
        };
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(|| run.run()).doing(what)?;
        Ok(Worker { handle: WorkerHandle { orders, waker }, thread: Some(thread) })
    }

    /// A handle of it.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }

    /// Gives the worker a segment's TAP queue.
    pub fn add(&self, segment: SegmentId, tap: Box<dyn TapIo>) {
        self.handle.order(Order::Add(segment, tap));
    }

    /// Takes it away; the queue is closed.
    pub fn remove(&self, segment: SegmentId) {
        self.handle.order(Order::Remove(segment));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Run {
    epoll: Epoll,
    pauses: Pauses,
    is_light: bool,
    waker: Arc<EventFd>,
    inbox: Receiver<Order>,
    path: Datapath,
    out: Outlets,
    snapshot: Arc<ArcSwap<Snapshot>>,
    clock: Clock,
    streams: Streams,
    spares: Spares,
    next_number: u64,
    /// The TAPs to read this time.
    ready: Vec<SegmentId>,
    frame: Vec<u8>,
    /// What datagrams are received into.
    buffers: Vec<u8>,
}

struct Tap {
    io: Box<dyn TapIo>,
    number: u64,
    /// It may have frames: epoll said so, or what was written to it may have been answered at once.
    is_ready: bool,
}

impl Run {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            // Level-triggered: nothing has to be read until it is empty, so a lone packet costs one call to take it.
            let count = match self.wait(&mut events) {
                Ok(count) => count,
                Err(error) => {
                    tracing::error!(%error, "a packet worker cannot wait for packets; restart the router");
                    return;
                }
            };
            let mut has_datagrams = [false; Lane::ALL.len()];
            for event in &events[..count] {
                match event.data() {
                    WAKE => {
                        let _ = self.waker.read();
                        if !self.take_orders() {
                            return;
                        }
                    }
                    lane @ 0..WAKE => has_datagrams[lane as usize] = true,
                    number => self.note_ready(number),
                }
            }
            let snapshot = self.snapshot.load();
            for lane in Lane::ALL.into_iter().filter(|lane| has_datagrams[*lane as usize]) {
                self.receive(&snapshot, lane, None);
            }
            while let Some(port) = self.spares.take_ready() {
                self.receive(&snapshot, Lane::Main, Some(&port.udp));
            }
            self.receive_streams(&snapshot);
            let mut ready = std::mem::take(&mut self.ready);
            ready.extend(self.out.taps.iter().filter(|(_, tap)| tap.is_ready).map(|(segment, _)| *segment));
            ready.drain(..).for_each(|segment| self.read_tap(&snapshot, segment));
            self.ready = ready;
        }
    }

    /// Waits for something to do: awake for a while if that pays, with the core left to other threads, then asleep.
    fn wait(&mut self, events: &mut [EpollEvent]) -> nix::Result<usize> {
        let began = self.clock.now();
        let awake = self.pauses.begin(began);
        self.ask_for_turns(began);
        let (mut now, mut timeout) = (began, EpollTimeout::ZERO);
        let count = loop {
            if awake.is_none_or(|awake| now.since(began) >= awake) {
                timeout = EpollTimeout::NONE;
            }
            match self.epoll.wait(events, timeout) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
                Ok(0) => {
                    std::thread::yield_now();
                    let offered = std::mem::replace(&mut now, self.clock.now());
                    if self.pauses.is_contended(now.since(offered), now) {
                        timeout = EpollTimeout::NONE;
                    }
                }
                Ok(count) => break count,
            }
        };
        let now = self.clock.now();
        let rest = now.since(began);
        if let Some(awake) = awake {
            self.pauses.end(rest, awake);
        }
        self.path.rested(rest, now, &mut self.out);
        self.out.count_lost(now);
        Ok(count)
    }

    /// A worker that carries little needs the core for moments, but soon; a busy worker, for as long as others.
    fn ask_for_turns(&mut self, now: Time) {
        let is_light = self.pauses.is_light(now);
        if is_light != self.is_light {
            self.is_light = is_light;
            // Where the kernel knows nothing of it, all wait equally long.
            let _ = weft_sys::set_time_slice(if is_light { SHORT_TURN } else { Duration::ZERO });
        }
    }

    /// Something is at a TAP, a connection or a spare port.
    fn note_ready(&mut self, number: u64) {
        if !self.streams.note(number) && !self.spares.note(number) {
            // A deleted interface reports nothing but an error: reading it will say so.
            self.out.taps.values_mut().filter(|tap| tap.number == number).for_each(|tap| tap.is_ready = true);
        }
    }

    fn take_orders(&mut self) -> bool {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Add(segment, io) => {
                    self.remove(segment);
                    let number = self.take_number();
                    match self.epoll.add(&io, EpollEvent::new(EpollFlags::EPOLLIN, number)) {
                        Ok(()) => drop(self.out.taps.insert(segment, Tap { io, number, is_ready: true })),
                        Err(error) => tracing::error!(%error, "cannot wait for frames of a segment"),
                    }
                }
                Order::Remove(segment) => self.remove(segment),
                Order::Write(segment, frame) => self.out.to_tap(segment, &VnetHeader::default(), &[&frame]),
                Order::Receive(connection) => {
                    let number = self.take_number();
                    if self.streams.add(&self.epoll, number, connection.clone()).is_err() {
                        self.out.port.tcp.close(&connection);
                    }
                }
                Order::Listen(ports) => {
                    ports.into_iter().for_each(|port| self.spares.add(&self.epoll, &mut self.next_number, port));
                }
                Order::Tidy => self.spares.tidy(),
                // Without a receiver the table is dropped.
                Order::Meter(table, answer) => drop(answer.send(self.path.meter_into(table))),
                Order::Stop => return false,
            }
        }
        true
    }

    fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 2;
        number
    }

    /// Takes one read from each of some connections that have something.
    fn receive_streams(&mut self, snapshot: &Snapshot) {
        self.out.lane = Lane::Main;
        let Run { streams, epoll, buffers, path, out, pauses, clock, .. } = self;
        let ended = streams.receive(epoll, &mut buffers[..BYTES_PER_READ], |datagrams| {
            pauses.carried(Last::Datagrams, path.datagrams(snapshot, clock.now(), datagrams, out));
        });
        ended.into_iter().for_each(|connection| out.port.tcp.on_ended(connection));
    }

    fn remove(&mut self, segment: SegmentId) {
        if let Some(tap) = self.out.taps.remove(&segment) {
            let _ = self.epoll.delete(&tap.io);
        }
    }

    /// Takes one batch from a lane of the worker's own sockets, or of a spare port's.
    fn receive(&mut self, snapshot: &Snapshot, lane: Lane, spare: Option<&UdpPort>) {
        let mut meta = [RecvMeta::default(); BATCH];
        let mut chunks = self.buffers.chunks_mut(BUFFER);
        let mut slices: [IoSliceMut<'_>; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        // Nothing, or what ICMP reported about an earlier datagram: the socket goes on.
        let udp = spare.unwrap_or(&self.out.port.udp);
        let Ok(count) = udp.receive(lane, &mut slices, &mut meta) else { return };
        let now = self.clock.now();
        let mut filled: Vec<RxBuffer<'_>> = (self.buffers.chunks_mut(BUFFER).zip(&meta[..count]))
            .map(|(data, meta)| (udp.path_of(meta), &mut data[..meta.len], meta.stride))
            .map(|(from, data, stride)| RxBuffer { from, data, stride })
            .collect();
        self.out.lane = lane;
        let carried = self.path.datagrams(snapshot, now, &mut filled, &mut self.out);
        self.pauses.carried(Last::Datagrams, carried);
    }

    fn read_tap(&mut self, snapshot: &Snapshot, segment: SegmentId) {
        let mut now = self.clock.now();
        if let Some(tap) = self.out.taps.get_mut(&segment) {
            tap.is_ready = false;
        }
        let mut flushes = 0;
        for _ in 0..FRAMES_PER_TURN {
            if flushes == FLUSHES_PER_TURN {
                break;
            }
            let Some(tap) = self.out.taps.get_mut(&segment) else { break };
            match tap.io.read(&mut self.frame) {
                Ok((vnet, len)) => {
                    self.pauses.carried(Last::Frames, len);
                    let frame = &mut self.frame[..len];
                    self.path.frame(snapshot, segment, &vnet, frame, now, &mut self.out);
                    if self.path.sender.batch.len() >= BYTES_PER_FLUSH {
                        self.flush();
                        flushes += 1;
                        now = self.clock.now();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if !is_gone(&error) => self.out.dropped(DropReason::Malformed),
                Err(error) => {
                    tracing::warn!(%error, "the interface of a segment is gone; attach to it again or restart the router");
                    self.remove(segment);
                    break;
                }
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        for (run, bytes) in self.path.sender.batch.runs() {
            self.out.send(run.lane, run.to, bytes, run.stride);
        }
        self.path.sender.batch.clear();
    }
}

/// Where results go.
struct Outlets {
    taps: BTreeMap<SegmentId, Tap>,
    port: Port,
    /// The lane of the datagrams being received.
    lane: Lane,
    /// Datagrams that the sockets had lost when last asked, modulo 2^32, and when that was.
    lost: (u32, Time),
    punts: PuntSender,
    counters: Arc<Counters>,
}

impl Outlets {
    /// Counts what the sockets lost, once a second.
    fn count_lost(&mut self, now: Time) {
        let (before, at) = self.lost;
        if now.since(at) >= LOOK_FOR_LOST {
            self.lost = (self.port.udp.lost().unwrap_or(before), now);
            self.counters.receive_full.fetch_add(self.lost.0.wrapping_sub(before).into(), Ordering::Relaxed);
        }
    }

    fn send(&self, lane: Lane, to: Path, datagrams: &[u8], stride: usize) {
        if self.port.send(lane, to, datagrams, stride).is_err() {
            self.counters.send_failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Sink for Outlets {
    fn offloads(&self, segment: SegmentId) -> TapOffloads {
        self.taps.get(&segment).map_or(TapOffloads::NONE, |tap| tap.io.offloads())
    }

    fn to_tap(&mut self, segment: SegmentId, vnet: &VnetHeader, parts: &[&[u8]]) {
        let Some(tap) = self.taps.get_mut(&segment) else { return };
        tap.is_ready = true;
        if tap.io.write(vnet, parts).is_err() {
            self.counters.tap_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn relay(&mut self, to: Path, datagrams: &[u8], stride: usize) {
        self.send(self.lane, to, datagrams, stride);
    }

    fn punt(&mut self, punt: Punt) {
        if !self.punts.send(punt) {
            self.counters.punts_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn dropped(&mut self, reason: DropReason) {
        // The enum's order is the counters' order.
        self.counters.dropped[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}
