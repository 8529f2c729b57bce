//! Addresses with prefix lengths.

use std::fmt::{Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address with its prefix length in bits: an interface's address with its network's length, or a network.
/// Written as `ADDR/LEN`; that is also its form in JSON and TOML.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix(pub IpAddr, pub u8);

impl Prefix {
    /// Returns the prefix that holds one address alone.
    pub fn alone(ip: IpAddr) -> Prefix {
        Prefix(ip, if ip.is_ipv4() { 32 } else { 128 })
    }

    /// Returns the prefix's network: the same length, and zeros behind it.
    pub fn network(self) -> Prefix {
        let Prefix(ip, length) = self;
        Prefix(weft_mesh::path::network(ip, length), length)
    }

    /// Returns whether two prefixes share addresses. Link-local ones share none: each link has its own.
    pub fn overlaps(self, other: Prefix) -> bool {
        let shorter = self.1.min(other.1);
        let network = |prefix: Prefix| Prefix(prefix.0, shorter).network();
        self.0.is_ipv4() == other.0.is_ipv4() && !is_link_local(&self.0) && network(self) == network(other)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (ip, length) = text.split_once('/').ok_or("it takes ADDR/LEN")?;
        let ip: IpAddr = ip.parse().map_err(|_| format!("{ip} is no address"))?;
        let length: u8 = length.parse().map_err(|_| format!("{length} is no prefix length"))?;
        if length > Prefix::alone(ip).1 {
            return Err(format!("/{length} is too long"));
        }
        Ok(Prefix(ip, length))
    }
}

impl Display for Prefix {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

impl From<(IpAddr, u8)> for Prefix {
    fn from((ip, length): (IpAddr, u8)) -> Prefix {
        Prefix(ip, length)
    }
}

impl From<Prefix> for (IpAddr, u8) {
    fn from(Prefix(ip, length): Prefix) -> (IpAddr, u8) {
        (ip, length)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.collect_str(self);
        }
        (self.0, self.1).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(D::Error::custom);
        }
        <(IpAddr, u8)>::deserialize(deserializer).map(Prefix::from)
    }
}

/// Whether an address means something on one link only.
pub fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether this kernel has IPv6.
pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_overlap_when_they_share_addresses() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        for (a, b, expected) in [
            ("10.32.0.0/12", "10.40.1.0/24", true),
            ("10.40.1.7/24", "10.40.1.0/30", true),
            ("10.32.0.0/12", "10.48.0.0/24", false),
            ("fd00::/64", "fd00::1/128", true),
            ("fd00::/64", "10.0.0.0/8", false),
            ("fe80::/64", "fe80::/10", false),
        ] {
            assert_eq!(prefix(a).overlaps(prefix(b)), expected, "{a} {b}");
            assert_eq!(prefix(b).overlaps(prefix(a)), expected);
        }
    }
}
