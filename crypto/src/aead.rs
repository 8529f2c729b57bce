//! The bulk ciphers behind one small trait.
//!
//! Frames are sealed by the fastest audited implementation at hand (aws-lc-rs); RustCrypto's runs the
//! handshake and is the reference the tests compare against. Nonces are 96 bits made from a counter the
//! way Noise does it: 4 zero bytes, then the counter, little-endian for ChaCha20-Poly1305 (RFC 8439) and
//! big-endian for AES-256-GCM (NIST SP 800-38D).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Bytes that sealing adds.
pub const TAG_LEN: usize = 16;

/// One key of one cipher suite, for packets in place.
pub trait BulkAead: Send + Sync {
    /// Encrypts `text` in place and returns the tag. A counter must never be used twice under one key.
    fn seal(&self, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN];

    /// Decrypts `sealed` (text, then tag) in place; false if the tag does not match, and then the
    /// content of `sealed` is undefined.
    fn open(&self, counter: u64, aad: &[u8], sealed: &mut [u8]) -> bool;
}

/// A cipher suite, in the order of its number on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Suite {
    /// ChaCha20-Poly1305 (RFC 8439): always there.
    ChaCha20Poly1305 = 0,
    /// AES-256-GCM: preferred where both ends have AES hardware.
    Aes256Gcm = 1,
}

impl Suite {
    /// Best first.
    const PREFERENCE: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    pub(crate) fn from_wire(number: u8) -> Option<Suite> {
        Self::PREFERENCE.into_iter().find(|suite| *suite as u8 == number)
    }

    /// The name in status output and key derivation.
    pub fn name(self) -> &'static str {
        match self {
            Suite::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Suite::Aes256Gcm => "AES-256-GCM",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The suites a host offers: a bit set on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SuiteSet(pub u8);

impl SuiteSet {
    /// ChaCha20-Poly1305 alone.
    pub const CHACHA_ONLY: SuiteSet = SuiteSet(1);
    /// Both suites.
    pub const ALL: SuiteSet = SuiteSet(0b11);

    /// Whether `suite` is offered; ChaCha20-Poly1305 always is.
    pub fn contains(self, suite: Suite) -> bool {
        suite == Suite::ChaCha20Poly1305 || self.0 & (1 << suite as u8) != 0
    }

    /// The suite two hosts use together.
    pub fn best_common(self, other: SuiteSet) -> Suite {
        Suite::PREFERENCE
            .into_iter()
            .find(|suite| self.contains(*suite) && other.contains(*suite))
            .unwrap_or(Suite::ChaCha20Poly1305)
    }
}

/// Makes bulk keys. The one implementation here is [`Native`]; simulations may bring their own.
pub trait CipherSource: Send + Sync {
    /// A key of `suite`.
    fn bulk(&self, suite: Suite, key: &[u8; 32]) -> Box<dyn BulkAead>;
}

/// Which ciphers a host offers, and where its bulk keys come from.
#[derive(Clone)]
pub struct Ciphers {
    /// What is offered in handshakes.
    pub offered: SuiteSet,
    /// Where keys come from.
    pub source: Arc<dyn CipherSource>,
}

impl Ciphers {
    /// The real ciphers; AES-256-GCM is offered if `aes_hardware`.
    pub fn native(aes_hardware: bool) -> Self {
        let offered = if aes_hardware { SuiteSet::ALL } else { SuiteSet::CHACHA_ONLY };
        Ciphers { offered, source: Arc::new(Native) }
    }
}

/// aws-lc-rs.
pub struct Native;

impl CipherSource for Native {
    fn bulk(&self, suite: Suite, key: &[u8; 32]) -> Box<dyn BulkAead> {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        // Both algorithms take 32-byte keys, the only thing that can be refused.
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).expect("32-byte key"));
        Box::new(NativeKey { key, suite })
    }
}

struct NativeKey {
    key: LessSafeKey,
    suite: Suite,
}

impl BulkAead for NativeKey {
    fn seal(&self, counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(nonce_bytes(self.suite, counter));
        // Refused only above 2^36 bytes; a datagram is below 2^16.
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).expect("datagram-sized text");
        let mut bytes = [0; TAG_LEN];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    fn open(&self, counter: u64, aad: &[u8], sealed: &mut [u8]) -> bool {
        let nonce = Nonce::assume_unique_for_key(nonce_bytes(self.suite, counter));
        self.key.open_in_place(nonce, Aad::from(aad), sealed).is_ok()
    }
}

