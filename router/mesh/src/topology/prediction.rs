//! Port prediction: a direct link where one host's NAT maps each destination to another port, and the other's admits only datagrams from
//! addresses and ports that its host has sent to.
//!
//! At which port such a NAT lets the peer in is known to neither host. So the one behind it opens many spare ports towards the peer, each of
//! which its NAT maps to a port, and the peer asks at ports of the NAT: those near to the ones that others see, then any, until one of
//! them is mapped. With 256 of 64,512 it has found one after 175 questions half of the time, after 2,048 in all cases but one of 3,600 (a birthday
//! problem; Ford, Srisuresh, Kegel, "Peer-to-Peer Communication Across Network Address Translators", 2005, section 5.1, has prediction
//! alone). The question that gets in is answered from the spare port, and the link goes by it.

use std::collections::{BTreeSet, VecDeque};
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
/// Peers in a row towards which spare ports are opened, and the seconds that earn one more: carriers give a customer some thousand ports, and
/// keep each for 30 s.
const SPREADS: u64 = 3;
const SECONDS_PER_SPREAD: u64 = 8;
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
/// Searches at once; how many more wait for their turn, and for how long: the peer's spare ports are open for 30 s, and a search takes six.
const SEARCHES_AT_ONCE: usize = 4;
const MAX_WAITING: usize = 16;
const WAITS_WITHIN: Duration = Duration::from_secs(20);
/// Searches in a row, and the seconds that earn one more. A member may say that it is behind a stranger's address:
/// each search sends 200 kB there.
const SEARCHES: u64 = 8;
const SECONDS_PER_SEARCH: u64 = 30;
const SEARCH_BUDGET: u64 = SEARCHES * SECONDS_PER_SEARCH;

/// Spare ports opened towards one peer, and searches for its own.
#[derive(Default)]
pub(super) struct Spreads {
    opened: Backoff,
    searched: Backoff,
    hurried: Time,
}

impl Spreads {
    /// There is a link: the next time starts over.
    pub(super) fn reset(&mut self, now: Time) {
        self.opened = Backoff::default();
        self.hurry(now);
    }

    /// Allows the next ones at once: one of the hosts has new addresses. Seldom: a peer could have that said again and again, and others
    /// have their share of all searches.
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
    spreads: Bucket,
    searches: Vec<Search>,
    waiting: VecDeque<Wanted>,
    budget: Bucket,
}

/// A peer that is to be searched for.
struct Wanted {
    peer: HostLabel,
    since: Time,
    /// Where others see it.
    seen: Vec<SocketAddr>,
}

/// A search for the port at which a peer's NAT lets this host in.
struct Search {
    peer: HostLabel,
    began: Time,
    ports: Vec<SocketAddr>,
    asked: usize,
}

impl Prediction {
    pub(super) fn new(now: Time) -> Self {
        Prediction {
            spreads: Bucket::new(SPREAD_BUDGET, now),
            searches: Vec::new(),
            waiting: VecDeque::new(),
            budget: Bucket::new(SEARCH_BUDGET, now),
        }
    }

    /// Has spare ports opened towards a peer, and the peer told, if rounds have not led to a link and this host's ports are not known from
    /// what others see.
    pub(super) fn spread(
        &mut self,
        label: HostLabel,
        peer: &mut Peer,
        own: &OwnAddresses,
        now: Time,
    ) -> Option<[Event; 2]> {
        let is_time = peer.spreads.opened.is_due(now) && peer.punching.waited(now) >= ROUNDS_FIRST;
        if !is_time || !own.is_mapped_elsewhere() || !self.spreads.take(SECONDS_PER_SPREAD, 1, SPREAD_BUDGET, now) {
            return None;
        }
        let towards = peer.outsides(own.local());
        peer.spreads.opened.on_try_from(now, FIRST_WAIT, LONGEST_WAIT, NO_JITTER);
        if towards.is_empty() {
            return None;
        }
        Some([Event::Spread { towards }, Event::Message(label, Control::Punch(Punch::Spread))])
    }

