//! From a first packet to a session that carries frames.
//!
//! Strangers meet silence: a packet without the membership MAC of a live secret is dropped before anything is
//! computed or kept. Under load an initiator has to show a cookie first. A new session is used for sending
//! only after a packet under it was opened, so a replayed handshake moves nothing.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use rand::RngExt;
use weft_crypto::handshake::{Answer, Established, HandshakeError, Initiator, Local, Offer, Pattern, Responder};
use weft_crypto::session::{REKEY_AFTER_PACKETS, ReceiveKey, SendKey};
use weft_crypto::{HostLabel, Keyring, PeerId, Secret, SuiteSet, Time, cookie, envelope, session};

use super::peer::{Peer, Session};
use super::{Event, Node, Output};
use crate::snapshot::Inbound;
use crate::wire::{Control, HandshakePacket, Step};

/// How long an answer is awaited.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Handshakes under way at once, each role.
const MAX_PENDING: usize = 512;
/// First messages a second beyond which cookies are asked for.
const LOAD_LIMIT: u32 = 100;
/// First messages remembered, so that a replay is not answered.
const SEEN: usize = 4096;
/// How long a session is used before a new one is made, at most: a mesh that started at once does not renew all
/// its sessions at once. The initiator of the last one goes first.
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_SPREAD: f64 = 0.3;
const RESPONDER_WAITS: Duration = Duration::from_secs(15);
/// How long a session lives in all.
const EXPIRE_AFTER: Duration = Duration::from_secs(240);
/// How long the last session still receives after a new one is in use.
const RECEIVE_AFTER: Duration = Duration::from_secs(10);
/// Two sessions made within this time were started at once.
const SIMULTANEOUS: Duration = Duration::from_secs(3);
/// Sessions kept with one peer.
const MAX_SESSIONS: usize = 6;
/// Silence from a peer that frames go to, after which it is asked whether it still has the session, and how often
/// it is asked before a new session is made.
const SESSION_QUIET: Duration = Duration::from_secs(1);
/// The same where nothing but pings goes to the peer.
const SESSION_SILENT: Duration = Duration::from_secs(3);
const QUESTION_INTERVAL: Duration = Duration::from_millis(300);
const QUESTIONS: u32 = 3;
/// Tries after which a handshake is one with a stranger (`XX`).
const FIRST_CONTACT: u32 = 2;
/// Longest wait between two tries over relays.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Handshakes under way.
#[derive(Default)]
pub(super) struct Handshakes {
    initiated: BTreeMap<u32, Attempt>,
    answered: BTreeMap<u32, Answered>,
    seen: VecDeque<[u8; 32]>,
    load: (Time, u32),
    /// Packets of no member, or damaged.
    pub(super) refused: u64,
}

impl Handshakes {
    pub(super) fn uses(&self, index: u32) -> bool {
        self.initiated.contains_key(&index) || self.answered.contains_key(&index)
    }

    /// Whether an attempt to reach this peer, or whoever is at this address, is under way.
    pub(super) fn is_trying(&self, peer: Option<HostLabel>, direct: Option<SocketAddr>) -> bool {
        self.initiated.values().any(|attempt| match direct {
            Some(address) => attempt.direct == Some(address),
            None => attempt.direct.is_none() && attempt.peer == peer,
        })
    }
}

/// A handshake this host started.
struct Attempt {
    initiator: Initiator,
    secret: Secret,
    peer: Option<HostLabel>,
    /// Where it was sent; `None`: over relays.
    direct: Option<SocketAddr>,
    started: Time,
    /// Kept to be sent again with a cookie, once.
    first: Option<HandshakePacket>,
}

/// What a finished handshake proves about who is at the other end now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// This host started it: the answer was fresh.
    Initiator,
    /// This host answered, and its answer was answered.
    Responder,
    /// This host answered an IK message 1, which may be a replay until a packet under the session was opened.
    Pending,
}

/// An XX handshake this host answered.
struct Answered {
    responder: Box<Responder>,
    secret: Secret,
    remote_index: u32,
    started: Time,
}

impl Node {
    /// Starts a handshake: straight to an address, or (`None`) over relays. `tries` so far choose among the
    /// live secrets and, after two without an answer, fall back from IK to XX.
    pub(super) fn start_handshake(
        &mut self,
        peer: Option<HostLabel>,
        direct: Option<SocketAddr>,
        tries: u32,
        now: Time,
    ) {
        let secrets = self.keyring.secrets();
        let secret = secrets[tries as usize % secrets.len()].clone();
        self.start_handshake_under(secret, peer, direct, tries, now);
    }

