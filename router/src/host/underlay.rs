//! The network beneath: which of this host's addresses other hosts are told of, and how large packets are there.
//!
//! An interface leads out if it is hardware or what stands for it (VLAN, bond, MAC-VLAN), or if packets to other machines leave
//! by it: a bridge or veth pair with a route by a gateway, a veth pair with a network of its own, anything on the way to a peer. Bridges of
//! containers and VPNs that no peer is behind are none. What changes about interfaces, addresses and routes is heard from the kernel.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rtnetlink::packet_route::link::InfoKind;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};
use weft_mesh::node::Command;
use weft_mesh::path::MeteredPaths;
use weft_mesh::records::MAX_LIST;
use weft_mesh::wire::container_mtu;

use crate::attach::netlink::{Interface, Route, in_namespace, is_own_interface};
use crate::attach::prefix::{Prefix, is_link_local};
use crate::cli::options::Options;
use crate::daemon::api::Api;
use crate::error::Result;
use crate::host::metered::{self, MeteredLink};

/// How long changes that come together are awaited.
const SETTLE: Duration = Duration::from_millis(300);
/// What an Ethernet takes, where nothing says otherwise, and the most that IP takes, in bytes.
const USUAL_MTU: usize = 1500;
const MAX_MTU: usize = 65_535;

/// What this host's interfaces say about the network beneath.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Underlay {
    /// The smallest MTU on the way to peers, in bytes.
    pub mtu: usize,
    /// Where other hosts may reach this one, the likeliest first.
    pub addresses: Vec<IpAddr>,
    /// The way out by IPv4.
    pub gateway: Option<Gateway>,
    /// Which paths are paid for by the byte.
    pub metered: MeteredPaths,
}

/// The default gateway for IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Its address.
    pub address: Ipv4Addr,
    /// This host's address on the interface that leads to it.
    pub own: Ipv4Addr,
}

impl Underlay {
    /// The largest packet that this host's containers take, in bytes: as told, or what the underlay suggests.
    pub fn container_mtu(&self, options: &Options) -> u16 {
        let mtu = options.mtu.unwrap_or_else(|| container_mtu(self.mtu));
        mtu.min(usize::from(u16::MAX)) as u16
    }
}

/// What the kernel says.
#[derive(Clone)]
struct Seen {
    links: Vec<Interface>,
    addresses: Vec<(u32, Prefix)>,
    routes: Vec<Route>,
}

