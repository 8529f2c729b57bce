//! Port prediction: a direct link where one host's NAT maps each destination to another port, and the other's admits only datagrams from
//! addresses and ports that its host has sent to.
//!
//! At which port such a NAT lets the peer in is known to neither host. So the one behind it opens many spare ports towards the peer, each of
//! which its NAT maps to a port, and the peer asks at ports of the NAT: those near to the ones that others see, then any, until one of
//! them is mapped. With 256 of 64,512 it has found one after 175 questions half of the time, after 2,048 in all cases but one of 3,600 (a birthday
//! problem; Ford, Srisuresh, Kegel, "Peer-to-Peer Communication Across Network Address Translators", 2005, section 5.1, has prediction
//! alone). The question that gets in is answered from the spare port, and the link goes by it. Here is the side that opens; the one that asks is in `port_search`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::candidates::{Learnt, Tried};
use super::own_addresses::OwnAddresses;
use super::{Event, Peer};
use crate::backoff::Backoff;
use crate::bucket::Bucket;
use crate::path::Path;
use crate::wire::{Control, Punch};

/// Spare ports opened towards a peer, and the routers that the datagrams of either half of them pass: those of one NAT, or of several in
/// a row. None is to get to the peer's NATs, which may take it for their own.
pub(crate) const SPARE_PORTS: usize = 256;
pub(crate) const SPARE_HOPS: [u8; 2] = [2, 4];
/// How long rounds of punching have first: they cost less.
const ROUNDS_FIRST: Duration = Duration::from_secs(2);
/// The wait before spare ports are opened towards one peer again, which doubles each time, and the longest.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(10);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Addresses in a row that spare ports are opened towards, and the seconds that earn one more. Each takes [`SPARE_PORTS`] mappings of this host's
/// NAT for 30 s: 1,024 at once, 2,816 in 30 s.
const SPREADS: u64 = 4;
const SECONDS_PER_SPREAD: u64 = 4;
const SPREAD_BUDGET: u64 = SPREADS * SECONDS_PER_SPREAD;
/// How often new addresses of one peer cut those waits short, at most.
const HURRIED_EVERY: Duration = Duration::from_secs(300);
/// The middle of what [`Backoff`] spreads tries by: the peer's turn follows from this host's.
pub(super) const NO_JITTER: f64 = 0.5;
/// Addresses of the peer that they are opened towards.
const MAX_TOWARDS: usize = 2;

/// Spare ports opened towards one peer, and searches for its own.
#[derive(Default)]
pub(super) struct Spreads {
    opened: Backoff,
    last_opened: Time,
    pub(super) searched: Backoff,
    hurried: Time,
}

impl Spreads {
    /// There is a link: the next time starts over.
    pub(super) fn reset(&mut self, now: Time) {
        self.opened = Backoff::default();
        self.hurry(now);
    }

    /// Allows the next ones at once: one of the hosts has new addresses. At most once in [`HURRIED_EVERY`]: all peers share one budget, and a peer
    /// could change its addresses again and again.
    pub(super) fn hurry(&mut self, now: Time) {
        if self.hurried == Time::ZERO || now.since(self.hurried) >= HURRIED_EVERY {
            self.hurried = now;
            self.opened.hurry(now);
            self.searched.hurry(now);
        }
    }
}

/// Spare ports of this host, opened towards a few peers at a time.
pub(super) struct Prediction {
    /// Peers towards which spare ports are to be opened, and when that was last done.
    due: Vec<(Time, HostLabel)>,
    spreads: Bucket,
}

impl Prediction {
    pub(super) fn new(now: Time) -> Self {
        Prediction { due: Vec::new(), spreads: Bucket::new(SPREAD_BUDGET, now) }
    }

    /// Notes a peer for [`Prediction::spread`] if it is time: rounds have not led to a link, and this host's ports are not known from what others
    /// see.
    pub(super) fn note_due(&mut self, label: HostLabel, peer: &mut Peer, own: &OwnAddresses, now: Time) {
        let is_time = peer.spreads.opened.is_due(now) && peer.punching.waited(now) >= ROUNDS_FIRST;
        if is_time && own.is_mapped_elsewhere() {
            self.due.push((peer.spreads.last_opened, label));
        }
    }

    /// Has spare ports opened towards the peers that are due, and these told; first towards those that have waited longest.
    pub(super) fn spread(
        &mut self,
        peers: &mut BTreeMap<HostLabel, Peer>,
        own: &OwnAddresses,
        now: Time,
    ) -> Vec<Event> {
        let (mut due, mut events) = (std::mem::take(&mut self.due), Vec::new());
        due.sort_unstable();
        for (_, label) in due {
            let Some(peer) = peers.get_mut(&label) else { continue };
            let towards = peer.outsides(own.local());
            let seconds = towards.len() as u64 * SECONDS_PER_SPREAD;
            if !self.spreads.take(seconds, 1, SPREAD_BUDGET, now) {
                break;
            }
            peer.spreads.last_opened = now;
            peer.spreads.opened.on_try_from(now, FIRST_WAIT, LONGEST_WAIT, NO_JITTER);
            if !towards.is_empty() {
                let told = Event::Message(label, Control::Punch(Punch::Spread));
                events.extend([Event::Spread { towards }, told]);
            }
        }
        events
    }
}

