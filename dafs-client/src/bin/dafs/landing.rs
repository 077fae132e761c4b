//! Local files that get their names when they are complete.

use crate::interrupt::{self, Part};
use crate::local::{KEPT_MODE, copied_mode, temporary_beside, times};
use dafs_client::Attr;
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The type of the file system `/proc`, as `statfs` tells it.
const PROC: u64 = 0x9fa0;
/// Symbolic links that are followed to the end of a path.
const MAX_LINKS: usize = 40;

/// A local file in the making, which gets its name when it is complete. What is interrupted before
/// leaves nothing behind, where the file system knows files without names, and else is removed.
#[derive(Debug)]
pub struct Landing {
    file: File,
    to: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The file has no name yet.
    Nameless,
    /// The file has a temporary name.
    Named(PathBuf, #[expect(dead_code, reason = "held for what its end does")] Part),
    /// Something that is no regular file, such as a terminal or a pipe, or a descriptor that was open
    /// before, takes the bytes as they come.
    Straight,
}

impl Landing {
    /// Begins a file that will be `to`. `follow`: if that is a symbolic link, what it leads to.
    pub fn begin(to: &Path, follow: bool) -> io::Result<Self> {
        if follow && let Some(file) = stream(to)? {
            return Ok(Self { file, to: to.into(), kind: Kind::Straight });
        }
        let to = if follow { to.canonicalize().unwrap_or_else(|_| to.into()) } else { to.into() };
        if let Ok(there) = to.symlink_metadata() {
            if there.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            if !there.is_file() && !there.is_symlink() {
                return Err(io::Error::other("what has the name is neither file nor link"));
            }
        }
        let directory = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(file) = fs::openat(CWD, directory, flags | OFlags::TMPFILE, mode) {
            let file = File::from(file);
            // Without /proc it could not be given a name.
            if Path::new(&handle(&file)).exists() {
                return Ok(Self { file, to, kind: Kind::Nameless });
            }
        }
        let name = temporary_beside(&to);
        let doomed = name.clone();
        // Nobody is left to be told.
        let part = interrupt::part(move || _ = std::fs::remove_file(&doomed));
        let part = part.map_err(|_| io::Error::from(io::ErrorKind::Interrupted))?;
        let file = fs::openat(CWD, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
        Ok(Self { file: file.into(), to, kind: Kind::Named(name, part) })
    }

    /// Where to write.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether what was written can be read again.
    pub fn is_regular(&self) -> bool {
        !matches!(self.kind, Kind::Straight)
    }

    /// Gives the complete file mode and time of change, and then its name, which replaces what has
    /// it.
    pub fn land(self, attr: &Attr, archive: bool) -> io::Result<()> {
        if matches!(self.kind, Kind::Straight) {
            return Ok(());
        }
        let mode = copied_mode(attr.mode & KEPT_MODE, archive);
        self.file.set_permissions(Permissions::from_mode(mode))?;
        if let Some(mtime) = attr.mtime {
            fs::futimens(&self.file, &times(mtime))?;
        }
        if let Kind::Named(name, _) = &self.kind {
            return std::fs::rename(name, &self.to);
        }
        let link =
            |to: &Path| fs::linkat(CWD, handle(&self.file), CWD, to, AtFlags::SYMLINK_FOLLOW);
        match link(&self.to) {
            Err(rustix::io::Errno::EXIST) => {
                let name = temporary_beside(&self.to);
                link(&name)?;
                std::fs::rename(&name, &self.to).inspect_err(|_| {
                    // The rename's error is the one to tell.
                    _ = std::fs::remove_file(&name);
                })
            }
            result => Ok(result?),
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Kind::Named(name, _) = &self.kind {
            // After a rename it is not there any more.
            _ = std::fs::remove_file(name);
        }
    }
}

/// What takes the bytes as they come, if `to` leads to that rather than to the name of a file: a fifo
/// or a device, or, by way of `/dev/stdout`, `/dev/fd` and the like, a descriptor that is open.
/// Nothing has the right to that name then, whatever kind of file lies behind the descriptor.
fn stream(to: &Path) -> io::Result<Option<File>> {
    let mut path = to.to_path_buf();
    for _ in 0..MAX_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let Ok(parent) = parent.canonicalize() else { return Ok(None) };
        path = parent.join(name);
        // The width of the type differs between systems.
        if fs::statfs(&parent).is_ok_and(|statfs| statfs.f_type as u64 == PROC) {
            return descriptor(&path).map(Some);
        }
        match path.read_link() {
            Ok(link) => path = parent.join(link),
            Err(_) => break,
        }
    }
    match path.symlink_metadata() {
        Ok(there) if !there.is_file() && !there.is_dir() && !there.is_symlink() => {
            File::options().write(true).open(&path).map(Some)
        }
        // What is wrong with the path is told where it is used.
        _ => Ok(None),
    }
}

/// The descriptor that a path in `/proc` stands for, at the place where its owner has come to.
fn descriptor(path: &Path) -> io::Result<File> {
    let own = |number: u32| {
        let own = PathBuf::from(format!("/proc/{}/fd/{number}", std::process::id()));
        own == path
    };
    if own(1) {
        return Ok(io::stdout().as_fd().try_clone_to_owned()?.into());
    }
    if own(2) {
        return Ok(io::stderr().as_fd().try_clone_to_owned()?.into());
    }
    // A file is opened anew by this: what is in it already stays.
    File::options().append(true).open(path)
}

fn handle(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::mtime;
    use dafs_client::Time;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    fn attr() -> Attr {
        let mtime = Some(Time { seconds: -1, nanoseconds: 5 });
        Attr { mode: 0o4640, mtime, ..Attr::default() }
    }

    #[test]
    fn a_landed_file_replaces_and_keeps_mode_and_time() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("to");
        for content in ["first", "second"] {
            let landing = Landing::begin(&to, true).unwrap();
            landing.file().write_all(content.as_bytes()).unwrap();
            landing.land(&attr(), true).unwrap();
            assert_eq!(std::fs::read_to_string(&to).unwrap(), content);
        }
        let metadata = to.metadata().unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o640);
        assert_eq!(mtime(&metadata), Time { seconds: -1, nanoseconds: 5 });
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn what_does_not_land_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let landing = Landing::begin(&directory.path().join("to"), true).unwrap();
        landing.file().write_all(b"half").unwrap();
        drop(landing);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        assert!(Landing::begin(directory.path(), true).is_err());
    }

    #[test]
    fn a_link_to_a_descriptor_is_told_from_a_link_to_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("file")).unwrap();
        let link = |name: &str, to: &str| {
            let path = directory.path().join(name);
            std::os::unix::fs::symlink(to, &path).unwrap();
            path
        };
        let number = file.as_raw_fd();
        (&file).write_all(b"before ").unwrap();
        for to in [format!("/proc/self/fd/{number}"), format!("/dev/fd/{number}")] {
            let path = link(&format!("to {}", to.replace('/', "_")), &to);
            stream(&path).unwrap().expect("a descriptor").write_all(b"more ").unwrap();
        }
        let content = std::fs::read_to_string(directory.path().join("file")).unwrap();
        assert_eq!(content, "before more more ");
        assert!(stream(&link("plain", "file")).unwrap().is_none());
        assert!(stream(&link("dangling", "nothing")).unwrap().is_none());
        assert!(stream(&link("round", "round")).unwrap().is_none());
        assert!(stream(directory.path()).unwrap().is_none());
    }
}
