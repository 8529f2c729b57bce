//! The host's interfaces, by rtnetlink: bridges, veth pairs, addresses, routes.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use futures_util::{StreamExt, TryStreamExt};
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, LinkBridge, LinkUnspec, LinkVeth, MulticastGroup, RouteMessageBuilder};
use tokio::runtime::RuntimeFlavor;

use crate::attach::prefix::{Prefix, is_link_local};
use crate::error::{Doing, Failure, Result};

/// An interface, as far as it matters here.
#[derive(Clone, Default, Debug)]
pub struct Interface {
    /// The kernel's index of the interface in its namespace.
    pub index: u32,
    /// The interface's name in its namespace.
    pub name: String,
    /// Its MTU.
    pub mtu: usize,
    /// The index of the bridge that it is in.
    pub master: Option<u32>,
    /// The index of its other half, of the interface that it is on top of, or the like; maybe in another namespace.
    pub peer: Option<u32>,
    /// What it is made by, as `ip -d link` says; none: hardware.
    pub kind: Option<InfoKind>,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether it is a loopback interface.
    pub is_loopback: bool,
    /// Bytes that came in by it.
    pub received: u64,
    /// Bytes that left by it.
    pub sent: u64,
}

impl Interface {
    fn of(link: LinkMessage) -> Interface {
        let is = |flag| link.header.flags.contains(flag);
        let mut interface = Interface {
            index: link.header.index,
            is_up: is(LinkFlags::Up),
            is_loopback: is(LinkFlags::Loopback),
            ..Interface::default()
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu as usize,
                LinkAttribute::Controller(master) => interface.master = Some(master),
                LinkAttribute::Link(peer) => interface.peer = Some(peer),
                LinkAttribute::Stats64(counters) => {
                    (interface.received, interface.sent) = (counters.rx_bytes, counters.tx_bytes);
                }
                LinkAttribute::LinkInfo(infos) => {
                    interface.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        interface
    }
}

/// A route, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where to.
    pub to: Prefix,
    /// The indices of the interfaces it leads over: several, if it spreads packets over several ways.
    pub interfaces: Vec<u32>,
    /// Whether another machine is to pass packets on.
    pub has_gateway: bool,
    /// Its IPv4 address, if it has one and there is one way.
    pub gateway: Option<Ipv4Addr>,
    /// Of routes to one network the one with the least is used.
    pub metric: u32,
}

impl Route {
    fn of(message: &RouteMessage) -> Route {
        let length = message.header.destination_prefix_length;
        let is_v6 = message.header.address_family == AddressFamily::Inet6;
        let everywhere = if is_v6 { IpAddr::from([0u16; 8]) } else { IpAddr::from([0; 4]) };
        let to = Prefix(everywhere, length);
        let mut route = Route { to, interfaces: Vec::new(), has_gateway: false, gateway: None, metric: 0 };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => route.to.0 = IpAddr::V4(*ip),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => route.to.0 = IpAddr::V6(*ip),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Oif(index) => route.interfaces = vec![*index],
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => {
                    (route.has_gateway, route.gateway) = (true, Some(*ip))
                }
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => route.has_gateway = true,
                RouteAttribute::MultiPath(hops) => {
                    route.interfaces = hops.iter().map(|hop| hop.interface_index).collect();
                    route.has_gateway = true;
                }
                _ => {}
            }
        }
        route
    }
}

/// Waits until interfaces, addresses or routes of this host have changed, and again after each call. Its thread ends with the
/// receiver.
pub fn watch_interfaces() -> Result<tokio::sync::mpsc::Receiver<()>> {
    let (changed, changes) = tokio::sync::mpsc::channel(1);
    let what = || "cannot follow changes of interfaces".to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().doing(what)?;
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, mut messages) = {
        let _context = runtime.enter();
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups).doing(what)?;
        (connection, messages)
    };
    let follow = async move {
        tokio::spawn(connection);
        while messages.next().await.is_some() {
            // One pending look stands for all.
            if let Err(tokio::sync::mpsc::error::TrySendError::Closed(())) = changed.try_send(()) {
                return;
            }
        }
    };
    std::thread::Builder::new().name("interfaces".into()).spawn(move || runtime.block_on(follow)).doing(what)?;
    Ok(changes)
}

