//! The interfaces of endpoints: veth pairs between a segment's bridge and a container or the host itself, and what the
//! bridge is to the host: the segment's gateway.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};

use weft_mesh::frame::GATEWAY_MAC;
use weft_mesh::wire::SegmentId;

use crate::attachment::{Attachment, Place};
use crate::error::{Doing, Failure, Result};
use crate::netlink::{Net, Prefix, alone, in_namespace};
use crate::taps::bridge_name;
use crate::target::Namespace;

/// Makes an endpoint's interface and puts it into its segment's bridge.
pub fn make(attachment: &mut Attachment, bridge: u32, mtu: u32, namespace: Option<Namespace>) -> Result<()> {
    let near = attachment.port();
    match (&mut attachment.place, namespace) {
        (Place::Container { interface, .. }, Some(namespace)) => {
            let namespace = OwnedFd::from(namespace.file);
            let clone = || namespace.try_clone().doing(|| "cannot hold the namespace".into());
            let (moving, inside) = (clone()?, clone()?);
            *interface = in_namespace(Some(clone()?), async |net| free_name(&net.names().await?))?;
            let (far, name, mac, ips) = (format!("{near}p"), interface.clone(), attachment.mac, attachment.ips.clone());
            let inner_name = name.clone();
            in_namespace(None, async move |net| {
                let index = pair(&net, &near, &far, bridge, mtu, mac).await?;
                net.move_to(index, moving.as_fd(), &inner_name).await
            })?;
            in_namespace(Some(inside), async move |net| {
                let index = net.index(&name).await?;
                take_up(&net, index, &name, &ips).await?;
                // Each interface has its own multicast route; the first one's is used.
                let priority = name.trim_start_matches("weft").parse().unwrap_or(0) + 1;
                net.add_route(index, (Ipv4Addr::new(224, 0, 0, 0).into(), 4), priority).await
            })?;
        }
        (Place::Docker { source, .. }, _) => {
            let (far, mac) = (source.clone(), attachment.mac);
            in_namespace(None, async move |net| pair(&net, &near, &far, bridge, mtu, mac).await.map(drop))?;
        }
        _ => make_own(attachment, bridge, mtu)?,
    }
    route(attachment, bridge)
}

/// Puts an endpoint's interface into its bridge, where it may be already.
pub fn settle(attachment: &Attachment, bridge: u32, mtu: u32) -> Result<()> {
    if attachment.place == Place::Host {
        make_own(attachment, bridge, mtu)?;
    } else {
        let name = attachment.port();
        in_namespace(None, async move |net| {
            let index = net.index(&name).await?;
            net.set_master(index, bridge).await
        })?;
    }
    route(attachment, bridge)
}

/// Takes away what [`make`] made. What is gone already is fine.
pub fn remove(attachment: &Attachment) -> Result<()> {
    let (port, bridge) = (attachment.port(), bridge_name(SegmentId::of(&attachment.segment)));
    let routes = routes(attachment);
    in_namespace(None, async move |net| {
        net.delete(&port).await?;
        if let Some(link) = net.link(&bridge).await {
            for route in routes {
                net.delete_route(link.header.index, route).await?;
            }
        }
        Ok(())
    })
}

/// Cuts an endpoint off whose address is another's.
pub fn cut_off(attachment: &Attachment, address: IpAddr) -> Result<()> {
    let (port, bridge) = (attachment.port(), bridge_name(SegmentId::of(&attachment.segment)));
    in_namespace(None, async move |net| {
        let index = net.index(&port).await?;
        net.set_down(index, &port).await?;
        match net.link(&bridge).await {
            Some(link) => net.delete_route(link.header.index, alone(address)).await,
            None => Ok(()),
        }
    })
}

/// Removes what an earlier router made for containers and did not get to remember.
pub fn remove_strays(known: BTreeSet<String>) -> Result<()> {
    let is_made = |name: &str, prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|id| id.len() == 10 && id.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    in_namespace(None, async move |net| {
        for name in net.names().await? {
            if (is_made(&name, "wd") || is_made(&name, "wv")) && !known.contains(&name) {
                net.delete(&name).await?;
            }
        }
        Ok(())
    })
}

