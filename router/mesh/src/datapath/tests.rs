//! Frames through egress, wire and ingress of several hosts.

mod loss;
mod metering;
mod relaying;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use weft_crypto::aead::{CipherSource, Native};
use weft_crypto::session::{ReceiveKey, SendKey};
use weft_crypto::{HostLabel, Suite, envelope};

use super::*;
use crate::datapath::frame::Headers;
use crate::datapath::frame::tests::{checksums_are_right, tcp_frame};
use crate::datapath::sink::TapOffloads;
use crate::datapath::snapshot::{Hashing, Hop, Inbound, Meter, Outbound};
use crate::datapath::vnet::Gso;
use crate::path::Path;
use crate::wire::{Lane, OVERHEAD};

const ALL: TapOffloads = TapOffloads { checksum: true, tcp: true, udp: true };

struct Taps {
    offloads: TapOffloads,
    frames: Vec<(VnetHeader, Vec<u8>)>,
    relayed: Vec<(Path, Vec<u8>, usize)>,
    punts: Vec<Punt>,
    dropped: Vec<DropReason>,
}

impl Taps {
    fn new(offloads: TapOffloads) -> Self {
        Taps { offloads, frames: vec![], relayed: vec![], punts: vec![], dropped: vec![] }
    }
}

impl Sink for Taps {
    fn offloads(&self, _: SegmentId) -> TapOffloads {
        self.offloads
    }
    fn to_tap(&mut self, _: SegmentId, vnet: &VnetHeader, parts: &[&[u8]]) {
        self.frames.push((*vnet, parts.concat()));
    }
    fn relay(&mut self, to: Path, datagrams: &[u8], stride: usize) {
        self.relayed.push((to, datagrams.to_vec(), stride));
    }
    fn punt(&mut self, punt: Punt) {
        self.punts.push(punt);
    }
    fn dropped(&mut self, reason: DropReason) {
        self.dropped.push(reason);
    }
}

fn label(n: u8) -> HostLabel {
    HostLabel([n; 6])
}

fn address(n: u8) -> Path {
    Path::udp(([10, 0, 0, n], 6783).into())
}

const MAC_A: Mac = [2, 0, 0, 0, 0, 1];
const MAC_C: Mac = [2, 0, 0, 0, 0, 2];

fn segment() -> SegmentId {
    SegmentId::of("test")
}

/// Host `own`, with a session and a link to each neighbour, and a route to `far` via `relay` if given.
fn snapshot(own: u8, neighbours: &[u8], far: Option<(u8, u8)>, datagram: usize) -> Snapshot {
    let mut snapshot = Snapshot::empty(label(own), Hashing(1, 2));
    let hop_key = |from: u8, to: u8| [from * 16 + to; 16];
    let session = |from: u8, to: u8| Native.bulk(Suite::Aes256Gcm, &[from * 16 + to; 32]);
    let index = |at: u8, of: u8| u32::from(at) * 100 + u32::from(of);
    for peer in neighbours.iter().copied().chain(far.map(|(far, _)| far)) {
        let meter = Arc::new(Meter::default());
        let via = far.filter(|(far, _)| *far == peer).map_or(peer, |(_, relay)| relay);
        let hop = Hop {
            via: label(via),
            path: address(via),
            link_index: index(via, own),
            hop_send: hop_key(own, via),
            max_datagram: datagram,
            meter: meter.clone(),
        };
        let outbound = Outbound {
            send: Some(Arc::new(SendKey::new(session(own, peer), index(peer, own)))),
            envelope: hop.envelope(envelope::MAX_TTL, label(peer)),
            link: (via == peer).then(|| address(peer)),
            hop: Some(hop),
            meter: meter.clone(),
        };
        snapshot.outbound.insert(label(peer), Arc::new(outbound));
        let inbound = Inbound {
            peer: label(peer),
            receive: ReceiveKey::new(session(peer, own)),
            hop_receive: hop_key(peer, own),
            current: AtomicBool::new(true),
            heard: Default::default(),
            meter,
        };
        snapshot.inbound.insert(index(own, peer), Arc::new(inbound));
    }
    let flood = neighbours.iter().copied().chain(far.map(|(far, _)| far)).map(label).collect();
    let mut switch = Segment { flood, ..Segment::empty(segment(), Hashing(1, 2)) };
    for (mac, host) in [(MAC_A, 1), (MAC_C, 3)] {
        switch.macs.insert(mac, label(host));
    }
    snapshot.segments.insert(segment(), Arc::new(switch));
    snapshot
}