    fn start_handshake_under(
        &mut self,
        secret: Secret,
        peer: Option<HostLabel>,
        direct: Option<SocketAddr>,
        tries: u32,
        now: Time,
    ) {
        if self.handshakes.initiated.len() >= MAX_PENDING || self.handshakes.is_trying(peer, direct) {
            return;
        }
        let known =
            peer.and_then(|label| self.peers.get(&label)).map(|peer| peer.id).filter(|_| tries % 4 < FIRST_CONTACT);
        let entropy = self.rng.random();
        let (identity, ciphers) = (&self.identity, &self.ciphers);
        let local = Local { identity, boot: self.boot, secret: &secret, ciphers, entropy };
        // It fails only for a peer key that is none, which no known peer has.
        let Ok((initiator, noise)) = Initiator::start(local, known) else { return };
        let index = self.random_index();
        let packet = HandshakePacket {
            step: Step::First(initiator.pattern()),
            offer: self.offer(),
            source: self.own,
            sender: index,
            receiver: 0,
            noise,
        };
        self.send_handshake(direct, peer, packet.encode(&secret, None), now);
        let attempt = Attempt { initiator, secret, peer, direct, started: now, first: Some(packet) };
        self.handshakes.initiated.insert(index, attempt);
    }

    fn offer(&self) -> Offer {
        Offer { suites: self.ciphers.offered, boot: self.boot }
    }

    /// Makes sure that a session with a peer is there or on its way.
    pub(super) fn want_session(&mut self, label: HostLabel, now: Time) {
        let jitter = self.rng.random();
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let has_route = self.routes.contains_key(&label) || peer.link.is_some();
        if peer.current.is_some() || peer.challenge.is_some() || !has_route || !peer.retry.is_due(now) {
            return;
        }
        let tries = peer.retry.failures;
        peer.retry.on_try(now, LONGEST_RETRY, jitter);
        let direct = peer.link.as_ref().map(|link| link.remote);
        self.start_handshake(Some(label), direct, tries, now);
    }

    /// Takes a handshake packet, straight from an address or (`None`) relayed.
    pub(super) fn on_handshake(&mut self, from: Option<SocketAddr>, bytes: &[u8], now: Time) {
        let secret = HandshakePacket::secret_of(bytes, self.keyring.secrets()).cloned();
        let (Some(secret), Some(packet)) = (secret, HandshakePacket::parse(bytes)) else {
            self.handshakes.refused += 1;
            return;
        };
        let result = match packet.step {
            Step::First(pattern) => self.on_first(from, bytes, packet, pattern, secret, now),
            Step::Second => self.on_second(from, &packet, now),
            Step::Third => self.on_third(from, &packet, now),
            Step::Cookie => {
                self.on_cookie(&packet, now);
                Ok(())
            }
        };
        if result.is_err() {
            self.handshakes.refused += 1;
        }
    }