/// Returns whether weft makes interfaces of this name: a bridge, a TAP, or either end of a veth pair.
pub fn is_own_interface(name: &str) -> bool {
    let is_made = |prefix: &str, digits: usize| {
        name.strip_prefix(prefix).is_some_and(|id| id.len() == digits && id.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    is_made("weft", 10)
        || is_made("wefth", 9)
        || is_made("wefti", 9)
        || ["wt", "wp", "wd", "wv", "wq"].iter().any(|prefix| is_made(prefix, 10))
}

/// A connection to the kernel of one network namespace.
pub struct Net {
    handle: Handle,
}

/// Sets interfaces up in the given network namespace or this one.
pub fn in_namespace<T, F>(namespace: Option<OwnedFd>, work: F) -> Result<T>
where
    T: Send + 'static,
    F: AsyncFnOnce(Net) -> Result<T> + Send + 'static,
{
    on_thread_in(namespace, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .doing(|| "cannot start an event loop".into())?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().doing(|| "cannot open netlink".into())?;
            tokio::spawn(connection);
            work(Net { handle }).await
        })
    })
}

/// Runs `work` on a thread of its own, in the given network namespace or this one. A thread that has changed its
/// namespace is never used for anything else.
pub fn on_thread_in<T, F>(namespace: Option<OwnedFd>, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let thread = std::thread::spawn(move || {
        if let Some(namespace) = &namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET).doing(|| "cannot enter the network namespace".into())?;
        }
        work()
    });
    let wait = || thread.join().unwrap_or_else(|_| Err(Failure::new("a network set-up thread failed")));
    match tokio::runtime::Handle::try_current() {
        // Other tasks go on meanwhile.
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}

impl Net {
    /// The connection itself, for what only benchmarks and tests need.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// An interface's index and attributes, if it is there.
    pub async fn link(&self, name: &str) -> Option<LinkMessage> {
        self.handle.link().get().match_name(name).execute().try_next().await.ok().flatten()
    }

    /// An interface, if it is there.
    pub async fn interface(&self, name: &str) -> Result<Option<Interface>> {
        Ok(self.link(name).await.map(Interface::of))
    }

    /// An interface's index.
    pub async fn index(&self, name: &str) -> Result<u32> {
        self.link(name).await.map(|link| link.header.index).ok_or_else(|| Failure::new(format!("no interface {name}")))
    }

    /// The names of all interfaces.
    pub async fn names(&self) -> Result<Vec<String>> {
        Ok(self.links().await?.into_iter().map(|link| link.name).collect())
    }

    /// All interfaces.
    pub async fn links(&self) -> Result<Vec<Interface>> {
        let mut links = self.handle.link().get().execute();
        let mut found = Vec::new();
        while let Some(link) = links.try_next().await.doing(|| "cannot list interfaces".into())? {
            found.push(Interface::of(link));
        }
        Ok(found)
    }

    /// Makes a bridge that learns and floods on its own, with no address of the kernel's choosing; keeps an existing one.
    pub async fn bridge(&self, name: &str, mtu: u32) -> Result<u32> {
        if self.link(name).await.is_none() {
            // Group membership is not tracked: multicast goes to every port.
            let message = LinkBridge::new(name).mcast_snooping(false).mtu(mtu).build();
            self.handle.link().add(message).execute().await.doing(|| format!("cannot make bridge {name}"))?;
            // The bridge is a switch, not a host: it gets an IPv6 address only when one is exposed.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        }
        let index = self.index(name).await?;
        self.set_up(index, name).await?;
        Ok(index)
    }

    /// Makes a veth pair.
    pub async fn veth(&self, name: &str, peer: &str) -> Result<()> {
        let message = LinkVeth::new(name, peer).build();
        self.handle.link().add(message).execute().await.doing(|| format!("cannot make interface {name}"))
    }

    /// Takes an interface up.
    pub async fn set_up(&self, index: u32, name: &str) -> Result<()> {
        self.change(LinkUnspec::new_with_index(index).up().build(), || format!("cannot take {name} up")).await
    }

    /// Takes an interface down.
    pub async fn set_down(&self, index: u32, name: &str) -> Result<()> {
        self.change(LinkUnspec::new_with_index(index).down().build(), || format!("cannot take {name} down")).await
    }

    /// Sets what `/proc/sys/net/FAMILY/conf/INTERFACE` has.
    pub fn configure(&self, interface: &str, family: &str, settings: &[(&str, &str)]) -> Result<()> {
        for (key, value) in settings {
            let path = format!("/proc/sys/net/{family}/conf/{interface}/{key}");
            std::fs::write(&path, value).doing(|| format!("cannot set {path}"))?;
        }
        Ok(())
    }

    /// Puts an interface into a bridge.
    pub async fn set_master(&self, index: u32, bridge: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).controller(bridge).build();
        self.change(message, || "cannot put the interface into its bridge".into()).await
    }

