//! From a container's frame to sealed datagrams.
//!
//! 1. [`egress`] decides on the snapshot alone where a frame goes: a pure function.
//! 2. [`Sender::send`] carries the verdict out for one peer: it cuts a super-frame into pieces that fit
//!    the path, each a valid frame of its own, and seals each in place in the send buffer.
//! 3. [`TxBatch`] holds runs of datagrams, each run one `sendmsg` with `UDP_SEGMENT`.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use weft_crypto::{HostLabel, Time, envelope, session};

use crate::flows::Flows;
use crate::frame::{self, Fragment, Headers, TcpCut, Transport};
use crate::neighbour::{self, Solicitation};
use crate::snapshot::{Outbound, Port, Segment, Snapshot};
use crate::vnet::{Gso, VnetHeader};
use crate::wire::{Lane, MIN_DATAGRAM, OVERHEAD, SegmentId, TEXT_HEADER, TextHeader, TextKind, USUAL_ROOM};

/// Most fragments one frame is cut into.
pub const MAX_FRAGMENTS: usize = 64;

/// What is to become of a frame from this host's containers.
pub enum Verdict<'s> {
    /// Send it to one host.
    ToPeer(HostLabel, &'s Outbound),
    /// Send a copy to each of these hosts.
    Flood(&'s [HostLabel]),
    /// Write this answer back to the TAP.
    ToTap(Vec<u8>),
    /// Hand it to the node: there is no session with that host yet.
    Punt(HostLabel),
    /// Nothing.
    Drop(DropReason),
}

/// Why a frame or datagram went no further. Counted by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum DropReason {
    /// Not an Ethernet frame, or a text that is none.
    Malformed,
    /// Its destination is on this host: the bridge delivers it.
    Local,
    /// The source MAC or claimed address belongs to an endpoint elsewhere.
    Spoofed,
    /// No route to the host.
    Unreachable,
    /// The flooding budget of its source is used up.
    FloodBudget,
    /// The session's counters are used up.
    Exhausted,
    /// The segment is not on this host.
    NoSegment,
    /// An envelope that no neighbour made.
    BadEnvelope,
    /// No such session.
    NoSession,
    /// A replay.
    Replayed,
    /// The seal does not match.
    Forged,
    /// The TTL ran out.
    TtlExpired,
    /// The relay budget of the neighbour is used up.
    RelayBudget,
    /// A fragment without its others.
    Incomplete,
    /// A packet larger than the containers of its segment take here.
    TooLarge,
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [DropReason; 15] = [
        DropReason::Malformed,
        DropReason::Local,
        DropReason::Spoofed,
        DropReason::Unreachable,
        DropReason::FloodBudget,
        DropReason::Exhausted,
        DropReason::NoSegment,
        DropReason::BadEnvelope,
        DropReason::NoSession,
        DropReason::Replayed,
        DropReason::Forged,
        DropReason::TtlExpired,
        DropReason::RelayBudget,
        DropReason::Incomplete,
        DropReason::TooLarge,
    ];

    /// What it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::Local => "local",
            DropReason::Spoofed => "spoofed",
            DropReason::Unreachable => "unreachable",
            DropReason::FloodBudget => "flood_budget",
            DropReason::Exhausted => "session_exhausted",
            DropReason::NoSegment => "no_segment",
            DropReason::BadEnvelope => "bad_envelope",
            DropReason::NoSession => "no_session",
            DropReason::Replayed => "replayed",
            DropReason::Forged => "forged",
            DropReason::TtlExpired => "ttl_expired",
            DropReason::RelayBudget => "relay_budget",
            DropReason::Incomplete => "fragment_incomplete",
            DropReason::TooLarge => "too_large",
        }
    }
}

