//! UNLINK: removes a name that is not a directory's.

use super::{OpContext, OpError};
use crate::store::Removed;
use dafs_proto::{UnlinkReply, UnlinkRequest};

/// Serves UNLINK. A file that is open stays until its last client closes it.
///
/// # Errors
/// The store's; nothing was removed then.
pub async fn unlink(cx: &OpContext, request: UnlinkRequest) -> Result<UnlinkReply, OpError> {
    cx.check_writable()?;
    let directory = cx.handle(&request.directory)?;
    let removed = cx.store(move |store, who| store.unlink(who, &directory, &request.name)).await?;
    tell_cache(cx, removed).await;
    Ok(UnlinkReply {})
}

/// Tells the page cache what became of a file that lost a name.
pub(super) async fn tell_cache(cx: &OpContext, removed: Removed) {
    let Some(file) = cx.server.cache().find(&removed.identity) else { return };
    if removed.last {
        file.removed();
    } else {
        file.touched(false).await;
    }
}
