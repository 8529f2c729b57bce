//! Fuzz targets: each takes any bytes, feeds them to one entrance of weft, and panics where weft breaks a promise.
//!
//! | target | bytes from | promise beside "no panic" |
//! |---|---|---|
//! | [`handshake`] | strangers and members, before a session | without a live secret no answer; no more answers than packets |
//! | [`control`] | a member, inside its session | bounded work for each message |
//! | [`records`] | a member, signed by it | bounded work for each batch |
//! | [`ipam`] | a member, about rings of addresses | an address handed out here is handed out once |
//! | [`frames`] | containers, and a member's data path | frames at the TAP fit their headers |
//! | [`dns`] | resolvers | answers fit what was asked for |
//! | [`plugin`] | the Docker engine | errors are one line |
//! | [`config`] | the configuration file | errors are one line |
//!
//! `scripts/fuzz` runs them with coverage guidance, tests replay their corpora.

pub mod config;
pub mod control;
pub mod dns;
pub mod frames;
pub mod handshake;
pub mod host;
pub mod ipam;
pub mod parts;
pub mod plugin;
pub mod records;

/// A fuzz target.
pub struct Target {
    /// The name: of its module, its binary and the folder of its corpus.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Valid inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident),*) => {
        /// All targets.
        pub const TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds }),*];
    };
}

targets!(handshake, control, records, ipam, frames, dns, plugin, config);
