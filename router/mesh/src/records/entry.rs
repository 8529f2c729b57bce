//! A name that an operator added (`weft dns add`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Key, decode, digest_of, is_domain_name};

pub(super) const TAG: u8 = 7;
/// The longest name that `dns add` takes, in bytes: a domain name less room for a domain.
pub const MAX_ENTRY_NAME: usize = 200;
/// Addresses that a name of `dns add` stands for on one host.
pub const MAX_ENTRY_IPS: usize = 64;

/// A name that an operator added.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EntryRecord {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub ips: Vec<IpAddr>,
}

impl EntryRecord {
    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        if self.name.len() > MAX_ENTRY_NAME || !is_domain_name(&self.name) {
            Some("a name is labels of 1 to 63 letters, digits, '-' or '_', with dots between them, 200 bytes in all")
        } else if !(1..=MAX_ENTRY_IPS).contains(&self.ips.len()) {
            Some("a name stands for 1 to 64 addresses on one host")
        } else {
            None
        }
    }

    /// Returns the key it is filed under.
    pub fn key(&self) -> Key {
        Key::Entry(Self::digest(&self.name))
    }

    /// Returns the digest that a name is filed under, in any case.
    pub fn digest(name: &str) -> [u8; 16] {
        digest_of(name.to_ascii_lowercase().as_bytes())
    }
}

/// Reads a record; `None` if it is not filed under the digest of its name.
pub(super) fn read(digest: [u8; 16], value: &[u8]) -> Option<EntryRecord> {
    decode(value).filter(|record: &EntryRecord| record.problem().is_none() && record.key() == Key::Entry(digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::encode;

    #[test]
    fn an_entry_is_filed_under_its_name_in_any_case_and_nowhere_else() {
        let entry = |name: &str| EntryRecord { name: name.into(), ips: vec![IpAddr::from([10, 0, 0, 1])] };
        assert_eq!(entry("Web.Example").key(), entry("web.example").key());
        let Key::Entry(digest) = entry("web").key() else { panic!("a key of another kind") };
        assert!(read(digest, &encode(&entry("WEB"))).is_some());
        assert_eq!(read(digest, &encode(&entry("db"))), None);
        assert_eq!(read(digest, &encode(&EntryRecord { ips: Vec::new(), ..entry("web") })), None);
    }
}