/// Carries a frame from host 1 to host 3, through relay 2 if `relayed`; returns what host 3's TAP got.
fn carry(frame: &[u8], vnet: VnetHeader, relayed: bool, datagram: usize, offloads: TapOffloads) -> Taps {
    let (mut a, mut c) = (Datapath::new(64), Datapath::new(64));
    let far = |own: u8| relayed.then_some((own, 2));
    let neighbour = |own: u8| if relayed { vec![2] } else { vec![own] };
    let sender = snapshot(1, &neighbour(3), far(3), datagram);
    let receiver = snapshot(3, &neighbour(1), far(1), datagram);
    let mut taps = Taps::new(offloads);
    a.frame(&sender, segment(), &vnet, &mut frame.to_vec(), Time::ZERO, &mut taps);
    assert_eq!((taps.dropped.clone(), taps.punts.clone()), (vec![], vec![]));
    let mut wire: Vec<(Path, Vec<u8>, usize)> =
        a.sender.batch.runs().map(|(run, bytes)| (run.to, bytes.to_vec(), run.stride)).collect();
    if relayed {
        let relay = snapshot(2, &[1, 3], None, datagram);
        let mut passed = Taps::new(offloads);
        let mut b = Datapath::new(64);
        for (to, bytes, stride) in &mut wire {
            assert_eq!(*to, address(2));
            let mut buffers = [RxBuffer { from: address(1), data: bytes, stride: *stride }];
            b.datagrams(&relay, Time::ZERO, &mut buffers, &mut passed);
        }
        assert_eq!(passed.dropped, []);
        assert_eq!(passed.relayed.len(), wire.len(), "a run stays a run");
        wire = passed.relayed;
    }
    let from = if relayed { address(2) } else { address(1) };
    let mut buffers: Vec<RxBuffer<'_>> = wire
        .iter_mut()
        .map(|(to, bytes, stride)| {
            assert_eq!(*to, address(3));
            RxBuffer { from, data: bytes, stride: *stride }
        })
        .collect();
    c.datagrams(&receiver, Time::ZERO, &mut buffers, &mut taps);
    taps
}

fn super_frame(v6: bool, len: usize, mss: usize, flags: u8) -> (Vec<u8>, VnetHeader) {
    let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
    let mut frame = tcp_frame(v6, &payload, flags);
    let headers = Headers::parse(&frame).unwrap();
    headers.set_partial_checksum(&mut frame, headers.end);
    let vnet = VnetHeader {
        partial_checksum: true,
        gso: if v6 { Gso::TcpV6 } else { Gso::TcpV4 },
        header_len: headers.payload as u16,
        gso_size: mss as u16,
        checksum_start: headers.l4 as u16,
        checksum_offset: 16,
    };
    (frame, vnet)
}

#[test]
fn a_super_frame_arrives_as_it_left_direct_and_relayed() {
    for (v6, relayed) in [(false, false), (true, false), (false, true), (true, true)] {
        for len in [1300 * 2, 1300 * 3 + 1, 60_000] {
            let (frame, vnet) = super_frame(v6, len, 1300, 0x18);
            let taps = carry(&frame, vnet, relayed, 1452, ALL);
            assert_eq!(taps.dropped, []);
            assert_eq!(taps.frames.len(), 1);
            assert_eq!(taps.frames[0].0, vnet);
            assert!(taps.frames[0].1 == frame, "v6 {v6} relayed {relayed} len {len}");
        }
    }
}

