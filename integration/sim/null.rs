//! A cipher that costs nothing, for meshes too large to simulate with real ones. It exists only here.

use std::sync::Arc;

use weft_crypto::aead::{CipherSource, TAG_LEN};
use weft_crypto::{BulkAead, Ciphers, Suite, SuiteSet};

/// Ciphers that check keys and damage, and hide nothing.
pub fn ciphers() -> Ciphers {
    Ciphers { offered: SuiteSet::CHACHA_ONLY, source: Arc::new(Null) }
}

struct Null;

impl CipherSource for Null {
    fn bulk(&self, _: Suite, key: &[u8; 32]) -> Box<dyn BulkAead> {
        Box::new(NullKey(key[..8].try_into().expect("eight bytes of 32")))
    }
}

struct NullKey([u8; 8]);

impl NullKey {
    fn tag(&self, counter: u64, text: &[u8]) -> [u8; TAG_LEN] {
        let mut tag = [0; TAG_LEN];
        tag[..8].copy_from_slice(&self.0);
        let sum = text.iter().fold(counter, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte));
        tag[8..].copy_from_slice(&sum.to_le_bytes());
        tag
    }
}

impl BulkAead for NullKey {
    fn seal(&self, counter: u64, _: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        self.tag(counter, text)
    }

    fn open(&self, counter: u64, _: &[u8], sealed: &mut [u8]) -> bool {
        let (text, tag) = sealed.split_at(sealed.len() - TAG_LEN);
        self.tag(counter, text) == tag
    }
}
