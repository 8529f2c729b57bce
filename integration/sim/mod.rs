//! A whole mesh in one process, in virtual time, under one seed.
//!
//! [`world`] runs real nodes and real data paths on a simulated network with [`nat`]s; [`model`] says what must be true;
//! [`scenario`] makes random meshes and faults, [`internet`] such behind NATs; [`scale`] leads a mesh of any size; [`addresses`] does so for the hosts' address state machines alone. The same seed gives the same run, to the byte.

pub mod addresses;
mod connections;
pub mod disk;
pub mod faulty;
pub mod host;
pub mod internet;
pub mod model;
pub mod nat;
pub mod null;
mod queue;
pub mod relaying;
pub mod scale;
pub mod scenario;
mod sink;
mod underlay;
pub mod weather;
pub mod world;

use std::net::IpAddr;
use std::time::Duration;

pub use scenario::{Outcome, Scenario, run};
use weft_crypto::Ciphers;
use weft_mesh::frame::Mac;
use weft_mesh::records::EndpointRecord;
use weft_mesh::vnet::VnetHeader;
use weft_mesh::wire::SegmentId;
use world::{HostNumber, World};

/// The endpoint that tests of single situations give a host, all in one segment.
pub fn endpoint(host: HostNumber) -> EndpointRecord {
    EndpointRecord {
        segment: "s".into(),
        mac: mac(host),
        ips: [(IpAddr::from([10, 32, 0, host as u8 + 1]), 24)].into(),
        names: [].into(),
        health: Default::default(),
        services: [].into(),
    }
}

/// Its MAC.
pub fn mac(host: HostNumber) -> Mac {
    [2, 0, 0, 0, 0, host as u8 + 1]
}

/// Hosts that were all told of the first.
pub fn star(seed: u64, count: usize) -> World {
    let mut world = World::new(seed, Ciphers::native(true), true);
    for host in 0..count {
        world.add_host();
        world.start(host);
        world.connect(host, &[0]);
    }
    world
}

/// Starts all hosts, each with an endpoint; all but the first name the first.
pub fn start_all(world: &mut World) {
    for host in 0..world.hosts.len() {
        world.start(host);
        if host > 0 {
            world.connect(host, &[0]);
        }
        world.attach(host, [host as u8 + 1; 16], endpoint(host));
    }
}

/// Sends a frame from one host's endpoint to another's; whether it arrives.
pub fn arrives(world: &mut World, from: HostNumber, to: HostNumber) -> bool {
    world.hosts[to].delivered.clear();
    send(world, from, to);
    world.run_for(Duration::from_millis(50));
    got(world, from, to)
}

/// Sends a frame from one host's endpoint to another's.
pub fn send(world: &mut World, from: HostNumber, to: HostNumber) {
    world.send_frame(from, SegmentId::of("s"), &VnetHeader::default(), &mut frame(from, to));
}

/// Whether a host has the frame that another sent.
pub fn got(world: &World, from: HostNumber, to: HostNumber) -> bool {
    let expected = frame(from, to);
    world.hosts[to].delivered.iter().any(|(_, frame)| *frame == expected)
}

fn frame(from: HostNumber, to: HostNumber) -> Vec<u8> {
    let mut frame = [mac(to), mac(from)].concat();
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.resize(200, 7);
    frame
}
