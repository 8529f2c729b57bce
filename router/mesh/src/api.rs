//! What goes into a node and what comes out.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_crypto::{Ciphers, Identity, Keyring, PeerId, Time};

use crate::datapath::sink::Punt;
use crate::datapath::snapshot::Snapshot;
use crate::explanation::Explanation;
use crate::ipam::ring::Range;
use crate::ipam::{self, AllocationId};
use crate::names::Names;
use crate::path::{MeteredPaths, Path};
use crate::records::{Advertised, EndpointId, EndpointRecord, NetworkRecord, NetworkUid};
use crate::report::{Measures, Status};
pub use crate::topology::what_if::{Detour, WhatIf, WithoutHost};
use crate::wire::Lane;
use crate::wire::SegmentId;

/// How a node is set up.
pub struct Config {
    /// The host's keys.
    pub identity: Identity,
    /// Nickname of the host; others may have the same.
    pub name: String,
    /// The live network secrets.
    pub keyring: Keyring,
    /// The ciphers it has.
    pub ciphers: Ciphers,
    /// The underlay's MTU in bytes.
    pub underlay_mtu: usize,
    /// The largest packet that this host's containers take, in bytes.
    pub container_mtu: u16,
    /// The UDP port it listens on.
    pub port: u16,
    /// The TCP ports at which it accepts connections.
    pub tcp_ports: Vec<u16>,
    /// Addresses of other devices that forward to this host, named by the operator: a port mapped at a NAT, for example.
    pub advertised: Advertised,
    /// Whether it relays nothing between other hosts.
    pub is_stub: bool,
    /// Whether its traffic is paid for by the byte: it then relays nothing, even if `is_stub` is false, takes no part in SWIM, and keeps one link
    /// at rest.
    pub is_metered: bool,
    /// Whether it links to hosts it was not told of.
    pub discovery: bool,
    /// How long a host may be gone before its records are dropped.
    pub grace: Duration,
    /// Whether a ring of addresses may be founded although peers are named.
    pub founds_alone: bool,
    /// The machine has not started anew since this host last ran: its disk is the one it wrote.
    pub continues: bool,
    /// This host's endpoints that are still there. The node does not persist them: the shell keeps an endpoint with its interfaces.
    pub endpoints: Vec<(EndpointId, EndpointRecord)>,
    /// What was persisted before: keys and values as [`Output::Persist`] gave them.
    pub restored: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Matches a reply to its command.
pub type CommandId = u64;

/// What a node is told.
pub enum Input {
    /// Time has passed.
    Timeout,
    /// The data path met something for the node.
    Punt(Punt),
    /// A connection is no longer there.
    Closed(Path),
    /// A command from this host's operator or its other parts; an [`Output::Reply`] with the id follows, at once unless addresses are to be agreed on.
    Command(CommandId, Command),
    /// Answers [`Output::Durable`].
    Durable {
        /// The mark of the [`Output::Durable`] answered.
        mark: u64,
        /// Whether everything is on disk; if not, a later answer will say so.
        is_kept: bool,
    },
}

/// What may be asked of a node.
pub enum Command {
    /// Try to link to these: a name for people, and the addresses it stands for now.
    Connect(Vec<Target>),
    /// The same, but for those that were forgotten since they were last connected by name.
    ConnectUnlessForgotten(Vec<Target>),
    /// Stop trying these.
    Forget(Vec<String>),
    /// Bring an endpoint into a segment, or confirm that it is there.
    Attach {
        /// Its id.
        id: EndpointId,
        /// What others hear of it.
        record: EndpointRecord,
        /// The addresses that the segment's gateway has from now on, if they change with it.
        gateways: Option<BTreeSet<IpAddr>>,
    },
    /// Take an endpoint out.
    Detach(EndpointId),
    /// Use these secrets from now on; sessions under others end.
    SetKeyring(Keyring),
    /// The underlay's MTU, and the largest packet that this host's containers take from now on, in bytes.
    SetMtu(usize, u16),
    /// This host's own addresses, to be told to others.
    SetAddresses(Vec<IpAddr>),
    /// Which paths lead over a line that is paid for by the byte.
    SetMeteredPaths(MeteredPaths),
    /// Addresses at which a NAT forwards to this host because it was asked to: announced after those that the operator named.
    SetMapped(Advertised),
    /// Have a name stand for addresses, beside those it stands for already.
    AddName(String, Vec<IpAddr>),
    /// Have it no longer stand for these, or for any if none are given.
    RemoveName(String, Vec<IpAddr>),
    /// This host has a container network, which others may have, too.
    SetNetwork(Box<NetworkRecord>),
    /// It has it no more.
    UnsetNetwork(NetworkUid),
    /// Remove it on every host.
    RemoveNetwork(NetworkUid),
    /// Which networks others have.
    Networks,
    /// A segment's gateway has these addresses, here as on every host.
    SetGateways(SegmentId, BTreeSet<IpAddr>),
    /// Allocate an address.
    Allocate(ipam::Request),
    /// Let go of what was allocated for an id.
    Release(Range, AllocationId),
    /// This host has stopped using an address that another host owns.
    Unfence(Ipv4Addr),
    /// These addresses of a range are used for something else.
    SetAside(Range, BTreeSet<Ipv4Addr>),
    /// These parts of a range are the subnets of this host's networks, or (if true) all of them: nothing of them is handed out of
    /// the range.
    SetParts(Range, BTreeSet<Range>, bool),
    /// What this host has handed out of a range.
    Allocations(Range),
    /// Take back the addresses of a host that is off for good: its nickname, or its key in hex.
    Reclaim(String),
    /// Report.
    Status,
    /// Measure and count.
    Measure,
    /// Think a host away: its nickname, or its key in hex.
    WhatIf(String),
    /// Explain the path from one host, container, name or address to another; without `from`, from this host.
    Why {
        /// Where it begins.
        from: Option<String>,
        /// Where it ends.
        to: String,
    },
    /// Whom the user wants to be connected with.
    Targets,
    /// Take leave of the neighbours.
    Leave,
}

impl Command {
    /// Brings an endpoint into a segment whose gateway stays as it is.
    pub fn attach(id: EndpointId, record: EndpointRecord) -> Command {
        Command::Attach { id, record, gateways: None }
    }
}

/// A host to link to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// As the user wrote it.
    pub name: String,
    /// What it resolves to; may be empty for now.
    pub addresses: Vec<SocketAddr>,
}

