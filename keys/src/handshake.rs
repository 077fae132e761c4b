//! How the two sides of a connection recognise each other, and the encrypted channel after it.
//!
//! Noise IK with X25519, AES-256-GCM and SHA-256. The client knows the server's public key before
//! it begins; where it does not, it can [ask] for it and have someone look at it. The packets,
//! each a message of its own on the connection:
//!
//! | kind | from | body |
//! |---|---|---|
//! | 1 ask | client | |
//! | 2 key | server | its public key, 32 bytes |
//! | 3 begin | client | the least protection level u8, Noise's first message |
//! | 4 answer | server | Noise's second message, which brings the connection's secret |
//! | 5 refusal | server | why, as text |
//!
//! Each begins with two bytes of magic, the kind u8 and the version u8. The version and the level
//! are bound by Noise's prologue: who changes them on the way breaks the handshake. Keys and
//! refusals are not authenticated; all that a forged one can do is to make a client give up.
//!
//! A recorded first message can be played again, so the server does nothing for it but answer,
//! until a message of the channel shows that the client is there now. From then on every message is
//! sealed, in order and without gaps: one that is dropped, repeated, reordered or changed ends the
//! connection.

use crate::identity::{Identity, PublicKey};
use crate::protection::Protection;
use crate::secret::{NoRandom, Secret};
use crate::shown::shown_within;
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState, TransportState};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroize;

const MAGIC: [u8; 2] = [0x5A, 0xDA];
/// The version of these packets and of what the channel carries.
pub const VERSION: u8 = 1;
const HEAD_LEN: usize = 4;
/// The longest packet of a handshake.
pub const MAX_PACKET: usize = 1024;

/// The longest Noise message.
const MAX_NOISE: usize = 65_535;
const NOISE_TAG: usize = 16;
/// Noise messages in one direction under one key.
const REKEY_AFTER: u64 = 1 << 20;

const ASK: u8 = 1;
const KEY: u8 = 2;
const BEGIN: u8 = 3;
const ANSWER: u8 = 4;
const REFUSAL: u8 = 5;

/// Why a handshake came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's packet is none of these, or not the one expected.
    #[error("the peer's handshake is malformed: {0}")]
    Malformed(&'static str),
    /// The peer speaks another version.
    #[error("the peer speaks version {0} of the handshake, this side version {VERSION}")]
    Version(u8),
    /// What came does not fit this side's keys.
    #[error("{0}")]
    Mismatch(&'static str),
    /// The server says no.
    #[error("the server refused the handshake: {0}")]
    Refused(String),
    /// The system has no random numbers.
    #[error(transparent)]
    Random(#[from] NoRandom),
}

fn params() -> NoiseParams {
    "Noise_IK_25519_AESGCM_SHA256".parse().expect("the pattern is a known one")
}

fn prologue(least: Protection) -> [u8; 6] {
    let [d, a, f, s] = *b"dafs";
    [d, a, f, s, VERSION, least.to_wire() as u8]
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEAD_LEN + body.len());
    packet.extend_from_slice(&MAGIC);
    packet.extend_from_slice(&[kind, VERSION]);
    packet.extend_from_slice(body);
    packet
}

fn take(packet: &[u8]) -> Result<(u8, &[u8]), HandshakeError> {
    match packet {
        [a, b, kind, version, body @ ..] if [*a, *b] == MAGIC => {
            if *version != VERSION {
                return Err(HandshakeError::Version(*version));
            }
            Ok((*kind, body))
        }
        _ => Err(HandshakeError::Malformed("it does not begin as one")),
    }
}

/// Whether a message is a packet of a handshake.
#[must_use]
pub fn is_packet(message: &[u8]) -> bool {
    message.starts_with(&MAGIC)
}

/// The packet that asks for the server's public key.
#[must_use]
pub fn ask() -> Vec<u8> {
    packet(ASK, &[])
}

/// The packet that refuses.
#[must_use]
pub fn refusal(why: &str) -> Vec<u8> {
    let end = (0..=why.len().min(MAX_PACKET - HEAD_LEN)).rev().find(|at| why.is_char_boundary(*at));
    packet(REFUSAL, &why.as_bytes()[..end.unwrap_or(0)])
}

/// Takes the server's public key out of the answer to [`ask`].
///
/// # Errors
/// A refusal, or something else than the answer.
pub fn asked(answer: &[u8]) -> Result<PublicKey, HandshakeError> {
    let body = expect(KEY, answer)?;
    let key = body.try_into().map_err(|_| HandshakeError::Malformed("a key of another length"))?;
    Ok(PublicKey::from_bytes(key))
}

fn expect(kind: u8, packet: &[u8]) -> Result<&[u8], HandshakeError> {
    match take(packet)? {
        (REFUSAL, why) => {
            // As much as a server says to explain itself.
            const MOST: usize = 1024;
            Err(HandshakeError::Refused(shown_within(&String::from_utf8_lossy(why), MOST)))
        }
        (other, body) if other == kind => Ok(body),
        _ => Err(HandshakeError::Malformed("a packet out of turn")),
    }
}

/// The client's side, from its first packet to the server's answer.
pub struct Initiator(HandshakeState);

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator")
    }
}

