//! What this host and others say about names and container networks, beside endpoints.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_crypto::HostLabel;

use super::{CommandError, Networks, Node, Output, Reply};
use crate::records::{self, EntryRecord, Key, MAX_PARTS, NetworkHead, NetworkRecord, NetworkUid};

const PERSISTED_ENTRY: &[u8] = b"entry/";
const PERSISTED_REMOVED: &[u8] = b"removed/";
/// Removed networks that this host goes on speaking of, at most.
const MAX_REMOVED: usize = 256;

impl Node {
    fn own_entry(&self, name: &str) -> Option<&EntryRecord> {
        let key = EntryRecord { name: name.to_owned(), ips: Vec::new() }.key().encode();
        self.entries.get(&(self.own, key))
    }

    pub(super) fn add_name(&mut self, name: &str, ips: &[IpAddr]) -> Result<Reply, CommandError> {
        let mut record = EntryRecord { name: name.to_owned(), ips: Vec::new() };
        record.ips.extend(self.own_entry(name).iter().flat_map(|entry| entry.ips.clone()));
        record.ips.extend(ips);
        record.ips.sort_unstable();
        record.ips.dedup();
        self.write_entry(record)
    }

    pub(super) fn remove_name(&mut self, name: &str, ips: &[IpAddr]) -> Result<Reply, CommandError> {
        let Some(mut record) = self.own_entry(name).cloned() else {
            let others = (self.entries.iter()).find(|(_, entry)| entry.name.eq_ignore_ascii_case(name));
            return Err(match others {
                Some(((host, _), _)) => CommandError::NameOfAnother(name.to_owned(), self.name_of(*host)),
                None => CommandError::UnknownName(name.to_owned()),
            });
        };
        if let Some(ip) = ips.iter().find(|ip| !record.ips.contains(ip)) {
            return Err(CommandError::UnknownName(format!("{name} for {ip}")));
        }
        record.ips.retain(|ip| !ips.is_empty() && !ips.contains(ip));
        if record.ips.is_empty() {
            let key = record.key().encode();
            self.store.delete(&key);
            self.persist(&[PERSISTED_ENTRY, &key].concat(), None);
            return Ok(Reply::Done);
        }
        self.write_entry(record)
    }

    fn write_entry(&mut self, record: EntryRecord) -> Result<Reply, CommandError> {
        if let Some(problem) = record.problem() {
            return Err(CommandError::Invalid(problem));
        }
        let (key, value) = (record.key().encode(), records::encode(&record));
        self.store.put(&key, value.clone())?;
        self.persist(&[PERSISTED_ENTRY, &key].concat(), Some(value));
        Ok(Reply::Done)
    }

    pub(super) fn set_network(&mut self, record: &NetworkRecord) -> Result<Reply, CommandError> {
        let (head, parts) =
            record.split().ok_or(CommandError::Invalid("the network's labels and options are too large"))?;
        if NetworkRecord::join(&head, parts.iter().map(Vec::as_slice)).is_none() {
            return Err(CommandError::Invalid(
                "the network's name is none for other hosts, or it has too many subnets",
            ));
        }
        let before = self.network_heads.get(&(self.own, record.uid)).map_or(0, |head| head.parts);
        for (number, part) in (0u8..).zip(parts) {
            self.store.put(&Key::NetworkPart(record.uid, number).encode(), part)?;
        }
        for number in head.parts..before {
            self.store.delete(&Key::NetworkPart(record.uid, number).encode());
        }
        self.store.put(&Key::Network(record.uid).encode(), records::encode(&head))?;
        Ok(Reply::Done)
    }

    pub(super) fn delete_network(&mut self, uid: NetworkUid) {
        for number in 0..self.network_heads.get(&(self.own, uid)).map_or(0, |head| head.parts) {
            self.store.delete(&Key::NetworkPart(uid, number).encode());
        }
        self.store.delete(&Key::Network(uid).encode());
    }

    /// A host has a network, or (with `None`) has it no more.
    pub(super) fn on_network_head(&mut self, host: HostLabel, uid: NetworkUid, head: Option<NetworkHead>) {
        match head.filter(|head| head.uid == uid) {
            Some(head) => drop(self.network_heads.insert((host, uid), head)),
            None => drop(self.network_heads.remove(&(host, uid))),
        }
        self.join_network(host, uid);
    }

