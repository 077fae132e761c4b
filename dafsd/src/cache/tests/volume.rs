//! Disks that take nothing, beside others.

use super::*;
use std::sync::mpsc;
use std::time::Instant;

const LEVEL: Protection = Protection::None;
/// How long one waits for what takes no time.
const PATIENCE: Duration = Duration::from_secs(20);

fn of_export(cache: &Arc<Cache>, export: &str, disk: &Arc<MemoryFile>) -> Arc<CachedFile> {
    cache.open(Arc::clone(disk) as Arc<dyn StoreFile>, export, LEVEL).unwrap()
}

/// Writes one page for a client.
fn put(file: &Arc<CachedFile>, writer: &Writer, block: usize) -> Result<()> {
    let extent = Extent { offset: (block * PAGE) as u64, length: PAGE as u64 };
    wait(&file.cache, file.write_for(writer, &[extent], &[7; PAGE], None)).map(drop)
}

/// Writes pages until one is refused: how many were not, and why.
fn fill(file: &Arc<CachedFile>, writer: &Writer, most: usize) -> (usize, Option<StoreError>) {
    for block in 0..most {
        if let Err(error) = put(file, writer, block) {
            return (block, Some(error));
        }
    }
    (most, None)
}

fn dirty(cache: &Cache) -> usize {
    cache.dirty.load(Ordering::Relaxed)
}

#[test]
fn a_full_disk_refuses_its_writers_and_no_others() {
    let cache = cache(LEVEL, 64, 1);
    let (full, good) = (MemoryFile::with(Vec::new()), MemoryFile::with(Vec::new()));
    full.fail_writes.store(true, Ordering::Relaxed);
    let (a, b) = (of_export(&cache, "full", &full), of_export(&cache, "good", &good));
    let writers: Vec<_> = (1..5).map(|number| a_writer(&cache, number)).collect();
    for writer in &writers {
        let (_, refused) = fill(&a, writer, 1000);
        assert_eq!(refused.map(|error| error.status), Some(Status::NoSpace));
    }
    assert!(dirty(&cache) <= cache.dirty_limit() * 7 / 8);
    let writer = a_writer(&cache, 9);
    assert_eq!(fill(&b, &writer, 1000), (1000, None));
    wait(&cache, b.commit(Extent::default())).unwrap();
    assert_eq!(good.bytes(), vec![7; 1000 * PAGE]);
    // Someone makes room.
    full.fail_writes.store(false, Ordering::Relaxed);
    let end = Instant::now() + PATIENCE;
    while put(&a, &writers[0], 0).is_err() {
        assert!(Instant::now() < end, "room that was made is not noticed");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fill(&a, &writers[0], 1000), (1000, None));
    wait(&cache, a.commit(Extent::default())).unwrap();
    assert_eq!((full.bytes(), dirty(&cache)), (vec![7; 1000 * PAGE], 0));
}

/// All clients with one key count as one.
#[test]
fn a_client_with_many_instances_has_one_share() {
    let cache = cache(LEVEL, 64, 1);
    let disk = MemoryFile::with(Vec::new());
    let instance = |key: u8, instance: u8| {
        let mut bytes = [key; crate::sharing::OwnerId::LEN];
        bytes[32..].fill(instance);
        let id = crate::sharing::OwnerId::from_bytes(bytes);
        Writer { owner: cache.owners().begin(id), standing: Arc::default() }
    };
    let file = of_export(&cache, "data", &disk);
    let writer = instance(1, 0);
    for block in 0..10 {
        put(&file, &writer, block).unwrap();
    }
    assert_eq!(instance(1, 1).owner.dirty().bytes(), 10 * PAGE);
    assert_eq!(instance(2, 1).owner.dirty().bytes(), 0);
    // Of those without a key each counts by itself.
    assert_eq!(instance(0, 1).owner.dirty().bytes(), 0);
    put(&file, &instance(0, 1), 20).unwrap();
    assert_eq!(instance(0, 2).owner.dirty().bytes(), 0);
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(writer.owner.dirty().bytes(), 0);
    put(&file, &writer, 3).unwrap();
    wait(&cache, file.set_size(0)).unwrap();
    assert_eq!((writer.owner.dirty().bytes(), dirty(&cache)), (0, 0));
}

#[test]
fn what_there_is_no_room_for_is_refused_before_it_is_acknowledged() {
    let cache = cache(LEVEL, 64, 1);
    let disk = MemoryFile::with(vec![1; 100]);
    *disk.free.lock() = Some(3 * PAGE as u64);
    let file = of_export(&cache, "data", &disk);
    let writer = a_writer(&cache, 1);
    for block in 0..3 {
        put(&file, &writer, block).unwrap();
    }
    let error = put(&file, &writer, 3).unwrap_err();
    assert_eq!(error.status, Status::NoSpace);
    assert_eq!((file.size(), dirty(&cache)), (3 * PAGE as u64, 3 * PAGE), "nothing has changed");
    // What is there can be made stable, and read.
    wait(&cache, file.commit(Extent::default())).unwrap();
    assert_eq!(disk.bytes(), vec![7; 3 * PAGE]);
}

