//! The network driver: a network is a segment, an endpoint is an attachment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::warn;
use weft_mesh::frame::colons;
use weft_mesh::node::Command;
use weft_mesh::records::{Health, NetworkRecord, NetworkUid, Subnet, is_endpoint_name, is_name};
use weft_mesh::wire::MIN_MTU;

use super::DriverContext;
use super::firewall::Firewall;
use super::network::{
    BRIDGE_HOST_BINDING, Endpoint, HOST_BINDING, LIMITS, Network, SCOPE_OPTION, SEGMENT_OPTION, attachment_id, cidr,
    parse_mac, short_id,
};
use super::plugin::NAME;
use super::pools::Pools;
use super::ports::Ports;
use super::protocol::{
    CreateEndpoint, CreateNetwork, ENABLE_IPV6, INTERNAL, InterfaceName, IpamData, Join, Joined, MTU, StaticRoute,
};
use super::sandboxes::Sandboxes;
use crate::attach::attachment::{Attachment, Place};
use crate::attach::attachments::SegmentSubnet;
use crate::attach::prefix::Prefix;
use crate::daemon::keys::TableName;
use crate::daemon::state::{Table, random};
use crate::error::{Failure, Result};

/// The driver's networks and endpoints.
pub struct Driver {
    context: DriverContext,
    pools: Arc<Pools>,
    /// Published ports.
    pub ports: Ports,
    /// The rules that lead to them, and keep networks apart.
    pub firewall: Firewall,
    /// Uids of networks that weft is having the engine make, by their names: the engine does not hand them through.
    making: Mutex<BTreeMap<String, NetworkUid>>,
    /// Networks, by the engine's ids.
    pub networks: Table<Network>,
    /// Endpoints, by the engine's ids.
    pub endpoints: Table<Endpoint>,
    /// Network namespaces of joined containers.
    pub sandboxes: Sandboxes,
}

impl Driver {
    /// The networks and endpoints that were there.
    pub fn new(context: DriverContext, pools: Arc<Pools>, kept: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let networks = Table::new(context.store.clone(), TableName::Networks, kept);
        let endpoints = Table::new(context.store.clone(), TableName::Endpoints, kept);
        let (ports, firewall, making) = (Ports::default(), Firewall::default(), Mutex::default());
        Driver { context, pools, ports, firewall, making, networks, endpoints, sandboxes: Sandboxes::default() }
    }

