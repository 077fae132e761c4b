//! New keys, and who gets which.

use super::*;
use dafs_keys::secret::MacKey;

const LEVELS: [Protection; 2] = [Protection::Keyed, Protection::Sealed];

fn commit(file: &Arc<CachedFile>) {
    wait(&file.cache, file.commit(Extent::default())).unwrap();
}

fn new_epoch(file: &Arc<CachedFile>) {
    wait(&file.cache, file.new_epoch()).unwrap();
}

/// Nothing in exported memory is under the key any more.
fn assert_useless(cache: &Cache, key: &FileKey) {
    for (mut payload, footer) in slots(&cache.arena) {
        assert!(ordma::slot::open(&footer, &mut payload, key).is_err());
    }
}

#[test]
fn clean_pages_die_and_dirty_ones_stay_under_the_new_key() {
    for level in LEVELS {
        let cache = cache(level, 8, 1);
        let disk = MemoryFile::with(vec![5; 4 * PAGE]);
        let file = open(&cache, level, &disk);
        read(&file, 0, 1 << 20);
        write(&file, PAGE as u64 + 1, b"dirty");
        let (before, old) = (refs(&file), key(&file));
        assert_eq!((before.len(), old.epoch()), (4, 1));
        new_epoch(&file);
        assert_useless(&cache, &old);
        let new = key(&file);
        assert_eq!(new.epoch(), 2);
        for reference in &before {
            let (with_old, with_new) = (
                ordma_with(&cache.arena, reference, &old),
                ordma_with(&cache.arena, reference, &new),
            );
            if reference.block == 1 {
                assert_eq!(with_old, Err(AccessFault::Revoked));
                let (footer, payload) = with_new.unwrap();
                assert_eq!((footer.version, &payload[..7]), (2, &b"\x05dirty\x05"[..]));
            } else {
                assert_eq!(with_old, Err(AccessFault::Stale));
                assert_eq!(with_new, Err(AccessFault::Stale));
            }
        }
        assert_eq!(refs(&file), before[1..2]);
        let mut expected = vec![5; 4 * PAGE];
        expected[PAGE + 1..PAGE + 6].copy_from_slice(b"dirty");
        assert!(read(&file, 0, 1 << 20) == expected);
        commit(&file);
        assert!(disk.bytes() == expected);
        assert_eq!(cache.dirty.load(Ordering::Relaxed), 0);
        new_epoch(&file);
        assert_eq!((refs(&file), file.epoch()), (Vec::new(), 3));
        assert!(cache.arena.free_slots() == 8 && read(&file, 0, 1 << 20) == expected);
    }
}

#[test]
fn a_new_key_during_write_back_loses_nothing() {
    for level in LEVELS {
        let cache = cache(level, 8, 1);
        let disk = MemoryFile::with(Vec::new());
        let file = open(&cache, level, &disk);
        write(&file, 0, b"precious");
        let old = Arc::new(key(&file));
        let weak = Arc::downgrade(&file);
        disk.on_write.set(move || {
            let file = weak.upgrade().unwrap();
            if file.epoch() == 1 {
                new_epoch(&file);
                assert_useless(&file.cache, &old);
            }
        });
        commit(&file);
        assert_eq!(disk.bytes(), b"precious");
        assert_eq!(cache.dirty.load(Ordering::Relaxed), PAGE, "to be written once more");
        assert_eq!(read(&file, 0, 100), b"precious");
        commit(&file);
        assert_eq!((cache.dirty.load(Ordering::Relaxed), disk.bytes().len()), (0, 8));
    }
}

