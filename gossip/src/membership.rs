//! Who is alive, by foca's SWIM (Das, Gupta, Motivala, 2002).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Codec, Config, Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams, PostcardCodec,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use weft_crypto::{HostLabel, Time};

/// The longest SWIM packet, in bytes.
pub const MAX_PACKET: usize = 1024;

/// Hosts kept apart, dead ones included: one member could make up any number.
const MAX_MEMBERS: usize = 16_384;

/// How often a member is probed, members are introduced anew, and what is new is said.
const PROBE: Duration = Duration::from_secs(1);
const ANNOUNCE: Duration = Duration::from_secs(5);
const GOSSIP: Duration = Duration::from_millis(500);
/// Time without news after which a mesh is calm, and how much more seldom everything periodic is done in a calm one.
const CALM_AFTER: Duration = Duration::from_secs(30);
const CALM_STRETCH: u32 = 16;
/// The same of gossip: while there is none to pass on it says nothing.
const CALM_GOSSIP_STRETCH: u32 = 128;

/// A member as SWIM sees it: the host, and which life of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberId {
    /// The host.
    pub host: HostLabel,
    /// Higher wins: raised at each start, and when a host finds itself declared down.
    pub life: u64,
}

impl foca::Identity for MemberId {
    type Addr = HostLabel;

    fn renew(&self) -> Option<Self> {
        Some(MemberId { host: self.host, life: self.life + 1 })
    }

    fn addr(&self) -> HostLabel {
        self.host
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.life > adversary.life
    }
}

/// What membership found out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MembershipEvent {
    /// The host is alive.
    Up(HostLabel),
    /// The host left or has been silent for seconds to everyone.
    Down(HostLabel),
}

/// The SWIM state of this host.
pub struct Membership {
    foca: Foca<MemberId, PostcardCodec, ChaCha8Rng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<MemberId>,
    timers: BinaryHeap<Reverse<Due>>,
    scheduled: u64,
    /// From when on the mesh is calm, unless there is news.
    calm_from: Time,
    rejected: u64,
}

struct Due {
    at: Time,
    /// Keeps timers of one instant in the order they were set.
    order: u64,
    timer: foca::Timer<MemberId>,
}

impl Due {
    fn key(&self) -> (Time, u64) {
        (self.at, self.order)
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Membership {
    /// Returns a member without peers. `seed` drives the choice of whom to probe.
    pub fn new(host: HostLabel, incarnation: u64, seed: u64) -> Self {
        // Room for a host to renew itself within one incarnation.
        let id = MemberId { host, life: incarnation << 20 };
        Membership {
            foca: Foca::new(id, config(), ChaCha8Rng::seed_from_u64(seed), PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
            scheduled: 0,
            calm_from: Time::ZERO,
            rejected: 0,
        }
    }

    /// Introduces this host to `peer`, whose present life need not be known.
    pub fn announce(&mut self, peer: HostLabel, now: Time) {
        self.hurry(now);
        // It fails only on encoding, which a plain identity cannot.
        let _ = self.foca.announce(MemberId { host: peer, life: 0 }, &mut self.runtime);
        self.collect_timers(now);
    }

    /// Takes a SWIM packet that `from` is proven to have sent; a packet that claims another source is dropped.
    pub fn receive(&mut self, from: HostLabel, packet: &[u8], now: Time) {
        let header = PostcardCodec.decode_header(packet);
        let is_full = self.foca.iter_membership_state().len() >= MAX_MEMBERS;
        if is_full || !header.is_ok_and(|header: foca::Header<MemberId>| header.src.host == from) {
            self.rejected += 1;
            return;
        }
        // An error leaves foca's state usable and concerns this packet alone.
        if self.foca.handle_data(packet, &mut self.runtime).is_err() {
            self.rejected += 1;
        }
        self.collect_timers(now);
    }

    /// Runs the timers that are due.
    pub fn handle_timeout(&mut self, now: Time) {
        while self.timers.peek().is_some_and(|Reverse(due)| due.at <= now) {
            let Some(Reverse(due)) = self.timers.pop() else { break };
            let asks_others = matches!(due.timer, foca::Timer::SendIndirectProbe { .. });
            if self.foca.handle_timer(due.timer, &mut self.runtime).is_err() {
                self.rejected += 1;
            }
            self.collect_timers(now);
            if asks_others && self.runtime.backlog() > 0 {
                // A probe was not answered in time.
                self.hurry(now);
            }
        }
    }

    /// Something happened in the mesh: members are probed as often as at first, from now on and for a while.
    pub fn hurry(&mut self, now: Time) {
        let was_calm = now >= self.calm_from;
        self.calm_from = now + CALM_AFTER;
        if was_calm {
            let sooner = |Reverse(due): Reverse<Due>| {
                let latest = period(&due.timer).map_or(due.at, |period| now + period);
                Reverse(Due { at: due.at.min(latest), ..due })
            };
            self.timers = std::mem::take(&mut self.timers).into_iter().map(sooner).collect();
        }
    }

    /// When [`Membership::handle_timeout`] is next to be called.
    pub fn next_timeout(&self) -> Option<Time> {
        self.timers.peek().map(|Reverse(due)| due.at)
    }

    /// Tells the others that this host leaves.
    pub fn leave(&mut self, now: Time) {
        let _ = self.foca.leave_cluster(&mut self.runtime);
        self.collect_timers(now);
    }

    /// A packet to send.
    pub fn poll_transmit(&mut self) -> Option<(HostLabel, Bytes)> {
        self.runtime.to_send().map(|(to, packet)| (to.host, packet))
    }

    /// Something found out.
    pub fn poll_event(&mut self) -> Option<MembershipEvent> {
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member) => return Some(MembershipEvent::Up(member.host)),
                OwnedNotification::MemberDown(member) => return Some(MembershipEvent::Down(member.host)),
                _ => {}
            }
        }
        None
    }

