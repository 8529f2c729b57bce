//! How far a host's copy of the ring of an address range has come.

use super::decode;
use crate::ipam::Announcement;

pub(super) const TAG: u8 = 6;

/// Reads an announcement; the address state machine judges it.
pub(super) fn read(value: &[u8]) -> Option<Announcement> {
    decode(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_announcement_are_refused() {
        assert_eq!(read(&[]), None);
    }
}
