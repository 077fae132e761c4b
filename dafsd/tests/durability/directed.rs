//! Histories that lost or mixed up data once, one test each.

use super::PAGE;
use super::disk::When;
use super::site::Site;
use dafs_client::blocking::{Client, File};
use dafs_client::{OpenOptions, Stability, Status};
use std::ops::Range;

/// How often a sync may tell of a loss before it succeeds.
const ROUNDS: usize = 4;

fn open(client: &Client, name: &str) -> File {
    let options = OpenOptions::new().read(true).write(true).create(true);
    client.open_with(name, options).expect("open")
}

/// Writes bytes of one value.
fn write(file: &File, range: Range<usize>, value: u8) {
    file.write_all_at(&vec![value; range.len()], range.start as u64).expect("write");
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 16 * PAGE];
    let mut done = 0;
    loop {
        match file.read_at(&mut bytes[done..], done as u64).expect("read") {
            0 => break,
            count => done += count,
        }
    }
    bytes.truncate(done);
    bytes
}

/// Syncs until that succeeds. What was lost is told of before.
fn sync_at_last(file: &File) {
    let mut told = Vec::new();
    for _ in 0..ROUNDS {
        match file.sync() {
            Ok(()) => return,
            Err(error) => told.push(error.to_string()),
        }
    }
    panic!("the disk is well, and syncs go on failing: {told:?}");
}

/// All bytes in the range are of this value.
fn check(content: &[u8], range: Range<usize>, value: u8) {
    let found = content.get(range.clone());
    let found = found.unwrap_or_else(|| panic!("{range:?} of only {} bytes", content.len()));
    let other = found.iter().position(|byte| *byte != value);
    if let Some(at) = other {
        panic!("byte {} is {}, not {value}", range.start + at, found[at]);
    }
}

fn restart(site: &Site) {
    site.kill();
    site.start();
}

/// The client connects again, and sends again what it has to.
fn reconnect(client: &Client) {
    client.metadata("/").expect("reconnect");
}

#[test]
fn an_idle_client_does_not_undo_what_another_has_made_stable() {
    for in_order in [false, true] {
        let site = Site::new(1);
        let (a, b) = (site.client("a"), site.client("b"));
        let (of_a, of_b) = (open(&a, "f"), open(&b, "f"));
        write(&of_a, 0..PAGE, 1);
        write(&of_b, 100..200, 2);
        of_b.sync().expect("sync");
        if in_order {
            site.stop().expect("stop");
            site.start();
        } else {
            restart(&site);
        }
        reconnect(&a);
        let content = read(&of_b);
        check(&content, 100..200, 2);
        sync_at_last(&of_a);
        sync_at_last(&of_b);
        let content = site.disk.stable("f").expect("it is there");
        check(&content, 0..100, 1);
        check(&content, 100..200, 2);
        check(&content, 200..PAGE, 1);
    }
}

#[test]
fn an_idle_client_does_not_undo_what_another_has_truncated() {
    let site = Site::new(1);
    let (a, b) = (site.client("a"), site.client("b"));
    let (of_a, of_b) = (open(&a, "f"), open(&b, "f"));
    write(&of_a, 0..3 * PAGE, 1);
    of_b.set_len(10).expect("truncate");
    of_b.sync().expect("sync");
    restart(&site);
    reconnect(&a);
    assert_eq!(read(&of_b).len(), 10);
    sync_at_last(&of_a);
    assert_eq!(read(&of_a).len(), 10);
    assert_eq!(site.disk.stable("f").expect("it is there").len(), 10);
}

/// Also where the power fails, after which sizes come from the clients again.
#[test]
fn a_size_does_not_undo_what_another_has_made_stable_behind_it() {
    let site = Site::new(1);
    let (a, b) = (site.client("a"), site.client("b"));
    let (of_a, of_b) = (open(&a, "f"), open(&b, "f"));
    write(&of_a, 0..3 * PAGE, 1);
    of_a.sync().expect("sync");
    of_a.set_len(1000).expect("truncate");
    write(&of_b, 5000..6000, 2);
    of_b.sync().expect("sync");
    site.lose_power();
    site.start();
    reconnect(&a);
    sync_at_last(&of_a);
    sync_at_last(&of_b);
    let content = read(&of_b);
    check(&content, 0..1000, 1);
    check(&content, 1000..5000, 0);
    check(&content, 5000..6000, 2);
    assert_eq!(content.len(), 6000);
}

#[test]
fn an_open_does_not_undo_what_another_open_of_its_client_has_made_stable() {
    let site = Site::new(1);
    let client = site.client("a");
    let (first, second) = (open(&client, "f"), open(&client, "f"));
    write(&first, 0..PAGE, 1);
    write(&second, 100..200, 2);
    second.sync().expect("sync");
    restart(&site);
    sync_at_last(&first);
    check(&read(&second), 100..200, 2);
}

