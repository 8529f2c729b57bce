//! The UDP side: one thread for all sockets, so that names cost one core at most.
//!
//! 1. Packets of a socket are read until there are none or others have to have their turn.
//! 2. What weft knows is answered at once, from one view of the names per turn. Answers of one size to one asker leave in
//!    one call and as one run (`UDP_SEGMENT`): sending is nine tenths of what a question costs.
//! 3. What others know is handed to the event loop, which answers when they did.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Handle;

use super::meter::{QuestionResult, Turn};
use super::upstream::{Upstream, failure};
use super::zone::{Transport, Verdict};
use super::{Audience, Shared};
use crate::error::{Doing, Result};

/// Packets read from one socket before others get their turn.
const PER_TURN: usize = 256;
/// Answers in one run (udp(7)), and the bytes of one.
const MAX_RUN: usize = 64;
const MAX_RUN_BYTES: usize = 60_000;
const WAKE: Token = Token(0);
/// The largest question: longer ones are cut, and make no sense then.
const MAX_QUESTION: usize = 4096;

/// A socket to serve.
pub struct Listener {
    /// The socket.
    pub socket: UdpSocket,
    /// Who asks there.
    pub audience: Audience,
    /// Who knows the rest.
    pub upstream: Arc<Upstream>,
}

enum Order {
    Add(usize, Listener),
    Remove(usize),
}

/// The thread's other end.
pub struct UdpServer {
    orders: Sender<Order>,
    waker: Waker,
    next: std::sync::atomic::AtomicUsize,
}

impl UdpServer {
    /// Starts the thread; it ends with the server.
    pub fn start(shared: Arc<Shared>) -> Result<UdpServer> {
        let what = || "cannot start the DNS server".to_owned();
        let poll = Poll::new().doing(what)?;
        let waker = Waker::new(poll.registry(), WAKE).doing(what)?;
        let (orders, inbox) = channel();
        let runtime = Handle::current();
        let random = ChaCha8Rng::from_seed(crate::daemon::state::entropy()?);
        let (listeners, answers, run) = (BTreeMap::new(), Vec::new(), Vec::new());
        let thread = Thread { shared, poll, inbox, runtime, listeners, random, answers, run };
        std::thread::Builder::new().name("dns".into()).spawn(move || thread.run()).doing(what)?;
        Ok(UdpServer { orders, waker, next: 1.into() })
    }

    /// Serves a socket; returns what to stop it by.
    pub fn add(&self, listener: Listener) -> usize {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.order(Order::Add(id, listener));
        id
    }

    /// Serves a socket no longer.
    pub fn remove(&self, id: usize) {
        self.order(Order::Remove(id));
    }

    fn order(&self, order: Order) {
        // A thread that ended has nothing to do.
        let _ = self.orders.send(order);
        let _ = self.waker.wake();
    }
}

struct Thread {
    shared: Arc<Shared>,
    poll: Poll,
    inbox: Receiver<Order>,
    runtime: Handle,
    listeners: BTreeMap<usize, (Arc<UdpSocket>, Audience, Arc<Upstream>)>,
    random: ChaCha8Rng,
    /// Answers of this turn, and what is sent of them in one call.
    answers: Vec<(SocketAddr, Vec<u8>)>,
    run: Vec<u8>,
}

