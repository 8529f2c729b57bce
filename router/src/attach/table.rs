//! The table of this host's endpoints, and the interfaces that follow it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Notify;
use tracing::{info, warn};
use weft_mesh::node::Command;
use weft_mesh::records::EndpointId;
use weft_mesh::wire::SegmentId;

use crate::attach::addresses::Lease;
use crate::attach::attachment::{Attachment, Place, own_name};
use crate::attach::interfaces;
use crate::attach::netlink::in_namespace;
use crate::attach::prefix::Prefix;
use crate::attach::running::RunningCopies;
use crate::attach::target::Namespace;
use crate::daemon::node_task::NodeHandle;
use crate::daemon::state::Store;
use crate::dataplane::taps::Segments;
use crate::error::{Doing, Failure, Result};

/// The endpoints and their interfaces. One task changes them at a time.
pub(super) struct AttachmentTable {
    pub(super) node: NodeHandle,
    pub(super) store: Arc<Store>,
    pub(super) running: RunningCopies,
    pub(super) segments: Segments,
    pub(super) all: BTreeMap<EndpointId, Attachment>,
    /// Those of which the mesh has not heard since the store was lost; and what they have from rings that has to be won back.
    pub(super) lost: BTreeMap<EndpointId, Attachment>,
    pub(super) unproven: Vec<(EndpointId, Lease)>,
    pub(super) changed: Arc<Notify>,
}

