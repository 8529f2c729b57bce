//! Addresses and prefixes of pools.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_mesh::ipam::ring::Range;

use crate::attach::prefix::Prefix;
use crate::daemon::state::random;
use crate::error::{Doing, Failure, Result};

/// An address, with a prefix length or without.
pub fn parse_address(text: &str) -> Result<IpAddr> {
    text.split('/').next().unwrap_or(text).parse().doing(|| format!("no address {text}"))
}

pub(super) fn parse_network(text: &str) -> Result<Prefix> {
    let cidr: Prefix = text.parse().map_err(|error| Failure::new(format!("no subnet {text}: {error}")))?;
    Ok(cidr.network())
}

/// The first address of a prefix that can be an interface's.
pub(super) fn first(Prefix(base, _): Prefix) -> IpAddr {
    match base {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits() | 1)),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() | 1)),
    }
}

pub(super) fn random_in(Prefix(base, length): Prefix) -> Result<IpAddr> {
    let IpAddr::V6(base) = base else { return Err(Failure::new("only IPv6 addresses are random")) };
    let bytes: [u8; 16] = random()?;
    let host = u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
    // Neither the network's own address nor its gateway's.
    let own = (u128::from_be_bytes(bytes) & host).max(2);
    Ok(IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() | own)))
}

/// The mesh's IPv6 prefix: unique-local (RFC 4193), the same on every host without agreement.
pub(super) fn derived_ula(range: Range, domain: &str) -> Ipv6Addr {
    let seed = [&range.to_bytes()[..], domain.as_bytes()].concat();
    let hash = weft_mesh::records::digest_of(&seed);
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..8].copy_from_slice(&hash[..7]);
    Ipv6Addr::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derived_prefix_is_unique_local_and_the_same_everywhere() {
        let range = |base: [u8; 4]| Range::new(Ipv4Addr::from(base), 12).unwrap();
        let a = derived_ula(range([10, 32, 0, 0]), "weft.internal");
        assert_eq!(a, derived_ula(range([10, 32, 0, 0]), "weft.internal"));
        assert_ne!(a, derived_ula(range([10, 48, 0, 0]), "weft.internal"));
        assert_ne!(a, derived_ula(range([10, 32, 0, 0]), "other.internal"));
        assert_eq!((a.octets()[0], &a.octets()[8..]), (0xfd, &[0; 8][..]));
    }

    #[test]
    fn random_addresses_stay_within_their_prefix() {
        let base: Ipv6Addr = "fd50:0:0:7::".parse().unwrap();
        for length in [48, 64, 112] {
            let ip = random_in(Prefix(IpAddr::V6(base), length)).unwrap();
            assert!(Prefix(ip, 128).overlaps(Prefix(IpAddr::V6(base), length)), "{ip}");
            assert_ne!(ip, first(Prefix(IpAddr::V6(base), length)));
        }
    }
}
