//! What a host between two others passes on.

use std::time::Duration;

use super::*;

/// A frame from host 1 to host 3 comes to host 2, which passes it on.
fn pass_on(path: &mut Datapath, relay: &Snapshot, taps: &mut Taps) {
    let (mut sending, mut frame) = (Datapath::new(64), tcp_frame(false, b"x", 0x10));
    let sender = snapshot(1, &[2], Some((3, 2)), 1452);
    sending.frame(&sender, segment(), &VnetHeader::default(), &mut frame, Time::ZERO, &mut Taps::new(ALL));
    for (run, bytes) in sending.sender.batch.runs() {
        let mut bytes = bytes.to_vec();
        let mut buffers = [RxBuffer { from: address(1), data: &mut bytes, stride: run.stride }];
        path.datagrams(relay, Time::ZERO, &mut buffers, taps);
    }
}

#[test]
fn a_worker_that_relays_all_the_time_tells_the_node() {
    let relay = snapshot(2, &[1, 3], None, 1452);
    let (mut path, mut taps, mut now) = (Datapath::new(64), Taps::new(ALL), Time::ZERO);
    for rest in [0, 50, 950] {
        now += Duration::from_secs(1);
        pass_on(&mut path, &relay, &mut taps);
        path.rested(Duration::from_millis(rest), now, &mut taps);
    }
    assert_eq!((taps.relayed.len(), taps.punts), (3, vec![Punt::Busy { percent: 95, relays: true }]));
}

#[test]
fn the_first_frames_over_a_link_at_rest_wake_the_node() {
    let sender = snapshot(1, &[2], Some((3, 2)), 1452);
    let relay = snapshot(2, &[1, 3], None, 1452);
    let (mut a, mut b) = (Datapath::new(64), Datapath::new(64));
    sender.outbound.get(&label(3)).unwrap().hop.as_ref().unwrap().meter.sent.rest();
    relay.outbound.get(&label(3)).unwrap().meter.sent.rest();
    let (mut sent, mut passed) = (Taps::new(ALL), Taps::new(ALL));
    for _ in 0..3 {
        let mut frame = tcp_frame(false, b"x", 0x10);
        a.frame(&sender, segment(), &VnetHeader::default(), &mut frame, Time::ZERO, &mut sent);
    }
    for (run, bytes) in a.sender.batch.runs() {
        let mut bytes = bytes.to_vec();
        let mut buffers = [RxBuffer { from: address(1), data: &mut bytes, stride: run.stride }];
        b.datagrams(&relay, Time::ZERO, &mut buffers, &mut passed);
    }
    assert_eq!((sent.punts, passed.punts), (vec![Punt::Woken], vec![Punt::Woken]));
}
