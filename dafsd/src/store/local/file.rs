//! A regular file open for data I/O.

use super::sys::{self, failed};
use crate::store::{Identity, Result, StoreFile};
use dafs_proto::Attr;
use rustix::fs::{
    self, Advice, FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::{self, Errno};
use rustix::process::{Resource, geteuid, getrlimit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file of a [`LocalStore`](super::LocalStore). Its descriptor stays open, so it can be written
/// back after its last name is gone.
#[derive(Debug)]
pub struct LocalFile {
    fd: OwnedFd,
    identity: Identity,
    writable: bool,
    max_size: Arc<KnownSize>,
}

/// The largest size of a file of the store that was looked at last; 0 before the first. Most likely the
/// next one's is the same.
pub(super) type KnownSize = AtomicU64;

impl LocalFile {
    pub(super) fn new(
        fd: OwnedFd,
        identity: Identity,
        writable: bool,
        max_size: &Arc<KnownSize>,
    ) -> Self {
        Self { fd, identity, writable, max_size: Arc::clone(max_size) }
    }

    /// Whether the file system takes this for a size. Asked by moving the descriptor's offset, which
    /// nothing uses, to its end.
    fn takes(&self, size: u64) -> bool {
        fs::seek(&self.fd, SeekFrom::Start(size)) != Err(Errno::INVAL)
    }

    /// The largest size that the file system takes. It may depend on the file, as with ext4.
    fn largest(&self) -> u64 {
        const MOST: u64 = i64::MAX as u64;
        let known = self.max_size.load(Ordering::Relaxed);
        if known != 0 && self.takes(known) && (known == MOST || !self.takes(known + 1)) {
            return known;
        }
        let (mut largest, mut beyond) = (0, MOST + 1);
        while largest + 1 < beyond {
            let middle = largest + (beyond - largest) / 2;
            if self.takes(middle) {
                largest = middle;
            } else {
                beyond = middle;
            }
        }
        self.max_size.store(largest, Ordering::Relaxed);
        largest
    }

    fn what(&self, what: &str) -> String {
        format!("{what} of inode {}", self.identity.inode)
    }

    /// Lets go of the kernel's copy: the page cache has, or had, its own.
    fn drop_kernel_copy(&self, offset: u64, len: u64) {
        // Advice only; whether it is taken changes memory use, nothing else.
        let len = std::num::NonZeroU64::new(len);
        if let Err(error) = fs::fadvise(&self.fd, offset, len, Advice::DontNeed) {
            tracing::trace!(%error, inode = self.identity.inode, "posix_fadvise");
        }
    }
}

impl AsFd for LocalFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl StoreFile for LocalFile {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn max_size(&self) -> u64 {
        let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
        self.largest().min(limit)
    }

    fn attr(&self) -> Result<Attr> {
        let stat = sys::stat(&self.fd).map_err(|error| failed(self.what("attributes"), error))?;
        Ok(sys::attributes(&stat))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match io::pread(&self.fd, &mut buffer[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => {
                    let at = offset.saturating_add(done as u64);
                    let what = format!("read of {} bytes at {at}", buffer.len() - done);
                    return Err(failed(self.what(&what), error));
                }
            }
        }
        self.drop_kernel_copy(offset, done as u64);
        Ok(done)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            let error =
                match io::pwrite(&self.fd, &data[done..], offset.saturating_add(done as u64)) {
                    Ok(0) => Errno::IO,
                    Ok(count) => {
                        done += count;
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    Err(error) => error,
                };
            let at = offset.saturating_add(done as u64);
            let what = format!("write of {} bytes at {at}", data.len() - done);
            return Err(failed(self.what(&what), error));
        }
        Ok(())
    }

    fn available(&self) -> Result<u64> {
        let found = fs::fstatvfs(&self.fd)
            .map_err(|error| failed(self.what("the free space beside"), error))?;
        let blocks = if geteuid().is_root() { found.f_bfree } else { found.f_bavail };
        Ok(blocks.saturating_mul(found.f_frsize))
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        loop {
            match fs::fallocate(&self.fd, FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => {
                    let what = format!("taking the space for {len} bytes at {offset}");
                    return Err(failed(self.what(&what), error));
                }
            }
        }
    }

    fn place(&self) -> String {
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        match std::fs::read_link(link) {
            Ok(path) => path.display().to_string(),
            Err(_) => self.what("the file"),
        }
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let what = || self.what(&format!("setting the length to {len}"));
        // The kernel's offsets are signed.
        if i64::try_from(len).is_err() {
            return Err(failed(what(), Errno::FBIG));
        }
        loop {
            match fs::ftruncate(&self.fd, len) {
                Err(Errno::INTR) => {}
                result => return result.map_err(|error| failed(what(), error)),
            }
        }
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let result = if data_only { fs::fdatasync(&self.fd) } else { fs::fsync(&self.fd) };
        result.map_err(|error| failed(self.what("sync"), error))?;
        self.drop_kernel_copy(0, 0);
        Ok(())
    }

    fn set_mtime(&self, mtime: SystemTime) -> Result<()> {
        let last_modification = match mtime.duration_since(UNIX_EPOCH) {
            Ok(after) => Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: after.subsec_nanos().into(),
            },
            Err(before) => {
                let before = before.duration();
                let borrow = i64::from(before.subsec_nanos() > 0);
                Timespec {
                    tv_sec: -i64::try_from(before.as_secs()).unwrap_or(i64::MAX) - borrow,
                    tv_nsec: (1_000_000_000 - i64::from(before.subsec_nanos())) % 1_000_000_000,
                }
            }
        };
        let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let mut set = fs::futimens(&self.fd, &Timestamps { last_access, last_modification });
        if set == Err(Errno::PERM) {
            // To who may write, and is not the owner, the kernel allows just this.
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            set = fs::futimens(&self.fd, &Timestamps { last_access: now, last_modification: now });
        }
        set.map_err(|error| failed(self.what("setting the modification time"), error))
    }
}
