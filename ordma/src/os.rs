//! System calls that no safe crate wraps: file handles, and acting as a user.
//!
//! A file handle is the kernel's own stable name of an inode, the one that its NFS server hands
//! out. It survives renames and restarts, and, unlike a path, can be opened without walking there.
//!
//! A thread that [acts as a user](act_as) has that user's rights to files, and what it makes
//! belongs to that user. Other threads go on as they are.

use rustix::io::Errno;
use rustix::process::{Gid, getgroups};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Longest handle the kernel makes (`MAX_HANDLE_SZ`).
const MAX_LEN: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; MAX_LEN],
}

/// The handle of the file behind `fd`, which may be an `O_PATH` descriptor: its type and bytes.
///
/// # Errors
/// `EOPNOTSUPP` where the file system has no handles; else as `name_to_handle_at(2)`.
pub fn file_handle(fd: BorrowedFd<'_>) -> io::Result<(i32, Vec<u8>)> {
    let mut handle = RawHandle { len: MAX_LEN as u32, kind: 0, bytes: [0; MAX_LEN] };
    let mut mount = 0;
    // SAFETY: the path is a NUL-terminated string; the handle has `len` writable bytes behind its
    // header, laid out as the kernel's flexible structure; the kernel writes nothing else.
    let result = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let len = (handle.len as usize).min(MAX_LEN);
    Ok((handle.kind, handle.bytes[..len].to_vec()))
}

/// Opens the file that a handle names, on the file system that `mount` lies on. `flags` are those
/// of `open(2)`; close-on-exec is added.
///
/// The file can lie anywhere on that file system: the caller has to check where.
///
/// # Errors
/// `EPERM` without `CAP_DAC_READ_SEARCH`, `ESTALE` where there is no such file (any more), `EINVAL`
/// where the bytes cannot be a handle; else as `open_by_handle_at(2)`.
pub fn open_file_handle(
    mount: BorrowedFd<'_>,
    kind: i32,
    bytes: &[u8],
    flags: i32,
) -> io::Result<OwnedFd> {
    let mut handle = RawHandle { len: 0, kind, bytes: [0; MAX_LEN] };
    let Some(room) = handle.bytes.get_mut(..bytes.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    room.copy_from_slice(bytes);
    handle.len = bytes.len() as u32;
    // SAFETY: the handle is initialised and has `len` bytes behind its header; the kernel only
    // reads it. A descriptor that is returned is new and ours.
    unsafe {
        let fd = libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            flags | libc::O_CLOEXEC,
        );
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// A user, as far as files are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential<'a> {
    /// The user.
    pub uid: u32,
    /// The user's group, which new files get.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

/// The thread cannot act as a user, and has not begun to.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server runs as user {own} and cannot act as user {uid} with group {gid}: {error}; it has \
     to run as root, with CAP_SETUID and CAP_SETGID, or as that user"
)]
pub struct CannotAct {
    own: u32,
    uid: u32,
    gid: u32,
    error: Errno,
}

impl CannotAct {
    /// The error number: `EPERM` where a privilege is missing.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.error.raw_os_error()
    }
}

/// Makes this thread act as a user until the guard is dropped: its file-system user, group and
/// supplementary groups become the user's, and no capability but the two that lead back stays
/// effective. Acting as root keeps the capabilities.
///
/// A thread without `CAP_SETUID` and `CAP_SETGID` can act as its own user and group only. It keeps
/// its supplementary groups then, whatever those of `user` are.
///
/// # Errors
/// [`CannotAct`]; the thread is then what it was.
///
/// # Aborts
/// The process, where the thread cannot be made again what it was: it must not go on as somebody
/// else, and nobody else could end it alone.
pub fn act_as(user: Credential<'_>) -> Result<Acting, CannotAct> {
    let own = fs_uid();
    let Credential { uid, gid, .. } = user;
    let begin = || {
        if user.groups.iter().chain([&uid, &gid]).any(|id| *id == NOBODY) {
            return Err(Errno::INVAL);
        }
        let before = capabilities(None)?;
        let groups = getgroups()?;
        // Made before the first step, so that what fails half-way is undone.
        let mut acting = Acting {
            own: (own, fs_gid()),
            groups,
            capabilities: before,
            switched: false,
            thread: PhantomData,
        };
        acting.switch(user)?;
        Ok(acting)
    };
    begin().map_err(|error| CannotAct { own, uid, gid, error })
}

