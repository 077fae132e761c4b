//! From a message to its operation, and from the operation to its reply.

mod job;

use crate::counters::count;
use crate::live::{Admission, LiveSession, Message};
use crate::ops::{self, OpContext, OpError};
use crate::reply_cache::{Arrival, Begin, Ticket};
use crate::server::{BindError, Server};
use crate::turns::Whose;
use dafs_keys::shown::{shown, shown_within};
use dafs_proto::{ErrorReply, FrameError, Header, Kind, Op, Status, encode_message};
use job::{Job, Panicked, caught, execute, panicked};
use ordma::{Link, LinkError, Party, Service, complaints};
use prost::Message as _;
use std::sync::Arc;

/// The slot number of CONNECT, which belongs to no slot.
const NO_SLOT: u16 = 0xFFFF;
/// Longest error message that a client is sent.
const MAX_ERROR: usize = 1024;
/// The server, as engines see it.
#[derive(Debug)]
pub struct Dispatcher {
    server: Arc<Server>,
}

impl Dispatcher {
    /// What the engines of `server` call.
    #[must_use]
    pub fn new(server: Arc<Server>) -> Arc<Self> {
        Arc::new(Self { server })
    }

    fn malformed(&self, link: &Arc<dyn Link>, what: &str) {
        count(&self.server.counters().malformed);
        let peer = link.peer();
        if let Some(untold) = complaints::take("malformed", &peer) {
            tracing::warn!(peer, what = shown(what), untold, "closing the connection");
        }
        link.close(what);
    }
}

impl Service for Dispatcher {
    fn connected(&self, link: Arc<dyn Link>) {
        tracing::debug!(peer = link.peer(), link = link.id(), "connected");
        self.server.add_link(link);
    }

    fn message(&self, link: &Arc<dyn Link>, head: &[u8], data: &[u8]) {
        match Header::decode(head) {
            Ok((header, body)) if header.kind == Kind::Request => {
                self.request(link, header, body, data);
            }
            Ok(_) => self.malformed(link, "a client sends requests only"),
            Err(FrameError::Op(_)) => self.unknown_operation(link, head),
            Err(error) => self.malformed(link, &error.to_string()),
        }
    }

    fn closed(&self, link: &Arc<dyn Link>, reason: &LinkError) {
        tracing::debug!(peer = link.peer(), link = link.id(), %reason, "connection closed");
        self.server.remove_link(link.id());
    }
}

/// Sends an error that does not come from an operation and is not kept.
fn refuse(link: &Arc<dyn Link>, header: &Header, credits: u16, error: OpError) {
    link.send(&encode_error(header, credits, error), &[]);
}

fn encode_error(header: &Header, credits: u16, error: OpError) -> Message {
    // Names and texts of the client's may be part of it.
    let message = shown_within(&error.message, MAX_ERROR);
    encode_message(Header::reply(header, error.status, credits), &ErrorReply { message })
}

impl Dispatcher {
    /// A client of a later version, perhaps: the request is answered, and takes its number.
    fn unknown_operation(&self, link: &Arc<dyn Link>, head: &[u8]) {
        /// Where the header has the operation's number.
        const OP: std::ops::Range<usize> = 4..6;
        let mut known = head.to_vec();
        // Any operation that may be executed twice will do: nothing is executed.
        known[OP].copy_from_slice(&Op::Stats.number().to_le_bytes());
        let Ok((header, _)) = Header::decode(&known) else {
            return self.malformed(link, "neither the operation nor the header is known");
        };
        count(&self.server.counters().malformed);
        let Some((ticket, session, credits)) = self.admit(link, &header) else {
            return;
        };
        session.finish(&ticket, None, link);
        let number = u16::from_le_bytes([head[OP.start], head[OP.start + 1]]);
        let what = format!("there is no operation {number} in this version of the server");
        let mut reply =
            encode_error(&header, credits, OpError::new(Status::UnknownOperation, what));
        reply[OP].copy_from_slice(&number.to_le_bytes());
        link.send(&reply, &[]);
    }

