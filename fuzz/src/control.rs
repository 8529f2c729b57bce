//! Messages of a member, inside its session.
//!
//! Two hosts take far longer to set up than to exchange a message, so they live through several inputs. Where one of these ends in a panic, all that
//! the hosts took is written to a file that is an input itself, and leads there alone.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use weft_crypto::{HostLabel, Identity, Time};
use weft_gossip::sync::Held;
use weft_gossip::{Message, Version};
use weft_mesh::ipam::message::{Body, Message as RingMessage};
use weft_mesh::ipam::ring::RingId;
use weft_mesh::node::Input;
use weft_mesh::wire::{Control, Lane, Punch, TextKind};

use crate::host::{Host, exchange, linked};
use crate::ipam;
use crate::parts::{joined, parts};

/// What a member can have a host send for one message: its digests and batches.
const MAX_ANSWERS: usize = 200;

/// How long two hosts live at most, by their clock, and how many parts they take.
const LIVES: Duration = Duration::from_secs(20);
const MOST_PARTS: usize = 500;

thread_local! {
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
    /// All parts that the present pair took, and an empty one after those of each input.
    static TAKEN: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Two hosts with a link between them.
struct Pair {
    host: Host,
    peer: Host,
    now: Time,
    ends: Time,
}

/// Each part is a text that the peer seals; the first byte says how long after the one before it comes. At an empty part the hosts hear each
/// other out, and at the end.
pub fn run(input: &[u8]) {
    static HOOK: Once = Once::new();
    HOOK.call_once(keep_what_leads_to_a_panic);
    let mut pair = PAIR.take().unwrap_or_else(Pair::new);
    for part in parts(input).chain([&[][..]]) {
        TAKEN.with_borrow_mut(|taken| taken.push(part.to_vec()));
        match part.split_first() {
            Some((pause, text)) => pair.take(Duration::from_millis(u64::from(*pause) * 4), text),
            None => pair.hear_out(),
        }
    }
    if pair.lives() {
        PAIR.set(Some(pair));
    } else {
        TAKEN.take();
    }
}

impl Pair {
    fn new() -> Pair {
        let mut now = Time::ZERO + Duration::from_secs(1);
        let (host, peer) = linked(&mut now);
        Pair { host, peer, now, ends: now + LIVES }
    }

    /// Lets time pass and has the host take a text.
    fn take(&mut self, pause: Duration, text: &[u8]) {
        let Pair { host, peer, now, .. } = self;
        *now += pause;
        host.input(Input::Timeout, *now);
        host.sent.clear();
        say(peer, host, text, *now);
        for (to, mut datagram) in std::mem::take(&mut peer.sent) {
            if to == host.path {
                let stride = datagram.len();
                host.datagrams(peer.path, &mut datagram, stride, *now);
            }
        }
        assert!(host.sent.len() <= MAX_ANSWERS, "one message leads to {} datagrams", host.sent.len());
    }

    fn hear_out(&mut self) {
        exchange(&mut self.host, &mut self.peer, self.now);
        self.host.node.status(self.now);
    }

    /// Whether the hosts can take more: they are young, and each still has a link with the other.
    fn lives(&self) -> bool {
        let has_room = TAKEN.with_borrow(|taken| taken.len() < MOST_PARTS);
        has_room && self.now < self.ends && self.host.has_link(&self.peer) && self.peer.has_link(&self.host)
    }
}

/// Has a panic while a pair takes an input write what it took, and name the file: in the folder WEFT_FUZZ_KEPT, or that for temporary files.
fn keep_what_leads_to_a_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let taken = if PAIR.with_borrow(Option::is_none) { TAKEN.take() } else { Vec::new() };
        if !taken.is_empty() {
            let folder = std::env::var_os("WEFT_FUZZ_KEPT").map_or_else(std::env::temp_dir, PathBuf::from);
            let file = folder.join(format!("control-whole-{}", std::process::id()));
            match std::fs::write(&file, joined(taken.iter().map(Vec::as_slice))) {
                Ok(()) => eprintln!("all that led to this, as one input: {}", file.display()),
                Err(error) => eprintln!("{}: {error}", file.display()),
            }
        }
        before(panic);
    }));
}

/// Has the peer seal a text as it is.
fn say(peer: &mut Host, to: &Host, text: &[u8], now: Time) {
    peer.flush();
    peer.sent.clear();
    let Some(outbound) = peer.snapshot.outbound.get(&to.label()).cloned() else { return };
    let mut whole = vec![TextKind::Control as u8];
    whole.extend_from_slice(&text[..text.len().min(1200)]);
    // A peer that is out of keys says nothing.
    let _ = peer.datapath.sender.control(&outbound, Lane::Urgent, &whole, now);
    peer.flush();
}

/// One message of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let stranger = Identity::from_seed(&[9; 32]);
    let origin = Held { origin: stranger.peer_id().label(), version: Version::default(), boot: 0 };
    let gossip = [
        Message::Summary { hash: 7 },
        Message::Digest { from: HostLabel([0; 6]), to: HostLabel([0xff; 6]), held: vec![origin], answer: false },
        Message::Batches { batches: Vec::new(), more: true },
    ];
    let ring = RingMessage { range: ipam::range(), ring: RingId::default(), n: 0, body: Body::Pull };
    let single = [
        Control::Ping { id: 1, lane: Lane::Main, seen: ([192, 0, 2, 1], 6783).into() },
        Control::Heartbeat { within: 2000 },
        Control::Trial { id: 2, is_answer: false },
        Control::Trial { id: 2, is_answer: true },
        Control::Pong { id: 1, seen: ([10, 9, 9, 9], 6783).into(), size: 1400 },
        Control::Swim(vec![0; 40]),
        Control::Ring(ring.encode()),
        Control::StillHere,
        Control::AreYouThere,
        Control::Cloned,
        Control::Bye,
        Control::Forgotten { host: stranger.peer_id(), incarnation: 5 },
        Control::Needless,
        Control::Refused { id: 1 },
        Control::Punch(Punch::Open { hops: 2 }),
        Control::Punch(Punch::Opened),
        Control::Punch(Punch::Asked),
        Control::Punch(Punch::Spread),
    ];
    let controls = single.into_iter().chain(gossip.into_iter().map(|message| Control::Records(message.encode())));
    controls.map(|control| joined([&[&[10], &control.encode(0)[1..]].concat()[..]])).collect()
}
