//! What the client's sides of all engines with real connections share: the attempt to connect, who
//! drives, and the end.

use crate::engine::{Endpoint, Interest, LinkError, Receiver};
use crate::lock;
use crate::region::Segment;
use crate::turn::{LANES, Lane, Lanes, MESSAGES, READS, Turn};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Connects to `target` within `timeout`, by what `connect` does until a deadline or says why not.
pub(crate) fn connect_by<E: Endpoint + 'static>(
    target: &str,
    timeout: Duration,
    connect: impl FnOnce(Instant) -> Result<E, String>,
) -> Result<Arc<dyn Endpoint>, LinkError> {
    let now = Instant::now();
    // A timeout beyond what the clock can tell is none.
    let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86400));
    match connect(deadline) {
        Ok(endpoint) => Ok(Arc::new(endpoint)),
        Err(reason) => Err(LinkError::Connect { target: target.to_owned(), reason }),
    }
}

/// The lane of messages.
pub(crate) trait MessageLane: Lane + fmt::Debug {
    /// A message on its way out.
    type Outgoing<'a>;
    /// Begins a message. The error says that it is too long.
    fn outgoing<'a>(
        &self,
        head: &'a [u8],
        data: &'a [Segment],
    ) -> Result<Self::Outgoing<'a>, LinkError>;
    /// Sends as much of a message as goes, without blocking; whether all of it has gone.
    fn send(&self, message: &mut Self::Outgoing<'_>) -> Result<bool, LinkError>;
    /// Waits for a while, until more of a message may go.
    fn wait(&self, turn: &Turn) -> Result<(), LinkError>;
    /// Ends the connection.
    fn shut_down(&self);
    /// The connection is lost for this reason.
    fn lost(&self, reason: &dyn fmt::Display) -> LinkError;
}

/// The one-sided connection of a client, where it has one that is driven.
pub(crate) trait ReadLane: Lane {
    /// The connection is lost: every read under way and to come faults.
    fn lose(&self);
}

/// A client's connection.
pub(crate) struct Core<M> {
    pub(crate) rpc: M,
    reads: Option<Arc<dyn ReadLane>>,
    turn: Turn,
    receiver: Arc<dyn Receiver>,
    dead: AtomicBool,
    lost: Mutex<Option<LinkError>>,
    told: AtomicBool,
}

impl<M: MessageLane> fmt::Debug for Core<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("rpc", &self.rpc).finish_non_exhaustive()
    }
}

impl<M: MessageLane> Core<M> {
    pub(crate) fn new(
        rpc: M,
        reads: Option<Arc<dyn ReadLane>>,
        receiver: Arc<dyn Receiver>,
        spin: Duration,
    ) -> std::io::Result<Self> {
        Ok(Self {
            rpc,
            reads,
            turn: Turn::new(spin)?,
            receiver,
            dead: AtomicBool::new(false),
            lost: Mutex::default(),
            told: AtomicBool::new(false),
        })
    }

    /// Whether the connection is lost.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    fn reason(&self) -> Option<LinkError> {
        lock(&self.lost).clone()
    }

    /// The connection is lost, for the first reason that is given. The receiver is told by who
    /// drives next.
    pub(crate) fn lose(&self, error: LinkError) {
        lock(&self.lost).get_or_insert(error);
        if self.dead.swap(true, Ordering::AcqRel) {
            return;
        }
        self.rpc.shut_down();
        if let Some(reads) = &self.reads {
            reads.lose();
        }
        self.turn.interrupt();
    }

    /// Tells the receiver of the end, once.
    fn tell(&self) {
        if let Some(error) = self.reason()
            && !self.told.swap(true, Ordering::AcqRel)
        {
            self.receiver.closed(error);
        }
    }

    pub(crate) fn send(&self, head: &[u8], data: &[Segment]) -> Result<(), LinkError> {
        let mut message = self.rpc.outgoing(head, data)?;
        loop {
            if self.is_dead() {
                let unknown = || self.rpc.lost(&"no reason was given");
                return Err(self.reason().unwrap_or_else(unknown));
            }
            let result = match self.rpc.send(&mut message) {
                Ok(true) => break,
                Ok(false) => self.rpc.wait(&self.turn),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                self.lose(error.clone());
                return Err(self.reason().unwrap_or(error));
            }
        }
        if self.rpc.wants_to_write() {
            self.turn.nudge(MESSAGES);
        }
        Ok(())
    }

    /// The leader of the one-sided connection has something to send.
    pub(crate) fn nudge_reads(&self) {
        self.turn.nudge(READS);
    }

    pub(crate) fn drive(&self, interest: Interest, timeout: Duration) {
        if !self.is_dead() {
            let reads = self.reads.as_deref().map(|reads| reads as &dyn Lane);
            let lanes: Lanes<'_> = [Some(&self.rpc), reads];
            let mut wanted: [bool; LANES] = [interest.messages, interest.reads];
            if reads.is_none() || wanted == [false; LANES] {
                // The end of the connection is of interest in any case.
                wanted = [true, false];
            }
            if let Err(error) = self.turn.drive(lanes, wanted, timeout) {
                self.lose(error);
            }
        }
        if self.is_dead() {
            self.tell();
        }
    }

    pub(crate) fn interrupt(&self) {
        self.turn.interrupt();
    }

    pub(crate) fn close(&self) {
        self.abandon();
        self.tell();
    }

    /// Closes where no one is left to be told.
    pub(crate) fn abandon(&self) {
        self.lose(LinkError::Closed("closed by this side".to_owned()));
    }
}
