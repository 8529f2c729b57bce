//! The binary `weft`: the shell around the mesh node.
//!
//! A frame's way: [`worker`] reads it from the TAP, the mesh crate decides and seals, the worker sends it. A command's
//! way: [`cli`] → [`client`] → unix socket → [`control`] → [`engine`] (which owns the node) and [`attachments`].

pub mod addresses;
pub mod attachment;
pub mod attachments;
pub mod cli;
pub mod client;
mod conntrack;
pub mod control;
pub mod demo;
pub mod dns;
pub mod docker;
pub mod engine;
pub mod error;
pub mod install;
mod interfaces;
pub mod lab;
pub mod launch;
pub mod netlink;
pub mod options;
pub mod polling;
pub mod routing;
mod running;
pub mod state;
pub mod status;
pub mod taps;
pub mod target;
pub mod udp;
mod underlay;
pub mod worker;
