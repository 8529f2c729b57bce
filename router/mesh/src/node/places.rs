//! What people call hosts and containers, who has a name or an address, and who answers to it.

use std::net::IpAddr;

use weft_crypto::HostLabel;

use super::{CommandError, Components};
use crate::explanation::{HolderAccount, Place, Right, Standing};
use crate::records::{EndpointId, EndpointRecord, Health};

/// A host, or an endpoint on one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) host: HostLabel,
    pub(super) endpoint: Option<EndpointId>,
}

/// What has a name or address: an endpoint, or a host on which the name was added.
pub(super) struct Holder<'a> {
    found: Found,
    standing: Standing,
    /// The address that was asked for.
    asked: Option<IpAddr>,
    /// What an added name stands for.
    added: &'a [IpAddr],
}

/// An endpoint with its host.
type Held<'a> = (HostLabel, EndpointId, &'a EndpointRecord);

/// The places that a node knows.
pub(super) struct Places<'a>(pub(super) &'a Components);

impl<'a> Places<'a> {
    pub(super) fn place(&self, Found { host, endpoint }: Found) -> Place {
        let record = endpoint.and_then(|id| self.0.segments.get(host, &id));
        let directory = &self.0.directory;
        Place {
            host: directory.unmistakable(host),
            peer_id: directory.id_of(host),
            endpoint: record.map(own_name),
            health: record.map(|record| record.health),
            is_here: host == self.0.own,
        }
    }

    /// Nicknames of the neighbours that this host avoids on its way to another.
    pub(super) fn avoided(&self, to: HostLabel) -> Vec<String> {
        self.0.topology.routing.avoided(to).map(|host| self.0.directory.unmistakable(host)).collect()
    }

    /// Finds the one place of a name: a container's address or name, or a host's nickname or key.
    pub(super) fn find(&self, what: &str) -> Result<Found, CommandError> {
        let ips: Vec<IpAddr> = self.0.directory.addresses_of(what).collect();
        let is_behind = |record: &EndpointRecord| record.ips.iter().any(|(ip, _)| ips.contains(ip));
        let behind = self.0.segments.iter().filter(|(_, _, record)| is_behind(record));
        let endpoints = self.called(what).into_iter().chain(behind);
        let endpoints = endpoints.map(|(host, id, record)| (Found { host, endpoint: Some(id) }, own_name(record)));
        let host = self.host_called(what).map(|host| (Found { host, endpoint: None }, String::new()));
        let mut meant = endpoints.chain(host);
        let Some((found, name)) = meant.next() else {
            return Err(match ips.is_empty() {
                true => CommandError::UnknownPlace(what.to_owned()),
                false => {
                    let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
                    CommandError::NoContainer(what.to_owned(), ips.join(", "))
                }
            });
        };
        // What has one name on one host is one place.
        let is_same = |other: &Found, its: &str| {
            (other.host, other.endpoint.is_some(), its) == (found.host, found.endpoint.is_some(), &name)
        };
        match meant.find(|(other, its)| !is_same(other, its)) {
            None => Ok(found),
            Some((other, _)) => {
                let places = [found, other].map(|found| self.place(found).to_string());
                Err(CommandError::AmbiguousPlace(what.to_owned(), places.join(" and ")))
            }
        }
    }

