//! What an engine and a plugin say to each other: libnetwork's remote driver and IPAM protocol, version 1
//! (moby, `libnetwork/docs/remote.md` and `ipam.md`).
//!
//! Requests have no content type; absent and `null` fields mean the same; unknown ones are passed over.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The kind of address that a network's gateway is.
pub const GATEWAY: &str = "com.docker.network.gateway";
/// The key under which options of `docker network create -o` come.
pub const GENERIC: &str = "com.docker.network.generic";
/// Whether a network is internal.
pub const INTERNAL: &str = "com.docker.network.internal";
/// Whether a network has IPv6.
pub const ENABLE_IPV6: &str = "com.docker.network.enable_ipv6";
/// A container's published ports.
pub const PORTMAP: &str = "com.docker.network.portmap";
/// The MTU of a network's containers, as other drivers call it.
pub const MTU: &str = "com.docker.network.driver.mtu";

/// `null` is as good as nothing.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// `IpamDriver.RequestPool`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct RequestPool {
    /// Whose addresses they are to be.
    pub address_space: String,
    /// The subnet; empty: any.
    #[serde(default, deserialize_with = "or_default")]
    pub pool: String,
    /// The part of it to hand out of; empty: all.
    #[serde(default, deserialize_with = "or_default")]
    pub sub_pool: String,
    /// Whether it is for IPv6.
    #[serde(default, rename = "V6")]
    pub v6: bool,
}

/// The answer to [`RequestPool`].
#[derive(Serialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Pool {
    /// What later requests name it by.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// The pool's subnet, as ADDR/LEN.
    pub pool: String,
    /// Nothing.
    pub data: BTreeMap<String, String>,
}

/// `IpamDriver.ReleasePool`.
#[derive(Deserialize, Debug)]
pub struct ReleasePool {
    /// Which.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
}

/// `IpamDriver.RequestAddress`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct RequestAddress {
    /// Of which pool.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// This one; empty: any.
    #[serde(default, deserialize_with = "or_default")]
    pub address: String,
    /// What for.
    #[serde(default, deserialize_with = "or_default")]
    pub options: BTreeMap<String, Value>,
}

impl RequestAddress {
    /// Whether a network's gateway is to have it.
    pub fn is_gateway(&self) -> bool {
        self.options.get("RequestAddressType").is_some_and(|kind| kind == GATEWAY)
    }
}

/// The answer to [`RequestAddress`].
#[derive(Serialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Address {
    /// With its prefix length.
    pub address: String,
    /// Nothing.
    pub data: BTreeMap<String, String>,
}

/// `IpamDriver.ReleaseAddress`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct ReleaseAddress {
    /// Of which pool.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// Which.
    pub address: IpAddr,
}

/// `NetworkDriver.CreateNetwork`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct CreateNetwork {
    /// The engine's id of it.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// Options, those of `-o` under [`GENERIC`].
    #[serde(default, deserialize_with = "or_default")]
    pub options: BTreeMap<String, Value>,
    /// Its IPv4 subnets.
    #[serde(rename = "IPv4Data", default, deserialize_with = "or_default")]
    pub ipv4_data: Vec<IpamData>,
    /// Its IPv6 subnets.
    #[serde(rename = "IPv6Data", default, deserialize_with = "or_default")]
    pub ipv6_data: Vec<IpamData>,
}

impl CreateNetwork {
    /// An option that is on or off.
    pub fn is_set(&self, option: &str) -> bool {
        self.options.get(option).is_some_and(|value| *value == Value::Bool(true))
    }

    /// The options of `-o`, in order.
    pub fn given_options(&self) -> Vec<(String, String)> {
        let all = self.options.get(GENERIC).and_then(Value::as_object).into_iter().flatten();
        let mut all: Vec<_> = all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
        all.sort();
        all
    }

    /// An option of `-o`.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.get(GENERIC)?.get(key)?.as_str()
    }
}

