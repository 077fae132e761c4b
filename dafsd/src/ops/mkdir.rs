//! MKDIR: creates a directory.

use super::{OpContext, OpError};
use crate::store::Handle;
use dafs_proto::{MkdirReply, MkdirRequest};

/// Serves MKDIR.
///
/// # Errors
/// The store's; nothing was created then.
pub async fn mkdir(cx: &OpContext, request: MkdirRequest) -> Result<MkdirReply, OpError> {
    cx.check_writable()?;
    let directory = Handle::from_wire(&request.directory)?;
    let attr = request.attr.unwrap_or_default();
    let node = cx.store(move |store| store.mkdir(&directory, &request.name, &attr)).await?;
    Ok(MkdirReply { handle: node.handle.as_bytes().to_vec(), attr: Some(node.attr) })
}
