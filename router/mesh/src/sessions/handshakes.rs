//! From a first packet to a session.
//!
//! Strangers meet silence: a packet without the membership MAC of a live secret is dropped before anything is
//! computed or kept. Under load an initiator has to show a cookie first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use rand::{Rng, RngExt};
use weft_crypto::handshake::{Answer, Established, HandshakeError, Initiator, Local, Offer, Pattern, Responder};
use weft_crypto::session::{ReceiveKey, SendKey};
use weft_crypto::{HostLabel, Keyring, Secret, SuiteSet, Time, cookie};

use super::session::{Proof, SendKeys, Session, renew_after};
use super::{Event, Paths, Sessions};
use crate::datapath::snapshot::Inbound;
use crate::path::Path;
use crate::wire::{HandshakePacket, Step};

/// How long an answer is taken, and after how long another try may be made beside: the answer may have been lost, or had no route yet.
const PATIENCE: Duration = Duration::from_millis(1500);
const AGAIN: Duration = Duration::from_millis(350);
/// Handshakes under way at once, each role.
const MAX_PENDING: usize = 512;
/// First messages a second beyond which cookies are asked for.
const LOAD_LIMIT: u32 = 100;
/// First messages remembered, so that a replay is not answered.
const SEEN: usize = 4096;
/// Tries after which a handshake is one with a stranger (`XX`).
pub(super) const FIRST_CONTACT: u32 = 2;

/// Handshakes under way.
#[derive(Default)]
pub(super) struct Handshakes {
    initiated: BTreeMap<u32, Attempt>,
    answered: BTreeMap<u32, Answered>,
    seen: VecDeque<[u8; 32]>,
    load: (Time, u32),
    /// Packets refused: of no member, damaged or replayed.
    pub(super) refused: u64,
}

impl Handshakes {
    pub(super) fn uses(&self, index: u32) -> bool {
        self.initiated.contains_key(&index) || self.answered.contains_key(&index)
    }

    /// Whether none is under way.
    pub(super) fn are_none(&self) -> bool {
        self.initiated.is_empty() && self.answered.is_empty()
    }

    /// Forgets attempts without an answer.
    pub(super) fn drop_overdue(&mut self, now: Time) {
        self.initiated.retain(|_, attempt| now.since(attempt.started) < PATIENCE);
        self.answered.retain(|_, answered| now.since(answered.started) < PATIENCE);
    }

    /// Forgets those under other secrets.
    pub(super) fn keep_under(&mut self, keyring: &Keyring) {
        self.initiated.retain(|_, attempt| keyring.holds(&attempt.secret));
        self.answered.retain(|_, answered| keyring.holds(&answered.secret));
    }

    /// Whether an own attempt on the same path is under way that may succeed: an attempt that takes the other for known
    /// (IK) does not, if the other asks for an introduction (XX).
    fn is_trying_same(&self, from: Option<Path>, source: HostLabel, pattern: Pattern) -> bool {
        let may_work = |attempt: &Attempt| pattern == Pattern::Ik || attempt.initiator.pattern() == Pattern::Xx;
        self.initiated.values().any(|attempt| is_same_path(attempt, from, source) && may_work(attempt))
    }

    /// Whether first messages come faster than they should be worked on without a cookie.
    fn is_loaded(&mut self, now: Time) -> bool {
        let (since, count) = &mut self.load;
        if now.since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count > LOAD_LIMIT
    }

    fn remember_seen(&mut self, ephemeral: [u8; 32]) {
        if self.seen.len() >= SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(ephemeral);
    }