/// Decides where a frame goes that came from this host's bridge of `segment`; `source` is what the segment knows of its
/// source MAC.
pub fn egress<'s>(snapshot: &'s Snapshot, segment: &'s Segment, source: Option<Port<'_>>, bytes: &[u8]) -> Verdict<'s> {
    let (Some(to), Some(from)) = (frame::destination(bytes), frame::source(bytes)) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    if bytes.len() < frame::ETHERNET_LEN || frame::is_group(&from) {
        return Verdict::Drop(DropReason::Malformed);
    }
    if from == frame::GATEWAY_MAC {
        return Verdict::Drop(DropReason::Local);
    }
    if !may_speak(segment, snapshot.own, source, bytes) {
        return Verdict::Drop(DropReason::Spoofed);
    }
    if frame::is_group(&to) {
        return match Solicitation::parse(bytes)
            .and_then(|question| Some((segment.ips.get(&question.target)?, question)))
        {
            // The bridge delivers the question to an endpoint of this host, which answers itself.
            Some((owner, _)) if owner.host == snapshot.own => Verdict::Drop(DropReason::Local),
            // A probe by the owner itself: an answer would kill it by duplicate detection.
            Some((owner, question)) if question.asker == owner.mac => Verdict::Flood(&segment.flood),
            Some((owner, question)) => Verdict::ToTap(question.answer(owner.mac)),
            None => Verdict::Flood(&segment.flood),
        };
    }
    match segment.port(&to) {
        Some(port) if port.host == snapshot.own => Verdict::Drop(DropReason::Local),
        Some(port) => match snapshot.outbound.get(&port.host) {
            Some(outbound) if outbound.hop.is_none() => Verdict::Drop(DropReason::Unreachable),
            Some(outbound) if outbound.send.is_none() => Verdict::Punt(port.host),
            Some(outbound) => Verdict::ToPeer(port.host, outbound),
            None => Verdict::Drop(DropReason::Unreachable),
        },
        None => Verdict::Flood(&segment.flood),
    }
}

/// Whether `host` may send a frame with a source MAC of which this is known and what the frame claims by ARP or ND:
/// records beat what frames say.
pub(crate) fn may_speak(segment: &Segment, host: HostLabel, source: Option<Port<'_>>, bytes: &[u8]) -> bool {
    let is_elsewhere = |port: Port<'_>| port.is_recorded() && port.host != host;
    let claimed_elsewhere = || {
        neighbour::claim(bytes).is_some_and(|(mac, ip)| {
            segment.port(&mac).is_some_and(is_elsewhere) || segment.ips.get(&ip).is_some_and(|owner| owner.host != host)
        })
    };
    !source.is_some_and(is_elsewhere) && !claimed_elsewhere() && !neighbour::hides_claim(bytes)
}

/// Datagrams waiting to be sent, in runs of one destination and one size.
pub struct TxBatch {
    buffers: [Buffer; Place::COUNT],
    /// Of each lane, in the order in which they are to leave.
    runs: [Vec<Run>; Lane::ALL.len()],
    max_segments: usize,
}

/// Which datagrams a datagram is kept with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Those that may overtake.
    Urgent,
    /// All others.
    Main,
    /// First fragments of IP packets: those of packets that follow each other are of one size, and so are the last ones. Kept
    /// apart they make two runs; one after the other each packet would need a run of its own.
    Heads,
    /// The other fragments.
    Tails,
}

impl Place {
    const COUNT: usize = 3;

    fn lane(self) -> Lane {
        if self == Place::Urgent { Lane::Urgent } else { Lane::Main }
    }

    fn buffer(self) -> usize {
        match self {
            Place::Urgent => 0,
            Place::Main | Place::Heads => 1,
            Place::Tails => 2,
        }
    }
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    used: usize,
    /// The run that may grow: its number in its lane.
    open: Option<usize>,
}

/// One `sendmsg`: datagrams of `stride` bytes, the last one maybe shorter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Which way.
    pub lane: Lane,
    /// Where to.
    pub to: SocketAddr,
    /// Size of each datagram but the last.
    pub stride: usize,
    buffer: usize,
    start: usize,
    end: usize,
    segments: usize,
}

/// What one `sendmsg` may carry at most: a UDP payload of 64 KB less headers.
const MAX_RUN_BYTES: usize = 65_000;

