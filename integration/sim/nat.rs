//! NATs as RFC 4787 tells them apart, and as Linux does it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::{Rng, RngExt};
use weft_crypto::Time;

/// How long a NAT remembers where a host sent to, and what it took for its own.
const EXPIRY: Duration = Duration::from_secs(30);
/// How often it looks what is over.
const LOOKS: Duration = Duration::from_secs(1);

/// What a mapping or a filter depends on at the other end (RFC 4787, sections 4.1 and 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dependence {
    /// Endpoint-independent.
    None,
    /// Address-dependent.
    Address,
    /// Address and port-dependent.
    AddressAndPort,
}

impl Dependence {
    /// All there are.
    pub const ALL: [Dependence; 3] = [Dependence::None, Dependence::Address, Dependence::AddressAndPort];

    /// Whether two addresses at the other end are one for what depends on them so.
    fn is_same(self, a: SocketAddr, b: SocketAddr) -> bool {
        match self {
            Dependence::None => true,
            Dependence::Address => a.ip() == b.ip(),
            Dependence::AddressAndPort => a == b,
        }
    }
}

/// How a NAT behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behaviour {
    /// Which destinations share a mapping.
    pub mapping: Dependence,
    /// Which sources may answer.
    pub filtering: Dependence,
    /// Whether a mapping has the port of the host if it is free; else a random one.
    pub preserves_ports: bool,
    /// Whether what comes unasked is taken for the NAT's own, and its port for used towards where it came from: as Linux does without
    /// a packet filter.
    pub claims_unasked: bool,
}

impl Behaviour {
    /// All NATs of RFC 4787, with and without port preservation, and Linux without a packet filter.
    pub fn all() -> Vec<Behaviour> {
        let mut all = Vec::new();
        for mapping in Dependence::ALL {
            for filtering in Dependence::ALL {
                for preserves_ports in [false, true] {
                    all.push(Behaviour { mapping, filtering, preserves_ports, claims_unasked: false });
                }
            }
        }
        let of_both = Dependence::AddressAndPort;
        all.push(Behaviour { mapping: of_both, filtering: of_both, preserves_ports: true, claims_unasked: true });
        all
    }

    /// Whether two hosts behind such NATs can have a direct link, if neither searches for ports.
    pub fn can_meet(self, other: Behaviour) -> bool {
        let lets_all_in = |nat: Behaviour| nat.filtering == Dependence::None;
        match (self.is_known(), other.is_known()) {
            (true, true) => true,
            (true, false) => self.lets_any_port_in(),
            (false, true) => other.lets_any_port_in(),
            // What comes to the mapping that others see is let in by whom it lets all in, and answered from another port.
            (false, false) => {
                (lets_all_in(self) && other.lets_any_port_in()) || (lets_all_in(other) && self.lets_any_port_in())
            }
        }
    }

    /// Whether two hosts behind such NATs can have a direct link once one has found a port of the other's NAT: it has to come from where it
    /// is let in, and the answer, too. Where only the question is sure to, it is a matter of luck (`None`).
    pub fn can_be_found_with(self, other: Behaviour) -> Option<bool> {
        let can_be_found = |found: Behaviour, seeker: Behaviour| {
            let answers_from_there = found.mapping != Dependence::AddressAndPort;
            found.lets_any_port_in() && (answers_from_there || seeker.lets_any_port_in())
        };
        let is_sure = self.is_known() || other.is_known() || can_be_found(self, other) || can_be_found(other, self);
        let may_be_lucky = self.lets_any_port_in() || other.lets_any_port_in();
        (is_sure || !may_be_lucky).then_some(is_sure)
    }

    /// Whether others know at which port it maps its host.
    pub fn is_known(self) -> bool {
        self.mapping == Dependence::None || self.preserves_ports
    }

    fn lets_any_port_in(self) -> bool {
        self.filtering != Dependence::AddressAndPort
    }
}

/// A NAT.
pub struct Nat {
    behaviour: Behaviour,
    outside: IpAddr,
    mappings: Vec<Mapping>,
    /// Ports that lead inside for all, and where.
    forwarded: BTreeMap<u16, SocketAddr>,
    /// Ports that are the NAT's own towards an address, and since when.
    claims: BTreeMap<(u16, SocketAddr), Time>,
    /// When it last looked what is over.
    looked: Time,
}