    fn request(&self, link: &Arc<dyn Link>, header: Header, body: &[u8], data: &[u8]) {
        if header.op == Op::Connect {
            return self.connect(link, header, body);
        }
        let server = &self.server;
        let is_write = header.op == Op::Write;
        // Data that no operation asked for is not carried along.
        let data = if is_write { data } else { &[] };
        let limit = server.limits().max_inline as usize;
        let Some((ticket, session, credits)) = self.admit(link, &header) else {
            return;
        };
        let begun = if data.len() > limit {
            let what = format!("{} bytes of inline data, where {limit} are allowed", data.len());
            Err(OpError::new(Status::MessageTooBig, what))
        } else {
            server.begin_request(session.party(), data.len())
        };
        let running = match begun {
            Ok(running) => running,
            Err(error) => {
                session.abandon(&ticket);
                return refuse(link, &header, credits, error);
            }
        };
        server.counters().request(header.op);
        let cx = OpContext {
            server: Arc::clone(server),
            session,
            link: Arc::clone(link),
            slot: ticket.slot(),
            data: data.to_vec(),
        };
        execute(Job { cx, header, ticket, credits, replied: false, _running: running }, body);
    }

    /// Asks the session's slots what to do with a request, and does all but execute it.
    fn admit(
        &self,
        link: &Arc<dyn Link>,
        header: &Header,
    ) -> Option<(Ticket, Arc<LiveSession>, u16)> {
        let server = &self.server;
        let arrival = Arrival {
            slot: header.slot,
            sequence: header.sequence,
            link: link.id(),
            idempotent: header.op.is_idempotent(),
        };
        let session = server.session_of(link.id());
        let admission = session.as_ref().map(|session| session.admit(arrival, server.now()));
        let (begin, credits) = match admission {
            Some(Admission::Slots(begin, credits)) => (begin, credits),
            Some(Admission::NotThisLink) | None => {
                let what = "this connection has no session";
                refuse(link, header, 1, OpError::new(Status::BadSession, what));
                return None;
            }
        };
        let error = match begin {
            Begin::Execute(ticket) => return Some((ticket, session?, credits)),
            Begin::InProgress => return None,
            Begin::Replay(reply) => {
                count(&server.counters().replays);
                link.send(&reply, &[]);
                return None;
            }
            Begin::BadSlot => {
                let what = format!("request slot {}, where {credits} are granted", header.slot);
                OpError::new(Status::BadSlot, what)
            }
            Begin::BadSequence(last) => {
                let (slot, sequence) = (header.slot, header.sequence);
                let what = format!("number {sequence} in slot {slot}, whose last one is {last}");
                OpError::new(Status::BadSequence, what)
            }
        };
        refuse(link, header, credits, error);
        None
    }

    fn connect(&self, link: &Arc<dyn Link>, header: Header, body: &[u8]) {
        if let Err(error) = self.server.begin_connect(link.id()) {
            return match error {
                BindError::Link => refuse(link, &header, 1, ops::connect::bind_error(error)),
                _ => self.malformed(link, "a CONNECT before the one before it was answered"),
            };
        }
        let key = link.channel().map(|channel| &channel.peer);
        let party = key.map_or_else(|| Party::of_peer(&link.peer()), Party::of_key);
        let request = dafs_proto::ConnectRequest::decode(body);
        let checked = match request {
            _ if header.slot != NO_SLOT => {
                let what = format!("CONNECT came in slot {}, not {NO_SLOT}", header.slot);
                Err(OpError::new(Status::BadSlot, what))
            }
            Err(error) => Err(OpError::new(Status::BadMessage, format!("CONNECT: {error}"))),
            Ok(request) => self.server.begin_request(party, 0).map(|running| (request, running)),
        };
        let (request, running) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                self.server.end_connect(link.id());
                return refuse(link, &header, 1, error);
            }
        };
        self.server.counters().request(Op::Connect);
        let (server, link) = (Arc::clone(&self.server), Arc::clone(link));
        let whose = Whose { party, session: link.id() };
        self.server.runtime().run_for(whose, async move {
            let result = caught(ops::connect::connect(&server, &link, party, request)).await;
            server.end_connect(link.id());
            match result.unwrap_or_else(|Panicked| Err(panicked(&server, Op::Connect))) {
                Ok(reply) => {
                    let credits = u16::try_from(reply.slots).unwrap_or(u16::MAX).max(1);
                    let header = Header::reply(&header, Status::Ok, credits);
                    link.send(&encode_message(header, &reply), &[]);
                }
                Err(error) => {
                    let peer = link.peer();
                    if let Some(untold) = complaints::take("no session", &peer) {
                        let error = shown(&error.to_string());
                        tracing::warn!(peer, error, untold, "no session");
                    }
                    refuse(&link, &header, 1, error);
                }
            }
            drop(running);
        });
    }
}

#[cfg(test)]
mod tests;
