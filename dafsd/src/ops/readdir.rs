//! READDIR: lists a directory, part by part.

use super::{OpContext, OpError, overlaid};
use dafs_proto::{DirEntry, ReaddirReply, ReaddirRequest};

/// Most bytes of entries in one reply.
const MAX_BYTES: usize = 32 << 10;

/// Serves READDIR. `.` and `..` are not listed.
///
/// # Errors
/// The store's.
pub async fn readdir(cx: &OpContext, request: ReaddirRequest) -> Result<ReaddirReply, OpError> {
    let directory = cx.handle(&request.directory)?;
    let max_bytes = (request.max_bytes as usize).min(MAX_BYTES);
    let (entries, end) = cx
        .store(move |store, who| store.readdir(who, &directory, request.cookie, max_bytes))
        .await?;
    let entries = entries.into_iter().map(|entry| DirEntry {
        name: entry.name,
        cookie: entry.cookie,
        handle: cx.wire(&entry.node.handle),
        attr: Some(overlaid(cx, entry.node)),
    });
    Ok(ReaddirReply { entries: entries.collect(), end })
}
