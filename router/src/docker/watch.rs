//! Follows what the engine does: what containers are called, how they are, which networks there are; and puts right
//! what was missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::{EventMessage, EventMessageTypeEnum, Network};
use futures_util::StreamExt;
use tracing::{debug, info, warn};

use super::adopt::adopt_all;
use super::api::EngineIdentity;
use super::network::attachment_id;
use super::{Docker, stacks};
use crate::attach::attachment::Place;
use crate::error::{Failure, Result};

/// How soon an engine that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often a container is looked at that cannot be.
const TRIES: u32 = 5;
/// How often everything is compared, and how soon again after something did not fit.
const COMPARE: Duration = Duration::from_secs(60);
const COMPARE_AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked whether a stack of this host is one of another's.
const LOOK_FOR_STACKS: Duration = Duration::from_secs(5);
/// How long what the engine does not have may be on its way: what was there once, and a container that is starting.
const PATIENCE_JOINED: Duration = Duration::from_secs(4);
const PATIENCE_STARTING: Duration = Duration::from_secs(60);

/// Follows the engine for as long as the router runs.
pub async fn watch(docker: Arc<Docker>) {
    let mut was_there = true;
    loop {
        let error = match follow(&docker).await {
            Ok(()) => Failure::new("the engine ended"),
            Err(error) => error,
        };
        let version = docker.context.engine_version.swap(None);
        if version.is_some() || was_there {
            info!("the engine is not there, waiting for it: {error}");
        }
        was_there = version.is_some();
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Follows one life of the engine.
async fn follow(docker: &Arc<Docker>) -> Result<()> {
    let engine = docker.context.api.identity().await?;
    docker.know_engine(&engine).await?;
    let mut events = Box::pin(docker.context.api.events().await?);
    docker.context.engine_version.store(Some(Arc::new(engine.version)));
    let mut suspects = Suspects::default();
    let mut next = tokio::time::Instant::now();
    let mut stacks = tokio::time::interval(LOOK_FOR_STACKS);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => on_event(docker, &event),
                Some(Err(error)) => return Err(Failure::new(format!("its events ended: {error}"))),
                None => return Ok(()),
            },
            () = docker.look_again.notified() => {
                let listed = docker.context.api.networks().await?;
                name_networks(docker, listed).await?;
            }
            _ = stacks.tick() => stacks::hint(docker).await?,
            () = tokio::time::sleep_until(next) => {
                let found = compare(docker, &suspects).await?;
                next = tokio::time::Instant::now() + if found.is_empty() { COMPARE } else { COMPARE_AGAIN };
                suspects = found;
            }
        }
    }
}

impl Docker {
    /// Makes sure that the engine is the one whose networks and containers weft has: what another one does not know of is none
    /// the less there.
    async fn know_engine(&self, engine: &EngineIdentity) -> Result<()> {
        const KNOWN: &str = "id";
        if !engine.has_plugins {
            let problem = "what answers at the engine's socket has no plugins (podman?): weft's networks stay as they are until \
                           their own engine is back; see --docker-socket";
            self.note_problem("engine", Some(problem.into()));
            return Err(Failure::new(problem));
        }
        let known = self.engine_id.find(KNOWN);
        let has_containers =
            self.context.attachments.all().await.iter().any(|a| matches!(a.place, Place::Docker { .. }));
        if known.as_ref().is_some_and(|known| *known != engine.id) && has_containers {
            let problem = "another engine answers at the engine's socket than the one whose containers weft carries: they stay as \
                           they are until it is back; see --docker-socket";
            self.note_problem("engine", Some(problem.into()));
            return Err(Failure::new(problem));
        }
        self.note_problem("engine", None);
        if known.as_ref() != Some(&engine.id) {
            self.engine_id.set(KNOWN, engine.id.clone())?;
        }
        Ok(())
    }
}

/// What did not fit at earlier looks, and since when: it may have been on its way.
#[derive(Default)]
struct Suspects {
    endpoints: BTreeMap<String, Instant>,
    networks: BTreeMap<String, Instant>,
    /// Networks that could not be taken up; none before the first look at an engine.
    unknown: Option<BTreeSet<String>>,
    is_first: bool,
}

impl Suspects {
    fn is_empty(&self) -> bool {
        let knows_all = self.unknown.as_ref().is_none_or(BTreeSet::is_empty);
        self.endpoints.is_empty() && self.networks.is_empty() && knows_all && !self.is_first
    }
}

fn on_event(docker: &Arc<Docker>, event: &EventMessage) {
    let Some(actor) = &event.actor else { return };
    let action = event.action.as_deref().unwrap_or_default();
    // Health is said after a colon.
    let action = action.split(':').next().unwrap_or_default();
    let container = match event.typ {
        Some(EventMessageTypeEnum::CONTAINER) => match action {
            "start" | "pause" | "unpause" | "rename" | "health_status" | "die" => actor.id.clone(),
            _ => None,
        },
        Some(EventMessageTypeEnum::NETWORK) => match action {
            "create" | "destroy" => {
                docker.look_again.notify_one();
                None
            }
            "connect" => actor.attributes.as_ref().and_then(|attributes| attributes.get("container").cloned()),
            _ => None,
        },
        _ => None,
    };
    if let Some(container) = container {
        docker.clone().describe_soon(container);
    }
}

