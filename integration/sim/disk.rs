//! What a simulated host has on its disk beside the node's keys.

use std::collections::BTreeMap;

use weft_crypto::Keyring;
use weft_mesh::records::{EndpointId, EndpointRecord, decode};

/// Where the simulated shell keeps an endpoint, by its id.
pub(super) const ATTACHMENT: &[u8] = b"attachment/";

/// The endpoints that a disk knows.
pub fn endpoints_on(disk: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<(EndpointId, EndpointRecord)> {
    let endpoint =
        |(key, value): (&Vec<u8>, &Vec<u8>)| Some((key.strip_prefix(ATTACHMENT)?.try_into().ok()?, decode(value)?));
    disk.iter().filter_map(endpoint).collect()
}

/// The network secret of all simulated hosts.
pub(super) fn keyring() -> Keyring {
    Keyring::parse("9f3c1d7ae85b40629f3c1d7ae85b40624e6d8a0c5b7f12e3").expect("a strong secret")
}
