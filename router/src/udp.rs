//! The UDP sockets: both address families, deep buffers, runs of datagrams in one call.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::{Doing, Failure, Result};

/// A burst at full speed must fit while a worker is busy: without depth, datagrams are lost and TCP slows down.
const RECEIVE_BUFFER: usize = 16 << 20;
const SEND_BUFFER: usize = 4 << 20;
/// How long a sender waits for room before it drops a run, in milliseconds.
const SEND_PATIENCE: u8 = 5;

/// Buffers received into at once, and the size of each.
pub const BATCH: usize = 16;
/// The largest run the kernel joins.
pub const BUFFER: usize = 65_536;

/// One socket, with what the kernel can do on it.
pub struct UdpPort {
    socket: std::net::UdpSocket,
    state: Arc<UdpSocketState>,
    is_v6: bool,
}

impl UdpPort {
    /// Binds `count` sockets to one address; the kernel spreads peers over them.
    pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<UdpPort>> {
        let in_use = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                Failure::new(format!("UDP {address} is in use; stop what uses it, or choose another with --listen"))
            }
            _ => Failure::new(format!("cannot listen on UDP {address}: {error}; choose another with --listen")),
        };
        // The first socket is bound alone: sharing is only among our own.
        let probe = Self::socket(address, false).map_err(in_use)?;
        let address = probe.local_addr().ok().and_then(|bound| bound.as_socket()).unwrap_or(address);
        drop(probe);
        (0..count.max(1)).map(|_| Self::open(address, count > 1).map_err(in_use)).collect()
    }

    fn open(address: SocketAddr, is_shared: bool) -> io::Result<UdpPort> {
        let socket = Self::socket(address, is_shared)?;
        // Beyond the system's limit only with CAP_NET_ADMIN; without it the limit has to do.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            let _ = socket.set_send_buffer_size(SEND_BUFFER);
        }
        let socket = std::net::UdpSocket::from(socket);
        let is_v6 = address.is_ipv6();
        weft_sys::never_fragment(socket.as_fd(), is_v6)?;
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        // The state is made on another socket, since that asks the kernel to tell things about each datagram that nobody here wants; times
        // among them: while one socket wants those, the kernel reads the clock for every packet of the machine.
        let other = Self::socket(SocketAddr::new(unspecified(is_v6), 0), false)?;
        let state = UdpSocketState::new((&other).into())?;
        Ok(UdpPort { socket, state: Arc::new(state), is_v6 })
    }

    fn socket(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        if is_shared {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    }

    /// Another handle of the same socket.
    pub fn try_clone(&self) -> Result<UdpPort> {
        let socket = self.socket.try_clone().doing(|| "cannot share the UDP socket".into())?;
        Ok(UdpPort { socket, state: self.state.clone(), is_v6: self.is_v6 })
    }

    /// The port it is bound to.
    pub fn port(&self) -> u16 {
        self.socket.local_addr().map(|address| address.port()).unwrap_or(0)
    }

    /// Datagrams that one call may carry.
    pub fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends datagrams of `stride` bytes each, the last one maybe shorter.
    pub fn send(&self, to: SocketAddr, datagrams: &[u8], stride: usize) -> io::Result<()> {
        let to = if self.is_v6 { mapped(to) } else { to };
        if self.state.max_gso_segments() < datagrams.len().div_ceil(stride.max(1)) {
            return self.send_singly(to, datagrams, stride);
        }
        match self.send_run(to, datagrams, Some(stride)) {
            // A device without checksum offload refuses runs; quinn-udp then no longer offers them.
            Err(error) if matches!(error.raw_os_error(), Some(5 | 22)) && datagrams.len() > stride => {
                self.send_singly(to, datagrams, stride)
            }
            result => result,
        }
    }

    fn send_singly(&self, to: SocketAddr, datagrams: &[u8], stride: usize) -> io::Result<()> {
        datagrams.chunks(stride.max(1)).try_for_each(|datagram| self.send_run(to, datagram, None))
    }

    fn send_run(&self, destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        match self.state.try_send((&self.socket).into(), &transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::from(SEND_PATIENCE));
                self.state.try_send((&self.socket).into(), &transmit)
            }
            result => result,
        }
    }

    /// Receives into `buffers`; how many were filled.
    pub fn receive(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let count = self.state.recv((&self.socket).into(), buffers, meta)?;
        for meta in &mut meta[..count] {
            meta.addr = unmapped(meta.addr);
        }
        Ok(count)
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn unspecified(is_v6: bool) -> IpAddr {
    if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    let v4 = |ip: Ipv6Addr| ip.to_ipv4_mapped();
    match address.ip() {
        IpAddr::V6(ip) => match v4(ip) {
            Some(ip) => SocketAddr::new(ip.into(), address.port()),
            // Flow labels are no part of where somebody is.
            None => SocketAddr::V6(std::net::SocketAddrV6::new(ip, address.port(), 0, scope(address))),
        },
        IpAddr::V4(_) => address,
    }
}

fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}
