//! The UDP sockets: both address families, deep buffers, runs of datagrams in one call.
//!
//! Each worker has a socket for either [`Lane`], all bound to one port: a filter in the kernel tells by the first bytes of
//! a datagram which it is for. What is urgent then waits in no queue behind what is not.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Protocol, Socket, Type};
use weft_crypto::{envelope, session};
use weft_mesh::path::{Path, Transport};
use weft_mesh::wire::Lane;

use super::addresses::{Source, mapped, socket_for, unmapped, unspecified, with_a_family_there_is};
use crate::error::{Failure, Result};

/// A burst at full speed must fit while a worker is busy: without depth, datagrams are lost and TCP slows down.
const RECEIVE_BUFFER: usize = 16 << 20;
const SEND_BUFFER: usize = 4 << 20;
/// What urgent datagrams ask of the networks between: low-latency data, AF21 (RFC 4594, section 4.7). Datagrams that differ
/// in this are never joined to one run on their way.
const LOW_LATENCY: u8 = 18 << 2;
/// How long a sender waits for room before it drops a run, in milliseconds.
const SEND_PATIENCE: u8 = 5;

/// Buffers received into at once, and the size of each.
pub const BATCH: usize = 16;
/// The largest run the kernel joins.
pub const BUFFER: usize = 65_536;

/// One worker's sockets, or a spare port's, with what the kernel can do on them.
#[derive(Clone)]
pub struct UdpPort {
    /// In the order of [`Lane::ALL`].
    sockets: [Arc<std::net::UdpSocket>; Lane::ALL.len()],
    /// What bulk leaves by, if not by its lane's. No epoll waits on it: for a socket that epoll waits on, the kernel looks for
    /// whom to wake at each packet that has left.
    outlet: Option<Arc<std::net::UdpSocket>>,
    /// What paths by them are called.
    transport: Transport,
    state: Arc<UdpSocketState>,
    settings: Arc<Settings>,
    is_v6: bool,
}

/// What can change while sockets are open; of all workers' sockets alike.
struct Settings {
    /// Whether urgent datagrams are marked.
    marks: AtomicBool,
    /// Whether this host has several addresses of a family, IPv4 and IPv6: which one was asked matters then.
    is_multihomed: [AtomicBool; 2],
}

