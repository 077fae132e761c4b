//! Work that is done as the caller.
//!
//! Only the system calls that the caller's rights decide about, so that what the server keeps for
//! itself, such as the handle table, stays its own work.

use super::Object;
use super::descriptors::with_room;
use super::sys::{self, failed};
use crate::store::{Access, Credential, Result, StoreError};
use dafs_proto::Status;
use ordma::os::{self, Acting};
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use std::os::fd::OwnedFd;

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;

impl Credential {
    /// Runs `work` as this credential.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _acting = self.act()?;
        work()
    }

    fn act(&self) -> Result<Option<Acting>> {
        let Self::User { uid, gid, groups } = self else {
            return Ok(None);
        };
        let user = os::Credential { uid: *uid, gid: *gid, groups };
        os::act_as(user)
            .map(Some)
            .map_err(|error| StoreError::new(Status::from_errno(error.errno()), error.to_string()))
    }

    /// Whether this is a user whom permissions bind.
    fn is_bound(&self) -> bool {
        matches!(self, Self::User { uid: 1.., .. })
    }
}

/// What [`prove`] lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Only what the mode allows.
    AsMode,
    /// The owner in any case.
    Always,
}

/// Proves that the caller may access a regular file, by opening it.
pub fn prove(
    who: &Credential,
    object: &Object,
    access: Access,
    owner: Owner,
    what: &str,
) -> Result<()> {
    // The server proves its right by the descriptor it takes.
    let Credential::User { uid, .. } = who else {
        return Ok(());
    };
    if owner == Owner::Always
        && sys::stat(&object.fd).map_err(|error| failed(what, error))?.stx_uid == *uid
    {
        return Ok(());
    }
    let flags = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    who.run(|| reopen(object, flags).map(drop).map_err(|error| failed(what, error)))
}

/// Opens an object for more than its path. Does not wait for a local process that has a lease of it,
/// which is told and fails this with [`Errno::AGAIN`](rustix::io::Errno): it may take 45 seconds.
pub fn reopen(object: &Object, flags: OFlags) -> std::result::Result<OwnedFd, rustix::io::Errno> {
    open_again(&object.fd, flags)
}

/// As [`reopen`], by a descriptor of it.
pub fn open_again(fd: &OwnedFd, flags: OFlags) -> std::result::Result<OwnedFd, rustix::io::Errno> {
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    with_room(|| fs::open(sys::proc_path(fd), flags, Mode::empty()))
}

/// Takes the set-id bits of a file away that a user is about to write.
///
/// The kernel does so when a user writes. Here the server writes, later, whom the kernel lets keep
/// them; and later still the owner may have set them for what is there by then.
///
/// Whether there were any. `None` for a user that the kernel lets keep them.
pub fn drop_set_id(who: &Credential, object: &Object, what: &str) -> Result<Option<bool>> {
    if !who.is_bound() {
        return Ok(None);
    }
    let fail = |error| failed(format!("{what}: taking its set-id bits away"), error);
    let mode = u32::from(sys::stat(&object.fd).map_err(fail)?.stx_mode) & 0o7777;
    // Without the group's right to execute, the bit is that of mandatory locks.
    let group = if mode & GROUP_EXECUTE != 0 { SET_GROUP_ID } else { 0 };
    let kept = mode & !(SET_USER_ID | group);
    if kept == mode {
        return Ok(Some(false));
    }
    let path = sys::proc_path(&object.fd);
    fs::chmodat(CWD, path, Mode::from_raw_mode(kept), AtFlags::empty()).map_err(fail)?;
    Ok(Some(true))
}
