//! The way to a collector: its address, a socket, and what is known to have arrived.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tokio::task::JoinHandle;

use super::ipfix::Message;

/// Rounds after which a name is looked up again: while the collector does not answer, and else.
const ROUNDS_PER_RETRY: u32 = 10;
const ROUNDS_PER_LOOK_UP: u32 = 300;

/// A collector that is sent messages.
pub struct Collector {
    /// `HOST:PORT`.
    name: String,
    socket: Option<(UdpSocket, SocketAddr)>,
    look_up: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
    /// The round in which it was looked up last.
    looked_up: Option<u32>,
    /// Which of its addresses is next.
    turn: usize,
    /// Records in the messages of this socket (RFC 7011, section 3.1).
    sequence: u32,
    /// The message sent last: a refusal shows later.
    unanswered: Option<Message>,
}

/// What became of messages.
#[derive(Default)]
pub struct Outcome {
    /// Records of flows that arrived, as far as can be told.
    pub arrived: u64,
    /// Messages that did not arrive.
    pub lost: Vec<Message>,
    /// Why.
    pub error: Option<io::Error>,
}

impl Collector {
    /// A collector that nothing has been sent to.
    pub fn new(name: String) -> Collector {
        Collector { name, socket: None, look_up: None, looked_up: None, turn: 0, sequence: 0, unanswered: None }
    }

    /// `HOST:PORT`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is a socket: messages can be sent.
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Looks whether the last message was refused, and the collector's address up if it is time for that. Never waits.
    pub fn check(&mut self, round: u32, has_failed: bool) -> Outcome {
        let mut outcome = Outcome::default();
        self.take_refusal(&mut outcome);
        // A refusal would have come by now.
        outcome.arrived += self.unanswered.take().map_or(0, |before| before.flows);
        if let Ok(address) = self.name.parse() {
            if self.socket.is_none() {
                self.connect(&[address], has_failed, &mut outcome);
            }
            return outcome;
        }
        if let Some(look_up) = self.look_up.take_if(|look_up| look_up.is_finished()) {
            // It does not panic, and nothing aborts it: there is a result at once.
            match futures_util::FutureExt::now_or_never(look_up).and_then(Result::ok) {
                Some(Ok(found)) => self.connect(&found, has_failed, &mut outcome),
                Some(Err(error)) if self.socket.is_none() => outcome.error = Some(error),
                // The address known last may still be right.
                _ => {}
            }
        }
        let pause = if has_failed || self.socket.is_none() { ROUNDS_PER_RETRY } else { ROUNDS_PER_LOOK_UP };
        let is_due = self.looked_up.is_none_or(|before| round.wrapping_sub(before) >= pause);
        if is_due && self.look_up.is_none() {
            self.looked_up = Some(round);
            let name = self.name.clone();
            self.look_up = Some(tokio::spawn(async { tokio::net::lookup_host(name).await.map(Iterator::collect) }));
        }
        outcome
    }

    /// Sends a message, unless there is no way.
    pub fn send(&mut self, mut message: Message) -> Outcome {
        let mut outcome = Outcome::default();
        self.take_refusal(&mut outcome);
        let Some((socket, _)) = &self.socket else {
            outcome.lost.push(message);
            return outcome;
        };
        message.set_sequence(self.sequence);
        match socket.send(&message.bytes) {
            Ok(_) => {
                self.sequence = self.sequence.wrapping_add(message.records);
                outcome.arrived += self.unanswered.replace(message).map_or(0, |before| before.flows);
            }
            Err(error) => {
                outcome.error = Some(error);
                outcome.lost.push(message);
            }
        }
        outcome
    }

    /// The kernel tells by the socket that an earlier message was refused.
    fn take_refusal(&mut self, outcome: &mut Outcome) {
        let Some((socket, _)) = &self.socket else { return };
        if let Ok(Some(error)) = socket.take_error() {
            outcome.error = Some(error);
            outcome.lost.extend(self.unanswered.take());
        }
    }

    /// Goes on with the socket there is if its address is still the collector's and has not failed; else takes the next address.
    fn connect(&mut self, found: &[SocketAddr], has_failed: bool, outcome: &mut Outcome) {
        let is_kept = self.socket.as_ref().is_some_and(|(_, address)| found.contains(address));
        if is_kept && (found.len() == 1 || !has_failed) {
            return;
        }
        let Some(address) = found.get(self.turn % found.len().max(1)) else {
            outcome.error = Some(io::Error::new(ErrorKind::NotFound, "its name has no address"));
            return;
        };
        self.turn = self.turn.wrapping_add(1);
        match open(*address) {
            Ok(socket) => {
                // A new socket is a new transport session, with numbers of its own.
                (self.socket, self.sequence) = (Some((socket, *address)), 0);
            }
            Err(error) => outcome.error = Some(error),
        }
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let local = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(local)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(records: u32) -> Message {
        Message { bytes: vec![0; 16], records, flows: records.into(), ..Message::default() }
    }

    #[test]
    fn what_is_refused_is_lost_and_what_is_not_has_arrived() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let mut collector = Collector::new(address.to_string());
        assert!(collector.check(0, false).error.is_none() && collector.is_connected());
        assert!(collector.send(message(2)).lost.is_empty(), "nothing is known yet");
        let outcome = collector.check(1, false);
        assert_eq!((outcome.arrived, outcome.lost.len()), (0, 1));
        assert_eq!(outcome.error.map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));

        let socket = UdpSocket::bind(address).unwrap();
        assert_eq!(collector.send(message(3)).arrived, 0);
        assert_eq!(collector.send(message(1)).arrived, 3, "the one before was not refused");
        assert_eq!(collector.check(2, false).arrived, 1);
        for sequence in [2, 5] {
            let mut bytes = [0; 16];
            socket.recv(&mut bytes).unwrap();
            assert_eq!(bytes[8..12], u32::to_be_bytes(sequence), "records sent before");
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_beside_and_another_address_of_it_is_tried_after_a_failure() {
        // Most systems have two addresses for it.
        let mut collector = Collector::new("localhost:9".into());
        let mut outcome = collector.check(0, false);
        while outcome.error.is_none() && !collector.is_connected() {
            tokio::task::yield_now().await;
            outcome = collector.check(0, false);
        }
        assert!(collector.is_connected(), "{:?}", outcome.error);
        let addresses: [SocketAddr; 2] = ["[::1]:9", "127.0.0.1:9"].map(|address| address.parse().unwrap());
        collector.turn = 0;
        let mut taken = |has_failed| {
            collector.connect(&addresses, has_failed, &mut Outcome::default());
            collector.socket.as_ref().map(|(_, address)| *address)
        };
        let first = taken(false);
        assert_eq!(taken(false), first);
        assert_ne!(taken(true).or(taken(true)), first);
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_an_error_once_and_stops_nothing() {
        let mut collector = Collector::new("no-such-host.invalid:4739".into());
        let mut outcome = collector.check(0, false);
        while outcome.error.is_none() {
            tokio::task::yield_now().await;
            outcome = collector.check(0, true);
        }
        assert!(!collector.is_connected());
        let outcome = collector.send(message(4));
        assert_eq!((outcome.lost.len(), outcome.error.is_none()), (1, true), "it is said already");
    }
}
