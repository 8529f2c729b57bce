//! What each flow carried: the metering process of RFC 7011, section 2.
//!
//! A worker fills the table it is given, if it is given one. Who gave it takes it back for an empty one, time and again, and sums up:
//! the worker looks no flow over, and shares nothing.

#![expect(clippy::disallowed_types, reason = "the caller seeds its hasher, and the order is nothing to a sum")]

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::FixedState;
use weft_crypto::{HostLabel, Time};

use crate::datapath::frame::{self, Headers, IpPacket, Transport};
use crate::datapath::tcp::TcpCut;
use crate::datapath::vnet::VnetHeader;
use crate::wire::SegmentId;

/// Which way a flow goes, seen from this host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowDirection {
    /// From another host to containers here.
    Ingress,
    /// From containers here to another host.
    Egress,
}

/// What tells a flow from others: packets of one direction between two hosts, in one segment, with equal addresses, protocol and
/// ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Which way it goes.
    pub direction: FlowDirection,
    /// The segment.
    pub segment: SegmentId,
    /// The other host.
    pub peer: HostLabel,
    /// Source and destination, both of one family.
    pub addresses: [IpAddr; 2],
    /// The protocol's number; of IPv6 the one behind all extension headers.
    pub protocol: u8,
    /// Source and destination port. Of ICMP the second is type and code, of fragments and other protocols both are 0.
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

/// Six bytes as a word, and back.
#[inline]
fn word(bytes: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = bytes;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

fn six(word: u64) -> [u8; 6] {
    let [_, _, bytes @ ..] = word.to_be_bytes();
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

/// What a flow carried in a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowCount {
    /// Packets; each that a super-frame was cut into, or put together from, counts.
    pub packets: u64,
    /// Bytes of IP packets as the interfaces of containers count them: a super-frame has its headers once.
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

/// Packets, and bytes of them, that belong to no flow in a table because it was full.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ignored {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP packets.
    pub octets: u64,
}

/// The flows of one worker since it was given the table. Memory is taken once, when it is made.
pub struct FlowTable {
    v4: HashMap<PackedV4, FlowCount, FixedState>,
    v6: HashMap<PackedV6, FlowCount, FixedState>,
    /// How many there may be of each.
    most: usize,
    ignored: Ignored,
}

/// A packet, or a burst of packets with one header.
pub(crate) struct Burst {
    pub(crate) packets: usize,
    /// Bytes that the later packets add to the first's.
    pub(crate) more_octets: usize,
    /// Flags of TCP that stand in later packets' headers.
    pub(crate) more_flags: u8,
}

impl FlowTable {
    /// An empty table for at most this many flows of IPv4, and as many of IPv6. Who does not know the seed cannot choose flows that
    /// collide.
    pub fn new(most: usize, seed: u64) -> FlowTable {
        let hashing = FixedState::with_seed(seed);
        let v4 = HashMap::with_capacity_and_hasher(most, hashing.clone());
        FlowTable { v4, v6: HashMap::with_capacity_and_hasher(most, hashing), most, ignored: Ignored::default() }
    }

    /// Takes all flows out, and what was in none; the table is empty then.
    pub fn drain(&mut self) -> (impl Iterator<Item = (FlowKey, FlowCount)>, Ignored) {
        let ignored = std::mem::take(&mut self.ignored);
        let v4 = self.v4.drain().map(|(key, count)| (key.into(), count));
        (v4.chain(self.v6.drain().map(|(key, count)| (key.into(), count))), ignored)
    }

    /// Counts a frame or super-frame on its way to another host.
    // Not inlined, these two: where nothing is counted, nothing is paid for them.
    #[inline(never)]
    pub(crate) fn count_leaving(
        &mut self,
        segment: SegmentId,
        peer: HostLabel,
        vnet: &VnetHeader,
        (frame, headers): (&[u8], Option<&Headers>),
        now: Time,
    ) {
        let packets = headers.map_or(1, |headers| vnet.pieces(headers.end - headers.payload));
        let burst = Burst { packets, more_octets: 0, more_flags: 0 };
        self.count((FlowDirection::Egress, segment, peer), (frame, headers), burst, now);
    }

    /// Counts what came from another host, with the first packet's headers.
    #[inline(never)]
    pub(crate) fn count_arriving(
        &mut self,
        segment: SegmentId,
        peer: HostLabel,
        first: (&[u8], Option<&Headers>),
        burst: Burst,
        now: Time,
    ) {
        self.count((FlowDirection::Ingress, segment, peer), first, burst, now);
    }

    /// What is no IP packet is of no flow.
    #[inline(always)]
    fn count(
        &mut self,
        (direction, SegmentId(segment), HostLabel(peer)): (FlowDirection, SegmentId, HostLabel),
        (frame, headers): (&[u8], Option<&Headers>),
        burst: Burst,
        now: Time,
    ) {
        let Some(ip) = IpPacket::parse(frame, headers) else { return };
        let ports = match headers {
            Some(headers) => u32_at(frame, headers.l4),
            None => ip.icmp_at(frame).and_then(|at| frame::u16_at(frame, at)).unwrap_or(0).into(),
        };
        let tcp_flags = match headers {
            Some(headers) if headers.transport == Transport::Tcp => TcpCut::flags(frame, headers) | burst.more_flags,
            _ => 0,
        };
        let octets = (ip.end - ip.l3 + burst.more_octets) as u64;
        let count = FlowCount { packets: burst.packets as u64, octets, first: now, last: now, tcp_flags };
        let rest = u64::from(ports) << 32 | u64::from(ip.protocol) << 8 | direction as u64;
        let [segment, peer] = [segment, peer].map(word);
        let Self { v4, v6, most, ignored } = self;
        if ip.v6 {
            let [a, b, c, d] = [8, 16, 24, 32].map(|at| u64_at(frame, ip.l3 + at));
            add(v6, *most, Packed([segment, peer, rest, a, b, c, d]), count, ignored);
        } else {
            add(v4, *most, Packed([segment, peer, rest, u64_at(frame, ip.l3 + 12)]), count, ignored);
        }
    }
}

#[inline(always)]
fn add<const WORDS: usize>(
    flows: &mut HashMap<Packed<WORDS>, FlowCount, FixedState>,
    most: usize,
    key: Packed<WORDS>,
    count: FlowCount,
    ignored: &mut Ignored,
) {
    if let Some(flow) = flows.get_mut(&key) {
        flow.packets += count.packets;
        flow.octets += count.octets;
        flow.last = count.last;
        flow.tcp_flags |= count.tcp_flags;
    } else if flows.len() < most {
        flows.insert(key, count);
    } else {
        ignored.packets += count.packets;
        ignored.octets += count.octets;
    }
}
