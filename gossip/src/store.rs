//! The record store: one log of signed batches per origin.
//!
//! A log is complete once its snapshot (the re-issued live set) is held; only then does it replace the
//! log of an older generation, so a half-arrived re-issue takes nothing away.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use weft_crypto::{HostLabel, Identity, PeerId};

use crate::log::{Log, Origin};
use crate::record::{Batch, Change, MAX_KEY, MAX_VALUE, Version, pack};
use crate::sync::{DELTA_BYTES, DIGEST_ENTRIES, Held, Message};

/// What one origin may hold in all, in bytes of batches.
pub const MAX_ORIGIN_BYTES: usize = 64 << 20;
/// What this host's records may come to: batches cost more than their values, and a log holds superseded ones until it
/// is compacted.
pub const MAX_LIVE_BYTES: usize = MAX_ORIGIN_BYTES / 8;
/// What all may hold together: one member can sign for any number of made-up origins.
pub const MAX_STORE_BYTES: usize = 256 << 20;
/// How many origins are kept.
pub const MAX_ORIGINS: usize = 8192;

/// What changed in the records of an origin, this host's own included, or was said again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreEvent {
    /// A value was set.
    Set {
        /// Who says so.
        origin: PeerId,
        /// What the record is filed under.
        key: Vec<u8>,
        /// The new value.
        value: Vec<u8>,
    },
    /// A value is no longer there.
    Unset {
        /// Whose value.
        origin: PeerId,
        /// What the record was filed under.
        key: Vec<u8>,
    },
    /// Another host holds records of this host that it did not write: an old disk was restored, state was
    /// lost, or another host lives with the same key. [`Store::jump_above`] is the cure.
    OwnAhead {
        /// The incarnation found.
        incarnation: u64,
    },
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// Kept: pass it on to the neighbours.
    New,
    /// Held already, or older than what is held.
    Old,
    /// Something before it is missing: ask with a digest.
    Gap,
    /// From a life of its origin that was forgotten: the origin has to be told.
    BelowFloor {
        /// The origin.
        origin: PeerId,
        /// Up to where it was forgotten.
        floor: u64,
    },
    /// Malformed, forged or over a limit; not kept.
    Refused,
}

/// Why a record was not taken. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PutError {
    /// Key or value over its limit.
    #[error("a record of {size} bytes is over the limit of {MAX_KEY} for its key and {MAX_VALUE} for its value")]
    TooLarge {
        /// Key and value together.
        size: usize,
    },
    /// This host's records are at their limit in all.
    #[error("this host's records are at their limit of {MAX_LIVE_BYTES} bytes; remove some first")]
    Full,
}

/// All records this host knows.
pub struct Store {
    identity: Identity,
    boot: u32,
    incarnation: u64,
    generation: u64,
    live: BTreeMap<Vec<u8>, Vec<u8>>,
    live_bytes: usize,
    dirty: BTreeSet<Vec<u8>>,
    origins: BTreeMap<HostLabel, Origin>,
    floors: BTreeMap<PeerId, u64>,
    /// Of all logs.
    bytes: usize,
    events: Vec<StoreEvent>,
    refused: u64,
}

impl Store {
    /// An empty store for `identity`, writing under `incarnation` (which was persisted first) and `boot`.
    pub fn new(identity: Identity, incarnation: u64, boot: u32) -> Self {
        Store {
            identity,
            boot,
            incarnation,
            generation: 1,
            live: BTreeMap::new(),
            live_bytes: 0,
            dirty: BTreeSet::new(),
            origins: BTreeMap::new(),
            floors: BTreeMap::new(),
            bytes: 0,
            events: Vec::new(),
            refused: 0,
        }
    }

