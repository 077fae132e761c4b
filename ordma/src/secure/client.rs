//! Connecting: the client's side of the handshake, and what arrives after it.

use super::endpoint::SecureEndpoint;
use super::{Secured, scratch};
use crate::engine::{Connector, Endpoint, Established, Interest, LinkError, Receiver};
use crate::lock;
use dafs_keys::handshake::{HandshakeError, Initiator, VERSION, ask, asked};
use dafs_keys::{Identity, Protection, PublicKey};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

const MESSAGES: Interest = Interest { messages: true, reads: false };
/// Longer than anyone waits.
const LONG: Duration = Duration::from_secs(86400);

/// Makes connections to a server whose public key is known, and encrypts them.
#[derive(Debug)]
pub struct SecureConnector {
    inner: Arc<dyn Connector>,
    identity: Arc<Identity>,
    server: PublicKey,
    least: Protection,
}

impl SecureConnector {
    /// Connects as `identity` to the server with the key `server`. `least` is the least protection
    /// level that this client accepts; the server learns it in a way that nobody can change.
    #[must_use]
    pub fn new(
        inner: Arc<dyn Connector>,
        identity: Arc<Identity>,
        server: PublicKey,
        least: Protection,
    ) -> Self {
        Self { inner, identity, server, least }
    }

    fn fail(&self, reason: String) -> LinkError {
        LinkError::Connect { target: self.inner.target(), reason }
    }
}

impl Connector for SecureConnector {
    /// Connects and does the handshake.
    ///
    /// # Errors
    /// Those of the engine, and [`LinkError::Connect`] where the server refuses, does not have the
    /// key that is expected of it, does not speak this handshake, or does not answer within
    /// `timeout`. Nothing is left behind, and the receiver is not told.
    fn connect(
        &self,
        receiver: Arc<dyn Receiver>,
        timeout: Duration,
    ) -> Result<Arc<dyn Endpoint>, LinkError> {
        let begun = Initiator::begin(&self.identity, &self.server, self.least);
        let (initiator, begin) = begun.map_err(|error| self.fail(error.to_string()))?;
        let deadline = deadline(&*self.inner, timeout);
        let ear = Arc::new(Ear {
            receiver,
            server: self.server,
            least: self.least,
            handshake: Mutex::new(Handshake::Begun(Box::new(initiator))),
            secured: OnceLock::new(),
            endpoint: OnceLock::new(),
            ended: AtomicBool::new(false),
        });
        let endpoint = self.inner.connect(Arc::<Ear>::clone(&ear), timeout)?;
        let _ = ear.endpoint.set(Arc::downgrade(&endpoint));
        let asked = converse(&*self.inner, &*endpoint, &begin, deadline, || ear.outcome());
        match asked {
            Ok(secured) => {
                endpoint.prove(&secured.established.secret);
                Ok(Arc::new(SecureEndpoint::new(endpoint, secured)))
            }
            Err(reason) => {
                endpoint.close();
                Err(self.fail(reason))
            }
        }
    }

    fn target(&self) -> String {
        self.inner.target()
    }

    fn now(&self) -> Instant {
        self.inner.now()
    }
}

/// Asks the server that `connector` reaches for its public key. Whether the answer is the server's
/// nobody can tell but who knows the key: have someone look at it.
///
/// # Errors
/// Those of the engine, and [`LinkError::Connect`] where the server does not tell, or not within
/// `timeout`. Nothing is left behind.
pub fn ask_key(connector: &dyn Connector, timeout: Duration) -> Result<PublicKey, LinkError> {
    let deadline = deadline(connector, timeout);
    let first = Arc::new(First::default());
    let endpoint = connector.connect(Arc::<First>::clone(&first), timeout)?;
    let answer = converse(connector, &*endpoint, &ask(), deadline, || lock(&first.0).take());
    endpoint.close();
    let key = answer.and_then(|answer| asked(&answer).map_err(|error| explain(&error)));
    key.map_err(|reason| LinkError::Connect { target: connector.target(), reason })
}

fn deadline(connector: &dyn Connector, timeout: Duration) -> Instant {
    let now = connector.now();
    now.checked_add(timeout).unwrap_or(now + LONG)
}

/// Sends a packet and waits for what comes of it. The error says why nothing did.
fn converse<T>(
    connector: &dyn Connector,
    endpoint: &dyn Endpoint,
    packet: &[u8],
    deadline: Instant,
    mut outcome: impl FnMut() -> Option<Result<T, String>>,
) -> Result<T, String> {
    endpoint.send(packet, &[]).map_err(|error| lost(&error))?;
    loop {
        // First, lest time pass between finding nothing and looking at the clock.
        let left = deadline.saturating_duration_since(connector.now());
        if let Some(outcome) = outcome() {
            return outcome;
        }
        if left.is_zero() {
            return Err("the server did not answer the handshake in time".to_owned());
        }
        endpoint.drive(MESSAGES, left);
    }
}

