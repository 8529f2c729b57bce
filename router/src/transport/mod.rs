//! Datagrams to other hosts, by each transport.

mod addresses;
pub mod udp;

use std::io;

use udp::UdpPort;
use weft_mesh::path::{Path, Transport};
use weft_mesh::wire::Lane;

/// Sends a datagram along a path that `hops` routers pass on, and no more. An error: it was lost.
pub fn open(udp: &UdpPort, to: Path, hops: u8) -> io::Result<()> {
    match to.transport {
        Transport::Udp => udp.open_nats(to, hops),
    }
}

/// Sends datagrams of `stride` bytes each, the last one maybe shorter, along a path. An error: some or all of them were lost.
pub fn send(udp: &UdpPort, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
    match to.transport {
        Transport::Udp => udp.send(lane, to, datagrams, stride),
    }
}
