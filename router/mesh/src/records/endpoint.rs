//! A container's attachment to a segment.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::more_names::{MAX_MORE_NAMES_BYTES, MoreNames};
use super::{MAX_LIST, bytes_of, decode, is_endpoint_name, is_name};
use crate::datapath::frame::{GATEWAY_MAC, Mac};

pub(super) const TAG: u8 = 4;
/// Names of one endpoint: more than any Compose file gives, and a bound on what a member makes others hold.
pub const MAX_NAMES: usize = 256;
/// Bytes of all names of one endpoint.
pub const MAX_NAMES_BYTES: usize = 8192;
/// Names that an endpoint's record takes itself; further ones have records of their own ([`MoreNames`]).
pub const MAX_OWN_NAMES: usize = 16;
/// Bytes of the names in an endpoint's record.
pub const MAX_OWN_NAMES_BYTES: usize = 400;
/// Ports that an endpoint serves.
pub const MAX_SERVICES: usize = 16;

/// A container's attachment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// The segment's name.
    pub segment: Box<str>,
    /// Its MAC.
    pub mac: Mac,
    /// Its addresses with their prefix lengths.
    pub ips: Box<[(IpAddr, u8)]>,
    /// Names it is found by, its own first.
    pub names: Box<[String]>,
    /// How it is: names are answered by it.
    pub health: Health,
    /// What it serves.
    pub services: Box<[Service]>,
}

/// A container's state by its own health check. A name is answered with the healthiest holders there are; an unhealthy
/// container is answered to itself only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Its check failed, or it is paused.
    Unhealthy,
    /// It has a check that has not come to a result yet.
    Starting,
    /// Its check passed, or it has none.
    #[default]
    Healthy,
}

impl Health {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Health::Unhealthy => "unhealthy",
            Health::Starting => "starting",
            Health::Healthy => "healthy",
        }
    }
}

/// A port that an endpoint serves.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Service {
    /// What it is called: the port's number, unless a label names it.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The port.
    pub port: u16,
}

/// Reads a record; `None` if a member could not have made it by the rules.
pub(super) fn read(value: &[u8]) -> Option<EndpointRecord> {
    decode(value).filter(|record: &EndpointRecord| record.problem().is_none() && record.names.len() <= MAX_OWN_NAMES)
}

impl EndpointRecord {
    /// The record with as many names as it has room for, and records of the rest.
    pub fn split(&self) -> (EndpointRecord, Vec<MoreNames>) {
        let mut bytes = 0;
        let fits = |name: &&String| {
            bytes += name.len();
            bytes <= MAX_OWN_NAMES_BYTES
        };
        let own = self.names.iter().take(MAX_OWN_NAMES).take_while(fits).count();
        let (own, rest) = self.names.split_at(own);
        let mut more: Vec<Vec<String>> = Vec::new();
        for name in rest {
            match more.last_mut().filter(|part| bytes_of(part) + name.len() <= MAX_MORE_NAMES_BYTES) {
                Some(part) => part.push(name.clone()),
                None => more.push(vec![name.clone()]),
            }
        }
        let more = more.into_iter().map(|names| MoreNames { names: names.into() }).collect();
        (EndpointRecord { names: own.into(), ..self.clone() }, more)
    }

    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        let prefix_fits = |(ip, prefix): &(IpAddr, u8)| *prefix <= if ip.is_ipv4() { 32 } else { 128 };
        let usable = |(ip, _): &(IpAddr, u8)| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        if !is_name(&self.segment) {
            Some("a segment's name is 1 to 63 letters, digits, '-', '_' or '.'")
        } else if crate::datapath::frame::is_group(&self.mac) || self.mac == [0; 6] || self.mac == GATEWAY_MAC {
            Some("not the MAC of a single interface")
        } else if self.ips.len() > MAX_LIST || self.names.len() > MAX_NAMES || self.services.len() > MAX_SERVICES {
            Some("at most 8 addresses, 256 names and 16 ports")
        } else if bytes_of(&self.names) > MAX_NAMES_BYTES {
            Some("at most 8192 letters in all names")
        } else if !self.services.iter().all(|service| is_name(&service.name) && is_protocol(&service.protocol)) {
            Some("a port has a name and the protocol tcp or udp")
        } else if !self.ips.iter().all(prefix_fits) {
            Some("a prefix length is too large")
        } else if !self.ips.iter().all(usable) {
            Some("not an address for a single interface")
        } else if !self.names.iter().all(|name| is_endpoint_name(name)) {
            Some("a name is 1 to 63 letters, digits, '-', '_' or '.', or a domain name of 253")
        } else {
            None
        }
    }
}

fn is_protocol(text: &str) -> bool {
    matches!(text, "tcp" | "udp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::encode;

    #[test]
    fn an_endpoint_with_many_names_fits_its_records_and_keeps_them_all() {
        let long = |number: usize| format!("service-{number}.{}.example", "x".repeat(60));
        let names: Box<[String]> = (0..100).map(long).collect();
        let record = EndpointRecord {
            segment: "app".into(),
            mac: [2; 6],
            ips: [("fd00::1".parse().unwrap(), 64); MAX_LIST].into(),
            names: names.clone(),
            health: Health::Starting,
            services: [].into(),
        };
        assert_eq!(record.problem(), None);
        let (own, more) = record.split();
        assert!(encode(&own).len() <= 768 && more.iter().all(|part| part.is_valid() && encode(part).len() <= 768));
        let all: Vec<String> = own.names.iter().chain(more.iter().flat_map(|part| &part.names)).cloned().collect();
        assert_eq!(all[..], names[..]);
        let few = EndpointRecord { names: ["web".into()].into(), ..record };
        assert_eq!(few.split(), (few.clone(), Vec::new()));
    }
}