fn lost(error: &LinkError) -> String {
    format!(
        "no answer to the handshake ({error}): \
         the server may be of another version, or without an identity"
    )
}

/// What to make of a handshake that came to nothing.
fn explain(error: &HandshakeError) -> String {
    match error {
        HandshakeError::Refused(why) => format!("the server refuses: {why}"),
        HandshakeError::Version(theirs) => format!(
            "the server speaks version {theirs} of the handshake, and this client version \
             {VERSION}: update the older one"
        ),
        HandshakeError::Malformed(_) => format!("the server does not speak the handshake: {error}"),
        HandshakeError::Mismatch(_) | HandshakeError::Random(_) => error.to_string(),
    }
}

/// Takes the server's answer. The error says what to do about it.
fn conclude(
    initiator: Initiator,
    answer: &[u8],
    server: &PublicKey,
    least: Protection,
) -> Result<Arc<Secured>, String> {
    let wrong = |but: &str| {
        format!(
            "the server does not have the key {server} that is expected of it{but}; if it was \
             reinstalled, remove it from known_servers"
        )
    };
    let error = match initiator.finish(answer) {
        Ok((channel, secret)) => {
            let established = Arc::new(Established::new(*server, least, secret));
            return Ok(Arc::new(Secured { channel, established }));
        }
        Err(error) => error,
    };
    // A server that cannot make sense of the handshake tells its key.
    Err(match (asked(answer), error) {
        (Ok(key), _) if key == *server => {
            "the handshake was changed on its way to the server".to_owned()
        }
        (Ok(key), _) => wrong(&format!(", but {key}")),
        (Err(_), HandshakeError::Mismatch(_)) => wrong(""),
        (Err(_), error) => explain(&error),
    })
}

/// Keeps the first thing that happens.
#[derive(Default)]
struct First(Mutex<Option<Result<Vec<u8>, String>>>);

impl Receiver for First {
    fn message(&self, head: &[u8], _: &[u8]) {
        lock(&self.0).get_or_insert_with(|| Ok(head.to_vec()));
    }

    fn closed(&self, error: LinkError) {
        lock(&self.0).get_or_insert_with(|| Err(lost(&error)));
    }
}

/// How far the handshake has come.
enum Handshake {
    Begun(Box<Initiator>),
    Failed(String),
    Done,
}

/// Opens what arrives, for the receiver.
struct Ear {
    receiver: Arc<dyn Receiver>,
    server: PublicKey,
    least: Protection,
    handshake: Mutex<Handshake>,
    secured: OnceLock<Arc<Secured>>,
    endpoint: OnceLock<Weak<dyn Endpoint>>,
    /// The receiver has been told of the end.
    ended: AtomicBool,
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ear").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Ear {
    /// What came of the handshake, if anything has.
    fn outcome(&self) -> Option<Result<Arc<Secured>, String>> {
        match (self.secured.get(), &*lock(&self.handshake)) {
            (Some(secured), _) => Some(Ok(Arc::clone(secured))),
            (None, Handshake::Failed(why)) => Some(Err(why.clone())),
            (None, Handshake::Begun(_) | Handshake::Done) => None,
        }
    }

    /// Ends the handshake, if it is under way.
    fn conclude(&self, how: impl FnOnce(Initiator) -> Result<Arc<Secured>, String>) {
        let mut handshake = lock(&self.handshake);
        *handshake = match std::mem::replace(&mut *handshake, Handshake::Done) {
            Handshake::Begun(initiator) => match how(*initiator) {
                Ok(secured) => {
                    let _ = self.secured.set(secured);
                    Handshake::Done
                }
                Err(why) => Handshake::Failed(why),
            },
            over => over,
        };
    }

    /// Something came that the server did not send next.
    fn break_off(&self, reason: String) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let endpoint = self.endpoint.get().and_then(Weak::upgrade);
        let peer = endpoint.as_ref().map_or_else(|| "the server".to_owned(), |e| e.peer());
        // First, so that no one-sided read succeeds once the receiver knows.
        if let Some(endpoint) = endpoint {
            endpoint.close();
        }
        self.receiver.closed(LinkError::Protocol { peer, reason });
    }
}

impl Receiver for Ear {
    fn message(&self, head: &[u8], data: &[u8]) {
        let Some(secured) = self.secured.get() else {
            return self.conclude(|initiator| conclude(initiator, head, &self.server, self.least));
        };
        scratch::with(|plain| match secured.channel.open(head, plain) {
            Ok(()) => self.receiver.message(plain, data),
            Err(broken) => self.break_off(broken.to_string()),
        });
    }

    fn closed(&self, error: LinkError) {
        if self.secured.get().is_none() {
            self.conclude(|_| Err(lost(&error)));
        } else if !self.ended.swap(true, Ordering::AcqRel) {
            self.receiver.closed(error);
        }
    }
}
