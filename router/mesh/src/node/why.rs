//! Why a path is as it is.

use weft_crypto::{HostLabel, Time};

use super::places::{Found, Places};
use super::{CommandError, Components};
use crate::explanation::{Explanation, HopStatus, LinkAccount};
use crate::records::LinkRecord;
use crate::wire::OVERHEAD;

/// The most hops that are told: a path is shorter, and records that change meanwhile may say otherwise.
const MAX_HOPS: usize = 32;
/// The most holders of a name that are told one by one.
const MAX_HOLDERS: usize = 50;

impl Components {
    /// Explains the path from one host, container, name or address to another; without `from`, from this host. Of several that have a name,
    /// the path leads to one with which it is answered, to the nearest.
    pub(super) fn explain_path(&self, from: Option<&str>, to: &str, now: Time) -> Result<Explanation, CommandError> {
        let places = Places(self);
        let here = Found { host: self.own, endpoint: None };
        let holders = places.holders(from, to);
        let from = from.map_or(Ok(here), |from| places.find(from))?;
        let to = places.nearest(&holders, to).map_or_else(|| places.find(to), Ok)?;
        let peer =
            [(&from, &to), (&to, &from)].into_iter().find(|(one, _)| one.host == self.own).map(|(_, other)| other);
        let link = peer.and_then(|peer| LinkAccount::of(&self.topology, peer.host, now));
        let is_one_host = from.host == to.host;
        let hops = self.hops(from.host, to.host);
        let has_path = is_one_host || !hops.is_empty();
        Ok(Explanation {
            is_one_host,
            stubs: if has_path { Vec::new() } else { self.stubs_between(from.host, to.host) },
            avoided: if from.host == self.own { places.avoided(to.host) } else { Vec::new() },
            hops,
            from: places.place(from),
            to: places.place(to),
            holders: holders.iter().take(MAX_HOLDERS).map(|holder| places.account(holder)).collect(),
            untold_holders: holders.len().saturating_sub(MAX_HOLDERS),
            link,
        })
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
            load: self.topology.routing.load_of(to),
            metered: self.topology.metered.has_link(&self.topology.routing, peer, link),
        }
    }

    /// A hop between other hosts, as they announce it.
    fn foreign_hop(&self, from: HostLabel, to: HostLabel) -> HopStatus {
        let ends = [self.topology.routing.link(from, to), self.topology.routing.link(to, from)];
        let mtu = ends[0].map_or(0, |link| usize::from(link.max_datagram));
        HopStatus {
            peer: self.directory.name_of(to),
            peer_id: self.directory.id_of(to),
            transport: None,
            remote: None,
            rtt_us: None,
            loss: None,
            mtu: mtu.saturating_sub(OVERHEAD),
            cipher: None,
            load: self.topology.routing.load_of(to),
            metered: ends.into_iter().flatten().any(LinkRecord::is_metered),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::node::{Command, Reply};
    use crate::records::EndpointRecord;
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