/// One subnet of a network.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct IpamData {
    /// Whose addresses they are.
    #[serde(default, deserialize_with = "or_default")]
    pub address_space: String,
    /// The subnet, as ADDR/LEN.
    #[serde(default, deserialize_with = "or_default")]
    pub pool: String,
    /// Its gateway, with the prefix length.
    #[serde(default, deserialize_with = "or_default")]
    pub gateway: String,
    /// Addresses that are not for containers.
    #[serde(default, deserialize_with = "or_default")]
    pub aux_addresses: BTreeMap<String, String>,
}

/// A call about a network: `DeleteNetwork`.
#[derive(Deserialize, Debug)]
pub struct OfNetwork {
    /// Which.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
}

/// `NetworkDriver.CreateEndpoint`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct CreateEndpoint {
    /// Of which network.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// The engine's id of it.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// Addresses and MAC that the engine chose, if it did.
    #[serde(default)]
    pub interface: Option<Interface>,
}

/// An endpoint's addresses.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "PascalCase")]
pub struct Interface {
    /// IPv4, with its prefix length.
    #[serde(default, deserialize_with = "or_default")]
    pub address: String,
    /// IPv6, with its prefix length.
    #[serde(default, deserialize_with = "or_default", rename = "AddressIPv6")]
    pub address_ipv6: String,
    /// MAC.
    #[serde(default, deserialize_with = "or_default")]
    pub mac_address: String,
}

/// A published port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortBinding {
    /// 6 is TCP, 17 is UDP (RFC 790).
    pub proto: u8,
    /// The container's port.
    pub port: u16,
    /// The host's address; empty: all.
    #[serde(rename = "HostIP", default, deserialize_with = "or_default")]
    pub host_ip: String,
    /// The host's first port; 0: any.
    #[serde(default)]
    pub host_port: u16,
    /// The host's last port.
    #[serde(default)]
    pub host_port_end: u16,
}

/// `NetworkDriver.ProgramExternalConnectivity`: the endpoint gives its container the way out, and has its ports.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Program {
    /// Which.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// Options, the container's port map among them.
    #[serde(default, deserialize_with = "or_default")]
    pub options: BTreeMap<String, Value>,
}

/// A call about an endpoint: `Leave`, `DeleteEndpoint`, `EndpointOperInfo` and others.
#[derive(Deserialize, Debug)]
pub struct OfEndpoint {
    /// Which.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
}

/// `NetworkDriver.Join`.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Join {
    /// Which network.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// Which endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// The container's network namespace; may not be there yet.
    pub sandbox_key: String,
}

/// The answer to [`Join`].
#[derive(Serialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    /// The interface to take.
    pub interface_name: InterfaceName,
    /// The IPv4 default route; empty: none.
    pub gateway: String,
    /// The IPv6 default route; empty: none.
    #[serde(rename = "GatewayIPv6")]
    pub gateway_ipv6: String,
    /// Further routes.
    pub static_routes: Vec<StaticRoute>,
    /// Whether the container is to have no other way out.
    pub disable_gateway_service: bool,
}

/// An interface, and what it is called in the container.
#[derive(Serialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    /// Here.
    pub src_name: String,
    /// There: this, and a number.
    pub dst_prefix: &'static str,
}

/// A route of a container.
#[derive(Serialize, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct StaticRoute {
    /// Where to.
    pub destination: &'static str,
    /// 1: on this link.
    pub route_type: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_fields_are_empty() {
        let request: RequestAddress = serde_json::from_str(r#"{"PoolID":"p","Address":"","Options":null}"#).unwrap();
        assert!(!request.is_gateway() && request.options.is_empty());
        let request: CreateNetwork = serde_json::from_str(r#"{"NetworkID":"n","IPv6Data":null}"#).unwrap();
        assert!(request.ipv6_data.is_empty() && request.option("x").is_none());
    }

    #[test]
    fn options_are_found_where_the_engine_puts_them() {
        let text = r#"{"NetworkID":"n","Options":{"com.docker.network.enable_ipv6":true,
            "com.docker.network.generic":{"weft.segment":"red"}},"IPv4Data":[]}"#;
        let request: CreateNetwork = serde_json::from_str(text).unwrap();
        assert!(request.is_set(ENABLE_IPV6) && !request.is_set(INTERNAL));
        assert_eq!(request.option("weft.segment"), Some("red"));
    }
}
