//! What weft asks the engine: names of networks and containers, and networks to be made and removed.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, EventMessage, HealthStatusEnum, Network, NetworkCreateRequest, NetworkInspect,
};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptionsBuilder};
use futures_util::Stream;
use tracing::warn;
use weft_mesh::records::{Health, MAX_NAMES, MAX_NAMES_BYTES, MAX_SERVICES, Service, is_endpoint_name, is_name};

use crate::attach::attachment::Description;
use crate::error::{Failure, Result};

/// How long an answer is awaited: a call of the engine to this plugin may be waiting behind it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Timeout of calls to the engine outside of its own calls.
const LONG_PATIENCE: Duration = Duration::from_secs(20);
/// Labels that name ports: `weft.service.NAME=PORT[/PROTOCOL]`.
const SERVICE_LABEL: &str = "weft.service.";

/// Bytes of all that a container serves.
const MAX_SERVICE_BYTES: usize = 150;

/// A client of one engine.
pub struct EngineApi {
    socket: PathBuf,
    client: Mutex<Option<bollard::Docker>>,
}

/// What tells one engine from another.
pub struct EngineIdentity {
    /// The engine's version.
    pub version: String,
    /// Its id, which it keeps as long as its data.
    pub id: String,
    /// Whether it has plugins at all: podman answers at such sockets, too.
    pub has_plugins: bool,
}

/// One of a container's endpoints, and what its records are to say.
pub struct Described {
    /// The engine's id of the endpoint.
    pub endpoint: String,
    /// What its records are to say.
    pub description: Description,
}

impl EngineApi {
    /// A client of the engine at a socket, which need not be there yet.
    pub fn new(socket: PathBuf) -> Self {
        EngineApi { socket, client: Mutex::new(None) }
    }