    /// Members believed alive, this host not counted.
    pub fn alive(&self) -> usize {
        self.foca.num_members()
    }

    /// Packets that were no SWIM packets of their sender.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    fn collect_timers(&mut self, now: Time) {
        if self.foca.updates_backlog() > 0 {
            self.hurry(now);
        }
        let is_calm = now >= self.calm_from;
        let stretch = |timer: &foca::Timer<MemberId>| match timer {
            _ if !is_calm => 1,
            foca::Timer::PeriodicGossip(_) => CALM_GOSSIP_STRETCH,
            _ => CALM_STRETCH,
        };
        while let Some((after, timer)) = self.runtime.to_schedule() {
            let after = period(&timer).map_or(after, |period| period * stretch(&timer));
            self.scheduled += 1;
            self.timers.push(Reverse(Due { at: now + after, order: self.scheduled, timer }));
        }
    }
}

/// How often something is done in a mesh that is not calm, if it is done periodically.
fn period(timer: &foca::Timer<MemberId>) -> Option<Duration> {
    match timer {
        foca::Timer::ProbeRandomMember(_) => Some(PROBE),
        foca::Timer::PeriodicAnnounce(_) | foca::Timer::PeriodicAnnounceDown(_) => Some(ANNOUNCE),
        foca::Timer::PeriodicGossip(_) => Some(GOSSIP),
        _ => None,
    }
}

