//! From the text of `authorized_clients` to its clients.

use super::{ActsAs, Authorized, Client, Credential, Exports, MAX_GROUPS, Rights};
use dafs_keys::PublicKey;
use std::collections::HashSet;

/// Longest name of a client or an export.
const MAX_NAME: usize = 64;
const FORM: &str = "KEY NAME exports=EXPORT[:ro],... [uid=N [gid=N] [gids=N,...] | uids=A-B|any]";
/// -1 means "leave it as it is" to the kernel, so it is nobody's number.
const MOST: u32 = u32::MAX - 1;

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {word:?}: {allowed}")]
pub struct LineError {
    /// Its number, from 1 on.
    pub line: usize,
    /// The word that is wrong, or the line where something is missing.
    pub word: String,
    /// What is allowed.
    pub allowed: String,
}

/// A word that is wrong, and what is allowed.
type Refusal = (String, String);

fn refuse<T>(word: impl Into<String>, allowed: impl Into<String>) -> Result<T, Refusal> {
    Err((word.into(), allowed.into()))
}

impl Authorized {
    /// The clients of a text; all of them or none.
    ///
    /// # Errors
    /// The first thing that is wrong. A line without a credential is wrong where the server
    /// `is_root`, which is not a user to lend by leaving something out.
    pub fn parse(text: &str, is_root: bool) -> Result<Self, LineError> {
        let mut authorized = Self::default();
        let mut names = HashSet::new();
        for (at, line) in text.lines().enumerate() {
            // No word has a '#' in it.
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let client = client(line, is_root).and_then(|client| {
                if authorized.lookup(&client.key).is_some() {
                    return refuse(client.key.to_string(), "the key must not be given twice");
                }
                if !names.insert(client.name.clone()) {
                    return refuse(client.name, "the name must not be given twice");
                }
                Ok(client)
            });
            let client =
                client.map_err(|(word, allowed)| LineError { line: at + 1, word, allowed })?;
            authorized.0.insert(client.key, client);
        }
        Ok(authorized)
    }
}

/// The options of a line, each as it was written.
#[derive(Default)]
struct Options<'a> {
    exports: Option<&'a str>,
    uid: Option<&'a str>,
    gid: Option<&'a str>,
    gids: Option<&'a str>,
    uids: Option<&'a str>,
    root: Option<&'a str>,
}

fn client(line: &str, is_root: bool) -> Result<Client, Refusal> {
    let mut words = line.split_whitespace();
    let (Some(key), Some(name)) = (words.next(), words.next()) else {
        return refuse(line, format!("must be {FORM}"));
    };
    let key = match key.parse::<PublicKey>() {
        Ok(key) => key,
        Err(_) => {
            let allowed = "must be a public key of 43 letters, digits, '-' and '_', as `dafs keygen` \
                           shows it on the client";
            return refuse(key, allowed);
        }
    };
    if !is_name(name) {
        let allowed =
            format!("the client's name must be 1 to {MAX_NAME} letters, digits, '.', '_' or '-'");
        return refuse(name, allowed);
    }
    let mut options = Options::default();
    for word in words {
        let (option, value) = word.split_once('=').unwrap_or((word, ""));
        let place = match option {
            "exports" => &mut options.exports,
            "uid" => &mut options.uid,
            "gid" => &mut options.gid,
            "gids" => &mut options.gids,
            "uids" => &mut options.uids,
            "root" => &mut options.root,
            _ => {
                let allowed = "must be one of exports=, uid=, gid=, gids=, uids= and root=";
                return refuse(word, allowed);
            }
        };
        if place.replace(value).is_some() {
            return refuse(word, "must not be given twice");
        }
    }
    let Some(list) = options.exports else {
        let allowed =
            "exports= is missing: exports=data,logs:ro for two exports, exports=* for all";
        return refuse(line, allowed);
    };
    let exports = exports(list)?;
    let acts_as = acts_as(name, &options, is_root)?;
    Ok(Client { name: name.to_owned(), key, exports, acts_as })
}

