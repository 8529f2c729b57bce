//! Port prediction: a direct link where one host's NAT maps each destination to another port, and the other's admits only datagrams from
//! addresses and ports that its host has sent to.
//!
//! At which port such a NAT lets the peer in is known to neither host. So the one behind it opens many spare ports towards the peer, each of
//! which its NAT maps to a port, and the peer asks at ports of the NAT: those near to the ones that others see, then any, until one of
//! them is mapped. With 256 of 64,512 it has found one after 175 questions half of the time, after 2,048 in all cases but one of 3,600 (a birthday
//! problem; Ford, Srisuresh, Kegel, "Peer-to-Peer Communication Across Network Address Translators", 2005, section 5.1, has prediction
//! alone). The question that gets in is answered from the spare port, and the link goes by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use weft_crypto::{HostLabel, Time};

use super::candidates::{Learnt, Tried};
use super::own_addresses::OwnAddresses;
use super::{Event, Peer, SessionTable};
use crate::backoff::Backoff;
use crate::bucket::Bucket;
use crate::path::Path;
use crate::wire::{Control, Lane, Punch};

/// Spare ports opened towards a peer, and the routers that the datagrams of either half of them pass: those of one NAT, or of several in
/// a row. None is to get to the peer's NATs, which may take it for their own.
pub(crate) const SPARE_PORTS: usize = 256;
pub(crate) const SPARE_HOPS: [u8; 2] = [2, 4];
/// How long rounds of punching have first: they cost less.
const ROUNDS_FIRST: Duration = Duration::from_secs(2);
/// The wait before spare ports are opened towards one peer again, which doubles each time, and the longest.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Addresses in a row that spare ports are opened towards, and the seconds that earn one more. Each takes [`SPARE_PORTS`] mappings of this host's
/// NAT for 30 s: 1,024 at once, 2,816 in 30 s.
const SPREADS: u64 = 4;
const SECONDS_PER_SPREAD: u64 = 4;
const SPREAD_BUDGET: u64 = SPREADS * SECONDS_PER_SPREAD;
/// How often new addresses of one peer cut those waits short, at most.
const HURRIED_EVERY: Duration = Duration::from_secs(300);
/// The middle of what [`Backoff`] spreads tries by: the peer's turn follows from this host's.
const NO_JITTER: f64 = 0.5;
/// Addresses of the peer that they are opened towards.
const MAX_TOWARDS: usize = 2;
/// Ports to ask at, in one search, in a second, and at once: 30 kB/s for six seconds.
const QUESTIONS: usize = 2048;
const QUESTIONS_PER_SECOND: usize = 320;
const QUESTIONS_AT_ONCE: usize = 32;
const PAUSE: Duration = Duration::from_millis(50);
/// Distance from a port that others see within which a NAT that counts has probably mapped the next ones.
const NEAR: u16 = 32;
/// The lowest port that NATs map to.
const LOWEST_PORT: u16 = 1024;
/// Searches at once; more wait for their turn, six seconds each: the peer's spare ports are open for 30.
const SEARCHES_AT_ONCE: usize = 4;
/// Searches in a row, and the seconds that earn one more. A member may say that it is behind a stranger's address: each search sends 200 kB there,
/// all at once 120 kB/s.
const SEARCHES: u64 = 8;
const SECONDS_PER_SEARCH: u64 = 30;
const SEARCH_BUDGET: u64 = SEARCHES * SECONDS_PER_SEARCH;

