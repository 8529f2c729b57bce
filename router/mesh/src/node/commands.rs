//! What operators and the other parts of the program ask of the node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weft_crypto::{HostLabel, Keyring, Time};

use super::{Command, CommandError, CommandId, Node, Reply, Target, WhatIf, encode};
use crate::api::Networks;
use crate::records::writes::Writes;
use crate::records::{EndpointId, EndpointRecord, NetworkUid};
use crate::segments::local::AttachError;
use crate::stored::Stored;
use crate::wire::{Control, SegmentId};

impl Node {
    /// Carries out a command; `None`: its answer comes later.
    pub(super) fn handle_command(
        &mut self,
        id: CommandId,
        command: Command,
        now: Time,
    ) -> Option<Result<Reply, CommandError>> {
        let result = match command {
            Command::Connect(targets) => {
                targets.iter().for_each(|target| self.remember(&target.name));
                self.connect(&targets, now)
            }
            Command::ConnectUnlessForgotten(mut targets) => {
                targets.retain(|target| !self.parts.topology.targets.is_forgotten_name(&target.name));
                self.connect(&targets, now)
            }
            Command::Forget(names) => self.forget_targets(&names, now),
            Command::Attach { id, record, gateways } => self.attach(id, &record, gateways, now),
            Command::Detach(id) => self.detach(id, now),
            Command::SetKeyring(keyring) => self.set_keyring(keyring, now),
            Command::SetMeteredPaths(paths) => infallible(|| self.parts.topology.metered.set_paths(paths, now)),
            Command::SetAddresses(addresses) => infallible(|| self.parts.topology.set_local_addresses(addresses, now)),
            Command::SetMapped(mapped) => infallible(|| {
                self.parts.topology.addresses.set_mapped(mapped);
                self.parts.write_host_record();
            }),
            Command::SetMtu(underlay, containers) => self.set_mtu(underlay, containers, now),
            Command::SetGateways(segment, gateways) => {
                infallible(|| self.parts.segments.set_gateways(segment, gateways))
            }
            Command::Leave => self.leave(now),
            Command::AddName(name, ips) => self.write(|node| node.parts.directory.add_name(&name, &ips), now),
            Command::RemoveName(name, ips) => self.write(|node| node.parts.directory.remove_name(&name, &ips), now),
            Command::SetNetwork(record) => self.write(|node| node.parts.directory.networks.set(&record), now),
            Command::UnsetNetwork(uid) => self.write(|node| Ok(node.parts.directory.networks.unset(uid)), now),
            Command::RemoveNetwork(uid) => self.remove_network(uid, now),
            Command::Release(range, allocation) => infallible(|| self.parts.addresses.release(range, allocation, now)),
            Command::Unfence(address) => infallible(|| self.parts.addresses.unfence(address)),
            Command::SetAside(range, addresses) => {
                infallible(|| self.parts.addresses.ipam().set_aside(range, addresses))
            }
            Command::Status => return Some(Ok(Reply::Status(Box::new(self.parts.status(now))))),
            Command::Measure => return Some(Ok(Reply::Measures(Box::new(self.parts.measures())))),
            Command::WhatIf(host) => {
                let what_if = self.think_away(&host);
                return Some(what_if.map(|what_if| Reply::WhatIf(Box::new(what_if))));
            }
            Command::Why { from, to } => {
                let why = self.parts.explain_path(from.as_deref(), &to, now);
                return Some(why.map(|why| Reply::Why(Box::new(why))));
            }
            Command::Targets => return Some(Ok(Reply::Targets(self.target_names()))),
            Command::Networks => return Some(Ok(Reply::Networks(Box::new(self.known_networks())))),
            Command::Allocations(range) => {
                return Some(Ok(Reply::Allocations(self.parts.addresses.allocations(range))));
            }
            Command::Allocate(request) => {
                self.parts.addresses.ipam().allocate(id, request, now);
                return None;
            }
            Command::SetParts(range, parts, is_complete) => {
                self.parts.addresses.ipam().set_parts(id, range, parts, is_complete, now);
                return None;
            }
            Command::Reclaim(name) => match self.host_to_reclaim(&name) {
                Ok(host) => {
                    self.parts.addresses.reclaim(id, host, now);
                    return None;
                }
                Err(error) => Err(error),
            },
        };
        Some(result.map(|()| Reply::Done))
    }

