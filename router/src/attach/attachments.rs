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
use weft_mesh::wire::SegmentId;

use crate::attach::addresses::{Lease, range_of};
use crate::attach::attachment::{Attachment, Description, Place, own_name};
use crate::attach::interfaces;
use crate::attach::netlink::{Prefix, alone, in_namespace, network, overlaps};
use crate::attach::restore::Restored;
use crate::attach::running::RunningCopies;
use crate::attach::target::{self, Namespace};
use crate::cli::options::Cidr;
use crate::daemon::node_task::{EndpointChange, NodeHandle};
use crate::daemon::state::{Store, random};
use crate::dataplane::taps::{Segments, remove_unused};
use crate::error::{Doing, Failure, Result};

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
    range: Cidr,
    /// Where addresses come from in segments that are networks; elsewhere it is the mesh's own range.
    subnets: ArcSwap<BTreeMap<String, Vec<SegmentSubnet>>>,
    docker_socket: PathBuf,
    changed: Arc<Notify>,
    table: Mutex<AttachmentTable>,
}

/// What only one at a time may change.
struct AttachmentTable {
    node: NodeHandle,
    store: Arc<Store>,
    running: RunningCopies,
    segments: Segments,
    all: BTreeMap<EndpointId, Attachment>,
    /// Those of which the mesh has not heard since the store was lost; and what they have from rings that has to be won back.
    lost: BTreeMap<EndpointId, Attachment>,
    unproven: Vec<(EndpointId, Lease)>,
    changed: Arc<Notify>,
}