impl Initiator {
    /// Begins a handshake with the server that has this public key; also the packet to send.
    ///
    /// # Errors
    /// Where the key cannot be anyone's.
    pub fn begin(
        own: &Identity,
        server: &PublicKey,
        least: Protection,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let bad = |_| HandshakeError::Mismatch("the server's public key cannot be used");
        let prologue = prologue(least);
        let mut noise = Builder::new(params())
            .local_private_key(own.secret().expose())
            .and_then(|b| b.remote_public_key(server.as_bytes()))
            .and_then(|b| b.prologue(&prologue))
            .and_then(Builder::build_initiator)
            .map_err(bad)?;
        let mut message = [0; MAX_PACKET];
        let len = noise.write_message(&[], &mut message).map_err(bad)?;
        let mut body = vec![least.to_wire() as u8];
        body.extend_from_slice(&message[..len]);
        Ok((Self(noise), packet(BEGIN, &body)))
    }

    /// Takes the server's answer: the channel, and the connection's secret.
    ///
    /// # Errors
    /// A refusal, or an answer that does not come from the server with the public key.
    pub fn finish(mut self, answer: &[u8]) -> Result<(Channel, Secret), HandshakeError> {
        let body = expect(ANSWER, answer)?;
        let bad = |_| HandshakeError::Mismatch("the answer is not from the server with that key");
        let mut payload = [0; MAX_PACKET];
        if body.len() > payload.len() {
            return Err(HandshakeError::Malformed("a packet that is too long"));
        }
        let len = self.0.read_message(body, &mut payload).map_err(bad)?;
        let secret: Result<[u8; Secret::LEN], _> = payload[..len].try_into();
        payload.zeroize();
        let secret = secret.map_err(|_| HandshakeError::Malformed("an answer without a secret"))?;
        let noise = self.0.into_transport_mode().map_err(bad)?;
        Ok((Channel::new(noise), Secret::from_bytes(secret)))
    }
}

/// What a client's packet asks of the server.
#[derive(Debug)]
pub enum Incoming {
    /// Its public key: the answer.
    Asked(Vec<u8>),
    /// A handshake: see [`Responder`].
    Begun(Box<Responder>),
}