    /// Writes what a component plans, after everything received a moment ago has been taken into account.
    fn write(
        &mut self,
        plan: impl FnOnce(&Node) -> Result<Writes, CommandError>,
        now: Time,
    ) -> Result<(), CommandError> {
        self.parts.settle(now);
        let writes = plan(self)?;
        self.parts.commit(writes)?;
        // A look-up after the answer finds it.
        self.parts.settle(now);
        Ok(())
    }

    fn set_mtu(&mut self, underlay: usize, containers: u16, now: Time) -> Result<(), CommandError> {
        self.parts.settle(now);
        self.parts.topology.underlay_mtu = underlay;
        let writes = self.parts.segments.set_container_mtu(containers);
        self.parts.commit(writes)
    }

    fn target_names(&self) -> Vec<String> {
        self.parts.topology.targets.iter().map(|(name, _)| name.clone()).collect()
    }

    fn connect(&mut self, targets: &[Target], now: Time) -> Result<(), CommandError> {
        for target in targets {
            self.parts.persist(&Stored::Target(target.name.clone()), Some(encode(&target.addresses)));
        }
        self.parts.addresses.look_at_hosts();
        self.parts.topology.targets.connect(targets, now);
        self.parts.topology.tend_targets(&self.parts.sessions, now);
        Ok(())
    }

    fn forget_targets(&mut self, names: &[String], now: Time) -> Result<(), CommandError> {
        if let Some(unknown) = names.iter().find(|name| !self.parts.topology.targets.has_name(name)) {
            return Err(CommandError::UnknownTarget(unknown.clone()));
        }
        // All goodbyes leave before the first link goes: they may need each other's.
        let peers: Vec<HostLabel> =
            names.iter().filter_map(|name| self.parts.topology.targets.peer_named(name)).collect();
        peers.into_iter().for_each(|peer| self.parts.send(peer, &Control::Bye, now));
        for name in names {
            let peer = self.parts.topology.forget(name, |peer| self.parts.sessions.id_of(peer), now);
            self.parts.persist(&Stored::Target(name.clone()), None);
            self.parts.persist(&Stored::ForgottenTarget(name.clone()), Some(encode(&peer)));
        }
        Ok(())
    }

    /// A peer is named again: it is no longer forgotten.
    fn remember(&mut self, name: &str) {
        if self.parts.topology.targets.remember(name) {
            self.parts.persist(&Stored::ForgottenTarget(name.to_owned()), None);
        }
    }

    fn attach(
        &mut self,
        id: EndpointId,
        record: &EndpointRecord,
        gateways: Option<BTreeSet<IpAddr>>,
        now: Time,
    ) -> Result<(), CommandError> {
        self.parts.settle(now);
        let writes = self.parts.segments.attach(id, record).map_err(|error| self.explain_attach(record, error))?;
        self.parts.commit(writes)?;
        if let Some(gateways) = gateways {
            self.parts.segments.set_gateways(SegmentId::of(&record.segment), gateways);
        }
        // A look-up after this answer finds it.
        self.parts.settle(now);
        Ok(())
    }

    fn detach(&mut self, id: EndpointId, now: Time) -> Result<(), CommandError> {
        self.parts.settle(now);
        let writes = self.parts.segments.detach(id).ok_or(CommandError::UnknownEndpoint)?;
        self.parts.commit(writes)
    }

    fn explain_attach(&self, record: &EndpointRecord, error: AttachError) -> CommandError {
        match error {
            AttachError::Invalid(problem) => CommandError::Invalid(problem),
            AttachError::SegmentCollision(other) => CommandError::SegmentCollision(record.segment.to_string(), other),
            AttachError::AddressInUse(ip, host, other) => {
                let mut owner = self.parts.describe_endpoint(host, &other);
                if host != self.parts.own && !self.parts.topology.routing.has_route(host) {
                    owner.push_str(" (out of reach; if that host is off for good: weft reclaim)");
                }
                CommandError::AddressInUse { ip, owner, segment: record.segment.to_string() }
            }
            AttachError::MacInUse(host, other) => {
                CommandError::MacInUse { owner: self.parts.describe_endpoint(host, &other) }
            }
        }
    }

    fn remove_network(&mut self, uid: NetworkUid, now: Time) -> Result<(), CommandError> {
        self.parts.settle(now);
        let writes = self.parts.directory.networks.remove(uid);
        self.parts.commit(writes)?;
        self.parts.directory.networks.note_own_removal(uid);
        Ok(())
    }

    /// Container networks of hosts that can be reached, and networks that were removed.
    fn known_networks(&self) -> Networks {
        let of_others =
            self.parts.directory.networks.elsewhere().filter(|(host, _)| self.parts.topology.routing.has_route(*host));
        Networks {
            elsewhere: of_others.map(|(host, record)| (self.parts.directory.name_of(host), record.clone())).collect(),
            removed: self.parts.directory.networks.removed(),
        }
    }