/// The 96-bit nonce of `counter` as Noise (revision 34, section 12) lays it out for `suite`.
pub fn nonce_bytes(suite: Suite, counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&match suite {
        Suite::ChaCha20Poly1305 => counter.to_le_bytes(),
        Suite::Aes256Gcm => counter.to_be_bytes(),
    });
    nonce
}

#[cfg(test)]
mod tests {
    use aes_gcm::Aes256Gcm;
    use chacha20poly1305::ChaCha20Poly1305;
    use chacha20poly1305::aead::{AeadInOut, KeyInit};
    use rand::{Rng, RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn reference_seal(suite: Suite, key: &[u8; 32], counter: u64, aad: &[u8], text: &mut [u8]) -> [u8; 16] {
        let nonce = nonce_bytes(suite, counter);
        match suite {
            Suite::ChaCha20Poly1305 => ChaCha20Poly1305::new(key.into())
                .encrypt_inout_detached(&nonce.into(), aad, text.into())
                .unwrap()
                .into(),
            Suite::Aes256Gcm => {
                Aes256Gcm::new(key.into()).encrypt_inout_detached(&nonce.into(), aad, text.into()).unwrap().into()
            }
        }
    }

    #[test]
    fn bulk_ciphers_equal_rustcrypto_byte_for_byte() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for round in 0..400 {
            let suite = if round % 2 == 0 { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm };
            let (mut key, mut aad) = ([0; 32], [0; 12]);
            rng.fill_bytes(&mut key);
            rng.fill_bytes(&mut aad);
            let counter = rng.random::<u64>();
            let mut text = vec![0; rng.random_range(0..3000)];
            rng.fill_bytes(&mut text);

            let mut expected = text.clone();
            let tag = reference_seal(suite, &key, counter, &aad, &mut expected);
            let bulk = Native.bulk(suite, &key);
            let mut sealed = text.clone();
            assert_eq!(bulk.seal(counter, &aad, &mut sealed), tag);
            assert_eq!(sealed, expected);

            sealed.extend_from_slice(&tag);
            let mut damaged = sealed.clone();
            let bit = rng.random_range(0..damaged.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!bulk.open(counter, &aad, &mut damaged));
            assert!(!bulk.open(counter ^ 1, &aad, &mut sealed.clone()));
            assert!(!bulk.open(counter, &aad[1..], &mut sealed.clone()));
            assert!(bulk.open(counter, &aad, &mut sealed));
            assert_eq!(sealed[..text.len()], text);
        }
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    /// RFC 8439, appendix A.5's AEAD vector uses a nonce with non-zero leading bytes, so it goes through the
    /// library directly; section 2.8.2's inputs likewise. What is checked here is that the algorithm is the RFC's.
    #[test]
    fn chacha20_poly1305_is_the_rfc_8439_section_2_8_2_algorithm() {
        let key: [u8; 32] = core::array::from_fn(|i| 0x80 + i as u8);
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).unwrap());
        let nonce: [u8; 12] = unhex("070000004041424344454647").try_into().unwrap();
        let aad = unhex("50515253c0c1c2c3c4c5c6c7");
        let mut text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it."
            .to_vec();
        let tag =
            key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut text).unwrap();
        assert_eq!(text[..16], unhex("d31a8d34648e60db7b86afbc53ef7ec2"));
        assert_eq!(tag.as_ref(), unhex("1ae10b594f09e26a7e902ecbd0600691"));
    }

    /// NIST GCM validation vectors (McGrew and Viega, test cases 13 and 14): zero key, zero nonce.
    #[test]
    fn aes_256_gcm_is_the_nist_algorithm() {
        let bulk = Native.bulk(Suite::Aes256Gcm, &[0; 32]);
        assert_eq!(bulk.seal(0, &[], &mut []).to_vec(), unhex("530f8afbc74536b9a963b4f1c4cb738b"));
        let mut text = [0; 16];
        assert_eq!(bulk.seal(0, &[], &mut text).to_vec(), unhex("d0d1c8a799996bf0265b98b5d48ab919"));
        assert_eq!(text.to_vec(), unhex("cea7403d4d606b6e074ec5d3baf39d18"));
    }

    #[test]
    fn the_best_common_suite_needs_aes_on_both_ends() {
        let (all, chacha) = (SuiteSet::ALL, SuiteSet::CHACHA_ONLY);
        assert_eq!(all.best_common(all), Suite::Aes256Gcm);
        assert_eq!(all.best_common(chacha), Suite::ChaCha20Poly1305);
        assert_eq!(SuiteSet(0).best_common(all), Suite::ChaCha20Poly1305);
    }
}
