//! The host's interfaces, by rtnetlink: bridges, veth pairs, addresses, routes.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::RuntimeFlavor;

use crate::error::{Doing, Failure, Result};

/// An address with its prefix length.
pub type Prefix = (IpAddr, u8);

/// An interface, as far as it matters here.
#[derive(Clone, Default, Debug)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: usize,
    /// The index of the bridge that it is in.
    pub master: Option<u32>,
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
            let mut interface = Interface { index: link.header.index, ..Interface::default() };
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => interface.name = name,
                    LinkAttribute::Mtu(mtu) => interface.mtu = mtu as usize,
                    LinkAttribute::Controller(master) => interface.master = Some(master),
                    _ => {}
                }
            }
            found.push(interface);
        }
        Ok(found)
    }

    /// Makes a bridge that learns and floods on its own, with no address of the kernel's choosing; keeps one that is there.
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

    /// Deletes an interface; one that is gone is fine.
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
    pub async fn add_address(&self, index: u32, (ip, prefix): Prefix) -> Result<()> {
        let request = self.handle.address().add(index, ip, prefix).replace().execute();
        request.await.doing(|| format!("cannot set address {ip}/{prefix}"))
    }

    /// The addresses of an interface, but for those the kernel gave it.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Prefix>> {
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> = request.try_collect().await.doing(|| "cannot list addresses".into())?;
        let address = |message: rtnetlink::packet_route::address::AddressMessage| {
            let ip = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            ip.map(|ip| (ip, message.header.prefix_len))
        };
        let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        Ok(messages.into_iter().filter_map(address).filter(|(ip, _)| !is_link_local(ip)).collect())
    }

    /// Takes an address from an interface; one that is gone is fine.
    pub async fn delete_address(&self, index: u32, (ip, _): Prefix) -> Result<()> {
        let request = self.handle.address().get().set_link_index_filter(index).set_address_filter(ip).execute();
        let found: Vec<_> = request.try_collect().await.unwrap_or_default();
        for message in found {
            self.handle.address().del(message).execute().await.doing(|| format!("cannot remove address {ip}"))?;
        }
        Ok(())
    }

    /// Routes a prefix over an interface; of several routes to it the lowest priority number is used.
    pub async fn add_route(&self, index: u32, (ip, prefix): Prefix, priority: u32) -> Result<()> {
        let message = RouteMessageBuilder::<IpAddr>::new().output_interface(index).destination_prefix(ip, prefix);
        let message = message.doing(|| format!("no route to {ip}/{prefix} can be"))?.priority(priority).build();
        let request = self.handle.route().add(message).replace().execute();
        request.await.doing(|| format!("cannot set the route to {ip}/{prefix}"))
    }

    /// Takes back a route over an interface; one that is gone is fine.
    pub async fn delete_route(&self, index: u32, (ip, prefix): Prefix) -> Result<()> {
        let message = RouteMessageBuilder::<IpAddr>::new().output_interface(index).destination_prefix(ip, prefix);
        let message = message.doing(|| format!("no route to {ip}/{prefix} can be"))?.build();
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

    /// A route of this host that overlaps a prefix, over another interface than weft's own, if there is one.
    pub async fn overlapping_route(&self, (ip, prefix): Prefix) -> Result<Option<Prefix>> {
        let links = self.links().await?.into_iter().filter(|link| link.name.starts_with("weft"));
        let own: Vec<u32> = links.map(|link| link.index).collect();
        let message = match ip {
            IpAddr::V4(_) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            IpAddr::V6(_) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        let mut routes = self.handle.route().get(message).execute();
        while let Some(route) = routes.try_next().await.doing(|| "cannot list routes".into())? {
            let length = route.header.destination_prefix_length;
            let is_ours =
                route.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(index) if own.contains(index)));
            // A default route overlaps everything and is meant to; local addresses are in tables of their own.
            if length == 0 || is_ours || route.header.table != 254 || route.header.kind != RouteType::Unicast {
                continue;
            }
            let destination = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                _ => None,
            });
            if let Some(destination) = destination.filter(|to| overlaps((*to, length), (ip, prefix))) {
                return Ok(Some((destination, length)));
            }
        }
        Ok(None)
    }

    async fn change(&self, message: LinkMessage, what: impl FnOnce() -> String) -> Result<()> {
        self.handle.link().set(message).execute().await.doing(what)
    }
}

/// The prefix that is one address.
pub fn alone(ip: IpAddr) -> Prefix {
    (ip, if ip.is_ipv4() { 32 } else { 128 })
}

/// Whether two prefixes share addresses.
pub fn overlaps((a, a_length): Prefix, (b, b_length): Prefix) -> bool {
    let shorter = a_length.min(b_length);
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80);
    a.is_ipv4() == b.is_ipv4() && !is_link_local(&a) && network((a, shorter)) == network((b, shorter))
}

/// The first address of a prefix.
pub fn network((ip, length): Prefix) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::from((u32::from(ip) & mask).to_be_bytes())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::from((u128::from(ip) & mask).to_be_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_overlap_when_they_share_addresses() {
        let prefix = |text: &str| {
            let (ip, length) = text.split_once('/').unwrap();
            (ip.parse().unwrap(), length.parse().unwrap())
        };
        for (a, b, expected) in [
            ("10.32.0.0/12", "10.40.1.0/24", true),
            ("10.40.1.7/24", "10.40.1.0/30", true),
            ("10.32.0.0/12", "10.48.0.0/24", false),
            ("fd00::/64", "fd00::1/128", true),
            ("fd00::/64", "10.0.0.0/8", false),
            ("fe80::/64", "fe80::/10", false),
        ] {
            assert_eq!(overlaps(prefix(a), prefix(b)), expected, "{a} {b}");
            assert_eq!(overlaps(prefix(b), prefix(a)), expected);
        }
    }
}
