//! A Docker engine's network and IPAM driver.
//!
//! A call's way: `plugin` reads it off the socket, `call` makes sense of it, `pools` (addresses) or `driver` (networks, endpoints) does it,
//! the attachments make interfaces and records. Names do not come with calls: `watch` asks the engine for them by
//! `api`. `spread` makes here what other hosts have. `ports` holds published ports, `firewall` the rules that lead to them.

mod adopt;
mod api;
mod call;
mod driver;
pub mod firewall;
mod hostfw;
mod network;
mod plugin;
mod pools;
mod ports;
mod prefixes;
mod protocol;
mod proxy;
mod publishing;
mod rules;
mod sandboxes;
mod spread;
mod stacks;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::warn;
use weft_mesh::records::EndpointId;
use weft_mesh::wire::SegmentId;

use crate::attach::addresses::range_of;
use crate::attach::attachment::Place;
use crate::attach::attachments::Attachments;
use crate::attach::prefix::Prefix;
use crate::cli::options::Options;
use crate::daemon::keys::TableName;
use crate::daemon::node_task::NodeHandle;
use crate::daemon::state::{Store, Table};
use crate::dataplane::taps::bridge_name;
use crate::error::{Failure, Result};
use crate::host::routing::{Policy, Routing};
use crate::observe::observers::Observers;
use api::EngineApi;
use driver::Driver;
use firewall::Plan;
use pools::Pools;
use spread::Removing;

pub use call::Call;
pub use plugin::NAME;

/// How often the firewall's rules are looked at.
const LOOK_AT_RULES: Duration = Duration::from_secs(5);
/// How often the rules are looked at because another program changed any, at most.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// What the driver's parts share.
#[derive(Clone)]
struct DriverContext {
    node: NodeHandle,
    store: Arc<Store>,
    attachments: Arc<Attachments>,
    routing: Arc<Routing>,
    api: Arc<EngineApi>,
    removing: Arc<Removing>,
    /// Told when containers came or went.
    sandboxes: Arc<Notify>,
    /// The engine's version, while it is there.
    engine_version: Arc<ArcSwapOption<String>>,
}

impl DriverContext {
    /// Whether the engine answers what it is asked: it is there, and not starting.
    fn is_answering(&self) -> bool {
        self.engine_version.load().is_some()
    }
}

/// Begins what the problems of single networks are filed under.
const NETWORK_PROBLEM: &str = "network ";

/// The driver.
pub struct Docker {
    context: DriverContext,
    pools: Arc<Pools>,
    driver: Driver,
    /// The id of the engine whose networks these are.
    engine_id: Table<String>,
    /// What is wrong between weft and the engine, for people.
    problems: Mutex<BTreeMap<String, String>>,
    /// Told when networks may have come or gone.
    look_again: Notify,
    /// Containers being looked at, and whether they are to be looked at again.
    busy: Mutex<BTreeMap<String, bool>>,
    compared: AtomicBool,
    /// Networks of Compose projects of which it was said that two hosts have the project.
    hinted: Mutex<BTreeSet<String>>,
    makes_standing: AtomicBool,
    /// The host is about to do without weft: no networks are made any more.
    is_leaving: AtomicBool,
    /// Bridges of the engine's own networks.
    foreign: ArcSwap<BTreeSet<String>>,
}

/// A container on weft networks: where it is, in which segments and at which addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sandbox {
    /// The path of its network namespace.
    pub path: String,
    /// Segments that the container is in.
    pub segments: BTreeSet<SegmentId>,
    /// Its addresses there.
    pub ips: BTreeSet<IpAddr>,
    /// Whether none of its networks of weft's has a way out.
    pub is_internal: bool,
}

/// The plugin socket, bound before the engine may need it.
pub struct Bound {
    listener: UnixListener,
    /// Where it is.
    pub path: PathBuf,
}

/// Binds the plugin socket.
pub fn bind(options: &Options) -> Result<Bound> {
    let (listener, path) = plugin::bind(&options.plugin_dir)?;
    Ok(Bound { listener, path })
}

/// What the driver works with.
pub struct DockerParts<'a> {
    /// The node.
    pub node: NodeHandle,
    /// The endpoints of this host.
    pub attachments: Arc<Attachments>,
    /// Routes to containers.
    pub routing: Arc<Routing>,
    /// Where networks, endpoints and pools are kept.
    pub store: Arc<Store>,
    /// What it holds from before.
    pub kept: &'a [(Vec<u8>, Vec<u8>)],
    /// Told of the engine's calls.
    pub observers: Observers,
}

