//! The host's part in handing out addresses: carries what the address state machine says and hears.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use weft_crypto::{HostLabel, PeerId, Time};

use super::{CommandError, CommandId, Event, Node, Output, Reply, RingReport};
use crate::ipam::ring::Range;
use crate::ipam::{AllocationId, Announcement, Awaited, Error, Ipam, Named, Output as Said, Request};
use crate::records::{self, Key};
use crate::wire::Control;

/// So many digits of a key may stand for it.
const SHORTEST_KEY: usize = 8;

/// How often it is looked who can be reached.
const HOSTS_INTERVAL: Duration = Duration::from_millis(200);
/// What waits for the disk, at most; messages beyond are lost, as on the way.
const MAX_HELD_BACK: usize = 4096;

/// The address state machine, and what may be said only once the disk has what was said to it before.
pub(super) struct Addresses {
    ipam: Ipam,
    next_hosts: Time,
    /// How often the disk was asked to say when it has everything, and the last answer.
    mark: u64,
    durable: u64,
    held_back: VecDeque<(u64, Said)>,
    /// Addresses that this host handed out and lost to others.
    fenced: BTreeMap<AllocationId, Ipv4Addr>,
    /// Hosts whose addresses are being taken back, by the commands that want it.
    reclaiming: BTreeMap<CommandId, HostLabel>,
}

impl Addresses {
    pub(super) fn new(ipam: Ipam) -> Self {
        let (held_back, fenced) = (VecDeque::new(), BTreeMap::new());
        let reclaiming = BTreeMap::new();
        Addresses { ipam, next_hosts: Time::ZERO, mark: 0, durable: 0, held_back, fenced, reclaiming }
    }

    /// Who is named has changed: whom to wait for is looked at before anything else.
    pub(super) fn look_at_hosts(&mut self) {
        self.next_hosts = Time::ZERO;
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.ipam.next_timeout()
    }

    /// A host says how far a ring has come, or takes it back.
    pub(super) fn hear(&mut self, from: HostLabel, range: Range, announcement: Option<Announcement>, now: Time) {
        self.ipam.hear(from, range, announcement, now);
    }

    /// A host sent a message about a ring.
    pub(super) fn receive(&mut self, from: HostLabel, bytes: &[u8], now: Time) {
        self.ipam.receive(from, bytes, now);
    }

    /// Asks a ring for an address; the reply to `id` follows.
    pub(super) fn allocate(&mut self, id: CommandId, request: Request, now: Time) {
        self.ipam.allocate(id, request, now);
    }

    /// Releases the address of an allocation, a fenced one included.
    pub(super) fn release(&mut self, range: Range, allocation: AllocationId, now: Time) {
        self.ipam.release(range, allocation, now);
        self.fenced.remove(&allocation);
    }

    /// Notes that no endpoint of this host uses a fenced address any more.
    pub(super) fn unfence(&mut self, address: Ipv4Addr) {
        self.fenced.retain(|_, fenced| *fenced != address);
    }

    /// Sets the addresses of a range that this host never hands out.
    pub(super) fn set_aside(&mut self, range: Range, addresses: BTreeSet<Ipv4Addr>) {
        self.ipam.set_aside(range, addresses);
    }

    /// Sets the parts of a range that are subnets of this host's networks; the reply to `id` follows.
    pub(super) fn set_parts(
        &mut self,
        id: CommandId,
        range: Range,
        parts: BTreeSet<Range>,
        is_complete: bool,
        now: Time,
    ) {
        self.ipam.set_parts(id, range, parts, is_complete, now);
    }

    /// Returns the addresses that this host has handed out of a range.
    pub(super) fn allocations(&self, range: Range) -> Vec<(Ipv4Addr, AllocationId)> {
        self.ipam.allocations(range).map(|(address, id, _)| (address, id)).collect()
    }

    /// Takes back the addresses of a host that is off for good; the reply to `id` follows.
    pub(super) fn reclaim(&mut self, id: CommandId, host: HostLabel, now: Time) {
        self.reclaiming.insert(id, host);
        self.ipam.give_up(id, host, now);
    }
}

impl Node {
    /// Finds the host that a nickname or key names, for taking back its addresses.
    pub(super) fn host_to_reclaim(&self, name: &str) -> Result<HostLabel, CommandError> {
        let of_key = name.parse::<PeerId>().ok().map(|id| id.label());
        let has_prefix = |label: &HostLabel| self.peer_key(*label).is_some_and(|id| id.to_string().starts_with(name));
        let short = self.hosts.keys().copied().filter(|label| name.len() >= SHORTEST_KEY && has_prefix(label));
        let named = self.hosts.iter().filter(|(_, host)| host.name == name).map(|(label, _)| *label);
        let meant: BTreeSet<HostLabel> = of_key.into_iter().chain(short).chain(named).collect();
        let host = match (meant.first().copied(), meant.len()) {
            (Some(host), 1) => host,
            (None, _) => return Err(CommandError::UnknownHost(name.to_owned())),
            (Some(_), _) => return Err(CommandError::AmbiguousHost(name.to_owned())),
        };
        if host == self.own || self.routes.contains_key(&host) {
            return Err(CommandError::StillThere(name.to_owned()));
        }
        Ok(host)
    }

