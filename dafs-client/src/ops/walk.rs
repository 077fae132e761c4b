//! From a path to a handle.

use super::{Core, Node};
use crate::error::{Error, Result};
use dafs_proto::{FileType, Op, Status};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Symbolic links followed on the way.
const MAX_LINKS: usize = 40;

pub(super) fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

pub(super) fn path_buf(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// The path, for messages.
pub(super) fn show(path: &Path) -> String {
    format!("{path:?}")
}

/// Whether the path names the export's root without any lookup.
pub(super) fn is_root(path: &Path) -> bool {
    components(bytes(path)).is_empty()
}

/// Whether the path ends with a slash, which only a directory's may.
pub(super) fn ends_with_slash(path: &Path) -> bool {
    bytes(path).ends_with(b"/")
}

/// Whether the path ends with something that only a directory can be: a slash, `.` or `..`.
fn means_directory(path: &[u8]) -> bool {
    matches!(path.rsplit(|byte| *byte == b'/').next(), Some(b"" | b"." | b".."))
}

/// Whether this can be a name in a directory.
pub(super) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'/') && !name.contains(&0)
}

/// The last name of a path, whatever slashes follow it; none where that is `.` or `..`.
fn last_name(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let name = path[..end].rsplit(|byte| *byte == b'/').next()?;
    (name != b"." && name != b"..").then_some(name)
}

/// A path's components in order, without empty ones and dots. Two dots stay.
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

impl Core {
    /// What a path leads to, from the export's root. `follow`: if the last component is a symbolic
    /// link, what that leads to; so does a slash, or a dot, behind it, which takes a directory.
    pub(crate) async fn walk(&self, path: &Path, follow: bool) -> Result<Node> {
        let node = self.walk_to(path, follow || means_directory(bytes(path))).await?;
        let kind = node.attr.r#type();
        let is_directory = matches!(kind, FileType::Directory | FileType::MountPoint);
        if means_directory(bytes(path)) && !is_directory {
            return Err(Error::Status {
                op: Op::Lookup,
                status: Status::NotDirectory,
                message: "its name ends as a directory's".into(),
                what: show(path),
            });
        }
        Ok(node)
    }

    async fn walk_to(&self, path: &Path, follow: bool) -> Result<Node> {
        let what = show(path);
        let mut parts = components(bytes(path));
        // Two dots are never a link, and are not looked up.
        let last = match parts.back() {
            Some(last) if !follow && last != b".." => parts.pop_back(),
            _ => None,
        };
        let mut above = Vec::new();
        let directory = self.descend(&mut above, parts, &mut 0, &what).await?;
        if let Some(last) = last {
            return self.lookup(&directory, &last, &what).await;
        }
        match above.pop() {
            Some(node) => Ok(node),
            None => {
                let grant = self.owner.grant()?;
                Ok(Node { handle: grant.root.clone(), attr: grant.root_attr })
            }
        }
    }

    /// The directory and the last name of a path whose last component is to be made or removed.
    ///
    /// # Errors
    /// Besides those of the walk: the path has no last name.
    pub(crate) async fn parent(&self, path: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
        let what = show(path);
        let name = last_name(bytes(path)).filter(|name| is_name(name));
        let Some(name) = name.map(<[u8]>::to_vec) else {
            return Err(Error::InvalidArgument(format!("{what} does not end with a name")));
        };
        let mut parts = components(bytes(path));
        parts.pop_back();
        let directory = self.descend(&mut Vec::new(), parts, &mut 0, &what).await?;
        Ok((directory, name))
    }

    /// The same for the name of something that is no directory, which no slash may follow.
    pub(super) async fn parent_of_file(&self, path: &Path, op: Op) -> Result<(Vec<u8>, Vec<u8>)> {
        if ends_with_slash(path) && last_name(bytes(path)).is_some() {
            // What is not there, or is no directory, is told by this.
            self.walk(path, true).await?;
            let message = "a slash ends its name".into();
            let what = show(path);
            return Err(Error::Status { op, status: Status::IsDirectory, message, what });
        }
        self.parent(path).await
    }