/// Spare ports opened towards one peer, and searches for its own.
#[derive(Default)]
pub(super) struct Spreads {
    opened: Backoff,
    last_opened: Time,
    searched: Backoff,
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

/// Port prediction of this host, with a few peers at a time.
pub(super) struct Prediction {
    /// Peers towards which spare ports are to be opened, and when that was last done.
    due: Vec<(Time, HostLabel)>,
    spreads: Bucket,
    /// The first [`SEARCHES_AT_ONCE`] are under way.
    searches: Vec<Search>,
    budget: Bucket,
}

/// A search for the port at which a peer's NAT lets this host in.
struct Search {
    peer: HostLabel,
    /// Where others see the peer.
    seen: Vec<SocketAddr>,
    questions: Option<Questions>,
}

/// Where a search that is under way asks.
struct Questions {
    began: Time,
    ports: Vec<SocketAddr>,
    asked: usize,
}

impl Prediction {
    pub(super) fn new(now: Time) -> Self {
        Prediction {
            due: Vec::new(),
            spreads: Bucket::new(SPREAD_BUDGET, now),
            searches: Vec::new(),
            budget: Bucket::new(SEARCH_BUDGET, now),
        }
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

    /// Has the open ports of a peer searched for at the address at which it says that others see it, none of this host's `own`. False if it is
    /// seen nowhere that a NAT can be, if that was done a moment ago, or if there were too many searches.
    pub(super) fn begin(&mut self, label: HostLabel, peer: &mut Peer, own: &[SocketAddr], now: Time) -> bool {
        let seen = peer.seen.as_deref().unwrap_or_default();
        let Some(ip) = seen.first().map(SocketAddr::ip) else { return false };
        let may_be = may_be_outside(ip) && !own.iter().any(|own| own.ip() == ip);
        let is_same = |search: &Search| search.peer == label && search.seen.first().is_some_and(|seen| seen.ip() == ip);
        if !may_be || !peer.spreads.searched.is_due(now) || self.searches.iter().any(is_same) {
            return false;
        }
        if !self.budget.take(SECONDS_PER_SEARCH, 1, SEARCH_BUDGET, now) {
            return false;
        }
        self.end(label);
        self.searches.push(Search { peer: label, seen: seen.to_vec(), questions: None });
        // The peer waits twice as long, if it does as this host would.
        peer.spreads.searched.on_try_from(now, FIRST_WAIT / 2, LONGEST_WAIT / 2, NO_JITTER);
        true
    }

    /// Ends the search for a peer, under way or not.
    pub(super) fn end(&mut self, peer: HostLabel) {
        self.searches.retain(|search| search.peer != peer);
    }

    /// Asks at the next ports, and wants to be called again, while peers are searched for.
    pub(super) fn search(&mut self, sessions: &impl SessionTable, rng: &mut impl Rng, now: Time) -> Vec<Event> {
        let mut events = Vec::new();
        for (peer, index, to) in self.next_questions(|peer| sessions.current(peer), rng, now) {
            events.extend(to.into_iter().map(|seen| {
                // The peer asks back from where this gets to; nothing else comes of it.
                let control = Control::Ping { id: rng.next_u32(), lane: Lane::Main, seen };
                Event::Straight { peer, index, to: Path::udp(seen), lane: Lane::Main, control, size: 0 }
            }));
        }
        events.extend((!self.searches.is_empty()).then_some(Event::Wake(now + PAUSE)));
        events
    }

    /// Returns the peers that are searched for, their sessions' indices, which `current` tells, and where to ask for each now. Searches for peers
    /// without a session end.
    fn next_questions(
        &mut self,
        current: impl Fn(HostLabel) -> Option<u32>,
        rng: &mut impl Rng,
        now: Time,
    ) -> Vec<(HostLabel, u32, Vec<SocketAddr>)> {
        let mut next = Vec::new();
        self.searches.retain_mut(|Search { peer, seen, questions }| {
            let Some(index) = current(*peer) else { return false };
            if next.len() == SEARCHES_AT_ONCE {
                return true;
            }
            let begin = || Questions { began: now, ports: ports_to_ask(seen, rng), asked: 0 };
            let questions = questions.get_or_insert_with(begin);
            next.push((*peer, index, questions.next(now).to_vec()));
            !questions.are_over()
        });
        next
    }
}

impl Questions {
    /// The ports to ask at now.
    fn next(&mut self, now: Time) -> &[SocketAddr] {
        let earned = now.since(self.began).as_millis() as usize * QUESTIONS_PER_SECOND / 1000;
        let until = earned.min(self.asked + QUESTIONS_AT_ONCE).min(self.ports.len());
        let from = self.asked;
        self.asked = until.max(from);
        &self.ports[from..self.asked]
    }