    /// Uses new secrets; sessions under others end now.
    fn set_keyring(&mut self, keyring: Keyring, now: Time) -> Result<(), CommandError> {
        self.parts.publisher.set_secrets(keyring.secrets());
        for peer in self.parts.sessions.set_keyring(keyring) {
            self.parts.topology.link_down(peer, "its session's secret is no longer live", now);
        }
        Ok(())
    }

    /// Finds the host that a nickname or key names, for taking back its addresses.
    /// The mesh, and a host by its nickname or key that is thought away.
    fn think_away(&self, host: &str) -> Result<WhatIf, CommandError> {
        let without =
            if host == self.parts.directory.own_name() { self.parts.own } else { self.parts.directory.find(host)? };
        let hosts = self.parts.sessions.peers().map(|(label, _)| label).chain([self.parts.own]);
        Ok(WhatIf {
            graph: self.parts.topology.routing.graph().clone(),
            own: self.parts.own,
            without,
            names: hosts.map(|host| (host, self.parts.directory.unmistakable(host))).collect(),
        })
    }

    fn host_to_reclaim(&self, name: &str) -> Result<HostLabel, CommandError> {
        let host = self.parts.directory.find(name)?;
        if host == self.parts.own || self.parts.topology.routing.has_route(host) {
            return Err(CommandError::StillThere(name.to_owned()));
        }
        Ok(host)
    }

    /// Says goodbye to the neighbours, so that they need not find out.
    fn leave(&mut self, now: Time) -> Result<(), CommandError> {
        self.parts.presence.leave(now);
        self.parts.route_events(now);
        let neighbours: Vec<HostLabel> = self.parts.topology.linked.iter().copied().collect();
        neighbours.into_iter().for_each(|peer| self.parts.send(peer, &Control::Bye, now));
        Ok(())
    }
}

fn infallible(change: impl FnOnce()) -> Result<(), CommandError> {
    change();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::records::Key;
    use crate::testing::{NOW, command, endpoint, hear, node};

    #[test]
    fn commands_that_are_refused_change_nothing() {
        let mut node = node(1, &BTreeMap::new());
        command(&mut node, Command::attach([1; 16], endpoint(1))).unwrap();
        let other = EndpointRecord { mac: [2, 0, 0, 0, 0, 9], ..endpoint(1) };
        let same_mac = EndpointRecord { mac: endpoint(1).mac, ..endpoint(2) };
        let endpoints = |node: &Node| format!("{:?}", node.status(NOW).endpoints);
        let before = endpoints(&node);
        let own_name = node.status(NOW).name;
        type Check = fn(&CommandError) -> bool;
        let cases: [(Command, Check); 7] = [
            (Command::attach([2; 16], other), |e| matches!(e, CommandError::AddressInUse { .. })),
            (Command::attach([2; 16], same_mac), |e| matches!(e, CommandError::MacInUse { .. })),
            (Command::Detach([9; 16]), |e| *e == CommandError::UnknownEndpoint),
            (Command::Forget(vec!["nowhere".into()]), |e| matches!(e, CommandError::UnknownTarget(_))),
            (Command::Reclaim("nobody-there".into()), |e| matches!(e, CommandError::UnknownHost(_))),
            (Command::Reclaim(own_name), |e| matches!(e, CommandError::StillThere(_))),
            (Command::AddName("a b".into(), vec![[10, 0, 0, 1].into()]), |e| matches!(e, CommandError::Invalid(_))),
        ];
        for (number, (wrong, is_expected)) in cases.into_iter().enumerate() {
            let error = command(&mut node, wrong).expect_err("refused");
            assert!(is_expected(&error), "case {number}: {error}");
        }
        assert_eq!(endpoints(&node), before);
        command(&mut node, Command::Detach([1; 16])).unwrap();
        assert!(node.status(NOW).endpoints.is_empty());
    }

    #[test]
    fn an_address_in_use_names_its_owner_and_that_it_is_out_of_reach() {
        let mut node = node(1, &BTreeMap::new());
        let record = crate::codec::encode(&endpoint(7));
        hear(&mut node, 2, 1, &[(Key::Endpoint([7; 16]), record)]);
        let error = command(&mut node, Command::attach([1; 16], EndpointRecord { mac: [2; 6], ..endpoint(7) }));
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("10.32.0.7") && text.contains("web7") && text.contains("weft reclaim"), "{text}");
    }
}
