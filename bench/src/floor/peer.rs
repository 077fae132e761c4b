//! The other side of floors: a process that reads requests and writes replies, or has memory that
//! is read.

use super::hello::{HELLO, Hello};
use super::socket::{Address, Listening, Stream, Transport};
use super::{Exchange, PLACE, verbs};
use crate::data::Aligned;
use crate::error::{Context, Error, Result};
use crate::placement::{Placement, placed, this_program};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;

/// The helper `floor-peer`: listens, says where, and serves connections until its input ends, out
/// of so many bytes of memory.
pub(crate) fn serve(
    transport: Transport,
    path: Option<&Path>,
    address: Option<IpAddr>,
    memory: usize,
) -> Result<()> {
    match (transport, path, address) {
        (Transport::Tcp, ..) => {
            let what = || "listening for ping-pongs".to_owned();
            let listener = TcpListener::bind("127.0.0.1:0").context(what)?;
            let address = listener.local_addr().context(what)?.to_string();
            serve_sockets(Listening::Tcp(listener), &address, memory);
        }
        (Transport::Unix, Some(path), _) => {
            let listener = UnixListener::bind(path);
            let listener = listener.context(|| "listening for ping-pongs".into())?;
            serve_sockets(Listening::Unix(listener), &path.display().to_string(), memory);
        }
        (Transport::Verbs, _, Some(address)) => {
            let (listening, address) = verbs::Listening::new(address, memory)?;
            println!("{address}");
            std::thread::spawn(move || {
                if let Err(error) = listening.serve() {
                    eprintln!("dafs-bench: the peer: {error}");
                }
            });
        }
        (Transport::Unix, None, _) => return Err(Error::Usage("unix needs --path".into())),
        (Transport::Verbs, _, None) => return Err(Error::Usage("verbs needs --address".into())),
    }
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).context(|| "waiting for the end".into())?;
    Ok(())
}

/// Says where it listens, and serves connections in the background.
fn serve_sockets(listening: Listening, address: &str, memory: usize) {
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
}

/// Answers one connection until it ends, in whatever way: the other side says what went wrong.
fn answer(mut stream: Stream, replies: &[u8]) -> std::io::Result<()> {
    let mut bytes = [0; HELLO];
    stream.read_exact(&mut bytes)?;
    let Hello { exchange, waiting, .. } = Hello::decode(&bytes);
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

/// Where a peer is to listen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Where<'a> {
    /// On the loopback interface.
    Tcp,
    /// At a socket in this directory.
    Unix(&'a Path),
    /// At an address of an RDMA device.
    Verbs(IpAddr),
}

/// A peer that runs.
#[derive(Debug)]
pub(crate) struct Peer {
    process: Child,
    pub(super) address: Address,
}

impl Peer {
    /// Starts a peer on the server's CPU, with memory as large as a file of this size and the
    /// footers of its pages.
    pub(crate) fn start(at: Where<'_>, file_size: u64, placement: &Placement) -> Result<Self> {
        let mut command = placed(placement.server, &this_program()?)?;
        // The longest reply brings the whole file.
        let memory = Exchange::read(usize::try_from(file_size).unwrap_or(usize::MAX)).reply;
        command.args(["floor-peer", "--memory", &memory.to_string()]);
        match at {
            Where::Tcp => command.arg("tcp"),
            Where::Unix(directory) => {
                command.arg("unix").arg("--path").arg(directory.join("floor.sock"))
            }
            Where::Verbs(address) => command.args(["verbs", "--address", &address.to_string()]),
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context(|| "starting the floors' peer".into())?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output)
                .read_line(&mut line)
                .context(|| "hearing from the floors' peer".into())?;
        }
        let line = line.trim();
        let address = match at {
            Where::Tcp => line.parse().ok().map(Address::Tcp),
            Where::Unix(_) => (!line.is_empty()).then(|| Address::Unix(line.into())),
            Where::Verbs(_) => line.parse().ok().map(Address::Verbs),
        };
        let Some(address) = address else {
            let _ = process.kill();
            let _ = process.wait();
            // Where it said nothing it has said why on its error output.
            return Err(Error::Peer(format!("the floors' peer said {line:?}, no address")));
        };
        Ok(Self { process, address })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its input ends, and so does it; a signal in case it does not look.
        drop(self.process.stdin.take());
        match self.process.kill() {
            Err(error) if error.kind() != ErrorKind::InvalidInput => {
                eprintln!("dafs-bench: ending the floors' peer: {error}");
            }
            _ => {}
        }
        let _ = self.process.wait();
    }
}