    /// Wants the open ports of a peer to be searched for at the address at which it says that others see it, none of this host's `own`; false if
    /// that was done a moment ago, or too many others are waiting.
    pub(super) fn begin(&mut self, label: HostLabel, peer: &mut Peer, own: &[SocketAddr], now: Time) -> bool {
        let seen = peer.seen.as_deref().unwrap_or_default();
        let may_be = |seen: &SocketAddr| may_be_outside(seen.ip()) && !own.iter().any(|own| own.ip() == seen.ip());
        let is_known = self.searches.iter().any(|search| search.peer == label)
            || self.waiting.iter().any(|wanted| wanted.peer == label);
        if is_known || self.waiting.len() >= MAX_WAITING || !peer.spreads.searched.is_due(now) {
            return false;
        }
        if !seen.first().is_some_and(may_be) {
            return false;
        }
        self.waiting.push_back(Wanted { peer: label, since: now, seen: seen.to_vec() });
        // The peer waits twice as long, if it does as this host would.
        peer.spreads.searched.on_try_from(now, FIRST_WAIT / 2, LONGEST_WAIT / 2, NO_JITTER);
        true
    }

    /// There is a link with a peer.
    pub(super) fn end(&mut self, peer: HostLabel) {
        self.searches.retain(|search| search.peer != peer);
        self.waiting.retain(|wanted| wanted.peer != peer);
    }

    /// Asks at the next ports, and wants to be called again, while peers are searched for.
    pub(super) fn search(&mut self, sessions: &impl SessionTable, rng: &mut impl Rng, now: Time) -> Vec<Event> {
        let mut events = Vec::new();
        for (peer, to) in self.questions(rng, now) {
            let Some(index) = sessions.current(peer) else {
                self.end(peer);
                continue;
            };
            events.extend(to.into_iter().map(|seen| {
                // The peer asks back from where this gets to; nothing else comes of it.
                let control = Control::Ping { id: rng.next_u32(), lane: Lane::Main, seen };
                Event::Straight { peer, index, to: Path::udp(seen), lane: Lane::Main, control, size: 0 }
            }));
        }
        if !(self.searches.is_empty() && self.waiting.is_empty()) {
            events.push(Event::Wake(now + PAUSE));
        }
        events
    }

    /// Returns the peers that are searched for, and where to ask for each now.
    fn questions(&mut self, rng: &mut impl Rng, now: Time) -> Vec<(HostLabel, Vec<SocketAddr>)> {
        self.start_waiting(rng, now);
        let mut questions = Vec::with_capacity(self.searches.len());
        self.searches.retain_mut(|search| {
            questions.push((search.peer, search.next_ports(now).to_vec()));
            search.asked < search.ports.len()
        });
        questions
    }

    /// Starts the searches for which there is room.
    fn start_waiting(&mut self, rng: &mut impl Rng, now: Time) {
        self.waiting.retain(|wanted| now.since(wanted.since) < WAITS_WITHIN);
        while self.searches.len() < SEARCHES_AT_ONCE && !self.waiting.is_empty() {
            if !self.budget.take(SECONDS_PER_SEARCH, 1, SEARCH_BUDGET, now) {
                return;
            }
            let Some(Wanted { peer, seen, .. }) = self.waiting.pop_front() else { return };
            self.searches.push(Search { peer, began: now, ports: ports_to_ask(&seen, rng), asked: 0 });
        }
    }
}