    /// Whether an attempt to reach this peer, or the host at this address, was made a moment ago.
    pub(super) fn is_trying(&self, peer: Option<HostLabel>, direct: Option<Path>, now: Time) -> bool {
        self.initiated.values().filter(|attempt| now.since(attempt.started) < AGAIN).any(|attempt| match direct {
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
    direct: Option<Path>,
    started: Time,
    /// Kept to be sent again with a cookie, once.
    first: Option<HandshakePacket>,
}

/// An XX handshake this host answered.
struct Answered {
    responder: Box<Responder>,
    secret: Secret,
    remote_index: u32,
    started: Time,
}

impl Sessions {
    /// Starts a handshake: straight to an address, or (`None`) over relays. `tries` so far choose among the
    /// live secrets and, after two without an answer, fall back from IK to XX.
    pub(crate) fn start_handshake(&mut self, peer: Option<HostLabel>, direct: Option<Path>, tries: u32, now: Time) {
        let secrets = self.keyring.secrets();
        let secret = secrets[tries as usize % secrets.len()].clone();
        self.start_handshake_under(secret, peer, direct, tries, now);
    }

    fn start_handshake_under(
        &mut self,
        secret: Secret,
        peer: Option<HostLabel>,
        direct: Option<Path>,
        tries: u32,
        now: Time,
    ) {
        if self.handshakes.initiated.len() >= MAX_PENDING || self.handshakes.is_trying(peer, direct, now) {
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
            offer: Offer { suites: self.ciphers.offered, boot: self.boot },
            source: self.own,
            sender: index,
            receiver: 0,
            noise,
        };
        self.send_packet(direct, peer, packet.encode(&secret, None));
        let attempt = Attempt { initiator, secret, peer, direct, started: now, first: Some(packet) };
        self.handshakes.initiated.insert(index, attempt);
    }

    /// Takes a handshake packet, straight from an address or (`None`) relayed.
    pub(crate) fn on_handshake(&mut self, from: Option<Path>, bytes: &[u8], paths: Paths<'_>, now: Time) {
        let secret = HandshakePacket::secret_of(bytes, self.keyring.secrets()).cloned();
        let (Some(secret), Some(packet)) = (secret, HandshakePacket::parse(bytes)) else {
            self.handshakes.refused += 1;
            return;
        };
        let result = match packet.step {
            Step::First(pattern) => self.on_first(from, bytes, packet, (pattern, secret), paths, now),
            Step::Second => self.on_second(from, &packet, paths, now),
            Step::Third => self.on_third(from, &packet, paths, now),
            Step::Cookie => {
                self.on_cookie(&packet);
                Ok(())
            }
        };
        if result.is_err() {
            self.handshakes.refused += 1;
        }
    }

    fn on_first(
        &mut self,
        from: Option<Path>,
        bytes: &[u8],
        packet: HandshakePacket,
        (pattern, secret): (Pattern, Secret),
        paths: Paths<'_>,
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
        if self.handshakes.is_loaded(now) {
            let source = source_bytes(from, packet.source);
            let (signed, mac) = HandshakePacket::cookie_parts(bytes).ok_or(HandshakeError::Unverified)?;
            if !self.cookies.verify(&source, signed, mac, now) {
                let cookie = self.cookies.make(&source, now);
                let reply = answer_packet(self.own, Step::Cookie, 0, packet.sender, cookie.to_vec());
                self.send_packet(from, Some(packet.source), reply.encode(&secret, None));
                return Ok(());
            }
        }
        if self.own < packet.source && self.handshakes.is_trying_same(from, packet.source, pattern) {
            // Of two hosts that start at once the lower label's attempt goes on.
            return Ok(());
        }
        let index = self.random_index();
        let entropy = self.rng.random();
        let (identity, ciphers) = (&self.identity, &self.ciphers);
        let local = Local { identity, boot: self.boot, secret: &secret, ciphers, entropy };
        let known = |key: &[u8; 32]| Some(self.peers.get(self.by_noise_key.get(key)?)?.id);
        let answer = Responder::answer(local, pattern, packet.offer, &packet.noise, known);
        self.handshakes.remember_seen(ephemeral);
        if let Err(HandshakeError::UnknownInitiator) = answer {
            // A peer that knows this host from before its state was lost: introductions have to be made again.
            let source = from.is_none().then_some(packet.source);
            self.start_handshake_under(secret.clone(), source, from, FIRST_CONTACT, now);
        }
        let answer = answer?;
        self.handshakes.initiated.retain(|_, attempt| !is_same_path(attempt, from, packet.source));
        let reply = |noise| answer_packet(self.own, Step::Second, index, packet.sender, noise);
        match answer {
            Answer::Waiting(responder, second) => {
                let reply = reply(second).encode(&secret, None);
                self.send_packet(from, Some(packet.source), reply);
                while self.handshakes.answered.len() >= MAX_PENDING {
                    self.handshakes.answered.pop_first();
                }
                let answered = Answered { responder, secret, remote_index: packet.sender, started: now };
                self.handshakes.answered.insert(index, answered);
            }
            Answer::Done(established, second) => {
                let reply = reply(second).encode(&secret, None);
                self.send_packet(from, Some(packet.source), reply);
                self.on_established(established, (index, packet.sender), secret, (from, Proof::Pending), paths, now);
            }
        }
        Ok(())
    }

    fn on_second(
        &mut self,
        from: Option<Path>,
        packet: &HandshakePacket,
        paths: Paths<'_>,
        now: Time,
    ) -> Result<(), HandshakeError> {
        let index = packet.receiver;
        let attempt = self.handshakes.initiated.remove(&index).ok_or(HandshakeError::Unverified)?;
        let (established, third) = attempt.initiator.finish(&packet.noise)?;
        if let Some(noise) = third {
            let reply = answer_packet(self.own, Step::Third, index, packet.sender, noise);
            let reply = reply.encode(&attempt.secret, None);
            self.send_packet(from, Some(established.peer.label()), reply);
        }
        self.on_established(established, (index, packet.sender), attempt.secret, (from, Proof::Initiator), paths, now);
        Ok(())
    }

    fn on_third(
        &mut self,
        from: Option<Path>,
        packet: &HandshakePacket,
        paths: Paths<'_>,
        now: Time,
    ) -> Result<(), HandshakeError> {
        let index = packet.receiver;
        let answered = self.handshakes.answered.remove(&index).ok_or(HandshakeError::Unverified)?;
        let established = answered.responder.finish(&packet.noise)?;
        self.on_established(
            established,
            (index, answered.remote_index),
            answered.secret,
            (from, Proof::Responder),
            paths,
            now,
        );
        Ok(())
    }

    fn on_cookie(&mut self, packet: &HandshakePacket) {
        let Some(attempt) = self.handshakes.initiated.get_mut(&packet.receiver) else { return };
        let (Ok(cookie), Some(first)) = (<[u8; cookie::LEN]>::try_from(&packet.noise[..]), attempt.first.take()) else {
            return;
        };
        let (direct, peer) = (attempt.direct, attempt.peer);
        let bytes = first.encode(&attempt.secret, Some(&cookie));
        self.send_packet(direct, peer, bytes);
    }

    /// Sends a packet straight to an address, or along the route to a host.
    fn send_packet(&mut self, direct: Option<Path>, to: Option<HostLabel>, bytes: Vec<u8>) {
        self.events.push_back(Event::Packet { direct, to, bytes });
    }

    fn random_index(&mut self) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if index != 0 && !self.indices.contains(&index) && !self.handshakes.uses(index) {
                return index;
            }
        }
    }

    fn on_established(
        &mut self,
        established: Established,
        (index, remote_index): (u32, u32),
        secret: Secret,
        (direct, proof): (Option<Path>, Proof),
        paths: Paths<'_>,
        now: Time,
    ) {
        let is_initiator = proof == Proof::Initiator;
        let Established { peer: id, boot, suite, keys } = established;
        if id == self.identity.peer_id() {
            // Only a holder of this host's key can finish a handshake with it.
            self.events.push_back(Event::OwnKeyElsewhere);
            return;
        }
        let Some(label) = self.meet(id, now) else { return };
        let renew_after = renew_after(is_initiator, self.rng.random());
        let Some(peer) = self.peers.get(&label) else { return };
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
            keys: SendKeys { seal: Arc::new(SendKey::new(keys.send, remote_index)), remote_index, hop: keys.hop_send },
            inbound: Arc::new(inbound),
            suite,
            secret,
            boot,
            created: now,
            ages_from: now,
            renew_after,
            by_lower: is_initiator == (self.own < label),
            superseded: None,
        };
        self.accept(label, session, (direct, proof), paths(label), now);
    }
}

