//! From received datagrams to frames for the TAP.
//!
//! 1. [`ingress`] decides about one datagram: it checks the envelope, and for this host opens the packet in place.
//! 2. [`Datapath::datagrams`](crate::datapath::Datapath::datagrams) runs a whole batch of buffers through it,
//!    collecting pieces and relay runs.
//! 3. Consecutive pieces of one burst are joined into one super-frame without being parsed; only the
//!    first header counts, and is checked. Any gap or the end of the batch ends a super-frame.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use weft_crypto::envelope::Envelope;
use weft_crypto::session::{self, OpenError, Opener};
use weft_crypto::{HostLabel, Time, envelope};

use crate::bucket::Bucket;
use crate::datapath::busy::Busy;
use crate::datapath::egress::DropReason;
use crate::datapath::flows::Flows;
use crate::datapath::join::Join;
use crate::datapath::reassembly::Reassembly;
use crate::datapath::sink::{Punt, Sink};
use crate::datapath::snapshot::{Hop, Inbound, Snapshot};
use crate::path::Path;
use crate::wire::{HandshakePacket, TEXT_HEADER, TextHeader, TextKind};

/// Nanoseconds after which it is looked again where packets of a session come from: a power of two, about a millisecond.
const LOOK_NANOS: u64 = 1 << 20;

/// A received buffer: one datagram, or a GRO run of them.
pub struct RxBuffer<'a> {
    /// Where from.
    pub from: Path,
    /// The bytes.
    pub data: &'a mut [u8],
    /// Size of each datagram but the last.
    pub stride: usize,
}

/// The destination of a datagram.
pub enum Verdict<'s> {
    /// A text for this host, opened in place at this range of the datagram.
    Text {
        /// The session.
        index: u32,
        /// Where the text is.
        text: Range<usize>,
    },
    /// Pass it on; the new envelope is in place.
    Relay(&'s Hop),
    /// A handshake packet for the node, at this range.
    Handshake(Range<usize>, HandshakePath),
    /// Nothing.
    Drop(DropReason),
}

/// How a handshake packet came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandshakePath {
    /// Alone in a datagram.
    Direct,
    /// Behind an envelope.
    Relayed,
}

/// What stays the same from one datagram of a run to the next.
pub struct RunState<'s> {
    envelope: [u8; envelope::LEN],
    decision: Option<Decision<'s>>,
    session: Option<(u32, &'s Inbound, Opener<'s>)>,
}

#[derive(Clone, Copy)]
enum Decision<'s> {
    Mine { neighbour: &'s Inbound, link_index: u32 },
    Pass { neighbour: &'s Inbound, hop: &'s Hop, envelope: [u8; envelope::LEN] },
    Drop(DropReason),
}

impl<'s> RunState<'s> {
    /// Before the first datagram.
    pub fn new() -> Self {
        RunState { envelope: [0; envelope::LEN], decision: None, session: None }
    }

    fn neighbour(&self) -> Option<&'s Inbound> {
        match self.decision {
            Some(Decision::Mine { neighbour, .. } | Decision::Pass { neighbour, .. }) => Some(neighbour),
            _ => None,
        }
    }
}

impl Default for RunState<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Decides about one datagram, on the snapshot and what the run so far has shown.
pub fn ingress<'s>(snapshot: &'s Snapshot, run: &mut RunState<'s>, datagram: &mut [u8]) -> Verdict<'s> {
    let Some(bytes) = datagram.first_chunk::<{ envelope::LEN }>() else {
        return Verdict::Drop(DropReason::Malformed);
    };
    if bytes[0] != envelope::TRANSIT {
        let handshake = HandshakePacket::is_first_byte(bytes[0]);
        let whole = 0..datagram.len();
        let none = Verdict::Drop(DropReason::Malformed);
        return if handshake { Verdict::Handshake(whole, HandshakePath::Direct) } else { none };
    }
    // The datagrams of a run have one envelope: it is checked once.
    let decision = match run.decision {
        Some(decision) if run.envelope == *bytes => decision,
        _ => {
            let decision = judge(snapshot, bytes);
            (run.envelope, run.decision) = (*bytes, Some(decision));
            decision
        }
    };
    match decision {
        Decision::Drop(reason) => Verdict::Drop(reason),
        Decision::Pass { hop, envelope, .. } => {
            datagram[..envelope::LEN].copy_from_slice(&envelope);
            Verdict::Relay(hop)
        }
        Decision::Mine { neighbour, link_index } => open(snapshot, run, (link_index, neighbour), datagram),
    }
}

