//! What real hosts do to a router: routes, interfaces and disks of their own.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hyper::Method;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use weft_integration::alone;
use weft_integration::netns::{Mesh, ip, run, weft};
use weft_router::cli::options::TapMode::{Basic, Fast, Packet};
use weft_router::lab::{Ns, await_true, ping};

fn cli(mesh: &Mesh, host: usize, arguments: &[&str]) -> Output {
    let socket = mesh.hosts[host].socket.to_string_lossy().into_owned();
    let arguments = [&["--socket", &socket], arguments].concat();
    mesh.hosts[host].ns.run(|| Command::new(weft()).args(&arguments).output()).unwrap().unwrap()
}

fn reaches(from: &Ns, to: IpAddr, payload: usize) -> bool {
    (0..10).any(|_| ping(from, to, payload, Duration::from_millis(500)).unwrap().is_some())
}

fn mtu(container: &Ns) -> usize {
    let links = container.net(async |net| net.links().await).unwrap();
    links.iter().find(|link| link.name == "weft0").map_or(0, |link| link.mtu)
}

/// With IPv6, a bridge port would ask all hosts of the segment for routers.
#[test]
fn ports_of_a_segment_have_no_address() {
    let _alone = alone();
    let mut mesh = Mesh::start("ports", &[Fast, Basic, Packet], &[(0, 1), (0, 2)]);
    for host in 0..3 {
        mesh.add_container(host, "red");
    }
    mesh.await_all_reach_all(56);
    for host in &mesh.hosts {
        let addresses = ip(&host.ns, "-6 -o addr show");
        let is_port = |name: &str| ["wt", "wp", "wv", "weft"].iter().any(|prefix| name.starts_with(prefix));
        let of_weft = |line: &&str| line.split_whitespace().nth(1).is_some_and(is_port);
        assert_eq!(addresses.lines().filter(of_weft).collect::<Vec<_>>(), [""; 0]);
        let taps = ip(&host.ns, "-o link show");
        assert!(taps.contains(" wt"), "{taps}");
    }
}