    /// A part of the description of a host's network.
    pub(super) fn on_network_part(&mut self, host: HostLabel, uid: NetworkUid, part: u8, value: Option<&[u8]>) {
        match value.filter(|_| usize::from(part) < MAX_PARTS) {
            Some(bytes) => drop(self.network_parts.insert((host, uid, part), bytes.to_vec())),
            None => drop(self.network_parts.remove(&(host, uid, part))),
        }
        self.join_network(host, uid);
    }

    fn join_network(&mut self, host: HostLabel, uid: NetworkUid) {
        let parts = self.network_parts.range((host, uid, 0)..=(host, uid, u8::MAX)).map(|(_, part)| part.as_slice());
        let head = self.network_heads.get(&(host, uid));
        match head.map(|head| NetworkRecord::join(head, parts)) {
            Some(Some(record)) => drop(self.networks.insert((host, uid), record)),
            // What was there before holds until the rest of a change has come.
            Some(None) => {}
            None => drop(self.networks.remove(&(host, uid))),
        }
    }

    /// Has every host remove a network, also those that come back with it later.
    pub(super) fn remove_network(&mut self, uid: NetworkUid) -> Result<Reply, CommandError> {
        self.delete_network(uid);
        if self.own_removed.values().any(|removed| *removed == uid) {
            return Ok(Reply::Done);
        }
        if self.own_removed.len() >= MAX_REMOVED
            && let Some((_, oldest)) = self.own_removed.pop_first()
        {
            self.store.delete(&Key::Removed(oldest).encode());
            self.persist(&[PERSISTED_REMOVED, &oldest].concat(), None);
        }
        let number = self.own_removed.last_key_value().map_or(0, |(number, _)| number + 1);
        self.store.put(&Key::Removed(uid).encode(), vec![1])?;
        self.persist(&[PERSISTED_REMOVED, &uid].concat(), Some(number.to_be_bytes().to_vec()));
        self.own_removed.insert(number, uid);
        Ok(Reply::Done)
    }

    pub(super) fn known_networks(&self) -> Networks {
        let is_there = |host: &HostLabel| *host != self.own && self.routes.contains_key(host);
        let of_others = self.networks.iter().filter(|((host, _), _)| is_there(host));
        Networks {
            elsewhere: of_others.map(|((host, _), record)| (self.name_of(*host), record.clone())).collect(),
            removed: self.removed_networks.iter().map(|(uid, _)| *uid).collect(),
        }
    }

    /// Picks up names and removed networks from what was persisted.
    pub(super) fn restore_directory(&mut self, restored: &BTreeMap<Vec<u8>, Vec<u8>>) {
        for (key, value) in restored {
            if let Some(key) = key.strip_prefix(PERSISTED_ENTRY) {
                let record = records::decode::<EntryRecord>(value).filter(|record| record.problem().is_none());
                if record.is_some_and(|record| record.key().encode() == key) {
                    let _ = self.store.put(key, value.clone());
                }
            } else if let Some(uid) = key.strip_prefix(PERSISTED_REMOVED).and_then(|uid| NetworkUid::try_from(uid).ok())
            {
                let number = value.as_slice().try_into().map_or(0, u64::from_be_bytes);
                if self.store.put(&Key::Removed(uid).encode(), vec![1]).is_ok() {
                    self.own_removed.insert(number, uid);
                }
            }
        }
    }

    /// Tells the DNS server what it is to answer from now on, if that changed.
    pub(super) fn publish_names(&mut self) {
        if std::mem::take(&mut self.reach_stale) {
            let routes = self.routes.iter().map(|(host, route)| (*host, route.cost)).chain([(self.own, 0)]);
            let reach = routes.map(|(host, cost)| (host, (cost, self.name_of(host)))).collect();
            self.endpoints.names.set_reach(reach);
            self.endpoints.names_changed = true;
        }
        if std::mem::take(&mut self.endpoints.names_changed) {
            self.outputs.push_back(Output::Names(Box::new(self.endpoints.names.clone())));
        }
    }
}
