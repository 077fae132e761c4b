//! What went wrong, as it is told: `dafs: cannot VERB WHAT: WHY; WHAT TO DO`.

use crate::names;
use dafs_client::keys::shown::shown_within;
use dafs_client::ordma::LinkError;
use dafs_client::trust::TrustError;
use dafs_client::{EngineChoice, Error, Location, Op, Status};
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// The result of a subcommand.
pub type Result<T = ()> = std::result::Result<T, Failure>;

/// Why a subcommand, or a part of it, was not done.
#[derive(Debug)]
pub enum Failure {
    /// Something was tried and failed.
    Failed(Box<Report>),
    /// The command line asks for what cannot be.
    Usage(String),
    /// What reads the output has gone; there is nothing to tell and nobody to tell it.
    OutputClosed,
    /// Already told.
    Told,
}

/// A failure, in parts.
#[derive(Debug)]
pub struct Report {
    /// What was tried, such as `read`.
    pub verb: &'static str,
    /// To what.
    pub what: String,
    /// What happened.
    pub why: String,
    /// What to do.
    pub advice: String,
    /// The server is gone, or a disk is full: whatever else is tried fails too.
    pub hopeless: bool,
}

impl Failure {
    /// A failure in the command's own words.
    pub fn new(
        verb: &'static str,
        what: impl fmt::Display,
        why: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let (what, why, advice) = (what.to_string(), why.into(), advice.into());
        Self::Failed(Box::new(Report { verb, what, why, advice, hopeless: false }))
    }

    /// An error of the client.
    pub fn client(verb: &'static str, what: impl fmt::Display, error: &Error) -> Self {
        let (what, why, advice) = (what.to_string(), reason(error), advice(error).to_owned());
        let hopeless = matches!(
            error,
            Error::Link(_)
                | Error::Timeout { .. }
                | Error::Closed(_)
                | Error::Trust(_)
                | Error::Status { status: Status::NoSpace | Status::Quota, .. }
        );
        Self::Failed(Box::new(Report { verb, what, why, advice, hopeless }))
    }

    /// No connection came of a location.
    pub fn connect(location: &Location, error: &Error) -> Self {
        let mut failure = Self::client("connect to", location, error);
        let advice = match location.engine {
            Some(EngineChoice::Shm) => {
                "use --engine tcp, or name the server's socket with --socket"
            }
            Some(EngineChoice::Verbs) => "use --engine tcp, or see what dafs doctor says of verbs",
            _ => return failure,
        };
        if let Self::Failed(report) = &mut failure
            && report.advice == NOT_THERE
        {
            report.advice = advice.into();
        }
        failure
    }

    /// Whether whatever else is tried will fail too.
    pub fn is_hopeless(&self) -> bool {
        matches!(self, Self::Failed(report) if report.hopeless)
    }

    /// An error of the local system about a path.
    pub fn local(verb: &'static str, path: &Path, error: &io::Error) -> Self {
        let (what, why) = (names::show_path(path), local_reason(error));
        let advice = local_advice(error.kind()).to_owned();
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        let hopeless = full.contains(&error.kind());
        Self::Failed(Box::new(Report { verb, what, why, advice, hopeless }))
    }

    /// Tells it, unless that was done, and gives the exit code.
    pub fn tell(&self) -> ExitCode {
        match self {
            Self::Failed(_) => {
                tell(&self.to_string());
                ExitCode::FAILURE
            }
            Self::Usage(_) => {
                tell(&self.to_string());
                ExitCode::from(2)
            }
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Told => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(report) => {
                let Report { verb, what, why, advice, .. } = &**report;
                write!(f, "cannot {verb} {what}: {why}; {advice}")
            }
            Self::Usage(message) => f.write_str(message),
            Self::OutputClosed => f.write_str("the output was closed"),
            Self::Told => f.write_str("see above"),
        }
    }
}

/// Writes a line for people.
pub fn tell(message: &str) {
    use io::Write;
    // Nothing can be done where even this fails.
    _ = writeln!(io::stderr().lock(), "{}", line(message));
}

