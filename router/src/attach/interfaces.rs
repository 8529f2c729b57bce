//! The interfaces of endpoints: veth pairs between a segment's bridge and a container or the host itself, and what the
//! bridge is to the host: the segment's gateway.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use weft_mesh::frame::GATEWAY_MAC;
use weft_mesh::wire::SegmentId;

use crate::attach::attachment::{Attachment, Place, own_name};
use crate::attach::netlink::{Net, in_namespace};
use crate::attach::prefix::Prefix;
use crate::attach::target::{self, Namespace};
use crate::dataplane::taps::bridge_name;
use crate::error::{Doing, Failure, Result};
use crate::host::routing::TABLE;

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
                net.add_route(index, Prefix(Ipv4Addr::new(224, 0, 0, 0).into(), 4), priority).await
            })?;
        }
        (Place::Docker { source, .. }, _) => {
            let (far, mac) = (source.clone(), attachment.mac);
            in_namespace(None, async move |net| pair(&net, &near, &far, bridge, mtu, mac).await.map(drop))?;
        }
        _ => make_own(attachment, bridge, mtu)?,
    }
    Ok(())
}

/// Puts an endpoint's interface into its bridge, where it may be already; routes to it follow by [`route_all`].
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
    Ok(())
}

/// Gives an endpoint's interface, and its other half in the bridge, an MTU in bytes. An interface that is on its way into its
/// container has it already.
pub fn set_mtu(attachment: &Attachment, mtu: u32) -> Result<()> {
    let near = attachment.port();
    let far = in_namespace(None, async move |net| {
        let Some(link) = net.interface(&near).await? else { return Ok(None) };
        net.set_mtu(link.index, mtu).await?;
        Ok(link.peer)
    })?;
    let namespace = match &attachment.place {
        Place::Host => None,
        Place::Container { namespace, path, .. } => match target::find(*namespace, path) {
            Some(namespace) => Some(namespace),
            None => return Err(Failure::new("its network namespace is not found")),
        },
        Place::Docker { sandbox, .. } => match target::open(sandbox, String::new) {
            Ok(namespace) => Some(namespace),
            Err(_) => return Ok(()),
        },
    };
    let namespace = namespace.map(|namespace| OwnedFd::from(namespace.file));
    in_namespace(namespace, async move |net| match far {
        Some(index) => net.set_mtu(index, mtu).await,
        None => Ok(()),
    })
}

/// Takes away what [`make`] made. What is gone already is fine.
pub fn remove(attachment: &Attachment) -> Result<()> {
    let (port, bridge) = (attachment.port(), bridge_name(SegmentId::of(&attachment.segment)));
    let routes = own_routes(attachment);
    in_namespace(None, async move |net| {
        net.delete(&port).await?;
        if let Some(link) = net.link(&bridge).await {
            for route in routes {
                net.delete_table_route(TABLE, link.header.index, route).await?;
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
            Some(link) => net.delete_table_route(TABLE, link.header.index, Prefix::alone(address)).await,
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
        // The host has other addresses, in other segments, too: none of them is to be found on this bridge. Where a packet came
        // from is looked up with its mark, as the way to a container is.
        let settings = [("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "2"), ("src_valid_mark", "1")];
        net.configure(&name, "ipv4", &settings)?;
        if gateways.iter().any(IpAddr::is_ipv6) {
            let quiet = [("accept_dad", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1"), ("disable_ipv6", "0")];
            net.configure(&name, "ipv6", &quiet)?;
            // Without an address of the link itself the kernel asks for no neighbour on behalf of others (RFC 4861, section 7.2.2).
            net.add_address(bridge, Prefix(LINK_LOCAL.into(), 64)).await?;
        }
        for Prefix(ip, length) in net.addresses(bridge).await? {
            if !gateways.contains(&ip) {
                net.delete_address(bridge, Prefix(ip, length)).await?;
            }
        }
        for ip in gateways {
            net.add_address(bridge, Prefix::alone(ip)).await?;
        }
        Ok(())
    })
}

/// The address of every segment's gateway on its link: [`GATEWAY_MAC`] as an interface identifier (RFC 4291, appendix A).
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0077, 0x65ff, 0xfe66, 0x7401);

/// The host's own interface in a segment.
fn make_own(attachment: &Attachment, bridge: u32, mtu: u32) -> Result<()> {
    let (near, mac, ips) = (attachment.port(), attachment.mac, attachment.ips.clone());
    let own = own_name(SegmentId::of(&attachment.segment));
    in_namespace(None, async move |net| {
        if let (Some(port), Some(own)) = (net.link(&near).await, net.link(&own).await) {
            net.set_master(port.header.index, bridge).await?;
            return route_own(&net, own.header.index, &ips).await;
        }
        // One half is of no use without the other.
        net.delete(&near).await?;
        let index = pair(&net, &near, &own, bridge, mtu, mac).await?;
        net.configure(&own, "ipv4", &[("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "2")])?;
        for ip in &ips {
            net.add_address_alone(index, *ip).await?;
        }
        net.set_up(index, &own).await?;
        route_own(&net, index, &ips).await
    })
}

/// The host finds the rest of a segment over its own interface there.
async fn route_own(net: &Net, index: u32, ips: &[Prefix]) -> Result<()> {
    for Prefix(ip, length) in ips {
        net.add_table_route(TABLE, index, Prefix(*ip, *length).network(), Some(*ip)).await?;
    }
    Ok(())
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

/// Has the host find containers over their segment's bridge, of which several may share one range; those that are in a network
/// that the host itself is in (`own`), over its own interface there, since they answer to no address of another.
pub fn route_all<'a>(attachments: impl Iterator<Item = &'a Attachment>, bridge: u32, own: &[Prefix]) -> Result<()> {
    let (by_own, by_bridge): (Vec<Prefix>, Vec<Prefix>) =
        attachments.flat_map(own_routes).partition(|route| own.iter().any(|own| own.overlaps(*route)));
    in_namespace(None, async move |net| {
        for route in by_own {
            net.delete_table_route(TABLE, bridge, route).await?;
        }
        for route in by_bridge {
            net.add_table_route(TABLE, bridge, route, None).await?;
        }
        Ok(())
    })
}

/// The addresses of a container that its host is a gateway of.
fn own_routes(attachment: &Attachment) -> Vec<Prefix> {
    if attachment.place == Place::Host {
        return Vec::new();
    }
    let has_gateway = |v4: bool| attachment.gateways.iter().any(|gateway| gateway.is_ipv4() == v4);
    let reachable = attachment.ips.iter().filter(|Prefix(ip, _)| has_gateway(ip.is_ipv4()));
    reachable.map(|Prefix(ip, _)| Prefix::alone(*ip)).collect()
}

/// The first of weft0, weft1, ... that is free.
fn free_name(names: &[String]) -> Result<String> {
    (0..1000)
        .map(|n| format!("weft{n}"))
        .find(|name| !names.contains(name))
        .ok_or_else(|| Failure::new("the container has a thousand interfaces already"))
}
