//! COMMIT: makes what was written before it stable.

use super::{OpContext, OpError, Reply, stability};
use dafs_proto::{CommitReply, CommitRequest, Status};

/// Serves COMMIT. The reply's verifier tells the client whether what it wrote before is among what
/// is stable now: it is, if the verifier is that of the WRITE replies.
///
/// # Errors
/// [`BadOpen`](Status::BadOpen); the disk's, in which case the data stays dirty and a later COMMIT
/// tries again; [`Io`](Status::Io) where the file's attributes or its name were changed before the
/// server's machine was started anew: that change may be lost. Nothing was made stable then.
pub async fn commit(cx: &OpContext, request: CommitRequest) -> Result<Reply<CommitReply>, OpError> {
    let open = cx.open(request.open)?;
    let machine_boot = cx.server.cache().boots().machine_boot();
    if request.rests_on != 0 && request.rests_on != machine_boot {
        let what = "the server's machine was started anew since attributes or the name of the file \
                    were changed: the change may be lost";
        return Err(OpError::new(Status::Io, what));
    }
    let owner = cx.session.writer().owner.number();
    let committed = open.file.commit_for(owner, request.extent.unwrap_or_default()).await?;
    let (stable, told) = stability::stable(cx, &open.file, committed);
    cx.session.will_tell(cx.slot, vec![told]);
    Ok(CommitReply { stable: Some(stable) }.into())
}
