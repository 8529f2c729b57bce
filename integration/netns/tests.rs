//! The promises, on real kernels.

mod mistakes;

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use mistakes::run_weft;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use weft_integration::netns::{Mesh, group_datagram_arrives, nft, peers, weft, write_secret};
use weft_router::attach::prefix::Prefix;
use weft_router::cli::options::TapMode::{self, Basic, Fast};
use weft_router::daemon::state;
use weft_router::lab::{LabHost, Ns, await_true, ping, tcp_throughput};

/// Runs the whole list of promises on one topology.
fn check_topology(name: &str, taps: &[TapMode], wires: &[(usize, usize)]) {
    let mut mesh = Mesh::start(name, taps, wires);
    for host in 0..taps.len() {
        mesh.add_container(host, "red");
    }
    let blue = [mesh.add_container(0, "blue"), mesh.add_container(taps.len() - 1, "blue")];
    mesh.await_connected();
    mesh.await_all_reach_all(1000);
    mesh.await_all_reach_all(9000);

    let (first, last) = (&mesh.containers[0], &mesh.containers[taps.len() - 1]);
    for ip in last.ips {
        let rate = tcp_throughput(&first.ns, &last.ns, ip, 1, Duration::from_millis(500)).unwrap().rate();
        assert!(rate > 1e6, "{name}: TCP to {ip} crawls: {rate} bit/s");
    }
    udp_arrives(&first.ns, &last.ns, last.v4);
    for group in [Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(10, 32, 0, 255), Ipv4Addr::BROADCAST] {
        for to in &mesh.containers[1..taps.len()] {
            let what = format!("{name}: a datagram to {group} does not reach {}", to.name);
            await_true(&what, || group_datagram_arrives(first, to, group)).unwrap();
        }
        assert!(
            !group_datagram_arrives(first, &mesh.containers[blue[1]], group).unwrap(),
            "{name}: {group} crosses segments"
        );
    }
    for ip in mesh.containers[blue[1]].ips {
        let crossed = ping(&first.ns, ip, 56, Duration::from_millis(300)).unwrap();
        assert_eq!(crossed, None, "{name}: a ping to {ip} crosses segments");
    }
}

fn udp_arrives(from: &Ns, to: &Ns, address: Ipv4Addr) {
    let receiver = to.run(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let target = receiver.local_addr().unwrap();
    let sender = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    for size in [1, 100, 1300, 5000] {
        let sent: Vec<u8> = (0..size).map(|i| i as u8).collect();
        sender.send_to(&sent, target).unwrap();
        let mut got = vec![0; 10_000];
        let len = receiver.recv(&mut got).unwrap();
        assert!(got[..len] == sent, "a datagram of {size} bytes arrives changed");
    }
}

#[test]
fn a_line_of_three_carries_everything() {
    check_topology("line", &[Fast, Fast, Fast], &[(0, 1), (1, 2)]);
}

#[test]
fn a_star_of_four_with_mixed_taps_carries_everything() {
    check_topology("star", &[Fast, Basic, Fast, Basic], &[(0, 1), (0, 2), (0, 3)]);
}

#[test]
fn a_ring_of_five_with_mixed_taps_carries_everything() {
    check_topology("ring", &[Basic, Fast, Basic, Fast, Fast], &[(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]);
}

#[test]
fn a_random_partial_mesh_of_eight_carries_everything() {
    let seed = 8;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut wires: BTreeSet<(usize, usize)> = (1..8).map(|b| (rng.random_range(0..b), b)).collect();
    while wires.len() < 11 {
        let (a, b) = (rng.random_range(0..8), rng.random_range(0..8));
        if a < b {
            wires.insert((a, b));
        }
    }
    let taps = [Fast, Basic, Fast, Fast, Basic, Fast, Basic, Fast];
    check_topology("random", &taps, &wires.into_iter().collect::<Vec<_>>());
}

/// Pings at 20 ms until told to stop; the longest time between two answers.
fn longest_silence(from: &Ns, to: IpAddr, stop: &AtomicBool) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        if ping(from, to, 56, Duration::from_millis(20)).unwrap().is_some() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    longest.max(last.elapsed())
}

/// Ends the pinging also when what happens meanwhile fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `events` while one container pings another; the longest silence meanwhile.
fn silence_during(from: &Ns, to: IpAddr, events: impl FnOnce()) -> Duration {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| longest_silence(from, to, &stop));
        let until_here = StopOnDrop(&stop);
        events();
        drop(until_here);
        pinging.join().unwrap()
    })
}

