//! The TCP connections that a packet worker receives from.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use weft_mesh::ingress::RxBuffer;

use crate::transport::tcp::Ended;
use crate::transport::tcp::connection::{Connection, Incoming};

/// What is read from one connection before others get their turn, in bytes.
pub const BYTES_PER_READ: usize = 256 * 1024;

/// Connections that have their turn before UDP and TAPs have theirs.
const PER_TURN: usize = 8;

/// Connections by what epoll calls them: a number for what comes, and the next one for room to send.
#[derive(Default)]
pub struct Streams {
    all: BTreeMap<u64, Receiving>,
    /// Those that have something, each once.
    ready: VecDeque<u64>,
    /// Whether epoll will not tell again of some of them.
    has_untold: bool,
}

struct Receiving {
    incoming: Incoming,
    /// Another descriptor of its socket: epoll tells of room by it, and only when there was none before.
    room: OwnedFd,
    is_ready: bool,
}

impl Streams {
    /// Receives from a connection from now on. An error: it has ended already.
    pub fn add(&mut self, epoll: &Epoll, number: u64, connection: Arc<Connection>) -> io::Result<()> {
        let incoming = Incoming::of(connection).ok_or(io::ErrorKind::NotConnected)?;
        let room = incoming.fd().try_clone_to_owned()?;
        epoll.add(incoming.fd(), EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        epoll.add(&room, EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLET, number + 1))?;
        // Some may have come with the end of a TLS handshake: epoll does not tell of that.
        let is_ready = incoming.connection().is_in_tls();
        self.all.insert(number, Receiving { incoming, room, is_ready });
        if is_ready {
            self.ready.push_back(number);
            self.has_untold = true;
        }
        Ok(())
    }

    /// Takes note of what epoll says of a number; false if it is no connection's.
    pub fn note(&mut self, number: u64) -> bool {
        if let Some(stream) = self.all.get_mut(&number) {
            if !std::mem::replace(&mut stream.is_ready, true) {
                self.ready.push_back(number);
            }
            return true;
        }
        let Some(stream) = number.checked_sub(1).and_then(|number| self.all.get(&number)) else { return false };
        let connection = stream.incoming.connection();
        if connection.flush().is_err() {
            connection.shut_down();
        }
        true
    }

    /// Takes one read from each of some connections that have something; epoll tells again of the others. Returns those that ended, and
    /// those that go on inside TLS; they are received from no more.
    pub fn receive(
        &mut self,
        epoll: &Epoll,
        buffer: &mut [u8],
        mut take: impl FnMut(&mut [RxBuffer<'_>]),
    ) -> Vec<Ended> {
        let mut ended = Vec::new();
        let turns = if std::mem::take(&mut self.has_untold) { self.ready.len() } else { PER_TURN };
        for _ in 0..turns {
            let Some(number) = self.ready.pop_front() else { break };
            let Some(stream) = self.all.get_mut(&number) else { continue };
            stream.is_ready = false;
            let is_proven = stream.incoming.connection().unused_for().is_none();
            // Nothing where a TLS handshake begins.
            let read = match stream.incoming.begins_with_tls() {
                Ok(true) => Ok(None),
                Ok(false) => stream.incoming.read(is_proven, &mut *buffer).map(Some),
                Err(error) => Err(error),
            };
            let kind: fn(_) -> _ = match read {
                Ok(Some(mut datagrams)) => {
                    take(&mut datagrams);
                    continue;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                Ok(None) => Ended::InTls,
                Err(_) => Ended::Over,
            };
            // Its descriptors are closed with it.
            let _ = epoll.delete(stream.incoming.fd()).and(epoll.delete(&stream.room));
            ended.extend(self.all.remove(&number).map(|stream| kind(stream.incoming.connection().clone())));
        }
        ended
    }
}
