//! Paths over an internet of real kernels: NATs, firewalls, routers that take less than others.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;
use weft_integration::alone;
use weft_integration::netns::internet::{AskedBy, Edge, Layer, mapped_address, transfer};
use weft_integration::netns::{Mesh, ip, nft, run};
use weft_router::attach::prefix::Prefix;
use weft_router::cli::options::TapMode;
use weft_router::daemon::why;
use weft_router::error::Result;
use weft_router::lab::{await_true, ping, wire};

/// A path's MTU falls from 1,500 to 1,400 in mid-transfer, with and without the ICMP that tells of it, and rises again.
#[test]
fn a_path_that_takes_less_in_mid_transfer_is_silent_for_three_seconds_at_most() {
    let _alone = alone();
    for tells in [true, false] {
        let (mut mesh, internet) = Mesh::start_at("mtu", &[&[], &[]]);
        let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
        mesh.await_connected();
        mesh.await_all_reach_all(1000);
        let mtu = || mesh.hosts[0].peer("h1").map(|peer| peer["mtu"].as_u64().unwrap_or(0));
        await_true("the path's size is not found", || Ok(mtu()? > 1400)).unwrap();
        let full = mtu().unwrap();
        if !tells {
            nft(
                &internet.backbone,
                "table ip quiet { chain out { type filter hook output priority 0; ip protocol icmp drop; } }",
            );
        }
        let set_mtu = |mtu: u16| ip(&internet.backbone, &format!("link set leg1 mtu {mtu}"));
        let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
        let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(6), |arrived| {
            await_true("nothing is carried", || Ok(arrived.load(Ordering::Relaxed) > 1 << 20)).unwrap();
            set_mtu(1400);
        });
        println!("ICMP {tells}: {carried:?}, {} bytes of MTU", mtu().unwrap());
        assert!(carried.longest_silence < Duration::from_secs(3), "ICMP {tells}: {carried:?}");
        assert!(mtu().unwrap() < full, "ICMP {tells}");
        let why = mesh.hosts[0].ask(Method::POST, "/why", &json!({ "to": "h1" })).unwrap();
        let reason = format!("takes packets of {} bytes at most, and this host {full}", mtu().unwrap());
        assert!(why::print(&why).contains(&reason), "{why:#}");
        set_mtu(1500);
        let grown = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(1), |_| ());
        assert!(grown.bytes > 1 << 20, "{grown:?}");
        await_true("the size does not grow back", || {
            transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(1), |_| ());
            Ok(mtu()? == full)
        })
        .unwrap();
    }
}

/// A relay's kernel begins to drop all large datagrams that it is to send to one host, in mid-transfer: its links stay up, and another relay takes over.
#[test]
fn a_relay_that_drops_large_datagrams_is_left_in_mid_transfer() {
    let _alone = alone();
    let mut mesh = Mesh::start("faulty", &[TapMode::Fast; 4], &[(0, 1), (1, 3), (0, 2), (2, 3)]);
    let [from, to] = [0, 3].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    mesh.await_all_reach_all(1000);
    let via = || mesh.hosts[0].peer("h3").map(|peer| peer["via"].as_str().unwrap_or_default().to_owned());
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let used = via().unwrap();
    let (relay, wire) = if used == "h1" { (1, "w1") } else { (2, "w3") };
    let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(12), |arrived| {
        await_true("nothing is carried", || Ok(arrived.load(Ordering::Relaxed) > 1 << 20)).unwrap();
        let rule = format!("oifname {wire} meta length > 300 drop");
        nft(
            &mesh.hosts[relay].ns,
            &format!("table inet faulty {{ chain out {{ type filter hook output priority 0; {rule}; }} }}"),
        );
    });
    println!("{carried:?}, by {used} and {}", via().unwrap());
    // TCP asks again after 3.2 s, and after 6.4 s.
    assert!(carried.longest_silence < Duration::from_secs(8), "{carried:?}");
    assert_ne!(via().unwrap(), used);
    let report = mesh.hosts[0].status().unwrap();
    let problem = format!("what goes to h3 by {used} does not arrive");
    assert!(report["problems"].to_string().contains(&problem), "{report:#}");
    let why = mesh.hosts[0].ask(Method::POST, "/why", &json!({ "to": "h3" })).unwrap();
    assert!(why::print(&why).contains(&format!("{used} is avoided")), "{why:#}");
}

