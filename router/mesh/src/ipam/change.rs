//! What voters decide on.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use weft_crypto::HostLabel;

use super::range::Range;

/// Tells rings of one range apart; chosen at random by the founder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct RingId(pub u64);

/// One start of a host: a disk put back to an earlier state shows by a number that was used before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Start {
    /// How often the host has started.
    pub number: u64,
    /// Tells two starts of one number apart.
    pub nonce: u64,
}

impl Start {
    /// Whether a host known by `known` may be in this start of its.
    pub(super) fn may_follow(self, known: Option<Start>) -> bool {
        known.is_none_or(|known| known == self || known.number < self.number)
    }
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    /// The ring comes to be.
    Found {
        /// The new ring.
        id: RingId,
        /// Who founds it.
        founder: HostLabel,
        /// The founder's start.
        start: Start,
        /// Its first voters.
        voters: Vec<HostLabel>,
    },
    /// A host opens a free window.
    Open {
        /// The window.
        window: u32,
        /// Who.
        host: HostLabel,
        /// The host's start.
        start: Start,
    },
    /// A host gives a window back in which nothing is handed out.
    Close {
        /// The window.
        window: u32,
        /// Who.
        host: HostLabel,
    },
    /// A host that may have lost its memory says how often it has started. If as many starts or more are known, its disk
    /// is an old one: its windows are retired.
    Register {
        /// Who.
        host: HostLabel,
        /// How often it has started, with a nonce of this start.
        start: Start,
    },
    /// The holder of a window lets another host have one address of it.
    Lend {
        /// The address.
        address: Ipv4Addr,
        /// Whose window it is in.
        from: HostLabel,
        /// Who gets it.
        to: HostLabel,
    },
    /// A host is done with an address it was lent.
    Return {
        /// The address.
        address: Ipv4Addr,
        /// Who had it.
        host: HostLabel,
    },
    /// A host has a network whose subnet is a part of the range.
    TakePart {
        /// The subnet.
        part: Range,
        /// Who.
        host: HostLabel,
    },
    /// A host has that network no more; the last one leaves the part to the ring.
    LeavePart {
        /// The subnet.
        part: Range,
        /// Who.
        host: HostLabel,
    },
    /// Others decide from now on.
    Voters(Vec<HostLabel>),
    /// An operator says that these hosts are off for good: what they had is free again.
    GiveUp(Vec<HostLabel>),
    /// Two rings of one range met, and the other one goes on: nothing is handed out of this one any more.
    Supersede(RingId),
    /// The other ring has given way to this one at the same time: this one goes on after all.
    Revive,
    /// Several at once, in this order; what makes no sense any more is passed over.
    All(Vec<Change>),
}