/// Makes a bridge its segment's gateway: on every host it has the same MAC and these addresses, and no others.
pub fn set_gateways(segment: SegmentId, bridge: u32, gateways: BTreeSet<IpAddr>) -> Result<()> {
    let name = bridge_name(segment);
    in_namespace(None, async move |net| {
        net.set_mac(bridge, GATEWAY_MAC).await?;
        // The host has other addresses, in other segments, too: none of them is to be found on this bridge.
        net.configure(&name, "ipv4", &[("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "2")])?;
        if gateways.iter().any(IpAddr::is_ipv6) {
            let quiet = [("accept_dad", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1"), ("disable_ipv6", "0")];
            net.configure(&name, "ipv6", &quiet)?;
        }
        for (ip, length) in net.addresses(bridge).await? {
            if !gateways.contains(&ip) {
                net.delete_address(bridge, (ip, length)).await?;
            }
        }
        for ip in gateways {
            net.add_address(bridge, alone(ip)).await?;
        }
        Ok(())
    })
}

/// The host's own interface in a segment.
fn make_own(attachment: &Attachment, bridge: u32, mtu: u32) -> Result<()> {
    let (near, mac, ips) = (attachment.port(), attachment.mac, attachment.ips.clone());
    let own = own_name(SegmentId::of(&attachment.segment));
    in_namespace(None, async move |net| {
        if let (Some(port), Some(_)) = (net.link(&near).await, net.link(&own).await) {
            return net.set_master(port.header.index, bridge).await;
        }
        // One half is of no use without the other.
        net.delete(&near).await?;
        let index = pair(&net, &near, &own, bridge, mtu, mac).await?;
        net.configure(&own, "ipv4", &[("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "2")])?;
        take_up(&net, index, &own, &ips).await
    })
}

/// What the host's own interface in a segment is called.
pub fn own_name(segment: SegmentId) -> String {
    format!("wefth{}", &bridge_name(segment)[4..13])
}

/// Makes a veth pair with its near end in a bridge; returns the index of the far one.
async fn pair(net: &Net, near: &str, far: &str, bridge: u32, mtu: u32, mac: [u8; 6]) -> Result<u32> {
    net.veth(near, far).await?;
    let (near_index, far_index) = (net.index(near).await?, net.index(far).await?);
    net.set_mtu(near_index, mtu).await?;
    net.set_mtu(far_index, mtu).await?;
    net.set_mac(far_index, mac).await?;
    // A port of a bridge is no place for an address.
    let _ = net.configure(near, "ipv6", &[("disable_ipv6", "1")]);
    net.set_master(near_index, bridge).await?;
    net.set_up(near_index, near).await?;
    Ok(far_index)
}

async fn take_up(net: &Net, index: u32, name: &str, ips: &[Prefix]) -> Result<()> {
    for ip in ips {
        net.add_address(index, *ip).await?;
    }
    net.set_up(index, name).await
}

/// The host finds its containers over their bridges, of which several may share one range.
fn route(attachment: &Attachment, bridge: u32) -> Result<()> {
    let routes = routes(attachment);
    in_namespace(None, async move |net| {
        for route in routes {
            net.add_route(bridge, route, 0).await?;
        }
        Ok(())
    })
}

fn routes(attachment: &Attachment) -> Vec<Prefix> {
    if attachment.place == Place::Host {
        return Vec::new();
    }
    let has_gateway = |v4: bool| attachment.gateways.iter().any(|gateway| gateway.is_ipv4() == v4);
    let reachable = attachment.ips.iter().filter(|(ip, _)| has_gateway(ip.is_ipv4()));
    reachable.map(|(ip, _)| alone(*ip)).collect()
}

/// The first of weft0, weft1, ... that is free.
fn free_name(names: &[String]) -> Result<String> {
    (0..1000)
        .map(|n| format!("weft{n}"))
        .find(|name| !names.contains(name))
        .ok_or_else(|| Failure::new("the container has a thousand interfaces already"))
}
