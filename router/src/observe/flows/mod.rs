//! Flow export: sends records of flows between this host's containers and those of other hosts to a collector, by IPFIX (RFC 7011) over UDP.
//!
//! Once a second:
//!
//! 1. Each packet worker hands over its table of flows and gets an empty one.
//! 2. `cache` sums the tables up and returns the records that are due.
//! 3. `ipfix` encodes them, behind the templates that a collector needs to decode them.
//! 4. `collector` sends the messages in small bursts, so that the collector's receive buffer holds them.

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

/// Interval between exchanges of tables.
const ROUND: Duration = Duration::from_secs(1);
/// Rounds between two announcements of all names, which UDP may lose, and between two searches for a missing one.
const ROUNDS_PER_NAMES: u32 = 60;
const ROUNDS_PER_QUESTION: u32 = 10;
/// Hosts, and segments, whose names are remembered at most; some may be gone.
const MAX_NAMES: usize = 8_192;
/// Flows in a round that get a record at once because the cache is full. Packets of further ones count as ignored.
const MAX_UNKEPT: usize = 16_384;
/// Records that are encoded before the next ones are: bounds memory.
const RECORDS_PER_BATCH: usize = 4_096;
/// Messages in a burst, a fifth of the usual receive buffer, and the pause behind it; the second is used while the router stops.
const BURST: usize = 32;
const PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(1);
/// Time that the node, and the endpoints, may take to tell names.
const NAMES_WITHIN: Duration = Duration::from_millis(500);
/// Time that the last records may take when the router stops.
const LAST: Duration = Duration::from_secs(1);
/// Rounds without a failure after which the collector counts as well again.
const ROUNDS_TO_RECOVER: u32 = 3;

