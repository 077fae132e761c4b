//! The door: accepts connections and hears what each one wants.

use super::guests;
use super::hello::{BadHello, CLIENT_LEN, ClientHello, ServerHello, may_become_hello};
use super::io;
use super::server::{Counted, Server};
use crate::complaints;
use crate::party::Party;
use crate::reactor::{Room, Source, Step};
use dafs_keys::secret;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections accepted before others get their turn.
const AT_ONCE: usize = 64;
/// How long no connection is accepted where the process has no descriptors left.
const BREATHER: Duration = Duration::from_millis(100);

/// Sends a few bytes on a connection that has just begun: its buffer is empty, so they fit.
pub(crate) fn say(socket: &OwnedFd, bytes: &[u8]) {
    // Where it fails the connection is gone, as the event loop will learn.
    let _ = io::send(socket.as_fd(), &[IoSlice::new(bytes)]);
}

/// The listening socket.
pub(crate) struct Door {
    listener: OwnedFd,
    server: Arc<Server>,
    complaints: Complaints,
}

impl Door {
    pub(crate) fn new(listener: OwnedFd, server: Arc<Server>) -> Self {
        Self { listener, server, complaints: Complaints::default() }
    }

    fn welcome(&mut self, socket: OwnedFd, room: &Room<'_>) {
        let Some(counted) = self.server.count() else {
            say(&socket, &ServerHello::Full.encode());
            let most = self.server.settings.max_connections;
            self.complaints.say(|| format!("more than {most} connections"));
            return;
        };
        self.server.side().prepare(&socket);
        let socket = Arc::new(socket);
        let party = Party::of_peer(&self.server.side().peer(&socket));
        room.reactor.adopt(Box::new(Guest {
            _guest: self.server.guests.add(party, &socket),
            socket,
            server: Arc::clone(&self.server),
            counted: Some(counted),
            hello: [0; CLIENT_LEN],
            len: 0,
        }));
    }
}

impl Source for Door {
    fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn readable(&mut self, room: &mut Room<'_>) -> Step {
        for _ in 0..AT_ONCE {
            match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) => self.welcome(socket, room),
                Err(Errno::AGAIN) => break,
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                    self.complaints.say(|| format!("cannot accept connections: {error}"));
                    room.registration().interest(self.listener.as_fd(), false, false);
                    room.wake_at(Instant::now() + BREATHER);
                    break;
                }
                // All others concern the one connection that failed.
                Err(error) => tracing::debug!(%error, "a connection was not accepted"),
            }
        }
        Step::Idle
    }

    fn expired(&mut self, room: &mut Room<'_>) -> Step {
        room.registration().interest(self.listener.as_fd(), true, false);
        Step::Idle
    }

    fn end(&mut self, _stopping: bool) {}
}

/// A connection that has not said what it wants.
struct Guest {
    socket: Arc<OwnedFd>,
    server: Arc<Server>,
    counted: Option<Counted>,
    /// Among those that have not said what they want.
    _guest: guests::Counted,
    hello: [u8; CLIENT_LEN],
    len: usize,
}

impl Guest {
    fn refuse(&self, reason: impl std::fmt::Display) -> Step {
        let peer = self.server.side().peer(&self.socket);
        let engine = self.server.capabilities.engine;
        if let Some(untold) = complaints::take("connection refused", &peer) {
            tracing::info!(engine, peer, %reason, untold, "connection refused");
        }
        Step::Close
    }

    fn heard(&mut self) -> Step {
        let hello = match ClientHello::decode(&self.hello) {
            Ok(hello) => hello,
            Err(error) => {
                if let BadHello::Version(_) = error {
                    say(&self.socket, &ServerHello::OtherVersion.encode());
                }
                return self.refuse(error);
            }
        };
        let Some(counted) = self.counted.take() else { return Step::Close };
        let socket = Arc::clone(&self.socket);
        match hello {
            ClientHello::Messages => {
                if let Err(error) = self.server.link(socket, counted) {
                    return self.refuse(error);
                }
            }
            ClientHello::Second(ticket) => {
                let nonce = match secret::random() {
                    Ok(nonce) => nonce,
                    Err(error) => return self.refuse(error),
                };
                let attached = self.server.redeem(&ticket).is_some_and(|link| {
                    self.server.side().attach(&self.server, link, socket, counted, nonce)
                });
                if !attached {
                    say(&self.socket, &ServerHello::UnknownTicket.encode());
                    return self.refuse("no session has the ticket that it names");
                }
            }
        }
        Step::Close
    }
}

impl Source for Guest {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn begin(&mut self, room: &mut Room<'_>) -> Step {
        room.wake_at(Instant::now() + self.server.settings.patience);
        Step::Idle
    }

    fn readable(&mut self, _room: &mut Room<'_>) -> Step {
        match io::receive(self.socket.as_fd(), &mut self.hello[self.len..]) {
            Ok(None) => Step::Idle,
            Ok(Some(0)) if self.len == 0 => Step::Close,
            Ok(Some(0)) => self.refuse("it closed within its hello"),
            Err(error) => self.refuse(error),
            Ok(Some(n)) => {
                self.len += n;
                if !may_become_hello(&self.hello[..self.len]) {
                    return self.refuse(BadHello::Magic);
                }
                if self.len == CLIENT_LEN { self.heard() } else { Step::Idle }
            }
        }
    }

    fn expired(&mut self, _room: &mut Room<'_>) -> Step {
        let patience = self.server.settings.patience;
        let len = self.len;
        self.refuse(format_args!("{len} of {CLIENT_LEN} bytes of a hello within {patience:?}"))
    }

    fn end(&mut self, _stopping: bool) {}
}

/// Complaints about what others cause, at most one a second.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    more: u64,
}

impl Complaints {
    fn say(&mut self, what: impl FnOnce() -> String) {
        if self.last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            self.more += 1;
            return;
        }
        tracing::warn!(unreported = self.more, "{}", what());
        (self.last, self.more) = (Some(Instant::now()), 0);
    }
}
