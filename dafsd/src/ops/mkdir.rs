//! MKDIR: creates a directory.

use super::{OpContext, OpError};
use dafs_proto::{MkdirReply, MkdirRequest};

/// Serves MKDIR.
///
/// # Errors
/// The store's; nothing was created then.
pub async fn mkdir(cx: &OpContext, request: MkdirRequest) -> Result<MkdirReply, OpError> {
    cx.check_writable()?;
    let directory = cx.handle(&request.directory)?;
    let attr = request.attr.unwrap_or_default();
    let node =
        cx.store(move |store, who| store.mkdir(who, &directory, &request.name, &attr)).await?;
    Ok(MkdirReply { handle: cx.wire(&node.handle), attr: Some(node.attr) })
}
