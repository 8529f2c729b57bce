//! Frames of containers, and what a member's data path may send instead.

use std::cell::RefCell;
use std::time::Duration;

use weft_crypto::Time;
use weft_mesh::datapath::Datapath;
use weft_mesh::datapath::metering::{FlowHashing, FlowTable};
use weft_mesh::node::Command;
use weft_mesh::records::EndpointRecord;
use weft_mesh::vnet::{self, Gso, VnetHeader};
use weft_mesh::wire::{Lane, SegmentId, TextHeader, TextKind};

use crate::host::{Host, exchange, linked};
use crate::parts::{joined, parts};

/// The longest frame that a TAP gives or takes: what an IPv4 packet can say of its length, and an Ethernet header.
const MAX_FRAME: usize = 65_535 + 14;
/// What a part is: a frame from a container, a text that the peer seals, or a datagram as it is.
const FRAME: u8 = 0;
const TEXT: u8 = 1;

thread_local! {
    static HASHING: FlowHashing = FlowHashing::new([1, 2]);
    static HOSTS: RefCell<(Host, Host)> = RefCell::new(hosts());
}

/// Each part is a frame behind its virtio header, a text or a datagram; its first byte says which.
pub fn run(input: &[u8]) {
    HOSTS.with_borrow_mut(|(sender, receiver)| {
        let now = Time::ZERO + Duration::from_secs(60);
        (sender.datapath, receiver.datapath) = (Datapath::new(64), Datapath::new(64));
        for path in [&mut sender.datapath, &mut receiver.datapath] {
            path.meter_into(Some(Box::new(HASHING.with(FlowTable::new))));
        }
        for part in parts(input) {
            let Some((kind, bytes)) = part.split_first() else { continue };
            match kind % 3 {
                FRAME => {
                    if let Some((header, frame)) = bytes.split_first_chunk::<{ vnet::LEN }>()
                        && let Some(header) = VnetHeader::parse(header)
                    {
                        sender.frame(segment(), &header, &mut frame.to_vec(), now);
                    }
                }
                TEXT => {
                    if let Some(outbound) = sender.snapshot.outbound.get(&receiver.label()).cloned() {
                        // A sender that is out of keys says nothing.
                        let _ = sender.datapath.sender.control(&outbound, Lane::Main, bytes, now);
                        sender.flush();
                    }
                }
                _ => sender.sent.push((receiver.path, bytes.to_vec())),
            }
            // All that one part leads to arrives as one run, as the kernel hands over datagrams that follow each other.
            let sent = std::mem::take(&mut sender.sent);
            let stride = sent.first().map_or(1, |(_, datagram)| datagram.len());
            let mut data = sent
                .into_iter()
                .filter(|(to, _)| *to == receiver.path)
                .flat_map(|(_, datagram)| datagram)
                .collect::<Vec<u8>>();
            receiver.datagrams(sender.path, &mut data, stride, now);
            receiver.sent.clear();
            for (_, frame) in receiver.frames.drain(..).chain(sender.frames.drain(..)) {
                assert!((14..=MAX_FRAME).contains(&frame.len()), "a frame of {} bytes", frame.len());
            }
        }
    });
}

fn segment() -> SegmentId {
    SegmentId::of("app")
}

fn hosts() -> (Host, Host) {
    let mut now = Time::ZERO + Duration::from_secs(1);
    let (mut a, mut b) = linked(&mut now);
    for (number, host) in [(1, &mut a), (2, &mut b)] {
        let record = EndpointRecord {
            segment: "app".into(),
            mac: [2, 0, 0, 0, 0, number],
            ips: [([10, 32, 0, number].into(), 12)].into(),
            names: Default::default(),
            health: Default::default(),
            services: Default::default(),
        };
        host.command(Command::attach([number; 16], record), now);
    }
    exchange(&mut a, &mut b, now);
    (a, b)
}

/// A TCP segment and a super-frame, a fragment, an ARP request, a frame text, and a stray datagram.
pub fn seeds() -> Vec<Vec<u8>> {
    let plain = VnetHeader::default();
    let ethernet = [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &[8, 0]].concat();
    let ip = |length: u16, protocol: u8, offset: u16| {
        let mut header = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2];
        header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
        header[6..8].copy_from_slice(&offset.to_be_bytes());
        weft_mesh::frame::complete_checksum(&mut header, 0, 10);
        [&ethernet[..], &header].concat()
    };
    let tcp = |payload: usize| {
        let segment =
            [&[0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 4, 0, 0, 0, 0, 0][..], &vec![7; payload]];
        [&ip(20 + payload as u16, 6, 0)[..], &segment.concat()].concat()
    };
    let gso = VnetHeader {
        partial_checksum: true,
        gso: Gso::TcpV4,
        header_len: 54,
        gso_size: 1000,
        checksum_start: 34,
        checksum_offset: 16,
    };
    let arp = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &[2, 0, 0, 0, 0, 1, 10, 32, 0, 1, 0, 0, 0, 0, 0, 0, 10, 32, 0, 2],
    ];
    let frame = |header: &VnetHeader, frame: &[u8]| [&[FRAME], &header.encode()[..], frame].concat();
    let text = |kind: TextKind, index: u8, count: u8, payload: &[u8]| {
        let header = TextHeader { kind, flags: TextHeader::BURST, id: 5, index, count, segment: segment() };
        [&[TEXT], &header.encode()[..], payload].concat()
    };
    let whole = tcp(40);
    let parts = [
        frame(&plain, &whole),
        frame(&gso, &tcp(4000)),
        frame(&plain, &tcp(1396)),
        frame(&plain, &[&ip(8, 17, 0x2001)[..], &[0; 8]].concat()),
        frame(&plain, &arp.concat()),
        text(TextKind::Frame, 0, 1, &whole),
        text(TextKind::Fragment, 0, 2, &whole[..50]),
        text(TextKind::Fragment, 1, 2, &whole[50..]),
        [&[2], &[9; 60][..]].concat(),
    ];
    parts.iter().map(|part| joined([&part[..]])).chain([joined(parts.iter().map(Vec::as_slice))]).collect()
}
