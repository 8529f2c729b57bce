//! Joining the pieces of one burst into a super-frame again, and checking its first header, which alone counts.

use weft_crypto::{HostLabel, Time};

use crate::datapath::egress::{DropReason, may_speak};
use crate::datapath::flows::Flows;
use crate::datapath::frame::{self, ETHERNET_LEN, Headers, Mac, Transport};
use crate::datapath::metering::{Burst, FlowDirection};
use crate::datapath::sink::{Punt, Sink, TapOffloads};
use crate::datapath::snapshot::{Segment, Snapshot};
use crate::datapath::tcp::TcpCut;
use crate::datapath::vnet::{Gso, VnetHeader};
use crate::wire::TextHeader;

/// The piece a super-frame begins with.
struct First<'a> {
    session: u32,
    peer: HostLabel,
    header: TextHeader,
    piece: &'a [u8],
    headers: Option<Headers>,
}

/// A super-frame being put together from the pieces of one burst.
pub(crate) struct Join<'a> {
    first: Option<First<'a>>,
    payloads: Vec<&'a [u8]>,
    end: usize,
    next_index: u8,
    /// FIN and PSH, which stand in the header of the last piece.
    ends: u8,
    is_closed: bool,
}

impl<'a> Join<'a> {
    pub(crate) fn new() -> Self {
        Join { first: None, payloads: Vec::new(), end: 0, next_index: 0, ends: 0, is_closed: false }
    }

    pub(crate) fn start(&mut self, session: u32, peer: HostLabel, header: TextHeader, piece: &'a [u8]) {
        let headers = Headers::parse(piece);
        self.end = headers.map_or(piece.len(), |headers| headers.end);
        self.next_index = header.index.wrapping_add(1);
        self.ends = headers.map_or(0, |headers| ends(piece, &headers));
        // Only packets with partial checksums are cut.
        const JOINED: u8 = TextHeader::BURST | TextHeader::PARTIAL_CHECKSUM;
        self.is_closed = header.flags & JOINED != JOINED || header.index == u8::MAX || self.ends != 0;
        self.payloads.clear();
        self.first = Some(First { session, peer, header, piece, headers });
    }

    /// Whether `piece` follows and was taken: the same session and burst, the next index, headers of the same length, a payload
    /// no longer than the first one's. A shorter one is the last.
    pub(crate) fn append(&mut self, session: u32, header: &TextHeader, piece: &'a [u8]) -> bool {
        let Some(First { session: first_session, header: first, piece: first_piece, headers: Some(headers), .. }) =
            &self.first
        else {
            return false;
        };
        let follows = !self.is_closed
            && *first_session == session
            && first.id == header.id
            && header.index == self.next_index
            && first.segment == header.segment
            && first.flags == header.flags;
        let Some(payload) = piece.get(headers.payload..) else { return false };
        let size = first_piece.len() - headers.payload;
        if !follows || payload.is_empty() || payload.len() > size || self.end + payload.len() > frame::MAX_FRAME {
            return false;
        }
        self.ends |= ends(piece, headers);
        self.is_closed = payload.len() < size || header.index == u8::MAX || self.ends != 0;
        self.end += payload.len();
        self.next_index = self.next_index.wrapping_add(1);
        self.payloads.push(payload);
        true
    }

    /// Checks the first header and writes what has come together.
    pub(crate) fn finish(&mut self, snapshot: &Snapshot, now: Time, flows: &mut Flows, sink: &mut impl Sink) {
        let Some(First { peer, header, piece, headers, .. }) = self.first.take() else { return };
        let Some(segment) = snapshot.segments.get(&header.segment) else {
            return sink.dropped(DropReason::NoSegment);
        };
        match admit(segment, peer, piece, now) {
            Err(reason) => return sink.dropped(reason),
            Ok(Some(mac)) => sink.punt(Punt::Learn { segment: header.segment, mac, host: peer }),
            Ok(None) => {}
        }
        if self.payloads.is_empty() && piece.len() > frame::MAX_LINK_HEADER + usize::from(segment.mtu) {
            // The kernel would drop it at the container's interface without a word.
            return sink.dropped(DropReason::TooLarge);
        }
        if !self.payloads.is_empty() {
            // What acknowledges bulk is of a busy flow, too: it is not to keep those waiting who send little.
            flows.note(frame::flow(piece, headers.as_ref()), self.end, now);
        }
        if let Some(table) = &mut flows.metered {
            let (packets, more_octets) = (1 + self.payloads.len(), headers.map_or(0, |headers| self.end - headers.end));
            let (headers, more_flags) = (headers.as_ref(), self.ends);
            let burst = Burst { frame: piece, headers, packets, more_octets, more_flags };
            table.count(FlowDirection::Ingress, header.segment, peer, &burst, now);
        }
        let offloads = sink.offloads(header.segment);
        match headers {
            Some(headers) if header.flags & TextHeader::PARTIAL_CHECKSUM != 0 => {
                self.write_partial(&header, piece, &headers, offloads, sink);
            }
            // Nothing was joined to it.
            _ => sink.to_tap(header.segment, &VnetHeader::default(), &[piece]),
        }
    }

