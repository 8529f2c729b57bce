//! What is inside datagrams: handshake packets, and the texts that sessions seal.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use weft_crypto::handshake::{MAX_MESSAGE, Offer, Pattern};
use weft_crypto::{HostLabel, PeerId, Secret, SuiteSet, cookie, envelope, session};

/// Bytes before the frame in a text.
pub const TEXT_HEADER: usize = 12;
/// Bytes that a datagram adds to a frame: envelope, session header and tag, text header.
pub const OVERHEAD: usize = envelope::LEN + session::OVERHEAD + TEXT_HEADER;
/// Bytes of IPv6 and UDP headers: what the underlay takes at most.
pub const UNDERLAY_HEADERS: usize = 48;
/// The smallest MTU an underlay or a container may have (RFC 8200, section 5).
pub const MIN_MTU: usize = 1280;
/// The smallest UDP payload every link carries.
pub const MIN_DATAGRAM: usize = MIN_MTU - UNDERLAY_HEADERS;

/// What a datagram over an underlay of 1,500 bytes MTU has room for, in bytes of a frame.
pub const USUAL_ROOM: usize = 1500 - UNDERLAY_HEADERS - OVERHEAD;
/// What VXLAN over IPv4 takes of an MTU (RFC 7348, section 5), with the inner Ethernet header.
const VXLAN_OVERHEAD: usize = 50;

/// The containers' MTU over an underlay of `underlay` bytes MTU; not below [`MIN_MTU`]. It is VXLAN's, which containers are
/// used to, and a little more than fits one datagram: TCP is told of less (its MSS option is clamped), and a datagram of
/// this size travels as two, which costs less than two IP fragments.
pub fn container_mtu(underlay: usize) -> usize {
    underlay.saturating_sub(VXLAN_OVERHEAD).max(MIN_MTU)
}

/// A segment's id: 48 bits of a hash of its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentId(pub [u8; 6]);

impl SegmentId {
    /// None is below.
    pub(crate) const LOWEST: SegmentId = SegmentId([0; 6]);
    /// None is above.
    pub(crate) const HIGHEST: SegmentId = SegmentId([0xff; 6]);

    /// The id of the segment called `name`.
    pub fn of(name: &str) -> Self {
        use std::hash::Hasher;
        let mut hasher = siphasher::sip::SipHasher24::new_with_key(b"weft segment id ");
        hasher.write(name.as_bytes());
        let hash = hasher.finish().to_le_bytes();
        SegmentId(core::array::from_fn(|i| hash[i]))
    }
}

impl std::fmt::Debug for SegmentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The first byte of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TextKind {
    /// A whole frame, or a piece of a super-frame that is a valid frame itself.
    Frame = 1,
    /// A part of a frame that was too large for the path.
    Fragment = 2,
    /// A [`Control`] message.
    Control = 3,
}

/// The header of a text that carries a frame:
///
/// ```text
/// 0  1 kind
/// 1  1 flags
/// 2  2 burst or fragment id (LE)
/// 4  1 index within the burst, or of the fragment
/// 5  1 count of fragments
/// 6  6 segment id
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextHeader {
    /// What follows.
    pub kind: TextKind,
    /// Bits of [`TextHeader::PARTIAL_CHECKSUM`] and so on.
    pub flags: u8,
    /// Which burst or fragmented frame of this sender.
    pub id: u16,
    /// Place within it.
    pub index: u8,
    /// Fragments in all.
    pub count: u8,
    /// The segment the frame is in.
    pub segment: SegmentId,
}

impl TextHeader {
    /// The transport checksum holds only the pseudo-header's sum.
    pub const PARTIAL_CHECKSUM: u8 = 1;
    /// A piece of a burst: it may be joined with the pieces before and after it.
    pub const BURST: u8 = 2;