    fn are_over(&self) -> bool {
        self.asked == self.ports.len()
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

/// Whether an address may be a NAT's.
fn may_be_outside(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_broadcast)
}

/// Ports of the NAT that others see a peer behind, the likely ones first.
fn ports_to_ask(seen: &[SocketAddr], rng: &mut impl Rng) -> Vec<SocketAddr> {
    let Some(ip) = seen.first().map(SocketAddr::ip) else { return Vec::new() };
    let known: Vec<u16> = seen.iter().filter(|seen| seen.ip() == ip).map(SocketAddr::port).collect();
    let around = |away: u16| known.iter().flat_map(move |port| [port.checked_add(away), port.checked_sub(away)]);
    let near = (1..=NEAR).flat_map(around).flatten().filter(|port| *port >= LOWEST_PORT);
    let any = rand::seq::index::sample(rng, usize::from(u16::MAX - LOWEST_PORT) + 1, QUESTIONS);
    let any = any.into_iter().map(|number| LOWEST_PORT + number as u16);
    let mut met = BTreeSet::new();
    let ports = near.chain(any).filter(|port| met.insert(*port)).take(QUESTIONS);
    ports.map(|port| SocketAddr::new(ip, port)).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    use super::*;
    use crate::api::Usage;
    use crate::path::Transport;
    use crate::topology::Topology;
    use crate::topology::lab::*;

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::from_seed([1; 32])
    }

    /// A peer that says that others see it at an address.
    fn seen_peer() -> Peer {
        let mut topology = lone();
        topology.meet(PEER, Default::default());
        let mut peer = topology.peers.remove(&PEER).unwrap();
        peer.seen = Some(vec![OWN_ADDRESS]);
        peer
    }

    #[test]
    fn one_peer_is_searched_for_ever_more_seldom_and_only_where_a_nat_may_be() {
        let mut peer = seen_peer();
        let mut when = Vec::new();
        for second in 0..1000 {
            let mut prediction = Prediction::new(at(0));
            if prediction.begin(PEER, &mut peer, &[], at(second * 1000)) {
                when.push(second);
            }
        }
        assert_eq!(when, [0, 5, 15, 35, 75, 155, 315, 635]);
        for ip in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "203.0.113.77"] {
            let mut peer = seen_peer();
            let at_ip = SocketAddr::new(ip.parse().unwrap(), 4000);
            peer.seen = Some(vec![at_ip]);
            let own = [SocketAddr::from(([203, 0, 113, 77], 6783))];
            assert!(!Prediction::new(at(0)).begin(PEER, &mut peer, &own, at(0)), "{ip}");
        }
    }

