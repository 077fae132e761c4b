//! Reading, writing and all else that is asked of a file.

use super::super::Handles;
use super::super::sys::{self, failed};
use super::LocalFile;
use crate::store::{Identity, Result, StoreFile};
use dafs_proto::{Attr, Status};
use rustix::fs::{
    self, Advice, FallocateFlags, OFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::{self, Errno};
use rustix::process::{Resource, geteuid, getrlimit};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether the file system takes this for a size. Asked by moving the descriptor's offset, which
/// nothing uses, to its end.
fn takes(fd: &OwnedFd, size: u64) -> bool {
    fs::seek(fd, SeekFrom::Start(size)) != Err(Errno::INVAL)
}

/// The largest size that the file system takes. It may depend on the file, as with ext4.
fn largest(fd: &OwnedFd, known: &AtomicU64) -> u64 {
    const MOST: u64 = i64::MAX as u64;
    let last = known.load(Ordering::Relaxed);
    if last != 0 && takes(fd, last) && (last == MOST || !takes(fd, last + 1)) {
        return last;
    }
    let (mut largest, mut beyond) = (0, MOST + 1);
    while largest + 1 < beyond {
        let middle = largest + (beyond - largest) / 2;
        if takes(fd, middle) {
            largest = middle;
        } else {
            beyond = middle;
        }
    }
    known.store(largest, Ordering::Relaxed);
    largest
}

/// Lets go of the kernel's copy: the page cache has, or had, its own.
fn drop_kernel_copy(fd: &OwnedFd, offset: u64, len: u64) {
    // Advice only; whether it is taken changes memory use, nothing else.
    let len = std::num::NonZeroU64::new(len);
    if let Err(error) = fs::fadvise(fd, offset, len, Advice::DontNeed) {
        tracing::trace!(%error, "posix_fadvise");
    }
}

impl StoreFile for LocalFile {
    fn identity(&self) -> Identity {
        self.identity
    }

    fn writable(&self) -> bool {
        self.writable.load(Ordering::SeqCst)
    }

    fn max_size(&self) -> u64 {
        let limit = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
        // Where it cannot be opened, nothing can be written either.
        let largest = |fd: Arc<OwnedFd>| largest(&fd, &self.origin.max_size);
        self.fd(false).map_or(i64::MAX as u64, largest).min(limit)
    }

    fn attr(&self) -> Result<Attr> {
        let fd = self.state.lock().fd.clone();
        let stat = match fd {
            Some(fd) => sys::stat(&*fd),
            // Not opened for that alone.
            None => self.origin.stat(&self.handle, self.identity)?,
        };
        Ok(sys::attributes(&stat.map_err(|error| failed(self.what("attributes"), error))?))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let fd = self.fd(false)?;
        let mut done = 0;
        while done < buffer.len() {
            match io::pread(&fd, &mut buffer[done..], offset.saturating_add(done as u64)) {
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
        drop_kernel_copy(&fd, offset, done as u64);
        Ok(done)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let writing = self.writing()?;
        let mut done = 0;
        while done < data.len() {
            let at = offset.saturating_add(done as u64);
            let error = match self.with_space(|| io::pwrite(&writing.fd, &data[done..], at)) {
                Ok(0) => Errno::IO,
                Ok(count) => {
                    done += count;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(error) => error,
            };
            let what = format!("write of {} bytes at {at}", data.len() - done);
            return Err(failed(self.what(&what), error));
        }
        Ok(())
    }

    fn available(&self) -> Result<u64> {
        let fd = self.fd(false)?;
        let found =
            fs::fstatvfs(&fd).map_err(|error| failed(self.what("the free space beside"), error))?;
        let blocks = if geteuid().is_root() { found.f_bfree } else { found.f_bavail };
        Ok(blocks.saturating_mul(found.f_frsize))
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<()> {
        let fd = self.fd(true)?;
        loop {
            let flags = FallocateFlags::KEEP_SIZE;
            match self.with_space(|| fs::fallocate(&fd, flags, offset, len)) {
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
        let fd = self.fd(false).ok();
        let link = fd.map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()));
        match link.map(std::fs::read_link) {
            Some(Ok(path)) => path.display().to_string(),
            _ => self.what("the file"),
        }
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let what = || self.what(&format!("setting the length to {len}"));
        // The kernel's offsets are signed.
        if i64::try_from(len).is_err() {
            return Err(failed(what(), Errno::FBIG));
        }
        let writing = self.writing()?;
        loop {
            match self.with_space(|| fs::ftruncate(&writing.fd, len)) {
                Err(Errno::INTR) => {}
                result => return result.map_err(|error| failed(what(), error)),
            }
        }
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let _one = self.syncing.lock();
        let synced = self.sync_once(data_only);
        let early = self.state.lock().failure.take();
        let fd = synced?;
        match early {
            Some(failure) => Err(failure),
            None => {
                drop_kernel_copy(&fd, 0, 0);
                Ok(())
            }
        }
    }

    fn set_mtime(&self, mtime: SystemTime) -> Result<()> {
        let fd = self.fd(false)?;
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
        let mut set = fs::futimens(&fd, &Timestamps { last_access, last_modification });
        if set == Err(Errno::PERM) {
            // To who may write, and is not the owner, the kernel allows just this.
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            set = fs::futimens(&fd, &Timestamps { last_access: now, last_modification: now });
        }
        set.map_err(|error| failed(self.what("setting the modification time"), error))
    }

    fn hold(&self, count: usize) {
        self.users.fetch_add(count, Ordering::SeqCst);
    }

    fn release(&self, count: usize) {
        self.users.fetch_sub(count, Ordering::SeqCst);
    }

    fn rest(&self) {
        self.close();
    }

    fn is_gone(&self) -> bool {
        if self.gone.load(Ordering::SeqCst) || self.is_removed() {
            return true;
        }
        let kernel = matches!(self.origin.handles, Handles::Kernel(_));
        let path =
            kernel.then(|| self.origin.handles.reopen(&self.handle, self.identity, OFlags::PATH));
        path.is_some_and(|path| path.is_err_and(|error| error.status == Status::StaleHandle))
    }
}