    /// Writes the header.
    pub fn encode(&self) -> [u8; TEXT_HEADER] {
        let mut bytes = [0; TEXT_HEADER];
        bytes[0] = self.kind as u8;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.id.to_le_bytes());
        bytes[4] = self.index;
        bytes[5] = self.count;
        bytes[6..].copy_from_slice(&self.segment.0);
        bytes
    }

    /// Reads the header of a frame or fragment text.
    pub fn parse(text: &[u8]) -> Option<TextHeader> {
        let bytes = text.first_chunk::<TEXT_HEADER>()?;
        let kind = match bytes[0] {
            1 => TextKind::Frame,
            2 => TextKind::Fragment,
            _ => return None,
        };
        Some(TextHeader {
            kind,
            flags: bytes[1],
            id: u16::from_le_bytes([bytes[2], bytes[3]]),
            index: bytes[4],
            count: bytes[5],
            segment: SegmentId(core::array::from_fn(|i| bytes[6 + i])),
        })
    }
}

/// A way of its own, from this host's sealing to the other's opening. In a lane, datagrams keep their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Lane {
    /// Datagrams that may overtake others: they are of flows that have none among the others.
    Urgent,
    /// All others.
    Main,
}

impl Lane {
    /// What goes first, first; a lane's number is its place.
    pub const ALL: [Lane; 2] = [Lane::Urgent, Lane::Main];
}

/// A message between two nodes, inside their session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Control {
    /// Asks for a [`Control::Pong`] over the same link. It may be padded to probe the path MTU.
    Ping {
        /// Matches answer to question.
        id: u32,
        /// The lane it leaves by, and by which the answer is to come.
        lane: Lane,
        /// The address it is sent to: where the sender reaches the receiver.
        seen: SocketAddr,
    },
    /// Answers a ping.
    Pong {
        /// The ping's.
        id: u32,
        /// The address the ping came from, as seen here.
        seen: SocketAddr,
        /// The size of the ping's datagram in bytes.
        size: u16,
    },
    /// A record message ([`weft_gossip::Message`]).
    Records(#[serde(with = "serde_bytes_vec")] Vec<u8>),
    /// A SWIM packet.
    Swim(#[serde(with = "serde_bytes_vec")] Vec<u8>),
    /// A message about a ring of addresses ([`crate::ipam::message::Message`]).
    Ring(#[serde(with = "serde_bytes_vec")] Vec<u8>),
    /// "I answer": a session that another host claims to replace is alive.
    StillHere,
    /// Asks a host whether it is alive under this session, before a new one replaces it.
    AreYouThere,
    /// Two hosts live with the receiver's key.
    Cloned,
    /// The sender is stopping, or does without the link as the receiver does.
    Bye,
    /// To be passed on to a host: its records up to an incarnation were dropped while it was gone, and it has to start
    /// above them.
    Forgotten {
        /// The host.
        host: PeerId,
        /// Up to which incarnation.
        incarnation: u64,
    },
    /// The sender does without the link; a [`Control::Bye`] answers if the receiver does, too.
    Needless,
    /// The sender is there, and says something over this link again in time.
    Heartbeat {
        /// Milliseconds until then, at most.
        within: u16,
    },
    /// One step of opening a path through NATs, along the route that there is.
    Punch(Punch),
    /// A question by a path beside the one that the link goes over, or its answer, by the same path: no reason to follow.
    Trial {
        /// Matches answer to question.
        id: u32,
        /// Whether it answers.
        is_answer: bool,
    },
    /// A ping is not answered, for its path is paid for by the byte and there is another way; along that.
    Refused {
        /// The ping's.
        id: u32,
    },
    /// What came of the receiver's along the routes over other hosts.
    Tally(Tally),
}

/// What a host got from another, to which frames go over a third.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tally {
    /// Its number among the sender's to the receiver; each is one more than the one before.
    pub number: u32,
    /// The latest number of the receiver's that came.
    pub latest: u32,
    /// Which of the 32 before it came: bit n stands for `latest - 1 - n`.
    pub before: u32,
    /// Bytes received so far in datagrams with frames.
    pub received: u64,
    /// Whether the sender wants one, too.
    pub asks: bool,
}

impl Tally {
    /// Whether it says that the receiver's tally of a number came.
    pub(crate) fn tells_of(&self, number: u32) -> bool {
        match self.latest.wrapping_sub(number) {
            0 => true,
            behind @ 1..=32 => self.before >> (behind - 1) & 1 == 1,
            _ => false,
        }
    }
}

/// Two hosts behind NATs open a path to each other: one opens its own NAT, then the other asks, then the first. What comes to a NAT from
/// outside before its own host sent that way may be taken for the NAT's own, and spoil the path for as long as the NAT remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Punch {
    /// Asks the receiver to open its NATs towards the sender's addresses by datagrams that pass so many routers.
    Open {
        /// Routers.
        hops: u8,
    },
    /// The sender's NATs are open: it can be asked.
    Opened,
    /// The sender was just asking at all addresses of the receiver, whose turn it is now.
    Asked,
    /// The sender has opened many spare ports towards the receiver: it may search for one at the sender's NAT.
    Spread,
}

