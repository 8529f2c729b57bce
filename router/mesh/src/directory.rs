//! The directory: nicknames of hosts, and names that operators added.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_crypto::{HostLabel, PeerId};

use crate::api::CommandError;
use crate::networks::Networks;
use crate::records::writes::Writes;
use crate::records::{EntryRecord, HostRecord};
use crate::stored::Stored;

/// So many digits of a key may stand for it.
const SHORTEST_KEY: usize = 8;
/// So many bytes of a key tell hosts apart.
const ID_BYTES: usize = 6;

/// What hosts are called, what operators named, and the container networks of the mesh.
pub(crate) struct Directory {
    own: HostLabel,
    /// Nickname of this host.
    name: String,
    ids: BTreeMap<HostLabel, PeerId>,
    hosts: BTreeMap<HostLabel, HostRecord>,
    /// Names that operators added, as their records stand, by the digest they are filed under.
    entries: BTreeMap<(HostLabel, [u8; 16]), EntryRecord>,
    pub(crate) networks: Networks,
}

/// A change of the addresses that a name stands for on a host.
pub(crate) struct EntryChange {
    pub(crate) name: String,
    pub(crate) ips: Option<Vec<IpAddr>>,
}

impl Directory {
    pub(crate) fn new(own: PeerId, name: String) -> Self {
        let label = own.label();
        Directory {
            own: label,
            name,
            ids: [(label, own)].into(),
            hosts: BTreeMap::new(),
            entries: BTreeMap::new(),
            networks: Networks::new(label),
        }
    }

    /// Takes note of a peer's key.
    pub(crate) fn meet(&mut self, id: PeerId) {
        self.ids.insert(id.label(), id);
    }

    /// Forgets a peer.
    pub(crate) fn remove(&mut self, host: HostLabel) {
        self.ids.remove(&host);
        self.hosts.remove(&host);
    }

    /// A host says what it is called, or (with `None`) its record is gone.
    pub(crate) fn on_host(&mut self, host: HostLabel, record: Option<HostRecord>) {
        match record {
            Some(record) => drop(self.hosts.insert(host, record)),
            None => drop(self.hosts.remove(&host)),
        }
    }

    /// How many hosts, names that operators added, and whole networks there are records of.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.hosts.len(), self.entries.len(), self.networks.len())
    }

    /// Nickname of this host.
    pub(crate) fn own_name(&self) -> &str {
        &self.name
    }

    /// Returns a host's nickname, or the start of its key.
    pub(crate) fn name_of(&self, label: HostLabel) -> String {
        if label == self.own {
            return self.name.clone();
        }
        match (self.hosts.get(&label), self.ids.get(&label)) {
            (Some(host), _) => host.name.clone(),
            (None, Some(id)) => id.short(),
            (None, None) => format!("{label:?}"),
        }
    }

    /// Returns a host's nickname, with the start of its key if another host has the same: dead hosts have namesakes that live.
    pub(crate) fn unmistakable(&self, label: HostLabel) -> String {
        let name = self.name_of(label);
        let is_shared = self.hosts.iter().any(|(other, host)| *other != label && host.name == name);
        let key = self.ids.get(&label);
        match key.filter(|_| is_shared || (label != self.own && name == self.name)) {
            Some(key) => format!("{name} ({})", key.short()),
            None => name,
        }
    }

    /// The beginning of a host's key, by which hosts of one nickname are told apart.
    pub(crate) fn id_of(&self, label: HostLabel) -> String {
        self.ids.get(&label).map_or_else(|| hex::encode(label.0), |key| hex::encode(&key.0[..ID_BYTES]))
    }

    /// Finds the one host that a nickname, a key in hex or the start of one names.
    pub(crate) fn find(&self, name: &str) -> Result<HostLabel, CommandError> {
        let of_key = name.parse::<PeerId>().ok().map(|id| id.label());
        let has_prefix = |label: &HostLabel| self.ids.get(label).is_some_and(|id| id.to_string().starts_with(name));
        let others = self.hosts.keys().copied().filter(|label| *label != self.own);
        let short = others.filter(|label| name.len() >= SHORTEST_KEY && has_prefix(label));
        let named = self.hosts.iter().filter(|(_, host)| host.name == name).map(|(label, _)| *label);
        let meant: BTreeSet<HostLabel> = of_key.into_iter().chain(short).chain(named).collect();
        match (meant.first().copied(), meant.len()) {
            (Some(host), 1) => Ok(host),
            (None, _) => Err(CommandError::UnknownHost(name.to_owned())),
            (Some(_), _) => Err(CommandError::AmbiguousHost(name.to_owned())),
        }
    }

    /// A host's record of an added name, or (with `None`) that it is gone. Returns what that changes, in order.
    pub(crate) fn on_entry(
        &mut self,
        host: HostLabel,
        digest: [u8; 16],
        record: Option<EntryRecord>,
    ) -> Vec<EntryChange> {
        let gone = match &record {
            Some(record) => self.entries.insert((host, digest), record.clone()),
            None => self.entries.remove(&(host, digest)),
        };
        let gone = gone.map(|entry| EntryChange { name: entry.name, ips: None });
        let new = record.map(|entry| EntryChange { name: entry.name, ips: Some(entry.ips) });
        gone.into_iter().chain(new).collect()
    }

    fn own_entry(&self, name: &str) -> Option<&EntryRecord> {
        self.entries.get(&(self.own, EntryRecord::digest(name)))
    }

    /// The addresses that operators had a name stand for, on any host.
    pub(crate) fn addresses_of(&self, name: &str) -> impl Iterator<Item = IpAddr> {
        self.added(name).flat_map(|(_, ips)| ips.iter().copied())
    }

    /// Hosts on which a name was added, with what it stands for there.
    pub(crate) fn added(&self, name: &str) -> impl Iterator<Item = (HostLabel, &[IpAddr])> {
        let named = self.entries.iter().filter(move |(_, entry)| entry.name.eq_ignore_ascii_case(name));
        named.map(|((host, _), entry)| (*host, &entry.ips[..]))
    }

    /// Returns what it writes to have a name stand for addresses, beside those it stands for already.
    pub(crate) fn add_name(&self, name: &str, ips: &[IpAddr]) -> Result<Writes, CommandError> {
        let before = self.own_entry(name).into_iter().flat_map(|entry| &entry.ips);
        let ips: BTreeSet<IpAddr> = before.chain(ips).copied().collect();
        write_entry(&EntryRecord { name: name.to_owned(), ips: ips.into_iter().collect() })
    }

    /// Returns what it writes to have a name no longer stand for addresses, or for any if `ips` is empty.
    pub(crate) fn remove_name(&self, name: &str, ips: &[IpAddr]) -> Result<Writes, CommandError> {
        let Some(mut record) = self.own_entry(name).cloned() else {
            let other = self.entries.iter().find(|(_, entry)| entry.name.eq_ignore_ascii_case(name));
            return Err(match other {
                Some(((host, _), _)) => CommandError::NameOfAnother(name.to_owned(), self.name_of(*host)),
                None => CommandError::UnknownName(name.to_owned()),
            });
        };
        if let Some(ip) = ips.iter().find(|ip| !record.ips.contains(ip)) {
            return Err(CommandError::UnknownName(format!("{name} for {ip}")));
        }
        record.ips.retain(|ip| !ips.is_empty() && !ips.contains(ip));
        if !record.ips.is_empty() {
            return write_entry(&record);
        }
        let mut writes = Writes::default();
        writes.delete(record.key());
        writes.drop_stored(&Stored::Entry(EntryRecord::digest(name)));
        Ok(writes)
    }

    /// Returns what this host writes when an added name comes back from the store.
    pub(crate) fn restore_entry(&self, digest: [u8; 16], record: &EntryRecord) -> Option<Writes> {
        write_entry(record).ok().filter(|_| EntryRecord::digest(&record.name) == digest)
    }
}

