//! Sockets that wait as they are told to.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a spinning wait spins before it sleeps: about what waking a halted CPU costs.
const SPIN: Duration = Duration::from_micros(50);

/// What carries a ping-pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// TCP over the loopback interface, without delay.
    Tcp,
    /// A Unix stream socket.
    Unix,
    /// Raw verbs.
    Verbs,
}

/// How a side of a ping-pong, or one that reads, waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// In a blocking call.
    Blocking,
    /// Spinning for a short time, then in a blocking call.
    Spinning,
    /// Spinning for as long as it takes, within reason.
    Polling,
}

impl Waiting {
    /// How long to spin before a blocking call.
    pub(super) fn spin(self) -> Duration {
        match self {
            Self::Blocking => Duration::ZERO,
            Self::Spinning => SPIN,
            Self::Polling => Duration::from_secs(1),
        }
    }
}

/// An address to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
    Verbs(SocketAddr),
}

/// Where the peer listens.
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    pub(super) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => Stream::tcp(listener.accept()?.0),
            Self::Unix(listener) => Ok(Stream::new(Socket::Unix(listener.accept()?.0))),
        }
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    waiting: Waiting,
}

impl Stream {
    fn new(socket: Socket) -> Self {
        Self { socket, waiting: Waiting::Blocking }
    }

    fn tcp(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self::new(Socket::Tcp(socket)))
    }

    pub(super) fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Self::tcp(TcpStream::connect(address)?),
            Address::Unix(path) => Ok(Self::new(Socket::Unix(UnixStream::connect(path)?))),
            Address::Verbs(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn set_waiting(&mut self, waiting: Waiting) -> io::Result<()> {
        self.waiting = waiting;
        let nonblocking = waiting != Waiting::Blocking;
        match &self.socket {
            Socket::Tcp(socket) => socket.set_nonblocking(nonblocking),
            Socket::Unix(socket) => socket.set_nonblocking(nonblocking),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }

    fn poll(&self, flags: PollFlags, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        poll(&mut [PollFd::from_borrowed_fd(self.fd(), flags)], Some(&timeout))?;
        Ok(())
    }

    /// Does `call` until it does not ask to wait.
    fn spin<R>(
        &mut self,
        flags: PollFlags,
        mut call: impl FnMut(&mut Socket) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut since = None;
        loop {
            match call(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let begun = *since.get_or_insert_with(Instant::now);
                    if begun.elapsed() > self.waiting.spin() {
                        self.poll(flags, Duration::from_secs(1))?;
                    }
                }
                result => return result,
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buffer),
            Self::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(bytes),
            Self::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.waiting {
            Waiting::Blocking => self.socket.read(buffer),
            Waiting::Spinning | Waiting::Polling => {
                self.spin(PollFlags::IN, |socket| socket.read(buffer))
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.waiting {
            Waiting::Blocking => self.socket.write(bytes),
            Waiting::Spinning | Waiting::Polling => {
                self.spin(PollFlags::OUT, |socket| socket.write(bytes))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
