//! What cannot be avoided: sealing and opening, reading and writing a TAP, sending and receiving UDP, each bare and with
//! super-frames of 60 kB, by one thread. What weft takes beyond this and beyond what the containers' own ends take is weft's.

use std::hint::black_box;
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::RecvMeta;
use weft_bench::stage::{Seal, kinds};
use weft_crypto::Suite;
use weft_crypto::aead::TAG_LEN;
use weft_mesh::frame::MAX_FRAME;
use weft_mesh::path::Path;
use weft_mesh::wire::Lane;
use weft_mesh::wire::OVERHEAD;
use weft_router::attach::prefix::Prefix;
use weft_router::error::{Doing, Failure, Result};
use weft_router::lab::{Ns, bring_up, wire};
use weft_router::transport::udp::{BUFFER, UdpPort};
use weft_sys::{FastTap, TapIo};

use super::pairs::Underlay;
use super::peers;

/// Pieces of a super-frame, and the payload of each in bytes.
const PIECES: usize = 45;
const PAYLOAD: usize = 1324;
/// What is sealed with a piece: its Ethernet, IP and TCP headers.
const HEADERS: usize = 54;
/// A datagram around a piece.
const DATAGRAM: usize = PAYLOAD + HEADERS + OVERHEAD;
const ROUNDS: u32 = 5_000;

/// Measures, and prints a table.
pub fn run() -> Result<()> {
    peers::install(|_| false)?;
    let (aes, chacha) = (aead(Suite::Aes256Gcm), aead(Suite::ChaCha20Poly1305));
    let (veth, nic) = (udp(Underlay::Veth)?, udp(Underlay::Nic)?);
    let rows = [
        ("sealing, AES-256-GCM", aes.0),
        ("opening, AES-256-GCM", aes.1),
        ("sealing, ChaCha20-Poly1305", chacha.0),
        ("opening, ChaCha20-Poly1305", chacha.1),
        ("reading from a TAP", tap_read()?),
        ("writing to a TAP", tap_write()?),
        ("sending by UDP over veth", veth.0),
        ("receiving by UDP over veth", veth.1),
        ("sending by UDP like a card, the receiver's GRO included", nic.0),
        ("receiving by UDP like a card", nic.1),
    ];
    println!("| bare | µs a super-frame of 60 kB | s/GB |\n|---|---|---|");
    for (name, time) in rows {
        let micros = time.as_secs_f64() * 1e6 / f64::from(ROUNDS);
        println!("| {name} | {micros:.1} | {:.3} |", micros / (PIECES * PAYLOAD) as f64 * 1e3);
    }
    Ok(())
}

fn aead(suite: Suite) -> (Duration, Duration) {
    let key = Seal::Suite(suite).key(1);
    let (text, header) = (PAYLOAD + HEADERS, [0; 12]);
    let mut packets = vec![vec![0u8; text + TAG_LEN]; PIECES];
    let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
    for round in 0..u64::from(ROUNDS) {
        let started = Instant::now();
        for (packet, counter) in packets.iter_mut().zip(round * 64..) {
            let tag = key.seal(counter, &header, &mut packet[..text]);
            packet[text..].copy_from_slice(&tag);
        }
        sealing += started.elapsed();
        let started = Instant::now();
        let are_whole =
            packets.iter_mut().zip(round * 64..).all(|(packet, counter)| key.open(counter, &header, packet));
        opening += started.elapsed();
        assert!(black_box(are_whole));
    }
    (sealing, opening)
}

/// A TAP in a namespace of its own, up and with an address.
fn tap() -> Result<(Ns, FastTap)> {
    let ns = Ns::new()?;
    let what = || "cannot open a TAP".to_owned();
    let tap = ns.run(|| FastTap::open("floor0", 1).doing(what))??.pop().ok_or_else(|| Failure::new(what()))?;
    bring_up(&ns, "floor0", &[Prefix(IpAddr::from([10, 9, 0, 1]), 24)])?;
    Ok((ns, tap))
}

fn tap_write() -> Result<Duration> {
    let (_ns, mut tap) = tap()?;
    let [.., (_, (frame, vnet))] = kinds();
    let started = Instant::now();
    for _ in 0..ROUNDS {
        // It has no receiver there: the kernel takes it in, and drops it when it has looked at the address.
        tap.write(&vnet, &[&frame]).doing(|| "cannot write to a TAP".into())?;
    }
    Ok(started.elapsed())
}

fn tap_read() -> Result<Duration> {
    let what = || "cannot fill a TAP".to_owned();
    let (ns, mut tap) = tap()?;
    let socket = ns.run(|| UdpSocket::bind("10.9.0.1:0").doing(what))??;
    socket.set_broadcast(true).doing(what)?;
    setsockopt(&socket, sockopt::UdpGsoSegment, &(PAYLOAD as i32)).doing(what)?;
    let (bytes, mut buffer) = (vec![0; PIECES * PAYLOAD], vec![0; MAX_FRAME + 1]);
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        socket.send_to(&bytes, "10.9.0.255:9").doing(what)?;
        loop {
            let started = Instant::now();
            let (_, len) = tap.read(&mut buffer).doing(what)?;
            // Between them are the kernel's own packets.
            if len > bytes.len() {
                spent += started.elapsed();
                break;
            }
        }
    }
    Ok(spent)
}

fn udp(underlay: Underlay) -> Result<(Duration, Duration)> {
    let what = || "cannot send or receive UDP".to_owned();
    let (a, b) = (Ns::new()?, Ns::new()?);
    let (near, far) = (IpAddr::from([10, 9, 0, 1]), IpAddr::from([10, 9, 0, 2]));
    wire(&a, &b, ("eth0", "eth0"), (&[Prefix(near, 24)], &[Prefix(far, 24)]))?;
    underlay.set(&a, "eth0")?;
    underlay.set(&b, "eth0")?;
    let sender = a.run(|| UdpPort::bind(SocketAddr::new(near, 6783), 1))??;
    let receiver = b.run(|| UdpPort::bind(SocketAddr::new(far, 6783), 1))??;
    let (bytes, mut buffer) = (vec![0; PIECES * DATAGRAM], vec![0; BUFFER]);
    let (mut sending, mut receiving) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        sender[0].send(Lane::Main, Path::udp(SocketAddr::new(far, 6783)), &bytes, DATAGRAM).doing(what)?;
        sending += started.elapsed();
        let mut left = bytes.len();
        while left > 0 {
            let mut meta = [RecvMeta::default()];
            let started = Instant::now();
            match receiver[0].receive(Lane::Main, &mut [IoSliceMut::new(&mut buffer)], &mut meta) {
                Ok(_) => {
                    receiving += started.elapsed();
                    left = left.saturating_sub(meta[0].len);
                }
                // A core may deliver later what another one sent.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).doing(what),
            }
        }
    }
    Ok((sending, receiving))
}
