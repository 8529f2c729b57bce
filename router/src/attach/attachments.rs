//! Endpoints of this host: the interfaces that `attach`, `expose` and the engine's networks make, kept across restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard, Notify};
use tracing::{debug, info, warn};
use weft_mesh::ipam::ring::Range;
use weft_mesh::ipam::{AllocationId, Request};
use weft_mesh::node::Command;
use weft_mesh::records::{EndpointId, Health, MAX_LIST};

use crate::attach::addresses::{Lease, range_of};
use crate::attach::attachment::{Attachment, Description, Place};
use crate::attach::interfaces;
use crate::attach::netlink::in_namespace;
use crate::attach::prefix::Prefix;
use crate::attach::restore::Restored;
use crate::attach::running::RunningCopies;
use crate::attach::table::AttachmentTable;
use crate::attach::target::{self, Namespace};
use crate::daemon::node_task::{EndpointChange, NodeHandle};
use crate::daemon::state::{Store, random};
use crate::dataplane::taps::{Segments, remove_unused};
use crate::error::{Failure, Result};

/// The segment used when none is named.
pub const DEFAULT_SEGMENT: &str = "weft";

/// What `attach` and `expose` are asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Container name or id, PID or namespace path; none: the host itself.
    pub target: Option<String>,
    /// The segment.
    pub segment: Option<String>,
    /// Addresses, as `ADDR` or `ADDR/LEN`.
    #[serde(default)]
    pub ips: Vec<String>,
    /// Names.
    #[serde(default)]
    pub names: Vec<String>,
}

/// Where addresses of a segment come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentSubnet {
    /// The range.
    pub prefix: Prefix,
    /// The part of it that is handed out without being asked for.
    pub part: Option<Prefix>,
    /// The segment's gateway in it.
    pub gateway: Option<IpAddr>,
}

/// All endpoints of this host.
pub struct Attachments {
    node: NodeHandle,
    range: Prefix,
    /// Where addresses come from in segments that are networks; elsewhere it is the mesh's own range.
    subnets: ArcSwap<BTreeMap<String, Vec<SegmentSubnet>>>,
    docker_socket: PathBuf,
    changed: Arc<Notify>,
    table: Mutex<AttachmentTable>,
}

/// What the endpoints are made from.
pub struct AttachmentParts {
    /// The node.
    pub node: NodeHandle,
    /// Where endpoints are kept.
    pub store: Arc<Store>,
    /// The segments' interfaces on this host.
    pub segments: Segments,
    /// The mesh's own range.
    pub range: Prefix,
    /// Where the engine answers, which knows containers by name.
    pub docker_socket: PathBuf,
    /// Endpoints from before a restart.
    pub restored: Restored,
    /// Their copies outside the store.
    pub running: RunningCopies,
}

impl Attachments {
    /// Picks up what was there: segments get their interfaces again, traffic flows.
    pub async fn new(parts: AttachmentParts) -> Result<Self> {
        let AttachmentParts { node, store, segments, range, docker_socket, restored, running } = parts;
        let changed = Arc::new(Notify::new());
        let Restored { alive: all, lost, unproven, .. } = restored;
        let mut table = AttachmentTable {
            node: node.clone(),
            store,
            running,
            segments,
            all,
            lost,
            unproven,
            changed: changed.clone(),
        };
        interfaces::remove_strays(table.all.values().chain(table.lost.values()).map(Attachment::port).collect())?;
        let used = table.used_segments();
        remove_unused(&used)?;
        for segment in used {
            let bridge = table.open(segment).await?;
            table.settle(segment, bridge);
        }
        let attachments =
            Attachments { node, range, subnets: ArcSwap::default(), docker_socket, changed, table: Mutex::new(table) };
        if let Err(error) = attachments.reconcile().await {
            warn!("{error}; what a crash left of addresses is put right at the next start");
        }
        Ok(attachments)
    }

    /// Takes up the containers that run on although the store was lost, and wins their addresses back from the rings, so that
    /// nothing else is given them. What has no ring's consent yet is asked for again by the next call.
    pub async fn take_up_lost(&self) {
        for attachment in self.table.lock().await.take_up_lost().await {
            info!(
                names = attachment.names.join(","),
                ips = attachment.printed().join(", "),
                segment = attachment.segment,
                "taken up again: this container ran on while the store was lost"
            );
        }
        let unproven = self.table.lock().await.unproven.clone();
        let ask = |(endpoint, lease): (EndpointId, Lease)| {
            let Lease { range, id, address } = lease;
            let request = Request { range, id, want: Some(address), within: None };
            async move { (endpoint, lease, self.node.allocate(request).await) }
        };
        for (endpoint, lease, answer) in futures_util::future::join_all(unproven.into_iter().map(ask)).await {
            let proven = match answer {
                Ok(_) => self.table.lock().await.prove(endpoint, lease),
                Err(error) => Err(error),
            };
            match proven {
                Ok(true) => {}
                Ok(false) => self.node.release(&[lease]).await,
                Err(error) => {
                    debug!(address = %lease.address, "a running container's address is not won back yet: {error}");
                }
            }
        }
    }

