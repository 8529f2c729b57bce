//! IPv4 ranges and their windows.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The most addresses of one window; small ranges have smaller ones, so that there are enough to go round.
const MAX_WINDOW: u32 = 1024;
const MIN_WINDOW: u32 = 4;
const WINDOWS_WANTED: u32 = 64;
/// An IPv4 range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "UncheckedRange")]
pub struct Range {
    /// Its first address.
    pub base: Ipv4Addr,
    /// Its prefix length, 8 to 30.
    pub length: u8,
}

impl Range {
    /// A range; `None` if it has host bits set, or is too large or too small to hand out of.
    pub fn new(base: Ipv4Addr, length: u8) -> Option<Range> {
        let fits = (8..=30).contains(&length) && base.to_bits().trailing_zeros() >= 32 - u32::from(length);
        fits.then_some(Range { base, length })
    }

    /// Its number of addresses.
    pub fn size(&self) -> u32 {
        1 << (32 - self.length)
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits().wrapping_sub(self.base.to_bits()) < self.size()
    }

    /// The gateway: the first address that can be a host's.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + 1)
    }

    /// Returns whether an address is never handed out: network, broadcast and gateway.
    pub fn is_reserved(&self, address: Ipv4Addr) -> bool {
        let offset = address.to_bits() - self.base.to_bits();
        offset <= 1 || offset == self.size() - 1
    }

    /// Returns whether an address is in it and may be handed out.
    pub(super) fn hands_out(&self, address: Ipv4Addr) -> bool {
        self.contains(address) && !self.is_reserved(address)
    }

    /// Addresses of one window.
    pub fn window_size(&self) -> u32 {
        (self.size() / WINDOWS_WANTED).clamp(MIN_WINDOW, MAX_WINDOW)
    }

    /// How many windows there are.
    pub fn windows(&self) -> u32 {
        self.size() / self.window_size()
    }

    /// The window an address is in.
    pub fn window_of(&self, address: Ipv4Addr) -> u32 {
        (address.to_bits() - self.base.to_bits()) / self.window_size()
    }

    /// The addresses of a window, the reserved ones left out.
    pub fn addresses(&self, window: u32) -> impl Iterator<Item = Ipv4Addr> {
        let first = self.base.to_bits() + window * self.window_size();
        let range = *self;
        (first..=first + (self.window_size() - 1)).map(Ipv4Addr::from_bits).filter(move |a| !range.is_reserved(*a))
    }

    /// A window, as a range of its own.
    pub fn window(&self, window: u32) -> Range {
        let base = Ipv4Addr::from_bits(self.base.to_bits() + window * self.window_size());
        Range { base, length: (32 - self.window_size().trailing_zeros()) as u8 }
    }

    /// Whether two ranges share addresses.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// For keys: base and length.
    pub fn to_bytes(self) -> [u8; 5] {
        let [a, b, c, d] = self.base.octets();
        [a, b, c, d, self.length]
    }

    /// From [`Range::to_bytes`].
    pub fn from_bytes([a, b, c, d, length]: [u8; 5]) -> Option<Range> {
        Range::new(Ipv4Addr::new(a, b, c, d), length)
    }
}

/// A range as it is read.
#[derive(Deserialize)]
struct UncheckedRange {
    base: Ipv4Addr,
    length: u8,
}

impl TryFrom<UncheckedRange> for Range {
    type Error = &'static str;

    fn try_from(UncheckedRange { base, length }: UncheckedRange) -> Result<Range, Self::Error> {
        Range::new(base, length).ok_or("not a range of addresses")
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        let (base, length) = text.split_once('/').unwrap();
        Range::new(base.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    #[test]
    fn ranges_are_cut_into_windows_without_what_is_reserved() {
        for (text, size, count) in
            [("10.32.0.0/12", 1024, 1024), ("10.0.0.0/16", 1024, 64), ("10.0.0.0/24", 4, 64), ("10.0.0.0/30", 4, 1)]
        {
            let range = range(text);
            assert_eq!((range.window_size(), range.windows()), (size, count), "{text}");
            let all: usize = (0..range.windows()).map(|window| range.addresses(window).count()).sum();
            assert_eq!(all, range.size() as usize - 3, "{text}");
            assert!((0..range.windows()).all(|w| range.addresses(w).all(|a| range.window_of(a) == w)));
            assert_eq!(Range::from_bytes(range.to_bytes()), Some(range));
        }
        assert_eq!(Range::new(Ipv4Addr::new(10, 0, 0, 1), 24), None);
        assert_eq!(Range::new(Ipv4Addr::new(0, 0, 0, 0), 0), None);
    }
}
