//! Packets before there is a session.

use std::time::Duration;

use weft_crypto::cookie::{self, member_mac};
use weft_crypto::{Keyring, Time};
use weft_mesh::node::Input;
use weft_mesh::path::Path;
use weft_mesh::sink::Punt;

use crate::host::Host;
use crate::parts::{joined, parts};

/// Each part is a packet; its first byte says from which of 16 addresses, whether by a relay, and whether from a member.
const BY_RELAY: u8 = 0x10;
const BY_MEMBER: u8 = 0x20;

/// Gives a host packets of strangers and members.
pub fn run(input: &[u8]) {
    let now = Time::ZERO + Duration::from_secs(1);
    let mut host = Host::new(1, now);
    host.sent.clear();
    for part in parts(input) {
        let Some((how, bytes)) = part.split_first() else { continue };
        let is_member = how & BY_MEMBER != 0;
        let mut packet = bytes.to_vec();
        if is_member {
            let keyring = Keyring::insecure();
            packet.extend_from_slice(&member_mac(&keyring.secrets()[0], bytes));
            packet.extend_from_slice(&[0; cookie::LEN]);
        }
        let before = host.node.status(now).peers.len();
        if how & BY_RELAY == 0 {
            let from = Path::udp(([10, 2, 0, how & 15], 6783).into());
            let stride = packet.len();
            host.datagrams(from, &mut packet, stride, now);
        } else {
            host.input(Input::Punt(Punt::RelayedHandshake { packet }), now);
        }
        if !is_member {
            assert!(host.sent.is_empty(), "a stranger is answered");
            assert_eq!(host.node.status(now).peers.len(), before, "a stranger is known");
        }
        assert!(host.sent.len() <= 1, "one packet is answered with {}", host.sent.len());
        host.sent.clear();
    }
}

/// The first packet of a member, straight and relayed, whole and cut short.
pub fn seeds() -> Vec<Vec<u8>> {
    let now = Time::ZERO + Duration::from_secs(1);
    let (host, mut peer) = (Host::new(1, now), Host::new(2, now));
    peer.connect(&host, now);
    let packets = std::mem::take(&mut peer.sent).into_iter().map(|(_, packet)| packet);
    let bare = packets.filter_map(|packet| packet.len().checked_sub(2 * cookie::LEN).map(|end| packet[..end].to_vec()));
    let ways = [BY_MEMBER, BY_MEMBER | BY_RELAY, 0, BY_RELAY];
    let seeds = bare.flat_map(|packet| {
        ways.map(|way| {
            let part = [&[way], &packet[..]].concat();
            joined([&part[..], &part[..part.len() / 2], &part[..]])
        })
    });
    seeds.collect()
}
