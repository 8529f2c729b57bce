//! What hosts say while nothing happens, and hosts that say or relay less than others.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weft_crypto::Ciphers;
use weft_integration::sim::host::Host;
use weft_integration::sim::weather::IP_AND_UDP;
use weft_integration::sim::world::{HostNumber, World};
use weft_integration::sim::{arrives, endpoint, got, send, star};
use weft_mesh::node::Command;
use weft_mesh::path::{MeteredPaths, Path};

/// What a mesh says at rest has a budget, in IP bytes a second and host.
#[test]
fn hosts_at_rest_keep_to_their_budget() {
    for (hosts, budget) in [(3, 100), (10, 150), (30, 350)] {
        let mut world = star(5, hosts);
        (0..hosts).for_each(|host| world.attach(host, [host as u8 + 1; 16], endpoint(host)));
        world.run_for(Duration::from_secs(90));
        world.record_datagrams(true);
        world.run_for(Duration::from_secs(60));
        let said: usize = world.record_datagrams(false).iter().map(|(.., datagram)| datagram.len() + IP_AND_UDP).sum();
        let each = said / 60 / hosts;
        assert!(each <= budget, "{each} B/s each of {hosts}");
    }
}

/// Frames go the long way soon, though the hosts looked at a link at rest seldom when the first of them was lost on it.
#[test]
fn a_link_that_is_cut_with_its_first_frames_is_left_as_soon_as_one_in_use() {
    let step = Duration::from_millis(10);
    let mut longest = Duration::ZERO;
    for phase in 0..25 {
        let mut world = star(9, 3);
        (0..3).for_each(|host| world.attach(host, [host as u8 + 1; 16], endpoint(host)));
        world.run_for(Duration::from_secs(60) + step * phase);
        assert!(world.is_direct(1, 2));
        send(&mut world, 1, 2);
        world.run_for(step);
        world.cut(1, 2);
        world.hosts[2].delivered.clear();
        let cut = world.now;
        while !got(&world, 1, 2) {
            assert!(world.now.since(cut) < Duration::from_secs(5), "phase {phase}: nothing arrives");
            send(&mut world, 1, 2);
            world.run_for(step);
        }
        longest = longest.max(world.now.since(cut));
    }
    println!("frames arrive again after {longest:?}");
    assert!(longest <= Duration::from_millis(330), "{longest:?}");
}

/// Host 1 pays for bytes: at rest it says and hears less than a megabyte a day, it has direct links while frames go, and others find out within
/// half a minute that it is gone.
#[test]
fn a_metered_host_says_little_and_is_missed_within_half_a_minute() {
    for hosts in [3, 10, 30] {
        let mut world = World::new(6, Ciphers::native(true), true);
        for host in 0..hosts {
            world.add_host();
            world.hosts[host].is_metered = host == 1;
            world.start(host);
            world.connect(host, &[0]);
            world.attach(host, [host as u8 + 1; 16], endpoint(host));
        }
        world.run_for(Duration::from_secs(120));
        let before = world.hosts[1].carried;
        world.run_for(Duration::from_secs(900));
        let a_day = (world.hosts[1].carried - before) * 96;
        println!("{hosts} hosts: {a_day} bytes a day");
        assert!(a_day <= 1_000_000, "{hosts} hosts: {a_day} bytes a day");
        let linked = |world: &World| (0..hosts).filter(|host| world.is_direct(1, *host)).count();
        assert_eq!(linked(&world), 1);
        arrives(&mut world, 1, 2);
        world.run_for(Duration::from_secs(2));
        assert!(
            arrives(&mut world, 1, 2) && arrives(&mut world, 2, 1) && !world.is_direct(1, 2),
            "a few go by a relay"
        );
        assert!((0..200).all(|_| arrives(&mut world, 1, 2)) && world.is_direct(1, 2));
        world.run_for(Duration::from_secs(120));
        assert_eq!(linked(&world), 1, "links without frames are let go");
        let knows = |world: &World, host: HostNumber| {
            let status = world.hosts[host].node.as_ref().unwrap().status(world.now);
            status.peers.iter().any(|peer| peer.name == "h1" && peer.path.is_some() && peer.metered && !peer.relays)
        };
        assert!((0..hosts).filter(|host| *host != 1).all(|host| knows(&world, host)));
        world.crash(1);
        world.run_for(Duration::from_secs(30));
        assert!(!(0..hosts).filter(|host| *host != 1).any(|host| knows(&world, host)), "{hosts} hosts");
    }
}

/// A mesh of `count` hosts that all name the first; `set` says what is special about each.
fn special(count: usize, set: impl Fn(HostNumber, &mut Host)) -> World {
    let mut world = World::new(8, Ciphers::native(true), true);
    for host in 0..count {
        world.add_host();
        set(host, &mut world.hosts[host]);
        world.start(host);
        world.connect(host, &[0]);
    }
    world
}

fn all_have_paths(world: &World) -> bool {
    let running = || world.hosts.iter().filter_map(|host| host.node.as_ref());
    running().all(|node| node.status(world.now).peers.iter().all(|peer| peer.path.is_some()))
}