/// Whether this can be the name of a client.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(allowed)
}

fn exports(list: &str) -> Result<Exports, Refusal> {
    let mut exports = Exports::default();
    for item in list.split(',') {
        let (name, rights) = match item.split_once(':') {
            None | Some((_, "rw")) => (item, Rights::ReadWrite),
            Some((_, "ro")) => (item, Rights::ReadOnly),
            Some(_) => return refuse(item, "must end with :ro or :rw, or with neither for :rw"),
        };
        let name = name.split(':').next().unwrap_or_default();
        let known = if name == "*" {
            exports.others.replace(rights).is_some()
        } else if is_name(name) {
            exports.named.insert(name.to_owned(), rights).is_some()
        } else {
            let allowed = "must be the name of an export, or * for all: exports=data,logs:ro";
            return refuse(format!("exports={list}"), allowed);
        };
        if known {
            return refuse(item, "an export must not be given twice in a line");
        }
    }
    Ok(exports)
}

fn acts_as(name: &str, options: &Options<'_>, is_root: bool) -> Result<ActsAs, Refusal> {
    let Options { uid, gid, gids, uids, root, .. } = *options;
    match (uid, uids) {
        (Some(_), Some(uids)) => {
            let allowed = "must not stand beside uid=: either one fixed user or a range to ask for";
            refuse(format!("uids={uids}"), allowed)
        }
        (None, _) if gid.or(gids).is_some() => {
            let word = if gid.is_some() { "gid=" } else { "gids=" };
            refuse(word, "goes with uid= only: a client with uids= names its groups itself")
        }
        (Some(_), None) | (None, None) if root.is_some() => {
            refuse("root=", "goes with uids=any only")
        }
        (Some(text), None) => {
            let uid = id("uid", text)?;
            let gid = gid.map_or(Ok(uid), |text| id("gid", text))?;
            let groups = match gids {
                None => Vec::new(),
                Some(list) => {
                    list.split(',').map(|text| id("gids", text)).collect::<Result<_, _>>()?
                }
            };
            if groups.len() > MAX_GROUPS {
                return refuse("gids=", format!("must be at most {MAX_GROUPS} groups"));
            }
            Ok(ActsAs::Fixed(Credential::User { uid, gid, groups: groups.into() }))
        }
        (None, Some(text)) => asked(text, root),
        (None, None) if is_root => {
            let allowed = "this server runs as root, which is not lent to a client that has no \
                           user: add uid=N, with the user that its files are accessed as";
            refuse(name, allowed)
        }
        (None, None) => Ok(ActsAs::Fixed(Credential::Server)),
    }
}

fn asked(text: &str, root: Option<&str>) -> Result<ActsAs, Refusal> {
    if text == "any" {
        let first = match root {
            None | Some("no") => 1,
            Some("yes") => 0,
            Some(other) => return refuse(format!("root={other}"), "must be yes or no"),
        };
        return Ok(ActsAs::Asked { first, last: MOST });
    }
    if root.is_some() {
        return refuse("root=", "goes with uids=any only; uids=0-59999 includes root");
    }
    match text.split_once('-').map(|(first, last)| (number(first), number(last))) {
        Some((Some(first), Some(last))) if first <= last => Ok(ActsAs::Asked { first, last }),
        _ => {
            let allowed = format!(
                "must be \"any\" or a range of two numbers from 0 to {MOST}, uids=1000-59999 for \
                 example"
            );
            refuse(format!("uids={text}"), allowed)
        }
    }
}

fn id(option: &str, text: &str) -> Result<u32, Refusal> {
    let allowed = || (format!("{option}={text}"), format!("must be a number from 0 to {MOST}"));
    number(text).ok_or_else(allowed)
}

fn number(text: &str) -> Option<u32> {
    // "+5" is a number to the standard library.
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| is_digits && *number <= MOST)
}
