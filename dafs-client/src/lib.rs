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
//! ```no_run
//! use dafs_client::blocking::Client;
//! use dafs_client::Options;
//!
//! let client = Client::connect("dafs://server/data?protection=none", Options::default())?;
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
mod heat;
mod location;
mod ops;
mod options;
mod read;
mod session;
mod slots;
mod start;
mod sync;
mod write;

pub use client::{Client, File};
pub use counters::{ReadReport, Snapshot};
pub use dafs_keys as keys;
pub use dafs_proto::{Attr, FileType, Op, SetAttr, StatfsReply as Statfs, Status, Time};
pub use directory::Replacement;
pub use error::{Error, Result};
pub use location::{DEFAULT_PORT, EngineChoice, Location, Protection};
pub use ops::{DirEntry, OpenOptions};
pub use options::{Options, Path, Stability};
pub use ordma;
pub use start::{Connectors, PathChoice};

/// The README's example, so that it keeps compiling.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct ReadmeExample;
