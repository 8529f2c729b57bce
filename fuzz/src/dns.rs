//! Packets that no resolver would send, for the DNS server.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use weft_crypto::HostLabel;
use weft_mesh::names::{Names, Scope};
use weft_mesh::records::{EndpointRecord, Service};
use weft_router::dns::zone::{Transport, Verdict, Zone};

/// The largest answer by UDP, in bytes, whatever size the question offers.
const MAX_UDP: usize = 1232;
/// Names that seeds ask for, in labels.
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

thread_local! {
    static SERVER: RefCell<(Zone, Names)> = RefCell::new((Zone::new("weft.internal").expect("a domain"), names()));
}

/// The first byte says by which transport the question comes, the others are the question.
pub fn run(input: &[u8]) {
    let Some((how, packet)) = input.split_first() else { return };
    let (transport, most) =
        if how % 2 == 0 { (Transport::Udp, MAX_UDP) } else { (Transport::Tcp, usize::from(u16::MAX)) };
    SERVER.with_borrow(|(zone, names)| {
        match zone.answer(names, Scope::All, packet, transport, &mut ChaCha8Rng::seed_from_u64(1)) {
            Verdict::Answer(answer) => {
                assert!((12..=most).contains(&answer.len()), "{packet:02x?} is answered with {} bytes", answer.len());
                assert!(answer[..2] == packet[..2] && answer[2] & 0x80 != 0, "{packet:02x?}: not an answer to it");
            }
            Verdict::Forward | Verdict::Drop => {}
        }
    });
}

/// Questions of every kind for every name, with and without EDNS.
pub fn seeds() -> Vec<Vec<u8>> {
    let questions = NAMES.into_iter().flat_map(|name| KINDS.into_iter().map(move |kind| question(name, kind)));
    questions.flat_map(|plain| [with_edns(plain.clone()), plain]).collect()
}

fn question(name: &[&str], kind: u8) -> Vec<u8> {
    let mut input = vec![0, 7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name {
        input.push(label.len() as u8);
        input.extend_from_slice(label.as_bytes());
    }
    input.extend_from_slice(&[0, 0, kind, 0, 1]);
    input
}

fn with_edns(mut input: Vec<u8>) -> Vec<u8> {
    // One additional record: OPT, for payloads of 4,096 bytes (RFC 6891, section 6.1).
    input[12] = 1;
    input.extend_from_slice(&[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
    input
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

/// Endpoint 2 has the longest name there is.
fn own_name(number: u8) -> String {
    match number {
        2 => [&"x".repeat(63), &"y".repeat(63), &"z".repeat(63), &"w".repeat(61)].map(String::as_str).join("."),
        number => format!("own-{number}"),
    }
}
