//! What a node picks up when it starts: what it persisted, and this host's endpoints.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use weft_crypto::{PeerId, Time};

use super::Node;
use crate::codec::decode;
use crate::path::Path;
use crate::records::{EndpointId, EndpointRecord, EntryRecord};
use crate::stored::Stored;
use crate::topology::Learnt;

impl Node {
    /// Picks up from what was persisted.
    pub(super) fn restore(&mut self, restored: &BTreeMap<Vec<u8>, Vec<u8>>, now: Time) {
        for (key, value) in restored.iter().filter_map(|(key, value)| Some((Stored::parse(key)?, value))) {
            let writes = match key {
                Stored::Entry(digest) => {
                    decode::<EntryRecord>(value).and_then(|record| self.parts.directory.restore_entry(digest, &record))
                }
                Stored::Removed(uid) => Some(self.parts.directory.networks.restore_removal(uid, decode(value))),
                Stored::Target(name) => {
                    decode(value).into_iter().for_each(|addresses: Vec<SocketAddr>| {
                        self.parts.topology.targets.restore(name.clone(), addresses);
                    });
                    None
                }
                Stored::ForgottenTarget(name) => {
                    decode(value).into_iter().for_each(|peer| {
                        self.parts.topology.targets.restore_forgotten(name.clone(), peer);
                    });
                    None
                }
                Stored::Peer(id) => {
                    self.restore_peer(id, decode(value).unwrap_or_default(), now);
                    None
                }
                // Read when the components were made.
                Stored::Incarnation | Stored::Starts | Stored::Ring(_) | Stored::Address(..) | Stored::Lending(..) => {
                    None
                }
            };
            // What was once written is within the limits now.
            let _ = writes.map(|writes| self.parts.commit(writes));
        }
    }

    pub(super) fn restore_endpoints(&mut self, endpoints: &[(EndpointId, EndpointRecord)]) {
        for (id, record) in endpoints {
            // A record that was within the limits once is within them now.
            let _ = self.parts.segments.restore(*id, record).map(|writes| self.parts.commit(writes));
        }
    }

    fn restore_peer(&mut self, id: PeerId, addresses: Vec<SocketAddr>, now: Time) {
        let Some(label) = self.parts.sessions.meet(id, now) else { return };
        self.parts.route_events(now);
        addresses
            .into_iter()
            .for_each(|address| self.parts.topology.add_candidate(label, Path::udp(address), Learnt::Seen));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::api::{Command, Input, Target};
    use crate::testing::{NOW, listen, node};

    /// A node whose disk holds `restored`, after commands; with what it persisted.
    fn run(restored: &BTreeMap<Vec<u8>, Vec<u8>>, commands: Vec<Command>) -> (Node, BTreeMap<Vec<u8>, Vec<u8>>, Time) {
        let mut node = node(1, restored);
        for (id, command) in (1..).zip(commands) {
            node.handle_input(NOW, Input::Command(id, command));
        }
        let mut disk = restored.clone();
        let said = listen(&mut node, &mut disk);
        assert!(said.replies.iter().all(Result::is_ok), "{:?}", said.replies);
        (node, disk, NOW)
    }

    #[test]
    fn names_targets_and_removals_are_there_after_a_restart() {
        let address = SocketAddr::from(([192, 0, 2, 9], 6783));
        let target = |name: &str| Target { name: name.into(), addresses: vec![address] };
        let (_, disk, _) = run(
            &BTreeMap::new(),
            vec![
                Command::AddName("web".into(), vec![IpAddr::from([10, 0, 0, 1])]),
                Command::Connect(vec![target("host2"), target("host3")]),
                Command::Forget(vec!["host3".into()]),
                Command::RemoveNetwork([7; 16]),
            ],
        );
        let (node, again, now) = run(&disk, vec![Command::AddName("web".into(), vec![IpAddr::from([10, 0, 0, 2])])]);
        let targets: Vec<String> = node.status(now).targets.into_iter().map(|target| target.name).collect();
        assert_eq!(targets, ["host2"]);
        assert!(node.parts.topology.targets.is_forgotten_name("host3"));
        assert!(node.parts.directory.networks.removed().contains(&[7; 16]));
        let entry = again.iter().find(|(key, _)| matches!(Stored::parse(key), Some(Stored::Entry(_)))).unwrap();
        assert_eq!(decode::<EntryRecord>(entry.1).map(|entry| entry.ips.len()), Some(2), "added to what was there");
    }

    #[test]
    fn what_cannot_be_read_on_the_disk_is_passed_over() {
        let keys = [Stored::Target("a".into()), Stored::Entry([1; 16]), Stored::Removed([3; 16]), Stored::Incarnation];
        let disk: BTreeMap<Vec<u8>, Vec<u8>> = keys.iter().map(|key| (key.encode(), vec![0xff; 3])).collect();
        let (node, _, now) = run(&disk, Vec::new());
        assert!(node.status(now).targets.is_empty());
        assert!(node.parts.directory.networks.removed().contains(&[3; 16]), "the key alone says that it was removed");
    }
}
