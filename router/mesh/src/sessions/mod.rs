//! End-to-end sessions with peers: handshakes, keys, renewal, and the lives of a key.
//!
//! Call a method with the time, then drain [`Sessions::poll_event`]. What sessions need to know of paths is passed in
//! as a [`PathView`].

mod handshakes;
mod lifecycle;
mod lives;
mod session;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use handshakes::Handshakes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
pub(crate) use session::{PeerSessions, SendKeys};
use weft_crypto::cookie::CookieJar;
use weft_crypto::{Ciphers, HostLabel, Identity, Keyring, PeerId, Time};

use crate::api;
use crate::datapath::snapshot::{Inbound, Meter};
use crate::path::Path;
use crate::wire::Control;

/// Hosts that sessions are kept for.
const MAX_PEERS: usize = 8192;

/// What sessions need to know of the way to a peer.
#[derive(Clone, Copy, Default)]
pub(crate) struct PathView {
    /// There is a route or a link.
    pub(crate) is_reachable: bool,
    /// The neighbour that datagrams to the peer go to, if its link is up.
    pub(crate) via: Option<HostLabel>,
    /// Where the direct link leads.
    pub(crate) link: Option<Path>,
    /// When frames last went to the peer.
    pub(crate) last_traffic: Time,
    /// Whether what goes there is paid for by the byte.
    pub(crate) is_metered: bool,
}

/// Tells the way to each peer.
pub(crate) type Paths<'a> = &'a dyn Fn(HostLabel) -> PathView;

/// What comes of a call.
pub(crate) enum Event {
    /// A peer met for the first time.
    Met(HostLabel),
    /// A handshake packet to send: straight to an address, or (`None`) along the route to a host.
    Packet { direct: Option<Path>, to: Option<HostLabel>, bytes: Vec<u8> },
    /// A message to seal under a session: straight to an address, or (`None`) along the route.
    Message { peer: HostLabel, keys: SendKeys, direct: Option<Path>, control: Control },
    /// Packets under a session of this index are to be opened from now on.
    Opened(u32, Arc<Inbound>),
    /// Packets under this index are no longer to be opened.
    Closed(u32),
    /// The session for sending changed or is gone.
    Current(HostLabel),
    /// A finished handshake proves that a peer is at an address.
    Found(HostLabel, Path),
    /// A peer should be pinged, under a session and at an address.
    Probe { peer: HostLabel, index: u32, at: Path },
    /// A handshake was finished under this host's own key: another host holds it.
    OwnKeyElsewhere,
    /// Something people may want to know.
    Notice(api::Event),
}

/// All sessions of this host.
pub(crate) struct Sessions {
    identity: Identity,
    own: HostLabel,
    /// Tells this life of the host from others.
    boot: u64,
    keyring: Keyring,
    ciphers: Ciphers,
    rng: ChaCha20Rng,
    peers: BTreeMap<HostLabel, PeerSessions>,
    by_noise_key: BTreeMap<[u8; 32], HostLabel>,
    /// Indices of live sessions.
    indices: BTreeSet<u32>,
    handshakes: Handshakes,
    cookies: CookieJar,
    /// Peers that a session is wanted with before there are frames for them.
    wanted: BTreeSet<HostLabel>,
    /// Bytes relayed for peers that are gone: what is counted in all must not shrink.
    pub(crate) relayed_for_gone: u64,
    events: VecDeque<Event>,
}

/// How sessions are set up.
pub(crate) struct Setup {
    pub(crate) identity: Identity,
    pub(crate) boot: u64,
    pub(crate) keyring: Keyring,
    pub(crate) ciphers: Ciphers,
    pub(crate) entropy: [u8; 32],
}

