//! Networks that the engine has and weft has not. What weft knew is lost with its store; the engine kept what it was told
//! when it made them, and they are taken up as if it were making them now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bollard::models::{IpamConfig, Network};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::Docker;
use super::network::cidr;
use super::plugin::NAME;
use super::pools::{ChosenPool, Pools};
use super::prefixes::parse_address;
use super::protocol::{CreateNetwork, ENABLE_IPV6, GENERIC, INTERNAL, IpamData};
use crate::attach::prefix::Prefix;
use crate::error::{Failure, Result};

/// Takes up what is not known, at the first look at an engine (`again` is none), or what could not be taken up `again`: any
/// other network that is unknown is being removed. Returns the ids of those that cannot be.
pub async fn adopt_all(docker: &Docker, networks: &[Network], again: Option<&BTreeSet<String>>) -> BTreeSet<String> {
    let mut failed = BTreeSet::new();
    let is_ours = |network: &Network| {
        let ipam = network.ipam.as_ref().and_then(|ipam| ipam.driver.as_deref());
        network.driver.as_deref() == Some(NAME) && ipam == Some(NAME)
    };
    for network in networks.iter().filter(|network| is_ours(network)) {
        let (Some(id), Some(name)) = (&network.id, &network.name) else { continue };
        if docker.driver.networks.find(id).is_some() || again.is_some_and(|again| !again.contains(id)) {
            continue;
        }
        match adopt(docker, id, network).await {
            Ok(()) => info!(network = name, "took up a network that the engine had and weft did not know"),
            Err(error) => {
                if again.is_none() {
                    warn!(network = name, "weft cannot take up this network, and goes on trying: {error}");
                }
                failed.insert(id.clone());
            }
        }
    }
    failed
}

async fn adopt(docker: &Docker, id: &str, network: &Network) -> Result<()> {
    let given: serde_json::Map<String, Value> =
        network.options.iter().flatten().map(|(key, value)| (key.clone(), json!(value))).collect();
    let options = BTreeMap::from([
        (GENERIC.to_owned(), Value::Object(given)),
        (INTERNAL.to_owned(), json!(network.internal == Some(true))),
        (ENABLE_IPV6.to_owned(), json!(network.enable_ipv6 == Some(true))),
    ]);
    let (mut ipv4_data, mut ipv6_data) = (Vec::new(), Vec::new());
    let configs = network.ipam.as_ref().and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    for config in configs {
        let data = take_up(&docker.pools, id, config).await?;
        if data.pool.contains(':') { &mut ipv6_data } else { &mut ipv4_data }.push(data);
    }
    docker.driver.take_up(&CreateNetwork { network_id: id.to_owned(), options, ipv4_data, ipv6_data })
}

/// Takes up a subnet's pool if a user chose it.
async fn take_up(pools: &Pools, network: &str, config: &IpamConfig) -> Result<IpamData> {
    let subnet = config.subnet.as_deref().ok_or_else(|| Failure::new("the engine does not say its subnet"))?;
    let prefix = cidr(subnet)?;
    let aux: BTreeMap<String, IpAddr> = (config.auxiliary_addresses.iter().flatten())
        .map(|(name, address)| Ok((name.clone(), parse_address(address)?)))
        .collect::<Result<_>>()?;
    let gateway = config.gateway.as_deref().filter(|gateway| !gateway.is_empty()).map(parse_address).transpose()?;
    if !pools.is_own(prefix) {
        let part = config.ip_range.as_deref().filter(|part| !part.is_empty()).map(cidr).transpose()?;
        let set_aside = aux.values().copied().chain(gateway).collect();
        pools.take_up(ChosenPool { prefix, part, gateway, set_aside, network: Some(network.to_owned()) }).await?;
    }
    let with_length = |ip: IpAddr| Prefix(ip, prefix.1).to_string();
    Ok(IpamData {
        address_space: NAME.into(),
        pool: subnet.to_owned(),
        gateway: gateway.map(with_length).unwrap_or_default(),
        aux_addresses: aux.into_iter().map(|(name, address)| (name, with_length(address))).collect(),
    })
}
