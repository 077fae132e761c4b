//! A link before it is known who its client is.

use super::Secured;
use crate::engine::Established;
use dafs_keys::handshake::{HandshakeError, Incoming, Responder, ask, is_packet, refusal};
use dafs_keys::{Identity, PublicKey};
use std::sync::Arc;

/// How often a client may ask for the server's key on one link.
const MOST_ASKS: u8 = 4;
/// What a client is told that comes when too many others do.
const BUSY: &str = "busy, try again";

/// Who may connect.
pub trait Policy: Send + Sync {
    /// Whether a client with this key may go on. Called from an engine's thread; must not block.
    /// Nothing shows yet that the client is there: what was recorded once comes here too.
    ///
    /// # Errors
    /// What to tell the client that is refused.
    fn accepts(&self, client: &PublicKey) -> Result<(), String>;
}

impl<F: Fn(&PublicKey) -> Result<(), String> + Send + Sync> Policy for F {
    fn accepts(&self, client: &PublicKey) -> Result<(), String> {
        self(client)
    }
}

/// Where a link stands.
#[derive(Debug)]
pub(super) enum Greeting {
    /// Nothing came but questions for the server's key.
    Fresh { asks: u8 },
    /// The handshake was answered. That its beginning was not a recorded one shows when a message
    /// of the channel opens.
    Answered(Arc<Secured>),
    /// The handshake was refused. The client is left to close, lest the refusal be lost.
    Refused,
}

/// What a message leads to.
#[derive(Debug)]
pub(super) enum Step {
    /// Send this packet.
    Answer(Vec<u8>),
    /// Send this packet, which refuses. The client is told where its key is known.
    Refuse { packet: Vec<u8>, why: String, client: Option<PublicKey> },
    /// The link is plain, and this its first message.
    Plain,
    /// The client is known. The message was opened.
    Secure(Arc<Secured>),
    /// Close the link.
    Close(&'static str),
}

/// What decides.
pub(super) struct Judge<'a> {
    pub(super) identity: &'a Identity,
    pub(super) policy: &'a dyn Policy,
    /// Asked before anything that costs.
    pub(super) has_time: &'a dyn Fn() -> bool,
}

impl Greeting {
    /// A message has come. A message of the channel is opened into `plain`.
    pub(super) fn step(
        &mut self,
        head: &[u8],
        with_data: bool,
        judge: &Judge<'_>,
        plain: &mut Vec<u8>,
    ) -> Step {
        let asks = match self {
            Self::Fresh { asks } => asks,
            Self::Answered(secured) => {
                return match secured.channel.open(head, plain) {
                    Ok(()) => Step::Secure(Arc::clone(secured)),
                    Err(_) => Step::Close("the handshake is not followed by its client's message"),
                };
            }
            Self::Refused => return Step::Close("a message after the handshake was refused"),
        };
        if !is_packet(head) {
            return Step::Plain;
        }
        if with_data {
            return Step::Close("a handshake with data behind it");
        }
        if head == ask() {
            *asks += 1;
            return match judge.own_key(head) {
                Some(packet) if *asks <= MOST_ASKS => Step::Answer(packet),
                _ => Step::Close("asks for the server's key again and again"),
            };
        }
        match judge.begin(head) {
            Ok((packet, secured)) => {
                *self = Self::Answered(secured);
                Step::Answer(packet)
            }
            Err(refused) => {
                *self = Self::Refused;
                refused
            }
        }
    }
}

impl Judge<'_> {
    /// The packet that tells the server's key.
    fn own_key(&self, ask: &[u8]) -> Option<Vec<u8>> {
        match Responder::receive(self.identity, ask) {
            Ok(Incoming::Asked(packet)) => Some(packet),
            _ => None,
        }
    }

    /// A handshake begins: the answer and what follows from it, or the refusal.
    fn begin(&self, packet: &[u8]) -> Result<(Vec<u8>, Arc<Secured>), Step> {
        if !(self.has_time)() {
            return Err(refuse(BUSY.to_owned(), None));
        }
        let responder = match Responder::receive(self.identity, packet) {
            Ok(Incoming::Begun(responder)) => responder,
            Ok(Incoming::Asked(_)) => return Err(refuse("a question too many".to_owned(), None)),
            // The client expects another server here, and is told which one this is.
            Err(HandshakeError::Mismatch(why)) => {
                let own = self.own_key(&ask()).unwrap_or_else(|| refusal(why));
                return Err(Step::Refuse { packet: own, why: why.to_owned(), client: None });
            }
            Err(error) => return Err(refuse(error.to_string(), None)),
        };
        let (client, least) = (responder.client(), responder.least());
        self.policy.accepts(&client).map_err(|why| refuse(why, Some(client)))?;
        let accepted = responder.accept();
        let (answer, channel, secret) =
            accepted.map_err(|error| refuse(error.to_string(), Some(client)))?;
        let established = Arc::new(Established::new(client, least, secret));
        Ok((answer, Arc::new(Secured { channel, established })))
    }
}