fn judge<'s>(snapshot: &'s Snapshot, bytes: &[u8; envelope::LEN]) -> Decision<'s> {
    let Some(envelope) = Envelope::parse(bytes) else { return Decision::Drop(DropReason::Malformed) };
    let Some(neighbour) = snapshot.inbound.get(&envelope.link_index) else {
        return Decision::Drop(DropReason::BadEnvelope);
    };
    if !envelope.verify(&neighbour.hop_receive) {
        return Decision::Drop(DropReason::BadEnvelope);
    }
    if envelope.destination == snapshot.own {
        return Decision::Mine { neighbour, link_index: envelope.link_index };
    }
    if snapshot.is_stub {
        return Decision::Drop(DropReason::NotRelayed);
    }
    let Some(ttl) = envelope.ttl.checked_sub(1).filter(|ttl| *ttl > 0) else {
        return Decision::Drop(DropReason::TtlExpired);
    };
    match snapshot.outbound.get(&envelope.destination).and_then(|outbound| outbound.hop.as_ref()) {
        // Back to where it came from is a loop of two.
        Some(hop) if hop.via != neighbour.peer => {
            Decision::Pass { neighbour, hop, envelope: hop.envelope(ttl, envelope.destination) }
        }
        _ => Decision::Drop(DropReason::Unreachable),
    }
}

fn open<'s>(
    snapshot: &'s Snapshot,
    run: &mut RunState<'s>,
    link: (u32, &'s Inbound),
    datagram: &mut [u8],
) -> Verdict<'s> {
    let packet = &mut datagram[envelope::LEN..];
    let Some(index) = session::index_of(packet) else { return Verdict::Drop(DropReason::Malformed) };
    if index == 0 {
        let inner = envelope::LEN + session::HEADER_LEN..datagram.len();
        return match datagram.get(inner.start).copied().is_some_and(HandshakePacket::is_first_byte) {
            true => Verdict::Handshake(inner, HandshakePath::Relayed),
            false => Verdict::Drop(DropReason::Malformed),
        };
    }
    if run.session.as_ref().is_none_or(|(current, ..)| *current != index) {
        // The old session's lock goes before the new one's is taken.
        run.session = None;
        // Straight from the peer, link and session have one index.
        let known = if link.0 == index { Some(link.1) } else { snapshot.inbound.get(&index).map(|inbound| &**inbound) };
        let Some(inbound) = known else { return Verdict::Drop(DropReason::NoSession) };
        run.session = Some((index, inbound, inbound.receive.opener()));
    }
    let Some((_, _, opener)) = &mut run.session else { return Verdict::Drop(DropReason::NoSession) };
    let start = envelope::LEN + session::HEADER_LEN;
    match opener.open(packet) {
        Ok(text) => Verdict::Text { index, text: start..start + text.len() },
        Err(OpenError::Short) => Verdict::Drop(DropReason::Malformed),
        Err(OpenError::Replayed) => Verdict::Drop(DropReason::Replayed),
        Err(OpenError::Forged) => Verdict::Drop(DropReason::Forged),
    }
}

/// Runs batches of buffers through [`ingress`].
pub struct Receiver {
    texts: Vec<Text>,
    relays: Vec<RelayRun>,
    fragments: Reassembly,
    relay_budgets: BTreeMap<HostLabel, Bucket>,
    relay_bytes_per_second: u64,
    pub(super) busy: Busy,
}

/// An opened text in one of the batch's buffers.
struct Text {
    buffer: usize,
    range: Range<usize>,
    index: u32,
    peer: HostLabel,
}

struct RelayRun {
    to: Path,
    buffer: usize,
    range: Range<usize>,
    stride: usize,
}

/// What one neighbour may have relayed: 10 Gbit/s, so that none starves the others on a fast host.
const RELAY_BYTES_PER_SECOND: u64 = 1_250_000_000;

impl Default for Receiver {
    fn default() -> Self {
        Receiver {
            texts: Vec::new(),
            relays: Vec::new(),
            fragments: Reassembly::default(),
            relay_budgets: BTreeMap::new(),
            relay_bytes_per_second: RELAY_BYTES_PER_SECOND,
            busy: Busy::default(),
        }
    }
}

