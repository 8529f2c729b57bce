//! The host's part in handing out addresses: messages and answers of the address state machine wait until the disk has
//! everything it persisted before.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use crate::api::CommandId;
use crate::ipam::ring::Range;
use crate::ipam::{AllocationId, Announcement, Error, Ipam, Named, Output};

/// How often the address state machine is told which hosts can be reached.
const HOSTS_INTERVAL: Duration = Duration::from_millis(200);
/// Messages that wait for the disk, at most; messages beyond are lost, as on the way.
const MAX_HELD_BACK: usize = 4096;

/// What comes of a call.
#[derive(Debug)]
pub(crate) enum Event {
    /// Persist a key, or (with `None`) drop it.
    Persist(Vec<u8>, Option<Vec<u8>>),
    /// Answer with [`Addresses::on_durable`] once everything persisted so far is on disk, or could not be written.
    Durable(u64),
    /// A message to a host.
    Send(HostLabel, Vec<u8>),
    /// This host's record of a ring.
    Announce(Range, Announcement),
    /// The answer to a request for an address.
    Address(CommandId, Result<Ipv4Addr, Error>),
    /// The answer to another request; the host whose addresses were taken back, if it was about that.
    Done(CommandId, Result<(), Error>, Option<HostLabel>),
    /// The answer to a request that was not written down: it is not carried out.
    NotKept(CommandId),
    /// An address that this host handed out is another's.
    Fenced(AllocationId, Ipv4Addr),
}

/// The address state machine, and what may be said only once the disk has what was said before.
pub(crate) struct Addresses {
    ipam: Ipam,
    next_hosts: Time,
    /// How often the disk was asked to say when it has everything, and the last answer.
    mark: u64,
    durable: u64,
    held_back: VecDeque<(u64, Output)>,
    /// Addresses that this host handed out and lost to others.
    fenced: BTreeMap<AllocationId, Ipv4Addr>,
    /// Hosts whose addresses are being taken back, by the commands that want it.
    reclaiming: BTreeMap<CommandId, HostLabel>,
    events: VecDeque<Event>,
}

