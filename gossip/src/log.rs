//! The log of one origin: its batches as they came, and how far it goes.

use std::collections::BTreeMap;

use bytes::Bytes;
use weft_crypto::PeerId;

use crate::record::{Batch, LogId, Version};
use crate::sync::Held;

pub(crate) struct Origin {
    pub(crate) id: PeerId,
    /// The newest log that is held whole.
    pub(crate) current: Option<Log>,
    /// A newer log whose snapshot is still arriving.
    pub(crate) staging: Option<Log>,
}

pub(crate) struct Log {
    pub(crate) incarnation: u64,
    pub(crate) generation: u64,
    pub(crate) boot: u32,
    pub(crate) snapshot: u64,
    /// As they came, and signed.
    pub(crate) batches: Vec<Bytes>,
    pub(crate) bytes: usize,
}

impl Log {
    pub(crate) fn new(batch: &Batch) -> Self {
        let Version { incarnation, generation, .. } = batch.version;
        Log { incarnation, generation, boot: batch.boot, snapshot: batch.snapshot, batches: Vec::new(), bytes: 0 }
    }

    pub(crate) fn version(&self) -> Version {
        Version { incarnation: self.incarnation, generation: self.generation, sequence: self.batches.len() as u64 }
    }

    pub(crate) fn id(&self) -> LogId {
        self.version().log(self.boot)
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.batches.len() as u64 >= self.snapshot
    }

    pub(crate) fn push(&mut self, encoded: Bytes) {
        self.bytes += encoded.len();
        self.batches.push(encoded);
    }

    /// What it says, all batches together.
    pub(crate) fn values(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut values = BTreeMap::new();
        // They were read, and their signatures checked, when they came.
        for change in self.batches.iter().filter_map(|batch| Batch::parse(batch).ok()).flat_map(|batch| batch.changes) {
            match change.value {
                Some(value) => values.insert(change.key, value),
                None => values.remove(&change.key),
            };
        }
        values
    }
}

impl Origin {
    /// The newest log, whole or not: what digests speak of.
    pub(crate) fn newest(&self) -> Option<&Log> {
        self.staging.as_ref().or(self.current.as_ref())
    }

    pub(crate) fn held(&self) -> Held {
        let label = self.id.label();
        match self.newest() {
            Some(log) => Held { origin: label, version: log.version(), boot: log.boot },
            None => Held { origin: label, version: Version::default(), boot: 0 },
        }
    }
}
