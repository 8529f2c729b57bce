//! Why a path is as it is: what `weft why` tells, as plain values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use crate::records::Health;

/// The path from one host to another, and what was tried to have a better one.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Where it begins.
    pub from: Place,
    /// Where it ends.
    pub to: Place,
    /// Whether both are on one host.
    pub is_one_host: bool,
    /// Its hops in order; none if there is no path, or if both places are on one host.
    pub hops: Vec<HopStatus>,
    /// Without a path: hosts that are linked with both ends, and relay nothing.
    pub stubs: Vec<String>,
    /// Neighbours by which what goes from this host to the other end does not arrive, though the links with them are up.
    pub avoided: Vec<String>,
    /// What has the name or address by which the end was asked for, those first that are answered.
    pub holders: Vec<HolderAccount>,
    /// How many more have it.
    pub untold_holders: usize,
    /// This host's account of a direct link with the host at the other end, if one of both ends is here.
    pub link: Option<LinkAccount>,
}

/// A host, or a container on one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The host's nickname.
    pub host: String,
    /// The beginning of its key.
    pub peer_id: String,
    /// The container's first name, or its first address if it has none; `None` for the host itself.
    pub endpoint: Option<String>,
    /// The container's health.
    pub health: Option<Health>,
    /// Whether it is this host.
    pub is_here: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Some(endpoint) => write!(f, "{endpoint} on {}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// What has a name or an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HolderAccount {
    /// The container, or the host on which a name was added by hand.
    pub place: Place,
    /// The container's segment; none for a name that was added by hand.
    pub segment: Option<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether those who ask get it, and if not, why.
    pub standing: Standing,
    /// By which right it has the address that was asked for; none if a name was asked for.
    pub right: Option<Right>,
}

/// Whether a name is answered with one of its holders.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is.
    Answered,
    /// Healthier ones have the name, or it is unhealthy.
    Ill,
    /// Its host cannot be reached from here.
    Unreachable,
    /// The asker is in none of its networks.
    OtherNetwork,
}

/// By which right an address is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Right {
    /// It is in a window of a ring, out of which one host hands out.
    Window {
        /// The ring's range, as ADDR/LEN.
        range: String,
        /// The host that has the window; none if it is closed.
        host: Option<String>,
    },
    /// It is in no range of which weft hands out: it was given by hand, and belongs to the host that says so.
    ByHand,
}

/// One hop of a path. Of a hop between other hosts only the size is known here.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct HopStatus {
    /// The host it leads to.
    pub peer: String,
    /// The beginning of its key.
    pub peer_id: String,
    /// `udp` or `tcp`.
    pub transport: Option<&'static str>,
    /// The address it goes to.
    pub remote: Option<SocketAddr>,
    /// Smoothed round trip, in microseconds.
    pub rtt_us: Option<u64>,
    /// Share of pings lost lately, from 0 to 1.
    pub loss: Option<f64>,
    /// The largest packet of a container that it takes whole, in bytes.
    pub mtu: usize,
    /// Cipher of the session with that host.
    pub cipher: Option<&'static str>,
    /// The load of that host as a relay, in steps up to four.
    pub load: u8,
    /// Whether the link is paid for by the byte.
    pub metered: bool,
}

/// A host's account of its direct link with a peer, or of the lack of one.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LinkAccount {
    /// How long the link has been as it is, or has been missed.
    pub since: Option<Duration>,
    /// Whether a link is wanted at all: in a large mesh not all are linked with all.
    pub is_wanted: bool,
    /// Whether the operator forgot the peer.
    pub is_forgotten: bool,
    /// Paths to the peer, and the outcome of each.
    pub candidates: Vec<CandidateAccount>,
    /// If the path takes less than this host's interface does: the largest packet of a container that each takes whole, in bytes.
    pub narrows: Option<[usize; 2]>,
    /// How this host's NAT and the peer's map them.
    pub nats: [Mapping; 2],
    /// The last changes of the link, the newest last: how long ago, and what happened.
    pub changes: Vec<(Duration, String)>,
}

/// A path to a peer and its outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CandidateAccount {
    /// The path, as `udp://ADDR:PORT`.
    pub path: String,
    /// How it was learnt.
    pub learnt: &'static str,
    /// Its outcome.
    pub outcome: Outcome,
    /// Tries since it last answered.
    pub tries: u32,
}

/// Outcome of trying a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The link goes over it.
    InUse,
    /// It answered, and the link goes over another or is lost.
    Answered,
    /// It was tried, and nothing came back.
    Silent,
    /// Both hosts have to open it in turn, which has not led to an answer.
    InTurn,
    /// It is paid for by the byte, and there is another way.
    Spared,
    /// It was not tried.
    Untried,
}

/// How a host looks from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// Nothing is known yet.
    #[default]
    Unknown,
    /// Peers see it at an address of its own.
    None,
    /// All peers see it at one address that is not its own.
    One,
    /// Peers see it at several: its NAT maps each destination anew (RFC 4787, section 4.1).
    Many,
}