/// The disk is not asked before each write, so what was written since it was asked counts as taken.
#[test]
fn what_was_written_since_the_last_look_is_not_free() {
    let cache = cache(LEVEL, 64, 1);
    let disk = MemoryFile::with(Vec::new());
    *disk.free.lock() = Some(60 * PAGE as u64);
    let file = of_export(&cache, "data", &disk);
    let writer = a_writer(&cache, 1);
    for block in 0..30 {
        put(&file, &writer, block).unwrap();
        wait(&cache, file.commit(Extent::default())).unwrap();
    }
    *disk.free.lock() = Some(2 * PAGE as u64);
    put(&file, &writer, 40).unwrap();
    put(&file, &writer, 41).unwrap();
    assert_eq!(put(&file, &writer, 42).unwrap_err().status, Status::NoSpace);
}

/// Of a write that is refused in the middle the first pages are there, and the file ends with them.
#[test]
fn a_write_that_is_refused_in_the_middle_ends_where_it_was() {
    let cache = cache(LEVEL, 64, 1);
    let disk = MemoryFile::with(Vec::new());
    disk.fail_writes.store(true, Ordering::Relaxed);
    let file = of_export(&cache, "full", &disk);
    let extent = Extent { offset: 0, length: 1000 * PAGE as u64 };
    let data = vec![7; 1000 * PAGE];
    let refused = wait(&cache, file.write_for(&a_writer(&cache, 1), &[extent], &data, None));
    assert_eq!(refused.unwrap_err().status, Status::NoSpace);
    let size = file.size() as usize;
    assert!((PAGE..1000 * PAGE).contains(&size) && dirty(&cache) == size, "{size}");
    assert_eq!(read(&file, 0, size as u64), vec![7; size]);
}

/// What was written is not safe before a sync succeeds, whatever write-back says.
#[test]
fn a_failed_sync_is_trouble_until_one_succeeds() {
    let cache = cache(LEVEL, 64, 1);
    let disk = MemoryFile::with(Vec::new());
    let file = of_export(&cache, "data", &disk);
    let writer = a_writer(&cache, 1);
    put(&file, &writer, 0).unwrap();
    disk.fail_sync.store(true, Ordering::Relaxed);
    wait(&cache, file.commit(Extent::default())).unwrap_err();
    wait(&cache, file.flush(0..=u64::MAX)).unwrap();
    assert_eq!(put(&file, &writer, 1).unwrap_err().status, Status::Io);
    disk.fail_sync.store(false, Ordering::Relaxed);
    wait(&cache, file.commit(Extent::default())).unwrap();
    put(&file, &writer, 1).unwrap();
}

/// Taking space changes a file's times, as write-back does: neither takes the other for somebody else.
#[test]
fn space_is_taken_beside_write_back() {
    let cache = cache(LEVEL, 64, 1);
    let disk = MemoryFile::with(Vec::new());
    *disk.free.lock() = Some(10 * PAGE as u64);
    let file = of_export(&cache, "data", &disk);
    put(&file, &a_writer(&cache, 1), 0).unwrap();
    type Reserving = Pin<Box<dyn Future<Output = Result<()>> + Send>>;
    let reserving: Arc<Mutex<Option<Reserving>>> = Arc::default();
    // The bytes are on the disk, and write-back has not looked at it again.
    let (begun, reserved) = (Arc::clone(&reserving), Arc::clone(&file));
    disk.on_written.set(move || {
        let file = Arc::clone(&reserved);
        let extent = Extent { offset: 0, length: PAGE as u64 };
        let mut reserve: Reserving = Box::pin(async move { file.reserve_space(extent).await });
        let polled = reserve.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if polled.is_pending() {
            *begun.lock() = Some(reserve);
        }
    });
    wait(&cache, file.commit(Extent::default())).unwrap();
    let reserve = reserving.lock().take();
    if let Some(reserve) = reserve {
        wait(&cache, reserve).unwrap();
    }
    assert_eq!(cache.counters.changed_on_disk.load(Ordering::Relaxed), 0);
}

/// Those of one file are another file's only where no room is left for either.
#[test]
fn a_file_in_trouble_is_refused_and_its_neighbour_is_not() {
    let cache = cache(LEVEL, 64, 1);
    let (bad, good) = (MemoryFile::with(Vec::new()), MemoryFile::with(Vec::new()));
    let (a, b) = (of_export(&cache, "data", &bad), of_export(&cache, "data", &good));
    let (first, second) = (a_writer(&cache, 1), a_writer(&cache, 2));
    bad.fail_sync.store(true, Ordering::Relaxed);
    put(&a, &first, 0).unwrap();
    wait(&cache, a.commit(Extent::default())).unwrap_err();
    assert_eq!(put(&a, &first, 1).unwrap_err().status, Status::Io);
    assert_eq!(put(&a, &second, 1).unwrap_err().status, Status::Io);
    assert_eq!(fill(&b, &second, 500), (500, None));
    assert_eq!(fill(&b, &first, 500), (500, None));
    bad.fail_sync.store(false, Ordering::Relaxed);
    wait(&cache, a.commit(Extent::default())).unwrap();
    put(&a, &first, 1).unwrap();
}

