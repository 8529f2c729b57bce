//! The engine's networks and endpoints, as the driver keeps them.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use weft_mesh::records::{EndpointId, NetworkUid};

use super::protocol::PortBinding;
use crate::attach::prefix::Prefix;
use crate::error::{Failure, Result};

/// The option that names a network's segment.
pub(super) const SEGMENT_OPTION: &str = "weft.segment";
/// The option that says who has a network: every host of the mesh, or this one alone.
pub(super) const SCOPE_OPTION: &str = "weft.scope";
/// The host's address that ports without one are published on.
pub(super) const HOST_BINDING: &str = "com.docker.network.host_ipv4";
/// The same, under the name that bridge networks use.
pub(super) const BRIDGE_HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
/// Options of bridge networks that limit what containers can do or who reaches them, and the one value that changes nothing:
/// they are refused rather than passed over.
pub(super) const LIMITS: [(&str, &str); 6] = [
    ("com.docker.network.bridge.enable_icc", "true"),
    ("com.docker.network.bridge.enable_ip_masquerade", "true"),
    ("com.docker.network.bridge.inhibit_ipv4", "false"),
    ("com.docker.network.bridge.gateway_mode_ipv4", "nat"),
    ("com.docker.network.bridge.gateway_mode_ipv6", "nat"),
    ("com.docker.network.bridge.trusted_host_interfaces", ""),
];

/// A network of the engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Its subnets and their gateways.
    pub subnets: Vec<(Prefix, Option<IpAddr>)>,
    /// Names of addresses that are not for containers.
    pub set_aside: Vec<(String, IpAddr)>,
    /// Whether its containers have no way out.
    pub internal: bool,
    /// Whether its containers have IPv4.
    #[serde(default = "yes")]
    pub ipv4: bool,
    /// Whether its containers have IPv6.
    pub ipv6: bool,
    /// Its containers' MTU, if it has its own.
    pub mtu: Option<u32>,
    /// Its segment, if it is not its name.
    pub segment: Option<String>,
    /// What it was made with, in order.
    #[serde(default)]
    pub options: Vec<(String, String)>,
    /// Its labels, in order, once they are known: the engine does not pass them.
    #[serde(default)]
    pub labels: Vec<(String, String)>,
    /// Whether it is attachable, once that is known.
    #[serde(default)]
    pub attachable: bool,
    /// Its name, once that is known.
    pub name: Option<String>,
    /// What the mesh knows it by.
    pub uid: NetworkUid,
}

fn yes() -> bool {
    true
}

/// A container's place in a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// The engine's id of the network.
    pub network: String,
    /// Addresses with prefix lengths, as the engine gave them.
    pub ips: Vec<Prefix>,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The ports that it publishes while it gives its container the way out, with the numbers that were found for them.
    #[serde(default)]
    pub ports: Vec<PortBinding>,
    /// Whether it publishes them now.
    #[serde(default)]
    pub is_published: bool,
}

impl Network {
    /// Its segment's name, if that is known.
    pub fn segment(&self) -> Option<&str> {
        self.segment.as_deref().or(self.name.as_deref())
    }

    /// Whether other hosts are to have it, too.
    pub fn is_of_mesh(&self) -> bool {
        self.option(SCOPE_OPTION) != Some("host")
    }

    pub(super) fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    /// The host's address that ports without one are published on, if not all.
    pub(super) fn host_binding(&self) -> Option<Ipv4Addr> {
        let given = self.option(BRIDGE_HOST_BINDING).or_else(|| self.option(HOST_BINDING));
        given.and_then(|text| text.parse().ok())
    }
}

/// The attachment's id for the engine's id of an endpoint.
pub fn attachment_id(endpoint: &str) -> Result<EndpointId> {
    short_id(endpoint).ok_or_else(|| Failure::new("no endpoint id of an engine"))
}

/// The first half of the engine's ids is as unique as the whole.
pub fn short_id(text: &str) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    hex::decode_to_slice(text.get(..32)?, &mut id).ok().map(|()| id)
}

/// An address and its prefix length, as engines write them.
pub fn cidr(text: &str) -> Result<Prefix> {
    text.parse::<Prefix>().map_err(|error| Failure::new(format!("{text}: {error}")))
}

pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|part| part.len() == 2)?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}