    fn on_first(
        &mut self,
        from: Option<SocketAddr>,
        bytes: &[u8],
        packet: HandshakePacket,
        pattern: Pattern,
        secret: Secret,
        now: Time,
    ) -> Result<(), HandshakeError> {
        if packet.source == self.own && packet.offer.boot == self.boot {
            // An echo.
            return Ok(());
        }
        let Some(ephemeral) = packet.noise.first_chunk::<32>().copied() else {
            return Err(HandshakeError::Unverified);
        };
        if self.handshakes.seen.contains(&ephemeral) {
            return Err(HandshakeError::Unverified);
        }
        if self.is_loaded(now) {
            let source = source_bytes(from, packet.source);
            let (signed, mac) = HandshakePacket::cookie_parts(bytes).ok_or(HandshakeError::Unverified)?;
            if !self.cookies.verify(&source, signed, mac, now) {
                let cookie = self.cookies.make(&source, now);
                self.send_cookie(from, &packet, &secret, cookie, now);
                return Ok(());
            }
        }
        if self.own < packet.source && self.is_trying_same(from, packet.source, pattern) {
            // Of two hosts that start at once the lower label's attempt goes on.
            return Ok(());
        }
        let index = self.random_index();
        let entropy = self.rng.random();
        let (identity, ciphers) = (&self.identity, &self.ciphers);
        let local = Local { identity, boot: self.boot, secret: &secret, ciphers, entropy };
        let known = |key: &[u8; 32]| Some(self.peers.get(self.by_noise_key.get(key)?)?.id);
        let answer = Responder::answer(local, pattern, packet.offer, &packet.noise, known);
        self.remember_seen(ephemeral);
        if let Err(HandshakeError::UnknownInitiator) = answer {
            // Whoever knows this host from before its state was lost: introductions have to be made again.
            let source = from.is_none().then_some(packet.source);
            self.start_handshake_under(secret.clone(), source, from, FIRST_CONTACT, now);
        }
        let answer = answer?;
        self.handshakes.initiated.retain(|_, attempt| !is_same_path(attempt, from, packet.source));
        let reply = |noise| answer_packet(self.own, Step::Second, index, packet.sender, noise);
        match answer {
            Answer::Waiting(responder, second) => {
                let reply = reply(second).encode(&secret, None);
                self.send_handshake(from, Some(packet.source), reply, now);
                while self.handshakes.answered.len() >= MAX_PENDING {
                    self.handshakes.answered.pop_first();
                }
                let answered = Answered { responder, secret, remote_index: packet.sender, started: now };
                self.handshakes.answered.insert(index, answered);
            }
            Answer::Done(established, second) => {
                let reply = reply(second).encode(&secret, None);
                self.send_handshake(from, Some(packet.source), reply, now);
                self.on_established(established, index, packet.sender, secret, from, Proof::Pending, now);
            }
        }
        Ok(())
    }

    /// Whether an own attempt on the same path is under way that may come to something: one that takes the other for known
    /// (IK) does not, if the other asks for an introduction (XX).
    fn is_trying_same(&self, from: Option<SocketAddr>, source: HostLabel, pattern: Pattern) -> bool {
        let may_work = |attempt: &Attempt| pattern == Pattern::Ik || attempt.initiator.pattern() == Pattern::Xx;
        self.handshakes.initiated.values().any(|attempt| is_same_path(attempt, from, source) && may_work(attempt))
    }

    fn on_second(
        &mut self,
        from: Option<SocketAddr>,
        packet: &HandshakePacket,
        now: Time,
    ) -> Result<(), HandshakeError> {
        let index = packet.receiver;
        let attempt = self.handshakes.initiated.remove(&index).ok_or(HandshakeError::Unverified)?;
        let (established, third) = attempt.initiator.finish(&packet.noise)?;
        if let Some(noise) = third {
            let reply = answer_packet(self.own, Step::Third, index, packet.sender, noise);
            let reply = reply.encode(&attempt.secret, None);
            self.send_handshake(from, Some(established.peer.label()), reply, now);
        }
        self.on_established(established, index, packet.sender, attempt.secret, from, Proof::Initiator, now);
        Ok(())
    }

    fn on_third(
        &mut self,
        from: Option<SocketAddr>,
        packet: &HandshakePacket,
        now: Time,
    ) -> Result<(), HandshakeError> {
        let index = packet.receiver;
        let answered = self.handshakes.answered.remove(&index).ok_or(HandshakeError::Unverified)?;
        let established = answered.responder.finish(&packet.noise)?;
        self.on_established(established, index, answered.remote_index, answered.secret, from, Proof::Responder, now);
        Ok(())
    }

    fn on_cookie(&mut self, packet: &HandshakePacket, now: Time) {
        let Some(attempt) = self.handshakes.initiated.get_mut(&packet.receiver) else { return };
        let (Ok(cookie), Some(first)) = (<[u8; cookie::LEN]>::try_from(&packet.noise[..]), attempt.first.take()) else {
            return;
        };
        let (direct, peer) = (attempt.direct, attempt.peer);
        let bytes = first.encode(&attempt.secret, Some(&cookie));
        self.send_handshake(direct, peer, bytes, now);
    }

    fn send_cookie(
        &mut self,
        from: Option<SocketAddr>,
        packet: &HandshakePacket,
        secret: &Secret,
        cookie: [u8; cookie::LEN],
        now: Time,
    ) {
        let reply = answer_packet(self.own, Step::Cookie, 0, packet.sender, cookie.to_vec());
        self.send_handshake(from, Some(packet.source), reply.encode(secret, None), now);
    }

