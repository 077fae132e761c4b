//! The client's side of a connection after the handshake.

use super::stock::Stock;
use super::{Secured, message, scratch};
use crate::engine::{
    Capabilities, Endpoint, Established, Interest, LinkError, PageReads, ReadBatch, Tag,
};
use crate::lock;
use crate::region::{Region, Segment};
use dafs_keys::{Seal, Secret};
use foldhash::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An endpoint that seals what it sends.
///
/// Receivers must not send from within their callbacks: a thread that sends receives meanwhile.
#[derive(Debug)]
pub(super) struct SecureEndpoint {
    inner: Arc<dyn Endpoint>,
    secured: Arc<Secured>,
    /// Held from sealing to sending: messages have to arrive in the order of sealing. What receives
    /// never takes it.
    order: Mutex<()>,
    stock: Stock,
    /// The sealed copies of what was offered, until it is withdrawn.
    offers: Mutex<HashMap<Tag, Region>>,
}

impl SecureEndpoint {
    pub(super) fn new(inner: Arc<dyn Endpoint>, secured: Arc<Secured>) -> Self {
        Self {
            inner,
            secured,
            order: Mutex::default(),
            stock: Stock::default(),
            offers: Mutex::default(),
        }
    }

    /// Copies data into a buffer of its own and seals it there; `None` where part of it was
    /// withdrawn.
    fn seal(&self, data: &[Segment], len: usize) -> Option<(Region, Seal)> {
        let region = self.stock.take(len);
        let sealed = region.with(|buffer| {
            let mut at = 0;
            for segment in data {
                segment.with_ref(|bytes| {
                    buffer[at..at + bytes.len()].copy_from_slice(bytes);
                    at += bytes.len();
                })?;
            }
            Some(self.secured.established.writes.seal(&mut buffer[..len]))
        });
        Some((region, sealed.flatten()?))
    }

    fn send_sealed(
        &self,
        head: &[u8],
        seal: Option<&Seal>,
        data: &[Segment],
    ) -> Result<(), LinkError> {
        let sent = scratch::with(|plain| {
            message::encode(head, seal, plain);
            scratch::with(|sealed| {
                let _order = lock(&self.order);
                self.secured.channel.seal(plain, sealed);
                self.inner.send(sealed, data)
            })
        });
        if sent.is_err() {
            // The server would miss it, and could open nothing that follows.
            self.inner.close();
        }
        sent
    }
}

fn len(data: &[Segment]) -> usize {
    data.iter().map(|segment| segment.len).sum()
}

impl Endpoint for SecureEndpoint {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn peer(&self) -> String {
        self.inner.peer()
    }

    /// Seals and sends a message.
    ///
    /// # Errors
    /// When the connection is lost, or is closed because the message exceeds the server's limits;
    /// and where the data was withdrawn, which changes nothing.
    fn send(&self, head: &[u8], data: &[Segment]) -> Result<(), LinkError> {
        let len = len(data);
        if len == 0 {
            return self.send_sealed(head, None, &[]);
        }
        let Some((region, seal)) = self.seal(data, len) else {
            return Err(LinkError::Closed("data to be sent was withdrawn".to_owned()));
        };
        self.send_sealed(head, Some(&seal), &[region.segment(0, len)])?;
        self.stock.put(region);
        Ok(())
    }

    fn advertise(&self, buffer: Vec<Segment>) -> Tag {
        self.inner.advertise(buffer)
    }

    fn offer(&self, data: Vec<Segment>) -> (Tag, Vec<u8>) {
        let len = len(&data);
        let Some((region, seal)) = self.seal(&data, len) else {
            // As it is with memory that is withdrawn later: the server's fetch fails.
            let gone = Region::owned(vec![0; len]);
            drop(gone.take());
            return self.inner.offer(vec![gone.segment(0, len)]);
        };
        let (tag, _) = self.inner.offer(vec![region.segment(0, len)]);
        lock(&self.offers).insert(tag, region);
        (tag, seal.encode().to_vec())
    }

    fn channel(&self) -> Option<&Arc<Established>> {
        Some(&self.secured.established)
    }

    /// Done already, with the handshake.
    fn prove(&self, _connection: &Secret) {}

    fn withdraw(&self, tag: Tag) -> u64 {
        let placed = self.inner.withdraw(tag);
        if let Some(region) = lock(&self.offers).remove(&tag) {
            self.stock.put(region);
        }
        placed
    }

    fn read(&self, reads: PageReads) -> Arc<ReadBatch> {
        self.inner.read(reads)
    }

    fn reads_now(&self) -> bool {
        self.inner.reads_now()
    }

    fn drive(&self, interest: Interest, timeout: Duration) {
        self.inner.drive(interest, timeout);
    }

    fn interrupt(&self) {
        self.inner.interrupt();
    }

    fn close(&self) {
        self.inner.close();
    }
}