impl Sessions {
    pub(crate) fn new(setup: Setup, now: Time) -> Self {
        let mut rng = ChaCha20Rng::from_seed(setup.entropy);
        let mut cookies = [0; 32];
        rng.fill_bytes(&mut cookies);
        Sessions {
            own: setup.identity.peer_id().label(),
            identity: setup.identity,
            boot: setup.boot,
            keyring: setup.keyring,
            ciphers: setup.ciphers,
            rng,
            peers: BTreeMap::new(),
            by_noise_key: BTreeMap::new(),
            indices: BTreeSet::new(),
            handshakes: Handshakes::default(),
            cookies: CookieJar::new(cookies, now),
            wanted: BTreeSet::new(),
            relayed_for_gone: 0,
            events: VecDeque::new(),
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the peer with this key, made known if it was not; `None` for this host itself, bytes that are not a key, or a
    /// full table.
    pub(crate) fn meet(&mut self, id: PeerId, now: Time) -> Option<HostLabel> {
        let label = id.label();
        if id == self.identity.peer_id() || label == self.own {
            return None;
        }
        match self.peers.get(&label) {
            Some(peer) => (peer.id == id).then_some(label),
            None if self.peers.len() >= MAX_PEERS => None,
            None => {
                self.by_noise_key.insert(id.noise_public()?, label);
                self.peers.insert(label, PeerSessions::new(id, now));
                self.events.push_back(Event::Met(label));
                Some(label)
            }
        }
    }

    /// Ends all sessions with a peer and forgets it.
    pub(crate) fn remove(&mut self, peer: HostLabel) {
        let indices: Vec<u32> = self.peer(peer).into_iter().flat_map(|peer| &peer.all).map(|s| s.index).collect();
        indices.into_iter().for_each(|index| self.drop_session(peer, index));
        self.relayed_for_gone += self.meter_of(peer).received.relayed.load(Ordering::Relaxed);
        if let Some(key) = self.peers.remove(&peer).and_then(|peer| peer.id.noise_public()) {
            self.by_noise_key.remove(&key);
        }
    }

    /// Uses new secrets. Sessions under others end now; returns the peers that have none left.
    pub(crate) fn set_keyring(&mut self, keyring: Keyring) -> Vec<HostLabel> {
        self.handshakes.keep_under(&keyring);
        let over: Vec<(HostLabel, u32)> = (self.peers.iter())
            .flat_map(|(label, peer)| peer.all.iter().map(|session| (*label, session)))
            .filter(|(_, session)| !keyring.holds(&session.secret))
            .map(|(label, session)| (label, session.index))
            .collect();
        self.keyring = keyring;
        over.iter().for_each(|(label, index)| self.drop_session(*label, *index));
        let without = over.into_iter().map(|(label, _)| label);
        without.filter(|label| self.current_index(*label).is_none()).collect()
    }

    /// A link with a peer came up or went down: the next handshake need not wait.
    pub(crate) fn on_path_change(&mut self, peer: HostLabel, now: Time) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.retry.reset(now);
        }
    }

    pub(crate) fn peer(&self, peer: HostLabel) -> Option<&PeerSessions> {
        self.peers.get(&peer)
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = (HostLabel, PeerId)> {
        self.peers.iter().map(|(label, peer)| (*label, peer.id))
    }

    /// The key of a peer.
    pub(crate) fn id_of(&self, peer: HostLabel) -> Option<PeerId> {
        self.peers.get(&peer).map(|peer| peer.id)
    }

    /// The counters of a peer.
    pub(crate) fn meter_of(&self, peer: HostLabel) -> Arc<Meter> {
        self.peers.get(&peer).map(|peer| peer.meter.clone()).unwrap_or_default()
    }

    /// The index of the session used for sending to a peer.
    pub(crate) fn current_index(&self, peer: HostLabel) -> Option<u32> {
        self.peers.get(&peer)?.current
    }

    /// The sending side of the session used for sending to a peer.
    pub(crate) fn current_keys(&self, peer: HostLabel) -> Option<&SendKeys> {
        Some(&self.peers.get(&peer)?.current()?.keys)
    }

    /// Whether a peer has no session, and one may be tried now.
    pub(crate) fn is_wanting(&self, peer: HostLabel, now: Time) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.current.is_none() && peer.retry.is_due(now))
    }

    /// Whether a handshake straight to an address is under way.
    pub(crate) fn is_trying(&self, at: Path, now: Time) -> bool {
        self.handshakes.is_trying(None, Some(at), now)
    }

    /// Handshake packets refused so far: of no member, damaged or replayed.
    pub(crate) fn refused(&self) -> u64 {
        self.handshakes.refused
    }
}

/// Hosts whose sessions run against each other without a data path.
#[cfg(test)]
mod lab {
    use std::sync::atomic::Ordering;

    use weft_crypto::Secret;

    use super::*;

    pub(super) const REACHABLE: PathView =
        PathView { is_reachable: true, via: None, link: None, last_traffic: Time::ZERO, is_metered: false };

    /// Every peer is reached straight.
    pub(super) fn straight(peer: HostLabel) -> PathView {
        PathView { via: Some(peer), ..REACHABLE }
    }

    pub(super) struct Host {
        pub(super) sessions: Sessions,
        pub(super) at: Path,
        /// Events beside packets, oldest first.
        pub(super) events: Vec<Event>,
    }

    pub(super) fn host(n: u8, boot: u64, keyring: Keyring, now: Time) -> Host {
        let identity = Identity::from_seed(&[n; 32]);
        let setup = Setup { identity, boot, keyring, ciphers: Ciphers::native(false), entropy: [boot as u8 ^ n; 32] };
        Host { sessions: Sessions::new(setup, now), at: Path::udp(([192, 0, 2, n], 6783).into()), events: Vec::new() }
    }

