//! `dafs keygen`: makes this client's key pair.

use crate::failure::{Failure, Result, local_reason};
use crate::names;
use crate::output::Output;
use dafs_client::Options;
use dafs_client::keys::Identity;
use dafs_client::keys::identity::IdentityError;
use dafs_client::trust;
use std::io;
use std::path::{Path, PathBuf};

/// Longest name of a client at a server.
const MAX_NAME: usize = 64;

/// Make this client's key pair, and tell what the server's operator needs of it
///
/// The file is DAFS_IDENTITY, else dafs/identity in $XDG_CONFIG_HOME or ~/.config. It is never
/// overwritten. Whoever can read it can do at the servers what this client may; the public key lies
/// beside it with .pub added to the name, and is no secret.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to put it, if not at the usual place
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result {
    let options = Options { identity: args.file.clone(), ..Options::default() };
    let path = trust::identity_path(&options).map_err(|error| {
        Failure::Usage(format!("cannot make an identity: {error}; or use --file"))
    })?;
    let identity = make(&path)?;
    let key = identity.public();
    let mut output = Output::new();
    output.line(format_args!("identity {}", names::show_path(&path)))?;
    output.line(format_args!("public key {key}"))?;
    output.line("")?;
    for line in [
        "This line is for the file authorized_clients of the server. Its operator puts the name of an",
        "export in the place of EXPORT, :ro in that of :rw if reading is enough, and adds uid=N, the \
         user",
        "to act as, where the server runs as root:",
    ] {
        output.line(line)?;
    }
    output.line("")?;
    output.line(format_args!("{key} {} exports=EXPORT:rw", name()))?;
    output.line("")?;
    output.line("Then see whether it works: dafs doctor dafs://HOST/EXPORT")?;
    output.finish()
}

fn make(path: &Path) -> Result<Identity> {
    let failed = |why: String, advice: &str| {
        Failure::new("make the identity", names::show_path(path), why, advice)
    };
    let local =
        |error: &io::Error| failed(local_reason(error), "name a file that can be made with --file");
    trust::make_directory_of(path).map_err(|error| local(&error))?;
    let made = Identity::generate().map_err(IdentityError::from).and_then(|identity| {
        identity.save(path)?;
        Ok(identity)
    });
    made.map_err(|error| match error {
        IdentityError::Io { error, .. } if error.kind() == io::ErrorKind::AlreadyExists => {
            let why = match Identity::load(path) {
                Ok(there) => format!("it is there, with the public key {}", there.public()),
                Err(error) => format!("there is something already: {error}"),
            };
            failed(why, "use it, or name another file with --file")
        }
        IdentityError::Io { error, .. } => local(&error),
        error => failed(error.to_string(), "name another file with --file"),
    })
}

/// A name for this client at servers, of the user and the host.
fn name() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let user = user.filter(|user| !user.is_empty());
    let user = user.unwrap_or_else(|| format!("uid{}", rustix::process::getuid().as_raw()));
    let host = rustix::system::uname();
    clean(&format!("{user}@{}", host.nodename().to_string_lossy()))
}

/// What servers take as a name.
fn clean(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.chars().map(|c| if allowed(c) { c } else { '-' }).take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_servers_take() {
        assert_eq!(clean("eve@host.example"), "eve-host.example");
        assert_eq!(clean("a b\u{fc}:#@x"), "a-b----x");
        assert_eq!(clean(&"n".repeat(300)).len(), MAX_NAME);
    }
}
