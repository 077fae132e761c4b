//! The page cache over a store in memory whose I/O can be made to fail.

use super::*;
use crate::store::StoreFile;
use dafs_keys::FileKey;
use dafs_proto::{Attr, Extent, Time, WireRef};
use ordma::{AccessFault, FOOTER_LEN, Footer, RemoteRef};
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

pub(crate) const PAGE: usize = 4096;

/// A file in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryFile {
    pub state: Mutex<(Vec<u8>, u32)>,
    pub fail_writes: AtomicBool,
    pub fail_sync: AtomicBool,
}

impl MemoryFile {
    pub fn with(data: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new((data, 1)), ..Self::default() })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        change(&mut state.0);
        state.1 += 1;
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
    fn attr(&self) -> Result<Attr> {
        let state = self.state.lock();
        let ctime = Some(Time { seconds: 0, nanoseconds: state.1 });
        Ok(Attr { size: state.0.len() as u64, ctime, mtime: ctime, ..Attr::default() })
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
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
        self.change(|bytes| {
            let offset = usize::try_from(offset).unwrap();
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        });
        Ok(())
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.change(|bytes| bytes.resize(usize::try_from(len).unwrap(), 0));
        Ok(())
    }
    fn sync(&self, _: bool) -> Result<()> {
        if self.fail_sync.load(Ordering::Relaxed) {
            return Err(error(Status::Io, "sync the test's disk"));
        }
        Ok(())
    }
    fn set_mtime(&self, _: SystemTime) -> Result<()> {
        self.change(|_| ());
        Ok(())
    }
}

struct NoClients;

