//! The network driver: a network is a segment, an endpoint is an attachment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::warn;
use weft_mesh::frame::colons;
use weft_mesh::node::{Command, Reply};
use weft_mesh::records::{EndpointId, NetworkRecord, NetworkUid, Subnet, is_name};
use weft_mesh::wire::MIN_MTU;

use super::Kit;
use super::plugin::NAME;
use super::pools::Pools;
use super::protocol::{
    CreateEndpoint, CreateNetwork, ENABLE_IPV6, INTERNAL, InterfaceName, IpamData, Join, Joined, MTU, PORTMAP,
    PortBinding, StaticRoute,
};
use super::publish::Publisher;
use crate::attachment::{Attachment, Place};
use crate::attachments::Ground;
use crate::error::{Doing, Failure, Result};
use crate::netlink::{Prefix, network as network_of, overlaps};
use crate::options::Cidr;
use crate::state::Table;

/// The option that names a network's segment.
const SEGMENT_OPTION: &str = "weft.segment";
/// The option that a network has which this host made because another has it.
pub const UID_OPTION: &str = "weft.uid";

/// A network of the engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Its subnets and their gateways.
    pub subnets: Vec<(Prefix, Option<IpAddr>)>,
    /// Names of addresses that are not for containers.
    pub set_aside: Vec<(String, IpAddr)>,
    /// Whether its containers have no way out.
    pub internal: bool,
    /// Whether its containers have IPv6.
    pub ipv6: bool,
    /// Its containers' MTU, if it has its own.
    pub mtu: Option<u32>,
    /// Its segment, if it is not its name.
    pub segment: Option<String>,
    /// Its name, once that is known: the engine does not tell.
    pub name: Option<String>,
    /// What the mesh knows it by.
    pub uid: NetworkUid,
}

/// A container's place in a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// The engine's id of the network.
    pub network: String,
    /// Its addresses.
    pub ips: Vec<Prefix>,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its published ports.
    pub ports: Vec<PortBinding>,
    /// The container's network namespace, while it is joined.
    pub sandbox: Option<String>,
}

/// The driver's networks and endpoints.
pub struct Driver {
    kit: Kit,
    pools: Arc<Pools>,
    /// Published ports.
    pub publisher: Publisher,
    /// Networks, by the engine's ids.
    pub networks: Table<Network>,
    /// Endpoints, by the engine's ids.
    pub endpoints: Table<Endpoint>,
}

impl Network {
    /// Its segment's name, if that is known.
    pub fn segment(&self) -> Option<&str> {
        self.segment.as_deref().or(self.name.as_deref())
    }
}

impl Driver {
    /// The networks and endpoints that were there.
    pub fn new(kit: Kit, pools: Arc<Pools>, kept: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let networks = Table::new(kit.store.clone(), "docker/network/", kept);
        let endpoints = Table::new(kit.store.clone(), "docker/endpoint/", kept);
        Driver { kit, pools, publisher: Publisher::default(), networks, endpoints }
    }

    /// `CreateNetwork`.
    pub fn create_network(&self, request: &CreateNetwork) -> Result<()> {
        if let Some(unknown) = request.own_options().find(|key| ![SEGMENT_OPTION, UID_OPTION].contains(key)) {
            return Err(Failure::new(format!("weft has no option {unknown}; it has {SEGMENT_OPTION}")));
        }
        self.take_up(request)
    }