impl UdpPort {
    /// Binds the sockets of `count` workers to one address; sessions are spread over them.
    pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<UdpPort>> {
        let in_use = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                Failure::new(format!("UDP {address} is in use; stop what uses it, or choose another with --listen"))
            }
            _ => Failure::new(format!("cannot listen on UDP {address}: {error}; choose another with --listen")),
        };
        // The first socket is bound alone: sharing is only among our own.
        let (address, probe) =
            with_a_family_there_is(address, |address| Self::socket(address, false)).map_err(in_use)?;
        let address = probe.local_addr().ok().and_then(|bound| bound.as_socket()).unwrap_or(address);
        drop(probe);
        let count = count.max(1);
        let open = |lane| (0..count).map(|_| Self::open(address, lane)).collect::<io::Result<Vec<_>>>().map_err(in_use);
        let (mains, mut urgents) = (open(Lane::Main)?, open(Lane::Urgent)?);
        let mut outlets: Vec<Option<_>> = open(Lane::Main)?.into_iter().map(Some).collect();
        if let Err(error) = steer(&mains[0], count) {
            // Everything arrives all the same, only in one queue, and on any socket.
            outlets.iter_mut().for_each(|outlet| *outlet = None);
            tracing::warn!(%error, "the kernel does not sort datagrams by urgency: round trips beside bulk transfers take longer");
        }
        // What is urgent of a session is another worker's than the rest: it does not wait for that one's batch.
        urgents.rotate_right(1);
        let is_v6 = address.is_ipv6();
        // The state is made on another socket, since that asks the kernel to tell things about each datagram that weft does not use; times
        // among them: while one socket wants those, the kernel reads the clock for every packet of the machine.
        let other = Self::socket(SocketAddr::new(unspecified(is_v6), 0), false).map_err(in_use)?;
        let state = Arc::new(UdpSocketState::new((&other).into()).map_err(in_use)?);
        let settings = Arc::new(Settings { marks: AtomicBool::new(true), is_multihomed: Default::default() });
        let port = |((urgent, main), outlet)| {
            let (sockets, state, settings) = ([urgent, main], state.clone(), settings.clone());
            UdpPort { sockets, outlet, transport: Transport::Udp, state, settings, is_v6 }
        };
        Ok(urgents.into_iter().zip(mains).zip(outlets).map(port).collect())
    }

    /// Opens a spare port beside these: one socket for both lanes, with a number that the kernel chooses. What is urgent leaves unmarked.
    pub fn open_spare(&self) -> io::Result<UdpPort> {
        let address = SocketAddr::new(self.socket_of(Lane::Main).local_addr()?.ip(), 0);
        let socket = Self::open(address, Lane::Main)?;
        let transport = Transport::SpareUdp(socket.local_addr()?.port());
        let (sockets, state, settings) = ([socket.clone(), socket], self.state.clone(), self.settings.clone());
        Ok(UdpPort { sockets, outlet: None, transport, state, settings, is_v6: self.is_v6 })
    }

    fn open(address: SocketAddr, lane: Lane) -> io::Result<Arc<std::net::UdpSocket>> {
        // The kernel gives a port that is chosen by it to one socket.
        let socket = Self::socket(address, address.port() != 0)?;
        // Beyond the system's limit only with CAP_NET_ADMIN; without it the limit has to do.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            let _ = socket.set_send_buffer_size(SEND_BUFFER);
        }
        weft_sys::never_fragment(socket.as_fd(), address.is_ipv6())?;
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
        if lane == Lane::Urgent {
            let _ = setsockopt(&socket, sockopt::Ipv4Tos, &LOW_LATENCY.into());
            if address.is_ipv6() {
                let _ = setsockopt(&socket, sockopt::Ipv6TClass, &LOW_LATENCY.into());
            }
        }
        Ok(Arc::new(socket.into()))
    }

    fn socket(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
        let socket = socket_for(address, Type::DGRAM, Protocol::UDP)?;
        if is_shared {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    }

    /// The socket of a lane, to wait on.
    pub fn fd(&self, lane: Lane) -> BorrowedFd<'_> {
        self.socket_of(lane).as_fd()
    }

    fn socket_of(&self, lane: Lane) -> &std::net::UdpSocket {
        &self.sockets[lane as usize]
    }

    /// Counts the datagrams, or joined bursts of them, that were lost before they were read, modulo 2^32. None if the kernel does not tell.
    pub fn lost(&self) -> Option<u32> {
        Lane::ALL
            .iter()
            .try_fold(0_u32, |lost, lane| Some(lost.wrapping_add(weft_sys::lost_datagrams(self.fd(*lane)).ok()?)))
    }

    /// The port they are bound to.
    pub fn port(&self) -> u16 {
        self.socket_of(Lane::Main).local_addr().map(|address| address.port()).unwrap_or(0)
    }

    /// Datagrams that one call may carry.
    pub fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends datagrams of `stride` bytes each, the last one maybe shorter.
    pub fn send(&self, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        let to = Path { remote: if self.is_v6 { mapped(to.remote) } else { to.remote }, ..to };
        if self.state.max_gso_segments() < datagrams.len().div_ceil(stride.max(1)) {
            return self.send_singly(lane, to, datagrams, stride);
        }
        match self.send_run(lane, to, datagrams, Some(stride)) {
            // A device without checksum offload refuses runs; quinn-udp then no longer offers them.
            Err(error) if matches!(error.raw_os_error(), Some(5 | 22)) && datagrams.len() > stride => {
                self.send_singly(lane, to, datagrams, stride)
            }
            result => result,
        }
    }

    fn send_singly(&self, lane: Lane, to: Path, datagrams: &[u8], stride: usize) -> io::Result<()> {
        datagrams.chunks(stride.max(1)).try_for_each(|datagram| self.send_run(lane, to, datagram, None))
    }

    fn send_run(&self, lane: Lane, to: Path, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        if lane == Lane::Urgent && self.settings.marks.load(Ordering::Relaxed) {
            // quinn-udp gives each datagram a type of service of its own, and with it no mark.
            return Self::send_as_set_up(self.socket_of(Lane::Urgent), to, contents, segment_size);
        }
        if to.local.is_some() {
            // A refused source address would have quinn-udp send no more runs.
            let main = self.outlet.as_deref().unwrap_or(self.socket_of(Lane::Main));
            return Self::send_as_set_up(main, to, contents, segment_size);
        }
        let own = self.socket_of(lane);
        let socket = self.outlet.as_deref().filter(|_| lane == Lane::Main).unwrap_or(own);
        let transmit = Transmit { destination: to.remote, ecn: None, contents, segment_size, src_ip: None };
        match self.state.try_send(socket.into(), &transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                await_room(socket);
                self.state.try_send(socket.into(), &transmit)
            }
            result => result,
        }
    }

    /// Sends by a socket with the options that it has, from the path's address of this host.
    fn send_as_set_up(
        socket: &std::net::UdpSocket,
        to: Path,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let (remote, parts) = (SockaddrStorage::from(to.remote), [IoSlice::new(contents)]);
        let size = segment_size.filter(|size| *size < contents.len()).map(|size| size as u16);
        let source = to.local.map(Source::of);
        let mut control = [ControlMessage::UdpGsoSegments(&0); 2];
        let mut count = 0;
        for message in
            size.as_ref().map(ControlMessage::UdpGsoSegments).into_iter().chain(source.as_ref().map(Source::message))
        {
            control[count] = message;
            count += 1;
        }
        let send =
            || sendmsg(socket.as_raw_fd(), &parts, &control[..count], MsgFlags::empty(), Some(&remote)).map(drop);
        match send() {
            Err(Errno::EAGAIN) => {
                await_room(socket);
                Ok(send()?)
            }
            result => Ok(result?),
        }
    }

    /// Sends a datagram that means nothing (a NAT keepalive of RFC 3948, section 2.3), and that only `hops` routers pass on.
    pub fn open_nats(&self, to: Path, hops: u8) -> io::Result<()> {
        let to = unmapped(to.remote);
        let remote = SockaddrStorage::from(if self.is_v6 { mapped(to) } else { to });
        let hops = i32::from(hops);
        let limit = match to {
            SocketAddr::V4(_) => ControlMessage::Ipv4Ttl(&hops),
            SocketAddr::V6(_) => ControlMessage::Ipv6HopLimit(&hops),
        };
        let socket = self.socket_of(Lane::Main).as_raw_fd();
        Ok(sendmsg(socket, &[IoSlice::new(&[0xff])], &[limit], MsgFlags::empty(), Some(&remote)).map(drop)?)
    }

    /// Has urgent datagrams leave like all others from now on: a network on the way drops what is marked.
    pub fn stop_marking(&self) {
        self.settings.marks.store(false, Ordering::Relaxed);
    }

    /// Notes the addresses of this host: with several of a family, answers leave from the one that was asked.
    pub fn set_addresses(&self, addresses: &[IpAddr]) {
        for (is_multihomed, is_v6) in self.settings.is_multihomed.iter().zip([false, true]) {
            let count = addresses.iter().filter(|address| address.is_ipv6() == is_v6).count();
            is_multihomed.store(count > 1, Ordering::Relaxed);
        }
    }

    /// The path by which what was received can be answered.
    pub fn path_of(&self, meta: &RecvMeta) -> Path {
        let is_multihomed = self.settings.is_multihomed[usize::from(meta.addr.is_ipv6())].load(Ordering::Relaxed);
        let asked = meta.dst_ip.filter(|_| is_multihomed).map(|ip| ip.to_canonical());
        Path { transport: self.transport, remote: meta.addr, local: asked }
    }

    /// Receives into `buffers`; how many were filled.
    pub fn receive(&self, lane: Lane, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let count = self.state.recv(self.socket_of(lane).into(), buffers, meta)?;
        for meta in &mut meta[..count] {
            meta.addr = unmapped(meta.addr);
        }
        Ok(count)
    }
}

