//! The page cache over a store in memory whose I/O can be made to fail.

mod epochs;
mod files;
mod guards;
mod marker;
#[cfg(feature = "count-nonces")]
mod nonces;
mod volume;

use super::*;
use crate::store::StoreFile;
use dafs_keys::{FileKey, PageKey, ReadKey};
use dafs_proto::{Attr, Extent, Time, WireRef};
use ordma::{AccessFault, FOOTER_LEN, Footer, RemoteRef, Slot};
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

pub(crate) const PAGE: usize = 4096;

/// Makes one test per protection level out of a function that takes the level.
macro_rules! at_every_level {
    ($($name:ident),* $(,)?) => {
        mod none { $( #[test] fn $name() { super::$name(dafs_keys::Protection::None); } )* }
        mod keyed { $( #[test] fn $name() { super::$name(dafs_keys::Protection::Keyed); } )* }
        mod sealed { $( #[test] fn $name() { super::$name(dafs_keys::Protection::Sealed); } )* }
    };
}

at_every_level![
    reads_what_the_store_has,
    a_write_shows_through_old_references,
    extending_and_truncating_move_the_end,
    an_evicted_page_is_stale_until_an_rpc_brings_it_back,
    more_dirty_pages_than_slots_go_through_the_disk,
    a_failed_write_back_keeps_the_page_dirty,
    what_a_failed_sync_may_have_lost_is_written_again,
    a_retired_chunk_is_gone_and_its_pages_are_not,
    a_change_behind_our_back_is_seen_at_open,
    a_removed_file_ends_with_its_last_close,
    nonsense_is_refused,
    what_the_store_cannot_hold_is_refused_at_once,
    slots_are_delivered_as_copies_are,
    a_page_gets_a_new_generation_after_its_last_version,
    what_cannot_be_opened_never_reaches_the_disk,
];

// Behind the macro, which it uses.
mod disk_state;

/// A file in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryFile {
    pub state: Mutex<(Vec<u8>, u32)>,
    pub fail_writes: AtomicBool,
    pub fail_sync: AtomicBool,
    /// The next sync fails, and loses what was written since the last one.
    pub lose_next_sync: AtomicBool,
    /// What the last sync left.
    pub stable: Mutex<Vec<u8>>,
    /// Bytes that are free on its file system, where that is known.
    pub free: Mutex<Option<u64>>,
    /// Most bytes it can have, if not any number.
    pub largest: Mutex<Option<u64>>,
    /// The times of the file are not the server's to set.
    pub fail_times: AtomicBool,
    /// As it was set, since the last change.
    pub mtime: Mutex<Option<Time>>,
    pub on_read: Hook,
    pub on_write: Hook,
    /// The bytes are on the disk, and the call has not returned yet.
    pub on_written: Hook,
}

/// What is to happen while the disk works.
#[derive(Default)]
pub(crate) struct Hook(Mutex<Option<Box<dyn FnMut() + Send>>>);

impl Hook {
    pub fn set(&self, hook: impl FnMut() + Send + 'static) {
        *self.0.lock() = Some(Box::new(hook));
    }

    fn call(&self) {
        // Not locked meanwhile, for the explorer does not see what the hook waits for.
        let hook = self.0.lock().take();
        if let Some(mut hook) = hook {
            hook();
            *self.0.lock() = Some(hook);
        }
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

impl MemoryFile {
    pub fn with(data: Vec<u8>) -> Arc<Self> {
        let stable = Mutex::new(data.clone());
        Arc::new(Self { state: Mutex::new((data, 1)), stable, ..Self::default() })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        change(&mut state.0);
        state.1 += 1;
        *self.mtime.lock() = None;
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.state.lock().0.clone()
    }
}

impl StoreFile for MemoryFile {
    fn identity(&self) -> Identity {
        Identity { device: 1, inode: std::ptr::from_ref(self) as u64, generation: 0 }
    }
    fn writable(&self) -> bool {
        true
    }
    fn max_size(&self) -> u64 {
        self.largest.lock().unwrap_or(u64::MAX)
    }
    fn attr(&self) -> Result<Attr> {
        let state = self.state.lock();
        let ctime = Some(Time { seconds: 0, nanoseconds: state.1 });
        let mtime = self.mtime.lock().or(ctime);
        Ok(Attr { size: state.0.len() as u64, ctime, mtime, ..Attr::default() })
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.on_read.call();
        let state = self.state.lock();
        let from = state.0.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        if self.fail_writes.load(Ordering::Relaxed) {
            return Err(error(Status::NoSpace, "write to the test's disk"));
        }
        self.on_write.call();
        self.change(|bytes| {
            let offset = usize::try_from(offset).unwrap();
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        });
        self.on_written.call();
        Ok(())
    }
    fn available(&self) -> Result<u64> {
        Ok(self.free.lock().unwrap_or(u64::MAX))
    }
    fn reserve(&self, _: u64, len: u64) -> Result<()> {
        // The kernel sets the times.
        self.change(|_| ());
        match &mut *self.free.lock() {
            Some(free) if *free < len => Err(error(Status::NoSpace, "reserve on the test's disk")),
            Some(free) => {
                *free -= len;
                Ok(())
            }
            None => Ok(()),
        }
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.change(|bytes| bytes.resize(usize::try_from(len).unwrap(), 0));
        Ok(())
    }
    fn sync(&self, _: bool) -> Result<()> {
        if self.fail_sync.load(Ordering::Relaxed) {
            return Err(error(Status::Io, "sync the test's disk"));
        }
        let mut stable = self.stable.lock();
        if self.lose_next_sync.swap(false, Ordering::Relaxed) {
            self.change(|bytes| bytes.clone_from(&stable));
            return Err(error(Status::Io, "sync the test's disk, which lost what was written"));
        }
        stable.clone_from(&self.state.lock().0);
        Ok(())
    }
    fn set_mtime(&self, mtime: SystemTime) -> Result<()> {
        if self.fail_times.load(Ordering::Relaxed) {
            return Err(error(Status::Permission, "set a time on the test's disk"));
        }
        self.change(|_| ());
        *self.mtime.lock() = Some(super::file::wire_time(mtime));
        Ok(())
    }
}

/// Remembers the guards of what it was shown.
#[derive(Default)]
pub(crate) struct Shown(pub Mutex<Vec<Guard>>);

impl Exporter for Shown {
    fn export(&self, chunk: &Arc<Chunk>) {
        self.0.lock().push(chunk.guard());
    }
    fn retire(&self, _: ChunkId, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

/// What a cache of `chunks` chunks of `slots` slots each, and of a few files, is made of.
pub(crate) fn config(slots: usize, chunks: usize) -> CacheConfig {
    let geometry = Geometry::new(PAGE, slots * PAGE).unwrap();
    CacheConfig {
        geometry,
        budget: chunks * (geometry.chunk_len() + slots * SLOT_OVERHEAD) + 3 * PAGE,
        dirty_limit: slots * chunks * PAGE,
        writeback_interval: Duration::from_secs(3600),
        retire_patience: Duration::from_secs(1),
        disk_patience: Duration::from_secs(30),
    }
}

/// A cache of `chunks` chunks of `slots` slots each, for files at one level.
pub(crate) fn cache(level: Protection, slots: usize, chunks: usize) -> Arc<Cache> {
    let exporter = Arc::new(Shown::default());
    Cache::new(
        config(slots, chunks),
        [level],
        exporter,
        Runtime::inline(),
        Arc::new(crate::sharing::Boots::forgetful(1)),
    )
    .unwrap()
}

/// Opens a file through the export `data`.
pub(crate) fn open(
    cache: &Arc<Cache>,
    level: Protection,
    disk: &Arc<MemoryFile>,
) -> Arc<CachedFile> {
    cache.open(Arc::clone(disk) as Arc<dyn StoreFile>, "data", level).unwrap()
}

/// Runs a future on this thread; what it waits for is another actor's work, or queued here.
pub(crate) fn wait<T>(cache: &Cache, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            #[cfg(feature = "explore")]
            ordma::explore::unblocked();
            return value;
        }
        if cache.runtime.run_queued() {
            #[cfg(feature = "explore")]
            ordma::explore::unblocked();
            continue;
        }
        #[cfg(feature = "explore")]
        if ordma::explore::is_on() {
            ordma::explore::blocked();
            continue;
        }
        std::thread::yield_now();
    }
}

pub(crate) fn write(file: &Arc<CachedFile>, offset: u64, data: &[u8]) {
    let extent = Extent { offset, length: data.len() as u64 };
    wait(&file.cache, file.write(&[extent], data)).unwrap();
}

/// The key that a client has after an RPC.
pub(crate) fn key(file: &CachedFile) -> FileKey {
    let session = Secret::from_bytes([5; 32]).keyed();
    match (file.protection(), file.key(Some(&session))) {
        (Protection::None, None) => FileKey::Clear,
        (Protection::Keyed, Some((epoch, key))) => FileKey::Keyed(ReadKey::new(epoch, key)),
        (Protection::Sealed, Some((epoch, key))) => FileKey::Sealed(PageKey::new(epoch, key)),
        other => panic!("no key for that: {other:?}"),
    }
}

/// Reads by RPC and checks every page; the bytes up to the end of the file.
pub(crate) fn read(file: &Arc<CachedFile>, offset: u64, length: u64) -> Vec<u8> {
    let extent = Extent { offset, length };
    let (pages, key) = loop {
        let pages = wait(&file.cache, file.read(&[extent], usize::MAX, 0, vec![7; 9])).unwrap();
        let key = key(file);
        // A client whose key is of another epoch asks again.
        if pages.epoch.unwrap_or(0) == key.epoch() {
            break (pages, key);
        }
    };
    let (footers, payloads) = pages.data.split_at(pages.counts[0] as usize * FOOTER_LEN);
    let mut bytes = Vec::new();
    for (footer, payload) in footers.as_chunks().0.iter().zip(payloads.chunks(PAGE)) {
        let mut payload = payload.to_vec();
        let footer = ordma::slot::open(footer, &mut payload, &key).unwrap();
        assert!(payload[footer.valid as usize..].iter().all(|byte| *byte == 0));
        assert!(footer.last || footer.valid as usize == PAGE);
        bytes.extend(&payload[..footer.valid as usize]);
    }
    bytes
}

/// References of all cached pages.
pub(crate) fn refs(file: &Arc<CachedFile>) -> Vec<RemoteRef> {
    let mut list = Vec::new();
    file.refs(0, 1000, &mut list);
    let number = file.number();
    let refs = WireRef::iter(&list).unwrap().map(|r| RemoteRef {
        chunk: r.chunk,
        slot: r.slot,
        file: number,
        block: r.block,
        generation: r.generation,
    });
    refs.collect()
}

/// A one-sided read, as a client's engine does it, with a key.
pub(crate) fn ordma_with(
    arena: &Arena,
    reference: &RemoteRef,
    key: &FileKey,
) -> std::result::Result<(Footer, Vec<u8>), AccessFault> {
    let chunk = arena.chunk(reference.chunk).ok_or(AccessFault::Gone)?;
    let (mut payload, mut footer) = (vec![0; PAGE], [0; FOOTER_LEN]);
    assert!(chunk.copy_out(reference.slot, &mut payload, &mut footer));
    let footer = ordma::slot::accept(&footer, &mut payload, reference, 0, key)?;
    payload.truncate(footer.valid as usize);
    Ok((footer, payload))
}

/// A one-sided read with the key of now.
pub(crate) fn ordma(
    file: &CachedFile,
    reference: &RemoteRef,
) -> std::result::Result<(Footer, Vec<u8>), AccessFault> {
    ordma_with(&file.cache.arena, reference, &key(file))
}

/// Every slot of the arena, copied out.
pub(crate) fn slots(arena: &Arena) -> Vec<(Vec<u8>, [u8; FOOTER_LEN])> {
    let mut all = Vec::new();
    for chunk in arena.chunks() {
        for slot in 0..chunk.geometry().slots {
            let (mut payload, mut footer) = (vec![0; PAGE], [0; FOOTER_LEN]);
            assert!(chunk.copy_out(slot, &mut payload, &mut footer));
            all.push((payload, footer));
        }
    }
    all
}

fn reads_what_the_store_has(level: Protection) {
    for size in [0usize, 1, 4095, 4096, 4097, 3 * 4096, 100_000] {
        let data: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let cache = cache(level, 64, 1);
        let file = open(&cache, level, &MemoryFile::with(data.clone()));
        assert_eq!(read(&file, 0, 1 << 20), data, "{size} bytes");
        let refs = refs(&file);
        assert_eq!(refs.len(), size.div_ceil(PAGE).max(1));
        let pages: Vec<_> = refs.iter().map(|r| ordma(&file, r).unwrap()).collect();
        assert_eq!(pages.iter().flat_map(|page| page.1.clone()).collect::<Vec<_>>(), data);
        let last: Vec<bool> = pages.iter().map(|page| page.0.last).collect();
        assert_eq!(last.iter().position(|last| *last), Some(last.len() - 1));
        let beyond = wait(
            &cache,
            file.read(&[Extent { offset: 1 << 30, length: 1 }], 99999, 1, Vec::<u8>::new()),
        );
        let beyond = beyond.unwrap();
        assert_eq!((beyond.counts, beyond.refs.len()), (vec![0], WireRef::LEN));
    }
}

fn a_write_shows_through_old_references(level: Protection) {
    let cache = cache(level, 64, 1);
    let file = open(&cache, level, &MemoryFile::with(vec![1; 3 * PAGE]));
    read(&file, 0, 1 << 20);
    let before = refs(&file);
    write(&file, 4000, &[9; 200]);
    let pages: Vec<_> = before.iter().map(|r| ordma(&file, r).unwrap()).collect();
    assert_eq!(pages.iter().map(|p| p.0.version).collect::<Vec<_>>(), [1, 1, 0]);
    assert!(
        pages[0].1[4000..].iter().all(|b| *b == 9) && pages[1].1[..104].iter().all(|b| *b == 9)
    );
    assert_eq!(pages[1].1[104], 1);
}

fn extending_and_truncating_move_the_end(level: Protection) {
    let cache = cache(level, 64, 1);
    let disk = MemoryFile::with(vec![1; 100]);
    let file = open(&cache, level, &disk);
    read(&file, 0, 1);
    let first = refs(&file)[0];
    assert!(ordma(&file, &first).unwrap().0.last);
    write(&file, 9000, &[2; 10]);
    let (footer, payload) = ordma(&file, &first).unwrap();
    assert!(!footer.last && payload.len() == PAGE && payload[100..].iter().all(|b| *b == 0));
    assert_eq!(file.size(), 9010);
    let tail = *refs(&file).last().unwrap();
    assert_eq!(tail.block, 2);
    wait(&cache, file.set_size(50)).unwrap();
    let (footer, payload) = ordma(&file, &first).unwrap();
    assert!(footer.last && payload == [1; 50]);
    assert_eq!(ordma(&file, &tail), Err(AccessFault::Stale));
    wait(&cache, file.set_size(5000)).unwrap();
    assert!(!ordma(&file, &first).unwrap().0.last);
    let mut expected = vec![1; 50];
    expected.resize(5000, 0);
    assert_eq!(read(&file, 0, 1 << 20), expected);
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(disk.bytes(), expected);
}

fn an_evicted_page_is_stale_until_an_rpc_brings_it_back(level: Protection) {
    let cache = cache(level, 8, 1);
    let file = open(&cache, level, &MemoryFile::with(vec![3; 16 * PAGE]));
    read(&file, 0, PAGE as u64);
    let reference = refs(&file)[0];
    for block in 1..16 {
        read(&file, block * PAGE as u64, PAGE as u64);
    }
    assert_eq!(ordma(&file, &reference), Err(AccessFault::Stale));
    read(&file, 0, 1);
    let healed = refs(&file)[0];
    assert_ne!(healed.generation, reference.generation);
    assert_eq!(ordma(&file, &healed).unwrap().1, [3; PAGE]);
}

fn more_dirty_pages_than_slots_go_through_the_disk(level: Protection) {
    let cache = cache(level, 8, 2);
    let disk = MemoryFile::with(Vec::new());
    let file = open(&cache, level, &disk);
    let data: Vec<u8> =
        (0..100 * PAGE + 7).map(|i| u8::try_from(i / 1000 % 256).unwrap()).collect();
    write(&file, 0, &data);
    assert_eq!(read(&file, 0, 1 << 30), data);
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(disk.bytes(), data);
    assert_eq!(cache.dirty.load(Ordering::Relaxed), 0);
}

fn a_failed_write_back_keeps_the_page_dirty(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(Vec::new());
    let file = open(&cache, level, &disk);
    write(&file, 0, b"precious");
    disk.fail_writes.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let failed = wait(&cache, file.commit(Extent::default())).unwrap_err();
        assert_eq!(failed.status, Status::NoSpace);
    }
    assert_eq!(disk.bytes(), b"");
    disk.fail_writes.store(false, Ordering::Relaxed);
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(disk.bytes(), b"precious");
}

fn what_a_failed_sync_may_have_lost_is_written_again(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(Vec::new());
    let file = open(&cache, level, &disk);
    write(&file, 0, b"x");
    let before = file.verifier();
    disk.fail_sync.store(true, Ordering::Relaxed);
    assert!(wait(&cache, file.commit(Extent::default())).is_err());
    // As a kernel does whose disk has failed.
    disk.state.lock().0.fill(0);
    assert_eq!(cache.dirty.load(Ordering::Relaxed), PAGE, "the page is not clean");
    disk.fail_sync.store(false, Ordering::Relaxed);
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(disk.bytes(), b"x");
    assert_eq!(cache.dirty.load(Ordering::Relaxed), 0);
    assert_eq!(file.verifier(), before, "nothing has to be sent again");
}

fn a_retired_chunk_is_gone_and_its_pages_are_not(level: Protection) {
    let cache = cache(level, 8, 2);
    let disk = MemoryFile::with(vec![5; 12 * PAGE]);
    let file = open(&cache, level, &disk);
    read(&file, 0, 1 << 20);
    write(&file, 10 * PAGE as u64, &[6; PAGE]);
    let old = refs(&file);
    assert_eq!(old.len(), 12);
    assert!(wait(&cache, cache.retire_chunk()).unwrap());
    for reference in old {
        let expected = if reference.chunk == 1 { Some(AccessFault::Gone) } else { None };
        assert_eq!(ordma(&file, &reference).err(), expected, "{reference:?}");
    }
    let mut expected = vec![5; 12 * PAGE];
    expected[10 * PAGE..11 * PAGE].fill(6);
    assert_eq!(read(&file, 0, 1 << 20), expected);
    assert_eq!(cache.arena.bytes(), 2 * cache.config.geometry.chunk_len(), "grown again: id 2");
    assert!(cache.arena.chunk(1).is_none());
}

fn a_change_behind_our_back_is_seen_at_open(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; PAGE]);
    let file = open(&cache, level, &disk);
    read(&file, 0, 1);
    let reference = refs(&file)[0];
    wait(&cache, file.revalidate()).unwrap();
    assert!(ordma(&file, &reference).is_ok(), "nothing had changed");
    disk.write_at(&[7; 10], 0).unwrap();
    wait(&cache, file.revalidate()).unwrap();
    assert_eq!(ordma(&file, &reference), Err(AccessFault::Stale));
    assert_eq!(read(&file, 0, 10)[..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 5]);
    write(&file, 0, &[8]);
    wait(&cache, file.commit(Extent::default())).unwrap();
    let reference = refs(&file)[0];
    wait(&cache, file.revalidate()).unwrap();
    assert!(ordma(&file, &reference).is_ok(), "our own write-back is not someone else's");
}

fn a_removed_file_ends_with_its_last_close(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; PAGE]);
    let file = open(&cache, level, &disk);
    let open = file.hold();
    read(&file, 0, 1);
    let reference = refs(&file)[0];
    file.removed();
    assert!(ordma(&file, &reference).is_ok());
    drop(open);
    assert_eq!(ordma(&file, &reference), Err(AccessFault::Stale));
    // Nothing keeps it on the disk.
    assert!(cache.find(&disk.identity()).is_none());
    drop(file);
    assert_eq!(Arc::strong_count(&disk), 1);
    let again = self::open(&cache, level, &disk);
    read(&again, 0, 1);
    again.removed();
    drop(again);
    assert_eq!(Arc::strong_count(&disk), 1);
}

fn what_the_store_cannot_hold_is_refused_at_once(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; 10]);
    let most = 2 * PAGE as u64 + 7;
    *disk.largest.lock() = Some(most);
    let file = open(&cache, level, &disk);
    let good = Extent { offset: 0, length: 3 };
    for bad in [
        Extent { offset: most, length: 1 },
        Extent { offset: most - 2, length: 3 },
        Extent { offset: 16 << 40, length: 1 },
        Extent { offset: i64::MAX as u64 - 1, length: 1 },
        Extent { offset: u64::MAX, length: 1 },
    ] {
        for extents in [vec![bad], vec![good, bad]] {
            let data = vec![6; extents.iter().map(|e| e.length as usize).sum()];
            let error = wait(&cache, file.write(&extents, &data)).unwrap_err();
            assert_eq!(error.status, Status::FileTooBig, "{error}");
        }
    }
    for size in [most + 1, i64::MAX as u64, u64::MAX] {
        let error = wait(&cache, file.set_size(size)).unwrap_err();
        assert_eq!(error.status, Status::FileTooBig, "{error}");
    }
    assert_eq!((file.size(), read(&file, 0, 1 << 20)), (10, vec![5; 10]), "nothing has changed");
    assert_eq!(cache.dirty.load(Ordering::Relaxed), 0);
    // Up to there all is well.
    write(&file, most - 3, &[6; 3]);
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(disk.bytes().len() as u64, most);
    wait(&cache, file.set_size(most)).unwrap();
}