    async fn client(&self) -> Result<bollard::Docker> {
        let known = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = known {
            return Ok(client);
        }
        let connect = async {
            let path = self.socket.to_string_lossy();
            bollard::Docker::connect_with_unix(&path, LONG_PATIENCE.as_secs(), bollard::API_DEFAULT_VERSION)?
                .negotiate_version()
                .await
        };
        let client = self.bounded("connect", connect).await?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    async fn bounded<T>(&self, what: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(format!("cannot ask the engine at {} ({what}): {error}", self.socket.display()))
        };
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(result) => result.map_err(|error| {
                if !matches!(error, Error::DockerResponseServerError { .. }) {
                    // The next engine at this socket may speak another version.
                    self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
                }
                failed(&error)
            }),
            Err(_) => Err(failed(&format!("no answer for {PATIENCE:?}"))),
        }
    }

    /// Which engine it is.
    pub async fn identity(&self) -> Result<EngineIdentity> {
        let client = self.client().await?;
        let version = self.bounded("version", client.version()).await?;
        let info = self.bounded("info", client.info()).await?;
        let mut components = version.components.iter().flatten();
        Ok(EngineIdentity {
            version: version.version.unwrap_or_default(),
            id: info.id.unwrap_or_default(),
            has_plugins: !components.any(|component| component.name.to_ascii_lowercase().contains("podman")),
        })
    }

    /// A network, and the names of the containers in it, by the engine's ids of their endpoints. May be asked while the engine
    /// waits for an answer to `Join`.
    pub async fn network(&self, id: &str) -> Result<(Network, BTreeMap<String, String>)> {
        let client = self.client().await?;
        let inspected = self.bounded("network", client.inspect_network(id, None)).await?;
        let names = inspected.containers.into_iter().flatten();
        let names = names.filter_map(|(_, container)| Some((container.endpoint_id?, container.name?))).collect();
        let NetworkInspect { name, labels, attachable, .. } = inspected;
        Ok((Network { name, labels, attachable, ..Network::default() }, names))
    }

    /// All networks.
    pub async fn networks(&self) -> Result<Vec<Network>> {
        let client = self.client().await?;
        let all = ListNetworksOptionsBuilder::default().build();
        self.bounded("networks", client.list_networks(Some(all))).await
    }

    /// Ids of the containers, of those that run or of all.
    pub async fn containers(&self, all: bool) -> Result<Vec<String>> {
        let client = self.client().await?;
        let options = ListContainersOptionsBuilder::default().all(all).build();
        let containers = self.bounded("containers", client.list_containers(Some(options))).await?;
        Ok(containers.into_iter().filter_map(|container| container.id).collect())
    }

    /// Whether any container is in a network, or will be when it starts.
    pub async fn is_used(&self, network: &str) -> Result<bool> {
        if !self.network(network).await?.1.is_empty() {
            return Ok(true);
        }
        let client = self.client().await?;
        // Of those that run, engines list even some that they did not let in.
        let filters =
            HashMap::from([("network", vec![network]), ("status", vec!["created", "exited", "dead", "restarting"])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        Ok(!self.bounded("containers", client.list_containers(Some(options))).await?.is_empty())
    }

    /// A container's endpoints, and what their records are to say. Never to be asked while the engine waits for an answer:
    /// it holds the container's lock.
    pub async fn describe(&self, container: &str) -> Result<Vec<Described>> {
        let client = self.client().await?;
        // The engine keeps a container locked while it starts it.
        let inspect = client.inspect_container(container, None);
        let inspected = tokio::time::timeout(LONG_PATIENCE, inspect).await;
        match inspected {
            Ok(Ok(inspected)) => Ok(described(&inspected)),
            Ok(Err(Error::DockerResponseServerError { status_code: 404, .. })) => Ok(Vec::new()),
            Ok(Err(error)) => self.bounded("container", async { Err(error) }).await,
            Err(_) => Err(Failure::new(format!("the engine does not say anything about container {container}"))),
        }
    }

    /// Makes a network; returns its id.
    pub async fn create_network(&self, request: NetworkCreateRequest) -> Result<String> {
        let client = self.client().await?;
        // It makes several calls to this plugin, each of which may take its time.
        let created = tokio::time::timeout(LONG_PATIENCE, client.create_network(request)).await;
        match created {
            Ok(result) => self.bounded("create network", async { result }).await.map(|created| created.id),
            Err(_) => Err(Failure::new("the engine does not get a network made")),
        }
    }

    /// Removes a network.
    pub async fn remove_network(&self, id: &str) -> Result<()> {
        let client = self.client().await?;
        self.bounded("remove network", client.remove_network(id)).await
    }

    /// What happens to containers and networks from a second ago on.
    pub async fn events(&self) -> Result<impl Stream<Item = Result<EventMessage, Error>> + use<>> {
        let client = self.client().await?;
        let filters = HashMap::from([("type", vec!["container", "network"])]);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let since = now.as_secs().saturating_sub(1).to_string();
        Ok(client.events(Some(EventsOptionsBuilder::default().filters(&filters).since(&since).build())))
    }
}

/// What the records of a container's endpoints are to say.
fn described(container: &ContainerInspectResponse) -> Vec<Described> {
    let state = container.state.as_ref();
    let is = |flag: Option<bool>| flag == Some(true);
    let health = state.and_then(|state| state.health.as_ref()?.status);
    let health = match health {
        _ if !state.is_some_and(|state| is(state.running) && !is(state.paused)) => Health::Unhealthy,
        None | Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE | HealthStatusEnum::HEALTHY) => Health::Healthy,
        Some(HealthStatusEnum::STARTING) => Health::Starting,
        Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
    };
    let config = container.config.as_ref();
    let own = container.name.as_deref().unwrap_or_default().trim_start_matches('/');
    let hostname = config.and_then(|config| config.hostname.as_deref()).unwrap_or_default();
    // Engines part a host name at its first dot.
    let domain = config.and_then(|config| config.domainname.as_deref()).unwrap_or_default();
    let full_hostname = if domain.is_empty() { String::new() } else { format!("{hostname}.{domain}") };
    let short_id: String = container.id.as_deref().unwrap_or_default().chars().take(12).collect();
    let labels = config.and_then(|config| config.labels.clone()).unwrap_or_default();
    let exposed = config.and_then(|config| config.exposed_ports.clone()).unwrap_or_default();
    let services = services(&exposed, &labels);
    let networks = container.network_settings.iter().flat_map(|settings| settings.networks.iter().flatten());
    networks
        .filter_map(|(_, endpoint)| {
            let id = endpoint.endpoint_id.clone().filter(|id| !id.is_empty())?;
            let aliases = endpoint.aliases.iter().flatten().map(String::as_str);
            let names = names([own].into_iter().chain(aliases).chain([hostname, &full_hostname, &short_id]));
            Some(Described { endpoint: id, description: Description { names, services: services.clone(), health } })
        })
        .collect()
}