    /// Notes a network that the engine has or makes.
    pub fn take_up(&self, request: &CreateNetwork) -> Result<()> {
        let id = &request.network_id;
        if id.len() < 32 || !id.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(Failure::new("no network id of an engine"));
        }
        let data = || request.ipv4_data.iter().chain(&request.ipv6_data);
        if data().next().is_none() || data().any(|data| data.address_space != NAME) {
            return Err(Failure::new(
                "weft hands out its own addresses; use: docker network create -d weft --ipam-driver weft NAME",
            ));
        }
        let mut subnets = Vec::new();
        let mut set_aside = Vec::new();
        for IpamData { pool, gateway, aux_addresses, .. } in data() {
            let prefix = cidr(pool)?;
            let gateway = if gateway.is_empty() { None } else { Some(cidr(gateway)?.0) };
            subnets.push(((network_of(prefix), prefix.1), gateway));
            for (name, address) in aux_addresses {
                set_aside.push((name.clone(), cidr(address)?.0));
            }
        }
        let segment = request.option(SEGMENT_OPTION).map(str::to_owned);
        if segment.as_ref().is_some_and(|segment| !is_name(segment)) {
            return Err(Failure::new("-o weft.segment takes 1 to 63 letters, digits, '-', '_' or '.'"));
        }
        let mtu = match request.option(MTU).or_else(|| request.option("mtu")) {
            None => None,
            Some(text) => match text.parse::<u32>() {
                Ok(mtu) if (MIN_MTU as u32..=65_000).contains(&mtu) => Some(mtu),
                _ => return Err(Failure::new(format!("the MTU {text} is none: it takes 1280 to 65000"))),
            },
        };
        let given = request.option(UID_OPTION).and_then(short_id);
        let uid = given.or_else(|| short_id(id)).ok_or_else(|| Failure::new("no network id of an engine"))?;
        let (internal, ipv6) = (request.is_set(INTERNAL), request.is_set(ENABLE_IPV6));
        let prefixes: Vec<Prefix> = subnets.iter().map(|(prefix, _)| *prefix).collect();
        let name = None;
        // A pool whose network is not there would be taken for abandoned.
        self.networks.set(id, Network { subnets, set_aside, internal, ipv6, mtu, segment, name, uid })?;
        for prefix in prefixes {
            self.pools.settle(prefix, id)?;
        }
        self.report_subnets();
        Ok(())
    }

    /// `DeleteNetwork`. If it was not weft that wanted it gone, it is gone everywhere.
    pub async fn delete_network(&self, id: &str) -> Result<()> {
        let Some(network) = self.networks.remove(id)? else { return Ok(()) };
        self.report_subnets();
        if self.kit.removing.is_being_removed(id) || network.uid == super::spread::STANDING {
            return self.kit.engine.ask(Command::UnsetNetwork(network.uid)).await.map(drop);
        }
        let mut uids = BTreeSet::from([network.uid]);
        if let Reply::Networks(networks) = self.kit.engine.ask(Command::Networks).await? {
            // Others may have made networks of this name themselves: they are one network.
            let same = networks.elsewhere.iter().filter(|(_, other)| Some(&other.name) == network.name.as_ref());
            uids.extend(same.map(|(_, other)| other.uid));
        }
        for uid in uids {
            self.kit.engine.ask(Command::RemoveNetwork(uid)).await?;
        }
        Ok(())
    }

    fn shares_sandbox(&self, id: &str, sandbox: &str) -> bool {
        self.endpoints.all().iter().any(|(other, endpoint)| other != id && endpoint.sandbox.as_deref() == Some(sandbox))
    }

    /// Whoever attaches a container to a network's segment gives it an address of the network.
    pub fn report_subnets(&self) {
        let mut subnets: BTreeMap<String, Vec<Ground>> = BTreeMap::new();
        for (_, network) in self.networks.all() {
            let Some(segment) = network.segment() else { continue };
            let grounds = network.subnets.iter().map(|(prefix, gateway)| Ground {
                prefix: *prefix,
                part: self.pools.chosen(*prefix).and_then(|pool| pool.part),
                gateway: *gateway,
            });
            subnets.entry(segment.to_owned()).or_default().extend(grounds);
        }
        self.kit.attachments.set_grounds(subnets);
    }

    /// A network that the engine no longer has: others may well have it.
    pub async fn forget_network(&self, id: &str) -> Result<()> {
        match self.networks.remove(id)? {
            Some(network) => self.kit.engine.ask(Command::UnsetNetwork(network.uid)).await.map(drop),
            None => Ok(()),
        }
    }

    /// `CreateEndpoint`: returns a MAC if the engine has none.
    pub fn create_endpoint(&self, request: &CreateEndpoint) -> Result<Option<String>> {
        let id = attachment_id(&request.endpoint_id)?;
        self.known_network(&request.network_id)?;
        let interface = request.interface.as_ref();
        let addresses = interface.map(|i| [&i.address, &i.address_ipv6]).into_iter().flatten();
        let ips = addresses.filter(|ip| !ip.is_empty()).map(|ip| cidr(ip)).collect::<Result<Vec<Prefix>>>()?;
        if ips.is_empty() {
            return Err(Failure::new("an endpoint without an address; was the network made with --ipam-driver weft?"));
        }
        let given = interface.map(|i| i.mac_address.as_str()).filter(|mac| !mac.is_empty());
        let mac = match given {
            Some(mac) => parse_mac(mac).ok_or_else(|| Failure::new(format!("{mac} is no MAC")))?,
            None => [0x02, id[0], id[1], id[2], id[3], id[4]],
        };
        let ports = match request.options.get(PORTMAP) {
            Some(ports) => serde_json::from_value::<Option<Vec<PortBinding>>>(ports.clone())
                .doing(|| "cannot read the published ports".into())?
                .unwrap_or_default(),
            None => Vec::new(),
        };
        let network = request.network_id.clone();
        self.endpoints.set(&request.endpoint_id, Endpoint { network, ips, mac, ports, sandbox: None })?;
        Ok(given.is_none().then(|| colons(&mac)))
    }

    /// `DeleteEndpoint`.
    pub async fn delete_endpoint(&self, id: &str) -> Result<()> {
        // What is kept goes last: it is what a restarted router knows the rest by.
        self.go(id).await?;
        self.endpoints.remove(id)?;
        self.kit.sandboxes.notify_one();
        Ok(())
    }

    /// `Join`: the container's interface is made and its records are written.
    pub async fn join(&self, request: &Join) -> Result<Joined> {
        let id = attachment_id(&request.endpoint_id)?;
        let network = self.known_network(&request.network_id)?;
        let unknown = || Failure::new("an endpoint that weft was not told of; start the container again");
        let endpoint = self.endpoints.find(&request.endpoint_id).ok_or_else(unknown)?;
        let (network, name) = self.learn_names(request, network).await?;
        let segment = network.segment().map(str::to_owned).ok_or_else(|| {
            Failure::new("the engine does not say what the network is called; try again, or set -o weft.segment=NAME")
        })?;
        if !is_name(&segment) {
            return Err(Failure::new(format!(
                "the network's name {segment} is too long for a segment; create it with -o weft.segment=NAME"
            )));
        }
        self.refuse_overlap(request, &endpoint)?;
        if !network.internal {
            self.publisher.publish(&request.sandbox_key, &request.endpoint_id, &endpoint)?;
        }
        let source = format!("wq{}", hex::encode(&id[..5]));
        let attachment = Attachment {
            id,
            segment,
            ips: endpoint.ips.clone(),
            names: name.into_iter().filter(|name| is_name(name)).collect(),
            mac: endpoint.mac,
            place: Place::Docker { host_interface: format!("wd{}", hex::encode(&id[..5])), source: source.clone() },
            leases: Vec::new(),
            gateways: network.subnets.iter().filter_map(|(_, gateway)| *gateway).collect(),
            healthy: true,
            services: Vec::new(),
            mtu: network.mtu,
            is_internal: network.internal,
        };
        let note = |endpoint: &mut Endpoint| endpoint.sandbox = Some(request.sandbox_key.clone());
        let joined = match self.kit.attachments.join(attachment).await {
            Ok(()) => match self.endpoints.update(&request.endpoint_id, note) {
                Ok(false) => Err(Failure::new("the engine let go of the endpoint meanwhile")),
                updated => updated.map(drop),
            },
            Err(error) => Err(error),
        };
        if joined.is_err() {
            self.go(&request.endpoint_id).await?;
        }
        joined?;
        let is_only_one = !self.shares_sandbox(&request.endpoint_id, &request.sandbox_key);
        self.kit.sandboxes.notify_one();
        self.publisher.wanted.notify_one();
        let gateway = |v4: bool| {
            let mut gateways = network.subnets.iter().filter_map(|(_, gateway)| *gateway);
            let found = gateways.find(|gateway| gateway.is_ipv4() == v4).filter(|_| !network.internal);
            found.map(|gateway| gateway.to_string()).unwrap_or_default()
        };
        Ok(Joined {
            interface_name: InterfaceName { src_name: source, dst_prefix: "eth" },
            gateway: gateway(true),
            gateway_ipv6: gateway(false),
            // A default route is good for groups, too; a container may have one route to them.
            static_routes: match network.internal && is_only_one {
                true => vec![StaticRoute { destination: "224.0.0.0/4", route_type: 1 }],
                false => Vec::new(),
            },
            disable_gateway_service: network.internal,
        })
    }

    /// Engines refuse to put two interfaces of one subnet into a container, and do not say what to do.
    fn refuse_overlap(&self, request: &Join, endpoint: &Endpoint) -> Result<()> {
        let others =
            self.endpoints.all().into_iter().filter(|(id, other)| {
                *id != request.endpoint_id && other.sandbox.as_ref() == Some(&request.sandbox_key)
            });
        for (_, other) in others {
            let clash = endpoint.ips.iter().find(|ip| other.ips.iter().any(|other| overlaps(**ip, *other)));
            if let Some(clash) = clash {
                let network = self.networks.find(&other.network).and_then(|network| network.name).unwrap_or_default();
                let subnet = Cidr((network_of(*clash), clash.1));
                return Err(Failure::new(format!(
                    "the container is in {subnet} on network {network} already, and an engine puts it there only \
                     once; undo it with docker network disconnect, or the container will not start again, and create one \
                     of the two networks with a --subnet of its own"
                )));
            }
        }
        Ok(())
    }

    /// `Leave`. The interface is back, or gone with the container.
    pub async fn leave(&self, id: &str) -> Result<()> {
        self.go(id).await?;
        self.endpoints.update(id, |endpoint| endpoint.sandbox = None)?;
        self.kit.sandboxes.notify_one();
        Ok(())
    }

    async fn go(&self, id: &str) -> Result<()> {
        if self.publisher.unpublish(id) {
            self.publish_all(Some(id));
        }
        let left = self.kit.attachments.leave(attachment_id(id)?).await;
        self.publisher.wanted.notify_one();
        left
    }

    /// Has every container that has a way out publish its ports, by another endpoint than `but`.
    pub fn publish_all(&self, but: Option<&str>) {
        for (id, endpoint) in self.endpoints.all() {
            let is_open = self.networks.find(&endpoint.network).is_some_and(|network| !network.internal);
            if let Some(sandbox) = endpoint.sandbox.as_deref().filter(|_| is_open && but != Some(&id))
                && let Err(error) = self.publisher.publish(sandbox, &id, &endpoint)
            {
                warn!("a port of a running container is no longer published: {error}");
            }
        }
    }

    /// The engine tells what a network and its containers are called only when asked, and only now.
    async fn learn_names(&self, request: &Join, network: Network) -> Result<(Network, Option<String>)> {
        match self.kit.api.network(&request.network_id).await {
            Ok((name, containers)) => {
                let network = self.name_network(&request.network_id, &name).await?.unwrap_or(network);
                Ok((network, containers.get(&request.endpoint_id).cloned()))
            }
            Err(error) => {
                warn!("a container joins without its name: {error}");
                Ok((network, None))
            }
        }
    }

    /// A network's name is known: other hosts hear of it. Returns the network, if it is there.
    pub async fn name_network(&self, id: &str, name: &str) -> Result<Option<Network>> {
        let Some(mut network) = self.networks.find(id) else { return Ok(None) };
        if network.name.as_deref() != Some(name) {
            network.name = Some(name.to_owned());
            self.networks.set(id, network.clone())?;
            self.report_subnets();
            self.tell(&network).await;
        }
        Ok(Some(network))
    }

    /// Tells other hosts of a network.
    pub async fn tell(&self, network: &Network) {
        let Some(record) = self.record(network) else { return };
        if let Err(error) = self.kit.engine.ask(Command::SetNetwork(record)).await {
            warn!("other hosts do not hear of network {}: {error}", network.name.as_deref().unwrap_or_default());
        }
    }

    fn record(&self, network: &Network) -> Option<NetworkRecord> {
        let name = network.name.clone().filter(|name| is_name(name))?;
        // Subnets that nobody chose are the same everywhere.
        let subnet = |(prefix, gateway): &(Prefix, Option<IpAddr>)| {
            let pool = self.pools.chosen(*prefix)?;
            let within = |(_, ip): &&(String, IpAddr)| overlaps((*ip, prefix.1), *prefix);
            let set_aside = network.set_aside.iter().filter(within).cloned().collect();
            Some(Subnet { prefix: *prefix, part: pool.part, gateway: *gateway, set_aside })
        };
        Some(NetworkRecord {
            name,
            uid: network.uid,
            segment: network.segment.clone(),
            subnets: network.subnets.iter().filter_map(subnet).collect(),
            ipv6: network.ipv6,
            internal: network.internal,
            mtu: network.mtu.and_then(|mtu| u16::try_from(mtu).ok()),
        })
    }

    fn known_network(&self, id: &str) -> Result<Network> {
        let unknown = || Failure::new("a network that weft was not told of; remove it and create it again");
        self.networks.find(id).ok_or_else(unknown)
    }

    /// All addresses of endpoints.
    pub fn used(&self) -> BTreeSet<IpAddr> {
        self.endpoints.all().into_iter().flat_map(|(_, endpoint)| endpoint.ips).map(|(ip, _)| ip).collect()
    }
}

/// The attachment's id for the engine's id of an endpoint.
pub fn attachment_id(endpoint: &str) -> Result<EndpointId> {
    short_id(endpoint).ok_or_else(|| Failure::new("no endpoint id of an engine"))
}

/// The first half of the engine's ids is as unique as the whole.
pub fn short_id(text: &str) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    hex::decode_to_slice(text.get(..32)?, &mut id).ok().map(|()| id)
}

/// An address and its prefix length, as engines write them.
pub fn cidr(text: &str) -> Result<Prefix> {
    text.parse::<Cidr>().map(|cidr| cidr.0).map_err(|error| Failure::new(format!("{text}: {error}")))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|part| part.len() == 2)?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}