#[test]
fn writes_of_several_opens_are_sent_again_in_their_order() {
    let site = Site::new(1);
    let client = site.client("a");
    // More of them than come in their order by chance.
    let files: Vec<Vec<File>> = ["a", "b", "c", "d", "e", "f"]
        .into_iter()
        .map(|name| (0..8).map(|_| open(&client, name)).collect())
        .collect();
    for opens in &files {
        for (file, value) in opens.iter().zip(1..) {
            write(file, 0..PAGE, value);
        }
    }
    restart(&site);
    for opens in &files {
        opens.iter().for_each(sync_at_last);
        check(&read(&opens[0]), 0..PAGE, 8);
    }
}

#[test]
fn an_unstable_write_does_not_undo_the_stable_one_that_overwrote_it() {
    for stability in [Stability::Data, Stability::File] {
        let site = Site::new(1);
        let client = site.client("a");
        let file = open(&client, "f");
        write(&file, 0..PAGE, 1);
        file.write_at_stable(&[2; 100], 100, stability).expect("write");
        restart(&site);
        sync_at_last(&file);
        let content = read(&file);
        check(&content, 0..100, 1);
        check(&content, 100..200, 2);
        check(&content, 200..PAGE, 1);
    }
}

#[test]
fn a_write_does_not_undo_the_one_that_overwrote_it_and_was_made_stable_alone() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..2 * PAGE, 1);
    write(&file, 0..100, 2);
    file.commit(0, 100).expect("sync of a range");
    restart(&site);
    sync_at_last(&file);
    let content = read(&file);
    check(&content, 0..100, 2);
    check(&content, 100..2 * PAGE, 1);
}

/// Has the sync of somebody else fail in the middle of the next operation on the disk, and the
/// file's pages with it.
fn fail_among(site: &Site, when: When) {
    let number = site.disk.number("f").expect("it is there");
    let (commit, disk) = (site.commit_behind(number), site.disk.clone());
    site.disk.prepare(when, move || {
        disk.faults(|faults| (faults.failing_syncs, faults.failing_file) = (1, Some(number)));
        commit();
    });
}

#[test]
fn a_sync_beside_one_that_fails_does_not_say_that_lost_pages_are_stable() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..PAGE, 1);
    fail_among(&site, When::Sync);
    sync_at_last(&file);
    assert_eq!(site.disk.hits(), 1, "the other sync failed");
    check(&site.disk.stable("f").expect("it is there"), 0..PAGE, 1);
}

#[test]
fn a_write_beside_a_sync_that_fails_is_sent_again() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..2 * PAGE, 1);
    file.sync().expect("sync");
    restart(&site);
    // Its first page is there when the second one is read, and lost then.
    fail_among(&site, When::Read);
    write(&file, 0..PAGE + 100, 2);
    sync_at_last(&file);
    assert_eq!(site.disk.hits(), 1, "the other sync failed");
    let stable = site.disk.stable("f").expect("it is there");
    check(&stable, 0..PAGE + 100, 2);
    check(&stable, PAGE + 100..2 * PAGE, 1);
}

#[test]
fn a_failed_sync_of_a_file_does_not_touch_another_file() {
    let site = Site::new(1);
    let (a, b) = (site.client("a"), site.client("b"));
    let (of_a, of_b, other) = (open(&a, "f"), open(&b, "f"), open(&b, "other"));
    write(&of_a, 0..PAGE, 1);
    write(&of_b, 0..PAGE, 2);
    of_b.sync().expect("sync");
    write(&other, 0..PAGE, 3);
    site.disk.faults(|faults| faults.failing_syncs = 1);
    other.sync().expect_err("the disk fails");
    of_a.sync().expect("nothing of this file was lost");
    check(&read(&of_b), 0..PAGE, 2);
    check(&site.disk.stable("f").expect("it is there"), 0..PAGE, 2);
}

#[test]
fn after_a_failed_sync_the_next_one_by_anyone_writes_the_pages_again() {
    let site = Site::new(1);
    let (a, b) = (site.client("a"), site.client("b"));
    let (of_a, of_b) = (open(&a, "f"), open(&b, "f"));
    write(&of_a, 0..2 * PAGE, 1);
    site.disk.faults(|faults| faults.failing_syncs = 1);
    of_a.sync().expect_err("the disk fails");
    sync_at_last(&of_b);
    check(&site.disk.stable("f").expect("it is there"), 0..2 * PAGE, 1);
}

