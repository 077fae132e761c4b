//! Whether pages that come by RPC come in the reply or are placed directly.

use crate::error::Error;
use crate::options::Path;
use crate::session::{Grant, Session};
use dafs_proto::Placement;
use ordma::FOOTER_LEN;

/// The ways by which pages may come by RPC.
pub(super) struct Ways<'a> {
    pub(super) session: &'a Session,
    pub(super) grant: &'a Grant,
    pub(super) path: Path,
}

impl Ways<'_> {
    /// Whether pages that cannot be placed directly may come in messages.
    fn may_do_without_direct(&self) -> bool {
        self.path != Path::Direct && self.grant.page_size + FOOTER_LEN <= self.grant.max_inline
    }

    /// Whether a request that failed may be made again, its pages in a message.
    pub(super) fn may_do_without(&self, placement: Placement, error: &Error) -> bool {
        placement == Placement::Direct
            && self.may_do_without_direct()
            && self.session.only_transfer_failed(error)
    }

    /// How to read `pages` pages, and how many at a time.
    pub(super) fn placement(&self, pages: usize) -> (Placement, usize) {
        let Self { session, grant, path } = *self;
        let page = grant.page_size + FOOTER_LEN;
        let inline = match path {
            Path::Auto | Path::Ordma => {
                pages * page <= session.options.inline_read.min(grant.max_inline)
                    || self.may_do_without_direct() && !session.transfers_directly()
            }
            Path::Inline => page <= grant.max_inline,
            Path::Direct => false,
        };
        if inline {
            (Placement::Inline, (grant.max_inline / page).max(1))
        } else {
            (Placement::Direct, (grant.max_transfer / page).max(1))
        }
    }
}