fn await_path(host: &LabHost, peer: &str, path: &str, via: Value) {
    await_true(&format!("{} does not reach {peer} by {path} {via}", host.name), || {
        let peer = host.peer(peer)?;
        Ok(peer["state"] == "connected" && peer["path"] == path && peer["via"] == via)
    })
    .unwrap();
}

#[test]
fn losing_the_used_relay_or_link_costs_less_than_a_second() {
    // 0 and 3 have two relays, 1 and 2, and a wire of their own that comes and goes.
    let mut mesh = Mesh::start("failover", &[Fast; 4], &[(0, 1), (1, 3), (0, 2), (2, 3), (0, 3)]);
    let (from, to) = (mesh.add_container(0, "red"), mesh.add_container(3, "red"));
    mesh.await_connected();
    mesh.await_all_reach_all(56);
    await_path(&mesh.hosts[0], "h3", "direct", Value::Null);
    let (near, far) = (&mesh.containers[from].ns, mesh.containers[to].ips[0]);

    let lost_link = silence_during(near, far, || {
        mesh.cut(4);
        await_true("no relay is used", || Ok(mesh.hosts[0].peer("h3")?["path"] == "relay")).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    });
    let used = mesh.hosts[0].peer("h3").unwrap()["via"].clone();
    let (wire, other) = if used == "h1" { (1, "h2") } else { (3, "h1") };
    let lost_relay = silence_during(near, far, || {
        mesh.cut(wire);
        await_path(&mesh.hosts[0], "h3", "relay", other.into());
        std::thread::sleep(Duration::from_millis(500));
    });
    let link_back = silence_during(near, far, || {
        mesh.mend(4);
        await_path(&mesh.hosts[0], "h3", "direct", Value::Null);
        std::thread::sleep(Duration::from_millis(500));
    });
    println!("silence: link lost {lost_link:?}, relay lost {lost_relay:?}, link back {link_back:?}");
    assert!(lost_link < Duration::from_secs(1), "{lost_link:?}");
    assert!(lost_relay < Duration::from_secs(1), "{lost_relay:?}");
    assert!(link_back < Duration::from_millis(150), "{link_back:?}");
}

#[test]
fn a_killed_router_is_back_within_two_seconds_and_others_do_not_notice() {
    let mut mesh = Mesh::start("kill", &[Fast; 3], &[(0, 1), (1, 2), (0, 2)]);
    for host in 0..3 {
        mesh.add_container(host, "red");
    }
    mesh.await_connected();
    mesh.await_all_reach_all(56);
    let bystander = {
        let (killed, others) = mesh.hosts.split_at_mut(1);
        let (from, to) = (&mesh.containers[1].ns, mesh.containers[2].ips[0]);
        assert_eq!(others.len(), 2);
        silence_during(from, to, || {
            killed[0].kill();
            std::thread::sleep(Duration::from_millis(1500));
        })
    };
    // Their own link is up all the time; how long single pings take is the machine's.
    assert!(bystander < Duration::from_secs(1), "a pair that had nothing to do with it noticed: {bystander:?}");
    for (host, other) in [(1, "h2"), (2, "h1")] {
        let log = std::fs::read_to_string(mesh.hosts[host].log()).unwrap();
        let id =
            mesh.hosts[if host == 1 { 2 } else { 1 }].status().unwrap()["peer_id"].as_str().unwrap()[..8].to_owned();
        assert!(!log.contains(&format!("link down peer={id}")), "h{host} lost its link to {other}");
    }
    let started = Instant::now();
    mesh.launch(0);
    let (from, to) = (&mesh.containers[0].ns, mesh.containers[1].ips[0]);
    await_true("the container does not talk again", || Ok(ping(from, to, 56, Duration::from_millis(50))?.is_some()))
        .unwrap();
    let back = started.elapsed();
    println!("talking again {back:?} after the start; others' longest silence {bystander:?}");
    assert!(back < Duration::from_secs(2), "{back:?}");
    // weft stop leaves the containers' interfaces, too.
    mesh.hosts[0].stop().unwrap();
    mesh.launch(0);
    mesh.await_connected();
    mesh.await_all_reach_all(56);
}