fn refuse(why: String, client: Option<PublicKey>) -> Step {
    Step::Refuse { packet: refusal(&why), why, client }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dafs_keys::Protection;
    use dafs_keys::handshake::{Initiator, asked};
    use proptest::prelude::*;
    use std::cell::Cell;

    struct Stage {
        server: Identity,
        client: Identity,
        time: Cell<bool>,
        greeting: Greeting,
    }

    impl Stage {
        fn new() -> Self {
            Self {
                server: Identity::generate().unwrap(),
                client: Identity::generate().unwrap(),
                time: Cell::new(true),
                greeting: Greeting::Fresh { asks: 0 },
            }
        }

        fn step(&mut self, head: &[u8], with_data: bool) -> Step {
            let own = self.client.public();
            let policy = |client: &PublicKey| {
                (*client == own).then_some(()).ok_or_else(|| "never heard of you".to_owned())
            };
            let has_time = || self.time.get();
            let judge = Judge { identity: &self.server, policy: &policy, has_time: &has_time };
            self.greeting.step(head, with_data, &judge, &mut Vec::new())
        }

        fn begin(&self, client: &Identity) -> (Initiator, Vec<u8>) {
            Initiator::begin(client, &self.server.public(), Protection::Keyed).unwrap()
        }
    }

    fn refused(step: Step, initiator: Initiator) -> HandshakeError {
        let Step::Refuse { packet, .. } = step else { panic!("not refused: {step:?}") };
        initiator.finish(&packet).unwrap_err()
    }

    #[test]
    fn a_client_is_known_by_its_first_message() {
        let mut stage = Stage::new();
        let (initiator, begin) = stage.begin(&stage.client);
        let Step::Answer(answer) = stage.step(&begin, false) else { panic!("no answer") };
        let (channel, secret) = initiator.finish(&answer).unwrap();
        let mut sealed = Vec::new();
        channel.seal(b"hello", &mut sealed);
        let Step::Secure(secured) = stage.step(&sealed, false) else { panic!("not secure") };
        assert_eq!(secured.established.peer, stage.client.public());
        assert_eq!(secured.established.least, Protection::Keyed);
        assert_eq!(secured.established.secret.expose(), secret.expose());
    }

    #[test]
    fn one_handshake_a_link_and_a_few_questions() {
        let mut stage = Stage::new();
        for _ in 0..MOST_ASKS {
            let Step::Answer(answer) = stage.step(&ask(), false) else { panic!("no answer") };
            assert_eq!(asked(&answer), Ok(stage.server.public()));
        }
        assert!(matches!(stage.step(&ask(), false), Step::Close(_)));
        let mut stage = Stage::new();
        assert!(matches!(stage.step(&ask(), true), Step::Close(_)), "nothing comes with it");
        let (_, begin) = stage.begin(&stage.client);
        assert!(matches!(stage.step(&begin, false), Step::Answer(_)));
        assert!(matches!(stage.step(&begin, false), Step::Close(_)));
    }

    #[test]
    fn refusals_tell_why() {
        let mut stage = Stage::new();
        let (initiator, begin) = stage.begin(&Identity::generate().unwrap());
        let why = refused(stage.step(&begin, false), initiator);
        assert_eq!(why, HandshakeError::Refused("never heard of you".to_owned()));
        assert!(matches!(stage.step(&begin, false), Step::Close(_)), "one attempt");

        let mut stage = Stage::new();
        stage.time.set(false);
        let (initiator, begin) = stage.begin(&stage.client);
        let why = refused(stage.step(&begin, false), initiator);
        assert_eq!(why, HandshakeError::Refused(BUSY.to_owned()));

        let (mut stage, other) = (Stage::new(), Stage::new());
        let (_, begin) = other.begin(&stage.client);
        let Step::Refuse { packet, .. } = stage.step(&begin, false) else { panic!("accepted") };
        assert_eq!(asked(&packet), Ok(stage.server.public()));
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(messages in prop::collection::vec(
            (any::<bool>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 1..6))
        {
            let mut stage = Stage::new();
            for (packet, with_data, bytes) in messages {
                let start: &[u8] = if packet { &[0x5A, 0xDA] } else { &[] };
                let step = stage.step(&[start, &bytes].concat(), with_data);
                prop_assert!(!matches!(step, Step::Secure(_)));
                prop_assert!(!packet || !matches!(step, Step::Plain));
            }
        }
    }
}
