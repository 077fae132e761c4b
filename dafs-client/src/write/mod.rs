//! Writing: inline or direct by size, several requests in flight, and what is not yet on stable
//! storage kept to be sent again.

mod uncommitted;

pub(crate) use uncommitted::Uncommitted;

use crate::error::{Error, Result};
use crate::file::{self, OpenFile};
use crate::options::Stability;
use crate::session::outstanding::{Direct, EncodeDirect, Use};
use crate::session::rpc::{Body, Lane, Request};
use crate::sync::{Boxed, join_all, lock};
use dafs_proto::{
    Buffer, CommitRequest, Extent, Op, Placement, Status, WireRef, WriteReply, WriteRequest,
    encode_message,
};
use ordma::{RemoteRef, Segment};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uncommitted::Kept;

/// How often a commit sends lost writes again before it gives up.
const COMMIT_ROUNDS: usize = 8;
/// The largest offset plus one.
pub(crate) const MAX_SIZE: u64 = i64::MAX as u64;

/// Writes the segment's bytes at `offset`; how many were written. Fewer than asked for only after
/// an error that hit a later part.
pub(crate) async fn write(
    file: &Arc<OpenFile>,
    from: &Segment,
    offset: u64,
    stability: Stability,
) -> Result<usize> {
    file.check(file::WRITE)?;
    if offset.checked_add(from.len as u64).is_none_or(|end| end > MAX_SIZE) {
        let what = format!("write of {} bytes at {offset}: beyond the largest size", from.len);
        return Err(Error::InvalidArgument(what));
    }
    if from.len == 0 {
        return Ok(0);
    }
    let session = file.session();
    let grant = session.grant()?;
    // Half of the budget is in flight at a time, so that what is kept stays below it.
    let window = (session.options.retained_bytes / 2).max(grant.page_size);
    let most = grant.max_transfer.min(window);
    let mut written = 0;
    while written < from.len {
        let end = from.len.min(written.saturating_add(window));
        if stability == Stability::Unstable {
            let len = end - written;
            make_room(file, len + len.div_ceil(most) * uncommitted::OVERHEAD).await?;
        }
        let starts = (written..end).step_by(most);
        let pieces = starts.map(|start| {
            let piece = part(from, start, most.min(end - start));
            let offset = offset + start as u64;
            let write = async move {
                let mut count = 0;
                let done = |part: &Segment, offset, written: Written| {
                    keep(file, part, offset, &written);
                    count += written.count;
                };
                match deliver(file, Lane::Normal, &piece, offset, stability, done).await {
                    Err(error) if count == 0 => Err(error),
                    Err(error) => {
                        tracing::debug!(%error, count, "a write was cut short");
                        Ok(count)
                    }
                    Ok(()) => Ok(count),
                }
            };
            Box::pin(write) as Boxed<'_, Result<usize>>
        });
        let asked: Vec<_> = (written..end).step_by(most).map(|s| most.min(end - s)).collect();
        for (result, asked) in join_all(pieces.collect()).await.into_iter().zip(asked) {
            match result {
                Ok(count) => {
                    written += count;
                    if count < asked {
                        return Ok(written);
                    }
                }
                Err(error) if written == 0 => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, written, "a write was cut short");
                    return Ok(written);
                }
            }
        }
    }
    Ok(written)
}

fn part(segment: &Segment, start: usize, len: usize) -> Segment {
    segment.region.segment(segment.start + start, len)
}

/// What a WRITE did.
struct Written {
    count: usize,
    verifier: u64,
    stability: dafs_proto::Stability,
    boot: u64,
}

