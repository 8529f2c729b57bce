//! The IPAM driver: pools are ranges, and their addresses come from the rings.
//!
//! The default pool is the mesh's own range, the same for every network: addresses are unique in the whole mesh.
//! A chosen one has a ring of its own. IPv6 addresses are random in a /64 and need no agreement.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};
use weft_mesh::ipam::ring::Range;
use weft_mesh::ipam::{AllocationId, Request};
use weft_mesh::node::Command;

use super::plugin::NAME;
use super::prefixes::{derived_ula, first, parse_address, parse_network, random_in};
use super::protocol::{RequestAddress, RequestPool};
use crate::attach::addresses::{Lease, range_of};
use crate::attach::attachments::ATTACHED;
use crate::attach::netlink::in_namespace;
use crate::attach::prefix::Prefix;
use crate::daemon::keys::TableName;
use crate::daemon::node_task::NodeHandle;
use crate::daemon::state::{Store, Table, random};
use crate::error::{Failure, Result};

/// Begins the id of the default pool.
const DEFAULT: &str = "default/";
/// How long the engine may take from asking for an address to using it.
const FRESH: Duration = Duration::from_secs(60);
/// Times an engine may ask for the mesh's own range before it asks for an address of it. Networks are made by many at once.
const MAX_IN_A_ROW: usize = 128;

/// A subnet that a user chose.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChosenPool {
    /// The subnet that the user chose.
    pub prefix: Prefix,
    /// The part of it that addresses are handed out of.
    pub part: Option<Prefix>,
    /// Its gateway, if a user chose it.
    pub gateway: Option<IpAddr>,
    /// Addresses that are used for something else.
    pub set_aside: BTreeSet<IpAddr>,
    /// The engine's id of the network, once that is there.
    pub network: Option<String>,
}

/// All pools.
pub struct Pools {
    node: NodeHandle,
    range: Range,
    ula: (Ipv6Addr, u8),
    chosen: Table<ChosenPool>,
    /// Addresses just handed out: the engine will say for which container.
    fresh: Mutex<BTreeMap<IpAddr, Instant>>,
    /// When the mesh's own range was asked for, since anything came of it.
    asked_in_a_row: Mutex<Vec<Instant>>,
    /// The engine's version, while it answers.
    engine_version: Arc<ArcSwapOption<String>>,
    /// Since when pools have had no network.
    unsettled: Mutex<BTreeMap<String, Instant>>,
    /// The pools are those of all networks of the engine.
    knows_all: AtomicBool,
    /// Held while the parts of the mesh's own range that pools have are changed.
    parts: tokio::sync::Mutex<()>,
    /// What is being asked for: the ring may have it before the caller does.
    asked: Mutex<BTreeSet<AllocationId>>,
}

/// Which pool an id means.
enum Meant {
    Default(Prefix),
    Chosen(ChosenPool),
}

