//! Flow export: what flows between this host's containers and those of other hosts carried, told to a collector by IPFIX (RFC 7011) over UDP.
//!
//! Once a second:
//!
//! 1. Each packet worker's table of flows is changed for an empty one.
//! 2. `cache` sums up what was in it, and says which flows have a record now.
//! 3. `ipfix` writes the records into messages, and before them how they are read.
//! 4. The messages are sent, some at a time: collectors keep up with that.

mod cache;
mod ipfix;

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};
use weft_crypto::{HostLabel, PeerId, Time};
use weft_mesh::datapath::metering::{FlowDirection, FlowTable};
use weft_mesh::wire::SegmentId;

use cache::{FlowCache, FlowRecord, MAX_FLOWS};
use ipfix::{Encoder, Losses, Message};

use crate::daemon::api::Api;
use crate::dataplane::clock::Clock;
use crate::dataplane::worker::WorkerHandle;

/// How often workers are asked.
const ROUND: Duration = Duration::from_secs(1);
/// Flows of each family that a worker counts in a round: what a table of 8,192 places takes, 1.4 MB with both families'.
const FLOWS_PER_WORKER: usize = 7_168;
/// Rounds from one time that all names are told to the next: over UDP they may be lost.
const ROUNDS_PER_NAMES: u32 = 60;
/// Messages sent at once, a fifth of the usual receive buffer, and the time between.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_millis(5);
/// How long looking up the collector may take, and rounds until it is tried again.
const LOOK_UP: Duration = Duration::from_secs(3);
const ROUNDS_PER_LOOK_UP: u32 = 10;
/// Rounds without a failure after which records are taken to arrive again. In each of them there is something to send.
const ROUNDS_TO_RECOVER: u32 = 3;
/// How long the last records may take when the router ends.
const LAST: Duration = Duration::from_millis(500);

/// A running export.
pub struct FlowExport {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl FlowExport {
    /// Has the workers count flows, and tells a collector, named as `HOST:PORT`, of them.
    pub fn start(collector: String, workers: Vec<WorkerHandle>, clock: Clock, own: &PeerId, api: Api) -> FlowExport {
        let (stop, stopped) = oneshot::channel();
        let own = interface_number(own);
        let exporter = Exporter {
            collector,
            workers,
            clock,
            own,
            encoder: Encoder::new(own),
            socket: None,
            spare: Some(Box::new(FlowTable::new(FLOWS_PER_WORKER, rand::random()))),
            cache: FlowCache::new(MAX_FLOWS),
            hosts: HashMap::new(),
            segments: HashSet::new(),
            losses: Losses::default(),
            round: 0,
            unanswered: None,
            failed: None,
            api,
        };
        FlowExport { stop, task: tokio::spawn(exporter.run(stopped)) }
    }