impl Peer {
    /// Where its NATs or firewalls have to be asked from outside: where others see it, or else its own addresses. First where its own port would
    /// be kept: towards hosts that are new to it a NAT may do so although all others see the peer elsewhere.
    fn outsides(&self, own: &[SocketAddr]) -> Vec<Path> {
        let others = self.others(own);
        let seen: Vec<SocketAddr> = self.seen.iter().flatten().copied().filter(|seen| !own.contains(seen)).collect();
        let is_inside = |tried: &Tried| tried.learnt == Learnt::Announced && tried.path.is_udp();
        let inside = self.candidates.tried().find(is_inside).map(|tried| tried.path.remote.port());
        let kept = seen.first().zip(inside).map(|(seen, port)| SocketAddr::new(seen.ip(), port));
        let changed = seen.iter().copied().filter(|seen| Some(*seen) != kept);
        let mut outsides: Vec<Path> = kept.into_iter().chain(changed).map(Path::udp).collect();
        if outsides.is_empty() {
            outsides = others;
        }
        outsides.truncate(MAX_TOWARDS);
        outsides
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Usage;
    use crate::path::Transport;
    use crate::topology::Topology;
    use crate::topology::lab::*;
    use crate::wire::Lane;

    /// Some peer.
    fn label(n: u64) -> HostLabel {
        HostLabel([0, 0, 0, 1, (n >> 8) as u8, n as u8])
    }

    #[test]
    fn a_link_by_a_spare_port_keeps_it_and_others_are_not_told_of_it() {
        let (mut topology, table, _) = topology();
        let spare = Path { transport: Transport::SpareUdp(40_000), ..remote() };
        topology.on_ping(PEER, 7, spare, (1, Lane::Main), (OWN_ADDRESS, 100), at(0));
        let said = events(&mut topology);
        let asked = said.iter().find_map(|event| match event {
            Event::Straight { control: Control::Ping { id, .. }, to, .. } if *to == spare => Some(*id),
            _ => None,
        });
        topology.on_pong(PEER, spare, asked.unwrap(), OWN_ADDRESS, 0, at(10));
        let said = events(&mut topology);
        let is_kept =
            |event: &Event| matches!(event, Event::Connection { path, usage: Usage::InUse } if *path == spare);
        assert!(said.iter().any(is_kept), "{said:?}");
        assert!(topology.addresses.seen().is_empty());
        assert!(topology.peers[&PEER].candidates.paths().all(|path| *path != spare));
        topology.tend_links(true, &table, at(20));
        topology.link_down(PEER, "nothing comes back", at(30));
        let is_let_go =
            |event: &Event| matches!(event, Event::Connection { path, usage: Usage::Idle } if *path == spare);
        assert!(events(&mut topology).iter().any(is_let_go));
    }

    #[test]
    fn spare_ports_are_opened_after_rounds_and_ever_more_seldom() {
        let mut topology = lone();
        topology.meet(PEER, Default::default());
        topology.peers.get_mut(&PEER).unwrap().seen = Some(vec![remote().remote]);
        topology.addresses.note_seen(PEER, SocketAddr::from(([203, 0, 113, 1], 6783)), at(0));
        assert_eq!(spreads(&mut topology, 100), [], "its NAT leaves ports as they are");
        topology.addresses.note_seen(PEER, SocketAddr::from(([203, 0, 113, 1], 50_000)), at(10_000));
        let when: Vec<u64> = spreads(&mut topology, 20_000).into_iter().map(|(second, _)| second).collect();
        assert_eq!(when, [2, 12, 32, 72, 152, 312, 632, 1272, 2552, 5112, 8712, 12_312, 15_912, 19_512]);
    }

    /// Seconds at which spare ports are opened, and towards whom, if that is looked after once a second.
    fn spreads(topology: &mut Topology, seconds: u64) -> Vec<(u64, HostLabel)> {
        let mut when = Vec::new();
        for second in 0..seconds {
            for (label, peer) in &mut topology.peers {
                topology.prediction.note_due(*label, peer, &topology.addresses, at(second * 1000));
            }
            let said = topology.prediction.spread(&mut topology.peers, &topology.addresses, at(second * 1000));
            when.extend(said.into_iter().filter_map(|event| match event {
                Event::Message(label, Control::Punch(Punch::Spread)) => Some((second, label)),
                _ => None,
            }));
        }
        when
    }

    #[test]
    fn each_peer_has_its_turn_before_any_has_a_second_one() {
        let mut topology = lone();
        topology.addresses.note_seen(PEER, SocketAddr::from(([203, 0, 113, 1], 50_000)), at(0));
        for n in 0..8 {
            topology.meet(label(n), Default::default());
            topology.peers.get_mut(&label(n)).unwrap().seen = Some(vec![remote().remote]);
        }
        let when = spreads(&mut topology, 60);
        let first: Vec<HostLabel> = when.iter().take(8).map(|(_, label)| *label).collect();
        assert_eq!(first, (0..8).map(label).collect::<Vec<_>>());
        assert!(when[3].0 == 2 && (14..20).contains(&when[7].0), "{when:?}");
    }
}
