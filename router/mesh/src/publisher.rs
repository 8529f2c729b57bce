//! From what the node knows to what the data path sees: the forwarding tables, and frames and messages that the node itself
//! sends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use weft_crypto::{HostLabel, Secret, Time, envelope, session};

use crate::datapath::sender::Sender;
use crate::datapath::snapshot::{Hop, Inbound, Outbound, Segment, Snapshot};
use crate::datapath::vnet::VnetHeader;
use crate::path::Path;
use crate::wire::{Lane, SegmentId};

/// Frames that wait for a session with one peer, in number and bytes.
const MAX_FRAMES: usize = 64;
const MAX_BYTES: usize = 256 * 1024;
/// Control messages that wait for a session with one peer.
const MAX_MESSAGES: usize = 32;
/// Datagrams of one run.
const MAX_SEGMENTS: usize = 64;

/// A frame that waits for a session.
pub(crate) struct WaitingFrame {
    pub(crate) segment: SegmentId,
    pub(crate) vnet: VnetHeader,
    pub(crate) frame: Vec<u8>,
}

/// Datagrams to send: `stride` bytes each, the last one maybe shorter.
#[derive(Debug)]
pub(crate) struct Transmit {
    pub(crate) lane: Lane,
    pub(crate) to: Path,
    pub(crate) data: Vec<u8>,
    pub(crate) stride: usize,
}

/// The forwarding tables, and what waits to be sent.
pub(crate) struct Publisher {
    snapshot: Snapshot,
    is_stale: bool,
    sender: Sender,
    waiting: BTreeMap<HostLabel, Waiting>,
    /// Frames that found no room to wait, or waited for a host that became unreachable.
    lost_frames: u64,
    transmits: VecDeque<Transmit>,
}

/// Frames and messages for a peer without a session.
#[derive(Default)]
struct Waiting {
    frames: VecDeque<WaitingFrame>,
    bytes: usize,
    messages: VecDeque<Vec<u8>>,
}

