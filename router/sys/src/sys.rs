//! The system calls themselves.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// `ioctl` with an integer argument.
pub(crate) fn ioctl_int(fd: BorrowedFd<'_>, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the requests used here take an integer, not a pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) }).map(drop)
}

/// `TUNSETIFF`: attaches a descriptor of `/dev/net/tun` to the interface `name`.
pub(crate) fn tun_set_iff(fd: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open and the request points to a whole ifreq, as TUNSETIFF wants.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) }).map(drop)
}

fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is plain data; all zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.as_bytes().contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface names have at most 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// The index of an interface.
pub(crate) fn if_index(name: &str) -> io::Result<libc::c_int> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the name ends in a zero byte.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index as libc::c_int),
    }
}

/// `readv` into a header and a body; the number of bytes read in all.
pub(crate) fn readv(fd: impl AsFd, header: &mut [u8], body: &mut [u8]) -> io::Result<usize> {
    let slices = [
        libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() },
        libc::iovec { iov_base: body.as_mut_ptr().cast(), iov_len: body.len() },
    ];
    // SAFETY: both vectors describe live, writable memory of exactly the given lengths.
    check_size(unsafe { libc::readv(fd.as_fd().as_raw_fd(), slices.as_ptr(), 2) })
}

/// `writev` of a header and parts.
pub(crate) fn writev(fd: impl AsFd, header: &[u8], parts: &[&[u8]]) -> io::Result<usize> {
    // A frame that was not joined has one part or two: filling the large array would cost as much as the call.
    if parts.len() < 4 {
        writev_with::<4>(fd.as_fd(), header, parts)
    } else {
        writev_with::<300>(fd.as_fd(), header, parts)
    }
}

fn writev_with<const MAX: usize>(fd: BorrowedFd<'_>, header: &[u8], parts: &[&[u8]]) -> io::Result<usize> {
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut slices = [empty; MAX];
    slices[0] = libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() };
    if parts.len() >= MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many parts"));
    }
    for (slice, part) in slices[1..].iter_mut().zip(parts) {
        *slice = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
    }
    // SAFETY: each of the first `1 + parts.len()` vectors describes live memory; writev does not write to it.
    check_size(unsafe { libc::writev(fd.as_raw_fd(), slices.as_ptr(), (1 + parts.len()) as libc::c_int) })
}

/// A raw packet socket bound to an interface, with virtio headers.
pub(crate) fn packet_socket(name: &str) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    const PACKET_VNET_HDR: libc::c_int = 15;
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: a plain socket call; its result is checked before use.
    let fd = check(unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            libc::c_int::from(protocol),
        )
    })?;
    // SAFETY: the descriptor was just made and has no other owner.
    let fd = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
    for option in [PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
        set_option(fd.as_fd(), libc::SOL_PACKET, option, 1)?;
    }
    // SAFETY: a sockaddr_ll is plain data; all zeros is a valid one.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = if_index(name)?;
    // SAFETY: the address is a whole sockaddr_ll and its size is given.
    check(unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    })?;
    Ok(fd)
}

pub(crate) fn never_fragment(socket: BorrowedFd<'_>, is_v6: bool) -> io::Result<()> {
    let mut options = vec![(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)];
    if is_v6 {
        options.push((libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE));
        options.push((libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1));
    }
    options.into_iter().try_for_each(|(level, name, value)| set_option(socket, level, name, value))
}

/// `setsockopt` with an int.
fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option points to a live int of the given size.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// What SO_MEMINFO tells, in this order (sock_diag(7)): SK_MEMINFO_RMEM_ALLOC and seven others before SK_MEMINFO_DROPS.
const MEMINFO: usize = 9;
const MEMINFO_DROPS: usize = 8;

pub(crate) fn lost_datagrams(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0_u32; MEMINFO];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the option points to a live array whose size in bytes is given.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut len)
    })?;
    Ok(info[MEMINFO_DROPS])
}

/// What sched_setattr(2) takes, in the form of Linux 3.14.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

pub(crate) fn set_time_slice(slice: Duration) -> io::Result<()> {
    const SIZE: u32 = size_of::<SchedAttr>() as u32;
    let mut attributes = SchedAttr::default();
    // SAFETY: the kernel writes at most the given size, which is the struct's; 0 stands for the calling thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) };
    check_size(got as libc::ssize_t)?;
    attributes.runtime = slice.as_nanos() as u64;
    // SAFETY: the kernel reads the struct, whose first field tells its size.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check_size(set as libc::ssize_t).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
