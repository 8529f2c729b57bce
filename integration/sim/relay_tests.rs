//! Relays that do not pass on what they should, while their links answer.

use std::time::Duration;

use weft_crypto::Ciphers;
use weft_integration::sim::relaying::Relaying;
use weft_integration::sim::world::{HostNumber, World};
use weft_integration::sim::{endpoint, faulty, got, send};
use weft_mesh::node::{Event, Status};
use weft_mesh::path::MeteredPaths;

/// Time between two frames.
const PACE: Duration = Duration::from_millis(100);

/// Two hosts without a wire between them, and relays that are linked with all.
fn world(seed: u64, relays: usize) -> World {
    let mut world = World::new(seed, Ciphers::native(true), true);
    for _ in 0..2 + relays {
        world.add_host();
    }
    world.cut(0, 1);
    for host in 0..2 + relays {
        world.start(host);
        world.connect(host, &(2..2 + relays).filter(|relay| *relay != host).collect::<Vec<_>>());
        world.attach(host, [host as u8 + 1; 16], endpoint(host));
    }
    world
}

fn status(world: &World, host: HostNumber) -> Status {
    world.hosts[host].node.as_ref().unwrap().status(world.now)
}

/// By which host one end's frames for the other go.
fn via(world: &World, from: HostNumber) -> HostNumber {
    let to = format!("h{}", 1 - from);
    let route = status(world, from).routes.into_iter().find(|route| route.to == to).expect("a route");
    route.via[1..].parse().unwrap()
}

/// Sends frames from one host to another, each way given, for so long; returns after how long frames came again, and how many were lost in all.
fn converse(world: &mut World, ways: &[[HostNumber; 2]], during: Duration) -> (Duration, u32) {
    let (mut lost, mut last_lost, begin) = (0, Duration::ZERO, world.now);
    while world.now < begin + during {
        world.hosts.iter_mut().for_each(|host| host.delivered.clear());
        ways.iter().for_each(|[from, to]| send(world, *from, *to));
        world.run_for(PACE);
        let missed = ways.iter().filter(|[from, to]| !got(world, *from, *to)).count() as u32;
        if missed > 0 {
            (lost, last_lost) = (lost + missed, world.now.since(begin));
        }
    }
    (last_lost, lost)
}

const BOTH: [[HostNumber; 2]; 2] = [[0, 1], [1, 0]];

#[test]
fn frames_leave_a_relay_that_drops_them_whatever_it_drops() {
    let drops = |spares_up_to, drops| Relaying { drops, spares_up_to, ..Relaying::default() };
    let cases: [(&str, Relaying, bool); 6] = [
        ("all", Relaying::none(), false),
        ("all that one end sends", Relaying::none(), true),
        ("what is large", drops(180, 1.0), false),
        ("what is large, one way", drops(180, 1.0), true),
        ("most", drops(0, 0.8), false),
        ("changed", Relaying { corrupts: true, ..Relaying::default() }, false),
    ];
    for (what, relaying, one_way) in cases {
        for ways in [&BOTH[..], &BOTH[..1], &BOTH[1..]] {
            for seed in 0..5 {
                let mut world = world(seed, 3);
                world.run_for(Duration::from_secs(5));
                let before = converse(&mut world, ways, Duration::from_secs(3));
                assert_eq!(before.1, 0);
                let relay = via(&world, 0);
                let only_to = one_way.then_some(world.hosts[1].address);
                world.hosts[relay].relaying = Relaying { only_to, ..relaying.clone() };
                let (silent, lost) = converse(&mut world, ways, Duration::from_secs(20));
                println!("{what}, {} ways, seed {seed}: {silent:?}, {lost} lost", ways.len());
                // Of those that are lost at random some tallies and frames come.
                let most = Duration::from_secs(if relaying.drops > 0.0 && relaying.drops < 1.0 { 10 } else { 4 });
                assert!(silent <= most, "{what}, {ways:?}, seed {seed}: lost for {silent:?}");
            }
        }
    }
}

