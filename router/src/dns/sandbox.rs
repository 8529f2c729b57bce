//! A container's own resolver: questions to the engine's resolver come to weft first.
//!
//! Engines give containers 127.0.0.11 as their resolver. In the container's network namespace a rule turns what goes there
//! to sockets of weft's; what weft does not know is asked from 127.0.0.12, which the rule leaves alone. No flag and no
//! setting of the engine is needed, and without the rule everything is as the engine made it.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::upstream::OWN_LOOPBACK;
use crate::attach::netlink::on_thread_in;
use crate::error::{Doing, Failure, Result};

/// How long a container's network namespace may take to be there after it joined.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Sockets in a container's network namespace.
pub struct SandboxSockets {
    /// The namespace.
    pub namespace: File,
    /// Where questions come by UDP.
    pub udp: UdpSocket,
    /// Where questions come by TCP.
    pub tcp: TcpListener,
    /// From where the engine's resolver is asked.
    pub upstream: UdpSocket,
}

/// Waits for a container's network namespace and opens it; none if it does not come.
pub async fn open(path: &str) -> Option<File> {
    let end = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < end {
        // The file is there before the namespace is mounted on it.
        if let Ok(namespace) = crate::attach::target::open(Path::new(path), String::new) {
            return Some(namespace.file);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    None
}

/// Makes the sockets and the rule.
pub fn enter(namespace: File) -> Result<SandboxSockets> {
    let fd = OwnedFd::from(namespace.try_clone().doing(|| "cannot hold the namespace".into())?);
    let (udp, tcp, upstream) = on_thread_in(Some(fd), || {
        let what = || "cannot listen in the container".to_owned();
        let udp = UdpSocket::bind((RESOLVER, 0)).doing(what)?;
        let tcp = TcpListener::bind((RESOLVER, 0)).doing(what)?;
        let upstream = UdpSocket::bind((OWN_LOOPBACK, 0)).doing(what)?;
        udp.set_nonblocking(true).doing(what)?;
        tcp.set_nonblocking(true).doing(what)?;
        upstream.set_nonblocking(true).doing(what)?;
        let (to_udp, to_tcp) = (udp.local_addr().doing(what)?, tcp.local_addr().doing(what)?);
        nft(&rules(to_udp, to_tcp))?;
        Ok((udp, tcp, upstream))
    })?;
    Ok(SandboxSockets { namespace, udp, tcp, upstream })
}

/// Takes the rule away: the container is as the engine made it.
pub fn leave(namespace: &File) -> Result<()> {
    let fd = OwnedFd::from(namespace.try_clone().doing(|| "cannot hold the namespace".into())?);
    on_thread_in(Some(fd), || nft("table ip weft_dns\ndelete table ip weft_dns\n"))
}

/// Before the engine's own redirection, which has priority -100.
fn rules(udp: SocketAddr, tcp: SocketAddr) -> String {
    format!(
        "table ip weft_dns\ndelete table ip weft_dns\ntable ip weft_dns {{\n chain out {{\n  \
         type nat hook output priority -110; policy accept;\n  \
         ip daddr {RESOLVER} ip saddr != {OWN_LOOPBACK} udp dport 53 dnat to {udp}\n  \
         ip daddr {RESOLVER} ip saddr != {OWN_LOOPBACK} tcp dport 53 dnat to {tcp}\n }}\n}}\n"
    )
}

fn nft(rules: &str) -> Result<()> {
    let what = || "cannot set a container's rules with nft (is nftables installed?)".to_owned();
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).doing(what)?;
    }
    let output = child.wait_with_output().doing(what)?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{}: {}", what(), error.lines().next().unwrap_or_default())))
}
