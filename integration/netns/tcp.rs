//! Hosts in networks that let no UDP pass.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use weft_integration::alone;
use weft_integration::netns::internet::{Edge, Internet, Layer, Transfer, transfer};
use weft_integration::netns::{Mesh, ip, nft};
use weft_router::lab::{Ns, await_true, resident};

/// Hosts at the edges of an internet that are not started yet, and their addresses. The first is to accept connections at port 443.
fn join(name: &str, edges: &[Edge]) -> (Mesh, Internet, Vec<Ipv4Addr>) {
    let (mut mesh, internet, addresses) = Mesh::join(name, edges);
    ["--listen", "tcp://0.0.0.0:443"].into_iter().for_each(|argument| mesh.add_argument(0, argument));
    (mesh, internet, addresses)
}

/// The same, started; all others name the first.
fn start(name: &str, edges: &[Edge]) -> (Mesh, Internet) {
    let (mut mesh, internet, addresses) = join(name, edges);
    (1..edges.len()).for_each(|number| mesh.add_argument(number, &addresses[0].to_string()));
    (0..edges.len()).for_each(|number| mesh.launch(number));
    (mesh, internet)
}

/// What a host says of a peer: a key of its status.
fn of_peer(mesh: &Mesh, host: usize, peer: &str, key: &str) -> String {
    let peer = mesh.hosts[host].peer(peer).expect("the router answers");
    peer[key].as_str().unwrap_or_default().to_owned()
}

fn await_transport(mesh: &Mesh, transport: &str) {
    await_true(&format!("the link does not go over {transport}"), || {
        Ok(of_peer(mesh, 0, "h1", "transport") == transport && of_peer(mesh, 1, "h0", "transport") == transport)
    })
    .unwrap();
}

/// Carries bytes by TCP between two containers.
fn carry(mesh: &Mesh, from: usize, to: usize, seconds: u64) -> Transfer {
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(seconds), |_| ())
}

#[test]
fn a_host_that_only_https_leaves_joins_and_goes_over_to_udp_once_that_passes() {
    let _alone = alone();
    let (mut mesh, internet) = start("https", &[&[], &[Layer::OnlyHttps], &[Layer::FilteringNat]]);
    let launched = Instant::now();
    let containers = [0, 1, 2].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    println!("connected {:.1?} after launch", launched.elapsed());
    assert_eq!(of_peer(&mesh, 1, "h0", "transport"), "tcp");
    assert_eq!((of_peer(&mesh, 1, "h2", "path"), of_peer(&mesh, 1, "h2", "via")), ("relay".into(), "h0".into()));
    for (from, to) in [(1, 0), (0, 1), (1, 2), (2, 1)] {
        let carried = carry(&mesh, containers[from], containers[to], 2);
        println!("h{from} to h{to}: {} Mbit/s, {:?}", carried.bytes * 8 / 2_000_000, carried.longest_silence);
        assert!(carried.bytes > 1 << 20, "{carried:?}");
    }
    let (near, far) = (&mesh.containers[containers[1]], &mesh.containers[containers[0]]);
    let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(25), |arrived| {
        await_true("nothing is carried", || Ok(arrived.load(Ordering::Relaxed) > 1 << 20)).unwrap();
        nft(&internet.routers[0], "flush chain ip filter f; add rule ip filter f accept");
        await_transport(&mesh, "udp");
    });
    assert!(carried.longest_silence < Duration::from_secs(1), "{carried:?}");
    let carried = carry(&mesh, containers[1], containers[0], 2);
    println!("by UDP: {} Mbit/s", carried.bytes * 8 / 2_000_000);
}

#[test]
fn a_host_that_only_tls_leaves_joins_inside_of_it() {
    let _alone = alone();
    let (mut mesh, _internet) = start("tls", &[&[], &[Layer::OnlyTls], &[Layer::OnlyHttps]]);
    let launched = Instant::now();
    let containers = [0, 1, 2].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    println!("connected {:.1?} after launch", launched.elapsed());
    for (host, is_in_tls) in [(1, true), (2, false)] {
        let link = mesh.hosts[host].peer("h0").unwrap();
        assert_eq!((&link["transport"], &link["tls"]), (&"tcp".into(), &is_in_tls.into()));
    }
    for (what, from, to) in [("inside TLS", 1, 0), ("inside TLS, back", 0, 1), ("without TLS", 2, 0)] {
        let carried = carry(&mesh, containers[from], containers[to], 2);
        println!("{what}: {} Mbit/s, {:?}", carried.bytes * 8 / 2_000_000, carried.longest_silence);
        assert!(carried.bytes > 1 << 20, "{carried:?}");
    }
}

#[test]
fn a_link_over_tcp_outlives_a_restart_of_either_end() {
    let _alone = alone();
    let (mut mesh, _internet) = start("again", &[&[], &[Layer::OnlyHttps]]);
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    for host in [0, 1] {
        mesh.hosts[host].kill();
        mesh.launch(host);
        await_transport(&mesh, "tcp");
        let carried = carry(&mesh, from, to, 1);
        assert!(carried.bytes > 1 << 20, "h{host} was started again: {carried:?}");
    }
}

/// Passes connections on that are asked for by CONNECT, and counts nothing else.
fn serve_proxy(listener: &TcpListener) {
    for client in listener.incoming() {
        let Ok(client) = client else { return };
        std::thread::spawn(move || relay(client));
    }
}