fn write_entry(record: &EntryRecord) -> Result<Writes, CommandError> {
    if let Some(problem) = record.problem() {
        return Err(CommandError::Invalid(problem));
    }
    let mut writes = Writes::default();
    writes.put(record.key(), record);
    writes.store(&Stored::Entry(EntryRecord::digest(&record.name)), record);
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use weft_crypto::Identity;

    use super::*;
    use crate::records::Record;

    fn id(n: u8) -> PeerId {
        Identity::from_seed(&[n; 32]).peer_id()
    }

    fn directory(names: &[(u8, &str)]) -> Directory {
        let mut directory = Directory::new(id(1), "host1".into());
        for (n, name) in names {
            directory.meet(id(*n));
            let record = HostRecord { name: (*name).into(), ..HostRecord::default() };
            directory.on_host(id(*n).label(), Some(record));
        }
        directory
    }

    #[test]
    fn a_host_is_found_by_nickname_key_or_the_start_of_it_unless_two_are_meant() {
        let directory = directory(&[(2, "a"), (3, "b"), (4, "b"), (5, "host1")]);
        assert_eq!(directory.find("a"), Ok(id(2).label()));
        assert_eq!(directory.find(&id(3).to_string()), Ok(id(3).label()));
        assert_eq!(directory.find(&id(4).to_string()[..8]), Ok(id(4).label()));
        assert!(matches!(directory.find("b"), Err(CommandError::AmbiguousHost(_))));
        assert!(matches!(directory.find("c"), Err(CommandError::UnknownHost(_))));
        assert_eq!(directory.unmistakable(id(2).label()), "a");
        assert_eq!(directory.unmistakable(id(3).label()), format!("b ({})", id(3).short()));
        assert_eq!(directory.unmistakable(id(5).label()), format!("host1 ({})", id(5).short()));
        assert_eq!(directory.name_of(id(1).label()), "host1");
    }

    #[test]
    fn added_names_gather_addresses_and_are_removed_where_they_were_added() {
        let mut directory = directory(&[(2, "a")]);
        let apply = |directory: &mut Directory, host: u8, writes: &Writes| {
            let [(key, value)] = &writes.records[..] else { panic!("one record") };
            let Record::Entry(digest, record) = Record::read(key, value.as_deref()) else { panic!("an entry") };
            let changes = directory.on_entry(id(host).label(), digest, record);
            changes.into_iter().map(|change| change.ips.map_or(0, |ips| ips.len())).collect::<Vec<_>>()
        };
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let writes = directory.add_name("Web", &[ip(2)]).unwrap();
        assert_eq!(apply(&mut directory, 1, &writes), [1]);
        let writes = directory.add_name("web", &[ip(1), ip(2)]).unwrap();
        assert_eq!(apply(&mut directory, 1, &writes), [0, 2]);
        assert!(directory.remove_name("web", &[ip(9)]).is_err());
        let writes = directory.remove_name("web", &[ip(1)]).unwrap();
        assert_eq!(apply(&mut directory, 1, &writes), [0, 1]);
        let writes = directory.remove_name("web", &[]).unwrap();
        assert_eq!(apply(&mut directory, 1, &writes), [0]);
        let writes = directory.add_name("db", &[ip(3)]).unwrap();
        apply(&mut directory, 2, &writes);
        let error = directory.remove_name("db", &[]).unwrap_err();
        assert_eq!(error, CommandError::NameOfAnother("db".into(), "a".into()));
        assert!(directory.add_name("two words", &[ip(1)]).is_err());
    }
}
