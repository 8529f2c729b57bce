//! An account of a direct link: paths tried, how both ends look from outside, the last changes and their causes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use weft_crypto::{HostLabel, Time};

use super::candidates::Tried;
use super::{Peer, Topology, size};
use crate::explanation::{CandidateAccount, LinkAccount, Mapping, Outcome};
use crate::path::Path;
use crate::wire::OVERHEAD;

/// Changes of a link that are remembered.
const CHANGES: usize = 8;

impl LinkAccount {
    /// Account of this host's direct link with a peer.
    pub(crate) fn of(topology: &Topology, label: HostLabel, now: Time) -> Option<LinkAccount> {
        let peer = topology.peers.get(&label)?;
        let changes = peer.changes.iter().map(|(at, what)| (now.since(*at), what.clone()));
        let (metered, routing) = (&topology.metered, &topology.routing);
        let is_spared = |path: &Path| !metered.may_try_path(routing, label, peer, path, now);
        Some(LinkAccount {
            since: match &peer.link {
                Some(link) => Some(now.since(link.moved)),
                None => peer.changes.back().map(|(at, _)| now.since(*at)),
            },
            is_wanted: topology.wants_link(label, now),
            is_forgotten: topology.targets.is_forgotten(label),
            candidates: peer.candidates.tried().map(|tried| peer.candidate(&tried, is_spared(&tried.path))).collect(),
            narrows: peer.narrows(topology.underlay_mtu, now),
            nats: [topology.addresses.mapping(), peer.mapping()],
            changes: changes.collect(),
        })
    }
}

impl Peer {
    /// Notes what happened to the link.
    pub(super) fn note(&mut self, what: String, now: Time) {
        if self.changes.len() == CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back((now, what));
    }

    /// Account of a path that is not tried now, for what it costs, if it `is_spared`.
    fn candidate(&self, tried: &Tried, is_spared: bool) -> CandidateAccount {
        let rounds = self.punching.rounds();
        let outcome = match tried {
            _ if self.link.as_ref().is_some_and(|link| link.path.may_be(tried.path)) => Outcome::InUse,
            _ if is_spared => Outcome::Spared,
            Tried { answered: true, .. } => Outcome::Answered,
            Tried { tries: 1.., .. } => Outcome::Silent,
            Tried { is_mapped: true, .. } if rounds > 0 && tried.path.is_udp() => Outcome::InTurn,
            _ => Outcome::Untried,
        };
        let tries = if outcome == Outcome::InTurn { rounds } else { tried.tries };
        CandidateAccount { path: tried.path.to_string(), learnt: tried.learnt.words(), outcome, tries }
    }

    /// What its link's path takes, and what this host's interface does, if that is more.
    fn narrows(&self, underlay_mtu: usize, now: Time) -> Option<[usize; 2]> {
        let link = self.link.as_ref().filter(|link| link.size.is_settled(now))?;
        let sizes = [link.size.max_datagram, size::top(link.path, underlay_mtu)];
        (sizes[0] < sizes[1]).then(|| sizes.map(|size| size.saturating_sub(OVERHEAD)))
    }

    /// How the peer looks from outside, by its own word.
    fn mapping(&self) -> Mapping {
        match &self.seen {
            Some(seen) => mapping(seen.iter().copied(), true),
            None => Mapping::Unknown,
        }
    }
}

/// How a host looks that others see at such addresses, none of them its own; `is_seen`: at all.
pub(super) fn mapping(seen: impl Iterator<Item = SocketAddr>, is_seen: bool) -> Mapping {
    match seen.collect::<BTreeSet<SocketAddr>>().len() {
        0 if is_seen => Mapping::None,
        0 => Mapping::Unknown,
        1 => Mapping::One,
        _ => Mapping::Many,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::lab::*;

    #[test]
    fn an_account_tells_what_was_tried_and_what_changed() {
        let (mut topology, table, meter) = topology();
        topology.tend_links(true, &table, at(0));
        let account = LinkAccount::of(&topology, PEER, at(5)).unwrap();
        assert_eq!((account.candidates[0].outcome, account.candidates[0].tries), (Outcome::Silent, 1));
        assert!(account.since.is_none() && account.is_wanted && !account.is_forgotten);
        answer(&mut topology, &meter, 1400, at(10));
        let account = LinkAccount::of(&topology, PEER, at(1010)).unwrap();
        assert_eq!(account.candidates[0].outcome, Outcome::InUse);
        assert_eq!(account.changes.len(), 1);
        topology.link_down(PEER, "nothing comes back", at(2000));
        let account = LinkAccount::of(&topology, PEER, at(3000)).unwrap();
        assert_eq!(
            (account.candidates[0].outcome, account.since),
            (Outcome::Answered, Some(std::time::Duration::from_secs(1)))
        );
        assert!(account.changes[1].1.contains("nothing comes back"), "{:?}", account.changes);
        for _ in 0..20 {
            topology.peers.get_mut(&PEER).unwrap().note("again".into(), at(3000));
        }
        assert_eq!(LinkAccount::of(&topology, PEER, at(3000)).unwrap().changes.len(), CHANGES);
        assert!(LinkAccount::of(&topology, OWN, at(3000)).is_none());
    }

    #[test]
    fn a_host_seen_at_several_addresses_has_a_nat_that_maps_each_destination_anew() {
        let seen =
            |ports: &[u16]| ports.iter().map(|port| SocketAddr::from(([203, 0, 113, 1], *port))).collect::<Vec<_>>();
        let cases = [(&[][..], false, Mapping::Unknown), (&[], true, Mapping::None), (&[7], true, Mapping::One)];
        for (ports, is_seen, expected) in cases {
            assert_eq!(mapping(seen(ports).into_iter(), is_seen), expected);
        }
        assert_eq!(mapping(seen(&[7, 8, 7]).into_iter(), true), Mapping::Many);
    }
}