/// What is cut off or removed keeps nobody from writing.
#[test]
fn trouble_ends_with_what_could_not_be_written() {
    let cache = cache(LEVEL, 64, 1);
    let disk = MemoryFile::with(Vec::new());
    let file = of_export(&cache, "data", &disk);
    let writer = a_writer(&cache, 1);
    disk.fail_writes.store(true, Ordering::Relaxed);
    put(&file, &writer, 5).unwrap();
    wait(&cache, file.commit(Extent::default())).unwrap_err();
    assert_eq!(put(&file, &writer, 0).unwrap_err().status, Status::NoSpace);
    wait(&cache, file.set_size(0)).unwrap();
    put(&file, &writer, 0).unwrap();
    assert_eq!(writer.owner.dirty().bytes(), PAGE);
    file.removed();
    assert_eq!((writer.owner.dirty().bytes(), dirty(&cache)), (0, 0));
}

/// Nobody can reach a removed file but those who have it open, and its pages take room all the same.
#[test]
fn removed_files_that_are_open_keep_nobody_from_writing() {
    let cache = cache(LEVEL, 64, 1);
    let (removed, other) = (MemoryFile::with(Vec::new()), MemoryFile::with(Vec::new()));
    let (a, b) = (of_export(&cache, "data", &removed), of_export(&cache, "data", &other));
    let writer = a_writer(&cache, 1);
    let open = a.hold();
    a.removed();
    for block in 0..10 {
        put(&a, &writer, block).unwrap();
    }
    assert_eq!(fill(&b, &writer, 500), (500, None));
    assert_eq!(fill(&a, &writer, 500), (500, None));
    drop(open);
    wait(&cache, b.commit(Extent::default())).unwrap();
    assert_eq!((writer.owner.dirty().bytes(), dirty(&cache)), (0, 0));
}

/// A cache whose disks may block: with threads, and little patience.
fn patient(patience: Duration) -> (Arc<Cache>, Runtime) {
    let runtime = Runtime::start(4).unwrap();
    let config = CacheConfig { disk_patience: patience, ..config(64, 1) };
    let boots = Arc::new(crate::sharing::Boots::forgetful(1));
    let cache =
        Cache::new(config, [LEVEL], Arc::new(Shown::default()), runtime.clone(), boots).unwrap();
    (cache, runtime)
}

/// A file on a disk that takes nothing until the sender is dropped.
fn stuck() -> (Arc<MemoryFile>, mpsc::Sender<()>) {
    let (let_go, wait) = mpsc::channel();
    let disk = MemoryFile::with(Vec::new());
    disk.on_write.set(move || {
        let _ = wait.recv();
    });
    (disk, let_go)
}

#[test]
fn a_disk_that_does_not_answer_is_waited_for_so_long_and_is_no_others_trouble() {
    let (cache, runtime) = patient(Duration::from_millis(200));
    let (disk, let_go) = stuck();
    let good = MemoryFile::with(Vec::new());
    let (a, b) = (of_export(&cache, "stuck", &disk), of_export(&cache, "good", &good));
    let writer = a_writer(&cache, 1);
    let ticking = Arc::clone(&cache);
    let (stop, stopped) = mpsc::channel::<()>();
    let ticker = std::thread::spawn(move || {
        while stopped
            .recv_timeout(Duration::from_millis(5))
            .is_err_and(|why| why == mpsc::RecvTimeoutError::Timeout)
        {
            ticking.wake_waiters();
        }
    });
    let (pages, refused) = fill(&a, &writer, 1000);
    let refused = refused.expect("a refusal");
    assert_eq!(refused.status, Status::Io);
    assert!(refused.what.contains("nothing"), "{refused}");
    // The page that reaches its share is taken.
    assert!(pages > 0 && dirty(&cache) <= cache.dirty_limit() / 4 * 3 + PAGE);
    assert_eq!(fill(&b, &a_writer(&cache, 2), 1000), (1000, None));
    // Whoever's session ends, waits no longer.
    let (gone, theirs) = (writer.clone(), Arc::clone(&a));
    let waiting =
        std::thread::spawn(move || fill(&theirs, &gone, 1000).1.map(|error| error.status));
    writer.standing.end();
    let status = waiting.join().unwrap();
    assert!(matches!(status, Some(Status::BadSession)), "{status:?}");
    drop(let_go);
    wait(&cache, a.commit(Extent::default())).unwrap();
    drop(stop);
    ticker.join().unwrap();
    assert!(runtime.stop(PATIENCE));
}
