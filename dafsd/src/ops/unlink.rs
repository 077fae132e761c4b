//! UNLINK: removes a name that is not a directory's.

use super::{OpContext, OpError};
use crate::cache::Cache;
use crate::live::LiveSession;
use crate::store::{Credential, Handle, Removed, Store, StoreError};
use dafs_proto::{Status, UnlinkReply, UnlinkRequest};
use std::sync::Arc;

/// Serves UNLINK. A file that is open stays until its last client closes it.
///
/// # Errors
/// The store's; [`Status::TooManyOpenFiles`] where the file is open and the session has many open
/// that were removed. Nothing was removed then.
pub async fn unlink(cx: &OpContext, request: UnlinkRequest) -> Result<UnlinkReply, OpError> {
    cx.check_writable()?;
    let directory = cx.handle(&request.directory)?;
    let (name, may) = (request.name, MayRemove::of(cx));
    let remove = move |store: &dyn Store, who: &Credential| {
        may.check(store, who, &directory, &name)?;
        store.unlink(who, &directory, &name)
    };
    let removed = cx.store(remove).await?;
    tell_cache(cx, removed).await;
    Ok(UnlinkReply {})
}

/// Whether a session may take the last name of a file away that is open, for which the server needs a
/// descriptor as long as it is.
pub(super) struct MayRemove {
    cache: Arc<Cache>,
    session: Arc<LiveSession>,
}

impl MayRemove {
    pub(super) fn of(cx: &OpContext) -> Self {
        Self { cache: Arc::clone(cx.server.cache()), session: Arc::clone(&cx.session) }
    }

    /// # Errors
    /// [`Status::TooManyOpenFiles`], and those of looking the name up.
    pub(super) fn check(
        &self,
        store: &dyn Store,
        who: &Credential,
        directory: &Handle,
        name: &[u8],
    ) -> crate::store::Result<()> {
        let most = store.most_removed_open();
        let removed = self.session.removed_open(most);
        if removed < most {
            return Ok(());
        }
        let node = match store.lookup(who, directory, name) {
            // The operation itself tells of it.
            Err(error) if error.status == Status::NoEntry => return Ok(()),
            node => node?,
        };
        let is_open = self.cache.find(&node.identity).is_some_and(|file| file.is_open());
        if !is_open || node.attr.nlink > 1 {
            return Ok(());
        }
        let what = format!(
            "removing \"{}\", which is open: so are {removed} files that this session has removed",
            name.escape_ascii()
        );
        Err(StoreError::new(Status::TooManyOpenFiles, what))
    }
}

/// Tells the page cache what became of a file that lost a name.
pub(super) async fn tell_cache(cx: &OpContext, removed: Removed) {
    let Some(file) = cx.server.cache().find(&removed.identity) else { return };
    if removed.last {
        if file.is_open() {
            cx.session.note_removed(&file);
        }
        file.removed();
    } else {
        file.touched(false).await;
    }
}
