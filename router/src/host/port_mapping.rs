//! Ports of the NAT before this host that lead to its own: mapped by PCP (RFC 6887) or NAT-PMP (RFC 6886), or else by UPnP.
//!
//! A host whose address is a private one asks its default gateway for its UDP port, and for the same TCP port if it listens there. What it gets
//! it advertises; it renews it in time, asks anew when its network changes, and gives it back when it stops.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp};
use futures_util::future::join_all;
use igd_next::aio::Gateway as UpnpGateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions};
use tokio::sync::{Mutex, watch};
use tracing::{debug, info, warn};
use weft_mesh::node::Command;
use weft_mesh::records::Advertised;

use crate::daemon::node_task::NodeHandle;
use crate::error::{Doing, Failure, Result};
use crate::host::underlay::{Gateway, Underlay};

/// How long a mapping is asked for, and when it is renewed: a gateway that starts anew has forgotten it.
const LIFETIME: Duration = Duration::from_secs(1200);
const RENEW: Duration = Duration::from_secs(600);
/// When a gateway that mapped nothing is asked again, and one that did before.
const ASK_AGAIN: Duration = Duration::from_secs(1800);
const ASK_SOON: Duration = Duration::from_secs(60);
/// How long a gateway has to answer: three questions by PCP, and a search by UPnP.
const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 2, max_retry_timeout: None };
const SEARCH: Duration = Duration::from_secs(3);
/// How long it has to take a mapping back when the router stops.
const RELEASE: Duration = Duration::from_secs(1);

/// The mappings of this host.
pub struct PortMappings {
    /// What is to be mapped: UDP first.
    ports: Vec<(InternetProtocol, NonZero<u16>)>,
    held: Mutex<Held>,
}

/// What is mapped by which gateway.
#[derive(Default)]
struct Held {
    gateway: Option<Gateway>,
    mappings: Vec<MappedPort>,
}

/// A port that is mapped.
enum MappedPort {
    /// By PCP or NAT-PMP.
    Pcp { mapping: PortMapping, ip: IpAddr },
    /// By UPnP: `own` is this host's address, `at` the gateway's.
    Upnp { gateway: Box<UpnpGateway<Tokio>>, protocol: InternetProtocol, own: SocketAddr, at: SocketAddr },
}

impl PortMappings {
    /// Mappings of the ports that the host listens on, of which there are none yet.
    pub fn of(udp: u16, tcp: &[u16]) -> Arc<PortMappings> {
        let tcp = tcp.contains(&udp).then_some(InternetProtocol::Tcp);
        let wanted = [InternetProtocol::Udp].into_iter().chain(tcp);
        let ports = wanted.filter_map(|protocol| Some((protocol, NonZero::new(udp)?))).collect();
        Arc::new(PortMappings { ports, held: Mutex::default() })
    }

