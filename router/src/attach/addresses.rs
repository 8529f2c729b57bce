//! Addresses that rings gave to this host.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use weft_mesh::ipam::AllocationId;
use weft_mesh::ipam::ring::Range;

use crate::attach::prefix::Prefix;

/// An address that a ring gave to this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// The ring's range.
    pub range: Range,
    /// What it was allocated for.
    pub id: AllocationId,
    /// The address.
    pub address: Ipv4Addr,
}

impl Lease {
    /// The address, with the prefix length of its range.
    pub fn prefix(&self) -> Prefix {
        Prefix(IpAddr::V4(self.address), self.range.length)
    }
}

/// Returns a prefix as a range; `None` if no ring can hand out of it.
pub fn range_of(Prefix(base, length): Prefix) -> Option<Range> {
    match base {
        IpAddr::V4(base) => Range::new(base, length),
        IpAddr::V6(_) => None,
    }
}
