//! Endpoints of this host: the interfaces that `attach` and `expose` make, kept across restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use weft_mesh::node::{Command, PERSISTED_ENDPOINT};
use weft_mesh::records::{EndpointId, EndpointRecord, MAX_LIST};
use weft_mesh::wire::SegmentId;

use crate::engine::EngineHandle;
use crate::error::{Doing, Failure, Result};
use crate::netlink::{Prefix, in_namespace, network};
use crate::options::Cidr;
use crate::state::Store;
use crate::taps::{Segments, bridge_name, remove_unused};
use crate::target::{self, Namespace};

/// The segment used when none is named.
pub const DEFAULT_SEGMENT: &str = "weft";
const PERSISTED: &[u8] = b"attachment/";

/// What a segment's endpoint on this host is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Place {
    /// An interface in a network namespace, known by device and inode.
    Container { namespace: (u64, u64), host_interface: String, interface: String },
    /// An address on the segment's bridge.
    Host,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Attachment {
    id: EndpointId,
    segment: String,
    ips: Vec<Prefix>,
    names: Vec<String>,
    mac: [u8; 6],
    place: Place,
}

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

/// All endpoints of this host.
pub struct Attachments {
    engine: EngineHandle,
    store: Arc<Store>,
    segments: Segments,
    range: Cidr,
    docker_socket: PathBuf,
    all: BTreeMap<EndpointId, Attachment>,
}

/// The endpoints that were there when the router last ran and still have their interfaces; the others' keys,
/// which are to be dropped, and their endpoints with them.
pub struct Restored {
    alive: BTreeMap<EndpointId, Attachment>,
    /// Keys in the store of what is gone.
    pub gone: Vec<Vec<u8>>,
}

/// Looks which remembered endpoints still exist.
pub fn restore(kept: &[(Vec<u8>, Vec<u8>)]) -> Result<Restored> {
    let names = in_namespace(None, async |net| net.names().await)?;
    let mut restored = Restored { alive: BTreeMap::new(), gone: Vec::new() };
    for (key, value) in kept.iter().filter(|(key, _)| key.starts_with(PERSISTED)) {
        match serde_json::from_slice::<Attachment>(value) {
            Ok(attachment) if attachment.is_among(&names) => drop(restored.alive.insert(attachment.id, attachment)),
            _ => restored.gone.push(key.clone()),
        }
    }
    // An endpoint without an attachment is what a crash between the two left.
    let is_alive = |id: &[u8]| id.try_into().is_ok_and(|id: EndpointId| restored.alive.contains_key(&id));
    let orphans = kept
        .iter()
        .map(|(key, _)| key)
        .filter(|key| key.strip_prefix(PERSISTED_ENDPOINT).is_some_and(|id| !is_alive(id)));
    let orphans: Vec<Vec<u8>> = orphans.cloned().collect();
    restored.gone.extend(orphans);
    Ok(restored)
}

impl Attachment {
    fn is_among(&self, interfaces: &[String]) -> bool {
        match &self.place {
            Place::Container { host_interface, .. } => interfaces.contains(host_interface),
            // The host outlives its interfaces.
            Place::Host => true,
        }
    }

    fn key(&self) -> Vec<u8> {
        [PERSISTED, &self.id].concat()
    }

    fn record(&self) -> EndpointRecord {
        let Attachment { segment, mac, ips, names, .. } = self.clone();
        EndpointRecord { segment, mac, ips, names, healthy: true }
    }

    fn printed(&self) -> Vec<String> {
        self.ips.iter().map(|(ip, length)| format!("{ip}/{length}")).collect()
    }
}

impl Attachments {
    /// Picks up what was there: segments get their interfaces again, traffic flows.
    pub fn new(
        engine: EngineHandle,
        store: Arc<Store>,
        segments: Segments,
        range: Cidr,
        docker_socket: PathBuf,
        restored: Restored,
    ) -> Result<Self> {
        let mut attachments = Attachments { engine, store, segments, range, docker_socket, all: restored.alive };
        let used: BTreeSet<SegmentId> = attachments.all.values().map(|a| SegmentId::of(&a.segment)).collect();
        let used: Vec<SegmentId> = used.into_iter().collect();
        remove_unused(&used)?;
        for segment in used {
            let bridge = attachments.segments.open(segment)?;
            attachments.settle(segment, bridge);
        }
        Ok(attachments)
    }