fn config() -> Config {
    let periodic = |frequency, count| {
        // A non-zero constant.
        let num_members = NonZeroUsize::new(count).expect("non-zero");
        Some(PeriodicParams { frequency, num_members })
    };
    Config {
        probe_period: PROBE,
        probe_rtt: Duration::from_millis(400),
        num_indirect_probes: NonZeroUsize::MIN.saturating_add(2),
        max_transmissions: NonZeroU8::MIN.saturating_add(7),
        suspect_to_down_after: Duration::from_secs(3),
        remove_down_after: Some(Duration::from_secs(3600)),
        max_packet_size: NonZeroUsize::MIN.saturating_add(MAX_PACKET - 1),
        notify_down_members: true,
        // A thousand hosts joining at once had incomplete views for minutes without this.
        periodic_announce: periodic(ANNOUNCE, 3),
        periodic_announce_to_down_members: periodic(ANNOUNCE, 2),
        periodic_gossip: periodic(GOSSIP, 3),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn label(n: u8) -> HostLabel {
        HostLabel([0, 0, 0, 0, 0, n])
    }

    /// Members that hear each other, those in `deaf` excepted, until `end`; what each found out.
    fn run(members: &mut [Membership], deaf: &[usize], from: Time, end: Time) -> Vec<(usize, MembershipEvent)> {
        let mut found = Vec::new();
        let mut now = from;
        while now < end {
            let mut packets: Vec<(usize, HostLabel, Bytes)> = Vec::new();
            for (number, member) in members.iter_mut().enumerate() {
                member.handle_timeout(now);
                packets.extend(std::iter::from_fn(|| member.poll_transmit()).map(|(to, packet)| (number, to, packet)));
                found.extend(std::iter::from_fn(|| member.poll_event()).map(|event| (number, event)));
            }
            for (number, to, packet) in packets {
                assert!(packet.len() <= MAX_PACKET);
                let receiver = usize::from(to.0[5]);
                if !deaf.contains(&number) && !deaf.contains(&receiver) {
                    members[receiver].receive(label(number as u8), &packet, now);
                }
            }
            now += Duration::from_millis(50);
        }
        found
    }

    fn met(count: u8) -> (Vec<Membership>, Time) {
        let start = Time::ZERO + Duration::from_secs(1000);
        let mut members: Vec<Membership> = (0..count).map(|n| Membership::new(label(n), 1, n.into())).collect();
        for number in 1..count {
            members[usize::from(number)].announce(label(number - 1), start);
        }
        let end = start + Duration::from_secs(20);
        let found = run(&mut members, &[], start, end);
        assert!(found.iter().all(|(_, event)| matches!(event, MembershipEvent::Up(_))));
        assert!(members.iter().all(|member| member.alive() == usize::from(count) - 1));
        (members, end)
    }

    #[test]
    fn all_meet_and_a_silent_one_is_down_within_ten_seconds() {
        let (mut members, start) = met(5);
        let found = run(&mut members, &[4], start, start + Duration::from_secs(10));
        let mut told: BTreeMap<usize, Vec<MembershipEvent>> = BTreeMap::new();
        found.into_iter().for_each(|(by, event)| told.entry(by).or_default().push(event));
        for by in 0..4 {
            assert_eq!(told[&by], [MembershipEvent::Down(label(4))]);
        }
        // It was there all the time: once heard again it is up again.
        let back = run(&mut members, &[], start + Duration::from_secs(10), start + Duration::from_secs(30));
        assert!((0..4).all(|by| back.contains(&(by, MembershipEvent::Up(label(4))))));
    }

    #[test]
    fn calm_members_say_little_and_find_a_silent_one_all_the_same() {
        let (mut members, start) = met(5);
        let packets = |members: &mut [Membership], from: Time, seconds: u64| {
            let mut count = 0;
            for tick in 0..seconds * 20 {
                let now = from + Duration::from_millis(50) * tick as u32;
                let mut packets = Vec::new();
                for member in members.iter_mut() {
                    member.handle_timeout(now);
                    let from = member.foca.identity().host;
                    packets
                        .extend(std::iter::from_fn(|| member.poll_transmit()).map(|(to, packet)| (from, to, packet)));
                }
                count += packets.len();
                packets.iter().for_each(|(from, to, packet)| members[usize::from(to.0[5])].receive(*from, packet, now));
            }
            count
        };
        let busy = packets(&mut members, start, 20);
        let calm_from = start + Duration::from_secs(60);
        run(&mut members, &[], start + Duration::from_secs(20), calm_from);
        let calm = packets(&mut members, calm_from, 100);
        assert!(calm < busy, "{calm} in 100 s, {busy} in 20 s");
        let later = calm_from + Duration::from_secs(100);
        members[0].hurry(later);
        let found = run(&mut members, &[4], later, later + Duration::from_secs(15));
        assert!((0..4).all(|by| found.contains(&(by, MembershipEvent::Down(label(4))))), "{found:?}");
    }

    #[test]
    fn one_that_leaves_is_down_at_once() {
        let (mut members, start) = met(3);
        members[2].leave(start);
        let found = run(&mut members, &[], start, start + Duration::from_secs(2));
        assert!((0..2).all(|by| found.contains(&(by, MembershipEvent::Down(label(2))))));
    }

    #[test]
    fn packets_of_another_source_and_junk_change_nothing() {
        let (mut members, now) = met(3);
        members[1].announce(label(0), now);
        let (_, packet) = members[1].poll_transmit().unwrap();
        for (from, packet) in
            [(2, packet.to_vec()), (1, vec![]), (1, vec![0xff; MAX_PACKET]), (1, packet[..5].to_vec())]
        {
            let before = members[0].rejected();
            members[0].receive(label(from), &packet, now);
            assert_eq!(members[0].rejected(), before + 1, "{from} {packet:?}");
            assert!(members[0].poll_transmit().is_none());
        }
        assert_eq!(members[0].alive(), 2);
    }
}
