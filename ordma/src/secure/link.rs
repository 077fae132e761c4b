//! The server's side of a connection, as the service sees it.

use super::greeting::Greeting;
use super::{Secured, scratch};
use crate::arena::Slot;
use crate::engine::{Capabilities, Established, Link, LinkError, ReadAccess, Tag, Transfer};
use crate::lock;
use crate::party::Party;
use dafs_keys::Seal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// What a link turned out to be.
#[derive(Debug)]
pub(super) enum Mode {
    Plain,
    Secure(Arc<Secured>),
}

/// A link that seals what it sends, once it is known that it has to.
#[derive(Debug)]
pub(super) struct SecureLink {
    inner: Arc<dyn Link>,
    pub(super) greeting: Mutex<Greeting>,
    /// Set by the first message for the service.
    mode: OnceLock<Mode>,
    /// Held from sealing to queueing: messages have to arrive in the order of sealing.
    order: Mutex<()>,
    over: AtomicBool,
}

impl SecureLink {
    pub(super) fn new(inner: Arc<dyn Link>) -> Self {
        Self {
            inner,
            greeting: Mutex::new(Greeting::Fresh { asks: 0 }),
            mode: OnceLock::new(),
            order: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn mode(&self) -> Option<&Mode> {
        self.mode.get()
    }

    pub(super) fn settle(&self, mode: Mode) {
        // The messages of a link come one by one, so there is but one first.
        let _ = self.mode.set(mode);
    }

    /// Sends a packet of the handshake.
    pub(super) fn send_packet(&self, packet: &[u8]) {
        self.inner.send(packet, &[]);
    }

    /// Whether nothing more is taken from the link.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Takes nothing more from the link; `false` where that is nothing new.
    pub(super) fn finish(&self) -> bool {
        !self.over.swap(true, Ordering::AcqRel)
    }

    fn secured(&self) -> Option<&Secured> {
        match self.mode.get()? {
            Mode::Plain => None,
            Mode::Secure(secured) => Some(secured),
        }
    }

    /// The service wants something of a client that has not said a word. Whether that may go out
    /// unencrypted is not known.
    fn too_early(&self) {
        self.inner.close("the service did not wait for the client's first message");
    }
}

impl Link for SecureLink {
    fn id(&self) -> u64 {
        self.inner.id()
    }

    fn channel(&self) -> Option<&Arc<Established>> {
        self.secured().map(|secured| &secured.established)
    }

    fn peer(&self) -> String {
        self.inner.peer()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn send(&self, head: &[u8], data: &[u8]) {
        match self.mode.get() {
            None => self.too_early(),
            Some(Mode::Plain) => self.inner.send(head, data),
            Some(Mode::Secure(secured)) => scratch::with(|sealed| {
                let _order = lock(&self.order);
                secured.channel.seal(head, sealed);
                self.inner.send(sealed, data);
            }),
        }
    }

    fn write_to(&self, tag: Tag, data: Vec<u8>) -> Transfer {
        self.inner.write_to(tag, data)
    }

    fn place_slots(&self, tag: Tag, slots: &[Slot]) -> Transfer {
        self.inner.place_slots(tag, slots)
    }

    fn read_from(&self, tag: Tag, offset: u64, buffer: Vec<u8>) -> Transfer {
        self.inner.read_from(tag, offset, buffer)
    }

    fn open_data(&self, seal: &[u8], data: &mut [u8]) -> Result<(), LinkError> {
        let Some(secured) = self.secured() else { return self.inner.open_data(seal, data) };
        let wrong =
            |reason: &str| LinkError::Protocol { peer: self.peer(), reason: reason.to_owned() };
        let seal = Seal::decode(seal).ok_or_else(|| wrong("data without a seal"))?;
        let opened = secured.established.writes.open(&seal, data);
        opened.map_err(|_| wrong("data that is not what was sealed"))
    }

    fn allow_reads(&self, access: Option<ReadAccess>) {
        let access = match (access, self.mode.get()) {
            (Some(_), None) => return self.too_early(),
            (Some(access), Some(Mode::Secure(secured))) => {
                let connection = Some(secured.established.secret.clone());
                Some(ReadAccess { connection, ..access })
            }
            (access, _) => access,
        };
        self.inner.allow_reads(access);
    }

    fn belongs_to(&self, party: Party) {
        self.inner.belongs_to(party);
    }

    fn close(&self, reason: &str) {
        self.inner.close(reason);
    }
}
