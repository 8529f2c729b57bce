//! The data path without a kernel under it: the tables of two hosts, and frames between their containers. What the
//! micro-benchmarks and the instruction counts measure.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use weft_crypto::aead::{CipherSource, Native, TAG_LEN};
use weft_crypto::session::{ReceiveKey, SendKey};
use weft_crypto::{BulkAead, HostLabel, Suite, Time, envelope};
use weft_mesh::datapath::Datapath;
use weft_mesh::egress::DropReason;
use weft_mesh::frame::{Headers, Mac};
use weft_mesh::ingress::RxBuffer;
use weft_mesh::path::Path;
use weft_mesh::sink::{Punt, Sink, TapOffloads};
use weft_mesh::snapshot::{Hashing, Hop, Inbound, Meter, Outbound, Owner, Segment, Snapshot};
use weft_mesh::vnet::{Gso, VnetHeader};
use weft_mesh::wire::SegmentId;

/// A TAP that takes everything and a socket that sends nothing.
pub struct Nowhere;

impl Sink for Nowhere {
    fn offloads(&self, _: SegmentId) -> TapOffloads {
        TapOffloads { checksum: true, tcp: true, udp: true }
    }
    fn to_tap(&mut self, _: SegmentId, vnet: &VnetHeader, parts: &[&[u8]]) {
        black_box((vnet, parts));
    }
    fn relay(&mut self, _: Path, datagrams: &[u8], _: usize) {
        black_box(datagrams);
    }
    fn punt(&mut self, punt: Punt) {
        panic!("nothing here is for the node: {punt:?}");
    }
    fn dropped(&mut self, reason: DropReason) {
        panic!("nothing here is to be dropped: {reason:?}");
    }
}

/// The host that sends.
pub const OWN: HostLabel = HostLabel([1; 6]);
/// The host that receives.
pub const OTHER: HostLabel = HostLabel([2; 6]);
const NEAR: Mac = [2, 0, 0, 0, 0, 1];
const FAR: Mac = [2, 0, 0, 0, 0, 2];

fn hashing() -> Hashing {
    Hashing(1, 2)
}

/// The one segment.
pub fn segment() -> SegmentId {
    SegmentId::of("bench")
}

/// How many peers and endpoints a host knows: few, and many.
pub const SIZES: [(u32, u32); 2] = [(10, 10), (1_000, 100_000)];

/// What seals frames.
#[derive(Clone, Copy)]
pub enum Seal {
    /// A cipher suite.
    Suite(Suite),
    /// Nothing: what is left is weft's own work.
    Nothing,
}

impl Seal {
    /// A key; keys of one seed are equal.
    pub fn key(self, seed: u8) -> Box<dyn BulkAead> {
        match self {
            Seal::Suite(suite) => Native.bulk(suite, &[seed; 32]),
            Seal::Nothing => Box::new(Unsealed),
        }
    }
}

struct Unsealed;

impl BulkAead for Unsealed {
    fn seal(&self, _: u64, _: &[u8], _: &mut [u8]) -> [u8; TAG_LEN] {
        [0; TAG_LEN]
    }

    fn open(&self, _: u64, _: &[u8], _: &mut [u8]) -> bool {
        true
    }
}

/// The tables of `own`, which has a session with `peer`, among so many peers and endpoints.
pub fn tables(own: HostLabel, peer: HostLabel, seal: Seal, (peers, endpoints): (u32, u32)) -> Snapshot {
    let mut snapshot = Snapshot::empty(own, hashing());
    let key = |from: HostLabel| seal.key(from.0[0]);
    let label = |number: u32| match number {
        0 => peer,
        _ => HostLabel([9, 9, (number >> 24) as u8, (number >> 16) as u8, (number >> 8) as u8, number as u8]),
    };
    for number in 0..peers {
        let meter = Arc::new(Meter::default());
        let hop = Hop {
            via: label(number),
            path: Path::udp(([10, 0, 0, 2], 6783).into()),
            link_index: 7 + number,
            hop_send: [own.0[0]; 16],
            max_datagram: 1452,
            meter: meter.clone(),
        };
        let outbound = Outbound {
            send: Some(Arc::new(SendKey::new(key(own), 7 + number))),
            envelope: hop.envelope(envelope::MAX_TTL, label(number)),
            link: Some(hop.path),
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
    let mut segment = Segment { flood: Arc::new([peer]), ..Segment::empty(segment(), hashing()) };
    let mine = if own == OWN { NEAR } else { FAR };
    for (mac, host) in [(mine, own), (if mine == NEAR { FAR } else { NEAR }, peer)] {
        segment.macs.insert(mac, host);
    }
    segment.ips.insert(IpAddr::from([10, 32, 0, 2]), Owner { mac: FAR, host: OTHER });
    for number in 2..endpoints {
        let [_, a, b, c] = number.to_be_bytes();
        let (mac, host) = ([2, 1, 1, a, b, c], label(number % peers));
        segment.macs.insert(mac, host);
        segment.ips.insert(IpAddr::from([10, 64 + a, b, c]), Owner { mac, host });
    }
    snapshot.segments.insert(segment.id, Arc::new(segment));
    snapshot
}

/// The datagrams that a frame becomes, in runs with the size of each datagram.
pub fn wire(
    path: &mut Datapath,
    tables: &Snapshot,
    (bytes, vnet): &(Vec<u8>, VnetHeader),
    now: Time,
) -> Vec<(Vec<u8>, usize)> {
    path.frame(tables, segment(), vnet, &mut bytes.clone(), now, &mut Nowhere);
    let runs = path.sender.batch.runs().map(|(run, bytes)| (bytes.to_vec(), run.stride)).collect();
    path.sender.batch.clear();
    runs
}

/// Takes datagrams from the wire.
pub fn receive(path: &mut Datapath, tables: &Snapshot, wire: &mut [(Vec<u8>, usize)], now: Time) {
    let from = Path::udp(([10, 0, 0, 2], 6783).into());
    let mut buffers: Vec<RxBuffer<'_>> =
        wire.iter_mut().map(|(data, stride)| RxBuffer { from, data, stride: *stride }).collect();
    path.datagrams(tables, now, &mut buffers, &mut Nowhere);
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

/// The kinds of frames.
pub fn kinds() -> [(&'static str, (Vec<u8>, VnetHeader)); 3] {
    [
        ("UDP of 64 bytes", frame(17, 64, 0)),
        ("UDP of 1,300 bytes", frame(17, 1300, 0)),
        ("TCP super-frame of 60 kB", frame(6, 1324 * 45, 1324)),
    ]
}
