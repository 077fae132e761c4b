//! The local side of copies.

use crate::failure::Failure;
use crate::names;
use dafs_client::{Attr, Time};
use rustix::fs::{self, AtFlags, CWD, Mode, Timespec, Timestamps, UTIME_OMIT};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Permission bits that copies keep. Owners are not copied, so the bits that lend an owner's rights
/// are not either.
pub const KEPT_MODE: u32 = 0o1777;

/// Those that copies of directories keep; all of them with `--archive`.
pub fn kept_of_directory(archive: bool) -> u32 {
    if archive { KEPT_MODE | 0o2000 } else { KEPT_MODE }
}

/// The permission bits that new files shall not have. To be asked first before there are threads that
/// make files.
pub fn umask() -> u32 {
    static UMASK: LazyLock<u32> = LazyLock::new(|| {
        // It can only be asked by setting it.
        let mask = rustix::process::umask(Mode::empty());
        rustix::process::umask(mask);
        mask.bits()
    });
    *UMASK
}

/// The mode of a local copy of something with these bits: all that a copy keeps with `--archive`, and
/// otherwise only those that new files may have.
pub fn copied_mode(mode: u32, archive: bool) -> u32 {
    if archive { mode } else { mode & !umask() }
}

/// A name in the same directory for what is not complete yet; never given twice.
pub fn temporary_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let unique: u32 = fastrand::u32(..);
    let name = format!(".dafs-{}-{count}-{unique:08x}.part", std::process::id());
    path.with_file_name(name)
}

/// For a system call that sets a file's time of change and leaves the other.
pub fn times(mtime: Time) -> Timestamps {
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

/// Whether a name is one of [`temporary_beside`]'s.
pub fn is_temporary(name: &Path) -> bool {
    let name = names::bytes(name);
    name.starts_with(b".dafs-") && name.ends_with(b".part")
}

/// Gives a file a further name, which replaces what has that name unless it is a directory.
pub fn link(first: &Path, path: &Path) -> io::Result<()> {
    let name = temporary_beside(path);
    std::fs::hard_link(first, &name)?;
    // Of two names of one file the rename leaves both.
    let result = std::fs::rename(&name, path);
    _ = std::fs::remove_file(&name);
    result
}

/// Gives a directory mode and time of change.
pub fn finish_directory(path: &Path, attr: &Attr, archive: bool) -> io::Result<()> {
    let mode = copied_mode(attr.mode & kept_of_directory(archive), archive);
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
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

/// What a copied thing is to be called at `to`; `None` if it has no name of its own. Of a directory
/// that is named by a dot, what is in it goes straight to `to`.
pub fn place(from: &Path, to: &Path, into: bool) -> Option<PathBuf> {
    if !into || names::ends_with_dot(from) {
        return Some(to.into());
    }
    names::last_name(from).map(|name| to.join(name))
}

/// Why a copy of something that is no directory cannot be called `to`.
pub fn no_directory(to: impl std::fmt::Display) -> Failure {
    let advice = "make the directory first, or leave the slash out to give the copy that name";
    Failure::new("write", to, "there is no such directory", advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr() -> Attr {
        let mtime = Some(Time { seconds: -1, nanoseconds: 5 });
        Attr { mode: 0o4640, mtime, ..Attr::default() }
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
