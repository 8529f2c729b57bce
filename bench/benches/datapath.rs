//! What the data path costs without system calls: one piece of it at a time.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weft_crypto::aead::{CipherSource, Native};
use weft_crypto::replay::ReplayWindow;
use weft_crypto::session::{OVERHEAD, ReceiveKey, SendKey};
use weft_crypto::{HostLabel, Suite, Time, envelope};
use weft_mesh::datapath::Datapath;
use weft_mesh::egress::DropReason;
use weft_mesh::frame::{Headers, Mac};
use weft_mesh::ingress::{Punt, RxBuffer, Sink, TapOffloads};
use weft_mesh::records::LinkRecord;
use weft_mesh::routes::Graph;
use weft_mesh::snapshot::{Hashing, Hop, Inbound, Map, Meter, Outbound, Owner, Port, Segment, Snapshot};
use weft_mesh::vnet::{Gso, VnetHeader};
use weft_mesh::wire::SegmentId;

/// A TAP that takes everything and a socket that sends nothing.
struct Nowhere;

impl Sink for Nowhere {
    fn offloads(&self, _: SegmentId) -> TapOffloads {
        TapOffloads { checksum: true, tcp: true, udp: true }
    }
    fn to_tap(&mut self, _: SegmentId, vnet: &VnetHeader, parts: &[&[u8]]) {
        black_box((vnet, parts));
    }
    fn relay(&mut self, _: SocketAddr, datagrams: &[u8], _: usize) {
        black_box(datagrams);
    }
    fn punt(&mut self, punt: Punt) {
        panic!("nothing here is for the node: {punt:?}");
    }
    fn dropped(&mut self, reason: DropReason) {
        panic!("nothing here is to be dropped: {reason:?}");
    }
}

const OWN: HostLabel = HostLabel([1; 6]);
const OTHER: HostLabel = HostLabel([2; 6]);
const NEAR: Mac = [2, 0, 0, 0, 0, 1];
const FAR: Mac = [2, 0, 0, 0, 0, 2];

fn hashing() -> Hashing {
    Hashing(1, 2)
}

/// The tables of `own`, which has a session with `peer`, among so many peers and endpoints.
fn tables(own: HostLabel, peer: HostLabel, suite: Suite, peers: u32, endpoints: u32) -> Snapshot {
    let mut snapshot = Snapshot::empty(own, hashing());
    let key = |from: HostLabel| Native.bulk(suite, &[from.0[0]; 32]);
    let label = |number: u32| match number {
        0 => peer,
        _ => HostLabel([9, 9, (number >> 24) as u8, (number >> 16) as u8, (number >> 8) as u8, number as u8]),
    };
    for number in 0..peers {
        let meter = Arc::new(Meter::default());
        let hop = Hop {
            via: label(number),
            remote: SocketAddr::from(([10, 0, 0, 2], 6783)),
            link_index: 7 + number,
            hop_send: [own.0[0]; 16],
            max_datagram: 1452,
            meter: meter.clone(),
        };
        let outbound = Outbound {
            send: Some(Arc::new(SendKey::new(key(own), 7 + number))),
            envelope: hop.envelope(envelope::MAX_TTL, label(number)),
            link: Some(hop.remote),
            hop: Some(hop),
            meter: meter.clone(),
        };
        snapshot.outbound.insert(label(number), Arc::new(outbound));
        let inbound = Inbound {
            peer: label(number),
            receive: ReceiveKey::new(key(peer)),
            hop_receive: [peer.0[0]; 16],
            current: AtomicBool::new(true),
            heard: Default::default(),
            meter,
        };
        snapshot.inbound.insert(7 + number, Arc::new(inbound));
    }
    let mut segment = Segment {
        id: SegmentId::of("bench"),
        macs: Map::with_hasher(hashing()),
        ips: Map::with_hasher(hashing()),
        flood: Arc::new([peer]),
    };
    let mine = if own == OWN { NEAR } else { FAR };
    for (mac, host) in [(mine, own), (if mine == NEAR { FAR } else { NEAR }, peer)] {
        segment.macs.insert(mac, Port { host, recorded: true, seen: Arc::default() });
    }
    segment.ips.insert(IpAddr::from([10, 32, 0, 2]), Owner { mac: FAR, host: OTHER });
    for number in 2..endpoints {
        let [_, a, b, c] = number.to_be_bytes();
        let (mac, host) = ([2, 1, 1, a, b, c], label(number % peers));
        segment.macs.insert(mac, Port { host, recorded: true, seen: Arc::default() });
        segment.ips.insert(IpAddr::from([10, 64 + a, b, c]), Owner { mac, host });
    }
    snapshot.segments.insert(segment.id, Arc::new(segment));
    snapshot
}

