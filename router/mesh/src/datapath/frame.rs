//! Views of Ethernet frames: total accessors, no panic on any input.
//!
//! Ethernet II with up to two VLAN tags (IEEE 802.1Q), IPv4 (RFC 791), IPv6 (RFC 8200, without extension headers), TCP
//! (RFC 9293), UDP (RFC 768); checksums after RFC 1071.

/// A MAC address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// The largest frame a TAP hands over or takes: a 64 KB IP packet and its Ethernet header.
pub const MAX_FRAME: usize = ETHERNET_LEN + 65_535;

const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_VLAN: u16 = 0x8100;
pub(crate) const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
/// Bytes of a VLAN tag, and how many of them headers are looked for behind (IEEE 802.1ad).
const TAG_LEN: usize = 4;
const MAX_TAGS: usize = 2;
/// The most bytes in front of a packet: Ethernet and tags.
pub(crate) const MAX_LINK_HEADER: usize = ETHERNET_LEN + MAX_TAGS * TAG_LEN;
/// The most bytes of headers before a TCP or UDP payload: Ethernet, tags, IPv4 and TCP with all their options.
pub(crate) const MAX_HEADERS: usize = MAX_LINK_HEADER + 60 + 60;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;
/// The number of IPv6's fragment header.
const IPV6_FRAGMENT: u8 = 44;
/// Bytes of an IPv4 header without options.
const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
pub(super) const TCP_HEADER: usize = 20;

/// The destination MAC of a frame.
pub fn destination(frame: &[u8]) -> Option<Mac> {
    frame.first_chunk::<6>().copied()
}

/// The source MAC of a frame.
pub fn source(frame: &[u8]) -> Option<Mac> {
    frame.get(6..)?.first_chunk::<6>().copied()
}

/// The MAC of every segment's gateway, on every host the same, so that a container keeps its gateway wherever it runs.
/// Frames from it never leave the host.
pub const GATEWAY_MAC: Mac = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

/// A MAC as people write it.
pub fn colons(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Whether a MAC is a group address (broadcast or multicast).
pub fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|pair| u16::from_be_bytes(*pair))
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(pair) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *pair = value.to_be_bytes();
    }
}

/// The ethertype behind VLAN tags, and where what it names begins.
#[inline]
fn network(frame: &[u8]) -> Option<(u16, usize)> {
    match u16_at(frame, 12)? {
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => network_behind_tags(frame),
        ethertype => Some((ethertype, ETHERNET_LEN)),
    }
}

#[cold]
fn network_behind_tags(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = ETHERNET_LEN;
    for _ in 0..MAX_TAGS {
        match u16_at(frame, at - 2)? {
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => at += TAG_LEN,
            ethertype => return Some((ethertype, at)),
        }
    }
    Some((u16_at(frame, at - 2)?, at))
}

/// How many bytes of tags of no VLAN (IEEE 802.1Q, VID 0) are in front of a frame's ethertype: receivers take such a frame
/// as one without them.
#[inline]
pub(crate) fn priority_tags(frame: &[u8]) -> usize {
    match u16_at(frame, 12) {
        Some(ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) => count_priority_tags(frame),
        _ => 0,
    }
}

#[cold]
fn count_priority_tags(frame: &[u8]) -> usize {
    let is_priority = |at: usize| {
        matches!(u16_at(frame, at), Some(ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN))
            && u16_at(frame, at + 2).is_some_and(|tag| tag & 0x0fff == 0)
    };
    (0..).map(|tag| 12 + tag * TAG_LEN).take_while(|at| is_priority(*at)).count() * TAG_LEN
}

/// A hash of what frames of one flow and of its other direction have in common: addresses, protocol and ports; of a packet that
/// is neither TCP nor UDP, or is a fragment, addresses and protocol alone.
pub fn flow(frame: &[u8], headers: Option<&Headers>) -> u64 {
    let (protocol, from, len) = match network(frame) {
        Some((ETHERTYPE_IPV4, l3)) => (l3 + 9, l3 + 12, 4),
        Some((ETHERTYPE_IPV6, l3)) => (l3 + 6, l3 + 8, 16),
        _ => (13, 0, 6),
    };
    let end = |address: usize, port: usize| {
        let port = headers.and_then(|headers| u16_at(frame, headers.l4 + port)).unwrap_or(0);
        let words = frame.get(address..address + len).unwrap_or_default().chunks(8);
        words.fold(u64::from(port) << 48, |hash, part| {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            mixed(hash ^ u64::from_le_bytes(word))
        })
    };
    let protocol = frame.get(protocol).copied().unwrap_or(0);
    mixed(end(from, 0).wrapping_add(end(from + len, 2)).wrapping_add(protocol.into()))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): each bit of the result depends on each of `x`.
fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A part of an IP packet that was cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// It begins the packet.
    First,
    /// It does not.
    Later,
}

/// Which part of a cut packet a frame carries (RFC 791, section 3.1; RFC 8200, section 4.5); `None` for what is whole.
pub fn fragment(frame: &[u8]) -> Option<Fragment> {
    let (offset, more) = match network(frame)? {
        (ETHERTYPE_IPV4, l3) => u16_at(frame, l3 + 6).map(|word| (word & 0x1fff, word & 0x2000))?,
        (ETHERTYPE_IPV6, l3) if frame.get(l3 + 6) == Some(&IPV6_FRAGMENT) => {
            u16_at(frame, l3 + IPV6_HEADER + 2).map(|word| (word >> 3, word & 1))?
        }
        _ => return None,
    };
    match (offset, more) {
        (0, 0) => None,
        (0, _) => Some(Fragment::First),
        _ => Some(Fragment::Later),
    }
}

/// Which transport a packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where the headers of a TCP or UDP packet in a frame are. Made by [`Headers::parse`] only, so that
/// `l3 < l4`, `l4 + transport header ≤ payload ≤ end ≤ frame length` and `payload ≤ MAX_HEADERS` always hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    /// Whether it is IPv6.
    pub v6: bool,
    /// TCP or UDP.
    pub transport: Transport,
    /// Where the IP header begins: behind VLAN tags, if there are any.
    pub l3: usize,
    /// Where the transport header begins.
    pub l4: usize,
    /// Where the payload begins.
    pub payload: usize,
    /// Where the IP packet ends.
    pub end: usize,
}

impl Headers {
    /// The protocol's number.
    pub(crate) fn protocol(&self) -> u8 {
        if self.transport == Transport::Tcp { PROTOCOL_TCP } else { PROTOCOL_UDP }
    }

    /// Parses an unfragmented TCP or UDP packet over IPv4 or IPv6; `None` for anything else. The IP length
    /// field is believed only up to the frame's length.
    pub fn parse(frame: &[u8]) -> Option<Headers> {
        let (ethertype, l3) = network(frame)?;
        let (v6, protocol, l4, end) = match ethertype {
            ETHERTYPE_IPV4 => {
                let first = *frame.get(l3)?;
                let header = usize::from(first & 0x0f) * 4;
                let fragment = u16_at(frame, l3 + 6)? & 0x3fff;
                if first >> 4 != 4 || header < 20 || fragment != 0 {
                    return None;
                }
                (false, *frame.get(l3 + 9)?, l3 + header, l3 + usize::from(u16_at(frame, l3 + 2)?))
            }
            ETHERTYPE_IPV6 => {
                if frame.get(l3)? >> 4 != 6 {
                    return None;
                }
                let l4 = l3 + IPV6_HEADER;
                (true, *frame.get(l3 + 6)?, l4, l4 + usize::from(u16_at(frame, l3 + 4)?))
            }
            _ => return None,
        };
        let (transport, payload) = match protocol {
            PROTOCOL_TCP => (Transport::Tcp, l4 + usize::from(frame.get(l4 + 12)? >> 4) * 4),
            PROTOCOL_UDP => (Transport::Udp, l4 + 8),
            _ => return None,
        };
        let shortest = if transport == Transport::Tcp { l4 + TCP_HEADER } else { l4 + 8 };
        (payload >= shortest && payload <= end && end <= frame.len()).then_some(Headers {
            v6,
            transport,
            l3,
            l4,
            payload,
            end,
        })
    }

    /// Where in the transport header the checksum stands.
    pub fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    /// Writes the IP length (and for UDP the datagram's), for a packet that ends at `end` bytes from the
    /// frame's start, and the IPv4 header checksum. Only the headers need to be in `frame`.
    pub fn set_end(&self, frame: &mut [u8], end: usize) {
        if self.v6 {
            put_u16(frame, self.l3 + 4, (end - self.l4) as u16);
        } else {
            put_u16(frame, self.l3 + 2, (end - self.l3) as u16);
            self.set_ipv4_checksum(frame);
        }
        if self.transport == Transport::Udp {
            put_u16(frame, self.l4 + 4, (end - self.l4) as u16);
        }
    }

    fn set_ipv4_checksum(&self, frame: &mut [u8]) {
        put_u16(frame, self.l3 + 10, 0);
        let sum = !fold(sum(&frame[self.l3..self.l4]));
        put_u16(frame, self.l3 + 10, sum);
    }

    /// Adds `n` to the IPv4 identification, and the difference to the header checksum (RFC 1624, equation 3).
    pub fn add_ipv4_id(&self, frame: &mut [u8], n: u16) {
        let (id_at, checksum_at) = (self.l3 + 4, self.l3 + 10);
        let (false, Some(id), Some(checksum)) = (self.v6, u16_at(frame, id_at), u16_at(frame, checksum_at)) else {
            return;
        };
        let new = id.wrapping_add(n);
        put_u16(frame, id_at, new);
        put_u16(frame, checksum_at, !fold(u64::from(!checksum) + u64::from(!id) + u64::from(new)));
    }