impl TxBatch {
    /// An empty batch; runs get at most `max_segments` datagrams.
    pub fn new(max_segments: usize) -> Self {
        TxBatch { buffers: Default::default(), runs: Default::default(), max_segments: max_segments.max(1) }
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.used).sum()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.iter().all(Vec::is_empty)
    }

    /// The runs and their bytes, in the order in which they are to leave.
    pub fn runs(&self) -> impl Iterator<Item = (Run, &[u8])> {
        self.runs.iter().flatten().map(|run| (*run, &self.buffers[run.buffer].bytes[run.start..run.end]))
    }

    /// Forgets what was waiting.
    pub fn clear(&mut self) {
        self.runs.iter_mut().for_each(Vec::clear);
        for buffer in &mut self.buffers {
            (buffer.used, buffer.open) = (0, None);
        }
    }

    /// Room for a datagram of `len` bytes to `to`. What is in it is undefined.
    fn datagram(&mut self, place: Place, to: SocketAddr, len: usize) -> &mut [u8] {
        if place == Place::Main && self.buffers[Place::Tails.buffer()].open.take().is_some() {
            // What is no fragment does not overtake those before it.
            self.buffers[place.buffer()].open = None;
        }
        let (buffer, runs) = (&mut self.buffers[place.buffer()], &mut self.runs[place.lane() as usize]);
        let (start, end) = (buffer.used, buffer.used + len);
        if end > buffer.bytes.len() {
            buffer.bytes.resize(end.next_power_of_two(), 0);
        }
        buffer.used = end;
        match buffer.open.and_then(|number| runs.get_mut(number)) {
            Some(run)
                if run.to == to
                    && len <= run.stride
                    && run.end - run.start == run.segments * run.stride
                    && run.segments < self.max_segments
                    && end - run.start <= MAX_RUN_BYTES =>
            {
                run.end = end;
                run.segments += 1;
            }
            _ => {
                buffer.open = Some(runs.len());
                let (lane, buffer) = (place.lane(), place.buffer());
                runs.push(Run { lane, to, stride: len, buffer, start, end, segments: 1 });
            }
        }
        &mut buffer.bytes[start..end]
    }
}

/// Cuts and seals frames into a batch.
pub struct Sender {
    /// What waits to be sent.
    pub batch: TxBatch,
    pub(crate) flows: Flows,
}

/// One piece of a frame about to be sealed: headers and payload lie apart.
struct Piece<'a> {
    place: Place,
    flags: u8,
    kind: TextKind,
    index: u8,
    count: u8,
    header: &'a [u8],
    payload: &'a [u8],
}

impl Sender {
    /// A sender whose runs get at most `max_segments` datagrams.
    pub fn new(max_segments: usize) -> Self {
        Sender { batch: TxBatch::new(max_segments), flows: Flows::default() }
    }

    /// Seals `bytes` for a host with session and hop.
    pub fn send(
        &mut self,
        outbound: &Outbound,
        segment: SegmentId,
        vnet: &VnetHeader,
        bytes: &mut [u8],
        now: Time,
    ) -> Result<(), DropReason> {
        let Some(hop) = &outbound.hop else { return Err(DropReason::Unreachable) };
        let room = hop.max_datagram.saturating_sub(OVERHEAD);
        if room == 0 {
            return Err(DropReason::Unreachable);
        }
        let headers = Headers::parse(bytes);
        let is_outer = |headers: &Headers| {
            (usize::from(vnet.checksum_start), usize::from(vnet.checksum_offset))
                == (headers.l4, headers.checksum_offset())
        };
        // The far side finds an unfinished checksum by parsing. One of a packet inside of this one (VXLAN, for example) or of
        // another protocol it could not find.
        let is_partial = vnet.partial_checksum && headers.as_ref().is_some_and(is_outer);
        if vnet.partial_checksum && !is_partial {
            frame::complete_checksum(bytes, vnet.checksum_start.into(), vnet.checksum_offset.into());
        }
        if let (Gso::None, Some(headers)) = (vnet.gso, &headers) {
            // While the path's size is not known the least there is would be told for the connection's whole life.
            let is_known = hop.max_datagram > MIN_DATAGRAM;
            frame::clamp_mss(bytes, headers, if is_known { room } else { USUAL_ROOM }, is_partial);
        }
        let flow = frame::flow(bytes, headers.as_ref());
        let place = match vnet.gso {
            Gso::None if self.flows.note(flow, bytes.len(), now) => Place::Urgent,
            Gso::None if headers.is_some() => Place::Main,
            Gso::None => match frame::fragment(bytes) {
                None => Place::Main,
                Some(Fragment::First) => Place::Heads,
                Some(Fragment::Later) => Place::Tails,
            },
            _ => {
                self.flows.note_busy(flow, now);
                Place::Main
            }
        };
        let flags = if is_partial { TextHeader::PARTIAL_CHECKSUM } else { 0 };
        let before = self.batch.len();
        let datagrams = match (vnet.gso, headers) {
            (Gso::TcpV4 | Gso::TcpV6, Some(headers)) if headers.transport == Transport::Tcp => {
                self.cut_tcp(outbound, segment, vnet, bytes, &headers, room)?
            }
            (Gso::Udp, Some(headers)) if headers.transport == Transport::Udp => {
                self.cut_udp(outbound, segment, vnet, bytes, &headers, room)?
            }
            (Gso::None, _) => self.whole(outbound, segment, place, flags, bytes, room)?,
            _ => return Err(DropReason::Malformed),
        };
        outbound.meter.sent.bytes.fetch_add((self.batch.len() - before) as u64, Ordering::Relaxed);
        hop.meter.sent.on_link(datagrams, now);
        Ok(())
    }

