//! The server's handle of one client's connection.

use super::core::Core;
use super::event::{Channel, What};
use super::listener::Host;
use super::state::State;
use super::transfer::{Source, Task};
use crate::arena::{Geometry, Slot};
use crate::{Capabilities, Link, LinkError, ReadAccess, Tag, Transfer};
use std::fmt;
use std::sync::Weak;

pub(super) struct SimLink {
    /// Weak: services hold links, and the world holds the services.
    core: Weak<Core>,
    id: u64,
    peer: String,
    geometry: Geometry,
}

impl SimLink {
    pub(super) fn new(core: Weak<Core>, id: u64, peer: String, host: &Host) -> Self {
        Self { core, id, peer, geometry: host.geometry }
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> Option<R> {
        Some(self.core.upgrade()?.with(f))
    }

    fn transfer(&self, task: Task) -> Transfer {
        let begun = self.with(|state| state.begin_transfer(self.id, task)).flatten();
        begun.unwrap_or_else(|| {
            let over = Transfer::new();
            over.complete(Err(LinkError::Lost {
                peer: self.peer.clone(),
                reason: "the connection was over before the transfer began".to_owned(),
            }));
            over
        })
    }
}

impl Link for SimLink {
    fn id(&self) -> u64 {
        self.id
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn capabilities(&self) -> Capabilities {
        super::capabilities(Some(self.geometry))
    }

    fn send(&self, head: &[u8], data: &[u8]) {
        self.with(|state| state.send_down(self.id, head, data));
    }

    fn write_to(&self, tag: Tag, data: Vec<u8>) -> Transfer {
        self.transfer(Task::Place(tag, Source::Bytes(data)))
    }

    fn place_slots(&self, tag: Tag, slots: &[Slot]) -> Transfer {
        self.transfer(Task::Place(tag, Source::Slots(slots.to_vec())))
    }

    fn read_from(&self, tag: Tag, offset: u64, buffer: Vec<u8>) -> Transfer {
        self.transfer(Task::Fetch(tag, offset, buffer))
    }

    fn allow_reads(&self, access: Option<ReadAccess>) {
        self.with(|state| state.allow_reads(self.id, access.is_some()));
    }

    fn close(&self, reason: &str) {
        self.with(|state| state.close_server(self.id, reason));
    }
}

impl State {
    fn send_down(&mut self, id: u64, head: &[u8], data: &[u8]) {
        let limit = self.faults.queue_limit;
        let Some(conn) = self.conns.get(&id).filter(|conn| conn.server_open()) else {
            return;
        };
        if let Err(reason) = super::LIMITS.check(head.len(), data.len()) {
            return self.close_server(id, &reason);
        }
        if conn.queued.saturating_add(head.len() + data.len()) > limit {
            let what = format!("the client does not take its replies: {limit} bytes wait for it");
            return self.close_server(id, &what);
        }
        let what = What::ToClient { head: head.to_vec(), data: data.to_vec() };
        self.post(id, Channel::Down, what);
        self.risk(id);
    }

    /// Lets a link's reads pass, or refuses those that reach the slots from now on.
    pub(super) fn allow_reads(&mut self, id: u64, allow: bool) {
        if let Some(server) = self.conns.get_mut(&id).and_then(|conn| conn.server.as_mut()) {
            server.may_read = allow;
        }
    }
}

impl fmt::Debug for SimLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sim link to {}", self.peer)
    }
}
