//! Flow export: tells a collector by IPFIX (RFC 7011) over UDP what the flows between this host's containers and those of other hosts carried.
//!
//! Once a second:
//!
//! 1. Each packet worker gets an empty table for the one that it counted into.
//! 2. `cache` sums up, and says which flows have a record now.
//! 3. `ipfix` writes the records into messages, and before them how they are read.
//! 4. `collector` sends the messages, some at a time: collectors keep up with that.

mod cache;
mod collector;
mod ipfix;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};
use weft_crypto::{HostLabel, PeerId, Time};
use weft_mesh::datapath::metering::{FlowDirection, FlowHashing, FlowTable};
use weft_mesh::wire::SegmentId;

use cache::{FlowCache, FlowRecord};
use collector::{Collector, Outcome};
use ipfix::{Encoder, Losses, Message};

use crate::daemon::api::Api;
use crate::dataplane::clock::Clock;
use crate::dataplane::worker::WorkerHandle;

/// How often workers are asked.
const ROUND: Duration = Duration::from_secs(1);
/// Rounds after which all names are told again, since over UDP they may be lost; and after which names are asked for again that were
/// not known.
const ROUNDS_PER_NAMES: u32 = 60;
const ROUNDS_PER_QUESTION: u32 = 10;
/// Names that are kept of hosts and segments that may be gone.
const MAX_NAMES: usize = 8_192;
/// Records that are due at once in a round, because there is no room for their flows. What more there is counts as ignored.
const MAX_UNKEPT: usize = 16_384;
/// Records that are written before they are sent.
const RECORDS_PER_BATCH: usize = 4_096;
/// Messages sent at once, a fifth of the usual receive buffer; the time between, and when the router ends.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(1);
/// How long the last records may take when the router ends.
const LAST: Duration = Duration::from_secs(1);
/// Rounds without a failure after which records are taken to arrive again.
const ROUNDS_TO_RECOVER: u32 = 3;