impl Attachments {
    /// Picks up what was there: segments get their interfaces again, traffic flows.
    pub async fn new(
        node: NodeHandle,
        store: Arc<Store>,
        segments: Segments,
        range: Cidr,
        docker_socket: PathBuf,
        (restored, running): (Restored, RunningCopies),
    ) -> Result<Self> {
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
        attachments.reconcile().await?;
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
        let ranges: BTreeSet<Range> = known.iter().map(|lease| lease.range).chain(range_of(self.range.0)).collect();
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
            prefix: self.range.0,
            part: None,
            gateway: range_of(self.range.0).map(|range| IpAddr::V4(range.gateway())),
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
        let outside = |ip: &&Prefix| !subnets.iter().any(|subnet| overlaps(subnet.prefix, **ip));
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
        let in_ring = |(ip, _): &Prefix| match ip {
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

    /// Brings in an endpoint that the engine asks for; the same again is fine.
    pub async fn join(&self, attachment: Attachment) -> Result<()> {
        let mut table = self.swept().await;
        if table.all.contains_key(&attachment.id) {
            return Ok(());
        }
        table.bring_in(attachment, None).await.map(drop)
    }

    /// Lets an endpoint go; one that is gone is fine.
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
        self.node.tell(Command::Attach(id, attachment.record())).await?;
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
        let has_ip = |attachment: &Attachment| attachment.ips.iter().any(|(ip, _)| *ip == IpAddr::V4(address));
        let has_it = |attachment: &&Attachment| {
            attachment.leases.iter().any(|lease| lease.id == id) || is_docker(attachment) && has_ip(attachment)
        };
        let Some(mut attachment) = table.all.values().find(has_it).cloned() else { return };
        // No record is to speak of it again, the one from before a restart included.
        attachment.ips.retain(|(ip, _)| *ip != IpAddr::V4(address));
        let told = self.node.tell(Command::Attach(attachment.id, attachment.record())).await;
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

impl AttachmentTable {
    /// Claims the endpoint, makes the interface, keeps both; undoes all of it if one part fails.
    async fn bring_in(&mut self, mut attachment: Attachment, namespace: Option<Namespace>) -> Result<Vec<String>> {
        let segment = SegmentId::of(&attachment.segment);
        let made = self.make(&mut attachment, namespace).await;
        if let Err(error) = made.and_then(|()| self.keep(&attachment)) {
            let _ = self.node.tell(Command::Detach(attachment.id)).await;
            let _ = interfaces::remove(&attachment);
            self.close_if_unused(segment).await;
            return Err(error);
        }
        let printed = attachment.printed();
        info!(segment = attachment.segment, ips = printed.join(", "), "attached");
        self.all.insert(attachment.id, attachment);
        self.changed.notify_one();
        Ok(printed)
    }

    async fn make(&mut self, attachment: &mut Attachment, namespace: Option<Namespace>) -> Result<()> {
        let segment = SegmentId::of(&attachment.segment);
        let bridge = self.open_with(segment, &attachment.gateways).await?;
        self.node.tell(Command::Attach(attachment.id, attachment.record())).await?;
        let mtu = self.mtu_of(attachment);
        interfaces::make(attachment, bridge, mtu, namespace)?;
        match attachment.place {
            // The others of the segment are found by another way now.
            Place::Host => self.route_segment(segment, bridge, &[attachment]),
            _ => interfaces::route_all([&*attachment].into_iter(), bridge, &self.own_ips(segment)),
        }
    }

    /// Routes to all containers of a segment, with further endpoints of the host itself.
    fn route_segment(&self, segment: SegmentId, bridge: u32, more: &[&Attachment]) -> Result<()> {
        let mut own = self.own_ips(segment);
        own.extend(more.iter().flat_map(|attachment| &attachment.ips));
        interfaces::route_all(self.in_segment(segment), bridge, &own)
    }

    /// The host's own addresses in a segment.
    fn own_ips(&self, segment: SegmentId) -> Vec<Prefix> {
        let own = self.in_segment(segment).filter(|attachment| attachment.place == Place::Host);
        own.flat_map(|attachment| attachment.ips.iter().copied()).collect()
    }

    /// The MTU of an endpoint's interface, in bytes.
    fn mtu_of(&self, attachment: &Attachment) -> u32 {
        let mtu = self.segments.mtu(SegmentId::of(&attachment.segment));
        attachment.mtu.map_or(mtu, |own| own.min(mtu))
    }

    /// All hosts in a segment have agreed on another MTU.
    fn set_mtu(&mut self, segment: SegmentId, mtu: u32) {
        match self.segments.set_mtu(segment, mtu) {
            Ok(true) => info!(?segment, mtu, "containers of this segment send packets of this size now"),
            Ok(false) => return,
            Err(error) => warn!(?segment, "the interfaces of a segment keep their MTU: {error}"),
        }
        for attachment in self.in_segment(segment) {
            if let Err(error) = interfaces::set_mtu(attachment, self.mtu_of(attachment)) {
                warn!(
                    names = attachment.names.join(","),
                    segment = attachment.segment,
                    "a container keeps its MTU and may lose large packets; restart it: {error}"
                );
            }
        }
    }

    /// Has the mesh hear of the containers that the store has lost; those whose addresses or names are others' by now are cut off.
    async fn take_up_lost(&mut self) -> Vec<Attachment> {
        let mut taken = Vec::new();
        for (_, attachment) in std::mem::take(&mut self.lost) {
            match self.take_up(attachment.clone()).await {
                Ok(()) => taken.push(attachment),
                Err(error) => {
                    let names = attachment.names.join(",");
                    warn!(names, segment = attachment.segment, "a container is cut off; attach it anew: {error}");
                    let removed = interfaces::remove(&attachment).and_then(|()| self.running.forget(attachment.id));
                    removed.unwrap_or_else(|error| warn!("{error}"));
                    self.close_if_unused(SegmentId::of(&attachment.segment)).await;
                }
            }
        }
        taken
    }

    async fn take_up(&mut self, attachment: Attachment) -> Result<()> {
        let segment = SegmentId::of(&attachment.segment);
        let bridge = self.open_with(segment, &attachment.gateways).await?;
        self.node.tell(Command::Attach(attachment.id, attachment.record())).await?;
        self.unproven.extend(attachment.leases.iter().map(|lease| (attachment.id, *lease)));
        let attachment = Attachment { leases: Vec::new(), ..attachment };
        self.keep(&attachment)?;
        self.all.insert(attachment.id, attachment);
        self.settle(segment, bridge);
        self.changed.notify_one();
        Ok(())
    }

    /// A ring has given an address back that a container has; whether the container is still there.
    fn prove(&mut self, id: EndpointId, lease: Lease) -> Result<bool> {
        self.unproven.retain(|other| *other != (id, lease));
        let Some(mut attachment) = self.all.get(&id).cloned() else { return Ok(false) };
        attachment.leases.push(lease);
        self.keep(&attachment)?;
        self.all.insert(id, attachment);
        Ok(true)
    }

    fn keep(&self, attachment: &Attachment) -> Result<()> {
        let unproven = self.unproven.iter().filter(|(id, _)| *id == attachment.id).map(|(_, lease)| *lease);
        let leases = attachment.leases.iter().copied().chain(unproven).collect();
        self.running.keep(&Attachment { leases, ..attachment.clone() })?;
        let value = serde_json::to_vec(attachment).doing(|| "cannot remember the attachment".into())?;
        self.store.write([(&attachment.key(), &Some(value))])
    }

    /// Makes sure that a segment is there, with the gateways its endpoints have.
    async fn open(&mut self, segment: SegmentId) -> Result<u32> {
        self.open_with(segment, &[]).await
    }

    async fn open_with(&mut self, segment: SegmentId, more: &[IpAddr]) -> Result<u32> {
        let mut gateways = self.gateways(segment);
        let is_known = self.segments.is_open(segment) && more.iter().all(|ip| gateways.contains(ip));
        let bridge = self.segments.open(segment)?;
        if !is_known {
            gateways.extend(more);
            interfaces::set_gateways(segment, bridge, gateways.clone())?;
            if gateways.iter().any(IpAddr::is_ipv6) {
                gateways.insert(interfaces::LINK_LOCAL.into());
            }
            self.node.tell(Command::SetGateways(segment, gateways)).await?;
        }
        Ok(bridge)
    }

    fn gateways(&self, segment: SegmentId) -> BTreeSet<IpAddr> {
        self.in_segment(segment).flat_map(|attachment| attachment.gateways.iter().copied()).collect()
    }

    fn in_segment(&self, segment: SegmentId) -> impl Iterator<Item = &Attachment> {
        self.all.values().filter(move |attachment| SegmentId::of(&attachment.segment) == segment)
    }

    fn used_segments(&self) -> Vec<SegmentId> {
        let used: BTreeSet<SegmentId> = self.all.values().map(|a| SegmentId::of(&a.segment)).collect();
        used.into_iter().collect()
    }

    async fn remove(&mut self, id: EndpointId) -> Result<()> {
        let Some(attachment) = self.all.get(&id).cloned() else { return Ok(()) };
        self.store.write([(&attachment.key(), &None)])?;
        self.all.remove(&id);
        self.unproven.retain(|(other, _)| *other != id);
        self.running.forget(id).unwrap_or_else(|error| warn!("{error}"));
        if let Err(error) = interfaces::remove(&attachment) {
            warn!("{error}");
        }
        let segment = SegmentId::of(&attachment.segment);
        if attachment.place == Place::Host && self.segments.is_open(segment) {
            let routed = self.segments.open(segment).and_then(|bridge| self.route_segment(segment, bridge, &[]));
            routed.unwrap_or_else(|error| warn!(?segment, "the host may not reach its containers: {error}"));
        }
        let detached = self.node.tell(Command::Detach(id)).await;
        self.node.release(&attachment.leases).await;
        self.close_if_unused(segment).await;
        self.changed.notify_one();
        info!(segment = attachment.segment, ips = attachment.printed().join(", "), "detached");
        detached.map(drop)
    }

    async fn sweep(&mut self) {
        let Ok(names) = in_namespace(None, async |net| net.names().await) else { return };
        let gone: Vec<EndpointId> = self.all.values().filter(|a| !a.is_among(&names)).map(|a| a.id).collect();
        for id in gone {
            if let Err(error) = self.remove(id).await {
                warn!("cannot let go of an endpoint whose container ended: {error}");
            }
        }
        let lacks_own = |attachment: &&Attachment| {
            let own = own_name(SegmentId::of(&attachment.segment));
            attachment.place == Place::Host && !(names.contains(&own) && names.contains(&attachment.port()))
        };
        let lost: Vec<SegmentId> = self.all.values().filter(lacks_own).map(|a| SegmentId::of(&a.segment)).collect();
        for segment in lost {
            if let Ok(bridge) = self.open(segment).await {
                self.settle(segment, bridge);
                warn!(?segment, "the host's own interface in this segment was gone; it was made anew");
            }
        }
        let broken = |segment: &SegmentId| !self.segments.is_whole(*segment, &names);
        for segment in self.used_segments().into_iter().filter(broken).collect::<Vec<_>>() {
            self.segments.forget(segment);
            match self.open(segment).await {
                Ok(bridge) => {
                    self.settle(segment, bridge);
                    self.changed.notify_one();
                    warn!(?segment, "interfaces of this segment were deleted; they were made anew");
                }
                Err(error) => warn!(?segment, "interfaces of this segment are gone and cannot be made anew: {error}"),
            }
        }
    }

    /// Puts the endpoints of a segment into its bridge, where they may be already.
    fn settle(&self, segment: SegmentId, bridge: u32) {
        for attachment in self.in_segment(segment) {
            if let Err(error) = interfaces::settle(attachment, bridge, self.mtu_of(attachment)) {
                warn!(segment = attachment.segment, "an endpoint cannot be put back into its segment: {error}");
            }
        }
        if let Err(error) = self.route_segment(segment, bridge, &[]) {
            warn!(?segment, "the host may not reach its containers: {error}");
        }
    }

    /// What `attach` answers if the endpoint is there already.
    fn find_same(&self, namespace: Option<&Namespace>, segment: &str, ips: &[Prefix]) -> Result<Option<Vec<String>>> {
        let Some(there) = self.find(namespace, segment) else { return Ok(None) };
        let bare = |ips: &[Prefix]| ips.iter().map(|(ip, _)| *ip).collect::<BTreeSet<IpAddr>>();
        if ips.is_empty() || bare(ips) == bare(&there.ips) {
            return Ok(Some(there.printed()));
        }
        let has = there.printed().join(", ");
        Err(Failure::new(format!("it is in segment {segment} already, with {has}; detach it first")))
    }

    fn find(&self, namespace: Option<&Namespace>, segment: &str) -> Option<&Attachment> {
        self.all.values().filter(|attachment| attachment.segment == segment).find(|attachment| {
            match (&attachment.place, namespace) {
                (Place::Container { namespace: theirs, .. }, Some(ours)) => *theirs == ours.id,
                (Place::Host, None) => true,
                _ => false,
            }
        })
    }

    async fn close_if_unused(&mut self, segment: SegmentId) {
        if self.in_segment(segment).next().is_some() {
            return;
        }
        let _ = self.node.tell(Command::SetGateways(segment, BTreeSet::new())).await;
        if let Err(error) = self.segments.close(segment) {
            warn!(?segment, "cannot take a segment down: {error}");
        }
    }
}

/// Refuses addresses that machines on a network of this host have, or may have.
fn refuse_overlap(ips: &[Prefix]) -> Result<()> {
    let ips = ips.to_vec();
    in_namespace(None, async move |net| {
        for ip in ips {
            if let Some((other, interface)) = net.on_link_overlap(ip).await? {
                return Err(Failure::new(format!(
                    "{} overlaps the network {} of this host's interface {interface}; choose other addresses",
                    Cidr((network(ip), ip.1)),
                    Cidr(other)
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
        return text.parse::<Cidr>().map(|cidr| cidr.0).map_err(|_| bad());
    }
    let ip: IpAddr = text.parse().map_err(|_| bad())?;
    let usual = if ip.is_ipv4() { 24 } else { 64 };
    let around = subnets.iter().find(|subnet| overlaps(subnet.prefix, alone(ip)));
    Ok((ip, around.map_or(usual, |subnet| subnet.prefix.1)))
}