/// A frame from the near container to the far one, and how the TAP hands it over.
fn frame(protocol: u8, payload: usize, piece: usize) -> (Vec<u8>, VnetHeader) {
    let header = if protocol == 6 { 20 } else { 8 };
    let mut frame = [&FAR[..], &NEAR[..], &[8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0]].concat();
    frame.extend_from_slice(&[10, 32, 0, 1, 10, 32, 0, 2]);
    let mut transport = vec![0; header];
    transport[..4].copy_from_slice(&[0x9c, 0x40, 0x14, 0x51]);
    if protocol == 6 {
        (transport[12], transport[13]) = (0x50, 0x10);
    }
    frame.extend_from_slice(&transport);
    frame.resize(frame.len() + payload, 0x77);
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    if protocol == 17 {
        frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    }
    let headers = Headers::parse(&frame).expect("made above");
    headers.set_end(&mut frame, headers.end);
    headers.set_partial_checksum(&mut frame, headers.end);
    let gso = if piece == 0 { Gso::None } else { Gso::TcpV4 };
    let vnet = VnetHeader {
        partial_checksum: true,
        gso,
        header_len: headers.payload as u16,
        gso_size: piece as u16,
        checksum_start: headers.l4 as u16,
        checksum_offset: headers.checksum_offset() as u16,
    };
    (frame, vnet)
}

fn kinds() -> [(&'static str, (Vec<u8>, VnetHeader)); 3] {
    [
        ("UDP of 64 bytes", frame(17, 64, 0)),
        ("UDP of 1,300 bytes", frame(17, 1300, 0)),
        ("TCP super-frame of 60 kB", frame(6, 1324 * 45, 1324)),
    ]
}

fn seal(c: &mut Criterion) {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let mut group = c.benchmark_group(format!("{suite}"));
        for size in [64, 512, 1400] {
            group.throughput(Throughput::Bytes(size as u64));
            let bulk = || Native.bulk(suite, &[3; 32]);
            let mut packet = vec![0; size + OVERHEAD];
            let mut key = SendKey::new(bulk(), 1);
            group.bench_function(BenchmarkId::new("seal", size), |b| {
                b.iter(|| {
                    let counter = key.reserve(1).or_else(|_| {
                        key = SendKey::new(bulk(), 1);
                        key.reserve(1)
                    });
                    key.seal(counter.expect("a fresh key has counters").start, false, black_box(&mut packet));
                });
            });
            let sealed = packet.clone();
            let aead = bulk();
            let (header, _) = sealed.split_at(12);
            let mut text = vec![0; size + 16];
            text[..size].fill(5);
            let tag = aead.seal(9, header, &mut text[..size]);
            text[size..].copy_from_slice(&tag);
            let mut copy = text.clone();
            group.bench_function(BenchmarkId::new("open", size), |b| {
                b.iter(|| {
                    copy.copy_from_slice(&text);
                    assert!(aead.open(9, header, black_box(&mut copy)));
                });
            });
        }
    }
}

