//! Mapped memory that other processes and NICs read while it changes, and raw copies in and out of
//! it.
//!
//! No Rust reference to such bytes exists anywhere: the language gives references guarantees that
//! memory changed by others breaks. All access is by the copies below, whose loads and stores the
//! compiler does not see into.

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A shared mapping of a memfd.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that lives until drop; every access goes through raw copies
// and atomics, which are safe from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; no `&` access hands out references to the bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize, prot: ProtFlags) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address the kernel chooses touches no memory of ours.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Maps `len` bytes of a file of this process for reading and writing.
    pub(crate) fn writable(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::new(fd, len, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// Maps fresh memory that no file stands behind. Shared, so that a child process that writes to
    /// its own copy does not move ours away from what a device has registered.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as in `new`.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::SHARED)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Bytes of the mapping.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Maps `len` bytes of a peer's file for reading. The file is first checked to be at least that
    /// long and sealed against shrinking: reading past a file's end would raise SIGBUS.
    pub(crate) fn of_peer(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        let size = rustix::fs::fstat(fd)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || u64::try_from(size).unwrap_or(0) < len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer's memory file is too short or not sealed against shrinking",
            ));
        }
        Self::new(fd, len, ProtFlags::READ)
    }

    /// Copies bytes out of the mapping into private memory.
    ///
    /// # Panics
    /// If the range lies outside the mapping: callers derive it from checked slot numbers.
    pub(crate) fn copy_out(&self, offset: usize, into: &mut [u8]) {
        assert!(offset.checked_add(into.len()).is_some_and(|end| end <= self.len));
        // SAFETY: the source range lies inside the mapping (just checked), the destination is a
        // unique private slice, so they do not overlap.
        unsafe { raw_copy(into.as_mut_ptr(), self.base.as_ptr().add(offset), into.len()) }
    }

    /// Copies out a few words, for which starting a long copy takes longer than the copy.
    ///
    /// # Panics
    /// If the range is not aligned to 8 bytes or lies outside the mapping.
    #[inline]
    pub(crate) fn copy_words_out<const N: usize>(&self, offset: usize, into: &mut [u8; N]) {
        assert!(
            offset.is_multiple_of(8) && offset.checked_add(N).is_some_and(|end| end <= self.len)
        );
        for (i, bytes) in into.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.word(offset + i * 8).load(Ordering::Relaxed).to_ne_bytes());
        }
    }

    /// Copies private bytes into the mapping.
    ///
    /// # Panics
    /// If the range lies outside the mapping.
    pub(crate) fn copy_in(&self, offset: usize, from: &[u8]) {
        assert!(offset.checked_add(from.len()).is_some_and(|end| end <= self.len));
        // SAFETY: the destination range lies inside the mapping (just checked) and is writable
        // (only writable mappings are written to, see `Chunk`); the source is private.
        unsafe { raw_copy(self.base.as_ptr().add(offset), from.as_ptr(), from.len()) }
    }

    /// The 64-bit word at `offset`, for words that are published or watched atomically.
    ///
    /// # Panics
    /// If the word is not aligned or lies outside the mapping.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= self.len)
        );
        // SAFETY: inside the mapping and aligned (just checked; the base is page-aligned); an
        // atomic may be shared with whoever else writes the memory.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The 32-bit word at `offset`; otherwise like [`word`](Self::word).
    ///
    /// # Panics
    /// If the word is not aligned or lies outside the mapping.
    pub(crate) fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset.checked_add(4).is_some_and(|end| end <= self.len)
        );
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The address of `offset`, for engines that register the memory or name it in an iovec.
    pub(crate) fn address(&self, offset: usize) -> *const u8 {
        assert!(offset <= self.len);
        // SAFETY: within the mapping or one past its end (just checked).
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, nothing points into it any more (no references exist).
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::error!(%error, len = self.len, "munmap failed; the memory stays mapped");
        }
    }
}

/// Copies memory that may change meanwhile.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes, and they must not overlap.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn raw_copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise, and the processor has what is used.
    unsafe {
        // A page that is read next, by the check, is worth the wide loop: `rep movsb` leaves less of
        // it in the nearest cache, and takes a tenth longer for page and check together.
        if len.is_multiple_of(256) && len > 0 && is_x86_feature_detected!("avx") {
            copy_avx(to, from, len);
        } else {
            copy_bytes(to, from, len);
        }
    }
}

