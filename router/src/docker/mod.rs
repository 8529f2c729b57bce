//! A Docker engine's network and IPAM driver.
//!
//! A call's way: `plugin` reads it off the socket, `pools` (addresses) or `driver` (networks, endpoints) does it,
//! the attachments make interfaces and records. Names do not come with calls: `watch` asks the engine for them by
//! `api`. `spread` makes here what other hosts have, `publish` keeps the firewall's rules.

mod adopt;
mod api;
mod driver;
mod plugin;
mod pools;
mod protocol;
mod publish;
mod spread;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::warn;
use weft_mesh::wire::SegmentId;

use crate::addresses::range_of;
use crate::attachment::Place;
use crate::attachments::Attachments;
use crate::engine::EngineHandle;
use crate::error::{Failure, Result};
use crate::options::Options;
use crate::state::Store;
use crate::taps::bridge_name;
use api::EngineApi;
use driver::Driver;
use pools::Pools;
use publish::Plan;
use spread::Removing;

pub use plugin::NAME;

/// How often the firewall's rules are looked at.
const LOOK_AT_RULES: Duration = Duration::from_secs(5);

/// What the driver's parts share.
#[derive(Clone)]
struct Kit {
    engine: EngineHandle,
    store: Arc<Store>,
    attachments: Arc<Attachments>,
    api: Arc<EngineApi>,
    removing: Arc<Removing>,
    /// Told when containers came or went.
    sandboxes: Arc<Notify>,
}

/// The driver.
pub struct Docker {
    kit: Kit,
    pools: Arc<Pools>,
    driver: Driver,
    /// The engine's version, while it is there.
    pub engine_version: ArcSwapOption<String>,
    /// Told when networks may have come or gone.
    look_again: Notify,
    /// Containers being looked at, and whether they are to be looked at again.
    busy: Mutex<BTreeMap<String, bool>>,
    compared: AtomicBool,
    makes_standing: AtomicBool,
    /// Bridges of the engine's own networks.
    foreign: ArcSwap<BTreeSet<String>>,
}

/// A container on weft networks: where it is, and in which segments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sandbox {
    /// The path of its network namespace.
    pub path: String,
    /// Its segments.
    pub segments: BTreeSet<SegmentId>,
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

impl Docker {
    /// Picks up what was there and serves the engine; ends with the tasks.
    pub async fn start(
        bound: Bound,
        options: &Options,
        (engine, attachments): (EngineHandle, Arc<Attachments>),
        store: Arc<Store>,
        kept: &[(Vec<u8>, Vec<u8>)],
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Docker>> {
        let api = Arc::new(EngineApi::new(options.docker_socket.clone()));
        let range = range_of(options.range.0).ok_or_else(|| Failure::new("the range is none to hand out of"))?;
        let pools = Arc::new(Pools::new(engine.clone(), store.clone(), kept, range, &options.dns_domain));
        pools.restore().await?;
        let sandboxes = Arc::new(Notify::new());
        let kit = Kit { engine, store, attachments, api, removing: Arc::default(), sandboxes };
        let docker = Arc::new(Docker {
            driver: Driver::new(kit.clone(), pools.clone(), kept),
            kit,
            pools,
            engine_version: ArcSwapOption::empty(),
            look_again: Notify::new(),
            busy: Mutex::default(),
            compared: AtomicBool::new(false),
            makes_standing: AtomicBool::new(true),
            foreign: ArcSwap::default(),
        });
        docker.restore().await?;
        tasks.spawn(plugin::serve(bound.listener, docker.clone()));
        tasks.spawn(watch::watch(docker.clone()));
        tasks.spawn(spread::spread(docker.clone(), options.spread));
        tasks.spawn(keep_rules(docker.clone()));
        Ok(docker)
    }

    /// Tells others of the networks, and takes the published ports again. Addresses that are others' by now are not used.
    async fn restore(&self) -> Result<()> {
        self.driver.report_subnets();
        for (_, network) in self.driver.networks.all() {
            self.driver.tell(&network).await;
        }
        for lost in self.pools.lost(&self.driver.used()).await? {
            self.kit.attachments.fence(([0; 16], lost)).await;
        }
        self.driver.publish_all(None);
        Ok(())
    }

    /// The network that stands ready is made once: whoever removes it wants it gone until the next start.
    fn makes_standing(&self, is_there: bool) -> bool {
        if is_there {
            self.makes_standing.store(false, Ordering::Relaxed);
        }
        self.compared.load(Ordering::Relaxed) && self.makes_standing.load(Ordering::Relaxed)
    }

    /// The containers that are on weft's networks.
    pub async fn sandboxes(&self) -> Vec<Sandbox> {
        let mut all: BTreeMap<String, BTreeSet<SegmentId>> = BTreeMap::new();
        for (_, endpoint) in self.driver.endpoints.all() {
            let segment = self.driver.networks.find(&endpoint.network);
            let segment = segment.as_ref().and_then(|network| network.segment()).map(SegmentId::of);
            if let (Some(path), Some(segment)) = (endpoint.sandbox, segment) {
                all.entry(path).or_default().insert(segment);
            }
        }
        all.into_iter().map(|(path, segments)| Sandbox { path, segments }).collect()
    }

    /// What weft's networks are called.
    pub fn network_names(&self) -> BTreeSet<String> {
        self.driver.networks.all().into_iter().filter_map(|(_, network)| network.name).collect()
    }

    /// Told when containers came or went.
    pub fn sandboxes_changed(&self) -> Arc<Notify> {
        self.kit.sandboxes.clone()
    }

    /// Leaves the host without rules; containers keep what they have.
    pub async fn stop(&self) {
        if let Err(error) = self.driver.publisher.remove().await {
            warn!("{error}");
        }
    }

    async fn plan(&self) -> Plan {
        let mut plan = Plan { foreign: BTreeSet::clone(&self.foreign.load()), ..Plan::default() };
        for attachment in self.kit.attachments.all().await {
            let bridge = bridge_name(SegmentId::of(&attachment.segment));
            let bridges = match (&attachment.place, attachment.is_internal) {
                (Place::Docker { .. }, true) => &mut plan.internal,
                (Place::Docker { .. }, false) => {
                    plan.has_ipv6 |= attachment.ips.iter().any(|(ip, _)| ip.is_ipv6());
                    &mut plan.open
                }
                _ => &mut plan.attached,
            };
            bridges.insert(bridge);
        }
        // One segment may be two networks of the engine: the stricter one counts.
        plan.open.retain(|bridge| !plan.internal.contains(bridge));
        plan
    }
}

/// Keeps the firewall's rules for as long as the router runs.
async fn keep_rules(docker: Arc<Docker>) {
    let mut said = String::new();
    loop {
        let plan = docker.plan().await;
        match docker.driver.publisher.apply(&plan).await {
            Ok(()) => said.clear(),
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    warn!(
                        "ports are not published and containers do not reach the outside (is nftables installed?): {text}"
                    );
                    said = text;
                }
            }
        }
        // Either the rules are to change, or it is time to look whether they are still there.
        let _ = tokio::time::timeout(LOOK_AT_RULES, docker.driver.publisher.wanted.notified()).await;
    }
}