    /// Tells of all flows there are, and ends.
    pub async fn finish(self) {
        let _ = self.stop.send(());
        // What a slow collector does not take in time is lost with the router.
        let _ = timeout(LAST, self.task).await;
    }
}

struct Exporter {
    collector: String,
    workers: Vec<WorkerHandle>,
    clock: Clock,
    /// This host's interface number.
    own: u32,
    socket: Option<UdpSocket>,
    /// The empty table.
    spare: Option<Box<FlowTable>>,
    cache: FlowCache,
    encoder: Encoder,
    /// The other hosts' interface numbers and the segments of this one, as of when names were last told.
    hosts: HashMap<HostLabel, u32>,
    segments: HashSet<SegmentId>,
    losses: Losses,
    round: u32,
    /// The message sent last: that it was refused shows with the next one.
    unanswered: Option<Message>,
    /// The round of the last failure, while records are not taken to arrive.
    failed: Option<u32>,
    api: Api,
}

impl Exporter {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_last = tokio::select! {
                _ = rounds.tick() => false,
                // The export lives no longer than who stops it.
                _ = &mut stop => true,
            };
            let mut records = self.collect().await;
            let now = self.clock.now();
            records.extend(if is_last { self.cache.take_all() } else { self.cache.take_due(now) });
            self.tell(&records).await;
            let messages = self.encoder.take();
            self.send(messages).await;
            if is_last {
                return;
            }
            self.round = self.round.wrapping_add(1);
        }
    }

    /// Changes each worker's table for an empty one and sums up; the records of flows that there is no room for.
    async fn collect(&mut self) -> Vec<FlowRecord> {
        let mut records = Vec::new();
        for worker in &self.workers {
            let spare = self.spare.take();
            let empty = spare.unwrap_or_else(|| Box::new(FlowTable::new(FLOWS_PER_WORKER, rand::random())));
            // None the first time.
            let Some(mut table) = worker.meter_into(Some(empty)).await else { continue };
            let (flows, ignored) = table.drain();
            records.extend(flows.filter_map(|(key, count)| self.cache.add(key, count)));
            self.losses.ignored.packets += ignored.packets;
            self.losses.ignored.octets += ignored.octets;
            self.api.observers.tallies.flow_packets_ignored(ignored.packets);
            self.spare = Some(table);
        }
        self.api.observers.tallies.flows_held(self.cache.len());
        records
    }

    /// Writes records, and before them what is needed to read them: a collector that has just come reads them, too.
    async fn tell(&mut self, records: &[FlowRecord]) {
        let (now, unix) = (self.clock.now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        // One that was not there has heard no names yet.
        let is_due = self.round.is_multiple_of(ROUNDS_PER_NAMES) || self.failed.is_some();
        if records.is_empty() && !is_due {
            return;
        }
        self.encoder.set_time(unix.as_secs());
        self.encoder.templates();
        self.encoder.sampling();
        self.encoder.losses(&self.losses);
        let is_unknown = |record: &FlowRecord| {
            !self.hosts.contains_key(&record.key.peer) || !self.segments.contains(&record.key.segment)
        };
        if is_due || records.iter().any(is_unknown) {
            self.tell_names().await;
        }
        let unix_millis = |time: Time| (unix.saturating_sub(now.since(time))).as_millis() as u64;
        for record in records {
            let key = &record.key;
            let other = self.hosts.get(&key.peer).copied().unwrap_or(0);
            let hosts = match key.direction {
                FlowDirection::Egress => [self.own, other],
                FlowDirection::Ingress => [other, self.own],
            };
            let times = [record.count.first, record.count.last].map(unix_millis);
            self.encoder.flow(record, hosts, segment_number(key.segment), times);
        }
    }

    /// Tells the names of hosts and segments.
    async fn tell_names(&mut self) {
        // Names that are not to be had now are told the next time.
        let Ok(measures) = self.api.node.measures().await else { return };
        self.encoder.host(self.own, &self.api.options.name);
        self.hosts.clear();
        for peer in measures.peers {
            let Ok(key) = peer.peer_id.parse::<PeerId>() else { continue };
            self.encoder.host(interface_number(&key), &peer.name);
            self.hosts.insert(key.label(), interface_number(&key));
        }
        self.segments.clear();
        for endpoint in self.api.attachments.all().await {
            let segment = SegmentId::of(&endpoint.segment);
            if self.segments.insert(segment) {
                self.encoder.segment(segment_number(segment), &endpoint.segment);
            }
        }
    }

    async fn send(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        self.connect().await;
        for (sent, message) in messages.into_iter().enumerate() {
            if sent > 0 && sent.is_multiple_of(BURST) {
                sleep(PAUSE).await;
            }
            self.send_one(message).await;
        }
        if self.failed.is_some_and(|round| self.round.wrapping_sub(round) > ROUNDS_TO_RECOVER) {
            info!("flow records get to the collector {} again, as far as this host can see", self.collector);
            self.failed = None;
            self.api.observers.collector.store(None);
        }
    }

    async fn send_one(&mut self, message: Message) {
        let Some(socket) = &self.socket else { return self.on_lost(&message) };
        let result = match socket.send(&message.bytes).await {
            // It tells of the message before: this one has not been sent yet.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                let again = socket.send(&message.bytes).await;
                self.on_failure(&error);
                self.unanswered.take().iter().for_each(|before| self.on_lost(before));
                again
            }
            result => result,
        };
        match result {
            Ok(_) => {
                let before = self.unanswered.replace(message).map_or(0, |before| before.flows);
                self.api.observers.tallies.flow_records("sent", before);
            }
            Err(error) => {
                self.on_failure(&error);
                self.on_lost(&message);
            }
        }
    }

    fn on_lost(&mut self, message: &Message) {
        self.losses.flows += message.flows;
        self.losses.packets += message.packets;
        self.losses.octets += message.octets;
        self.api.observers.tallies.flow_records("lost", message.flows);
    }

    /// Sees to a socket: at the start, and again while the collector does not answer. A name is looked up now and then only.
    async fn connect(&mut self) {
        let is_late = self.failed.is_none() || self.round.is_multiple_of(ROUNDS_PER_LOOK_UP);
        let is_due = match &self.socket {
            None => is_late || self.collector.parse::<SocketAddr>().is_ok(),
            Some(_) => is_late && self.failed.is_some(),
        };
        if is_due {
            // Of several addresses of a name another each time.
            let turn = (self.round / ROUNDS_PER_LOOK_UP) as usize;
            match connect(&self.collector, turn).await {
                Ok(socket) => self.socket = Some(socket),
                Err(error) => self.on_failure(&error),
            }
        }
    }

    fn on_failure(&mut self, error: &std::io::Error) {
        if self.failed.replace(self.round).is_none() {
            let problem = format!(
                "flow records do not get to the collector {}: {error}; is it running there, and is --flow-export right?",
                self.collector
            );
            warn!("{problem}");
            self.api.observers.collector.store(Some(problem.into()));
        }
    }
}

/// A socket to the collector.
async fn connect(collector: &str, turn: usize) -> std::io::Result<UdpSocket> {
    let found: Vec<SocketAddr> = timeout(LOOK_UP, tokio::net::lookup_host(collector)).await??.collect();
    let address =
        *found.get(turn % found.len().max(1)).ok_or_else(|| std::io::Error::other("the name has no address"))?;
    let local = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// The number of a host's interface in records: the first four bytes of its key, which people see as eight digits.
fn interface_number(PeerId([a, b, c, d, ..]): &PeerId) -> u32 {
    u32::from_be_bytes([*a, *b, *c, *d])
}

/// A segment's number in records: the first four bytes of its id.
fn segment_number(SegmentId([a, b, c, d, ..]): SegmentId) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}