    /// Addresses of running containers that no ring has given to this host since the store was lost.
    pub async fn unproven(&self) -> Vec<Ipv4Addr> {
        self.table.lock().await.unproven.iter().map(|(_, lease)| lease.address).collect()
    }

    /// The ring and the endpoints agree on who has which address: what a crash or an older disk left is put right.
    async fn reconcile(&self) -> Result<()> {
        let known: Vec<Lease> = self.all().await.into_iter().flat_map(|attachment| attachment.leases).collect();
        let ranges: BTreeSet<Range> = known.iter().map(|lease| lease.range).chain(range_of(self.range)).collect();
        for range in ranges {
            self.reconcile_range(range, &known).await?;
        }
        Ok(())
    }

    async fn reconcile_range(&self, range: Range, known: &[Lease]) -> Result<()> {
        let held = self.node.leases(range).await?;
        for lost in known.iter().filter(|lease| lease.range == range && !held.contains(lease)) {
            self.fence(lost.id, lost.address).await;
        }
        let is_ours = |lease: &Lease| lease.id[0] & ATTACHED != 0 && !known.contains(lease);
        let leaked: Vec<Lease> = held.into_iter().filter(is_ours).collect();
        self.node.release(&leaked).await;
        Ok(())
    }

    /// Where addresses come from in segments that are networks.
    pub fn set_subnets(&self, subnets: BTreeMap<String, Vec<SegmentSubnet>>) {
        self.subnets.store(Arc::new(subnets));
    }

    fn subnets_of(&self, segment: &str) -> Vec<SegmentSubnet> {
        let known = self.subnets.load().get(segment).cloned().filter(|subnets| !subnets.is_empty());
        let own = || SegmentSubnet {
            prefix: self.range,
            part: None,
            gateway: range_of(self.range).map(|range| IpAddr::V4(range.gateway())),
        };
        known.unwrap_or_else(|| vec![own()])
    }

    /// Gives a container (or the host) an interface in a segment; returns its addresses, one a line.
    pub async fn attach(&self, request: AttachRequest) -> Result<Vec<String>> {
        let segment = request.segment.clone().unwrap_or_else(|| DEFAULT_SEGMENT.into());
        let subnets = self.subnets_of(&segment);
        let ips = request.ips.iter().map(|ip| parse_ip(ip, &subnets)).collect::<Result<Vec<Prefix>>>()?;
        if ips.len() > MAX_LIST {
            return Err(Failure::Usage(format!("at most {MAX_LIST} addresses")));
        }
        let namespace = self.namespace(&request).await?;
        if let Some(namespace) = &namespace
            && namespace.id == target::own()?.id
        {
            return Err(Failure::new("that is this host itself and no container; use: weft expose"));
        }
        if let Some(printed) = self.swept().await.find_same(namespace.as_ref(), &segment, &ips)? {
            return Ok(printed);
        }
        if let Some(there) = self.joined(namespace.as_ref(), &segment).await {
            return Err(Failure::new(format!(
                "the container is in segment {segment} already by an engine's network, with {}; there is nothing to attach",
                there.printed().join(", ")
            )));
        }
        let mut id: EndpointId = random()?;
        id[0] |= ATTACHED;
        let mac = [0x02, id[0], id[1], id[2], id[3], id[4]];
        let place = match &namespace {
            Some(namespace) => Place::Container {
                namespace: namespace.id,
                host_interface: format!("wv{}", hex::encode(&id[..5])),
                interface: String::new(),
                path: namespace.path.clone(),
            },
            None => Place::Host,
        };
        let gateways = subnets.iter().filter_map(|subnet| subnet.gateway).collect();
        let own_name = namespace.as_ref().and_then(|namespace| namespace.name.clone());
        let names = if request.names.is_empty() { own_name.into_iter().collect() } else { request.names };
        let (leases, services) = (Vec::new(), Vec::new());
        let ips_given = ips.clone();
        let mut attachment = Attachment {
            id,
            segment,
            ips,
            names,
            mac,
            place,
            leases,
            gateways,
            health: Health::Healthy,
            services,
            mtu: None,
            is_internal: false,
        };
        if let Some(problem) = attachment.record().problem() {
            return Err(Failure::Usage(problem.into()));
        }
        // Addresses of a range were checked when that was made.
        let outside = |ip: &&Prefix| !subnets.iter().any(|subnet| subnet.prefix.overlaps(**ip));
        refuse_overlap(&attachment.ips.iter().filter(outside).copied().collect::<Vec<_>>())?;
        // The lock is not held meanwhile: a request waits for its own address only.
        self.allocate(&mut attachment, &subnets).await?;
        let leases = attachment.leases.clone();
        let mut table = self.table.lock().await;
        let attached = match table.find_same(namespace.as_ref(), &attachment.segment, &ips_given) {
            Ok(None) => table.bring_in(attachment, namespace).await,
            Ok(Some(printed)) => {
                self.node.release(&leases).await;
                return Ok(printed);
            }
            Err(error) => Err(error),
        };
        if attached.is_err() {
            self.node.release(&leases).await;
        }
        attached
    }