impl Seen {
    fn gateway(&self) -> Option<Gateway> {
        let route = self.routes.iter().find(|route| route.to.1 == 0 && route.gateway.is_some())?;
        let addresses = self.addresses.iter().filter(|(index, _)| route.interfaces.first() == Some(index));
        let mut own = addresses.filter_map(|(_, Prefix(ip, _))| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        Some(Gateway { address: route.gateway?, own: own.next()? })
    }
}

/// Looks at the interfaces, with the addresses of hosts that this one has to do with, and the lines that are paid for by the byte.
pub fn look(peers: &[IpAddr], lines: &[MeteredLink]) -> Result<Underlay> {
    let seen = in_namespace(None, async |net| {
        Ok(Seen { links: net.links().await?, addresses: net.all_addresses().await?, routes: net.routes().await? })
    })?;
    let metered = metered::paths(lines, &seen.links, &seen.addresses, &seen.routes);
    for name in metered::missing(lines, &seen.links) {
        info!("no interface {name} is there: its line counts as metered once it is (--metered-link)");
    }
    Ok(Underlay { metered, ..choose(&seen, peers) })
}

/// Follows changes of interfaces and links for as long as the router runs, and notes them in `known`.
pub async fn follow(
    api: Api,
    mut changes: mpsc::Receiver<()>,
    links_changed: Arc<Notify>,
    known: watch::Sender<Underlay>,
) {
    loop {
        tokio::select! {
            change = changes.recv() => if change.is_none() {
                return warn!("changes of interfaces are not heard of any more; restart the router after the next one");
            },
            () = links_changed.notified() => {}
        }
        tokio::time::sleep(SETTLE).await;
        while changes.try_recv().is_ok() {}
        let found = match peers(&api).await.and_then(|peers| look(&peers, &api.options.metered_links)) {
            Ok(found) => found,
            Err(error) => {
                warn!("cannot look at the interfaces of this host: {error}");
                continue;
            }
        };
        if found == *known.borrow() {
            continue;
        }
        info!(addresses = ?found.addresses, mtu = found.mtu, "the network of this host changed");
        let mtu = found.container_mtu(&api.options);
        let changes = [
            Command::SetMeteredPaths(found.metered.clone()),
            Command::SetAddresses(found.addresses.clone()),
            Command::SetMtu(found.mtu, mtu),
        ];
        for change in changes {
            if let Err(error) = api.node.tell(change).await {
                warn!("other hosts are not told of changes here: {error}");
            }
        }
        known.send_replace(found);
    }
}

/// The addresses of hosts that this one is told of or linked with.
async fn peers(api: &Api) -> Result<Vec<IpAddr>> {
    let status = api.node.status().await?;
    let named = status.targets.iter().flat_map(|target| &target.addresses);
    let linked = status.peers.iter().filter_map(|peer| peer.remote.as_ref());
    Ok(named.chain(linked).map(|address| address.ip()).collect())
}

fn choose(seen: &Seen, peers: &[IpAddr]) -> Underlay {
    let links = seen.links.iter().filter(|link| link.is_up && !link.is_loopback && !is_own_interface(&link.name));
    let links: Vec<&Interface> = links.collect();
    let to_peers: BTreeSet<u32> = peers.iter().filter_map(|peer| route_to(&seen.routes, *peer)).collect();
    let by_gateway = |default: bool| -> BTreeSet<u32> {
        let routes = seen.routes.iter().filter(|route| route.has_gateway && (!default || route.to.1 == 0));
        routes.flat_map(|route| route.interfaces.first().copied()).collect()
    };
    let (has_default, has_gateway) = (by_gateway(true), by_gateway(false));
    let has_network = |link: &Interface| {
        let of_it = seen.addresses.iter().filter(|(index, _)| *index == link.index);
        of_it.map(|(_, prefix)| prefix).any(|Prefix(ip, len)| ip.is_ipv4() && *len < 32 && !is_link_local(ip))
    };
    let rank = |link: &Interface| {
        let leads_out = match Kind::of(link) {
            Kind::Hardware => true,
            // The ends of containers are in a bridge, or have an address that leads to the one container.
            Kind::Pair => has_gateway.contains(&link.index) || (has_network(link) && !is_nspawn(&link.name)),
            Kind::Bridge => has_gateway.contains(&link.index),
            Kind::Tunnel => false,
        };
        match to_peers.contains(&link.index) {
            true => Some(0),
            false if !leads_out => None,
            false if has_default.contains(&link.index) => Some(1),
            false => Some(2),
        }
    };
    let mut chosen: Vec<(u8, &Interface)> = links.iter().filter_map(|link| Some((rank(link)?, *link))).collect();
    if chosen.is_empty() {
        // A host on its own: any address is better than none.
        chosen = links.iter().filter(|link| Kind::of(link) != Kind::Tunnel).map(|link| (3, *link)).collect();
    }
    chosen.sort_by_key(|(rank, link)| (*rank, link.index));
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (_, link) in &chosen {
        let of_it = seen.addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, Prefix(ip, _))| *ip);
        let usable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !is_link_local(ip);
        for ip in of_it.filter(usable) {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
    }
    addresses.truncate(MAX_LIST);
    let best = chosen.first().map(|(rank, _)| *rank);
    // Peers that nothing is known of yet are behind the default route.
    let used = chosen.iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, link)| link.mtu).min();
    Underlay {
        mtu: used.unwrap_or(USUAL_MTU).clamp(weft_mesh::wire::MIN_MTU, MAX_MTU),
        addresses,
        gateway: seen.gateway(),
        metered: MeteredPaths::default(),
    }
}

/// Whether systemd-nspawn names the host's ends of its containers so: they have a network each.
fn is_nspawn(name: &str) -> bool {
    name.starts_with("ve-") || name.starts_with("vb-")
}

/// The interface that packets to an address leave by; of several the first stands for all.
fn route_to(routes: &[Route], ip: IpAddr) -> Option<u32> {
    let matching = routes.iter().filter(|route| route.to.overlaps(Prefix::alone(ip)));
    matching.max_by_key(|route| (route.to.1, Reverse(route.metric)))?.interfaces.first().copied()
}

/// What an interface is, as far as it tells whether it leads to other machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Hardware, or what stands for it.
    Hardware,
    /// A bridge, which containers have, and many a host of virtual machines.
    Bridge,
    /// One end of a veth pair: containers have such, and so has a host that is a container itself.
    Pair,
    /// A VPN or another tunnel: what is behind it is reached through it, and not by the address it has.
    Tunnel,
}