    fn write_partial(
        &mut self,
        header: &TextHeader,
        piece: &[u8],
        headers: &Headers,
        offloads: TapOffloads,
        sink: &mut impl Sink,
    ) {
        let takes = if headers.transport == Transport::Tcp { offloads.tcp } else { offloads.udp };
        if !offloads.checksum || (!self.payloads.is_empty() && !takes) {
            self.write_singly(header, piece, headers, offloads, sink);
            return;
        }
        let mut patched = [0; frame::MAX_HEADERS];
        let Some(patched) = patched.get_mut(..headers.payload) else {
            return sink.dropped(DropReason::Malformed);
        };
        patched.copy_from_slice(&piece[..headers.payload]);
        let is_joined = !self.payloads.is_empty();
        if is_joined && headers.transport == Transport::Tcp {
            let flags = TcpCut::flags(patched, headers);
            TcpCut::set_flags(patched, headers, flags | self.ends);
        }
        headers.set_end(patched, self.end);
        headers.set_partial_checksum(patched, self.end);
        let size = headers.end - headers.payload;
        let gso = match (is_joined, headers.transport, headers.v6) {
            (false, ..) => Gso::None,
            (true, Transport::Udp, _) => Gso::Udp,
            (true, Transport::Tcp, false) => Gso::TcpV4,
            (true, Transport::Tcp, true) => Gso::TcpV6,
        };
        let vnet = VnetHeader {
            partial_checksum: true,
            gso,
            header_len: headers.payload as u16,
            gso_size: if is_joined { size as u16 } else { 0 },
            checksum_start: headers.l4 as u16,
            checksum_offset: headers.checksum_offset() as u16,
        };
        if !is_joined {
            return sink.to_tap(header.segment, &vnet, &[patched, &piece[headers.payload..headers.end]]);
        }
        let mut parts: [&[u8]; 260] = [&[]; 260];
        parts[0] = patched;
        parts[1] = &piece[headers.payload..headers.end];
        let count = self.payloads.len().min(258);
        parts[2..2 + count].copy_from_slice(&self.payloads[..count]);
        sink.to_tap(header.segment, &vnet, &parts[..2 + count]);
    }

    /// For a TAP that cannot take what was joined: each piece again a frame of its own, with its own place in
    /// the stream, its checksum completed where the TAP wants that.
    fn write_singly(
        &self,
        header: &TextHeader,
        piece: &[u8],
        headers: &Headers,
        offloads: TapOffloads,
        sink: &mut impl Sink,
    ) {
        let mut template = piece[..headers.payload].to_vec();
        let first = &piece[headers.payload..headers.end];
        for (index, payload) in std::iter::once(&first).chain(&self.payloads).enumerate() {
            if headers.transport == Transport::Tcp && index == self.payloads.len() {
                let flags = TcpCut::flags(&template, headers);
                TcpCut::set_flags(&mut template, headers, flags | self.ends);
            }
            let end = headers.payload + payload.len();
            headers.set_end(&mut template, end);
            headers.set_partial_checksum(&mut template, end);
            if offloads.checksum {
                let vnet = VnetHeader {
                    partial_checksum: true,
                    checksum_start: headers.l4 as u16,
                    checksum_offset: headers.checksum_offset() as u16,
                    ..VnetHeader::default()
                };
                sink.to_tap(header.segment, &vnet, &[&template, payload]);
            } else {
                let mut whole = [&template, *payload].concat();
                Headers { end, ..*headers }.set_full_checksum(&mut whole);
                sink.to_tap(header.segment, &VnetHeader::default(), &[&whole]);
            }
            if headers.transport == Transport::Tcp {
                TcpCut::add_sequence(&mut template, headers, payload.len() as u32);
            }
            headers.add_ipv4_id(&mut template, 1);
        }
    }
}

/// The flags of a TCP piece that belong to the end of its burst.
fn ends(piece: &[u8], headers: &Headers) -> u8 {
    let is_tcp = headers.transport == Transport::Tcp && piece.len() > headers.l4 + 13;
    if is_tcp { TcpCut::flags(piece, headers) & (TcpCut::FIN | TcpCut::PSH) } else { 0 }
}

/// Whether `peer` may bring this frame into the segment; a MAC not known to live there is returned.
fn admit(segment: &Segment, peer: HostLabel, bytes: &[u8], now: Time) -> Result<Option<Mac>, DropReason> {
    let (Some(from), true) = (frame::source(bytes), bytes.len() >= ETHERNET_LEN) else {
        return Err(DropReason::Malformed);
    };
    if frame::is_group(&from) {
        return Err(DropReason::Malformed);
    }
    let port = segment.port(&from);
    if !may_speak(segment, peer, port, bytes) {
        return Err(DropReason::Spoofed);
    }
    match port {
        Some(port) if port.host == peer => {
            port.note(now);
            Ok(None)
        }
        _ => Ok(Some(from)),
    }
}