impl Thread {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut buffer = [0; MAX_QUESTION];
        // Sockets that may have more than was read in their turn.
        let mut busy: Vec<usize> = Vec::new();
        loop {
            let patience = (!busy.is_empty()).then_some(std::time::Duration::ZERO);
            match self.poll.poll(&mut events, patience) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return,
                _ => {}
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(Order::Add(id, listener)) => self.add(id, listener),
                    Ok(Order::Remove(id)) => self.remove(id),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            let ready = events.iter().map(|event| event.token().0).filter(|id| *id != WAKE.0);
            let mut turn: Vec<usize> = std::mem::take(&mut busy).into_iter().chain(ready).collect();
            turn.dedup();
            busy.extend(turn.into_iter().filter(|id| self.serve(*id, &mut buffer)));
        }
    }

    fn add(&mut self, id: usize, Listener { socket, audience, upstream }: Listener) {
        let registered =
            self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), Token(id), Interest::READABLE);
        if let Err(error) = registered {
            return tracing::warn!("a DNS socket cannot be served: {error}");
        }
        self.listeners.insert(id, (Arc::new(socket), audience, upstream));
    }

    fn remove(&mut self, id: usize) {
        if let Some((socket, ..)) = self.listeners.remove(&id) {
            let _ = self.poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd()));
        }
    }

    /// Answers what came to a socket; whether there may be more.
    fn serve(&mut self, id: usize, buffer: &mut [u8]) -> bool {
        let Some((socket, audience, upstream)) = self.listeners.get(&id) else { return false };
        let names = self.shared.names.load();
        let (mut has_more, mut turn) = (true, Turn::begin());
        for _ in 0..PER_TURN {
            let (length, from) = match socket.recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    has_more = false;
                    break;
                }
                // The error of an earlier answer, which its asker did not wait for.
                Err(_) => continue,
            };
            let packet = &buffer[..length];
            let heard = audience.scope(&names, from.ip());
            match self.shared.zone.answer(&names, heard.as_scope(), packet, Transport::Udp, &mut self.random) {
                Verdict::Answer(answer) => {
                    turn.note(QuestionResult::of(&answer));
                    self.answers.push((from, answer));
                }
                Verdict::Forward => self.forward(socket, from, packet.to_vec(), upstream),
                Verdict::Drop => turn.note(QuestionResult::Dropped),
            }
        }
        send_all(socket, &mut self.answers, &mut self.run);
        turn.end(&self.shared.tallies);
        has_more
    }

    fn forward(&self, socket: &Arc<UdpSocket>, from: SocketAddr, packet: Vec<u8>, upstream: &Arc<Upstream>) {
        let (socket, upstream, shared) = (socket.clone(), upstream.clone(), self.shared.clone());
        self.runtime.spawn(async move {
            let mut turn = Turn::begin();
            let answer = upstream.ask(from.ip(), &packet, Transport::Udp).await;
            turn.note(QuestionResult::of_others(answer.as_deref()));
            turn.end(&shared.tallies);
            let answer = answer.unwrap_or_else(|| failure(&packet));
            let _ = socket.send_to(&answer, from);
        });
    }
}

/// Sends answers, those of one size to one asker together. What does not get out is asked for again.
fn send_all(socket: &UdpSocket, answers: &mut Vec<(SocketAddr, Vec<u8>)>, run: &mut Vec<u8>) {
    answers.sort_by_key(|(to, answer)| (*to, answer.len()));
    for group in answers.chunk_by(|(a, one), (b, other)| a == b && one.len() == other.len()) {
        let (to, size) = (group[0].0, group[0].1.len());
        for part in group.chunks(MAX_RUN.min(MAX_RUN_BYTES / size.max(1)).max(1)) {
            run.clear();
            part.iter().for_each(|(_, answer)| run.extend_from_slice(answer));
            if part.len() == 1 || send_run(socket, to, run, size).is_err() {
                // A kernel or interface that does not cut runs takes them one by one.
                part.iter().for_each(|(_, answer)| drop(socket.send_to(answer, to)));
            }
        }
    }
    answers.clear();
}

fn send_run(socket: &UdpSocket, to: SocketAddr, run: &[u8], size: usize) -> nix::Result<usize> {
    let (size, to) = (size as u16, SockaddrStorage::from(to));
    let control = [ControlMessage::UdpGsoSegments(&size)];
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(run)], &control, MsgFlags::empty(), Some(&to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_arrives_whole_at_its_asker() {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (server, first, second) = (bind(), bind(), bind());
        let (a, b) = (first.local_addr().unwrap(), second.local_addr().unwrap());
        let mut answers = Vec::new();
        for number in 0..100u8 {
            let to = if number % 3 == 0 { b } else { a };
            answers.push((to, vec![number; 40 + usize::from(number % 2)]));
        }
        let mut expected = answers.clone();
        send_all(&server, &mut answers, &mut Vec::new());
        let mut received = Vec::new();
        for socket in [&first, &second] {
            socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
            let mut buffer = [0; 2048];
            while let Ok(length) = socket.recv(&mut buffer) {
                received.push((socket.local_addr().unwrap(), buffer[..length].to_vec()));
            }
        }
        expected.sort();
        received.sort();
        assert_eq!(received, expected);
    }
}
