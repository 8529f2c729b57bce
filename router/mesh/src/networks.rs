//! Container networks of the mesh: which hosts have them, and which were removed.

use std::collections::{BTreeMap, BTreeSet};

use weft_crypto::HostLabel;

use crate::api::CommandError;
use crate::records::writes::Writes;
use crate::records::{Key, NetworkHead, NetworkRecord, NetworkUid, removed};
use crate::stored::Stored;

/// Removed networks that this host goes on speaking of, at most.
const MAX_REMOVED: usize = 256;

/// Container networks, put together from their records.
pub(crate) struct Networks {
    own: HostLabel,
    whole: BTreeMap<(HostLabel, NetworkUid), NetworkRecord>,
    heads: BTreeMap<(HostLabel, NetworkUid), NetworkHead>,
    parts: BTreeMap<(HostLabel, NetworkUid, u8), Vec<u8>>,
    /// Removed networks, with the hosts that say so.
    removed: BTreeSet<(NetworkUid, HostLabel)>,
    /// Removed networks that this host speaks of, in the order of their removal.
    own_removed: BTreeMap<u64, NetworkUid>,
}

impl Networks {
    /// How many whole networks there are records of.
    pub(crate) fn len(&self) -> usize {
        self.whole.len()
    }

    pub(crate) fn new(own: HostLabel) -> Self {
        let (whole, heads, parts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Networks { own, whole, heads, parts, removed: BTreeSet::new(), own_removed: BTreeMap::new() }
    }

    /// A host has a network, or (with `None`) has it no more.
    pub(crate) fn on_head(&mut self, host: HostLabel, uid: NetworkUid, head: Option<NetworkHead>) {
        match head {
            Some(head) => drop(self.heads.insert((host, uid), head)),
            None => drop(self.heads.remove(&(host, uid))),
        }
        self.join(host, uid);
    }

    /// A part of the description of a host's network, or (with `None`) that it is gone.
    pub(crate) fn on_part(&mut self, host: HostLabel, uid: NetworkUid, part: u8, bytes: Option<Vec<u8>>) {
        match bytes {
            Some(bytes) => drop(self.parts.insert((host, uid, part), bytes)),
            None => drop(self.parts.remove(&(host, uid, part))),
        }
        self.join(host, uid);
    }

    fn join(&mut self, host: HostLabel, uid: NetworkUid) {
        let parts = self.parts.range((host, uid, 0)..=(host, uid, u8::MAX)).map(|(_, part)| part.as_slice());
        let head = self.heads.get(&(host, uid));
        match head.map(|head| NetworkRecord::join(head, parts)) {
            Some(Some(record)) => drop(self.whole.insert((host, uid), record)),
            // The former description holds until the rest of a change has come.
            Some(None) => {}
            None => drop(self.whole.remove(&(host, uid))),
        }
    }

    /// A host says that a network was removed everywhere, or takes that back.
    pub(crate) fn on_removed(&mut self, host: HostLabel, uid: NetworkUid, is_removed: bool) {
        if is_removed {
            self.removed.insert((uid, host));
        } else {
            self.removed.remove(&(uid, host));
        }
    }

    /// Returns what having a network writes.
    pub(crate) fn set(&self, record: &NetworkRecord) -> Result<Writes, CommandError> {
        let (head, parts) =
            record.split().ok_or(CommandError::Invalid("the network's labels and options are too large"))?;
        if NetworkRecord::join(&head, parts.iter().map(Vec::as_slice)).is_none() {
            return Err(CommandError::Invalid("invalid network: check its name, and use 8 subnets at most"));
        }
        let mut writes = Writes::default();
        for number in head.parts..self.own_parts(record.uid) {
            writes.delete(Key::NetworkPart(record.uid, number));
        }
        for (number, part) in (0u8..).zip(parts) {
            writes.put_bytes(Key::NetworkPart(record.uid, number), part);
        }
        writes.put(Key::Network(record.uid), &head);
        Ok(writes)
    }

    /// Returns what no longer having a network writes.
    pub(crate) fn unset(&self, uid: NetworkUid) -> Writes {
        let mut writes = Writes::default();
        for number in 0..self.own_parts(uid) {
            writes.delete(Key::NetworkPart(uid, number));
        }
        writes.delete(Key::Network(uid));
        writes
    }

    fn own_parts(&self, uid: NetworkUid) -> u8 {
        self.heads.get(&(self.own, uid)).map_or(0, |head| head.parts)
    }

    /// Has every host remove a network, also those that come back with it later; returns what that writes. Call
    /// [`Networks::note_own_removal`] once it is written.
    pub(crate) fn remove(&self, uid: NetworkUid) -> Writes {
        let mut writes = self.unset(uid);
        if self.own_removed.values().any(|removed| *removed == uid) {
            return writes;
        }
        if let Some((_, oldest)) = self.own_removed.first_key_value().filter(|_| self.own_removed.len() >= MAX_REMOVED)
        {
            writes.delete(Key::Removed(*oldest));
            writes.drop_stored(&Stored::Removed(*oldest));
        }
        writes.put_bytes(Key::Removed(uid), removed::VALUE.to_vec());
        writes.store(&Stored::Removed(uid), &self.next_removal().to_be_bytes());
        writes
    }

    fn next_removal(&self) -> u64 {
        self.own_removed.last_key_value().map_or(0, |(number, _)| number + 1)
    }

    /// Notes that the removal of a network was written; the oldest makes room.
    pub(crate) fn note_own_removal(&mut self, uid: NetworkUid) {
        if self.own_removed.values().any(|removed| *removed == uid) {
            return;
        }
        if self.own_removed.len() >= MAX_REMOVED {
            self.own_removed.pop_first();
        }
        self.own_removed.insert(self.next_removal(), uid);
    }

    /// Picks up a removal from the store; returns what this host writes of it.
    pub(crate) fn restore_removal(&mut self, uid: NetworkUid, number: Option<[u8; 8]>) -> Writes {
        let number = number.map_or_else(|| self.next_removal(), u64::from_be_bytes);
        self.own_removed.insert(number, uid);
        let mut writes = Writes::default();
        writes.put_bytes(Key::Removed(uid), removed::VALUE.to_vec());
        writes
    }

    /// Networks of other hosts.
    pub(crate) fn elsewhere(&self) -> impl Iterator<Item = (HostLabel, &NetworkRecord)> {
        self.whole.iter().filter(|((host, _), _)| *host != self.own).map(|((host, _), record)| (*host, record))
    }

    /// Networks that some host says were removed.
    pub(crate) fn removed(&self) -> BTreeSet<NetworkUid> {
        self.removed.iter().map(|(uid, _)| *uid).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Record;

    const OWN: HostLabel = HostLabel([1; 6]);
    const OTHER: HostLabel = HostLabel([2; 6]);

    fn network(labels: usize) -> NetworkRecord {
        let label = |n: usize| (format!("label-{n}"), "x".repeat(300));
        NetworkRecord {
            name: "app".into(),
            uid: [7; 16],
            labels: (0..labels).map(label).collect(),
            ..Default::default()
        }
    }

    fn apply(networks: &mut Networks, host: HostLabel, writes: &Writes) {
        for (key, value) in &writes.records {
            match Record::read(key, value.as_deref()) {
                Record::Network(uid, head) => networks.on_head(host, uid, head),
                Record::NetworkPart(uid, part, bytes) => networks.on_part(host, uid, part, bytes),
                Record::Removed(uid, removed) => networks.on_removed(host, uid, removed.is_some()),
                record => panic!("{record:?}"),
            }
        }
    }

    #[test]
    fn a_description_changes_as_a_whole_and_goes_with_its_head() {
        let (mut writer, mut reader) = (Networks::new(OTHER), Networks::new(OWN));
        let first = writer.set(&network(10)).unwrap();
        apply(&mut writer, OTHER, &first);
        apply(&mut reader, OTHER, &first);
        let second = writer.set(&network(2)).unwrap();
        apply(&mut writer, OTHER, &second);
        for change in &second.records {
            let labels: Vec<usize> = reader.elsewhere().map(|(_, record)| record.labels.len()).collect();
            assert_eq!(labels, [10], "before the last of the change");
            apply(&mut reader, OTHER, &Writes { records: vec![change.clone()], stored: Vec::new() });
        }
        assert_eq!(
            reader.elsewhere().map(|(host, record)| (host, record.labels.len())).collect::<Vec<_>>(),
            [(OTHER, 2)]
        );
        apply(&mut reader, OTHER, &writer.unset([7; 16]));
        assert_eq!(reader.elsewhere().count() + reader.parts.len(), 0);
        assert!(writer.set(&network(100)).is_err());
    }

    #[test]
    fn removals_are_remembered_in_their_order_and_the_oldest_makes_room() {
        let mut networks = Networks::new(OWN);
        let uid = |n: usize| [(n / 256) as u8, (n % 256) as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for n in 0..MAX_REMOVED + 1 {
            let writes = networks.remove(uid(n));
            apply(&mut networks, OWN, &writes);
            networks.note_own_removal(uid(n));
        }
        let removed = networks.removed();
        assert!(removed.len() == MAX_REMOVED && !removed.contains(&uid(0)) && removed.contains(&uid(MAX_REMOVED)));
        assert!(networks.remove(uid(5)).stored.is_empty(), "said already");
        let mut restored = Networks::new(OWN);
        restored.restore_removal(uid(1), Some(9u64.to_be_bytes()));
        assert_eq!(restored.next_removal(), 10);
    }
}