    #[test]
    fn likely_ports_are_asked_first_and_each_once() {
        let seen = [40_000, 1030].map(|port| SocketAddr::from(([203, 0, 113, 9], port)));
        let ports = ports_to_ask(&seen, &mut rng());
        assert_eq!(ports.len(), QUESTIONS);
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), QUESTIONS);
        assert!(ports.iter().all(|at| at.ip() == seen[0].ip() && at.port() >= LOWEST_PORT));
        assert_eq!(ports[..4].iter().map(SocketAddr::port).collect::<Vec<_>>(), [40_001, 39_999, 1031, 1029]);
        assert!(ports_to_ask(&[], &mut rng()).is_empty());
    }

    /// The session's index with any peer.
    fn in_session(_: HostLabel) -> Option<u32> {
        Some(7)
    }

    #[test]
    fn a_search_is_slow_and_ends() {
        let mut prediction = Prediction::new(at(0));
        assert!(prediction.begin(PEER, &mut seen_peer(), &[], at(0)));
        let (mut asked, mut now) = (0, 0);
        while let [(peer, _, to)] = &prediction.next_questions(in_session, &mut rng(), at(now))[..] {
            assert!(*peer == PEER && to.len() <= QUESTIONS_AT_ONCE);
            asked += to.len();
            now += 50;
        }
        assert_eq!(asked, QUESTIONS);
        assert!((6000..7000).contains(&now), "{now}");
    }

    /// Some peer.
    fn label(n: u64) -> HostLabel {
        HostLabel([0, 0, 0, 1, (n >> 8) as u8, n as u8])
    }

    #[test]
    fn a_few_peers_are_searched_for_at_once_and_others_after_them() {
        let mut prediction = Prediction::new(at(0));
        let begun: Vec<u64> = (0..20).filter(|n| prediction.begin(label(*n), &mut seen_peer(), &[], at(0))).collect();
        assert_eq!(begun, (0..SEARCHES).collect::<Vec<_>>());
        let (mut when, mut now) = (Vec::new(), 0);
        while !prediction.searches.is_empty() {
            let questions = prediction.next_questions(in_session, &mut rng(), at(now));
            assert!(questions.len() <= SEARCHES_AT_ONCE);
            when.extend(questions.iter().map(|(peer, ..)| (*peer, now)));
            now += 50;
        }
        let first = |n| when.iter().find(|(peer, _)| *peer == label(n)).unwrap().1;
        assert_eq!([first(0), first(3)], [0, 0]);
        assert!((6000..7000).contains(&first(4)) && first(4) == first(7) && now < 14_000, "{when:?}");
    }

    #[test]
    fn a_peer_that_moves_is_searched_for_where_it_is_now() {
        let mut prediction = Prediction::new(at(0));
        let mut peer = seen_peer();
        assert!(prediction.begin(PEER, &mut peer, &[], at(0)));
        peer.spreads.hurry(at(10));
        assert!(!prediction.begin(PEER, &mut peer, &[], at(10)), "it is searched for there already");
        let elsewhere = SocketAddr::from(([198, 51, 100, 7], 5000));
        peer.seen = Some(vec![elsewhere]);
        assert!(prediction.begin(PEER, &mut peer, &[], at(20)));
        prediction.next_questions(in_session, &mut rng(), at(20));
        let [(PEER, _, to)] = &prediction.next_questions(in_session, &mut rng(), at(120))[..] else { panic!("one search") };
        assert!(!to.is_empty() && to.iter().all(|to| to.ip() == elsewhere.ip()));
    }

    #[test]
    fn a_peer_that_has_opened_spare_ports_is_searched_for_at_its_nat() {
        let (mut topology, table, _) = topology();
        topology.on_punch(PEER, Punch::Spread, &table, at(0));
        topology.tend_links(true, &table, at(100));
        assert!(topology.prediction.searches.is_empty(), "it has not said where others see it");
        events(&mut topology);
        topology.peers.get_mut(&PEER).unwrap().seen = Some(vec![OWN_ADDRESS]);
        topology.on_punch(PEER, Punch::Spread, &table, at(100));
        topology.tend_links(true, &table, at(100));
        topology.tend_links(true, &table, at(200));
        let is_question = |event: &Event| matches!(event, Event::Straight { to, control: Control::Ping { .. }, .. } if to.remote.ip() == OWN_ADDRESS.ip());
        assert_eq!(events(&mut topology).iter().filter(|event| is_question(event)).count(), QUESTIONS_AT_ONCE);
        topology.tend_links(true, &Table::default(), at(300));
        assert!(topology.prediction.searches.is_empty(), "without a session there are no questions");
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
    fn a_search_ends_with_a_link_a_session_or_the_peer() {
        let (mut topology, table, _) = topology();
        for other in [OWN, PEER] {
            assert!(topology.prediction.begin(other, &mut seen_peer(), &[], at(0)));
        }
        topology.tend_links(true, &table, at(0));
        assert_eq!(topology.prediction.searches.len(), 1, "with one of them there is no session");
        topology.prediction.end(PEER);
        assert!(topology.prediction.searches.is_empty());
        assert!(topology.prediction.begin(PEER, &mut seen_peer(), &[], at(0)));
        topology.remove(PEER);
        assert!(topology.prediction.searches.is_empty());
    }

    #[test]
    fn a_member_cannot_have_an_address_searched_again_and_again() {
        let mut prediction = Prediction::new(at(0));
        let mut asked = 0;
        for now in (0..600_000).step_by(50) {
            // Each time another one says so.
            prediction.begin(label(now), &mut seen_peer(), &[], at(now));
            let questions: usize = prediction.next_questions(in_session, &mut rng(), at(now)).iter().map(|(.., to)| to.len()).sum();
            assert!(questions <= SEARCHES_AT_ONCE * QUESTIONS_AT_ONCE);
            asked += questions;
        }
        let searches = asked.div_ceil(QUESTIONS);
        assert!((10..=(SEARCHES + 600 / SECONDS_PER_SEARCH) as usize).contains(&searches), "{searches}");
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