    /// The pseudo-header's sum for a packet that ends at `end`, folded, not inverted: what a partial
    /// checksum field holds.
    pub fn pseudo_sum(&self, frame: &[u8], end: usize) -> u16 {
        let addresses = if self.v6 { &frame[self.l3 + 8..self.l4] } else { &frame[self.l3 + 12..self.l3 + 20] };
        fold(sum(addresses) + u64::from(self.protocol()) + (end - self.l4) as u64)
    }

    /// Makes the checksum partial: the field holds the sum over the pseudo-header, the rest is for
    /// the device that puts the packet on a wire.
    pub fn set_partial_checksum(&self, frame: &mut [u8], end: usize) {
        let pseudo = self.pseudo_sum(frame, end);
        put_u16(frame, self.l4 + self.checksum_offset(), pseudo);
    }

    /// Computes the whole checksum of the packet in `frame`.
    pub fn set_full_checksum(&self, frame: &mut [u8]) {
        self.set_partial_checksum(frame, self.end);
        complete_checksum(&mut frame[..self.end], self.l4, self.checksum_offset());
        let at = self.l4 + self.checksum_offset();
        if self.transport == Transport::Udp && frame[at..at + 2] == [0, 0] {
            frame[at..at + 2].copy_from_slice(&[0xff, 0xff]);
        }
    }
}

/// An IP packet of any protocol in a frame. Made by [`IpPacket::parse`] only, so that the addresses lie in the frame and
/// `l3 ≤ end ≤ frame length` holds.
pub(crate) struct IpPacket {
    pub(crate) v6: bool,
    /// The protocol, of IPv6 the one behind the extension headers.
    pub(crate) protocol: u8,
    /// Where the IP header begins.
    pub(crate) l3: usize,
    /// Where the protocol's header begins, which may be behind the end; `None` for a fragment.
    l4: Option<usize>,
    /// Where the packet ends.
    pub(crate) end: usize,
}

impl IpPacket {
    /// Finds the packet; `None` for what is no IP packet. It is slow beside [`Headers::parse`].
    #[cold]
    pub(crate) fn parse(frame: &[u8]) -> Option<IpPacket> {
        let (ethertype, l3) = network(frame)?;
        let (v6, header, len) = match ethertype {
            ETHERTYPE_IPV4 => (false, IPV4_HEADER, usize::from(u16_at(frame, l3 + 2)?)),
            ETHERTYPE_IPV6 => (true, IPV6_HEADER, IPV6_HEADER + usize::from(u16_at(frame, l3 + 4)?)),
            _ => return None,
        };
        let end = frame.len().min(l3 + len.max(header));
        let packet = frame.get(l3..end).filter(|packet| packet.len() >= header)?;
        let (protocol, l4) = if v6 { behind_extensions(packet) } else { (packet[9], behind_options(packet)) };
        Some(IpPacket { v6, protocol, l3, l4: l4.map(|l4| l3 + l4), end })
    }

    /// The ports of TCP and UDP, or 0 and type and code of ICMP, and the flags of TCP; zero where there are none.
    pub(crate) fn ports_and_flags(&self, frame: &[u8]) -> (u32, u8) {
        let header = self.l4.and_then(|l4| frame.get(l4..self.end)).unwrap_or_default();
        let u16_at = |at| u32::from(u16_at(header, at).unwrap_or(0));
        match (self.protocol, self.v6) {
            (PROTOCOL_TCP, _) => (u16_at(0) << 16 | u16_at(2), header.get(13).copied().unwrap_or(0)),
            (PROTOCOL_UDP, _) => (u16_at(0) << 16 | u16_at(2), 0),
            (PROTOCOL_ICMP, false) | (PROTOCOL_ICMPV6, true) => (u16_at(0), 0),
            _ => (0, 0),
        }
    }
}

/// Where the protocol's header begins in an IPv4 packet; `None` for a fragment.
fn behind_options(packet: &[u8]) -> Option<usize> {
    let is_whole = u16_at(packet, 6)? & 0x3fff == 0;
    is_whole.then_some(usize::from(packet[0] & 0x0f) * 4)
}

