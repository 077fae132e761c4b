//! LOOKUP: finds a name in a directory.

use super::{OpContext, OpError, overlaid};
use crate::store::Handle;
use dafs_proto::{LookupReply, LookupRequest};

/// Serves LOOKUP. Symbolic links are found, not followed.
///
/// # Errors
/// The store's.
pub async fn lookup(cx: &OpContext, request: LookupRequest) -> Result<LookupReply, OpError> {
    let directory = Handle::from_wire(&request.directory)?;
    let node = cx.store(move |store| store.lookup(&directory, &request.name)).await?;
    let handle = node.handle.as_bytes().to_vec();
    Ok(LookupReply { handle, attr: Some(overlaid(cx, node)) })
}
