//! The socket in the file system.

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a server whose queue of connections is full is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// A socket's path, removed with [`remove`](Self::remove) if it is still ours.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: String,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketPath {
    /// Listens at the path. A socket that no one listens on any more is replaced, one that another
    /// server listens on is not, and neither is any other file.
    pub(crate) fn bind(path: &str) -> Result<(OwnedFd, Self), String> {
        let address = address(path)?;
        // One server at a time looks and replaces.
        let parent = match Path::new(path).parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())
            .map_err(|error| format!("{}: {error}", parent.display()))?;
        rustix::fs::flock(&directory, FlockOperation::LockExclusive)
            .map_err(|error| format!("{}: {error}", parent.display()))?;
        match rustix::fs::lstat(path) {
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.to_string()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err("there is a file that is not a socket".to_owned());
            }
            Ok(_) => {
                match rustix::net::connect(&new_socket()?, &address) {
                    Err(Errno::CONNREFUSED) => {}
                    Ok(()) | Err(Errno::AGAIN) => {
                        return Err("another server listens there".to_owned());
                    }
                    Err(error) => return Err(format!("cannot tell who listens there: {error}")),
                }
                rustix::fs::unlink(path).map_err(|error| error.to_string())?;
            }
        }
        let socket = new_socket()?;
        rustix::net::bind(&socket, &address).map_err(|error| error.to_string())?;
        rustix::net::listen(&socket, 4096).map_err(|error| error.to_string())?;
        let stat = rustix::fs::lstat(path).map_err(|error| error.to_string())?;
        let identity = (stat.st_dev, stat.st_ino);
        Ok((socket, Self { path: path.to_owned(), identity }))
    }

    /// The path.
    pub(crate) fn as_str(&self) -> &str {
        &self.path
    }

    /// Removes the socket, unless another server's has taken its place.
    pub(crate) fn remove(&self) {
        let stat = rustix::fs::statat(rustix::fs::CWD, &*self.path, AtFlags::SYMLINK_NOFOLLOW);
        if stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity)
            && let Err(error) = rustix::fs::unlink(&*self.path)
        {
            tracing::warn!(path = self.path, %error, "cannot remove the socket");
        }
    }
}

/// Connects to the socket at a path.
pub(crate) fn dial(path: &str, deadline: Instant) -> Result<OwnedFd, String> {
    let address = address(path)?;
    loop {
        let socket = new_socket()?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(ASK_AGAIN),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Process and user at the other end. The process is 0 where it is not visible from here, for which
/// reason the safe wrapper of this call does not do.
pub(crate) fn peer_of(socket: impl AsFd) -> std::io::Result<(i32, u32)> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into the structure, which it is made for.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok((peer.pid, peer.uid)) } else { Err(std::io::Error::last_os_error()) }
}

fn address(path: &str) -> Result<SocketAddrUnix, String> {
    // 108 bytes, with the NUL at the end.
    SocketAddrUnix::new(path).map_err(|error| format!("not a path for a socket: {error}"))
}

fn new_socket() -> Result<OwnedFd, String> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| error.to_string())
}
