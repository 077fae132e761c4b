//! STATFS: how much space the file system has.

use super::{OpContext, OpError};
use dafs_proto::{StatfsReply, StatfsRequest};

/// Serves STATFS. Data that is not on disk yet does not count.
///
/// # Errors
/// The store's.
pub async fn statfs(cx: &OpContext, request: StatfsRequest) -> Result<StatfsReply, OpError> {
    let handle = cx.handle(&request.handle)?;
    cx.store(move |store, who| store.statfs(who, &handle)).await
}
