//! Paths over an internet of real kernels: NATs, firewalls, routers that take less than others.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use weft_integration::netns::internet::{Layer, run, transfer};
use weft_integration::netns::{Mesh, nft};
use weft_router::lab::await_true;

/// One test at a time: each has the machine's cores to itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

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
        let set_mtu = |mtu: &str| run(&internet.backbone, &["link", "set", "leg1", "mtu", mtu]);
        let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
        let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(6), |arrived| {
            await_true("nothing is carried", || Ok(arrived.load(Ordering::Relaxed) > 1 << 20)).unwrap();
            set_mtu("1400");
        });
        println!("ICMP {tells}: {carried:?}, {} bytes of MTU", mtu().unwrap());
        assert!(carried.longest_silence < Duration::from_secs(3), "ICMP {tells}: {carried:?}");
        assert!(mtu().unwrap() < full, "ICMP {tells}");
        set_mtu("1500");
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
    run(&mesh.hosts[0].ns, &["addr", "add", "198.18.0.77/24", "dev", "up"]);
    mesh.add_argument(1, "198.18.0.77");
    [0, 1].into_iter().for_each(|number| mesh.launch(number));
    let [from, to] = [0, 1].map(|host| mesh.add_container(host, "red"));
    mesh.await_connected();
    let (near, far) = (&mesh.containers[from], &mesh.containers[to]);
    let carried = transfer(&near.ns, &far.ns, IpAddr::V4(far.v4), Duration::from_secs(1), |_| ());
    assert!(carried.bytes > 1 << 20, "{carried:?}");
    assert_eq!(mesh.hosts[1].peer("h0").unwrap()["remote"], "198.18.0.77:6783");
}