#[test]
fn routes_and_networks_of_the_host_stop_nothing() {
    let _alone = alone();
    let mut mesh = Mesh::start("routes", &[Fast; 2], &[(0, 1)]);
    let containers = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    mesh.await_all_reach_all(56);
    // A VPN takes all, an office its ten million addresses, a container network what it likes.
    let ns = mesh.hosts[0].ns.try_clone().unwrap();
    ip(&ns, "link add vpn0 type bridge");
    ip(&ns, "addr add 10.8.0.2/24 dev vpn0");
    ip(&ns, "link set vpn0 up");
    for prefix in ["0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8"] {
        ip(&ns, &format!("route add {prefix} via 10.8.0.1"));
    }
    ip(&ns, "link add br-later type bridge");
    ip(&ns, "addr add 10.40.0.1/24 dev br-later");
    ip(&ns, "link set br-later up");
    mesh.hosts[0].kill();
    mesh.launch(0);
    mesh.await_connected();
    mesh.await_all_reach_all(56);
    let problems = mesh.hosts[0].status().unwrap()["problems"].to_string();
    assert!(problems.contains("10.40.0.0/24 of interface br-later"), "{problems}");
    // Routes to what is here win over less specific ones.
    assert!(reaches(&ns, mesh.containers[containers[0]].v4.into(), 56), "the host does not reach its container");
    let spare = Ns::new().unwrap();
    let attached = cli(&mesh, 0, &["attach", &spare.path(), "--segment", "blue"]);
    assert!(attached.status.success(), "{attached:?}");
    // The host comes into a segment, and neither it nor an engine finds that a network beside it is taken.
    let exposed = cli(&mesh, 0, &["expose", "--segment", "green"]);
    assert!(exposed.status.success(), "{exposed:?}");
    let main = ip(&ns, "route show table main");
    assert!(!main.lines().any(|line| line.starts_with("10.32.") || line.contains("dev weft")), "{main}");
    // A network of the host's own is still refused where it is chosen anew.
    let refused = cli(&mesh, 0, &["attach", &Ns::new().unwrap().path(), "--ip", "10.8.0.9/24"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("overlaps the network 10.8.0.0/24"), "{refused:?}");
}

#[test]
fn an_exposed_host_reaches_containers_beside_it() {
    let _alone = alone();
    let mut mesh = Mesh::start("beside", &[Fast; 2], &[(0, 1)]);
    mesh.await_connected();
    let containers = [0, 1].map(|_| Ns::new().unwrap());
    for (host, container) in containers.iter().enumerate() {
        let ip = format!("10.2.2.{}/24", 34 + host);
        mesh.hosts[host].attach(container, "red", &[&ip], "there").unwrap();
    }
    let exposed = cli(&mesh, 0, &["expose", "--segment", "red", "--ip", "10.2.2.101/24", "--name", "gate"]);
    assert!(exposed.status.success(), "{exposed:?}");
    for address in ["10.2.2.34", "10.2.2.35"] {
        assert!(reaches(&mesh.hosts[0].ns, address.parse().unwrap(), 56), "{address} is not reached");
    }
    let found = || String::from_utf8_lossy(&cli(&mesh, 1, &["dns", "lookup", "gate"]).stdout).trim().to_owned();
    await_true("the host has no name", || Ok(found() == "10.2.2.101")).unwrap();
    // It is kept, and comes back if its interface is deleted.
    mesh.hosts[0].kill();
    mesh.launch(0);
    assert!(reaches(&mesh.hosts[0].ns, "10.2.2.35".parse().unwrap(), 56), "not after a restart");
    let names = mesh.hosts[0].ns.net(async |net| net.names().await).unwrap();
    let own = names.iter().find(|name| name.starts_with("wefth")).unwrap().clone();
    ip(&mesh.hosts[0].ns, &format!("link del {own}"));
    await_true("the host's own interface does not come back", || {
        Ok(mesh.hosts[0].ns.net(async |net| net.names().await)?.contains(&own))
    })
    .unwrap();
    assert!(reaches(&mesh.hosts[0].ns, "10.2.2.35".parse().unwrap(), 56), "not after it came back");
}

#[test]
fn what_no_host_has_never_leaves_by_another_route() {
    let _alone = alone();
    let mut mesh = Mesh::start("nowhere", &[Fast; 2], &[(0, 1)]);
    mesh.add_container(0, "red");
    mesh.await_connected();
    let ns = mesh.hosts[0].ns.try_clone().unwrap();
    ip(&ns, "route add default via 10.99.0.2");
    let leaves = || run(&ns, "ip", "route get 10.35.1.2").status.success();
    assert!(!leaves(), "while the router runs");
    // Not for packets that are passed on either.
    let passed_on = || run(&ns, "ip", "route get 10.35.1.2 from 10.99.0.2 iif w0").status.success();
    assert!(!passed_on());
    mesh.hosts[0].stop().unwrap();
    assert!(!leaves() && !passed_on(), "after the router stopped");
    mesh.launch(0);
    mesh.hosts[0].kill();
    assert!(!leaves() && !passed_on(), "after the router was killed");
    assert!(run(&ns, "ip", "route get 192.0.2.1").status.success(), "all else leaves as before");
}

#[test]
fn a_segment_has_one_mtu_and_packets_of_it_arrive() {
    let _alone = alone();
    let mut mesh = Mesh::start_with("mtu", &[Fast; 2], &[(0, 1)], &[&["--mtu", "1450"], &["--mtu", "1280"]]);
    let first = mesh.add_container(0, "red");
    assert_eq!(mtu(&mesh.containers[first].ns), 1450);
    let second = mesh.add_container(1, "red");
    mesh.await_connected();
    await_true("the first container's MTU is not the segment's", || Ok(mtu(&mesh.containers[first].ns) == 1280))
        .unwrap();
    assert_eq!(mtu(&mesh.containers[second].ns), 1280);
    let (a, b) = (&mesh.containers[first], &mesh.containers[second]);
    for payload in [1200, 1400, 8000] {
        for (from, to) in [(a, b), (b, a)] {
            for ip in to.ips {
                assert!(reaches(&from.ns, ip, payload), "{payload} bytes do not reach {ip}");
            }
        }
    }
    // A router that starts again knows its containers by name, process or path.
    mesh.hosts[0].kill();
    mesh.launch(0);
    mesh.await_connected();
    assert!(reaches(&mesh.containers[first].ns, mesh.containers[second].v4.into(), 1400));
    // Without the other host it grows back.
    let request = json!({ "target": mesh.containers[second].ns.path(), "segment": "red" });
    mesh.hosts[1].ask(Method::POST, "/detach", &request).unwrap();
    await_true("the MTU does not grow back", || Ok(mtu(&mesh.containers[first].ns) == 1450)).unwrap();
}

/// A small file system, for as long as it is held.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> SmallDisk {
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some("size=12m,mode=700")).expect("a file system");
        SmallDisk(at.to_owned())
    }

    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join("fill")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_disk_that_was_full_is_used_again_and_a_router_starts_on_a_full_one() {
    let _alone = alone();
    let mut mesh = Mesh::start("disk", &[Fast; 2], &[(0, 1)]);
    mesh.await_connected();
    mesh.hosts[0].stop().unwrap();
    let disk = SmallDisk::mount(mesh.hosts[0].log().parent().unwrap());
    mesh.launch(0);
    let containers = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    mesh.await_all_reach_all(56);
    disk.fill();
    let attach = |mesh: &Mesh, number: usize| {
        let (container, ip) = (Ns::new().unwrap(), format!("10.32.7.{number}/24"));
        mesh.hosts[0].attach(&container, "blue", &[&ip], &"late".repeat(12)).map(|_| container)
    };
    // The store has some room of its own.
    let tried: Vec<_> = (1..250).map(|number| attach(&mesh, number)).take_while(Result::is_ok).collect();
    let kept = tried.len();
    let refused = attach(&mesh, 251).err().expect("it cannot be kept").to_string();
    assert!(refused.contains("disk"), "{refused}");
    let problems = mesh.hosts[0].status().unwrap()["problems"].to_string();
    assert!(problems.contains("disk full"), "{problems} after {refused}");
    disk.make_room();
    let mut late = None;
    await_true("the disk is not used again", || {
        late = late.take().or_else(|| attach(&mesh, 252).ok());
        Ok(late.is_some())
    })
    .unwrap();
    await_true("the problem is not over", || Ok(mesh.hosts[0].status()?["problems"] == json!([]))).unwrap();
    disk.fill();
    // The store has some room of its own, for so many starts.
    for _ in 0..4 {
        mesh.hosts[0].kill();
        mesh.launch(0);
    }
    mesh.await_connected();
    let (a, b) = (&mesh.containers[containers[0]], &mesh.containers[containers[1]]);
    assert!(reaches(&a.ns, b.v4.into(), 56) && reaches(&b.ns, a.v4.into(), 56), "containers are not carried");
    let endpoints = mesh.hosts[0].status().unwrap()["endpoints"].as_array().map(Vec::len);
    assert_eq!(endpoints, Some(3 + kept));
    drop(mesh);
}

