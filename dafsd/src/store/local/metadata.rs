//! Attributes, and what sets them.

use super::sys::{self, failed};
use super::{LocalStore, Object};
use crate::store::{Credential, Handle, Node, Result};
use dafs_proto::{FileType, SetAttr, StatfsReply, Time};
use rustix::fs::{self, AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;
use std::os::fd::AsFd;

/// Longest target of a symbolic link, as the kernel has it.
const TARGET_MAX: usize = 4095;

impl LocalStore {
    pub(super) fn get_node(&self, handle: &Handle) -> Result<Node> {
        let object = self.object(handle)?;
        self.node_of(&object)
    }

    pub(super) fn node_of(&self, object: &Object) -> Result<Node> {
        let what = || format!("attributes of inode {}", object.identity.inode);
        let stat = sys::stat(&object.fd).map_err(|error| failed(what(), error))?;
        let Object { handle, identity, .. } = object;
        Ok(Node { handle: handle.clone(), identity: *identity, attr: sys::attributes(&stat) })
    }

    pub(super) fn set_attributes(
        &self,
        who: &Credential,
        handle: &Handle,
        attr: &SetAttr,
    ) -> Result<Node> {
        self.check_writable("setting attributes")?;
        let object = self.object(handle)?;
        let what = format!("inode {}", object.identity.inode);
        let changes = Changes::parse(attr, &what)?;
        let applied = who.run(|| changes.apply(&object, &what));
        // The mode may have been set, and not the times.
        self.set_id.mode_set(&object.identity, attr.mode.unwrap_or(0));
        applied?;
        self.node_of(&object)
    }

    pub(super) fn read_symlink(&self, handle: &Handle) -> Result<Vec<u8>> {
        let object = self.object(handle)?;
        let what = || format!("reading inode {} as a symbolic link", object.identity.inode);
        if object.kind != FileType::Symlink {
            return Err(failed(what(), Errno::INVAL));
        }
        let target = fs::readlinkat(&object.fd, c"", Vec::with_capacity(256));
        Ok(target.map_err(|error| failed(what(), error))?.into_bytes())
    }

    pub(super) fn file_system(&self, handle: &Handle) -> Result<StatfsReply> {
        let object = self.object(handle)?;
        let stat = fs::fstatvfs(&object.fd).map_err(|error| failed("statfs", error))?;
        Ok(StatfsReply {
            block_size: stat.f_frsize,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            name_max: u32::try_from(stat.f_namemax).unwrap_or(u32::MAX),
        })
    }
}

/// Attributes to be set, checked.
#[derive(Clone, Debug)]
pub(super) struct Changes {
    owner: (Option<u32>, Option<u32>),
    mode: Option<u32>,
    times: Option<Timestamps>,
}

impl Changes {
    pub(super) fn parse(attr: &SetAttr, what: &str) -> Result<Self> {
        let invalid =
            |why: String| failed(format!("setting attributes of {what}: {why}"), Errno::INVAL);
        if let Some(mode) = attr.mode.filter(|mode| *mode > 0o7777) {
            return Err(invalid(format!("mode {mode:#o} is more than 07777")));
        }
        // The kernel takes this number for "leave it as it is".
        if attr.uid == Some(u32::MAX) || attr.gid == Some(u32::MAX) {
            return Err(invalid(format!("{} is no user or group id", u32::MAX)));
        }
        let time = |time: &Option<Time>, now: bool| match time {
            Some(time) if !now => {
                // Larger numbers mean other things to the kernel.
                if time.nanoseconds >= 1_000_000_000 {
                    let why = format!("{} nanoseconds are no part of a second", time.nanoseconds);
                    return Err(invalid(why));
                }
                Ok(Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() })
            }
            _ => Ok(Timespec { tv_sec: 0, tv_nsec: if now { UTIME_NOW } else { UTIME_OMIT } }),
        };
        let times = Timestamps {
            last_access: time(&attr.atime, attr.atime_now)?,
            last_modification: time(&attr.mtime, attr.mtime_now)?,
        };
        let given = |time: &Timespec| time.tv_nsec != UTIME_OMIT;
        let any = given(&times.last_access) || given(&times.last_modification);
        Ok(Self { owner: (attr.uid, attr.gid), mode: attr.mode, times: any.then_some(times) })
    }

    /// For a new object: what was not asked for is set as well, whatever the server's umask is.
    pub(super) fn for_new(mut self, mode: u32, owner: Option<(u32, u32)>) -> Self {
        self.mode.get_or_insert(mode);
        if let Some((uid, gid)) = owner {
            self.owner.0.get_or_insert(uid);
            self.owner.1.get_or_insert(gid);
        }
        self
    }

    /// Without the mode, which a symbolic link does not have.
    pub(super) fn for_new_symlink(mut self, owner: Option<(u32, u32)>) -> Self {
        self = self.for_new(0, owner);
        self.mode = None;
        self
    }

    /// Sets owner, mode and times, in this order: a change of the owner takes set-id bits away.
    /// What came before the one that fails stays set.
    pub(super) fn apply(&self, object: &Object, what: &str) -> Result<()> {
        let fd = object.fd.as_fd();
        if let (uid, gid) = self.owner
            && (uid.is_some() || gid.is_some())
        {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
                .map_err(|error| failed(format!("setting the owner of {what}"), error))?;
        }
        if let Some(mode) = self.mode {
            let result = if object.kind == FileType::Symlink {
                Err(Errno::OPNOTSUPP)
            } else {
                fs::chmodat(CWD, sys::proc_path(fd), Mode::from_raw_mode(mode), AtFlags::empty())
            };
            result.map_err(|error| failed(format!("setting the mode of {what}"), error))?;
        }
        if let Some(times) = &self.times {
            fs::utimensat(fd, c"", times, AtFlags::EMPTY_PATH)
                .map_err(|error| failed(format!("setting the times of {what}"), error))?;
        }
        Ok(())
    }
}

/// Refuses a target that no symbolic link can have.
pub(super) fn check_target(what: &str, target: &[u8]) -> Result<()> {
    let error = match target {
        [] => Errno::NOENT,
        _ if target.contains(&0) => Errno::INVAL,
        _ if target.len() > TARGET_MAX => Errno::NAMETOOLONG,
        _ => return Ok(()),
    };
    Err(failed(format!("{what}: its target of {} bytes", target.len()), error))
}
