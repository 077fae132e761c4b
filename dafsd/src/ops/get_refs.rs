//! GET_REFS: references of a range of a file.

use super::read::MAX_WANT_REFS;
use super::{OpContext, OpError, Reply};
use dafs_proto::{GetRefsReply, GetRefsRequest};

/// Most references of one reply: 48 KiB of them, for a reply's head is at most 64 KiB.
const MAX_REFS: u32 = MAX_WANT_REFS * 2;

/// Serves GET_REFS.
///
/// # Errors
/// [`BadOpen`](dafs_proto::Status::BadOpen) or [`Access`](dafs_proto::Status::Access), where the open may not read; the store's, where pages are to be brought in.
pub async fn get_refs(
    cx: &OpContext,
    request: GetRefsRequest,
) -> Result<Reply<GetRefsReply>, OpError> {
    let extent = request.extent.unwrap_or_default();
    let (open, refs, key) = loop {
        let open = cx.reader(request.open).await?;
        let refs = open.file.warm(extent, MAX_REFS, request.fill).await?;
        if let Ok(key) = cx.key(&open, request.key_epoch) {
            break (open, refs, key);
        }
    };
    let body = GetRefsReply { file: open.file.number(), refs, size: open.file.size(), key };
    Ok(body.into())
}