#[test]
fn after_a_failed_sync_an_orderly_stop_writes_the_pages_again() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..2 * PAGE, 1);
    site.disk.faults(|faults| faults.failing_syncs = 1);
    file.sync().expect_err("the disk fails");
    site.stop().expect("the disk is well again");
    check(&site.disk.stable("f").expect("it is there"), 0..2 * PAGE, 1);
}

#[test]
fn a_page_whose_sync_failed_is_not_read_from_the_disk_that_lost_it() {
    let site = Site::new(1);
    let (a, b) = (site.client("a"), site.client("b"));
    let (of_a, of_b) = (open(&a, "f"), open(&b, "f"));
    // More than a chunk holds, so that chunks can be retired.
    let len = 16 * PAGE;
    write(&of_a, 0..len, 1);
    site.disk.faults(|faults| faults.failing_syncs = 1);
    of_b.sync().expect_err("the disk fails");
    for _ in 0..4 {
        site.retire().expect("the disk is well again");
    }
    let mut page = vec![0; len];
    of_b.read_exact_at(&mut page, 0).expect("read");
    check(&page, 0..len, 1);
}

#[test]
fn one_page_that_cannot_be_written_does_not_keep_the_others_off_the_disk() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..4 * PAGE, 1);
    let number = site.disk.number("f").expect("it is there");
    site.disk.faults(|faults| faults.unwritable.extend([(number, 1)]));
    file.sync().expect_err("a page cannot be written");
    let content = site.disk.volatile("f").expect("it is there");
    check(&content, 0..PAGE, 1);
    check(&content, 2 * PAGE..4 * PAGE, 1);
    site.disk.heal();
    sync_at_last(&file);
    check(&site.disk.stable("f").expect("it is there"), 0..4 * PAGE, 1);
}

#[test]
fn at_an_orderly_stop_all_pages_but_the_one_that_cannot_be_written_become_stable() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..4 * PAGE, 1);
    let number = site.disk.number("f").expect("it is there");
    site.disk.faults(|faults| faults.unwritable.extend([(number, 1)]));
    site.stop().expect_err("a page cannot be written");
    let content = site.disk.stable("f").expect("it is there");
    check(&content, 0..PAGE, 1);
    check(&content, 2 * PAGE..4 * PAGE, 1);
}

#[test]
fn what_was_written_before_a_close_survives_a_crash_of_the_server() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..2 * PAGE, 1);
    file.close().expect("close");
    restart(&site);
    let again = open(&client, "f");
    again.sync().expect("sync");
    check(&read(&again), 0..2 * PAGE, 1);
    check(&site.disk.stable("f").expect("it is there"), 0..2 * PAGE, 1);
}

#[test]
fn a_file_that_is_dropped_without_a_close_keeps_what_was_written_too() {
    let site = Site::new(1);
    let client = site.client("a");
    write(&open(&client, "f"), 0..2 * PAGE, 1);
    restart(&site);
    let again = open(&client, "f");
    again.sync().expect("sync");
    check(&read(&again), 0..2 * PAGE, 1);
}

#[test]
fn a_failed_write_leaves_the_size_as_it_was() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..100, 1);
    file.sync().expect("sync");
    restart(&site);
    let number = site.disk.number("f").expect("it is there");
    site.disk.faults(|faults| faults.unreadable.extend([(number, 1)]));
    // The page is read first, for the bytes that are not written.
    if file.write_at(&[2; 50], 8000).is_err() {
        assert_eq!(file.attr().expect("attributes").size, 100);
        site.disk.heal();
        assert_eq!(read(&file), [1; 100]);
        sync_at_last(&file);
        assert_eq!(site.disk.stable("f").expect("it is there"), [1; 100]);
    } else {
        // There was nothing to be read, since the file ended before.
        site.disk.heal();
        sync_at_last(&file);
        check(&site.disk.stable("f").expect("it is there"), 8000..8050, 2);
    }
}

#[test]
fn a_longer_write_that_fails_in_its_first_page_leaves_the_size_as_it_was() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..100, 1);
    file.sync().expect("sync");
    restart(&site);
    let number = site.disk.number("f").expect("it is there");
    site.disk.faults(|faults| faults.unreadable.extend([(number, 0)]));
    // The first page has bytes that are not written.
    file.write_at(&[2; 8000], 50).expect_err("the disk fails");
    assert_eq!(file.attr().expect("attributes").size, 100);
    site.disk.heal();
    assert_eq!(read(&file), [1; 100]);
}

#[test]
fn a_read_after_a_restart_is_not_measured_by_what_was_seen_before() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..PAGE, 1);
    write(&file, 0..PAGE, 2);
    check(&read(&file), 0..PAGE, 2);
    file.sync().expect("sync");
    restart(&site);
    // Generations and versions begin anew, as the server does.
    check(&read(&file), 0..PAGE, 2);
}

