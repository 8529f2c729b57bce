//! Packets that no resolver would send, for the DNS server: valid ones with bytes changed, cut and added, and noise.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weft_crypto::HostLabel;
use weft_mesh::names::{Names, Scope};
use weft_mesh::records::{EndpointRecord, Service};
use weft_router::dns::zone::{Transport, Verdict, Zone};

/// The largest answer by UDP that anything may get.
const MAX_UDP: usize = 1232;
/// Names that the questions begin with, in labels.
const NAMES: [&[&str]; 7] = [
    &["web"],
    &["many", "app"],
    &["_http", "_tcp", "web", "app", "weft", "internal"],
    &["1", "0", "0", "10", "in-addr", "arpa"],
    &["weft", "internal"],
    &["a", "b", "c", "d", "e", "f", "g", "example"],
    &[],
];
/// A, NS, SOA, PTR, TXT, AAAA, SRV, OPT, ANY.
const KINDS: [u8; 9] = [1, 2, 6, 12, 16, 28, 33, 41, 255];

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Packets that were answered.
    pub answered: u64,
    /// Packets that others would have been asked.
    pub forwarded: u64,
    /// Packets that were dropped.
    pub dropped: u64,
}

/// Gives the server packets; panics if it does, or if an answer is larger than the asker can have asked for.
pub fn dns(count: u64, seed: u64) -> Tally {
    let (zone, names) = (Zone::new("weft.internal").expect("a domain"), names());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut tally = Tally::default();
    for number in 0..count {
        let packet = packet(&mut random);
        let transport = if number % 8 == 0 { Transport::Tcp } else { Transport::Udp };
        match zone.answer(&names, Scope::All, &packet, transport, &mut random) {
            Verdict::Answer(answer) => {
                let most = if transport == Transport::Tcp { usize::from(u16::MAX) } else { MAX_UDP };
                assert!((12..=most).contains(&answer.len()), "{packet:02x?} is answered with {} bytes", answer.len());
                assert!(answer[..2] == packet[..2] && answer[2] & 0x80 != 0, "{packet:02x?}: not an answer to it");
                tally.answered += 1;
            }
            Verdict::Forward => tally.forwarded += 1,
            Verdict::Drop => tally.dropped += 1,
        }
    }
    tally
}

fn names() -> Names {
    let own = HostLabel([1; 6]);
    let mut names = Names::new(own);
    names.set_reach(BTreeMap::from([(own, (0, "here".to_owned()))]));
    for number in 0..60u8 {
        let record = EndpointRecord {
            segment: "app".into(),
            mac: [2, 0, 0, 0, 0, number],
            ips: [([10, 0, 0, number].into(), 8), (format!("fd00::{number}").parse().expect("an address"), 64)].into(),
            names: [own_name(number), if number == 1 { "web" } else { "many" }.into(), format!("id-{number}")].into(),
            health: Default::default(),
            services: [Service { name: "http".into(), protocol: "tcp".into(), port: 80 }].into(),
        };
        names.set(own, [number; 16], record);
    }
    names
}

/// One container has the longest name there is.
fn own_name(number: u8) -> String {
    match number {
        2 => [&"x".repeat(63), &"y".repeat(63), &"z".repeat(63), &"w".repeat(61)].map(String::as_str).join("."),
        number => format!("own-{number}"),
    }
}

fn packet(random: &mut ChaCha8Rng) -> Vec<u8> {
    if random.random_range(0..8) == 0 {
        let length = random.random_range(0..80);
        return (0..length).map(|_| random.random()).collect();
    }
    let mut packet = vec![random.random(), random.random(), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAMES[random.random_range(0..NAMES.len())] {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, KINDS[random.random_range(0..KINDS.len())], 0, 1]);
    if random.random() {
        packet[11] = 1;
        packet.extend_from_slice(&[0, 0, 41, random.random(), random.random(), 0, 0, 0, 0, 0, 0]);
    }
    for _ in 0..random.random_range(0..5) {
        let at = random.random_range(0..packet.len());
        match random.random_range(0..5) {
            0 => packet[at] = random.random(),
            1 => packet.truncate(at.max(2)),
            2 => packet.insert(at, random.random()),
            // A name that points somewhere, and records that are not there.
            3 => packet.extend_from_slice(&[0xc0, random.random(), 0, 41, 255, 255]),
            _ => {
                let byte = random.random_range(0..3);
                packet.iter_mut().skip(4 + at % 8).take(1).for_each(|old| *old = byte);
            }
        }
    }
    packet
}