    /// The incarnation this host writes under.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Sets one of this host's records; it takes effect with the next [`Store::flush`].
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), PutError> {
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(PutError::TooLarge { size: key.len() + value.len() });
        }
        if self.live.get(key) == Some(&value) {
            return Ok(());
        }
        let old = self.live.get(key).map_or(0, |old| old.len() + key.len());
        let bytes = self.live_bytes - old + key.len() + value.len();
        if bytes > MAX_LIVE_BYTES {
            return Err(PutError::Full);
        }
        self.live_bytes = bytes;
        self.live.insert(key.to_vec(), value);
        self.dirty.insert(key.to_vec());
        Ok(())
    }

    /// Deletes one of this host's records.
    pub fn delete(&mut self, key: &[u8]) {
        if let Some(old) = self.live.remove(key) {
            self.live_bytes -= old.len() + key.len();
            self.dirty.insert(key.to_vec());
        }
    }

    /// One of this host's records as it will be after the next flush.
    pub fn own(&self, key: &[u8]) -> Option<&[u8]> {
        self.live.get(key).map(Vec::as_slice)
    }

    /// All of this host's records as they will be after the next flush.
    pub fn all_own(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.live.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Whether anything was put or deleted since the last flush.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Signs what has been put and deleted since the last flush; returns the batches to push to neighbours.
    pub fn flush(&mut self) -> Vec<Bytes> {
        if self.dirty.is_empty() {
            return Vec::new();
        }
        let dirty = std::mem::take(&mut self.dirty);
        let label = self.identity.peer_id().label();
        let log = self.origins.get(&label).and_then(|origin| origin.current.as_ref());
        let fresh = log.is_none_or(|log| log.id() != (self.incarnation, self.boot, self.generation));
        let bloated = log.is_some_and(|log| log.batches.len() > 16 && log.bytes > 4 * (self.live_bytes + 2048));
        if fresh || bloated {
            return self.reissue();
        }
        let next = log.map_or(1, |log| log.batches.len() as u64 + 1);
        let snapshot = log.map_or(0, |log| log.snapshot);
        let changes = dirty.into_iter().map(|key| Change { value: self.live.get(&key).cloned(), key });
        let packed = pack(changes);
        self.append(packed, next, snapshot)
    }

    /// Starts a new incarnation above `incarnation` and re-issues everything; returns the new
    /// incarnation, to be persisted, and the batches to push.
    pub fn jump_above(&mut self, incarnation: u64) -> (u64, Vec<Bytes>) {
        self.incarnation = self.incarnation.max(incarnation).saturating_add(1);
        self.generation = 0;
        (self.incarnation, self.reissue())
    }

    fn reissue(&mut self) -> Vec<Bytes> {
        let label = self.identity.peer_id().label();
        let held = self.origins.get(&label).and_then(Origin::newest).map(Log::id);
        let used = held == Some((self.incarnation, self.boot, self.generation));
        if used || self.generation == 0 {
            self.generation += 1;
        }
        self.dirty.clear();
        let changes = self.live.iter().map(|(key, value)| Change { key: key.clone(), value: Some(value.clone()) });
        let mut packed = pack(changes);
        if packed.is_empty() {
            packed.push(Vec::new());
        }
        let snapshot = packed.len() as u64;
        self.append(packed, 1, snapshot)
    }

    fn append(&mut self, packed: Vec<Vec<Change>>, first: u64, snapshot: u64) -> Vec<Bytes> {
        let (incarnation, generation) = (self.incarnation, self.generation);
        let mut encoded = Vec::with_capacity(packed.len());
        for (changes, sequence) in packed.into_iter().zip(first..) {
            let version = Version { incarnation, generation, sequence };
            let batch = Batch::sign(&self.identity, version, self.boot, snapshot, changes);
            encoded.push(batch.encoded.clone());
            self.keep(batch);
        }
        encoded
    }

    /// Takes a batch from the network.
    pub fn receive(&mut self, encoded: &Bytes) -> Received {
        let Ok(batch) = Batch::parse(encoded) else {
            self.refused += 1;
            return Received::Refused;
        };
        let own = batch.origin == self.identity.peer_id();
        let decided = if own { self.is_own_ahead(&batch).then_some(Received::New) } else { self.place(&batch) };
        match decided {
            None => Received::Old,
            Some(Received::New) if !own && self.bytes + encoded.len() > MAX_STORE_BYTES => {
                self.refused += 1;
                Received::Refused
            }
            Some(Received::New) if batch.verify().is_err() => {
                self.refused += 1;
                Received::Refused
            }
            Some(Received::New) if own => {
                self.events.push(StoreEvent::OwnAhead { incarnation: batch.version.incarnation });
                Received::Old
            }
            Some(Received::New) => {
                self.keep(batch);
                Received::New
            }
            Some(other) => other,
        }
    }

    /// A batch of this host that this process did not write.
    fn is_own_ahead(&self, batch: &Batch) -> bool {
        batch.version.incarnation > self.incarnation
            || (batch.version.incarnation == self.incarnation && batch.boot != self.boot)
    }

    /// Where a foreign batch belongs; `None` if it is old.
    fn place(&mut self, batch: &Batch) -> Option<Received> {
        let version = batch.version;
        if let Some(floor) = self.floors.get(&batch.origin).copied().filter(|floor| version.incarnation <= *floor) {
            return Some(Received::BelowFloor { origin: batch.origin, floor });
        }
        let Some(origin) = self.origins.get(&batch.origin.label()) else {
            let full = self.origins.len() >= MAX_ORIGINS;
            let place = if full { Received::Refused } else { Received::New };
            return Some(if version.sequence == 1 || full { place } else { Received::Gap });
        };
        if origin.id != batch.origin {
            self.refused += 1;
            return Some(Received::Refused);
        }
        let Some(newest) = origin.newest() else {
            return Some(if version.sequence == 1 { Received::New } else { Received::Gap });
        };
        let held = (newest.id(), newest.batches.len() as u64);
        if (batch.log(), version.sequence) <= held {
            return None;
        }
        let follows = batch.log() == held.0 && version.sequence == held.1 + 1;
        let starts = batch.log() > held.0 && version.sequence == 1;
        if follows && newest.bytes + batch.encoded.len() > MAX_ORIGIN_BYTES {
            self.refused += 1;
            return Some(Received::Refused);
        }
        Some(if follows || starts { Received::New } else { Received::Gap })
    }

    /// Adds a batch that is next in its log, or first of a newer one.
    fn keep(&mut self, batch: Batch) {
        self.bytes += batch.encoded.len();
        let origin = self.origins.entry(batch.origin.label()).or_insert_with(|| Origin {
            id: batch.origin,
            current: None,
            staging: None,
        });
        if let Some(current) = &mut origin.current
            && current.id() == batch.log()
        {
            current.push(batch.encoded);
            apply(&mut self.events, origin.id, batch.changes);
            return;
        }
        let same_log = origin.staging.as_ref().is_some_and(|log| log.id() == batch.log());
        if !same_log {
            let dropped = origin.staging.replace(Log::new(&batch));
            self.bytes -= dropped.map_or(0, |log| log.bytes);
        }
        let Some(mut log) = origin.staging.take() else { return };
        log.push(batch.encoded);
        if log.is_whole() {
            self.bytes -= origin.current.as_ref().map_or(0, |log| log.bytes);
            replace(&mut self.events, origin, log);
        } else {
            origin.staging = Some(log);
        }
    }

    /// Drops the records of `origin` up to `incarnation` and refuses them from now on.
    pub fn forget(&mut self, origin: PeerId, incarnation: u64) {
        let floor = self.floors.entry(origin).or_default();
        *floor = incarnation.max(*floor);
        let floor = *floor;
        let gone = |log: &Option<Log>| log.as_ref().is_none_or(|log| log.incarnation <= floor);
        let label = origin.label();
        let Some(held) = self.origins.get_mut(&label) else { return };
        if origin == self.identity.peer_id() || held.id != origin {
            return;
        }
        if gone(&held.staging) {
            self.bytes -= held.staging.take().map_or(0, |log| log.bytes);
        }
        if gone(&held.current) {
            let log = held.current.take();
            self.bytes -= log.as_ref().map_or(0, |log| log.bytes);
            let keys = log.into_iter().flat_map(|log| log.values().into_keys());
            self.events.extend(keys.map(|key| StoreEvent::Unset { origin, key }));
        }
        if held.current.is_none() && held.staging.is_none() {
            self.origins.remove(&label);
        }
    }

    /// Events since the last call.
    pub fn take_events(&mut self) -> Vec<StoreEvent> {
        std::mem::take(&mut self.events)
    }

    /// Batches refused so far.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The origins held.
    pub fn origins(&self) -> impl Iterator<Item = PeerId> {
        self.origins.values().map(|origin| origin.id)
    }

    /// The incarnation an origin's whole log was written under.
    pub fn incarnation_of(&self, origin: PeerId) -> Option<u64> {
        Some(self.origins.get(&origin.label()).filter(|held| held.id == origin)?.current.as_ref()?.incarnation)
    }

    /// The values of one origin. Its whole log is read: not for what happens often.
    pub fn values(&self, origin: PeerId) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let held = self.origins.get(&origin.label()).filter(|held| held.id == origin);
        held.and_then(|held| held.current.as_ref()).map(Log::values).unwrap_or_default()
    }

    /// A hash over all versions held: equal on two hosts that hold the same.
    pub fn summary(&self) -> u64 {
        use std::hash::Hasher;
        let mut hasher = siphasher::sip::SipHasher24::new();
        for held in self.origins.values().map(Origin::held) {
            hasher.write(&held.origin.0);
            for part in [held.version.incarnation, held.version.generation, held.version.sequence] {
                hasher.write_u64(part);
            }
            hasher.write_u32(held.boot);
        }
        hasher.finish()
    }

    /// Digests of everything held, each within one datagram.
    pub fn digests(&self) -> Vec<Message> {
        self.digests_between(HostLabel([0; 6]), HostLabel([0xff; 6]), false)
    }

    /// The digest of what this host itself wrote.
    pub fn own_digest(&self) -> Vec<Message> {
        let own = self.identity.peer_id().label();
        self.digests_between(own, own, false)
    }

    fn digests_between(&self, from: HostLabel, to: HostLabel, answer: bool) -> Vec<Message> {
        let held: Vec<Held> = self.origins.range(from..=to).map(|(_, origin)| origin.held()).collect();
        if held.is_empty() {
            return vec![Message::Digest { from, to, held, answer }];
        }
        let chunks: Vec<&[Held]> = held.chunks(DIGEST_ENTRIES).collect();
        // Each range reaches up to the label before the next chunk begins, so that all labels are covered.
        let starts: Vec<HostLabel> = chunks.iter().skip(1).map(|chunk| chunk[0].origin).collect();
        (chunks.iter().enumerate())
            .map(|(index, chunk)| Message::Digest {
                from: if index == 0 { from } else { starts[index - 1] },
                to: starts.get(index).map_or(to, |next| before(*next)),
                held: chunk.to_vec(),
                answer,
            })
            .collect()
    }

    /// Answers a message that asks; batches go to [`Store::receive`] one by one instead.
    pub fn answer(&self, message: &Message) -> Vec<Message> {
        match message {
            Message::Summary { hash } if *hash == self.summary() => vec![Message::Same],
            Message::Summary { .. } => self.digests(),
            Message::Digest { from, to, held, answer } => {
                let (mut replies, behind) = self.deltas(*from, *to, held);
                if behind && !answer {
                    replies.extend(self.digests_between(*from, *to, true));
                }
                if replies.is_empty() && !answer && from == to {
                    replies.push(Message::Same);
                }
                replies
            }
            Message::Batches { .. } | Message::Same => Vec::new(),
        }
    }

    /// The batches that a host holding `held` lacks, and whether it holds something this one lacks.
    fn deltas(&self, from: HostLabel, to: HostLabel, held: &[Held]) -> (Vec<Message>, bool) {
        let theirs: BTreeMap<HostLabel, &Held> = held.iter().map(|held| (held.origin, held)).collect();
        let mut behind = held.iter().any(|held| !self.origins.contains_key(&held.origin));
        let (mut missing, mut bytes, mut more) = (Vec::new(), 0, false);
        for (label, origin) in self.origins.range(from..=to) {
            let their = theirs.get(label);
            let theirs_extent = their.map_or(((0, 0, 0), 0), |held| held.extent());
            behind |= theirs_extent > origin.held().extent();
            // A re-issue that never got whole is preceded by the log it was to replace.
            for log in [&origin.current, &origin.staging].into_iter().flatten() {
                let skip = match theirs_extent.0.cmp(&log.id()) {
                    Ordering::Less => 0,
                    Ordering::Equal => theirs_extent.1,
                    Ordering::Greater => continue,
                };
                for batch in log.batches.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)) {
                    if bytes + batch.len() > DELTA_BYTES {
                        more = true;
                        break;
                    }
                    bytes += batch.len();
                    missing.push(batch.clone());
                }
            }
        }
        (Message::carrying(missing, more), behind)
    }
}

