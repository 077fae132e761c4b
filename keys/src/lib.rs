//! Who may read which page: identities, the handshake, and the keys that guard pages.
//!
//! | module | what it holds |
//! |---|---|
//! | [`Protection`] | the levels: `none`, `keyed`, `sealed` |
//! | [`identity`] | key pairs of servers and clients, and their files |
//! | [`handshake`] | how the two sides of a connection recognise each other, and the channel after it |
//! | [`secret`] | secrets and how one is derived from another |
//! | [`page`] | closing and opening pages |
//! | [`tags`] | tags of one-sided requests and of pages on the wire, at `keyed` |
//! | [`data`] | write data on the wire |
//! | [`handle`] | handles that cannot be made up |
//! | [`window`] | which numbers have been seen |
//!
//! # The derivation tree
//!
//! `mac(key, label, context)` is HMAC-SHA256 under `key` over the label, a zero byte, and the
//! context: numbers as 8 little-endian bytes, byte strings as they are.
//!
//! | key | derived from | label | context |
//! |---|---|---|---|
//! | page key | secret of the boot | `dafs page key` | file's epoch, file |
//! | read key | secret of the session | `dafs read key` | file's epoch, file |
//! | request tag | read key | `dafs request` | connection's nonce, then the request's fields |
//! | second connection's proof | secret of the connection | `dafs second connection` | connection's nonce |
//! | reply key | secret of the connection | `dafs one-sided reply` | connection's nonce |
//! | page tag key | secret of the connection | `dafs page tag` | |
//! | write key | secret of the connection | `dafs write data` | |
//! | handle key | secret of the server's state | `dafs handle` | id of the export |
//! | handle's check | handle key | `dafs handle check` | the handle |
//!
//! The secrets of the boot, of a session and of a connection are 32 random bytes each that never
//! leave memory, but for the connection's, which the second message of the handshake brings to the
//! client. The secret of the server's state lies in its state directory. Checks and tags are the
//! first 16 bytes of their MAC, but those of pages, which are AES-256-GCM's.

#![forbid(unsafe_code)]

mod aead;
mod check;
pub mod data;
pub mod handle;
pub mod handshake;
pub mod identity;
pub mod page;
mod protection;
pub mod secret;
pub mod shown;
pub mod tags;
pub mod window;

pub use check::{CHECK_LEN, clear_check};
pub use data::{Seal, WriteKey};
pub use handle::HandleKey;
pub use handshake::Channel;
pub use identity::{Identity, PublicKey};
pub use page::{FileKey, PageKey};
pub use protection::{Protection, UnknownProtection};
pub use secret::{NoRandom, Secret};
pub use tags::{PageTagKey, ReadKey, ReplyKey};
pub use window::ReplayWindow;