    /// Keeps ports mapped and the node told, for as long as the router runs; `underlay` tells of the network that the host is in.
    pub async fn keep(self: Arc<Self>, node: NodeHandle, mut underlay: watch::Receiver<Underlay>) {
        let (mut told, mut maps) = (Advertised::default(), None);
        loop {
            let gateway = underlay.borrow_and_update().gateway;
            let mapped = self.renew(gateway.filter(|gateway| may_be_translated(gateway.own))).await;
            let again = match mapped != Advertised::default() {
                true => RENEW,
                false if gateway.is_some() && gateway == maps => ASK_SOON,
                false => ASK_AGAIN,
            };
            if again == RENEW {
                maps = gateway;
            }
            if mapped != told {
                if let Err(error) = node.tell(Command::SetMapped(mapped.clone())).await {
                    warn!("other hosts are not told of mapped ports: {error}");
                }
                told = mapped;
            }
            tokio::select! {
                changed = underlay.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    /// Renews what is mapped, and maps what is not. Returns where others reach this host thereby.
    async fn renew(&self, gateway: Option<Gateway>) -> Advertised {
        let mut held = self.held.lock().await;
        if held.gateway != gateway {
            // The old gateway may be out of reach: its mappings end with their lifetime, but for permanent ones by UPnP.
            *held = Held { gateway, mappings: Vec::new() };
        }
        let mut advertised = Advertised::default();
        let Some(gateway) = gateway else { return advertised };
        for (protocol, port) in &self.ports {
            let kept = held.mappings.iter_mut().find(|mapping| is_same(mapping.protocol(), *protocol));
            let renewed = match kept {
                Some(mapping) => mapping.renew().await.ok().map(|()| mapping.at()),
                None => None,
            };
            let at = match renewed {
                Some(at) => at,
                None => {
                    held.mappings.retain(|mapping| !is_same(mapping.protocol(), *protocol));
                    match MappedPort::open(gateway, *protocol, *port).await {
                        Ok(mapping) => {
                            let at = mapping.at();
                            info!("others reach this host at {protocol} {at}, mapped by {}", mapping.by());
                            held.mappings.push(mapping);
                            at
                        }
                        Err(error) => {
                            debug!(gateway = %gateway.address, "no port is mapped: {error}");
                            break;
                        }
                    }
                }
            };
            match protocol {
                InternetProtocol::Udp => advertised.udp.push(at),
                InternetProtocol::Tcp => advertised.tcp.push(at),
            }
        }
        advertised
    }

    /// Has the gateway take all mappings back, if it answers in time; otherwise they end with their lifetime, but for permanent ones by UPnP.
    pub async fn release(&self) {
        let mappings = std::mem::take(&mut self.held.lock().await.mappings);
        let released = join_all(mappings.into_iter().map(MappedPort::close));
        if tokio::time::timeout(RELEASE, released).await.is_err() {
            debug!("the gateway does not say whether it took mapped ports back");
        }
    }
}

impl MappedPort {
    /// Maps a port of this host. An error: the gateway speaks none of the protocols, or refuses.
    async fn open(gateway: Gateway, protocol: InternetProtocol, port: NonZero<u16>) -> Result<MappedPort> {
        let mapping = match Self::open_by_pcp(gateway, protocol, port).await {
            Ok(mapping) => mapping,
            Err(by_pcp) => Self::open_by_upnp(gateway, protocol, port)
                .await
                .map_err(|by_upnp| Failure::new(format!("by PCP: {by_pcp}; by UPnP: {by_upnp}")))?,
        };
        let at = mapping.at();
        if !is_outside(at) {
            mapping.close().await;
            return Err(Failure::new(format!("{at} is no address of the internet: the gateway is behind another NAT")));
        }
        Ok(mapping)
    }

    async fn open_by_pcp(gateway: Gateway, protocol: InternetProtocol, port: NonZero<u16>) -> Result<MappedPort> {
        let options = PortMappingOptions {
            external_port: Some(port),
            lifetime_seconds: Some(LIFETIME.as_secs() as u32),
            timeout_config: Some(PATIENCE),
        };
        let asked = PortMapping::new(gateway.address.into(), gateway.own.into(), protocol, port, options);
        let mapping = asked.await.doing(|| "it maps nothing".into())?;
        let ip = external_ip(&mapping).await?;
        Ok(MappedPort::Pcp { mapping, ip })
    }

    async fn open_by_upnp(gateway: Gateway, protocol: InternetProtocol, port: NonZero<u16>) -> Result<MappedPort> {
        let mut options = SearchOptions::default();
        options.bind_addr = (gateway.own, 0).into();
        (options.timeout, options.single_search_timeout) = (Some(SEARCH), Some(SEARCH));
        let found = search_gateway(options).await.doing(|| "there is none".into())?;
        if found.addr.ip() != IpAddr::V4(gateway.address) {
            return Err(Failure::new(format!("{} answers, which is not the gateway", found.addr.ip())));
        }
        let ip = found.get_external_ip().await.doing(|| "it does not say its address".into())?;
        let own = SocketAddr::from((gateway.own, port.get()));
        let port = map_by_upnp(&found, protocol, port.get(), own).await?;
        Ok(MappedPort::Upnp { gateway: Box::new(found), protocol, own, at: (ip, port).into() })
    }

    /// Asks for the same again. An error: it is no longer there.
    async fn renew(&mut self) -> Result<()> {
        let what = || "a mapping ends".to_owned();
        match self {
            MappedPort::Pcp { mapping, ip } => {
                mapping.renew().await.doing(what)?;
                *ip = external_ip(mapping).await?;
            }
            MappedPort::Upnp { gateway, protocol, own, at } => {
                let ip = gateway.get_external_ip().await.doing(what)?;
                *at = (ip, map_by_upnp(gateway, *protocol, at.port(), *own).await?).into();
            }
        }
        Ok(())
    }

    async fn close(self) {
        // Whether it is there still is the gateway's to know.
        match self {
            MappedPort::Pcp { mapping, .. } => drop(mapping.try_drop().await),
            MappedPort::Upnp { gateway, protocol, at, .. } => {
                let _ = gateway.remove_port(upnp_protocol(protocol), at.port()).await;
            }
        }
    }

    fn protocol(&self) -> InternetProtocol {
        match self {
            MappedPort::Pcp { mapping, .. } => mapping.protocol(),
            MappedPort::Upnp { protocol, .. } => *protocol,
        }
    }

    /// Where others reach this host.
    fn at(&self) -> SocketAddr {
        match self {
            MappedPort::Pcp { mapping, ip } => (*ip, mapping.external_port().get()).into(),
            MappedPort::Upnp { at, .. } => *at,
        }
    }

    fn by(&self) -> &'static str {
        match self {
            MappedPort::Pcp { mapping, .. } => match mapping.mapping_type() {
                PortMappingType::NatPmp => "NAT-PMP",
                PortMappingType::Pcp { .. } => "PCP",
            },
            MappedPort::Upnp { .. } => "UPnP",
        }
    }
}

/// The address of the NAT that maps.
async fn external_ip(mapping: &PortMapping) -> Result<IpAddr> {
    match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => Ok(external_ip.to_canonical()),
        PortMappingType::NatPmp => {
            let asked = natpmp::external_address(mapping.gateway(), Some(PATIENCE));
            Ok(asked.await.doing(|| "it does not say its address".into())?.into())
        }
    }
}

/// Maps a port, or if that is another's any. Returns the one that is mapped.
async fn map_by_upnp(
    gateway: &UpnpGateway<Tokio>,
    protocol: InternetProtocol,
    port: u16,
    own: SocketAddr,
) -> Result<u16> {
    const NAME: &str = "weft";
    let (protocol, lifetime) = (upnp_protocol(protocol), LIFETIME.as_secs() as u32);
    match gateway.add_port(protocol, port, own, lifetime, NAME).await {
        Ok(()) => Ok(port),
        // Such a mapping stays until it is taken back.
        Err(AddPortError::OnlyPermanentLeasesSupported) => {
            gateway.add_port(protocol, port, own, 0, NAME).await.doing(|| "it maps nothing".into())?;
            Ok(port)
        }
        Err(_) => gateway.add_any_port(protocol, own, lifetime, NAME).await.doing(|| "it maps nothing".into()),
    }
}

/// Whether others may reach this host there.
fn is_outside(at: SocketAddr) -> bool {
    let is_own = match at.ip() {
        IpAddr::V4(ip) => may_be_translated(ip) || ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    !(is_own || at.ip().is_loopback() || at.ip().is_unspecified() || at.ip().is_multicast() || at.port() == 0)
}

fn upnp_protocol(protocol: InternetProtocol) -> PortMappingProtocol {
    match protocol {
        InternetProtocol::Udp => PortMappingProtocol::UDP,
        InternetProtocol::Tcp => PortMappingProtocol::TCP,
    }
}

fn is_same(a: InternetProtocol, b: InternetProtocol) -> bool {
    a as u8 == b as u8
}

/// Whether packets from an address leave for the internet by way of a NAT: it is private (RFC 1918), shared (RFC 6598), or for
/// benchmarks (RFC 2544).
fn may_be_translated(own: Ipv4Addr) -> bool {
    let [first, second, ..] = own.octets();
    own.is_private() || (first == 100 && second & 0xc0 == 64) || (first == 198 && second & 0xfe == 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_asks_for_ports_where_a_nat_is_likely() {
        let cases =
            [([10, 1, 2, 3], true), ([172, 20, 0, 1], true), ([192, 168, 1, 2], true), ([100, 127, 0, 1], true)];
        let others =
            [([198, 19, 1, 2], true), ([100, 128, 0, 1], false), ([203, 0, 113, 1], false), ([8, 8, 8, 8], false)];
        for (ip, expected) in cases.into_iter().chain(others) {
            assert_eq!(may_be_translated(ip.into()), expected, "{ip:?}");
        }
    }

    #[test]
    fn what_a_gateway_maps_is_of_use_only_at_an_address_of_the_internet() {
        for (at, expected) in
            [("25.0.1.2:6783", true), ("25.0.1.2:0", false), ("0.0.0.0:6783", false), ("10.0.0.1:6783", false)]
        {
            assert_eq!(is_outside(at.parse().unwrap()), expected, "{at}");
        }
    }

    #[test]
    fn the_tcp_port_is_mapped_only_if_it_is_the_udp_port() {
        let protocols =
            |tcp: &[u16]| PortMappings::of(6783, tcp).ports.iter().map(|(by, _)| *by as u8).collect::<Vec<_>>();
        assert_eq!(protocols(&[443, 6783]), [InternetProtocol::Udp as u8, InternetProtocol::Tcp as u8]);
        assert_eq!(protocols(&[443]), [InternetProtocol::Udp as u8], "443 of a NAT may be a web server's");
    }

    #[tokio::test]
    async fn without_a_gateway_nothing_is_mapped() {
        let mappings = PortMappings::of(6783, &[]);
        assert_eq!(mappings.renew(None).await, Advertised::default());
        mappings.release().await;
    }
}