/// A line for people, with the command's name before it, and with escapes for what a server may have
/// put into it to confuse a terminal.
fn line(message: &str) -> String {
    format!("dafs: {}", shown_within(message, usize::MAX))
}

/// Does something to each of several operands: tells of each failure at once and goes on.
pub fn each<T>(operands: &[T], mut action: impl FnMut(&T) -> Result) -> Result {
    let mut failed = false;
    for operand in operands {
        match action(operand) {
            Ok(()) => {}
            Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
            Err(failure) => {
                if matches!(failure, Failure::Usage(_)) {
                    return Err(failure);
                }
                _ = failure.tell();
                failed = true;
            }
        }
    }
    if failed { Err(Failure::Told) } else { Ok(()) }
}

/// What the local system says, without its error number.
pub fn local_reason(error: &io::Error) -> String {
    without_number(&error.to_string())
}

fn without_number(text: &str) -> String {
    let (text, after) = text.split_once(" (os error").unwrap_or((text, ""));
    let after = after.split_once(')').map_or("", |(_, after)| after);
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_lowercase);
    first.chain(chars).chain(after.chars()).collect()
}

fn reason(error: &Error) -> String {
    match error {
        Error::Status { status, message, .. } if message.is_empty() => status.to_string(),
        Error::Status { status, message, .. } => format!("{status} ({message})"),
        // The target is known already.
        Error::Link(LinkError::Connect { reason, .. }) => without_number(reason),
        _ => error.to_string(),
    }
}

/// What to do where only the server's side can change anything.
const FOR_THE_OPERATOR: &str =
    "tell the server's operator; dafs doctor shows this client's public key";

/// What to do where nobody answers.
const NOT_THERE: &str = "check that dafsd runs on that host and listens at that address";

fn advice(error: &Error) -> &'static str {
    match error {
        Error::Status { op: Op::Connect, status: Status::Access, .. } => FOR_THE_OPERATOR,
        // It is there, and wants no more of this client.
        Error::Link(LinkError::Connect { reason, .. })
            if reason.starts_with("the server refuses: ") =>
        {
            FOR_THE_OPERATOR
        }
        Error::Status { op: Op::Rename | Op::Link, status: Status::CrossDevice, .. } => {
            "copy it with dafs get and dafs put, then remove it"
        }
        Error::Status { status, .. } => status_advice(*status),
        Error::Link(_) | Error::Timeout { .. } => NOT_THERE,
        Error::Protocol { .. } => "check that client and server are of the same version",
        Error::InvalidArgument(_) | Error::Access { .. } => "correct the command",
        Error::OutcomeUnknown { .. } => "look whether it was done, and repeat it if not",
        Error::Trust(error) => trust_advice(error),
        Error::Protection(_) => "add --protection none if every host of the network is trusted",
        Error::Closed(_) => "try again",
    }
}

fn trust_advice(error: &TrustError) -> &'static str {
    match error {
        TrustError::NoHome => "or set HOME",
        TrustError::NoIdentity(_) => "then try again",
        TrustError::Identity(_) => "or name another one with DAFS_IDENTITY",
        TrustError::File { .. } => "check its owner and mode with ls -l",
        TrustError::Untrusted { .. } => {
            "look through it, then see to it that only you can write it"
        }
        TrustError::Line { .. } => "correct or remove the line",
        TrustError::Unknown(_) => {
            "or give the key beforehand with --server-key KEY, or remember it without asking with \
             --accept-new"
        }
        TrustError::Changed { .. } => "do not go on before that is clear",
    }
}