    /// Sets an interface's MTU.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.change(message, || format!("cannot set the MTU to {mtu}")).await
    }

    /// Sets an interface's MAC.
    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).address(mac.to_vec()).build();
        self.change(message, || "cannot set the MAC".into()).await
    }

    /// Moves an interface into another network namespace, under a new name.
    pub async fn move_to(&self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).name(name).setns_by_fd(namespace.as_raw_fd()).build();
        self.change(message, || format!("cannot move {name} into the container")).await
    }

    /// Deletes an interface; a missing one is fine.
    pub async fn delete(&self, name: &str) -> Result<()> {
        match self.link(name).await {
            Some(link) => {
                let request = self.handle.link().del(link.header.index).execute();
                request.await.doing(|| format!("cannot delete {name}"))
            }
            None => Ok(()),
        }
    }

    /// Gives an interface an address.
    pub async fn add_address(&self, index: u32, Prefix(ip, prefix): Prefix) -> Result<()> {
        let request = self.handle.address().add(index, ip, prefix).replace().execute();
        request.await.doing(|| format!("cannot set address {ip}/{prefix}"))
    }

    /// Gives an interface an address without a route to its prefix.
    pub async fn add_address_alone(&self, index: u32, Prefix(ip, prefix): Prefix) -> Result<()> {
        let mut request = self.handle.address().add(index, ip, prefix).replace();
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
        request.execute().await.doing(|| format!("cannot set address {ip}/{prefix}"))
    }

    /// The addresses of an interface, but for those the kernel gave it.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Prefix>> {
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> = request.try_collect().await.doing(|| "cannot list addresses".into())?;
        Ok(messages.iter().filter_map(address_of).filter(|Prefix(ip, _)| !is_link_local(ip)).collect())
    }

    /// Takes an address from an interface; a missing one is fine.
    pub async fn delete_address(&self, index: u32, Prefix(ip, _): Prefix) -> Result<()> {
        let request = self.handle.address().get().set_link_index_filter(index).set_address_filter(ip).execute();
        let found: Vec<_> = request.try_collect().await.unwrap_or_default();
        for message in found {
            self.handle.address().del(message).execute().await.doing(|| format!("cannot remove address {ip}"))?;
        }
        Ok(())
    }

    /// Routes a prefix over an interface; of several routes to it the lowest priority number is used.
    pub async fn add_route(&self, index: u32, Prefix(ip, prefix): Prefix, priority: u32) -> Result<()> {
        let message = RouteMessageBuilder::<IpAddr>::new().output_interface(index).destination_prefix(ip, prefix);
        let message = message.doing(|| format!("no route to {ip}/{prefix} can be"))?.priority(priority).build();
        let request = self.handle.route().add(message).replace().execute();
        request.await.doing(|| format!("cannot set the route to {ip}/{prefix}"))
    }

    /// Routes a prefix over an interface in a table of its own, maybe with the address that the host's own packets come from.
    pub async fn add_table_route(
        &self,
        table: u32,
        index: u32,
        Prefix(ip, prefix): Prefix,
        source: Option<IpAddr>,
    ) -> Result<()> {
        let what = || format!("cannot set the route to {ip}/{prefix}");
        let mut message = table_route(table, index, Prefix(ip, prefix))?;
        if let Some(source) = source {
            message = message.pref_source(source).doing(what)?;
        }
        self.handle.route().add(message.build()).replace().execute().await.doing(what)
    }

    /// Takes back a route of a table over an interface; a missing one is fine.
    pub async fn delete_table_route(&self, table: u32, index: u32, Prefix(ip, prefix): Prefix) -> Result<()> {
        let message = table_route(table, index, Prefix(ip, prefix))?.build();
        match self.handle.route().del(message).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ESRCH => Ok(()),
            result => result.doing(|| format!("cannot remove the route to {ip}/{prefix}")),
        }
    }

    /// Sends what has no other route to a gateway.
    pub async fn add_default_route(&self, gateway: IpAddr) -> Result<()> {
        let everywhere = if gateway.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0u16; 8]) };
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(everywhere, 0)
            .and_then(|message| message.gateway(gateway))
            .doing(|| format!("no route by {gateway} can be"))?
            .build();
        let request = self.handle.route().add(message).replace().execute();
        request.await.doing(|| format!("cannot set the default route by {gateway}"))
    }

    /// All addresses of this host's interfaces, with the interfaces' indices.
    pub async fn all_addresses(&self) -> Result<Vec<(u32, Prefix)>> {
        let messages: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.doing(|| "cannot list addresses".into())?;
        Ok(messages.iter().filter_map(|message| Some((message.header.index, address_of(message)?))).collect())
    }

    /// The routes of the main table.
    pub async fn routes(&self) -> Result<Vec<Route>> {
        let mut found = Vec::new();
        let families = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for message in families {
            let mut routes = self.handle.route().get(message).execute();
            while let Some(route) = routes.try_next().await.doing(|| "cannot list routes".into())? {
                if route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast {
                    found.push(Route::of(&route));
                }
            }
        }
        Ok(found)
    }

    /// The network of an interface that is not weft's that shares addresses with a prefix, and the interface, if there is one:
    /// hosts in it would be taken for containers, or the other way round.
    pub async fn on_link_overlap(&self, prefix: Prefix) -> Result<Option<(Prefix, String)>> {
        let links = self.links().await?;
        for (index, address) in self.all_addresses().await? {
            let Some(link) = links.iter().find(|link| link.index == index) else { continue };
            if !is_own_interface(&link.name) && !link.is_loopback && address.overlaps(prefix) {
                return Ok(Some((address.network(), link.name.clone())));
            }
        }
        Ok(None)
    }

    /// The rules by which a routing table is chosen, of a family.
    pub async fn rules(&self, family: IpVersion) -> Result<Vec<RuleMessage>> {
        let rules = self.handle.rule().get(family).execute();
        rules.try_collect().await.doing(|| "cannot list routing rules".into())
    }

    /// Adds a rule by which a routing table is chosen.
    pub async fn add_rule(&self, rule: RuleMessage) -> Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule;
        request.execute().await.doing(|| "cannot add a routing rule".into())
    }

    /// Removes a rule; a missing one is fine.
    pub async fn delete_rule(&self, rule: RuleMessage) -> Result<()> {
        match self.handle.rule().del(rule).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENOENT => Ok(()),
            result => result.doing(|| "cannot remove a routing rule".into()),
        }
    }

    async fn change(&self, message: LinkMessage, what: impl FnOnce() -> String) -> Result<()> {
        self.handle.link().set(message).execute().await.doing(what)
    }
}

fn table_route(table: u32, index: u32, Prefix(ip, prefix): Prefix) -> Result<RouteMessageBuilder<IpAddr>> {
    let message = RouteMessageBuilder::<IpAddr>::new().output_interface(index).destination_prefix(ip, prefix);
    let message = message.doing(|| format!("no route to {ip}/{prefix} can be"))?;
    Ok(message.table_id(table).scope(RouteScope::Link))
}

fn address_of(message: &AddressMessage) -> Option<Prefix> {
    let find = |is_local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) if is_local => Some(*ip),
            AddressAttribute::Address(ip) if !is_local => Some(*ip),
            _ => None,
        })
    };
    // Of a point-to-point interface the other one is the peer's.
    let ip = find(true).or_else(|| find(false))?;
    Some(Prefix(ip, message.header.prefix_len))
}