/// A packet that answers another one: what only a first message says of its sender is left empty.
fn answer_packet(own: HostLabel, step: Step, sender: u32, receiver: u32, noise: Vec<u8>) -> HandshakePacket {
    let offer = Offer { suites: SuiteSet(0), boot: 0 };
    HandshakePacket { step, offer, source: own, sender, receiver, noise }
}

/// Whether an attempt went where a packet came from.
fn is_same_path(attempt: &Attempt, from: Option<Path>, source: HostLabel) -> bool {
    match from {
        Some(from) => attempt.direct == Some(from),
        None => attempt.direct.is_none() && attempt.peer == Some(source),
    }
}

fn source_bytes(from: Option<Path>, label: HostLabel) -> Vec<u8> {
    match from {
        Some(from) => from.remote.to_string().into_bytes(),
        None => label.0.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::lab::*;
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn two_hosts_that_start_at_once_end_with_one_session_in_use() {
        let (mut a, mut b) = (host(1, 1, keyring(1), at(0)), host(2, 2, keyring(1), at(0)));
        let (to_a, to_b) = (a.at, b.at);
        a.sessions.start_handshake(None, Some(to_b), 0, at(1000));
        b.sessions.start_handshake(None, Some(to_a), 0, at(1000));
        run(&mut a, &mut b, at(1010));
        assert!(are_connected(&a, &b));
        let (of_a, of_b) = (a.sessions.current_keys(b.label()), b.sessions.current_index(a.label()));
        assert_eq!(of_a.map(|keys| keys.remote_index), of_b);
        assert!(a.events.iter().any(|event| matches!(event, Event::Met(label) if *label == b.label())));
    }

    #[test]
    fn strangers_damaged_packets_and_replays_meet_silence_and_are_counted() {
        let (mut a, mut b) = (host(1, 1, keyring(1), at(0)), host(2, 2, keyring(2), at(0)));
        a.sessions.start_handshake(None, Some(b.at), 0, at(1000));
        let [(_, packet)] = &a.packets()[..] else { panic!("one packet") };
        b.sessions.on_handshake(Some(a.at), packet, &straight, at(1000));
        assert!(b.packets().is_empty() && b.sessions.refused() == 1);
        let mut member = host(3, 3, keyring(1), at(0));
        for cut in 0..packet.len() {
            member.sessions.on_handshake(Some(a.at), &packet[..cut], &straight, at(1000));
        }
        assert!(member.packets().is_empty() && member.sessions.refused() == packet.len() as u64);
        member.sessions.on_handshake(Some(a.at), packet, &straight, at(1000));
        assert_eq!(member.packets().len(), 1);
        member.sessions.on_handshake(Some(a.at), packet, &straight, at(1001));
        assert!(member.packets().is_empty(), "a replay is not answered");
    }

    #[test]
    fn under_load_an_initiator_has_to_show_a_cookie_and_then_gets_through() {
        let mut b = host(2, 2, keyring(1), at(0));
        let mut others: Vec<Host> = (10..130).map(|n| host(n, 1, keyring(1), at(0))).collect();
        for other in &mut others {
            other.sessions.start_handshake(None, Some(b.at), 0, at(1000));
            for (_, packet) in other.packets() {
                b.sessions.on_handshake(Some(other.at), &packet, &straight, at(1000));
            }
        }
        let answered = b.sessions.handshakes.answered.len();
        assert_eq!(answered, LOAD_LIMIT as usize, "the others were sent cookies");
        for (to, cookie) in b.packets() {
            let other = others.iter_mut().find(|other| other.at == to).unwrap();
            other.sessions.on_handshake(Some(b.at), &cookie, &straight, at(1001));
            for (_, again) in other.packets() {
                b.sessions.on_handshake(Some(other.at), &again, &straight, at(1001));
            }
        }
        assert!(b.sessions.handshakes.answered.len() + b.sessions.peers.len() > answered);
    }

    #[test]
    fn attempts_without_an_answer_are_forgotten() {
        let mut a = host(1, 1, keyring(1), at(0));
        let to = Path::udp(([192, 0, 2, 9], 6783).into());
        a.sessions.start_handshake(None, Some(to), 0, at(1000));
        a.sessions.start_handshake(None, Some(to), 1, at(1001));
        assert_eq!(a.packets().len(), 1, "one at a time");
        assert!(a.sessions.is_trying(to, at(1001)) && !a.sessions.is_trying(to, at(1000) + AGAIN));
        a.sessions.start_handshake(None, Some(to), 1, at(1000) + AGAIN);
        assert_eq!((a.packets().len(), a.sessions.handshakes.initiated.len()), (1, 2), "either may be answered");
        a.sessions.tend(|_| REACHABLE, at(1000) + AGAIN + PATIENCE);
        assert!(a.sessions.handshakes.initiated.is_empty());
    }
}