    /// `CreateNetwork`.
    pub fn create_network(&self, request: &CreateNetwork) -> Result<()> {
        for (key, value) in request.given_options() {
            let key = key.as_str();
            if key.starts_with("weft.") && ![SEGMENT_OPTION, SCOPE_OPTION].contains(&key) {
                return Err(Failure::new(format!(
                    "weft has no option {key}; it has {SEGMENT_OPTION} and {SCOPE_OPTION}"
                )));
            }
            if key == SCOPE_OPTION && !["mesh", "host"].contains(&value.as_str()) {
                return Err(Failure::new(format!("-o {SCOPE_OPTION} takes mesh or host")));
            }
            if [HOST_BINDING, BRIDGE_HOST_BINDING].contains(&key) && value.parse::<Ipv4Addr>().is_err() {
                return Err(Failure::new(format!("-o {key} takes an IPv4 address of this host")));
            }
            if LIMITS.iter().any(|(limit, harmless)| *limit == key && !value.eq_ignore_ascii_case(harmless)) {
                return Err(Failure::new(format!(
                    "weft's networks do not have the limit {key}={value}; leave it out, or use --internal, networks of their own, \
                     or a bridge network"
                )));
            }
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
            subnets.push((prefix.network(), gateway));
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
                _ => return Err(Failure::new(format!("invalid MTU {text}: use 1280 to 65000"))),
            },
        };
        let uid = short_id(id).ok_or_else(|| Failure::new("no network id of an engine"))?;
        let prefixes: Vec<Prefix> = subnets.iter().map(|(prefix, _)| *prefix).collect();
        let network = Network {
            internal: request.is_set(INTERNAL),
            ipv4: prefixes.iter().any(|Prefix(ip, _)| ip.is_ipv4()),
            ipv6: request.is_set(ENABLE_IPV6),
            subnets,
            set_aside,
            mtu,
            segment,
            options: request.given_options(),
            labels: Vec::new(),
            attachable: false,
            name: None,
            uid,
        };
        // A pool whose network is not there would be taken for abandoned.
        self.networks.set(id, network)?;
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
        if self.context.removing.is_being_removed(id) || network.uid == super::spread::STANDING {
            return self.context.node.tell(Command::UnsetNetwork(network.uid)).await;
        }
        let mut uids = BTreeSet::from([network.uid]);
        // Other hosts may have made networks of this name themselves: they are one network.
        let networks = self.context.node.networks().await?;
        let same = networks.elsewhere.iter().filter(|(_, other)| Some(&other.name) == network.name.as_ref());
        uids.extend(same.map(|(_, other)| other.uid));
        for uid in uids {
            self.context.node.tell(Command::RemoveNetwork(uid)).await?;
        }
        Ok(())
    }

    /// Tells the attachments which subnets a network's segment has: containers attached to it by hand get addresses of those.
    pub fn report_subnets(&self) {
        let mut subnets: BTreeMap<String, Vec<SegmentSubnet>> = BTreeMap::new();
        for (_, network) in self.networks.all() {
            let Some(segment) = network.segment() else { continue };
            let of_network = network.subnets.iter().map(|(prefix, gateway)| SegmentSubnet {
                prefix: *prefix,
                part: self.pools.chosen(*prefix).and_then(|pool| pool.part),
                gateway: *gateway,
            });
            subnets.entry(segment.to_owned()).or_default().extend(of_network);
        }
        self.context.attachments.set_subnets(subnets);
    }

    /// A network that the engine no longer has: others may well have it.
    pub async fn forget_network(&self, id: &str) -> Result<()> {
        match self.networks.remove(id)? {
            Some(network) => self.context.node.tell(Command::UnsetNetwork(network.uid)).await,
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
        let (network, ports) = (request.network_id.clone(), Vec::new());
        let endpoint = Endpoint { network, ips, mac, ports, is_published: false };
        self.endpoints.set(&request.endpoint_id, endpoint)?;
        Ok(given.is_none().then(|| colons(&mac)))
    }

    /// `DeleteEndpoint`.
    pub async fn delete_endpoint(&self, id: &str) -> Result<()> {
        // What is kept goes last: it is what a restarted router knows the rest by.
        self.go(id).await?;
        self.endpoints.remove(id)?;
        self.sandboxes.remove(id);
        self.context.sandboxes.notify_one();
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
        let source = format!("wq{}", hex::encode(&id[..5]));
        let attachment = Attachment {
            id,
            segment,
            ips: endpoint.ips.clone(),
            names: name.into_iter().filter(|name| is_endpoint_name(name)).collect(),
            mac: endpoint.mac,
            place: Place::Docker {
                host_interface: format!("wd{}", hex::encode(&id[..5])),
                source: source.clone(),
                sandbox: request.sandbox_key.clone().into(),
            },
            leases: Vec::new(),
            gateways: network.subnets.iter().filter_map(|(_, gateway)| *gateway).collect(),
            health: Health::Healthy,
            services: Vec::new(),
            mtu: network.mtu,
            is_internal: network.internal,
        };
        self.bring_in(request, attachment).await?;
        let is_only_one = !self.sandboxes.is_shared(&request.endpoint_id, &request.sandbox_key);
        self.context.sandboxes.notify_one();
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

    /// Brings a container in, with the rules of its network in force before its first packet. An `Err` leaves nothing of what this
    /// call made.
    async fn bring_in(&self, request: &Join, attachment: Attachment) -> Result<()> {
        let id = &request.endpoint_id;
        let is_new = self.context.attachments.join(attachment).await?;
        self.sandboxes.insert(id, &request.sandbox_key);
        let settled = self.firewall.settle().await;
        let joined = match self.endpoints.find(id) {
            Some(_) => settled,
            None => Err(Failure::new("the engine let go of the endpoint meanwhile")),
        };
        if joined.is_err() && is_new {
            match self.go(id).await {
                Ok(()) => self.sandboxes.remove(id),
                Err(error) => {
                    warn!("an endpoint that could not be joined stays until the engine lets go of it: {error}")
                }
            }
        }
        joined
    }

    /// Engines refuse to put two interfaces of one subnet into a container, and do not say what to do.
    fn refuse_overlap(&self, request: &Join, endpoint: &Endpoint) -> Result<()> {
        let others = self.endpoints.all().into_iter().filter(|(id, _)| {
            *id != request.endpoint_id && self.sandboxes.of(id).as_ref() == Some(&request.sandbox_key)
        });
        for (_, other) in others {
            let clash = endpoint.ips.iter().find(|ip| other.ips.iter().any(|other| ip.overlaps(*other)));
            if let Some(clash) = clash {
                let network = self.networks.find(&other.network).and_then(|network| network.name).unwrap_or_default();
                let subnet = clash.network();
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
        self.sandboxes.remove(id);
        self.context.sandboxes.notify_one();
        Ok(())
    }

    async fn go(&self, id: &str) -> Result<()> {
        // Engines that were restarted beside a running container do not revoke.
        self.revoke(id).await?;
        let left = self.context.attachments.leave(attachment_id(id)?).await;
        self.firewall.wanted.notify_one();
        left
    }

    /// The engine tells what a network and its containers are called only when asked, and only now.
    async fn learn_names(&self, request: &Join, network: Network) -> Result<(Network, Option<String>)> {
        // An engine that is starting starts containers before it answers: it says later what they are called.
        if network.name.is_some() && !self.context.is_answering() {
            return Ok((network, None));
        }
        match self.context.api.network(&request.network_id).await {
            Ok((described, containers)) => {
                let network = self.name_network(&request.network_id, &described).await?.unwrap_or(network);
                Ok((network, containers.get(&request.endpoint_id).cloned()))
            }
            Err(error) => {
                warn!("a container joins without its name: {error}");
                Ok((network, None))
            }
        }
    }

    /// What the engine says of a network is known: other hosts hear of it. Returns the network, if it is there.
    pub async fn name_network(&self, id: &str, described: &bollard::models::Network) -> Result<Option<Network>> {
        let (Some(known), Some(name)) = (self.networks.find(id), described.name.as_deref()) else { return Ok(None) };
        let mut labels: Vec<(String, String)> =
            described.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        labels.sort();
        let attachable = described.attachable == Some(true);
        let uid = match self.making().get(name) {
            Some(uid) if known.name.is_none() => *uid,
            _ if name == NAME => super::spread::STANDING,
            _ => known.uid,
        };
        let network = Network { name: Some(name.to_owned()), labels, attachable, uid, ..known.clone() };
        if network != known {
            if known.uid != uid {
                self.context.node.tell(Command::UnsetNetwork(known.uid)).await?;
            }
            self.networks.set(id, network.clone())?;
            self.report_subnets();
            self.tell(&network).await;
        }
        Ok(Some(network))
    }

    /// Uids of networks that weft is having the engine make, by their names.
    pub fn making(&self) -> MutexGuard<'_, BTreeMap<String, NetworkUid>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a network another uid: it stays, though the one it had was removed elsewhere.
    pub async fn keep_network(&self, id: &str) -> Result<()> {
        let Some(network) = self.networks.find(id) else { return Ok(()) };
        let kept = Network { uid: random()?, ..network.clone() };
        self.networks.set(id, kept.clone())?;
        self.context.node.tell(Command::UnsetNetwork(network.uid)).await?;
        self.tell(&kept).await;
        Ok(())
    }

    /// Tells other hosts of a network.
    pub async fn tell(&self, network: &Network) {
        let Some(record) = self.record(network) else { return };
        if let Err(error) = self.context.node.tell(Command::SetNetwork(Box::new(record))).await {
            warn!("other hosts do not hear of network {}: {error}", network.name.as_deref().unwrap_or_default());
        }
    }

    fn record(&self, network: &Network) -> Option<NetworkRecord> {
        let name = network.name.clone().filter(|name| is_name(name) && network.is_of_mesh())?;
        // Default subnets are the same everywhere.
        let subnet = |(prefix, _): &(Prefix, Option<IpAddr>)| {
            let pool = self.pools.chosen(*prefix)?;
            let within = |(_, ip): &&(String, IpAddr)| Prefix(*ip, prefix.1).overlaps(*prefix);
            let set_aside = network.set_aside.iter().filter(within).cloned().collect();
            Some(Subnet {
                prefix: (*prefix).into(),
                part: pool.part.map(Prefix::into),
                gateway: pool.gateway,
                set_aside,
            })
        };
        let Network { uid, ipv4, ipv6, internal, attachable, options, labels, .. } = network.clone();
        let subnets = network.subnets.iter().filter_map(subnet).collect();
        Some(NetworkRecord { name, uid, subnets, ipv4, ipv6, internal, attachable, options, labels })
    }

    /// Whether a network here and one elsewhere have addresses that do not belong together.
    pub fn has_other_subnets(&self, network: &Network, elsewhere: &NetworkRecord) -> bool {
        let chosen = network.subnets.iter().map(|(prefix, _)| *prefix).filter(|prefix| !self.pools.is_own(*prefix));
        chosen.collect::<BTreeSet<Prefix>>()
            != elsewhere.subnets.iter().map(|subnet| Prefix::from(subnet.prefix)).collect()
    }

    pub(super) fn known_network(&self, id: &str) -> Result<Network> {
        let unknown = || Failure::new("a network that weft was not told of; remove it and create it again");
        self.networks.find(id).ok_or_else(unknown)
    }

    /// All addresses of endpoints.
    pub fn used(&self) -> BTreeSet<IpAddr> {
        self.endpoints.all().into_iter().flat_map(|(_, endpoint)| endpoint.ips).map(|Prefix(ip, _)| ip).collect()
    }
}
