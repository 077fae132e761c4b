//! READLINK: reads a symbolic link.

use super::{OpContext, OpError};
use dafs_proto::{ReadlinkReply, ReadlinkRequest};

/// Serves READLINK.
///
/// # Errors
/// The store's; [`Invalid`](dafs_proto::Status::Invalid) for what is not a symbolic link.
pub async fn readlink(cx: &OpContext, request: ReadlinkRequest) -> Result<ReadlinkReply, OpError> {
    let handle = cx.handle(&request.handle)?;
    let target = cx.store(move |store, who| store.readlink(who, &handle)).await?;
    Ok(ReadlinkReply { target })
}