#[test]
fn containers_that_run_are_taken_up_by_a_router_that_lost_its_store() {
    let _alone = alone();
    // Alone, and where another host knows what this one had handed out.
    for count in [1, 2] {
        let links: &[(usize, usize)] = if count == 1 { &[] } else { &[(0, 1)] };
        let mut mesh = Mesh::start("lost", &vec![Fast; count], links);
        if count == 2 {
            mesh.await_connected();
        }
        let containers = [Ns::new().unwrap(), Ns::new().unwrap()];
        let attach = |mesh: &Mesh, host: usize, ns: &Ns, name: &str| -> IpAddr {
            let printed = mesh.hosts[host].attach(ns, "red", &[], name).unwrap();
            let text = printed[0].as_str().unwrap();
            text.split('/').next().unwrap().parse().unwrap()
        };
        let a = attach(&mesh, 0, &containers[0], "a");
        let b = attach(&mesh, count - 1, &containers[1], "b");
        mesh.hosts[0].kill();
        std::fs::remove_file(mesh.hosts[0].log().with_file_name("store.redb")).unwrap();
        mesh.launch(0);
        assert!(reaches(&containers[0], b, 56) && reaches(&containers[1], a, 56), "{count}: they are cut off");
        let lookup = String::from_utf8_lossy(&cli(&mesh, count - 1, &["dns", "lookup", "a"]).stdout).into_owned();
        assert_eq!(lookup.trim(), a.to_string());
        // Its address is its own; and what is attached now has another, in any segment.
        assert_eq!(attach(&mesh, 0, &containers[0], "a"), a);
        let late = Ns::new().unwrap();
        let third = mesh.hosts[0].attach(&late, "blue", &[], "late");
        if count == 1 {
            let third = third.unwrap();
            assert_ne!(third[0].as_str().unwrap().split('/').next().unwrap(), a.to_string());
            assert_eq!(mesh.hosts[0].status().unwrap()["problems"], json!([]));
            assert_eq!(mesh.hosts[0].status().unwrap()["ipam"]["used"], json!(3));
        }
        // Nothing of that is lost by another restart.
        mesh.hosts[0].stop().unwrap();
        mesh.launch(0);
        assert!(reaches(&containers[0], b, 56) && reaches(&containers[1], a, 56), "{count}: they are cut off later");
        assert!(cli(&mesh, 0, &["detach", &containers[0].path(), "--segment", "red"]).status.success());
        let is_gone = || Ok(!mesh.hosts[0].status()?["endpoints"].to_string().contains("\"a\""));
        await_true("it stays", is_gone).unwrap();
    }
}

