//! An open file.

use crate::client;
use crate::counters::ReadReport;
use crate::error::{Error, Result};
use crate::file::OpenFile;
use crate::ops::Core;
use crate::options::{Path, Stability};
use crate::{read, write};
use dafs_proto::{Attr, Op, SetAttr, Status};
use ordma::region::{lend, lend_shared};
use std::sync::Arc;

/// An open file, which several threads may use at the same time. Clones are the same open; it is
/// closed, without waiting for the server, when the last of them is dropped.
#[derive(Clone, Debug)]
pub struct File {
    pub(super) core: Core,
    pub(super) file: Arc<OpenFile>,
}

impl File {
    pub(crate) fn from_parts(core: Core, file: Arc<OpenFile>) -> Self {
        Self { core, file }
    }

    /// The same open with the asynchronous interface.
    #[must_use]
    pub fn into_async(self) -> client::File {
        client::File::from_parts(self.core, self.file)
    }

    /// Reads up to `buf.len()` bytes at `offset`; how many were read, which is fewer only at the end
    /// of the file. Bytes of the buffer after those read are undefined.
    ///
    /// Each page is read atomically; of several pages each may be of another time.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.read_at_by(buf, offset, Path::Auto).map(|report| report.bytes)
    }

    /// The same, and tells how the read was served.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    pub fn read_at_report(&self, buf: &mut [u8], offset: u64) -> Result<ReadReport> {
        self.read_at_by(buf, offset, Path::Auto)
    }

    /// The same by a path of the caller's choice.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    pub fn read_at_by(&self, buf: &mut [u8], offset: u64, path: Path) -> Result<ReadReport> {
        lend(buf, |region| {
            let to = region.segment(0, region.len());
            self.core.owner.block_on(read::read(&self.file, &to, offset, path))
        })
    }

    /// Fills the buffer from `offset` on.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at); [`Error::Status`] with [`Status::Invalid`] where the file
    /// ends before, in which case the buffer holds what there is.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let count = self.read_at(&mut buf[done..], offset + done as u64)?;
            if count == 0 {
                return Err(Error::Status {
                    op: Op::Read,
                    status: Status::Invalid,
                    message: format!("the file ends at {}", offset + done as u64),
                    what: format!("{} bytes at {offset} of {}", buf.len(), self.file.name),
                });
            }
            done += count;
        }
        Ok(())
    }

    /// Writes the buffer at `offset`; how many bytes were written, which is fewer only where an
    /// error hit a later part. Not on stable storage before [`commit`](Self::commit).
    ///
    /// # Errors
    /// The server's; those of the connection. Nothing was written then, as far as is known.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.write_at_stable(buf, offset, Stability::Unstable)
    }

    /// The same with a stability of the caller's choice.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    pub fn write_at_stable(&self, buf: &[u8], offset: u64, stability: Stability) -> Result<usize> {
        lend_shared(buf, |region| {
            let from = region.segment(0, region.len());
            self.core.owner.block_on(write::write(&self.file, &from, offset, stability))
        })
    }

    /// Writes the whole buffer at `offset`.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at); part of the buffer may have been written.
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            // The server takes at least a byte or says why not.
            done += self.write_at(&buf[done..], offset + done as u64)?;
        }
        Ok(())
    }

    /// Brings a range to stable storage, and with it every write to it that returned before;
    /// `length` 0 means to the end of the file. What the server lost meanwhile is sent again first.
    ///
    /// # Errors
    /// The server's; those of the connection. What was not committed is kept, for the next commit.
    pub fn commit(&self, offset: u64, length: u64) -> Result<()> {
        self.core.owner.block_on(write::commit(&self.file, offset, length))
    }

    /// Brings the whole file to stable storage.
    ///
    /// # Errors
    /// As for [`commit`](Self::commit).
    pub fn sync(&self) -> Result<()> {
        self.commit(0, 0)
    }

    /// The file's attributes, from the server.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn attr(&self) -> Result<Attr> {
        self.core.owner.block_on(self.core.getattr_of(&self.file.handle, &self.file.name))
    }

    /// Sets attributes; gives the new ones.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn set_attr(&self, set: SetAttr) -> Result<Attr> {
        self.core.owner.block_on(self.core.set_attr_of(&self.file, set))
    }

    /// Cuts the file off or extends it with zeros.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn set_len(&self, size: u64) -> Result<()> {
        self.set_attr(SetAttr { size: Some(size), ..SetAttr::default() }).map(drop)
    }

    /// Fetches references of a range, so that its pages can be read one-sidedly; with `fill` the
    /// server brings those in that are not cached.
    ///
    /// # Errors
    /// The server's; those of the connection.
    pub fn prefetch(&self, offset: u64, length: u64, fill: bool) -> Result<()> {
        self.core.owner.block_on(read::prefetch(&self.file, offset, length, fill))
    }

    /// Bytes of writes that are kept until they are committed.
    #[must_use]
    pub fn uncommitted(&self) -> usize {
        crate::sync::lock(&self.file.state.uncommitted).bytes()
    }

    /// Closes the file and waits for the server's word. Does not commit. All clones are closed.
    ///
    /// # Errors
    /// The server's; those of the connection. The file is closed in any case.
    pub fn close(&self) -> Result<()> {
        self.core.owner.block_on(self.core.close(&self.file))
    }
}
