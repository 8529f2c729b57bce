//! Networks spread: a network made on one host can be used on every other, and its removal reaches all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use tokio::time::Instant;
use tracing::{info, warn};
use weft_mesh::node::Networks;
use weft_mesh::records::{NetworkRecord, NetworkUid, Subnet};

use super::plugin::NAME;
use super::{Docker, NETWORK_PROBLEM};
use crate::attach::prefix::Prefix;
use crate::error::{Failure, Result};

/// How often it is looked what others have.
const LOOK: Duration = Duration::from_millis(500);
/// How soon what could not be done is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// Lines remembered, so that each is said once.
const MAX_SAID: usize = 1024;
/// The network that stands ready on every host: it is every host's own.
pub const STANDING: NetworkUid = *b"weft stands here";

/// Networks that weft itself is having the engine remove.
#[derive(Default)]
pub struct Removing(Mutex<BTreeSet<String>>);

impl Removing {
    /// Whether the removal of a network is weft's own doing.
    pub fn is_being_removed(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    fn begin(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
    }

    fn end(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Keeps this host's networks in step with the others' for as long as the router runs.
pub async fn spread(docker: Arc<Docker>, follows_others: bool) {
    let mut patience: BTreeMap<NetworkUid, Instant> = BTreeMap::new();
    let mut said: BTreeSet<(NetworkUid, String)> = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        if !docker.context.is_answering() || docker.leaves_networks_alone() {
            continue;
        }
        let now = Instant::now();
        patience.retain(|_, until| *until > now);
        let wanted = match wanted(&docker, follows_others).await {
            Ok(wanted) => wanted,
            Err(error) => {
                warn!("cannot compare networks with other hosts: {error}");
                continue;
            }
        };
        for record in wanted.missing {
            if patience.contains_key(&record.uid) {
                continue;
            }
            if let Err(error) = make(&docker, &record).await {
                let line = (record.uid, error.to_string());
                if said.len() < MAX_SAID && said.insert(line) {
                    warn!(network = record.name, "a network cannot be made here; weft goes on trying: {error}");
                }
            }
            patience.insert(record.uid, now + TRY_AGAIN);
        }
        let is_replaced = |removal: &&Removal| matches!(removal.cause, Cause::Replaced(..));
        let replaced = wanted.removed.iter().filter(is_replaced).map(|removal| removal.name.clone());
        docker.keep_network_problems(&replaced.collect());
        for Removal { id, uid, name, cause } in wanted.removed {
            if patience.contains_key(&uid) {
                continue;
            }
            if let Err(error) = remove(&docker, &id, &name, cause).await {
                warn!(network = name, "a network cannot be removed here: {error}");
            }
            patience.insert(uid, now + TRY_AGAIN);
        }
    }
}

#[derive(Default)]
struct Wanted {
    missing: Vec<NetworkRecord>,
    removed: Vec<Removal>,
}

/// A network that is to go.
struct Removal {
    id: String,
    uid: NetworkUid,
    name: String,
    cause: Cause,
}

/// Why a network is to go.
enum Cause {
    /// It was removed on another host.
    Removed,
    /// A host has another network of this name, which every host is to have: its subnets, and the host.
    Replaced(String, String),
}

async fn wanted(docker: &Docker, follows_others: bool) -> Result<Wanted> {
    let here = docker.driver.networks.all();
    let named = |name: &str| here.iter().find(|(_, network)| network.name.as_deref() == Some(name));
    let mut wanted = Wanted::default();
    if docker.makes_standing(named(NAME).is_some()) {
        wanted.missing.push(standing());
    }
    if !follows_others {
        return Ok(wanted);
    }
    let networks = docker.context.node.networks().await?;
    let Networks { elsewhere, removed } = networks;
    let elsewhere =
        elsewhere.into_iter().filter(|(_, record)| record.uid != STANDING && !removed.contains(&record.uid));
    // Several hosts may each have made one of that name: the same one of them wins on every host.
    let mut by_name: BTreeMap<String, (String, NetworkRecord)> = BTreeMap::new();
    for (host, record) in elsewhere {
        match by_name.get(&record.name) {
            Some((_, known)) if known.uid <= record.uid => {}
            _ => drop(by_name.insert(record.name.clone(), (host, record))),
        }
    }
    for (name, (host, record)) in by_name {
        let Some((id, network)) = named(&name) else {
            wanted.missing.push(record);
            continue;
        };
        let is_other = docker.driver.has_other_subnets(network, &record);
        if is_other && record.uid < network.uid && network.uid != STANDING && network.is_of_mesh() {
            let subnets = record.subnets.iter().map(|subnet| Prefix::from(subnet.prefix).to_string());
            let subnets = subnets.collect::<Vec<_>>().join(", ");
            let cause = Cause::Replaced(if subnets.is_empty() { "the mesh's own range".into() } else { subnets }, host);
            wanted.removed.push(Removal { id: id.clone(), uid: network.uid, name, cause });
        }
    }
    let gone = here.iter().filter(|(_, network)| network.uid != STANDING && removed.contains(&network.uid));
    wanted.removed.extend(gone.map(|(id, network)| Removal {
        id: id.clone(),
        uid: network.uid,
        name: network.name.clone().unwrap_or_default(),
        cause: Cause::Removed,
    }));
    Ok(wanted)
}

fn standing() -> NetworkRecord {
    NetworkRecord { name: NAME.into(), uid: STANDING, ipv4: true, ..NetworkRecord::default() }
}

async fn make(docker: &Docker, record: &NetworkRecord) -> Result<()> {
    // Older engines make a second network of one name without a word.
    if count(docker, &record.name).await? > 0 {
        docker.look_again.notify_one();
        return Ok(());
    }
    if !record.ipv4 && !docker.has_ipv6_only_networks() {
        return Err(Failure::new("it has no IPv4, and this engine makes no such networks (Docker 28 does)"));
    }
    // Subnets of the mesh's own range are named, too: engines look for overlaps where none is.
    let own = docker.pools.own_prefixes(record.ipv4, record.ipv6).into_iter();
    let own = own.filter(|own| !record.subnets.iter().any(|subnet| subnet.prefix.0.is_ipv4() == own.0.is_ipv4()));
    let own = own.map(|prefix| IpamConfig { subnet: Some(prefix.to_string()), ..IpamConfig::default() });
    let config = |subnet: &Subnet| IpamConfig {
        subnet: Some(Prefix::from(subnet.prefix).to_string()),
        ip_range: subnet.part.map(|part| Prefix::from(part).to_string()),
        gateway: subnet.gateway.as_ref().map(IpAddr::to_string),
        auxiliary_addresses: Some(subnet.set_aside.iter().map(|(name, ip)| (name.clone(), ip.to_string())).collect()),
    };
    let config = record.subnets.iter().map(config).chain(own).collect();
    let pairs = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<HashMap<String, String>>();
    let request = NetworkCreateRequest {
        name: record.name.clone(),
        driver: Some(NAME.into()),
        internal: Some(record.internal),
        attachable: Some(record.attachable),
        // Engines that do not know it take it for nothing.
        enable_ipv4: (!record.ipv4).then_some(false),
        enable_ipv6: Some(record.ipv6),
        ipam: Some(Ipam { driver: Some(NAME.into()), config: Some(config), options: Some(HashMap::new()) }),
        options: Some(pairs(&record.options)),
        labels: Some(pairs(&record.labels)),
        ..NetworkCreateRequest::default()
    };
    docker.driver.making().insert(record.name.clone(), record.uid);
    let made = docker.context.api.create_network(request).await;
    if let Ok(id) = &made {
        let named = docker.context.api.network(id).await?.0;
        docker.driver.name_network(id, &named).await?;
    }
    docker.driver.making().remove(&record.name);
    let id = made?;
    if count(docker, &record.name).await? > 1 {
        // A user made one at the same moment: that one stays.
        return take_away(docker, &id).await;
    }
    match record.uid {
        STANDING => info!(network = record.name, "made the network that stands ready on every host"),
        _ => info!(
            network = record.name,
            "made a network that other hosts have, too; containers on all of them share it"
        ),
    }
    docker.look_again.notify_one();
    Ok(())
}

/// How many networks of a name the engine has.
async fn count(docker: &Docker, name: &str) -> Result<usize> {
    let all = docker.context.api.networks().await?;
    Ok(all.iter().filter(|network| network.name.as_deref() == Some(name)).count())
}

async fn remove(docker: &Docker, id: &str, name: &str, cause: Cause) -> Result<()> {
    if !docker.context.api.is_used(id).await? {
        return take_away(docker, id).await;
    }
    match cause {
        Cause::Removed => {
            // Every host that has containers in it says so by having it: it comes back elsewhere.
            docker.driver.keep_network(id).await?;
            info!(network = name, "a network that was removed on another host has containers here, and stays");
        }
        Cause::Replaced(subnets, host) => {
            let problem = format!(
                "the networks {name} here and on {host} ({subnets}) have different subnets: containers here do not reach those there; \
                 remove the containers of one of the two, and that host gets the other's network"
            );
            docker.note_problem(&format!("{NETWORK_PROBLEM}{name}"), Some(problem));
        }
    }
    Ok(())
}

/// Removes weft's networks on this host alone, for good as long as this router runs; other hosts keep theirs. Returns the names
/// of those that have containers, and stay.
pub async fn remove_all(docker: &Docker) -> Result<Vec<String>> {
    docker.leave_networks_alone();
    let mut used = Vec::new();
    for (id, network) in docker.driver.networks.all() {
        let name = network.name.unwrap_or_else(|| id.clone());
        match docker.context.api.is_used(&id).await? {
            true => used.push(name),
            false => {
                take_away(docker, &id).await?;
                info!(network = name, "removed a network on this host");
            }
        }
    }
    Ok(used)
}

async fn take_away(docker: &Docker, id: &str) -> Result<()> {
    docker.context.removing.begin(id);
    let removed = docker.context.api.remove_network(id).await;
    docker.context.removing.end(id);
    removed
}