impl Receiver {
    /// Takes a batch. The buffers are opened in place; results go to `sink` in order of arrival. How many bytes were for this
    /// host, or passed on.
    pub(crate) fn receive(
        &mut self,
        snapshot: &Snapshot,
        now: Time,
        buffers: &mut [RxBuffer<'_>],
        flows: &mut Flows,
        sink: &mut impl Sink,
    ) -> usize {
        self.texts.clear();
        self.relays.clear();
        let mut carried = 0;
        for (number, buffer) in buffers.iter_mut().enumerate() {
            carried += self.open_buffer(snapshot, now, number, buffer, sink);
        }
        if !self.relays.is_empty() {
            self.busy.note_relayed();
        }
        for run in &self.relays {
            sink.relay(run.to, &buffers[run.buffer].data[run.range.clone()], run.stride);
        }
        let mut join = Join::new();
        for text in &self.texts {
            let data = &buffers[text.buffer].data;
            let bytes = &data[text.range.clone()];
            let Some(header) = TextHeader::parse(bytes) else {
                sink.dropped(DropReason::Malformed);
                continue;
            };
            let piece = &bytes[TEXT_HEADER..];
            match header.kind {
                TextKind::Frame => {
                    if !join.append(text.index, &header, piece) {
                        join.finish(snapshot, now, flows, sink);
                        join.start(text.index, text.peer, header, piece);
                    }
                }
                _ => {
                    join.finish(snapshot, now, flows, sink);
                    // The packet's header is right before its text.
                    let counter = session::counter_of(&data[text.range.start - session::HEADER_LEN..]).unwrap_or(0);
                    match self.fragments.add(text.index, counter, &header, piece, now) {
                        Ok(Some(frame)) => {
                            let mut whole = Join::new();
                            whole.start(text.index, text.peer, TextHeader { kind: TextKind::Frame, ..header }, &frame);
                            whole.finish(snapshot, now, flows, sink);
                        }
                        Ok(None) => {}
                        Err(reason) => sink.dropped(reason),
                    }
                }
            }
        }
        join.finish(snapshot, now, flows, sink);
        carried
    }

    fn open_buffer(
        &mut self,
        snapshot: &Snapshot,
        now: Time,
        number: usize,
        buffer: &mut RxBuffer<'_>,
        sink: &mut impl Sink,
    ) -> usize {
        let stride = buffer.stride.max(1);
        let mut run = RunState::new();
        let mut heard: Option<(u32, HostLabel)> = None;
        let (mut offset, mut carried) = (0, 0);
        for datagram in buffer.data.chunks_mut(stride) {
            let len = datagram.len();
            let verdict = ingress(snapshot, &mut run, datagram);
            let neighbour = run.neighbour();
            match verdict {
                Verdict::Text { index, text } => {
                    let Some((_, inbound, _)) = &run.session else { continue };
                    carried += len;
                    let is_direct = neighbour.is_some_and(|neighbour| neighbour.peer == inbound.peer);
                    let is_control = datagram.get(text.start) == Some(&(TextKind::Control as u8));
                    if is_control {
                        inbound.meter.received.control.fetch_add(len as u64, Ordering::Relaxed);
                    }
                    inbound.meter.received.bytes.fetch_add(len as u64, Ordering::Relaxed);
                    if is_direct {
                        inbound.meter.received.on_link(1, now);
                    }
                    // A path is large, and hardly ever told.
                    let direct = || is_direct.then_some(buffer.from);
                    if heard != Some((index, inbound.peer)) {
                        heard = Some((index, inbound.peer));
                        let before = inbound.heard.load(Ordering::Relaxed);
                        inbound.heard.store(now.as_nanos(), Ordering::Relaxed);
                        let is_current = inbound.current.load(Ordering::Relaxed);
                        // Of a session in use it is looked once a millisecond where its packets come from.
                        let looks = (before ^ now.as_nanos()) >= LOOK_NANOS;
                        let is_expected = || {
                            snapshot.outbound.get(&inbound.peer).is_some_and(|sending| {
                                sending.send.is_some() && (!is_direct || sending.link.as_ref() == Some(&buffer.from))
                            })
                        };
                        // A control message tells where it came from itself.
                        if !is_control && (!is_current || (looks && !is_expected())) {
                            sink.punt(Punt::Heard { index, peer: inbound.peer, direct: direct() });
                        }
                    }
                    if is_control {
                        let text = datagram[text].to_vec();
                        sink.punt(Punt::Control { index, peer: inbound.peer, direct: direct(), size: len, text });
                    } else {
                        let range = offset + text.start..offset + text.end;
                        self.texts.push(Text { buffer: number, range, index, peer: inbound.peer });
                    }
                }
                Verdict::Relay(hop) => match neighbour {
                    Some(neighbour) if self.may_relay(neighbour.peer, len, now) => {
                        carried += len;
                        neighbour.meter.received.relayed.fetch_add(len as u64, Ordering::Relaxed);
                        hop.meter.sent.on_link(1, now);
                        if hop.meter.sent.take_rest() {
                            sink.punt(Punt::Woken);
                        }
                        self.relay(hop.path, number, offset..offset + len, stride);
                    }
                    _ => sink.dropped(DropReason::RelayBudget),
                },
                Verdict::Handshake(range, path) => {
                    let packet = &datagram[range];
                    // Strangers' packets go no further than this, and cost no memory.
                    if HandshakePacket::secret_of(packet, &snapshot.secrets).is_some() {
                        let packet = packet.to_vec();
                        sink.punt(match path {
                            HandshakePath::Direct => Punt::Handshake { from: buffer.from, packet },
                            HandshakePath::Relayed => Punt::RelayedHandshake { packet },
                        });
                    } else {
                        sink.dropped(DropReason::Forged);
                    }
                }
                Verdict::Drop(reason) => sink.dropped(reason),
            }
            offset += len;
        }
        carried
    }

    /// A datagram that follows its predecessor in the buffer joins its run.
    fn relay(&mut self, to: Path, buffer: usize, range: Range<usize>, stride: usize) {
        match self.relays.last_mut() {
            Some(run) if run.to == to && run.buffer == buffer && run.range.end == range.start => {
                run.range.end = range.end;
            }
            _ => self.relays.push(RelayRun { to, buffer, range, stride }),
        }
    }

    fn may_relay(&mut self, neighbour: HostLabel, bytes: usize, now: Time) -> bool {
        let rate = self.relay_bytes_per_second;
        let bucket = self.relay_budgets.entry(neighbour).or_insert_with(|| Bucket::new(rate / 10, now));
        bucket.take(bytes as u64, rate, rate / 10, now)
    }
}
