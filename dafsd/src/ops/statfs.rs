//! STATFS: how much space the file system has.

use super::{OpContext, OpError};
use crate::store::Handle;
use dafs_proto::{StatfsReply, StatfsRequest};

/// Serves STATFS. Data that is not on disk yet does not count.
///
/// # Errors
/// The store's.
pub async fn statfs(cx: &OpContext, request: StatfsRequest) -> Result<StatfsReply, OpError> {
    let handle = Handle::from_wire(&request.handle)?;
    cx.store(move |store| store.statfs(&handle)).await
}