struct Mapping {
    inside: SocketAddr,
    /// The destination it was made for.
    made_for: SocketAddr,
    port: u16,
    /// Where its host sent, and when last.
    sent: BTreeMap<SocketAddr, Time>,
}

impl Nat {
    /// A NAT with an address outside.
    pub fn new(behaviour: Behaviour, outside: IpAddr) -> Nat {
        let (mappings, forwarded, claims) = Default::default();
        Nat { behaviour, outside, mappings, forwarded, claims, looked: Time::ZERO }
    }

    /// How it behaves.
    pub fn behaviour(&self) -> Behaviour {
        self.behaviour
    }

    /// Starts again with an address outside, and knows none of its mappings any more.
    pub fn restart(&mut self, outside: IpAddr) {
        self.outside = outside;
        self.mappings.clear();
        self.claims.clear();
    }

    /// Whether it maps a host to other ports than the host's own, as others had those first.
    pub fn has_moved(&self, inside: SocketAddr) -> bool {
        self.mappings.iter().any(|mapping| mapping.inside == inside && mapping.port != inside.port())
    }

    /// Its address outside.
    pub fn outside(&self) -> IpAddr {
        self.outside
    }

    /// What comes to a port goes inside from now on.
    pub fn forward(&mut self, port: u16, inside: SocketAddr) {
        self.forwarded.insert(port, inside);
    }

    /// A datagram goes out; returns where it seems to come from.
    pub fn outbound(&mut self, inside: SocketAddr, to: SocketAddr, now: Time, rng: &mut impl Rng) -> SocketAddr {
        self.expire(now);
        let of = self.behaviour.mapping;
        let is_it = |mapping: &Mapping| mapping.inside == inside && of.is_same(mapping.made_for, to);
        let at = self.mappings.iter().position(is_it).unwrap_or_else(|| {
            let port = self.free_port(inside, to, rng);
            self.mappings.push(Mapping { inside, made_for: to, port, sent: BTreeMap::new() });
            self.mappings.len() - 1
        });
        let mapping = &mut self.mappings[at];
        mapping.sent.insert(to, now);
        SocketAddr::new(self.outside, mapping.port)
    }

    /// A datagram comes from outside; returns where it goes, if it is let in.
    pub fn inbound(&mut self, from: SocketAddr, port: u16, now: Time) -> Option<SocketAddr> {
        self.expire(now);
        if let Some(inside) = self.forwarded.get(&port).copied() {
            // Answers leave from the port that was asked.
            self.mappings.retain(|mapping| (mapping.inside, mapping.made_for) != (inside, from));
            self.mappings.insert(0, Mapping { inside, made_for: from, port, sent: [(from, now)].into() });
            return Some(inside);
        }
        let of = self.behaviour.filtering;
        let lets_in = |mapping: &&Mapping| mapping.port == port && mapping.sent.keys().any(|to| of.is_same(*to, from));
        let inside = self.mappings.iter().find(lets_in).map(|mapping| mapping.inside);
        if inside.is_none() && self.behaviour.claims_unasked {
            self.claims.insert((port, from), now);
        }
        inside
    }

    fn free_port(&self, inside: SocketAddr, to: SocketAddr, rng: &mut impl Rng) -> u16 {
        let is_free = |port: u16| {
            let is_others = |mapping: &Mapping| mapping.port == port && mapping.inside != inside;
            !self.claims.contains_key(&(port, to)) && !self.mappings.iter().any(is_others)
        };
        if self.behaviour.preserves_ports && is_free(inside.port()) {
            return inside.port();
        }
        loop {
            let port = rng.random_range(1024..=u16::MAX);
            if port != inside.port() && is_free(port) {
                return port;
            }
        }
    }

    fn expire(&mut self, now: Time) {
        if now.since(self.looked) < LOOKS {
            return;
        }
        self.looked = now;
        let is_fresh = |at: Time| now.since(at) < EXPIRY;
        self.mappings.iter_mut().for_each(|mapping| mapping.sent.retain(|_, at| is_fresh(*at)));
        self.mappings.retain(|mapping| !mapping.sent.is_empty());
        self.claims.retain(|_, at| is_fresh(*at));
    }
}
