//! RENAME: moves a name, replacing what bears the new one.

use super::unlink::{MayRemove, tell_cache};
use super::{OpContext, OpError};
use crate::store::{Credential, Store};
use dafs_proto::{RenameReply, RenameRequest};

/// Serves RENAME.
///
/// # Errors
/// The store's, and those of UNLINK for what bears the new name; nothing was renamed then.
pub async fn rename(cx: &OpContext, request: RenameRequest) -> Result<RenameReply, OpError> {
    cx.check_writable()?;
    let from = cx.handle(&request.from_directory)?;
    let to = cx.handle(&request.to_directory)?;
    let RenameRequest { from_name, to_name, .. } = request;
    let may = MayRemove::of(cx);
    let rename = move |store: &dyn Store, who: &Credential| {
        may.check(store, who, &to, &to_name)?;
        store.rename(who, (&from, &from_name), (&to, &to_name))
    };
    let renamed = cx.store(rename).await?;
    if let Some(file) = cx.server.cache().find(&renamed.moved) {
        // Renaming changes a file's ctime, which must not look like someone else's change.
        file.touched(false).await;
    }
    if let Some(replaced) = renamed.replaced {
        tell_cache(cx, replaced).await;
    }
    Ok(RenameReply {})
}
