//! Families of seeds, and single situations that have to come out right.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use weft_crypto::Ciphers;
use weft_integration::sim::host::Host;
use weft_integration::sim::scenario::said_cloned;
use weft_integration::sim::world::{HostNumber, World};
use weft_integration::sim::{Scenario, addresses, arrives, endpoint, run, star};
use weft_mesh::egress::DropReason;
use weft_mesh::node::{Command, Event, Input};
use weft_mesh::records::EndpointRecord;
use weft_mesh::sink::Punt;

/// As many as the time for simulation on CI holds; the full counts: `cargo run --release -p weft-bench -- sim`.
const SEEDS: u64 = 40;
const METERED_SEEDS: u64 = 20;
const ADDRESS_SEEDS: u64 = 1000;

fn faults(seeds: impl Iterator<Item = u64>) {
    for seed in seeds {
        let outcome = run(&Scenario::faults(), seed);
        println!("seed {seed}: {} hosts, right after {:?}", outcome.hosts, outcome.convergence);
    }
}

// Two halves, so that two cores share them.
#[test]
fn meshes_recover_from_random_faults_even_seeds() {
    faults((0..SEEDS).step_by(2));
}

#[test]
fn meshes_recover_from_random_faults_odd_seeds() {
    faults((1..SEEDS).step_by(2));
}

/// In these a cost changed at rest, and the other end of the link heard of it a second later than all others; a host was cut off from all; or the end of a
/// handshake was lost, and one host sent under a session that the other did not have.
#[test]
fn meshes_recover_from_random_faults_in_seeds_that_found_some() {
    for seed in [17, 47, 93, 193] {
        let outcome = run(&Scenario::faults(), seed);
        assert!(outcome.convergence <= Duration::from_secs(5), "seed {seed}: {:?}", outcome.convergence);
    }
}

#[test]
fn frames_go_by_lines_that_are_free_and_as_few_others_are_used_as_hold_a_mesh_together() {
    for seed in 0..METERED_SEEDS {
        let outcome = run(&Scenario::metered(), seed);
        println!("seed {seed}: {} hosts, right after {:?}", outcome.hosts, outcome.convergence);
    }
}

#[test]
fn a_hundred_hosts_are_right_five_seconds_after_the_last_fault() {
    let outcome = run(&Scenario::hundred(), 1);
    assert!(outcome.convergence <= Duration::from_secs(5));
}

