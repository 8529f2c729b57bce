//! A container network, as every host is to have it. Its description has no upper size, so it travels in parts.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{MAX_LIST, NetworkUid, decode, digest_of, encode, is_name};

pub(super) const TAG: u8 = 8;
pub(super) const PART_TAG: u8 = 11;

/// A container network, as every host is to have it. It has no upper size: what travels is a [`NetworkHead`] and parts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// What it is called.
    pub name: String,
    /// Tells it from another of the same name, before or after it.
    pub uid: NetworkUid,
    /// Its subnets, if a user chose them.
    pub subnets: Vec<Subnet>,
    /// Whether its containers have IPv4 addresses.
    pub ipv4: bool,
    /// Whether its containers have IPv6 addresses.
    pub ipv6: bool,
    /// Whether its containers reach nothing outside.
    pub internal: bool,
    /// Whether containers may be put into it by hand, in a swarm.
    pub attachable: bool,
    /// The driver's options it was made with, in order.
    pub options: Vec<(String, String)>,
    /// Its labels, in order.
    pub labels: Vec<(String, String)>,
}

/// What tells of a network that its description is there, in so many parts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkHead {
    /// The network's uid.
    pub uid: NetworkUid,
    /// How many parts there are.
    pub parts: u8,
    /// A digest of the parts put together: of two descriptions on their way no part is mixed with the other's.
    pub digest: [u8; 16],
}

/// Bytes of one part.
const PART_BYTES: usize = 700;
/// Parts of one description.
pub const MAX_PARTS: usize = 24;

/// One subnet of a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet itself, with its prefix length.
    pub prefix: (IpAddr, u8),
    /// The part of it that addresses are handed out of.
    pub part: Option<(IpAddr, u8)>,
    /// Its gateway, if a user chose it.
    pub gateway: Option<IpAddr>,
    /// Addresses that are not handed out.
    pub set_aside: Vec<(String, IpAddr)>,
}

impl NetworkRecord {
    /// The records it travels in; none if it is too large for them.
    pub fn split(&self) -> Option<(NetworkHead, Vec<Vec<u8>>)> {
        let bytes = encode(self);
        let parts: Vec<Vec<u8>> = bytes.chunks(PART_BYTES).map(<[u8]>::to_vec).collect();
        let head = NetworkHead { uid: self.uid, parts: parts.len() as u8, digest: digest_of(&bytes) };
        (parts.len() <= MAX_PARTS).then_some((head, parts))
    }

    /// Puts one together from the records it travelled in; none if they are not one network's, or it may not be believed.
    pub fn join<'a>(head: &NetworkHead, parts: impl Iterator<Item = &'a [u8]>) -> Option<NetworkRecord> {
        let bytes: Vec<u8> = parts.take(usize::from(head.parts).min(MAX_PARTS)).flatten().copied().collect();
        let record = decode::<NetworkRecord>(&bytes).filter(|_| digest_of(&bytes) == head.digest)?;
        let few = record.subnets.len() <= MAX_LIST;
        (few && is_name(&record.name) && record.uid == head.uid).then_some(record)
    }

    /// An option it was made with.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str())
    }
}

/// Reads the head of a network; `None` if it is filed under another network's uid.
pub(super) fn read(uid: NetworkUid, value: &[u8]) -> Option<NetworkHead> {
    decode(value).filter(|head: &NetworkHead| head.uid == uid)
}

/// Reads a part; `None` if its number is beyond every network's last.
pub(super) fn read_part(part: u8, value: &[u8]) -> Option<Vec<u8>> {
    (usize::from(part) < MAX_PARTS).then(|| value.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_put_together_from_its_own_parts_only() {
        let label = |number: usize| (format!("com.example.{number}"), "x".repeat(400));
        let record =
            NetworkRecord { name: "app".into(), labels: (0..20).map(label).collect(), ..NetworkRecord::default() };
        let (head, parts) = record.split().unwrap();
        assert!(parts.len() > 10 && parts.iter().all(|part| part.len() <= 700));
        let joined = |parts: &[Vec<u8>]| NetworkRecord::join(&head, parts.iter().map(Vec::as_slice));
        assert_eq!(joined(&parts), Some(record.clone()));
        let other = NetworkRecord { internal: true, ..record.clone() }.split().unwrap().1;
        assert_eq!(joined(&[&other[..1], &parts[1..]].concat()), None, "a part of another description");
        assert_eq!(joined(&parts[1..]), None);
        let vast = NetworkRecord { labels: (0..200).map(label).collect(), ..record };
        assert_eq!(vast.split(), None);
    }
}
