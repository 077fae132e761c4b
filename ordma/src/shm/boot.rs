//! The boot page: tells clients on this host whether the server still lives.
//!
//! A client copies pages from memory that outlives the server's process. Once the server is gone
//! another one may change the files, and what the memory says is no longer true. So the first page
//! that a client is given holds a word that the kernel itself marks when the server's process ends,
//! however it ends: the word is a robust futex, owned by a thread that does nothing else. The kernel
//! walks a dying thread's list of such futexes before the process lets go of its files, hence
//! before a new server can find the socket abandoned.

use crate::memory::{Mapping, MemoryFile};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

const LEN: usize = 4096;
/// What the kernel sets in a futex whose owner has died.
const OWNER_DIED: u32 = 0x4000_0000;

/// `struct robust_list`.
#[repr(C)]
struct Entry {
    next: *const Entry,
}

/// `struct robust_list_head`.
#[repr(C)]
struct Head {
    list: Entry,
    futex_offset: libc::c_long,
    pending: *const Entry,
}

/// The server's side.
#[derive(Debug)]
pub(crate) struct BootPage {
    file: MemoryFile,
    guard: Mutex<Option<(mpsc::Sender<()>, JoinHandle<()>)>>,
}

impl BootPage {
    /// Makes the page, and the thread with whose end it dies.
    pub(crate) fn create() -> io::Result<Self> {
        let (file, memory) = MemoryFile::create("dafs-boot", LEN)?;
        let memory = Arc::new(memory);
        let (stop, stopped) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::Builder::new().name("dafs-liveness".to_owned());
        let join = thread.spawn(move || guard(&memory, &tell, &stopped))?;
        told.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        Ok(Self { file, guard: Mutex::new(Some((stop, join))) })
    }

    /// A descriptor for a client.
    pub(crate) fn reader(&self) -> io::Result<OwnedFd> {
        self.file.reader()
    }

    /// From now on clients find the server gone.
    pub(crate) fn stop(&self) {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, join)) = guard {
            drop(stop);
            let _ = join.join();
        }
    }
}

impl Drop for BootPage {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Owns the word until told to stop.
fn guard(memory: &Mapping, tell: &mpsc::Sender<io::Result<()>>, stopped: &mpsc::Receiver<()>) {
    let word = memory.word32(0);
    let mut head = Box::new(Head {
        list: Entry { next: std::ptr::null() },
        futex_offset: 0,
        pending: std::ptr::null(),
    });
    // One entry, whose next is the head again, as the end of such a list is. The kernel adds the
    // offset to the entry's address to find the futex.
    let mut entry = Box::new(Entry { next: &raw const head.list });
    head.futex_offset =
        (word.as_ptr() as libc::c_long).wrapping_sub(&raw mut *entry as libc::c_long);
    head.list.next = &raw const *entry;
    let size = size_of::<Head>();
    // SAFETY: the list stays where it is and well-formed until it is taken back below, or the
    // thread dies with its process. This thread uses no robust mutex, whose list this replaces.
    let result = unsafe { libc::syscall(libc::SYS_set_robust_list, &raw const *head, size) };
    if result != 0 {
        let _ = tell.send(Err(io::Error::last_os_error()));
        return;
    }
    // SAFETY: gettid takes nothing and cannot fail.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) } as u32;
    word.store(thread, Ordering::Release);
    let _ = tell.send(Ok(()));
    // Ends when the sender is dropped.
    let _ = stopped.recv();
    word.store(0, Ordering::Release);
    // SAFETY: no list, so that the kernel does not look at memory that is freed next.
    unsafe { libc::syscall(libc::SYS_set_robust_list, std::ptr::null::<Head>(), size) };
}

/// A client's side.
#[derive(Debug)]
pub(crate) struct PeerBoot(Mapping);

impl PeerBoot {
    /// Maps the page that a server handed over.
    pub(crate) fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(Mapping::of_peer(file, LEN)?))
    }

    /// Whether the server lived after everything that this thread has read before.
    pub(crate) fn alive(&self) -> bool {
        fence(Ordering::Acquire);
        is_alive(self.0.word32(0))
    }
}

fn is_alive(word: &AtomicU32) -> bool {
    let value = word.load(Ordering::Acquire);
    value != 0 && value & OWNER_DIED == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_stopped_server_is_not_alive() {
        let boot = BootPage::create().unwrap();
        let peer = PeerBoot::map(boot.reader().unwrap().as_fd()).unwrap();
        assert!(peer.alive());
        boot.stop();
        assert!(!peer.alive());
    }

    #[test]
    fn the_kernel_marks_the_word_of_a_thread_that_ends() {
        let (_file, memory) = MemoryFile::create("test", LEN).unwrap();
        let memory = Arc::new(memory);
        let (tell, told) = mpsc::channel();
        // Ends without taking its list back, as by a signal.
        let owned = Arc::clone(&memory);
        let thread = std::thread::spawn(move || {
            let word = owned.word32(0);
            let head = Box::leak(Box::new(Head {
                list: Entry { next: std::ptr::null() },
                futex_offset: 0,
                pending: std::ptr::null(),
            }));
            let entry = Box::leak(Box::new(Entry { next: &raw const head.list }));
            let offset =
                (word.as_ptr() as libc::c_long).wrapping_sub(&raw mut *entry as libc::c_long);
            head.futex_offset = offset;
            head.list.next = &raw const *entry;
            // SAFETY: the list is never freed, and the mapping outlives the thread.
            unsafe {
                libc::syscall(libc::SYS_set_robust_list, &raw const *head, size_of::<Head>());
                word.store(libc::syscall(libc::SYS_gettid) as u32, Ordering::Release);
            }
            tell.send(is_alive(word)).unwrap();
        });
        assert!(told.recv().unwrap());
        thread.join().unwrap();
        // The thread is joined when the kernel clears its id, which comes after the list.
        assert!(!is_alive(memory.word32(0)));
    }
}
