//! Sealing and opening the packets of one session, in place.
//!
//! A packet is `header ‖ text ‖ tag`; the header is the associated data:
//!
//! ```text
//! 0   4 receiver's index of the session (LE u32)
//! 4   8 counter (LE u64); its highest bit, which no counter reaches, says that the packet may overtake others
//! ```

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::aead::{BulkAead, Ciphers, Suite, TAG_LEN};
use crate::replay::ReplayWindow;

/// Bytes before the text of a packet.
pub const HEADER_LEN: usize = 12;
/// Bytes that a session adds to a text.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Packets after which a session should be renewed.
pub const REKEY_AFTER_PACKETS: u64 = 1 << 26;
/// Packets after which a session seals no more (RFC 9001, appendix B.1.1, for packets below 2^11 bytes).
pub const MAX_PACKETS: u64 = 1 << 28;

/// The counter's highest bit: the packet may overtake others.
const URGENT: u64 = 1 << 63;
/// The byte of a packet whose highest bit that is.
pub const URGENT_BYTE: usize = HEADER_LEN - 1;

/// The keys of a finished handshake, from one host's point of view.
pub struct SplitKeys {
    /// Seals what this host sends.
    pub send: Box<dyn BulkAead>,
    /// Opens what it receives.
    pub receive: Box<dyn BulkAead>,
    /// Authenticates the envelopes it sends to a neighbour.
    pub hop_send: [u8; 16],
    /// Checks the envelopes it receives from that neighbour.
    pub hop_receive: [u8; 16],
}

impl SplitKeys {
    /// Derives per-purpose keys from the two halves of a Noise split; the suite is in the label, so a
    /// key never serves two algorithms.
    pub(crate) fn derive(send: &[u8; 32], receive: &[u8; 32], suite: Suite, ciphers: &Ciphers) -> Self {
        let bulk = |key: &[u8; 32]| {
            let key = zeroize::Zeroizing::new(crate::keyed_hash(key, &[b"weft frames ", suite.name().as_bytes()]));
            ciphers.source.bulk(suite, &key)
        };
        let hop = |key: &[u8; 32]| {
            let hash = crate::keyed_hash(key, &[b"weft hop"]);
            core::array::from_fn(|i| hash[i])
        };
        SplitKeys { send: bulk(send), receive: bulk(receive), hop_send: hop(send), hop_receive: hop(receive) }
    }
}

/// The sending half of a session. Shared by all workers.
pub struct SendKey {
    aead: Box<dyn BulkAead>,
    remote_index: u32,
    next: AtomicU64,
}

/// The session has sealed [`MAX_PACKETS`]: nothing was reserved, a new session is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session's counters are used up")]
pub struct Exhausted;

impl SendKey {
    /// A key for packets that the other side knows by `remote_index`.
    pub fn new(aead: Box<dyn BulkAead>, remote_index: u32) -> Self {
        SendKey { aead, remote_index, next: AtomicU64::new(0) }
    }

    /// Reserves `count` counters in one step. Each may be used once; what is not used is lost.
    pub fn reserve(&self, count: u64) -> Result<Range<u64>, Exhausted> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        if first.saturating_add(count) > MAX_PACKETS {
            return Err(Exhausted);
        }
        Ok(first..first + count)
    }

    /// How many counters have been reserved.
    pub fn used(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Writes header and tag around the text of `packet` (header, text, room for the tag) and encrypts
    /// the text. `counter` must come from [`SendKey::reserve`]. Panics if `packet` is shorter than [`OVERHEAD`].
    /// `is_urgent`: hosts on the way and at the end may take it before packets that came earlier.
    pub fn seal(&self, counter: u64, is_urgent: bool, packet: &mut [u8]) {
        let (header, rest) = packet.split_at_mut(HEADER_LEN);
        header[..4].copy_from_slice(&self.remote_index.to_le_bytes());
        let field = if is_urgent { counter | URGENT } else { counter };
        header[4..].copy_from_slice(&field.to_le_bytes());
        let (text, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
        tag.copy_from_slice(&self.aead.seal(counter, header, text));
    }
}

/// The receiving half of a session. Shared by all workers.
pub struct ReceiveKey {
    aead: Box<dyn BulkAead>,
    window: Mutex<ReplayWindow>,
}

/// Why a packet was not opened. The replay window did not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Too short to be a packet.
    Short,
    /// Seen before, or older than the window.
    Replayed,
    /// The tag does not match.
    Forged,
}

