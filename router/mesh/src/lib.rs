//! The mesh node: all of weft's protocol and state, without I/O, clock or OS randomness.
//!
//! A frame's way: [`egress`] → wire → [`ingress`], on a [`snapshot`] that the [`node`] publishes. Everything
//! that is not a frame goes through [`node::Node`].

pub mod datapath;
pub mod egress;
mod flows;
pub mod frame;
pub mod ingress;
pub mod ipam;
mod join;
pub mod names;
mod neighbour;
pub mod node;
mod reassembly;
pub mod records;
pub mod routes;
pub mod sink;
pub mod snapshot;
pub mod vnet;
pub mod wire;
