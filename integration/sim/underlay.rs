//! The network between hosts: what becomes of a datagram on its way.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use weft_mesh::node::Command;
use weft_mesh::path::{Path, Transport};
use weft_mesh::wire::Lane;

use super::connections::Connection;
use super::host::Host;
use super::nat::{Behaviour, Nat};
use super::relaying::Relaying;
use super::weather::{IP_AND_UDP, Weather};
use super::world::{HostNumber, What, World};

/// Where a datagram comes out of the network.
#[derive(Clone, Copy)]
enum End {
    Host(HostNumber),
    /// At a NAT's side outside.
    Nat(usize),
}

impl World {
    /// Lets nothing pass between two hosts from now on.
    pub fn cut(&mut self, a: HostNumber, b: HostNumber) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    /// Lets everything pass again.
    pub fn heal(&mut self, a: HostNumber, b: HostNumber) {
        self.cut.remove(&(a.min(b), a.max(b)));
    }

    /// Whether the network carries anything between two hosts.
    pub fn is_cut(&self, a: HostNumber, b: HostNumber) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// The host that is at an address.
    pub fn host_at(&self, address: SocketAddr) -> Option<HostNumber> {
        self.by_address.get(&address).copied()
    }

    /// From now on a host is seen at another address, as when a NAT maps it anew.
    pub fn move_host(&mut self, number: HostNumber, address: SocketAddr) {
        let old = std::mem::replace(&mut self.hosts[number].address, address);
        self.by_address.remove(&old);
        self.by_address.insert(address, number);
    }

    /// A host leaves its network for another, and sees so by its interfaces.
    pub fn roam(&mut self, number: HostNumber) {
        let SocketAddr::V4(old) = self.hosts[number].address else { return };
        let [net, block, ..] = old.ip().octets();
        let new = SocketAddr::from(([net, block + 1, 7, number as u8], old.port()));
        self.move_host(number, new);
        self.connections.end(number);
        self.command(number, Command::SetAddresses(vec![new.ip()]));
    }

    /// Gives a host a second address.
    pub fn add_second_address(&mut self, number: HostNumber, address: SocketAddr) {
        self.hosts[number].second = Some(address);
        self.by_address.insert(address, number);
    }

    /// Adds a NAT; returns its place.
    pub fn add_nat(&mut self, behaviour: Behaviour) -> usize {
        let number = self.nats.len();
        let outside = IpAddr::from([203, (number / 250) as u8, (number % 250 + 1) as u8, 1]);
        self.nats.push(Nat::new(behaviour, outside));
        number
    }

    /// Starts a NAT again, with another address outside if it `moves`.
    pub fn restart_nat(&mut self, nat: usize, moves: bool) {
        let outside = match self.nats[nat].outside() {
            IpAddr::V4(ip) if moves => {
                let [a, b, c, d] = ip.octets();
                IpAddr::from([a, b.wrapping_add(1), c, d])
            }
            outside => outside,
        };
        self.nats[nat].restart(outside);
    }

    /// The NAT that a host is behind.
    pub fn nat_of(&self, host: HostNumber) -> Option<&Nat> {
        Some(&self.nats[self.hosts[host].nat?])
    }

    /// Has a port of a NAT lead to a host; returns the address outside.
    pub fn forward(&mut self, nat: usize, port: u16, host: HostNumber) -> SocketAddr {
        self.nats[nat].forward(port, self.hosts[host].address);
        SocketAddr::new(self.nats[nat].outside(), port)
    }

    /// Whether a host can send frames to another.
    pub fn has_way(&self, from: HostNumber, to: HostNumber) -> bool {
        let outbound = self.hosts[from].snapshot.outbound.get(&self.hosts[to].label);
        outbound.is_some_and(|outbound| outbound.hop.is_some() && outbound.send.is_some())
    }

    /// Whether a host sends to another straight.
    pub fn is_direct(&self, from: HostNumber, to: HostNumber) -> bool {
        let outbound = self.hosts[from].snapshot.outbound.get(&self.hosts[to].label);
        outbound.is_some_and(|outbound| outbound.link.is_some())
    }

    /// A host passes a run on.
    pub(super) fn pass_on(&mut self, number: HostNumber, to: Path, data: Vec<u8>, stride: usize) {
        let relaying = self.hosts[number].relaying.clone();
        if relaying == Relaying::default() {
            return self.transmit(number, Lane::Main, to, data, stride);
        }
        for datagram in data.chunks(stride.max(1)) {
            let mut datagram = datagram.to_vec();
            let is_victim = relaying.only_to.is_none_or(|only| only == to.remote);
            if is_victim && datagram.len() > relaying.spares_up_to {
                if self.rng.random_bool(relaying.drops) {
                    continue;
                }
                if let Some(last) = datagram.last_mut().filter(|_| relaying.corrupts) {
                    *last ^= 1;
                }
            }
            for _ in 0..relaying.copies {
                let what = What::PassOn { host: number, to, data: datagram.clone() };
                self.queue.push(self.now + relaying.delay, what);
            }
        }
    }

