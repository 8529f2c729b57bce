//! The hop envelope: all that a relay sees, changes and checks of a datagram.
//!
//! ```text
//! 0   1 kind (TRANSIT)
//! 1   1 TTL
//! 2   6 label of the host the datagram is for
//! 8   4 the receiving neighbour's index of the link (LE u32)
//! 12  8 SipHash-2-4 over bytes 0..12 under the link's key
//! ```
//!
//! It stands before every sealed packet, on direct paths too, so path MTU and stride never change with
//! the path. The MAC covers the envelope only: what is inside has its own seal, end to end.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;
use subtle::ConstantTimeEq;

use crate::identity::HostLabel;

/// Bytes of an envelope.
pub const LEN: usize = 20;
/// First byte of a datagram that carries an envelope.
pub const TRANSIT: u8 = 0x57;
/// Hops a datagram may take.
pub const MAX_TTL: u8 = 32;

/// A parsed envelope; nothing in it is to be believed before [`Envelope::verify`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Hops left.
    pub ttl: u8,
    /// Where the datagram is to go.
    pub destination: HostLabel,
    /// The receiver's index of the link it came over.
    pub link_index: u32,
    mac: [u8; 8],
}

impl Envelope {
    /// Reads the envelope at the start of a datagram.
    pub fn parse(datagram: &[u8]) -> Option<Envelope> {
        let bytes = datagram.first_chunk::<LEN>()?;
        if bytes[0] != TRANSIT {
            return None;
        }
        let (mut index, mut mac) = ([0; 4], [0; 8]);
        index.copy_from_slice(&bytes[8..12]);
        mac.copy_from_slice(&bytes[12..]);
        Some(Envelope { ttl: bytes[1], destination: destination(bytes), link_index: u32::from_le_bytes(index), mac })
    }

    /// Whether the neighbour holding `key` made this envelope.
    pub fn verify(&self, key: &[u8; 16]) -> bool {
        let bytes = encode(self.ttl, self.destination, self.link_index, key);
        bytes[12..].ct_eq(&self.mac).into()
    }
}

/// The host that the datagram behind an envelope is for.
#[inline]
pub fn destination(envelope: &[u8; LEN]) -> HostLabel {
    let mut label = [0; 6];
    label.copy_from_slice(&envelope[2..8]);
    HostLabel(label)
}

/// An envelope's bytes for the next hop, which knows the link by `link_index` and shares `key`.
pub fn encode(ttl: u8, destination: HostLabel, link_index: u32, key: &[u8; 16]) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[0] = TRANSIT;
    bytes[1] = ttl;
    bytes[2..8].copy_from_slice(&destination.0);
    bytes[8..12].copy_from_slice(&link_index.to_le_bytes());
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write(&bytes[..12]);
    bytes[12..].copy_from_slice(&hasher.finish().to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_breaks_the_mac() {
        let bytes = encode(MAX_TTL, HostLabel([1, 2, 3, 4, 5, 6]), 42, &[5; 16]);
        let parsed = Envelope::parse(&bytes).unwrap();
        assert_eq!((parsed.ttl, parsed.destination, parsed.link_index), (MAX_TTL, HostLabel([1, 2, 3, 4, 5, 6]), 42));
        assert!(parsed.verify(&[5; 16]) && !parsed.verify(&[6; 16]));
        for bit in 0..LEN * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Envelope::parse(&damaged).is_none_or(|envelope| !envelope.verify(&[5; 16])), "bit {bit}");
        }
        assert_eq!(Envelope::parse(&bytes[..LEN - 1]), None);
    }
}