    pub(super) fn keyring(n: u8) -> Keyring {
        let text = Secret::generate(&core::array::from_fn(|i| (i as u8).wrapping_mul(37) ^ n.wrapping_mul(91)));
        Keyring::parse(&text).unwrap()
    }

    impl Host {
        pub(super) fn label(&self) -> HostLabel {
            self.sessions.own
        }

        /// The packets that wait to be sent; other events are kept.
        pub(super) fn packets(&mut self) -> Vec<(Path, Vec<u8>)> {
            let mut packets = Vec::new();
            while let Some(event) = self.sessions.poll_event() {
                match event {
                    Event::Packet { direct: Some(to), bytes, .. } => packets.push((to, bytes)),
                    event => self.events.push(event),
                }
            }
            packets
        }

        /// Has a packet of `peer` opened under a session, as the data path would.
        pub(super) fn hear(&mut self, peer: HostLabel, index: u32, now: Time) {
            let session = self.sessions.peers[&peer].session(index).unwrap();
            session.inbound.heard.store(now.as_nanos(), Ordering::Relaxed);
            self.sessions.on_heard(index, peer, None, straight(peer), now);
        }

        pub(super) fn notices(&self) -> impl Iterator<Item = &api::Event> {
            self.events.iter().filter_map(|event| match event {
                Event::Notice(notice) => Some(notice),
                _ => None,
            })
        }
    }

    /// Carries packets between two hosts until both are silent, and a packet under each session that one asks to be probed.
    pub(super) fn run(a: &mut Host, b: &mut Host, now: Time) {
        loop {
            let (from_a, from_b) = (a.packets(), b.packets());
            if from_a.is_empty() && from_b.is_empty() {
                break;
            }
            from_a
                .iter()
                .filter(|(to, _)| *to == b.at)
                .for_each(|(_, p)| b.sessions.on_handshake(Some(a.at), p, &straight, now));
            from_b
                .iter()
                .filter(|(to, _)| *to == a.at)
                .for_each(|(_, p)| a.sessions.on_handshake(Some(b.at), p, &straight, now));
        }
        for _ in 0..2 {
            probe(a, b, now);
            probe(b, a, now);
        }
        a.packets();
        b.packets();
    }

    fn probe(from: &mut Host, to: &mut Host, now: Time) {
        let (own, peer) = (from.label(), to.label());
        let under = from.sessions.current_keys(peer).map(|keys| keys.remote_index);
        if let Some(index) = under.filter(|index| to.sessions.peer(own).and_then(|peer| peer.keys(*index)).is_some()) {
            to.hear(own, index, now);
        }
    }

    /// Whether each of two hosts sends under a session that the other has.
    pub(super) fn are_connected(a: &Host, b: &Host) -> bool {
        let has = |from: &Host, to: &Host| {
            let keys = from.sessions.current_keys(to.label());
            keys.is_some_and(|keys| {
                to.sessions.peer(from.label()).is_some_and(|peer| peer.keys(keys.remote_index).is_some())
            })
        };
        has(a, b) && has(b, a)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::lab::*;
    use super::*;

    #[test]
    fn a_secret_that_is_no_longer_live_ends_its_sessions() {
        let now = Time::ZERO + Duration::from_secs(1);
        let (mut a, mut b) = (host(1, 1, keyring(1), now), host(2, 2, keyring(1), now));
        a.sessions.start_handshake(None, Some(b.at), 0, now);
        run(&mut a, &mut b, now);
        assert!(are_connected(&a, &b));
        assert_eq!(a.sessions.set_keyring(keyring(1)), []);
        assert_eq!(a.sessions.set_keyring(keyring(2)), [b.label()]);
        assert!(a.sessions.current_keys(b.label()).is_none());
        a.packets();
        assert!(matches!(a.events[..], [.., Event::Closed(_), Event::Current(_)]));
    }

    #[test]
    fn a_peer_that_is_removed_leaves_nothing_and_may_be_met_again() {
        let now = Time::ZERO + Duration::from_secs(1);
        let (mut a, mut b) = (host(1, 1, keyring(1), now), host(2, 2, keyring(1), now));
        a.sessions.start_handshake(None, Some(b.at), 0, now);
        run(&mut a, &mut b, now);
        let id = a.sessions.id_of(b.label()).unwrap();
        a.sessions.remove(b.label());
        assert!(a.sessions.peer(b.label()).is_none() && a.sessions.indices.is_empty());
        assert!(a.sessions.by_noise_key.is_empty());
        assert_eq!(a.sessions.meet(id, now), Some(b.label()));
        let own = a.sessions.identity.peer_id();
        assert_eq!(a.sessions.meet(own, now), None);
    }
}