/// A running export.
pub struct FlowExport {
    is_ending: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl FlowExport {
    /// Has the workers count flows, and tells a collector, named as `HOST:PORT`, of them.
    pub fn start(collector: String, workers: Vec<WorkerHandle>, clock: Clock, own: &PeerId, api: Api) -> FlowExport {
        let (stop, stopped) = oneshot::channel();
        let is_ending = Arc::<AtomicBool>::default();
        let own = interface_number(own);
        let exporter = Exporter {
            workers,
            clock,
            own,
            hashing: FlowHashing::new(rand::random()),
            spare: None,
            cache: FlowCache::new(cache::MAX_FLOWS),
            encoder: Encoder::new(own),
            collector: Collector::new(collector),
            hosts: HashMap::new(),
            segments: HashSet::new(),
            asked: 0,
            losses: Losses::default(),
            round: 0,
            failed: None,
            is_ending: is_ending.clone(),
            api,
        };
        FlowExport { is_ending, stop, task: tokio::spawn(exporter.run(stopped)) }
    }

    /// Tells the collector of all flows, and ends.
    pub async fn finish(self) {
        self.is_ending.store(true, Ordering::Relaxed);
        let _ = self.stop.send(());
        if timeout(LAST, self.task).await.is_err() {
            warn!("the last flow records could not be sent in time; they are lost");
        }
    }
}

struct Exporter {
    workers: Vec<WorkerHandle>,
    clock: Clock,
    /// This host's interface number.
    own: u32,
    hashing: FlowHashing,
    /// An empty table.
    spare: Option<Box<FlowTable>>,
    cache: FlowCache,
    encoder: Encoder,
    collector: Collector,
    /// Interface numbers of hosts whose names were told, and segments whose names were told.
    hosts: HashMap<HostLabel, u32>,
    segments: HashSet<SegmentId>,
    /// The round in which names were asked for last.
    asked: u32,
    losses: Losses,
    round: u32,
    /// The round of the last failure, while records are not taken to arrive.
    failed: Option<u32>,
    is_ending: Arc<AtomicBool>,
    api: Api,
}

impl Exporter {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_last = tokio::select! {
                _ = rounds.tick() => false,
                _ = &mut stop => true,
            };
            let mut records = self.collect().await;
            let now = self.clock.now();
            records.extend(if is_last { self.cache.take_all() } else { self.cache.take_due(now) });
            self.api.observers.tallies.flows_held(self.cache.len());
            self.see_to_collector();
            self.export(&records).await;
            if is_last {
                return;
            }
            self.round = self.round.wrapping_add(1);
        }
    }

    /// Changes each worker's table for an empty one and sums up. Returns records of flows that there is no room for.
    async fn collect(&mut self) -> Vec<FlowRecord> {
        let (mut unkept, mut ignored) = (Vec::new(), 0);
        for worker in &self.workers {
            let empty = self.spare.take().unwrap_or_else(|| Box::new(FlowTable::new(&self.hashing)));
            // There is none the first time.
            let Some(mut table) = worker.meter_into(Some(empty)).await else { continue };
            let (flows, uncounted) = table.drain();
            ignored += uncounted.packets;
            self.losses.ignored.packets += uncounted.packets;
            self.losses.ignored.octets += uncounted.octets;
            for (key, count) in flows {
                match self.cache.add(key, count) {
                    None => {}
                    Some(record) if unkept.len() < MAX_UNKEPT => unkept.push(record),
                    Some(FlowRecord { count, .. }) => {
                        ignored += count.packets;
                        self.losses.ignored.packets += count.packets;
                        self.losses.ignored.octets += count.octets;
                    }
                }
            }
            self.spare = Some(table);
        }
        self.api.observers.tallies.flow_packets_ignored(ignored);
        unkept
    }

    /// Keeps the way to the collector open, and notes what became of the message before.
    fn see_to_collector(&mut self) {
        let outcome = self.collector.check(self.round, self.failed.is_some());
        self.note(outcome);
        let is_silent = self.failed.is_some_and(|round| self.round.wrapping_sub(round) > ROUNDS_TO_RECOVER);
        if is_silent && self.collector.is_connected() {
            info!("flow records get to the collector {} again, as far as this host can see", self.collector.name());
            self.failed = None;
            self.api.observers.collector.store(None);
        }
    }

    /// Writes and sends records, and before them what is needed to read them: a collector that has just come reads them, too.
    async fn export(&mut self, records: &[FlowRecord]) {
        let is_due = self.round.is_multiple_of(ROUNDS_PER_NAMES) || self.failed.is_some();
        if records.is_empty() && !is_due {
            return;
        }
        let (now, unix) = (self.clock.now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        self.encoder.set_time(unix.as_secs());
        self.encoder.templates();
        self.encoder.sampling();
        self.encoder.losses(&self.losses);
        let is_unknown = |record: &FlowRecord| {
            !self.hosts.contains_key(&record.key.peer) || !self.segments.contains(&record.key.segment)
        };
        let may_ask = self.round.wrapping_sub(self.asked) >= ROUNDS_PER_QUESTION;
        if is_due || (may_ask && records.iter().any(is_unknown)) {
            self.tell_names(is_due).await;
        }
        let unix_millis = |time: Time| (unix.saturating_sub(now.since(time))).as_millis() as u64;
        let batches = records.chunks(RECORDS_PER_BATCH).chain(records.is_empty().then_some(records));
        for batch in batches {
            for record in batch {
                let key = &record.key;
                let other = self.hosts.get(&key.peer).copied().unwrap_or(0);
                let hosts = match key.direction {
                    FlowDirection::Egress => [self.own, other],
                    FlowDirection::Ingress => [other, self.own],
                };
                let times = [record.count.first, record.count.last].map(unix_millis);
                self.encoder.flow(record, hosts, segment_number(key.segment), times);
            }
            self.send().await;
        }
    }

    /// Tells the names of hosts and segments: all, or those that were not told yet.
    async fn tell_names(&mut self, all: bool) {
        self.asked = self.round;
        // Names that are not to be had now are told the next time.
        let Ok(measures) = self.api.node.measures().await else { return };
        if self.hosts.len() > MAX_NAMES || self.segments.len() > MAX_NAMES {
            self.hosts.clear();
            self.segments.clear();
        }
        if all {
            self.encoder.host(self.own, &self.api.options.name);
        }
        for peer in measures.peers {
            let Ok(key) = peer.peer_id.parse::<PeerId>() else { continue };
            let is_new = self.hosts.insert(key.label(), interface_number(&key)).is_none();
            if all || is_new {
                self.encoder.host(interface_number(&key), &peer.name);
            }
        }
        let endpoints = self.api.attachments.all().await;
        let names: HashSet<&str> = endpoints.iter().map(|endpoint| endpoint.segment.as_str()).collect();
        for name in names {
            let segment = SegmentId::of(name);
            if self.segments.insert(segment) || all {
                self.encoder.segment(segment_number(segment), name);
            }
        }
    }

    /// Sends what is written.
    async fn send(&mut self) {
        for (sent, message) in self.encoder.take().into_iter().enumerate() {
            if sent > 0 && sent.is_multiple_of(BURST) {
                sleep(if self.is_ending.load(Ordering::Relaxed) { LAST_PAUSE } else { PAUSE }).await;
            }
            let outcome = self.collector.send(message);
            self.note(outcome);
        }
    }

    fn note(&mut self, Outcome { arrived, lost, error }: Outcome) {
        let tallies = &self.api.observers.tallies;
        tallies.flow_records("sent", arrived);
        for Message { flows, packets, octets, .. } in lost {
            self.losses.flows += flows;
            self.losses.packets += packets;
            self.losses.octets += octets;
            tallies.flow_records("lost", flows);
        }
        let Some(error) = error else { return };
        if self.failed.replace(self.round).is_none() {
            let problem = format!(
                "flow records do not get to the collector {}: {error}; is it running there, and is --flow-export right?",
                self.collector.name()
            );
            warn!("{problem}");
            self.api.observers.collector.store(Some(problem.into()));
        }
    }
}

/// The number of a host's interface in records: the first four bytes of its key, which people see as eight digits.
fn interface_number(PeerId([a, b, c, d, ..]): &PeerId) -> u32 {
    u32::from_be_bytes([*a, *b, *c, *d])
}

/// A segment's number in records: the first four bytes of its id.
fn segment_number(SegmentId([a, b, c, d, ..]): SegmentId) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}
