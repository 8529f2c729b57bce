//! Addresses with prefix lengths.

use std::net::IpAddr;

/// An address with its prefix length.
pub type Prefix = (IpAddr, u8);

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

/// The prefix that is one address.
pub fn alone(ip: IpAddr) -> Prefix {
    (ip, if ip.is_ipv4() { 32 } else { 128 })
}

/// Whether two prefixes share addresses.
pub fn overlaps((a, a_length): Prefix, (b, b_length): Prefix) -> bool {
    let shorter = a_length.min(b_length);
    a.is_ipv4() == b.is_ipv4() && !is_link_local(&a) && network((a, shorter)) == network((b, shorter))
}

/// The first address of a prefix.
pub fn network((ip, length): Prefix) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::from((u32::from(ip) & mask).to_be_bytes())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::from((u128::from(ip) & mask).to_be_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_overlap_when_they_share_addresses() {
        let prefix = |text: &str| {
            let (ip, length) = text.split_once('/').unwrap();
            (ip.parse().unwrap(), length.parse().unwrap())
        };
        for (a, b, expected) in [
            ("10.32.0.0/12", "10.40.1.0/24", true),
            ("10.40.1.7/24", "10.40.1.0/30", true),
            ("10.32.0.0/12", "10.48.0.0/24", false),
            ("fd00::/64", "fd00::1/128", true),
            ("fd00::/64", "10.0.0.0/8", false),
            ("fe80::/64", "fe80::/10", false),
        ] {
            assert_eq!(overlaps(prefix(a), prefix(b)), expected, "{a} {b}");
            assert_eq!(overlaps(prefix(b), prefix(a)), expected);
        }
    }
}