    /// What has a name or an address, as `asker` has it answered (this host's operator, if none): what is answered first, and what is near.
    pub(super) fn holders(&self, asker: Option<&str>, what: &str) -> Vec<Holder<'a>> {
        let askers: Vec<Held> = asker.into_iter().flat_map(|asker| self.called(asker)).collect();
        let is_heard = |record: &EndpointRecord| {
            askers.is_empty() || askers.iter().any(|(_, _, asker)| asker.segment == record.segment)
        };
        let added: Vec<_> = self.0.directory.added(what).collect();
        let mut all = self.called_whole(what);
        // As DNS has it: `name.network` is looked for only if nothing that the asker may hear of has the whole name.
        if added.is_empty() && !all.iter().any(|(_, _, record)| is_heard(record)) {
            all.extend(self.called_in_network(what));
        }
        let heard = all.iter().filter(|(host, _, record)| is_heard(record) && self.is_reached(*host));
        let healths = heard.map(|(_, _, record)| record.health);
        let names = added.iter().filter(|(host, _)| self.is_reached(*host)).map(|_| Health::Healthy);
        let best = healths.chain(names).max().unwrap_or_default().max(Health::Starting);
        let standing = |(host, id, record): &Held| match () {
            () if !is_heard(record) => Standing::OtherNetwork,
            () if !self.is_reached(*host) => Standing::Unreachable,
            // Whatever it is like, an endpoint finds itself.
            () if record.health == best || askers.iter().any(|asker| (asker.0, asker.1) == (*host, *id)) => {
                Standing::Answered
            }
            () => Standing::Ill,
        };
        let asked = what.parse().ok();
        let endpoints = all.iter().map(|held| {
            let found = Found { host: held.0, endpoint: Some(held.1) };
            Holder { found, standing: standing(held), asked, added: &[] }
        });
        let added = added.iter().map(|(host, ips)| {
            let standing = if self.is_reached(*host) { Standing::Answered } else { Standing::Unreachable };
            Holder { found: Found { host: *host, endpoint: None }, standing, asked: None, added: ips }
        });
        let mut holders: Vec<Holder> = endpoints.chain(added).collect();
        holders.sort_by_key(|holder| (holder.standing, self.distance(holder.found.host), holder.found));
        holders
    }

    /// The first endpoint of holders, unless a host is called the same.
    pub(super) fn nearest(&self, holders: &[Holder], what: &str) -> Option<Found> {
        let nearest = holders.iter().map(|holder| holder.found).find(|found| found.endpoint.is_some());
        nearest.filter(|_| self.host_called(what).is_none())
    }

    /// What is told of a holder.
    pub(super) fn account(&self, Holder { found, standing, asked, added }: &Holder) -> HolderAccount {
        let record = found.endpoint.and_then(|id| self.0.segments.get(found.host, &id));
        let ips = record.into_iter().flat_map(|record| record.ips.iter().map(|(ip, _)| ip));
        HolderAccount {
            place: self.place(*found),
            segment: record.map(|record| record.segment.to_string()),
            ips: ips.chain(*added).copied().collect(),
            standing: *standing,
            right: asked.map(|ip| self.right_to(ip, found.host)),
        }
    }

    fn host_called(&self, what: &str) -> Option<HostLabel> {
        let directory = &self.0.directory;
        let is_own = what == directory.own_name() || (!what.is_empty() && directory.id_of(self.0.own) == what);
        if is_own { Some(self.0.own) } else { directory.find(what).ok() }
    }

    /// Endpoints with an address, with a name, or with one written `name.network` if nothing has the whole of it.
    fn called(&self, what: &str) -> Vec<Held<'a>> {
        let whole = self.called_whole(what);
        if whole.is_empty() { self.called_in_network(what) } else { whole }
    }

    fn called_whole(&self, what: &str) -> Vec<Held<'a>> {
        let ip: Option<IpAddr> = what.parse().ok();
        let is_called = |record: &EndpointRecord| {
            record.ips.iter().any(|(own, _)| Some(*own) == ip)
                || record.names.iter().any(|name| name.eq_ignore_ascii_case(what))
        };
        self.0.segments.iter().filter(|(_, _, record)| is_called(record)).collect()
    }

    fn called_in_network(&self, what: &str) -> Vec<Held<'a>> {
        let is_called = |name: &str, network: &str| {
            let own = what.get(..name.len()).filter(|own| own.eq_ignore_ascii_case(name));
            let rest = own.and_then(|own| what[own.len()..].strip_prefix('.'));
            rest.is_some_and(|rest| rest.eq_ignore_ascii_case(network))
        };
        let has_name = |record: &EndpointRecord| record.names.iter().any(|name| is_called(name, &record.segment));
        self.0.segments.iter().filter(|(_, _, record)| has_name(record)).collect()
    }

    /// By which right a host's container has an address.
    fn right_to(&self, ip: IpAddr, holder: HostLabel) -> Right {
        let IpAddr::V4(ip) = ip else { return Right::ByHand };
        self.0.addresses.right_to(ip, holder).map_or(Right::ByHand, |(range, host)| Right::Window {
            range: range.to_string(),
            host: host.map(|host| self.0.directory.unmistakable(host)),
        })
    }

    fn is_reached(&self, host: HostLabel) -> bool {
        host == self.0.own || self.0.topology.routing.has_route(host)
    }

    fn distance(&self, host: HostLabel) -> u32 {
        if host == self.0.own { 0 } else { self.0.topology.routing.route(host).map_or(u32::MAX, |route| route.cost) }
    }
}

/// What an endpoint is called: its first name, or its first address.
fn own_name(record: &EndpointRecord) -> String {
    let address = || record.ips.first().map(|(ip, _)| ip.to_string()).unwrap_or_default();
    record.names.first().cloned().unwrap_or_else(address)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::node::{Command, Node};
    use crate::records::Key;
    use crate::testing::{NOW, command, endpoint, hear, node};

    #[test]
    fn each_holder_of_a_name_is_told_with_why_it_is_not_answered() {
        let mut node = node(1, &BTreeMap::new());
        let named = |last, segment: &str, health| EndpointRecord {
            names: ["web".to_owned()].into(),
            segment: segment.into(),
            health,
            ..endpoint(last)
        };
        let records = [
            named(1, "app", Health::Healthy),
            named(2, "app", Health::Unhealthy),
            named(3, "shop", Health::Healthy),
            EndpointRecord { names: ["asker".to_owned()].into(), ..named(4, "app", Health::Healthy) },
        ];
        for (number, record) in records.iter().enumerate() {
            command(&mut node, Command::attach([number as u8; 16], record.clone())).unwrap();
        }
        let away = crate::codec::encode(&named(5, "app", Health::Healthy));
        hear(&mut node, 2, 1, &[(Key::Endpoint([9; 16]), away)]);
        let standings = |node: &Node, from: Option<&str>, what: &str| -> Vec<(u8, Standing)> {
            let last = |account: &HolderAccount| match account.ips[0] {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => 0,
            };
            let holders = node.why(from, what, NOW).unwrap().holders;
            holders.iter().map(|account| (last(account), account.standing)).collect()
        };
        let others = [(2, Standing::Ill), (5, Standing::Unreachable)];
        assert_eq!(standings(&node, Some("asker"), "web")[0], (1, Standing::Answered));
        assert_eq!(standings(&node, Some("asker"), "web")[1..3], others);
        assert_eq!(standings(&node, Some("asker"), "web")[3], (3, Standing::OtherNetwork));
        assert_eq!(
            standings(&node, None, "WEB").iter().filter(|(_, standing)| *standing == Standing::Answered).count(),
            2
        );
        assert_eq!(standings(&node, None, "web.shop"), [(3, Standing::Answered)]);
        let second = endpoint(2).ips[0].0.to_string();
        assert_eq!(standings(&node, Some(&second), &second), [(2, Standing::Answered)], "it finds itself");
        assert_eq!(node.why(None, "10.32.0.1", NOW).unwrap().holders[0].right, Some(Right::ByHand), "no ring is known");
        command(&mut node, Command::AddName("web".into(), vec![[192, 0, 2, 7].into()])).unwrap();
        assert!(standings(&node, None, "web").contains(&(7, Standing::Answered)));
    }
}