    /// Puts a run on the network; each of its datagrams has its own fate.
    pub(super) fn transmit(&mut self, from: HostNumber, lane: Lane, to: Path, data: Vec<u8>, stride: usize) {
        let spare = match to.transport {
            Transport::Udp => None,
            Transport::SpareUdp(port) => Some(port),
            Transport::Tcp | Transport::AcceptedTcp => return self.transmit_by_tcp(from, to, &data, stride),
        };
        let Some((source, end)) = self.way(from, spare, to.remote) else { return };
        self.bytes_sent += data.len() as u64;
        let count = data.len().div_ceil(stride.max(1));
        self.datagrams_sent += count as u64;
        self.hosts[from].carried += (data.len() + count * IP_AND_UDP) as u64;
        let is_marked = lane == Lane::Urgent && self.hosts[from].marks;
        let is_cut = matches!(end, End::Host(host) if self.is_cut(from, host) || from == host);
        let is_blocked = |host: HostNumber| self.hosts[host].blocks_udp;
        if is_cut
            || is_blocked(from)
            || matches!(end, End::Host(host) if is_blocked(host))
            || (is_marked && self.drops_marked)
        {
            return;
        }
        let Weather { loss, duplication, delay: (shortest, longest) } = self.weather;
        for datagram in data.chunks(stride.max(1)) {
            let copies = if self.rng.random_bool(duplication) { 2 } else { 1 };
            for _ in 0..copies {
                if self.rng.random_bool(loss) {
                    continue;
                }
                let delay = self.rng.random_range(shortest.as_nanos() as u64..=longest.as_nanos() as u64);
                let at = self.now + Duration::from_nanos(delay);
                let (data, stride) = (datagram.to_vec(), datagram.len());
                let what = match end {
                    End::Host(host) => What::Deliver { host, from: Path::udp(source), data, stride },
                    End::Nat(nat) => What::Arrive { nat, from: source, port: to.remote.port(), data },
                };
                self.queue.push(at, what);
            }
        }
    }

    /// Puts a run on a connection, which is opened at need.
    fn transmit_by_tcp(&mut self, from: HostNumber, to: Path, data: &[u8], stride: usize) {
        let there = self.connections.find(from, to, |host| self.hosts[host].life);
        let Some(connection) = there.or_else(|| self.open_connection(from, to)) else { return };
        let (host, path) = connection.other_end(from);
        if self.is_cut(from, host) {
            return;
        }
        self.bytes_sent += data.len() as u64;
        self.datagrams_sent += data.len().div_ceil(stride.max(1)) as u64;
        let at = self.now + self.weather.delay.0;
        for datagram in data.chunks(stride.max(1)) {
            let (data, stride) = (datagram.to_vec(), datagram.len());
            self.queue.push(at, What::Deliver { host, from: path, data, stride });
        }
    }

    fn open_connection(&mut self, opener: HostNumber, to: Path) -> Option<Connection> {
        let accepts = |host: &Host| {
            host.node.is_some() && host.address.ip() == to.remote.ip() && host.tcp_ports.contains(&to.remote.port())
        };
        let acceptor = (0..self.hosts.len()).find(|host| *host != opener && accepts(&self.hosts[*host]))?;
        let (own, hidden) = (self.hosts[opener].nat, self.hosts[acceptor].nat);
        if to.transport != Transport::Tcp || (hidden.is_some() && hidden != own) || self.is_cut(opener, acceptor) {
            return None;
        }
        let nat = own.filter(|_| hidden.is_none()).map(|nat| self.nats[nat].outside());
        let outside = nat.unwrap_or(self.hosts[opener].address.ip());
        let [opener, acceptor] = [opener, acceptor].map(|host| (host, self.hosts[host].life));
        Some(self.connections.open(opener, acceptor, to.remote, outside))
    }

    /// A datagram leaves a host that gets no further than the host's own NAT.
    pub(super) fn open_nats(&mut self, from: HostNumber, to: Path) {
        self.way(from, None, to.remote);
    }

    /// A host opens spare ports, and from each a datagram leaves that gets no further than the host's own NAT.
    pub(super) fn spread(&mut self, from: HostNumber, towards: &[Path], count: usize) {
        let first = self.hosts[from].spares.end;
        self.hosts[from].spares.end += count as u16;
        for (port, to) in (first..first + count as u16).flat_map(|port| towards.iter().map(move |to| (port, to))) {
            self.way(from, Some(port), to.remote);
        }
    }

    /// A datagram comes to a NAT from outside.
    pub(super) fn arrive(&mut self, nat: usize, from: SocketAddr, port: u16, data: Vec<u8>) {
        let Some(inside) = self.nats[nat].inbound(from, port, self.now) else { return };
        let (host, path) = match self.host_at(inside) {
            Some(host) => (Some(host), Path::udp(from)),
            None => {
                let is_its = |host: &Host| host.address.ip() == inside.ip() && host.spares.contains(&inside.port());
                let transport = Transport::SpareUdp(inside.port());
                (self.hosts.iter().position(is_its), Path { transport, ..Path::udp(from) })
            }
        };
        if let Some(host) = host {
            let stride = data.len();
            self.deliver(host, path, data, stride);
        }
    }

    /// Where a datagram from a host's port, or a spare one, comes out, and where it then seems to come from. None: no router knows the way.
    fn way(&mut self, from: HostNumber, spare: Option<u16>, to: SocketAddr) -> Option<(SocketAddr, End)> {
        let source = match &self.hosts[from] {
            Host { second: Some(second), .. } if self.rng.random() => *second,
            first => first.address,
        };
        let source = SocketAddr::new(source.ip(), spare.unwrap_or(source.port()));
        let own_nat = self.hosts[from].nat;
        let end = match self.host_at(to) {
            Some(host) => End::Host(host),
            None => End::Nat(self.nats.iter().position(|nat| nat.outside() == to.ip())?),
        };
        match (end, own_nat) {
            // In one LAN, or both outside.
            (End::Host(host), own) if self.hosts[host].nat == own => Some((source, end)),
            (End::Host(host), _) if self.hosts[host].nat.is_some() => None,
            // None of these NATs lets a host find itself.
            (End::Nat(nat), Some(own)) if nat == own => None,
            (_, Some(own)) => Some((self.nats[own].outbound(source, to, self.now, &mut self.rng), end)),
            (_, None) => Some((source, end)),
        }
    }
}