fn status_advice(status: Status) -> &'static str {
    match status {
        Status::NoEntry => "see what is there with dafs ls",
        Status::Access | Status::Permission => {
            "see its owner and mode with dafs ls -l; the server acts as the user that it runs as"
        }
        Status::Exists => "choose another name, or remove what has it with dafs rm",
        Status::NotDirectory => "see what is there with dafs ls -l",
        Status::IsDirectory => "name a file, or add -r where the command has it",
        Status::NotEmpty => "remove what is in it too with dafs rm -r",
        Status::NoSpace | Status::Quota => {
            "make room on the server; dafs df tells how much there is"
        }
        Status::ReadOnly => "export it writable, or use another export",
        Status::NameTooLong | Status::BadName => "choose another name",
        Status::Loop => "look at the symbolic links with dafs ls -l",
        Status::CrossDevice => "export that file system by itself to work with it",
        Status::NoExport => {
            "check the name after the host; the server's --export NAME=PATH says what there is"
        }
        Status::Protection => "ask for the export's own level, with --protection or ?protection=",
        Status::Version | Status::UnknownOperation => {
            "check that client and server are of the same version"
        }
        Status::ServerStopping
        | Status::TooManyRequests
        | Status::TooManySessions
        | Status::TryAgain
        | Status::Busy
        | Status::NoMemory => "try again later",
        Status::TooManyOpenFiles | Status::FileTableFull => "try again with fewer --jobs",
        Status::StaleHandle => "someone removed it meanwhile; try again",
        Status::Io => "look at the server's log and disk",
        Status::Transfer => {
            "see the logs of both sides, and whether each may lock memory (ulimit -l)"
        }
        Status::Fenced => "ask the server's administrator",
        Status::NotSupported => "the file system of the export cannot do it",
        Status::Ok
        | Status::Invalid
        | Status::FileTooBig
        | Status::TooManyLinks
        | Status::NoDevice
        | Status::TextBusy
        | Status::Overflow
        | Status::OpenMode
        | Status::BadMessage
        | Status::BadSession
        | Status::BadSlot
        | Status::BadSequence
        | Status::MessageTooBig
        | Status::BadOpen => "see the server's log for more",
    }
}

fn local_advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check its owner and mode with ls -l",
        io::ErrorKind::AlreadyExists => "choose another name, or remove what has it",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room",
        io::ErrorKind::NotADirectory => "check each directory of the path",
        io::ErrorKind::IsADirectory => "name a file, or add -r where the command has it",
        _ => "check the local file system",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_four_parts_and_no_error_numbers() {
        let error = io::Error::from_raw_os_error(2);
        let failure = Failure::local("open", Path::new("a\nb"), &error);
        assert_eq!(
            failure.to_string(),
            "cannot open $'a\\nb': no such file or directory; check the path"
        );
    }

    #[test]
    fn what_a_server_says_does_nothing_to_a_terminal() {
        let reason = "the server refuses: \u{1b}[2J\u{9b}31m\u{202e}gpj\r\n".to_owned();
        let error = Error::Link(LinkError::Connect { target: "host".into(), reason });
        let line = line(&Failure::client("list", "dafs://host/data", &error).to_string());
        assert!(line.contains("\\u{1b}[2J\\u{9b}31m\\u{202e}gpj\\u{d}\\u{a}"), "{line}");
        assert!(line.chars().all(dafs_client::keys::shown::is_harmless), "{line}");
    }

    #[test]
    fn a_full_disk_ends_a_copy_of_many() {
        let local = |number| {
            let error = io::Error::from_raw_os_error(number);
            Failure::local("write", Path::new("a"), &error).is_hopeless()
        };
        assert!(local(28) && local(122));
        assert!(!local(13) && !local(21));
        let remote = |status| {
            let (message, what) = (String::new(), String::new());
            let error = Error::Status { op: Op::Write, status, message, what };
            Failure::client("write", "a", &error).is_hopeless()
        };
        assert!(remote(Status::NoSpace) && remote(Status::Quota));
        assert!(!remote(Status::Access));
    }

    #[test]
    fn what_stands_behind_an_error_number_is_kept() {
        assert_eq!(without_number("Not there (os error 95): install it"), "not there: install it");
        assert_eq!(without_number("Gone (os error 2)"), "gone");
        assert_eq!(without_number(""), "");
    }

    #[test]
    fn every_status_has_advice() {
        for status in Status::ALL {
            assert!(!status_advice(*status).is_empty());
        }
    }
}
