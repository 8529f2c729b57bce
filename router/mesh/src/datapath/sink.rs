//! Where the data path puts what comes of a batch: TAPs, relays, the node.

use weft_crypto::HostLabel;

use crate::datapath::egress::DropReason;
use crate::datapath::frame::Mac;
use crate::datapath::vnet::VnetHeader;
use crate::path::Path;
use crate::wire::SegmentId;

/// What a TAP can take on write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TapOffloads {
    /// Partial checksums.
    pub checksum: bool,
    /// TCP super-frames.
    pub tcp: bool,
    /// UDP super-frames.
    pub udp: bool,
}

impl TapOffloads {
    /// Whole frames with whole checksums only.
    pub const NONE: TapOffloads = TapOffloads { checksum: false, tcp: false, udp: false };
}

/// What the node has to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Punt {
    /// A handshake packet, straight from an address.
    Handshake {
        /// Where it came from.
        from: Path,
        /// The packet.
        packet: Vec<u8>,
    },
    /// A handshake packet that a neighbour relayed.
    RelayedHandshake {
        /// The packet.
        packet: Vec<u8>,
    },
    /// A control message inside a session.
    Control {
        /// This host's index of the session.
        index: u32,
        /// Who sent it.
        peer: HostLabel,
        /// The address it came from if it came straight from the peer.
        direct: Option<Path>,
        /// Bytes of the datagram.
        size: usize,
        /// The text.
        text: Vec<u8>,
    },
    /// The first opened packet of a batch from a peer that came from a new address, or under a session
    /// that is not the one used for sending.
    Heard {
        /// This host's index of the session.
        index: u32,
        /// Who.
        peer: HostLabel,
        /// From where, if straight from the peer.
        direct: Option<Path>,
    },
    /// A frame for a host there is no session with.
    NoSession {
        /// The host.
        host: HostLabel,
        /// The segment.
        segment: SegmentId,
        /// How to cut it.
        vnet: VnetHeader,
        /// The frame.
        frame: Vec<u8>,
    },
    /// A MAC seen where no table has it.
    Learn {
        /// The segment.
        segment: SegmentId,
        /// The MAC.
        mac: Mac,
        /// Where it was seen.
        host: HostLabel,
    },
    /// The first frames go over a link that was at rest.
    Woken,
    /// A worker was busy in the last second.
    Busy {
        /// The share of it in which it worked, in percent.
        percent: u8,
        /// Whether it relayed something.
        relays: bool,
    },
}

/// Where a batch's results go.
pub trait Sink {
    /// What the segment's TAP takes.
    fn offloads(&self, segment: SegmentId) -> TapOffloads;
    /// A frame, in parts that lie apart.
    fn to_tap(&mut self, segment: SegmentId, vnet: &VnetHeader, parts: &[&[u8]]);
    /// Datagrams to pass on: `stride` bytes each, the last one maybe shorter.
    fn relay(&mut self, to: Path, datagrams: &[u8], stride: usize);
    /// Something for the node.
    fn punt(&mut self, punt: Punt);
    /// A datagram or frame that went no further.
    fn dropped(&mut self, reason: DropReason);
}