#[test]
fn sessions_come_by_another_relay_than_one_that_drops_all_from_the_start() {
    for seed in 0..10 {
        let mut world = world(seed, 2);
        world.hosts[2].relaying = Relaying::none();
        let (silent, _) = converse(&mut world, &BOTH, Duration::from_secs(30));
        println!("seed {seed}: {silent:?} after the start");
        assert!(silent <= Duration::from_secs(8), "seed {seed}: no frames for {silent:?}");
    }
}

#[test]
fn a_relay_is_taken_again_once_it_passes_on_what_it_should_and_avoided_for_longer_if_not() {
    let mut world = world(1, 2);
    world.run_for(Duration::from_secs(5));
    converse(&mut world, &BOTH, Duration::from_secs(3));
    let relay = via(&world, 0);
    world.hosts[relay].relaying = Relaying::none();
    converse(&mut world, &BOTH, Duration::from_secs(5));
    let avoided = |world: &World, from: HostNumber| {
        let route = status(world, from).routes.into_iter().find(|route| route.to == format!("h{}", 1 - from));
        route.expect("a route").avoided
    };
    assert_eq!((via(&world, 0) == relay, avoided(&world, 0)), (false, vec![format!("h{relay}")]));
    let why = world.hosts[0].node.as_ref().unwrap().why(None, "h1", world.now).unwrap();
    assert_eq!(why.avoided, [format!("h{relay}")]);
    let (_, lost) = converse(&mut world, &BOTH, Duration::from_secs(100));
    assert_eq!((lost, via(&world, 0) == relay), (0, false), "it has to prove itself by tallies, not by frames");
    world.hosts[relay].relaying = Relaying::default();
    let (_, lost) = converse(&mut world, &BOTH, Duration::from_secs(20));
    assert_eq!((lost, via(&world, 0), via(&world, 1)), (0, relay, relay));
    assert!(avoided(&world, 0).is_empty() && avoided(&world, 1).is_empty());
    world.hosts[relay].relaying = Relaying::none();
    converse(&mut world, &BOTH, Duration::from_secs(5));
    let told = |event: &&Event| matches!(event, Event::RelayAvoided { .. });
    let lengths: Vec<u64> = world.hosts[0]
        .events
        .iter()
        .filter(told)
        .map(|event| match event {
            Event::RelayAvoided { length, .. } => length.as_secs(),
            _ => 0,
        })
        .collect();
    assert_eq!(lengths, [60, 120]);
}

/// Frames go one way, now all the time and now in bursts of some seconds each two minutes: the end that only answers keeps avoiding the relay, too.
#[test]
fn a_relay_that_stays_faulty_is_not_taken_again_for_want_of_use() {
    for pause in [0, 110] {
        let mut world = world(4, 2);
        world.run_for(Duration::from_secs(5));
        converse(&mut world, &BOTH[..1], Duration::from_secs(3));
        let relay = via(&world, 0);
        world.hosts[relay].relaying = Relaying::none();
        converse(&mut world, &BOTH[..1], Duration::from_secs(10));
        for burst in 0..3 {
            world.run_for(Duration::from_secs(pause));
            let (silent, lost) =
                converse(&mut world, &BOTH[..1], Duration::from_secs(if pause > 0 { 10 } else { 100 }));
            assert_eq!(lost, 0, "burst {burst} after {pause} s each: lost for {silent:?}");
        }
    }
}

/// A host is off for a while, to which frames go over relays; its relays are as good as before.
#[test]
fn nobody_avoids_a_relay_for_a_host_that_was_off() {
    for off in [1, 3, 10] {
        for seed in 0..5 {
            let mut world = world(seed, 4);
            world.run_for(Duration::from_secs(5));
            converse(&mut world, &BOTH, Duration::from_secs(3));
            world.crash(1);
            converse(&mut world, &BOTH[..1], Duration::from_secs(off));
            world.start(1);
            world.connect(1, &[2, 3, 4, 5]);
            world.attach(1, [2; 16], endpoint(1));
            converse(&mut world, &BOTH, Duration::from_secs(15));
            let avoids = |event: &&Event| matches!(event, Event::RelayAvoided { .. });
            let avoided = world.hosts.iter().flat_map(|host| &host.events).filter(avoids).count();
            assert_eq!(avoided, 0, "off for {off} s, seed {seed}");
        }
    }
}

