//! Compose stacks: two of one project name on two hosts have one network, which may not be what their users mean.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use tracing::warn;
use weft_mesh::node::EndpointStatus;

use super::Docker;
use crate::error::Result;

/// The label by which Compose marks the networks of a project.
const PROJECT: &str = "com.docker.compose.project";

/// Says once of each network of a project that a service of it runs here and elsewhere, and what to do if these are two stacks.
pub async fn hint(docker: &Docker) -> Result<()> {
    let networks = docker.driver.networks.all().into_iter().map(|(_, network)| network);
    let of_projects: Vec<_> = networks
        .filter(|network| network.is_of_mesh())
        .filter_map(|network| {
            let project = network.labels.iter().find(|(label, _)| label == PROJECT)?.1.clone();
            Some((network.segment()?.to_owned(), network.name?, project))
        })
        .filter(|(_, name, _)| !hinted(docker).contains(name))
        .collect();
    if of_projects.is_empty() {
        return Ok(());
    }
    let status = docker.context.node.status().await?;
    for (segment, network, project) in of_projects {
        if let Some((service, host)) = shared_name(&status.endpoints, &segment, &status.name) {
            warn!(
                "the Compose project {project} runs here and on {host}, and both have the network {network}: {service} is one name for \
                 both; if these are two stacks, give one another project name, or its network the driver option weft.scope=host"
            );
            hinted(docker).insert(network);
        }
    }
    Ok(())
}

fn hinted(docker: &Docker) -> MutexGuard<'_, BTreeSet<String>> {
    docker.hinted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name in a segment that containers of this host and of another have, and the other host.
fn shared_name(endpoints: &[EndpointStatus], segment: &str, own: &str) -> Option<(String, String)> {
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        endpoints.iter().filter(|endpoint| endpoint.segment == segment).partition(|endpoint| endpoint.host == own);
    let names: BTreeSet<&String> = here.into_iter().flat_map(|endpoint| &endpoint.names).collect();
    let shared = |endpoint: &&EndpointStatus| endpoint.names.iter().find(|name| names.contains(name)).cloned();
    elsewhere.iter().find_map(|endpoint| Some((shared(endpoint)?, endpoint.host.clone())))
}