    /// Seals an encoded control message for the next hop, to leave by a lane.
    pub fn control(&mut self, outbound: &Outbound, lane: Lane, text: &[u8], now: Time) -> Result<(), DropReason> {
        let Some(hop) = &outbound.hop else { return Err(DropReason::Unreachable) };
        let send = outbound.send.as_ref().ok_or(DropReason::NoSession)?;
        let counter = send.reserve(1).map_err(|_| DropReason::Exhausted)?.start;
        let place = if lane == Lane::Urgent { Place::Urgent } else { Place::Main };
        let datagram = self.batch.datagram(place, hop.remote, envelope::LEN + session::OVERHEAD + text.len());
        datagram[..envelope::LEN].copy_from_slice(&outbound.envelope);
        let packet = &mut datagram[envelope::LEN..];
        packet[session::HEADER_LEN..session::HEADER_LEN + text.len()].copy_from_slice(text);
        send.seal(counter, lane == Lane::Urgent, packet);
        hop.meter.sent.on_link(1, now);
        Ok(())
    }

    /// A frame that fits goes as it is; a larger one is fragmented inside the session.
    fn whole(
        &mut self,
        outbound: &Outbound,
        segment: SegmentId,
        place: Place,
        flags: u8,
        bytes: &[u8],
        room: usize,
    ) -> Result<u64, DropReason> {
        let kind = if bytes.len() <= room { TextKind::Frame } else { TextKind::Fragment };
        let count = bytes.len().div_ceil(room).max(1);
        // Fragments of one size: those of frames that follow each other make one run.
        let size = bytes.len().div_ceil(count).max(1);
        if count > MAX_FRAGMENTS {
            return Err(DropReason::Malformed);
        }
        let counters = reserve(outbound, count)?;
        let id = burst_id(counters.start);
        for ((part, index), counter) in bytes.chunks(size).zip(0u8..).zip(counters) {
            let piece = Piece { place, flags, kind, index, count: count as u8, header: &[], payload: part };
            self.seal(outbound, segment, id, &piece, counter);
        }
        Ok(count as u64)
    }

    /// TCP may be re-cut to a smaller path MTU: a segment is a segment.
    fn cut_tcp(
        &mut self,
        outbound: &Outbound,
        segment: SegmentId,
        vnet: &VnetHeader,
        bytes: &[u8],
        headers: &Headers,
        room: usize,
    ) -> Result<u64, DropReason> {
        let size = usize::from(vnet.gso_size).min(room.saturating_sub(headers.payload));
        if size == 0 {
            return Err(DropReason::Malformed);
        }
        let payload = &bytes[headers.payload..headers.end];
        let tcp_flags = TcpCut::flags(bytes, headers);
        let flags = TextHeader::PARTIAL_CHECKSUM | TextHeader::BURST;

        let count = payload.len().div_ceil(size).max(1);
        let counters = reserve(outbound, count)?;
        let mut id = burst_id(counters.start);
        let mut template = [0; frame::MAX_HEADERS];
        let template = template.get_mut(..headers.payload).ok_or(DropReason::Malformed)?;
        template.copy_from_slice(&bytes[..headers.payload]);
        let mut len = None;
        for (index, counter) in counters.enumerate() {
            let part = &payload[index * size..payload.len().min((index + 1) * size)];
            let (first, last) = (index == 0, index + 1 == count);
            let not_first = if first { 0 } else { TcpCut::CWR };
            let not_last = if last { 0 } else { TcpCut::FIN | TcpCut::PSH };
            TcpCut::set_flags(template, headers, tcp_flags & !not_first & !not_last);
            if len != Some(part.len()) {
                len = Some(part.len());
                headers.set_end(template, headers.payload + part.len());
                headers.set_partial_checksum(template, headers.payload + part.len());
            }
            if index > 0 && index % 256 == 0 {
                id = burst_id(counter);
            }
            let (place, kind, index) = (Place::Main, TextKind::Frame, (index % 256) as u8);
            let piece = Piece { place, flags, kind, index, count: 1, header: template, payload: part };
            self.seal(outbound, segment, id, &piece, counter);
            TcpCut::add_sequence(template, headers, part.len() as u32);
            headers.add_ipv4_id(template, 1);
        }
        Ok(count as u64)
    }

