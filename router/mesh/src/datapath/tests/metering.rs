//! Flows are counted as frames go in and come out.

use std::net::IpAddr;

use super::*;
use crate::datapath::metering::{FlowCount, FlowDirection, FlowHashing, FlowKey, FlowTable, Ignored, MAX_FLOWS};

/// Sends frames from host 1 to host 3 on a path for these datagrams, each a microsecond after the one before; returns the flows that the two
/// counted.
fn metered(frames: &[(Vec<u8>, VnetHeader)], datagram: usize) -> [(Vec<(FlowKey, FlowCount)>, Ignored); 2] {
    let (mut a, mut c) = (Datapath::new(64), Datapath::new(64));
    for path in [&mut a, &mut c] {
        assert!(path.meter_into(Some(Box::new(FlowTable::new(&FlowHashing::new([1, 2]))))).is_none());
    }
    let (sender, receiver) = (snapshot(1, &[3], None, datagram), snapshot(3, &[1], None, datagram));
    let mut taps = Taps::new(ALL);
    for (micros, (frame, vnet)) in (1..).zip(frames) {
        let now = Time::from_nanos(1_000 * micros);
        a.frame(&sender, segment(), vnet, &mut frame.clone(), now, &mut taps);
        deliver(&a, &mut c, &receiver, now, &mut taps);
        a.sender.batch.clear();
    }
    [a, c].map(|mut path| {
        let mut table = path.meter_into(None).expect("it was given one");
        let (flows, ignored) = table.drain();
        (flows.collect(), ignored)
    })
}

fn alone(frame: Vec<u8>) -> (Vec<u8>, VnetHeader) {
    (frame, VnetHeader::default())
}

#[test]
fn both_hosts_count_packets_and_bytes_of_a_flow_alike() {
    for v6 in [false, true] {
        let syn = tcp_frame(v6, &[], 0x02);
        let bulk = super_frame(v6, 1300 * 3 + 1, 1300, 0x18);
        let fin = tcp_frame(v6, &[], 0x11);
        let octets = (syn.len() + bulk.0.len() + fin.len() - 3 * frame::ETHERNET_LEN) as u64;
        let [near, far] = metered(&[alone(syn), bulk, alone(fin)], 1452);
        for ((flows, ignored), direction, peer) in [(near, FlowDirection::Egress, 3), (far, FlowDirection::Ingress, 1)]
        {
            let [(key, count)] = flows.as_slice() else { panic!("not one flow but {flows:?}") };
            assert_eq!(ignored, Ignored::default());
            assert_eq!((key.direction, key.peer, key.segment), (direction, label(peer), segment()));
            assert_eq!((key.protocol, key.ports), (6, [40_000, 80]));
            assert!(key.addresses.iter().all(|address| address.is_ipv6() == v6));
            let (first, last) = (Time::from_nanos(1_000), Time::from_nanos(3_000));
            assert_eq!(*count, FlowCount { packets: 6, octets, first, last, tcp_flags: 0x1b });
        }
    }
}

#[test]
fn addresses_protocols_and_ports_tell_flows_apart() {
    let tcp = tcp_frame(false, b"x", 0x18);
    let mut ping = tcp.clone();
    (ping[23], ping[34], ping[35]) = (1, 8, 0);
    let mut later = tcp.clone();
    (later[20], later[21]) = (0, 100);
    let mut other = tcp.clone();
    other[37] = 81;
    let mut arp = tcp.clone();
    (arp[12], arp[13]) = (0x08, 0x06);
    let frames = [tcp.clone(), ping, later, other, arp, tcp].map(alone);
    let [(flows, _), _] = metered(&frames, 1452);
    let mut told: Vec<_> = flows.iter().map(|(key, count)| (key.protocol, key.ports, count.packets)).collect();
    told.sort_unstable();
    let icmp = (1, [0, 0x0800], 1);
    assert_eq!(told, [icmp, (6, [0, 0], 1), (6, [40_000, 80], 2), (6, [40_000, 81], 1)]);
    let addresses: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
    assert!(flows.iter().all(|(key, _)| key.addresses == addresses));
}

