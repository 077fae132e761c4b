//! The client's side: the chunks that it was handed, and the reads from them.

use super::boot::PeerBoot;
use super::control::{self, Message, Received};
use crate::arena::{Geometry, PeerChunk};
use crate::engine::{Outcome, PageRead, PageReads};
use crate::lock;
use crate::slot::{FOOTER_LEN, accept};
use crate::{AccessFault, ChunkId};
use arc_swap::ArcSwap;
use dafs_keys::Secret;
use dafs_keys::tags::{ConnectionNonce, second_connection_proof};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Most chunks that a server may hand over: 4 TiB of the default size.
const MOST_CHUNKS: usize = 1 << 16;
/// Pages that are read before the lock of their region is given back.
const AT_ONCE: usize = 64;

/// The chunks, and the connection that they come over.
#[derive(Debug)]
pub(crate) struct Chunks {
    boot: PeerBoot,
    geometry: Geometry,
    nonce: ConnectionNonce,
    proved: AtomicBool,
    control: Arc<ControlSocket>,
    /// Held while a message is received and acted upon, so that who finds nothing to receive knows
    /// that all that came before has been acted upon.
    receiving: Mutex<()>,
    table: ArcSwap<Table>,
}

/// What may be read.
#[derive(Clone, Debug, Default)]
struct Table {
    allowed: bool,
    /// In the order of their ids.
    chunks: Vec<(ChunkId, Arc<Mapped>)>,
}

impl Table {
    fn find(&self, id: ChunkId) -> Option<&Mapped> {
        let at = self.chunks.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.chunks[at].1)
    }
}

/// The client's end of the control connection.
struct ControlSocket {
    socket: OwnedFd,
    /// What the server could not be told at once.
    untold: Mutex<Vec<Vec<u8>>>,
    kick: OwnedFd,
    stopped: AtomicBool,
}

impl fmt::Debug for ControlSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlSocket").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl ControlSocket {
    /// Tells the server something, after all that it could not be told before.
    fn tell(&self, bytes: Option<Vec<u8>>) {
        let mut untold = lock(&self.untold);
        untold.extend(bytes);
        let mut told = 0;
        for bytes in &*untold {
            match control::send(self.socket.as_fd(), bytes, None) {
                Ok(Some(())) => told += 1,
                Ok(None) => break,
                // The connection is lost, and with it the need to tell.
                Err(_) => told = untold.len(),
            }
        }
        let told = told.min(untold.len());
        untold.drain(..told);
        if !untold.is_empty() {
            self.kick();
        }
    }

    fn kick(&self) {
        // Can only fail where the counter is full, and then the thread wakes anyway.
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }
}

/// A mapped chunk. Unmapped when the last reader is done, of which the server is told.
#[derive(Debug)]
struct Mapped {
    id: ChunkId,
    chunk: Option<PeerChunk>,
    control: Arc<ControlSocket>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // First unmapped, then told.
        self.chunk = None;
        self.control.tell(Some(Message::Unmapped(self.id).encode().to_vec()));
    }
}

impl Chunks {
    /// No chunks yet, from a server with this boot page, which gave the connection this nonce.
    pub(crate) fn new(
        socket: OwnedFd,
        boot: PeerBoot,
        geometry: Geometry,
        nonce: ConnectionNonce,
    ) -> std::io::Result<Self> {
        let control = ControlSocket {
            socket,
            untold: Mutex::default(),
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopped: AtomicBool::new(false),
        };
        Ok(Self {
            boot,
            geometry,
            nonce,
            proved: AtomicBool::new(false),
            control: Arc::new(control),
            receiving: Mutex::default(),
            table: ArcSwap::default(),
        })
    }

    /// Shows that the connection is its session's. Once only.
    pub(crate) fn prove(&self, connection: &Secret) {
        if self.proved.swap(true, Ordering::Relaxed) {
            return;
        }
        let proof = second_connection_proof(connection, &self.nonce);
        self.control.tell(Some([Message::Proof.encode(), proof].concat()));
    }

    /// Whether the server lived after everything that this thread has read before.
    pub(crate) fn server_alive(&self) -> bool {
        self.boot.alive()
    }

    /// Copies pages to their places and judges them. None must be accepted before the server was
    /// found alive after this.
    pub(crate) fn read(&self, reads: &PageReads) -> Vec<Outcome> {
        let pages = reads.pages();
        if let Some(fault) = reads.unfit(self.geometry.page_size, false) {
            return vec![Err(fault); pages.len()];
        }
        let mut outcomes = Vec::with_capacity(pages.len());
        let chunks = pages.chunk_by(|a, b| a.reference.chunk == b.reference.chunk);
        // A region is locked for a limited time only.
        for run in chunks.flat_map(|pages| pages.chunks(AT_ONCE)) {
            self.read_run(reads, run, &mut outcomes);
        }
        outcomes
    }

