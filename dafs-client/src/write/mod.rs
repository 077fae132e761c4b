//! Writing: inline or direct by size, several requests in flight, and what is not yet on stable
//! storage kept to be sent again.
//!
//! | module | what it does |
//! |---|---|
//! | `send` | one WRITE, or the change of a size |
//! | `commit` | bringing to stable storage, and sending again what the server has lost |
//! | `uncommitted` | what is kept of a file |

mod commit;
mod send;
mod uncommitted;

pub(crate) use commit::{commit, send_lost, settle};
pub(crate) use send::{receipt, set_size, set_size_of};
pub(crate) use uncommitted::{Receipt, Uncommitted};

use crate::error::{Error, Result};
use crate::file::{self, OpenFile};
use crate::files::Turn;
use crate::options::Stability;
use crate::session::rpc::Lane;
use crate::sync::{Boxed, join_all, lock};
use dafs_proto::WireRef;
use ordma::{RemoteRef, Segment};
use send::{Wish, Written, deliver};
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
                let range = offset..offset + piece.len as u64;
                // What is sent again of these bytes goes first.
                let _turn = file.state.turns.take(Turn::New, range).await;
                let done = |part: &Segment, offset, written: Written| {
                    keep(file, part, offset, &written);
                    count += written.count;
                };
                let wish = Wish { lane: Lane::Normal, stability, resend: None };
                match deliver(file, wish, &piece, offset, done).await {
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
    let (session, receipt) = (file.session(), written.receipt);
    if written.stability != dafs_proto::Stability::Unstable {
        let range = offset..offset + written.count as u64;
        file.state.keep(session, |uncommitted| uncommitted.replaced(&range, &receipt));
        return;
    }
    let Some(bytes) = from.with_ref(|bytes| bytes[..written.count].to_vec()) else { return };
    session.counters.copied_bytes.add(bytes.len() as u64);
    file.state.keep(session, |uncommitted| uncommitted.keep(offset, bytes, receipt));
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
        if lock(&other.state.uncommitted).bytes() > 0 {
            // Its own commit will report what goes wrong with it.
            if let Err(error) = Box::pin(commit(&other, 0, 0)).await {
                tracing::debug!(%error, file = %other.name, "could not commit to make room");
            }
        }
    }
    Ok(())
}
