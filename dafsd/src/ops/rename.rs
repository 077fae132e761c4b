//! RENAME: moves a name, replacing what bears the new one.

use super::unlink::tell_cache;
use super::{OpContext, OpError};
use crate::store::Handle;
use dafs_proto::{RenameReply, RenameRequest};

/// Serves RENAME.
///
/// # Errors
/// The store's; nothing was renamed then.
pub async fn rename(cx: &OpContext, request: RenameRequest) -> Result<RenameReply, OpError> {
    cx.check_writable()?;
    let from = Handle::from_wire(&request.from_directory)?;
    let to = Handle::from_wire(&request.to_directory)?;
    let RenameRequest { from_name, to_name, .. } = request;
    let renamed = cx.store(move |store| store.rename((&from, &from_name), (&to, &to_name))).await?;
    if let Some(file) = cx.server.cache().find(&renamed.moved) {
        // Renaming changes a file's ctime, which must not look like someone else's change.
        file.touched().await?;
    }
    if let Some(replaced) = renamed.replaced {
        tell_cache(cx, replaced).await?;
    }
    Ok(RenameReply {})
}
