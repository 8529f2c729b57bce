//! What must hold of addresses at any time, and once everything is mended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use weft_mesh::ipam::PATIENCE;
use weft_mesh::ipam::ring::Range;

use super::{Host, SLACK, World};

impl World {
    /// No address of one ring in two places or in a part that a network has, and no answer overdue.
    pub(super) fn check(&self) {
        for asked in self.tickets.values() {
            let waited = self.now.since(asked.since);
            let is_alive = self.hosts[asked.host].life == asked.life;
            assert!(
                !is_alive || waited <= PATIENCE + SLACK,
                "h{} waits {waited:?}\n{}",
                asked.host,
                self.story.join("\n")
            );
        }
        let mut seen: BTreeMap<(u64, Ipv4Addr), usize> = BTreeMap::new();
        for (id, grant) in &self.grants {
            let Some(ipam) = &self.hosts[grant.host].ipam else { continue };
            let Some(ring) = ipam.ring(self.range).filter(|ring| ring.superseded_by.is_none()) else { continue };
            let is_in_part = |host: &Host| {
                let ring_of = host.ipam.as_ref().and_then(|ipam| ipam.ring(self.range));
                let is_same = ring_of.is_some_and(|other| other.id == ring.id && other.superseded_by.is_none());
                let has = |part: &&Range| ring_of.is_some_and(|ring| ring.has_part(host.label, **part));
                is_same && host.parts.iter().filter(has).any(|part| part.contains(grant.address))
            };
            let is_sure = ipam.allocations(self.range).any(|(_, other, is_claim)| other == *id && !is_claim);
            if is_sure && let Some(other) = self.hosts.iter().position(is_in_part) {
                let story = self.story.join("\n");
                let (now, address, host) = (self.now, grant.address, grant.host);
                panic!("{now:?}: {address} is h{host}'s, and in a subnet that h{other}'s network has\n{story}");
            }
            if is_sure && let Some(other) = seen.insert((ring.id.0, grant.address), grant.host) {
                let story = self.story.join("\n");
                panic!("{:?}: {} is handed out by h{other} and h{}\n{story}", self.now, grant.address, grant.host);
            }
        }
    }

    pub(super) fn problem(&self) -> Option<String> {
        let mut rings = BTreeSet::new();
        for (number, host) in self.hosts.iter().enumerate() {
            let Some(ipam) = &host.ipam else { continue };
            if let Some(ring) = ipam.ring(self.range) {
                rings.insert(ring.id);
                if ring.superseded_by.is_some() {
                    return Some(format!("h{number} is still in a ring that gave way"));
                }
            }
            if ipam.allocations(self.range).any(|(_, _, is_claim)| is_claim) {
                return Some(format!("h{number} still claims addresses"));
            }
        }
        if rings.len() > 1 {
            return Some(format!("there are {} rings", rings.len()));
        }
        self.clash()
    }

    /// An address that two hosts have, each from its own ring: the wrong holder is not fenced yet.
    pub(super) fn clash(&self) -> Option<String> {
        let mut seen: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
        self.grants.values().find_map(|grant| {
            let other = seen.insert(grant.address, grant.host)?;
            Some(format!("{} is with h{other} and h{}", grant.address, grant.host))
        })
    }
}
