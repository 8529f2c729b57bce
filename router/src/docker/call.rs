//! The engine's calls, as they are read off the plugin socket (libnetwork's remote driver and IPAM protocol, version 1).

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{
    CreateEndpoint, CreateNetwork, Join, OfEndpoint, OfNetwork, Program, ReleaseAddress, ReleasePool, RequestAddress,
    RequestPool,
};
use crate::error::{Doing, Failure, Result};

/// A call with its parameters.
#[derive(Debug)]
pub enum Call {
    /// Which drivers the plugin is.
    Activate,
    /// How far the networks of the driver reach.
    NetworkCapabilities,
    /// What the IPAM driver has to be told.
    IpamCapabilities,
    /// The names of the IPAM driver's address spaces.
    AddressSpaces,
    /// A network needs a subnet.
    RequestPool(RequestPool),
    /// It needs it no more.
    ReleasePool(ReleasePool),
    /// A network or an endpoint needs an address.
    RequestAddress(RequestAddress),
    /// It needs it no more.
    ReleaseAddress(ReleaseAddress),
    /// The engine makes a network.
    CreateNetwork(CreateNetwork),
    /// The engine removes a network.
    DeleteNetwork(OfNetwork),
    /// A container is to be on a network.
    CreateEndpoint(CreateEndpoint),
    /// It is to be there no more.
    DeleteEndpoint(OfEndpoint),
    /// The container's network namespace exists: its interface can be made.
    Join(Join),
    /// The container stops.
    Leave(OfEndpoint),
    /// What the driver says of an endpoint.
    EndpointInfo(OfEndpoint),
    /// Published ports lead to this endpoint from now on.
    ProgramConnectivity(Program),
    /// They do so no more.
    RevokeConnectivity(OfEndpoint),
    /// Only Swarm's managers ask for it.
    AllocateNetwork,
    /// Says something that changes nothing here.
    Ignored,
}

impl Call {
    /// The methods of all calls.
    pub const METHODS: [&str; 22] = [
        "Plugin.Activate",
        "NetworkDriver.GetCapabilities",
        "IpamDriver.GetCapabilities",
        "IpamDriver.GetDefaultAddressSpaces",
        "IpamDriver.RequestPool",
        "IpamDriver.ReleasePool",
        "IpamDriver.RequestAddress",
        "IpamDriver.ReleaseAddress",
        "NetworkDriver.CreateNetwork",
        "NetworkDriver.DeleteNetwork",
        "NetworkDriver.CreateEndpoint",
        "NetworkDriver.DeleteEndpoint",
        "NetworkDriver.Join",
        "NetworkDriver.Leave",
        "NetworkDriver.EndpointOperInfo",
        "NetworkDriver.ProgramExternalConnectivity",
        "NetworkDriver.RevokeExternalConnectivity",
        "NetworkDriver.DiscoverNew",
        "NetworkDriver.DiscoverDelete",
        "NetworkDriver.AllocateNetwork",
        "NetworkDriver.FreeNetwork",
        "NetworkDriver.GwAllocCheck",
    ];

    /// Reads a call; `None`: weft has no such method. A body that is not the method's parameters is an error.
    pub fn parse(method: &str, body: &[u8]) -> Result<Option<Call>> {
        Ok(Some(match method {
            "Plugin.Activate" => Call::Activate,
            "NetworkDriver.GetCapabilities" => Call::NetworkCapabilities,
            "IpamDriver.GetCapabilities" => Call::IpamCapabilities,
            "IpamDriver.GetDefaultAddressSpaces" => Call::AddressSpaces,
            "IpamDriver.RequestPool" => Call::RequestPool(parameters(body)?),
            "IpamDriver.ReleasePool" => Call::ReleasePool(parameters(body)?),
            "IpamDriver.RequestAddress" => Call::RequestAddress(parameters(body)?),
            "IpamDriver.ReleaseAddress" => Call::ReleaseAddress(parameters(body)?),
            "NetworkDriver.CreateNetwork" => Call::CreateNetwork(parameters(body)?),
            "NetworkDriver.DeleteNetwork" => Call::DeleteNetwork(parameters(body)?),
            "NetworkDriver.CreateEndpoint" => Call::CreateEndpoint(parameters(body)?),
            "NetworkDriver.DeleteEndpoint" => Call::DeleteEndpoint(parameters(body)?),
            "NetworkDriver.Join" => Call::Join(parameters(body)?),
            "NetworkDriver.Leave" => Call::Leave(parameters(body)?),
            "NetworkDriver.EndpointOperInfo" => Call::EndpointInfo(parameters(body)?),
            "NetworkDriver.ProgramExternalConnectivity" => Call::ProgramConnectivity(parameters(body)?),
            "NetworkDriver.RevokeExternalConnectivity" => Call::RevokeConnectivity(parameters(body)?),
            "NetworkDriver.AllocateNetwork" => Call::AllocateNetwork,
            "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete"
            | "NetworkDriver.FreeNetwork"
            | "NetworkDriver.GwAllocCheck" => Call::Ignored,
            _ => return Ok(None),
        }))
    }
}

/// Reads a call's parameters. When a connection breaks, engines repeat calls without them.
fn parameters<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let what = || "a call that makes no sense".to_owned();
    if body.is_empty() {
        return Err(Failure::new("a call without its parameters (the plugin was restarted meanwhile?); try again"));
    }
    // Parse a map first: serde also accepts an array for a struct.
    let fields: serde_json::Map<String, Value> = serde_json::from_slice(body).doing(what)?;
    serde_json::from_value(Value::Object(fields)).doing(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_known_and_others_are_not() {
        let body =
            br#"{"NetworkID": "n", "EndpointID": "e", "PoolID": "p", "Address": "10.0.0.1", "SandboxKey": "/x"}"#;
        for method in Call::METHODS {
            // Bodies of other methods are refused, methods are not.
            assert!(!matches!(Call::parse(method, body), Ok(None)), "{method}");
        }
        assert!(matches!(Call::parse("NetworkDriver.Dance", b"{}"), Ok(None)));
        assert!(matches!(Call::parse("NetworkDriver.Leave", body), Ok(Some(Call::Leave(_)))));
    }

    #[test]
    fn bodies_of_another_shape_are_errors() {
        for body in [&b""[..], b"null", b"[]", b"[\"n\", \"e\"]", b"{", b"{\"EndpointID\": 7}"] {
            assert!(Call::parse("NetworkDriver.Leave", body).is_err(), "{}", String::from_utf8_lossy(body));
        }
    }
}
