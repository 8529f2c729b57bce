//! Records, and the signed batches they travel and are kept in.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_crypto::{Identity, PeerId};

/// The longest key of a record, in bytes.
pub const MAX_KEY: usize = 64;
/// The highest incarnation: what is above leaves no room to write above it, and no host starts that often.
pub const MAX_INCARNATION: u64 = 1 << 40;
/// The longest value of a record, in bytes.
pub const MAX_VALUE: usize = 768;
/// The longest encoded batch with its signature, in bytes: it always fits one datagram.
pub const MAX_BATCH: usize = 1024;

const SIGNATURE_LEN: usize = 64;
const DOMAIN: &str = "weft record batch 1";

/// The order of an origin's batches. No wall clock: a later incarnation beats any earlier one, a
/// generation re-issues the whole live set, the sequence counts batches from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Version {
    /// Raised at each start of the origin.
    pub incarnation: u64,
    /// Raised at each compaction.
    pub generation: u64,
    /// Counts the batches of a generation, from 1; 0 in a digest means none of them.
    pub sequence: u64,
}

/// Which log a batch belongs to, in the order of logs. The boot tag is between incarnation and generation: two
/// lives that wrote under one incarnation (a restored disk, a cloned host) are ordered the same way everywhere.
pub(crate) type LogId = (u64, u32, u64);

impl Version {
    pub(crate) fn log(self, boot: u32) -> LogId {
        (self.incarnation, boot, self.generation)
    }
}

/// One change: a value set, or (with `None`) a key deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// What the value is filed under, at most [`MAX_KEY`] bytes.
    pub key: Vec<u8>,
    /// At most [`MAX_VALUE`] bytes.
    pub value: Option<Vec<u8>>,
}

impl Change {
    /// Upper bound of the encoded size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len) + 6
    }

    fn is_within_limits(&self) -> bool {
        (1..=MAX_KEY).contains(&self.key.len()) && self.value.as_ref().is_none_or(|value| value.len() <= MAX_VALUE)
    }
}

#[derive(Serialize, Deserialize)]
struct Body {
    origin: PeerId,
    version: Version,
    boot: u32,
    snapshot: u64,
    changes: Vec<Change>,
}

/// A run of changes by one origin, signed by it and never altered after.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Who wrote it.
    pub origin: PeerId,
    /// Its place in the origin's log.
    pub version: Version,
    /// Tag of the origin's boot: two writers under one version are told apart by it.
    pub boot: u32,
    /// How many batches, from sequence 1, re-issue the live set of this generation.
    pub snapshot: u64,
    /// What it says.
    pub changes: Vec<Change>,
    /// The batch as it travels: body, then signature.
    pub encoded: Bytes,
}

/// Why bytes are no batch. Nothing was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// Not encoded as a batch, or over a limit.
    #[error("malformed")]
    Malformed,
    /// Not signed by the origin it names.
    #[error("not signed by its origin")]
    Forged,
}

impl Batch {
    /// Signs `changes` as `identity`'s batch at `version`. The caller keeps them within [`MAX_BATCH`].
    pub(crate) fn sign(identity: &Identity, version: Version, boot: u32, snapshot: u64, changes: Vec<Change>) -> Self {
        let body = Body { origin: identity.peer_id(), version, boot, snapshot, changes };
        // Serialising plain data into a Vec has no way to fail.
        let mut encoded = postcard::to_allocvec(&body).expect("plain data");
        let signature = identity.sign(DOMAIN, &encoded);
        encoded.extend_from_slice(&signature);
        let Body { origin, changes, .. } = body;
        Batch { origin, version, boot, snapshot, changes, encoded: encoded.into() }
    }

    pub(crate) fn log(&self) -> LogId {
        self.version.log(self.boot)
    }

    /// Parses a batch; its signature is checked by [`Batch::verify`].
    pub fn parse(encoded: &Bytes) -> Result<Self, BatchError> {
        if encoded.len() > MAX_BATCH || encoded.len() <= SIGNATURE_LEN {
            return Err(BatchError::Malformed);
        }
        let (body, _) = encoded.split_at(encoded.len() - SIGNATURE_LEN);
        let (body, rest) = postcard::take_from_bytes::<Body>(body).map_err(|_| BatchError::Malformed)?;
        let valid = rest.is_empty()
            && body.changes.iter().all(Change::is_within_limits)
            && body.version.sequence > 0
            && (1..=MAX_INCARNATION).contains(&body.version.incarnation);
        if !valid {
            return Err(BatchError::Malformed);
        }
        let Body { origin, version, boot, snapshot, changes } = body;
        Ok(Batch { origin, version, boot, snapshot, changes, encoded: encoded.clone() })
    }

    /// Checks the origin's signature.
    pub fn verify(&self) -> Result<(), BatchError> {
        let (body, signature) = self.encoded.split_at(self.encoded.len() - SIGNATURE_LEN);
        let signature = signature.try_into().map_err(|_| BatchError::Malformed)?;
        if self.origin.verify(DOMAIN, body, signature) { Ok(()) } else { Err(BatchError::Forged) }
    }
}

/// Cuts changes into lists that each fit one batch.
pub(crate) fn pack(changes: impl IntoIterator<Item = Change>) -> Vec<Vec<Change>> {
    const ROOM: usize = MAX_BATCH - SIGNATURE_LEN - 32 - 4 * 10 - 5 - 5;
    let (mut packed, mut current, mut size) = (Vec::new(), Vec::new(), 0);
    for change in changes {
        if size + change.size() > ROOM && !current.is_empty() {
            packed.push(std::mem::take(&mut current));
            size = 0;
        }
        size += change.size();
        current.push(change);
    }
    if !current.is_empty() {
        packed.push(current);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_change_fits_a_batch_and_damage_is_found() {
        let identity = Identity::from_seed(&[1; 32]);
        let version = Version { incarnation: MAX_INCARNATION, generation: u64::MAX, sequence: u64::MAX };
        let change = Change { key: vec![1; MAX_KEY], value: Some(vec![2; MAX_VALUE]) };
        assert_eq!(pack([change.clone(), change.clone()]).len(), 2);
        let batch = Batch::sign(&identity, version, u32::MAX, u64::MAX, vec![change]);
        assert!(batch.encoded.len() <= MAX_BATCH);
        let parsed = Batch::parse(&batch.encoded).unwrap();
        assert_eq!(parsed, batch);
        assert_eq!(parsed.verify(), Ok(()));
        for byte in 0..batch.encoded.len() {
            let mut damaged = batch.encoded.to_vec();
            damaged[byte] ^= 0x10;
            assert!(Batch::parse(&damaged.into()).and_then(|batch| batch.verify()).is_err(), "byte {byte}");
        }
    }

    #[test]
    fn many_small_changes_share_batches_within_the_limit() {
        let identity = Identity::from_seed(&[1; 32]);
        let changes = (0..500u32).map(|n| Change { key: n.to_be_bytes().into(), value: Some(vec![7; 20]) });
        let packed = pack(changes);
        assert!(packed.len() < 25);
        for changes in packed {
            let batch = Batch::sign(&identity, Version::default(), 0, 0, changes);
            assert!(batch.encoded.len() <= MAX_BATCH);
        }
    }
}