impl Docker {
    /// Picks up what was there and serves the engine; ends with the tasks.
    pub async fn start(
        bound: Bound,
        options: &Options,
        parts: DockerParts<'_>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Docker>> {
        let DockerParts { node, attachments, routing, store, kept, observers } = parts;
        let api = Arc::new(EngineApi::new(options.docker_socket.clone()));
        let range = range_of(options.range).ok_or_else(|| Failure::new("the range is none to hand out of"))?;
        let engine_version = Arc::<ArcSwapOption<String>>::default();
        let domain = &options.dns_domain;
        let pools = Pools::new(node.clone(), store.clone(), kept, range, domain, engine_version.clone());
        let pools = Arc::new(pools);
        pools.restore().await?;
        let sandboxes = Arc::new(Notify::new());
        let context = DriverContext {
            node,
            store: store.clone(),
            attachments,
            routing,
            api,
            removing: Arc::default(),
            sandboxes,
            engine_version,
        };
        let docker = Arc::new(Docker {
            driver: Driver::new(context.clone(), pools.clone(), kept),
            context,
            pools,
            engine_id: Table::new(store, TableName::Engine, kept),
            problems: Mutex::default(),
            look_again: Notify::new(),
            busy: Mutex::default(),
            compared: AtomicBool::new(false),
            hinted: Mutex::default(),
            makes_standing: AtomicBool::new(true),
            is_leaving: AtomicBool::new(false),
            foreign: ArcSwap::default(),
        });
        docker.restore().await?;
        tasks.spawn(plugin::serve(bound.listener, docker.clone(), observers));
        tasks.spawn(watch::watch(docker.clone()));
        tasks.spawn(spread::spread(docker.clone(), options.spread));
        tasks.spawn(keep_rules(docker.clone(), firewall::watch_rules()?));
        Ok(docker)
    }

    /// Tells others of the networks, and takes the published ports again. Addresses that are others' by now are not used.
    async fn restore(&self) -> Result<()> {
        let endpoints = self.driver.endpoints.all().into_iter().map(|(id, _)| id);
        self.driver.sandboxes.restore(endpoints, &self.context.attachments.all().await);
        self.driver.report_subnets();
        for (_, network) in self.driver.networks.all() {
            self.driver.tell(&network).await;
        }
        for lost in self.pools.lost(&self.driver.used()).await? {
            self.context.attachments.fence([0; 16], lost).await;
        }
        self.driver.publish_all();
        self.route(&self.plan().await)
    }

    /// Has the kernel know where containers are and may be.
    fn route(&self, plan: &Plan) -> Result<()> {
        self.context.routing.set(Policy { ranges: self.pools.prefixes(), internal: plan.internal.clone() })
    }

    /// The network that stands ready is made once: removed by a user, it stays away until the next start.
    fn makes_standing(&self, is_there: bool) -> bool {
        if is_there {
            self.makes_standing.store(false, Ordering::Relaxed);
        }
        self.compared.load(Ordering::Relaxed) && self.makes_standing.load(Ordering::Relaxed)
    }

    fn leave_networks_alone(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }

    fn leaves_networks_alone(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// Removes weft's networks on this host alone; returns the names of those that have containers, and stay.
    pub async fn remove_networks(&self) -> Result<Vec<String>> {
        spread::remove_all(self).await
    }

    /// The containers that are on weft's networks.
    pub async fn sandboxes(&self) -> Vec<Sandbox> {
        let mut all: BTreeMap<String, Sandbox> = BTreeMap::new();
        for (id, endpoint) in self.driver.endpoints.all() {
            let Some(network) = self.driver.networks.find(&endpoint.network) else { continue };
            let (Some(path), Some(segment)) = (self.driver.sandboxes.of(&id), network.segment().map(SegmentId::of))
            else {
                continue;
            };
            let sandbox = all.entry(path.clone()).or_insert_with(|| Sandbox {
                path,
                segments: BTreeSet::new(),
                ips: BTreeSet::new(),
                is_internal: true,
            });
            sandbox.segments.insert(segment);
            sandbox.ips.extend(endpoint.ips.iter().map(|Prefix(ip, _)| *ip));
            sandbox.is_internal &= network.internal;
        }
        all.into_values().collect()
    }

    /// The engine's version, while it is there.
    pub fn engine_version(&self) -> Option<Arc<String>> {
        self.context.engine_version.load_full()
    }

    /// Whether the engine can make networks without IPv4.
    fn has_ipv6_only_networks(&self) -> bool {
        const FIRST: u32 = 28;
        let version = self.engine_version().unwrap_or_default();
        version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= FIRST)
    }

