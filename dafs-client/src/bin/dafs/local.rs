//! The local side of copies.

use crate::names;
use dafs_client::{Attr, Time};
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Permission bits that copies keep. Owners are not copied, so the bits that lend an owner's rights
/// are not either.
pub const KEPT_MODE: u32 = 0o1777;

/// The permission bits that new files shall not have.
pub fn umask() -> u32 {
    // It can only be asked by setting it.
    let mask = rustix::process::umask(Mode::empty());
    rustix::process::umask(mask);
    mask.bits()
}

/// A name in the same directory for what is not complete yet; never given twice.
pub fn temporary_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let unique: u32 = fastrand::u32(..);
    let name = format!(".dafs-{}-{count}-{unique:08x}.part", std::process::id());
    path.with_file_name(name)
}

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
    Named(PathBuf),
    /// Something that is no regular file, such as a terminal or a pipe, takes the bytes as they
    /// come.
    Straight,
}

impl Landing {
    /// Begins a file that will be `to`. `follow`: if that is a symbolic link, what it leads to.
    pub fn begin(to: &Path, follow: bool) -> io::Result<Self> {
        let to = if follow { to.canonicalize().unwrap_or_else(|_| to.into()) } else { to.into() };
        if let Ok(there) = to.symlink_metadata() {
            if there.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            if follow && !there.is_file() && !there.is_symlink() {
                let file = File::options().write(true).open(&to)?;
                return Ok(Self { file, to, kind: Kind::Straight });
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
        let file = fs::openat(CWD, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
        Ok(Self { file: file.into(), to, kind: Kind::Named(name) })
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
    pub fn land(self, attr: &Attr) -> io::Result<()> {
        if matches!(self.kind, Kind::Straight) {
            return Ok(());
        }
        self.file.set_permissions(Permissions::from_mode(attr.mode & KEPT_MODE))?;
        if let Some(mtime) = attr.mtime {
            fs::futimens(&self.file, &times(mtime))?;
        }
        if let Kind::Named(name) = &self.kind {
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
        if let Kind::Named(name) = &self.kind {
            // After a rename it is not there any more.
            _ = std::fs::remove_file(name);
        }
    }
}

fn handle(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.min(999_999_999).into(),
        },
    }
}

/// Makes a symbolic link, which replaces what has its name unless that is a directory.
pub fn symlink(target: &Path, path: &Path, mtime: Option<Time>) -> io::Result<()> {
    let name = temporary_beside(path);
    std::os::unix::fs::symlink(target, &name)?;
    let result = mtime.map_or(Ok(()), |mtime| {
        Ok(fs::utimensat(CWD, &name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    });
    result.and_then(|()| std::fs::rename(&name, path)).inspect_err(|_| {
        // The first error is the one to tell.
        _ = std::fs::remove_file(&name);
    })
}

/// Gives a directory mode and time of change.
pub fn finish_directory(path: &Path, attr: &Attr) -> io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(attr.mode & KEPT_MODE))?;
    if let Some(mtime) = attr.mtime {
        fs::utimensat(CWD, path, &times(mtime), AtFlags::empty())?;
    }
    Ok(())
}

/// A file's time of change.
pub fn mtime(metadata: &std::fs::Metadata) -> Time {
    // The kernel keeps nanoseconds below a billion.
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    Time { seconds: metadata.mtime(), nanoseconds }
}

/// What a copied thing is to be called at the local `to`; `None` if it has no name of its own.
pub fn place(from: &Path, to: &Path, into: bool) -> Option<PathBuf> {
    if into { names::last_name(from).map(|name| to.join(name)) } else { Some(to.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

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
            landing.land(&attr()).unwrap();
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
    fn links_are_replaced_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link");
        for target in ["/nowhere", "elsewhere"] {
            symlink(Path::new(target), &path, attr().mtime).unwrap();
            assert_eq!(path.read_link().unwrap(), Path::new(target));
        }
        assert_eq!(path.symlink_metadata().unwrap().mtime(), -1);
    }
}
