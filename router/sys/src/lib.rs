//! Ethernet in and out of the kernel: one trait, three ways.
//!
//! - [`FastTap`]: a TAP with `IFF_VNET_HDR` and offloads; super-frames of up to 64 KB cross in one call.
//! - [`BasicTap`]: the tun-tap crate's TAP; one plain frame a call, for kernels and sandboxes that allow no more,
//!   and as the yardstick in tests.
//! - [`PacketPort`]: a packet socket on one end of a veth pair, for users who may not open `/dev/net/tun`.
//!
//! All system calls of weft that need `unsafe` are in this crate.

mod basic;
mod fast;
mod packet;
mod sys;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

pub use basic::BasicTap;
pub use fast::FastTap;
pub use packet::PacketPort;
use weft_mesh::sink::TapOffloads;
use weft_mesh::vnet::VnetHeader;

/// The device that TAPs are made from.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// A non-blocking source and sink of Ethernet frames.
pub trait TapIo: Send {
    /// The descriptor to wait on.
    fn fd(&self) -> BorrowedFd<'_>;

    /// What [`TapIo::write`] takes.
    fn offloads(&self) -> TapOffloads;

    /// Reads one frame or super-frame into `buffer` (at least [`weft_mesh::frame::MAX_FRAME`] bytes) and returns its
    /// length. [`io::ErrorKind::WouldBlock`]: there is none; any other error: the interface is gone.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<(VnetHeader, usize)>;

    /// Writes one frame or super-frame, given in parts. [`io::ErrorKind::WouldBlock`]: the kernel has no room, the
    /// frame is lost.
    fn write(&mut self, vnet: &VnetHeader, parts: &[&[u8]]) -> io::Result<()>;
}

/// Whether reading from an interface failed because it is there no more. Other errors are of one frame, which the kernel dropped (a packet socket has
/// EINVAL for a super-frame that virtio has no word for).
pub fn is_gone(error: &io::Error) -> bool {
    let gone = [libc::EBADFD, libc::EBADF, libc::ENODEV, libc::ENXIO, libc::ENETDOWN, libc::EIO];
    error.raw_os_error().is_some_and(|code| gone.contains(&code))
}

/// Has the kernel send a UDP socket's datagrams whole or not at all, regardless of the path MTU it assumes: finding out is
/// the caller's task (`IP_PMTUDISC_PROBE`, ip(7)). A socket for IPv6 may send IPv4, too.
pub fn never_fragment(socket: BorrowedFd<'_>, is_v6: bool) -> io::Result<()> {
    sys::never_fragment(socket, is_v6)
}

/// Counts the losses of a UDP socket since it was opened, modulo 2^32: datagrams, or bursts of them that the kernel had joined, that came faster than they were
/// read, and the few with a wrong checksum (`SO_MEMINFO`, `SK_MEMINFO_DROPS`, Linux 4.12).
pub fn lost_datagrams(socket: BorrowedFd<'_>) -> io::Result<u32> {
    sys::lost_datagrams(socket)
}

/// Asks the scheduler for turns of this length for the calling thread; zero stands for the usual one. A thread content with
/// short ones gets them sooner (EEVDF, Linux 6.12; earlier kernels take no notice). From 0.1 to 100 ms (sched(7)).
pub fn set_time_slice(slice: Duration) -> io::Result<()> {
    sys::set_time_slice(slice)
}

impl AsFd for dyn TapIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}