/// A running export.
pub struct FlowExport {
    is_ending: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl FlowExport {
    /// Starts counting flows in all workers, and sending records to `collector`, which is `HOST:PORT`.
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
            owes_names: true,
            losses: Losses::default(),
            round: 0,
            failed: None,
            is_ending: is_ending.clone(),
            api,
        };
        FlowExport { is_ending, stop, task: tokio::spawn(exporter.run(stopped)) }
    }

    /// Sends records of all flows, and stops.
    pub async fn finish(mut self) {
        self.is_ending.store(true, Ordering::Relaxed);
        let _ = self.stop.send(());
        if timeout(LAST, &mut self.task).await.is_err() {
            self.task.abort();
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
    /// An empty table for the next worker.
    spare: Option<Box<FlowTable>>,
    cache: FlowCache,
    encoder: Encoder,
    collector: Collector,
    /// Interface numbers of hosts, and segments, whose names were sent.
    hosts: HashMap<HostLabel, u32>,
    segments: HashSet<SegmentId>,
    /// Round of the last search for names.
    asked: u32,
    /// Whether all names are to be sent, since the collector may have heard none.
    owes_names: bool,
    losses: Losses,
    round: u32,
    /// Round of the last failure, until the collector counts as well again.
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
                self.see_to_collector();
                return;
            }
            self.round = self.round.wrapping_add(1);
        }
    }

    /// Exchanges the workers' tables and sums them up. Returns records of flows that the cache has no room for.
    async fn collect(&mut self) -> Vec<FlowRecord> {
        let (mut unkept, before) = (Vec::new(), self.losses.ignored.packets);
        for worker in &self.workers {
            let empty = self.spare.take().unwrap_or_else(|| Box::new(FlowTable::new(&self.hashing)));
            // In its first round a worker has no table to hand over.
            let Some(mut table) = worker.meter_into(Some(empty)).await else { continue };
            let (flows, uncounted) = table.drain();
            self.losses.ignored.add(uncounted.packets, uncounted.octets);
            for (key, count) in flows {
                match self.cache.add(key, count) {
                    None => {}
                    Some(record) if unkept.len() < MAX_UNKEPT => unkept.push(record),
                    Some(FlowRecord { count, .. }) => self.losses.ignored.add(count.packets, count.octets),
                }
            }
            self.spare = Some(table);
        }
        self.api.observers.tallies.flow_packets_ignored(self.losses.ignored.packets - before);
        unkept
    }

    /// Keeps the socket to the collector up to date, and clears the problem once sending works.
    fn see_to_collector(&mut self) {
        let outcome = self.collector.check(self.round);
        let is_new = outcome.is_new;
        self.note(outcome);
        if is_new && self.failed.is_some() {
            // It has to prove itself.
            self.failed = Some(self.round);
        }
        let is_silent = self.failed.is_some_and(|round| self.round.wrapping_sub(round) > ROUNDS_TO_RECOVER);
        if is_silent && self.collector.is_connected() {
            info!("flow records get to the collector {} again, as far as this host can see", self.collector.name());
            (self.failed, self.owes_names) = (None, true);
            self.api.observers.collector.store(None);
        }
    }

    /// Sends records behind the templates for them: a collector that started a moment ago can decode them, too.
    async fn export(&mut self, records: &[FlowRecord]) {
        self.owes_names |= self.round.is_multiple_of(ROUNDS_PER_NAMES);
        // A collector that failed is sent something in each round, to see whether it goes on refusing.
        let is_probe = self.failed.is_some() && self.collector.is_connected();
        let is_due = self.owes_names && self.failed.is_none();
        if records.is_empty() && !is_due && !is_probe {
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
        let is_ending = self.is_ending.load(Ordering::Relaxed);
        if !is_ending && (is_due || (may_ask && records.iter().any(is_unknown))) {
            self.tell_names(is_due).await;
        }
        let unix_millis = |time: Time| (unix.saturating_sub(now.since(time))).as_millis() as u64;
        for batch in records.chunks(RECORDS_PER_BATCH) {
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
        if records.is_empty() {
            self.send().await;
        }
    }

    /// Encodes the names of hosts and segments: all, or only those that were not sent yet.
    async fn tell_names(&mut self, all: bool) {
        self.asked = self.round;
        // Without the node there are no names; the next search may find them.
        let Ok(Ok(measures)) = timeout(NAMES_WITHIN, self.api.node.measures()).await else { return };
        let Ok(endpoints) = timeout(NAMES_WITHIN, self.api.attachments.all()).await else { return };
        self.owes_names &= !all;
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
        let names: HashSet<&str> = endpoints.iter().map(|endpoint| endpoint.segment.as_str()).collect();
        for name in names {
            let segment = SegmentId::of(name);
            if self.segments.insert(segment) || all {
                self.encoder.segment(segment_number(segment), name);
            }
        }
    }

    /// Sends the encoded messages.
    async fn send(&mut self) {
        for (sent, message) in self.encoder.take().into_iter().enumerate() {
            if sent > 0 && sent.is_multiple_of(BURST) {
                sleep(if self.is_ending.load(Ordering::Relaxed) { LAST_PAUSE } else { PAUSE }).await;
            }
            let outcome = self.collector.send(message);
            self.note(outcome);
        }
    }

    fn note(&mut self, Outcome { arrived, lost, error, is_new: _ }: Outcome) {
        let tallies = &self.api.observers.tallies;
        tallies.flow_records("sent", arrived);
        for Message { flows, packets, octets, .. } in lost {
            self.losses.flows += flows;
            self.losses.packets += packets;
            self.losses.octets += octets;
            tallies.flow_records("lost", flows);
        }
        let Some(error) = error else { return };
        let problem = format!(
            "flow records do not get to the collector {}: {error}; is it running there, and is --flow-export right?",
            self.collector.name()
        );
        if self.failed.replace(self.round).is_none() {
            warn!("{problem}");
        }
        self.api.observers.collector.store(Some(problem.into()));
    }
}

/// Returns the number of a host's interface in records: the first four bytes of its key, shown to people as eight digits.
fn interface_number(PeerId([a, b, c, d, ..]): &PeerId) -> u32 {
    u32::from_be_bytes([*a, *b, *c, *d])
}

/// Returns a segment's number in records: the first four bytes of its id.
fn segment_number(SegmentId([a, b, c, d, ..]): SegmentId) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}