#[test]
fn no_address_is_ever_in_two_places() {
    for seed in 0..ADDRESS_SEEDS {
        let outcome = addresses::run(seed);
        println!("seed {seed}: {outcome:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 4] {
        assert_eq!(run(&Scenario::faults(), seed).trace, run(&Scenario::faults(), seed).trace);
    }
}

/// Hosts in a line, each with an endpoint, at rest.
fn line(seed: u64, count: usize) -> World {
    line_in(World::new(seed, Ciphers::native(true), true), count)
}

fn line_in(mut world: World, count: usize) -> World {
    for _ in 0..count {
        world.add_host();
    }
    for a in 0..count {
        for b in 0..a.saturating_sub(1) {
            world.cut(a, b);
        }
    }
    for host in 0..count {
        world.start(host);
        if host > 0 {
            world.connect(host, &[host - 1]);
        }
        world.attach(host, [host as u8 + 1; 16], endpoint(host));
    }
    world.run_for(Duration::from_secs(5));
    world
}

#[test]
fn hosts_at_rest_say_little() {
    let (mut world, hosts, seconds) = (line(1, 4), 4, 20);
    world.run_for(Duration::from_secs(30));
    let before = world.datagrams_sent;
    world.run_for(Duration::from_secs(seconds));
    // A question and an answer a link and second, SWIM, a comparison of records; some for hosts behind the neighbours.
    let each = (world.datagrams_sent - before) / (hosts * seconds);
    assert!(each <= 12, "{each} datagrams a second");
}

/// Two ways between hosts 0 and 2, of which host 1 relays nothing.
#[test]
fn nothing_goes_through_a_host_that_relays_nothing() {
    let mut world = World::new(4, Ciphers::native(true), true);
    for _ in 0..4 {
        world.add_host();
    }
    world.hosts[1].is_stub = true;
    [(0, 2), (1, 3)].into_iter().for_each(|(a, b)| world.cut(a, b));
    for host in 0..4 {
        world.start(host);
        world.connect(host, &[1, 3]);
        world.attach(host, [host as u8 + 1; 16], endpoint(host));
    }
    world.run_for(Duration::from_secs(5));
    assert!(arrives(&mut world, 0, 2) && arrives(&mut world, 0, 1) && arrives(&mut world, 1, 2));
    let status = |world: &World| world.hosts[0].node.as_ref().unwrap().status(world.now);
    assert!(status(&world).routes.iter().any(|route| route.to == "h2" && route.via == "h3"));
    let relays: BTreeMap<_, _> = status(&world).peers.into_iter().map(|peer| (peer.name, peer.relays)).collect();
    assert_eq!(relays, [("h1", false), ("h2", true), ("h3", true)].map(|(name, is)| (name.to_owned(), is)).into());
    assert_eq!(world.hosts[1].dropped.get(&DropReason::NotRelayed), None, "all knew so");
    world.crash(3);
    world.run_for(Duration::from_secs(10));
    assert!(!arrives(&mut world, 0, 2) && arrives(&mut world, 0, 1));
    let why = world.hosts[0].node.as_ref().unwrap().why(None, "h2", world.now).unwrap();
    assert_eq!((why.hops.len(), &why.stubs[..]), (0, &["h1".to_owned()][..]));
}

/// Twelve hosts that reach each other by three relays alone.
#[test]
fn pairs_leave_a_relay_that_is_busy_and_come_back() {
    const RELAYS: usize = 3;
    let mut world = World::new(12, Ciphers::native(true), true);
    let hosts = RELAYS..RELAYS + 12;
    for host in 0..hosts.end {
        world.add_host();
        (RELAYS..host).for_each(|other| world.cut(host, other));
    }
    for host in 0..hosts.end {
        world.start(host);
        world.connect(host, &[0, 1, 2]);
    }
    let by_first = |world: &World| {
        let routes = hosts.clone().flat_map(|host| world.hosts[host].node.as_ref().unwrap().status(world.now).routes);
        routes.filter(|route| route.via == "h0" && route.to != "h0").count()
    };
    world.run_for(Duration::from_secs(10));
    let before = by_first(&world);
    assert!(before >= 24, "of 132 routes {before} go by the first relay");
    let mut counts = Vec::new();
    for _ in 0..24 {
        let node = world.hosts[0].node.as_mut().unwrap();
        node.handle_input(world.now, Input::Punt(Punt::Busy { percent: 99, relays: true }));
        world.run_for(Duration::from_secs(1));
        counts.push(by_first(&world));
    }
    assert!(counts[1] == before && counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    assert!(counts[23] < before / 2, "{counts:?}");
    let load = |world: &World, host: usize| {
        let peers = world.hosts[host].node.as_ref().unwrap().status(world.now).peers;
        peers.into_iter().find(|peer| peer.name == "h0").map(|peer| peer.load)
    };
    let own_load = |world: &World| world.hosts[0].node.as_ref().unwrap().status(world.now).load;
    assert_eq!((load(&world, 5), own_load(&world)), (Some(3), 3));
    world.run_for(Duration::from_secs(250));
    assert_eq!((by_first(&world), load(&world, 5)), (before, Some(0)));
}

#[test]
fn links_that_one_end_wants_stay_and_others_are_let_go_once() {
    // More hosts than are all linked with each other; host 20 is told of every fourth.
    let (mut world, hosts) = (World::new(1, Ciphers::native(true), true), 40);
    for host in 0..hosts {
        world.add_host();
        world.start(host);
        let named: Vec<HostNumber> = if host == 20 { (0..20).step_by(4).collect() } else { vec![host / 2] };
        world.connect(host, &named);
    }
    // Links are let go in turn; what is said of that makes others used for a while.
    world.run_for(Duration::from_secs(150));
    let changes = |world: &World| {
        let is_change = |event: &&Event| matches!(event, Event::LinkUp { .. } | Event::LinkDown { .. });
        world.hosts.iter().flat_map(|host| &host.events).filter(is_change).count()
    };
    let before = changes(&world);
    world.run_for(Duration::from_secs(120));
    assert_eq!(changes(&world), before);
    let links = |host: &Host| host.node.as_ref().map_or(0, |node| node.status(world.now).links.len());
    // Five around the ring of labels and as many towards the host, and those that were named.
    let most = hosts * (2 * 5 + 3);
    assert!((hosts..=most).contains(&links(&world.hosts[0])), "{} links", links(&world.hosts[0]));
    for (target, host) in [(0, 20), (16, 20), (4, 9)] {
        assert!(world.is_direct(host, target), "h{host} was told of h{target}");
    }
}

#[test]
fn a_packet_from_a_new_address_moves_the_link() {
    let mut world = line(1, 2);
    assert!(arrives(&mut world, 0, 1));
    // What a NAT does when it maps a host anew.
    world.move_host(1, SocketAddr::from(([10, 77, 0, 1], 40_001)));
    world.run_for(Duration::from_millis(2500));
    let links = |world: &World| world.hosts[0].events.iter().filter(|e| matches!(e, Event::LinkDown { .. })).count();
    assert!(arrives(&mut world, 0, 1) && arrives(&mut world, 1, 0));
    assert!(links(&world) <= 1);
}

/// Hosts get other addresses all at once, so that none is where another knows it: their links go on as soon as one is looked up again, or
/// a host that stayed has heard of them.
#[test]
fn hosts_that_move_at_once_find_each_other_by_names_and_by_hosts_that_stay() {
    for seed in 0..20 {
        let mut world = line(seed, 2);
        world.run_for(Duration::from_secs(20));
        (0..2).for_each(|host| world.roam(host));
        world.run_for(Duration::from_secs(20));
        world.connect(1, &[0]);
        world.run_for(Duration::from_secs(3));
        assert!(world.is_direct(0, 1) && world.is_direct(1, 0), "seed {seed}: by name: {}", world.state_of(0));

        let mut world = star(seed, 6);
        world.run_for(Duration::from_secs(20));
        (1..6).for_each(|host| world.roam(host));
        world.run_for(Duration::from_secs(5));
        for (a, b) in (0..6).flat_map(|a| (0..6).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            assert!(world.is_direct(a, b), "seed {seed}: h{a} to h{b}");
        }
    }
}

#[test]
fn a_host_that_lost_its_state_is_met_again_by_those_who_know_it() {
    for seed in 6..46 {
        let mut world = line(seed, 3);
        world.crash(0);
        world.hosts[0].disk.clear();
        // It is told of no peer: its neighbour has to find it.
        world.start(0);
        world.attach(0, [1; 16], endpoint(0));
        let start = world.now;
        let is_met =
            |world: &mut World| [(1, 0), (0, 1), (2, 0), (0, 2)].into_iter().all(|(from, to)| arrives(world, from, to));
        while !is_met(&mut world) {
            assert!(world.now.since(start) < Duration::from_secs(6), "seed {seed}");
        }
    }
}

#[test]
fn hosts_parted_for_longer_than_the_grace_find_together_again() {
    let grace = Duration::from_secs(20);
    for seed in 0..4 {
        let mut world = World::new(seed, Ciphers::native(true), true);
        world.grace = grace;
        let mut world = line_in(world, 4);
        world.cut(1, 2);
        world.run_for(grace + Duration::from_secs(20));
        assert!(!world.state_of(0).contains("10.32.0.3/24"), "what is gone for good is still there");
        world.heal(1, 2);
        world.run_for(Duration::from_secs(10));
        for (from, to) in [(0, 3), (3, 0), (1, 2), (0, 2)] {
            assert!(arrives(&mut world, from, to), "seed {seed}: h{from} to h{to}");
        }
        assert!((0..4).all(|host| said_cloned(&world, host) == 0));
    }
}

#[test]
fn a_forgotten_host_that_returns_is_a_member_again() {
    let grace = Duration::from_secs(20);
    let mut world = World::new(7, Ciphers::native(true), true);
    world.grace = grace;
    let mut world = line_in(world, 3);
    world.crash(2);
    world.run_for(grace + Duration::from_secs(15));
    assert!(!world.state_of(0).contains("10.32.0.3/24"), "the records of a host that is gone are still there");
    // Its disk is from before it was forgotten: it does not know.
    world.start(2);
    world.connect(2, &[1]);
    world.run_for(Duration::from_secs(5));
    assert!(arrives(&mut world, 0, 2) && arrives(&mut world, 2, 0));
    assert!(world.state_of(0).contains("10.32.0.3/24"));
}

#[test]
fn what_a_host_held_that_lost_its_state_is_free_soon_after_it_is_reclaimed() {
    for seed in 0..8 {
        let mut world = World::new(seed, Ciphers::native(true), true);
        let hosts: Vec<HostNumber> = (0..3).map(|_| world.add_host()).collect();
        hosts.iter().for_each(|host| world.start(*host));
        world.connect(0, &[1]);
        world.attach(0, [1; 16], endpoint(0));
        world.run_for(Duration::from_secs(40));
        let is_held = |world: &World, by: HostNumber| world.state_of(by).contains("10.32.0.1/24");
        assert!(is_held(&world, 1));
        world.crash(0);
        // The same machine under another key.
        world.connect(2, &[1]);
        world.run_for(Duration::from_secs(1));
        let mut tries = 0;
        while is_held(&world, 1) {
            tries += 1;
            assert!(tries < 100, "seed {seed}: never given up");
            world.command(1, Command::Reclaim("h0".into()));
            world.run_for(Duration::from_millis(200));
        }
        world.run_for(Duration::from_secs(2));
        assert!(!is_held(&world, 2), "seed {seed}: held by a host that is gone");
    }
}

#[test]
fn first_messages_of_an_ended_life_replayed_to_a_restarted_host_end_nothing() {
    let mut world = line(8, 2);
    world.crash(0);
    world.record_datagrams(true);
    world.start(0);
    world.connect(0, &[1]);
    world.run_for(Duration::from_secs(3));
    let old = world.record_datagrams(false);
    assert!(old.len() > 20);
    // Both live anew: neither remembers those messages.
    for host in [0, 1] {
        world.crash(host);
        world.start(host);
    }
    world.connect(0, &[1]);
    world.run_for(Duration::from_secs(3));
    let downs = |world: &World| world.hosts[1].events.iter().filter(|e| matches!(e, Event::LinkDown { .. })).count();
    let (from, before) = (world.hosts[0].address, downs(&world));
    for (.., data) in old {
        world.inject(1, from, data);
        world.run_for(Duration::from_millis(10));
        assert!(arrives(&mut world, 0, 1) && arrives(&mut world, 1, 0));
    }
    world.run_for(Duration::from_secs(2));
    assert!(arrives(&mut world, 0, 1) && arrives(&mut world, 1, 0));
    assert_eq!(downs(&world), before);
    assert_eq!(said_cloned(&world, 0) + said_cloned(&world, 1), 0, "own packets of an earlier life are no clone's");
}

#[test]
fn endpoints_that_come_and_go_in_the_same_instant_leave_the_right_ones() {
    let mut world = line(5, 2);
    let moved = EndpointRecord { mac: [2, 0, 0, 0, 9, 9], ips: [].into(), ..endpoint(0) };
    world.attach(0, [77; 16], moved);
    world.detach(0, [1; 16]);
    world.attach(0, [1; 16], endpoint(0));
    world.detach(0, [77; 16]);
    world.run_for(Duration::from_secs(1));
    assert!(arrives(&mut world, 1, 0) && arrives(&mut world, 0, 1));
    let status = world.state_of(1);
    assert!(status.contains("10.32.0.1/24") && !status.contains("02:00:00:00:09:09"));
}

#[test]
fn a_cloned_host_is_told_and_the_first_one_goes_on() {
    let mut world = line(2, 3);
    let seed = world.hosts[2].seed;
    let clone = world.add_host_with_key(seed);
    world.hosts[clone].disk = world.hosts[2].disk.clone();
    for host in [1, 2] {
        world.cut(clone, host);
    }
    world.start(clone);
    world.connect(clone, &[0]);
    for _ in 0..50 {
        world.run_for(Duration::from_millis(200));
    }
    assert!(arrives(&mut world, 0, 2) && arrives(&mut world, 1, 2), "the host met first is not served any more");
    assert_eq!(said_cloned(&world, clone), 1);
    assert_eq!(said_cloned(&world, 2), 1);
}

/// A million datagrams of each bad kind: replayed, cut short, with a bit flipped, random. Nothing but counters changes.
#[test]
fn datagrams_that_no_member_sealed_change_nothing() {
    const EACH: usize = 1_000_000;
    let mut world = line(3, 2);
    world.record_datagrams(true);
    for _ in 0..20 {
        arrives(&mut world, 0, 1);
        world.run_for(Duration::from_millis(200));
    }
    // A restart, so that handshakes are among what is replayed.
    world.crash(0);
    world.start(0);
    world.connect(0, &[1]);
    world.run_for(Duration::from_secs(3));
    let real = world.record_datagrams(false);
    assert!(real.len() > 100);
    let from = world.hosts[0].address;
    let before = world.state_of(1);
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for kind in 0..4 {
        let refused = world.refused_by(1).handshakes;
        for _ in 0..EACH {
            let mut data = real[rng.random_range(0..real.len())].2.clone();
            match kind {
                0 => {}
                1 => data.truncate(rng.random_range(0..data.len())),
                2 => {
                    let bit = rng.random_range(0..data.len() * 8);
                    data[bit / 8] ^= 1 << (bit % 8);
                }
                _ => {
                    data = vec![0; rng.random_range(0..1500)];
                    rng.fill_bytes(&mut data);
                }
            }
            world.inject(1, from, data);
        }
        assert_eq!(world.state_of(1), before, "kind {kind} changed something");
        assert!(kind > 0 || world.refused_by(1).handshakes > refused, "replayed handshakes are counted");
    }
    world.run_for(Duration::from_secs(1));
    assert!(arrives(&mut world, 0, 1));
}

#[test]
fn a_host_that_is_heard_from_two_addresses_does_not_make_its_link_move_to_and_fro() {
    for seed in 0..10 {
        let mut world = World::new(seed, Ciphers::native(true), true);
        for number in 0..2 {
            let host = world.add_host();
            world.add_second_address(host, SocketAddr::from(([10, 2, 0, number], 6783)));
        }
        for host in 0..2 {
            world.start(host);
            world.connect(host, &[1 - host]);
        }
        world.run_for(Duration::from_secs(5));
        let before = world.datagrams_sent;
        world.run_for(Duration::from_secs(20));
        let rate = (world.datagrams_sent - before) / 20;
        assert!(rate < 200, "seed {seed}: {rate} datagrams a second at rest");
        let all = world.hosts.iter().flat_map(|host| &host.events);
        let moves = all.filter(|event| matches!(event, Event::LinkMoved { .. })).count();
        assert!(moves <= 2, "seed {seed}: it is said {moves} times in half a minute");
    }
}

#[test]
fn a_network_that_drops_marked_packets_is_used_without_marks() {
    for seed in 0..10 {
        let mut world = World::new(seed, Ciphers::native(true), true);
        for _ in 0..2 {
            world.add_host();
        }
        world.drops_marked = true;
        for host in 0..2 {
            world.start(host);
            world.connect(host, &[1 - host]);
        }
        world.run_for(Duration::from_secs(10));
        for host in &world.hosts {
            let lost = host.events.iter().filter(|event| matches!(event, Event::MarksLost { .. })).count();
            assert_eq!((lost, host.marks), (1, false), "seed {seed}: {:?}", host.events);
            assert!(host.snapshot.outbound.values().any(|outbound| outbound.hop.is_some()), "seed {seed}: no route");
        }
        // Loss alone is no reason.
        let mut world = World::new(seed, Ciphers::native(true), true);
        for _ in 0..2 {
            world.add_host();
        }
        world.weather.loss = 0.3;
        for host in 0..2 {
            world.start(host);
            world.connect(host, &[1 - host]);
        }
        world.run_for(Duration::from_secs(60));
        assert!(world.hosts.iter().all(|host| host.marks), "seed {seed}");
    }
}
