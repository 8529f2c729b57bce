//! The storage schema of the node: every key that it persists.
//!
//! The shell files the values under these keys in one table and gives all of them back at the next start. Its own keys
//! (`daemon/keys.rs`) lie beside them and are passed over. A key that is added needs no new schema (`SCHEMA` in the shell's store), a changed one does.

use std::net::Ipv4Addr;

use weft_crypto::PeerId;

use crate::ipam::ring::Range;

/// A key of the store, and in its description the type of its value, written with postcard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stored {
    /// `u64`: the incarnation that this host last wrote its records under.
    Incarnation,
    /// `Vec<SocketAddr>`: a peer that the operator named, and the addresses it last resolved to.
    Target(String),
    /// `Option<PeerId>`: a peer that the operator no longer wants a link with, by the name it had.
    ForgottenTarget(String),
    /// `Vec<SocketAddr>`: addresses at which a peer was last reached.
    Peer(PeerId),
    /// [`crate::records::EntryRecord`]: a name that an operator added, by its digest.
    Entry([u8; 16]),
    /// `[u8; 8]`: a network that was removed here, by its uid; removals are in the order of this big-endian number.
    Removed([u8; 16]),
    /// `u64`: how often this host has started, for the rings of addresses.
    Starts,
    /// A ring's state, and this host's votes on it.
    Ring(Range),
    /// [`crate::ipam::AllocationId`]: an address that this host has handed out.
    Address(Range, Ipv4Addr),
    /// An address of this host's windows that is lent to another host.
    Lending(Range, Ipv4Addr),
}

const INCARNATION: &[u8] = b"incarnation";
const TARGET: &[u8] = b"target/";
const FORGOTTEN: &[u8] = b"forgotten/";
const PEER: &[u8] = b"peer/";
const ENTRY: &[u8] = b"entry/\x07";
const REMOVED: &[u8] = b"removed/";
const STARTS: &[u8] = b"ipam/starts";
const RING: &[u8] = b"ipam/ring/";
const ADDRESS: &[u8] = b"ipam/address/";
const LENDING: &[u8] = b"ipam/lending/";

impl Stored {
    /// Returns the key's bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Stored::Incarnation => INCARNATION.to_vec(),
            Stored::Target(name) => [TARGET, name.as_bytes()].concat(),
            Stored::ForgottenTarget(name) => [FORGOTTEN, name.as_bytes()].concat(),
            Stored::Peer(id) => [PEER, &id.0].concat(),
            Stored::Entry(digest) => [ENTRY, digest].concat(),
            Stored::Removed(uid) => [REMOVED, uid].concat(),
            Stored::Starts => STARTS.to_vec(),
            Stored::Ring(range) => [RING, &range.to_bytes()].concat(),
            Stored::Address(range, address) => [ADDRESS, &range.to_bytes(), &address.octets()].concat(),
            Stored::Lending(range, address) => [LENDING, &range.to_bytes(), &address.octets()].concat(),
        }
    }

    /// Reads a key; `None` for a key that the node did not write.
    pub fn parse(key: &[u8]) -> Option<Stored> {
        let after = |prefix: &[u8]| key.strip_prefix(prefix);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        if key == INCARNATION {
            return Some(Stored::Incarnation);
        }
        if key == STARTS {
            return Some(Stored::Starts);
        }
        None.or_else(|| after(TARGET).and_then(text).map(Stored::Target))
            .or_else(|| after(FORGOTTEN).and_then(text).map(Stored::ForgottenTarget))
            .or_else(|| after(PEER)?.try_into().ok().map(PeerId).map(Stored::Peer))
            .or_else(|| after(ENTRY)?.try_into().ok().map(Stored::Entry))
            .or_else(|| after(REMOVED)?.try_into().ok().map(Stored::Removed))
            .or_else(|| Range::from_bytes(after(RING)?.try_into().ok()?).map(Stored::Ring))
            .or_else(|| after(ADDRESS).and_then(address).map(|(range, address)| Stored::Address(range, address)))
            .or_else(|| after(LENDING).and_then(address).map(|(range, address)| Stored::Lending(range, address)))
    }
}

fn address(bytes: &[u8]) -> Option<(Range, Ipv4Addr)> {
    let (range, address) = bytes.split_first_chunk::<5>()?;
    let address: [u8; 4] = address.try_into().ok()?;
    Some((Range::from_bytes(*range)?, address.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written_and_others_are_passed_over() {
        let range = Range::new([10, 32, 0, 0].into(), 12).unwrap();
        // Leads through all keys: a new one does not compile until it has its place here.
        let next = |key: &Stored| match key {
            Stored::Incarnation => Some(Stored::Target("host2:6783".into())),
            Stored::Target(_) => Some(Stored::ForgottenTarget("host3".into())),
            Stored::ForgottenTarget(_) => Some(Stored::Peer(PeerId([2; 32]))),
            Stored::Peer(_) => Some(Stored::Entry([3; 16])),
            Stored::Entry(_) => Some(Stored::Removed([4; 16])),
            Stored::Removed(_) => Some(Stored::Starts),
            Stored::Starts => Some(Stored::Ring(range)),
            Stored::Ring(_) => Some(Stored::Address(range, [10, 32, 0, 7].into())),
            Stored::Address(..) => Some(Stored::Lending(range, [10, 32, 0, 8].into())),
            Stored::Lending(..) => None,
        };
        let all: Vec<Stored> = std::iter::successors(Some(Stored::Incarnation), next).collect();
        all.iter().for_each(|key| assert_eq!(Stored::parse(&key.encode()).as_ref(), Some(key)));
        for other in [&b"entry/short"[..], b"docker/network/x", b"ipam/address/", b"", b"incarnation2"] {
            assert_eq!(Stored::parse(other), None, "{other:?}");
        }
    }
}
