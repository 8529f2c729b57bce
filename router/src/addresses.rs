//! Addresses from the rings: how the router's other parts ask the node for them and give them back.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use tracing::warn;
use weft_mesh::ipam::ring::Range;
use weft_mesh::ipam::{AllocationId, Request};
use weft_mesh::node::{Command, Reply};

use crate::engine::EngineHandle;
use crate::error::{Failure, Result};
use crate::netlink::Prefix;

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
        (IpAddr::V4(self.address), self.range.length)
    }
}

/// The range that a prefix is; none for one that no ring can be of.
pub fn range_of((base, length): Prefix) -> Option<Range> {
    match base {
        IpAddr::V4(base) => Range::new(base, length),
        IpAddr::V6(_) => None,
    }
}

/// Has a ring give an address. Answers within some four seconds; a refused request leaves nothing behind.
pub async fn allocate(engine: &EngineHandle, request: Request) -> Result<Lease> {
    let Request { range, id, .. } = request;
    match engine.ask(Command::Allocate(request)).await {
        Ok(Reply::Address(address)) => Ok(Lease { range, id, address }),
        Ok(_) => Err(Failure::new("the node gave no address")),
        Err(error) => {
            // The ring may have won it after it was told no: nobody is to hold it then.
            let _ = engine.ask(Command::Release(range, id)).await;
            Err(error)
        }
    }
}

/// Gives addresses back.
pub async fn release(engine: &EngineHandle, leases: &[Lease]) {
    for lease in leases {
        if let Err(error) = engine.ask(Command::Release(lease.range, lease.id)).await {
            warn!(address = %lease.address, "an address could not be given back; the next start does it: {error}");
        }
    }
}

/// What this host has from the ring of a range.
pub async fn leases(engine: &EngineHandle, range: Range) -> Result<Vec<Lease>> {
    match engine.ask(Command::Allocations(range)).await? {
        Reply::Allocations(all) => Ok(all.into_iter().map(|(address, id)| Lease { range, id, address }).collect()),
        _ => Err(Failure::new("the node gave no allocations")),
    }
}
