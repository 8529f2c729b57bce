//! Why a path is as it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_crypto::{HostLabel, Time};

use super::{CommandError, Components};
use crate::explanation::{Explanation, HopStatus, LinkAccount, Place};
use crate::records::{EndpointId, EndpointRecord};
use crate::wire::OVERHEAD;

/// The most hops that are told: a path is shorter, and records that change meanwhile may say otherwise.
const MAX_HOPS: usize = 32;

/// A host, or an endpoint on one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) host: HostLabel,
    pub(super) endpoint: Option<EndpointId>,
}

impl Components {
    /// Explains the path from one host, container, name or address to another; without `from`, from this host. Of several that have a name,
    /// the path leads to one with which it is answered, to the nearest.
    pub(super) fn explain_path(&self, from: Option<&str>, to: &str, now: Time) -> Result<Explanation, CommandError> {
        let here = Found { host: self.own, endpoint: None };
        let holders = self.holders(from, to);
        let from = from.map_or(Ok(here), |from| self.find(from))?;
        let nearest = holders.iter().find_map(|(found, _)| Some(*found).filter(|found| found.endpoint.is_some()));
        let to = match nearest.filter(|_| self.host_called(to).is_none()) {
            Some(endpoint) => endpoint,
            None => self.find(to)?,
        };
        let peer =
            [(&from, &to), (&to, &from)].into_iter().find(|(one, _)| one.host == self.own).map(|(_, other)| other);
        let link = peer.and_then(|peer| LinkAccount::of(&self.topology, peer.host, now));
        let is_one_host = from.host == to.host;
        let hops = self.hops(from.host, to.host);
        let has_path = is_one_host || !hops.is_empty();
        Ok(Explanation {
            is_one_host,
            stubs: if has_path { Vec::new() } else { self.stubs_between(from.host, to.host) },
            hops,
            from: self.place(from),
            to: self.place(to),
            holders: holders.into_iter().map(|(_, account)| account).collect(),
            link,
        })
    }

    pub(super) fn place(&self, Found { host, endpoint }: Found) -> Place {
        let record = endpoint.and_then(|id| self.segments.get(host, &id));
        let name = |record: &EndpointRecord| {
            let address = || record.ips.first().map(|(ip, _)| ip.to_string()).unwrap_or_default();
            record.names.first().cloned().unwrap_or_else(address)
        };
        Place {
            host: self.directory.unmistakable(host),
            peer_id: self.directory.id_of(host),
            endpoint: record.map(name),
            health: record.map(|record| record.health),
            is_here: host == self.own,
        }
    }

    /// Finds the one place of a name: a container's address or name, or a host's nickname or key.
    fn find(&self, what: &str) -> Result<Found, CommandError> {
        let ips: Vec<IpAddr> = self.directory.addresses_of(what).collect();
        let is_behind = |record: &EndpointRecord| record.ips.iter().any(|(ip, _)| ips.contains(ip));
        let behind = self.segments.iter().filter(|(_, _, record)| is_behind(record));
        let meant = self.endpoints_called(what).chain(behind);
        let meant = meant.map(|(host, id, _)| Found { host, endpoint: Some(id) });
        let meant = meant.chain(self.host_called(what).map(|host| Found { host, endpoint: None }));
        // What has one name on one host is one place.
        let places: BTreeMap<String, Found> = meant.map(|found| (self.place(found).to_string(), found)).collect();
        let mut places = places.into_iter();
        match (places.next(), places.next()) {
            (Some((_, found)), None) => Ok(found),
            (None, _) if !ips.is_empty() => {
                let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
                Err(CommandError::NoContainer(what.to_owned(), ips.join(", ")))
            }
            (None, _) => Err(CommandError::UnknownPlace(what.to_owned())),
            (Some((one, _)), Some((other, _))) => {
                Err(CommandError::AmbiguousPlace(what.to_owned(), format!("{one} and {other}")))
            }
        }
    }

    fn host_called(&self, what: &str) -> Option<HostLabel> {
        if what == self.directory.own_name() { Some(self.own) } else { self.directory.find(what).ok() }
    }

