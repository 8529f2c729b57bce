//! What can happen to a router, as the recorder keeps it.

use serde::Serialize;

/// Letters of a text that comes from elsewhere.
pub(super) const MAX_TEXT: usize = 300;

/// What happened.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// The router started.
    Started {
        /// The version that runs.
        version: &'static str,
    },
    /// It was told to stop.
    Stopped,
    /// The clock was set, or the host slept.
    ClockMoved {
        /// By how many seconds it is ahead of the time that passed.
        seconds: i64,
    },
    /// A direct link came up.
    LinkUp {
        /// The other host.
        #[serde(flatten)]
        peer: PeerName,
        /// The path's remote address.
        remote: String,
    },
    /// A direct link goes on at another address.
    LinkMoved {
        /// The other host.
        #[serde(flatten)]
        peer: PeerName,
        /// The new path's remote address.
        remote: String,
    },
    /// A direct link is gone.
    LinkDown {
        /// The other host.
        #[serde(flatten)]
        peer: PeerName,
        /// Why.
        cause: &'static str,
    },
    /// Frames to a host go another way.
    Path {
        /// The host.
        #[serde(flatten)]
        peer: PeerName,
        /// `direct`, `relay` or `none`.
        path: &'static str,
        /// The relay.
        #[serde(skip_serializing_if = "Option::is_none")]
        via: Option<String>,
        /// By what they leave: `udp` or `tcp`.
        #[serde(skip_serializing_if = "Option::is_none")]
        transport: Option<&'static str>,
    },
    /// How a direct link does, if that has changed since it was last told, or an hour has passed.
    Link {
        /// The other host.
        #[serde(flatten)]
        peer: PeerName,
        /// Smoothed round-trip time in microseconds.
        rtt_us: u64,
        /// Share of pings lost of late, in percent.
        loss_percent: u8,
    },
    /// Members no longer hear of a host.
    PeerGone {
        /// The host.
        peer: String,
    },
    /// They do again.
    PeerBack {
        /// The host.
        peer: String,
    },
    /// A host that the operator named does not answer.
    TargetSilent {
        /// As it was named.
        name: String,
        /// Its address.
        address: String,
    },
    /// What goes to a host by another does not arrive: it goes other ways.
    RelayAvoided {
        /// The host it goes to.
        #[serde(flatten)]
        peer: PeerName,
        /// The host it went by.
        relay: String,
        /// For how many seconds.
        seconds: u64,
    },
    /// The network to a host drops what is marked.
    MarksLost {
        /// The host.
        peer: String,
    },
    /// Another host claims what this one has, too.
    Conflict {
        /// An address or name.
        what: String,
        /// The other host.
        by: String,
    },
    /// An address of an endpoint here is another host's.
    Fenced {
        /// The address.
        address: String,
    },
    /// Two hosts live with one key.
    Cloned {
        /// Whose: this host's, or a peer's.
        key: String,
    },
    /// Records of an earlier life of this host were found.
    Reincarnated,
    /// Something was dropped or refused within a minute.
    Dropped {
        /// What: a counter of `weft status drops`.
        reason: &'static str,
        /// How many.
        count: u64,
    },
    /// A call of the Docker engine was refused.
    CallRefused {
        /// The call.
        call: String,
        /// Why.
        why: String,
    },
}

/// A host, by which entries about it are found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PeerName {
    /// Its nickname.
    pub peer: String,
    /// The beginning of its key: nicknames need not be unique, and are not known at first.
    pub peer_id: String,
}

impl Happening {
    /// A call of the engine was refused. The texts may quote the engine at length: they are cut.
    pub fn call_refused(call: &str, why: &str) -> Happening {
        let cut = |text: &str| text.chars().take(MAX_TEXT).collect();
        Happening::CallRefused { call: cut(call), why: cut(why) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_says_what_it_is_and_of_which_host() {
        let peer = PeerName { peer: "h1".into(), peer_id: "01234567".into() };
        let moved = Happening::LinkMoved { peer, remote: "192.0.2.1:6783".into() };
        let expected =
            json!({ "event": "link_moved", "peer": "h1", "peer_id": "01234567", "remote": "192.0.2.1:6783" });
        assert_eq!(json!(moved), expected);
        let Happening::CallRefused { why, .. } = Happening::call_refused("a", &"é".repeat(1000)) else { panic!() };
        assert_eq!(why.chars().count(), MAX_TEXT);
    }
}
