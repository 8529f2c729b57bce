//! Lines that are paid for by the byte: which paths of this host lead over one, by its interfaces and the routes of the main table.
//!
//! Rules that choose a table by other things than the destination are not looked at, but an address on such an interface is
//! taken to send by it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use weft_mesh::path::MeteredPaths;

use crate::attach::netlink::{Interface, Route};
use crate::attach::prefix::{Prefix, is_link_local};

/// The longest name of an interface, in bytes (`IFNAMSIZ`, without the zero behind it).
const MAX_INTERFACE: usize = 15;

/// A line that is paid for by the byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MeteredLink {
    /// What leaves by an interface, which need not be there yet.
    Interface(String),
    /// What goes to a network.
    Network(Prefix),
}

impl FromStr for MeteredLink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return match text.parse::<Prefix>() {
                Ok(Prefix(ip, _)) if ip.to_canonical() != ip => {
                    Err(format!("'{text}' stands for an IPv4 network: it takes that"))
                }
                Ok(prefix) if prefix.network() == prefix => Ok(MeteredLink::Network(prefix)),
                Ok(prefix) => Err(format!("'{text}' is no network: it takes {}, or an interface", prefix.network())),
                Err(error) => Err(format!("'{text}' is no network: {error}")),
            };
        }
        let is_name = (1..=MAX_INTERFACE).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, ':' | ','));
        if is_name && text != "." && text != ".." {
            Ok(MeteredLink::Interface(text.to_owned()))
        } else {
            Err(format!("'{text}' is no interface and no network: it takes the name of one, or ADDR/LEN"))
        }
    }
}

/// Returns the interfaces among the `lines` that are not there.
pub fn missing(lines: &[MeteredLink], links: &[Interface]) -> Vec<String> {
    let is_missing = |line: &MeteredLink| match line {
        MeteredLink::Interface(name) if links.iter().all(|link| link.name != *name) => Some(name.clone()),
        MeteredLink::Interface(_) | MeteredLink::Network(_) => None,
    };
    lines.iter().filter_map(is_missing).collect()
}

/// Returns which paths lead over any of the `lines`, in as few networks as say it.
pub fn paths(
    lines: &[MeteredLink],
    links: &[Interface],
    addresses: &[(u32, Prefix)],
    routes: &[Route],
) -> MeteredPaths {
    let is_named =
        |link: &&Interface| lines.iter().any(|line| matches!(line, MeteredLink::Interface(name) if *name == link.name));
    let metered: Vec<u32> = links.iter().filter(is_named).map(|link| link.index).collect();
    let networks: Vec<Prefix> = lines
        .iter()
        .filter_map(|line| match line {
            MeteredLink::Network(network) => Some(*network),
            MeteredLink::Interface(_) => None,
        })
        .collect();
    // Of several routes to one network the one with the least metric is used.
    let mut by_network: BTreeMap<Prefix, (u32, bool)> = BTreeMap::new();
    let within = |inner: Prefix, outer: Prefix| inner.1 >= outer.1 && inner.overlaps(outer);
    let is_named = |to: Prefix| networks.iter().any(|network| within(to, *network));
    let leading =
        routes.iter().filter(|route| !metered.is_empty() && !is_link_local(&route.to.0) && !is_named(route.to));
    for route in leading {
        let is_metered = route.interfaces.iter().any(|index| metered.contains(index));
        let best = by_network.entry(route.to).or_insert((route.metric, is_metered));
        *best = match route.metric.cmp(&best.0) {
            Ordering::Less => (route.metric, is_metered),
            Ordering::Equal => (route.metric, is_metered || best.1),
            Ordering::Greater => *best,
        };
    }
    by_network.extend(networks.iter().map(|network| (*network, (0, true))));
    let locals = addresses.iter().filter(|(index, _)| metered.contains(index)).map(|(_, Prefix(ip, _))| *ip);
    MeteredPaths::new(telling(&by_network), locals)
}

