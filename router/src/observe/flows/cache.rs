//! Sums up the workers' counts by flow, and decides when a flow's record is due.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use weft_crypto::Time;
use weft_mesh::datapath::metering::{FlowCount, FlowKey};

/// Silence after which a flow's record is due.
const IDLE: Duration = Duration::from_secs(15);
/// The same for a connection that was closed.
const CLOSED: Duration = Duration::from_secs(2);
/// Interval between records of a flow that goes on.
const ACTIVE: Duration = Duration::from_secs(60);
/// Flows whose record is not due yet, at most: seven eighths of 65,536, which take 6.4 MB.
pub const MAX_FLOWS: usize = 57_344;

/// Flags of TCP that end a connection: FIN and RST.
const CLOSES: u8 = 0x05;

/// Reason for a record: `flowEndReason` (RFC 5102, section 5.11.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndReason {
    /// The flow is silent.
    Idle = 1,
    /// The flow goes on.
    Active = 2,
    /// The TCP connection was closed.
    Closed = 3,
    /// The router stops.
    Forced = 4,
    /// The cache is full.
    NoRoom = 5,
}

/// A flow's counters since its last record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowRecord {
    /// The flow.
    pub key: FlowKey,
    /// Its counters.
    pub count: FlowCount,
    /// Why the record is due.
    pub reason: EndReason,
}

/// Flows whose record is not due yet.
pub struct FlowCache {
    flows: HashMap<FlowKey, FlowCount>,
    most: usize,
}

impl FlowCache {
    /// Returns an empty cache for at most `most` flows.
    pub fn new(most: usize) -> FlowCache {
        FlowCache { flows: HashMap::new(), most }
    }

    /// Returns the number of flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Adds a worker's counters. Returns the flow's record if there is no room for another flow.
    pub fn add(&mut self, key: FlowKey, count: FlowCount) -> Option<FlowRecord> {
        let is_full = self.flows.len() >= self.most;
        match self.flows.entry(key) {
            Entry::Occupied(mut flow) => flow.get_mut().add(&count),
            Entry::Vacant(_) if is_full => return Some(FlowRecord { key, count, reason: EndReason::NoRoom }),
            Entry::Vacant(place) => drop(place.insert(count)),
        }
        None
    }

    /// Removes the flows whose record is due, and returns their records.
    pub fn take_due(&mut self, now: Time) -> Vec<FlowRecord> {
        let mut records = Vec::new();
        self.flows.retain(|key, count| {
            let reason = reason(count, now);
            records.extend(reason.map(|reason| FlowRecord { key: *key, count: *count, reason }));
            reason.is_none()
        });
        // Memory from a burst of flows goes back.
        if self.flows.capacity() > 8 * self.flows.len().max(128) {
            self.flows.shrink_to(2 * self.flows.len());
        }
        records
    }

    /// Removes all flows, and returns their records.
    pub fn take_all(&mut self) -> Vec<FlowRecord> {
        self.flows.drain().map(|(key, count)| FlowRecord { key, count, reason: EndReason::Forced }).collect()
    }
}

fn reason(count: &FlowCount, now: Time) -> Option<EndReason> {
    let (quiet, is_closed) = (now.since(count.last), count.tcp_flags & CLOSES != 0);
    if is_closed && quiet >= CLOSED {
        Some(EndReason::Closed)
    } else if quiet >= IDLE {
        Some(EndReason::Idle)
    } else if now.since(count.first) >= ACTIVE {
        Some(EndReason::Active)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use weft_crypto::HostLabel;
    use weft_mesh::datapath::metering::FlowDirection;
    use weft_mesh::wire::SegmentId;

    use super::*;

    fn key(port: u16) -> FlowKey {
        let addresses = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let (direction, segment, peer) = (FlowDirection::Egress, SegmentId::of("s"), HostLabel([1; 6]));
        FlowKey { direction, segment, peer, addresses, protocol: 6, ports: [port, 80] }
    }

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    fn count(first: u64, last: u64, tcp_flags: u8) -> FlowCount {
        FlowCount { packets: 2, octets: 100, first: at(first), last: at(last), tcp_flags }
    }

    #[test]
    fn a_record_is_due_when_a_flow_rests_ends_or_goes_on_for_long() {
        for (counted, due, reason) in [
            (count(100, 101, 0x10), 116, EndReason::Idle),
            (count(100, 101, 0x11), 103, EndReason::Closed),
            (count(100, 159, 0x10), 160, EndReason::Active),
        ] {
            let mut cache = FlowCache::new(10);
            assert_eq!(cache.add(key(1), counted), None);
            assert_eq!(cache.take_due(at(due - 1)), []);
            assert_eq!(cache.take_due(at(due)), [FlowRecord { key: key(1), count: counted, reason }]);
            assert_eq!(cache.len(), 0, "what was told is not told again");
        }
    }

    #[test]
    fn all_that_was_counted_is_in_one_record_each() {
        let mut cache = FlowCache::new(2);
        let mut records: Vec<FlowRecord> = [(1, 100), (2, 100), (3, 101), (1, 105)]
            .iter()
            .filter_map(|(port, t)| cache.add(key(*port), count(*t, *t, 0)))
            .collect();
        assert_eq!(records, [FlowRecord { key: key(3), count: count(101, 101, 0), reason: EndReason::NoRoom }]);
        records.extend(cache.take_all());
        let told = |port| records.iter().find(|record| record.key == key(port)).map(|record| record.count);
        assert_eq!(told(1), Some(FlowCount { packets: 4, octets: 200, ..count(100, 105, 0) }));
        assert_eq!(records.iter().map(|record| record.count.octets).sum::<u64>(), 400);
    }
}
