//! CLOSE: ends an open.

use super::{OpContext, OpError};
use dafs_proto::{CloseReply, CloseRequest, Status};

/// Serves CLOSE. What was written and not committed stays in the page cache, and reaches the disk
/// in time.
///
/// # Errors
/// [`Status::BadOpen`].
pub async fn close(cx: &OpContext, request: CloseRequest) -> Result<CloseReply, OpError> {
    let Some(open) = cx.session.remove_open(request.open) else {
        let what = format!("open {} is not one of this session", request.open);
        return Err(OpError::new(Status::BadOpen, what));
    };
    drop(open);
    Ok(CloseReply {})
}
