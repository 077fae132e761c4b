//! Reading: one-sidedly where there is a reference, else by RPC.
//!
//! The decision order: is there a reference in the directory? Read through it. On a fault, or
//! without a reference, READ: inline or direct by size; its reply brings pages and fresh
//! references. Pages that lie wholly in the caller's buffer land there; the first and the last, if
//! only a part of them is wanted, go through a bounce page.

mod fetch;
mod page;
mod steady;
mod ways;
mod window;

use crate::counters::ReadReport;
use crate::error::{Error, Result};
use crate::file::{self, OpenFile};
use crate::keyring::Told;
use crate::options::Path;
use crate::session::rpc::Lane;
use crate::sync::lock;
use crate::write::{MAX_SIZE, install};
use dafs_proto::{Extent, GetRefsRequest};
use ordma::{AccessFault, Segment};
use page::Single;
use std::sync::{Arc, Mutex};
use window::End;

/// Bytes handled at a time: a longer read is several of these, one after the other.
const WINDOW: usize = 8 << 20;
/// Pages whose references are asked for at a time.
const REFS_AT_ONCE: u64 = 2048;

/// A fault that a page's first one-sided read met.
#[derive(Clone, Copy, Debug)]
struct Prior {
    block: u64,
    fault: AccessFault,
}

/// Reads into the segment from `offset` on. Bytes of the segment after those read are undefined.
pub(crate) async fn read(
    file: &Arc<OpenFile>,
    to: &Segment,
    offset: u64,
    path: Path,
) -> Result<ReadReport> {
    file.check(file::READ)?;
    if offset.checked_add(to.len as u64).is_none_or(|end| end > MAX_SIZE) {
        let what = format!("read of {} bytes at {offset}: beyond the largest size", to.len);
        return Err(Error::InvalidArgument(what));
    }
    if to.len == 0 {
        return Ok(ReadReport::default());
    }
    let prior = match path {
        Path::Inline | Path::Direct => None,
        Path::Auto | Path::Ordma => match page::read_one(file, to, offset).await {
            Single::Done(report) => return Ok(report),
            Single::NotOne => None,
            Single::Faulted(prior) => Some(prior),
        },
    };
    // Apart, so that what a single page needs stays small.
    Box::pin(read_windows(file, to, offset, path, prior)).await
}

async fn read_windows(
    file: &Arc<OpenFile>,
    to: &Segment,
    offset: u64,
    path: Path,
    prior: Option<Prior>,
) -> Result<ReadReport> {
    let start = offset;
    let mut report = ReadReport::default();
    while report.bytes < to.len {
        let len = WINDOW.min(to.len - report.bytes);
        let part = to.region.segment(to.start + report.bytes, len);
        let prior = prior.filter(|_| report.bytes == 0);
        let offset = offset + report.bytes as u64;
        // A read that fails later on fails as a whole: fewer bytes would say that the file ends.
        let (window, end) = window::read(file, &part, offset, path, prior).await?;
        report.add(&window);
        let moved = match end {
            End::Full => continue,
            End::Moved(block) => block,
            // Nothing before this window was the end of the file, and it begins with a page.
            End::OfFile if window.bytes == 0 && report.bytes > 0 => {
                offset / file.session().grant()?.page_size as u64
            }
            End::OfFile => break,
        };
        steady::read_on(file, to, start, moved, path, &mut report).await?;
        break;
    }
    file.session().counters.copied_bytes.add(report.copied);
    Ok(report)
}

/// Fetches references of a range of a file, so that its pages can be read one-sidedly; with `fill`
/// the server brings those in that are not cached.
pub(crate) async fn prefetch(file: &OpenFile, offset: u64, length: u64, fill: bool) -> Result<()> {
    file.check(file::READ)?;
    let session = file.session();
    let page_size = session.grant()?.page_size as u64;
    let end = offset.saturating_add(length).min(MAX_SIZE);
    let mut at = offset - offset % page_size;
    while at < end {
        let length = (REFS_AT_ONCE * page_size).min(end - at);
        let extent = Some(Extent { offset: at, length });
        // Each attempt tells anew: it may be made in another session.
        let told = Mutex::new(Told::default());
        let make = |open| {
            let new = Told::default();
            let key_epoch = new.epoch(&file.keyring);
            *lock(&told) = new;
            GetRefsRequest { open, extent, fill, key_epoch }
        };
        let (message, mut reply) =
            file.call_in::<GetRefsRequest>(Lane::Normal, Vec::new(), make).await?;
        let epoch = reply.epoch;
        let key = lock(&told).take(&file.keyring, message.key, &mut reply);
        key.map_err(|reason| session.violation(epoch, reason))?;
        if message.file != file.number() {
            return Err(session.violation(epoch, "references of another file"));
        }
        install(file, &message.refs, REFS_AT_ONCE, epoch)?;
        file.saw_size(message.size, session.grant()?.page_size);
        at += length;
        if at >= message.size {
            break;
        }
    }
    Ok(())
}
