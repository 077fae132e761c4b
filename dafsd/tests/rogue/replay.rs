//! Records what a client says to a server, and says it again.

use crate::common::TestServer;
use crate::wire::{Socket, hello};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Stands between a client and a server, on the two connections of one session.
pub struct Proxy {
    pub address: String,
    /// What the client said on each.
    heard: Arc<Mutex<[Vec<u8>; 2]>>,
}

impl Proxy {
    pub fn start(server: &TestServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
        let (to, log) = (server.address().to_owned(), Arc::clone(&heard));
        std::thread::spawn(move || {
            for at in 0..2 {
                let (client, _) = listener.accept().unwrap();
                let server = TcpStream::connect(&to).unwrap();
                for socket in [&client, &server] {
                    socket.set_nodelay(true).unwrap();
                }
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let log = Arc::clone(&log);
                let hear = move |bytes: &[u8]| log.lock().unwrap()[at].extend_from_slice(bytes);
                std::thread::spawn(move || copy(client, server, hear));
                std::thread::spawn(move || copy(back.0, back.1, |_| {}));
            }
        });
        Self { address, heard }
    }

    pub fn recorded(&self) -> [Vec<u8>; 2] {
        self.heard.lock().unwrap().clone()
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, hear: impl Fn(&[u8])) {
    let mut buffer = vec![0; 65536];
    while let Ok(n) = from.read(&mut buffer) {
        hear(&buffer[..n]);
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Says all of it again, in each way that a third party can. Returns all that the server answers.
pub fn replay(server: &TestServer, recorded: &[Vec<u8>; 2]) -> Vec<u8> {
    let [main, second] = recorded;
    let mut answers = Vec::new();
    // As it was.
    for bytes in recorded {
        let mut socket = Socket::dial(server);
        let _ = socket.write_all(bytes);
        answers.extend(socket.expect_end());
    }
    // With the handshake's beginning alone first, and the second connection with a good ticket.
    let begin = 32 + frames(main)[0].len();
    let mut first = Socket::dial(server);
    let ticket = first.greet(None).unwrap();
    first.write_all(&main[32..begin]).unwrap();
    let mut other = Socket::dial(server);
    let _ = other.write_all(&[&hello(Some(ticket)), &second[32..]].concat());
    let _ = first.write_all(&main[begin..]);
    answers.extend(first.expect_end());
    answers.extend(other.expect_end());
    // Without the handshake, and each message by itself.
    for message in frames(main).into_iter().skip(1) {
        for before in [&main[32..32], &main[32..begin]] {
            let mut socket = Socket::dial(server);
            socket.greet(None).unwrap();
            let _ = socket.write_all(&[before, message].concat());
            answers.extend(socket.expect_end());
        }
    }
    answers
}

/// The frames behind the hello.
pub fn frames(main: &[u8]) -> Vec<&[u8]> {
    let (mut frames, mut rest) = (Vec::new(), &main[32..]);
    while let Some(header) = rest.first_chunk::<24>() {
        let head = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        let data = u64::from_le_bytes(header[8..16].try_into().unwrap()) as usize;
        let Some((frame, behind)) = rest.split_at_checked(24 + head + data) else { break };
        frames.push(frame);
        rest = behind;
    }
    frames
}