fn slots_are_delivered_as_copies_are(level: Protection) {
    let cache = cache(level, 8, 1);
    let file = open(&cache, level, &MemoryFile::with(vec![5; 3 * PAGE - 9]));
    let extents = [(2 * PAGE, 9 * PAGE), (0, 1), (0, 0), (9 * PAGE, 1)]
        .map(|(offset, length)| Extent { offset: offset as u64, length: length as u64 });
    let copies: Pages = wait(&cache, file.read(&extents, usize::MAX, 9, Vec::new())).unwrap();
    let slots: Pages<Vec<Slot>> =
        wait(&cache, file.read(&extents, usize::MAX, 9, Vec::new())).unwrap();
    assert_eq!((&slots.counts, &copies.counts), (&vec![1, 1, 0, 0], &slots.counts));
    assert_eq!((slots.refs, slots.size, slots.epoch), (copies.refs, copies.size, copies.epoch));
    let (footers, _) = copies.data.split_at(2 * FOOTER_LEN);
    let found: Vec<_> = slots.data.iter().map(Slot::footer).collect();
    assert_eq!(found, footers.as_chunks::<FOOTER_LEN>().0);
}

fn nonsense_is_refused(level: Protection) {
    let cache = cache(level, 8, 1);
    let file = open(&cache, level, &MemoryFile::with(vec![5; PAGE]));
    let wraps = Extent { offset: u64::MAX, length: 2 };
    let status = |result: Result<()>| result.unwrap_err().status;
    assert_eq!(
        wait(&cache, file.read(&[wraps], 1 << 20, 0, Vec::<u8>::new())).unwrap_err().status,
        Status::Invalid
    );
    assert_eq!(status(wait(&cache, file.write(&[wraps], b"ab"))), Status::FileTooBig);
    let lies = Extent { offset: 0, length: 3 };
    assert_eq!(status(wait(&cache, file.write(&[lies], b"ab"))), Status::Invalid);
    let large =
        wait(&cache, file.read(&[Extent { offset: 0, length: 1 }], 100, 0, Vec::<u8>::new()))
            .unwrap_err();
    assert_eq!(large.status, Status::MessageTooBig);
    assert_eq!(file.size(), PAGE as u64);
}

