//! Getting to know states: of the ring of a range, of none yet, of two that meet.

use rand::Rng;
use weft_crypto::{HostLabel, Time};

use super::{Announcement, Change, Download, Ipam, MAX_PARTS, Range, Ring, RingId, decode, make_odd};

impl Ipam {
    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_state(
        &mut self,
        from: HostLabel,
        range: Range,
        theirs: (RingId, u64),
        part: u16,
        parts: u16,
        bytes: Vec<u8>,
        now: Time,
    ) {
        let Some(local) = self.locals.get_mut(&range) else { return };
        if parts > MAX_PARTS || !local.wants_state(theirs) {
            return;
        }
        let is_new = local
            .download
            .as_ref()
            .is_none_or(|d| (d.from, d.ring, d.n, d.parts.len()) != (from, theirs.0, theirs.1, usize::from(parts)));
        if is_new {
            let parts = vec![None; usize::from(parts)];
            local.download = Some(Download { from, ring: theirs.0, n: theirs.1, parts });
        }
        let Some(download) = &mut local.download else { return };
        download.parts[usize::from(part)] = Some(bytes);
        if download.parts.iter().any(Option::is_none) {
            return;
        }
        let whole: Vec<u8> = local.download.take().into_iter().flat_map(|d| d.parts).flatten().flatten().collect();
        let is_asked_for = |ring: &Ring| (ring.id, ring.n, ring.range) == (theirs.0, theirs.1, range);
        if let Some(ring) = decode::<Ring>(&whole).filter(|ring| is_asked_for(ring) && ring.is_sound()) {
            self.adopt(range, ring, now);
        }
    }

    /// Finds or founds a ring for a range that this host wants an address of.
    pub(super) fn seek_ring(&mut self, range: Range, now: Time) {
        let Some(local) = self.locals.get(&range) else { return };
        let known = local.heard.iter().filter(|(host, _)| self.hosts.reachable.contains(host));
        if let Some(host) = known.max_by_key(|(_, heard)| heard.n).map(|(host, _)| *host) {
            if let Some((local, outputs)) = self.at(range) {
                local.pull(host, range, now, outputs);
            }
            return;
        }
        // A ring that is known of but out of reach is waited for: a second one would have to be mended later.
        if local.heard.keys().any(|host| !self.hosts.given_up.contains(host)) && !self.hosts.founds_alone {
            return;
        }
        let electorate = self.hosts.electorate();
        let mut voters: Vec<HostLabel> = electorate
            .into_iter()
            .filter(|host| *host == self.hosts.own || self.hosts.reachable.contains(host))
            .collect();
        make_odd(&mut voters);
        let (id, founder, start) = (RingId(self.rng.next_u64().max(1)), self.hosts.own, self.start);
        self.propose(range, Change::Found { id, founder, start, voters }, now);
    }

