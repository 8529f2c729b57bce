//! Hosts behind NATs of every kind, and in networks that let no UDP pass: who has a direct link with whom.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use weft_crypto::Ciphers;
use weft_integration::sim::nat::{Behaviour, Dependence};
use weft_integration::sim::world::{HostNumber, World};
use weft_integration::sim::{internet, start_all};

/// How long two hosts may take until they have a direct link, and how long where ports have to be found.
const DIRECT_WITHIN: Duration = Duration::from_secs(3);
const PREDICTED_WITHIN: Duration = Duration::from_secs(10);

/// Host 0 is public and named by the others, which are behind NATs.
fn behind(seed: u64, nats: &[Behaviour]) -> World {
    let mut world = World::new(seed, Ciphers::native(true), true);
    world.add_host();
    for behaviour in nats {
        let (host, nat) = (world.add_host(), world.add_nat(*behaviour));
        world.hosts[host].nat = Some(nat);
    }
    start_all(&mut world);
    world
}

#[test]
fn two_hosts_have_a_direct_link_exactly_when_their_nats_allow_one_and_are_relayed_otherwise() {
    let all = Behaviour::all();
    let (mut wrong, mut direct, mut predicted, mut pairs) = (Vec::new(), 0, 0, 0);
    for (number, a) in all.iter().enumerate() {
        for b in &all[number..] {
            for seed in 0..2 {
                let mut world = behind(seed, &[*a, *b]);
                world.run_for(DIRECT_WITHIN);
                let is_direct = |world: &World| world.is_direct(1, 2) && world.is_direct(2, 1);
                let (is, has_ways) = (is_direct(&world), world.has_way(1, 2) && world.has_way(2, 1));
                let is_enough = is || !a.can_meet(*b);
                if !is {
                    world.run_for(PREDICTED_WITHIN - DIRECT_WITHIN);
                }
                let is_at_last = is_direct(&world);
                pairs += 1;
                direct += usize::from(is);
                predicted += usize::from(is_at_last && !is);
                let is_expected = a.can_be_found_with(*b).is_none_or(|can| can == is_at_last);
                if !is_enough || !is_expected || !has_ways {
                    wrong
                        .push(format!("seed {seed}: direct {is}, then {is_at_last}, ways {has_ways}: {a:?} and {b:?}"));
                }
            }
        }
    }
    println!(
        "{direct} of {pairs} pairs are direct after {DIRECT_WITHIN:?}, {predicted} more after {PREDICTED_WITHIN:?}"
    );
    assert!(wrong.is_empty(), "{} of {pairs} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn several_hosts_that_have_to_be_searched_for_are_found_as_soon_as_one() {
    let carrier = Behaviour {
        mapping: Dependence::AddressAndPort,
        filtering: Dependence::AddressAndPort,
        preserves_ports: false,
        claims_unasked: false,
    };
    let office = Behaviour { mapping: Dependence::None, preserves_ports: true, ..carrier };
    // One host searches for three, or three search for one, which opens ports towards each.
    for (first, others) in [(office, carrier), (carrier, office)] {
        for seed in 0..10 {
            let mut world = behind(seed, &[first, others, others, others]);
            world.run_for(PREDICTED_WITHIN);
            let lacks: Vec<HostNumber> =
                (2..5).filter(|other| !(world.is_direct(1, *other) && world.is_direct(*other, 1))).collect();
            assert!(lacks.is_empty(), "seed {seed}: {first:?} has no direct link with {lacks:?}");
        }
    }
}

#[test]
fn hosts_behind_one_nat_find_each_other_inside() {
    for behaviour in Behaviour::all() {
        let mut world = behind(1, &[behaviour]);
        let host = world.add_host();
        world.hosts[host].nat = world.hosts[1].nat;
        world.start(host);
        world.connect(host, &[0]);
        world.run_for(DIRECT_WITHIN);
        assert!(world.is_direct(1, host) && world.is_direct(host, 1), "{behaviour:?}");
    }
}

#[test]
fn hosts_whose_answers_each_come_from_somewhere_new_do_not_ask_each_other_for_ever() {
    let nat = Behaviour {
        mapping: Dependence::AddressAndPort,
        filtering: Dependence::None,
        preserves_ports: false,
        claims_unasked: false,
    };
    for seed in 0..10 {
        let mut world = behind(seed, &[nat, nat]);
        world.run_for(Duration::from_secs(60));
        let before = world.datagrams_sent;
        world.run_for(Duration::from_secs(60));
        let sent = world.datagrams_sent - before;
        assert!(sent < 60 * 20, "seed {seed}: {sent} datagrams");
    }
}

#[test]
fn an_advertised_port_of_a_nat_leads_to_its_host_for_all() {
    let worst = Behaviour {
        mapping: Dependence::AddressAndPort,
        filtering: Dependence::AddressAndPort,
        preserves_ports: false,
        claims_unasked: false,
    };
    for is_advertised in [false, true] {
        let mut world = behind(3, &[]);
        for behaviour in [worst, worst] {
            let (host, nat) = (world.add_host(), world.add_nat(behaviour));
            world.hosts[host].nat = Some(nat);
        }
        let outside = world.forward(0, 7000, 1);
        if is_advertised {
            world.hosts[1].advertised.udp = vec![outside];
        }
        [1, 2].into_iter().for_each(|host| {
            world.start(host);
            world.connect(host, &[0]);
        });
        world.run_for(DIRECT_WITHIN);
        assert_eq!([world.is_direct(1, 2), world.is_direct(2, 1)], [is_advertised; 2]);
        assert!(world.has_way(1, 2) && world.has_way(2, 1));
    }
}

#[test]
fn a_direct_link_through_nats_stays_while_nothing_is_said() {
    let nat = |preserves_ports, claims_unasked| Behaviour {
        mapping: Dependence::AddressAndPort,
        filtering: Dependence::AddressAndPort,
        preserves_ports,
        claims_unasked,
    };
    for nats in [[nat(true, true), nat(true, false)], [nat(false, false), nat(true, false)]] {
        let mut world = behind(1, &nats);
        world.run_for(PREDICTED_WITHIN);
        for _ in 0..30 {
            world.run_for(Duration::from_secs(10));
            assert!(world.is_direct(1, 2) && world.is_direct(2, 1), "a mapping expired: {nats:?}");
        }
    }
}

/// Host 0 is public and named by the others, of which some are in networks without UDP.
fn without_udp(seed: u64) -> World {
    let mut world = World::new(seed, Ciphers::native(true), true);
    let count = world.rng.random_range(4..=12);
    for number in 0..count {
        let host = world.add_host();
        world.hosts[host].tcp_ports = vec![6783, 443];
        world.hosts[host].blocks_udp = number > 0 && world.rng.random_bool(0.4);
    }
    world.hosts[1].blocks_udp = true;
    start_all(&mut world);
    world
}

/// The transport of a host's link with each other, by their nicknames.
fn transports(world: &World, of: HostNumber) -> BTreeMap<String, Option<&'static str>> {
    let status = world.hosts[of].node.as_ref().map(|node| node.status(world.now));
    let peers = status.into_iter().flat_map(|status| status.peers);
    peers.map(|peer| (peer.name, peer.transport.filter(|_| peer.path == Some("direct")))).collect()
}