    /// Lets the address state machine go on, and carries out what it says.
    pub(super) fn tend_addresses(&mut self, now: Time) {
        if now >= self.addresses.next_hosts {
            self.addresses.next_hosts = now + HOSTS_INTERVAL;
            let named = self.named_hosts();
            self.addresses.ipam.set_hosts(named, self.routes.keys().copied(), now);
        }
        if self.addresses.next_timeout().is_some_and(|at| at <= now) {
            self.addresses.ipam.handle_timeout(now);
        }
        let mut is_unsynced = false;
        while let Some(said) = self.addresses.ipam.poll_output() {
            match said {
                Said::Persist(key, value) => {
                    self.persist(&key, value);
                    is_unsynced = true;
                }
                Said::Fence(id, address) => self.fence(id, address),
                said => {
                    let mark = self.addresses.mark + u64::from(is_unsynced);
                    let is_message = matches!(said, Said::Send(..));
                    if !is_message || self.addresses.held_back.len() < MAX_HELD_BACK {
                        self.addresses.held_back.push_back((mark, said));
                    }
                }
            }
        }
        if is_unsynced {
            self.addresses.mark += 1;
            self.outputs.push_back(Output::Durable(self.addresses.mark));
        }
        self.say_held_back(now);
    }

    /// The disk has all that was persisted before a mark, or could not take it. Requests for addresses fail in
    /// the latter; what is said to others waits until a later write takes everything.
    pub(super) fn on_durable(&mut self, mark: u64, is_kept: bool, now: Time) {
        if is_kept {
            self.addresses.durable = self.addresses.durable.max(mark);
            return self.say_held_back(now);
        }
        for (needs, said) in std::mem::take(&mut self.addresses.held_back) {
            match said {
                Said::Reply(ticket, _) | Said::Done(ticket, _) if needs <= mark => {
                    self.outputs.push_back(Output::Reply(ticket, Err(CommandError::NotKept)));
                }
                said => self.addresses.held_back.push_back((needs, said)),
            }
        }
    }

    fn say_held_back(&mut self, now: Time) {
        let durable = self.addresses.durable;
        while self.addresses.held_back.front().is_some_and(|(needs, _)| *needs <= durable) {
            let Some((_, said)) = self.addresses.held_back.pop_front() else { return };
            match said {
                Said::Send(to, bytes) => self.send_control(to, &Control::Ring(bytes), now),
                Said::Reply(ticket, result) => {
                    let result = result.map(Reply::Address).map_err(|error| self.explain(error));
                    self.outputs.push_back(Output::Reply(ticket, result));
                }
                Said::Done(ticket, result) => {
                    let host = self.addresses.reclaiming.remove(&ticket).filter(|_| result.is_ok());
                    if let Some(id) = host.and_then(|host| self.peer_key(host)) {
                        self.forget_records(id);
                    }
                    let result = result.map(|()| Reply::Done).map_err(|error| self.explain(error));
                    self.outputs.push_back(Output::Reply(ticket, result));
                }
                // A ring's announcement is far below the limits of a record.
                Said::Announce(range, announcement) => {
                    let _ = self.store.put(&Key::Ring(range).encode(), records::encode(&announcement));
                }
                Said::Persist(..) | Said::Fence(..) => {}
            }
        }
    }

    /// An address is another's: no record of this host speaks of it any more.
    fn fence(&mut self, id: AllocationId, address: Ipv4Addr) {
        self.addresses.fenced.insert(id, address);
        let has_it = |ips: &[(IpAddr, u8)]| ips.iter().any(|(ip, _)| *ip == IpAddr::V4(address));
        let own = self.own;
        let concerned: Vec<_> = (self.endpoints.iter())
            .filter(|(host, _, record)| *host == own && has_it(&record.ips))
            .map(|(_, id, record)| (id, record.clone()))
            .collect();
        for (endpoint, mut record) in concerned {
            record.ips = record.ips.into_iter().filter(|(ip, _)| *ip != IpAddr::V4(address)).collect();
            // What had room with an address more has room without it.
            let _ = self.write_endpoint(endpoint, record);
        }
        self.event(Event::Fenced { id, address });
    }

    /// The peers the user named, each host once, and not this one.
    fn named_hosts(&self) -> Vec<Named> {
        let mut named: Vec<Named> = Vec::new();
        for (name, addresses) in &self.targets {
            if addresses.iter().any(|address| self.own_addresses.contains(address)) {
                continue;
            }
            let host = addresses.iter().find_map(|address| self.target_addresses.get(address)?.peer);
            if host.is_none() || !named.iter().any(|other| other.host == host) {
                named.push(Named { name: name.clone(), host });
            }
        }
        named
    }

    fn explain(&self, error: Error) -> CommandError {
        match error {
            Error::Waiting { range, waiting_for } => {
                CommandError::NoAddress { range, waiting_for: self.name_awaited(&waiting_for) }
            }
            Error::PartInUse { part, range, by } => {
                let by = by.iter().map(|host| self.unmistakable(*host)).collect();
                CommandError::SubnetInUse { part, range, by }
            }
            error => CommandError::Address(error),
        }
    }

    fn name_awaited(&self, awaited: &[Awaited]) -> Vec<String> {
        let name = |awaited: &Awaited| match awaited {
            Awaited::Host(host) => self.unmistakable(*host),
            Awaited::Peer(name) => name.clone(),
        };
        awaited.iter().map(name).collect()
    }

    /// How the rings stand, for a report.
    pub(super) fn ring_reports(&self) -> Vec<RingReport> {
        let report = |ring: crate::ipam::RingStatus| RingReport {
            range: ring.range.to_string(),
            state: if ring.is_ready { "ready" } else { "waiting" },
            waiting_for: self.name_awaited(&ring.waiting_for),
            owned: ring.owned,
            used: ring.used,
            unreachable: ring.unreachable,
            voters: ring.voters.iter().map(|voter| self.unmistakable(*voter)).collect(),
            contested: ring.contested.iter().map(ToString::to_string).collect(),
        };
        self.addresses.ipam.status().into_iter().map(report).collect()
    }

    /// Addresses that this host had handed out and that turned out to be others'.
    pub(super) fn fenced(&self) -> Vec<Ipv4Addr> {
        self.addresses.fenced.values().copied().collect()
    }
}