/// Lets `c` have what `a` wants sent; the bytes of each run.
fn deliver(a: &Datapath, c: &mut Datapath, receiver: &Snapshot, now: Time, taps: &mut Taps) -> Vec<usize> {
    let mut wire: Vec<(Vec<u8>, usize)> =
        a.sender.batch.runs().map(|(run, bytes)| (bytes.to_vec(), run.stride)).collect();
    let sizes = wire.iter().map(|(bytes, _)| bytes.len()).collect();
    let mut buffers: Vec<RxBuffer<'_>> =
        wire.iter_mut().map(|(data, stride)| RxBuffer { from: address(1), data, stride: *stride }).collect();
    c.datagrams(receiver, now, &mut buffers, taps);
    sizes
}

/// What hosts 1 and 3 send and get when these frames leave in one batch.
fn carry_batch(frames: &[(Vec<u8>, VnetHeader)]) -> (Vec<usize>, Vec<Vec<u8>>) {
    let (mut a, mut c) = (Datapath::new(64), Datapath::new(64));
    let (sender, receiver) = (snapshot(1, &[3], None, 1452), snapshot(3, &[1], None, 1452));
    let (now, mut taps) = (Time::from_nanos(1_000_000_000), Taps::new(ALL));
    for (frame, vnet) in frames {
        a.frame(&sender, segment(), vnet, &mut frame.clone(), now, &mut taps);
    }
    let sizes = deliver(&a, &mut c, &receiver, now, &mut taps);
    assert_eq!(taps.dropped, []);
    (sizes, taps.frames.into_iter().map(|(_, frame)| frame).collect())
}

#[test]
fn a_flow_that_sends_little_overtakes_one_that_sends_much() {
    let bulk = super_frame(false, 1300 * 3, 1300, 0x18);
    let mut echo = tcp_frame(false, &[1; 30], 0x10);
    echo[23] = 1;
    let (sizes, frames) = carry_batch(&[bulk.clone(), (echo.clone(), VnetHeader::default()), bulk.clone()]);
    assert_eq!(sizes[0], echo.len() + OVERHEAD);
    assert!(frames[0] == echo && frames[1] == bulk.0 && frames[2] == bulk.0);
    // A small frame of the large flow itself stays behind it.
    let tail = (tcp_frame(false, &[2; 30], 0x18), VnetHeader::default());
    let (_, frames) = carry_batch(&[bulk.clone(), tail.clone()]);
    assert!(frames[0] == bulk.0 && frames[1] == tail.0);
}

#[test]
fn acknowledgements_of_bulk_overtake_nothing() {
    let (mut a, mut c) = (Datapath::new(64), Datapath::new(64));
    let (sender, receiver) = (snapshot(1, &[3], None, 1452), snapshot(3, &[1], None, 1452));
    let (now, mut taps) = (Time::from_nanos(1_000_000_000), Taps::new(ALL));
    let answer = |c: &mut Datapath| {
        // The other direction's MACs, addresses and ports.
        let mut frame = tcp_frame(false, &[], 0x10);
        for (pair, len) in [(0..12, 6), (26..34, 4), (34..38, 2)] {
            frame[pair].rotate_left(len);
        }
        c.frame(&receiver, segment(), &VnetHeader::default(), &mut frame, now, &mut Taps::new(ALL));
        let lanes: Vec<Lane> = c.sender.batch.runs().map(|(run, _)| run.lane).collect();
        c.sender.batch.clear();
        lanes
    };
    assert_eq!(answer(&mut c), [Lane::Urgent]);
    let (mut bulk, vnet) = super_frame(false, 1300 * 40, 1300, 0x18);
    a.frame(&sender, segment(), &vnet, &mut bulk, now, &mut taps);
    deliver(&a, &mut c, &receiver, now, &mut taps);
    assert_eq!((taps.frames.len(), taps.dropped.len()), (1, 0));
    assert_eq!(answer(&mut c), [Lane::Main]);
}

