//! An endpoint of this host, and what is kept of it across restarts.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weft_mesh::records::{EndpointId, EndpointRecord, Health, Service};
use weft_mesh::wire::SegmentId;

use crate::attach::addresses::Lease;
use crate::attach::prefix::Prefix;
use crate::daemon::keys::StoreKey;
use crate::dataplane::taps::bridge_name;

/// What a segment's endpoint on this host is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Place {
    /// An interface in a network namespace, known by device and inode.
    Container {
        /// The namespace.
        namespace: (u64, u64),
        /// The interface's other half, in the segment's bridge.
        host_interface: String,
        /// The interface.
        interface: String,
        /// Where the namespace was found; another may be there by now.
        path: PathBuf,
    },
    /// The host itself.
    Host,
    /// A container of an engine, which takes the interface `source` and brings it back.
    Docker {
        /// The interface's other half, in the segment's bridge.
        host_interface: String,
        /// What the interface is called while the engine does not have it.
        source: String,
        /// The container's network namespace, which may not be there yet.
        sandbox: PathBuf,
    },
}

/// An endpoint of this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// Id of the endpoint, in records and for commands.
    pub id: EndpointId,
    /// Its segment's name.
    pub segment: String,
    /// Addresses with prefix lengths.
    pub ips: Vec<Prefix>,
    /// Names it is found by, its own first.
    pub names: Vec<String>,
    /// Its MAC.
    pub mac: [u8; 6],
    /// What it is.
    pub place: Place,
    /// Those of its addresses that it has from a ring and gives back when it goes.
    #[serde(default)]
    pub leases: Vec<Lease>,
    /// The addresses that the segment's gateway has for it.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// How it is.
    #[serde(default)]
    pub health: Health,
    /// What it serves.
    #[serde(default)]
    pub services: Vec<Service>,
    /// The largest packet of its interface, if the network has its own.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Whether its segment's gateway leads nowhere.
    #[serde(default)]
    pub is_internal: bool,
}

impl Attachment {
    /// The interface in the segment's bridge.
    pub fn port(&self) -> String {
        match &self.place {
            Place::Container { host_interface, .. } | Place::Docker { host_interface, .. } => host_interface.clone(),
            Place::Host => own_name(SegmentId::of(&self.segment)).replacen('h', "i", 1),
        }
    }

    /// Whether its interface is among those that there are.
    pub fn is_among(&self, interfaces: &[String]) -> bool {
        // The host outlives its interfaces.
        self.place == Place::Host || interfaces.contains(&self.port())
    }

    /// What it is filed under.
    pub fn key(&self) -> Vec<u8> {
        StoreKey::Attachment(self.id).encode()
    }

    /// What other hosts hear of it.
    pub fn record(&self) -> EndpointRecord {
        let Attachment { segment, mac, ips, names, health, services, .. } = self.clone();
        let (ips, names, services) = (ips.into_iter().map(Prefix::into).collect(), names.into(), services.into());
        EndpointRecord { segment: segment.into(), mac, ips, names, health, services }
    }

    /// Its addresses, for people.
    pub fn printed(&self) -> Vec<String> {
        self.ips.iter().map(Prefix::to_string).collect()
    }
}

/// What changes about an endpoint while it is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// Names it is found by now, its own first.
    pub names: Vec<String>,
    /// What it serves.
    pub services: Vec<Service>,
    /// How it is.
    pub health: Health,
}

/// What the host's own interface in a segment is called.
pub fn own_name(segment: SegmentId) -> String {
    format!("wefth{}", &bridge_name(segment)[4..13])
}
