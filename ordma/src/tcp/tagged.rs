//! Tagged requests at the server: who may read a page in the clear is shown by the request itself.
//!
//! A page is given only where its tag is right, under the key of the file in the epoch that the
//! request names, and where the footer bears that epoch. The slot is copied out first and everything
//! is read from the copy, so that what is sent is exactly what was checked and is tagged.
//!
//! Footers hold 16 bits of the epoch. The tag is under the key of the whole epoch, so that no one can
//! make one up; but who was given a key 65 536 epochs of the file ago, in the same session, passes
//! for one that was given today's.

use super::wire::{
    FIELDS_LEN, HEADER_LEN, Kind, LONGEST_REQUEST, MOST_TAGGED, TAGGED_LEN, entry_epoch, put_reply,
    read_entry, status_byte, statuses_len,
};
use crate::AccessFault;
use crate::engine::ReadAccess;
use crate::reactor::SCRATCH;
use crate::slot::{FOOTER_LEN, epoch_of, names, version_of};
use crate::stream::server::Server;
use dafs_keys::page::footer_epoch;
use dafs_keys::secret::MacKey;
use dafs_keys::tags::{ConnectionNonce, TAG_LEN};
use dafs_keys::{ReadKey, ReplayWindow, ReplyKey};
use std::io::IoSlice;
use std::sync::Arc;

/// Keys of files that are kept for a connection. One more costs a derivation, which takes a third of
/// a microsecond.
const KEYS: usize = 8;

/// Bytes of the scratch buffer before a page's status byte, so that its payload is aligned.
const BEFORE: usize = FOOTER_LEN - 1;
/// Bytes of the scratch buffer before a page's payload: status byte and footer are the last of them.
const BEFORE_PAYLOAD: usize = BEFORE + 1 + FOOTER_LEN;

/// What the tagged requests of one connection are checked by.
pub(super) struct Tagged {
    nonce: ConnectionNonce,
    numbers: ReplayWindow,
    keys: Option<Keys>,
}

/// What follows from a permission to read.
struct Keys {
    access: Arc<ReadAccess>,
    reply: ReplyKey,
    files: FileKeys,
}

/// The keys of a few files.
#[derive(Default)]
struct FileKeys {
    /// With the files' numbers.
    kept: Vec<(u64, ReadKey)>,
    /// The one that is replaced next.
    next: usize,
}

/// The answer to a request, whose payloads are in the scratch buffer.
pub(super) struct Answer<'a> {
    head: Vec<u8>,
    payloads: Vec<&'a [u8]>,
}

impl Answer<'_> {
    /// What is sent, in order.
    pub(super) fn parts(&self) -> Vec<IoSlice<'_>> {
        let payloads = self.payloads.iter().map(|payload| IoSlice::new(payload));
        std::iter::once(IoSlice::new(&self.head)).chain(payloads).collect()
    }

    /// All of it in one piece.
    pub(super) fn bytes(&self) -> Vec<u8> {
        [&[&self.head[..]], &self.payloads[..]].concat().concat()
    }
}

impl Tagged {
    /// Nothing asked for yet, on a connection with this nonce.
    pub(super) fn new(nonce: ConnectionNonce) -> Self {
        Self { nonce, numbers: ReplayWindow::default(), keys: None }
    }

