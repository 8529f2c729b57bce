//! A whole mesh in one process, in virtual time, under one seed.
//!
//! [`world`] runs real nodes and real data paths on a simulated network with [`nat`]s; [`model`] says what must be true;
//! [`scenario`] makes random meshes and faults; [`scale`] leads a mesh of any size; [`addresses`] does so for the hosts' address state machines alone. The same seed gives the same run, to the byte.

pub mod addresses;
mod connections;
pub mod disk;
pub mod model;
pub mod nat;
pub mod null;
mod queue;
pub mod scale;
pub mod scenario;
mod sink;
mod underlay;
pub mod weather;
pub mod world;

use std::net::IpAddr;

pub use scenario::{Outcome, Scenario, run};
use weft_mesh::frame::Mac;
use weft_mesh::records::EndpointRecord;
use world::HostNumber;

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