#[test]
fn file_numbers_do_not_repeat() {
    let cache = cache(Protection::None, 8, 1);
    let numbers: std::collections::HashSet<u64> =
        (0..10_000).map(|i| cache.files.number(i)).collect();
    assert_eq!(numbers.len(), 10_000);
}

fn a_page_gets_a_new_generation_after_its_last_version(level: Protection) {
    let cache = cache(level, 8, 1);
    let file = open(&cache, level, &MemoryFile::with(vec![5; PAGE]));
    read(&file, 0, 1);
    let page = (file.number(), 0);
    cache.shard(page).lock().page(page).unwrap().version = dafs_keys::page::VERSIONS - 2;
    write(&file, 0, &[6; PAGE]);
    let old = refs(&file)[0];
    assert_eq!(ordma(&file, &old).unwrap().0.version, dafs_keys::page::VERSIONS - 1);
    write(&file, 10, &[7]);
    assert_eq!(ordma(&file, &old), Err(AccessFault::Stale));
    let (footer, payload) = ordma(&file, &refs(&file)[0]).unwrap();
    assert_eq!((footer.version, payload[9], payload[10], payload[11]), (0, 6, 7, 6));
}

fn what_cannot_be_opened_never_reaches_the_disk(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; 3 * PAGE]);
    let file = open(&cache, level, &disk);
    write(&file, 0, &[6; 3 * PAGE]);
    let reference = refs(&file)[1];
    let chunk = cache.arena.chunk(reference.chunk).unwrap();
    let footer = chunk.footer(reference.slot).unwrap();
    chunk.write(reference.slot, &[0xBA; PAGE], &footer);

    let io = |result: Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.status, Status::Io);
        assert!(error.what.contains("page 1 of inode"), "{}", error.what);
    };
    for _ in 0..2 {
        io(wait(&cache, file.commit(Extent::default())).map(drop));
        assert!(disk.bytes() == [[6; PAGE], [5; PAGE], [6; PAGE]].concat(), "all but page 1");
        assert_eq!(cache.dirty.load(Ordering::Relaxed), PAGE);
    }
    let one = Extent { offset: PAGE as u64 + 1, length: 1 };
    io(wait(&cache, file.write(&[one], &[7])));
    io(wait(&cache, file.set_size(PAGE as u64 + 100)));
    assert_eq!(file.size(), PAGE as u64 + 100);
    if level != Protection::None {
        io(wait(&cache, file.new_epoch()));
        assert_eq!(file.epoch(), 2);
    }
    io(wait(&cache, file.write(&[Extent { offset: 3 * PAGE as u64, length: 1 }], &[7])));
    assert_eq!(file.size(), PAGE as u64 + 100, "the end has not moved");
    let counted = cache.counters().into_iter().find(|(name, _)| *name == "cache_corrupt_pages");
    assert!(counted.unwrap().1 >= 5);

    write(&file, PAGE as u64, &[8; 100]);
    wait(&cache, file.commit(Extent::default())).unwrap();
    let whole = [vec![6; PAGE], vec![8; 100]].concat();
    assert!(disk.bytes() == whole && read(&file, 0, 1 << 20) == whole);
}

