//! The connection to a collector: address, socket, sequence numbers, and the fate of sent messages.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};

use tokio::task::JoinHandle;

use super::ipfix::Message;
use crate::transport::addresses::unspecified;

/// Rounds in a row in which messages are refused before another address is tried.
const ROUNDS_REFUSED: u32 = 10;
/// Rounds between two look-ups of the collector's name: while there is none or it refuses messages, and otherwise.
const ROUNDS_PER_RETRY: u32 = 10;
const ROUNDS_PER_LOOK_UP: u32 = 300;

/// A collector of flow records.
pub struct Collector {
    /// `HOST:PORT`.
    name: String,
    socket: Option<(UdpSocket, SocketAddr)>,
    look_up: Option<JoinHandle<io::Result<Vec<SocketAddr>>>>,
    /// Round of the last look-up.
    looked_up: Option<u32>,
    /// Rounds in a row in which a message was refused.
    refused: u32,
    /// Index of the address to try next.
    turn: usize,
    /// Data records sent on this socket (RFC 7011, section 3.1).
    sequence: u32,
    /// The last message sent: the kernel reports a refusal afterwards.
    unanswered: Option<Message>,
}

/// The fate of messages.
#[derive(Default)]
pub struct Outcome {
    /// Flow records that were sent and not refused.
    pub arrived: u64,
    /// Messages that were refused or not sent.
    pub lost: Vec<Message>,
    /// The reason.
    pub error: Option<io::Error>,
    /// Whether a socket was opened, of which nothing is known yet.
    pub is_new: bool,
}

impl Collector {
    /// Returns a collector without a socket; `name` is `HOST:PORT`.
    pub fn new(name: String) -> Collector {
        Collector {
            name,
            socket: None,
            look_up: None,
            looked_up: None,
            refused: 0,
            turn: 0,
            sequence: 0,
            unanswered: None,
        }
    }

    /// `HOST:PORT`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether messages can be sent.
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Checks whether the last message was refused, and looks the collector's name up when that is due. Never blocks.
    pub fn check(&mut self, round: u32) -> Outcome {
        let mut outcome = Outcome::default();
        self.take_refusal(&mut outcome);
        if outcome.error.is_some() {
            self.refused += 1;
        } else if let Some(before) = self.unanswered.take() {
            // A refusal would have arrived within a round.
            outcome.arrived += before.flows;
            self.refused = 0;
        }
        if let Ok(address) = self.name.parse() {
            if self.socket.is_none() {
                self.connect(&[address], &mut outcome);
            }
            return outcome;
        }
        if let Some(look_up) = self.look_up.take_if(|look_up| look_up.is_finished()) {
            // A finished task has its result at once.
            match futures_util::FutureExt::now_or_never(look_up).and_then(Result::ok) {
                Some(Ok(found)) => self.connect(&found, &mut outcome),
                Some(Err(error)) if self.socket.is_none() => outcome.error = Some(error),
                // The address in use may still be right.
                _ => {}
            }
        }
        let is_well = self.socket.is_some() && self.refused < ROUNDS_REFUSED;
        let pause = if is_well { ROUNDS_PER_LOOK_UP } else { ROUNDS_PER_RETRY };
        let is_due = self.looked_up.is_none_or(|before| round.wrapping_sub(before) >= pause);
        if is_due && self.look_up.is_none() {
            self.looked_up = Some(round);
            let name = self.name.clone();
            self.look_up = Some(tokio::spawn(async { tokio::net::lookup_host(name).await.map(Iterator::collect) }));
        }
        outcome
    }