/// A part of a UDP packet that its container's IP has cut: from `offset` on, with more to come or not.
fn ip_fragment(v6: bool, offset: u16, more: bool, len: usize) -> (Vec<u8>, VnetHeader) {
    let lengths = [20, 8].map(|header| (header + len as u16).to_be_bytes());
    let mut frame = [&MAC_C[..], &MAC_A, if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] }].concat();
    if v6 {
        frame.extend_from_slice(&[0x60, 0, 0, 0, lengths[1][0], lengths[1][1], 44, 64]);
        frame.extend_from_slice(&[0xfd; 32]);
        frame.extend_from_slice(&[17, 0]);
        frame.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 7]);
    } else {
        frame.extend_from_slice(&[0x45, 0, lengths[0][0], lengths[0][1], 0, 7]);
        frame.extend_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        frame.extend_from_slice(&[64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 3]);
    }
    frame.resize(frame.len() + len, offset as u8);
    (frame, VnetHeader::default())
}

#[test]
fn fragments_of_packets_that_follow_each_other_make_two_runs() {
    for v6 in [false, true] {
        let (head, tail) = (ip_fragment(v6, 0, true, 1200), ip_fragment(v6, 1200, false, 56));
        let whole = ip_fragment(v6, 0, false, 4);
        // The flow is a busy one when this begins: nothing of it may overtake.
        let mut frames = vec![whole.clone(); 2000];
        for _ in 0..5 {
            frames.extend([head.clone(), tail.clone()]);
        }
        frames.push(whole.clone());
        let (sizes, arrived) = carry_batch(&frames);
        let expected = [&head, &tail].map(|frame| 5 * (frame.0.len() + OVERHEAD));
        assert_eq!(sizes[sizes.len() - 3..], [expected[0], expected[1], whole.0.len() + OVERHEAD]);
        let order = [vec![head.0; 5], vec![tail.0; 5], vec![whole.0]].concat();
        assert!(arrived[arrived.len() - 11..] == order, "what is no fragment stays behind those before it");
    }
}

#[test]
fn a_smaller_path_recuts_tcp_and_fragments_the_rest() {
    let (frame, vnet) = super_frame(false, 5000, 1300, 0x18);
    let taps = carry(&frame, vnet, false, 1232, ALL);
    assert_eq!(taps.frames.len(), 1);
    assert!(taps.frames[0].1 == frame);
    assert_eq!(usize::from(taps.frames[0].0.gso_size), 1232 - OVERHEAD - usize::from(vnet.header_len));

    let plain = tcp_frame(true, &[9; 1300], 0x10);
    let taps = carry(&plain, VnetHeader::default(), true, 1232, ALL);
    assert_eq!(taps.frames, [(VnetHeader::default(), plain)]);
}

#[test]
fn a_tap_without_offloads_gets_whole_frames_with_whole_checksums() {
    for v6 in [false, true] {
        let (frame, vnet) = super_frame(v6, 4000, 1300, 0x19);
        let taps = carry(&frame, vnet, false, 1452, TapOffloads::NONE);
        assert_eq!(taps.frames.len(), 4);
        let header = usize::from(vnet.header_len);
        let mut stream = Vec::new();
        for (index, (vnet, frame)) in taps.frames.iter().enumerate() {
            assert_eq!(*vnet, VnetHeader::default());
            assert!(checksums_are_right(frame));
            let headers = Headers::parse(frame).unwrap();
            assert_eq!(crate::datapath::tcp::TcpCut::flags(frame, &headers), if index == 3 { 0x19 } else { 0x10 });
            let sequence = u32::from_be_bytes(frame[headers.l4 + 4..headers.l4 + 8].try_into().unwrap());
            assert_eq!(sequence as usize, 1 + stream.len());
            stream.extend_from_slice(&frame[headers.payload..]);
        }
        assert!(stream == frame[header..]);
    }
}

