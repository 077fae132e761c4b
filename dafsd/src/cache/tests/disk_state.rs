//! Whose change it was that the disk shows, and what time clients are told.

use super::*;
use std::task::Poll;

at_every_level![
    a_look_while_pages_are_written_back_finds_no_change,
    a_change_before_a_write_back_is_found_at_the_next_open,
    a_change_before_a_truncation_is_found_at_the_next_open,
    an_operation_of_our_own_hides_no_change,
    attributes_from_before_a_write_back_do_not_bring_an_older_time,
    times_that_cannot_be_set_fail_nothing_and_do_not_run_back,
];

fn changes(cache: &Cache) -> u64 {
    let counters = cache.counters();
    counters.iter().find(|(name, _)| *name == "cache_changed_on_disk").unwrap().1
}

fn times(attr: &Attr) -> [(i64, u32); 2] {
    [attr.mtime, attr.ctime].map(|time| time.map(|t| (t.seconds, t.nanoseconds)).unwrap())
}

/// The attributes that a client would be given now.
fn shown(cache: &Arc<Cache>, file: &CachedFile, disk: &MemoryFile) -> Attr {
    let since = cache.moment();
    wait(cache, file.attributes(since, disk.attr().unwrap())).unwrap()
}

fn a_look_while_pages_are_written_back_finds_no_change(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; 4 * PAGE]);
    let file = open(&cache, level, &disk);
    read(&file, 0, 4 * PAGE as u64);
    let clean = refs(&file)[3];
    write(&file, 0, &[6; PAGE]);
    // Someone opens the file when its bytes have just reached the disk, and waits for the gate.
    let opened = Arc::clone(&file);
    let opening = Mutex::new(Box::pin(async move { opened.revalidate().await }));
    let opening = Arc::new(opening);
    let begun = Arc::clone(&opening);
    disk.on_written.set(move || {
        let mut cx = Context::from_waker(Waker::noop());
        let poll = begun.lock().as_mut().poll(&mut cx);
        assert!(matches!(poll, Poll::Pending), "it does not look while the disk works");
    });
    let both = async {
        let mut commit = std::pin::pin!(file.commit(Extent::default()));
        let mut committed = false;
        std::future::poll_fn(|cx| {
            committed |= commit.as_mut().poll(cx).is_ready();
            let opened = opening.lock().as_mut().poll(cx).is_ready();
            if opened { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        committed
    };
    let committed = wait(&cache, both);
    assert!(committed);
    assert_eq!(changes(&cache), 0, "nobody else was there");
    assert!(ordma(&file, &clean).is_ok());
}

/// Someone else changes a page that is cached and clean.
fn change_behind_our_back(disk: &MemoryFile) {
    disk.write_at(&[7; 10], 0).unwrap();
}

fn a_change_before_a_write_back_is_found_at_the_next_open(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; 4 * PAGE]);
    let file = open(&cache, level, &disk);
    read(&file, 0, PAGE as u64);
    change_behind_our_back(&disk);
    write(&file, 2 * PAGE as u64, &[6; PAGE]);
    wait(&cache, file.commit(Extent::default())).unwrap();
    wait(&cache, file.revalidate()).unwrap();
    assert_eq!(read(&file, 0, 1)[..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 5]);
    assert_eq!(changes(&cache), 1);
    wait(&cache, file.revalidate()).unwrap();
    assert_eq!(changes(&cache), 1, "it is seen once");
}

fn a_change_before_a_truncation_is_found_at_the_next_open(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; 4 * PAGE]);
    let file = open(&cache, level, &disk);
    read(&file, 0, PAGE as u64);
    change_behind_our_back(&disk);
    wait(&cache, file.set_size(3 * PAGE as u64)).unwrap();
    wait(&cache, file.revalidate()).unwrap();
    assert_eq!(read(&file, 0, 1)[..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 5]);
    assert_eq!(file.size(), 3 * PAGE as u64);
}

