//! How connections end: severed from outside, closed by either side, given up.
//!
//! Each side ends once, at its own time, by one of the events `ClientLost` and `ServerLost`. A
//! connection is *severed* as soon as both are certain to come.

use super::conn::{Conn, Stage};
use super::core::Call;
use super::event::{Channel, What};
use super::read::Batch;
use super::state::State;
use crate::LinkError;
use std::sync::Arc;
use std::time::Duration;

impl State {
    /// Severs a connection from outside: each side notices in its own time, and what was under way
    /// arrives at a side only if it does so before.
    pub(super) fn sever(&mut self, id: u64, reason: &str) {
        let span = self.faults.latency_max * 2;
        let (client, server) = (self.random(span), self.random(span));
        self.sever_at(id, self.now + client, self.now + server, reason);
    }

    pub(super) fn sever_at(&mut self, id: u64, client: Duration, server: Duration, reason: &str) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.severed = true;
        let to_client = lost(&conn.address, reason);
        let to_server = lost(&super::client_name(&conn.client.name, id), reason);
        self.schedule_local(client, id, What::ClientLost(to_client));
        self.schedule_local(server, id, What::ServerLost(to_server));
    }

    /// The weather may take the connection with the message just sent.
    pub(super) fn risk(&mut self, id: u64) {
        let chance = self.faults.drop_connection;
        if self.chance(chance) && self.conns.get(&id).is_some_and(|conn| !conn.severed) {
            self.sever(id, "the connection was reset");
        }
    }

    /// The client closes the connection.
    pub(super) fn close_client(&mut self, id: u64, error: LinkError) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if !conn.client.is_open() {
            return;
        }
        conn.client.stage = Stage::Closing;
        self.schedule_local(self.now, id, What::ClientLost(error));
        self.hang_up(id, "closed by the client");
    }

    /// Ends the connection towards the server: it takes what was sent before, or only part of it.
    pub(super) fn hang_up(&mut self, id: u64, reason: &str) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let error = lost(&super::client_name(&conn.client.name, id), reason);
        self.end_stream(id, Channel::Up, What::ServerLost(error));
    }

    /// The server closes the connection.
    pub(super) fn close_server(&mut self, id: u64, reason: &str) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let error = lost(&conn.address, "closed by the server");
        let Some(server) = conn.server.as_mut().filter(|server| server.open) else {
            return;
        };
        server.open = false;
        let own = LinkError::Closed(reason.to_owned());
        self.schedule_local(self.now, id, What::ServerLost(own));
        self.end_stream(id, Channel::Down, What::ClientLost(error));
    }

    /// Sends the end of a stream, which may overtake what was sent before it: a reset does.
    fn end_stream(&mut self, id: u64, channel: Channel, end: What) {
        let resets = self.rng.bool();
        let now = self.now;
        let Some(conn) = self.conns.get(&id).filter(|conn| !conn.severed) else {
            return;
        };
        let last = conn.last[channel as usize];
        if resets && last > now {
            let after = self.random(last - now);
            self.schedule_local(now + after, id, end);
        } else {
            self.post(id, channel, end);
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.severed = true;
        }
    }

    /// The client's side is over.
    pub(super) fn client_lost(&mut self, id: u64, error: LinkError) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let client = &mut conn.client;
        match client.stage {
            Stage::Dialling => client.stage = Stage::Refused("the connection was reset".to_owned()),
            Stage::Open | Stage::Closing => {
                client.stage = Stage::Closed;
                client.adverts.clear();
                for batch in std::mem::take(&mut client.batches).into_values() {
                    self.calls.push(batch.end());
                }
                let receiver = Arc::clone(&client.receiver);
                self.calls.push(Box::new(move || receiver.closed(error)));
                let progress = Arc::clone(&client.progress);
                self.calls.push(Box::new(move || progress.end()));
                self.forget(id);
            }
            Stage::Refused(_) | Stage::Closed => {}
        }
    }

    /// The server's side is over.
    pub(super) fn server_lost(&mut self, id: u64, error: LinkError) {
        self.end_server(id, &error, true);
    }

    /// Ends the server's side, with or without its service being told.
    pub(super) fn end_server(&mut self, id: u64, error: &LinkError, tell: bool) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let Some(server) = conn.server.as_mut().filter(|server| !server.told) else {
            return;
        };
        (server.open, server.told) = (false, true);
        let transfers = std::mem::take(&mut server.transfers);
        let (listener, link) = (server.listener, Arc::clone(&server.link));
        let service = Arc::clone(&server.service);
        for pending in transfers.into_values() {
            let error = error.clone();
            self.calls.push(Box::new(move || pending.transfer.complete(Err(error))));
        }
        self.forget_in_retires(listener, id);
        if tell {
            let error = error.clone();
            self.calls.push(Box::new(move || service.closed(&link, &error)));
        } else {
            self.calls.push(Box::new(move || drop((service, link))));
        }
        self.forget(id);
    }

    /// Ends what is awaited on either side, and tells no one else.
    pub(super) fn abandon(&mut self, id: u64, error: &LinkError) {
        if let Some(conn) = self.conns.get_mut(&id) {
            let batches = std::mem::take(&mut conn.client.batches);
            self.calls.extend(batches.into_values().map(Batch::end));
            self.end_server(id, error, false);
        }
    }

    /// Forgets a connection that is over on both sides. What it held may run its owners' code when
    /// dropped, so that is done without the lock.
    pub(super) fn forget(&mut self, id: u64) {
        if self.conns.get(&id).is_some_and(Conn::is_over)
            && let Some(conn) = self.conns.remove(&id)
        {
            let call: Call = Box::new(move || drop(conn));
            self.calls.push(call);
        }
    }
}

pub(super) fn lost(peer: &str, reason: &str) -> LinkError {
    LinkError::Lost { peer: peer.to_owned(), reason: reason.to_owned() }
}
