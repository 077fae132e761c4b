//! System calls as the store uses them: one name at a time, never through a symbolic link.

use super::descriptors::with_room;
use crate::store::{Identity, StoreError};
use dafs_proto::{Attr, FileType, Time};
use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longest name of a directory entry.
const NAME_MAX: usize = 255;

/// An error of the store with what was tried.
pub fn failed(what: impl Into<String>, error: Errno) -> StoreError {
    StoreError::io(what, &error.into())
}

/// A name for messages: as it is where it can be read, escaped where not, and cut where it is longer
/// than any name can be.
pub fn show(name: &[u8]) -> String {
    match name.split_at_checked(NAME_MAX) {
        Some((begin, rest)) if !rest.is_empty() => {
            format!("\"{}\"... ({} bytes)", begin.escape_ascii(), name.len())
        }
        _ => format!("\"{}\"", name.escape_ascii()),
    }
}

/// Refuses what cannot be the name of a directory entry that a client may use.
pub fn check_name(what: &str, name: &[u8]) -> Result<(), StoreError> {
    let reason = match name {
        [] => "the name is empty",
        b"." | b".." => "the names . and .. are not used",
        _ if name.contains(&b'/') => "a name cannot contain a slash",
        _ if name.contains(&0) => "a name cannot contain a NUL byte",
        _ if name.len() > NAME_MAX => {
            let what = format!("{what} a name of {} bytes, more than {NAME_MAX}", name.len());
            return Err(failed(what, Errno::NAMETOOLONG));
        }
        _ => return Ok(()),
    };
    Err(failed(format!("{what} {}: {reason}", show(name)), Errno::INVAL))
}

/// Opens a path below a directory; neither a symbolic link nor a mount point leads away.
pub fn open_beneath(
    directory: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    with_room(|| {
        loop {
            // EAGAIN is a race with a rename somewhere, which the kernel asks to try again.
            match fs::openat2(directory.as_fd(), path, flags, mode, resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    })
}

/// Opens a path below a directory to be named, not read.
pub fn open_path(directory: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_beneath(directory, path, OFlags::PATH, Mode::empty())
}

/// The path of a descriptor under `/proc`, where an `O_PATH` descriptor can be opened for more.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// An open file once more, to be named only.
pub fn path_of(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    with_room(|| fs::open(proc_path(&fd), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
}

/// What `statx` says of a file.
pub fn stat(fd: impl AsFd) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, wanted)
}

fn time(stamp: fs::StatxTimestamp) -> Time {
    Time { seconds: stamp.tv_sec, nanoseconds: stamp.tv_nsec }
}

fn nanoseconds(stamp: fs::StatxTimestamp) -> u64 {
    // What matters is that two times differ, so wrapping before 1970 and after 2554 does no harm.
    (stamp.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(u64::from(stamp.tv_nsec))
}

/// The type of a file.
pub fn file_type(stat: &Statx) -> FileType {
    match fs::FileType::from_raw_mode(stat.stx_mode.into()) {
        fs::FileType::RegularFile => FileType::Regular,
        fs::FileType::Directory => FileType::Directory,
        fs::FileType::Symlink => FileType::Symlink,
        fs::FileType::Fifo => FileType::Fifo,
        fs::FileType::Socket => FileType::Socket,
        fs::FileType::CharacterDevice => FileType::Character,
        fs::FileType::BlockDevice => FileType::Block,
        fs::FileType::Unknown => FileType::Unknown,
    }
}

/// The type in words.
pub fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Regular => "regular file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Character | FileType::Block => "device",
        FileType::MountPoint => "mount point",
        FileType::Unknown => "thing of a type unknown here",
    }
}

/// The device that a file's file system is on.
pub fn device(stat: &Statx) -> u64 {
    fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

/// Attributes for a client.
pub fn attributes(stat: &Statx) -> Attr {
    Attr {
        r#type: file_type(stat).into(),
        mode: u32::from(stat.stx_mode) & 0o7777,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        used: stat.stx_blocks.saturating_mul(512),
        device: device(stat),
        inode: stat.stx_ino,
        rdev: fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        atime: Some(time(stat.stx_atime)),
        mtime: Some(time(stat.stx_mtime)),
        ctime: Some(time(stat.stx_ctime)),
        change: nanoseconds(stat.stx_ctime),
    }
}

/// The cache identity of a file. The generation is a hash of the kernel's handle, which contains
/// the inode generation; where there are no handles it is the time of birth.
pub fn identity(fd: BorrowedFd<'_>, stat: &Statx) -> Identity {
    let generation = match ordma::os::file_handle(fd) {
        Ok((kind, bytes)) => handle_generation(kind, &bytes),
        Err(_) if stat.stx_mask & StatxFlags::BTIME.bits() != 0 => nanoseconds(stat.stx_btime),
        Err(_) => 0,
    };
    Identity { device: device(stat), inode: stat.stx_ino, generation }
}

/// The generation of a file whose kernel handle is known.
pub fn handle_generation(kind: i32, bytes: &[u8]) -> u64 {
    fnv([&kind.to_le_bytes()[..], bytes])
}

/// The cache identity of a file whose kernel handle is known.
pub fn identity_with(stat: &Statx, generation: u64) -> Identity {
    Identity { device: device(stat), inode: stat.stx_ino, generation }
}

/// FNV-1a: a hash that is the same in every version, for what is stored.
pub fn fnv<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    parts.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