impl Publisher {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Publisher {
            snapshot,
            is_stale: true,
            sender: Sender::new(MAX_SEGMENTS),
            waiting: BTreeMap::new(),
            lost_frames: 0,
            transmits: VecDeque::new(),
        }
    }

    /// Sets the live network secrets.
    pub(crate) fn set_secrets(&mut self, secrets: &[Secret]) {
        self.snapshot.secrets = secrets.into();
        self.is_stale = true;
    }

    /// Packets under a session's index are opened from now on.
    pub(crate) fn open(&mut self, index: u32, inbound: Arc<Inbound>) {
        self.snapshot.inbound.insert(index, inbound);
        self.is_stale = true;
    }

    /// Packets under a session's index are no longer opened.
    pub(crate) fn close(&mut self, index: u32) {
        self.snapshot.inbound.remove(&index);
        self.is_stale = true;
    }

    /// Sets the way to a host; without session and hop there is none.
    pub(crate) fn set_outbound(&mut self, to: HostLabel, outbound: Outbound) {
        self.is_stale = true;
        if outbound.send.is_none() && outbound.hop.is_none() {
            self.snapshot.outbound.remove(&to);
        } else {
            self.snapshot.outbound.insert(to, Arc::new(outbound));
        }
    }

    /// Sets the table of a segment of this host; `None`: this host left it.
    pub(crate) fn set_segment(&mut self, id: SegmentId, segment: Option<Arc<Segment>>) {
        match segment {
            Some(segment) => drop(self.snapshot.segments.insert(id, segment)),
            None => drop(self.snapshot.segments.remove(&id)),
        }
        self.is_stale = true;
    }

    /// The tables, if they changed since the last call.
    pub(crate) fn take_snapshot(&mut self) -> Option<Arc<Snapshot>> {
        std::mem::take(&mut self.is_stale).then(|| Arc::new(self.snapshot.clone()))
    }

    /// Sends a control message along the route to a host; with `is_repeated` no link has to wake for it. False: it waits for a session.
    /// Without a route the message is dropped: every message that matters is sent again.
    pub(crate) fn send(&mut self, to: HostLabel, text: Vec<u8>, is_repeated: bool, now: Time) -> bool {
        if let Some(outbound) = self.snapshot.outbound.get(&to).filter(|outbound| outbound.send.is_some()) {
            if let Some(hop) = outbound.hop.as_ref().filter(|_| is_repeated) {
                hop.meter.sent.on_idle();
            }
            let _ = self.sender.control(outbound, Lane::Urgent, &text, now);
            return true;
        }
        let messages = &mut self.waiting.entry(to).or_default().messages;
        if messages.len() >= MAX_MESSAGES {
            messages.pop_front();
        }
        messages.push_back(text);
        false
    }

    /// Sends a control message over a way of its own. What hosts ask each other about a link, and what `is_repeated`, makes it no used one.
    pub(crate) fn send_over(&mut self, outbound: &Outbound, lane: Lane, text: &[u8], is_repeated: bool, now: Time) {
        if let Some(hop) = outbound.hop.as_ref().filter(|_| is_repeated) {
            hop.meter.sent.on_idle();
        }
        // What cannot be sealed is lost, as on the way.
        let _ = self.sender.control(outbound, lane, text, now);
    }

    /// Sends a handshake packet straight to an address. It is not marked as urgent: a network that drops marked packets would
    /// never let hosts find that out.
    pub(crate) fn send_packet(&mut self, to: Path, packet: Vec<u8>) {
        let stride = packet.len();
        self.transmits.push_back(Transmit { lane: Lane::Main, to, data: packet, stride });
    }

    /// Sends a handshake packet along the route to a host, behind an envelope and an all-zero session header.
    pub(crate) fn relay_packet(&mut self, to: HostLabel, hop: &Hop, packet: &[u8], now: Time) {
        let header = [0; session::HEADER_LEN];
        let data = [&hop.envelope(envelope::MAX_TTL, to)[..], &header, packet].concat();
        hop.meter.sent.on_link(1, now);
        self.send_packet(hop.path, data);
    }

    /// Keeps a frame for when there is a session with a host.
    pub(crate) fn wait(&mut self, to: HostLabel, frame: WaitingFrame) {
        let waiting = self.waiting.entry(to).or_default();
        if waiting.frames.len() >= MAX_FRAMES || waiting.bytes + frame.frame.len() > MAX_BYTES {
            self.lost_frames += 1;
            return;
        }
        waiting.bytes += frame.frame.len();
        waiting.frames.push_back(frame);
    }

    /// Sends what waited for a session with a host, if there is one now, and a route.
    pub(crate) fn send_waiting(&mut self, to: HostLabel, now: Time) {
        let Some(outbound) = self.snapshot.outbound.get(&to) else { return };
        if outbound.send.is_none() || outbound.hop.is_none() {
            return;
        }
        let Some(waiting) = self.waiting.remove(&to) else { return };
        for text in waiting.messages {
            let _ = self.sender.control(outbound, Lane::Urgent, &text, now);
        }
        for mut waiting in waiting.frames {
            // A frame that cannot be sent now is a frame lost, as on any wire.
            let _ = self.sender.send(outbound, waiting.segment, &waiting.vnet, &mut waiting.frame, now);
        }
    }

    /// Hosts that frames or messages wait for.
    pub(crate) fn waiting_for(&self) -> Vec<HostLabel> {
        self.waiting.keys().copied().collect()
    }

    /// Drops what waits for a host.
    pub(crate) fn drop_waiting(&mut self, to: HostLabel) {
        self.lost_frames += self.waiting.remove(&to).map_or(0, |waiting| waiting.frames.len() as u64);
    }

    /// Frames that waited in vain, or found no room to wait.
    pub(crate) fn lost_frames(&self) -> u64 {
        self.lost_frames
    }

    /// Everything to send since the last call.
    pub(crate) fn take_transmits(&mut self) -> VecDeque<Transmit> {
        let sealed = self.sender.batch.runs();
        let sealed = sealed.map(|(run, bytes)| Transmit {
            lane: run.lane,
            to: run.to,
            data: bytes.to_vec(),
            stride: run.stride,
        });
        self.transmits.extend(sealed);
        self.sender.batch.clear();
        std::mem::take(&mut self.transmits)
    }
}

#[cfg(test)]
mod tests {
    use weft_crypto::Suite;
    use weft_crypto::aead::{CipherSource, Native};
    use weft_crypto::session::SendKey;