    /// Gives a container (or the host) an interface in a segment; returns its addresses, one a line.
    pub async fn attach(&mut self, request: AttachRequest) -> Result<Vec<String>> {
        // The kernel gives the numbers of ended namespaces to new ones: what is gone must not be taken for what is there.
        self.sweep().await;
        let segment = request.segment.clone().unwrap_or_else(|| DEFAULT_SEGMENT.into());
        let ips = request.ips.iter().map(|ip| self.parse_ip(ip)).collect::<Result<Vec<Prefix>>>()?;
        let namespace = match &request.target {
            Some(target) => Some(target::resolve(target, &self.docker_socket).await?),
            None => None,
        };
        if let Some(there) = self.find(namespace.as_ref(), &segment) {
            let mut wanted: Vec<IpAddr> = ips.iter().map(|(ip, _)| *ip).collect();
            let mut has: Vec<IpAddr> = there.ips.iter().map(|(ip, _)| *ip).collect();
            wanted.sort_unstable();
            has.sort_unstable();
            if ips.is_empty() || wanted == has {
                return Ok(there.printed());
            }
            let has = there.printed().join(", ");
            return Err(Failure::new(format!("it is in segment {segment} already, with {has}; detach it first")));
        }
        if ips.is_empty() {
            return Err(Failure::Usage("no address: give one with --ip ADDR/LEN".into()));
        }
        if ips.len() > MAX_LIST {
            return Err(Failure::Usage(format!("at most {MAX_LIST} addresses")));
        }
        let id: EndpointId = random_id()?;
        let mac = [0x02, id[0], id[1], id[2], id[3], id[4]];
        let place = match &namespace {
            Some(namespace) => Place::Container {
                namespace: namespace.id,
                host_interface: format!("wv{}", hex::encode(&id[..5])),
                interface: String::new(),
            },
            None => Place::Host,
        };
        let attachment = Attachment { id, segment, ips, names: request.names, mac, place };
        if let Some(problem) = attachment.record().problem() {
            return Err(Failure::Usage(problem.into()));
        }
        self.bring_in(attachment, namespace).await
    }

    /// Claims the addresses, makes the interface, keeps both; undoes all of it if one part fails.
    async fn bring_in(&mut self, mut attachment: Attachment, namespace: Option<Namespace>) -> Result<Vec<String>> {
        self.refuse_overlap(&attachment.ips)?;
        let segment = SegmentId::of(&attachment.segment);
        let bridge = self.segments.open(segment)?;
        let claimed = self.engine.ask(Command::Attach(attachment.id, attachment.record())).await;
        let made = match claimed {
            Ok(_) => self.make_interface(&mut attachment, bridge, namespace),
            Err(error) => Err(error),
        };
        let kept = made.and_then(|()| self.keep(&attachment));
        if let Err(error) = kept {
            let _ = self.engine.ask(Command::Detach(attachment.id)).await;
            remove_interface(&attachment);
            self.close_if_unused(&attachment.segment);
            return Err(error);
        }
        let printed = attachment.printed();
        info!(segment = attachment.segment, ips = printed.join(", "), "attached");
        self.all.insert(attachment.id, attachment);
        Ok(printed)
    }

    fn keep(&self, attachment: &Attachment) -> Result<()> {
        let value = serde_json::to_vec(attachment).doing(|| "cannot remember the attachment".into())?;
        self.store.write([(&attachment.key(), &Some(value))])
    }