    /// Whether first messages come faster than they should be worked on without a cookie.
    fn is_loaded(&mut self, now: Time) -> bool {
        let (since, count) = &mut self.handshakes.load;
        if now.since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count > LOAD_LIMIT
    }

    fn remember_seen(&mut self, ephemeral: [u8; 32]) {
        if self.handshakes.seen.len() >= SEEN {
            self.handshakes.seen.pop_front();
        }
        self.handshakes.seen.push_back(ephemeral);
    }

    /// Sends a handshake packet straight to an address, or along the route to a host.
    fn send_handshake(&mut self, direct: Option<SocketAddr>, to: Option<HostLabel>, packet: Vec<u8>, now: Time) {
        if let Some(to) = direct {
            let stride = packet.len();
            self.outputs.push_back(Output::Transmit { to, data: packet, stride });
            return;
        }
        let Some((to, hop)) = to.and_then(|to| Some((to, self.hop_towards(to)?))) else { return };
        let mut data = Vec::with_capacity(envelope::LEN + session::HEADER_LEN + packet.len());
        data.extend_from_slice(&hop.envelope(envelope::MAX_TTL, to));
        data.extend_from_slice(&[0; session::HEADER_LEN]);
        data.extend_from_slice(&packet);
        hop.meter.sent.on_link(1, now);
        let stride = data.len();
        self.outputs.push_back(Output::Transmit { to: hop.remote, data, stride });
    }

    fn on_established(
        &mut self,
        established: Established,
        index: u32,
        remote_index: u32,
        secret: Secret,
        direct: Option<SocketAddr>,
        proof: Proof,
        now: Time,
    ) {
        let is_initiator = proof == Proof::Initiator;
        let Established { peer: id, boot, suite, keys } = established;
        if id == self.identity.peer_id() {
            // Nobody can finish a handshake with this host's key who has not got it.
            self.contested = Some(now);
            self.on_clone(now);
            return;
        }
        let Some(label) = self.meet(id, now) else { return };
        let (own, peer) = (self.own, self.peers.get_mut(&label));
        let Some(peer) = peer else { return };
        let inbound = Inbound {
            peer: label,
            receive: ReceiveKey::new(keys.receive),
            hop_receive: keys.hop_receive,
            current: AtomicBool::new(false),
            heard: AtomicU64::new(now.as_nanos()),
            meter: peer.meter.clone(),
        };
        let session = Session {
            index,
            remote_index,
            send: Arc::new(SendKey::new(keys.send, remote_index)),
            inbound: Arc::new(inbound),
            hop_send: keys.hop_send,
            suite,
            secret,
            boot,
            created: now,
            renew_after: REKEY_AFTER.mul_f64(1.0 - REKEY_SPREAD * self.rng.random::<f64>())
                + if is_initiator { Duration::ZERO } else { REKEY_AFTER.mul_f64(REKEY_SPREAD) + RESPONDER_WAITS },
            by_lower: is_initiator == (own < label),
            superseded: None,
        };
        self.accept(label, session, direct, proof, now);
    }

    /// Takes a session into use.
    fn accept(&mut self, label: HostLabel, session: Session, direct: Option<SocketAddr>, proof: Proof, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        let (index, cipher) = (session.index, session.suite.name());
        let other_life = peer.current().is_some_and(|current| current.boot != session.boot);
        let (id, is_first, loses) =
            (peer.id, peer.current.is_none(), peer.current().is_some_and(|current| !is_preferred(&session, current)));
        self.by_index.insert(index, label);
        self.snapshot.inbound.insert(index, session.inbound.clone());
        self.snapshot_stale = true;
        peer.sessions.push(session);
        let (current, count) = (peer.current, peer.sessions.len());
        let mut spare: Vec<&Session> =
            peer.sessions.iter().filter(|s| Some(s.index) != current && s.index != index).collect();
        // Those that nothing was ever heard under go first: they may be of replayed first messages.
        spare.sort_by_key(|session| session.inbound.last_heard() > session.created);
        let surplus = spare.into_iter().take(count.saturating_sub(MAX_SESSIONS)).map(|session| session.index);
        let surplus: Vec<u32> = surplus.collect();
        if proof != Proof::Pending {
            peer.retry.reset(now);
        }
        surplus.into_iter().for_each(|old| self.drop_session(label, old));
        if let Some(address) = direct.filter(|_| proof != Proof::Pending) {
            if let Some(peer) = self.peers.get_mut(&label) {
                peer.add_candidate(address, true);
            }
            self.claim_target(address, label);
        }
        if is_first {
            self.event(Event::Session { peer: id, cipher });
        }
        if other_life {
            if proof != Proof::Pending {
                self.challenge(label, index, direct, now);
            }
        } else if proof == Proof::Initiator && !loses {
            // The initiator's first packet proves to the responder that the handshake was no replay.
            self.switch_session(label, index, now);
        }
        match direct {
            // What the old life has to say comes first, and a first message may be a replay from anywhere.
            _ if other_life || proof == Proof::Pending => {}
            Some(address) => self.ping(label, index, address, 0, now),
            None if proof == Proof::Initiator => self.send_under(label, index, None, &Control::AreYouThere, now),
            None => {}
        }
    }

