//! Chunks with tags beside chunks without.

use super::*;

const BOTH: [Protection; 3] = [Protection::Sealed, Protection::Keyed, Protection::None];

/// How many chunks there are without a guard, and with tags.
fn chunks(cache: &Cache) -> (usize, usize) {
    let chunks = cache.arena.chunks();
    let tagged = chunks.iter().filter(|chunk| chunk.guard() == Guard::Tags).count();
    (chunks.len() - tagged, tagged)
}

fn guards_of_pages(cache: &Cache, file: &Arc<CachedFile>) -> Vec<Guard> {
    refs(file).iter().map(|r| cache.arena.chunk(r.chunk).unwrap().guard()).collect()
}

#[test]
fn each_guard_has_its_share_and_its_own_pages() {
    let exporter = Arc::new(Shown::default());
    let shown = Arc::clone(&exporter);
    let cache =
        Cache::new(config(8, 5), BOTH, exporter, Runtime::inline(), Arc::new(Boots::forgetful(1)))
            .unwrap();
    assert_eq!(*shown.0.lock(), [Guard::None, Guard::Tags]);
    let disks = [MemoryFile::with(vec![1; 40 * PAGE]), MemoryFile::with(vec![2; 40 * PAGE])];
    let sealed = open(&cache, Protection::Sealed, &disks[0]);
    let keyed = open(&cache, Protection::Keyed, &disks[1]);
    read(&sealed, 0, 10 * PAGE as u64);
    assert_eq!((chunks(&cache), refs(&sealed).len()), ((2, 1), 10));

    // However much is read and written of the one, the other's pages stay.
    assert!(read(&keyed, 0, 1 << 30) == vec![2; 40 * PAGE]);
    write(&keyed, 0, &[3; 40 * PAGE]);
    assert_eq!((chunks(&cache), refs(&sealed).len()), ((2, 2), 10));
    let kept = guards_of_pages(&cache, &keyed);
    assert!(!kept.is_empty() && kept.len() <= 16 && kept.iter().all(|g| *g == Guard::Tags));
    assert!(guards_of_pages(&cache, &sealed).iter().all(|guard| *guard == Guard::None));
    wait(&cache, keyed.commit(Extent::default())).unwrap();
    assert!(disks[1].bytes() == vec![3; 40 * PAGE]);
    assert!(read(&sealed, 0, 1 << 30) == vec![1; 40 * PAGE]);
    assert_eq!(chunks(&cache), (2, 2), "half of five is two");

    // One of either kind is left.
    while wait(&cache, cache.retire_chunk()).unwrap() {}
    assert_eq!(chunks(&cache), (1, 1));
    assert!(read(&keyed, 0, 1 << 30) == vec![3; 40 * PAGE]);
    assert!(read(&sealed, 0, 1 << 30) == vec![1; 40 * PAGE]);
    assert!(shown.0.lock().len() > 4 && chunks(&cache) == (2, 2));
}

#[test]
fn a_guard_without_exports_gets_nothing_and_one_with_them_at_least_a_chunk() {
    for (levels, expected) in
        [(&BOTH[..1], (1, 0)), (&BOTH[1..2], (0, 1)), (&BOTH[..], (1, 1)), (&BOTH[1..], (1, 1))]
    {
        let exporter = Arc::new(Shown::default());
        let levels = levels.iter().copied();
        let cache = Cache::new(
            config(8, 1),
            levels,
            exporter,
            Runtime::inline(),
            Arc::new(Boots::forgetful(1)),
        )
        .unwrap();
        assert_eq!(chunks(&cache), expected);
    }
}

#[test]
fn a_file_has_one_level() {
    let exporter = Arc::new(Shown::default());
    let levels = [Protection::Sealed, Protection::None];
    let cache = Cache::new(
        config(8, 1),
        levels,
        exporter,
        Runtime::inline(),
        Arc::new(Boots::forgetful(1)),
    )
    .unwrap();
    let disk = MemoryFile::with(vec![1; PAGE]);
    let open = |level| cache.open(Arc::clone(&disk) as Arc<dyn StoreFile>, "x", level);
    let status = |level| open(level).unwrap_err().status;
    assert_eq!(status(Protection::Keyed), Status::Protection, "no export has it");
    let file = open(Protection::Sealed).unwrap();
    assert_eq!(file.protection(), Protection::Sealed);
    assert_eq!(status(Protection::None), Status::Protection);
    assert!(Arc::ptr_eq(&file, &open(Protection::Sealed).unwrap()));
}
