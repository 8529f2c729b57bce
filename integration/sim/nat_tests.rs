//! Hosts behind NATs of every kind, and in networks that let no UDP pass: who has a direct link with whom.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use weft_crypto::Ciphers;
use weft_integration::sim::endpoint;
use weft_integration::sim::nat::{Behaviour, Dependence};
use weft_integration::sim::world::{HostNumber, World};

/// How long two hosts may take until they have a direct link, and how long where ports have to be found.
const DIRECT_WITHIN: Duration = Duration::from_secs(3);
const PREDICTED_WITHIN: Duration = Duration::from_secs(10);

/// All NATs of RFC 4787, with and without port preservation, and Linux without a packet filter.
fn behaviours() -> Vec<Behaviour> {
    let mut all = Vec::new();
    for mapping in Dependence::ALL {
        for filtering in Dependence::ALL {
            for preserves_ports in [false, true] {
                all.push(Behaviour { mapping, filtering, preserves_ports, claims_unasked: false });
            }
        }
    }
    let of_both = Dependence::AddressAndPort;
    all.push(Behaviour { mapping: of_both, filtering: of_both, preserves_ports: true, claims_unasked: true });
    all
}

/// Whether others know at which port a NAT maps its host.
fn is_known(nat: Behaviour) -> bool {
    nat.mapping == Dependence::None || nat.preserves_ports
}

fn lets_any_port_in(nat: Behaviour) -> bool {
    nat.filtering != Dependence::AddressAndPort
}

/// Whether two hosts behind such NATs can have a direct link once one has found a port of the other's NAT: it has to come from where it is
/// let in, and the answer, too. Where only the question is sure to, it is a matter of luck.
fn can_be_predicted(a: Behaviour, b: Behaviour) -> Option<bool> {
    let can_be_found = |found: Behaviour, seeker: Behaviour| {
        let answers_from_there = found.mapping != Dependence::AddressAndPort;
        lets_any_port_in(found) && (answers_from_there || lets_any_port_in(seeker))
    };
    let is_sure = is_known(a) || is_known(b) || can_be_found(a, b) || can_be_found(b, a);
    let may_be_lucky = lets_any_port_in(a) || lets_any_port_in(b);
    (is_sure || !may_be_lucky).then_some(is_sure)
}

/// Whether two hosts behind such NATs can have a direct link, if neither searches for ports.
fn can_be_direct(a: Behaviour, b: Behaviour) -> bool {
    let lets_all_in = |nat: Behaviour| nat.filtering == Dependence::None;
    match (is_known(a), is_known(b)) {
        (true, true) => true,
        (true, false) => lets_any_port_in(a),
        (false, true) => lets_any_port_in(b),
        // What comes to the mapping that others see is let in by whom it lets all in, and answered from another port.
        (false, false) => (lets_all_in(a) && lets_any_port_in(b)) || (lets_all_in(b) && lets_any_port_in(a)),
    }
}

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

/// Starts all hosts, each with an endpoint; all but the first name the first.
fn start_all(world: &mut World) {
    for host in 0..world.hosts.len() {
        world.start(host);
        if host > 0 {
            world.connect(host, &[0]);
        }
        world.attach(host, [host as u8 + 1; 16], endpoint(host));
    }
}

fn has_way(world: &World, from: HostNumber, to: HostNumber) -> bool {
    let outbound = world.hosts[from].snapshot.outbound.get(&world.hosts[to].label);
    outbound.is_some_and(|outbound| outbound.hop.is_some() && outbound.send.is_some())
}

#[test]
fn two_hosts_have_a_direct_link_exactly_when_their_nats_allow_one_and_are_relayed_otherwise() {
    let all = behaviours();
    let (mut wrong, mut direct, mut predicted, mut pairs) = (Vec::new(), 0, 0, 0);
    for (number, a) in all.iter().enumerate() {
        for b in &all[number..] {
            for seed in 0..2 {
                let mut world = behind(seed, &[*a, *b]);
                world.run_for(DIRECT_WITHIN);
                let is_direct = |world: &World| world.is_direct(1, 2) && world.is_direct(2, 1);
                let (is, has_ways) = (is_direct(&world), has_way(&world, 1, 2) && has_way(&world, 2, 1));
                let is_enough = is || !can_be_direct(*a, *b);
                if !is {
                    world.run_for(PREDICTED_WITHIN - DIRECT_WITHIN);
                }
                let is_at_last = is_direct(&world);
                pairs += 1;
                direct += usize::from(is);
                predicted += usize::from(is_at_last && !is);
                let is_expected = can_be_predicted(*a, *b).is_none_or(|can| can == is_at_last);
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
fn hosts_behind_one_nat_find_each_other_inside() {
    for behaviour in behaviours() {
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
        assert!(has_way(&world, 1, 2) && has_way(&world, 2, 1));
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
            assert!(has_way(&world, host, 0) && has_way(&world, 0, host), "seed {seed}: h{host} has not joined");
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
        assert!(has_way(&world, 1, 0) && has_way(&world, 0, 1));
    }
    world.cut(0, 1);
    world.run_for(Duration::from_secs(60));
    world.heal(0, 1);
    world.run_for(Duration::from_secs(3));
    assert!(has_way(&world, 1, 0) && has_way(&world, 0, 1));
}