#[test]
fn a_protocol_behind_extension_headers_is_found() {
    // A report of multicast listeners, behind hop-by-hop options (RFC 3810, section 5).
    let mut report = tcp_frame(true, &[], 0x10);
    (report[20], report[54], report[55], report[62], report[63]) = (0, 58, 0, 143, 0);
    let [(flows, _), _] = metered(&[alone(report)], 1452);
    let told: Vec<_> = flows.iter().map(|(key, _)| (key.protocol, key.ports)).collect();
    assert_eq!(told, [(58, [0, 143 << 8])]);
}

#[test]
fn ports_and_flags_behind_extension_headers_are_found_but_not_in_fragments() {
    let tcp = tcp_frame(true, &[], 0x12);
    let behind = |first: u8, extension: [u8; 8]| {
        let mut frame = [&tcp[..54], &extension, &tcp[54..]].concat();
        frame[20] = first;
        frame[19] += 8;
        frame
    };
    let options = behind(60, [6, 0, 1, 4, 0, 0, 0, 0]);
    let whole = behind(44, [6, 0, 0, 0, 0, 0, 0, 1]);
    let fragment = behind(44, [6, 0, 0, 1, 0, 0, 0, 1]);
    for (frame, ports, flags) in [(options, [40_000, 80], 0x12), (whole, [40_000, 80], 0x12), (fragment, [0, 0], 0)] {
        let [(flows, _), _] = metered(&[alone(frame)], 1452);
        let told: Vec<_> = flows.iter().map(|(key, count)| (key.protocol, key.ports, count.tcp_flags)).collect();
        assert_eq!(told, [(6, ports, flags)]);
    }
}

#[test]
fn packets_are_counted_as_they_go_between_the_hosts() {
    let recut = super_frame(false, 13_000, 1300, 0x18);
    let mut udp = recut.clone();
    udp.0[23] = 17;
    udp.1.gso = Gso::Udp;
    udp.1.header_len = 42;
    udp.1.checksum_offset = 6;
    // TCP is cut anew to what the path takes; datagrams stay what they are.
    for ((frame, vnet), datagram, least) in
        [(recut.clone(), 1452, 10), (recut, 800, 11), (udp.clone(), 1452, 10), (udp, 800, 10)]
    {
        let [near, far] = metered(&[(frame, vnet)], datagram).map(|(flows, _)| flows[0].1.packets);
        assert!(near >= least && near == far, "{near} and {far}, {least} at least, {datagram}");
    }
}

#[test]
fn packets_that_a_full_table_has_no_place_for_are_counted_together() {
    let frames: Vec<_> = (0..MAX_FLOWS as u16 + 3)
        .map(|port| {
            let mut frame = tcp_frame(false, b"x", 0x18);
            frame[34..36].copy_from_slice(&port.to_be_bytes());
            alone(frame)
        })
        .collect();
    for (flows, ignored) in metered(&frames, 1452) {
        assert_eq!(flows.len(), MAX_FLOWS);
        assert_eq!(ignored, Ignored { packets: 3, octets: 3 * 53 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any frame can be counted, and for no more bytes than it has. One that is an IP packet by its header is of a flow.
    #[test]
    fn any_frame_can_be_counted(mut frame in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..4usize) {
        for (place, byte) in frame.iter_mut().zip([&MAC_C[..], &MAC_A].concat()) {
            *place = byte;
        }
        for (place, byte) in frame.iter_mut().skip(12).zip([[8, 0, 0x45], [0x86, 0xdd, 0x60], [0x81, 0, 0], [8, 6, 0]][kind]) {
            *place = byte;
        }
        let len = frame.len() as u64;
        let [(flows, _), (arrived, _)] = metered(&[alone(frame)], 1452);
        prop_assert!(flows.iter().chain(&arrived).all(|(_, count)| count.packets == 1 && count.octets <= len));
        prop_assert!(kind != 0 || len < 34 || flows.len() == 1);
    }
}
