//! What hosts say to each other about rings.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::AllocationId;
use super::paxos::Ballot;
use super::ring::{Change, Range, RingId};

/// Bytes of a ring's state in one message.
pub const PART: usize = 800;

/// A message about the ring of one range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// The range.
    pub range: Range,
    /// The ring; zero before there is one.
    pub ring: RingId,
    /// The state that the sender is in, or that it speaks of.
    pub n: u64,
    /// What it says.
    pub body: Body,
}

/// What is said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Body {
    /// Asks the first voter that is there to see to a change, so that few propose at once; before there is a ring, to
    /// found one.
    Wish(Option<Change>),
    /// Asks a voter to promise.
    Prepare(Ballot),
    /// Promises, and says what was voted for before.
    Promise(Ballot, Option<(Ballot, Change)>),
    /// Asks a voter for its vote.
    Accept(Ballot, Change),
    /// Votes.
    Vote(Ballot),
    /// Another proposer was promised, or the sender is in another state than the asker.
    Refuse(Ballot),
    /// The change that led from state `n` to the next.
    Decided(Change),
    /// Asks for the state.
    Pull,
    /// Part of the state, encoded.
    State {
        /// Which one.
        part: u16,
        /// Of how many.
        parts: u16,
        /// A part of the encoded ring.
        bytes: Vec<u8>,
    },
    /// Asks the holder of a window for an address of it.
    Borrow {
        /// For which allocation.
        id: AllocationId,
        /// Which address; any if none.
        want: Option<Ipv4Addr>,
        /// Of which part of the range.
        within: Option<Range>,
    },
    /// The holder has no address for this allocation: the one wanted is taken, or all are.
    NotLent(AllocationId),
}

impl Message {
    /// Encodes for the wire.
    pub fn encode(&self) -> Vec<u8> {
        // Serialising plain data into a Vec has no way to fail.
        postcard::to_allocvec(self).expect("plain data")
    }

    /// Decodes what [`Message::encode`] made; `None` if it is malformed or over a limit.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        let message: Message = postcard::take_from_bytes(bytes).ok()?.0;
        let fits = match &message.body {
            Body::State { part, parts, bytes } => part < parts && bytes.len() <= PART,
            _ => true,
        };
        fits.then_some(message)
    }
}