    pub(super) fn switch_session(&mut self, label: HostLabel, index: u32, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.switch_to(index, now);
        self.refresh_outbound(label);
        // Every route through this neighbour carries its link's index and key.
        self.refresh_routes_via(label);
        self.send_waiting(label, now);
    }

    /// A packet was opened under a session that is not the one for sending, or came from a new address.
    pub(super) fn on_heard(&mut self, index: u32, label: HostLabel, direct: Option<SocketAddr>, now: Time) {
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.last_there = now;
        let Some(session) = peer.session(index) else { return };
        if peer.current().is_some_and(|current| current.boot != session.boot) && session.superseded.is_none() {
            return self.challenge(label, index, direct, now);
        }
        let switch = peer.current != Some(index)
            && peer.current().is_none_or(|current| match session.superseded {
                None => is_preferred(session, current),
                // The peer goes on with another one: the host with the higher label follows, or the other one if it
                // does not.
                Some(_) => {
                    let patience = if self.own > label { SESSION_QUIET } else { SESSION_SILENT };
                    now.since(current.inbound.last_heard()) > patience
                }
            });
        if switch {
            self.switch_session(label, index, now);
        }
        if let Some(from) = direct {
            self.on_heard_from(label, index, from, now);
        }
    }

    /// Sessions that have to be renewed, are over, or wait for an objection that did not come.
    pub(super) fn tend_sessions(&mut self, now: Time) {
        self.handshakes.initiated.retain(|_, attempt| now.since(attempt.started) < PATIENCE);
        self.handshakes.answered.retain(|_, answered| now.since(answered.started) < PATIENCE);
        let labels: Vec<HostLabel> = self.peers.keys().copied().collect();
        for label in labels {
            let Some(peer) = self.peers.get_mut(&label) else { continue };
            if peer.challenge.as_ref().is_some_and(|challenge| now >= challenge.until)
                && let Some(challenge) = peer.challenge.take()
            {
                self.rebirth(label, challenge.index, challenge.direct, now);
            }
            let Some(peer) = self.peers.get_mut(&label) else { continue };
            let over: Vec<u32> = (peer.sessions.iter())
                .filter(|session| {
                    now.since(session.created) > EXPIRE_AFTER
                        || session
                            .superseded
                            .is_some_and(|since| now.since(since.max(session.inbound.last_heard())) > RECEIVE_AFTER)
                })
                .map(|session| session.index)
                .collect();
            let question = wants_question(peer, now);
            let renew = needs_renewal(peer, now);
            over.into_iter().for_each(|index| self.drop_session(label, index));
            if let Some(index) = question {
                self.send_under(label, index, None, &Control::AreYouThere, now);
            }
            if renew {
                self.renew(label, now);
            } else if self
                .peers
                .get(&label)
                .is_some_and(|peer| !peer.waiting.is_empty() || !peer.waiting_control.is_empty())
            {
                self.want_session(label, now);
                self.drop_stale_waiting(label);
            }
        }
    }

    fn renew(&mut self, label: HostLabel, now: Time) {
        let jitter = self.rng.random();
        let Some(peer) = self.peers.get_mut(&label) else { return };
        if !peer.retry.is_due(now) {
            return;
        }
        let tries = peer.retry.failures;
        peer.retry.on_try(now, LONGEST_RETRY, jitter);
        let direct = peer.link.as_ref().map(|link| link.remote);
        self.start_handshake(Some(label), direct, tries, now);
    }

    /// What waits for a host without a route waits in vain.
    fn drop_stale_waiting(&mut self, label: HostLabel) {
        let is_reachable = self.routes.contains_key(&label);
        if let Some(peer) = self.peers.get_mut(&label)
            && !is_reachable
        {
            peer.drop_waiting();
        }
    }