#[test]
fn a_relay_that_repeats_or_delays_what_it_passes_on_harms_nobody() {
    for relaying in [
        Relaying { copies: 3, ..Relaying::default() },
        Relaying { delay: Duration::from_millis(40), ..Relaying::default() },
    ] {
        let mut world = world(3, 2);
        world.run_for(Duration::from_secs(5));
        converse(&mut world, &BOTH, Duration::from_secs(3));
        let relay = via(&world, 0);
        world.hosts[relay].relaying = relaying;
        let (_, lost) = converse(&mut world, &BOTH, Duration::from_secs(20));
        assert_eq!((lost, via(&world, 0)), (0, relay));
        world.hosts[1].delivered.clear();
        send(&mut world, 0, 1);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.hosts[1].delivered.len(), 1);
    }
}

#[test]
fn hosts_that_no_relay_joins_are_joined_by_the_first_that_does_again() {
    let mut world = world(2, 3);
    world.run_for(Duration::from_secs(5));
    converse(&mut world, &BOTH, Duration::from_secs(3));
    (2..5).for_each(|relay| world.hosts[relay].relaying = Relaying::none());
    converse(&mut world, &BOTH, Duration::from_secs(30));
    for relay in [3, 2, 4] {
        (2..5).for_each(|other| {
            world.hosts[other].relaying = if other == relay { Relaying::default() } else { Relaying::none() }
        });
        let (silent, _) = converse(&mut world, &BOTH, Duration::from_secs(30));
        println!("by h{relay}: {silent:?}");
    }
}

/// Half of the hosts' pairs without a wire; the full counts: `cargo run --release -p weft-bench -- sim`.
#[test]
fn pairs_that_faulty_relays_part_are_joined_by_others() {
    for seed in 0..30 {
        println!("seed {seed}: {:?}", faulty::run(seed));
    }
}

/// Hosts 0 and 1 with a line between them that is paid for, and a free way by 2 and 3.
#[test]
fn a_free_way_that_does_not_carry_is_no_reason_to_do_without_a_metered_line() {
    for (one_way, one_knows) in [(false, false), (true, false), (false, true)] {
        let mut world = World::new(5, Ciphers::native(true), true);
        for _ in 0..4 {
            world.add_host();
        }
        [(0, 3), (1, 2)].into_iter().for_each(|(a, b)| world.cut(a, b));
        for (host, other) in [(0, 1), (1, 0)].into_iter().take(if one_knows { 1 } else { 2 }) {
            let line = (world.hosts[other].address.ip(), 32, true);
            world.hosts[host].metered_paths = MeteredPaths::new([line], []);
        }
        for host in 0..4 {
            world.start(host);
            world.connect(host, &[[1, 2], [0, 3], [0, 3], [2, 1]][host]);
            world.attach(host, [host as u8 + 1; 16], endpoint(host));
        }
        world.run_for(Duration::from_secs(60));
        assert!(!world.is_direct(0, 1), "there is a free way");
        [2, 3].into_iter().for_each(|host| world.hosts[host].relaying = Relaying::none());
        let ways = if one_way { &BOTH[..1] } else { &BOTH[..] };
        let (silent, _) = converse(&mut world, ways, Duration::from_secs(90));
        println!("one way: {one_way}, one end knows: {one_knows}: {silent:?}");
        assert!(silent <= Duration::from_secs(15), "lost for {silent:?}");
        [2, 3].into_iter().for_each(|host| world.hosts[host].relaying = Relaying::default());
        let (_, lost) = converse(&mut world, ways, Duration::from_secs(90));
        assert_eq!((lost, world.is_direct(0, 1)), (0, false), "the free way is taken again");
    }
}
