//! Paths over an internet of real kernels: NATs, firewalls, routers that take less than others.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use weft_integration::alone;
use weft_integration::netns::internet::{Edge, Layer, transfer};
use weft_integration::netns::{Mesh, ip, nft};
use weft_router::error::Result;
use weft_router::lab::await_true;

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
/// long, and that frames arrive over it.
#[test]
fn pairs_that_can_have_a_direct_link_have_one_within_three_seconds() {
    use Layer::{FilteringNat, Firewall, Nat, SymmetricNat};
    let _alone = alone();
    let pairs: [(&str, [Edge; 2], bool); 8] = [
        ("a firewall each", [&[Firewall], &[Firewall]], true),
        ("a NAT with a filter each", [&[FilteringNat], &[FilteringNat]], true),
        ("a NAT without a filter each", [&[Nat], &[Nat]], true),
        ("a NAT with a filter, and one without", [&[FilteringNat], &[Nat]], true),
        ("a NAT and a firewall", [&[Nat], &[Firewall]], true),
        ("two NATs in a row, and one", [&[FilteringNat, FilteringNat], &[FilteringNat]], true),
        ("a symmetric NAT, and no NAT", [&[SymmetricNat], &[]], true),
        ("a symmetric NAT, and one with a filter", [&[SymmetricNat], &[FilteringNat]], false),
    ];
    for (name, [a, b], can_be_direct) in pairs {
        let started = Instant::now();
        let (mut mesh, _internet) = Mesh::start_at("pairs", &[&[], a, b]);
        let [_, from, to] = [0, 1, 2].map(|host| mesh.add_container(host, "red"));
        mesh.await_connected();
        let connected = started.elapsed();
        let is_direct = || -> Result<bool> {
            let ends = [(1, "h2"), (2, "h1")].map(|(host, peer)| mesh.hosts[host].peer(peer));
            Ok(ends.into_iter().collect::<Result<Vec<_>>>()?.iter().all(|peer| peer["path"] == "direct"))
        };
        let mut took = None;
        while took.is_none() && started.elapsed() < connected + Duration::from_secs(3) {
            took = is_direct().unwrap().then(|| started.elapsed() - connected);
            std::thread::sleep(Duration::from_millis(20));
        }
        let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
        let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(1), |_| ());
        println!("{name}: connected after {connected:.1?}, direct after {took:.1?} more, {} MB/s", carried.bytes >> 20);
        assert_eq!(took.is_some(), can_be_direct, "{name}");
        assert!(carried.bytes > 1 << 20, "{name}: {carried:?}");
    }
}
