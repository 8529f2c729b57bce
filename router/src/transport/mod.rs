//! Datagrams to other hosts, by each transport.

mod addresses;
pub mod udp;

use std::io;

use udp::UdpPort;
use weft_mesh::path::{Path, Transport};
use weft_mesh::wire::Lane;

/// Sends datagrams of `stride` bytes each, the last one maybe shorter, along a path. An error: some or all of them were lost.
pub fn send(udp: &UdpPort, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
    match to.transport {
        Transport::Udp => udp.send(lane, to, datagrams, stride),
    }
}
