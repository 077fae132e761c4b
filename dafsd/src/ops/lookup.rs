//! LOOKUP: finds a name in a directory.

use super::{OpContext, OpError, overlaid};
use dafs_proto::{LookupReply, LookupRequest};

/// Serves LOOKUP. Symbolic links are found, not followed.
///
/// # Errors
/// The store's.
pub async fn lookup(cx: &OpContext, request: LookupRequest) -> Result<LookupReply, OpError> {
    let directory = cx.handle(&request.directory)?;
    let since = cx.server.cache().moment();
    let node = cx.store(move |store, who| store.lookup(who, &directory, &request.name)).await?;
    let handle = cx.wire(&node.handle);
    Ok(LookupReply { handle, attr: Some(overlaid(cx, since, node).await?) })
}