impl Exporter for NoClients {
    fn export(&self, _: &Arc<Chunk>) {}
    fn retire(&self, _: ChunkId, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

/// A cache of `chunks` chunks of `slots` slots each.
pub(crate) fn cache(slots: usize, chunks: usize) -> Arc<Cache> {
    let geometry = Geometry::new(PAGE, slots * PAGE).unwrap();
    let config = CacheConfig {
        geometry,
        budget: chunks * (geometry.chunk_len() + slots * SLOT_OVERHEAD),
        dirty_limit: slots * chunks * PAGE,
        writeback_interval: Duration::from_secs(3600),
        retire_patience: Duration::from_secs(1),
    };
    Cache::new(config, Arc::new(NoClients), Runtime::inline()).unwrap()
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

/// Reads by RPC and checks every page; the bytes up to the end of the file.
pub(crate) fn read(file: &Arc<CachedFile>, offset: u64, length: u64) -> Vec<u8> {
    let extent = Extent { offset, length };
    let pages = wait(&file.cache, file.read(&[extent], usize::MAX, 0, vec![7; 9])).unwrap();
    let (footers, payloads) = pages.data.split_at(pages.counts[0] as usize * FOOTER_LEN);
    let mut bytes = Vec::new();
    for (footer, payload) in footers.as_chunks().0.iter().zip(payloads.chunks(PAGE)) {
        let footer = ordma::slot::open(footer, &mut payload.to_vec(), &FileKey::Clear).unwrap();
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

/// A one-sided read, as a client's engine does it.
pub(crate) fn ordma(
    arena: &Arena,
    reference: &RemoteRef,
) -> std::result::Result<(Footer, Vec<u8>), AccessFault> {
    let chunk = arena.chunk(reference.chunk).ok_or(AccessFault::Gone)?;
    let (mut payload, mut footer) = (vec![0; PAGE], [0; FOOTER_LEN]);
    assert!(chunk.copy_out(reference.slot, &mut payload, &mut footer));
    let footer = ordma::slot::accept(&footer, &mut payload, reference, 0, &FileKey::Clear)?;
    payload.truncate(footer.valid as usize);
    Ok((footer, payload))
}

#[test]
fn reads_what_the_store_has() {
    for size in [0usize, 1, 4095, 4096, 4097, 3 * 4096, 100_000] {
        let data: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let cache = cache(64, 1);
        let file = cache.open(MemoryFile::with(data.clone())).unwrap();
        assert_eq!(read(&file, 0, 1 << 20), data, "{size} bytes");
        let refs = refs(&file);
        assert_eq!(refs.len(), size.div_ceil(PAGE).max(1));
        let pages: Vec<_> = refs.iter().map(|r| ordma(&cache.arena, r).unwrap()).collect();
        assert_eq!(pages.iter().flat_map(|page| page.1.clone()).collect::<Vec<_>>(), data);
        let last: Vec<bool> = pages.iter().map(|page| page.0.last).collect();
        assert_eq!(last.iter().position(|last| *last), Some(last.len() - 1));
        let beyond =
            wait(&cache, file.read(&[Extent { offset: 1 << 30, length: 1 }], 99999, 1, Vec::new()));
        let beyond = beyond.unwrap();
        assert_eq!((beyond.counts, beyond.refs.len()), (vec![0], WireRef::LEN));
    }
}

#[test]
fn a_write_shows_through_old_references() {
    let cache = cache(64, 1);
    let file = cache.open(MemoryFile::with(vec![1; 3 * PAGE])).unwrap();
    read(&file, 0, 1 << 20);
    let before = refs(&file);
    write(&file, 4000, &[9; 200]);
    let pages: Vec<_> = before.iter().map(|r| ordma(&cache.arena, r).unwrap()).collect();
    assert_eq!(pages.iter().map(|p| p.0.version).collect::<Vec<_>>(), [1, 1, 0]);
    assert!(
        pages[0].1[4000..].iter().all(|b| *b == 9) && pages[1].1[..104].iter().all(|b| *b == 9)
    );
    assert_eq!(pages[1].1[104], 1);
}

#[test]
fn extending_and_truncating_move_the_end() {
    let cache = cache(64, 1);
    let disk = MemoryFile::with(vec![1; 100]);
    let file = cache.open(Arc::clone(&disk) as Arc<dyn StoreFile>).unwrap();
    read(&file, 0, 1);
    let first = refs(&file)[0];
    assert!(ordma(&cache.arena, &first).unwrap().0.last);
    write(&file, 9000, &[2; 10]);
    let (footer, payload) = ordma(&cache.arena, &first).unwrap();
    assert!(!footer.last && payload.len() == PAGE && payload[100..].iter().all(|b| *b == 0));
    assert_eq!(file.size(), 9010);
    let tail = *refs(&file).last().unwrap();
    assert_eq!(tail.block, 2);
    wait(&cache, file.set_size(50)).unwrap();
    let (footer, payload) = ordma(&cache.arena, &first).unwrap();
    assert!(footer.last && payload == [1; 50]);
    assert_eq!(ordma(&cache.arena, &tail), Err(AccessFault::Stale));
    wait(&cache, file.set_size(5000)).unwrap();
    assert!(!ordma(&cache.arena, &first).unwrap().0.last);
    let mut expected = vec![1; 50];
    expected.resize(5000, 0);
    assert_eq!(read(&file, 0, 1 << 20), expected);
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(disk.bytes(), expected);
}

#[test]
fn an_evicted_page_is_stale_until_an_rpc_brings_it_back() {
    let cache = cache(8, 1);
    let file = cache.open(MemoryFile::with(vec![3; 16 * PAGE])).unwrap();
    read(&file, 0, PAGE as u64);
    let reference = refs(&file)[0];
    for block in 1..16 {
        read(&file, block * PAGE as u64, PAGE as u64);
    }
    assert_eq!(ordma(&cache.arena, &reference), Err(AccessFault::Stale));
    read(&file, 0, 1);
    let healed = refs(&file)[0];
    assert_ne!(healed.generation, reference.generation);
    assert_eq!(ordma(&cache.arena, &healed).unwrap().1, [3; PAGE]);
}

#[test]
fn more_dirty_pages_than_slots_go_through_the_disk() {
    let cache = cache(8, 2);
    let disk = MemoryFile::with(Vec::new());
    let file = cache.open(Arc::clone(&disk) as Arc<dyn StoreFile>).unwrap();
    let data: Vec<u8> =
        (0..100 * PAGE + 7).map(|i| u8::try_from(i / 1000 % 256).unwrap()).collect();
    write(&file, 0, &data);
    assert_eq!(read(&file, 0, 1 << 30), data);
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(disk.bytes(), data);
    assert_eq!(cache.dirty.load(Ordering::Relaxed), 0);
}

#[test]
fn a_failed_write_back_keeps_the_page_dirty() {
    let cache = cache(8, 1);
    let disk = MemoryFile::with(Vec::new());
    let file = cache.open(Arc::clone(&disk) as Arc<dyn StoreFile>).unwrap();
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

#[test]
fn a_failed_sync_changes_the_verifier() {
    let cache = cache(8, 1);
    let disk = MemoryFile::with(Vec::new());
    let file = cache.open(Arc::clone(&disk) as Arc<dyn StoreFile>).unwrap();
    write(&file, 0, b"x");
    let before = cache.verifier();
    disk.fail_sync.store(true, Ordering::Relaxed);
    assert!(wait(&cache, file.commit(Extent::default())).is_err());
    assert_ne!(cache.verifier(), before);
}

#[test]
fn a_retired_chunk_is_gone_and_its_pages_are_not() {
    let cache = cache(8, 2);
    let disk = MemoryFile::with(vec![5; 12 * PAGE]);
    let file = cache.open(Arc::clone(&disk) as Arc<dyn StoreFile>).unwrap();
    read(&file, 0, 1 << 20);
    write(&file, 10 * PAGE as u64, &[6; PAGE]);
    let old = refs(&file);
    assert_eq!(old.len(), 12);
    assert!(wait(&cache, cache.retire_chunk()).unwrap());
    for reference in old {
        let expected = if reference.chunk == 1 { Some(AccessFault::Gone) } else { None };
        assert_eq!(ordma(&cache.arena, &reference).err(), expected, "{reference:?}");
    }
    let mut expected = vec![5; 12 * PAGE];
    expected[10 * PAGE..11 * PAGE].fill(6);
    assert_eq!(read(&file, 0, 1 << 20), expected);
    assert_eq!(cache.arena.bytes(), 2 * cache.config.geometry.chunk_len(), "grown again: id 2");
    assert!(cache.arena.chunk(1).is_none());
}

#[test]
fn a_change_behind_our_back_is_seen_at_open() {
    let cache = cache(8, 1);
    let disk = MemoryFile::with(vec![5; PAGE]);
    let file = cache.open(Arc::clone(&disk) as Arc<dyn StoreFile>).unwrap();
    read(&file, 0, 1);
    let reference = refs(&file)[0];
    wait(&cache, file.revalidate()).unwrap();
    assert!(ordma(&cache.arena, &reference).is_ok(), "nothing had changed");
    disk.write_at(&[7; 10], 0).unwrap();
    wait(&cache, file.revalidate()).unwrap();
    assert_eq!(ordma(&cache.arena, &reference), Err(AccessFault::Stale));
    assert_eq!(read(&file, 0, 10)[..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 5]);
    write(&file, 0, &[8]);
    wait(&cache, file.commit(Extent::default())).unwrap();
    let reference = refs(&file)[0];
    wait(&cache, file.revalidate()).unwrap();
    assert!(ordma(&cache.arena, &reference).is_ok(), "our own write-back is not someone else's");
}

#[test]
fn a_removed_file_ends_with_its_last_close() {
    let cache = cache(8, 1);
    let file = cache.open(MemoryFile::with(vec![5; PAGE])).unwrap();
    let open = file.hold();
    read(&file, 0, 1);
    let reference = refs(&file)[0];
    file.removed();
    assert!(ordma(&cache.arena, &reference).is_ok());
    drop(open);
    assert_eq!(ordma(&cache.arena, &reference), Err(AccessFault::Stale));
}

#[test]
fn nonsense_is_refused() {
    let cache = cache(8, 1);
    let file = cache.open(MemoryFile::with(vec![5; PAGE])).unwrap();
    let wraps = Extent { offset: u64::MAX, length: 2 };
    let status = |result: Result<()>| result.unwrap_err().status;
    assert_eq!(
        wait(&cache, file.read(&[wraps], 1 << 20, 0, Vec::new())).unwrap_err().status,
        Status::Invalid
    );
    assert_eq!(status(wait(&cache, file.write(&[wraps], b"ab"))), Status::FileTooBig);
    let lies = Extent { offset: 0, length: 3 };
    assert_eq!(status(wait(&cache, file.write(&[lies], b"ab"))), Status::Invalid);
    let large = wait(&cache, file.read(&[Extent { offset: 0, length: 1 }], 100, 0, Vec::new()))
        .unwrap_err();
    assert_eq!(large.status, Status::MessageTooBig);
    assert_eq!(file.size(), PAGE as u64);
}

#[test]
fn file_numbers_do_not_repeat() {
    let cache = cache(8, 1);
    let numbers: std::collections::HashSet<u64> =
        (0..10_000).map(|i| cache.file_number(i)).collect();
    assert_eq!(numbers.len(), 10_000);
}
