//! How the client of a stream engine begins a connection.

use super::hello::{BadHello, CLIENT_LEN, ClientHello, SERVER_LEN, ServerHello};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Exchanges hellos on a new connection, until `deadline`.
pub(crate) fn greet(
    socket: &OwnedFd,
    hello: ClientHello,
    deadline: Instant,
) -> Result<ServerHello, String> {
    let bytes: [u8; CLIENT_LEN] = hello.encode();
    match rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(CLIENT_LEN) => {}
        Ok(_) => return Err("the connection does not take a hello".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    let mut answer = [0; SERVER_LEN];
    let mut len = 0;
    while len < SERVER_LEN {
        wait_readable(socket, deadline)?;
        match rustix::net::recv(socket, &mut answer[len..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err("the server closed the connection at once".to_owned()),
            Ok((n, _)) => len += n,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    match ServerHello::decode(&answer) {
        Ok(ServerHello::UnknownTicket) => Err("the server does not know the session".to_owned()),
        Ok(ServerHello::Full) => Err("the server has no room for more connections".to_owned()),
        Ok(ServerHello::OtherVersion) => Err(BadHello::Version(0).to_string()),
        Ok(welcome) => Ok(welcome),
        Err(error) => Err(format!("the server does not speak this protocol: {error}")),
    }
}

/// Waits until something has arrived.
pub(crate) fn wait_readable(socket: &OwnedFd, deadline: Instant) -> Result<(), String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("no answer in time".to_owned());
        }
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
}
