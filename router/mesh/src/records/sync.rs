//! Record synchronisation: this host's log and those of the others, kept the same on all hosts.
//!
//! Own changes are signed at intervals and pushed to neighbours; new batches of others are passed on. A host soon asks those that it told
//! whether they hold the same, a few times until they answer, and some neighbour now and then: a batch that was lost on the way is found.
//! Drain [`RecordSync::poll_event`] after every call.

mod lives;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha20Rng;
use weft_crypto::{HostLabel, Identity, PeerId, Time};
use weft_gossip::{Batch, Message, PutError, Received, Store, StoreEvent};

use super::Record;
use super::life::Life;
use super::pace::Pace;
use super::told::{About, Told};
use super::writes::Writes;

/// How often records are asked for after a gap, at most.
const PULL_INTERVAL: Duration = Duration::from_millis(100);
/// How often a host is told that it was forgotten, at most.
const FORGOTTEN_INTERVAL: Duration = Duration::from_secs(1);
/// Records read before the components hear of them: a large log is not decoded as a whole.
const READ_AT_ONCE: usize = 256;
/// Records of unknown kinds that are counted; more are stored and passed on like these.
const MAX_UNKNOWN: usize = 4096;

/// What comes of a call.
#[derive(Debug)]
pub(crate) enum Event {
    /// A record message for a peer.
    Records(HostLabel, Vec<u8>),
    /// The same, only to be sure: what it asks about was sent before, and others ask about it, too.
    Question(HostLabel, Vec<u8>),
    /// A peer is to be told, or to pass on, that a host was forgotten up to an incarnation.
    Forgotten { to: HostLabel, host: PeerId, incarnation: u64 },
    /// A record was set or unset, this host's own included.
    Record(PeerId, Record),
    /// This host writes under this incarnation from now on: it must be persisted.
    Incarnation(u64),
    /// The same, above records that another life of this host wrote.
    Reincarnated(u64),
    /// Another host holds this host's key.
    Cloned,
    /// A neighbour was asked to compare records.
    Compared(HostLabel),
}

/// All records of the mesh, and their exchange.
pub(crate) struct RecordSync {
    own: PeerId,
    store: Store,
    rng: ChaCha20Rng,
    neighbours: BTreeSet<HostLabel>,
    pace: Pace,
    told: Told,
    /// What the store has said and no component has heard yet.
    unread: VecDeque<StoreEvent>,
    /// Batches that came in and were new, and their senders.
    to_pass_on: Vec<(Bytes, HostLabel)>,
    /// When each peer was last asked for records after a gap.
    pulled: BTreeMap<HostLabel, Time>,
    /// When forgotten hosts were last told so.
    told_forgotten: BTreeMap<PeerId, Time>,
    /// Hosts held that another says are gone for good, that other, and the incarnation up to which it says so.
    said_gone: BTreeMap<PeerId, (PeerId, u64)>,
    /// Records of kinds that only newer versions know.
    unknown: BTreeSet<(PeerId, Vec<u8>)>,
    /// Records that are not valid by the rules of their kind.
    invalid: u64,
    life: Life,
    events: VecDeque<Event>,
}

