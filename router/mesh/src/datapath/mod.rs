//! The data path of one worker: egress and ingress, with their state between batches. Production runs one in each worker
//! thread, the simulator one in each host.
//!
//! A frame from a container: [`Datapath::frame`] → [`mod@egress`] decides on the snapshot alone → [`sender`] cuts and seals →
//! [`batch`] holds runs, each run one `sendmsg`. A datagram from the wire: [`Datapath::datagrams`] → [`ingress`] checks envelope
//! and seal → `reassembly` and `join` → the [`sink`]: a TAP, a relay, or the node.

pub mod batch;
mod busy;
pub mod egress;
mod flows;
pub mod frame;
pub mod ingress;
mod join;
pub mod metering;
pub(crate) mod neighbour;
mod reassembly;
pub mod sender;
pub mod sink;
pub mod snapshot;
mod tcp;
pub mod vnet;

use std::collections::BTreeMap;
use std::time::Duration;

use egress::{DropReason, Verdict, egress};
use frame::Mac;
use ingress::{Receiver, RxBuffer};
use metering::FlowTable;
use sender::Sender;
use sink::{Punt, Sink};
use snapshot::{Outbound, Segment, Snapshot};
use vnet::VnetHeader;
use weft_crypto::Time;

use crate::bucket::Bucket;
use crate::wire::SegmentId;

/// What one endpoint may have flooded: bytes times receiving hosts in a second, and at once. The first is 1 Gbit/s, what a
/// video stream to ten hosts takes ten times over.
const FLOOD_BYTES_PER_SECOND: u64 = 125_000_000;
const FLOOD_BURST_BYTES: u64 = FLOOD_BYTES_PER_SECOND / 4;
/// What a flooded frame counts at least, in bytes: a small one costs its hosts a wake-up and a copy all the same.
const FLOOD_LEAST_BYTES: usize = 512;
const MAX_FLOODERS: usize = 1_024;

/// State of one worker.
pub struct Datapath {
    /// Cuts, seals and holds frames to send.
    pub sender: Sender,
    receiver: Receiver,
    flooders: BTreeMap<(SegmentId, Option<Mac>), Bucket>,
}

impl Datapath {
    /// A data path whose runs get at most `max_segments` datagrams.
    pub fn new(max_segments: usize) -> Self {
        Datapath { sender: Sender::new(max_segments), receiver: Receiver::default(), flooders: BTreeMap::new() }
    }

    /// Takes a frame from the TAP of `segment`; datagrams wait in `sender.batch` afterwards.
    pub fn frame(
        &mut self,
        snapshot: &Snapshot,
        segment: SegmentId,
        vnet: &VnetHeader,
        bytes: &mut [u8],
        now: Time,
        sink: &mut impl Sink,
    ) {
        let Some(switch) = snapshot.segments.get(&segment) else { return sink.dropped(DropReason::NoSegment) };
        let source = frame::source(bytes);
        let port = source.and_then(|mac| switch.port(&mac));
        let verdict = egress(snapshot, switch, port, bytes);
        let is_legitimate = !matches!(verdict, Verdict::Drop(DropReason::Malformed | DropReason::Spoofed));
        if let Some(mac) = source.filter(|_| is_legitimate) {
            match port {
                Some(port) if port.host == snapshot.own => port.note(now),
                _ => sink.punt(Punt::Learn { segment, mac, host: snapshot.own }),
            }
        }
        match verdict {
            Verdict::ToPeer(_, outbound) => {
                self.send(outbound, segment, vnet, bytes, now, sink);
            }
            Verdict::Punt(host) => {
                sink.punt(Punt::NoSession { host, segment, vnet: *vnet, frame: bytes.to_vec() });
            }
            Verdict::ToTap(answer) => sink.to_tap(segment, &VnetHeader::default(), &[&answer]),
            Verdict::Drop(reason) => sink.dropped(reason),
            Verdict::Flood(hosts) => {
                if !self.may_flood(switch, bytes, hosts.len(), now) {
                    return sink.dropped(DropReason::FloodBudget);
                }
                for host in hosts {
                    match snapshot.outbound.get(host) {
                        Some(outbound) if outbound.hop.is_none() => {}
                        Some(outbound) if outbound.send.is_none() => {
                            sink.punt(Punt::NoSession { host: *host, segment, vnet: *vnet, frame: bytes.to_vec() });
                        }
                        Some(outbound) => self.send(outbound, segment, vnet, bytes, now, sink),
                        None => {}
                    }
                }
            }
        }
    }

    /// Notes that the worker had nothing to do for `rest`, until `now`; the node hears of a worker that is busy.
    pub fn rested(&mut self, rest: Duration, now: Time, sink: &mut impl Sink) {
        if let Some((percent, relays)) = self.receiver.busy.rested(rest, now) {
            sink.punt(Punt::Busy { percent, relays });
        }
    }

    /// Counts packets by flow into this table from now on, or no more; returns the table that was in use.
    pub fn meter_into(&mut self, table: Option<Box<FlowTable>>) -> Option<Box<FlowTable>> {
        std::mem::replace(&mut self.sender.flows.metered, table)
    }

    /// Takes received buffers; how many bytes of them were for this host, or passed on.
    pub fn datagrams(
        &mut self,
        snapshot: &Snapshot,
        now: Time,
        buffers: &mut [RxBuffer<'_>],
        sink: &mut impl Sink,
    ) -> usize {
        self.receiver.receive(snapshot, now, buffers, &mut self.sender.flows, sink)
    }

    fn send(
        &mut self,
        outbound: &Outbound,
        segment: SegmentId,
        vnet: &VnetHeader,
        bytes: &mut [u8],
        now: Time,
        sink: &mut impl Sink,
    ) {
        if let Err(reason) = self.sender.send(outbound, segment, vnet, bytes, now) {
            return sink.dropped(reason);
        }
        if outbound.hop.as_ref().is_some_and(|hop| hop.meter.sent.take_rest()) {
            sink.punt(Punt::Woken);
        }
    }

    /// Each recorded endpoint has a budget of its own; all that no record has share one, or who makes up a new MAC for
    /// each frame had none.
    fn may_flood(&mut self, switch: &Segment, bytes: &[u8], hosts: usize, now: Time) -> bool {
        let recorded = frame::source(bytes).filter(|mac| switch.macs.contains_key(mac));
        let key = (switch.id, recorded);
        if self.flooders.len() >= MAX_FLOODERS && !self.flooders.contains_key(&key) {
            // Forgetting gives each a fresh burst at most; the table stays bounded.
            self.flooders.clear();
        }
        let bucket = self.flooders.entry(key).or_insert_with(|| Bucket::new(FLOOD_BURST_BYTES, now));
        let cost = (bytes.len().max(FLOOD_LEAST_BYTES) * hosts) as u64;
        bucket.take(cost, FLOOD_BYTES_PER_SECOND, FLOOD_BURST_BYTES, now)
    }
}

#[cfg(test)]
mod tests;