    fn make_interface(&self, attachment: &mut Attachment, bridge: u32, namespace: Option<Namespace>) -> Result<()> {
        let (mtu, mac, ips) = (self.segments.mtu() as u32, attachment.mac, attachment.ips.clone());
        match (&mut attachment.place, namespace) {
            (Place::Container { host_interface, interface, .. }, Some(namespace)) => {
                let host = host_interface.clone();
                let inside = OwnedFd::from(namespace.file.try_clone().doing(|| "cannot hold the namespace".into())?);
                *interface = in_namespace(Some(inside), async |net| free_name(&net.names().await?))?;
                let (name, moving) = (interface.clone(), OwnedFd::from(namespace.file));
                let inside = moving.try_clone().doing(|| "cannot hold the namespace".into())?;
                in_namespace(None, async move |net| {
                    let peer = format!("{host}p");
                    net.veth(&host, &peer).await?;
                    let (near, far) = (net.index(&host).await?, net.index(&peer).await?);
                    net.set_mtu(near, mtu).await?;
                    net.set_mtu(far, mtu).await?;
                    net.set_mac(far, mac).await?;
                    net.set_master(near, bridge).await?;
                    net.move_to(far, moving.as_fd(), &name).await?;
                    net.set_up(near, &host).await
                })?;
                let name = interface.clone();
                in_namespace(Some(inside), async move |net| {
                    let index = net.index(&name).await?;
                    for ip in ips {
                        net.add_address(index, ip).await?;
                    }
                    net.set_up(index, &name).await?;
                    // Each interface has its own multicast route; the first one's is used.
                    let priority = name.trim_start_matches("weft").parse().unwrap_or(0) + 1;
                    net.add_route(index, (Ipv4Addr::new(224, 0, 0, 0).into(), 4), priority).await
                })
            }
            _ => put_on_bridge(bridge, attachment),
        }
    }

    /// Takes a container (or the host) out of a segment.
    pub async fn detach(&mut self, request: AttachRequest) -> Result<()> {
        let segment = request.segment.unwrap_or_else(|| DEFAULT_SEGMENT.into());
        let namespace = match &request.target {
            Some(target) => Some(target::resolve(target, &self.docker_socket).await?),
            None => None,
        };
        match self.find(namespace.as_ref(), &segment).map(|attachment| attachment.id) {
            Some(id) => self.remove(id).await,
            None => Err(Failure::new(format!("it is not in segment {segment}"))),
        }
    }

    async fn remove(&mut self, id: EndpointId) -> Result<()> {
        let Some(attachment) = self.all.get(&id).cloned() else { return Ok(()) };
        self.store.write([(&attachment.key(), &None)])?;
        self.all.remove(&id);
        remove_interface(&attachment);
        let detached = self.engine.ask(Command::Detach(id)).await;
        self.close_if_unused(&attachment.segment);
        info!(segment = attachment.segment, ips = attachment.printed().join(", "), "detached");
        detached.map(drop)
    }

    /// Endpoints whose container is gone are let go.
    pub async fn sweep(&mut self) {
        let Ok(names) = in_namespace(None, async |net| net.names().await) else { return };
        let gone: Vec<EndpointId> = self.all.values().filter(|a| !a.is_among(&names)).map(|a| a.id).collect();
        for id in gone {
            if let Err(error) = self.remove(id).await {
                warn!("cannot let go of an endpoint whose container ended: {error}");
            }
        }
        let used: BTreeSet<SegmentId> = self.all.values().map(|a| SegmentId::of(&a.segment)).collect();
        for segment in used.into_iter().filter(|segment| !self.segments.is_whole(*segment, &names)).collect::<Vec<_>>()
        {
            match self.segments.reopen(segment) {
                Ok(bridge) => {
                    self.settle(segment, bridge);
                    warn!(?segment, "somebody took away interfaces of this segment; they were made anew");
                }
                Err(error) => warn!(?segment, "interfaces of this segment are gone and cannot be made anew: {error}"),
            }
        }
    }

