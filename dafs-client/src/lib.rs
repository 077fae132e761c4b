//! A DAFS client: files of a server, read from the server's memory where that is possible.
//!
//! The server keeps its page cache in memory that clients may read. A [`Client`] holds *references*
//! to pages, which come with the server's replies, and reads a page through its reference without
//! the server's CPU taking part. Where there is no reference, or the page has moved or is changing,
//! it asks the server by RPC, which also brings fresh references.
//!
//! There are two interfaces to the same client. In [`blocking`] the calling thread drives the
//! connection itself, so that no other thread lies on the way to a page. [`Client`] and [`File`]
//! are asynchronous, take buffers and give them back, and need no particular runtime.
//!
//! Client and server recognise each other by their keys, and pages are encrypted, unless less is
//! asked for by name: see [`Protection`] and [`trust`].
//!
//! ```no_run
//! use dafs_client::blocking::Client;
//! use dafs_client::Options;
//!
//! let client = Client::connect("dafs://server/data", Options::default())?;
//! let file = client.open("some/file")?;
//! let mut page = [0; 4096];
//! let report = file.read_at_report(&mut page, 0)?;
//! println!("{} bytes, {} pages one-sidedly", report.bytes, report.ordma);
//! # Ok::<(), dafs_client::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod blocking;
mod client;
mod counters;
pub mod directory;
mod error;
mod file;
mod files;
mod heat;
mod keyring;
mod location;
mod ops;
mod options;
mod read;
mod secure;
mod session;
mod slots;
mod start;
mod sync;
pub mod trust;
mod write;

pub use client::{Client, File};
pub use counters::{ReadReport, Snapshot};
pub use dafs_keys as keys;
pub use dafs_keys::{Protection, PublicKey};
pub use dafs_proto::{
    Attr, Credential, FileType, Op, SetAttr, StatfsReply as Statfs, Status, Time,
};
pub use directory::Replacement;
pub use error::{Error, Result};
pub use location::{DEFAULT_PORT, EngineChoice, Location};
pub use ops::{DirEntry, OpenOptions};
pub use options::{Options, Path, Stability};
pub use ordma;
pub use start::{Connectors, PathChoice};
pub use trust::FirstContact;

/// The README's example, so that it keeps compiling.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct ReadmeExample;
