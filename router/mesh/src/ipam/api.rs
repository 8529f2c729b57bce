//! What the address state machine takes and gives.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_crypto::{HostLabel, Time};

use super::ring::{Range, Ring, RingId};
use super::{AllocationId, PATIENCE, Ticket};

/// Why there is no address. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Another allocation of this host or another has it.
    #[error("{address} is in use; choose another address")]
    InUse {
        /// The address.
        address: Ipv4Addr,
    },
    /// Network, broadcast and gateway addresses are never handed out.
    #[error("{0} is reserved or outside of the range")]
    Reserved(Ipv4Addr),
    /// A network has that part of the range for itself.
    #[error("{address} is of the network with the subnet {part}; choose another address")]
    OfNetwork {
        /// The address.
        address: Ipv4Addr,
        /// The network's subnet.
        part: Range,
    },
    /// A network cannot have a part of a range for itself: others hand out of it, or other parts overlap it.
    #[error("{part} is in use in {range}; choose another subnet")]
    PartInUse {
        /// The part.
        part: Range,
        /// The range it is of.
        range: Range,
        /// Who hands out of it.
        by: Vec<HostLabel>,
    },
    /// Everything is handed out.
    #[error("all addresses of {0} are in use")]
    Full(Range),
    /// Hosts that have to agree did not answer in time.
    #[error("no address of {range} within {PATIENCE:?}: waiting for {waiting_for:?}")]
    Waiting {
        /// The range.
        range: Range,
        /// Who is waited for.
        waiting_for: Vec<Awaited>,
    },
    /// Too many requests or ranges at once.
    #[error("too many address requests at once; try again")]
    Busy,
}

/// A host or peer that a request is waiting for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Awaited {
    /// A host.
    Host(HostLabel),
    /// A peer that the user named and that was never met.
    Peer(String),
}

/// A request for an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Of which range.
    pub range: Range,
    /// What for.
    pub id: AllocationId,
    /// This one and no other.
    pub want: Option<Ipv4Addr>,
    /// One of this part of the range.
    pub within: Option<Range>,
}

/// Outputs of the state machine. Messages and answers have to wait until everything persisted before them is on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send a message to a host.
    Send(HostLabel, Vec<u8>),
    /// Keep this across restarts, or (with `None`) forget it.
    Persist(Vec<u8>, Option<Vec<u8>>),
    /// The answer to a request.
    Reply(Ticket, Result<Ipv4Addr, Error>),
    /// The answer to [`super::Ipam::give_up`] and [`super::Ipam::set_parts`].
    Done(Ticket, Result<(), Error>),
    /// Tell all hosts how far the ring of a range has come.
    Announce(Range, Announcement),
    /// An address that this host handed out belongs to another since two rings became one or this host was given up: it must
    /// not be used any more.
    Fence(AllocationId, Ipv4Addr),
}

/// What a ring's voters tell everybody, by gossip.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// Which ring.
    pub ring: RingId,
    /// Changes decided so far.
    pub n: u64,
    /// How many windows are open in it.
    pub windows: u32,
    /// Which ones it goes on from.
    pub succeeds: Vec<RingId>,
    /// Which one goes on in its place.
    pub superseded_by: Option<RingId>,
}

impl Announcement {
    /// Of two rings that meet the one with more open windows goes on; of equals the one with the lower id.
    pub(super) fn outranks(&self, other: &Ring) -> bool {
        let ours = (other.windows.len() as u32, std::cmp::Reverse(other.id));
        (self.windows, std::cmp::Reverse(self.ring)) > ours
    }
}

/// A peer that the user named, and whom it turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// As the user wrote it.
    pub name: String,
    /// The host met there.
    pub host: Option<HostLabel>,
}

/// How a ring stands, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingStatus {
    /// The range that the ring hands out of.
    pub range: Range,
    /// Whether there is a ring whose state this host knows.
    pub is_ready: bool,
    /// Who is waited for.
    pub waiting_for: Vec<Awaited>,
    /// Addresses in this host's windows.
    pub owned: u32,
    /// Addresses handed out by this host.
    pub used: u32,
    /// Addresses in windows of hosts that cannot be reached.
    pub unreachable: u32,
    /// Addresses in windows that no host has.
    pub unopened: u32,
    /// Who decides.
    pub voters: Vec<HostLabel>,
    /// Parts of the range that this host's networks have for themselves although addresses of them are handed out to others:
    /// so it is after two rings met.
    pub contested: Vec<Range>,
}

/// What an instance needs to start.
pub struct Setup {
    /// This host.
    pub own: HostLabel,
    /// Fresh randomness.
    pub entropy: [u8; 32],
    /// How long a voter may be gone before others take its place.
    pub grace: Duration,
    /// Found a ring although peers are named.
    pub founds_alone: bool,
    /// The machine has not started anew since this host last ran: its disk is the one it wrote.
    pub continues: bool,
    /// The time.
    pub now: Time,
}
