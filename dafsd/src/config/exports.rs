//! What the server offers.

use super::file::{ExportSection, Flags};
use super::{ConfigError, refuse, show};
use dafs_keys::Protection;
use std::collections::HashSet;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest name of an export.
const MAX_EXPORT_NAME: usize = 64;

/// A directory to be offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportConfig {
    /// The name clients ask for.
    pub name: String,
    /// The directory.
    pub path: PathBuf,
    /// Nothing is changed.
    pub read_only: bool,
    /// How its pages are guarded.
    pub protection: Protection,
    /// User and group of what is created.
    pub owner: Option<(u32, u32)>,
}

pub(super) fn exports(
    mut sections: Vec<ExportSection>,
    flags: &Flags,
) -> Result<Vec<ExportConfig>, ConfigError> {
    for text in &flags.exports {
        let section = export_flag(text)?;
        sections.retain(|known| known.name != section.name);
        sections.push(section);
    }
    if sections.is_empty() {
        let allowed = "must be given at least once: --export NAME=PATH, or [[export]] in the file";
        return refuse("export", "(none)", allowed);
    }
    let mut names = HashSet::new();
    let mut exports: Vec<ExportConfig> = Vec::new();
    for section in sections {
        if !names.insert(section.name.clone()) {
            return refuse("export.name", show(&section.name), "must not be given twice");
        }
        exports.push(export(section, flags.protection.as_deref())?);
    }
    check_overlap(&exports)?;
    Ok(exports)
}

/// Parses `NAME=PATH[,ro]`.
fn export_flag(text: &str) -> Result<ExportSection, ConfigError> {
    let Some((name, path)) = text.split_once('=').filter(|(_, path)| !path.is_empty()) else {
        return refuse("--export", show(text), "must be NAME=PATH or NAME=PATH,ro");
    };
    let (path, read_only) = path.strip_suffix(",ro").map_or((path, false), |path| (path, true));
    Ok(ExportSection { name: name.to_owned(), path: path.into(), read_only, ..Default::default() })
}

fn export(section: ExportSection, protection: Option<&str>) -> Result<ExportConfig, ConfigError> {
    let ExportSection { name, path, read_only, protection: own, owner } = section;
    let allowed_in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_dots = name.chars().all(|c| c == '.');
    if is_dots || name.len() > MAX_EXPORT_NAME || !name.chars().all(allowed_in_name) {
        let allowed = format!("must be 1 to {MAX_EXPORT_NAME} letters, digits, '.', '_' or '-'");
        return refuse("export.name", show(&name), allowed);
    }
    let field = |field: &str| format!("export {name:?}: {field}");
    let level = own.as_deref().or(protection);
    let protection = match level {
        None => Protection::default(),
        Some(level) => match Protection::from_str(level) {
            Ok(protection) => protection,
            Err(_) => {
                let allowed = "must be \"sealed\" (the default), \"keyed\", or \"none\" for a \
                               network where everyone is trusted";
                return refuse(field("protection"), show(level), allowed);
            }
        },
    };
    let owner = match &owner {
        None => None,
        Some(text) => match text.split_once(':').map(|(uid, gid)| (uid.parse(), gid.parse())) {
            Some((Ok(uid), Ok(gid))) if uid != u32::MAX && gid != u32::MAX => Some((uid, gid)),
            _ => {
                let allowed = "must be UID:GID in numbers, \"1000:1000\" for example";
                return refuse(field("as"), show(text), allowed);
            }
        },
    };
    let path = match path.canonicalize() {
        Ok(path) if path.is_dir() => path,
        Ok(path) => return refuse(field("path"), path.display(), "must be a directory"),
        Err(error) => {
            let allowed = format!("must be a directory: {error}");
            return refuse(field("path"), path.display(), allowed);
        }
    };
    Ok(ExportConfig { name, path, read_only, protection, owner })
}

/// A file has one place in the page cache, whatever export led there, so what exports have in common
/// must be offered in the same way.
fn check_overlap(exports: &[ExportConfig]) -> Result<(), ConfigError> {
    for (at, a) in exports.iter().enumerate() {
        for b in &exports[..at] {
            let overlap = a.path.starts_with(&b.path) || b.path.starts_with(&a.path);
            let options = |e: &ExportConfig| (e.read_only, e.protection, e.owner);
            if overlap && options(a) != options(b) {
                let allowed = format!(
                    "must have the same read_only, protection and as as export {:?}, because one \
                     contains the other ({})",
                    b.name,
                    b.path.display()
                );
                return refuse(format!("export {:?}: path", a.name), a.path.display(), allowed);
            }
        }
    }
    Ok(())
}
