use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use weft_mesh::sink::TapOffloads;
use weft_mesh::vnet::{self, VnetHeader};

use crate::{TUN_DEVICE, TapIo, sys};

/// One queue of a TAP whose frames carry virtio headers.
pub struct FastTap {
    file: File,
    offloads: TapOffloads,
}

impl FastTap {
    /// Makes the interface `name` with so many queues, each its own descriptor. It goes when the last is closed.
    pub fn open(name: &str, queues: usize) -> io::Result<Vec<FastTap>> {
        (0..queues.max(1)).map(|_| FastTap::queue(name)).collect()
    }

    fn queue(name: &str) -> io::Result<FastTap> {
        const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN_DEVICE)?;
        sys::tun_set_iff(file.as_fd(), name, FLAGS)?;
        let offloads = set_offloads(&file)?;
        Ok(FastTap { file, offloads })
    }
}

/// Asks for all offloads; USO needs Linux 6.2.
fn set_offloads(file: &File) -> io::Result<TapOffloads> {
    const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
    const CSUM_TSO: libc::c_ulong = 0x01 | 0x02 | 0x04;
    const USO: libc::c_ulong = 0x20 | 0x40;
    let udp = sys::ioctl_int(file.as_fd(), TUNSETOFFLOAD, CSUM_TSO | USO).is_ok();
    if !udp {
        sys::ioctl_int(file.as_fd(), TUNSETOFFLOAD, CSUM_TSO)?;
    }
    Ok(TapOffloads { checksum: true, tcp: true, udp })
}

impl TapIo for FastTap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn offloads(&self) -> TapOffloads {
        self.offloads
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<(VnetHeader, usize)> {
        read_with_header(&self.file, buffer)
    }

    fn write(&mut self, vnet: &VnetHeader, parts: &[&[u8]]) -> io::Result<()> {
        sys::writev(&self.file, &vnet.encode(), parts).map(drop)
    }
}

/// Reads a frame behind a virtio header.
pub(crate) fn read_with_header(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<(VnetHeader, usize)> {
    let mut header = [0; vnet::LEN];
    let read = sys::readv(fd, &mut header, buffer)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not a frame behind a virtio header");
    let len = read.checked_sub(vnet::LEN).ok_or_else(invalid)?;
    Ok((VnetHeader::parse(&header).ok_or_else(invalid)?, len))
}