#[test]
fn a_reply_has_pages_of_one_epoch() {
    for level in LEVELS {
        let cache = cache(level, 8, 1);
        let disk = MemoryFile::with(vec![5; 3 * PAGE]);
        let file = open(&cache, level, &disk);
        read(&file, 0, 1);
        write(&file, 0, &[6; PAGE]);
        // The first page, which is dirty, has been delivered when the others are filled.
        let (weak, mut times) = (Arc::downgrade(&file), 1);
        disk.on_read.set(move || {
            if times > 0 {
                new_epoch(&weak.upgrade().unwrap());
                times -= 1;
            }
        });
        let all = [Extent { offset: 0, length: 3 * PAGE as u64 }];
        let pages = wait(&cache, file.read(&all, usize::MAX, 0, Vec::new())).unwrap();
        assert_eq!((pages.epoch, pages.counts), (Some(2), vec![3]));
        for footer in pages.data[..3 * FOOTER_LEN].as_chunks().0 {
            assert_eq!(Footer::decode(footer).unwrap().epoch, 2);
        }

        // Each fill ends what the one before has brought, but not for ever.
        let weak = Arc::downgrade(&file);
        disk.on_read.set(move || new_epoch(&weak.upgrade().unwrap()));
        new_epoch(&file);
        let two = [2, 1].map(|block| Extent { offset: block * PAGE as u64, length: 1 });
        let refused = wait(&cache, file.read(&two, usize::MAX, 0, Vec::<u8>::new()));
        assert_eq!(refused.map(drop).unwrap_err().status, Status::TryAgain);
        disk.on_read.set(|| ());
        assert!(read(&file, 0, 1 << 20) == [[6; PAGE], [5; PAGE], [5; PAGE]].concat());
    }
}

#[test]
fn an_export_is_revoked_with_all_files_it_led_to() {
    let levels = [Protection::None, Protection::Keyed, Protection::Sealed];
    let exporter = Arc::new(Shown::default());
    let cache = Cache::new(
        config(8, 4),
        levels,
        exporter,
        Runtime::inline(),
        Arc::new(Boots::forgetful(1)),
    )
    .unwrap();
    let disks: Vec<_> = (0..5).map(|_| MemoryFile::with(vec![1; PAGE])).collect();
    let open = |disk: usize, export: &str, level| {
        let disk = Arc::clone(&disks[disk]) as Arc<dyn StoreFile>;
        cache.open(disk, export, level).unwrap()
    };
    let files = [
        open(0, "a", Protection::Sealed),
        open(1, "b", Protection::Sealed),
        open(2, "b", Protection::Sealed),
        open(3, "a", Protection::Keyed),
        open(4, "a", Protection::None),
    ];
    assert!(Arc::ptr_eq(&files[2], &open(2, "a", Protection::Sealed)));
    let epochs = || files.iter().map(|file| file.epoch()).collect::<Vec<_>>();
    assert_eq!(epochs(), [1, 1, 1, 1, 0]);
    cache.revoke_export("a").unwrap();
    assert_eq!(epochs(), [2, 1, 2, 2, 0]);
    cache.revoke_export("b").unwrap();
    cache.revoke_export("c").unwrap();
    assert_eq!(epochs(), [2, 2, 3, 2, 0]);
}

#[test]
fn a_key_is_for_the_level_the_file_the_epoch_and_at_keyed_the_session() {
    let key = |file: &CachedFile, session: Option<&MacKey>| {
        file.key(session).map(|(epoch, secret)| (epoch, *secret.expose()))
    };
    let [one, other] = [1, 2].map(|byte| Secret::from_bytes([byte; 32]).keyed());
    for level in Protection::ALL {
        let cache = cache(level, 8, 1);
        let disks = [MemoryFile::with(vec![1; PAGE]), MemoryFile::with(vec![1; PAGE])];
        let [file, another] = disks.each_ref().map(|disk| open(&cache, level, disk));
        let first = key(&file, Some(&one));
        match level {
            Protection::None => {
                assert_eq!(first, None);
                continue;
            }
            Protection::Keyed => {
                assert_eq!(key(&file, None), None);
                assert_ne!(key(&file, Some(&other)), first);
            }
            Protection::Sealed => {
                assert_eq!(key(&file, None), first);
                assert_eq!(key(&file, Some(&other)), first);
            }
        }
        assert_eq!(key(&file, Some(&one)), first);
        assert_ne!(key(&another, Some(&one)).unwrap().1, first.unwrap().1);
        new_epoch(&file);
        let second = key(&file, Some(&one)).unwrap();
        assert_eq!((first.unwrap().0, second.0), (1, 2));
        assert_ne!(second.1, first.unwrap().1);
    }
}
