//! Networks that the engine has and weft has not. What weft knew is lost with its store; the engine kept what it was told
//! when it made them, and they are taken up as if it were making them now.

use std::collections::BTreeMap;

use bollard::models::{IpamConfig, Network};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::Docker;
use super::plugin::NAME;
use super::pools::Pools;
use super::protocol::{CreateNetwork, ENABLE_IPV6, GENERIC, INTERNAL, IpamData, RequestAddress, RequestPool};
use crate::error::{Failure, Result};
use crate::options::Cidr;

/// Takes up what is not known. Only for the first look after a start: later, a network that is unknown is being removed.
pub async fn adopt_all(docker: &Docker) -> Result<()> {
    let is_ours = |network: &Network| {
        let ipam = network.ipam.as_ref().and_then(|ipam| ipam.driver.as_deref());
        network.driver.as_deref() == Some(NAME) && ipam == Some(NAME)
    };
    for network in docker.kit.api.networks().await?.into_iter().filter(is_ours) {
        let (Some(id), Some(name)) = (&network.id, &network.name) else { continue };
        if docker.driver.networks.find(id).is_some() {
            continue;
        }
        match adopt(docker, id, &network).await {
            Ok(()) => info!(network = name, "took up a network that the engine had and weft did not know"),
            Err(error) => {
                warn!(network = name, "weft does not know this network: remove it and create it again ({error})");
            }
        }
    }
    Ok(())
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
        let data = take_up(&docker.pools, config).await?;
        if data.pool.contains(':') { &mut ipv6_data } else { &mut ipv4_data }.push(data);
    }
    docker.driver.create_network(&CreateNetwork { network_id: id.to_owned(), options, ipv4_data, ipv6_data })
}

/// Asks for a subnet's pool, its gateway and what is set aside of it as the engine once did.
async fn take_up(pools: &Pools, config: &IpamConfig) -> Result<IpamData> {
    let subnet = config.subnet.clone().ok_or_else(|| Failure::new("the engine does not say its subnet"))?;
    let is_chosen = !subnet.parse::<Cidr>().is_ok_and(|subnet| pools.is_own(subnet.0));
    let request = RequestPool {
        address_space: NAME.into(),
        pool: if is_chosen { subnet.clone() } else { String::new() },
        sub_pool: if is_chosen { config.ip_range.clone().unwrap_or_default() } else { String::new() },
        v6: subnet.contains(':'),
    };
    let (pool_id, _) = pools.request(&request).await?;
    let ask = async |address: &str, options| {
        let request = RequestAddress { pool_id: pool_id.clone(), address: address.to_owned(), options };
        pools.request_address(&request).await.map(|prefix| Cidr(prefix).to_string())
    };
    let mut gateway = String::new();
    if let Some(address) = &config.gateway {
        gateway = ask(address, RequestAddress::for_gateway()).await?;
    }
    let mut aux_addresses = BTreeMap::new();
    for (name, address) in config.auxiliary_addresses.iter().flatten().filter(|_| is_chosen) {
        aux_addresses.insert(name.clone(), ask(address, BTreeMap::new()).await?);
    }
    Ok(IpamData { address_space: NAME.into(), pool: subnet, gateway, aux_addresses })
}