fn egress(c: &mut Criterion) {
    let mut group = c.benchmark_group("egress");
    for (peers, endpoints) in [(10, 10), (1_000, 100_000)] {
        let snapshot = tables(OWN, OTHER, Suite::Aes256Gcm, peers, endpoints);
        for (name, (bytes, vnet)) in kinds() {
            let mut path = Datapath::new(64);
            let (mut bytes, mut now) = (bytes, Time::from_nanos(1));
            group.bench_function(BenchmarkId::new(name, format!("{peers} peers, {endpoints} endpoints")), |b| {
                b.iter(|| {
                    now += Duration::from_micros(10);
                    path.frame(&snapshot, SegmentId::of("bench"), &vnet, &mut bytes, now, &mut Nowhere);
                    black_box(path.sender.batch.len());
                    path.sender.batch.clear();
                });
            });
        }
    }
    group.finish();
}

fn ingress(c: &mut Criterion) {
    let mut group = c.benchmark_group("ingress");
    for (peers, endpoints) in [(10, 10), (1_000, 100_000)] {
        let near = tables(OWN, OTHER, Suite::Aes256Gcm, peers, endpoints);
        let far = tables(OTHER, OWN, Suite::Aes256Gcm, peers, endpoints);
        for (name, (bytes, vnet)) in kinds() {
            let (mut sender, mut receiver) = (Datapath::new(64), Datapath::new(64));
            let mut now = Time::from_nanos(1);
            let mut run = || {
                now += Duration::from_micros(10);
                let mut bytes = bytes.clone();
                sender.frame(&near, SegmentId::of("bench"), &vnet, &mut bytes, now, &mut Nowhere);
                let wire: Vec<_> =
                    sender.sender.batch.runs().map(|(run, bytes)| (bytes.to_vec(), run.stride)).collect();
                sender.sender.batch.clear();
                wire
            };
            group.bench_function(BenchmarkId::new(name, format!("{peers} peers, {endpoints} endpoints")), |b| {
                b.iter_batched(
                    &mut run,
                    |mut wire| {
                        let from = SocketAddr::from(([10, 0, 0, 2], 6783));
                        let mut buffers: Vec<RxBuffer<'_>> =
                            wire.iter_mut().map(|(data, stride)| RxBuffer { from, data, stride: *stride }).collect();
                        receiver.datagrams(&far, Time::from_nanos(1), &mut buffers, &mut Nowhere);
                        drop(buffers);
                        wire
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

fn replay(c: &mut Criterion) {
    let (mut window, mut counter) = (ReplayWindow::default(), 0);
    c.bench_function("replay window, a counter in order", |b| {
        b.iter(|| {
            counter += 1;
            assert!(window.mark(black_box(counter)));
        });
    });
}

fn routes(c: &mut Criterion) {
    let mut graph = Graph::default();
    let label = |number: u32| HostLabel([0, 0, 0, 0, (number >> 8) as u8, number as u8]);
    let mut state = 1u32;
    for number in 0..1_000 {
        for step in 0..5u32 {
            // A ring for the first, then hosts from anywhere (a linear congruential generator).
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let other = if step == 0 { (number + 1) % 1_000 } else { (state >> 8) % 1_000 };
            let link = LinkRecord { cost: 10 + (state >> 24), max_datagram: 1452 };
            graph.set(label(number), label(other), link);
            graph.set(label(other), label(number), link);
        }
    }
    c.bench_function("routes of 1,000 hosts with 10,000 links", |b| b.iter(|| black_box(&graph).routes(label(0))));
}

fn publication(c: &mut Criterion) {
    let snapshot = tables(OWN, OTHER, Suite::Aes256Gcm, 1_000, 100_000);
    let id = SegmentId::of("bench");
    let mut number = 0u32;
    c.bench_function("a snapshot with one endpoint more, 100,000 known", |b| {
        b.iter(|| {
            number += 1;
            let mut next = snapshot.clone();
            let mut segment = Segment::clone(&next.segments[&id]);
            let [a, b, c, d] = number.to_be_bytes();
            let port = Port { host: OTHER, recorded: true, seen: Arc::default() };
            segment.macs.insert([2, 2, a, b, c, d], port);
            next.segments.insert(id, Arc::new(segment));
            Arc::new(next)
        });
    });
}

criterion_group!(benches, seal, egress, ingress, replay, routes, publication);
criterion_main!(benches);