#[test]
fn metered_hosts_come_back_to_a_host_that_relays_and_do_without_if_there_is_none() {
    let mut world = special(4, |host, it| it.is_metered = host > 0);
    world.run_for(Duration::from_secs(60));
    assert!(all_have_paths(&world));
    world.crash(0);
    world.run_for(Duration::from_secs(300));
    world.start(0);
    world.run_for(Duration::from_secs(180));
    assert!(all_have_paths(&world), "they keep to each other");
    let mut world = special(4, |_, it| it.is_metered = true);
    world.run_for(Duration::from_secs(120));
    assert!(all_have_paths(&world), "none relays: each has a link with each");
}

#[test]
fn a_large_mesh_of_hosts_that_relay_nothing_hangs_together_by_the_others() {
    let mut world = special(40, |host, it| it.is_stub = host > 1);
    world.run_for(Duration::from_secs(60));
    assert!(all_have_paths(&world));
}

/// Two sites of five hosts each with a line between them, that is paid for by the byte by the word of the hosts of the sites in `knowing`.
fn sites(knowing: &[u8]) -> World {
    let mut world = World::new(11, Ciphers::native(true), true);
    for host in 0..10 {
        world.add_host();
        let site = site_of(host);
        world.move_host(host, SocketAddr::from(([10, site, 0, host as u8 + 1], 6783)));
        world.start(host);
        if knowing.contains(&site) {
            let other = IpAddr::from([10, 3 - site, 0, 0]);
            let paths = MeteredPaths::new([(other, 16, true)], []);
            world.command(host, Command::SetMeteredPaths(paths));
        }
        // An address that no other host has a way to, as of another family or behind a NAT.
        let addresses = [world.hosts[host].address.ip(), IpAddr::from([192, 168, host as u8, 1])];
        world.command(host, Command::SetAddresses(addresses.to_vec()));
        world.connect(host, &[0]);
        world.attach(host, [host as u8 + 1; 16], endpoint(host));
    }
    world
}

fn site_of(host: HostNumber) -> u8 {
    if host < 5 { 1 } else { 2 }
}

/// Direct links between the sites.
fn across(world: &World) -> Vec<(HostNumber, HostNumber)> {
    let pairs = (0..5).flat_map(|a| (5..10).map(move |b| (a, b)));
    pairs.filter(|(a, b)| world.is_direct(*a, *b) || world.is_direct(*b, *a)).collect()
}

/// Bytes a day that go over the line between the sites at rest.
fn bytes_a_day(world: &mut World) -> usize {
    world.record_datagrams(true);
    world.run_for(Duration::from_secs(2 * 3600));
    let crosses = |(from, to, _): &&(Path, HostNumber, Vec<u8>)| world_site(from) != site_of(*to);
    let recorded = world.record_datagrams(false);
    recorded.iter().filter(crosses).map(|(.., datagram)| datagram.len() + IP_AND_UDP).sum::<usize>() * 12
}

fn world_site(from: &Path) -> u8 {
    match from.remote.ip() {
        IpAddr::V4(ip) => ip.octets()[1],
        IpAddr::V6(_) => 0,
    }
}

#[test]
fn two_sites_keep_one_metered_link_at_rest_and_make_others_for_traffic() {
    let mut free = sites(&[]);
    free.run_for(Duration::from_secs(120));
    println!("not metered: {} bytes a day", bytes_a_day(&mut free));
    for knowing in [&[1, 2][..], &[1], &[2]] {
        let mut world = sites(knowing);
        // What is tried by the addresses without a way there ends.
        world.run_for(Duration::from_secs(600));
        assert!(all_have_paths(&world));
        let a_day = bytes_a_day(&mut world);
        println!("known to {knowing:?}: {a_day} bytes a day");
        // Hosts that do not know try each other once an hour, and are refused.
        assert!(a_day <= if knowing.len() == 2 { 1_000_000 } else { 1_500_000 }, "{a_day}");
        let kept = across(&world);
        assert_eq!(kept.len(), 1, "{kept:?}");
        let apart = |(a, b): &(HostNumber, HostNumber)| *a != kept[0].0 && *b != kept[0].1;
        let (a, b) = [(3, 8), (4, 9)].into_iter().find(apart).unwrap();
        arrives(&mut world, a, b);
        world.run_for(Duration::from_secs(2));
        assert!(arrives(&mut world, a, b) && arrives(&mut world, b, a) && !world.is_direct(a, b), "a few are relayed");
        assert!((0..200).all(|_| arrives(&mut world, a, b)) && world.is_direct(a, b) && across(&world).len() == 2);
        world.run_for(Duration::from_secs(120));
        assert_eq!(across(&world), kept, "links without frames are let go");
        // The hosts that keep the line are lost: others take over.
        let (near, far) = kept[0];
        world.crash(near);
        world.crash(far);
        world.run_for(Duration::from_secs(60));
        assert!(arrives(&mut world, a, b) || arrives(&mut world, a, b));
        world.run_for(Duration::from_secs(60));
        let running = |(a, b): &(HostNumber, HostNumber)| ![near, far].iter().any(|gone| gone == a || gone == b);
        let others: Vec<_> = across(&world).into_iter().filter(running).collect();
        assert_eq!(others.len(), 1, "{others:?}");
    }
}