mod serde_bytes_vec {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(<[u8]>::to_vec)
    }
}

impl Control {
    /// Writes the text, padded with zeros to `size` bytes.
    pub fn encode(&self, size: usize) -> Vec<u8> {
        // Serialising plain data into a Vec has no way to fail.
        let mut text = postcard::to_extend(self, vec![TextKind::Control as u8]).expect("plain data");
        text.resize(text.len().max(size), 0);
        text
    }

    /// Reads a control text; what follows the message is padding.
    pub fn decode(text: &[u8]) -> Option<Control> {
        let (kind, message) = text.split_first()?;
        (*kind == TextKind::Control as u8)
            .then(|| postcard::take_from_bytes(message).ok().map(|(control, _)| control))?
    }

    /// Whether it may come by any path: the sender's link need not have moved there.
    pub(crate) fn is_trial(&self) -> bool {
        matches!(self, Control::Trial { .. })
    }
}

/// Which message of the handshake a packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Message 1 of a pattern.
    First(Pattern),
    /// Message 2.
    Second,
    /// Message 3 of XX.
    Third,
    /// "Try again with this cookie", in answer to message 1.
    Cookie,
}

impl Step {
    fn kind(self) -> u8 {
        match self {
            Step::First(Pattern::Xx) => 1,
            Step::First(Pattern::Ik) => 2,
            Step::Second => 3,
            Step::Third => 4,
            Step::Cookie => 5,
        }
    }

    /// Returns which message a packet carries.
    pub(crate) fn of(packet: &[u8]) -> Option<Step> {
        Step::from_kind(*packet.first()?)
    }

    fn from_kind(kind: u8) -> Option<Step> {
        [Step::First(Pattern::Xx), Step::First(Pattern::Ik), Step::Second, Step::Third, Step::Cookie]
            .into_iter()
            .find(|step| step.kind() == kind)
    }
}

/// A handshake packet, alone in a datagram or relayed behind an envelope and an all-zero session header.
///
/// ```text
/// 0   1 kind           8   4 sender's index (LE)      24  .. Noise message, or the cookie
/// 1   1 suites         12  4 receiver's index (LE)    -32 16 membership MAC over all before it
/// 2   6 source label   16  8 boot number (LE)         -16 16 cookie MAC over all before it, or zero
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandshakePacket {
    /// Which message it is.
    pub step: Step,
    /// What the initiator offers (message 1).
    pub offer: Offer,
    /// Where answers go when the packet was relayed. A claim, until the handshake is finished.
    pub source: HostLabel,
    /// The sender's index of the session to be.
    pub sender: u32,
    /// The receiver's, where known.
    pub receiver: u32,
    /// The Noise message.
    pub noise: Vec<u8>,
}

/// Bytes of a handshake packet besides the Noise message.
const HANDSHAKE_OVERHEAD: usize = 24 + 2 * cookie::LEN;
/// Bytes of the longest one.
const MAX_HANDSHAKE: usize = HANDSHAKE_OVERHEAD + MAX_MESSAGE;

