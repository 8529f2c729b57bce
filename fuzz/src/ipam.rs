//! Messages of members about rings of addresses.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};
use weft_mesh::ipam::message::{Body, Message};
use weft_mesh::ipam::paxos::Ballot;
use weft_mesh::ipam::ring::{Change, Range, RingId};
use weft_mesh::ipam::{Ipam, Output, Request, Setup};

use crate::parts::{joined, parts};

/// Outputs that one message may lead to.
const MAX_OUTPUTS: usize = 20_000;

/// Each part is a message; the first byte says from which of 8 members, whether an address is allocated afterwards, and how
/// much time passes.
pub fn run(input: &[u8]) {
    let mut now = Time::ZERO + Duration::from_secs(10);
    let setup = Setup {
        own: member(0),
        entropy: [1; 32],
        grace: Duration::from_secs(3600),
        founds_alone: false,
        continues: false,
        now: Time::ZERO,
    };
    let mut host = Host { ipam: Ipam::new(setup, &BTreeMap::new()), held: BTreeMap::new(), asked: 0 };
    host.ipam.set_hosts(Vec::new(), (1..4).map(member), now);
    host.allocate(now);
    for part in parts(input) {
        let Some((how, message)) = part.split_first() else { continue };
        host.ipam.receive(member(how & 7), message, now);
        host.drain();
        if how & 8 != 0 {
            host.allocate(now);
        }
        now += Duration::from_millis(u64::from(how >> 4) * 100);
        host.ipam.handle_timeout(now);
        host.drain();
    }
}

fn member(number: u8) -> HostLabel {
    HostLabel([number + 1; 6])
}

/// The range that addresses are asked of.
pub fn range() -> Range {
    // A prefix of 24 bits is a range.
    Range::new([10, 40, 0, 0].into(), 24).expect("a range")
}

struct Host {
    ipam: Ipam,
    /// For which request each address was handed out.
    held: BTreeMap<Ipv4Addr, u64>,
    asked: u64,
}

impl Host {
    fn allocate(&mut self, now: Time) {
        self.asked += 1;
        let id = u128::from(self.asked).to_le_bytes();
        self.ipam.allocate(self.asked, Request { range: range(), id, want: None, within: None }, now);
        self.drain();
    }

    fn drain(&mut self) {
        for _ in 0..MAX_OUTPUTS {
            match self.ipam.poll_output() {
                None => return,
                Some(Output::Reply(ticket, Ok(address))) => {
                    assert!(range().contains(address) && !range().is_reserved(address), "{address} is handed out");
                    let before = self.held.insert(address, ticket);
                    assert_eq!(before, None, "{address} is handed out twice");
                }
                Some(Output::Fence(_, address)) => drop(self.held.remove(&address)),
                Some(_) => {}
            }
        }
        panic!("one message leads to more than {MAX_OUTPUTS} outputs");
    }
}

/// One message of most kinds.
pub fn seeds() -> Vec<Vec<u8>> {
    let bodies = [
        Body::Wish(None),
        Body::Prepare(Ballot::default()),
        Body::Promise(Ballot::default(), None),
        Body::Accept(Ballot::default(), Change::Close { window: 1, host: member(1) }),
        Body::Vote(Ballot::default()),
        Body::Refuse(Ballot::default()),
        Body::Decided(Change::Close { window: 1, host: member(1) }),
        Body::Pull,
        Body::State { part: 0, parts: 1, bytes: vec![0; 20] },
        Body::Borrow { id: [3; 16], want: None, within: None },
        Body::NotLent([3; 16]),
    ];
    let messages = bodies.map(|body| Message { range: range(), ring: RingId::default(), n: 0, body }.encode());
    messages.into_iter().map(|message| joined([&[&[0x19], &message[..]].concat()[..]])).collect()
}
