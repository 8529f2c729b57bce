//! Where a frame from a container goes: a pure function on the snapshot.

use weft_crypto::HostLabel;

use crate::datapath::frame;
use crate::datapath::neighbour::{self, Solicitation};
use crate::datapath::snapshot::{Outbound, Port, Segment, Snapshot};

/// The destination of a frame from this host's containers.
pub enum Verdict<'s> {
    /// Send it to one host.
    ToPeer(HostLabel, &'s Outbound),
    /// Send a copy to each of these hosts.
    Flood(&'s [HostLabel]),
    /// Write this answer back to the TAP.
    ToTap(Vec<u8>),
    /// Hand it to the node: there is no session with that host yet.
    Punt(HostLabel),
    /// Nothing.
    Drop(DropReason),
}

/// Why a frame or datagram went no further. Counted by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum DropReason {
    /// Not an Ethernet frame, or a text that is none.
    Malformed,
    /// Its destination is on this host: the bridge delivers it.
    Local,
    /// The source MAC or claimed address belongs to an endpoint elsewhere.
    Spoofed,
    /// No route to the host.
    Unreachable,
    /// The flooding budget of its source is used up.
    FloodBudget,
    /// The session's counters are used up.
    Exhausted,
    /// The segment is not on this host.
    NoSegment,
    /// An envelope that no neighbour made.
    BadEnvelope,
    /// No such session.
    NoSession,
    /// A replay.
    Replayed,
    /// The seal does not match.
    Forged,
    /// The TTL ran out.
    TtlExpired,
    /// The relay budget of the neighbour is used up.
    RelayBudget,
    /// This host relays nothing.
    NotRelayed,
    /// A fragment without its others.
    Incomplete,
    /// A packet larger than the containers of its segment take here.
    TooLarge,
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [DropReason; 16] = [
        DropReason::Malformed,
        DropReason::Local,
        DropReason::Spoofed,
        DropReason::Unreachable,
        DropReason::FloodBudget,
        DropReason::Exhausted,
        DropReason::NoSegment,
        DropReason::BadEnvelope,
        DropReason::NoSession,
        DropReason::Replayed,
        DropReason::Forged,
        DropReason::TtlExpired,
        DropReason::RelayBudget,
        DropReason::NotRelayed,
        DropReason::Incomplete,
        DropReason::TooLarge,
    ];

    /// What it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::Local => "local",
            DropReason::Spoofed => "spoofed",
            DropReason::Unreachable => "unreachable",
            DropReason::FloodBudget => "flood_budget",
            DropReason::Exhausted => "session_exhausted",
            DropReason::NoSegment => "no_segment",
            DropReason::BadEnvelope => "bad_envelope",
            DropReason::NoSession => "no_session",
            DropReason::Replayed => "replayed",
            DropReason::Forged => "forged",
            DropReason::TtlExpired => "ttl_expired",
            DropReason::RelayBudget => "relay_budget",
            DropReason::NotRelayed => "not_relayed",
            DropReason::Incomplete => "fragment_incomplete",
            DropReason::TooLarge => "too_large",
        }
    }
}

/// Decides where a frame goes that came from this host's bridge of `segment`; `source` is what the segment knows of its
/// source MAC.
pub fn egress<'s>(snapshot: &'s Snapshot, segment: &'s Segment, source: Option<Port<'_>>, bytes: &[u8]) -> Verdict<'s> {
    let (Some(to), Some(from)) = (frame::destination(bytes), frame::source(bytes)) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    if bytes.len() < frame::ETHERNET_LEN || frame::is_group(&from) {
        return Verdict::Drop(DropReason::Malformed);
    }
    if from == frame::GATEWAY_MAC {
        return Verdict::Drop(DropReason::Local);
    }
    if !may_speak(segment, snapshot.own, source, bytes) {
        return Verdict::Drop(DropReason::Spoofed);
    }
    if frame::is_group(&to) {
        return match Solicitation::parse(bytes)
            .and_then(|question| Some((segment.ips.get(&question.target)?, question)))
        {
            // The bridge delivers the question to an endpoint of this host, which answers itself.
            Some((owner, _)) if owner.host == snapshot.own => Verdict::Drop(DropReason::Local),
            // A probe by the owner itself: an answer would kill it by duplicate detection.
            Some((owner, question)) if question.asker == owner.mac => Verdict::Flood(&segment.flood),
            Some((owner, question)) => Verdict::ToTap(question.answer(owner.mac)),
            None => Verdict::Flood(&segment.flood),
        };
    }
    match segment.port(&to) {
        Some(port) if port.host == snapshot.own => Verdict::Drop(DropReason::Local),
        Some(port) => match snapshot.outbound.get(&port.host) {
            Some(outbound) if outbound.hop.is_none() => Verdict::Drop(DropReason::Unreachable),
            Some(outbound) if outbound.send.is_none() => Verdict::Punt(port.host),
            Some(outbound) => Verdict::ToPeer(port.host, outbound),
            None => Verdict::Drop(DropReason::Unreachable),
        },
        None => Verdict::Flood(&segment.flood),
    }
}

/// Whether `host` may send a frame with a source MAC of which this is known and what the frame claims by ARP or ND:
/// records beat what frames say.
pub(crate) fn may_speak(segment: &Segment, host: HostLabel, source: Option<Port<'_>>, bytes: &[u8]) -> bool {
    let is_elsewhere = |port: Port<'_>| port.is_recorded() && port.host != host;
    let claimed_elsewhere = || {
        neighbour::claim(bytes).is_some_and(|(mac, ip)| {
            segment.port(&mac).is_some_and(is_elsewhere) || segment.ips.get(&ip).is_some_and(|owner| owner.host != host)
        })
    };
    !source.is_some_and(is_elsewhere) && !claimed_elsewhere() && !neighbour::hides_claim(bytes)
}
