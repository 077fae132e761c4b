//! What the clients of all stream engines share: the first connection, the order of those who
//! drive, and the end.

use super::hello::{BadHello, CLIENT_LEN, ClientHello, SERVER_LEN, ServerHello};
use super::rpc::Rpc;
use super::turn::{LANES, Lane, Lanes, MESSAGES, READS, Turn};
use crate::engine::{Interest, LinkError, Receiver};
use crate::region::Segment;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The one-sided connection of a client, where it has one that is driven.
pub(crate) trait ReadLane: Lane {
    /// The connection is lost: every read under way and to come faults.
    fn lose(&self);
}

/// A client's connection.
pub(crate) struct Core {
    pub(crate) rpc: Rpc,
    reads: Option<Arc<dyn ReadLane>>,
    turn: Turn,
    receiver: Arc<dyn Receiver>,
    dead: AtomicBool,
    lost: Mutex<Option<LinkError>>,
    told: AtomicBool,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("rpc", &self.rpc).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn new(
        rpc: Rpc,
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
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The connection is lost, for the first reason that is given. The receiver is told by who
    /// drives next.
    pub(crate) fn lose(&self, error: LinkError) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
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
                let unknown = || self.rpc.lost("no reason was given");
                return Err(self.reason().unwrap_or_else(unknown));
            }
            let result = match self.rpc.send(&mut message) {
                Ok(true) => break,
                Ok(false) => self.turn.drive_writable(&self.rpc),
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

/// Exchanges hellos on a new connection, until `deadline`.
pub(crate) fn greet(
    socket: &OwnedFd,
    hello: ClientHello,
    deadline: Instant,
) -> Result<ServerHello, String> {
    let bytes: [u8; CLIENT_LEN] = hello.encode();
    match rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(CLIENT_LEN) => {}
        Ok(_) => return Err("the connection does not take a hello".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    let mut answer = [0; SERVER_LEN];
    let mut len = 0;
    while len < SERVER_LEN {
        wait_readable(socket, deadline)?;
        match rustix::net::recv(socket, &mut answer[len..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err("the server closed the connection at once".to_owned()),
            Ok((n, _)) => len += n,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    match ServerHello::decode(&answer) {
        Ok(ServerHello::UnknownTicket) => Err("the server does not know the session".to_owned()),
        Ok(ServerHello::Full) => Err("the server has no room for more connections".to_owned()),
        Ok(ServerHello::OtherVersion) => Err(BadHello::Version(0).to_string()),
        Ok(welcome) => Ok(welcome),
        Err(error) => Err(format!("the server does not speak this protocol: {error}")),
    }
}

/// Waits until something has arrived.
pub(crate) fn wait_readable(socket: &OwnedFd, deadline: Instant) -> Result<(), String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("no answer in time".to_owned());
        }
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}