    /// UDP may not be re-cut: each datagram travels whole, fragmented inside the session if it must.
    fn cut_udp(
        &mut self,
        outbound: &Outbound,
        segment: SegmentId,
        vnet: &VnetHeader,
        bytes: &[u8],
        headers: &Headers,
        room: usize,
    ) -> Result<u64, DropReason> {
        let size = usize::from(vnet.gso_size);
        if size == 0 {
            return Err(DropReason::Malformed);
        }
        let payload = &bytes[headers.payload..headers.end];
        let fits = headers.payload + size <= room;
        let mut sent = 0;
        let mut template = [0; frame::MAX_HEADERS];
        let template = template.get_mut(..headers.payload).ok_or(DropReason::Malformed)?;
        template.copy_from_slice(&bytes[..headers.payload]);
        let counters = if fits { reserve(outbound, payload.len().div_ceil(size).max(1))? } else { 0..0 };
        let mut id = burst_id(counters.start);
        let mut counters = counters.into_iter();
        for (index, part) in payload.chunks(size).enumerate() {
            headers.set_end(template, headers.payload + part.len());
            headers.set_partial_checksum(template, headers.payload + part.len());
            match counters.next() {
                Some(counter) => {
                    if index > 0 && index % 256 == 0 {
                        id = burst_id(counter);
                    }
                    let flags = TextHeader::PARTIAL_CHECKSUM | TextHeader::BURST;
                    let (place, kind, index) = (Place::Main, TextKind::Frame, (index % 256) as u8);
                    let piece = Piece { place, flags, kind, index, count: 1, header: template, payload: part };
                    self.seal(outbound, segment, id, &piece, counter);
                    sent += 1;
                }
                None => {
                    let whole = [&*template, part].concat();
                    sent += self.whole(outbound, segment, Place::Main, TextHeader::PARTIAL_CHECKSUM, &whole, room)?;
                }
            }
            headers.add_ipv4_id(template, 1);
        }
        Ok(sent)
    }

    fn seal(&mut self, outbound: &Outbound, segment: SegmentId, id: u16, piece: &Piece<'_>, counter: u64) {
        let (Some(hop), Some(send)) = (&outbound.hop, &outbound.send) else { return };
        let (header, payload) = (piece.header, piece.payload);
        let datagram = self.batch.datagram(piece.place, hop.remote, OVERHEAD + header.len() + payload.len());
        let text_header =
            TextHeader { kind: piece.kind, flags: piece.flags, id, index: piece.index, count: piece.count, segment };
        datagram[..envelope::LEN].copy_from_slice(&outbound.envelope);
        let packet = &mut datagram[envelope::LEN..];
        let text = &mut packet[session::HEADER_LEN..];
        text[..TEXT_HEADER].copy_from_slice(&text_header.encode());
        text[TEXT_HEADER..][..header.len()].copy_from_slice(header);
        text[TEXT_HEADER + header.len()..][..payload.len()].copy_from_slice(payload);
        send.seal(counter, piece.place == Place::Urgent, packet);
    }
}

/// What the pieces of one burst, or the fragments of one frame, have in common. It comes from the session's counters,
/// which all workers share, so that no two bursts under way have the same.
fn burst_id(counter: u64) -> u16 {
    counter as u16
}

fn reserve(outbound: &Outbound, count: usize) -> Result<std::ops::Range<u64>, DropReason> {
    let send = outbound.send.as_ref().ok_or(DropReason::NoSession)?;
    send.reserve(count as u64).map_err(|_| DropReason::Exhausted)
}
