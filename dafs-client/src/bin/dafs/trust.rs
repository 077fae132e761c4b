//! Whose keys are used: asking about a server's, and telling of both sides'.

use crate::context::Context;
use crate::failure::Result;
use crate::json::Json;
use crate::output::Output;
use crate::target::Target;
use dafs_client::blocking::Client;
use dafs_client::trust::{self, KnownServers, Unknown};
use dafs_client::{FirstContact, Options, Protection, PublicKey};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What to do with the key of a server that is not known yet: ask at the terminal, if there is one.
pub fn first_contact(accept_new: bool) -> FirstContact {
    if accept_new {
        return FirstContact::AcceptNew;
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return FirstContact::Refuse;
    }
    // Nobody is asked twice in one command.
    let answers = Mutex::new(Vec::<(Unknown, bool)>::new());
    FirstContact::Ask(Arc::new(move |unknown| {
        let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, answer)) = answers.iter().find(|(asked, _)| asked == unknown) {
            return *answer;
        }
        let answer = ask(unknown, &mut io::stdin().lock(), &mut io::stderr().lock());
        answers.push((unknown.clone(), answer));
        answer
    }))
}

fn ask(unknown: &Unknown, input: &mut impl io::BufRead, output: &mut impl Write) -> bool {
    let Unknown { server, key, .. } = unknown;
    let question = format!(
        "The server {server} shows the key {key}, which is not known yet. Is it the right one? \
         `dafsd key` on the server prints it. [y/N] "
    );
    let mut answer = String::new();
    let asked = output.write_all(question.as_bytes()).and_then(|()| output.flush());
    asked.is_ok()
        && input.read_line(&mut answer).is_ok()
        && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// How client and server know each other.
#[derive(Debug)]
pub struct Trust {
    least: Protection,
    /// What was granted, where there is a connection.
    level: Option<Protection>,
    server_key: Option<PublicKey>,
    identity: Finding<PublicKey>,
    known_servers: Finding<String>,
}

/// A file, and what is in it or wrong with it.
type Finding<T> = (Option<PathBuf>, std::result::Result<T, String>);

impl Trust {
    /// Looks at the files, and at the connection, if there is one.
    pub fn of(cx: &Context, target: &Target, client: Option<&Client>) -> Self {
        let options = cx.options();
        let location = &target.location;
        let identity = trust::identity(&options);
        Self {
            least: location.protection.unwrap_or(options.protection),
            level: client.and_then(|client| client.protection().ok()),
            server_key: client.and_then(|client| client.server_key().ok().flatten()),
            identity: (
                trust::identity_path(&options).ok(),
                identity.map(|identity| identity.public()).map_err(|error| error.to_string()),
            ),
            known_servers: (
                trust::known_servers_path(&options).ok(),
                known(&options, &location.known_as(), location.server_key),
            ),
        }
    }

    /// Tells people.
    pub fn tell(&self, output: &mut Output) -> Result {
        let least = self.least;
        match self.level {
            Some(level) => output.line(format_args!("   level {level}; the least is {least}"))?,
            None => output.line(format_args!("   level not connected; the least is {least}"))?,
        }
        match self.server_key {
            Some(key) => output.line(format_args!("  server has the key {key}"))?,
            None => output.line("  server has shown no key")?,
        }
        let place = |path: &Option<PathBuf>| match path {
            Some(path) => format!("{}: ", path.display()),
            None => String::new(),
        };
        let (path, identity) = &self.identity;
        match identity {
            Ok(key) => {
                output.line(format_args!("identity {}public key {key}", place(path)))?;
            }
            Err(why) => output.line(format_args!("identity {why}"))?,
        }
        let (path, known) = &self.known_servers;
        match known {
            Ok(text) => output.line(format_args!("   known {}{text}", place(path))),
            Err(why) => output.line(format_args!("   known {why}")),
        }
    }

    /// For machines.
    pub fn json(&self) -> Json {
        let key =
            |key: Option<PublicKey>| key.map_or(Json::Null, |key| Json::text(key.to_string()));
        let level = |level: Protection| Json::text(level.name());
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map_or(Json::Null, |path| Json::text(path.to_string_lossy()))
        };
        let problem = |why: Option<&String>| why.map_or(Json::Null, Json::text);
        let (identity, known) = (&self.identity, &self.known_servers);
        Json::object([
            ("level", self.level.map_or(Json::Null, level)),
            ("least", level(self.least)),
            ("server_key", key(self.server_key)),
            (
                "identity",
                Json::object([
                    ("path", path(&identity.0)),
                    ("public_key", key(identity.1.as_ref().ok().copied())),
                    ("problem", problem(identity.1.as_ref().err())),
                ]),
            ),
            (
                "known_servers",
                Json::object([
                    ("path", path(&known.0)),
                    ("problem", problem(known.1.as_ref().err())),
                ]),
            ),
        ])
    }
}

/// What the file of known servers says of a server.
fn known(
    options: &Options,
    server: &str,
    given: Option<PublicKey>,
) -> std::result::Result<String, String> {
    let path = trust::known_servers_path(options).map_err(|error| error.to_string())?;
    let known = KnownServers::load(&path).map_err(|error| error.to_string())?;
    Ok(match (given, known.get(server)) {
        (Some(_), _) => "not used, as the server's key was given".into(),
        (None, Some(known)) => format!("line {} has the key of {server}", known.line),
        (None, None) => format!("does not have {server}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        let key = PublicKey::from_bytes([1; 32]);
        let unknown = Unknown { server: "host:7".into(), key, file: "/f".into() };
        for (typed, answer) in
            [("y\n", true), ("YES\n", true), ("\n", false), ("", false), ("yo\n", false)]
        {
            let mut output = Vec::new();
            assert_eq!(ask(&unknown, &mut typed.as_bytes(), &mut output), answer, "{typed:?}");
            let question = String::from_utf8(output).unwrap();
            assert!(question.contains("host:7") && question.contains(&key.to_string()));
        }
    }
}
