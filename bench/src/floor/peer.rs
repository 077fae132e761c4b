//! The other side of a ping-pong: a process that reads requests and writes replies.

use super::Exchange;
use super::socket::{Address, Listening, Stream, Transport, Waiting};
use crate::data::Aligned;
use crate::error::{Context, Error, Result};
use crate::placement::{Placement, placed, this_program};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;

/// What a connection begins with: the lengths of its requests and replies, and whether to spin.
pub(super) const HELLO: usize = 12;

/// A request begins with the place in the peer's memory that its reply comes from, if it is long
/// enough: what is sent from memory takes longer than what lies in the CPU's cache.
pub(super) const PLACE: usize = 8;

pub(super) fn hello(exchange: Exchange, waiting: Waiting) -> [u8; HELLO] {
    let number = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = [0; HELLO];
    bytes[..4].copy_from_slice(&number(exchange.request));
    bytes[4..8].copy_from_slice(&number(exchange.reply));
    bytes[8..].copy_from_slice(&u32::from(waiting == Waiting::Spinning).to_le_bytes());
    bytes
}

fn understand(bytes: [u8; HELLO]) -> (Exchange, Waiting) {
    let number = |i: usize| {
        u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]) as usize
    };
    let waiting = if number(8) == 1 { Waiting::Spinning } else { Waiting::Blocking };
    (Exchange { request: number(0), reply: number(4) }, waiting)
}

/// The helper `floor-peer`: listens, says where, and serves connections until its input ends, out
/// of so many bytes of memory.
pub(crate) fn serve(transport: Transport, path: Option<&Path>, memory: usize) -> Result<()> {
    let what = || "listening for ping-pongs".to_owned();
    let (listening, address) = match (transport, path) {
        (Transport::Tcp, _) => {
            let listener = TcpListener::bind("127.0.0.1:0").context(what)?;
            let address = listener.local_addr().context(what)?.to_string();
            (Listening::Tcp(listener), address)
        }
        (Transport::Unix, Some(path)) => {
            let listener = UnixListener::bind(path).context(what)?;
            (Listening::Unix(listener), path.display().to_string())
        }
        (Transport::Unix, None) => return Err(Error::Usage("a Unix socket needs --path".into())),
    };
    let mut replies = Aligned::new(memory);
    // Memory that was never written is one page of zeroes, wherever it is read.
    replies.get_mut().fill(0x5A);
    let replies = Arc::new(replies);
    println!("{address}");
    std::thread::spawn(move || {
        while let Ok(stream) = listening.accept() {
            let replies = Arc::clone(&replies);
            std::thread::spawn(move || answer(stream, replies.get()));
        }
    });
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).context(|| "waiting for the end".into())?;
    Ok(())
}

/// Answers one connection until it ends, in whatever way: the other side says what went wrong.
fn answer(mut stream: Stream, replies: &[u8]) -> std::io::Result<()> {
    let mut bytes = [0; HELLO];
    stream.read_exact(&mut bytes)?;
    let (exchange, waiting) = understand(bytes);
    stream.set_waiting(waiting)?;
    let mut request = vec![0; exchange.request];
    loop {
        stream.read_exact(&mut request)?;
        let place = request.first_chunk::<PLACE>().map_or(0, |place| u64::from_le_bytes(*place));
        let place = usize::try_from(place).ok().and_then(|place| replies.get(place..));
        let reply = place.and_then(|from| from.get(..exchange.reply));
        stream.write_all(reply.ok_or(ErrorKind::InvalidInput)?)?;
    }
}

/// A peer that runs.
#[derive(Debug)]
pub(crate) struct Peer {
    process: Child,
    pub(super) address: Address,
    pub(crate) transport: Transport,
}

impl Peer {
    /// Starts a peer on the server's CPU, with memory for replies as large as a file of this size;
    /// a Unix socket comes to lie in `directory`.
    pub(crate) fn start(
        transport: Transport,
        directory: &Path,
        file_size: u64,
        placement: &Placement,
    ) -> Result<Self> {
        let path = directory.join("floor.sock");
        let mut command = placed(placement.server, &this_program()?)?;
        // The longest reply brings the whole file.
        let memory = Exchange::read(usize::try_from(file_size).unwrap_or(usize::MAX)).reply;
        command.args(["floor-peer", "--memory", &memory.to_string()]);
        match transport {
            Transport::Tcp => command.arg("tcp"),
            Transport::Unix => command.arg("unix").arg("--path").arg(&path),
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context(|| "starting the ping-pong's peer".into())?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output)
                .read_line(&mut line)
                .context(|| "hearing from the ping-pong's peer".into())?;
        }
        let address = match transport {
            Transport::Tcp => line.trim().parse().ok().map(Address::Tcp),
            Transport::Unix => (!line.trim().is_empty()).then_some(Address::Unix(path)),
        };
        let Some(address) = address else {
            let _ = process.kill();
            let _ = process.wait();
            return Err(Error::Peer(format!("the ping-pong's peer said {line:?}, no address")));
        };
        Ok(Self { process, address, transport })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its input ends, and so does it; a signal in case it does not look.
        drop(self.process.stdin.take());
        match self.process.kill() {
            Err(error) if error.kind() != ErrorKind::InvalidInput => {
                eprintln!("dafs-bench: ending the ping-pong's peer: {error}");
            }
            _ => {}
        }
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_understood() {
        let exchange = Exchange { request: 56, reply: 4176 };
        for waiting in [Waiting::Blocking, Waiting::Spinning] {
            assert_eq!(understand(hello(exchange, waiting)), (exchange, waiting));
        }
    }
}
