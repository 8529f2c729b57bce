//! Hosts and paths whose traffic is paid for by the byte.
//!
//! A metered host says so in its record, and relays nothing. A link over a metered path says so in its cost: frames go over it where there is no other
//! way. At rest a mesh keeps as few such links as hold it together (see `spanning`); another is made for frames that would otherwise cross two.
//! An end of a path that does not know that it is metered is told when it tries it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Duration;

use weft_crypto::{HostLabel, Time};

use super::Peer;
use super::link::Link;
use super::routing::Routing;
use crate::path::{MeteredPaths, Path};

/// How long a host is not tried that did without a link, while there is a route to it, and either has no new address.
const REFUSED: Duration = Duration::from_secs(3600);

/// What a ping leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// An answer.
    Answer,
    /// None, and the link with the peer, which goes by a better path, has to answer: the peer may have lost it.
    AskLink,
    /// None, and the peer is told that no link is wanted by that path.
    Refuse,
}

/// Which hosts are metered, and which paths of this one.
pub(crate) struct Metered {
    /// Whether this host is.
    pub(crate) own: bool,
    others: BTreeSet<HostLabel>,
    paths: MeteredPaths,
    /// When they last changed.
    paths_changed: Time,
}

impl Metered {
    pub(super) fn new(own: bool, now: Time) -> Self {
        Metered { own, others: BTreeSet::new(), paths: MeteredPaths::default(), paths_changed: now }
    }

    /// Takes note of whether another host is.
    pub(super) fn set(&mut self, host: HostLabel, is_metered: bool) {
        if is_metered {
            self.others.insert(host);
        } else {
            self.others.remove(&host);
        }
    }

    /// Sets which paths are.
    pub(crate) fn set_paths(&mut self, paths: MeteredPaths, now: Time) {
        if self.paths != paths {
            (self.paths, self.paths_changed) = (paths, now);
        }
    }

    /// Whether another host is.
    pub(crate) fn contains(&self, host: HostLabel) -> bool {
        self.others.contains(&host)
    }

    /// Whether a path is, by what this host knows of it.
    pub(super) fn has_path(&self, path: &Path) -> bool {
        self.paths.contains(path)
    }

    /// Whether this host and another have as few direct links as they can, since either is metered.
    pub(super) fn is_between(&self, host: HostLabel) -> bool {
        self.own || self.contains(host)
    }

    /// Whether what this host and another say to each other is paid for: either is metered, or the route between them leads over a metered link.
    pub(crate) fn is_paid(&self, routing: &Routing, host: HostLabel) -> bool {
        self.is_between(host) || routing.is_metered(host)
    }

    /// Whether a link with a host is paid for, by the word of either end.
    pub(crate) fn has_link(&self, routing: &Routing, host: HostLabel, link: Option<&Link>) -> bool {
        link.is_some_and(|link| self.is_between(host) || self.has_line(routing, host, link))
    }

    /// Whether a link with a host goes over a path that is paid for, by the word of either end.
    pub(super) fn has_line(&self, routing: &Routing, host: HostLabel, link: &Link) -> bool {
        self.has_path(&link.path) || routing.is_metered_by(host)
    }

    /// Whether a path is the better one for a link (`Greater`), or the worse one: what is not metered before what is, and then UDP before TCP,
    /// which repeats what was lost and holds back all that came after it.
    pub(super) fn compare(&self, path: &Path, than: &Path) -> Ordering {
        let worth = |path: &Path| (!self.has_path(path), path.is_udp());
        worth(path).cmp(&worth(than))
    }

    /// Whether the link of the host `own` with another may go over to a path that the other answers on, or was heard from. Of the two the lower one
    /// chooses the path, unless the other says that the link is metered: it knows what is not.
    pub(super) fn may_move(
        &self,
        routing: &Routing,
        (own, other): (HostLabel, HostLabel),
        link: &Link,
        to: &Path,
        now: Time,
    ) -> bool {
        link.may_leave(self.compare(to, &link.path), own < other && !routing.is_metered_by(other), now)
    }

    /// Whether a metered path to a host may be tried: there is no way to it, or the way is paid for anyway and enough goes there.
    pub(super) fn may_try(&self, routing: &Routing, host: HostLabel, has_demand: bool) -> bool {
        !routing.has_route(host) || (routing.is_metered(host) && has_demand)
    }

    /// Whether the metered link with a host has to stay: there is no way around it, and it holds the mesh together or enough goes there.
    pub(super) fn keeps(&self, routing: &Routing, host: HostLabel, has_demand: bool) -> bool {
        !routing.has_route(host) || (routing.is_metered(host) && (has_demand || routing.keeps(host)))
    }

    /// What a ping of a peer by a path leads to.
    pub(super) fn reply(&self, routing: &Routing, host: HostLabel, peer: &Peer, from: Path, now: Time) -> Reply {
        match &peer.link {
            _ if !self.has_path(&from) => Reply::Answer,
            Some(link) if self.has_path(&link.path) => Reply::Answer,
            Some(_) => Reply::AskLink,
            None if self.may_try(routing, host, peer.has_demand(now)) => Reply::Answer,
            None => Reply::Refuse,
        }
    }

    /// Whether no path to a peer is worth trying: those that are known are metered, or the peer would refuse, and there is a route.
    pub(super) fn leaves_out(&self, routing: &Routing, host: HostLabel, peer: &Peer, now: Time) -> bool {
        let is_refused = peer.refused != Time::ZERO && now.since(peer.refused) < REFUSED;
        let has_free =
            || peer.candidates.paths().next().is_none() || peer.candidates.paths().any(|path| !self.has_path(path));
        !self.may_try(routing, host, peer.has_demand(now)) && (is_refused || !has_free())
    }

    /// Leaves those of the paths to a host that may be tried.
    pub(super) fn affordable(
        &self,
        routing: &Routing,
        host: HostLabel,
        peer: &Peer,
        mut paths: Vec<Path>,
        now: Time,
    ) -> Vec<Path> {
        if !self.may_try(routing, host, peer.has_demand(now)) {
            paths.retain(|path| !self.has_path(path));
        }
        paths
    }

    /// Whether paths that were metered when a link last looked for better ones may be so no longer, or the other way round.
    pub(super) fn changed_since(&self, time: Time) -> bool {
        self.paths_changed > time
    }
}