/// The protocol behind the extension headers of an IPv6 packet (RFC 8200, section 4; RFC 7045, section 4), and where its header begins;
/// no place for a fragment. Of a packet that is cut off, or has very many extension headers, the last one found counts as its protocol.
fn behind_extensions(packet: &[u8]) -> (u8, Option<usize>) {
    const MAX_EXTENSIONS: usize = 8;
    let (mut protocol, mut at) = (packet[6], IPV6_HEADER);
    for _ in 0..MAX_EXTENSIONS {
        let Some(&[next, len]) = packet.get(at..).and_then(|rest| rest.first_chunk()) else { break };
        let len = usize::from(len);
        at += match protocol {
            // Hop-by-hop options, routing, destination options, mobility, host identity, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => 8 * (len + 1),
            // Authentication.
            51 => 4 * (len + 2),
            // One fragment of one is whole.
            IPV6_FRAGMENT if u16_at(packet, at + 2).is_some_and(|word| word & 0xfff9 == 0) => 8,
            IPV6_FRAGMENT => return (next, None),
            _ => break,
        };
        protocol = next;
    }
    (protocol, Some(at))
}

/// Completes a partial checksum: sums from `start` to the end and stores the inverse at `start + offset`.
/// Out-of-range places leave the packet as it is.
pub fn complete_checksum(packet: &mut [u8], start: usize, offset: usize) {
    if start + offset + 2 <= packet.len() {
        let inverse = !fold(sum(&packet[start..]));
        put_u16(packet, start + offset, inverse);
    }
}

pub(crate) fn sum(bytes: &[u8]) -> u64 {
    // Sums 32 bits at a time; the fold makes it the same ones' complement sum (RFC 1071, section 2).
    let mut chunks = bytes.chunks_exact(4);
    let mut total: u64 =
        chunks.by_ref().map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))).sum();
    let rest = chunks.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(last));
    total
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A TCP frame with a full checksum.
    pub(crate) fn tcp_frame(v6: bool, payload: &[u8], flags: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        let l4_len = 20 + 12 + payload.len();
        if v6 {
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend_from_slice(&(l4_len as u16).to_be_bytes());
            frame.extend_from_slice(&[6, 64]);
            frame.extend_from_slice(&[0xfd; 32]);
        } else {
            frame.extend_from_slice(&[8, 0, 0x45, 0]);
            frame.extend_from_slice(&((l4_len + 20) as u16).to_be_bytes());
            frame.extend_from_slice(&[0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        frame.extend_from_slice(&[0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, flags, 1, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&[1; 12]);
        frame.extend_from_slice(payload);
        let headers = Headers::parse(&frame).unwrap();
        headers.set_end(&mut frame, headers.end);
        headers.set_full_checksum(&mut frame);
        frame
    }

    pub(crate) fn checksums_are_right(frame: &[u8]) -> bool {
        let Some(headers) = Headers::parse(frame) else { return false };
        let pseudo = u64::from(headers.pseudo_sum(frame, headers.end));
        let ip_right = headers.v6 || fold(sum(&frame[headers.l3..headers.l4])) == 0xffff;
        ip_right && fold(pseudo + sum(&frame[headers.l4..headers.end])) == 0xffff
    }

    #[test]
    fn a_flow_and_its_other_direction_are_one() {
        for (v6, addresses) in [(false, 26..34), (true, 22..54)] {
            let hash = |frame: &[u8]| flow(frame, Headers::parse(frame).as_ref());
            let mut frame = tcp_frame(v6, b"x", 0x18);
            // Addresses that differ.
            frame[addresses.start] ^= 1;
            let (there, l4) = (hash(&frame), addresses.end);
            let mut other = frame.clone();
            other[l4] ^= 1;
            assert_ne!(hash(&other), there, "another port is another flow");
            frame[addresses.clone()].rotate_left(addresses.len() / 2);
            assert_ne!(hash(&frame), there, "ports belong to addresses");
            frame[l4..l4 + 4].rotate_left(2);
            assert_eq!(hash(&frame), there);
        }
    }

    #[test]
    fn checksums_verify_and_partial_ones_complete_to_the_same() {
        for v6 in [false, true] {
            for len in [0, 1, 2, 3, 1000, 1001] {
                let frame = tcp_frame(v6, &vec![0xa5; len], 0x10);
                assert!(checksums_are_right(&frame));
                let headers = Headers::parse(&frame).unwrap();
                let mut partial = frame.clone();
                headers.set_partial_checksum(&mut partial, headers.end);
                complete_checksum(&mut partial, headers.l4, headers.checksum_offset());
                assert_eq!(partial, frame);
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_views_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3usize) {
            let mut frame = bytes;
            put_u16(&mut frame, 12, [ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN][kind]);
            priority_tags(&frame);
            fragment(&frame);
            if let Some(headers) = Headers::parse(&frame) {
                prop_assert!(headers.payload <= headers.end && headers.end <= frame.len());
                prop_assert!(headers.payload <= MAX_HEADERS && headers.l3 < headers.l4);
                headers.set_end(&mut frame, headers.end);
                headers.set_full_checksum(&mut frame);
                prop_assert!(checksums_are_right(&frame));
            }
        }
    }
}