#[test]
fn strangers_hear_nothing_and_old_secrets_end() {
    let mesh = Mesh::start("secrets", &[Fast; 2], &[(0, 1)]);
    mesh.await_connected();
    // A host with another secret, on the same wire as host 1.
    let other = mesh.dir().join("other-secret");
    write_secret(&other, &[state::new_secret().unwrap()]);
    let mut stranger = LabHost::new("stranger", mesh.dir()).unwrap();
    let end = |last| [Prefix(IpAddr::from([10, 99, 77, last]), 24)];
    weft_router::lab::wire(&mesh.hosts[1].ns, &stranger.ns, ("w77", "w77"), (&end(1), &end(2))).unwrap();
    let heard = stranger.ns.run(|| raw_socket("w77")).unwrap();
    let arguments = ["--secret-file", &other.to_string_lossy(), "10.99.77.1"].map(String::from);
    stranger.start(&weft(), Fast, &arguments).unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    let (mut asked, mut buffer) = (0, vec![0; 2000]);
    while Instant::now() < end {
        let Ok(len) = (&heard).read(&mut buffer) else { continue };
        // IPv4, UDP, port 6783 on either side.
        if len > 42 && buffer[12..14] == [8, 0] && buffer[23] == 17 {
            let from_member = buffer[26..30] == [10, 99, 77, 1];
            assert!(!from_member, "a member answered a stranger");
            asked += 1;
        }
    }
    assert!(asked >= 2, "the stranger did not even try");
    assert_eq!(peers(&stranger.status().unwrap()).count(), 0);

    // A new secret beside the old one on host 0 alone changes nothing; without the old one they part.
    let (old, new) = (std::fs::read_to_string(mesh.secret_file()).unwrap(), state::new_secret().unwrap());
    write_secret(mesh.secret_file(), &[new.clone(), old]);
    mesh.hosts[0].ask(Method::POST, "/secret/reload", &Value::Null).unwrap();
    mesh.await_connected();
    write_secret(mesh.secret_file(), &[new]);
    mesh.hosts[0].ask(Method::POST, "/secret/reload", &Value::Null).unwrap();
    let started = Instant::now();
    await_true("the host with the old secret is still in", || Ok(mesh.hosts[0].peer("h1")?["state"] != "connected"))
        .unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    mesh.hosts[1].ask(Method::POST, "/secret/reload", &Value::Null).unwrap();
    mesh.await_connected();

    // The stranger's log says where to look.
    await_true("the silence is not noticed", || Ok(stranger.status()?["targets"][0]["state"] == "silent")).unwrap();
    assert!(std::fs::read_to_string(stranger.log()).unwrap().contains("10.99.77.1 does not answer"));
    assert_eq!(mesh.hosts[0].status().unwrap()["targets"][0]["state"], "answered");
}

#[test]
fn a_relay_sees_nothing_of_what_it_carries() {
    let mut mesh = Mesh::start("marker", &[Fast; 3], &[(0, 1), (1, 2)]);
    let (from, to) = (mesh.add_container(0, "red"), mesh.add_container(2, "red"));
    mesh.await_connected();
    mesh.await_all_reach_all(56);
    // Never in memory in one piece here, or the scan could find it in a pipe or page of this process.
    let marker: Vec<u8> = b"ESREVER-NI-REKRAM-TERCES-YREV-A".iter().rev().copied().collect();
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let receiver = far.ns.run(|| UdpSocket::bind((far.v4, 7000)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let sender = near.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let wires = ["w0", "w1"].map(|wire| mesh.hosts[1].ns.run(move || raw_socket(wire)).unwrap());
    let pid = mesh.hosts[1].pid().unwrap();
    let (mut arrived, mut seen, mut scanned) = (0, 0, 0);
    for round in 0..50 {
        for _ in 0..20 {
            sender.send_to(&marker, (far.v4, 7000)).unwrap();
        }
        let mut buffer = [0; 2000];
        while receiver.recv(&mut buffer).is_ok_and(|len| buffer[..len] == marker) {
            arrived += 1;
            if arrived % 20 == 0 {
                break;
            }
        }
        for wire in &wires {
            let mut frame = vec![0; 70_000];
            while let Ok(len) = (&mut &*wire).read(&mut frame) {
                seen += 1;
                assert!(!contains(&frame[..len], &marker), "the marker is in clear on a wire of the relay");
                if len == 0 || seen % 200 == 0 {
                    break;
                }
            }
        }
        if round % 10 == 9 {
            scanned += scan_memory(pid, &marker);
        }
    }
    assert!(arrived >= 900 && seen >= 1000 && scanned > 1 << 20, "arrived {arrived}, seen {seen}, scanned {scanned}");
}

/// Looks for the marker in all memory of a process; the bytes looked at.
fn scan_memory(pid: u32, marker: &[u8]) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut scanned = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|flags| flags.starts_with('r'))) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut region = vec![0; (end - start) as usize];
        if memory.seek(SeekFrom::Start(start)).is_ok() && memory.read_exact(&mut region).is_ok() {
            assert!(!contains(&region, marker), "the marker is in the relay's memory: {line}");
            scanned += region.len();
        }
    }
    scanned
}

fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker)
}

/// A socket that sees every frame on an interface.
fn raw_socket(interface: &str) -> Socket {
    const ALL: i32 = 0x0003;
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from((ALL as u16).to_be())))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket.bind_device(Some(interface.as_bytes())).unwrap();
    socket
}

#[test]
fn a_host_behind_a_masquerade_is_a_full_member() {
    // 0 is inside, 1 is the masquerading gateway (a router, no weft peer of its own needed), 2 outside.
    let mut mesh = Mesh::start("nat", &[Fast; 3], &[(1, 2)]);
    let end = |last| [Prefix(IpAddr::from([10, 99, 50, last]), 24)];
    weft_router::lab::wire(&mesh.hosts[0].ns, &mesh.hosts[1].ns, ("in", "in"), (&end(2), &end(1))).unwrap();
    mesh.hosts[0].ns.net(async |net| net.add_default_route([10, 99, 50, 1].into()).await).unwrap();
    mesh.hosts[1].ns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap()).unwrap();
    nft(
        &mesh.hosts[1].ns,
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname w0 masquerade; } }",
    );
    let outside = Value::from(vec!["10.99.0.2"]);
    mesh.hosts[0].ask(Method::POST, "/connect", &serde_json::json!({ "names": outside })).unwrap();
    let (from, to) = (mesh.add_container(0, "red"), mesh.add_container(2, "red"));
    await_path(&mesh.hosts[0], "h2", "direct", Value::Null);
    mesh.await_all_reach_all(1000);
    // The NAT forgets and maps anew, to another port: the host inside is found at its new address.
    let gateway = &mesh.hosts[1].ns;
    let remember_for = |seconds: &str| {
        gateway
            .run(|| {
                for name in ["udp_timeout", "udp_timeout_stream"] {
                    std::fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"), seconds).unwrap();
                }
            })
            .unwrap();
    };
    nft(gateway, "table inet pause { chain f { type filter hook forward priority 0; drop; } }");
    // Even packets that go no further keep a mapping alive, and hosts keep trying.
    remember_for("0");
    std::thread::sleep(Duration::from_secs(3));
    nft(gateway, "delete table ip nat");
    nft(
        gateway,
        "table ip nat { chain post { type nat hook postrouting priority 100; \
         meta l4proto udp oifname w0 masquerade to :40000-40100; } }",
    );
    remember_for("30");
    nft(gateway, "delete table inet pause");
    let (near, far) = (&mesh.containers[from].ns, mesh.containers[to].ips[0]);
    await_true("the link did not survive a new mapping", || {
        let remote = mesh.hosts[2].peer("h0")?["remote"].clone();
        let is_new = remote.as_str().is_some_and(|remote| remote.starts_with("10.99.0.1:400"));
        Ok(is_new && ping(near, far, 56, Duration::from_millis(200))?.is_some())
    })
    .unwrap();
}

#[test]
fn interfaces_taken_away_by_hand_come_back_and_leftovers_go() {
    let mut mesh = Mesh::start("repair", &[Fast; 2], &[(0, 1)]);
    let (near, far) = (mesh.add_container(0, "red"), mesh.add_container(1, "red"));
    mesh.await_connected();
    mesh.await_all_reach_all(56);
    let links = |mesh: &Mesh| mesh.hosts[0].ns.net(async |net| net.links().await).unwrap();
    for prefix in ["wt", "weft"] {
        let taken = links(&mesh).into_iter().map(|link| link.name).find(|name| name.starts_with(prefix)).unwrap();
        mesh.hosts[0].ns.net(async move |net| net.delete(&taken).await).unwrap();
        let (from, to) = (&mesh.containers[near].ns, mesh.containers[far].ips[0]);
        await_true(&format!("the segment does not recover from losing its {prefix} interface"), || {
            Ok(ping(from, to, 56, Duration::from_millis(200))?.is_some())
        })
        .unwrap();
    }
    // A container that ends while no router runs leaves a bridge behind, until the next one starts.
    mesh.hosts[0].stop().unwrap();
    let veth = links(&mesh).into_iter().map(|link| link.name).find(|name| name.starts_with("wv")).unwrap();
    mesh.hosts[0].ns.net(async move |net| net.delete(&veth).await).unwrap();
    assert!(links(&mesh).iter().any(|link| link.name.starts_with("weft")));
    mesh.launch(0);
    mesh.await_connected();
    let left: Vec<String> =
        links(&mesh).into_iter().map(|link| link.name).filter(|name| name.starts_with('w')).collect();
    assert!(!left.iter().any(|name| name.starts_with("weft") || name.starts_with("wt")), "left over: {left:?}");
    assert!(mesh.hosts[0].status().unwrap()["endpoints"].as_array().unwrap().iter().all(|e| e["host"] != "h0"));
}