#[test]
fn udp_super_frames_keep_their_datagrams() {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64];
    frame.extend_from_slice(&[0xfd; 32]);
    frame.extend_from_slice(&[1, 2, 3, 4, 0, 0, 0, 0]);
    frame.extend((0..3100).map(|i| i as u8));
    let headers = Headers { v6: true, transport: frame::Transport::Udp, l3: 14, l4: 54, payload: 62, end: frame.len() };
    headers.set_end(&mut frame, headers.end);
    headers.set_partial_checksum(&mut frame, headers.end);
    let vnet = VnetHeader {
        partial_checksum: true,
        gso: Gso::Udp,
        header_len: 62,
        gso_size: 1200,
        checksum_start: 54,
        checksum_offset: 6,
    };
    let joined = carry(&frame, vnet, false, 1452, ALL);
    assert_eq!(joined.frames, [(vnet, frame.clone())]);
    // On a path too small for them, the datagrams are fragmented, not re-cut.
    let singly = carry(&frame, vnet, false, 1232, ALL);
    let lengths: Vec<usize> = singly.frames.iter().map(|(_, frame)| frame.len() - 62).collect();
    assert_eq!(lengths, [1200, 1200, 700]);
    let whole = carry(&frame, vnet, false, 1452, TapOffloads::NONE);
    assert!(whole.frames.iter().all(|(_, frame)| checksums_are_right(frame)));
    assert_eq!(whole.frames.len(), 3);
}

#[test]
fn bursts_of_two_workers_are_never_mixed() {
    let sender = snapshot(1, &[3], None, 1452);
    let receiver = snapshot(3, &[1], None, 1452);
    let mut taps = Taps::new(ALL);
    let mut workers = [Datapath::new(64), Datapath::new(64)];
    let (first, vnet) = super_frame(false, 5200, 1300, 0x10);
    let mut second = first.clone();
    let header = usize::from(vnet.header_len);
    second[header..].reverse();
    let mut wires: Vec<Vec<Vec<u8>>> = Vec::new();
    for (worker, frame) in workers.iter_mut().zip([&first, &second]) {
        worker.frame(&sender, segment(), &vnet, &mut frame.clone(), Time::ZERO, &mut taps);
        let (run, bytes) = worker.sender.batch.runs().next().unwrap();
        wires.push(bytes.chunks(run.stride).map(<[u8]>::to_vec).collect());
    }
    // 0 of the first, 0 of the second, 1 of the first, 1 of the second, ...
    let mut mixed: Vec<Vec<u8>> = wires[0].iter().zip(&wires[1]).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let mut buffers: Vec<RxBuffer<'_>> = mixed
        .iter_mut()
        .map(|datagram| RxBuffer { from: address(1), stride: datagram.len(), data: datagram })
        .collect();
    workers[0].datagrams(&receiver, Time::ZERO, &mut buffers, &mut taps);
    assert_eq!(taps.frames.len(), 8);
    for (index, (_, frame)) in taps.frames.iter().enumerate() {
        let at = header + index / 2 * 1300;
        let whole = if index % 2 == 0 { &first } else { &second };
        assert!(frame[header..] == whole[at..at + 1300]);
    }
}

#[test]
fn spoofed_frames_are_dropped_on_both_sides() {
    let mut spoofed = tcp_frame(false, b"x", 0x10);
    spoofed[6..12].copy_from_slice(&MAC_C);
    let sender = snapshot(1, &[3], None, 1452);
    let mut taps = Taps::new(ALL);
    let mut path = Datapath::new(64);
    path.frame(&sender, segment(), &VnetHeader::default(), &mut spoofed.clone(), Time::ZERO, &mut taps);
    assert_eq!(taps.dropped, [DropReason::Spoofed]);
    // A host that does not check: the far side does.
    let outbound = sender.outbound.get(&label(3)).unwrap();
    let vnet = VnetHeader::default();
    path.sender.send(outbound, segment(), &vnet, &mut spoofed, Time::ZERO).unwrap();
    let mut wire = path.sender.batch.runs().next().unwrap().1.to_vec();
    let stride = wire.len();
    let receiver = snapshot(3, &[1], None, 1452);
    let mut buffers = [RxBuffer { from: address(1), data: &mut wire, stride }];
    path.datagrams(&receiver, Time::ZERO, &mut buffers, &mut taps);
    assert_eq!(taps.dropped, [DropReason::Spoofed, DropReason::Spoofed]);
    assert_eq!(taps.frames, []);
}