    /// The published ports of the endpoints that publish any, as `docker ps` writes them.
    pub fn published(&self) -> BTreeMap<EndpointId, Vec<String>> {
        self.driver.published()
    }

    /// What keeps containers from something, and what to do about it, a line each.
    pub fn problems(&self) -> Vec<String> {
        let firewalls = self.driver.firewall.obstacles().into_iter().filter_map(|obstacle| obstacle.advice());
        firewalls.chain(self.lock_problems().values().cloned()).collect()
    }

    /// Firewalls of the host that drop what they do not know.
    pub fn obstacles(&self) -> Vec<hostfw::Obstacle> {
        self.driver.firewall.obstacles()
    }

    /// Notes what is wrong in some respect, or (with `None`) that it is right again.
    fn note_problem(&self, about: &str, problem: Option<String>) {
        let mut problems = self.lock_problems();
        match problem {
            Some(problem) if problems.get(about) != Some(&problem) => {
                warn!("{problem}");
                problems.insert(about.to_owned(), problem);
            }
            Some(_) => {}
            None => drop(problems.remove(about)),
        }
    }

    /// Of the problems of networks only those of these are still there.
    fn keep_network_problems(&self, names: &BTreeSet<String>) {
        self.lock_problems()
            .retain(|about, _| about.strip_prefix(NETWORK_PROBLEM).is_none_or(|name| names.contains(name)));
    }

    fn lock_problems(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.problems.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What weft's networks are called.
    pub fn network_names(&self) -> BTreeSet<String> {
        self.driver.networks.all().into_iter().filter_map(|(_, network)| network.name).collect()
    }

    /// Told when containers came or went.
    pub fn sandboxes_changed(&self) -> Arc<Notify> {
        self.context.sandboxes.clone()
    }

    async fn plan(&self) -> Plan {
        let mut plan = Plan { foreign: BTreeSet::clone(&self.foreign.load()), ..Plan::default() };
        for attachment in self.context.attachments.all().await {
            let bridge = bridge_name(SegmentId::of(&attachment.segment));
            let bridges = match (&attachment.place, attachment.is_internal) {
                (Place::Docker { .. }, true) => &mut plan.internal,
                (Place::Docker { .. }, false) => {
                    plan.has_ipv6 |= attachment.ips.iter().any(|Prefix(ip, _)| ip.is_ipv6());
                    &mut plan.open
                }
                _ => &mut plan.attached,
            };
            bridges.insert(bridge);
            plan.resolvers.extend(&attachment.gateways);
            if attachment.place == Place::Host {
                plan.resolvers.extend(attachment.ips.iter().map(|Prefix(ip, _)| *ip));
            }
        }
        // One segment may be two networks of the engine: the stricter one counts.
        plan.open.retain(|bridge| !plan.internal.contains(bridge));
        plan
    }
}

/// Keeps the firewall's rules for as long as the router runs.
async fn keep_rules(docker: Arc<Docker>, mut changes: mpsc::Receiver<()>) {
    let mut last = tokio::time::Instant::now() - BETWEEN_LOOKS;
    loop {
        let asked = docker.driver.firewall.asked();
        let plan = docker.plan().await;
        let applied = match docker.route(&plan) {
            Ok(()) => docker.driver.firewall.apply(&plan, &docker.driver.ports.all()).await,
            Err(error) => Err(error),
        };
        let error = applied.err().map(|error| error.to_string());
        let problem = error.as_ref().map(|error| {
            format!("ports are not published and containers do not reach the outside (is nftables installed?): {error}")
        });
        docker.note_problem("firewall", problem);
        docker.driver.firewall.note_applied(asked, error);
        // The rules are to change, another program changed them, or it is time to look whether they are still there.
        tokio::select! {
            () = docker.driver.firewall.wanted.notified() => {}
            Some(()) = changes.recv() => {
                // Another program that changes its own rules all the time costs a look a second.
                tokio::select! {
                    () = tokio::time::sleep_until(last + BETWEEN_LOOKS) => {}
                    () = docker.driver.firewall.wanted.notified() => {}
                }
                last = tokio::time::Instant::now();
            }
            () = tokio::time::sleep(LOOK_AT_RULES) => {}
        }
    }
}