fn before(label: HostLabel) -> HostLabel {
    let mut number = [0; 8];
    number[2..].copy_from_slice(&label.0);
    let number = u64::from_be_bytes(number).saturating_sub(1).to_be_bytes();
    HostLabel(core::array::from_fn(|i| number[i + 2]))
}

/// What a batch of the current log says. It may repeat an earlier batch, which is harmless.
fn apply(events: &mut Vec<StoreEvent>, origin: PeerId, changes: Vec<Change>) {
    events.extend(changes.into_iter().map(|Change { key, value }| match value {
        Some(value) => StoreEvent::Set { origin, key, value },
        None => StoreEvent::Unset { origin, key },
    }));
}

/// Makes a whole log the current one; only what differs becomes an event.
fn replace(events: &mut Vec<StoreEvent>, origin: &mut Origin, log: Log) {
    let (id, values) = (origin.id, log.values());
    let before = origin.current.replace(log).map(|log| log.values()).unwrap_or_default();
    let gone = before.keys().filter(|key| !values.contains_key(*key)).cloned();
    events.extend(gone.map(|key| StoreEvent::Unset { origin: id, key }));
    let news = values.into_iter().filter(|(key, value)| before.get(key) != Some(value));
    events.extend(news.map(|(key, value)| StoreEvent::Set { origin: id, key, value }));
}
