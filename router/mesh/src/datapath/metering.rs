//! Counts packets and bytes by flow: the metering process of RFC 7011, section 2.
//!
//! A packet worker counts into a table that the exporter gave it, and gets an empty one in exchange each second. Timeouts and sums
//! are the exporter's: the worker looks up one key a packet, and shares nothing.

#![expect(clippy::disallowed_types, reason = "the caller seeds its hasher, and the order is nothing to a sum")]

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use weft_crypto::{HostLabel, Time};

use crate::datapath::frame::{Headers, IpPacket, Transport};
use crate::datapath::tcp::TcpCut;
use crate::wire::SegmentId;

/// Direction of a flow, seen from this host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowDirection {
    /// From another host to containers here.
    Ingress,
    /// From containers here to another host.
    Egress,
}

/// The key of a flow: its packets have one direction, are between the same two hosts in one segment, and have equal addresses, protocol
/// and ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Its direction.
    pub direction: FlowDirection,
    /// The segment.
    pub segment: SegmentId,
    /// The other host.
    pub peer: HostLabel,
    /// Source and destination, both of one family.
    pub addresses: [IpAddr; 2],
    /// The protocol's number; of IPv6 the one behind all extension headers.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP; 0 and type and code of ICMP. Both are 0 for other protocols and for fragments.
    pub ports: [u16; 2],
}

/// A key as it is looked up, which is done for each packet: three words of all but the addresses, then the addresses as they stand in
/// the packet, one word of IPv4 and four of IPv6.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Packed<const WORDS: usize>([u64; WORDS]);

type PackedV4 = Packed<4>;
type PackedV6 = Packed<7>;

impl<const WORDS: usize> Packed<WORDS> {
    fn unpacked(&self, addresses: [IpAddr; 2]) -> FlowKey {
        let [segment, peer, rest] = [0, 1, 2].map(|at| self.0[at]);
        FlowKey {
            direction: if rest & 1 == 0 { FlowDirection::Ingress } else { FlowDirection::Egress },
            segment: SegmentId(six(segment)),
            peer: HostLabel(six(peer)),
            addresses,
            protocol: (rest >> 8) as u8,
            ports: [(rest >> 48) as u16, (rest >> 32) as u16],
        }
    }
}

impl From<PackedV4> for FlowKey {
    fn from(packed: PackedV4) -> FlowKey {
        let Packed([.., both]) = packed;
        packed.unpacked([(both >> 32) as u32, both as u32].map(|bits| Ipv4Addr::from_bits(bits).into()))
    }
}

impl From<PackedV6> for FlowKey {
    fn from(packed: PackedV6) -> FlowKey {
        let Packed([.., a, b, c, d]) = packed;
        let address = |(high, low)| Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).into();
        packed.unpacked([(a, b), (c, d)].map(address))
    }
}

impl<const WORDS: usize> Hash for Packed<WORDS> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|word| state.write_u64(*word));
    }
}

