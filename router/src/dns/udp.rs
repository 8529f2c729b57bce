//! The UDP side: one thread for all sockets, so that names cost one core at most.
//!
//! 1. Packets of a socket are read until there are none or others have to have their turn.
//! 2. What weft knows is answered at once, from one view of the names per turn.
//! 3. What others know is handed to the event loop, which answers when they did.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Handle;

use super::upstream::{Upstream, failure};
use super::zone::{Transport, Verdict};
use super::{Audience, Shared};
use crate::error::{Doing, Result};

/// Packets read from one socket before others get their turn.
const PER_TURN: usize = 64;
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
        let random = ChaCha8Rng::from_seed(crate::state::entropy()?);
        let thread = Thread { shared, poll, inbox, runtime, listeners: BTreeMap::new(), random };
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
        for _ in 0..PER_TURN {
            let (length, from) = match socket.recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // The error of an earlier answer, which its asker did not wait for.
                Err(_) => continue,
            };
            let packet = &buffer[..length];
            let heard = audience.scope(&names, from.ip());
            match self.shared.zone.answer(&names, heard.as_scope(), packet, Transport::Udp, &mut self.random) {
                // What does not get out is asked again.
                Verdict::Answer(answer) => drop(socket.send_to(&answer, from)),
                Verdict::Forward => self.forward(socket, from, packet.to_vec(), upstream),
                Verdict::Drop => {}
            }
        }
        true
    }

    fn forward(&self, socket: &Arc<UdpSocket>, from: SocketAddr, packet: Vec<u8>, upstream: &Arc<Upstream>) {
        let (socket, upstream) = (socket.clone(), upstream.clone());
        self.runtime.spawn(async move {
            let answer = upstream.ask(from.ip(), &packet, Transport::Udp).await;
            let answer = answer.unwrap_or_else(|| failure(&packet));
            let _ = socket.send_to(&answer, from);
        });
    }
}