    use super::*;
    use crate::datapath::snapshot::{Hashing, Meter};
    use crate::wire::MIN_DATAGRAM;

    const OWN: HostLabel = HostLabel([1; 6]);
    const PEER: HostLabel = HostLabel([2; 6]);

    fn outbound(has_session: bool, has_hop: bool) -> Outbound {
        let hop = Hop {
            via: PEER,
            path: Path::udp(([192, 0, 2, 2], 6783).into()),
            link_index: 7,
            hop_send: [3; 16],
            max_datagram: MIN_DATAGRAM,
            meter: Arc::new(Meter::default()),
        };
        let key = || Arc::new(SendKey::new(Native.bulk(Suite::ChaCha20Poly1305, &[5; 32]), 9));
        Outbound {
            send: has_session.then(key),
            link: None,
            envelope: hop.envelope(envelope::MAX_TTL, PEER),
            hop: has_hop.then_some(hop),
            meter: Arc::default(),
        }
    }

    fn publisher() -> Publisher {
        Publisher::new(Snapshot::empty(OWN, Hashing(1, 2)))
    }

    fn frame(len: usize) -> WaitingFrame {
        let vnet = VnetHeader::default();
        WaitingFrame { segment: SegmentId::of("s"), vnet, frame: [&[2; 12][..], &[8, 0], &vec![0; len]].concat() }
    }

    #[test]
    fn the_tables_are_published_once_for_each_change() {
        let mut publisher = publisher();
        assert!(publisher.take_snapshot().is_some() && publisher.take_snapshot().is_none());
        publisher.set_outbound(PEER, outbound(false, true));
        assert!(publisher.take_snapshot().is_some_and(|snapshot| snapshot.outbound.contains_key(&PEER)));
        publisher.set_outbound(PEER, outbound(false, false));
        assert!(publisher.take_snapshot().is_some_and(|snapshot| snapshot.outbound.is_empty()));
    }

    #[test]
    fn what_hosts_ask_each_other_about_a_link_makes_it_no_used_one() {
        let (mut publisher, outbound) = (publisher(), outbound(true, true));
        publisher.send_over(&outbound, Lane::Urgent, &[3, 0], true, Time::ZERO);
        let sent = &outbound.hop.as_ref().unwrap().meter.sent;
        assert_eq!((sent.link_datagrams.load(std::sync::atomic::Ordering::Relaxed), sent.link_wanted()), (1, 0));
    }

    #[test]
    fn messages_and_frames_wait_for_session_and_route_within_bounds() {
        let mut publisher = publisher();
        for n in 0..40 {
            assert!(!publisher.send(PEER, vec![3, n], false, Time::ZERO));
        }
        (0..70).for_each(|_| publisher.wait(PEER, frame(100)));
        assert_eq!(publisher.lost_frames(), 6);
        assert_eq!(publisher.waiting_for(), [PEER]);
        publisher.set_outbound(PEER, outbound(true, false));
        publisher.send_waiting(PEER, Time::ZERO);
        assert!(publisher.take_transmits().is_empty(), "no route yet");
        publisher.set_outbound(PEER, outbound(true, true));
        publisher.send_waiting(PEER, Time::ZERO);
        let datagrams = |t: &Transmit| t.data.len().div_ceil(t.stride);
        assert_eq!(publisher.take_transmits().iter().map(datagrams).sum::<usize>(), 32 + 64);
        assert!(publisher.waiting_for().is_empty() && publisher.take_transmits().is_empty());
    }

    #[test]
    fn frames_for_a_host_out_of_reach_are_dropped_and_counted() {
        let mut publisher = publisher();
        publisher.wait(PEER, frame(100));
        publisher.drop_waiting(PEER);
        assert_eq!(publisher.lost_frames(), 1);
    }

    #[test]
    fn a_relayed_handshake_packet_lies_behind_an_envelope_and_an_empty_header() {
        let mut publisher = publisher();
        publisher.relay_packet(PEER, outbound(false, true).hop.as_ref().unwrap(), &[1, 2, 3], Time::ZERO);
        let sent = publisher.take_transmits();
        assert_eq!(sent[0].data.len(), envelope::LEN + session::HEADER_LEN + 3);
        assert!(sent[0].data.ends_with(&[0, 1, 2, 3]) && sent[0].lane == Lane::Main);
    }
}