/// Packs six bytes into a word; [`six`] unpacks them.
// Little-endian, as most machines are: swapping the bytes of two words took a seventh of what counting takes.
#[inline]
fn word(bytes: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = bytes;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

fn six(word: u64) -> [u8; 6] {
    let [bytes @ .., _, _] = word.to_le_bytes();
    bytes
}

#[inline]
fn u32_at(frame: &[u8], at: usize) -> u32 {
    frame.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[inline]
fn u64_at(frame: &[u8], at: usize) -> u64 {
    frame.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Counters of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowCount {
    /// Packets between the hosts: a super-frame counts for each that it is cut into, or was put together from.
    pub packets: u64,
    /// Bytes of IP packets at the TAP: a super-frame has its headers once.
    pub octets: u64,
    /// When the first was seen.
    pub first: Time,
    /// When the last was seen.
    pub last: Time,
    /// All flags of TCP headers that were seen (RFC 9293, section 3.1).
    pub tcp_flags: u8,
}

impl FlowCount {
    /// Adds what came before or after.
    pub fn add(&mut self, other: &FlowCount) {
        self.packets += other.packets;
        self.octets += other.octets;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.tcp_flags |= other.tcp_flags;
    }
}

/// Packets that were not counted by flow, because a table was full.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ignored {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP packets.
    pub octets: u64,
}

impl Ignored {
    /// Adds further ones.
    pub fn add(&mut self, packets: u64, octets: u64) {
        self.packets += packets;
        self.octets += octets;
    }
}

/// Flows of each family that a table takes: seven eighths of 8,192, so that it never grows.
pub const MAX_FLOWS: usize = 7_168;

/// Hashes flows under random seeds: with known ones, containers could choose flows that all collide.
#[derive(Clone)]
pub struct FlowHashing(SeedableRandomState);

impl FlowHashing {
    /// Makes one from random numbers. Call it once a process: it leaks 64 bytes.
    pub fn new([table, shared]: [u64; 2]) -> FlowHashing {
        // The table's seed alone does not do: a key's word that equals the shared seed multiplies it by zero.
        let shared = Box::leak(Box::new(SharedSeed::from_u64(shared)));
        FlowHashing(SeedableRandomState::with_seed(table, shared))
    }
}

/// The flows that one worker saw since it got the table: at most [`MAX_FLOWS`] of each family. Memory is taken when it is made.
pub struct FlowTable {
    v4: HashMap<PackedV4, FlowCount, SeedableRandomState>,
    v6: HashMap<PackedV6, FlowCount, SeedableRandomState>,
    ignored: Ignored,
}

/// A frame or super-frame to count.
pub(crate) struct Burst<'a> {
    /// The first packet, at least up to the end of its headers.
    pub(crate) frame: &'a [u8],
    /// Its headers, if it is an unfragmented TCP or UDP packet.
    pub(crate) headers: Option<&'a Headers>,
    pub(crate) packets: usize,
    /// Bytes that later packets add to the first's.
    pub(crate) more_octets: usize,
    /// TCP flags from the headers of later packets.
    pub(crate) more_flags: u8,
}

impl FlowTable {
    /// Makes an empty table.
    pub fn new(FlowHashing(hashing): &FlowHashing) -> FlowTable {
        FlowTable {
            v4: HashMap::with_capacity_and_hasher(MAX_FLOWS, hashing.clone()),
            v6: HashMap::with_capacity_and_hasher(MAX_FLOWS, hashing.clone()),
            ignored: Ignored::default(),
        }
    }

    /// Empties the table: its flows, and the packets that were not counted.
    pub fn drain(&mut self) -> (impl Iterator<Item = (FlowKey, FlowCount)>, Ignored) {
        let ignored = std::mem::take(&mut self.ignored);
        let v4 = self.v4.drain().map(|(key, count)| (key.into(), count));
        (v4.chain(self.v6.drain().map(|(key, count)| (key.into(), count))), ignored)
    }

    /// Counts a frame or super-frame, if it is an IP packet.
    // Not inlined: a worker without a table pays for one branch.
    #[inline(never)]
    pub(crate) fn count(
        &mut self,
        direction: FlowDirection,
        SegmentId(segment): SegmentId,
        HostLabel(peer): HostLabel,
        burst: &Burst<'_>,
        now: Time,
    ) {
        let Burst { frame, headers, packets, more_octets, more_flags } = *burst;
        let (v6, protocol, l3, end, ports, tcp_flags) = match headers {
            Some(headers) => {
                let is_tcp = headers.transport == Transport::Tcp;
                let tcp_flags = if is_tcp { TcpCut::flags(frame, headers) | more_flags } else { 0 };
                (headers.v6, headers.protocol(), headers.l3, headers.end, u32_at(frame, headers.l4), tcp_flags)
            }
            None => {
                let Some(ip) = IpPacket::parse(frame) else { return };
                let (ports, tcp_flags) = ip.ports_and_flags(frame);
                (ip.v6, ip.protocol, ip.l3, ip.end, ports, tcp_flags)
            }
        };
        let octets = (end - l3 + more_octets) as u64;
        let count = FlowCount { packets: packets as u64, octets, first: now, last: now, tcp_flags };
        let rest = u64::from(ports) << 32 | u64::from(protocol) << 8 | direction as u64;
        let [segment, peer] = [segment, peer].map(word);
        if v6 {
            let [a, b, c, d] = [8, 16, 24, 32].map(|at| u64_at(frame, l3 + at));
            add(&mut self.v6, Packed([segment, peer, rest, a, b, c, d]), count, &mut self.ignored);
        } else {
            let key = Packed([segment, peer, rest, u64_at(frame, l3 + 12)]);
            add(&mut self.v4, key, count, &mut self.ignored);
        }
    }
}

#[inline(always)]
fn add<const WORDS: usize>(
    flows: &mut HashMap<Packed<WORDS>, FlowCount, SeedableRandomState>,
    key: Packed<WORDS>,
    count: FlowCount,
    ignored: &mut Ignored,
) {
    if let Some(flow) = flows.get_mut(&key) {
        flow.packets += count.packets;
        flow.octets += count.octets;
        flow.last = count.last;
        flow.tcp_flags |= count.tcp_flags;
    } else if flows.len() < MAX_FLOWS {
        flows.insert(key, count);
    } else {
        ignored.add(count.packets, count.octets);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn words_that_a_container_chooses_erase_no_others() {
        // The shared seed that foldhash has if none is given.
        const CHOSEN: u64 = 0xc0ac_29b7_c97c_50dd;
        let FlowHashing(hashing) = FlowHashing::new([1, 2]);
        let v4 = (0..1000u64).map(|ports| hashing.hash_one(Packed([1, 2, ports << 32, CHOSEN])));
        let v6 = (0..1000u64).map(|ports| hashing.hash_one(Packed([1, 2, ports << 32, CHOSEN, 0, 0, 0])));
        assert_eq!(v4.chain(v6).collect::<BTreeSet<u64>>().len(), 2000);
    }
}
