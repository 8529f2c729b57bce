//! A host's presence in a segment.

use serde::{Deserialize, Serialize};

use super::decode;
use crate::wire::SegmentId;

pub(super) const TAG: u8 = 3;

/// A segment that containers of the origin are in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// The segment's name.
    pub name: String,
    /// The largest packet that containers of the origin can receive there, in bytes. The smallest of all hosts in a segment is
    /// the segment's.
    pub mtu: u16,
}

/// Reads a record; `None` if its name does not lead to the id it is filed under.
pub(super) fn read(id: SegmentId, value: &[u8]) -> Option<SegmentRecord> {
    decode(value).filter(|record: &SegmentRecord| SegmentId::of(&record.name) == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::encode;

    #[test]
    fn a_segment_is_filed_under_the_id_of_its_name() {
        let value = encode(&SegmentRecord { name: "app".into(), mtu: 1450 });
        assert!(read(SegmentId::of("app"), &value).is_some());
        assert_eq!(read(SegmentId::of("db"), &value), None);
    }
}
