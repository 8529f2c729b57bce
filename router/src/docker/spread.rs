//! Networks spread: one that was made on a host can be used on every other, and one that was removed goes everywhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use tokio::time::Instant;
use tracing::{debug, info, warn};
use weft_mesh::node::{Command, Networks, Reply};
use weft_mesh::records::{NetworkRecord, NetworkUid, Subnet};

use super::Docker;
use super::driver::UID_OPTION;
use super::plugin::NAME;
use super::protocol::MTU;
use crate::error::Result;
use crate::options::Cidr;

/// How often it is looked what others have.
const LOOK: Duration = Duration::from_millis(500);
/// How soon what could not be done is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);
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
    loop {
        tokio::time::sleep(LOOK).await;
        if docker.engine_version.load().is_none() {
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
        for record in
            wanted.missing.into_iter().filter(|record| !patience.contains_key(&record.uid)).collect::<Vec<_>>()
        {
            if let Err(error) = make(&docker, &record).await {
                warn!(network = record.name, "a network cannot be made here: {error}");
            }
            patience.insert(record.uid, now + TRY_AGAIN);
        }
        for (id, uid) in wanted.removed {
            if patience.contains_key(&uid) {
                continue;
            }
            if let Err(error) = remove(&docker, &id).await {
                warn!("a network that was removed elsewhere cannot be removed here: {error}");
            }
            patience.insert(uid, now + TRY_AGAIN);
        }
    }
}

#[derive(Default)]
struct Wanted {
    missing: Vec<NetworkRecord>,
    removed: Vec<(String, NetworkUid)>,
}

async fn wanted(docker: &Docker, follows_others: bool) -> Result<Wanted> {
    let here = docker.driver.networks.all();
    let has = |name: &str| here.iter().any(|(_, network)| network.name.as_deref() == Some(name));
    let mut wanted = Wanted::default();
    if docker.makes_standing(has(NAME)) {
        wanted.missing.push(standing());
    }
    if !follows_others {
        return Ok(wanted);
    }
    let Reply::Networks(networks) = docker.kit.engine.ask(Command::Networks).await? else { return Ok(wanted) };
    let Networks { elsewhere, removed } = *networks;
    let missing = elsewhere.into_iter().map(|(_, record)| record);
    let missing =
        missing.filter(|record| record.uid != STANDING && !removed.contains(&record.uid) && !has(&record.name));
    // Two hosts may each have made one of that name: one of them is enough.
    let by_name: BTreeMap<String, NetworkRecord> = missing.map(|record| (record.name.clone(), record)).collect();
    wanted.missing.extend(by_name.into_values());
    let gone = here.into_iter().filter(|(_, network)| network.uid != STANDING && removed.contains(&network.uid));
    wanted.removed = gone.map(|(id, network)| (id, network.uid)).collect();
    Ok(wanted)
}

fn standing() -> NetworkRecord {
    NetworkRecord {
        name: NAME.into(),
        uid: STANDING,
        segment: None,
        subnets: Vec::new(),
        ipv6: false,
        internal: false,
        mtu: None,
    }
}

async fn make(docker: &Docker, record: &NetworkRecord) -> Result<()> {
    // Engines make a second network of one name without a word.
    if docker.kit.api.networks().await?.iter().any(|network| network.name.as_deref() == Some(&record.name)) {
        docker.look_again.notify_one();
        return Ok(());
    }
    let uid = hex::encode(record.uid);
    let mut options = HashMap::from([(UID_OPTION.to_owned(), uid)]);
    options.extend(record.segment.clone().map(|segment| ("weft.segment".to_owned(), segment)));
    options.extend(record.mtu.map(|mtu| (MTU.to_owned(), mtu.to_string())));
    let config = |subnet: &Subnet| IpamConfig {
        subnet: Some(Cidr(subnet.prefix).to_string()),
        ip_range: subnet.part.map(|part| Cidr(part).to_string()),
        gateway: subnet.gateway.as_ref().map(IpAddr::to_string),
        auxiliary_addresses: Some(subnet.set_aside.iter().map(|(name, ip)| (name.clone(), ip.to_string())).collect()),
    };
    let config = record.subnets.iter().map(config).collect();
    let request = NetworkCreateRequest {
        name: record.name.clone(),
        driver: Some(NAME.into()),
        internal: Some(record.internal),
        enable_ipv6: Some(record.ipv6),
        ipam: Some(Ipam { driver: Some(NAME.into()), config: Some(config), options: None }),
        options: Some(options),
        ..NetworkCreateRequest::default()
    };
    docker.kit.api.create_network(request).await?;
    info!(network = record.name, "made a network that every host has");
    docker.look_again.notify_one();
    Ok(())
}

async fn remove(docker: &Docker, id: &str) -> Result<()> {
    if docker.kit.api.is_used(id).await? {
        debug!(network = id, "a network that was removed elsewhere is in use here");
        return Ok(());
    }
    docker.kit.removing.begin(id);
    let removed = docker.kit.api.remove_network(id).await;
    docker.kit.removing.end(id);
    removed
}
