//! The handshake: Noise `XXpsk0` with a host not met before, `IKpsk0` with one whose key is known
//! (Noise protocol framework, revision 34).
//!
//! The prologue binds the protocol version and the suites the initiator offers, so neither can be
//! tampered with. Message 1 carries no payload. Messages 2 and 3 carry a hello: the sender's Ed25519
//! key, whose X25519 form must equal the Noise static key just proven.

use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use crate::aead::{Ciphers, Suite, SuiteSet};
use crate::identity::{Identity, PeerId};
use crate::noise::Resolver;
use crate::secret::Secret;
use crate::session::SplitKeys;

/// The longest handshake message there is, in bytes.
pub const MAX_MESSAGE: usize = 512;
const HELLO_LEN: usize = 32 + 8 + 1;

/// Which Noise pattern a handshake follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Three messages, nothing known beforehand.
    Xx,
    /// Two messages, the responder's key known to the initiator.
    Ik,
}

impl Pattern {
    fn name(self) -> &'static str {
        match self {
            Pattern::Xx => "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s",
            Pattern::Ik => "Noise_IKpsk0_25519_ChaChaPoly_BLAKE2s",
        }
    }
}

/// What both roles bring to a handshake.
pub struct Local<'a> {
    /// This host.
    pub identity: &'a Identity,
    /// The boot number of this process, told to the other side.
    pub boot: u64,
    /// The network secret to use.
    pub secret: &'a Secret,
    /// What ciphers this host has.
    pub ciphers: &'a Ciphers,
    /// Fresh random bytes, for this handshake only.
    pub entropy: [u8; 32],
}

/// What an initiator says of itself in clear beside message 1; the prologue makes it tamper-proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The suites it has.
    pub suites: SuiteSet,
    /// Its boot number.
    pub boot: u64,
}

/// Who was met, and the keys shared with them.
pub struct Established {
    /// The other host, proven.
    pub peer: PeerId,
    /// The other host's boot number.
    pub boot: u64,
    /// The agreed suite.
    pub suite: Suite,
    /// Keys from this host's point of view.
    pub keys: SplitKeys,
}

/// Why a handshake message was refused; the handshake it belonged to is over, nothing else changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Not made under this secret, damaged, or not of this protocol.
    #[error("the message does not verify")]
    Unverified,
    /// The Ed25519 key does not belong to the Noise key.
    #[error("the peer's identity does not match its handshake key")]
    WrongIdentity,
    /// An IK initiator this host has never met.
    #[error("the initiator is not known here")]
    UnknownInitiator,
}

impl From<snow::Error> for HandshakeError {
    fn from(_: snow::Error) -> Self {
        HandshakeError::Unverified
    }
}

/// The side that speaks first, waiting for message 2.
pub struct Initiator {
    state: HandshakeState,
    pattern: Pattern,
    hello: [u8; HELLO_LEN],
    offered: SuiteSet,
    ciphers: Ciphers,
    expected: Option<PeerId>,
}

impl Initiator {
    /// Starts a handshake and writes message 1. With `peer` the IK pattern is used, without it XX.
    pub fn start(local: Local<'_>, peer: Option<PeerId>) -> Result<(Self, Vec<u8>), HandshakeError> {
        let pattern = if peer.is_some() { Pattern::Ik } else { Pattern::Xx };
        let key = peer.map(|peer| peer.noise_public().ok_or(HandshakeError::WrongIdentity)).transpose()?;
        let offer = Offer { suites: local.ciphers.offered, boot: local.boot };
        let mut state = build(&local, pattern, offer, key.as_ref(), Role::Initiator)?;
        let first = write(&mut state, &[])?;
        let hello = hello(&local, Suite::ChaCha20Poly1305);
        Ok((
            Initiator { state, pattern, hello, offered: offer.suites, ciphers: local.ciphers.clone(), expected: peer },
            first,
        ))
    }

    /// The pattern in use.
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Takes message 2; returns what was established and, for XX, message 3.
    pub fn finish(mut self, second: &[u8]) -> Result<(Established, Option<Vec<u8>>), HandshakeError> {
        let hello = Hello::read(&read(&mut self.state, second)?)?;
        let suite = hello.suite;
        if !self.offered.contains(suite) {
            return Err(HandshakeError::Unverified);
        }
        let peer = proven_peer(&self.state, &hello)?;
        if self.expected.is_some_and(|expected| expected != peer) {
            return Err(HandshakeError::WrongIdentity);
        }
        let third = match self.pattern {
            Pattern::Xx => {
                self.hello[HELLO_LEN - 1] = suite as u8;
                Some(write(&mut self.state, &self.hello)?)
            }
            Pattern::Ik => None,
        };
        let keys = split(&mut self.state, suite, &self.ciphers, Role::Initiator)?;
        Ok((Established { peer, boot: hello.boot, suite, keys }, third))
    }
}

