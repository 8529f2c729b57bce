//! The search for the port at which a peer's NAT lets this host in, after the peer has opened spare ports: the other half of
//! `prediction`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use weft_crypto::{HostLabel, Time};

use super::prediction::{FIRST_WAIT, LONGEST_WAIT, NO_JITTER};
use super::{Event, Peer, SessionTable};
use crate::bucket::Bucket;
use crate::path::Path;
use crate::wire::{Control, Lane};

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
/// Searches under way and waiting: the last one begins while the peer's ports are open.
const MOST_SEARCHES: usize = 16;
/// Searches in a row in one network, and the seconds that earn one more there; and the same in all networks. Members may say that they are behind
/// strangers' addresses: each search sends 200 kB there, all at once 120 kB/s, and 40 kB/s for long.
const SEARCHES: u64 = 8;
const SECONDS_PER_SEARCH: u64 = 30;
const SEARCH_BUDGET: u64 = SEARCHES * SECONDS_PER_SEARCH;
const SEARCHES_IN_ALL: u64 = 32;
const SECONDS_PER_ANY: u64 = 5;
const BUDGET_IN_ALL: u64 = SEARCHES_IN_ALL * SECONDS_PER_ANY;

/// Searches of this host, for the ports of a few peers at a time.
pub(super) struct PortSearch {
    /// The first [`SEARCHES_AT_ONCE`] are under way.
    searches: Vec<Search>,
    /// What is left for each network that was searched lately, and when it last was.
    budgets: BTreeMap<IpAddr, (Bucket, Time)>,
    in_all: Bucket,
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

impl PortSearch {
    pub(super) fn new(now: Time) -> Self {
        PortSearch { searches: Vec::new(), budgets: BTreeMap::new(), in_all: Bucket::new(BUDGET_IN_ALL, now) }
    }

    /// Has the open ports of a peer searched for at the address at which it says that others see it, none of this host's `own`. False if it is
    /// seen nowhere that a NAT can be, if that was done a moment ago, or if the budget of its network or of all is used up.
    pub(super) fn begin(&mut self, label: HostLabel, peer: &mut Peer, own: &[SocketAddr], now: Time) -> bool {
        let seen = peer.seen.as_deref().unwrap_or_default();
        let Some(ip) = seen.first().map(SocketAddr::ip) else { return false };
        let may_be = may_be_outside(ip) && !own.iter().any(|own| own.ip() == ip);
        let is_same = |search: &Search| search.peer == label && search.seen.first().is_some_and(|seen| seen.ip() == ip);
        if !may_be || !peer.spreads.searched.is_due(now) || self.searches.iter().any(is_same) {
            return false;
        }
        let others = self.searches.iter().filter(|search| search.peer != label).count();
        if others >= MOST_SEARCHES || !self.take_search(network_of(ip), now) {
            return false;
        }
        self.end(label);
        self.searches.push(Search { peer: label, seen: seen.to_vec(), questions: None });
        // The peer waits twice as long, if it does as this host would.
        peer.spreads.searched.on_try_from(now, FIRST_WAIT / 2, LONGEST_WAIT / 2, NO_JITTER);
        true
    }

