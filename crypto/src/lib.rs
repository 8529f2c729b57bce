//! Keys and ciphers of weft: host identity, the Noise handshake, sealed sessions, hop envelopes.
//!
//! Nothing here does I/O, reads a clock or asks the operating system for randomness: time comes in
//! as [`Time`], entropy as seed bytes. A packet's way through the crate:
//!
//! 1. [`Keyring`] holds the one or two network secrets that are live.
//! 2. [`handshake`] runs Noise `XXpsk0` or `IKpsk0` under one of them, guarded by [`cookie`].
//! 3. [`session`] turns the split keys into sending and receiving keys for frames.
//! 4. [`envelope`] is what relays see of a sealed datagram.
//! 5. [`identity`] signs the records that gossip spreads.

pub mod aead;
pub mod cookie;
pub mod envelope;
pub mod handshake;
pub mod identity;
mod noise;
pub mod replay;
pub mod secret;
pub mod session;
mod time;

pub use aead::{BulkAead, Ciphers, Suite, SuiteSet};
pub use identity::{HostLabel, Identity, PeerId};
pub use secret::{Keyring, Secret, SecretError};
pub use time::Time;

use blake2::digest::{FixedOutput, KeyInit, Update};

/// Keyed BLAKE2s (RFC 7693) over the concatenation of `parts`: the one PRF for key derivation and MACs.
pub fn keyed_hash(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = blake2::Blake2sMac256::new(key.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}