/// `raw_copy` for whole pages. The loop is opaque to the compiler, as is the instruction below.
///
/// # Safety
/// As for `raw_copy`; `len` is a multiple of 256 and not 0.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn copy_avx(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        std::arch::asm!(
            "2:",
            "vmovdqu {a}, [{from}]",
            "vmovdqu {b}, [{from} + 32]",
            "vmovdqu {c}, [{from} + 64]",
            "vmovdqu {d}, [{from} + 96]",
            "vmovdqu {e}, [{from} + 128]",
            "vmovdqu {f}, [{from} + 160]",
            "vmovdqu {g}, [{from} + 192]",
            "vmovdqu {h}, [{from} + 224]",
            "vmovdqu [{to}], {a}",
            "vmovdqu [{to} + 32], {b}",
            "vmovdqu [{to} + 64], {c}",
            "vmovdqu [{to} + 96], {d}",
            "vmovdqu [{to} + 128], {e}",
            "vmovdqu [{to} + 160], {f}",
            "vmovdqu [{to} + 192], {g}",
            "vmovdqu [{to} + 224], {h}",
            "add {from}, 256",
            "add {to}, 256",
            "sub {len}, 256",
            "jnz 2b",
            "vzeroupper",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            len = inout(reg) len => _,
            a = out(ymm_reg) _, b = out(ymm_reg) _, c = out(ymm_reg) _, d = out(ymm_reg) _,
            e = out(ymm_reg) _, f = out(ymm_reg) _, g = out(ymm_reg) _, h = out(ymm_reg) _,
            options(nostack),
        );
    }
}

/// `raw_copy` for anything else.
///
/// # Safety
/// As for `raw_copy`.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_bytes(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise. The copy is an instruction of its own, so the compiler cannot
    // split, repeat or reason about the racing loads; `rep movsb` is the fast one on every CPU that
    // has ERMS.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies memory that may change meanwhile.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes, and they must not overlap.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn raw_copy(to: *mut u8, from: *const u8, len: usize) {
    for i in 0..len {
        // SAFETY: the caller's promise; volatile, so each byte is loaded and stored exactly once.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
    }
}

/// A memory file of this process that others may be given to read.
///
/// It is sealed once mapped: no one, whoever reopens it, can write, map writable, grow, shrink or
/// unseal it; only the mapping made here can be written through.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: OwnedFd,
}

impl MemoryFile {
    /// Makes a file of `len` zero bytes and maps it.
    pub(crate) fn create(name: &str, len: usize) -> io::Result<(Self, Mapping)> {
        let first = rustix::fs::memfd_create(
            name,
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL,
        )
        // NOEXEC_SEAL came with Linux 6.3.
        .or_else(|_| {
            rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        })?;
        rustix::fs::ftruncate(&first, len as u64)?;
        // Reopened through /proc so that the kernel counts this descriptor as a writer: `in_use`
        // rests on that count, and memfd_create does not keep it.
        let path = format!("/proc/self/fd/{}", first.as_raw_fd());
        let file = OwnedFd::from(File::options().read(true).write(true).open(path)?);
        drop(first);
        let mapping = Mapping::writable(file.as_fd(), len)?;
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL,
        )?;
        Ok((Self { file }, mapping))
    }

    /// A read-only descriptor to hand to another process.
    pub(crate) fn reader(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(OwnedFd::from(File::open(path)?))
    }

    /// Whether any other open file description or mapping of one keeps the memory alive.
    ///
    /// The kernel grants a write lease only on a file that no one else has open (fs/locks.c,
    /// `check_conflicting_open`), and a mapping keeps its file open.
    pub(crate) fn in_use(&self) -> bool {
        let fd = self.file.as_raw_fd();
        // SAFETY: fcntl on a descriptor we own, with integer arguments.
        if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) } != 0 {
            return true;
        }
        // SAFETY: as above. Giving a lease back that we hold does not fail.
        unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
        false
    }
}

/// Publishes a word so that what was written before it is seen before it.
pub(crate) fn publish(word: &AtomicU64, value: u64) {
    word.store(value.to_le(), Ordering::Release);
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Stores the upper halves of the vector registers that the wide copy uses. Touches none before:
    /// the array is the caller's.
    ///
    /// # Safety
    /// The processor must have AVX.
    #[inline(never)]
    unsafe fn upper_halves(halves: &mut [[u8; 16]; 8]) {
        // SAFETY: eight stores into the array, which has room for them.
        unsafe {
            std::arch::asm!(
                "vextractf128 [{to}], ymm0, 1",
                "vextractf128 [{to} + 16], ymm1, 1",
                "vextractf128 [{to} + 32], ymm2, 1",
                "vextractf128 [{to} + 48], ymm3, 1",
                "vextractf128 [{to} + 64], ymm4, 1",
                "vextractf128 [{to} + 80], ymm5, 1",
                "vextractf128 [{to} + 96], ymm6, 1",
                "vextractf128 [{to} + 112], ymm7, 1",
                to = in(reg) halves.as_mut_ptr(),
                options(nostack, preserves_flags),
            );
        }
    }

    #[test]
    fn the_wide_copy_leaves_no_upper_halves_in_use() {
        // Without it there are no upper halves, and no wide copy.
        let avx = is_x86_feature_detected!("avx");
        let (from, mut to) = (vec![7u8; 4096], vec![0u8; 4096]);
        let mut halves = [[u8::from(avx); 16]; 8];
        // SAFETY: both have that many bytes, and the processor has AVX where it has to.
        unsafe {
            raw_copy(to.as_mut_ptr(), from.as_ptr(), from.len());
            if avx {
                upper_halves(&mut halves);
            }
        }
        assert!(to == from);
        assert_eq!(halves, [[0; 16]; 8], "SSE instructions wait for them");
    }
}