    /// The endpoint by which an engine put a container into a segment.
    async fn joined(&self, namespace: Option<&Namespace>, segment: &str) -> Option<Attachment> {
        let namespace = namespace?;
        let is_it = |attachment: &Attachment| match &attachment.place {
            Place::Docker { sandbox, .. } => {
                target::open(sandbox, String::new).is_ok_and(|sandbox| sandbox.id == namespace.id)
            }
            _ => false,
        };
        let all = self.all().await;
        all.into_iter().find(|attachment| attachment.segment == segment && is_it(attachment))
    }

    /// Claims those of the addresses wished for that are a ring's, or takes one from it if none was wished for.
    async fn allocate(&self, attachment: &mut Attachment, subnets: &[SegmentSubnet]) -> Result<()> {
        let ranges = || subnets.iter().filter_map(|subnet| Some((range_of(subnet.prefix)?, subnet)));
        let in_ring = |Prefix(ip, _): &Prefix| match ip {
            IpAddr::V4(ip) => {
                ranges().find(|(range, _)| range.contains(*ip)).map(|(range, _)| (range, Some(*ip), None))
            }
            IpAddr::V6(_) => None,
        };
        let wanted: Vec<_> = match attachment.ips.is_empty() {
            true => ranges().map(|(range, subnet)| (range, None, subnet.part.and_then(range_of))).take(1).collect(),
            false => attachment.ips.iter().filter_map(in_ring).collect(),
        };
        for (number, (range, want, within)) in wanted.into_iter().enumerate() {
            let mut id: AllocationId = attachment.id;
            id[15] = id[15].wrapping_add(number as u8);
            match self.node.allocate(Request { range, id, want, within }).await {
                Ok(lease) => attachment.leases.push(lease),
                Err(error) => {
                    self.node.release(&attachment.leases).await;
                    return Err(error);
                }
            }
        }
        if attachment.ips.is_empty() {
            attachment.ips = attachment.leases.iter().map(Lease::prefix).collect();
        }
        if attachment.ips.is_empty() {
            return Err(Failure::new("the segment's network has no IPv4 addresses; give one with --ip"));
        }
        Ok(())
    }

    /// The network namespace of whom a request is about; none: the host's own.
    async fn namespace(&self, request: &AttachRequest) -> Result<Option<Namespace>> {
        match &request.target {
            Some(target) => target::resolve(target, &self.docker_socket).await.map(Some),
            None => Ok(None),
        }
    }

    /// Takes a container (or the host) out of a segment.
    pub async fn detach(&self, request: AttachRequest) -> Result<()> {
        let namespace = self.namespace(&request).await?;
        let segment = request.segment.unwrap_or_else(|| DEFAULT_SEGMENT.into());
        let mut table = self.table.lock().await;
        match table.find(namespace.as_ref(), &segment).map(|attachment| attachment.id) {
            Some(id) => table.remove(id).await,
            // What is not there needs no taking away.
            None => Ok(()),
        }
    }

    /// Brings in an endpoint that the engine asks for; false if it is there already.
    pub async fn join(&self, attachment: Attachment) -> Result<bool> {
        let mut table = self.swept().await;
        if table.all.contains_key(&attachment.id) {
            return Ok(false);
        }
        table.bring_in(attachment, None).await.map(|_| true)
    }

    /// Lets an endpoint go; a missing one is fine.
    pub async fn leave(&self, id: EndpointId) -> Result<()> {
        self.table.lock().await.remove(id).await
    }

