//! The storage schema of the shell: every key beside the node's ([`weft_mesh::stored`]).
//!
//! Adding a key needs no new schema number ([`super::state`]), changing one or its value does.

use weft_mesh::records::EndpointId;

/// A key of the store, and in its description its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreKey {
    /// `u32` (LE): the number of the schema that all keys and values follow.
    Schema,
    /// The machine's boot id when a router last started here.
    Boot,
    /// 32 random bytes that each start of a router writes anew.
    Life,
    /// The range of addresses that this host was first started with, as text.
    Range,
    /// An [`crate::attach::attachment::Attachment`] in JSON.
    Attachment(EndpointId),
    /// An entry of a table in JSON, by its name.
    Entry(TableName, String),
}

/// A table of the Docker driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableName {
    /// The engine's networks, by their ids.
    Networks,
    /// The engine's endpoints, by their ids.
    Endpoints,
    /// Subnets of networks, by their pools' ids.
    Pools,
    /// The engine's id, by an empty name.
    Engine,
}

const SCHEMA: &[u8] = b"schema";
const BOOT: &[u8] = b"boot";
const LIFE: &[u8] = b"life";
const RANGE: &[u8] = b"range";
const ATTACHMENT: &[u8] = b"attachment/";

impl StoreKey {
    /// Returns the key's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            StoreKey::Schema => SCHEMA.to_vec(),
            StoreKey::Boot => BOOT.to_vec(),
            StoreKey::Life => LIFE.to_vec(),
            StoreKey::Range => RANGE.to_vec(),
            StoreKey::Attachment(id) => [ATTACHMENT, id].concat(),
            StoreKey::Entry(table, name) => [table.prefix(), name.as_bytes()].concat(),
        }
    }

    /// Reads a key; `None` for one of the node's.
    pub fn parse(bytes: &[u8]) -> Option<StoreKey> {
        match bytes {
            SCHEMA => return Some(StoreKey::Schema),
            BOOT => return Some(StoreKey::Boot),
            LIFE => return Some(StoreKey::Life),
            RANGE => return Some(StoreKey::Range),
            _ => {}
        }
        if let Some(id) = bytes.strip_prefix(ATTACHMENT) {
            return Some(StoreKey::Attachment(id.try_into().ok()?));
        }
        TableName::ALL.into_iter().find_map(|table| {
            let name = bytes.strip_prefix(table.prefix())?;
            Some(StoreKey::Entry(table, std::str::from_utf8(name).ok()?.to_owned()))
        })
    }
}

impl TableName {
    const ALL: [TableName; 4] = [TableName::Networks, TableName::Endpoints, TableName::Pools, TableName::Engine];

    fn prefix(self) -> &'static [u8] {
        match self {
            TableName::Networks => b"docker/network/",
            TableName::Endpoints => b"docker/endpoint/",
            TableName::Pools => b"docker/pool/",
            TableName::Engine => b"docker/engine/",
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_mesh::stored::Stored;

    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written_and_are_none_of_the_nodes() {
        let entries = TableName::ALL.map(|table| StoreKey::Entry(table, "c9f4".into()));
        let others = [StoreKey::Schema, StoreKey::Boot, StoreKey::Life, StoreKey::Range, StoreKey::Attachment([7; 16])];
        for key in entries.into_iter().chain(others) {
            assert_eq!(StoreKey::parse(&key.encode()), Some(key.clone()));
            assert_eq!(Stored::parse(&key.encode()), None, "{key:?}");
        }
        for other in [Stored::Incarnation, Stored::Starts, Stored::Removed([1; 16])] {
            assert_eq!(StoreKey::parse(&other.encode()), None, "{other:?}");
        }
        assert_eq!(StoreKey::parse(b"attachment/short"), None);
    }
}