/// The networks that say something else than those around them.
fn telling(networks: &BTreeMap<Prefix, (u32, bool)>) -> Vec<(IpAddr, u8, bool)> {
    let mut telling = Vec::new();
    // Prefixes are in the order of their bases, and shorter ones first: those around one are on the stack.
    let mut around: Vec<(Prefix, bool)> = Vec::new();
    for (network, (_, is_metered)) in networks {
        while around.pop_if(|(outer, _)| !outer.overlaps(*network)).is_some() {}
        if around.last().is_some_and(|(_, outer)| outer == is_metered) || (around.is_empty() && !is_metered) {
            continue;
        }
        around.push((*network, *is_metered));
        telling.push((network.0, network.1, *is_metered));
    }
    telling
}

#[cfg(test)]
mod tests {
    use weft_mesh::path::Path;

    use super::*;

    fn line(text: &str) -> MeteredLink {
        text.parse().unwrap()
    }

    fn link(index: u32, name: &str) -> Interface {
        Interface { index, name: name.into(), is_up: true, ..Interface::default() }
    }

    fn route(to: &str, interface: u32, metric: u32) -> Route {
        Route { to: to.parse().unwrap(), interfaces: vec![interface], has_gateway: false, gateway: None, metric }
    }

    fn networks(paths: &MeteredPaths) -> String {
        let each = paths.networks().map(|(base, length, is)| format!("{}{base}/{length}", if is { "" } else { "!" }));
        each.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn paths_follow_the_routes_by_an_interface_and_the_networks_named() {
        let links = [link(1, "eth0"), link(2, "wwan0")];
        let addresses = [(1, "10.0.0.5/24".parse().unwrap()), (2, "100.64.0.5/30".parse().unwrap())];
        let lan = route("10.0.0.0/24", 1, 100);
        let mobile = route("100.64.0.4/30", 2, 700);
        let wwan = [line("wwan0")];
        let found = |lines: &[MeteredLink], routes: &[Route]| paths(lines, &links, &addresses, routes);
        // The wire has the default route, as long as it is there.
        let both = [route("0.0.0.0/0", 1, 100), route("0.0.0.0/0", 2, 700), lan.clone(), mobile.clone()];
        assert_eq!(networks(&found(&wwan, &both)), "100.64.0.4/30");
        let from = |local: &str| Path { local: local.parse().ok(), ..Path::udp(([10, 0, 0, 9], 6783).into()) };
        let all = found(&wwan, &both);
        assert!(all.contains(&from("100.64.0.5")) && !all.contains(&from("10.0.0.5")));
        assert_eq!(networks(&found(&wwan, &[both[1].clone(), lan.clone(), mobile.clone()])), "0.0.0.0/0 !10.0.0.0/24");
        assert_eq!(networks(&found(&wwan, std::slice::from_ref(&lan))), "");
        let spread = [route("0.0.0.0/0", 1, 100), route("0.0.0.0/0", 2, 100)];
        assert_eq!(networks(&found(&wwan, &spread)), "0.0.0.0/0", "either may be taken");
        let site = [line("10.2.0.0/16"), line("wwan0")];
        let to_site = [route("10.2.7.0/24", 1, 0), lan.clone(), mobile];
        assert_eq!(networks(&found(&site, &to_site)), "10.2.0.0/16 100.64.0.4/30", "the operator knows better");
        assert!(!found(&site[..1], &to_site).contains(&from("100.64.0.5")));
        assert_eq!(found(&[line("wwan7")], &both), MeteredPaths::default(), "it is not there");
        assert_eq!(missing(&[line("wwan7"), line("wwan0"), line("10.2.0.0/16")], &links), ["wwan7"]);
        assert_eq!(found(&[], &both), MeteredPaths::default());
    }

    #[test]
    fn a_line_is_an_interface_or_a_network() {
        assert_eq!(line("wwan0.7"), MeteredLink::Interface("wwan0.7".into()));
        assert_eq!(line("2001:db8::/32"), MeteredLink::Network("2001:db8::/32".parse().unwrap()));
        for (bad, remedy) in [
            ("10.2.0.1/16", "10.2.0.0/16"),
            ("", "ADDR/LEN"),
            ("a b", "ADDR/LEN"),
            ("10.2.0.0/33", "too long"),
            ("::ffff:10.2.0.0/112", "IPv4"),
            ("wwan-with-a-name", "ADDR/LEN"),
        ] {
            assert!(bad.parse::<MeteredLink>().is_err_and(|error| error.contains(remedy)), "{bad}");
        }
    }
}
