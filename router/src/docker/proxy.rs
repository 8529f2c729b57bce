//! Carries what comes to a published port and cannot be led to the container by the firewall: from the host's loopback, from
//! containers behind the same bridge, and from the address family that the container does not have.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tracing::trace;

/// Connections, or UDP askers, of one port at once.
const MOST: usize = 1024;
/// How long a container may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an asker by UDP is remembered: as connection tracking does (nf_conntrack_udp_timeout).
const UDP_IDLE: Duration = Duration::from_secs(30);
/// The largest datagram.
const MAX_DATAGRAM: usize = 65_536;

/// Serves a listening socket until aborted.
pub fn tcp(socket: std::net::TcpListener, to: SocketAddr) -> io::Result<AbortHandle> {
    let listener = TcpListener::from_std(socket)?;
    Ok(tokio::spawn(accept_all(listener, to)).abort_handle())
}

async fn accept_all(listener: TcpListener, to: SocketAddr) {
    let room = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((mut from, _)) => connections.spawn(async move {
                let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(to)).await;
                if let Ok(Ok(mut container)) = connected {
                    let ended = tokio::io::copy_bidirectional(&mut from, &mut container).await;
                    trace!(?ended, %to, "a connection by the host's own socket ended");
                }
                drop(permit);
            }),
            // Out of file descriptors, perhaps: others need time to end.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
    }
}

/// Serves a bound UDP socket until aborted.
pub fn udp(socket: std::net::UdpSocket, to: SocketAddr) -> io::Result<AbortHandle> {
    // An answer comes from the address that was asked.
    match socket.local_addr()? {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    Ok(tokio::spawn(pass_all(socket, to)).abort_handle())
}

/// Who asked, and at which address of the host.
type Asker = (SocketAddr, Option<Local>);

/// An address of the host, as the kernel says and takes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Local {
    V4(Ipv4Addr),
    V6(Ipv6Addr, u32),
}

async fn pass_all(socket: Arc<UdpSocket>, to: SocketAddr) {
    let mut askers: BTreeMap<Asker, (Arc<UdpSocket>, Instant)> = BTreeMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error is that of an earlier answer.
        let Ok((length, asker)) = receive(&socket, &mut buffer).await else { continue };
        while answers.try_join_next().is_some() {}
        let now = Instant::now();
        if !askers.contains_key(&asker) {
            askers.retain(|_, (_, used)| now.duration_since(*used) < UDP_IDLE);
            if askers.len() >= MOST {
                continue;
            }
            let Ok(container) = connect(to).await else { continue };
            answers.spawn(answer_all(socket.clone(), container.clone(), asker));
            askers.insert(asker, (container, now));
        }
        if let Some((container, used)) = askers.get_mut(&asker) {
            *used = now;
            let _ = container.send(&buffer[..length]).await;
        }
    }
}

async fn connect(to: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    Ok(Arc::new(socket))
}

/// Passes a container's answers on until it has been silent for long.
async fn answer_all(socket: Arc<UdpSocket>, container: Arc<UdpSocket>, asker: Asker) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok(received) = tokio::time::timeout(UDP_IDLE, container.recv(&mut buffer)).await {
        // A refusal is of one datagram; the next one may be taken.
        if let Ok(length) = received {
            let _ = send(&socket, &buffer[..length], asker).await;
        }
    }
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
    socket
        .async_io(Interest::READABLE, || {
            let mut space = nix::cmsg_space!(in6_pktinfo);
            let mut parts = [io::IoSliceMut::new(buffer)];
            let message =
                recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
            let from = message.address.and_then(|address| {
                let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
            });
            let local = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(Local::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())))
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    Some(Local::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr), info.ipi6_ifindex))
                }
                _ => None,
            });
            let from = from.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            Ok((message.bytes, (from, local)))
        })
        .await
}

async fn send(socket: &UdpSocket, datagram: &[u8], (to, local): Asker) -> io::Result<usize> {
    let address = SockaddrStorage::from(to);
    socket
        .async_io(Interest::WRITABLE, || {
            let parts = [io::IoSlice::new(datagram)];
            let send = |control: &[ControlMessage<'_>]| {
                Ok(sendmsg(socket.as_raw_fd(), &parts, control, MsgFlags::empty(), Some(&address))?)
            };
            match local {
                Some(Local::V4(ip)) => {
                    let own = in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
                    let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: own, ipi_addr: in_addr { s_addr: 0 } };
                    send(&[ControlMessage::Ipv4PacketInfo(&info)])
                }
                Some(Local::V6(ip, interface)) => {
                    // Only an address of one link needs its interface; others leave by their route.
                    let ipi6_ifindex = if ip.is_unicast_link_local() { interface } else { 0 };
                    let info = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: ip.octets() }, ipi6_ifindex };
                    send(&[ControlMessage::Ipv6PacketInfo(&info)])
                }
                None => send(&[]),
            }
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn nonblocking<T>(socket: T, set: impl Fn(&T, bool) -> io::Result<()>) -> T {
        set(&socket, true).unwrap();
        socket
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn connections_and_datagrams_are_carried_both_ways_between_families() {
        let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = target.local_addr().unwrap();
        let proxy =
            nonblocking(std::net::TcpListener::bind("[::1]:0").unwrap(), std::net::TcpListener::set_nonblocking);
        let at = proxy.local_addr().unwrap();
        tcp(proxy, to).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = target.accept().unwrap();
            let mut asked = String::new();
            stream.read_to_string(&mut asked).unwrap();
            stream.write_all(asked.to_uppercase().as_bytes()).unwrap();
        });
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(at).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(answer.await.unwrap(), "HELLO");
        server.join().unwrap();

        let target = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = target.local_addr().unwrap();
        let proxy = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let at = SocketAddr::from(([127, 0, 0, 7], proxy.local_addr().unwrap().port()));
        udp(nonblocking(proxy, std::net::UdpSocket::set_nonblocking), to).unwrap();
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            let (length, from) = target.recv_from(&mut buffer).unwrap();
            target.send_to(&buffer[..length].to_ascii_uppercase(), from).unwrap();
        });
        let (answer, from) = tokio::task::spawn_blocking(move || {
            let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            client.send_to(b"hello", at).unwrap();
            let mut buffer = [0; 100];
            let (length, from) = client.recv_from(&mut buffer).unwrap();
            (buffer[..length].to_vec(), from)
        })
        .await
        .unwrap();
        assert_eq!((&answer[..], from), (&b"HELLO"[..], at), "it comes from the address that was asked");
        server.join().unwrap();
    }
}
