//! TCP connections between hosts: in order, without loss, and only to hosts that accept them and no NAT hides.

use std::net::{IpAddr, SocketAddr};

use weft_mesh::path::{Path, Transport};

/// The port that the first connection is opened from.
const EPHEMERAL: u16 = 32_768;

/// A connection, until one of its hosts stops.
#[derive(Clone, Copy)]
pub struct Connection {
    /// The hosts at its ends, by their numbers, with the lives of theirs that it belongs to.
    opener: (usize, u64),
    acceptor: (usize, u64),
    /// Where it was opened to, and where the acceptor sees it come from.
    to: SocketAddr,
    from: SocketAddr,
    is_over: bool,
}

/// All connections there ever were.
#[derive(Default)]
pub struct Connections(Vec<Connection>);

impl Connection {
    /// The host at the other end from `host`, and the path by which it sees what `host` sends.
    pub fn other_end(&self, host: usize) -> (usize, Path) {
        match host == self.opener.0 {
            true => (self.acceptor.0, Path::accepted_tcp(self.from)),
            false => (self.opener.0, Path::tcp(self.to)),
        }
    }
}

impl Connections {
    /// The connection that is a path of a host; `life_of` tells in which life a host is.
    pub fn find(&self, host: usize, path: Path, life_of: impl Fn(usize) -> u64) -> Option<Connection> {
        let is_it = |connection: &&Connection| {
            let Connection { opener, acceptor, to, from, is_over } = **connection;
            let is_end = match path.transport {
                Transport::AcceptedTcp => acceptor.0 == host && from == path.remote,
                _ => opener.0 == host && to == path.remote,
            };
            is_end && !is_over && [opener, acceptor].iter().all(|(host, life)| life_of(*host) == *life)
        };
        self.0.iter().find(is_it).copied()
    }

    /// A host has left its network: its connections end.
    pub fn end(&mut self, host: usize) {
        self.0
            .iter_mut()
            .filter(|connection| [connection.opener.0, connection.acceptor.0].contains(&host))
            .for_each(|connection| connection.is_over = true);
    }

    /// Opens a connection to an address; it seems to come from `outside`.
    pub fn open(
        &mut self,
        opener: (usize, u64),
        acceptor: (usize, u64),
        to: SocketAddr,
        outside: IpAddr,
    ) -> Connection {
        let from = SocketAddr::new(outside, EPHEMERAL + self.0.len() as u16);
        let connection = Connection { opener, acceptor, to, from, is_over: false };
        self.0.push(connection);
        connection
    }
}
