//! What the data path costs without system calls: one piece of it at a time.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weft_bench::stage::{Nowhere, OTHER, OWN, SIZES, Seal, kinds, receive, segment, tables, wire};
use weft_crypto::replay::ReplayWindow;
use weft_crypto::session::{OVERHEAD, SendKey};
use weft_crypto::{HostLabel, Suite, Time};
use weft_mesh::datapath::Datapath;
use weft_mesh::records::LinkRecord;
use weft_mesh::routes::Graph;
use weft_mesh::snapshot::Segment;

const AES: Seal = Seal::Suite(Suite::Aes256Gcm);

fn seal(c: &mut Criterion) {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let mut group = c.benchmark_group(format!("{suite}"));
        for size in [64, 512, 1400] {
            group.throughput(Throughput::Bytes(size as u64));
            let bulk = || Seal::Suite(suite).key(3);
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
    for (peers, endpoints) in SIZES {
        let snapshot = tables(OWN, OTHER, AES, (peers, endpoints));
        for (name, (bytes, vnet)) in kinds() {
            let mut path = Datapath::new(64);
            let (mut bytes, mut now) = (bytes, Time::from_nanos(1));
            group.bench_function(BenchmarkId::new(name, format!("{peers} peers, {endpoints} endpoints")), |b| {
                b.iter(|| {
                    now += Duration::from_micros(10);
                    path.frame(&snapshot, segment(), &vnet, &mut bytes, now, &mut Nowhere);
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
    for (peers, endpoints) in SIZES {
        let near = tables(OWN, OTHER, AES, (peers, endpoints));
        let far = tables(OTHER, OWN, AES, (peers, endpoints));
        for (name, frame) in kinds() {
            let (mut sender, mut receiver) = (Datapath::new(64), Datapath::new(64));
            let mut now = Time::from_nanos(1);
            let mut run = || {
                now += Duration::from_micros(10);
                wire(&mut sender, &near, &frame, now)
            };
            group.bench_function(BenchmarkId::new(name, format!("{peers} peers, {endpoints} endpoints")), |b| {
                b.iter_batched(
                    &mut run,
                    |mut wire| {
                        receive(&mut receiver, &far, &mut wire, Time::from_nanos(1));
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
    let snapshot = tables(OWN, OTHER, AES, SIZES[1]);
    let id = segment();
    let mut number = 0u32;
    c.bench_function("a snapshot with one endpoint more, 100,000 known", |b| {
        b.iter(|| {
            number += 1;
            let mut next = snapshot.clone();
            let mut segment = Segment::clone(&next.segments[&id]);
            let [a, b, c, d] = number.to_be_bytes();
            segment.macs.insert([2, 2, a, b, c, d], OTHER);
            next.segments.insert(id, Arc::new(segment));
            Arc::new(next)
        });
    });
}

criterion_group!(benches, seal, egress, ingress, replay, routes, publication);
criterion_main!(benches);
