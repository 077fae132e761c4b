//! The handshake and encrypted messages, over any engine.
//!
//! Both sides wrap what the engine gives them. The server puts a [`Gate`] before its [`Service`];
//! clients connect through a [`SecureConnector`]. What is above sees links and endpoints as ever,
//! whose `channel` tells who the peer is.
//!
//! The packets of the handshake, and then the sealed messages, travel as heads of the engine's
//! messages: see [`dafs_keys::handshake`]. Bulk data travels beside them:
//!
//! | what | how it is guarded |
//! |---|---|
//! | data of the client's messages | encrypted under the write key; its seal is in the message |
//! | what the client [offers](crate::Endpoint::offer) | likewise; the seal is in the message that asks for it |
//! | data of the server's messages, and what it places | not here: pages carry their own check |
//! | one-sided reads | not here: see [`ReadAccess`](crate::ReadAccess) |
//!
//! In the channel a message of the client is a byte that tells whether data comes with it, then the
//! data's seal if so, then the head. A message of the server is the head. A message that does not
//! open, or whose data does not, ends the connection and goes no further.
//!
//! A link whose first message is no packet of a handshake is *plain*: everything passes as it is, and
//! `channel` is `None`. Whether that will do is for the service to decide.
//!
//! [`Service`]: crate::Service

mod client;
mod endpoint;
mod gate;
mod greeting;
mod link;
mod message;
mod rate;
mod scratch;
mod stock;

pub use client::{SecureConnector, ask_key};
pub use gate::{Clock, Counts, Gate, Settings};
pub use greeting::Policy;

use crate::engine::Established;
use dafs_keys::Channel;
use std::sync::Arc;

/// Most bytes that the channel adds to a head. The engines' limits leave room for it beyond 64 KiB,
/// so that what passes on a plain link passes on a secure one.
pub const OVERHEAD: usize = 1 << 10;

const _: () = assert!(message::PREFIX + Channel::overhead((64 << 10) + OVERHEAD) <= OVERHEAD);

/// What a side has once the handshake is done.
#[derive(Debug)]
struct Secured {
    channel: Channel,
    established: Arc<Established>,
}
