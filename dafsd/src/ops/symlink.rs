//! SYMLINK: creates a symbolic link.

use super::{OpContext, OpError};
use dafs_proto::{SymlinkReply, SymlinkRequest};

/// Serves SYMLINK. The target is kept as it is; the server never follows it.
///
/// # Errors
/// The store's; nothing was created then.
pub async fn symlink(cx: &OpContext, request: SymlinkRequest) -> Result<SymlinkReply, OpError> {
    cx.check_writable()?;
    let directory = cx.handle(&request.directory)?;
    let SymlinkRequest { name, target, .. } = request;
    let node = cx.store(move |store, who| store.symlink(who, &directory, &name, &target)).await?;
    Ok(SymlinkReply { handle: cx.wire(&node.handle), attr: Some(node.attr) })
}
