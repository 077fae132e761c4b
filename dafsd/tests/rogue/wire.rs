//! The protocol by hand: sockets, hellos, frames, the handshake, proofs and one-sided requests.

use crate::common::raw::{Failure, NO_SLOT, connect_request, reply_of};
use crate::common::{Kind, SERVER, TestServer, identity};
use dafs_keys::handshake::Initiator;
use dafs_keys::tags::second_connection_proof;
use dafs_keys::{Channel, Protection, Secret};
use dafs_proto::{Call, ConnectReply, ConnectRequest, Credential, Header, encode_message};
use ordma::{FOOTER_LEN, RemoteRef};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send,
};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A connection without an engine behind it.
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(recv(self.as_fd(), buffer, RecvFlags::empty())?.0)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(send(self.as_fd(), bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Socket {
    pub fn dial(server: &TestServer) -> Self {
        match server.over.kind {
            Kind::Tcp => {
                let socket = TcpStream::connect(server.address()).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                Self::Tcp(socket)
            }
            Kind::Shm => {
                let socket = UnixStream::connect(server.address()).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                Self::Unix(socket)
            }
            kind => unreachable!("{kind:?} has no sockets"),
        }
    }

    /// Introduces itself: the ticket, or the nonce. `None` where the server does not want it.
    pub fn greet(&mut self, ticket: Option<[u8; 16]>) -> Option<[u8; 16]> {
        self.write_all(&hello(ticket)).ok()?;
        let mut answer = [0; 48];
        self.read_exact(&mut answer).ok()?;
        (answer[10] == 0).then(|| answer[32..].try_into().unwrap())
    }

    /// The next frame's head and data. `None` at the end.
    pub fn receive_frame(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut header = [0; 24];
        self.read_exact(&mut header).ok()?;
        let head = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        let data = u64::from_le_bytes(header[8..16].try_into().unwrap()) as usize;
        let (mut head, mut data) = (vec![0; head], vec![0; data]);
        self.read_exact(&mut head).ok()?;
        self.read_exact(&mut data).ok()?;
        Some((head, data))
    }

    /// Waits for the server to close, and returns what it says before.
    pub fn expect_end(&mut self) -> Vec<u8> {
        let (mut said, mut buffer) = (Vec::new(), vec![0; 65536]);
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return said,
                Ok(n) => said.extend_from_slice(&buffer[..n]),
                Err(error) => {
                    let kind = error.kind();
                    assert_ne!(kind, std::io::ErrorKind::WouldBlock, "not closed in time");
                    return said;
                }
            }
        }
    }

    /// A control message of the engine `shm`, and the memory that comes with it, if there is one.
    pub fn control(&self) -> Option<(u8, Vec<OwnedFd>)> {
        let mut bytes = [0; 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(self.as_fd(), &mut parts, &mut control, flags).ok()?;
        let mut memory = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                memory.extend(descriptors);
            }
        }
        (received.bytes == 16).then_some((bytes[0], memory))
    }
}

pub fn hello(ticket: Option<[u8; 16]>) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(b"\xDAFSordma");
    bytes[8] = 1;
    bytes[10] = if ticket.is_some() { 2 } else { 1 };
    bytes[16..].copy_from_slice(&ticket.unwrap_or_default());
    bytes
}

/// A client by hand.
pub struct Rogue {
    pub main: Socket,
    pub second: Option<Socket>,
    ticket: [u8; 16],
    /// Of the second connection.
    pub nonce: [u8; 16],
    /// What came of the handshake.
    secured: Option<(Channel, Secret)>,
    level: Protection,
    sequence: u32,
    pub root: Vec<u8>,
}

impl Rogue {
    /// Connects, and does the handshake where there has to be one.
    pub fn dial(server: &TestServer, number: u8) -> Self {
        let mut main = Socket::dial(server);
        let ticket = main.greet(None).expect("welcome");
        let level = server.over.protection;
        let mut rogue = Self {
            main,
            second: None,
            ticket,
            nonce: [0; 16],
            secured: None,
            level,
            sequence: 0,
            root: Vec::new(),
        };
        if level != Protection::None {
            let key = identity(SERVER).public();
            let (initiator, begin) = Initiator::begin(&identity(number), &key, level).unwrap();
            rogue.send_frame(&begin, &[]).unwrap();
            let (answer, _) = rogue.main.receive_frame().unwrap();
            rogue.secured = Some(initiator.finish(&answer).unwrap());
        }
        rogue
    }

    /// Does everything as it should be done.
    pub fn session(server: &TestServer, number: u8, export: &str) -> Self {
        let mut rogue = Self::dial(server, number);
        rogue.dial_second(server);
        if let Some(proof) = rogue.proof_for(rogue.nonce) {
            rogue.prove(proof);
        }
        let reply = rogue.begin(export, None).unwrap();
        rogue.root = reply.root;
        rogue
    }

    pub fn dial_second(&mut self, server: &TestServer) {
        let mut second = Socket::dial(server);
        self.nonce = second.greet(Some(self.ticket)).expect("welcome");
        self.second = Some(second);
    }

