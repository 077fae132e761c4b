//! What requests and replies say of changes that are not stable yet; see [`crate::sharing`].

use super::{OpContext, OpError};
use crate::cache::{CachedFile, Changed, Committed, Told};
use crate::sharing::{Range, Resend};
use dafs_proto::{Change, Extent, Stable};
use std::sync::Arc;

/// What a client says of a change that came again.
pub(super) fn resend(wire: Option<&dafs_proto::Resend>) -> Option<Resend> {
    wire.map(|wire| Resend {
        boot: wire.boot,
        number: wire.number,
        ctime: wire.ctime,
        seen: wire.seen,
    })
}

/// What a reply says of a change.
pub(super) fn change(changed: &Changed) -> Change {
    Change { number: changed.number, verifier: changed.verifier, ctime: changed.ctime }
}

/// Ranges, as replies have them.
pub(super) fn extents(ranges: &[Range]) -> Vec<Extent> {
    let extent = |range: &Range| Extent { offset: range.start, length: range.end - range.start };
    ranges.iter().map(extent).collect()
}

/// What a reply says of something that is stable, and what is noted for when the client has it.
pub(super) fn stable(cx: &OpContext, file: &Arc<CachedFile>, what: Committed) -> (Stable, Told) {
    let Committed { through, verifier, .. } = what;
    let owner = Arc::clone(&cx.session.writer().owner);
    let stable = Stable { file: file.number(), verifier, through };
    (stable, Told { file: Arc::clone(file), owner, what })
}

/// Refuses a change of a client that has far more than its share, where the disk lets none of it
/// become stable.
///
/// # Errors
/// The disk's.
pub(super) async fn check_share(cx: &OpContext) -> Result<(), OpError> {
    let owner = &cx.session.writer().owner;
    if owner.is_far_over_share()
        && let Some(file) = owner.oldest()
    {
        // What it makes stable, the client is told with the reply to its next COMMIT.
        file.commit(Extent::default()).await?;
    }
    Ok(())
}

/// Where a client has been told too little of what it has changed: makes the file stable that has
/// waited for longest, and notes that the client will know.
pub(super) async fn keep_share(cx: &OpContext, told: &mut Vec<Told>) -> Vec<Stable> {
    let owner = &cx.session.writer().owner;
    if !owner.is_over_share() {
        return Vec::new();
    }
    let Some(file) = owner.oldest() else { return Vec::new() };
    match file.commit_for(owner.number(), Extent::default()).await {
        Ok(committed) => {
            let (stable, tells) = stable(cx, &file, committed);
            told.push(tells);
            vec![stable]
        }
        Err(error) => {
            tracing::debug!(%error, file = ?file.identity(), "a client has much that is not stable");
            Vec::new()
        }
    }
}