impl AttachmentTable {
    /// Claims the endpoint, makes the interface, keeps both; undoes all of it if one part fails.
    pub(super) async fn bring_in(
        &mut self,
        mut attachment: Attachment,
        namespace: Option<Namespace>,
    ) -> Result<Vec<String>> {
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

    pub(super) async fn make(&mut self, attachment: &mut Attachment, namespace: Option<Namespace>) -> Result<()> {
        let segment = SegmentId::of(&attachment.segment);
        let bridge = self.announce(attachment).await?;
        let mtu = self.mtu_of(attachment);
        interfaces::make(attachment, bridge, mtu, namespace)?;
        match attachment.place {
            // The others of the segment are found by another way now.
            Place::Host => self.route_segment(segment, bridge, &[attachment]),
            _ => interfaces::route_all([&*attachment].into_iter(), bridge, &self.own_ips(segment)),
        }
    }

    /// Routes to all containers of a segment, with further endpoints of the host itself.
    pub(super) fn route_segment(&self, segment: SegmentId, bridge: u32, more: &[&Attachment]) -> Result<()> {
        let mut own = self.own_ips(segment);
        own.extend(more.iter().flat_map(|attachment| &attachment.ips));
        interfaces::route_all(self.in_segment(segment), bridge, &own)
    }

    /// The host's own addresses in a segment.
    pub(super) fn own_ips(&self, segment: SegmentId) -> Vec<Prefix> {
        let own = self.in_segment(segment).filter(|attachment| attachment.place == Place::Host);
        own.flat_map(|attachment| attachment.ips.iter().copied()).collect()
    }

    /// The MTU of an endpoint's interface, in bytes.
    pub(super) fn mtu_of(&self, attachment: &Attachment) -> u32 {
        let mtu = self.segments.mtu(SegmentId::of(&attachment.segment));
        attachment.mtu.map_or(mtu, |own| own.min(mtu))
    }

    /// All hosts in a segment have agreed on another MTU.
    pub(super) fn set_mtu(&mut self, segment: SegmentId, mtu: u32) {
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
    pub(super) async fn take_up_lost(&mut self) -> Vec<Attachment> {
        let mut taken = Vec::new();
        for (_, attachment) in std::mem::take(&mut self.lost) {
            match self.take_up(attachment.clone()).await {
                Ok(()) => taken.push(attachment),
                Err(error) => {
                    let _ = self.node.tell(Command::Detach(attachment.id)).await;
                    self.unproven.retain(|(id, _)| *id != attachment.id);
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

    pub(super) async fn take_up(&mut self, attachment: Attachment) -> Result<()> {
        let segment = SegmentId::of(&attachment.segment);
        let bridge = self.announce(&attachment).await?;
        self.unproven.extend(attachment.leases.iter().map(|lease| (attachment.id, *lease)));
        let attachment = Attachment { leases: Vec::new(), ..attachment };
        self.keep(&attachment)?;
        self.all.insert(attachment.id, attachment);
        self.settle(segment, bridge);
        self.changed.notify_one();
        Ok(())
    }

    /// A ring has given an address back that a container has; whether the container is still there.
    pub(super) fn prove(&mut self, id: EndpointId, lease: Lease) -> Result<bool> {
        self.unproven.retain(|other| *other != (id, lease));
        let Some(mut attachment) = self.all.get(&id).cloned() else { return Ok(false) };
        attachment.leases.push(lease);
        if let Err(error) = self.keep(&attachment) {
            self.unproven.push((id, lease));
            return Err(error);
        }
        self.all.insert(id, attachment);
        Ok(true)
    }

    pub(super) fn keep(&self, attachment: &Attachment) -> Result<()> {
        let unproven = self.unproven.iter().filter(|(id, _)| *id == attachment.id).map(|(_, lease)| *lease);
        let leases = attachment.leases.iter().copied().chain(unproven).collect();
        let copied = self.running.keep(&Attachment { leases, ..attachment.clone() });
        copied.inspect_err(|error| self.store.note_problem(error))?;
        let value = serde_json::to_vec(attachment).doing(|| "cannot remember the attachment".into())?;
        self.store.write([(&attachment.key(), &Some(value))])
    }

    /// Makes sure that an endpoint's segment is there, and has the mesh hear of both in one go; returns the bridge.
    async fn announce(&mut self, attachment: &Attachment) -> Result<u32> {
        let (bridge, gateways) = self.open_with(SegmentId::of(&attachment.segment), &attachment.gateways)?;
        let (id, record) = (attachment.id, attachment.record());
        self.node.tell(Command::Attach { id, record, gateways }).await?;
        Ok(bridge)
    }

    /// Makes sure that a segment is there, with the gateways its endpoints have; returns the bridge.
    pub(super) async fn open(&mut self, segment: SegmentId) -> Result<u32> {
        let (bridge, gateways) = self.open_with(segment, &[])?;
        if let Some(gateways) = gateways {
            self.node.tell(Command::SetGateways(segment, gateways)).await?;
        }
        Ok(bridge)
    }

    /// Makes sure that a segment's bridge is there, with more gateways maybe; returns it and what the node is to hear of them.
    fn open_with(&mut self, segment: SegmentId, more: &[IpAddr]) -> Result<(u32, Option<BTreeSet<IpAddr>>)> {
        let mut gateways = self.gateways(segment);
        let is_known = self.segments.is_open(segment) && more.iter().all(|ip| gateways.contains(ip));
        let bridge = self.segments.open(segment)?;
        if is_known {
            return Ok((bridge, None));
        }
        gateways.extend(more);
        interfaces::set_gateways(segment, bridge, gateways.clone())?;
        if gateways.iter().any(IpAddr::is_ipv6) {
            gateways.insert(interfaces::LINK_LOCAL.into());
        }
        Ok((bridge, Some(gateways)))
    }

    pub(super) fn gateways(&self, segment: SegmentId) -> BTreeSet<IpAddr> {
        self.in_segment(segment).flat_map(|attachment| attachment.gateways.iter().copied()).collect()
    }

    pub(super) fn in_segment(&self, segment: SegmentId) -> impl Iterator<Item = &Attachment> {
        self.all.values().filter(move |attachment| SegmentId::of(&attachment.segment) == segment)
    }

    pub(super) fn used_segments(&self) -> Vec<SegmentId> {
        let used: BTreeSet<SegmentId> = self.all.values().map(|a| SegmentId::of(&a.segment)).collect();
        used.into_iter().collect()
    }

    pub(super) async fn remove(&mut self, id: EndpointId) -> Result<()> {
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

    pub(super) async fn sweep(&mut self) {
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
    pub(super) fn settle(&self, segment: SegmentId, bridge: u32) {
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
    pub(super) fn find_same(
        &self,
        namespace: Option<&Namespace>,
        segment: &str,
        ips: &[Prefix],
    ) -> Result<Option<Vec<String>>> {
        let Some(there) = self.find(namespace, segment) else { return Ok(None) };
        let bare = |ips: &[Prefix]| ips.iter().map(|Prefix(ip, _)| *ip).collect::<BTreeSet<IpAddr>>();
        if ips.is_empty() || bare(ips) == bare(&there.ips) {
            return Ok(Some(there.printed()));
        }
        let has = there.printed().join(", ");
        Err(Failure::new(format!("it is in segment {segment} already, with {has}; detach it first")))
    }

    pub(super) fn find(&self, namespace: Option<&Namespace>, segment: &str) -> Option<&Attachment> {
        self.all.values().filter(|attachment| attachment.segment == segment).find(|attachment| {
            match (&attachment.place, namespace) {
                (Place::Container { namespace: theirs, .. }, Some(ours)) => *theirs == ours.id,
                (Place::Host, None) => true,
                _ => false,
            }
        })
    }

    pub(super) async fn close_if_unused(&mut self, segment: SegmentId) {
        if self.in_segment(segment).next().is_some() {
            return;
        }
        let _ = self.node.tell(Command::SetGateways(segment, BTreeSet::new())).await;
        if let Err(error) = self.segments.close(segment) {
            warn!(?segment, "cannot take a segment down: {error}");
        }
    }
}