#[test]
fn a_forgotten_host_stays_forgotten_until_it_is_named() {
    let _alone = alone();
    let mut mesh = Mesh::start("forget", &[Fast; 2], &[(0, 1)]);
    mesh.await_connected();
    let state = |mesh: &Mesh| mesh.hosts[0].peer("h1").unwrap()["state"].as_str().unwrap_or_default().to_owned();
    assert!(cli(&mesh, 0, &["forget", "10.99.0.2"]).status.success());
    await_true("the link stays", || Ok(state(&mesh) != "connected")).unwrap();
    // Its launch names the peer again, and the other host goes on trying.
    mesh.hosts[0].stop().unwrap();
    mesh.launch(0);
    let targets = mesh.hosts[0].status().unwrap()["targets"].clone();
    assert_eq!(targets, json!([]));
    std::thread::sleep(Duration::from_secs(3));
    assert_ne!(state(&mesh), "connected");
    assert!(cli(&mesh, 0, &["connect", "10.99.0.2"]).status.success());
    mesh.await_connected();
    // One list in place of another.
    assert!(cli(&mesh, 0, &["connect", "--replace", "10.99.0.2", "10.99.0.77"]).status.success());
    assert!(cli(&mesh, 0, &["connect", "--replace", "10.99.0.2"]).status.success());
    let targets = mesh.hosts[0].status().unwrap()["targets"].clone();
    assert_eq!(targets.as_array().map(Vec::len), Some(1), "{targets}");
    assert_eq!((&targets[0]["name"], state(&mesh).as_str()), (&json!("10.99.0.2"), "connected"));
}

#[test]
fn names_are_added_one_right_after_the_other() {
    let _alone = alone();
    let mesh = Mesh::start("names", &[Fast; 1], &[]);
    let add = |ip: &str| assert!(cli(&mesh, 0, &["dns", "add", "printer", ip]).status.success());
    add("192.0.2.1");
    add("192.0.2.2");
    let found = || String::from_utf8_lossy(&cli(&mesh, 0, &["dns", "lookup", "printer"]).stdout).into_owned();
    await_true("an address is lost", || Ok(found().lines().count() == 2)).unwrap();
    add("192.0.2.3");
    assert!(cli(&mesh, 0, &["dns", "remove", "printer", "192.0.2.3"]).status.success());
    await_true("an address stays", || Ok(found().lines().count() == 2)).unwrap();
    let text = String::from_utf8_lossy(&cli(&mesh, 0, &["status", "dns"]).stdout).into_owned();
    assert!(text.contains("printer") && text.contains("192.0.2.1,192.0.2.2"), "{text}");
    // Stopping twice is no mistake.
    for _ in 0..2 {
        assert!(cli(&mesh, 0, &["stop"]).status.success());
    }
}

#[test]
fn addresses_of_a_founder_that_is_gone_are_taken_back_and_absent_peers_are_waited_for() {
    let _alone = alone();
    let wires = [(0, 1), (0, 2), (1, 2)];
    let mut mesh = Mesh::start_with("founder", &[Fast; 3], &wires, &[&["--found"], &[], &[]]);
    mesh.await_connected();
    let attach = |mesh: &Mesh, host: usize| {
        let container = Ns::new().unwrap();
        mesh.hosts[host].attach(&container, "red", &[], "web").map(|_| container)
    };
    // Only the first host has part in the ring; the others know of it.
    let founder = attach(&mesh, 0).unwrap();
    for host in [1, 2] {
        await_true("the ring is not heard of", || {
            Ok(mesh.hosts[host].status()?["ipam"]["rings"][0]["range"].is_string())
        })
        .unwrap();
    }
    mesh.hosts[0].kill();
    drop(founder);
    await_true("the founder is not missed", || Ok(mesh.hosts[1].peer("h0")?["state"] != "connected")).unwrap();
    let waiting = attach(&mesh, 1).err().expect("the ring is the founder's").to_string();
    assert!(waiting.contains("weft reclaim"), "{waiting}");
    assert!(cli(&mesh, 1, &["reclaim", "h0"]).status.success());
    attach(&mesh, 1).expect("the founder is not waited for any more");
    attach(&mesh, 2).expect("its word goes for others, too");

    // A host whose peers are not there yet founds nothing by itself, however early it is asked.
    for host in [1, 2] {
        mesh.hosts[host].kill();
    }
    let state = mesh.hosts[1].log().parent().unwrap().to_owned();
    std::fs::remove_file(state.join("store.redb")).unwrap();
    std::fs::remove_dir_all(state.join("weft.attached")).unwrap();
    mesh.launch(1);
    let waiting = attach(&mesh, 1).err().expect("two peers are named").to_string();
    assert!(waiting.contains("waiting for 10.99.0.1, 10.99.2.2"), "{waiting}");
}