fn a_writer(cache: &Cache, number: u8) -> Writer {
    let id = crate::sharing::OwnerId::from_bytes([number; crate::sharing::OwnerId::LEN]);
    Writer { owner: cache.owners().begin(id), standing: Arc::default() }
}

/// A database writes and syncs one file, again and again.
#[test]
fn a_client_that_writes_and_syncs_for_ever_takes_no_more_memory() {
    let cache = cache(Protection::None, 8, 1);
    let disk = MemoryFile::with(vec![1; PAGE]);
    let file = open(&cache, Protection::None, &disk);
    let writer = a_writer(&cache, 1);
    for _ in 0..1000 {
        let extent = Extent { offset: 0, length: 9 };
        wait(&cache, file.write_for(&writer, &[extent], &[2; 9], None)).unwrap();
        let what = wait(&cache, file.commit(Extent::default())).unwrap();
        Told { file: Arc::clone(&file), owner: Arc::clone(&writer.owner), what }.confirm();
    }
    let noted = format!("{:?}", writer.owner).matches("(Weak)").count();
    assert!(noted < 10, "one file is noted {noted} times");
}

/// A's write, which makes the file 4096 bytes long, waits for the disk. B sets that very size, and is
/// told that it is set. Then A's write fails.
#[test]
fn a_write_that_fails_does_not_undo_a_size_that_was_set_meanwhile() {
    let cache = cache(Protection::None, 8, 1);
    let disk = MemoryFile::with(vec![1; 50]);
    let file = open(&cache, Protection::None, &disk);
    let (a, b) = (a_writer(&cache, 1), a_writer(&cache, 2));
    let set = Arc::new(AtomicBool::new(false));
    let (standing, theirs, cached) = (Arc::clone(&a.standing), Arc::clone(&set), Arc::clone(&file));
    disk.on_read.set(move || {
        standing.end();
        let (b, set, file) = (b.clone(), Arc::clone(&theirs), Arc::clone(&cached));
        let runtime = file.cache.runtime.clone();
        runtime.run(async move {
            file.set_size_for(&b, 4096, None).await.unwrap();
            set.store(true, Ordering::SeqCst);
        });
    });
    let extent = Extent { offset: 60, length: 4036 };
    wait(&cache, file.write_for(&a, &[extent], &[2; 4036], None)).unwrap_err();
    while cache.runtime.run_queued() {}
    assert!(set.load(Ordering::SeqCst), "B's size was set");
    assert_eq!(file.size(), 4096);
    cache.close();
}