impl Addresses {
    pub(crate) fn new(ipam: Ipam) -> Self {
        Addresses {
            ipam,
            next_hosts: Time::ZERO,
            mark: 0,
            durable: 0,
            held_back: VecDeque::new(),
            fenced: BTreeMap::new(),
            reclaiming: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.ipam.next_timeout()
    }

    /// The address state machine, for requests. Their answers come as events of [`Addresses::tend`].
    pub(crate) fn ipam(&mut self) -> &mut Ipam {
        &mut self.ipam
    }

    /// The peers that the operator named have changed: the address state machine hears of it before anything else.
    pub(crate) fn look_at_hosts(&mut self) {
        self.next_hosts = Time::ZERO;
    }

    /// Whether [`Addresses::set_hosts`] is due.
    pub(crate) fn wants_hosts(&self, now: Time) -> bool {
        now >= self.next_hosts
    }

    /// Tells which hosts the operator named, and which can be reached.
    pub(crate) fn set_hosts(
        &mut self,
        named: Vec<Named>,
        reachable: impl Iterator<Item = HostLabel> + Clone,
        now: Time,
    ) {
        self.next_hosts = now + HOSTS_INTERVAL;
        self.ipam.set_hosts(named, reachable, now);
    }

    /// Releases the address of an allocation, a fenced one included.
    pub(crate) fn release(&mut self, range: Range, allocation: AllocationId, now: Time) {
        self.ipam.release(range, allocation, now);
        self.fenced.remove(&allocation);
    }

    /// Notes that no endpoint of this host uses a fenced address any more.
    pub(crate) fn unfence(&mut self, address: Ipv4Addr) {
        self.fenced.retain(|_, fenced| *fenced != address);
    }

    /// Returns the addresses that this host has handed out of a range.
    pub(crate) fn allocations(&self, range: Range) -> Vec<(Ipv4Addr, AllocationId)> {
        self.ipam.allocations(range).map(|(address, id, _)| (address, id)).collect()
    }

    /// Takes back the addresses of a host that is off for good.
    pub(crate) fn reclaim(&mut self, id: CommandId, host: HostLabel, now: Time) {
        self.reclaiming.insert(id, host);
        self.ipam.give_up(id, host, now);
    }

    /// Addresses that this host had handed out and that turned out to be others'.
    pub(crate) fn fenced(&self) -> Vec<Ipv4Addr> {
        self.fenced.values().copied().collect()
    }

    /// How the rings stand.
    pub(crate) fn rings(&self) -> Vec<crate::ipam::RingStatus> {
        self.ipam.status()
    }

    /// The range of the ring that an address is in, and the host that may have it: the holder, if it is lent the address; none if its window
    /// is closed.
    pub(crate) fn right_to(&self, address: Ipv4Addr, holder: HostLabel) -> Option<(Range, Option<HostLabel>)> {
        let ranges = self.ipam.status().into_iter().map(|ring| ring.range).filter(|range| range.contains(address));
        let ring = ranges.filter_map(|range| self.ipam.ring(range)).min_by_key(|ring| ring.range.size())?;
        let window = || ring.holder_of(address).filter(|window| !window.retired).map(|window| window.holder);
        Some((ring.range, if ring.is_entitled(holder, address) { Some(holder) } else { window() }))
    }

    /// Lets the address state machine go on, and takes what it says.
    pub(crate) fn tend(&mut self, now: Time) {
        if self.next_timeout().is_some_and(|at| at <= now) {
            self.ipam.handle_timeout(now);
        }
        let mut is_unsynced = false;
        while let Some(said) = self.ipam.poll_output() {
            match said {
                Output::Persist(key, value) => {
                    self.events.push_back(Event::Persist(key, value));
                    is_unsynced = true;
                }
                Output::Fence(id, address) => {
                    self.fenced.insert(id, address);
                    self.events.push_back(Event::Fenced(id, address));
                }
                said => {
                    let mark = self.mark + u64::from(is_unsynced);
                    let is_message = matches!(said, Output::Send(..));
                    if !is_message || self.held_back.len() < MAX_HELD_BACK {
                        self.held_back.push_back((mark, said));
                    }
                }
            }
        }
        if is_unsynced {
            self.mark += 1;
            self.events.push_back(Event::Durable(self.mark));
        }
        self.say_held_back();
    }

    /// The disk has everything that was persisted before a mark, or could not take it. Requests for addresses fail in
    /// the latter case; messages to others wait until a later write takes everything.
    pub(crate) fn on_durable(&mut self, mark: u64, is_kept: bool) {
        if is_kept {
            self.durable = self.durable.max(mark);
            return self.say_held_back();
        }
        for (needs, said) in std::mem::take(&mut self.held_back) {
            match said {
                Output::Reply(ticket, _) | Output::Done(ticket, _) if needs <= mark => {
                    self.events.push_back(Event::NotKept(ticket));
                }
                said => self.held_back.push_back((needs, said)),
            }
        }
    }

    fn say_held_back(&mut self) {
        let durable = self.durable;
        while self.held_back.front().is_some_and(|(needs, _)| *needs <= durable) {
            let Some((_, said)) = self.held_back.pop_front() else { return };
            let event = match said {
                Output::Send(to, bytes) => Event::Send(to, bytes),
                Output::Reply(ticket, result) => Event::Address(ticket, result),
                Output::Done(ticket, result) => {
                    let host = self.reclaiming.remove(&ticket).filter(|_| result.is_ok());
                    Event::Done(ticket, result, host)
                }
                Output::Announce(range, announcement) => Event::Announce(range, announcement),
                Output::Persist(..) | Output::Fence(..) => continue,
            };
            self.events.push_back(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::{Request, Setup};

    /// Asks a host alone for an address, and lets time pass until it answers; the disk answers with `is_kept`.
    fn allocate(is_kept: impl Fn(u64) -> bool) -> (Addresses, Vec<Event>) {
        let (own, mut now) = (HostLabel([1; 6]), Time::ZERO);
        let setup = Setup { own, entropy: [7; 32], grace: HOSTS_INTERVAL, founds_alone: false, continues: false, now };
        let mut addresses = Addresses::new(Ipam::new(setup, &BTreeMap::new()));
        let range = Range::new([10, 32, 0, 0].into(), 12).unwrap();
        addresses.ipam().allocate(1, Request { range, id: [1; 16], want: None, within: None }, now);
        let mut said = Vec::new();
        for _ in 0..200 {
            now += Duration::from_millis(100);
            if addresses.wants_hosts(now) {
                addresses.set_hosts(Vec::new(), std::iter::empty(), now);
            }
            addresses.tend(now);
            while let Some(event) = addresses.poll_event() {
                if let Event::Durable(mark) = event {
                    addresses.on_durable(mark, is_kept(mark));
                }
                said.push(event);
            }
        }
        (addresses, said)
    }

    fn position(events: &[Event], is_it: impl Fn(&Event) -> bool) -> Option<usize> {
        events.iter().position(is_it)
    }

    #[test]
    fn an_address_is_given_only_after_the_disk_has_it() {
        let (_, events) = allocate(|_| true);
        let given = position(&events, |event| matches!(event, Event::Address(1, Ok(_)))).unwrap();
        let is_address = |key: &[u8]| key.starts_with(b"ipam/address/");
        let kept = position(&events, |event| matches!(event, Event::Persist(key, Some(_)) if is_address(key))).unwrap();
        let durable = events.iter().skip(kept).position(|event| matches!(event, Event::Durable(_))).unwrap() + kept;
        assert!(kept < durable && durable < given, "{events:?}");
    }

    #[test]
    fn every_address_of_a_range_is_a_hosts_or_in_a_window_that_none_has_opened() {
        let (addresses, _) = allocate(|_| true);
        let ring = &addresses.rings()[0];
        assert_eq!((ring.used, ring.unreachable), (1, 0));
        assert!(ring.owned > 0 && ring.owned + ring.unopened == ring.range.size(), "{ring:?}");
    }

    #[test]
    fn a_request_that_the_disk_does_not_take_fails() {
        let (_, events) = allocate(|_| false);
        assert!(position(&events, |event| matches!(event, Event::NotKept(1))).is_some(), "{events:?}");
        assert!(position(&events, |event| matches!(event, Event::Address(..) | Event::Send(..))).is_none());
    }
}
