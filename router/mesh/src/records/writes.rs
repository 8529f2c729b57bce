//! Changes that a command makes to this host's records and stored keys: done together or not at all.

use serde::Serialize;

use super::{Key, encode};
use crate::stored::Stored;

/// Records to put or delete, and keys to store or drop with them.
#[derive(Default, Debug)]
pub(crate) struct Writes {
    pub(crate) records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub(crate) stored: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Writes {
    pub(crate) fn put<T: Serialize>(&mut self, key: Key, record: &T) {
        self.put_bytes(key, encode(record));
    }

    pub(crate) fn put_bytes(&mut self, key: Key, value: Vec<u8>) {
        self.records.push((key.encode(), Some(value)));
    }

    pub(crate) fn delete(&mut self, key: Key) {
        self.records.push((key.encode(), None));
    }

    pub(crate) fn store<T: Serialize>(&mut self, key: &Stored, value: &T) {
        self.stored.push((key.encode(), Some(encode(value))));
    }

    pub(crate) fn drop_stored(&mut self, key: &Stored) {
        self.stored.push((key.encode(), None));
    }

    pub(crate) fn append(&mut self, mut other: Writes) {
        self.records.append(&mut other.records);
        self.stored.append(&mut other.stored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_keep_their_order() {
        let mut writes = Writes::default();
        writes.put(Key::Removed([1; 16]), &7u8);
        writes.store(&Stored::Removed([1; 16]), &1u64);
        let mut more = Writes::default();
        more.delete(Key::Removed([1; 16]));
        more.drop_stored(&Stored::Removed([1; 16]));
        writes.append(more);
        assert_eq!(writes.records.iter().map(|(_, value)| value.is_some()).collect::<Vec<_>>(), [true, false]);
        assert_eq!(writes.stored.iter().map(|(_, value)| value.is_some()).collect::<Vec<_>>(), [true, false]);
    }
}
