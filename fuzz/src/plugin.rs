//! Calls of the Docker engine.

use weft_router::docker::Call;

/// The first byte says which method is called, the others are the body.
pub fn run(input: &[u8]) {
    let Some((method, body)) = input.split_first() else { return };
    let method = Call::METHODS[usize::from(*method) % Call::METHODS.len()];
    if let Err(error) = Call::parse(method, body) {
        assert!(!error.to_string().contains('\n'), "an error of several lines: {error}");
    }
}

/// Every method with parameters that all of them can make something of.
pub fn seeds() -> Vec<Vec<u8>> {
    let body = br#"{"NetworkID":"c9f4","EndpointID":"01","SandboxKey":"/run/docker/netns/1","AddressSpace":"weft","PoolID":"default/10.32.0.0/12",
"Pool":"10.50.0.0/16","SubPool":"10.50.1.0/24","V6":false,"Address":"10.32.0.9","Interface":{"Address":"10.32.0.9/12","AddressIPv6":"",
"MacAddress":""},"IPv4Data":[{"AddressSpace":"weft","Gateway":"10.32.0.1/12","Pool":"10.32.0.0/12","AuxAddresses":{"a":"10.32.0.3/12"}}],"IPv6Data":[],
"Options":{"com.docker.network.generic":{"weft.segment":"app"},"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,
"HostPortEnd":8080}],"RequestAddressType":"com.docker.network.gateway"}}"#;
    (0..Call::METHODS.len() as u8).map(|method| [&[method], &body[..]].concat()).collect()
}
