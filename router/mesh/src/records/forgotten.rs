//! A host whose records were dropped because it was gone for longer than the grace.

use super::{MAX_INCARNATION, decode};

pub(super) const TAG: u8 = 5;

/// Reads the incarnation up to which the host's records are dropped.
pub(super) fn read(value: &[u8]) -> Option<u64> {
    decode(value).filter(|incarnation| *incarnation <= MAX_INCARNATION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::encode;

    #[test]
    fn an_incarnation_that_no_host_can_exceed_is_refused() {
        assert_eq!(read(&encode(&7u64)), Some(7));
        assert_eq!(read(&encode(&u64::MAX)), None);
    }
}