impl Search {
    /// The ports to ask at now.
    fn next_ports(&mut self, now: Time) -> &[SocketAddr] {
        let earned = now.since(self.began).as_millis() as usize * QUESTIONS_PER_SECOND / 1000;
        let until = earned.min(self.asked + QUESTIONS_AT_ONCE).min(self.ports.len());
        let from = self.asked;
        self.asked = until.max(from);
        &self.ports[from..self.asked]
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
    use crate::topology::lab::*;

    impl Prediction {
        fn is_idle(&self) -> bool {
            self.searches.is_empty() && self.waiting.is_empty()
        }
    }

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

    #[test]
    fn a_search_is_slow_and_ends() {
        let mut prediction = Prediction::new(at(0));
        assert!(prediction.begin(PEER, &mut seen_peer(), &[], at(0)));
        let (mut asked, mut now) = (0, 0);
        while let [(peer, to)] = &prediction.questions(&mut rng(), at(now))[..] {
            assert!(*peer == PEER && to.len() <= QUESTIONS_AT_ONCE);
            asked += to.len();
            now += 50;
        }
        assert_eq!(asked, QUESTIONS);
        assert!((6000..7000).contains(&now), "{now}");
    }

    #[test]
    fn a_few_peers_are_searched_for_at_once_and_others_after_them_while_their_ports_are_open() {
        let mut prediction = Prediction::new(at(0));
        let peer = |n: usize| HostLabel([0, 0, 0, 0, 1, n as u8]);
        let taken = (0..2 * MAX_WAITING).filter(|n| prediction.begin(peer(*n), &mut seen_peer(), &[], at(0)));
        assert_eq!(taken.count(), MAX_WAITING);
        assert!(!prediction.begin(peer(0), &mut seen_peer(), &[], at(0)), "it waits already");
        let (mut searched, mut most, mut last) = (BTreeSet::new(), 0, 0);
        for now in (0..60_000).step_by(50) {
            let questions = prediction.questions(&mut rng(), at(now));
            most = most.max(questions.len());
            for (peer, _) in questions {
                searched.insert(peer);
                last = now;
            }
        }
        assert_eq!(most, SEARCHES_AT_ONCE);
        assert_eq!(searched.into_iter().collect::<Vec<_>>(), (0..SEARCHES as usize).map(peer).collect::<Vec<_>>());
        assert!((12_000..14_000).contains(&last), "{last}");
    }

    #[test]
    fn a_peer_that_has_opened_spare_ports_is_searched_for_at_its_nat() {
        let (mut topology, table, _) = topology();
        topology.on_punch(PEER, Punch::Spread, &table, at(0));
        topology.tend_links(true, &table, at(100));
        assert!(topology.prediction.is_idle(), "it has not said where others see it");
        events(&mut topology);
        topology.peers.get_mut(&PEER).unwrap().seen = Some(vec![OWN_ADDRESS]);
        topology.on_punch(PEER, Punch::Spread, &table, at(100));
        topology.tend_links(true, &table, at(100));
        topology.tend_links(true, &table, at(200));
        let is_question = |event: &Event| matches!(event, Event::Straight { to, control: Control::Ping { .. }, .. } if to.remote.ip() == OWN_ADDRESS.ip());
        assert_eq!(events(&mut topology).iter().filter(|event| is_question(event)).count(), QUESTIONS_AT_ONCE);
        topology.tend_links(true, &Table::default(), at(300));
        assert!(topology.prediction.is_idle(), "without a session there are no questions");
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
    fn a_search_ends_with_a_link() {
        let mut prediction = Prediction::new(at(0));
        let (mut searched, mut waits) = (seen_peer(), seen_peer());
        assert!(prediction.begin(PEER, &mut searched, &[], at(0)));
        prediction.end(OWN);
        assert_eq!(prediction.questions(&mut rng(), at(100)).len(), 1);
        prediction.end(PEER);
        assert!(prediction.is_idle());
        assert!(prediction.begin(PEER, &mut waits, &[], at(200)));
        prediction.end(PEER);
        assert!(prediction.is_idle());
    }

    #[test]
    fn a_member_cannot_have_an_address_searched_again_and_again() {
        let mut prediction = Prediction::new(at(0));
        let mut asked = 0;
        for now in (0..600_000).step_by(50) {
            // Each time another one.
            prediction.begin(PEER, &mut seen_peer(), &[], at(now));
            asked += prediction.questions(&mut rng(), at(now)).iter().map(|(_, to)| to.len()).sum::<usize>();
        }
        let searches = asked.div_ceil(QUESTIONS);
        assert!((10..=(SEARCHES + 600 / SECONDS_PER_SEARCH) as usize).contains(&searches), "{searches}");
    }

    #[test]
    fn spare_ports_are_opened_after_rounds_and_ever_more_seldom() {
        let mut topology = lone();
        topology.meet(PEER, Default::default());
        let peer = topology.peers.get_mut(&PEER).unwrap();
        peer.seen = Some(vec![remote().remote]);
        let mut spread = |own: &OwnAddresses| {
            let mut when = Vec::new();
            for second in 0..20_000 {
                let now = at(second * 1000);
                if let Some([Event::Spread { towards }, Event::Message(PEER, Control::Punch(Punch::Spread))]) =
                    topology.prediction.spread(PEER, topology.peers.get_mut(&PEER).unwrap(), own, now)
                {
                    assert_eq!(towards, [remote()]);
                    when.push(second);
                }
            }
            when
        };
        let mut own = OwnAddresses::new(crate::topology::own_addresses::OwnReach::at_port(6783), at(0));
        own.note_seen(PEER, SocketAddr::from(([203, 0, 113, 1], 6783)), at(0));
        assert_eq!(spread(&own), [0; 0], "its NAT leaves ports as they are");
        own.note_seen(PEER, SocketAddr::from(([203, 0, 113, 1], 50_000)), at(10_000));
        assert_eq!(spread(&own), [2, 12, 32, 72, 152, 312, 632, 1272, 2552, 5112, 8712, 12_312, 15_912, 19_512]);
    }
}
