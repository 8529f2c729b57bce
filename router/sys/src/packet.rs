use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use weft_mesh::sink::TapOffloads;
use weft_mesh::vnet::VnetHeader;

use crate::fast::read_with_header;
use crate::{TapIo, sys};

/// A packet socket with virtio headers on an interface whose other end is in the bridge (packet(7), `PACKET_VNET_HDR`).
pub struct PacketPort {
    socket: OwnedFd,
}

impl PacketPort {
    /// Opens a port on the existing interface `name`.
    pub fn open(name: &str) -> io::Result<PacketPort> {
        Ok(PacketPort { socket: sys::packet_socket(name)? })
    }
}

impl TapIo for PacketPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn offloads(&self) -> TapOffloads {
        TapOffloads { checksum: true, tcp: true, udp: false }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<(VnetHeader, usize)> {
        read_with_header(&self.socket, buffer)
    }

    fn write(&mut self, vnet: &VnetHeader, parts: &[&[u8]]) -> io::Result<()> {
        sys::writev(&self.socket, &vnet.encode(), parts).map(drop)
    }
}
