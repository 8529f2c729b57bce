//! From a frame for one host to sealed datagrams: a super-frame is cut into pieces that fit the path, each a valid frame of
//! its own, and each is sealed in place in the send buffer.

use std::sync::atomic::Ordering;

use weft_crypto::{Time, envelope, session};

use super::batch::{Place, TxBatch};
use super::egress::DropReason;
use super::flows::Flows;
use super::frame::{self, Fragment, Headers, Transport};
use super::metering::{Burst, FlowDirection};
use super::snapshot::Outbound;
use super::tcp::{TcpCut, clamp_mss};
use super::vnet::{Gso, VnetHeader};
use crate::wire::{Lane, MIN_DATAGRAM, OVERHEAD, SegmentId, TEXT_HEADER, TextHeader, TextKind, USUAL_ROOM};

/// Most fragments one frame is cut into.
pub const MAX_FRAGMENTS: usize = 64;

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
            clamp_mss(bytes, headers, if is_known { room } else { USUAL_ROOM }, is_partial);
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
        if let Some(table) = &mut self.flows.metered {
            let packets = match vnet.gso {
                Gso::None => 1,
                // A piece is a packet.
                Gso::TcpV4 | Gso::TcpV6 => datagrams as usize,
                Gso::Udp => headers.map_or(1, |headers| vnet.datagrams(headers.end - headers.payload)),
            };
            let burst = Burst { frame: bytes, headers: headers.as_ref(), packets, more_octets: 0, more_flags: 0 };
            table.count(FlowDirection::Egress, segment, outbound.peer(), &burst, now);
        }
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
        let datagram = self.batch.datagram(place, &hop.path, envelope::LEN + session::OVERHEAD + text.len());
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
        let datagram = self.batch.datagram(piece.place, &hop.path, OVERHEAD + header.len() + payload.len());
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
