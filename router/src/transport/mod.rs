//! Datagrams to other hosts, by each transport.

pub(crate) mod addresses;
pub mod spare;
pub mod tcp;
pub mod udp;

use std::io;
use std::sync::Arc;

use spare::SparePorts;
use tcp::Connections;
use udp::UdpPort;
use weft_mesh::node::Usage;
use weft_mesh::path::{Path, Transport};
use weft_mesh::wire::Lane;

/// What one thread sends by: its own UDP sockets, and the connections and spare ports that all share.
#[derive(Clone)]
pub struct Port {
    /// Its sockets.
    pub udp: UdpPort,
    /// The connections.
    pub tcp: Arc<Connections>,
    /// The spare ports.
    pub spares: Arc<SparePorts>,
}

impl Port {
    /// Sends datagrams of `stride` bytes each, the last one maybe shorter, along a path. An error: some or all of them were lost.
    pub fn send(&self, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        match to.transport {
            Transport::Udp => self.udp.send(lane, to, datagrams, stride),
            Transport::SpareUdp(number) => self.spares.send(number, lane, to, datagrams, stride),
            Transport::Tcp | Transport::AcceptedTcp => self.tcp.send(lane, to, datagrams, stride),
        }
    }

    /// The same, with a connection opened for it if need be.
    pub fn send_or_open(&self, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        match to.transport {
            Transport::Tcp => self.tcp.send_or_open(lane, to, datagrams, stride),
            Transport::Udp | Transport::SpareUdp(_) | Transport::AcceptedTcp => self.send(lane, to, datagrams, stride),
        }
    }

    /// Sends a datagram along a path that `hops` routers pass on, and no more. An error: it was lost.
    pub fn open_nats(&self, to: Path, hops: u8) -> io::Result<()> {
        match to.transport {
            Transport::Udp => self.udp.open_nats(to, hops),
            // Connections are opened from one side, and spare ports once.
            Transport::SpareUdp(_) | Transport::Tcp | Transport::AcceptedTcp => Ok(()),
        }
    }

    /// Opens `count` spare ports, and from each NATs towards each path, for as many routers as `hops` say.
    pub fn spread(&self, towards: Vec<Path>, count: usize, hops: &[u8]) {
        self.spares.open(&self.udp, towards, count, hops);
    }

    /// Notes how a connection or a spare port is used.
    pub fn set_usage(&self, path: Path, usage: Usage) {
        match path.transport {
            Transport::Udp => {}
            Transport::SpareUdp(number) => self.spares.set_usage(number, usage),
            Transport::Tcp | Transport::AcceptedTcp => self.tcp.set_usage(path, usage),
        }
    }
}