/// What a node wants done. [`Output::Timeout`] comes last.
pub enum Output {
    /// Send datagrams of `stride` bytes each, the last one maybe shorter.
    Transmit {
        /// By which lane.
        lane: Lane,
        /// The path to the next host.
        to: Path,
        /// The bytes.
        data: Vec<u8>,
        /// Size of each datagram but the last.
        stride: usize,
    },
    /// Send a datagram that gets no further than a few routers: it opens this host's NATs and firewalls for what comes back.
    Open {
        /// Where it would go.
        to: Path,
        /// How many routers pass it on (TTL, hop limit).
        hops: u8,
    },
    /// Open spare ports, and send from each of them what [`Output::Open`] does.
    Spread {
        /// Where the datagrams of each would go.
        towards: Vec<Path>,
        /// How many ports.
        count: usize,
        /// How many routers pass them on: the first number for the first port, the next for the next, and over again.
        hops: [u8; 2],
    },
    /// How a connection or a spare port is used from now on.
    Connection {
        /// Its path.
        path: Path,
        /// How.
        usage: Usage,
    },
    /// The data path is to work with this from now on.
    Publish(Arc<Snapshot>),
    /// The DNS server is to answer from this from now on.
    Names(Box<Names>),
    /// The answer to a command.
    Reply(CommandId, Result<Reply, CommandError>),
    /// Keep this across restarts, or (with `None`) forget it.
    Persist {
        /// What it is filed under.
        key: Vec<u8>,
        /// What to keep.
        value: Option<Vec<u8>>,
    },
    /// Answer with [`Input::Durable`] once all persisted so far is on disk, or could not be written.
    Durable(u64),
    /// Give a frame to the containers of a segment on this host.
    Tap {
        /// The segment.
        segment: SegmentId,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Containers of a segment on this host are to send packets of this many bytes at most from now on.
    Mtu(SegmentId, u16),
    /// Something people may want to know.
    Event(Event),
    /// Call with [`Input::Timeout`] at this time, and why.
    Timeout(Time, &'static str),
}

/// How a connection is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// A link goes over it: it is kept.
    InUse,
    /// None does: it may be closed after a while.
    Idle,
    /// Nothing comes back over it: it is in the way of another.
    Dead,
}

/// A command was done.
#[derive(Debug)]
pub enum Reply {
    /// Nothing more to say.
    Done,
    /// The report asked for.
    Status(Box<Status>),
    /// The mesh, and the host that is thought away.
    WhatIf(Box<WhatIf>),
    /// What was measured and counted.
    Measures(Box<Measures>),
    /// The explanation asked for.
    Why(Box<Explanation>),
    /// What the user called those asked for.
    Targets(Vec<String>),
    /// The address allocated.
    Address(Ipv4Addr),
    /// Addresses, and for what they were allocated.
    Allocations(Vec<(Ipv4Addr, AllocationId)>),
    /// The networks asked for.
    Networks(Box<Networks>),
}

/// Container networks of the mesh.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Networks {
    /// Those of hosts that can be reached, with the host's name.
    pub elsewhere: Vec<(String, NetworkRecord)>,
    /// Those that were removed.
    pub removed: BTreeSet<NetworkUid>,
}

