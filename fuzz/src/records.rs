//! Records that a member signs.

use std::time::Duration;

use weft_crypto::{HostLabel, Identity, Time};
use weft_gossip::{Message, Store};
use weft_mesh::ipam::Announcement;
use weft_mesh::ipam::ring::RingId;
use weft_mesh::node::Input;
use weft_mesh::records::{
    Advertised, EndpointRecord, EntryRecord, HostRecord, Key, LinkRecord, NetworkRecord, SegmentRecord, Subnet,
};
use weft_mesh::sink::Punt;
use weft_mesh::wire::{Control, SegmentId};

use crate::host::Host;
use crate::ipam;
use crate::parts::{joined, parts};

/// Members that speak.
const MEMBERS: u8 = 2;

/// Each part is a record: the first byte says of which member, and whether it is to be sent at once; the second is the key's length,
/// and the value follows. Without a value the record is removed.
pub fn run(input: &[u8]) {
    let now = Time::ZERO + Duration::from_secs(1);
    let mut host = Host::new(1, now);
    let mut stores: Vec<Store> =
        (0..MEMBERS).map(|member| Store::new(Identity::from_seed(&[10 + member; 32]), 1, 7)).collect();
    for part in parts(input) {
        let [how, length, rest @ ..] = part else { continue };
        let store = &mut stores[usize::from(how % MEMBERS)];
        let (key, value) = rest.split_at(rest.len().min(usize::from(*length)));
        match value {
            [] => store.delete(key),
            // A record over a limit is one that the member cannot sign.
            value => drop(store.put(key, value.to_vec())),
        }
        if how & 0x80 != 0 {
            send(&mut host, how % MEMBERS, store, now);
        }
    }
    for (member, store) in (0..).zip(&mut stores) {
        send(&mut host, member, store, now);
    }
    let later = now + Duration::from_secs(6);
    host.input(Input::Timeout, later);
    host.node.status(later);
}

fn send(host: &mut Host, member: u8, store: &mut Store, now: Time) {
    let peer = Identity::from_seed(&[10 + member; 32]).peer_id().label();
    for batch in store.flush() {
        let message = Message::Batches { batches: vec![batch], more: false };
        let text = Control::Records(message.encode()).encode(0);
        let size = text.len();
        host.input(Input::Punt(Punt::Control { index: 1, peer, direct: None, size, text }), now);
    }
}

/// One record of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let host = HostRecord {
        name: "web1".into(),
        addresses: vec![([10, 3, 0, 1], 6783).into()],
        seen: Vec::new(),
        tcp: vec![443],
        boot: 1,
        advertised: Advertised { udp: vec![([203, 0, 113, 1], 6783).into()], tcp: Vec::new() },
        is_stub: true,
        is_metered: true,
        load: 1,
    };
    let endpoint = EndpointRecord {
        segment: "app".into(),
        mac: [2, 0, 0, 0, 0, 9],
        ips: [([10, 32, 0, 9].into(), 12)].into(),
        names: ["web".into()].into(),
        health: Default::default(),
        services: Default::default(),
    };
    let entry = EntryRecord { name: "printer".into(), ips: vec![[10, 0, 0, 9].into()] };
    let subnet = Subnet { prefix: ([10, 50, 0, 0].into(), 16), part: None, gateway: None, set_aside: Vec::new() };
    let network = NetworkRecord {
        name: "app".into(),
        uid: [4; 16],
        subnets: vec![subnet],
        ipv4: true,
        ipv6: false,
        internal: false,
        attachable: false,
        options: Vec::new(),
        labels: Vec::new(),
    };
    let announcement =
        Announcement { ring: RingId::default(), n: 3, windows: 2, succeeds: Vec::new(), superseded_by: None };
    let segment = SegmentRecord { name: "app".into(), mtu: 1450 };
    let link = LinkRecord { cost: 700, max_datagram: 1400 };
    let mut records = vec![
        (Key::Host, postcard::to_allocvec(&host)),
        (Key::Link(HostLabel([5; 6])), postcard::to_allocvec(&link)),
        (Key::Segment(SegmentId::of("app")), postcard::to_allocvec(&segment)),
        (Key::Endpoint([6; 16]), postcard::to_allocvec(&endpoint)),
        (Key::Names([6; 16], 0), postcard::to_allocvec(&["more", "names"][..])),
        (Key::Forgotten(Identity::from_seed(&[9; 32]).peer_id()), postcard::to_allocvec(&4u64)),
        (Key::Ring(ipam::range()), postcard::to_allocvec(&announcement)),
        (entry.key(), postcard::to_allocvec(&entry)),
        (Key::Removed([7; 16]), Ok(vec![1])),
    ];
    if let Some((head, parts)) = network.split() {
        records.push((Key::Network(network.uid), postcard::to_allocvec(&head)));
        records.extend((0..).zip(parts).map(|(number, part)| (Key::NetworkPart(network.uid, number), Ok(part))));
    }
    let parts: Vec<Vec<u8>> = (records.into_iter())
        .filter_map(|(key, value)| Some((key.encode(), value.ok()?)))
        .map(|(key, value)| [&[0x80, key.len() as u8], &key[..], &value[..]].concat())
        .collect();
    let single = parts.iter().map(|part| joined([&part[..]]));
    single.chain([joined(parts.iter().map(Vec::as_slice))]).collect()
}
