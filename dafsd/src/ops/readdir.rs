//! READDIR: lists a directory, part by part.

use super::{OpContext, OpError, overlaid};
use crate::store::Entry;
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
    let since = cx.server.cache().moment();
    let (found, end) = cx
        .store(move |store, who| store.readdir(who, &directory, request.cookie, max_bytes))
        .await?;
    let mut entries = Vec::with_capacity(found.len());
    for Entry { name, cookie, node } in found {
        let handle = cx.wire(&node.handle);
        let attr = Some(overlaid(cx, since, node).await?);
        entries.push(DirEntry { name, cookie, handle, attr });
    }
    Ok(ReaddirReply { entries, end })
}