    /// Sends a message; without a socket it is lost.
    pub fn send(&mut self, mut message: Message) -> Outcome {
        let mut outcome = Outcome::default();
        self.take_refusal(&mut outcome);
        let Some((socket, _)) = &self.socket else {
            outcome.lost.push(message);
            return outcome;
        };
        message.set_sequence(self.sequence);
        let mut sent = socket.send(&message.bytes);
        if let Err(error) = &sent
            && error.kind() == ErrorKind::ConnectionRefused
        {
            // The error reports the message before, and this one has not been sent.
            outcome.error = Some(io::Error::from(error.kind()));
            outcome.lost.extend(self.unanswered.take());
            sent = socket.send(&message.bytes);
        }
        match sent {
            Ok(_) => {
                self.sequence = self.sequence.wrapping_add(message.records);
                outcome.arrived += self.unanswered.replace(message).map_or(0, |before| before.flows);
            }
            Err(error) => {
                outcome.lost.push(message);
                // A full send buffer says nothing of the collector.
                if error.kind() != ErrorKind::WouldBlock {
                    outcome.error = Some(error);
                }
            }
        }
        outcome
    }

    /// Takes the kernel's report, if there is one, that the message before was refused.
    fn take_refusal(&mut self, outcome: &mut Outcome) {
        let Some((socket, _)) = &self.socket else { return };
        if let Ok(Some(error)) = socket.take_error() {
            outcome.error = Some(error);
            outcome.lost.extend(self.unanswered.take());
        }
    }

    /// Keeps the socket if its address is among those found and does not refuse; otherwise opens one to the next address.
    fn connect(&mut self, found: &[SocketAddr], outcome: &mut Outcome) {
        let is_known = self.socket.as_ref().is_some_and(|(_, address)| found.contains(address));
        if is_known && (found.len() == 1 || self.refused < ROUNDS_REFUSED) {
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
                (self.socket, self.sequence, self.refused) = (Some((socket, *address)), 0, 0);
                outcome.is_new = true;
            }
            Err(error) => outcome.error = Some(error),
        }
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((unspecified(address.is_ipv6()), 0))?;
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
        assert!(collector.check(0).error.is_none() && collector.is_connected());
        assert!(collector.send(message(2)).lost.is_empty(), "nothing is known yet");
        let outcome = collector.check(1);
        assert_eq!((outcome.arrived, outcome.lost.len()), (0, 1));
        assert_eq!(outcome.error.map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));

        let socket = UdpSocket::bind(address).unwrap();
        assert_eq!(collector.send(message(3)).arrived, 0);
        assert_eq!(collector.send(message(1)).arrived, 3, "the one before was not refused");
        assert_eq!(collector.check(2).arrived, 1);
        for sequence in [2, 5] {
            let mut bytes = [0; 16];
            socket.recv(&mut bytes).unwrap();
            assert_eq!(bytes[8..12], u32::to_be_bytes(sequence), "records sent before");
        }
    }

    #[test]
    fn another_address_is_tried_once_one_has_refused_for_long() {
        let addresses: [SocketAddr; 2] = ["127.0.0.1:9", "127.0.0.2:9"].map(|address| address.parse().unwrap());
        let mut collector = Collector::new("name:9".into());
        let address = |collector: &mut Collector| {
            collector.connect(&addresses, &mut Outcome::default());
            collector.socket.as_ref().map(|(_, address)| *address)
        };
        let first = address(&mut collector);
        assert!(first.is_some());
        collector.refused = ROUNDS_REFUSED - 1;
        assert_eq!(address(&mut collector), first);
        collector.refused = ROUNDS_REFUSED;
        assert_ne!(address(&mut collector), first);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_beside_and_one_that_is_none_is_an_error() {
        for (name, is_there) in [("localhost:9", true), ("no-such-host.invalid:4739", false)] {
            let mut collector = Collector::new(name.into());
            let mut outcome = collector.check(0);
            while outcome.error.is_none() && !collector.is_connected() {
                tokio::task::yield_now().await;
                outcome = collector.check(0);
            }
            assert_eq!((collector.is_connected(), outcome.is_new), (is_there, is_there), "{:?}", outcome.error);
            if !is_there {
                let outcome = collector.send(message(4));
                assert_eq!((outcome.lost.len(), outcome.error.is_none()), (1, true), "it is said already");
            }
        }
    }
}