impl Docker {
    /// Inspects a container and describes its endpoints; events of it meanwhile lead to
    /// another look.
    fn describe_soon(self: Arc<Self>, container: String) {
        let mut busy = self.described();
        if let Some(again) = busy.get_mut(&container) {
            *again = true;
            return;
        }
        busy.insert(container.clone(), false);
        drop(busy);
        tokio::spawn(async move {
            let mut tries = 0;
            loop {
                if let Err(error) = self.describe(&container).await {
                    debug!(container, "cannot look at a container: {error}");
                    tries += 1;
                    if tries < TRIES {
                        tokio::time::sleep(ASK_AGAIN).await;
                        continue;
                    }
                }
                let mut busy = self.described();
                match busy.get_mut(&container) {
                    Some(again) if *again => *again = false,
                    _ => {
                        busy.remove(&container);
                        return;
                    }
                }
            }
        });
    }

    /// Returns the container's endpoints.
    async fn describe(&self, container: &str) -> Result<Vec<String>> {
        let mut endpoints = Vec::new();
        for described in self.context.api.describe(container).await? {
            let Ok(id) = attachment_id(&described.endpoint) else { continue };
            if let Err(error) = self.context.attachments.describe(id, described.description).await {
                warn!(container, "its names cannot be told: {error}");
            }
            endpoints.push(described.endpoint);
        }
        Ok(endpoints)
    }

    fn described(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, bool>> {
        self.busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The bridge of a network of the engine's own.
fn bridge_of(network: &Network) -> Option<String> {
    let id = network.id.as_deref().filter(|_| network.driver.as_deref() == Some("bridge"))?;
    let named = network.options.as_ref().and_then(|options| options.get("com.docker.network.bridge.name").cloned());
    // It goes into rules as it is.
    let named =
        named.filter(|name| name.len() < 16 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)));
    named.or_else(|| Some(format!("br-{}", id.get(..12)?)))
}

/// Learns what networks are called; returns the ids of those that are weft's.
async fn name_networks(docker: &Docker, networks: Vec<Network>) -> Result<BTreeSet<String>> {
    let mut ours = BTreeSet::new();
    let foreign: BTreeSet<String> = networks.iter().filter_map(bridge_of).collect();
    if **docker.foreign.load() != foreign {
        docker.foreign.store(Arc::new(foreign));
        docker.driver.firewall.wanted.notify_one();
    }
    for network in networks {
        let Some(id) = &network.id else { continue };
        if docker.driver.name_network(id, &network).await?.is_some() {
            ours.insert(id.clone());
        }
    }
    Ok(ours)
}

/// Compares what weft has with what the engine has. What has not fitted for a while is let go.
async fn compare(docker: &Docker, before: &Suspects) -> Result<Suspects> {
    let (endpoints, networks) = (docker.driver.endpoints.all(), docker.driver.networks.all());
    let listed = docker.context.api.networks().await?;
    let unknown = adopt_all(docker, &listed, before.unknown.as_ref()).await;
    if unknown.is_empty()
        && let Err(error) = docker.pools.know_all().await
    {
        warn!("parts of the mesh's range that no network here has any more may stay taken: {error}");
    }
    let there = name_networks(docker, listed).await?;
    let live = live_endpoints(docker, &there).await?;
    // The first look after the router or the engine started only looks: things may be on their way.
    let is_first = !docker.compared.swap(true, std::sync::atomic::Ordering::Relaxed);
    let mut found = Suspects { is_first, unknown: Some(unknown), ..Suspects::default() };
    for (id, endpoint) in endpoints.into_iter().filter(|(id, _)| !live.contains(id)) {
        let since = before.endpoints.get(&id).copied().unwrap_or_else(Instant::now);
        // A container that is starting is not heard of until it joins.
        let is_joined = docker.driver.sandboxes.of(&id).is_some();
        let patience = if is_joined { PATIENCE_JOINED } else { PATIENCE_STARTING };
        if since.elapsed() < patience {
            found.endpoints.insert(id, since);
            continue;
        }
        info!(endpoint = id, ips = ?endpoint.ips, "an endpoint that the engine no longer has is let go");
        docker.driver.delete_endpoint(&id).await?;
    }
    for (id, network) in networks.into_iter().filter(|(id, _)| !there.contains(id)) {
        let since = before.networks.get(&id).copied().unwrap_or_else(Instant::now);
        if since.elapsed() < PATIENCE_JOINED {
            found.networks.insert(id, since);
            continue;
        }
        info!(network = network.name, "a network that the engine no longer has is let go");
        docker.driver.forget_network(&id).await?;
    }
    if !found.is_first {
        release_leftovers(docker).await?;
    }
    Ok(found)
}

/// The engine's ids of the endpoints that it has; what there is to say of running containers is said on the way.
async fn live_endpoints(docker: &Docker, networks: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let mut live = BTreeSet::new();
    for container in docker.context.api.containers(false).await? {
        match docker.describe(&container).await {
            Ok(endpoints) => live.extend(endpoints),
            Err(error) => debug!(container, "cannot look at a container: {error}"),
        }
    }
    for network in networks {
        live.extend(docker.context.api.network(network).await?.1.into_keys());
    }
    Ok(live)
}

/// Lets go of pools, addresses and attachments that nothing belongs to any more.
async fn release_leftovers(docker: &Docker) -> Result<()> {
    let all: BTreeSet<String> = docker.driver.networks.all().into_iter().map(|(id, _)| id).collect();
    docker.pools.release_abandoned(&all).await?;
    let known: BTreeSet<_> =
        docker.driver.endpoints.all().iter().filter_map(|(id, _)| attachment_id(id).ok()).collect();
    for attachment in docker.context.attachments.all().await {
        if matches!(attachment.place, Place::Docker { .. }) && !known.contains(&attachment.id) {
            docker.context.attachments.leave(attachment.id).await?;
        }
    }
    let released = docker.pools.release_unused(&docker.driver.used()).await?;
    if !released.is_empty() {
        info!(?released, "addresses that no container has were given back");
    }
    Ok(())
}
