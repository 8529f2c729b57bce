//! Follows what the engine does: what containers are called, how they are, which networks there are; and puts right
//! what was missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{EventMessage, EventMessageTypeEnum};
use futures_util::StreamExt;
use tracing::{debug, info, warn};

use super::Docker;
use super::driver::attachment_id;
use crate::error::{Failure, Result};

/// How soon an engine that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often everything is compared, and how soon again after something did not fit.
const COMPARE: Duration = Duration::from_secs(60);
const COMPARE_AGAIN: Duration = Duration::from_secs(5);

/// Follows the engine for as long as the router runs.
pub async fn watch(docker: Arc<Docker>) {
    let mut was_there = true;
    loop {
        let error = match follow(&docker).await {
            Ok(()) => Failure::new("the engine ended"),
            Err(error) => error,
        };
        let version = docker.engine_version.swap(None);
        if version.is_some() || was_there {
            info!("the engine is not there, waiting for it: {error}");
        }
        was_there = version.is_some();
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Follows one life of the engine.
async fn follow(docker: &Arc<Docker>) -> Result<()> {
    let version = docker.api.version().await?;
    let mut events = Box::pin(docker.api.events().await?);
    docker.engine_version.store(Some(Arc::new(version)));
    let mut suspects = Suspects::default();
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => on_event(docker, &event),
                Some(Err(error)) => return Err(Failure::new(format!("its events ended: {error}"))),
                None => return Ok(()),
            },
            () = docker.look_again.notified() => name_networks(docker).await.map(drop)?,
            () = tokio::time::sleep_until(next) => {
                let found = compare(docker, &suspects).await?;
                next = tokio::time::Instant::now() + if found.is_empty() { COMPARE } else { COMPARE_AGAIN };
                suspects = found;
            }
        }
    }
}

/// What did not fit at the last look: it may have been on its way.
#[derive(Default)]
struct Suspects {
    endpoints: BTreeSet<String>,
    networks: BTreeSet<String>,
    is_first: bool,
}

impl Suspects {
    fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.networks.is_empty() && !self.is_first
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
    /// Looks at a container and says what there is to say of its endpoints; whatever happens to it meanwhile leads to
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
            loop {
                if let Err(error) = self.describe(&container).await {
                    debug!(container, "cannot look at a container: {error}");
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
        for described in self.api.describe(container).await? {
            let Ok(id) = attachment_id(&described.endpoint) else { continue };
            if let Err(error) = self.kit.attachments.describe(id, described.description).await {
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

/// Learns what networks are called; returns the ids of those that are weft's.
async fn name_networks(docker: &Docker) -> Result<BTreeSet<String>> {
    let mut ours = BTreeSet::new();
    for network in docker.api.networks().await? {
        let (Some(id), Some(name)) = (network.id, network.name) else { continue };
        if docker.driver.name_network(&id, &name).await?.is_some() {
            ours.insert(id);
        }
    }
    Ok(ours)
}

/// Compares what weft has with what the engine has. What did not fit before and does not fit now is let go.
async fn compare(docker: &Docker, before: &Suspects) -> Result<Suspects> {
    let (endpoints, networks) = (docker.driver.endpoints.all(), docker.driver.networks.all());
    let there = name_networks(docker).await?;
    let mut live = BTreeSet::new();
    for container in docker.api.containers(false).await? {
        live.extend(docker.describe(&container).await?);
    }
    // The first look after the router or the engine started only looks: things may be on their way.
    let is_first = docker.compared.swap(true, std::sync::atomic::Ordering::Relaxed);
    let mut found = Suspects { is_first: !is_first, ..Suspects::default() };
    for (id, endpoint) in endpoints {
        if live.contains(&id) {
            continue;
        }
        if before.endpoints.contains(&id) {
            info!(endpoint = id, ips = ?endpoint.ips, "an endpoint that the engine no longer has is let go");
            docker.driver.delete_endpoint(&id).await?;
        } else {
            found.endpoints.insert(id);
        }
    }
    for (id, network) in networks {
        if there.contains(&id) {
            continue;
        }
        if before.networks.contains(&id) {
            info!(network = network.name, "a network that the engine no longer has is let go");
            docker.driver.forget_network(&id).await?;
        } else {
            found.networks.insert(id);
        }
    }
    if !found.is_first {
        let all: BTreeSet<String> = docker.driver.networks.all().into_iter().map(|(id, _)| id).collect();
        docker.pools.release_abandoned(&all).await?;
        let released = docker.pools.release_unused(&docker.driver.used()).await?;
        if !released.is_empty() {
            info!(?released, "addresses that no container has were given back");
        }
    }
    Ok(found)
}