    /// Whether a network may be searched once more; if so, that counts.
    fn take_search(&mut self, network: IpAddr, now: Time) -> bool {
        // What was left untouched for so long is whole again.
        self.budgets.retain(|_, (_, last)| now.since(*last).as_secs() < SEARCH_BUDGET);
        let take = |budget: &mut Bucket| budget.take(SECONDS_PER_SEARCH, 1, SEARCH_BUDGET, now);
        // A network that is used up costs the others nothing, and one that is refused takes no memory.
        let is_used_up = self.budgets.get_mut(&network).is_some_and(|(budget, _)| !take(budget));
        if is_used_up || !self.in_all.take(SECONDS_PER_ANY, 1, BUDGET_IN_ALL, now) {
            return false;
        }
        let first = || (Bucket::new(SEARCH_BUDGET - SECONDS_PER_SEARCH, now), now);
        self.budgets.entry(network).or_insert_with(first).1 = now;
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

/// Whether an address may be a NAT's.
fn may_be_outside(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_broadcast)
}

/// The network that an address is in, as far as one holder goes: a /24, or a /48 of IPv6.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & !0 << 8).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !0 << 80).into(),
    }
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
    use crate::topology::lab::*;
    use crate::topology::prediction::Spreads;
    use crate::wire::Punch;

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
            let mut search = PortSearch::new(at(0));
            if search.begin(PEER, &mut peer, &[], at(second * 1000)) {
                when.push(second);
            }
        }
        assert_eq!(when, [0, 5, 15, 35, 75, 155, 315, 635]);
        for ip in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "203.0.113.77"] {
            let mut peer = seen_peer();
            let at_ip = SocketAddr::new(ip.parse().unwrap(), 4000);
            peer.seen = Some(vec![at_ip]);
            let own = [SocketAddr::from(([203, 0, 113, 77], 6783))];
            assert!(!PortSearch::new(at(0)).begin(PEER, &mut peer, &own, at(0)), "{ip}");
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
        let mut search = PortSearch::new(at(0));
        assert!(search.begin(PEER, &mut seen_peer(), &[], at(0)));
        let (mut asked, mut now) = (0, 0);
        while let [(peer, _, to)] = &search.next_questions(in_session, &mut rng(), at(now))[..] {
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
        let mut search = PortSearch::new(at(0));
        let begun: Vec<u64> = (0..20).filter(|n| search.begin(label(*n), &mut seen_peer(), &[], at(0))).collect();
        assert_eq!(begun, (0..SEARCHES).collect::<Vec<_>>());
        let (mut when, mut now) = (Vec::new(), 0);
        while !search.searches.is_empty() {
            let questions = search.next_questions(in_session, &mut rng(), at(now));
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
        let mut search = PortSearch::new(at(0));
        let mut peer = seen_peer();
        assert!(search.begin(PEER, &mut peer, &[], at(0)));
        peer.spreads.hurry(at(10));
        assert!(!search.begin(PEER, &mut peer, &[], at(10)), "it is searched for there already");
        let elsewhere = SocketAddr::from(([198, 51, 100, 7], 5000));
        peer.seen = Some(vec![elsewhere]);
        assert!(search.begin(PEER, &mut peer, &[], at(20)));
        search.next_questions(in_session, &mut rng(), at(20));
        let [(PEER, _, to)] = &search.next_questions(in_session, &mut rng(), at(120))[..] else { panic!("one search") };
        assert!(!to.is_empty() && to.iter().all(|to| to.ip() == elsewhere.ip()));
    }

    #[test]
    fn a_peer_that_has_opened_spare_ports_is_searched_for_at_its_nat() {
        let (mut topology, table, _) = topology();
        topology.on_punch(PEER, Punch::Spread, &table, at(0));
        topology.tend_links(true, &table, at(100));
        assert!(topology.port_search.searches.is_empty(), "it has not said where others see it");
        events(&mut topology);
        topology.peers.get_mut(&PEER).unwrap().seen = Some(vec![OWN_ADDRESS]);
        topology.on_punch(PEER, Punch::Spread, &table, at(100));
        topology.tend_links(true, &table, at(100));
        topology.tend_links(true, &table, at(200));
        let is_question = |event: &Event| matches!(event, Event::Straight { to, control: Control::Ping { .. }, .. } if to.remote.ip() == OWN_ADDRESS.ip());
        assert_eq!(events(&mut topology).iter().filter(|event| is_question(event)).count(), QUESTIONS_AT_ONCE);
        topology.tend_links(true, &Table::default(), at(300));
        assert!(topology.port_search.searches.is_empty(), "without a session there are no questions");
    }

    #[test]
    fn a_search_ends_with_a_link_a_session_or_the_peer() {
        let (mut topology, table, _) = topology();
        for other in [OWN, PEER] {
            assert!(topology.port_search.begin(other, &mut seen_peer(), &[], at(0)));
        }
        topology.tend_links(true, &table, at(0));
        assert_eq!(topology.port_search.searches.len(), 1, "with one of them there is no session");
        topology.port_search.end(PEER);
        assert!(topology.port_search.searches.is_empty());
        assert!(topology.port_search.begin(PEER, &mut seen_peer(), &[], at(0)));
        topology.remove(PEER);
        assert!(topology.port_search.searches.is_empty());
    }

    #[test]
    fn a_member_cannot_have_an_address_searched_again_and_again() {
        let mut search = PortSearch::new(at(0));
        let mut asked = 0;
        for now in (0..600_000).step_by(50) {
            // Each time another one says so.
            search.begin(label(now), &mut seen_peer(), &[], at(now));
            let questions: usize =
                search.next_questions(in_session, &mut rng(), at(now)).iter().map(|(.., to)| to.len()).sum();
            assert!(questions <= SEARCHES_AT_ONCE * QUESTIONS_AT_ONCE);
            asked += questions;
        }
        let searches = asked.div_ceil(QUESTIONS);
        assert!((10..=(SEARCHES + 600 / SECONDS_PER_SEARCH) as usize).contains(&searches), "{searches}");
    }

    #[test]
    fn a_network_that_is_searched_often_keeps_no_other_waiting() {
        let mut search = PortSearch::new(at(0));
        let mut begins = |n: u64, ip: String| {
            let mut peer = seen_peer();
            peer.seen = Some(vec![SocketAddr::new(ip.parse().unwrap(), 4000)]);
            search.begin(label(n), &mut peer, &[], at(0))
        };
        let of_one = (0..20).filter(|n| begins(*n, format!("192.0.2.{n}"))).count();
        assert_eq!(of_one as u64, SEARCHES);
        let of_another = (20..40).filter(|n| begins(*n, format!("2001:db8:{n}::1"))).count();
        assert_eq!(of_one + of_another, MOST_SEARCHES, "those after them would come too late");
        let mut search = PortSearch::new(at(0));
        let mut begins = |n: u64| {
            let mut peer = seen_peer();
            peer.seen = Some(vec![SocketAddr::new(format!("2001:db8:7:{n}::1").parse().unwrap(), 4000)]);
            search.begin(label(n), &mut peer, &[], at(0))
        };
        assert_eq!((0..20).filter(|n| begins(*n)).count() as u64, SEARCHES, "one holder has them all");
    }

    #[test]
    fn members_that_name_any_number_of_networks_have_no_more_asked_at_once() {
        let (mut search, mut peer) = (PortSearch::new(at(0)), seen_peer());
        let mut asked = 0;
        for now in (0..600_000).step_by(50) {
            peer.spreads = Spreads::default();
            peer.seen = Some(vec![SocketAddr::from(([20, (now >> 16) as u8, (now >> 8) as u8, now as u8], 4000))]);
            search.begin(label(now), &mut peer, &[], at(now));
            asked +=
                search.next_questions(in_session, &mut rng(), at(now)).iter().map(|(.., to)| to.len()).sum::<usize>();
        }
        let searches = asked.div_ceil(QUESTIONS) as u64;
        assert!((140..=SEARCHES_IN_ALL + 600 / SECONDS_PER_ANY).contains(&searches), "{searches}");
        assert!(search.budgets.len() < 200, "{}", search.budgets.len());
    }
}
