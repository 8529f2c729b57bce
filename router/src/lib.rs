//! The binary `weft`: the shell around the mesh node.
//!
//! A frame's way: [`dataplane::worker`] reads it from the TAP, the mesh crate decides and seals, [`transport`] sends it. A command's
//! way: [`cli`] → unix socket → [`daemon::control`] → [`daemon::node_task`] (which owns the node) and [`attach`]. What a router does is seen by
//! [`observe`].

pub mod attach;
pub mod cli;
pub mod daemon;
pub mod dataplane;
pub mod dns;
pub mod docker;
pub mod error;
pub mod host;
pub mod lab;
pub mod observe;
pub mod transport;