/// The server's side, after the client's first packet. Nothing shows yet that the client is there.
pub struct Responder {
    noise: HandshakeState,
    client: PublicKey,
    least: Protection,
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Responder {
    /// Takes a client's packet.
    ///
    /// # Errors
    /// Where it is none that a client sends, or is not meant for the server with this identity.
    pub fn receive(own: &Identity, message: &[u8]) -> Result<Incoming, HandshakeError> {
        if message.len() > MAX_PACKET {
            return Err(HandshakeError::Malformed("a packet that is too long"));
        }
        let (kind, body) = take(message)?;
        let ([least, begin @ ..], BEGIN) = (body, kind) else {
            return match (kind, body) {
                (ASK, []) => Ok(Incoming::Asked(packet(KEY, own.public().as_bytes()))),
                _ => Err(HandshakeError::Malformed("a packet that no client sends")),
            };
        };
        let least = Protection::from_wire(u32::from(*least))
            .ok_or(HandshakeError::Malformed("an unknown protection level"))?;
        let bad = |_| HandshakeError::Mismatch("it is not meant for a server with this key");
        let prologue = prologue(least);
        let mut noise = Builder::new(params())
            .local_private_key(own.secret().expose())
            .and_then(|b| b.prologue(&prologue))
            .and_then(Builder::build_responder)
            .map_err(bad)?;
        let mut payload = [0; MAX_PACKET];
        let len = noise.read_message(begin, &mut payload).map_err(bad)?;
        if len != 0 {
            return Err(HandshakeError::Malformed("a first message that carries more"));
        }
        let client = noise.get_remote_static().and_then(|key| key.try_into().ok());
        let client = client.ok_or(HandshakeError::Malformed("a first message without a key"))?;
        let client = PublicKey::from_bytes(client);
        Ok(Incoming::Begun(Box::new(Self { noise, client, least })))
    }

    /// The key that the client has, if it is there at all.
    #[must_use]
    pub fn client(&self) -> PublicKey {
        self.client
    }

    /// The least protection level that the client accepts.
    #[must_use]
    pub fn least(&self) -> Protection {
        self.least
    }

    /// Accepts: the packet to send, the channel, and the connection's secret.
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub fn accept(mut self) -> Result<(Vec<u8>, Channel, Secret), HandshakeError> {
        let bad = |_| HandshakeError::Mismatch("the client's key cannot be used");
        let secret = Secret::random()?;
        let mut message = [0; MAX_PACKET];
        let len = self.noise.write_message(secret.expose(), &mut message).map_err(bad)?;
        let noise = self.noise.into_transport_mode().map_err(bad)?;
        Ok((packet(ANSWER, &message[..len]), Channel::new(noise), secret))
    }
}

/// A message of the channel is not the one that the peer sent next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message was changed, dropped, repeated or reordered on the way, or is not the peer's")]
pub struct Broken;

/// The encrypted channel of a connection, after the handshake. Messages have to be opened in the
/// order in which they were sealed.
pub struct Channel(Mutex<Noise>);

struct Noise {
    state: TransportState,
    sealed: u64,
    opened: u64,
    broken: bool,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel")
    }
}

impl Channel {
    /// What sealing adds to a message of this length, in bytes.
    #[must_use]
    pub const fn overhead(len: usize) -> usize {
        let pieces = len.div_ceil(MAX_NOISE - NOISE_TAG);
        NOISE_TAG * if pieces == 0 { 1 } else { pieces }
    }

    fn new(state: TransportState) -> Self {
        Self(Mutex::new(Noise { state, sealed: 0, opened: 0, broken: false }))
    }