    /// Looks whether another ring of this range was met, and which of the two goes on.
    pub(super) fn meet_rings(&mut self, range: Range, now: Time) -> Option<Change> {
        let local = self.locals.get(&range)?;
        let ring = local.ring.as_ref()?;
        let is_other = |heard: &Announcement| heard.ring != ring.id && !ring.succeeds.contains(&heard.ring);
        let others = local.heard.iter().filter(|(_, heard)| is_other(heard));
        // Two rings that gave way to each other at once: the one with the lower id goes on after all.
        let gives_way_back =
            |heard: &Announcement| ring.superseded_by == Some(heard.ring) && heard.superseded_by == Some(ring.id);
        if others.clone().any(|(_, heard)| gives_way_back(heard) && ring.id < heard.ring) {
            return Some(Change::Revive);
        }
        // Voters that joined another ring before they heard of this one will never vote here.
        let away: Vec<(HostLabel, RingId)> = others
            .clone()
            .filter(|(host, _)| ring.voters.contains(host))
            .map(|(host, heard)| (*host, heard.ring))
            .collect();
        let given_way = local.heard.values().find_map(|heard| heard.superseded_by.filter(|_| heard.ring == ring.id));
        let goes_on = |heard: &Announcement| given_way == Some(heard.ring) || heard.succeeds.contains(&ring.id);
        let given_way = others.clone().find(|(_, heard)| goes_on(heard)).map(|(host, heard)| (*host, heard.ring));
        let deserted = away.len() * 2 > ring.voters.len();
        let away = given_way.into_iter().chain(away.into_iter().filter(|_| deserted));
        if let Some((host, other)) = away.into_iter().find(|(host, _)| self.hosts.reachable.contains(host)) {
            self.locals.get_mut(&range)?.deserted_for = Some(other);
            if let Some((local, outputs)) = self.at(range) {
                local.pull(host, range, now, outputs);
            }
            return None;
        }
        match ring.superseded_by {
            None => {
                // The word of a host that is away outlives it: its ring is met when the host is.
                let mut live =
                    others.filter(|(host, heard)| heard.superseded_by.is_none() && self.hosts.reachable.contains(host));
                live.find(|(_, heard)| heard.outranks(ring)).map(|(_, heard)| Change::Supersede(heard.ring))
            }
            Some(next) => {
                let mut there = others.filter(|(host, _)| self.hosts.reachable.contains(host));
                if let Some((host, _)) = there.clone().find(|(_, heard)| heard.ring == next) {
                    let host = *host;
                    if let Some((local, outputs)) = self.at(range) {
                        local.pull(host, range, now, outputs);
                    }
                    return None;
                }
                // That one has given way in turn, and no reachable host announces it.
                let live = there.find(|(_, heard)| heard.superseded_by.is_none());
                let Some((host, other)) = live.map(|(host, heard)| (*host, heard.ring)) else {
                    return Some(Change::Revive);
                };
                self.locals.get_mut(&range)?.deserted_for = Some(other);
                if let Some((local, outputs)) = self.at(range) {
                    local.pull(host, range, now, outputs);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::ipam::message::{Body, Message};
    use crate::ipam::ring::{Start, Window};
    use crate::ipam::{Output, Request, Setup, encode};

    const OWN: HostLabel = HostLabel([1; 6]);
    const MEMBER: HostLabel = HostLabel([2; 6]);
    const NOW: Time = Time::from_nanos(10_000_000_000);

    fn range() -> Range {
        Range::new([10, 40, 0, 0].into(), 24).unwrap()
    }

    /// Has a host hear of a ring, changed somehow, and ask for an address; returns what it is given.
    fn handed_out_of(change: impl FnOnce(&mut Ring)) -> Vec<std::net::Ipv4Addr> {
        let (range, start) = (range(), Start { number: 1, nonce: 7 });
        let found = Change::Found { id: RingId(9), founder: MEMBER, start, voters: vec![MEMBER] };
        let mut ring = Ring::found(range, &found).unwrap();
        change(&mut ring);
        let setup = Setup {
            own: OWN,
            entropy: [1; 32],
            grace: Duration::from_secs(3600),
            founds_alone: false,
            continues: false,
            now: Time::ZERO,
        };
        let mut ipam = Ipam::new(setup, &BTreeMap::new());
        ipam.set_hosts(Vec::new(), (2..5).map(|n| HostLabel([n; 6])), NOW);
        let body = Body::State { part: 0, parts: 1, bytes: encode(&ring) };
        ipam.receive(MEMBER, &Message { range, ring: ring.id, n: ring.n, body }.encode(), NOW);
        ipam.allocate(1, Request { range, id: [1; 16], want: None, within: None }, NOW);
        for second in 1..5 {
            ipam.handle_timeout(NOW + Duration::from_secs(second));
        }
        let outputs = std::iter::from_fn(|| ipam.poll_output());
        let replies = outputs.filter_map(|output| match output {
            Output::Reply(1, Ok(address)) => Some(address),
            _ => None,
        });
        replies.collect()
    }

    #[test]
    fn a_state_that_no_changes_lead_to_is_refused() {
        let own_window = |number: u32| {
            move |ring: &mut Ring| {
                ring.windows.insert(number, Window { holder: OWN, retired: false });
            }
        };
        let of_its_window: Vec<bool> =
            handed_out_of(own_window(9)).iter().map(|address| range().window_of(*address) == 9).collect();
        assert_eq!(of_its_window, [true]);
        for number in [64, 1 << 20, 1 << 30, u32::MAX] {
            let addresses = handed_out_of(own_window(number));
            assert!(addresses.iter().all(|address| range().contains(*address)), "{addresses:?} for window {number}");
        }
    }
}