/// Writes what is at most as long as a transfer: with one WRITE, or, where the data cannot be fetched
/// directly, with several that bring it along. Tells what each has done.
async fn deliver(
    file: &Arc<OpenFile>,
    lane: Lane,
    from: &Segment,
    offset: u64,
    stability: Stability,
    mut done: impl FnMut(&Segment, u64, Written),
) -> Result<()> {
    let session = file.session();
    let grant = session.grant()?;
    let small = from.len <= session.options.inline_write.min(grant.max_inline);
    // Whole pages, where it takes several.
    let inline = grant.max_inline / grant.page_size * grant.page_size;
    if !small && (inline == 0 || session.transfers_directly()) {
        match send(file, lane, from, offset, stability, false).await {
            Ok(written) => {
                done(from, offset, written);
                return Ok(());
            }
            Err(error) if inline > 0 && session.only_transfer_failed(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let most = if small { from.len } else { inline };
    let mut at = 0;
    while at < from.len {
        let part = part(from, at, most.min(from.len - at));
        let offset = offset + at as u64;
        let written = send(file, lane, &part, offset, stability, true).await?;
        at += written.count;
        done(&part, offset, written);
    }
    Ok(())
}

/// Sends one WRITE, at most as long as a transfer may be.
async fn send(
    file: &Arc<OpenFile>,
    lane: Lane,
    from: &Segment,
    offset: u64,
    stability: Stability,
    inline: bool,
) -> Result<Written> {
    let session = file.session();
    let length = from.len as u64;
    let want_refs = session.options.neighbours;
    let make = move |open, placement: Placement, buffers: Vec<Buffer>, seal| WriteRequest {
        open,
        extents: vec![Extent { offset, length }],
        placement: placement.into(),
        buffers,
        stability: dafs_proto::Stability::from(stability).into(),
        want_refs,
        seal,
    };
    let (reply, epoch) = if inline {
        session.counters.inline_writes.add(1);
        let make = |open| make(open, Placement::Inline, Vec::new(), Vec::new());
        let taken = file.call_in::<WriteRequest>(lane, vec![from.clone()], make).await?;
        (taken.0, taken.1.epoch)
    } else {
        session.counters.direct_writes.add(1);
        loop {
            file.check(0)?;
            let opened = Arc::clone(file);
            let encode: EncodeDirect = Arc::new(move |header, lent| {
                let (buffers, seal) = (vec![lent.buffer(length)], lent.seal.clone());
                encode_message(header, &make(opened.open(), Placement::Direct, buffers, seal))
            });
            let buffer = vec![from.clone()];
            let body = Body::Direct(Direct { encode, buffer, purpose: Use::Fetch });
            let request =
                Request { op: Op::Write, file: Some(file), body, data: Vec::new(), sink: None };
            let result = session.request(lane, request).await;
            if let Some((message, reply)) = file.take_reply::<WriteRequest>(lane, result).await? {
                break (message, reply.epoch);
            }
        }
    };
    check_reply(file, &reply, epoch, length, stability)?;
    let grant = session.grant()?;
    session.counters.written_bytes.add(reply.count);
    install(file, &reply.refs, length.div_ceil(grant.page_size as u64) + 1, epoch)?;
    file.saw_size(reply.size, grant.page_size);
    Ok(Written {
        count: usize::try_from(reply.count).unwrap_or(from.len),
        verifier: reply.verifier,
        stability: reply.stability(),
        boot: grant.boot,
    })
}

fn check_reply(
    file: &OpenFile,
    reply: &WriteReply,
    epoch: u64,
    length: u64,
    stability: Stability,
) -> Result<()> {
    let session = file.session();
    if reply.count > length || (reply.count == 0 && length > 0) {
        let reason = format!("{} of {length} bytes written", reply.count);
        return Err(session.violation(epoch, &reason));
    }
    if reply.stability < i32::from(dafs_proto::Stability::from(stability)) {
        return Err(session.violation(epoch, "a write is less stable than was asked for"));
    }
    if reply.file != file.number() {
        return Err(session.violation(epoch, "the reply to a write is about another file"));
    }
    Ok(())
}

/// Takes references of a file's pages into the directory; no more than could have been asked for.
pub(crate) fn install(file: &OpenFile, refs: &[u8], pages: u64, epoch: u64) -> Result<()> {
    if refs.is_empty() {
        return Ok(());
    }
    let session = file.session();
    let refs = WireRef::iter(refs).map_err(|error| session.violation(epoch, &error.to_string()))?;
    let most = pages.saturating_add(u64::from(session.options.neighbours));
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let number = file.number();
    let mut table = lock(&session.table);
    for WireRef { block, generation, chunk, slot } in refs.take(most) {
        let reference = RemoteRef { chunk, slot, file: number, block, generation };
        table.directory.install(reference, None);
    }
    Ok(())
}

/// Keeps a copy of what was written but is not stable.
fn keep(file: &OpenFile, from: &Segment, offset: u64, written: &Written) {
    if written.stability != dafs_proto::Stability::Unstable {
        return;
    }
    let Some(bytes) = from.with_ref(|bytes| bytes[..written.count].to_vec()) else { return };
    let session = file.session();
    session.counters.copied_bytes.add(bytes.len() as u64);
    let added = lock(&file.uncommitted).keep(offset, bytes, written.verifier, written.boot);
    session.retained.fetch_add(added, Ordering::Relaxed);
}

/// Commits until `len` more bytes fit the budget of uncommitted writes.
async fn make_room(file: &Arc<OpenFile>, len: usize) -> Result<()> {
    let session = file.session();
    let fits = || {
        let kept = session.retained.load(Ordering::Relaxed);
        kept == 0 || kept.saturating_add(len) <= session.options.retained_bytes
    };
    if fits() {
        return Ok(());
    }
    commit(file, 0, 0).await?;
    if fits() {
        return Ok(());
    }
    for other in session.files.all() {
        if lock(&other.uncommitted).bytes() > 0 {
            // Its own commit will report what goes wrong with it.
            if let Err(error) = Box::pin(commit(&other, 0, 0)).await {
                tracing::debug!(%error, file = %other.name, "could not commit to make room");
            }
        }
    }
    Ok(())
}

/// Brings a range (`length` 0: to the end of the file) to stable storage; sends again what the
/// server has lost meanwhile.
pub(crate) async fn commit(file: &Arc<OpenFile>, offset: u64, length: u64) -> Result<()> {
    file.check(0)?;
    let session = file.session();
    for _ in 0..COMMIT_ROUNDS {
        if let Some(error) = lock(&file.uncommitted).take_error() {
            return Err(error);
        }
        let before = lock(&file.uncommitted).latest();
        let extent = Some(Extent { offset, length });
        let reply = file.call(|open| CommitRequest { open, extent }).await?;
        let lost = {
            let mut uncommitted = lock(&file.uncommitted);
            let freed = uncommitted.committed(offset, length, before, reply.verifier);
            session.retained.fetch_sub(freed, Ordering::Relaxed);
            uncommitted.select(|kept| {
                kept.id <= before && kept.touches(offset, length) && kept.verifier != reply.verifier
            })
        };
        if lost.is_empty() {
            return Ok(());
        }
        send_again(file, Lane::Normal, lost).await?;
    }
    Err(Error::Status {
        op: Op::Commit,
        status: Status::Io,
        message: "the server lost uncommitted writes again and again".into(),
        what: file.name.clone(),
    })
}

/// Sends again what was written to the server before it was restarted and is not committed.
pub(crate) async fn send_lost(file: &Arc<OpenFile>, lane: Lane) -> Result<()> {
    let boot = file.session().grant()?.boot;
    let lost = lock(&file.uncommitted).select(|kept| kept.boot != boot);
    send_again(file, lane, lost).await
}

async fn send_again(file: &Arc<OpenFile>, lane: Lane, lost: Vec<Kept>) -> Result<()> {
    let session = file.session();
    for kept in lost {
        let grant = session.grant()?;
        let mut sent = 0;
        // Of several parts the first counts: should the verifier change between them, the next
        // commit's differs from it, and all are sent once more.
        let mut first = None;
        while sent < kept.data.len() {
            let from = kept.data.segment(sent, grant.max_transfer.min(kept.data.len() - sent));
            let offset = kept.offset + sent as u64;
            let done = |_: &Segment, _, written: Written| {
                sent += written.count;
                session.counters.resent_bytes.add(written.count as u64);
                first.get_or_insert(written);
            };
            match deliver(file, lane, &from, offset, Stability::Unstable, done).await {
                Ok(()) => {}
                Err(error @ Error::Status { .. }) => {
                    tracing::warn!(%error, "uncommitted writes are lost");
                    let freed = lock(&file.uncommitted).lose(kept.id, error);
                    session.retained.fetch_sub(freed, Ordering::Relaxed);
                    first = None;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(written) = first {
            lock(&file.uncommitted).sent_again(kept.id, written.verifier, written.boot);
        }
    }
    Ok(())
}