#[test]
fn hosts_without_udp_join_by_tcp_and_leave_it_when_udp_passes() {
    for seed in 0..10 {
        let mut world = without_udp(seed);
        let count = world.hosts.len();
        world.run_for(Duration::from_secs(3));
        for host in 1..count {
            assert!(world.has_way(host, 0) && world.has_way(0, host), "seed {seed}: h{host} has not joined");
        }
        world.run_for(Duration::from_secs(30));
        for (a, b) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            let blocked = world.hosts[a].blocks_udp || world.hosts[b].blocks_udp;
            let expected = Some(if blocked { "tcp" } else { "udp" });
            assert_eq!(transports(&world, a)[&format!("h{b}")], expected, "seed {seed}: h{a} to h{b}");
        }
        world.hosts.iter_mut().for_each(|host| host.blocks_udp = false);
        world.run_for(Duration::from_secs(25));
        for host in 0..count {
            assert!(transports(&world, host).values().all(|by| *by == Some("udp")), "seed {seed}: h{host}");
        }
    }
}

#[test]
fn a_host_whose_connection_breaks_is_back_by_another() {
    let mut world = without_udp(7);
    world.run_for(Duration::from_secs(5));
    for _ in 0..3 {
        world.crash(1);
        world.run_for(Duration::from_secs(20));
        world.start(1);
        world.connect(1, &[0]);
        world.run_for(Duration::from_secs(3));
        assert!(world.has_way(1, 0) && world.has_way(0, 1));
    }
    world.cut(0, 1);
    world.run_for(Duration::from_secs(60));
    world.heal(0, 1);
    world.run_for(Duration::from_secs(3));
    assert!(world.has_way(1, 0) && world.has_way(0, 1));
}

#[test]
fn hosts_behind_random_nats_find_the_best_way_after_what_happens_to_them() {
    // The full count: `cargo run --release -p weft-bench -- sim`.
    let outcomes: Vec<internet::Outcome> = (0..30).map(internet::run).collect();
    let missed: Vec<usize> = (0..30).filter(|seed| outcomes[*seed].found.is_none()).collect();
    // Many hosts that all have to be searched for take longer.
    assert!(missed.len() <= 1, "ports were not found within {:?} in seeds {missed:?}", internet::FOUND_WITHIN);
}