    /// Reads pages of one chunk.
    fn read_run(&self, reads: &PageReads, run: &[PageRead], outcomes: &mut Vec<Outcome>) {
        let chunk = run[0].reference.chunk;
        let mut table = self.table.load();
        if table.find(chunk).is_none() {
            // The announcement was sent before whatever told the caller of the chunk.
            if self.receive_all().is_err() {
                outcomes.extend(run.iter().map(|_| Err(AccessFault::Unreachable)));
                return;
            }
            table = self.table.load();
        }
        let found = table.find(chunk).and_then(|mapped| mapped.chunk.as_ref());
        let Some(chunk) = found else {
            let fault = if table.allowed { AccessFault::Gone } else { AccessFault::Revoked };
            outcomes.extend(run.iter().map(|_| Err(fault)));
            return;
        };
        reads.put(run, outcomes, |_, page, place| {
            let mut footer = [0; FOOTER_LEN];
            if !chunk.copy_out(page.reference.slot, place, &mut footer) {
                return Err(AccessFault::Stale);
            }
            accept(&footer, place, &page.reference, page.floor, reads.key())
        });
    }

    /// Acts upon all messages that have arrived. The error says why no more will.
    fn receive_all(&self) -> Result<(), String> {
        let _receiving = lock(&self.receiving);
        let result = self.receive_while_any();
        if result.is_err() {
            // So that the thread that waits there learns of it, whoever noticed.
            crate::stream::io::shut_down(self.control.socket.as_fd());
        }
        result
    }

    fn receive_while_any(&self) -> Result<(), String> {
        loop {
            match control::receive(self.control.socket.as_fd()) {
                Ok(Received::Nothing) => return Ok(()),
                Ok(Received::End) => return Err("closed by the server".to_owned()),
                Ok(Received::Nonsense) => return Err("not a control message".to_owned()),
                Ok(Received::Message(message, descriptor)) => self.act(message, descriptor)?,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn act(&self, message: Message, descriptor: Option<OwnedFd>) -> Result<(), String> {
        let mut table = Table::clone(&self.table.load());
        match (message, descriptor) {
            (Message::Allow, None) => table.allowed = true,
            (Message::Revoke, None) => table = Table::default(),
            (Message::Retire(id), None) => table.chunks.retain(|(chunk, _)| *chunk != id),
            (Message::Chunk(id, geometry), Some(file)) => {
                let place = table.chunks.binary_search_by_key(&id, |(id, _)| *id);
                let Err(at) = place else {
                    return Err(format!("chunk {id} is handed over twice"));
                };
                if geometry != self.geometry || table.chunks.len() >= MOST_CHUNKS {
                    return Err(format!(
                        "chunk {id} has other sizes than it should, or is too many"
                    ));
                }
                let chunk = PeerChunk::map(file.as_fd(), geometry)
                    .map_err(|error| format!("chunk {id} cannot be mapped: {error}"))?;
                let control = Arc::clone(&self.control);
                table.chunks.insert(at, (id, Arc::new(Mapped { id, chunk: Some(chunk), control })));
            }
            (other, _) => return Err(format!("an unexpected control message: {other:?}")),
        }
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// Acts upon messages as they come, until told to stop. The error says why no more will come.
    pub(crate) fn serve(&self) -> Result<(), String> {
        loop {
            self.receive_all()?;
            let untold = !lock(&self.control.untold).is_empty();
            let mut events = PollFlags::IN;
            events.set(PollFlags::OUT, untold);
            let mut fds = [
                PollFd::new(&self.control.socket, events),
                PollFd::new(&self.control.kick, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
            if fds[1].revents().contains(PollFlags::IN) {
                let _ = rustix::io::read(&self.control.kick, &mut [0u8; 8]);
            }
            if self.control.stopped.load(Ordering::Acquire) {
                return Ok(());
            }
            if untold {
                self.control.tell(None);
            }
        }
    }

    /// Ends [`serve`](Self::serve).
    pub(crate) fn stop(&self) {
        self.control.stopped.store(true, Ordering::Release);
        self.control.kick();
    }

    /// Lets go of everything, and of the connection.
    pub(crate) fn close(&self) {
        self.table.store(Arc::default());
        crate::stream::io::shut_down(self.control.socket.as_fd());
    }
}
