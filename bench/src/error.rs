//! Why an experiment gave no result.

use dafs_client::ordma::rdma;
use std::io;

/// The result of a part of an experiment.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an experiment gave no result. The text says what was tried and what went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// What was asked for cannot be done here.
    #[error("{0}")]
    Usage(String),
    /// The server did not start, or did not stop as it should.
    #[error("server: {0}")]
    Server(String),
    /// A process of the bench's own ended or said something else than expected.
    #[error("{0}")]
    Peer(String),
    /// An identity or a key could not be made or used, or something sealed did not open.
    #[error("{0}")]
    Keys(String),
    /// The client could not do an operation.
    #[error("{what}: {source}")]
    Client {
        /// The operation.
        what: String,
        /// Why not.
        source: dafs_client::Error,
    },
    /// An RDMA device could not do something.
    #[error("{what}: {source}")]
    Verbs {
        /// What was tried.
        what: String,
        /// What came of it.
        source: rdma::Error,
    },
    /// Operations were served, but not the way that the row is about.
    #[error("row {row}: {reason}")]
    WrongPath {
        /// The row.
        row: String,
        /// What was counted and what was expected.
        reason: String,
    },
    /// Bytes were not those of the file.
    #[error(
        "wrong bytes at offset {offset}: the word there is {found:#018x}, not {expected:#018x}"
    )]
    Content {
        /// Where in the file.
        offset: u64,
        /// What was read.
        found: u64,
        /// What the file holds.
        expected: u64,
    },
    /// A signal asked to end.
    #[error("interrupted")]
    Interrupted,
}

/// Says what was tried when a system call failed.
pub(crate) trait Context<T> {
    /// The error with what was tried.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source: source.into() })
    }
}

impl<T> Context<T> for dafs_client::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Client { what: what(), source })
    }
}

impl<T> Context<T> for rdma::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Verbs { what: what(), source })
    }
}
