//! What is kept of files counts to the budget.

use super::*;
const LEVEL: Protection = Protection::Sealed;
const SLOTS: usize = 16;
/// Chunks that fit into the budget where there are no files.
const CHUNKS: usize = 64;

fn small_files(count: usize) -> Vec<Arc<MemoryFile>> {
    (0..count).map(|i| MemoryFile::with(vec![i as u8; 100])).collect()
}

/// Bytes that the cache takes, as far as they count.
fn taken(cache: &Cache) -> usize {
    cache.chunks() * cache.chunk_cost() + cache.files.bytes()
}

/// Evicts what can be.
fn evict_all(cache: &Cache) {
    while (0..cache.shards.len()).any(|shard| {
        cache.evict_from(shard, Guard::None).is_some_and(|slot| {
            cache.free(slot);
            true
        })
    }) {}
}

#[test]
fn files_of_one_page_and_their_pages_fit_into_the_budget() {
    let (cache, files) = (cache(LEVEL, SLOTS, CHUNKS), small_files(3 * CHUNKS * SLOTS));
    for (i, file) in files.iter().enumerate() {
        let opened = open(&cache, LEVEL, file);
        let _open = opened.hold();
        assert_eq!(read(&opened, 0, 100), vec![i as u8; 100]);
        while cache.runtime.run_queued() {}
        assert!(taken(&cache) <= cache.config.budget, "{} after {i} files", taken(&cache));
    }
    let slots = cache.chunks() * SLOTS;
    // Those whose only page is gone are forgotten, without waiting for a sweep.
    assert!(cache.files.count() <= slots, "{} files, {slots} slots", cache.files.count());
    // And what there is, is used.
    assert!(cache.files.count() > slots / 2, "{} files, {slots} slots", cache.files.count());
    assert!(taken(&cache) > cache.config.budget / 2, "{} bytes", taken(&cache));
}

#[test]
fn files_that_are_not_in_use_go_before_pages() {
    let cache = cache(LEVEL, SLOTS, CHUNKS);
    let large = MemoryFile::with(vec![1; CHUNKS / 2 * SLOTS * PAGE]);
    let large = open(&cache, LEVEL, &large);
    for block in 0..CHUNKS / 2 * SLOTS {
        read(&large, (block * PAGE) as u64, PAGE as u64);
    }
    let evictions = cache.counters.evictions.load(Ordering::Relaxed);
    // Opened, and never read.
    let most = cache.config.budget / size_of::<CachedFile>();
    for _ in 0..most {
        open(&cache, LEVEL, &MemoryFile::with(Vec::new()));
        while cache.runtime.run_queued() {}
    }
    assert!(taken(&cache) <= cache.config.budget);
    assert_eq!(cache.counters.evictions.load(Ordering::Relaxed), evictions);
    assert_eq!(cache.counters.chunks_retired.load(Ordering::Relaxed), 0);
}

#[test]
fn a_file_that_is_open_is_not_forgotten_with_its_page() {
    let (cache, files) = (cache(LEVEL, SLOTS, CHUNKS), small_files(1));
    let opened = open(&cache, LEVEL, &files[0]);
    read(&opened, 0, 100);
    let (number, identity) = (opened.number(), opened.identity());
    evict_all(&cache);
    assert!(Arc::ptr_eq(&cache.find(&identity).unwrap(), &opened));
    assert!(cache.files.numbered(number).is_some());
    read(&opened, 0, 100);
    drop(opened);
    evict_all(&cache);
    assert!(cache.find(&identity).is_none() && cache.files.numbered(number).is_none());
    assert_eq!((cache.files.count(), cache.files.bytes()), (0, 0));
}
