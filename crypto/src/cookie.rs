//! The outer guards of the handshake (after WireGuard, NDSS 2017, section 5.3): a MAC that only
//! members can make, so that strangers meet silence, and under load a stateless cookie that proves an
//! initiator's return address before any costly work.

use std::time::Duration;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::time::Time;

/// Bytes of a MAC or a cookie.
pub const LEN: usize = 16;
/// How long a cookie is made with one key; the key before stays valid as long again.
const ROTATION: Duration = Duration::from_secs(60);

/// The membership MAC of `message` under `secret`.
pub fn member_mac(secret: &Secret, message: &[u8]) -> [u8; LEN] {
    short(&crate::keyed_hash(&secret.derive(b"member mac"), &[message]))
}

/// Returns the proof that the sender of `message` received `cookie`.
pub fn cookie_mac(cookie: &[u8; LEN], message: &[u8]) -> [u8; LEN] {
    let mut key = [0; 32];
    key[..LEN].copy_from_slice(cookie);
    short(&crate::keyed_hash(&key, &[b"cookie mac", message]))
}

/// Compares two MACs in constant time.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Makes and checks cookies without remembering whom they were given to.
pub struct CookieJar {
    current: Zeroizing<[u8; 32]>,
    previous: Zeroizing<[u8; 32]>,
    rotated: Time,
}

impl CookieJar {
    /// A jar keyed from `entropy`.
    pub fn new(entropy: [u8; 32], now: Time) -> Self {
        CookieJar { current: Zeroizing::new(entropy), previous: Zeroizing::new(entropy), rotated: now }
    }

    /// The cookie for a source, named by bytes that only its address determines.
    pub fn make(&mut self, source: &[u8], now: Time) -> [u8; LEN] {
        self.rotate(now);
        short(&crate::keyed_hash(&self.current, &[b"cookie", source]))
    }

    /// Whether `mac` over `message` was made with a cookie given to `source` lately.
    pub fn verify(&mut self, source: &[u8], message: &[u8], mac: &[u8], now: Time) -> bool {
        self.rotate(now);
        [&self.current, &self.previous].into_iter().any(|key| {
            let cookie = short(&crate::keyed_hash(key, &[b"cookie", source]));
            equal(&cookie_mac(&cookie, message), mac)
        })
    }

    fn rotate(&mut self, now: Time) {
        while now.since(self.rotated) >= ROTATION {
            self.previous = self.current.clone();
            self.current = Zeroizing::new(crate::keyed_hash(&self.current, &[b"next cookie key"]));
            let idle = now.since(self.rotated) >= 4 * ROTATION;
            self.rotated = if idle { now } else { self.rotated + ROTATION };
        }
    }
}

fn short(hash: &[u8; 32]) -> [u8; LEN] {
    core::array::from_fn(|i| hash[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_bind_source_and_message_and_expire() {
        let mut jar = CookieJar::new([3; 32], Time::ZERO);
        let cookie = jar.make(b"source", Time::ZERO);
        let mac = cookie_mac(&cookie, b"message");
        let at = |secs| Time::ZERO + Duration::from_secs(secs);
        assert!(jar.verify(b"source", b"message", &mac, at(1)));
        assert!(!jar.verify(b"elsewhere", b"message", &mac, at(1)));
        assert!(!jar.verify(b"source", b"other", &mac, at(1)));
        assert!(jar.verify(b"source", b"message", &mac, at(100)));
        assert!(!jar.verify(b"source", b"message", &mac, at(130)));
        assert!(!jar.verify(b"source", b"message", &mac, at(100_000)));
    }
}