#[test]
fn what_the_store_cannot_hold_is_refused_at_once() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    site.disk.set_max_size(1 << 20);
    let error = file.write_at(&[1; 100], 2 * site.disk.max_size()).expect_err("it is too far");
    assert_eq!(error.status(), Some(Status::FileTooBig), "{error}");
    assert_eq!(file.attr().expect("attributes").size, 0);
    file.sync().expect("there is nothing that cannot be written");
}

/// A cuts the file off, writes behind that and syncs these bytes alone; the server is killed. A sends
/// the size again, which cuts off what is stable.
#[test]
fn a_size_that_is_sent_again_does_not_undo_a_later_write_that_was_made_stable_alone() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..3 * PAGE, 1);
    file.sync().expect("sync");
    file.set_len(1000).expect("truncate");
    write(&file, 2000..3000, 2);
    file.commit(2000, 1000).expect("sync of a range");
    restart(&site);
    sync_at_last(&file);
    check(&read(&file), 2000..3000, 2);
}

/// A cuts the file off, and writes behind that with a stable write; the server is killed. A sends the
/// size again, which cuts off what is stable.
#[test]
fn a_size_that_is_sent_again_does_not_undo_a_later_stable_write() {
    for stability in [Stability::Data, Stability::File] {
        let site = Site::new(1);
        let client = site.client("a");
        let file = open(&client, "f");
        write(&file, 0..3 * PAGE, 1);
        file.sync().expect("sync");
        file.set_len(1000).expect("truncate");
        file.write_at_stable(&[2; 1000], 2000, stability).expect("write");
        restart(&site);
        sync_at_last(&file);
        check(&read(&file), 2000..3000, 2);
    }
}

/// A cuts the file off; B's sync fails, so that the file's verifier is another one; A writes behind
/// the end. A's sync finds that the size alone may be lost and sends it again, after the write,
/// which it has just been told is stable.
#[test]
fn a_size_that_is_sent_again_after_a_failed_sync_does_not_undo_a_later_write() {
    let site = Site::new(1);
    let (a, b) = (site.client("a"), site.client("b"));
    let (of_a, of_b) = (open(&a, "f"), open(&b, "f"));
    write(&of_a, 0..3 * PAGE, 1);
    of_a.sync().expect("sync");
    of_a.set_len(1000).expect("truncate");
    site.disk.faults(|faults| faults.failing_syncs = 1);
    of_b.sync().expect_err("the disk fails");
    write(&of_a, 2000..3000, 2);
    sync_at_last(&of_a);
    check(&read(&of_b), 2000..3000, 2);
    check(&site.disk.stable("f").expect("it is there"), 2000..3000, 2);
}

/// A's write is acknowledged and the server restarted. A's sync connects anew; the server has no
/// memory for a moment when the write is sent again, which is left for the next sync. But the same
/// sync goes on, and says Ok for what was never sent again.
#[test]
fn a_sync_during_which_the_server_was_restarted_says_ok_for_what_is_there_only() {
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    write(&file, 0..PAGE, 1);
    file.sync().expect("sync");
    write(&file, 100..200, 2);
    restart(&site);
    site.disk.faults(|faults| faults.reads_without_memory = 1);
    sync_at_last(&file);
    assert_eq!(site.disk.hits(), 1, "the server had no memory");
    check(&site.disk.stable("f").expect("it is there"), 100..200, 2);
}

/// A size is set, and its reply has come; but before the one who waits for it looks, the power fails
/// and the client has connected anew. The size is not stable, so a sync must not say Ok.
#[test]
fn a_reply_of_a_former_boot_is_not_taken_for_one_of_the_present() {
    use std::task::{Context, Poll, Waker};
    let site = Site::new(1);
    let client = site.client("a");
    let file = open(&client, "f");
    (0..9).for_each(|value| write(&file, 0..3 * PAGE, value));
    file.sync().expect("sync");
    let other = open(&client, "f").into_async();
    let mut set = Box::pin(other.set_len(10));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(set.as_mut().poll(&mut cx).is_pending());
    for _ in 0..100 {
        reconnect(&client);
        if site.disk.volatile("f").expect("it is there").len() == 10 {
            break;
        }
    }
    (0..10).for_each(|_| reconnect(&client));
    site.lose_power();
    site.start();
    reconnect(&client);
    let done = set.as_mut().poll(&mut cx);
    assert!(matches!(done, Poll::Ready(Ok(()))), "{done:?}");
    if file.sync().is_ok() {
        assert_eq!(site.disk.stable("f").expect("it is there").len(), 10);
    }
}
