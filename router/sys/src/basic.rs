use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use weft_mesh::sink::TapOffloads;
use weft_mesh::vnet::VnetHeader;

use crate::{TapIo, sys};

/// A TAP by the tun-tap crate: single frames with whole checksums.
pub struct BasicTap {
    interface: tun_tap::Iface,
    scratch: Vec<u8>,
}

impl BasicTap {
    /// Makes the interface `name`. It goes when this is dropped.
    pub fn open(name: &str) -> io::Result<BasicTap> {
        const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
        let interface = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap)?;
        interface.set_non_blocking()?;
        let tap = BasicTap { interface, scratch: Vec::new() };
        // An interface that was there before may still have offloads on.
        sys::ioctl_int(tap.fd(), TUNSETOFFLOAD, 0)?;
        Ok(tap)
    }
}

impl TapIo for BasicTap {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the interface owns the descriptor and outlives this borrow.
        unsafe { BorrowedFd::borrow_raw(self.interface.as_raw_fd()) }
    }

    fn offloads(&self) -> TapOffloads {
        TapOffloads::NONE
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<(VnetHeader, usize)> {
        let len = self.interface.recv(buffer)?;
        Ok((VnetHeader::default(), len))
    }

    fn write(&mut self, _: &VnetHeader, parts: &[&[u8]]) -> io::Result<()> {
        match parts {
            [whole] => self.interface.send(whole).map(drop),
            _ => {
                self.scratch.clear();
                parts.iter().for_each(|part| self.scratch.extend_from_slice(part));
                self.interface.send(&self.scratch).map(drop)
            }
        }
    }
}