/// The side that answers.
pub struct Responder {
    state: HandshakeState,
    suite: Suite,
    ciphers: Ciphers,
}

/// What answering message 1 led to.
pub enum Answer {
    /// XX: send message 2, wait for message 3.
    Waiting(Box<Responder>, Vec<u8>),
    /// IK: send message 2; done.
    Done(Established, Vec<u8>),
}

impl Responder {
    /// Takes message 1 and writes message 2. `known` maps an X25519 key to the host it belongs to (IK only).
    pub fn answer(
        local: Local<'_>,
        pattern: Pattern,
        offer: Offer,
        first: &[u8],
        known: impl FnOnce(&[u8; 32]) -> Option<PeerId>,
    ) -> Result<Answer, HandshakeError> {
        let mut state = build(&local, pattern, offer, None, Role::Responder)?;
        if !read(&mut state, first)?.is_empty() {
            return Err(HandshakeError::Unverified);
        }
        let suite = local.ciphers.offered.best_common(offer.suites);
        let ciphers = local.ciphers.clone();
        match pattern {
            Pattern::Xx => {
                let second = write(&mut state, &hello(&local, suite))?;
                Ok(Answer::Waiting(Box::new(Responder { state, suite, ciphers }), second))
            }
            Pattern::Ik => {
                let key = remote_static(&state)?;
                let peer = known(&key).ok_or(HandshakeError::UnknownInitiator)?;
                if peer.noise_public() != Some(key) {
                    return Err(HandshakeError::WrongIdentity);
                }
                let second = write(&mut state, &hello(&local, suite))?;
                let keys = split(&mut state, suite, &ciphers, Role::Responder)?;
                Ok(Answer::Done(Established { peer, boot: offer.boot, suite, keys }, second))
            }
        }
    }

    /// Takes message 3 of XX.
    pub fn finish(mut self, third: &[u8]) -> Result<Established, HandshakeError> {
        let hello = Hello::read(&read(&mut self.state, third)?)?;
        if hello.suite != self.suite {
            return Err(HandshakeError::Unverified);
        }
        let peer = proven_peer(&self.state, &hello)?;
        let keys = split(&mut self.state, self.suite, &self.ciphers, Role::Responder)?;
        Ok(Established { peer, boot: hello.boot, suite: self.suite, keys })
    }
}

/// The payload of messages 2 and 3: peer id (32 bytes), boot (LE u64), suite (one byte).
struct Hello {
    peer: PeerId,
    boot: u64,
    suite: Suite,
}

impl Hello {
    fn read(payload: &[u8]) -> Result<Self, HandshakeError> {
        let payload: &[u8; HELLO_LEN] = payload.try_into().map_err(|_| HandshakeError::Unverified)?;
        let (peer, rest) = payload.split_first_chunk::<32>().ok_or(HandshakeError::Unverified)?;
        let (boot, suite) = rest.split_first_chunk::<8>().ok_or(HandshakeError::Unverified)?;
        let suite = Suite::from_wire(suite[0]).ok_or(HandshakeError::Unverified)?;
        Ok(Hello { peer: PeerId(*peer), boot: u64::from_le_bytes(*boot), suite })
    }
}

fn hello(local: &Local<'_>, suite: Suite) -> [u8; HELLO_LEN] {
    let mut payload = [0; HELLO_LEN];
    payload[..32].copy_from_slice(&local.identity.peer_id().0);
    payload[32..40].copy_from_slice(&local.boot.to_le_bytes());
    payload[40] = suite as u8;
    payload
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Initiator,
    Responder,
}

fn build(
    local: &Local<'_>,
    pattern: Pattern,
    offer: Offer,
    remote: Option<&[u8; 32]>,
    role: Role,
) -> Result<HandshakeState, HandshakeError> {
    // The names are constants of this file; a test builds both.
    let params = pattern.name().parse().expect("valid Noise name");
    let prologue = [b"weft 1".as_slice(), &[offer.suites.0], &offer.boot.to_le_bytes()].concat();
    let (private, psk) = (local.identity.noise_private(), local.secret.psk());
    let mut builder = Builder::with_resolver(params, Box::new(Resolver { entropy: local.entropy }))
        .prologue(&prologue)?
        .local_private_key(private.as_slice())?
        .psk(0, &psk)?;
    if let Some(remote) = remote {
        builder = builder.remote_public_key(remote)?;
    }
    Ok(match role {
        Role::Initiator => builder.build_initiator()?,
        Role::Responder => builder.build_responder()?,
    })
}

