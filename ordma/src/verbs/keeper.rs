//! The thread that looks after a client's connection while the application is elsewhere: it learns of
//! the connection's end, has a queue pair for READs that failed brought back, and lets go of chunks.

use super::endpoint::Client;
use super::packet::Record;
use crate::client::MessageLane;
use crate::engine::Interest;
use crate::rdma::{EventChannel, EventKind};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked what the server has to say, where nobody waits for messages.
const LOOK: Duration = Duration::from_millis(250);
const MESSAGES: Interest = Interest { messages: true, reads: false };

/// Wakes the keeper.
#[derive(Debug)]
pub(super) struct Kick {
    event: OwnedFd,
    stopped: AtomicBool,
}

impl Kick {
    pub(super) fn new() -> std::io::Result<Arc<Self>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { event, stopped: AtomicBool::new(false) }))
    }

    pub(super) fn kick(&self) {
        // Can only fail where the counter is full, and then the keeper wakes anyway.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Ends the keeper.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.kick();
    }
}

/// Looks after a connection until it ends or the keeper is stopped.
pub(super) fn keep(client: &Client, events: &Arc<EventChannel>, kick: &Kick) {
    while !kick.stopped.load(Ordering::Acquire) && !client.core.is_dead() {
        let wait = match client.reads.rearm(Instant::now()) {
            None => LOOK,
            Some(Err(due)) => due.saturating_duration_since(Instant::now()).min(LOOK),
            Some(Ok(rearm)) => {
                let wire = client.core.rpc.wire();
                wire.record(Record::Rearm(rearm.life, rearm.packet));
                if let Err(error) = wire.flush() {
                    client.core.lose(error);
                }
                LOOK
            }
        };
        sleep(events, kick, wait);
        // Does nothing where someone else waits.
        client.core.drive(MESSAGES, Duration::ZERO);
        loop {
            match events.next() {
                Ok(Some(event)) => match event.kind {
                    EventKind::Disconnected | EventKind::Failed(_) | EventKind::Rejected => {
                        let error = client.core.rpc.lost(&"closed by the server");
                        client.core.lose(error);
                    }
                    _ => {}
                },
                Ok(None) => break,
                Err(error) => {
                    client.core.lose(client.core.rpc.lost(&error));
                    break;
                }
            }
        }
    }
}

fn sleep(events: &EventChannel, kick: &Kick, wait: Duration) {
    let mut fds = [
        PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN),
        PollFd::new(&kick.event, PollFlags::IN),
    ];
    let timeout = Timespec::try_from(wait + Duration::from_micros(500)).ok();
    // Where it is interrupted, it is looked once more than needed.
    let _ = poll(&mut fds, timeout.as_ref());
    let _ = rustix::io::read(&kick.event, &mut [0u8; 8]);
}
