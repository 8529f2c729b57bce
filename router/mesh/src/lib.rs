//! The mesh node: all of weft's protocol and state, without I/O, clock or OS randomness.
//!
//! A frame's way: [`egress`] → wire → [`ingress`], on a [`snapshot`] that the [`node`] publishes. Everything
//! that is not a frame goes through [`node::Node`].
//!
//! The node's contract: after each input, poll outputs until [`node::Output::Timeout`], which comes last and says when to call
//! again. The shell carries the outputs out; here a host alone allocates an address, and the disk is always fast.
//!
//! ```
//! use std::time::Duration;
//!
//! use weft_crypto::{Ciphers, Identity, Keyring, Time};
//! use weft_mesh::ipam::Request;
//! use weft_mesh::ipam::ring::Range;
//! use weft_mesh::node::{Command, Config, Input, Node, Output, Reply};
//!
//! let config = Config {
//!     identity: Identity::from_seed(&[1; 32]),
//!     name: "host1".into(),
//!     keyring: Keyring::insecure(),
//!     ciphers: Ciphers::native(false),
//!     underlay_mtu: 1500,
//!     container_mtu: 1450,
//!     port: 6783,
//!     tcp_ports: Vec::new(),
//!     advertised: Default::default(),
//!     is_stub: false,
//!     is_metered: false,
//!     discovery: true,
//!     grace: Duration::from_secs(3600),
//!     founds_alone: false,
//!     continues: false,
//!     endpoints: Vec::new(),
//!     restored: Vec::new(),
//! };
//! let mut now = Time::ZERO + Duration::from_secs(1);
//! let mut node = Node::new(config, [7; 32], now);
//! let range = Range::new([10, 32, 0, 0].into(), 12).expect("a range");
//! let request = Request { range, id: [1; 16], want: None, within: None };
//! node.handle_input(now, Input::Command(1, Command::Allocate(request)));
//! let address = 'run: loop {
//!     let mut input = Input::Timeout;
//!     let wake = loop {
//!         match node.poll_output() {
//!             Output::Reply(1, Ok(Reply::Address(address))) => break 'run address,
//!             Output::Durable(mark) => input = Input::Durable { mark, is_kept: true },
//!             Output::Timeout(at, _) => break at,
//!             // Datagrams to send, keys to persist, snapshots to publish, events to log.
//!             _ => {}
//!         }
//!     };
//!     if matches!(input, Input::Timeout) {
//!         now = now.max(wake);
//!     }
//!     node.handle_input(now, input);
//! };
//! assert!(range.contains(address) && !range.is_reserved(address));
//! ```

mod addresses;
mod api;
mod backoff;
mod bucket;
mod codec;
pub mod datapath;
mod directory;
pub mod explanation;
pub mod ipam;
pub mod names;
mod networks;
pub mod node;
pub mod path;
mod presence;
mod publisher;
pub mod records;
mod report;
mod segments;
mod sessions;
pub mod stored;
#[cfg(test)]
mod testing;
mod topology;
pub mod wire;

pub use datapath::{egress, frame, ingress, sink, snapshot, vnet};
pub use topology::routes;
