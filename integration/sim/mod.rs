//! A whole mesh in one process, in virtual time, under one seed.
//!
//! [`world`] runs real nodes and real data paths on a simulated network with [`nat`]s; [`model`] says what must be true;
//! [`scenario`] makes random meshes and faults; [`scale`] leads a mesh of any size; [`addresses`] does so for the hosts' address state machines alone. The same seed gives the same run, to the byte.

pub mod addresses;
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

pub use scenario::{Outcome, Scenario, run};