impl RecordSync {
    /// Synchronisation of an empty store, writing under `incarnation` (which is to be persisted first) and `boot`.
    pub(crate) fn new(identity: Identity, incarnation: u64, boot: u32, entropy: [u8; 32], now: Time) -> Self {
        RecordSync {
            own: identity.peer_id(),
            store: Store::new(identity, incarnation, boot),
            rng: ChaCha20Rng::from_seed(entropy),
            neighbours: BTreeSet::new(),
            pace: Pace::new(now),
            told: Told::default(),
            unread: VecDeque::new(),
            to_pass_on: Vec::new(),
            pulled: BTreeMap::new(),
            told_forgotten: BTreeMap::new(),
            said_gone: BTreeMap::new(),
            unknown: BTreeSet::new(),
            invalid: 0,
            life: Life::default(),
            events: [Event::Incarnation(incarnation)].into(),
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When own changes are to be signed, or others' passed on, if there are any.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        let flush = self.store.is_dirty().then_some(self.pace.flush_after());
        let pass = (!self.to_pass_on.is_empty()).then_some(self.pace.pass_after());
        flush.into_iter().chain(pass).min()
    }

    /// Changes this host's records, all of them or, with an error, none.
    pub(crate) fn write(&mut self, writes: &Writes) -> Result<(), PutError> {
        let mut undo: Vec<(&[u8], Option<Vec<u8>>)> = Vec::new();
        for (key, value) in &writes.records {
            let before = self.store.own(key).map(<[u8]>::to_vec);
            let result = match value {
                Some(value) => self.store.put(key, value.clone()),
                None => {
                    self.store.delete(key);
                    Ok(())
                }
            };
            if let Err(error) = result {
                for (key, before) in undo.into_iter().rev() {
                    match before {
                        // It was there before: its size was within the limits.
                        Some(value) => drop(self.store.put(key, value)),
                        None => self.store.delete(key),
                    }
                }
                return Err(error);
            }
            undo.push((key, before));
        }
        Ok(())
    }

    /// A neighbour's link is up: it is told what this host holds, and answers with what it lacks.
    pub(crate) fn on_link_up(&mut self, peer: HostLabel, now: Time) {
        self.neighbours.insert(peer);
        if self.pace.may_greet(now) {
            self.greet(peer);
        }
        self.told.tell([peer], About::All, now);
    }

    /// A neighbour's link is down.
    pub(crate) fn on_link_down(&mut self, peer: HostLabel) {
        // What it was told last may be lost: others may have it.
        self.pace.on_news();
        self.neighbours.remove(&peer);
        self.told.remove(peer);
    }

    /// Forgets a peer, not its records.
    pub(crate) fn remove(&mut self, peer: HostLabel) {
        self.on_link_down(peer);
        self.pulled.remove(&peer);
    }

    fn greet(&mut self, peer: HostLabel) {
        let digests = self.store.digests().into_iter().map(|digest| Event::Records(peer, digest.encode()));
        self.events.extend(digests);
    }

    /// Takes a record message from a peer.
    pub(crate) fn receive(&mut self, from: HostLabel, bytes: &[u8], now: Time) {
        let Some(message) = Message::decode(bytes) else { return };
        match &message {
            Message::Same => self.told.on_answer(from, true),
            Message::Digest { .. } => self.told.on_answer(from, false),
            Message::Summary { .. } | Message::Batches { .. } => {}
        }
        if let Message::Batches { batches, more } = &message {
            let mut pull = *more;
            for batch in batches {
                match self.store.receive(batch) {
                    Received::New => {
                        self.to_pass_on.push((batch.clone(), from));
                        self.pace.on_news();
                    }
                    Received::Gap => pull = true,
                    Received::BelowFloor { origin, floor } => self.tell_forgotten(from, origin, floor, now),
                    Received::Old | Received::Refused => {}
                }
            }
            if pull {
                self.pull(from, now);
            }
        }
        let replies = self.store.answer(&message).into_iter().map(|reply| Event::Records(from, reply.encode()));
        self.events.extend(replies);
    }

    fn pull(&mut self, peer: HostLabel, now: Time) {
        if self.pulled.get(&peer).is_some_and(|last| now.since(*last) < PULL_INTERVAL) {
            return;
        }
        self.pulled.insert(peer, now);
        self.greet(peer);
    }

    /// Asks neighbours whether they hold the same: those that were told something, so that a batch lost on the way is soon found, and at
    /// intervals a random one for which `is_asked` holds: metered hosts ask by themselves. Those that the way to `is_metered` are asked more seldom.
    pub(crate) fn compare(
        &mut self,
        is_asked: impl Fn(HostLabel) -> bool,
        is_metered: impl Fn(HostLabel) -> bool,
        now: Time,
    ) {
        let (to_ask, may_compare) = (self.told.ask(now), self.pace.may_compare(now));
        let classes = may_compare.into_iter().zip([false, true]).filter(|(is_due, _)| *is_due);
        let mut to_compare = Vec::new();
        for (_, of_metered) in classes {
            let asked =
                self.neighbours.iter().copied().filter(|peer| is_asked(*peer) && is_metered(*peer) == of_metered);
            to_compare.extend(asked.choose(&mut self.rng));
        }
        if to_ask.is_empty() && to_compare.is_empty() {
            return;
        }
        let summary = Message::Summary { hash: self.store.summary() }.encode();
        // What others change meanwhile makes no difference to what this host wrote.
        let is_own_asked = to_ask.iter().any(|(_, about)| *about == About::Own);
        let own: Vec<Vec<u8>> =
            if is_own_asked { self.store.own_digest().iter().map(Message::encode).collect() } else { Vec::new() };
        for (peer, about) in to_ask {
            let questions = if about == About::Own { &own[..] } else { std::slice::from_ref(&summary) };
            self.events.extend(questions.iter().map(|question| Event::Question(peer, question.clone())));
        }
        let compared = |peer| [Event::Question(peer, summary.clone()), Event::Compared(peer)];
        self.events.extend(to_compare.into_iter().flat_map(compared));
    }

    /// Passes new batches on to those that do not have them: the origin told its neighbours, and the host that this batch came from
    /// told its own; `neighbours_of` says which these are. A host that missed it finds out when records are compared.
    pub(crate) fn pass_on<I: Iterator<Item = HostLabel>>(&mut self, neighbours_of: impl Fn(HostLabel) -> I, now: Time) {
        if !self.pace.may_pass(self.to_pass_on.len(), self.neighbours.len(), now) {
            return;
        }
        let mut to_tell: BTreeMap<HostLabel, Vec<Bytes>> = BTreeMap::new();
        for (batch, from) in std::mem::take(&mut self.to_pass_on) {
            let Ok(parsed) = Batch::parse(&batch) else { continue };
            let origin = parsed.origin.label();
            let told: BTreeSet<HostLabel> = neighbours_of(origin).chain(neighbours_of(from)).collect();
            let to = self.neighbours.iter().filter(|peer| **peer != from && **peer != origin && !told.contains(*peer));
            to.for_each(|peer| to_tell.entry(*peer).or_default().push(batch.clone()));
        }
        if !to_tell.is_empty() {
            self.told.tell(to_tell.keys().copied(), About::All, now);
            self.pace.on_news();
        }
        for (peer, batches) in to_tell {
            self.events.extend(encoded(batches).map(|message| Event::Records(peer, message)));
        }
    }

    fn tell_neighbours(&mut self, batches: Vec<Bytes>, now: Time) {
        if !batches.is_empty() {
            self.told.tell(self.neighbours.iter().copied(), About::Own, now);
            self.pace.on_news();
        }
        for message in encoded(batches) {
            self.events.extend(self.neighbours.iter().map(|peer| Event::Records(*peer, message.clone())));
        }
    }

    /// Signs own changes and pushes them, if that is due; those that come in quick succession share a batch.
    pub(crate) fn flush(&mut self, now: Time) {
        if now < self.pace.flush_after() || !self.store.is_dirty() {
            return;
        }
        self.pace.on_flush(self.neighbours.len(), now);
        let batches = self.store.flush();
        self.tell_neighbours(batches, now);
    }

    /// Signs what is waiting at once, so that what follows is judged by all that was said before.
    pub(crate) fn flush_now(&mut self, now: Time) {
        self.pace.hurry(now);
        self.flush(now);
    }

    /// Turns some of what the store has come to say into events; true if there were any.
    pub(crate) fn read_records(&mut self, now: Time) -> bool {
        if self.unread.is_empty() {
            self.unread.extend(self.store.take_events());
        }
        let count = self.unread.len().min(READ_AT_ONCE);
        for event in self.unread.drain(..count).collect::<Vec<_>>() {
            match event {
                StoreEvent::Set { origin, key, value } => self.read(origin, key, Some(&value)),
                StoreEvent::Unset { origin, key } => self.read(origin, key, None),
                StoreEvent::OwnAhead { incarnation } => self.jump_above(incarnation, true, now),
            }
        }
        count > 0
    }

    fn read(&mut self, origin: PeerId, key: Vec<u8>, value: Option<&[u8]>) {
        let record = Record::read(&key, value);
        match (&record, value) {
            (Record::Unknown, Some(_)) if self.unknown.len() < MAX_UNKNOWN => drop(self.unknown.insert((origin, key))),
            (Record::Unknown, Some(_)) => {}
            (Record::Unknown, None) => drop(self.unknown.remove(&(origin, key))),
            (record, Some(_)) if !record.is_set() => self.invalid += 1,
            _ => {}
        }
        self.events.push_back(Event::Record(origin, record));
    }

    /// A hash over the versions of all records.
    pub(crate) fn digest(&self) -> u64 {
        self.store.summary()
    }

    /// Batches refused so far (malformed, forged or over a limit), records refused by the rules of their kind, and records
    /// held of kinds that only newer versions know.
    pub(crate) fn counts(&self) -> (u64, u64, usize) {
        (self.store.refused(), self.invalid, self.unknown.len())
    }
}

fn encoded(batches: Vec<Bytes>) -> impl Iterator<Item = Vec<u8>> {
    Message::carrying(batches, false).into_iter().map(|message| message.encode())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{EntryRecord, HostRecord, Key};

    pub(super) fn identity(n: u8) -> Identity {
        Identity::from_seed(&[n; 32])
    }

    pub(super) fn sync(n: u8) -> RecordSync {
        let mut sync = RecordSync::new(identity(n), 1, 7, [n; 32], Time::ZERO);
        assert!(matches!(sync.poll_event(), Some(Event::Incarnation(1))));
        sync
    }

    pub(super) fn label(n: u8) -> HostLabel {
        identity(n).peer_id().label()
    }

    pub(super) fn named(name: &str) -> Writes {
        let mut writes = Writes::default();
        writes.put(Key::Host, &HostRecord { name: name.into(), ..HostRecord::default() });
        writes
    }

    pub(super) fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    /// Carries messages between two hosts until both are silent; returns the other events of the second one.
    pub(super) fn exchange(a: (u8, &mut RecordSync), b: (u8, &mut RecordSync), now: Time) -> Vec<Event> {
        let mut others = Vec::new();
        loop {
            let (mut to_b, mut to_a) = (Vec::new(), Vec::new());
            a.1.read_records(now);
            b.1.read_records(now);
            while let Some(event) = a.1.poll_event() {
                if let Event::Records(_, bytes) | Event::Question(_, bytes) = event {
                    to_b.push(bytes);
                }
            }
            while let Some(event) = b.1.poll_event() {
                match event {
                    Event::Records(_, bytes) | Event::Question(_, bytes) => to_a.push(bytes),
                    event => others.push(event),
                }
            }
            if to_a.is_empty() && to_b.is_empty() {
                return others;
            }
            to_b.iter().for_each(|bytes| b.1.receive(label(a.0), bytes, now));
            to_a.iter().for_each(|bytes| a.1.receive(label(b.0), bytes, now));
        }
    }

    #[test]
    fn a_new_neighbour_gets_all_records_and_a_lost_batch_is_found() {
        let (mut a, mut b) = (sync(1), sync(2));
        a.write(&named("host1")).unwrap();
        a.flush(at(0));
        a.on_link_up(label(2), at(0));
        let events = exchange((1, &mut a), (2, &mut b), at(0));
        let is_named = |events: &[Event], expected: &str| {
            events.iter().any(|event| matches!(event, Event::Record(id, Record::Host(Some(host))) if *id == identity(1).peer_id() && host.name == expected))
        };
        assert!(is_named(&events, "host1"), "{events:?}");
        a.write(&named("renamed")).unwrap();
        a.flush(at(100));
        // The push is lost.
        while a.poll_event().is_some() {}
        a.compare(|_| true, |_| false, at(1100));
        assert!(is_named(&exchange((1, &mut a), (2, &mut b), at(1100)), "renamed"));
    }

    #[test]
    fn those_who_are_told_of_a_change_do_not_ask_each_other_about_it() {
        let (mut a, mut b) = (sync(1), sync(2));
        (2..30).for_each(|host| a.on_link_up(label(host), at(0)));
        (1..30).filter(|host| *host != 2).for_each(|host| b.on_link_up(label(host), at(0)));
        let all_hosts = |_: HostLabel| (1..30).map(label);
        let mut questions = |from: u64, to: u64| {
            let mut asked = [0, 0];
            for now in (from..to).step_by(50) {
                for sync in [&mut a, &mut b] {
                    sync.read_records(at(now));
                    sync.pass_on(all_hosts, at(now));
                    sync.compare(|_| true, |_| false, at(now));
                }
                if now == 100_000 {
                    a.write(&named("host1")).unwrap();
                    a.flush(at(now));
                }
                while let Some(event) = a.poll_event() {
                    match event {
                        Event::Records(to, bytes) if to == label(2) => b.receive(label(1), &bytes, at(now)),
                        Event::Question(to, _) => {
                            asked[0] += 1;
                            a.receive(to, &Message::Same.encode(), at(now));
                        }
                        _ => {}
                    }
                }
                while let Some(event) = b.poll_event() {
                    if let Event::Question(to, _) = event {
                        asked[1] += 1;
                        b.receive(to, &Message::Same.encode(), at(now));
                    }
                }
            }
            asked
        };
        questions(0, 100_000);
        let [by_origin, by_told] = questions(100_000, 103_000);
        assert!((29..=31).contains(&by_origin) && (1..=3).contains(&by_told), "{by_origin} and {by_told}");
    }

    #[test]
    fn a_write_over_a_limit_changes_nothing() {
        let mut sync = sync(1);
        let mut writes = named("host1");
        writes.put_bytes(Key::Network([1; 16]), vec![0; 5000]);
        assert!(sync.write(&writes).is_err());
        sync.flush(at(0));
        sync.read_records(at(0));
        assert!(sync.poll_event().is_none());
    }

    #[test]
    fn records_of_unknown_kinds_are_kept_and_counted_and_invalid_ones_refused() {
        let (mut a, mut b) = (sync(1), sync(2));
        let entry = EntryRecord { name: "two words".into(), ips: Vec::new() };
        let mut writes = Writes::default();
        writes.records.push((vec![200, 1], Some(vec![1, 2, 3])));
        writes.put(Key::Entry([1; 16]), &entry);
        a.write(&writes).unwrap();
        a.flush(at(0));
        a.on_link_up(label(2), at(0));
        exchange((1, &mut a), (2, &mut b), at(0));
        assert_eq!(b.counts(), (0, 1, 1));
        let mut c = sync(3);
        b.on_link_up(label(3), at(0));
        exchange((2, &mut b), (3, &mut c), at(1));
        assert_eq!(c.counts(), (0, 1, 1), "passed on by a host that does not know the kind");
    }
}
