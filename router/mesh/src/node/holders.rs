//! Who has a name or an address, and who answers to it.

use std::net::IpAddr;

use weft_crypto::HostLabel;

use super::Components;
use super::why::Found;
use crate::explanation::{HolderAccount, Right, Standing};
use crate::records::{EndpointId, EndpointRecord, Health};

/// An endpoint with its host.
type Held<'a> = (HostLabel, EndpointId, &'a EndpointRecord);

impl Components {
    /// What has a name or an address, as `asker` has it answered (this host's operator, if none): what is answered first, and what is near.
    pub(super) fn holders(&self, asker: Option<&str>, what: &str) -> Vec<(Found, HolderAccount)> {
        let askers: Vec<Held> = asker.into_iter().flat_map(|asker| self.endpoints_called(asker)).collect();
        let is_heard = |record: &EndpointRecord| {
            askers.is_empty() || askers.iter().any(|(_, _, asker)| asker.segment == record.segment)
        };
        let all: Vec<Held> = self.endpoints_called(what).collect();
        let heard = all.iter().filter(|(host, _, record)| is_heard(record) && self.is_reached(*host));
        let best = heard.map(|(_, _, record)| record.health).max().unwrap_or_default().max(Health::Starting);
        let standing = |(host, id, record): &Held| match () {
            () if !is_heard(record) => Standing::OtherNetwork,
            () if !self.is_reached(*host) => Standing::Unreachable,
            // Whatever it is like, an endpoint finds itself.
            () if record.health == best || askers.iter().any(|asker| (asker.0, asker.1) == (*host, *id)) => {
                Standing::Answered
            }
            () => Standing::Ill,
        };
        let right = what.parse().ok().map(|ip| self.right_to(ip));
        let endpoints = all.iter().map(|held| {
            let (host, id, record) = *held;
            let found = Found { host, endpoint: Some(id) };
            let (segment, ips) = (Some(record.segment.to_string()), record.ips.iter().map(|(ip, _)| *ip).collect());
            (
                found,
                HolderAccount {
                    place: self.place(found),
                    segment,
                    ips,
                    standing: standing(held),
                    right: right.clone(),
                },
            )
        });
        let added = self.directory.added(what).map(|(host, ips)| {
            let found = Found { host, endpoint: None };
            let standing = if self.is_reached(host) { Standing::Answered } else { Standing::Unreachable };
            (found, HolderAccount { place: self.place(found), segment: None, ips: ips.to_vec(), standing, right: None })
        });
        let mut holders: Vec<_> = endpoints.chain(added).collect();
        holders.sort_by_key(|(found, account)| (account.standing, self.distance(found.host), *found));
        holders
    }

    /// Endpoints with an address, or with a name, written `name` or `name.network`.
    pub(super) fn endpoints_called<'a>(&'a self, what: &'a str) -> impl Iterator<Item = Held<'a>> {
        let ip: Option<IpAddr> = what.parse().ok();
        let is_of_network = |name: &str, network: &str| {
            let own = what.get(..name.len()).filter(|own| own.eq_ignore_ascii_case(name));
            let rest = own.and_then(|own| what[own.len()..].strip_prefix('.'));
            rest.is_some_and(|rest| rest.eq_ignore_ascii_case(network))
        };
        let is_called = move |record: &EndpointRecord| {
            record.ips.iter().any(|(own, _)| Some(*own) == ip)
                || record
                    .names
                    .iter()
                    .any(|name| name.eq_ignore_ascii_case(what) || is_of_network(name, &record.segment))
        };
        self.segments.iter().filter(move |(_, _, record)| is_called(record))
    }

    /// By which right an address is held.
    fn right_to(&self, ip: IpAddr) -> Right {
        let IpAddr::V4(ip) = ip else { return Right::ByHand };
        self.addresses.window_of(ip).map_or(Right::ByHand, |(range, host)| Right::Window {
            range: range.to_string(),
            host: host.map(|host| self.directory.unmistakable(host)),
        })
    }

    fn is_reached(&self, host: HostLabel) -> bool {
        host == self.own || self.topology.routing.has_route(host)
    }

    fn distance(&self, host: HostLabel) -> u32 {
        if host == self.own { 0 } else { self.topology.routing.route(host).map_or(u32::MAX, |route| route.cost) }
    }
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
