//! A host with one peer, without a data path: what tests of topology share.

use std::net::Ipv4Addr;

use weft_crypto::{envelope, session};

use super::*;
use crate::wire::Control;

pub(super) const OWN: HostLabel = HostLabel([1; 6]);
pub(super) const PEER: HostLabel = HostLabel([2; 6]);

/// A session with index 7 with each host named.
#[derive(Default)]
pub(super) struct Table(pub(super) BTreeMap<HostLabel, u32>);

impl SessionTable for Table {
    fn current(&self, peer: HostLabel) -> Option<u32> {
        self.0.get(&peer).copied()
    }

    fn is_trying(&self, _: Path, _: Time) -> bool {
        false
    }
}

/// Where this host is seen.
pub(super) const OWN_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), 6783);

pub(super) fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

pub(super) fn remote() -> Path {
    Path::udp(([192, 0, 2, 2], 6783).into())
}

/// Topology of a host that knows no other.
pub(super) fn lone() -> Topology {
    let setup = Setup {
        own: OWN,
        discovery: true,
        underlay_mtu: 1500,
        is_stub: false,
        is_metered: false,
        reach: OwnReach::at_port(6783),
        entropy: [3; 32],
    };
    Topology::new(setup, at(0))
}

/// Topology of a host that has a session with a peer, of whose address it knows.
pub(super) fn topology() -> (Topology, Table, Arc<Meter>) {
    let mut topology = lone();
    let meter = Arc::new(Meter::default());
    topology.meet(PEER, meter.clone());
    for learnt in [Learnt::Announced, Learnt::Worked] {
        topology.add_candidate(PEER, remote(), learnt);
    }
    (topology, Table([(PEER, 7)].into()), meter)
}

pub(super) fn events(topology: &mut Topology) -> Vec<Event> {
    std::iter::from_fn(|| topology.poll_event()).collect()
}

/// Answers the pings among events whose datagrams are no larger than `largest`; returns their number and the other events.
pub(super) fn answer(topology: &mut Topology, meter: &Meter, largest: usize, now: Time) -> (usize, Vec<Event>) {
    let (mut pings, mut others) = (0, Vec::new());
    for event in events(topology) {
        match event {
            Event::Straight { control: Control::Ping { id, .. }, to, size, .. } => {
                let datagram = size + envelope::LEN + session::OVERHEAD;
                if datagram <= largest {
                    pings += 1;
                    meter.received.on_link(1, now);
                    topology.on_pong(PEER, to, id, OWN_ADDRESS, datagram as u16, now);
                }
            }
            event => others.push(event),
        }
    }
    (pings, others)
}