    /// The proof that this session can make for a nonce.
    pub fn proof_for(&self, nonce: [u8; 16]) -> Option<[u8; 16]> {
        self.secured.as_ref().map(|(_, secret)| second_connection_proof(secret, &nonce))
    }

    pub fn prove(&mut self, proof: [u8; 16]) {
        let mut message = [0; 16];
        match self.second() {
            Socket::Tcp(_) => message[10] = 2,
            Socket::Unix(_) => message[0] = 7,
        }
        // Where it was cut off already there is nobody to take it.
        let _ = self.second().write_all(&[message, proof].concat());
    }

    pub fn second(&mut self) -> &mut Socket {
        self.second.as_mut().expect("a second connection")
    }

    pub fn begin(
        &mut self,
        export: &str,
        credential: Option<Credential>,
    ) -> Result<ConnectReply, Failure> {
        self.ask_for_session(&connect_request(export, self.level, credential))
    }

    pub fn ask_for_session(&mut self, request: &ConnectRequest) -> Result<ConnectReply, Failure> {
        self.exchange(Header::request(dafs_proto::Op::Connect, NO_SLOT, 0, 1), request)
    }

    pub fn call<C: Call>(&mut self, request: &C) -> Result<C::Reply, Failure> {
        self.sequence += 1;
        self.exchange(Header::request(C::OP, 0, self.sequence, 1), request)
    }

    /// Sends a request, and does not wait for the reply.
    pub fn say<C: Call>(&mut self, request: &C) {
        self.sequence += 1;
        let header = Header::request(C::OP, 0, self.sequence, 1);
        self.say_raw(&encode_message(header, request)).unwrap();
    }

    /// Sends a message.
    pub fn say_raw(&mut self, head: &[u8]) -> std::io::Result<()> {
        let Some((channel, _)) = &self.secured else { return self.send_frame(head, &[]) };
        let mut sealed = Vec::new();
        channel.seal(&[&[0], head].concat(), &mut sealed);
        self.send_frame(&sealed, &[])
    }

    fn exchange<C: Call>(&mut self, header: Header, request: &C) -> Result<C::Reply, Failure> {
        self.say_raw(&encode_message(header, request)).map_err(|_| Failure::Lost)?;
        let (mut head, _) = self.main.receive_frame().ok_or(Failure::Lost)?;
        if let Some((channel, _)) = &self.secured {
            let mut plain = Vec::new();
            channel.open(&head, &mut plain).unwrap();
            head = plain;
        }
        let (header, body) = Header::decode(&head).unwrap();
        reply_of::<C>(&header, body)
    }

    fn send_frame(&mut self, head: &[u8], data: &[u8]) -> std::io::Result<()> {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend((head.len() as u32).to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        bytes.extend([0; 8]);
        self.main.write_all(&[&bytes[..], head, data].concat())
    }

    /// Asks for pages on the second connection of the engine `tcp`.
    pub fn ask(&mut self, number: u64, entries: &[Vec<u8>]) -> Answer {
        let tagged = entries[0].len() == TAGGED;
        let mut request = number.to_le_bytes().to_vec();
        request.extend((entries.len() as u16).to_le_bytes());
        request.extend([u8::from(tagged), 0, 0, 0, 0, 0]);
        request.extend(entries.concat());
        let socket = self.second();
        socket.write_all(&request).unwrap();
        let mut header = [0; 16];
        socket.read_exact(&mut header).expect("a refusal is a status");
        assert_eq!((&header[..8], header[8]), (&request[..8], entries.len() as u8));
        let mut bytes = vec![0; u32::from_le_bytes(header[12..].try_into().unwrap()) as usize];
        socket.read_exact(&mut bytes).unwrap();
        let several = entries.len() > 1;
        let statuses =
            if several { bytes[..entries.len()].to_vec() } else { header[10..11].to_vec() };
        let before = if several { entries.len().next_multiple_of(8) } else { 0 };
        let tags = if tagged { 16 * entries.len() } else { 0 };
        let good = statuses.iter().filter(|status| **status == 0).count();
        let payloads = bytes[before + tags + good * FOOTER_LEN..].to_vec();
        Answer { statuses, payloads, bytes }
    }
}

/// What came of a one-sided request.
pub struct Answer {
    pub statuses: Vec<u8>,
    /// Of the good ones.
    pub payloads: Vec<u8>,
    /// All of it.
    pub bytes: Vec<u8>,
}

const TAGGED: usize = 64;

/// A page in a plain request.
pub fn entry(reference: &RemoteRef) -> Vec<u8> {
    let mut bytes = reference.chunk.to_le_bytes().to_vec();
    bytes.extend(reference.slot.to_le_bytes());
    for word in [reference.file, reference.block, reference.generation, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// A page in a tagged request: what is under the tag.
pub fn fields(reference: &RemoteRef, epoch: u64) -> Vec<u8> {
    [&entry(reference)[..], &epoch.to_le_bytes()].concat()
}
