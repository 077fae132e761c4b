//! System calls that no safe crate wraps: file handles.
//!
//! A file handle is the kernel's own stable name of an inode, the one that its NFS server hands
//! out. It survives renames and restarts, and, unlike a path, can be opened without walking there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Longest handle the kernel makes (`MAX_HANDLE_SZ`).
const MAX_LEN: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; MAX_LEN],
}

/// The handle of the file behind `fd`, which may be an `O_PATH` descriptor: its type and bytes.
///
/// # Errors
/// `EOPNOTSUPP` where the file system has no handles; else as `name_to_handle_at(2)`.
pub fn file_handle(fd: BorrowedFd<'_>) -> io::Result<(i32, Vec<u8>)> {
    let mut handle = RawHandle { len: MAX_LEN as u32, kind: 0, bytes: [0; MAX_LEN] };
    let mut mount = 0;
    // SAFETY: the path is a NUL-terminated string; the handle has `len` writable bytes behind its
    // header, laid out as the kernel's flexible structure; the kernel writes nothing else.
    let result = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let len = (handle.len as usize).min(MAX_LEN);
    Ok((handle.kind, handle.bytes[..len].to_vec()))
}

/// Opens the file that a handle names, on the file system that `mount` lies on. `flags` are those
/// of `open(2)`; close-on-exec is added.
///
/// The file can lie anywhere on that file system: the caller has to check where.
///
/// # Errors
/// `EPERM` without `CAP_DAC_READ_SEARCH`, `ESTALE` where there is no such file (any more), `EINVAL`
/// where the bytes cannot be a handle; else as `open_by_handle_at(2)`.
pub fn open_file_handle(
    mount: BorrowedFd<'_>,
    kind: i32,
    bytes: &[u8],
    flags: i32,
) -> io::Result<OwnedFd> {
    let mut handle = RawHandle { len: 0, kind, bytes: [0; MAX_LEN] };
    let Some(room) = handle.bytes.get_mut(..bytes.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    room.copy_from_slice(bytes);
    handle.len = bytes.len() as u32;
    // SAFETY: the handle is initialised and has `len` bytes behind its header; the kernel only
    // reads it. A descriptor that is returned is new and ours.
    unsafe {
        let fd = libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            flags | libc::O_CLOEXEC,
        );
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_handle_has_bytes_or_the_file_system_says_it_has_none() {
        let root = std::fs::File::open("/").unwrap();
        match file_handle(root.as_fd()) {
            Ok((_, bytes)) => assert!(!bytes.is_empty() && bytes.len() <= MAX_LEN),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}"),
        }
    }

    #[test]
    fn bytes_that_are_no_handle_are_refused() {
        let root = std::fs::File::open("/").unwrap();
        let open = |bytes: &[u8]| open_file_handle(root.as_fd(), 1, bytes, libc::O_PATH);
        // Without the capability the kernel says EPERM before it looks at the handle.
        assert!(open(&[0xFF; 8]).is_err());
        let error = open(&[0; MAX_LEN + 1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
