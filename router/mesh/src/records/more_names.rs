//! Further names of an endpoint, beside those in its record.

use serde::{Deserialize, Serialize};

use super::{bytes_of, decode, is_endpoint_name};

pub(super) const TAG: u8 = 10;
/// Bytes of names in one record of further names.
pub(super) const MAX_MORE_NAMES_BYTES: usize = 600;

/// Names of an endpoint beside those in its record, which has room for few.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MoreNames {
    /// The names.
    pub names: Box<[String]>,
}

impl MoreNames {
    /// Whether it may be believed.
    pub fn is_valid(&self) -> bool {
        bytes_of(&self.names) <= MAX_MORE_NAMES_BYTES && self.names.iter().all(|name| is_endpoint_name(name))
    }
}

/// Reads a record; `None` if it is over its limit or holds something that is not a name.
pub(super) fn read(value: &[u8]) -> Option<MoreNames> {
    decode(value).filter(MoreNames::is_valid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::encode;

    #[test]
    fn names_over_the_limit_or_that_are_none_are_refused() {
        let more = |name: &str, count: usize| MoreNames { names: vec![name.to_owned(); count].into() };
        assert!(read(&encode(&more("web", 10))).is_some());
        assert_eq!(read(&encode(&more("two words", 1))), None);
        assert_eq!(read(&encode(&more(&"x".repeat(60), 11))), None);
    }
}
