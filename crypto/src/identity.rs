//! Who a host is: an Ed25519 key pair (RFC 8032) whose X25519 form is the Noise static key.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A host's key pair.
#[derive(Clone)]
pub struct Identity {
    signing: SigningKey,
    id: PeerId,
}

impl Identity {
    /// Restores the identity from its 32-byte Ed25519 seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(seed);
        let id = PeerId(signing.verifying_key().to_bytes());
        Identity { signing, id }
    }

    /// The 32-byte Ed25519 seed, to be kept secret and on disk.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.signing.to_bytes())
    }

    /// The public key: the host's name to all others.
    pub fn peer_id(&self) -> PeerId {
        self.id
    }

    /// The X25519 form of the private key (clamped scalar, 32 bytes).
    pub(crate) fn noise_private(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.signing.to_scalar_bytes())
    }

    /// Signs `domain ‖ 0 ‖ message`; the domain keeps signatures of one kind from passing as another.
    pub fn sign(&self, domain: &str, message: &[u8]) -> [u8; 64] {
        self.signing.sign(&signed_bytes(domain, message)).to_bytes()
    }
}

/// A host's Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerId(pub [u8; 32]);

impl PeerId {
    /// The X25519 form of the key, which the Noise handshake proves; `None` if this is no valid key.
    pub fn noise_public(&self) -> Option<[u8; 32]> {
        Some(VerifyingKey::from_bytes(&self.0).ok()?.to_montgomery().to_bytes())
    }

    /// Whether `signature` is this host's over `domain ‖ 0 ‖ message` (strict verification).
    pub fn verify(&self, domain: &str, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(&signed_bytes(domain, message), &Signature::from_bytes(signature)).is_ok()
        })
    }

    /// The short form used for routing.
    pub fn label(&self) -> HostLabel {
        let hash = crate::keyed_hash(&[0; 32], &[b"weft host label", &self.0]);
        let mut label = [0; 6];
        label.copy_from_slice(&hash[..6]);
        HostLabel(label)
    }

    /// The first eight hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

fn signed_bytes(domain: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(domain.len() + 1 + message.len());
    bytes.extend_from_slice(domain.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(message);
    bytes
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for PeerId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).map_err(drop)?;
        Ok(PeerId(id))
    }
}

/// 48 bits of a hash of the [`PeerId`]: how envelopes name a host.
///
/// A collision can misdirect a datagram, never open one: sessions are bound to whole keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct HostLabel(pub [u8; 6]);

impl fmt::Debug for HostLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_keys_are_the_x25519_form_of_the_identity() {
        let identity = Identity::from_seed(&[7; 32]);
        let secret = x25519_dalek::StaticSecret::from(*identity.noise_private());
        let public = x25519_dalek::PublicKey::from(&secret);
        assert_eq!(Some(public.to_bytes()), identity.peer_id().noise_public());
    }

    #[test]
    fn signatures_hold_only_for_their_domain_message_and_key() {
        let (identity, other) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let signature = identity.sign("a", b"fact");
        assert!(identity.peer_id().verify("a", b"fact", &signature));
        assert!(!identity.peer_id().verify("b", b"fact", &signature));
        assert!(!identity.peer_id().verify("a", b"fiction", &signature));
        assert!(!other.peer_id().verify("a", b"fact", &signature));
    }

    #[test]
    fn peer_ids_survive_text_and_junk_is_refused() {
        let id = Identity::from_seed(&[3; 32]).peer_id();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("zz".repeat(32).parse::<PeerId>().is_err());
        assert!("é".repeat(32).parse::<PeerId>().is_err());
    }
}