/// A command was not done; nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// An address belongs to another endpoint.
    #[error("{ip} is in use by {owner} in segment {segment}; choose another address")]
    AddressInUse {
        /// The address.
        ip: IpAddr,
        /// Whose it is.
        owner: String,
        /// In which segment.
        segment: String,
    },
    /// A MAC belongs to another endpoint.
    #[error("the MAC is in use by {owner}")]
    MacInUse {
        /// Whose it is.
        owner: String,
    },
    /// What was asked for breaks a rule, which the text names.
    #[error("{0}")]
    Invalid(&'static str),
    /// Two segments whose names collide.
    #[error("the segment names {0} and {1} have one id; choose another name")]
    SegmentCollision(String, String),
    /// No such endpoint.
    #[error("no such endpoint")]
    UnknownEndpoint,
    /// No such peer.
    #[error("no peer {0} was to be connected; see: weft status targets")]
    UnknownTarget(String),
    /// There is no address to be had.
    #[error("{0}")]
    Address(ipam::Error),
    /// There is none in time.
    #[error("no address of {range} to be had: {}", explain_waiting(waiting_for))]
    NoAddress {
        /// The range.
        range: Range,
        /// Who would have to agree.
        waiting_for: Vec<String>,
    },
    /// A network cannot have a part of a range for itself.
    #[error("the subnet {part} is in use in the mesh's own range {range}{}; choose another", explain_users(by))]
    SubnetInUse {
        /// The part.
        part: Range,
        /// The range it is of.
        range: Range,
        /// Who hands out of it.
        by: Vec<String>,
    },
    /// The disk did not take what had to be written down first.
    #[error("cannot write the store; is the disk full?")]
    NotKept,
    /// No host has this name.
    #[error("no host {0} is known; see: weft status peers")]
    UnknownHost(String),
    /// Nothing in the mesh is called so, or has such an address.
    #[error("no host, container, name or address {0} is known; see: weft status peers, weft status endpoints")]
    UnknownPlace(String),
    /// A name that was added leads elsewhere.
    #[error("{0} leads to {1}, which no container of the mesh has: weft knows of no path there")]
    NoContainer(String, String),
    /// Several are.
    #[error("{0} is {1}; give an address or a host's key instead")]
    AmbiguousPlace(String, String),
    /// No such name was added.
    #[error("no name {0} was added")]
    UnknownName(String),
    /// It is another host's to remove.
    #[error("{0} was added on {1}; remove it there")]
    NameOfAnother(String, String),
    /// Several have it.
    #[error("several hosts are called {0}; give the peer_id, or its first digits, see: weft status peers")]
    AmbiguousHost(String),
    /// Addresses of a host that runs are not to be taken back.
    #[error("{0} is there; stop its router first")]
    StillThere(String),
    /// The records are full.
    #[error("{0}")]
    Record(#[from] weft_gossip::PutError),
}

fn explain_users(by: &[String]) -> String {
    if by.is_empty() { String::new() } else { format!(", by {}", by.join(", ")) }
}

fn explain_waiting(waiting_for: &[String]) -> String {
    match waiting_for {
        [] => "the hosts that decide have not agreed in time; try again".into(),
        hosts => format!(
            "waiting for {}; start them (see: weft status targets), or give up hosts that are off for good with: weft reclaim NAME",
            hosts.join(", ")
        ),
    }
}

/// Something people may want to know, for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A direct link is up.
    LinkUp {
        /// With whom.
        peer: PeerId,
        /// The nickname of that host.
        host: String,
        /// Where.
        remote: SocketAddr,
    },
    /// A direct link is gone.
    LinkDown {
        /// With whom.
        peer: PeerId,
        /// The nickname of that host.
        host: String,
        /// Why.
        reason: &'static str,
    },
    /// A link goes on at another address.
    LinkMoved {
        /// With whom.
        peer: PeerId,
        /// The nickname of that host.
        host: String,
        /// Where it is now.
        remote: SocketAddr,
    },
    /// What goes to a host by another does not arrive there, though the links with that are up: other ways are taken.
    RelayAvoided {
        /// The host it goes to.
        peer: PeerId,
        /// Its nickname.
        host: String,
        /// The nickname of the neighbour that it went by.
        relay: String,
        /// How long others are taken.
        length: Duration,
    },
    /// The network to a peer loses datagrams of the urgent lane and passes others: they should not be marked any more.
    MarksLost {
        /// The peer.
        peer: PeerId,
        /// Its nickname.
        host: String,
    },
    /// An end-to-end session is there.
    Session {
        /// With whom.
        peer: PeerId,
        /// Name of the session's cipher suite.
        cipher: &'static str,
    },
    /// A target does not answer: no router runs there, UDP is dropped on the way, or its secret differs.
    TargetSilent {
        /// As the user wrote it.
        name: String,
        /// One of its addresses.
        address: SocketAddr,
    },
    /// SWIM says a host is gone.
    PeerDead(String),
    /// SWIM says a host is alive.
    PeerAlive(String),
    /// Another host lives with this host's key.
    Cloned,
    /// Another host lives with a peer's key; the one met first is kept.
    PeerCloned(PeerId),
    /// Records of this host from another life were found; it wrote itself above them.
    Reincarnated(u64),
    /// An address or MAC of this host is claimed by another that has the older right to it.
    Conflict {
        /// What is claimed.
        what: String,
        /// By whom.
        by: String,
    },
    /// An address that this host handed out is another's since two rings became one or this host was given up. No record
    /// speaks of it any more; its endpoint must not use it.
    Fenced {
        /// What it was allocated for.
        id: AllocationId,
        /// The address.
        address: Ipv4Addr,
    },
}
