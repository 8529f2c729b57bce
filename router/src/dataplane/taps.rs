//! A segment on this host: a Linux bridge, and the interface between it and the workers.

use std::collections::BTreeMap;

use weft_mesh::wire::SegmentId;
use weft_sys::{BasicTap, FastTap, PacketPort, TUN_DEVICE, TapIo};

use crate::attach::netlink::in_namespace;
use crate::cli::options::TapMode;
use crate::dataplane::worker::Worker;
use crate::error::{Failure, Result};

/// The segments of this host and the workers that serve them.
pub struct Segments {
    mode: TapMode,
    /// What containers' MTU is in a segment that no other host has a smaller one in, in bytes.
    mtu: u32,
    /// The MTU of segments that the mesh has spoken of.
    mtus: BTreeMap<SegmentId, u32>,
    workers: Vec<Worker>,
    open: BTreeMap<SegmentId, u32>,
}

/// The bridge of a segment.
pub fn bridge_name(segment: SegmentId) -> String {
    format!("weft{}", short(segment))
}

fn tap_name(segment: SegmentId) -> String {
    format!("wt{}", short(segment))
}

fn short(segment: SegmentId) -> String {
    format!("{segment:?}")[..10].to_owned()
}

/// Whether interfaces can be made this way at all: better said at the start than at the first container.
pub fn check(mode: TapMode) -> Result<()> {
    if mode == TapMode::Packet {
        return Ok(());
    }
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(TUN_DEVICE)
        .map(drop)
        .map_err(|error| explain(TUN_DEVICE, &error))
}

fn explain(name: &str, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(format!(
            "there is no {TUN_DEVICE}; load the tun module (modprobe tun), give it to this container (--device {TUN_DEVICE}), or use --tap packet"
        )),
        std::io::ErrorKind::PermissionDenied => Failure::new(format!(
            "may not make an interface from {TUN_DEVICE}: run as root, or with CAP_NET_ADMIN, or use --tap packet"
        )),
        _ => Failure::new(format!("cannot make interface {name}: {error}")),
    }
}

/// Removes the bridges that no segment of `used` has and in which nothing is but what weft itself put there: an earlier
/// router left them because its containers were still there.
pub fn remove_unused(used: &[SegmentId]) -> Result<()> {
    let used: Vec<String> = used.iter().map(|segment| bridge_name(*segment)).collect();
    in_namespace(None, async move |net| {
        let links = net.links().await?;
        for bridge in links.iter().filter(|link| is_bridge_name(&link.name) && !used.contains(&link.name)) {
            let own = [format!("wt{}", &bridge.name[4..]), format!("wp{}", &bridge.name[4..])];
            let mut ports = links.iter().filter(|link| link.master == Some(bridge.index));
            if ports.all(|port| own.contains(&port.name)) {
                net.delete(&own[1]).await?;
                net.delete(&bridge.name).await?;
            }
        }
        Ok(())
    })
}

fn is_bridge_name(name: &str) -> bool {
    name.strip_prefix("weft").is_some_and(|id| id.len() == 10 && id.chars().all(|c| c.is_ascii_hexdigit()))
}

impl Segments {
    /// No segment yet.
    pub fn new(mode: TapMode, mtu: u32, workers: Vec<Worker>) -> Self {
        Segments { mode, mtu, mtus: BTreeMap::new(), workers, open: BTreeMap::new() }
    }

    /// The MTU of a segment's containers, in bytes: the smallest of all hosts that are in it.
    pub fn mtu(&self, segment: SegmentId) -> u32 {
        self.mtus.get(&segment).copied().unwrap_or(self.mtu)
    }

    /// Gives a segment's interfaces another MTU; whether it is another.
    pub fn set_mtu(&mut self, segment: SegmentId, mtu: u32) -> Result<bool> {
        let before = self.mtu(segment);
        self.mtus.insert(segment, mtu);
        if before == mtu || !self.open.contains_key(&segment) {
            return Ok(false);
        }
        let names = [tap_name(segment), bridge_name(segment)];
        in_namespace(None, async move |net| {
            for name in names {
                net.set_mtu(net.index(&name).await?, mtu).await?;
            }
            Ok(true)
        })
    }