#[test]
fn two_hosts_with_one_key_both_say_so_and_neither_flaps() {
    let mut mesh = Mesh::start("clones", &[Fast; 3], &[(0, 1), (0, 2)]);
    mesh.await_connected();
    // Host 2 becomes a copy of host 1.
    mesh.hosts[2].stop().unwrap();
    let dirs = [1, 2].map(|n: usize| mesh.hosts[n].log().parent().unwrap().to_owned());
    for file in ["identity", "store.redb"] {
        std::fs::copy(dirs[0].join(file), dirs[1].join(file)).unwrap();
    }
    mesh.launch(2);
    for number in [1, 2] {
        await_true(&format!("h{number} does not say that its key is used twice"), || {
            Ok(mesh.hosts[number].status()?["cloned"] == true)
        })
        .unwrap();
    }
    let links = |mesh: &Mesh| {
        let log = std::fs::read_to_string(mesh.hosts[0].log()).unwrap();
        log.lines().filter(|line| line.contains("link up") || line.contains("link moved")).count()
    };
    let before = links(&mesh);
    std::thread::sleep(Duration::from_secs(3));
    assert!(links(&mesh) <= before + 1, "the link to the doubled host flaps");
    for number in [1, 2] {
        let log = std::fs::read_to_string(mesh.hosts[number].log()).unwrap();
        assert_eq!(log.lines().filter(|line| line.contains("lives with this host's key")).count(), 1);
    }
}

#[test]
fn the_host_itself_can_be_in_a_segment() {
    let mut mesh = Mesh::start("expose", &[Fast; 2], &[(0, 1)]);
    let container = mesh.add_container(1, "red");
    mesh.await_connected();
    let socket = mesh.hosts[0].socket.to_string_lossy().into_owned();
    let expose = ["--socket", &socket, "expose", "--segment", "red", "--ip", "10.32.0.200/24"];
    for _ in 0..2 {
        let output = run_weft(&mesh.hosts[0].ns, &expose);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "10.32.0.200/24\n", "{output:?}");
    }
    let to = SocketAddr::from((mesh.containers[container].v4, 0)).ip();
    await_true("the host does not reach the container", || {
        Ok(ping(&mesh.hosts[0].ns, to, 56, Duration::from_millis(500))?.is_some())
    })
    .unwrap();
    let hide = run_weft(&mesh.hosts[0].ns, &["--socket", &socket, "hide", "--segment", "red"]);
    assert!(hide.status.success(), "{hide:?}");
    assert_eq!(ping(&mesh.hosts[0].ns, to, 56, Duration::from_millis(300)).unwrap(), None);
}

#[test]
fn an_address_that_comes_back_is_reached_at_once() {
    let mut mesh = Mesh::start("back", &[Fast; 2], &[(0, 1)]);
    let neighbours = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    let (v4, v6) = ("10.32.0.99/24", "fd77::99/64");
    // An IPv4 address rests before another host has it.
    for (life, (host, ips)) in [(0, &[v4, v6][..]), (0, &[v4, v6]), (1, &[v6]), (0, &[v6])].into_iter().enumerate() {
        let (host, container) = (&mesh.hosts[host], Ns::new().unwrap());
        let attached = || host.attach(&container, "red", ips, "back").is_ok();
        await_true("the other host does not hear that the address is free", || Ok(attached())).unwrap();
        for (from, ip) in neighbours.into_iter().flat_map(|from| ips.iter().map(move |ip| (from, ip))) {
            let (from, ip) = (&mesh.containers[from], ip.split('/').next().unwrap().parse().unwrap());
            // The records take a moment; what a neighbour believes of the address would take half a minute.
            let is_reached = (0..6).any(|_| ping(&from.ns, ip, 56, Duration::from_millis(500)).unwrap().is_some());
            assert!(is_reached, "{} does not reach {ip} in its life {life} on {}", from.name, host.name);
        }
        let request = json!({ "target": container.path(), "segment": "red" });
        host.ask(Method::POST, "/detach", &request).unwrap();
    }
}