#[test]
fn a_path_that_takes_nothing_is_no_path() {
    let narrow = snapshot(1, &[3], None, OVERHEAD);
    let mut taps = Taps::new(ALL);
    for len in [14, 60, 1500] {
        let mut frame = [&MAC_C[..], &MAC_A, &[0x88, 0xb5], &vec![0; len]].concat();
        Datapath::new(64).frame(&narrow, segment(), &VnetHeader::default(), &mut frame, Time::ZERO, &mut taps);
    }
    assert_eq!(taps.dropped, [DropReason::Unreachable; 3]);
}

#[test]
fn flooding_has_a_budget() {
    let sender = snapshot(1, &[3], None, 1452);
    let (mut path, mut taps) = (Datapath::new(64), Taps::new(ALL));
    let mut broadcast = vec![0xff; 6];
    broadcast.extend_from_slice(&MAC_A);
    broadcast.extend_from_slice(&[0x88, 0xb5]);
    broadcast.resize(1250, 0);
    let mut send = |sender: &Snapshot, count: u64, now: Time| {
        taps.dropped.clear();
        for _ in 0..count {
            path.frame(sender, segment(), &VnetHeader::default(), &mut broadcast, now, &mut taps);
            path.sender.batch.clear();
        }
        taps.dropped.len() as u64
    };
    let burst = FLOOD_BURST_BYTES / 1250;
    assert_eq!(send(&sender, burst + 10, Time::ZERO), 10);
    // A budget for bytes times hosts: to two of them half as many frames.
    let two = snapshot(1, &[3, 4], None, 1452);
    assert_eq!(send(&two, burst, Time::ZERO + std::time::Duration::from_secs(9)), burst / 2);
    // A stream of 2,500 full frames a second has room, always.
    let dropped: u64 =
        (0..2_500).map(|n| send(&two, 1, Time::ZERO + std::time::Duration::from_micros(20_000_000 + n * 400))).sum();
    assert_eq!(dropped, 0);
}

#[test]
fn tagged_super_frames_arrive_as_they_left() {
    for (tags, v6) in
        [(&[0x81, 0, 0, 7][..], false), (&[0x81, 0, 0xe0, 0], true), (&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7], false)]
    {
        let (plain, vnet) = super_frame(v6, 4000, 1200, 0x19);
        let frame = [&plain[..12], tags, &plain[12..]].concat();
        let more = tags.len() as u16;
        let vnet =
            VnetHeader { header_len: vnet.header_len + more, checksum_start: vnet.checksum_start + more, ..vnet };
        assert_eq!(carry(&frame, vnet, false, 1452, ALL).frames, [(vnet, frame.clone())]);
        let pieces = carry(&frame, vnet, false, 1452, TapOffloads::NONE).frames;
        assert!(pieces.len() == 4 && pieces.iter().all(|(_, piece)| checksums_are_right(piece)));
    }
}

/// VXLAN in a container: the kernel asks for the inner packet's checksum to be completed, not for the outer one's.
#[test]
fn an_unfinished_checksum_of_an_inner_packet_is_finished_before_it_leaves() {
    let inner = tcp_frame(false, &[7; 500], 0x18);
    let inner_headers = Headers::parse(&inner).unwrap();
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
    let at = frame.len();
    frame.extend_from_slice(&inner);
    let headers =
        Headers { v6: false, transport: frame::Transport::Udp, l3: 14, l4: 34, payload: 42, end: frame.len() };
    headers.set_end(&mut frame, headers.end);
    headers.set_full_checksum(&mut frame);
    let complete = frame.clone();
    inner_headers.set_partial_checksum(&mut frame[at..], inner_headers.end);
    let vnet = VnetHeader {
        partial_checksum: true,
        checksum_start: (at + inner_headers.l4) as u16,
        checksum_offset: 16,
        ..VnetHeader::default()
    };
    let taps = carry(&frame, vnet, false, 1452, ALL);
    assert_eq!(taps.frames, [(VnetHeader::default(), complete)]);
}

// The smallest datagram holds the longest headers and some payload.
const _: () = assert!(crate::wire::MIN_DATAGRAM > OVERHEAD + frame::MAX_HEADERS + 100);
