//! What DAFS peers say to each other: messages, the header in front of them, operations, status
//! codes, and the packed lists that some messages carry.
//!
//! A message is a [`Header`] of fixed layout and a body in Protocol Buffers encoding ([`msg`]).
//! Bulk data is no part of it: the transport carries pages and write data beside the message.
//! Every [`Op`] has one request and one reply type, which [`Call`] ties together.
//!
//! The crate does no I/O and holds no state. All input is taken to come from a hostile peer:
//! decoding never panics, and what is wrong gets a named error.

#![forbid(unsafe_code)]

mod bytes;
mod frame;
mod op;
mod refs;
mod status;

/// The messages, generated from `dafs.proto`, whose comments they bear.
pub mod msg {
    // Generated code: fields without a comment of their own are explained by their message.
    #![allow(missing_docs, clippy::all, clippy::pedantic)]

    include!(concat!(env!("OUT_DIR"), "/dafs.v1.rs"));
}

/// Does not show the secret.
impl std::fmt::Debug for msg::FileKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileKey").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

pub use frame::{FrameError, Header, Kind, MAGIC, VERSION, encode_message, encode_message_into};
pub use msg::*;
pub use op::{Call, Op};
pub use refs::{ListError, WireHeat, WireRef};
pub use status::Status;