impl Kind {
    fn of(link: &Interface) -> Kind {
        use InfoKind::*;
        match &link.kind {
            Some(Bridge | Vrf) => Kind::Bridge,
            Some(Veth | Netkit) => Kind::Pair,
            Some(
                Tun | Wireguard | Vxlan | Geneve | GreTap | GreTap6 | IpIp | Ip6Tnl | SitTun | GreTun | GreTun6 | Vti
                | Vti6 | Xfrm | Gtp | Amt | BareUdp | Dummy | Ifb | Nlmon | Vcan | Vxcan,
            ) => Kind::Tunnel,
            _ => Kind::Hardware,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<InfoKind>, mtu: usize) -> Interface {
        Interface { index, name: name.into(), kind, mtu, is_up: true, ..Interface::default() }
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn route(to: &str, interface: u32, has_gateway: bool) -> Route {
        Route { to: prefix(to), interfaces: vec![interface], has_gateway, gateway: None, metric: 0 }
    }

    /// A machine with an engine, many bridges, a VPN and a jumbo card.
    fn machine() -> Seen {
        let mut links = vec![
            link(1, "eth0", None, 1500),
            link(2, "eth1", None, 9000),
            link(3, "wg0", Some(InfoKind::Wireguard), 1280),
            link(4, "weft0123456789", Some(InfoKind::Bridge), 1450),
        ];
        let mut addresses = vec![(3, prefix("10.8.0.2/24")), (4, prefix("10.32.0.1/32"))];
        let mut routes =
            vec![route("0.0.0.0/0", 1, true), route("192.0.2.0/24", 1, false), route("10.8.0.0/24", 3, false)];
        for number in 0..7u8 {
            let index = 10 + u32::from(number);
            links.push(link(index, &format!("br-{number}"), Some(InfoKind::Bridge), 1500));
            addresses.push((index, Prefix(IpAddr::from([172, 17 + number, 0, 1]), 16)));
            routes.push(route(&format!("172.{}.0.0/16", 17 + number), index, false));
        }
        addresses.extend([(1, prefix("192.0.2.7/24")), (1, prefix("2001:db8::7/64")), (1, prefix("fe80::7/64"))]);
        addresses.push((2, prefix("198.51.100.7/24")));
        routes.push(route("198.51.100.0/24", 2, false));
        Seen { links, addresses, routes }
    }

    fn chosen(seen: &Seen, peers: &[&str]) -> (usize, String) {
        let peers: Vec<IpAddr> = peers.iter().map(|peer| peer.parse().unwrap()).collect();
        let Underlay { mtu, addresses, .. } = choose(seen, &peers);
        (mtu, addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn bridges_of_containers_and_vpns_are_no_way_to_this_host() {
        assert_eq!(chosen(&machine(), &[]), (1500, "192.0.2.7 2001:db8::7 198.51.100.7".into()));
        // Peers on the jumbo network: its size counts, and its address comes first.
        assert_eq!(chosen(&machine(), &["198.51.100.9"]), (9000, "198.51.100.7 192.0.2.7 2001:db8::7".into()));
        // A peer behind the VPN makes it a way.
        let (mtu, addresses) = chosen(&machine(), &["10.8.0.9"]);
        assert_eq!((mtu, addresses.starts_with("10.8.0.2 192.0.2.7")), (1280, true));
        assert_eq!(chosen(&machine(), &["203.0.113.5"]).0, 1500);
    }

    #[test]
    fn the_gateway_is_the_one_to_everywhere_with_this_hosts_address_on_the_way() {
        let mut seen = machine();
        assert_eq!(choose(&seen, &[]).gateway, None, "a way out without a machine that passes packets on");
        seen.routes[0].gateway = Some([192, 0, 2, 1].into());
        let expected = Gateway { address: [192, 0, 2, 1].into(), own: [192, 0, 2, 7].into() };
        assert_eq!(choose(&seen, &[]).gateway, Some(expected));
    }

    #[test]
    fn a_bridge_or_veth_pair_that_leads_out_counts() {
        let bridged = Seen {
            links: vec![link(1, "br0", Some(InfoKind::Bridge), 1500), link(2, "docker0", Some(InfoKind::Bridge), 1500)],
            addresses: vec![(1, prefix("192.0.2.7/24")), (2, prefix("172.17.0.1/16"))],
            routes: vec![route("0.0.0.0/0", 1, true), route("172.17.0.0/16", 2, false)],
        };
        assert_eq!(chosen(&bridged, &[]), (1500, "192.0.2.7".into()));
        let wired = Seen {
            links: vec![link(1, "w0", Some(InfoKind::Veth), 1400)],
            addresses: vec![(1, prefix("10.99.0.1/24"))],
            routes: vec![route("10.99.0.0/24", 1, false)],
        };
        assert_eq!(chosen(&wired, &["10.99.0.2"]), (1400, "10.99.0.1".into()));
        assert_eq!(chosen(&wired, &[]), (1400, "10.99.0.1".into()), "it has nothing else");
        let mut second = bridged.clone();
        second.links.push(link(3, "fast", Some(InfoKind::Veth), 9000));
        second.addresses.push((3, prefix("10.9.0.1/24")));
        assert_eq!(chosen(&second, &[]), (1500, "192.0.2.7 10.9.0.1".into()), "a second wire");
        second.addresses = vec![(1, prefix("192.0.2.7/24")), (3, prefix("10.9.0.1/32")), (3, prefix("169.254.1.1/16"))];
        assert_eq!(chosen(&second, &[]), (1500, "192.0.2.7".into()), "the end of a container");
        assert_eq!(chosen(&Seen { links: vec![], addresses: vec![], routes: vec![] }, &[]), (1500, String::new()));
    }
}