impl Pools {
    /// The pools that were there, and the mesh's own.
    pub fn new(
        node: NodeHandle,
        store: Arc<Store>,
        kept: &[(Vec<u8>, Vec<u8>)],
        range: Range,
        domain: &str,
        engine_version: Arc<ArcSwapOption<String>>,
    ) -> Self {
        let chosen = Table::new(store, TableName::Pools, kept);
        Pools {
            node,
            range,
            ula: (derived_ula(range, domain), 64),
            chosen,
            fresh: Mutex::default(),
            asked_in_a_row: Mutex::default(),
            engine_version,
            unsettled: Mutex::default(),
            knows_all: AtomicBool::new(false),
            parts: tokio::sync::Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// Has the rings leave out what pools use for something else.
    pub async fn restore(&self) -> Result<()> {
        for (_, pool) in self.chosen.all() {
            self.set_aside(&pool).await?;
        }
        // The ring has them, unless it is another one now: then it takes them as it can, and its status names what it cannot.
        let _ = self.set_parts(None).await;
        Ok(())
    }

    /// `RequestPool`: returns the pool's id and its prefix.
    pub async fn request(&self, request: &RequestPool) -> Result<(String, Prefix)> {
        if request.address_space != NAME {
            return Err(Failure::new(format!("{} are no addresses of weft's", request.address_space)));
        }
        if request.pool.is_empty() {
            if !request.sub_pool.is_empty() {
                return Err(Failure::new("--ip-range needs --subnet"));
            }
            let [v4, v6] = self.own();
            let prefix = if request.v6 { v6 } else { v4 };
            // An engine that finds a pool to overlap a route or a resolver of the host asks for another one for ever.
            let mut asked = lock(&self.asked_in_a_row);
            asked.retain(|since| since.elapsed() < FRESH);
            if asked.len() >= MAX_IN_A_ROW {
                asked.clear();
                return Err(Failure::new(format!(
                    "the engine finds the mesh's range {} to overlap a route or a resolver of this host (ip route; \
                     /etc/resolv.conf); say that it is meant with --subnet {}, or choose another --subnet",
                    prefix, prefix
                )));
            }
            asked.push(Instant::now());
            return Ok((format!("{DEFAULT}{prefix}"), prefix));
        }
        let prefix = parse_network(&request.pool)?;
        let part = match request.sub_pool.as_str() {
            "" => None,
            part => Some(parse_network(part)?),
        };
        if part.is_none() && self.is_own(prefix) {
            return Ok((format!("{DEFAULT}{prefix}"), prefix));
        }
        // An engine that starts asks again for what its networks have.
        let id = id_of(prefix, part);
        if !self.is_answering() && self.chosen.find(&id).is_some() {
            return Ok((id, prefix));
        }
        if part.is_some_and(|part| part.1 < prefix.1 || !part.overlaps(prefix)) {
            return Err(Failure::new("--ip-range lies outside --subnet; choose a range within it"));
        }
        self.refuse_unusable(prefix, part)?;
        self.refuse_overlap(prefix).await?;
        // What another attempt left that came to nothing.
        for (abandoned, pool) in self.chosen.all() {
            if pool.network.is_none() && pool.prefix == prefix {
                self.release(&abandoned).await?;
            }
        }
        let pool = ChosenPool { prefix, part, gateway: None, set_aside: BTreeSet::new(), network: None };
        self.keep(&id, pool).await?;
        Ok((id, prefix))
    }

    /// Takes up the pool of a network that is there, as it was once asked for.
    pub async fn take_up(&self, pool: ChosenPool) -> Result<()> {
        self.refuse_unusable(pool.prefix, pool.part)?;
        let id = id_of(pool.prefix, pool.part);
        if self.chosen.find(&id).is_none() {
            self.keep(&id, pool.clone()).await?;
        }
        self.set_aside(&pool).await
    }

    /// Returns whether a subnet is the default one.
    pub fn is_own(&self, prefix: Prefix) -> bool {
        self.own().contains(&prefix)
    }

    /// The subnets of a network for which the user chose none.
    pub fn own_prefixes(&self, ipv4: bool, ipv6: bool) -> Vec<Prefix> {
        let [v4, v6] = self.own();
        [ipv4.then_some(v4), ipv6.then_some(v6)].into_iter().flatten().collect()
    }

    fn is_answering(&self) -> bool {
        self.engine_version.load().is_some()
    }

    fn own(&self) -> [Prefix; 2] {
        [Prefix(IpAddr::V4(self.range.base), self.range.length), Prefix(IpAddr::V6(self.ula.0), self.ula.1)]
    }

    /// Whether a subnet is a part of the mesh's own range, which the ring of that has to leave to it.
    fn is_part(&self, prefix: Prefix) -> bool {
        let own = self.own()[0];
        prefix.1 > own.1 && own.overlaps(prefix)
    }

    /// Keeps a new pool, once the mesh's own ring leaves its addresses to it.
    async fn keep(&self, id: &str, pool: ChosenPool) -> Result<()> {
        let _one_at_a_time = self.parts.lock().await;
        let had = match self.is_part(pool.prefix) {
            true => self.set_parts(Some(pool.prefix)).await,
            false => Ok(()),
        };
        let kept = had.and_then(|()| self.chosen.set(id, pool));
        if kept.is_err() {
            let _ = self.set_parts(None).await;
        }
        kept
    }

    /// Has the mesh's own ring leave out the subnets of chosen pools, and one more.
    async fn set_parts(&self, more: Option<Prefix>) -> Result<()> {
        let chosen = self.chosen.all().into_iter().map(|(_, pool)| pool.prefix);
        let parts = chosen.chain(more).filter(|prefix| self.is_part(*prefix)).filter_map(range_of);
        self.node.tell(Command::SetParts(self.range, parts.collect(), self.knows_all.load(Ordering::Relaxed))).await
    }

    fn refuse_unusable(&self, prefix: Prefix, part: Option<Prefix>) -> Result<()> {
        match prefix.0 {
            IpAddr::V4(_) if range_of(prefix).is_none() || part.is_some_and(|part| range_of(part).is_none()) => {
                Err(Failure::new(format!("the subnet {prefix} is no range to hand out of: it takes /8 to /30")))
            }
            IpAddr::V6(_) if part.unwrap_or(prefix).1 > 112 => Err(Failure::new(format!(
                "the subnet {} is too small: it takes /112 or larger",
                part.unwrap_or(prefix)
            ))),
            _ => Ok(()),
        }
    }

    async fn refuse_overlap(&self, prefix: Prefix) -> Result<()> {
        let refused = |what: String| Err(Failure::new(format!("the subnet {prefix} overlaps {what}; choose another")));
        if let Some(own) = self.own().into_iter().find(|own| own.overlaps(prefix) && !self.is_part(prefix)) {
            return refused(format!("the mesh's own range {own} (leave --subnet out to use that)"));
        }
        let here = self.chosen.all().into_iter().map(|(_, pool)| pool).filter(|pool| pool.network.is_some());
        if let Some(pool) = here.into_iter().find(|pool| pool.prefix.overlaps(prefix)) {
            return refused(format!("that of another network, {}", pool.prefix));
        }
        {
            let networks = self.node.networks().await?;
            for (host, network) in &networks.elsewhere {
                // The same subnet is meant to be the same network.
                let clash = |other: Prefix| other != prefix && other.overlaps(prefix);
                if let Some(subnet) = network.subnets.iter().find(|subnet| clash(subnet.prefix.into())) {
                    return refused(format!("{} of network {} on {host}", Prefix::from(subnet.prefix), network.name));
                }
            }
        }
        match in_namespace(None, async move |net| net.on_link_overlap(prefix).await)? {
            Some((network, interface)) => {
                refused(format!("the network {network} of this host's interface {interface}"))
            }
            None => Ok(()),
        }
    }

    /// `ReleasePool`.
    pub async fn release(&self, id: &str) -> Result<()> {
        let Some(pool) = self.chosen.find(id) else { return Ok(()) };
        let prefix = pool.prefix;
        let Some(range) = range_of(prefix) else { return self.chosen.remove(id).map(drop) };
        let (attached, ours): (Vec<Lease>, Vec<Lease>) =
            self.node.leases(range).await?.into_iter().partition(is_attached);
        self.node.release(&ours).await;
        // Containers attached by hand keep their addresses, and with them the pool its part of the mesh's range.
        if self.is_part(prefix) && !attached.is_empty() {
            return self.chosen.set(id, ChosenPool { network: None, ..pool });
        }
        self.chosen.remove(id)?;
        lock(&self.unsettled).remove(id);
        self.node.tell(Command::SetAside(range, BTreeSet::new())).await?;
        if self.is_part(prefix) {
            let _one_at_a_time = self.parts.lock().await;
            self.set_parts(None).await?;
        }
        Ok(())
    }

    /// `RequestAddress`: returns the address with its prefix length.
    pub async fn request_address(&self, request: &RequestAddress) -> Result<Prefix> {
        lock(&self.asked_in_a_row).clear();
        let wanted = match request.address.as_str() {
            "" => None,
            text => Some(parse_address(text)?),
        };
        let (prefix, part) = match self.meant(&request.pool_id)? {
            Meant::Default(prefix) if request.is_gateway() => {
                return Ok(Prefix(wanted.unwrap_or(first(prefix)), prefix.1));
            }
            Meant::Default(prefix) => (prefix, None),
            Meant::Chosen(mut pool) if request.is_gateway() || pool.network.is_none() => {
                let address = wanted.unwrap_or(first(pool.prefix));
                if !Prefix::alone(address).overlaps(pool.prefix) {
                    return Err(Failure::new(format!("{address} is outside of {}", pool.prefix)));
                }
                if request.is_gateway() {
                    pool.gateway = wanted;
                }
                pool.set_aside.insert(address);
                self.chosen.set(&request.pool_id, pool.clone())?;
                self.set_aside(&pool).await?;
                return Ok(Prefix(address, pool.prefix.1));
            }
            Meant::Chosen(pool) => (pool.prefix, pool.part),
        };
        if let Some(wanted) = wanted.filter(|wanted| !Prefix::alone(*wanted).overlaps(prefix)) {
            return Err(Failure::new(format!("{wanted} is outside of {prefix}")));
        }
        let address = match prefix.0 {
            IpAddr::V4(_) => self.allocate(prefix, part, wanted).await?,
            IpAddr::V6(_) => match wanted {
                Some(wanted) => wanted,
                None => random_in(part.unwrap_or(prefix))?,
            },
        };
        Ok(Prefix(address, prefix.1))
    }

    async fn allocate(&self, prefix: Prefix, part: Option<Prefix>, wanted: Option<IpAddr>) -> Result<IpAddr> {
        let range = range_of(prefix).ok_or_else(|| Failure::new("no range to hand out of"))?;
        let mut id: AllocationId = random()?;
        id[0] &= !ATTACHED;
        let want = match wanted {
            Some(IpAddr::V4(ip)) => Some(ip),
            _ => None,
        };
        let within = part.and_then(range_of).filter(|_| want.is_none());
        lock(&self.asked).insert(id);
        let lease = self.node.allocate(Request { range, id, want, within }).await;
        if let Ok(lease) = &lease {
            self.note_fresh(lease.address.into());
        }
        lock(&self.asked).remove(&id);
        Ok(IpAddr::V4(lease?.address))
    }

    fn note_fresh(&self, address: IpAddr) {
        let mut fresh = lock(&self.fresh);
        fresh.retain(|_, since| since.elapsed() < FRESH);
        fresh.insert(address, Instant::now());
    }

    /// `ReleaseAddress`. Gateways and the like are let go with their pool.
    pub async fn release_address(&self, id: &str, address: IpAddr) -> Result<()> {
        lock(&self.fresh).remove(&address);
        // A pool that is gone took its addresses along, but for the mesh's own.
        let Ok(meant) = self.meant(id) else { return Ok(()) };
        let (Meant::Default(prefix) | Meant::Chosen(ChosenPool { prefix, .. })) = meant;
        let (Some(range), IpAddr::V4(address)) = (range_of(prefix), address) else { return Ok(()) };
        let held = self.leases(range).await?;
        let leases: Vec<Lease> = held.into_iter().filter(|lease| lease.address == address).collect();
        self.node.release(&leases).await;
        // It may have been another host's since two parts of the mesh met.
        self.node.tell(Command::Unfence(address)).await
    }

    /// Where this host's containers have their addresses from.
    pub fn prefixes(&self) -> BTreeSet<Prefix> {
        self.chosen.all().into_iter().map(|(_, pool)| pool.prefix).chain(self.own()).collect()
    }

    fn ranges(&self) -> BTreeSet<Range> {
        self.chosen.all().iter().filter_map(|(_, pool)| range_of(pool.prefix)).chain([self.range]).collect()
    }

    /// What the engine's containers have of a range.
    async fn leases(&self, range: Range) -> Result<Vec<Lease>> {
        let held = self.node.leases(range).await?;
        Ok(held.into_iter().filter(|lease| !is_attached(lease)).collect())
    }

    /// Gives back what no endpoint has and the engine did not just ask for.
    pub async fn release_unused(&self, used: &BTreeSet<IpAddr>) -> Result<Vec<Ipv4Addr>> {
        let mut released = Vec::new();
        for range in self.ranges() {
            let mut leaked = self.leases(range).await?;
            let (asked, fresh) = (lock(&self.asked).clone(), lock(&self.fresh).clone());
            let is_fresh = |ip: &IpAddr| fresh.get(ip).is_some_and(|since| since.elapsed() < FRESH);
            leaked.retain(|lease| {
                let ip = IpAddr::V4(lease.address);
                !used.contains(&ip) && !is_fresh(&ip) && !asked.contains(&lease.id)
            });
            self.node.release(&leaked).await;
            released.extend(leaked.iter().map(|lease| lease.address));
        }
        Ok(released)
    }

    /// Those of the endpoints' addresses that no ring has given to this host: it has lost them to others.
    pub async fn lost(&self, used: &BTreeSet<IpAddr>) -> Result<Vec<Ipv4Addr>> {
        let mut lost = Vec::new();
        for range in self.ranges() {
            let held: BTreeSet<Ipv4Addr> = self.node.leases(range).await?.iter().map(|lease| lease.address).collect();
            lost.extend(used.iter().filter_map(|ip| match ip {
                IpAddr::V4(ip) if range.contains(*ip) && !held.contains(ip) => Some(*ip),
                _ => None,
            }));
        }
        Ok(lost)
    }

    /// Returns the pool with a prefix that a user chose.
    pub fn chosen(&self, prefix: Prefix) -> Option<ChosenPool> {
        self.chosen.all().into_iter().map(|(_, pool)| pool).find(|pool| pool.prefix == prefix)
    }

    /// A pool belongs to a network from now on: what is asked for of it is for containers.
    pub fn settle(&self, prefix: Prefix, network: &str) -> Result<()> {
        let found = self.chosen.all().into_iter().find(|(_, pool)| pool.prefix == prefix);
        match found {
            Some((id, pool)) => {
                lock(&self.unsettled).remove(&id);
                self.chosen.set(&id, ChosenPool { network: Some(network.to_owned()), ..pool })
            }
            None => Ok(()),
        }
    }

    /// Lets go of pools whose network the engine does not know, and of those that came to nothing: an engine that gave up a
    /// request for a pool does not release it.
    pub async fn release_abandoned(&self, networks: &BTreeSet<String>) -> Result<()> {
        for (id, pool) in self.chosen.all() {
            let is_abandoned = match pool.network {
                Some(network) => !networks.contains(&network),
                None => lock(&self.unsettled).entry(id.clone()).or_insert_with(Instant::now).elapsed() >= FRESH,
            };
            if is_abandoned {
                self.release(&id).await?;
            }
        }
        Ok(())
    }

    /// Notes that the pools are those of all networks that the engine has: parts of the mesh's range that are no pool's are left.
    pub async fn know_all(&self) -> Result<()> {
        if self.knows_all.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let _one_at_a_time = self.parts.lock().await;
        self.set_parts(None).await
    }

    fn meant(&self, id: &str) -> Result<Meant> {
        if let Some(prefix) = id.strip_prefix(DEFAULT) {
            return parse_network(prefix).map(Meant::Default);
        }
        let unknown = || Failure::new(format!("there is no pool {id}; remove the network and create it again"));
        self.chosen.find(id).map(Meant::Chosen).ok_or_else(unknown)
    }

    async fn set_aside(&self, pool: &ChosenPool) -> Result<()> {
        let Some(range) = range_of(pool.prefix) else { return Ok(()) };
        let v4 = pool.set_aside.iter().filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        self.node.tell(Command::SetAside(range, v4.collect())).await
    }
}

/// Returns the id by which the engine names a chosen pool.
fn id_of(prefix: Prefix, part: Option<Prefix>) -> String {
    match part {
        Some(part) => format!("{prefix}/{part}"),
        None => prefix.to_string(),
    }
}

/// Returns whether an address is of a container attached by hand, and not the engine's.
fn is_attached(lease: &Lease) -> bool {
    lease.id[0] & ATTACHED != 0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
