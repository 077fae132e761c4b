//! Opens that may read, and what they are given to read with.
//!
//! A file's epoch moves when someone loses the right to read it. So an open may read only as long
//! as that has been looked at since the epoch moved last, and a key is given only for the epoch that
//! it was looked at in.

use super::{OpContext, OpError, Open};
use dafs_keys::Protection;
use dafs_keys::tags::TAG_LEN;
use dafs_proto::{FileKey, Status};
use ordma::FOOTER_LEN;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A new epoch has begun since the right was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved;

impl OpContext {
    /// The open file that the client calls `id`, to be read.
    ///
    /// # Errors
    /// [`Status::BadOpen`] where there is no such open, or it was not opened for reading;
    /// [`Status::Access`] where the right to read was taken away since.
    pub(super) async fn reader(&self, id: u64) -> Result<Arc<Open>, OpError> {
        let open = self.open(id)?;
        if !open.read {
            let what = "read a file that was not opened for reading";
            return Err(OpError::new(Status::BadOpen, what));
        }
        self.check_right(&open).await?;
        Ok(open)
    }

    /// Sees to it that the right to read has been looked at in the file's present epoch.
    pub(super) async fn check_right(&self, open: &Open) -> Result<(), OpError> {
        let epoch = open.file.epoch();
        if !open.is_checked_in(epoch) {
            let handle = open.handle.clone();
            self.store(move |store, who| store.may_read(who, &handle)).await?;
            open.checked.store(epoch, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The key of the file where the client has another one, which is of epoch `held`.
    ///
    /// # Errors
    /// [`Moved`]: the right has to be looked at once more.
    pub(super) fn key(&self, open: &Open, held: u64) -> Result<Option<FileKey>, Moved> {
        let epoch = open.file.epoch();
        if !open.is_checked_in(epoch) {
            return Err(Moved);
        }
        // As a rule the client has it, and then none is made.
        if epoch == held {
            return Ok(None);
        }
        match open.file.key(Some(self.session.reads())) {
            None => Ok(None),
            Some((epoch, _)) if !open.is_checked_in(epoch) => Err(Moved),
            Some((epoch, secret)) => Ok(Some(FileKey { epoch, secret: secret.expose().to_vec() })),
        }
    }

    /// Whether pages in replies bear tags.
    pub(super) fn is_tagged(&self) -> bool {
        self.export().protection == Protection::Keyed
    }

    /// Tags for pages in a reply, where they need any: the first of their numbers, and the tags.
    /// `data` holds all footers, then all payloads.
    pub(super) fn tag_pages(&self, data: &[u8]) -> (u64, Vec<u8>) {
        let page = self.server.limits().page_size;
        let count = data.len() / (FOOTER_LEN + page);
        let channel = self.link.channel().filter(|_| count > 0);
        let Some(channel) = channel.filter(|_| self.is_tagged()) else {
            return (0, Vec::new());
        };
        let first = channel.take_tag_numbers(count as u64);
        let (footers, payloads) = data.split_at(count * FOOTER_LEN);
        let mut tags = Vec::with_capacity(count * TAG_LEN);
        let mut bytes = Vec::with_capacity(FOOTER_LEN + page);
        let pages = footers.chunks_exact(FOOTER_LEN).zip(payloads.chunks_exact(page));
        for (number, (footer, payload)) in (first..).zip(pages) {
            bytes.clear();
            bytes.extend_from_slice(footer);
            bytes.extend_from_slice(payload);
            tags.extend_from_slice(&channel.page_tags().tag(number, &bytes));
        }
        (first, tags)
    }
}