/// A transfer fills a wire of 45 Mbit/s, and a faster one comes between the two hosts: the link moves within ten seconds, and not a ping is lost.
#[test]
fn a_link_moves_to_a_faster_wire_while_the_slow_one_works() {
    let _alone = alone();
    let (mut mesh, internet) = Mesh::start_at("faster", &[&[], &[]]);
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    mesh.await_all_reach_all(1000);
    for leg in ["leg0", "leg1"] {
        let shape = format!("qdisc add dev {leg} root tbf rate 45mbit burst 32kb latency 50ms");
        let output = run(&internet.backbone, "tc", &shape);
        assert!(output.status.success(), "{output:?}");
    }
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let address = IpAddr::V4(far.v4);
    let (mut lost, mut took) = (0, None);
    let carried = transfer(&near.ns, &far.ns, address, Duration::from_secs(15), |arrived| {
        await_true("nothing is carried", || Ok(arrived.load(Ordering::Relaxed) > 4 << 20)).unwrap();
        let ends = [1, 2].map(|last| [Prefix(IpAddr::from([10, 9, 0, last]), 24)]);
        wire(&mesh.hosts[0].ns, &mesh.hosts[1].ns, ("fast", "fast"), (&ends[0], &ends[1])).unwrap();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(12) {
            lost += u32::from(ping(&near.ns, address, 56, Duration::from_secs(1)).unwrap().is_none());
            let has_moved =
                |host: usize, peer: &str, remote: &str| mesh.hosts[host].peer(peer).unwrap()["remote"] == remote;
            if took.is_none() && has_moved(0, "h1", "10.9.0.2:6783") && has_moved(1, "h0", "10.9.0.1:6783") {
                took = Some(started.elapsed());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    println!("moved after {took:.1?}, {lost} pings lost, {carried:?}");
    assert!(took.is_some_and(|took| took < Duration::from_secs(10)), "{took:?}");
    assert_eq!(lost, 0);
    assert!(carried.longest_silence < Duration::from_secs(1), "{carried:?}");
    assert!(carried.bytes > 150 << 20, "{carried:?}");
}

/// A host has a metered line, and then a wire as well: all goes by the wire, as long as that is there.
#[test]
fn a_host_with_a_metered_line_uses_it_while_there_is_no_other_way() {
    let _alone = alone();
    let (mut mesh, _internet, addresses) = Mesh::join("metered", &[&[], &[Layer::FilteringNat]]);
    mesh.add_argument(1, &addresses[0].to_string());
    mesh.add_argument(1, "--metered-link=up");
    [0, 1].into_iter().for_each(|number| mesh.launch(number));
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    let is_metered = |expected: bool| {
        let told = |host: usize| -> Result<bool> {
            let status = mesh.hosts[host].status()?;
            Ok(status["routes"]
                .as_array()
                .is_some_and(|routes| routes.iter().all(|route| route["metered"] == expected)))
        };
        Ok(told(0)? && told(1)?)
    };
    await_true("the line is not known to be metered", || is_metered(true)).unwrap();
    let why = mesh.hosts[0].ask(Method::POST, "/why", &json!({ "to": "h1" })).unwrap();
    assert_eq!(why["hops"][0]["metered"], true, "{why:#}");
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let carried = |seconds, meanwhile: &mut dyn FnMut()| {
        transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(seconds), |_| meanwhile())
    };
    let by_line = carried(1, &mut || ());
    assert!(by_line.bytes > 1 << 20, "{by_line:?}");
    let ends = [1, 2].map(|last| [Prefix(IpAddr::from([10, 9, 0, last]), 24)]);
    wire(&mesh.hosts[0].ns, &mesh.hosts[1].ns, ("cable", "cable"), (&ends[0], &ends[1])).unwrap();
    let started = Instant::now();
    await_true("the wire is not used", || is_metered(false)).unwrap();
    println!("by the wire after {:.1?}", started.elapsed());
    let paid = || {
        let shown = run(&mesh.hosts[1].ns, "ip", "-s -j link show dev up");
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        ["rx", "tx"].map(|way| shown[0]["stats64"][way]["bytes"].as_u64().unwrap()).iter().sum::<u64>()
    };
    let before = paid();
    let by_wire = carried(2, &mut || ());
    let spent = paid() - before;
    println!("{} bytes by the wire, {spent} by the line", by_wire.bytes);
    assert!(by_wire.bytes > 1 << 20 && spent < 10_000, "{by_wire:?}, {spent} paid for");
    // The wire is lost in mid-transfer, and comes back.
    let set = |state: &str| ip(&mesh.hosts[0].ns, &format!("link set cable {state}"));
    let over = carried(8, &mut || {
        set("down");
        await_true("the line is not used", || is_metered(true)).unwrap();
    });
    println!("the wire lost: {over:?}");
    assert!(over.longest_silence < Duration::from_secs(4), "{over:?}");
    set("up");
    await_true("the wire is not used again", || is_metered(false)).unwrap();
}

/// Two hosts get other addresses at the same moment: they have a direct link again as soon as a host that stayed has told each of the other.
#[test]
fn hosts_that_move_at_once_have_a_direct_link_again() {
    let _alone = alone();
    let (mut mesh, internet) = Mesh::start_at("roaming", &[&[], &[], &[]]);
    let [_, from, to] = [0, 1, 2].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    mesh.await_all_reach_all(1000);
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let started = Instant::now();
    let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(10), |arrived| {
        await_true("nothing is carried", || Ok(arrived.load(Ordering::Relaxed) > 4 << 20)).unwrap();
        for host in [1, 2] {
            let ns = &mesh.hosts[host].ns;
            ip(ns, &format!("addr del 198.18.{host}.2/24 dev up"));
            ip(ns, &format!("addr add 198.18.{host}.77/24 dev up"));
            ip(ns, &format!("route add default via 198.18.{host}.1"));
        }
        let is_direct = |host: usize, peer: &str, remote: &str| {
            let peer = mesh.hosts[host].peer(peer)?;
            Ok(peer["path"] == "direct" && peer["remote"] == remote)
        };
        await_true("they do not find each other", || {
            Ok(is_direct(1, "h2", "198.18.2.77:6783")? && is_direct(2, "h1", "198.18.1.77:6783")?)
        })
        .unwrap();
        println!("direct again after {:.1?}", started.elapsed());
    });
    println!("{carried:?}");
    assert!(carried.longest_silence < Duration::from_secs(4), "{carried:?}");
    drop(internet);
}

/// Two hosts behind NATs that give each destination another port; the NAT of one maps a port to it when asked. It does so as long as the router runs.
#[test]
fn a_port_that_the_nat_maps_when_asked_leads_to_the_host() {
    let _alone = alone();
    for (by, edge) in [("PCP", &[Layer::MappingNat(AskedBy::Pcp)]), ("UPnP", &[Layer::MappingNat(AskedBy::Upnp)])] {
        let (mut mesh, internet, addresses) = Mesh::join("mapping", &[&[], edge, &[Layer::SymmetricNat]]);
        [1, 2].into_iter().for_each(|host| mesh.add_argument(host, &addresses[0].to_string()));
        let started = Instant::now();
        (0..3).for_each(|host| mesh.launch(host));
        let [_, from, to] = [0, 1, 2].map(|host| mesh.add_container(host, "red"));
        let outside = format!("{}:6783", mapped_address(1));
        await_true("no port is mapped", || {
            Ok(mesh.hosts[1].status()?["advertised"] == json!({ "udp": [outside], "tcp": [outside] }))
        })
        .unwrap();
        let mapped = started.elapsed();
        await_true("the port is not used", || Ok(mesh.hosts[2].peer("h1")?["remote"] == outside)).unwrap();
        println!("{by}: mapped after {mapped:.1?}, direct after {:.1?}", started.elapsed());
        let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
        let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(1), |_| ());
        assert!(carried.bytes > 1 << 20, "{carried:?}");
        let rules = || {
            String::from_utf8_lossy(&run(&internet.routers[0], "nft", "list table inet mapping").stdout).into_owned()
        };
        assert!(rules().contains("dport 6783"), "{}", rules());
        mesh.hosts[1].stop().unwrap();
        assert!(!rules().contains("dport 6783"), "{}", rules());
    }
}

/// A host is asked at its second address by one behind a firewall, which lets in only what comes from there.
#[test]
fn a_host_answers_from_the_address_that_was_asked() {
    let _alone = alone();
    let (mut mesh, _internet, _) = Mesh::join("second", &[&[], &[Layer::Firewall]]);
    ip(&mesh.hosts[0].ns, "addr add 198.18.0.77/24 dev up");
    mesh.add_argument(1, "198.18.0.77");
    [0, 1].into_iter().for_each(|number| mesh.launch(number));
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(1), |_| ());
    assert!(carried.bytes > 1 << 20, "{carried:?}");
    assert_eq!(mesh.hosts[1].peer("h0").unwrap()["remote"], "198.18.0.77:6783");
}

