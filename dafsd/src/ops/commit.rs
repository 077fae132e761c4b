//! COMMIT: makes what was written before it stable.

use super::{OpContext, OpError, Reply};
use dafs_proto::{CommitReply, CommitRequest};

/// Serves COMMIT. The reply's verifier tells the client whether what it wrote before is among what
/// is stable now: it is, if the verifier is that of the WRITE replies.
///
/// # Errors
/// [`BadOpen`](dafs_proto::Status::BadOpen); the disk's, in which case the data stays dirty and a
/// later COMMIT tries again.
pub async fn commit(cx: &OpContext, request: CommitRequest) -> Result<Reply<CommitReply>, OpError> {
    let open = cx.open(request.open)?;
    // Taken first: should it change meanwhile, the client has to send its writes again.
    let verifier = open.file.verifier();
    open.file.commit(request.extent.unwrap_or_default()).await?;
    Ok(CommitReply { verifier }.into())
}