/// While it lives, its thread acts as a user; see [`act_as`]. It stays on its thread.
#[derive(Debug)]
#[must_use = "the thread acts as the user as long as this lives"]
pub struct Acting {
    own: (u32, u32),
    groups: Vec<Gid>,
    capabilities: CapabilitySets,
    /// More than the capabilities may have changed.
    switched: bool,
    thread: PhantomData<*const ()>,
}

/// What it takes to become somebody else, and oneself again.
const SWITCH: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);

impl Acting {
    fn switch(&mut self, user: Credential<'_>) -> Result<(), Errno> {
        if self.capabilities.effective.contains(SWITCH) {
            self.switched = true;
            let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            set_thread_groups(&groups)?;
            set_fs_gid(user.gid)?;
            set_fs_uid(user.uid)?;
        } else if (user.uid, user.gid) != self.own {
            return Err(Errno::PERM);
        }
        if user.uid == 0 {
            return Ok(());
        }
        // Leaving root takes the capabilities that override permissions away, but not those of a
        // server that is another user, nor the one that overrides quotas.
        let now = capabilities(None)?;
        set_capabilities(None, CapabilitySets { effective: now.effective & SWITCH, ..now })
    }

    fn restore(&self) -> Result<(), Errno> {
        if self.switched {
            set_fs_uid(self.own.0)?;
            set_fs_gid(self.own.1)?;
            set_thread_groups(&self.groups)?;
        }
        set_capabilities(None, self.capabilities)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            // Not a panic, which the thread could survive.
            let uid = self.own.0;
            tracing::error!(%error, uid, "a thread that acted as a user cannot be itself again");
            eprintln!(
                "a thread that acted as a user cannot be user {uid} again: {error}; aborting"
            );
            std::process::abort();
        }
    }
}

/// The number that no user or group has: asked for, it changes nothing.
const NOBODY: u32 = u32::MAX;

fn change_fs_uid(uid: u32) -> u32 {
    // SAFETY: numbers in, a number out. The call concerns this thread alone.
    unsafe { libc::syscall(libc::SYS_setfsuid, libc::c_long::from(uid)) as u32 }
}

fn change_fs_gid(gid: u32) -> u32 {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setfsgid, libc::c_long::from(gid)) as u32 }
}

fn fs_uid() -> u32 {
    change_fs_uid(NOBODY)
}

fn fs_gid() -> u32 {
    change_fs_gid(NOBODY)
}

/// The call itself does not tell whether it took effect.
fn set_fs_uid(uid: u32) -> Result<(), Errno> {
    change_fs_uid(uid);
    if fs_uid() == uid { Ok(()) } else { Err(Errno::PERM) }
}

fn set_fs_gid(gid: u32) -> Result<(), Errno> {
    change_fs_gid(gid);
    if fs_gid() == gid { Ok(()) } else { Err(Errno::PERM) }
}