    /// Like [`Self::parent`], but if the last component is a symbolic link, directory and name of
    /// what it leads to, which need not exist.
    pub(super) async fn parent_of_target(&self, path: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
        let what = show(path);
        let mut parts = components(bytes(path));
        let mut above: Vec<Node> = Vec::new();
        let mut links = 0;
        loop {
            let name = parts.pop_back().filter(|name| is_name(name) && name != b"..");
            let Some(name) = name else {
                let message = "the symbolic link does not end with a name".into();
                return Err(Error::Status {
                    op: Op::Open,
                    status: Status::IsDirectory,
                    message,
                    what,
                });
            };
            // The directories on the way have to be known, as a relative target starts there.
            let directory = self.descend(&mut above, parts, &mut links, &what).await?;
            let node = match self.lookup(&directory, &name, &what).await {
                Ok(node) => node,
                Err(error) if error.status() == Some(Status::NoEntry) => {
                    return Ok((directory, name));
                }
                Err(error) => return Err(error),
            };
            if node.attr.r#type() != FileType::Symlink {
                return Ok((directory, name));
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(too_many_links(&what));
            }
            let target = self.readlink_of(&node.handle, &what).await?;
            if target.first() == Some(&b'/') {
                above.clear();
            }
            parts = components(&target);
        }
    }

    /// Walks `parts` on from `above`, the nodes below the root on the way, following every symbolic
    /// link; the handle of what it comes to, which is the last of `above`, or the root.
    async fn descend(
        &self,
        above: &mut Vec<Node>,
        parts: VecDeque<Vec<u8>>,
        links: &mut usize,
        what: &str,
    ) -> Result<Vec<u8>> {
        let grant = self.owner.grant()?;
        let mut parts = parts;
        while let Some(part) = parts.pop_front() {
            if part == b".." {
                above.pop();
                continue;
            }
            let here = above.last().map_or(&grant.root, |node| &node.handle);
            let node = self.lookup(here, &part, what).await?;
            if node.attr.r#type() != FileType::Symlink {
                above.push(node);
                continue;
            }
            *links += 1;
            if *links > MAX_LINKS {
                return Err(too_many_links(what));
            }
            let target = self.readlink_of(&node.handle, what).await?;
            if target.first() == Some(&b'/') {
                above.clear();
            }
            let mut rest = components(&target);
            rest.append(&mut parts);
            parts = rest;
        }
        Ok(above.last().map_or_else(|| grant.root.clone(), |node| node.handle.clone()))
    }
}

fn too_many_links(what: &str) -> Error {
    Error::Status {
        op: Op::Lookup,
        status: Status::Loop,
        message: format!("more than {MAX_LINKS} on the way"),
        what: what.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_leave_out_what_leads_nowhere() {
        let parts = components(b"//a/./b/../c/");
        assert_eq!(parts, [b"a".to_vec(), b"b".to_vec(), b"..".to_vec(), b"c".to_vec()]);
        assert!(is_root(Path::new("/./")));
        assert!(!is_root(Path::new("..")));
    }

    #[test]
    fn what_ends_a_path_tells_a_directory() {
        for path in ["/", "a/", "a//", ".", "a/.", "..", "a/.."] {
            assert!(means_directory(path.as_bytes()), "{path}");
        }
        for path in ["a", "a/b", "a/.b", "a/..b", "a/..."] {
            assert!(!means_directory(path.as_bytes()), "{path}");
        }
        assert_eq!(last_name(b"/a/b//"), Some(&b"b"[..]));
        for path in ["", "/", ".", "a/.", "a/./", "a/.."] {
            assert_eq!(last_name(path.as_bytes()), None, "{path}");
        }
    }

    #[test]
    fn names_hold_no_slash_and_no_zero() {
        assert!(is_name(b"a b"));
        assert!(!is_name(b"") && !is_name(b"a/b") && !is_name(b"a\0"));
    }
}
