//! Why an operation was not done.

use crate::trust::TrustError;
use dafs_proto::{Op, Status};
use ordma::LinkError;
use std::time::Duration;

/// The result of a client operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was not done. [`Error::errno`] gives what an application of the file system
/// interface expects; the text says what was tried, to what, and what went wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The server refused. Nothing was changed, unless the message says so.
    #[error("{op} {what}: {status}{}", detail(message))]
    Status {
        /// The operation.
        op: Op,
        /// The server's status.
        status: Status,
        /// The server's explanation; may be empty.
        message: String,
        /// What the operation was about: a path, a name, a range.
        what: String,
    },
    /// No connection could be made. Nothing was changed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The server could not be reached for the configured time; the operation was either not begun
    /// or can be repeated without harm.
    #[error("gave up on {target} after {} s: {reason}", waited.as_secs_f32())]
    Timeout {
        /// The server.
        target: String,
        /// How long it was tried.
        waited: Duration,
        /// What the last attempt said.
        reason: String,
    },
    /// The server sent what the protocol does not allow. The connection was closed.
    #[error("{peer} broke the protocol: {reason}")]
    Protocol {
        /// The server.
        peer: String,
        /// How.
        reason: String,
    },
    /// The caller asked for something that cannot be. Nothing was sent.
    #[error("{0}")]
    InvalidArgument(String),
    /// The file is not open for this. Nothing was sent.
    #[error("{what} is not open for {access}")]
    Access {
        /// The file.
        what: String,
        /// `reading` or `writing`.
        access: &'static str,
    },
    /// The session was lost after the request had been sent and before its reply came, and doing
    /// it again could do harm: it may or may not have been done.
    #[error(
        "{op} {what}: the session was lost before the reply came; whether it was done is unknown"
    )]
    OutcomeUnknown {
        /// The operation.
        op: Op,
        /// What it was about.
        what: String,
    },
    /// Client and server do not know each other. Nothing was changed.
    #[error(transparent)]
    Trust(Box<TrustError>),
    /// The connection does not give the protection that was asked for. Nothing was sent.
    #[error("{0}")]
    Protection(String),
    /// The client was closed.
    #[error("the client of {0} is closed")]
    Closed(String),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// Linux's error numbers, as far as errors of the client itself need them.
mod errno {
    pub(super) const EIO: i32 = 5;
    pub(super) const EBADF: i32 = 9;
    pub(super) const EACCES: i32 = 13;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EPROTO: i32 = 71;
    pub(super) const ESHUTDOWN: i32 = 108;
    pub(super) const ETIMEDOUT: i32 = 110;
    pub(super) const EHOSTUNREACH: i32 = 113;
}

impl Error {
    /// The Linux error number; never 0.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Status { status, .. } => match status.errno() {
                0 => errno::EIO,
                number => number,
            },
            Self::Link(
                LinkError::Connect { .. }
                | LinkError::Listen { .. }
                | LinkError::Lost { .. }
                | LinkError::Closed(_),
            ) => errno::EHOSTUNREACH,
            Self::Link(LinkError::Protocol { .. }) | Self::Protocol { .. } => errno::EPROTO,
            Self::Timeout { .. } => errno::ETIMEDOUT,
            Self::InvalidArgument(_) => errno::EINVAL,
            Self::Access { .. } => errno::EBADF,
            Self::OutcomeUnknown { .. } => errno::EIO,
            Self::Trust(_) | Self::Protection(_) => errno::EACCES,
            Self::Closed(_) => errno::ESHUTDOWN,
        }
    }

    /// The server's status, where it was the server that refused.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl From<TrustError> for Error {
    fn from(error: TrustError) -> Self {
        Self::Trust(Box::new(error))
    }
}

impl From<Error> for std::io::Error {
    /// Keeps the error as the source: its text and kind stay visible.
    fn from(error: Error) -> Self {
        let kind = std::io::Error::from_raw_os_error(error.errno()).kind();
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_tried_and_has_its_errno() {
        let error = Error::Status {
            op: Op::Unlink,
            status: Status::NoEntry,
            message: "gone since yesterday".into(),
            what: "\"a/b\"".into(),
        };
        assert_eq!(
            error.to_string(),
            "UNLINK \"a/b\": no such file or directory (gone since yesterday)"
        );
        assert_eq!(error.errno(), 2);
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotFound);
    }
}