impl ReceiveKey {
    /// A key with an empty replay window.
    pub fn new(aead: Box<dyn BulkAead>) -> Self {
        ReceiveKey { aead, window: Mutex::default() }
    }

    /// Locks the window for a run of packets: one lock a run, not a packet.
    pub fn opener(&self) -> Opener<'_> {
        // A panic elsewhere cannot leave the window half-updated in a way that re-admits a packet.
        Opener { aead: &*self.aead, window: self.window.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// Opens the packets of a run.
pub struct Opener<'a> {
    aead: &'a dyn BulkAead,
    window: MutexGuard<'a, ReplayWindow>,
}

impl Opener<'_> {
    /// Checks the window, opens `packet` in place, then marks the window; returns the text.
    pub fn open<'p>(&mut self, packet: &'p mut [u8]) -> Result<&'p mut [u8], OpenError> {
        if packet.len() < OVERHEAD {
            return Err(OpenError::Short);
        }
        let (header, sealed) = packet.split_at_mut(HEADER_LEN);
        let Some(counter) = counter_of(header) else { return Err(OpenError::Short) };
        if !self.window.is_fresh(counter) {
            return Err(OpenError::Replayed);
        }
        if !self.aead.open(counter, header, sealed) {
            return Err(OpenError::Forged);
        }
        self.window.mark(counter);
        let text = sealed.len() - TAG_LEN;
        Ok(&mut sealed[..text])
    }
}

/// The receiver's index in a packet's header; `None` if it is too short.
pub fn index_of(packet: &[u8]) -> Option<u32> {
    packet.first_chunk::<4>().map(|index| u32::from_le_bytes(*index))
}

/// The counter in a packet's header; `None` if it is too short.
pub fn counter_of(packet: &[u8]) -> Option<u64> {
    packet.get(4..)?.first_chunk::<8>().map(|counter| u64::from_le_bytes(*counter) & !URGENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::{CipherSource, Native};

    fn pair() -> (SendKey, ReceiveKey) {
        let bulk = || Native.bulk(Suite::Aes256Gcm, &[9; 32]);
        (SendKey::new(bulk(), 77), ReceiveKey::new(bulk()))
    }

    fn packet(key: &SendKey, counter: u64, text: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; OVERHEAD + text.len()];
        packet[HEADER_LEN..HEADER_LEN + text.len()].copy_from_slice(text);
        key.seal(counter, counter % 2 == 1, &mut packet);
        packet
    }

    #[test]
    fn packets_open_once_in_any_order_and_only_unchanged() {
        let (send, receive) = pair();
        let packets: Vec<_> = send.reserve(3).unwrap().map(|counter| packet(&send, counter, b"frame")).collect();
        let mut opener = receive.opener();
        assert_eq!([0, 1, 2].map(|index: usize| packets[index][URGENT_BYTE] >= 0x80), [false, true, false]);
        for index in [2, 0, 1] {
            for bit in 0..packets[index].len() * 8 {
                let mut damaged = packets[index].clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(opener.open(&mut damaged).is_err());
            }
            for cut in 0..packets[index].len() {
                assert!(opener.open(&mut packets[index][..cut].to_vec()).is_err());
            }
            assert_eq!(opener.open(&mut packets[index].clone()).unwrap(), b"frame");
            assert_eq!(opener.open(&mut packets[index].clone()), Err(OpenError::Replayed));
        }
        assert_eq!(index_of(&packets[0]), Some(77));
    }

    #[test]
    fn counters_are_unique_and_end_before_the_cipher_does() {
        let (send, _) = pair();
        assert_eq!(send.reserve(5), Ok(0..5));
        assert_eq!(send.reserve(1), Ok(5..6));
        assert_eq!(send.reserve(MAX_PACKETS - 6), Ok(6..MAX_PACKETS));
        assert_eq!(send.reserve(1), Err(Exhausted));
        assert_eq!(send.reserve(1), Err(Exhausted));
    }
}
