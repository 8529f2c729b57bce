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
//!
//! Two hosts that share a secret meet, and one seals a packet for the other:
//!
//! ```
//! use weft_crypto::handshake::{Answer, Initiator, Local, Offer, Pattern, Responder};
//! use weft_crypto::session::{HEADER_LEN, OVERHEAD, ReceiveKey, SendKey};
//! use weft_crypto::{Ciphers, Identity, Secret};
//!
//! // Entropy comes from the caller; here it is not random.
//! let secret = Secret::from_text(&Secret::generate(&core::array::from_fn(|i| (i * 37) as u8 ^ 91)))?;
//! let ciphers = Ciphers::native(true);
//! let (alice, bob) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
//! let local = |identity, entropy| Local { identity, boot: 1, secret: &secret, ciphers: &ciphers, entropy: [entropy; 32] };
//!
//! // Noise XX, since they have not met before: three messages.
//! let (initiator, first) = Initiator::start(local(&alice, 3), None)?;
//! let offer = Offer { suites: ciphers.offered, boot: 1 };
//! let answer = Responder::answer(local(&bob, 4), Pattern::Xx, offer, &first, |_| None)?;
//! let Answer::Waiting(responder, second) = answer else { unreachable!("XX has a third message") };
//! let (at_alice, third) = initiator.finish(&second)?;
//! let at_bob = responder.finish(&third.expect("XX has a third message"))?;
//! assert_eq!((at_alice.peer, at_bob.peer), (bob.peer_id(), alice.peer_id()));
//!
//! // The keys of one direction. A counter is reserved for each packet, and used once.
//! let (send, receive) = (SendKey::new(at_alice.keys.send, 5), ReceiveKey::new(at_bob.keys.receive));
//! let mut packet = vec![0; OVERHEAD + 5];
//! packet[HEADER_LEN..HEADER_LEN + 5].copy_from_slice(b"hello");
//! send.seal(send.reserve(1)?.start, false, &mut packet);
//! let copy = packet.clone();
//! assert_eq!(receive.opener().open(&mut packet), Ok(&mut b"hello"[..].to_vec()[..]));
//! assert!(receive.opener().open(&mut copy.clone()).is_err(), "a replay");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