    /// Ends a session; what was under way in it is lost.
    pub(super) fn drop_session(&mut self, label: HostLabel, index: u32) {
        self.by_index.remove(&index);
        self.snapshot.inbound.remove(&index);
        self.snapshot_stale = true;
        let Some(peer) = self.peers.get_mut(&label) else { return };
        peer.sessions.retain(|session| session.index != index);
        if peer.current == Some(index) {
            peer.current = None;
            self.refresh_outbound(label);
            self.refresh_routes_via(label);
        }
    }

    /// Uses new secrets; sessions under others end now.
    pub(super) fn set_keyring(&mut self, keyring: Keyring, now: Time) {
        self.snapshot.secrets = keyring.secrets().into();
        self.snapshot_stale = true;
        self.keyring = keyring;
        let keyring = &self.keyring;
        self.handshakes.initiated.retain(|_, attempt| keyring.holds(&attempt.secret));
        self.handshakes.answered.retain(|_, answered| keyring.holds(&answered.secret));
        let over: Vec<(HostLabel, u32)> = (self.peers.iter())
            .flat_map(|(label, peer)| peer.sessions.iter().map(|session| (*label, session)))
            .filter(|(_, session)| !keyring.holds(&session.secret))
            .map(|(label, session)| (label, session.index))
            .collect();
        for (label, index) in over {
            self.drop_session(label, index);
            if self.peers.get(&label).is_some_and(|peer| peer.current.is_none()) {
                self.link_down(label, "its session's secret is no longer live", now);
            }
        }
    }

    /// The key of a host met before.
    pub(super) fn peer_key(&self, label: HostLabel) -> Option<PeerId> {
        self.peers.get(&label).map(|peer| peer.id)
    }
}

/// Whether a session that a packet was just opened under is to replace the one for sending.
fn is_preferred(session: &Session, current: &Session) -> bool {
    // Nothing was ever opened under the current one: the peer may not have it.
    if current.inbound.last_heard() <= current.created {
        return true;
    }
    let apart = session.created.since(current.created).max(current.created.since(session.created));
    if apart < SIMULTANEOUS && session.boot == current.boot && session.by_lower != current.by_lower {
        session.by_lower
    } else {
        session.created > current.created
    }
}

/// The session under which the peer is to be asked whether it is there: frames or pings go to it, nothing comes back.
fn wants_question(peer: &mut Peer, now: Time) -> Option<u32> {
    let heard = peer.current()?.inbound.last_heard();
    let is_used = peer.last_traffic > heard || (peer.link.is_some() && now.since(heard) > SESSION_SILENT);
    if now.since(heard) <= SESSION_QUIET || !is_used {
        peer.questions = 0;
        return None;
    }
    if now.since(peer.last_question) < QUESTION_INTERVAL {
        return None;
    }
    peer.last_question = now;
    peer.questions += 1;
    peer.current
}

/// Whether the session for sending should be replaced by a fresh one.
fn needs_renewal(peer: &Peer, now: Time) -> bool {
    let Some(current) = peer.current() else { return false };
    let is_old = now.since(current.created) > current.renew_after || current.send.used() > REKEY_AFTER_PACKETS;
    if peer.questions > QUESTIONS {
        // The peer may have lost its side of the session.
        return true;
    }
    // A session that nothing uses is left to expire.
    is_old && (peer.link.is_some() || now.since(peer.last_traffic) < REKEY_AFTER)
}

/// A packet that answers another one: what only a first message says of its sender is left empty.
fn answer_packet(own: HostLabel, step: Step, sender: u32, receiver: u32, noise: Vec<u8>) -> HandshakePacket {
    let offer = Offer { suites: SuiteSet(0), boot: 0 };
    HandshakePacket { step, offer, source: own, sender, receiver, noise }
}

/// Whether an attempt went where a packet came from.
fn is_same_path(attempt: &Attempt, from: Option<SocketAddr>, source: HostLabel) -> bool {
    match from {
        Some(from) => attempt.direct == Some(from),
        None => attempt.direct.is_none() && attempt.peer == Some(source),
    }
}

fn source_bytes(from: Option<SocketAddr>, label: HostLabel) -> Vec<u8> {
    match from {
        Some(from) => from.to_string().into_bytes(),
        None => label.0.to_vec(),
    }
}