/// Those names that are names, each once, as many as records take; the first ones matter most.
fn names<'a>(all: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let (mut bytes, mut left_out) = (0, 0);
    for name in all.filter(|name| is_endpoint_name(name)) {
        if names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            continue;
        }
        if names.len() < MAX_NAMES && bytes + name.len() <= MAX_NAMES_BYTES {
            bytes += name.len();
            names.push(name.to_owned());
        } else {
            left_out += 1;
        }
    }
    if left_out > 0 {
        warn!(
            container = names.first(),
            "{left_out} of its names are answered on this host only: other hosts hear of {MAX_NAMES} and {MAX_NAMES_BYTES} bytes"
        );
    }
    names
}

/// What a container serves: its exposed ports, and those that labels name.
fn services(exposed: &[String], labels: &HashMap<String, String>) -> Vec<Service> {
    let port = |text: &str| {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        matches!(protocol, "tcp" | "udp").then(|| (port, protocol.to_owned()))
    };
    let by_number = exposed.iter().filter_map(|text| {
        let (port, protocol) = port(text)?;
        Some(Service { name: port.to_string(), protocol, port })
    });
    let by_name = labels.iter().filter_map(|(label, text)| {
        let name = label.strip_prefix(SERVICE_LABEL).filter(|name| is_name(name) && name.len() <= 15)?;
        let (port, protocol) = port(text)?;
        Some(Service { name: name.to_owned(), protocol, port })
    });
    let mut named: Vec<Service> = by_name.collect();
    named.sort_unstable();
    let mut numbered: Vec<Service> = by_number.collect();
    numbered.sort_unstable();
    named.extend(numbered);
    named.truncate(MAX_SERVICES);
    // A record has room for so many bytes, of which names have their share.
    let mut room = MAX_SERVICE_BYTES;
    named.retain(|service| {
        let size = service.name.len() + service.protocol.len() + 5;
        let fits = size <= room;
        room -= if fits { size } else { 0 };
        fits
    });
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_and_labels_are_left_out() {
        let long = "x".repeat(64);
        assert_eq!(names(["web", "a b", "", &long, "WEB", "..", "ok"].into_iter()), ["web", "ok"]);
        let many: Vec<String> = (0..1000).map(|n| format!("name-{n}")).collect();
        assert_eq!(names(many.iter().map(String::as_str)).len(), MAX_NAMES);
        let labels = HashMap::from([
            ("weft.service.http".to_owned(), "80".to_owned()),
            ("weft.service.bad name".to_owned(), "81".to_owned()),
            ("weft.service.dns".to_owned(), "53/udp".to_owned()),
            ("weft.service.no".to_owned(), "70000".to_owned()),
            ("weft.service.sctp".to_owned(), "5/sctp".to_owned()),
        ]);
        let services = services(&["9000/tcp".into(), "0/tcp".into(), "x".into()], &labels);
        let services: Vec<String> = services.iter().map(|s| format!("{} {}/{}", s.name, s.port, s.protocol)).collect();
        assert_eq!(services, ["dns 53/udp", "http 80/tcp", "9000 9000/tcp"]);
    }
}