fn an_operation_of_our_own_hides_no_change(level: Protection) {
    for times in [false, true] {
        let cache = cache(level, 8, 1);
        let disk = MemoryFile::with(vec![5; PAGE]);
        let file = open(&cache, level, &disk);
        read(&file, 0, PAGE as u64);
        let reference = refs(&file)[0];
        // Another ctime, and with it another mtime where times are set.
        let act = |mtime| {
            let before = disk.attr().unwrap().mtime;
            disk.change(|_| ());
            *disk.mtime.lock() = if times { mtime } else { before };
        };
        let set = Some(Time { seconds: 77, nanoseconds: 0 });
        act(set);
        wait(&cache, file.touched(times));
        wait(&cache, file.revalidate()).unwrap();
        assert_eq!(changes(&cache), 0, "it was our own");
        assert!(ordma(&file, &reference).is_ok());

        // Someone else's change is there when the operation begins,
        change_behind_our_back(&disk);
        wait(&cache, file.revalidate_by(&disk.attr().unwrap())).unwrap();
        act(set);
        wait(&cache, file.touched(times));
        assert_eq!(changes(&cache), 1);
        assert_eq!(ordma(&file, &reference), Err(AccessFault::Stale));
        if times {
            continue;
        }
        // or comes while the file is not known yet.
        read(&file, 0, PAGE as u64);
        disk.write_at(&[8; 3], 0).unwrap();
        act(set);
        wait(&cache, file.touched(times));
        wait(&cache, file.revalidate()).unwrap();
        assert_eq!(read(&file, 0, 1)[..4], [8, 8, 8, 7]);
    }
}

fn attributes_from_before_a_write_back_do_not_bring_an_older_time(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; PAGE]);
    let file = open(&cache, level, &disk);
    write(&file, 0, b"x");
    let acknowledged = times(&shown(&cache, &file, &disk));
    // Read from the disk, and then overtaken by the write-back.
    let (since, old) = (cache.moment(), disk.attr().unwrap());
    wait(&cache, file.commit(Extent::default())).unwrap();
    let attr = wait(&cache, file.attributes(since, old)).unwrap();
    for (now, before) in times(&attr).into_iter().zip(acknowledged) {
        assert!(now >= before, "{now:?} after {before:?}");
    }
    assert!(!file.has_unwritten_time(), "the disk has it");
    // A truncation hands its time over as well.
    let (since, old) = (cache.moment(), disk.attr().unwrap());
    wait(&cache, file.set_size(9)).unwrap();
    let attr = wait(&cache, file.attributes(since, old)).unwrap();
    assert!(times(&attr)[0] >= acknowledged[0]);
    assert_eq!(attr.size, 9);
}

fn times_that_cannot_be_set_fail_nothing_and_do_not_run_back(level: Protection) {
    let cache = cache(level, 8, 1);
    let disk = MemoryFile::with(vec![5; PAGE]);
    let file = open(&cache, level, &disk);
    disk.fail_times.store(true, Ordering::Relaxed);
    write(&file, 0, b"x");
    let acknowledged = times(&shown(&cache, &file, &disk));
    wait(&cache, file.commit(Extent::default())).expect("the bytes are on the disk");
    assert_eq!(disk.bytes()[..2], [b'x', 5]);
    wait(&cache, file.set_size(7)).expect("the size is set");
    assert_eq!(disk.bytes().len(), 7);
    for (now, before) in times(&shown(&cache, &file, &disk)).into_iter().zip(acknowledged) {
        assert!(now >= before, "{now:?} after {before:?}");
    }
    // What was not set is not waited for: a time that is set otherwise is shown.
    disk.fail_times.store(false, Ordering::Relaxed);
    disk.set_mtime(SystemTime::UNIX_EPOCH).unwrap();
    wait(&cache, file.touched(true));
    assert_eq!(times(&shown(&cache, &file, &disk))[0], (0, 0));
}