fn relay(mut client: TcpStream) -> Option<()> {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        asked.extend(byte);
    }
    let target: SocketAddr = std::str::from_utf8(&asked).ok()?.split(' ').nth(1)?.parse().ok()?;
    let server = TcpStream::connect(target).ok()?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    let (from, to) = (client.try_clone().ok()?, server.try_clone().ok()?);
    let back = std::thread::spawn(move || copy(server, client));
    copy(from, to);
    back.join().ok()
}

#[test]
fn a_host_that_only_a_proxy_leads_out_of_joins_through_it() {
    let _alone = alone();
    let (mut mesh, internet, addresses) = join("proxy", &[&[], &[]]);
    nft(
        &internet.backbone,
        "table ip filter { chain f { type filter hook forward priority 0; iifname leg1 drop; oifname leg1 drop; } }",
    );
    let proxy = internet.backbone.run(|| TcpListener::bind("198.18.1.1:3128")).unwrap().unwrap();
    let backbone = internet.backbone.try_clone().unwrap();
    // It ends with the test's process.
    std::thread::spawn(move || backbone.run(move || serve_proxy(&proxy)));
    [addresses[0].to_string(), "--proxy".into(), "http://198.18.1.1:3128".into()]
        .iter()
        .for_each(|argument| mesh.add_argument(1, argument));
    [0, 1].into_iter().for_each(|number| mesh.launch(number));
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    assert_eq!(of_peer(&mesh, 1, "h0", "transport"), "tcp");
    let carried = carry(&mesh, from, to, 1);
    assert!(carried.bytes > 1 << 20, "{carried:?}");
}

/// Opens connections from many addresses at once, says nothing or nonsense on them, and keeps what it can.
fn flood(from: &Ns, target: SocketAddr, sources: impl Iterator<Item = Ipv4Addr> + Send) -> usize {
    use socket2::{Domain, Socket, Type};
    from.run(|| {
        let mut open = Vec::new();
        for (number, source) in sources.enumerate() {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
            if socket.connect_timeout(&target.into(), Duration::from_secs(1)).is_ok() {
                let mut stream = TcpStream::from(socket);
                // A length and the beginning of a datagram that never comes, the beginning of a TLS handshake, or nothing.
                let begun: [&[u8]; 3] = [&[0x20, 0, 1, 2, 3], &[22, 3, 1, 2, 0, 1], &[]];
                let _ = stream.write(begun[number % 3]);
                open.push(stream);
            }
            if open.len() > 2000 {
                open.drain(..1000);
            }
        }
        open.len()
    })
    .unwrap()
}

/// Sends what look like first messages of handshakes, of members that know another secret.
fn begin_handshakes(from: &Ns, target: SocketAddr, count: usize) {
    let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
    let mut packet = [0x5a; 152];
    for number in 0..count {
        packet[0] = 2;
        packet[100..108].copy_from_slice(&number.to_le_bytes());
        // A full queue of this end is no trouble of the other.
        let _ = socket.send_to(&packet, target);
    }
}

#[test]
fn connections_and_handshakes_of_strangers_cost_nothing_and_keep_no_member_out() {
    const FLOOD: usize = 100_000;
    let _alone = alone();
    let (mut mesh, internet) = start("flood", &[&[], &[Layer::OnlyHttps], &[]]);
    let containers = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    for last in 1..=200 {
        ip(&mesh.hosts[2].ns, &format!("addr add 198.18.77.{last}/32 dev up"));
    }
    ip(&internet.backbone, "route add 198.18.77.0/24 via 198.18.2.2");
    let used = |mesh: &Mesh| mesh.hosts[0].pid().and_then(resident).expect("it runs") / 1e3;
    let before = used(&mesh);
    let target = SocketAddr::from((Ipv4Addr::new(198, 18, 0, 2), 443));
    let sources = (0..FLOOD).map(|number| Ipv4Addr::new(198, 18, 77, (number % 200 + 1) as u8));
    std::thread::scope(|scope| {
        let stranger = mesh.hosts[2].ns.try_clone().unwrap();
        let flooding = scope.spawn(move || flood(&stranger, target, sources));
        let stranger = mesh.hosts[2].ns.try_clone().unwrap();
        scope.spawn(move || begin_handshakes(&stranger, SocketAddr::new(target.ip(), 6783), FLOOD));
        // A member that comes back meanwhile is let in.
        mesh.hosts[1].kill();
        mesh.launch(1);
        await_transport(&mesh, "tcp");
        println!("{} connections stay", flooding.join().unwrap());
    });
    let grown = used(&mesh) - before;
    println!("{grown} kB more after {FLOOD} connections and as many handshakes");
    assert!(grown < 8.0 * 1024.0, "{grown} kB");
    let drops = &mesh.hosts[0].status().unwrap()["drops"];
    for reason in ["tcp_refused", "forged"] {
        assert!(drops[reason].as_u64().is_some_and(|refused| refused > 0), "{reason}: {drops}");
    }
    let carried = carry(&mesh, containers[0], containers[1], 1);
    assert!(carried.bytes > 1 << 20, "{carried:?}");
    let sources: BTreeSet<Ipv4Addr> = [Ipv4Addr::new(198, 18, 77, 1)].into();
    assert!(flood(&mesh.hosts[2].ns, target, sources.into_iter()) > 0, "strangers are let in again");
}