/// Has the kernel give each datagram to the socket that its session's index falls to, among the `count` of the lane that its
/// sender chose. Handshakes may wait: they are for the first of the main lane.
fn steer(first: &std::net::UdpSocket, count: usize) -> io::Result<()> {
    let word = |code: u32, k: usize| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: k as u32 };
    let load = |at: usize| word(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at);
    let compute = |operation: u32, k: usize| word(libc::BPF_ALU | libc::BPF_K | operation, k);
    // What is no such datagram goes on eight instructions later.
    let is_transit =
        libc::sock_filter { jf: 8, ..word(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, envelope::TRANSIT.into()) };
    // Sockets are numbered as they were bound: the main lane's first.
    let mut program = [
        load(0),
        is_transit,
        load(envelope::LEN + session::URGENT_BYTE),
        compute(libc::BPF_RSH, 7),
        compute(libc::BPF_MUL, count),
        word(libc::BPF_MISC | libc::BPF_TAX, 0),
        load(envelope::LEN),
        compute(libc::BPF_MOD, count),
        word(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
        word(libc::BPF_RET | libc::BPF_A, 0),
        word(libc::BPF_RET | libc::BPF_K, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    Ok(setsockopt(first, sockopt::AttachReusePortCbpf, &program)?)
}

/// Waits until a socket takes more, if not for long.
fn await_room(socket: &std::net::UdpSocket) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let _ = poll(&mut fds, PollTimeout::from(SEND_PATIENCE));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram of a session, as far as the filter looks.
    fn datagram(index: u32, is_urgent: bool) -> Vec<u8> {
        let mut bytes = vec![0; 100];
        bytes[0] = envelope::TRANSIT;
        bytes[envelope::LEN..][..4].copy_from_slice(&index.to_le_bytes());
        bytes[envelope::LEN + session::URGENT_BYTE] = if is_urgent { 0x80 } else { 0 };
        bytes
    }

    /// The worker and lane that something arrives at.
    fn arrival(ports: &[UdpPort], sent: &[u8]) -> (usize, Lane) {
        let mut buffer = [0; 2000];
        for (worker, port) in ports.iter().enumerate() {
            for lane in Lane::ALL {
                let mut meta = [RecvMeta::default()];
                if port.receive(lane, &mut [IoSliceMut::new(&mut buffer)], &mut meta).is_ok() {
                    assert_eq!(buffer[..meta[0].len], *sent);
                    return (worker, lane);
                }
            }
        }
        panic!("it did not arrive");
    }

    #[test]
    fn datagrams_are_sorted_by_session_and_urgency() {
        for (workers, to) in [(1, "127.0.0.1:0"), (2, "127.0.0.1:0"), (3, "[::1]:0")] {
            let ports = UdpPort::bind(to.parse().unwrap(), workers).unwrap();
            let to: SocketAddr = SocketAddr::new(to.parse::<SocketAddr>().unwrap().ip(), ports[0].port());
            let sender = &UdpPort::bind(SocketAddr::new(to.ip(), 0), 1).unwrap()[0];
            let arrives = |bytes: &[u8]| {
                sender.send(Lane::Main, Path::udp(to), bytes, bytes.len()).unwrap();
                arrival(&ports, bytes)
            };
            for index in [5, 6, 7, 0x1234_5600] {
                let worker = (index & 0xff) as usize % workers;
                assert_eq!(arrives(&datagram(index, false)), (worker, Lane::Main));
                // What is urgent is another worker's, if there is one.
                assert_eq!(arrives(&datagram(index, true)), ((worker + 1) % workers, Lane::Urgent));
            }
            assert_eq!(arrives(&[1; 100]), (0, Lane::Main), "a handshake waits behind what is urgent");
        }
    }

    /// The type of service that an arriving datagram has.
    fn arrives_with(ports: &[UdpPort], to: SocketAddr, lane: Lane, count: usize) -> u8 {
        let receiver = std::net::UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
        match to {
            SocketAddr::V4(_) => setsockopt(&receiver, sockopt::IpRecvTos, &true).unwrap(),
            SocketAddr::V6(_) => setsockopt(&receiver, sockopt::Ipv6RecvTClass, &true).unwrap(),
        }
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        ports[0].send(lane, Path::udp(receiver.local_addr().unwrap()), &vec![1; 100 * count], 100).unwrap();
        let (mut bytes, mut space) = ([0; 1000], nix::cmsg_space!([i32; 4]));
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = nix::sys::socket::recvmsg::<SockaddrStorage>(
            receiver.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        );
        let received = received.unwrap();
        assert_eq!(received.bytes, 100);
        let found = received.cmsgs().unwrap().find_map(|message| match message {
            nix::sys::socket::ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
            nix::sys::socket::ControlMessageOwned::Ipv6TClass(class) => Some(class as u8),
            _ => None,
        });
        found.unwrap()
    }

    #[test]
    fn urgent_datagrams_are_marked_unless_that_is_given_up() {
        for to in ["127.0.0.1:0", "[::1]:0"] {
            let to: SocketAddr = to.parse().unwrap();
            let ports = UdpPort::bind(to, 1).unwrap();
            let marks = |lane, count| arrives_with(&ports, to, lane, count);
            assert_eq!((marks(Lane::Urgent, 1), marks(Lane::Urgent, 3)), (LOW_LATENCY, LOW_LATENCY), "{to}");
            assert_eq!((marks(Lane::Main, 1), marks(Lane::Main, 3)), (0, 0), "{to}");
            ports[0].clone().stop_marking();
            assert_eq!((marks(Lane::Urgent, 1), marks(Lane::Urgent, 3)), (0, 0), "{to}");
        }
    }

    #[test]
    fn answers_leave_from_the_address_that_was_asked() {
        for (listen, asked, from) in [
            ("0.0.0.0:0", "127.0.0.5", "127.0.0.9:0"),
            ("[::]:0", "127.0.0.5", "127.0.0.9:0"),
            ("[::]:0", "::1", "[::1]:0"),
        ] {
            let port = &UdpPort::bind(listen.parse().unwrap(), 1).unwrap()[0];
            let asked: IpAddr = asked.parse().unwrap();
            port.set_addresses(&[asked, "192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
            let asker = std::net::UdpSocket::bind(from).unwrap();
            asker.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
            for lane in Lane::ALL {
                asker.send_to(&[1; 50], (asked, port.port())).unwrap();
                let (mut meta, mut buffer) = ([RecvMeta::default()], [0; 2000]);
                port.receive(Lane::Main, &mut [IoSliceMut::new(&mut buffer)], &mut meta).unwrap();
                let path = port.path_of(&meta[0]);
                assert_eq!((path.local, path.remote), (Some(asked), asker.local_addr().unwrap()));
                // Alone, and as a run.
                for (bytes, count) in [(100, 1), (300, 3)] {
                    port.send(lane, path, &vec![2; bytes], 100).unwrap();
                    for _ in 0..count {
                        let (_, answered_from) = asker.recv_from(&mut buffer).unwrap();
                        assert_eq!(answered_from, SocketAddr::new(asked, port.port()), "{listen} {lane:?}");
                    }
                }
            }
            port.set_addresses(&[asked]);
            let (mut meta, mut buffer) = ([RecvMeta::default()], [0; 2000]);
            asker.send_to(&[1; 50], (asked, port.port())).unwrap();
            port.receive(Lane::Main, &mut [IoSliceMut::new(&mut buffer)], &mut meta).unwrap();
            assert_eq!(port.path_of(&meta[0]).local, None, "there is no other");
        }
    }

    #[test]
    fn an_opening_datagram_has_the_hop_limit_asked_for() {
        for (listen, to) in [("0.0.0.0:0", "127.0.0.1:0"), ("[::]:0", "127.0.0.1:0"), ("[::]:0", "[::1]:0")] {
            let port = &UdpPort::bind(listen.parse().unwrap(), 1).unwrap()[0];
            let receiver = std::net::UdpSocket::bind(to).unwrap();
            receiver.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
            match to.starts_with('[') {
                false => setsockopt(&receiver, sockopt::Ipv4RecvTtl, &true).unwrap(),
                true => setsockopt(&receiver, sockopt::Ipv6RecvHopLimit, &true).unwrap(),
            }
            port.open_nats(Path::udp(receiver.local_addr().unwrap()), 3).unwrap();
            let (mut bytes, mut space) = ([0; 100], nix::cmsg_space!([i32; 4]));
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let fd = receiver.as_raw_fd();
            let received =
                nix::sys::socket::recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), MsgFlags::empty());
            let received = received.unwrap();
            let hops = received.cmsgs().unwrap().find_map(|message| match message {
                nix::sys::socket::ControlMessageOwned::Ipv4Ttl(hops) => Some(hops),
                nix::sys::socket::ControlMessageOwned::Ipv6HopLimit(hops) => Some(hops),
                _ => None,
            });
            assert_eq!(hops, Some(3), "{listen} {to}");
        }
    }

    #[test]
    fn a_port_in_use_is_said_to_be() {
        let taken = UdpPort::bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], taken[0].port()));
        assert!(UdpPort::bind(address, 2).is_err_and(|error| error.to_string().contains("is in use")));
    }
}
