//! What links and routes lead to elsewhere.

use std::net::SocketAddr;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use crate::api::{self, Usage};
use crate::path::Path;
use crate::records::LinkRecord;
use crate::wire::{Control, Lane};

/// What comes of a call.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message to seal under a session, straight to an address, padded to `size` bytes of text.
    Straight {
        peer: HostLabel,
        index: u32,
        to: Path,
        lane: Lane,
        control: Control,
        size: usize,
    },
    /// A message to a peer along its route.
    Message(HostLabel, Control),
    /// A message to a peer by a neighbour, which need not be the route's.
    By {
        peer: HostLabel,
        by: HostLabel,
        control: Control,
    },
    /// What goes to a host by a neighbour does not arrive: for so long others are taken.
    Avoided {
        to: HostLabel,
        via: HostLabel,
        length: Duration,
    },
    /// A datagram that passes so many routers on its way to an address, and opens this host's NATs for what comes back.
    Open {
        to: Path,
        hops: u8,
    },
    /// Spare ports are to be opened towards a peer's addresses.
    Spread {
        towards: Vec<Path>,
    },
    /// Whether a link goes over a connection or a spare port now.
    Connection {
        path: Path,
        usage: Usage,
    },
    /// A handshake to start, straight at an address; `tries` so far failed.
    Handshake {
        peer: Option<HostLabel>,
        at: Path,
        tries: u32,
    },
    /// This host's record of a link.
    Announce(HostLabel, Option<LinkRecord>),
    /// What this host announces of itself changed.
    HostChanged,
    /// A direct link is up; these addresses of the peer are worth keeping across restarts.
    Up(HostLabel, Vec<SocketAddr>),
    /// A direct link is down.
    Down(HostLabel),
    /// A host's entry in the forwarding table has to be refreshed.
    Refresh(HostLabel),
    /// Topology wants to be called again at a time.
    Wake(Time),
    /// The network drops marked datagrams: this host marks none any more.
    MarksLost(HostLabel),
    /// Something people may want to know. Peers are named by the node.
    LinkUp(HostLabel, SocketAddr),
    LinkDown(HostLabel, &'static str),
    LinkMoved(HostLabel, SocketAddr),
    Notice(api::Event),
}

impl Event {
    /// What the shell is to know of a path that a link begins or ends to use.
    pub(super) fn connection(path: Path, usage: Usage) -> Option<Event> {
        path.is_opened().then_some(Event::Connection { path, usage })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_is_told_of_paths_that_it_has_to_open_and_close() {
        let remote = SocketAddr::from(([192, 0, 2, 2], 6783));
        assert!(Event::connection(Path::udp(remote), Usage::InUse).is_none());
        let told = Event::connection(Path::tcp(remote), Usage::InUse);
        assert!(matches!(told, Some(Event::Connection { path, usage: Usage::InUse }) if path == Path::tcp(remote)));
    }
}
