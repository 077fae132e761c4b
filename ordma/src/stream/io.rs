//! System calls on sockets, none of which blocks unless it says so.

use crate::region::Iovecs;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Receives into `buffer`. `None` where nothing has arrived, `Some(0)` at the end of the stream.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    outcome(|| rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT).map(|(n, _)| n))
}

/// Receives into raw memory; otherwise like [`receive`].
///
/// # Safety
/// Every vector must be writable for its length, and nothing else may use the memory meanwhile
/// except by means that bear concurrent writes.
pub(crate) unsafe fn receive_raw(
    socket: BorrowedFd<'_>,
    iovecs: &mut Iovecs,
) -> io::Result<Option<usize>> {
    // SAFETY: a message header of zeros is valid: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    outcome(|| {
        // SAFETY: the vectors are valid by the caller's promise, the header by construction.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        usize::try_from(n).map_err(|_| last_error())
    })
}

/// Sends as much of `parts` as the kernel takes. `None` where it takes nothing now.
pub(crate) fn send(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    outcome(|| rustix::net::sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), flags))
}

/// Sends from raw memory; otherwise like [`send`].
///
/// # Safety
/// Every vector must be readable for its length. The bytes may change meanwhile.
pub(crate) unsafe fn send_raw(
    socket: BorrowedFd<'_>,
    iovecs: &mut Iovecs,
) -> io::Result<Option<usize>> {
    // SAFETY: as in `receive_raw`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    outcome(|| {
        // SAFETY: the vectors are valid by the caller's promise; the kernel only reads them.
        let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(n).map_err(|_| last_error())
    })
}

/// Ends both directions of a connection: every wait on it ends, on both sides.
pub(crate) fn shut_down(socket: BorrowedFd<'_>) {
    // Fails only where the peer has already reset the connection, which is as good.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn outcome(mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(n) => return Ok(Some(n)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