    /// Puts the endpoints of a segment into its bridge, where they may be already.
    fn settle(&self, segment: SegmentId, bridge: u32) {
        for attachment in self.all.values().filter(|attachment| SegmentId::of(&attachment.segment) == segment) {
            let settled = match &attachment.place {
                Place::Container { host_interface, .. } => {
                    let name = host_interface.clone();
                    in_namespace(None, async move |net| {
                        let index = net.index(&name).await?;
                        net.set_master(index, bridge).await
                    })
                }
                Place::Host => put_on_bridge(bridge, attachment),
            };
            if let Err(error) = settled {
                warn!(segment = attachment.segment, "an endpoint cannot be put back into its segment: {error}");
            }
        }
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

    fn close_if_unused(&mut self, segment: &str) {
        if self.all.values().any(|attachment| attachment.segment == segment) {
            return;
        }
        if let Err(error) = self.segments.close(SegmentId::of(segment)) {
            warn!("cannot take segment {segment} down: {error}");
        }
    }

    fn refuse_overlap(&self, ips: &[Prefix]) -> Result<()> {
        let (bridges, ips) = (self.segments.bridges(), ips.to_vec());
        in_namespace(None, async move |net| {
            for ip in ips {
                if let Some((to, length)) = net.overlapping_route(ip, &bridges).await? {
                    let (ip, own) = (network(ip), ip.1);
                    return Err(Failure::new(format!(
                        "{ip}/{own} overlaps this host's route to {to}/{length}; choose other addresses"
                    )));
                }
            }
            Ok(())
        })
    }

    /// `ADDR/LEN`, or `ADDR` with the length of the network's range or what is usual.
    fn parse_ip(&self, text: &str) -> Result<Prefix> {
        let bad = || Failure::Usage(format!("{text} is no address: it takes ADDR or ADDR/LEN"));
        if text.contains('/') {
            return text.parse::<Cidr>().map(|cidr| cidr.0).map_err(|_| bad());
        }
        let ip: IpAddr = text.parse().map_err(|_| bad())?;
        let length = match ip {
            IpAddr::V4(_) if network((ip, self.range.0.1)) == self.range.0.0 => self.range.0.1,
            IpAddr::V4(_) => 24,
            IpAddr::V6(_) => 64,
        };
        Ok((ip, length))
    }
}

/// Gives the host itself its addresses in a segment.
fn put_on_bridge(bridge: u32, attachment: &Attachment) -> Result<()> {
    let (name, mac) = (bridge_name(SegmentId::of(&attachment.segment)), attachment.mac);
    let ips = attachment.ips.clone();
    in_namespace(None, async move |net| {
        net.set_mac(bridge, mac).await?;
        if ips.iter().any(|(ip, _)| ip.is_ipv6()) {
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            std::fs::write(path, "0").doing(|| "cannot switch IPv6 on".into())?;
        }
        for ip in ips {
            net.add_address(bridge, ip).await?;
        }
        Ok(())
    })
}

/// Takes away what attaching made. What is gone already is fine.
fn remove_interface(attachment: &Attachment) {
    let result = match attachment.place.clone() {
        Place::Container { host_interface, .. } => {
            in_namespace(None, async move |net| net.delete(&host_interface).await)
        }
        Place::Host => {
            let (name, ips) = (bridge_name(SegmentId::of(&attachment.segment)), attachment.ips.clone());
            in_namespace(None, async move |net| {
                let Some(link) = net.link(&name).await else { return Ok(()) };
                for ip in ips {
                    net.delete_address(link.header.index, ip).await?;
                }
                Ok(())
            })
        }
    };
    if let Err(error) = result {
        warn!("{error}");
    }
}

/// The first of weft0, weft1, ... that is free.
fn free_name(names: &[String]) -> Result<String> {
    (0..1000)
        .map(|n| format!("weft{n}"))
        .find(|name| !names.contains(name))
        .ok_or_else(|| Failure::new("the container has a thousand interfaces already"))
}

fn random_id() -> Result<EndpointId> {
    let mut id = [0; 16];
    SysRng.try_fill_bytes(&mut id).doing(|| "cannot get random bytes from the system".into())?;
    Ok(id)
}