    /// Nicknames of the hosts that are linked with two others and relay nothing between them.
    fn stubs_between(&self, a: HostLabel, b: HostLabel) -> Vec<String> {
        let routing = &self.topology.routing;
        let stubs = routing.neighbours_of(a).filter(|host| routing.is_stub(*host) && routing.link(*host, b).is_some());
        stubs.map(|host| self.directory.unmistakable(host)).collect()
    }

    /// The hops from one host to another, as each host on the way chooses its next.
    fn hops(&self, from: HostLabel, to: HostLabel) -> Vec<HopStatus> {
        let (mut hops, mut at) = (Vec::new(), from);
        while at != to && hops.len() < MAX_HOPS {
            let next = match at == self.own {
                true => self.topology.next_hop(to).map(|(via, _)| via),
                false => self.topology.routing.next_of(at, to),
            };
            let Some(next) = next else { return Vec::new() };
            hops.push(match () {
                () if at == self.own => self.own_hop(next, next),
                () if next == self.own => HopStatus { remote: None, ..self.own_hop(at, next) },
                () => self.foreign_hop(at, next),
            });
            at = next;
        }
        if at == to { hops } else { Vec::new() }
    }

    /// The hop over the link with a peer, to that peer or to this host.
    fn own_hop(&self, peer: HostLabel, to: HostLabel) -> HopStatus {
        let link = self.topology.link(peer);
        let session = self.sessions.peer(peer).and_then(|peer| peer.current());
        HopStatus {
            peer: self.directory.name_of(to),
            peer_id: self.directory.id_of(to),
            transport: link.map(|link| link.path.transport.name()),
            remote: link.map(|link| link.path.remote),
            rtt_us: link.and_then(|link| link.rtt_us()),
            loss: link.map(|link| link.loss),
            mtu: link.map_or(0, |link| link.size.max_datagram.saturating_sub(OVERHEAD)),
            cipher: session.map(|session| session.suite.name()),
        }
    }

    /// A hop between other hosts, as they announce it.
    fn foreign_hop(&self, from: HostLabel, to: HostLabel) -> HopStatus {
        let mtu = self.topology.routing.link(from, to).map_or(0, |link| usize::from(link.max_datagram));
        HopStatus {
            peer: self.directory.name_of(to),
            peer_id: self.directory.id_of(to),
            transport: None,
            remote: None,
            rtt_us: None,
            loss: None,
            mtu: mtu.saturating_sub(OVERHEAD),
            cipher: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::node::{Command, Reply};
    use crate::testing::{NOW, command, endpoint, node};

    #[test]
    fn places_are_found_by_name_and_address_and_told_apart() {
        let mut node = node(1, &BTreeMap::new());
        for (last, name) in [(1, "web"), (2, "db"), (3, "db")] {
            let record = EndpointRecord { names: [name.to_owned()].into(), ..endpoint(last) };
            command(&mut node, Command::attach([last; 16], record)).unwrap();
        }
        command(&mut node, Command::AddName("shop".into(), vec![endpoint(1).ips[0].0])).unwrap();
        command(&mut node, Command::AddName("printer".into(), vec![[192, 0, 2, 9].into()])).unwrap();
        let why = |from: Option<&str>, to: &str| node.why(from, to, NOW);
        let web = why(None, "WEB").unwrap();
        assert_eq!((web.to.endpoint.as_deref(), web.from.endpoint, web.hops.len()), (Some("web"), None, 0));
        let second = endpoint(3).ips[0].0.to_string();
        assert_eq!(why(Some("web"), &second).unwrap().to.endpoint.as_deref(), Some("db"));
        assert_eq!(
            why(None, "db").unwrap().to.endpoint.as_deref(),
            Some("db"),
            "one name, and all that have it are on one host"
        );
        assert_eq!(why(None, "shop").unwrap().to.endpoint.as_deref(), Some("web"));
        assert!(matches!(why(None, "printer"), Err(CommandError::NoContainer(_, ip)) if ip == "192.0.2.9"));
        for unknown in ["nothing", "192.0.2.99"] {
            assert!(matches!(why(None, unknown), Err(CommandError::UnknownPlace(_))), "{unknown}");
        }
        let reply = command(&mut node, Command::Why { from: None, to: "web".into() });
        assert!(matches!(reply, Ok(Reply::Why(_))));
    }
}