/// Hosts behind NATs and firewalls of each kind, and a public one that all others name: which pairs have a direct link, after how
/// long, and that frames arrive over it. Where a port has to be found it may take ten seconds, else three.
#[test]
fn pairs_that_can_have_a_direct_link_have_one_soon() {
    use Layer::{FilteringNat, Firewall, ForwardingNat, Nat, SymmetricNat};
    let _alone = alone();
    const AT_ONCE: Option<Duration> = Some(Duration::from_secs(3));
    const FOUND: Option<Duration> = Some(Duration::from_secs(10));
    let pairs: [(&str, [Edge; 2], Option<Duration>); 13] = [
        ("a firewall each", [&[Firewall], &[Firewall]], AT_ONCE),
        ("a NAT with a filter each", [&[FilteringNat], &[FilteringNat]], AT_ONCE),
        ("a NAT without a filter each", [&[Nat], &[Nat]], AT_ONCE),
        ("a NAT with a filter, and one without", [&[FilteringNat], &[Nat]], AT_ONCE),
        ("a NAT and a firewall", [&[Nat], &[Firewall]], AT_ONCE),
        ("two NATs in a row, and one", [&[FilteringNat, FilteringNat], &[FilteringNat]], AT_ONCE),
        ("a symmetric NAT, and no NAT", [&[SymmetricNat], &[]], AT_ONCE),
        ("two symmetric NATs, with a port of one advertised", [&[ForwardingNat], &[SymmetricNat]], AT_ONCE),
        ("a symmetric NAT, and one with a filter", [&[SymmetricNat], &[FilteringNat]], FOUND),
        ("a symmetric NAT, and one without a filter", [&[SymmetricNat], &[Nat]], FOUND),
        ("a firewall, and a symmetric NAT", [&[Firewall], &[SymmetricNat]], FOUND),
        ("two NATs in a row, and a symmetric one", [&[FilteringNat, FilteringNat], &[SymmetricNat]], FOUND),
        ("two symmetric NATs", [&[SymmetricNat], &[SymmetricNat]], None),
    ];
    for (name, [a, b], within) in pairs {
        let started = Instant::now();
        let (mut mesh, _internet, addresses) = Mesh::join("pairs", &[&[], a, b]);
        [1, 2].into_iter().for_each(|host| mesh.add_argument(host, &addresses[0].to_string()));
        if *a == [ForwardingNat] {
            mesh.add_argument(1, "--advertise=198.18.1.2:7000");
        }
        (0..3).for_each(|host| mesh.launch(host));
        let [_, from, to] = [0, 1, 2].map(|host| mesh.add_container(host, "red"));
        mesh.await_connected();
        let connected = started.elapsed();
        let is_direct = || -> Result<bool> {
            let ends = [(1, "h2"), (2, "h1")].map(|(host, peer)| mesh.hosts[host].peer(peer));
            Ok(ends.into_iter().collect::<Result<Vec<_>>>()?.iter().all(|peer| peer["path"] == "direct"))
        };
        let mut took = None;
        while took.is_none() && started.elapsed() < connected + within.or(FOUND).unwrap() {
            took = is_direct().unwrap().then(|| started.elapsed() - connected);
            std::thread::sleep(Duration::from_millis(20));
        }
        let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
        let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(1), |_| ());
        println!("{name}: connected after {connected:.1?}, direct after {took:.1?} more, {} MB/s", carried.bytes >> 20);
        let can_be_direct = within.is_some();
        assert_eq!(took.is_some(), can_be_direct, "{name}");
        let why = mesh.hosts[1].ask(Method::POST, "/why", &json!({ "to": "h2" })).unwrap();
        println!("{}", why::print(&why));
        let hops = why["hops"].as_array().map_or(0, Vec::len);
        let expected = if can_be_direct { ("direct", 1) } else { ("relay", 2) };
        assert_eq!((why["path"].as_str().unwrap(), hops), expected);
        let is_told = |key: &str, what: &str| {
            why[key].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains(what))
        };
        if can_be_direct {
            assert!(is_told("reasons", "UDP passes") && why["remedies"] == json!([]), "{name}: {why}");
        } else {
            let cause = "this host and h2 are behind a NAT each";
            assert!(is_told("reasons", cause) && is_told("remedies", "map weft's UDP port"), "{name}: {why}");
        }
        assert!(carried.bytes > 1 << 20, "{name}: {carried:?}");
    }
}
