//! Anti-entropy: what two hosts say to find out which batches one of them lacks.
//!
//! 1. [`Message::Summary`]: a hash of all versions held. Equal: done, in 20 bytes.
//! 2. [`Message::Digest`]: the versions held in a range of origins; an origin of the range that is not
//!    listed is not held. The receiver answers with what is newer here, and with its own digest of the range
//!    if the sender holds something newer.
//! 3. [`Message::Batches`]: the missing batches, oldest first, bounded; `more` asks for another digest.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_crypto::HostLabel;

use crate::record::{LogId, MAX_BATCH, Version};

/// Entries of one digest message.
pub const DIGEST_ENTRIES: usize = 32;
/// Bytes of batches sent in answer to one digest message.
pub const DELTA_BYTES: usize = 64 * 1024;

/// Bytes of a batch's length in a message.
const LENGTH_BYTES: usize = 2;

/// What one host holds of one origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The origin.
    pub origin: HostLabel,
    /// Up to where its newest log is held.
    pub version: Version,
    /// The boot tag of that log.
    pub boot: u32,
}

impl Held {
    pub(crate) fn log(&self) -> LogId {
        self.version.log(self.boot)
    }

    /// How far it goes: logs first, then batches of one.
    pub(crate) fn extent(&self) -> (LogId, u64) {
        (self.log(), self.version.sequence)
    }
}

/// A gossip message; encoded it is below 1,100 bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Hash over everything held.
    Summary {
        /// Equal hashes mean equal holdings.
        hash: u64,
    },
    /// Versions held of the origins from `from` to `to`, both included.
    Digest {
        /// First label of the range.
        from: HostLabel,
        /// Last label of the range.
        to: HostLabel,
        /// What is held, sorted by label.
        held: Vec<Held>,
        /// Whether this answers a digest, so that two hosts do not ask each other in turns for ever.
        answer: bool,
    },
    /// Batches the receiver lacks, or new ones pushed to it.
    Batches {
        /// Encoded batches.
        batches: Vec<Bytes>,
        /// Whether there is more to fetch.
        more: bool,
    },
    /// Answers a summary, or a digest of one origin that is no answer: the same is held here.
    Same,
}

impl Message {
    /// Returns messages that carry batches, as many in each as fit; the last one says whether there is more to fetch.
    pub fn carrying(batches: impl IntoIterator<Item = Bytes>, more: bool) -> Vec<Message> {
        let mut groups: Vec<(usize, Vec<Bytes>)> = Vec::new();
        for batch in batches {
            let len = batch.len() + LENGTH_BYTES;
            match groups.last_mut().filter(|(bytes, _)| bytes + len <= MAX_BATCH + LENGTH_BYTES) {
                Some((bytes, group)) => {
                    *bytes += len;
                    group.push(batch);
                }
                None => groups.push((len, vec![batch])),
            }
        }
        let count = groups.len();
        let message = |(index, (_, batches))| Message::Batches { batches, more: more && index + 1 == count };
        groups.into_iter().enumerate().map(message).collect()
    }

    /// Encodes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        // Serialising plain data into a Vec has no way to fail.
        postcard::to_allocvec(self).expect("plain data")
    }

    /// Decodes what [`Message::encode`] made; `None` if it is malformed or over a limit.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        let (message, rest) = postcard::take_from_bytes::<Message>(bytes).ok()?;
        let valid = match &message {
            Message::Summary { .. } | Message::Same => true,
            Message::Digest { from, to, held, .. } => {
                held.len() <= DIGEST_ENTRIES
                    && from <= to
                    && held.is_sorted_by(|a, b| a.origin < b.origin)
                    && held.iter().all(|held| (*from..=*to).contains(&held.origin))
            }
            Message::Batches { batches, .. } => batches.iter().all(|batch| batch.len() <= MAX_BATCH),
        };
        (rest.is_empty() && valid).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_share_messages_that_fit_a_datagram_and_only_the_last_one_tells_of_more() {
        let sizes = [200, 300, 500, 10, 1024, 1, 1023];
        let messages = Message::carrying(sizes.map(|size| Bytes::from(vec![7; size])), true);
        let shared: Vec<(usize, bool)> = messages
            .iter()
            .map(|message| match message {
                Message::Batches { batches, more } => (batches.len(), *more),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(shared, [(4, false), (1, false), (1, false), (1, true)]);
        assert!(messages.iter().all(|message| message.encode().len() < 1100));
        assert!(messages.iter().all(|message| Message::decode(&message.encode()).as_ref() == Some(message)));
        assert!(Message::carrying([], true).is_empty());
    }
}