fn write(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    let mut message = vec![0; MAX_MESSAGE];
    let len = state.write_message(payload, &mut message)?;
    message.truncate(len);
    Ok(message)
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    if message.len() > MAX_MESSAGE {
        return Err(HandshakeError::Unverified);
    }
    let mut payload = vec![0; MAX_MESSAGE];
    let len = state.read_message(message, &mut payload)?;
    payload.truncate(len);
    Ok(payload)
}

fn remote_static(state: &HandshakeState) -> Result<[u8; 32], HandshakeError> {
    state.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(HandshakeError::Unverified)
}

fn proven_peer(state: &HandshakeState, hello: &Hello) -> Result<PeerId, HandshakeError> {
    match hello.peer.noise_public() {
        Some(key) if key == remote_static(state)? => Ok(hello.peer),
        _ => Err(HandshakeError::WrongIdentity),
    }
}

fn split(state: &mut HandshakeState, suite: Suite, ciphers: &Ciphers, role: Role) -> Result<SplitKeys, HandshakeError> {
    // The raw split answers before the handshake is finished, too, with keys that were never agreed.
    if !state.is_handshake_finished() {
        return Err(HandshakeError::Unverified);
    }
    let (first, second) = state.dangerously_get_raw_split();
    let (to_responder, to_initiator) = (Zeroizing::new(first), Zeroizing::new(second));
    Ok(match role {
        Role::Initiator => SplitKeys::derive(&to_responder, &to_initiator, suite, ciphers),
        Role::Responder => SplitKeys::derive(&to_initiator, &to_responder, suite, ciphers),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        identity: Identity,
        ciphers: Ciphers,
    }

    impl Host {
        fn new(seed: u8, aes: bool) -> Self {
            Host { identity: Identity::from_seed(&[seed; 32]), ciphers: Ciphers::native(aes) }
        }

        fn local<'a>(&'a self, secret: &'a Secret, entropy: u8) -> Local<'a> {
            let boot = u64::from(entropy);
            Local { identity: &self.identity, boot, secret, ciphers: &self.ciphers, entropy: [entropy; 32] }
        }
    }

    fn secret(n: u8) -> Secret {
        Secret::from_text(&Secret::generate(&crate::keyed_hash(&[n; 32], &[b"s"]))).unwrap()
    }

    fn meet(a: &Host, b: &Host, ik: bool) -> (Established, Established) {
        let secret = secret(1);
        let (initiator, first) = Initiator::start(a.local(&secret, 1), ik.then(|| b.identity.peer_id())).unwrap();
        let known = |key: &[u8; 32]| (a.identity.peer_id().noise_public() == Some(*key)).then(|| a.identity.peer_id());
        let offered = Offer { suites: a.ciphers.offered, boot: 1 };
        match Responder::answer(b.local(&secret, 2), initiator.pattern(), offered, &first, known).unwrap() {
            Answer::Waiting(responder, second) => {
                let (established, third) = initiator.finish(&second).unwrap();
                (established, responder.finish(&third.unwrap()).unwrap())
            }
            Answer::Done(theirs, second) => (initiator.finish(&second).unwrap().0, theirs),
        }
    }

    #[test]
    fn both_patterns_prove_both_ends_and_agree_on_keys() {
        for (ik, aes) in [(false, true), (false, false), (true, true), (true, false)] {
            let (a, b) = (Host::new(1, true), Host::new(2, aes));
            let (ours, theirs) = meet(&a, &b, ik);
            assert_eq!((ours.peer, theirs.peer), (b.identity.peer_id(), a.identity.peer_id()));
            assert_eq!((ours.boot, theirs.boot), (2, 1));
            let suite = if aes { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
            assert_eq!((ours.suite, theirs.suite), (suite, suite));

            let mut sealed = b"hello".to_vec();
            let tag = ours.keys.send.seal(0, b"", &mut sealed);
            sealed.extend(tag);
            assert!(theirs.keys.receive.open(0, b"", &mut sealed));
            assert_eq!(ours.keys.hop_send, theirs.keys.hop_receive);
            assert_ne!(ours.keys.hop_send, ours.keys.hop_receive);
        }
    }

    #[test]
    fn the_wrong_secret_a_changed_offer_and_damage_are_refused_at_once() {
        let (a, b) = (Host::new(1, true), Host::new(2, true));
        let (good, bad) = (secret(1), secret(2));
        let offer = |suites, boot| Offer { suites, boot };
        let answer = |offer, message: &[u8], secret| {
            Responder::answer(b.local(secret, 2), Pattern::Xx, offer, message, |_| None).err()
        };
        let (_, first) = Initiator::start(a.local(&good, 1), None).unwrap();
        let made = offer(SuiteSet::ALL, 1);
        assert_eq!(answer(made, &first, &good), None);
        assert_eq!(answer(made, &first, &bad), Some(HandshakeError::Unverified));
        assert_eq!(answer(offer(SuiteSet::CHACHA_ONLY, 1), &first, &good), Some(HandshakeError::Unverified));
        assert_eq!(answer(offer(SuiteSet::ALL, 2), &first, &good), Some(HandshakeError::Unverified));
        for byte in 0..first.len() {
            let mut damaged = first.clone();
            damaged[byte] ^= 1;
            assert_eq!(answer(made, &damaged, &good), Some(HandshakeError::Unverified), "byte {byte}");
            assert_eq!(answer(made, &first[..byte], &good), Some(HandshakeError::Unverified));
        }
    }

    #[test]
    fn an_unknown_ik_initiator_is_refused() {
        let (a, b, secret) = (Host::new(1, true), Host::new(2, true), secret(1));
        let (_, first) = Initiator::start(a.local(&secret, 1), Some(b.identity.peer_id())).unwrap();
        let offer = Offer { suites: SuiteSet::ALL, boot: 1 };
        let refused = Responder::answer(b.local(&secret, 2), Pattern::Ik, offer, &first, |_| None).err();
        assert_eq!(refused, Some(HandshakeError::UnknownInitiator));
    }

    /// Runs the resolver against vectors that cacophony and snow publish: both patterns plain, and with psk
    /// tokens in every place the two projects have vectors for.
    #[test]
    fn noise_equals_the_published_vectors() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../vectors/noise.json")).unwrap();
        let vectors = vectors["vectors"].as_array().unwrap();
        assert_eq!(vectors.len(), 7);
        vectors.iter().for_each(run_vector);
    }

    fn run_vector(vector: &serde_json::Value) {
        let (mut sender, mut receiver) = (vector_side(vector, "init"), vector_side(vector, "resp"));
        for message in vector["messages"].as_array().unwrap() {
            if sender.is_handshake_finished() {
                break;
            }
            let payload = unhex(message["payload"].as_str().unwrap());
            let (mut wire, mut out) = (vec![0; 1024], vec![0; 1024]);
            let len = sender.write_message(&payload, &mut wire).unwrap();
            assert_eq!(wire[..len], unhex(message["ciphertext"].as_str().unwrap()));
            let read = receiver.read_message(&wire[..len], &mut out).unwrap();
            assert_eq!(out[..read], payload);
            std::mem::swap(&mut sender, &mut receiver);
        }
        assert!(sender.is_handshake_finished() && receiver.is_handshake_finished());
    }

    fn vector_side(vector: &serde_json::Value, side: &str) -> HandshakeState {
        let name = vector["protocol_name"].as_str().unwrap();
        let bytes = |key: &str| vector[format!("{side}_{key}")].as_str().map(unhex);
        let (statik, ephemeral, remote) = (bytes("static"), bytes("ephemeral").unwrap(), bytes("remote_static"));
        let prologue = bytes("prologue").unwrap_or_default();
        let places = name.split("psk").skip(1).map(|rest| rest[..1].parse().unwrap());
        let psks: Vec<(u8, [u8; 32])> = places
            .zip(vector[format!("{side}_psks")].as_array().into_iter().flatten())
            .map(|(place, psk)| (place, unhex(psk.as_str().unwrap()).try_into().unwrap()))
            .collect();
        let mut builder = Builder::with_resolver(name.parse().unwrap(), Box::new(Resolver { entropy: [0; 32] }))
            .prologue(&prologue)
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&ephemeral);
        for (place, psk) in &psks {
            builder = builder.psk(*place, psk).unwrap();
        }
        if let Some(statik) = &statik {
            builder = builder.local_private_key(statik).unwrap();
        }
        if let Some(remote) = &remote {
            builder = builder.remote_public_key(remote).unwrap();
        }
        if side == "init" { builder.build_initiator().unwrap() } else { builder.build_responder().unwrap() }
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }
}