impl HandshakePacket {
    /// Writes the packet with its two MACs.
    pub fn encode(&self, secret: &Secret, cookie: Option<&[u8; cookie::LEN]>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HANDSHAKE_OVERHEAD + self.noise.len());
        bytes.extend_from_slice(&[self.step.kind(), self.offer.suites.0]);
        bytes.extend_from_slice(&self.source.0);
        bytes.extend_from_slice(&self.sender.to_le_bytes());
        bytes.extend_from_slice(&self.receiver.to_le_bytes());
        bytes.extend_from_slice(&self.offer.boot.to_le_bytes());
        bytes.extend_from_slice(&self.noise);
        let member = cookie::member_mac(secret, &bytes);
        bytes.extend_from_slice(&member);
        let proof = cookie.map_or([0; cookie::LEN], |cookie| cookie::cookie_mac(cookie, &bytes));
        bytes.extend_from_slice(&proof);
        bytes
    }

    /// Which of the live secrets the packet was made under; `None`: it is from no member, say nothing.
    pub fn secret_of<'a>(bytes: &[u8], secrets: &'a [Secret]) -> Option<&'a Secret> {
        let signed = bytes.len().checked_sub(2 * cookie::LEN).filter(|_| bytes.len() <= MAX_HANDSHAKE)?;
        let mac = bytes.get(signed..signed + cookie::LEN)?;
        secrets.iter().find(|secret| cookie::equal(&cookie::member_mac(secret, &bytes[..signed]), mac))
    }

    /// The part that the cookie MAC covers, and the MAC.
    pub fn cookie_parts(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        bytes.split_at_checked(bytes.len().checked_sub(cookie::LEN)?)
    }

    /// Reads a packet whose membership MAC was checked.
    pub fn parse(bytes: &[u8]) -> Option<HandshakePacket> {
        let noise = bytes.get(24..bytes.len().checked_sub(2 * cookie::LEN)?)?;
        let (header, _) = bytes.split_first_chunk::<24>()?;
        let word = |at: usize| header.get(at..)?.first_chunk::<4>().map(|word| u32::from_le_bytes(*word));
        let boot = u64::from_le_bytes(*header.get(16..)?.first_chunk::<8>()?);
        Some(HandshakePacket {
            step: Step::from_kind(header[0])?,
            offer: Offer { suites: SuiteSet(header[1]), boot },
            source: HostLabel(core::array::from_fn(|i| header[2 + i])),
            sender: word(8)?,
            receiver: word(12)?,
            noise: noise.to_vec(),
        })
    }

    /// Whether a datagram's first byte is one of a handshake packet.
    pub fn is_first_byte(byte: u8) -> bool {
        Step::from_kind(byte).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_packets_survive_the_wire_and_belong_to_a_secret() {
        let secrets = [1u8, 2].map(|n| {
            let text = Secret::generate(&core::array::from_fn(|i| (i as u8).wrapping_mul(37) ^ n.wrapping_mul(91)));
            Secret::from_text(&text).unwrap()
        });
        let packet = HandshakePacket {
            step: Step::First(Pattern::Ik),
            offer: Offer { suites: SuiteSet::ALL, boot: 77 },
            source: HostLabel([1, 2, 3, 4, 5, 6]),
            sender: 9,
            receiver: 0,
            noise: vec![5; 100],
        };
        let bytes = packet.encode(&secrets[1], None);
        assert_eq!(HandshakePacket::parse(&bytes), Some(packet));
        assert_eq!(HandshakePacket::secret_of(&bytes, &secrets), Some(&secrets[1]));
        assert_eq!(HandshakePacket::secret_of(&bytes, &secrets[..1]), None);
        for cut in 0..bytes.len() {
            assert_eq!(HandshakePacket::secret_of(&bytes[..cut], &secrets), None);
            HandshakePacket::parse(&bytes[..cut]);
        }
    }

    #[test]
    fn control_texts_survive_padding() {
        let pong = Control::Pong { id: 3, seen: "[fd00::1]:6783".parse().unwrap(), size: 1400 };
        for control in [pong, Control::Swim(vec![1, 2, 3]), Control::Bye, Control::Needless, Control::Refused { id: 7 }]
        {
            assert_eq!(Control::decode(&control.encode(0)), Some(control.clone()));
            let padded = control.encode(500);
            assert_eq!((padded.len(), Control::decode(&padded)), (500, Some(control)));
        }
    }

    #[test]
    fn the_mtu_has_a_floor() {
        assert_eq!(container_mtu(1500), 1450);
        assert_eq!(container_mtu(1280), MIN_MTU);
        assert_eq!(container_mtu(0), MIN_MTU);
    }
}
