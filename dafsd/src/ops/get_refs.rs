//! GET_REFS: references of a range of a file.

use super::read::MAX_WANT_REFS;
use super::{OpContext, OpError, Reply};
use dafs_proto::{GetRefsReply, GetRefsRequest, Status};

/// Most references of one reply: 48 KiB of them, for a reply's head is at most 64 KiB.
const MAX_REFS: u32 = MAX_WANT_REFS * 2;

/// Serves GET_REFS.
///
/// # Errors
/// [`Status::BadOpen`], or the open may not read; the store's, where pages are to be brought in.
pub async fn get_refs(
    cx: &OpContext,
    request: GetRefsRequest,
) -> Result<Reply<GetRefsReply>, OpError> {
    let open = cx.open(request.open)?;
    if !open.read {
        let what = "references to a file that was not opened for reading";
        return Err(OpError::new(Status::BadOpen, what));
    }
    let extent = request.extent.unwrap_or_default();
    let refs = open.file.warm(extent, MAX_REFS, request.fill).await?;
    let body = GetRefsReply { file: open.file.number(), refs, size: open.file.size(), key: None };
    Ok(body.into())
}