    /// Answers a request. Pages are copied into `scratch`.
    pub(super) fn answer<'a>(
        &mut self,
        server: &Server,
        access: Option<&Arc<ReadAccess>>,
        number: u64,
        entries: &[u8],
        scratch: &'a mut [u8],
    ) -> Answer<'a> {
        let (count, page_size) = (entries.len() / TAGGED_LEN, server.arena.geometry().page_size);
        // Whatever comes of the request: its number, and with it the nonces of the reply's tags,
        // serve once.
        let fresh = self.numbers.take(number);
        let (mut statuses, mut tags) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut pages = Vec::with_capacity(count);
        match self.keys(access).filter(|_| fresh) {
            None => {
                statuses.resize(count, Err(AccessFault::Revoked));
                tags.resize(count, [0; TAG_LEN]);
            }
            Some((nonce, keys)) => {
                let places = scratch.chunks_exact_mut(BEFORE_PAYLOAD + page_size);
                for ((index, entry), place) in
                    (0..).zip(entries.chunks_exact(TAGGED_LEN)).zip(places)
                {
                    let place = &mut place[BEFORE..];
                    let status = keys.copy(server, nonce, number, index, entry, place);
                    place[0] = status_byte(status);
                    let tagged = if status.is_ok() { &place[..] } else { &place[..1] };
                    tags.push(keys.reply.tag(number, index, tagged));
                    statuses.push(status);
                    if status.is_ok() {
                        pages.push(place[1..].split_at(FOOTER_LEN));
                    }
                }
            }
        }
        let refused = |status: &&Result<(), AccessFault>| **status == Err(AccessFault::Revoked);
        server.refuse(statuses.iter().filter(refused).count());
        let len = HEADER_LEN + statuses_len(count) + count * (TAG_LEN + FOOTER_LEN);
        let mut head = Vec::with_capacity(len);
        put_reply(&mut head, Kind::Tagged, number, &statuses, page_size);
        head.extend_from_slice(tags.as_flattened());
        pages.iter().for_each(|(footer, _)| head.extend_from_slice(footer));
        Answer { head, payloads: pages.into_iter().map(|(_, payload)| payload).collect() }
    }

    /// The keys under this permission; `None` where there is none, or none that came of a handshake.
    fn keys(&mut self, access: Option<&Arc<ReadAccess>>) -> Option<(&ConnectionNonce, &mut Keys)> {
        let Some(access) = access else {
            self.keys = None;
            return None;
        };
        let current = self.keys.as_ref().is_some_and(|keys| Arc::ptr_eq(&keys.access, access));
        if !current {
            let reply = ReplyKey::derive(access.connection.as_ref()?, &self.nonce);
            let access = Arc::clone(access);
            self.keys = Some(Keys { access, reply, files: FileKeys::default() });
        }
        Some((&self.nonce, self.keys.as_mut()?))
    }
}

impl Keys {
    /// Copies a page out, behind its status byte, if the entry shows that it may be given.
    fn copy(
        &mut self,
        server: &Server,
        nonce: &ConnectionNonce,
        number: u64,
        index: u32,
        entry: &[u8],
        place: &mut [u8],
    ) -> Result<(), AccessFault> {
        let (fields, tag) = entry.split_at(FIELDS_LEN);
        let (reference, floor) = read_entry(fields);
        let epoch = entry_epoch(fields);
        let Some(session) = &self.access.session else { return Err(AccessFault::Revoked) };
        let key = self.files.get(session, epoch, reference.file);
        if !key.verify(nonce, number, index, fields, tag) {
            return Err(AccessFault::Revoked);
        }
        let chunk = server.arena.chunk(reference.chunk).ok_or(AccessFault::Gone)?;
        let (footer, payload) = place[1..].split_at_mut(FOOTER_LEN);
        let mut copied = [0; FOOTER_LEN];
        let there = chunk.copy_out(reference.slot, payload, &mut copied);
        if !there || !names(&copied, &reference) || version_of(&copied) < floor {
            return Err(AccessFault::Stale);
        }
        if epoch_of(&copied) != footer_epoch(epoch) {
            return Err(AccessFault::Revoked);
        }
        footer.copy_from_slice(&copied);
        Ok(())
    }
}

impl FileKeys {
    /// The key of a file in an epoch: one that is kept, or derived in the place of another.
    fn get(&mut self, session: &MacKey, epoch: u64, file: u64) -> &ReadKey {
        let kept = self.kept.iter().position(|(of, key)| *of == file && key.epoch() == epoch);
        let at = kept.unwrap_or_else(|| {
            let derived = (file, ReadKey::derive(session, epoch, file));
            let at = self.next;
            self.next = (at + 1) % KEYS;
            match self.kept.get_mut(at) {
                Some(kept) => *kept = derived,
                None => self.kept.push(derived),
            }
            at
        });
        &self.kept[at].1
    }
}

/// There is a place for each page that a request may ask for.
const _: () = assert!(LONGEST_REQUEST + MOST_TAGGED * (BEFORE_PAYLOAD + 4096) <= SCRATCH);