    fn noise(&self) -> std::sync::MutexGuard<'_, Noise> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seals a message onto the end of `out`.
    pub fn seal(&self, message: &[u8], out: &mut Vec<u8>) {
        let mut noise = self.noise();
        let mut rest = message;
        loop {
            let (piece, behind) = rest.split_at(rest.len().min(MAX_NOISE - NOISE_TAG));
            let at = out.len();
            out.resize(at + piece.len() + NOISE_TAG, 0);
            let sealed = noise.state.write_message(piece, &mut out[at..]);
            debug_assert_eq!(sealed.ok(), Some(piece.len() + NOISE_TAG));
            noise.sealed += 1;
            if noise.sealed.is_multiple_of(REKEY_AFTER) {
                noise.state.rekey_outgoing();
            }
            rest = behind;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Opens a message into `out`, whose content is lost.
    ///
    /// # Errors
    /// Where it is not the next message of the peer. No further message opens then.
    pub fn open(&self, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let mut noise = self.noise();
        if noise.broken {
            return Err(Broken);
        }
        out.clear();
        let mut rest = sealed;
        loop {
            let (piece, behind) = rest.split_at(rest.len().min(MAX_NOISE));
            let at = out.len();
            out.resize(at + piece.len(), 0);
            let opened = noise.state.read_message(piece, &mut out[at..]);
            let Ok(len) = opened else {
                noise.broken = true;
                out.zeroize();
                return Err(Broken);
            };
            out.truncate(at + len);
            noise.opened += 1;
            if noise.opened.is_multiple_of(REKEY_AFTER) {
                noise.state.rekey_incoming();
            }
            rest = behind;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sides {
        client: Identity,
        server: Identity,
    }

    impl Sides {
        fn new() -> Self {
            Self { client: Identity::generate().unwrap(), server: Identity::generate().unwrap() }
        }

        fn begin(&self) -> (Initiator, Vec<u8>) {
            Initiator::begin(&self.client, &self.server.public(), Protection::Sealed).unwrap()
        }

        fn respond(&self, packet: &[u8]) -> Result<Box<Responder>, HandshakeError> {
            match Responder::receive(&self.server, packet)? {
                Incoming::Begun(responder) => Ok(responder),
                Incoming::Asked(_) => panic!("nobody asked"),
            }
        }

        fn channels(&self) -> (Channel, Channel) {
            let (initiator, begin) = self.begin();
            let responder = self.respond(&begin).unwrap();
            assert_eq!(responder.client(), self.client.public());
            assert_eq!(responder.least(), Protection::Sealed);
            let (answer, server, secret) = responder.accept().unwrap();
            let (client, same) = initiator.finish(&answer).unwrap();
            assert_eq!(secret.expose(), same.expose());
            (client, server)
        }
    }

    fn sealed(channel: &Channel, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        channel.seal(message, &mut out);
        assert_eq!(out.len(), message.len() + Channel::overhead(message.len()));
        out
    }

    #[test]
    fn both_sides_know_each_other_and_talk() {
        let (client, server) = Sides::new().channels();
        let mut out = vec![1; 7];
        for len in [0, 1, 1000, 65_519, 65_520, 200_000] {
            let message: Vec<u8> = (0..len).map(|i| i as u8).collect();
            for (from, to) in [(&client, &server), (&server, &client)] {
                let sealed = sealed(from, &message);
                assert!(len < 16 || !sealed.windows(16).any(|w| w == &message[..16]));
                to.open(&sealed, &mut out).unwrap();
                assert_eq!(out, message);
            }
        }
    }

    #[test]
    fn keys_change_in_step() {
        let (client, server) = Sides::new().channels();
        let mut out = Vec::new();
        client.noise().sealed = REKEY_AFTER - 2;
        server.noise().opened = REKEY_AFTER - 2;
        for i in 0..5u8 {
            server.open(&sealed(&client, &[i]), &mut out).unwrap();
            assert_eq!(out, [i]);
        }
    }

    #[test]
    fn a_message_that_is_not_the_next_ends_the_channel() {
        let (client, server) = Sides::new().channels();
        let (first, second) = (sealed(&client, b"first"), sealed(&client, b"second"));
        let mut out = Vec::new();
        server.open(&first, &mut out).unwrap();
        assert_eq!(server.open(&first, &mut out), Err(Broken));
        assert!(out.is_empty());
        assert_eq!(server.open(&second, &mut out), Err(Broken), "ended");
    }

    #[test]
    fn a_recorded_beginning_leads_nowhere() {
        let sides = Sides::new();
        let (initiator, begin) = sides.begin();
        let (answer, _, _) = sides.respond(&begin).unwrap().accept().unwrap();
        let (client, _) = initiator.finish(&answer).unwrap();
        let recorded = sealed(&client, b"a request");
        // The same packets again: the server answers afresh, and what follows does not fit.
        let (_, server, _) = sides.respond(&begin).unwrap().accept().unwrap();
        assert_eq!(server.open(&recorded, &mut Vec::new()), Err(Broken));
    }

    #[test]
    fn changed_levels_versions_keys_and_packets_are_refused() {
        let sides = Sides::new();
        let (_, begin) = sides.begin();
        for i in 0..begin.len() {
            let mut changed = begin.clone();
            changed[i] ^= 2;
            assert!(sides.respond(&changed).is_err(), "byte {i}");
        }
        assert!(sides.respond(&begin[..begin.len() - 1]).is_err());
        let mut level = begin.clone();
        level[HEAD_LEN] = Protection::None.to_wire() as u8;
        assert!(matches!(sides.respond(&level), Err(HandshakeError::Mismatch(_))));
        let others = Sides::new();
        assert!(matches!(others.respond(&begin), Err(HandshakeError::Mismatch(_))));
        let (initiator, begin) = sides.begin();
        let (mut answer, _, _) = sides.respond(&begin).unwrap().accept().unwrap();
        answer[20] ^= 1;
        assert!(matches!(initiator.finish(&answer), Err(HandshakeError::Mismatch(_))));
    }

    #[test]
    fn a_server_tells_its_key_and_refuses_by_name() {
        let sides = Sides::new();
        let Incoming::Asked(answer) = Responder::receive(&sides.server, &ask()).unwrap() else {
            panic!("not asked");
        };
        assert_eq!(asked(&answer), Ok(sides.server.public()));
        assert!(is_packet(&answer) && !is_packet(b"x"));
        let (initiator, _) = sides.begin();
        let no = refusal("not\nauthorized");
        let why = initiator.finish(&no).unwrap_err();
        assert_eq!(why, HandshakeError::Refused("not\\u{a}authorized".to_owned()));
        assert!(refusal(&"é".repeat(5000)).len() <= MAX_PACKET);
        let mut later = ask();
        later[3] = 9;
        assert_eq!(asked(&later), Err(HandshakeError::Version(9)));
    }
}
