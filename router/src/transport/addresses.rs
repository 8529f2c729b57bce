//! Addresses of both families, as sockets of either see them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc;
use nix::sys::socket::ControlMessage;
use socket2::{Domain, Protocol, Socket, Type};

/// The address of this host that a datagram leaves from, as the kernel wants to be told.
pub(super) enum Source {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Source {
    pub(super) fn of(ip: IpAddr) -> Source {
        match ip {
            IpAddr::V4(ip) => {
                let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
                Source::V4(libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } })
            }
            IpAddr::V6(ip) => {
                let ipi6_addr = libc::in6_addr { s6_addr: ip.octets() };
                Source::V6(libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 })
            }
        }
    }

    pub(super) fn message(&self) -> ControlMessage<'_> {
        match self {
            Source::V4(info) => ControlMessage::Ipv4PacketInfo(info),
            Source::V6(info) => ControlMessage::Ipv6PacketInfo(info),
        }
    }
}

/// Binds to an address, or, where the kernel has no IPv6 (`ipv6.disable=1`) and the address is all of it, to all of IPv4.
pub(super) fn with_a_family_there_is<T>(
    address: SocketAddr,
    mut bind: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<(SocketAddr, T)> {
    match bind(address) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.ip() == Ipv6Addr::UNSPECIFIED => {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            tracing::info!("this kernel has no IPv6: hosts are reached by IPv4 only");
            bind(v4).map(|bound| (v4, bound))
        }
        bound => bound.map(|bound| (address, bound)),
    }
}

/// A socket that does not block, for an address; one for IPv6 takes IPv4, too.
pub(super) fn socket_for(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The address of either family that stands for all of a host's own.
pub(crate) fn unspecified(is_v6: bool) -> IpAddr {
    if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

pub(super) fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    let v4 = |ip: Ipv6Addr| ip.to_ipv4_mapped();
    match address.ip() {
        IpAddr::V6(ip) => match v4(ip) {
            Some(ip) => SocketAddr::new(ip.into(), address.port()),
            // Flow labels are no part of an address.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ipv6_all_of_ipv4_is_listened_on() {
        let no_v6 = |address: SocketAddr| match address.is_ipv6() {
            true => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
            false => Ok(()),
        };
        let bound = |text: &str| with_a_family_there_is(text.parse().unwrap(), no_v6).map(|(address, ())| address);
        assert_eq!(bound("[::]:7").unwrap(), "0.0.0.0:7".parse().unwrap());
        assert_eq!(bound("192.0.2.1:7").unwrap(), "192.0.2.1:7".parse().unwrap());
        assert!(bound("[fd00::1]:7").is_err(), "an address that was named is not replaced");
    }

    #[test]
    fn an_ipv4_address_is_the_same_to_sockets_of_both_families() {
        let v4: SocketAddr = "192.0.2.1:7".parse().unwrap();
        assert_eq!(mapped(v4), "[::ffff:192.0.2.1]:7".parse().unwrap());
        assert_eq!(unmapped(mapped(v4)), v4);
        let v6: SocketAddr = "[2001:db8::1]:7".parse().unwrap();
        assert_eq!((mapped(v6), unmapped(v6)), (v6, v6));
    }
}