/// Gives memory that was freed back to the system, as far as the allocator has whole pages of it. For
/// after a time when much was needed: it walks all that is free.
pub(crate) fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no pointer, may be called at any time from any thread, and changes nothing that is
    // in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::Uid;
    use rustix::thread::set_thread_res_uid;
    use std::os::fd::AsFd;

    /// What `/proc` says of this thread: users, groups, and effective capabilities.
    fn identity() -> Vec<String> {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let is_identity = |line: &&str| {
            ["Uid:", "Gid:", "Groups:", "CapEff:"].iter().any(|field| line.starts_with(field))
        };
        status.lines().filter(is_identity).map(|line| line.replace('\t', " ")).collect()
    }

    fn need_root() {
        assert_eq!(fs_uid(), 0, "this test takes root, who may act as others: run it as root");
    }

    const USER: Credential<'static> = Credential { uid: 1000, gid: 1001, groups: &[7, 1002] };

    #[test]
    fn a_thread_acts_as_a_user_alone_and_for_a_while() {
        need_root();
        let before = identity();
        let acting = act_as(USER).unwrap();
        let switch = format!("CapEff: {:016x}", SWITCH.bits());
        let user = ["Uid: 0 0 0 1000", "Gid: 0 0 0 1001", "Groups: 7 1002 ", &switch];
        assert_eq!(identity(), user);
        // The process, which is another thread, is not changed.
        let process = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(process.contains("Uid:\t0\t0\t0\t0\n"), "{process}");

        // Within, as another one, and back.
        let other = act_as(Credential { uid: 5, gid: 6, groups: &[] }).unwrap();
        assert_eq!(identity()[..3], ["Uid: 0 0 0 5", "Gid: 0 0 0 6", "Groups:  "]);
        drop(other);
        assert_eq!(identity(), user);
        drop(acting);
        assert_eq!(identity(), before);
    }

    #[test]
    fn a_panic_ends_the_acting() {
        need_root();
        let before = identity();
        let panicked = std::panic::catch_unwind(|| {
            let _acting = act_as(USER).unwrap();
            std::panic::resume_unwind(Box::new("test"));
        });
        assert!(panicked.is_err());
        assert_eq!(identity(), before);
    }

    #[test]
    fn who_is_nobody_is_refused_and_nothing_is_changed() {
        need_root();
        let before = identity();
        let wrong = [
            Credential { uid: NOBODY, ..USER },
            Credential { gid: NOBODY, ..USER },
            Credential { groups: &[1, NOBODY], ..USER },
        ];
        for user in wrong {
            let error = act_as(user).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            assert_eq!(identity(), before);
        }
    }

    #[test]
    fn root_as_root_keeps_its_capabilities() {
        need_root();
        let before = identity();
        let _acting = act_as(Credential { uid: 0, gid: 0, groups: &[3] }).unwrap();
        assert_eq!(identity()[2..], ["Groups: 3 ", &before[3]]);
    }

    #[test]
    fn without_privileges_a_thread_is_itself_only() {
        need_root();
        // A thread of its own, which ends with the test.
        let unprivileged = std::thread::spawn(|| {
            let user = Uid::from_raw(4000);
            set_thread_res_uid(user, user, user).unwrap();
            let before = identity();
            let own = Credential { uid: 4000, gid: fs_gid(), groups: &[] };
            drop(act_as(own).unwrap());
            for other in [USER, Credential { gid: 4001, ..own }, Credential { uid: 0, ..own }] {
                let error = act_as(other).unwrap_err();
                assert_eq!(error.errno(), libc::EPERM);
                let expected = format!("runs as user 4000 and cannot act as user {}", other.uid);
                assert!(error.to_string().contains(&expected), "{error}");
            }
            assert_eq!(identity(), before);
        });
        unprivileged.join().unwrap();
    }

    #[test]
    fn a_server_with_capabilities_acts_without_them() {
        need_root();
        let server = std::thread::spawn(|| {
            rustix::thread::set_keep_capabilities(true).unwrap();
            let all = capabilities(None).unwrap();
            let user = Uid::from_raw(4000);
            set_thread_res_uid(user, user, user).unwrap();
            let search = CapabilitySet::DAC_READ_SEARCH;
            for effective in [search, search | SWITCH] {
                set_capabilities(None, CapabilitySets { effective, ..all }).unwrap();
                let own = Credential { uid: 4000, gid: fs_gid(), groups: &[] };
                let acting = act_as(own).unwrap();
                assert_eq!(capabilities(None).unwrap().effective, effective & SWITCH);
                drop(acting);
                assert_eq!(capabilities(None).unwrap().effective, effective);
            }
            drop(act_as(USER).unwrap());
            assert_eq!(capabilities(None).unwrap().effective, search | SWITCH);
        });
        server.join().unwrap();
    }

    #[test]
    fn a_handle_has_bytes_or_the_file_system_says_it_has_none() {
        let root = std::fs::File::open("/").unwrap();
        match file_handle(root.as_fd()) {
            Ok((_, bytes)) => assert!(!bytes.is_empty() && bytes.len() <= MAX_LEN),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}"),
        }
    }

    #[test]
    fn bytes_that_are_no_handle_are_refused() {
        let root = std::fs::File::open("/").unwrap();
        let open = |bytes: &[u8]| open_file_handle(root.as_fd(), 1, bytes, libc::O_PATH);
        // Without the capability the kernel says EPERM before it looks at the handle.
        assert!(open(&[0xFF; 8]).is_err());
        let error = open(&[0; MAX_LEN + 1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
