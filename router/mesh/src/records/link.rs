//! A link, as its origin sees it.

use serde::{Deserialize, Serialize};

use super::decode;
use crate::wire::MIN_DATAGRAM;

pub(super) const TAG: u8 = 2;
/// Links of one host that others take note of.
pub const MAX_LINKS: usize = 1024;

/// What a link over a line that is paid for by the byte costs in addition: more than any path without such.
pub const METERED_COST: u32 = 100_000_000;

/// Cost and size of a link, measured at the origin's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkRecord {
    /// Cost in units of 100 µs of round trip, the fixed cost of a hop included, and [`METERED_COST`] if it is metered.
    pub cost: u32,
    /// The largest datagram (UDP payload) the link takes, in bytes.
    pub max_datagram: u16,
}

impl LinkRecord {
    /// Of a link that both ends do without: it carries nothing, and is not lost.
    pub const LET_GO: LinkRecord = LinkRecord { cost: u32::MAX, max_datagram: u16::MAX };

    /// Returns whether the link is paid for by the byte.
    pub fn is_metered(self) -> bool {
        self.cost >= METERED_COST
    }
}

/// Reads a record; `None` for a link that cannot carry frames.
pub(super) fn read(value: &[u8]) -> Option<LinkRecord> {
    decode(value).filter(|link: &LinkRecord| link.cost > 0 && usize::from(link.max_datagram) >= MIN_DATAGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::encode;

    #[test]
    fn a_link_without_cost_or_below_the_smallest_datagram_is_refused() {
        for (cost, max_datagram, is_usable) in [(1, 1472, true), (0, 1472, false), (5, 1231, false), (5, 1232, true)] {
            let link = LinkRecord { cost, max_datagram };
            assert_eq!(read(&encode(&link)), is_usable.then_some(link), "{link:?}");
        }
    }
}