    /// Says what became of an endpoint; whether it is there.
    pub async fn describe(&self, id: EndpointId, description: Description) -> Result<bool> {
        let mut table = self.table.lock().await;
        let Some(mut attachment) = table.all.get(&id).cloned() else { return Ok(false) };
        let Description { names, services, health } = description;
        if (&attachment.names, &attachment.services, attachment.health) == (&names, &services, health) {
            return Ok(true);
        }
        (attachment.names, attachment.services, attachment.health) = (names, services, health);
        self.node.tell(Command::attach(id, attachment.record())).await?;
        table.keep(&attachment)?;
        table.all.insert(id, attachment);
        Ok(true)
    }

    /// All endpoints.
    pub async fn all(&self) -> Vec<Attachment> {
        self.table.lock().await.all.values().cloned().collect()
    }

    /// Told when endpoints, and with them segments, came or went.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Carries out what the mesh has come to say about endpoints of this host.
    pub async fn apply(&self, change: EndpointChange) {
        match change {
            EndpointChange::Fenced(id, address) => self.fence(id, address).await,
            EndpointChange::Mtu(segment, mtu) => self.table.lock().await.set_mtu(segment, mtu.into()),
        }
    }

    /// Cuts off the endpoint whose address turned out to be another's.
    pub async fn fence(&self, id: AllocationId, address: Ipv4Addr) {
        let mut table = self.table.lock().await;
        let is_docker = |attachment: &Attachment| matches!(attachment.place, Place::Docker { .. });
        // The engine's containers have their addresses from its pools.
        let has_ip = |attachment: &Attachment| attachment.ips.iter().any(|Prefix(ip, _)| *ip == IpAddr::V4(address));
        let has_it = |attachment: &&Attachment| {
            attachment.leases.iter().any(|lease| lease.id == id) || is_docker(attachment) && has_ip(attachment)
        };
        let Some(mut attachment) = table.all.values().find(has_it).cloned() else { return };
        // No record is to speak of it again, the one from before a restart included.
        attachment.ips.retain(|Prefix(ip, _)| *ip != IpAddr::V4(address));
        let told = self.node.tell(Command::attach(attachment.id, attachment.record())).await;
        for error in [told.err(), table.keep(&attachment).err()].into_iter().flatten() {
            warn!("{error}");
        }
        table.all.insert(attachment.id, attachment.clone());
        match interfaces::cut_off(&attachment, address.into()) {
            Ok(()) => warn!(
                %address, names = attachment.names.join(","), segment = attachment.segment,
                "this endpoint's address is another host's: it is cut off until it is attached anew"
            ),
            Err(error) => warn!(%address, "an endpoint whose address is another host's cannot be cut off: {error}"),
        }
    }

    /// Endpoints whose container is gone are let go, interfaces that were deleted are made anew.
    pub async fn sweep(&self) {
        drop(self.swept().await);
    }

    /// The kernel gives the numbers of ended namespaces to new ones: what is gone must not be taken for what is there.
    async fn swept(&self) -> MutexGuard<'_, AttachmentTable> {
        let mut table = self.table.lock().await;
        table.sweep().await;
        table
    }
}

/// Set in the ids of what `attach` allocates addresses for, and clear in the ids of the engine's.
pub const ATTACHED: u8 = 0x80;

/// Refuses addresses that machines on a network of this host have, or may have.
fn refuse_overlap(ips: &[Prefix]) -> Result<()> {
    let ips = ips.to_vec();
    in_namespace(None, async move |net| {
        for ip in ips {
            if let Some((other, interface)) = net.on_link_overlap(ip).await? {
                return Err(Failure::new(format!(
                    "{} overlaps the network {other} of this host's interface {interface}; choose other addresses",
                    ip.network()
                )));
            }
        }
        Ok(())
    })
}

/// `ADDR/LEN`, or `ADDR` with the length of the segment's range that it is in, or what is usual.
fn parse_ip(text: &str, subnets: &[SegmentSubnet]) -> Result<Prefix> {
    let bad = || Failure::Usage(format!("{text} is no address: it takes ADDR or ADDR/LEN"));
    if text.contains('/') {
        return text.parse::<Prefix>().map_err(|_| bad());
    }
    let ip: IpAddr = text.parse().map_err(|_| bad())?;
    let usual = if ip.is_ipv4() { 24 } else { 64 };
    let around = subnets.iter().find(|subnet| subnet.prefix.overlaps(Prefix::alone(ip)));
    Ok(Prefix(ip, around.map_or(usual, |subnet| subnet.prefix.1)))
}