    /// Whether a segment is there.
    pub fn is_open(&self, segment: SegmentId) -> bool {
        self.open.contains_key(&segment)
    }

    /// Makes sure that a segment is there; returns the index of its bridge.
    pub fn open(&mut self, segment: SegmentId) -> Result<u32> {
        if let Some(bridge) = self.open.get(&segment) {
            return Ok(*bridge);
        }
        let (bridge, tap) = (bridge_name(segment), tap_name(segment));
        let (mtu, port) = (self.mtu(segment), format!("wp{}", short(segment)));
        let name = bridge.clone();
        let index = in_namespace(None, async move |net| net.bridge(&name, mtu).await)?;
        let opened = self.open_port(&tap, &port, mtu).and_then(|queues| {
            in_namespace(None, async move |net| {
                let link = net.index(&tap).await?;
                net.set_mtu(link, mtu).await?;
                // A port of a bridge is no host: with IPv6 it would ask the segment for routers.
                let _ = net.configure(&tap, "ipv6", &[("disable_ipv6", "1")]);
                net.set_master(link, index).await?;
                net.set_up(link, &tap).await
            })?;
            Ok(queues)
        });
        match opened {
            Ok(queues) => {
                for (worker, queue) in self.workers.iter().zip(queues) {
                    worker.add(segment, queue);
                }
                self.open.insert(segment, index);
                Ok(index)
            }
            Err(error) => {
                // The bridge may have been there before, with containers in it; other segments are none of this one's business.
                let used: Vec<SegmentId> = self.open.keys().copied().collect();
                remove_unused(&used)?;
                Err(error)
            }
        }
    }

    /// Whether a segment has what it takes among the interfaces that there are.
    pub fn is_whole(&self, segment: SegmentId, interfaces: &[String]) -> bool {
        let is_there = |name: String| interfaces.contains(&name);
        self.open.contains_key(&segment) && is_there(bridge_name(segment)) && is_there(tap_name(segment))
    }

    /// Lets go of what a segment still has, so that all of it is made anew.
    pub fn forget(&mut self, segment: SegmentId) {
        self.open.remove(&segment);
        self.workers.iter().for_each(|worker| worker.remove(segment));
    }

    /// Takes a segment away; its bridge goes too if nothing else is in it.
    pub fn close(&mut self, segment: SegmentId) -> Result<()> {
        if self.open.remove(&segment).is_none() {
            return Ok(());
        }
        self.mtus.remove(&segment);
        self.workers.iter().for_each(|worker| worker.remove(segment));
        let (bridge, port) = (bridge_name(segment), format!("wp{}", short(segment)));
        in_namespace(None, async move |net| {
            net.delete(&port).await?;
            net.delete(&bridge).await
        })
    }

    fn open_port(&self, tap: &str, port: &str, mtu: u32) -> Result<Vec<Box<dyn TapIo>>> {
        fn boxed(tap: impl TapIo + 'static) -> Box<dyn TapIo> {
            Box::new(tap)
        }
        let taps = match self.mode {
            TapMode::Fast => FastTap::open(tap, self.workers.len()).map(|taps| taps.into_iter().map(boxed).collect()),
            TapMode::Basic => BasicTap::open(tap).map(|tap| vec![boxed(tap)]),
            TapMode::Packet => {
                let (near, far) = (tap.to_owned(), port.to_owned());
                in_namespace(None, async move |net| {
                    net.delete(&near).await?;
                    net.veth(&near, &far).await?;
                    // A packet socket on an interface that is down has an error pending.
                    let index = net.index(&far).await?;
                    net.set_mtu(index, mtu).await?;
                    // Nor is the other end of a pair.
                    let _ = net.configure(&far, "ipv6", &[("disable_ipv6", "1")]);
                    net.set_up(index, &far).await
                })?;
                PacketPort::open(port).map(|port| vec![boxed(port)])
            }
        };
        taps.map_err(|error| explain(tap, &error))
    }
}
