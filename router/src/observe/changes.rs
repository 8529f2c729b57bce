//! What differs between two looks at the peers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_mesh::node::{PeerState, PeerStatus};

use super::happening::{Happening, PeerName};

/// How soon a link's figures are told again, and how soon even what has not changed: entries of a path must not all be older than what is kept.
const LINK_AGAIN: Duration = Duration::from_secs(60);
const STILL: Duration = Duration::from_secs(3600);
/// Digits of a key in entries, as the log has them.
const SHORT: usize = 8;

/// Tells what has changed between two looks at the peers.
#[derive(Default)]
pub struct Changes {
    known: BTreeMap<String, KnownPeer>,
}

#[derive(Default)]
struct KnownPeer {
    way: Option<(Way, Instant)>,
    link: Option<((u64, u8), Instant)>,
}

/// The kind of path, the relay and the transport.
type Way = (&'static str, Option<String>, Option<&'static str>);

impl Changes {
    /// What has changed about a peer's path and link: a round-trip time by a tenth and 100 µs, a loss by a percent.
    pub fn look(&mut self, peer: &PeerStatus, now: Instant) -> Vec<Happening> {
        let known = self.known.entry(peer.peer_id.clone()).or_default();
        let name = PeerName { peer: peer.name.clone(), peer_id: peer.peer_id.chars().take(SHORT).collect() };
        let mut changes = Vec::new();
        let path = peer.path.filter(|_| peer.state == PeerState::Connected).unwrap_or("none");
        let way = (path, peer.via.clone(), peer.transport);
        let is_told = match &known.way {
            Some((last, at)) => *last == way && now - *at < STILL,
            // A host that was never reached.
            None => path == "none",
        };
        if !is_told {
            let (path, via, transport) = way.clone();
            changes.push(Happening::Path { peer: name.clone(), path, via, transport });
            known.way = Some((way, now));
        }
        let (Some(rtt_us), Some(loss)) = (peer.rtt_us, peer.loss) else {
            known.link = None;
            return changes;
        };
        let figures = (rtt_us, (loss * 100.0).round().clamp(0.0, 100.0) as u8);
        let differs = |(rtt, loss): (u64, u8)| loss != figures.1 || rtt.abs_diff(rtt_us) > 100 + rtt / 10;
        let is_due = |(last, at)| now - at >= STILL || (differs(last) && now - at >= LINK_AGAIN);
        if known.link.is_none_or(is_due) {
            known.link = Some((figures, now));
            changes.push(Happening::Link { peer: name, rtt_us, loss_percent: figures.1 });
        }
        changes
    }

    /// Forgets peers that are not there any more.
    pub fn retain(&mut self, peers: &[PeerStatus]) {
        let there: BTreeSet<&str> = peers.iter().map(|peer| peer.peer_id.as_str()).collect();
        self.known.retain(|id, _| there.contains(id.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told_of_a_link() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        let minute = |number: u64| start + Duration::from_secs(60 * number);
        let mut peer = PeerStatus {
            name: "h1".into(),
            peer_id: "0123456789".into(),
            state: PeerState::Unreachable,
            path: None,
            via: None,
            transport: None,
            remote: None,
            cipher: None,
            rtt_us: None,
            loss: None,
            mtu: None,
            relays: true,
            load: 0,
            metered: false,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        assert!(changes.look(&peer, start).is_empty(), "a host that was never reached");
        (peer.state, peer.path, peer.transport) = (PeerState::Connected, Some("direct"), Some("udp"));
        (peer.rtt_us, peer.loss) = (Some(1000), Some(0.0));
        assert_eq!(changes.look(&peer, start).len(), 2);
        peer.rtt_us = Some(1150);
        assert!(changes.look(&peer, minute(1)).is_empty());
        peer.rtt_us = Some(1400);
        assert!(changes.look(&peer, start).is_empty(), "so soon");
        let name = PeerName { peer: "h1".into(), peer_id: "01234567".into() };
        assert_eq!(changes.look(&peer, minute(2)), [Happening::Link { peer: name, rtt_us: 1400, loss_percent: 0 }]);
        assert_eq!(changes.look(&peer, minute(62)).len(), 2, "still so");
        peer.state = PeerState::Unreachable;
        assert!(matches!(&changes.look(&peer, minute(63))[..], [Happening::Path { path: "none", .. }]));
        peer.rtt_us = None;
        assert!(changes.look(&peer, minute(63)).is_empty());
        (peer.state, peer.rtt_us) = (PeerState::Connected, Some(1400));
        assert_eq!(changes.look(&peer, minute(63)).len(), 2, "a new link with the same figures");
        changes.retain(&[]);
        assert_eq!(changes.look(&peer, minute(63)).len(), 2);
    }
}
