//! A file is read whole while another client shortens and lengthens it: no read fails, each ends where
//! the file ended at some moment, and each of its pages is one that the file had.

mod common;

use common::{Kind, Over, PAGE, Sizes, Stop, TestServer, create, pattern};
use dafs_client::Path;
use dafs_client::blocking::File;
use std::sync::atomic::{AtomicBool, Ordering};

const SHORT: usize = 1000;
const LONG: usize = 8_000_000;
/// Reads of the whole file.
const READS: usize = 300;

#[test]
fn sim() {
    reads_beside_truncation_and_extension(Over::clear(Kind::Sim), Sizes::default());
}

#[test]
fn tcp() {
    reads_beside_truncation_and_extension(Over::clear(Kind::Tcp), Sizes::default());
}

#[test]
fn tcp_keyed() {
    reads_beside_truncation_and_extension(Over::keyed(), Sizes::default());
}

#[test]
fn shm() {
    reads_beside_truncation_and_extension(Over::sealed(Kind::Shm), Sizes::default());
}

/// The server's cache is far smaller than the file.
#[test]
fn tcp_with_a_small_cache() {
    let sizes = Sizes { chunk_pages: 64, chunks: 2 };
    reads_beside_truncation_and_extension(Over::sealed(Kind::Tcp), sizes);
}

/// Where the file may end: as the size is set, and behind the writes that lengthen it.
fn ends() -> Vec<usize> {
    let writes = (0..WRITES).map(|number| write_at(number).1);
    [SHORT, LONG].into_iter().chain(writes).collect()
}

/// Different writes that lengthen the file.
const WRITES: usize = 7;

/// Where such a write begins and ends. It begins with a page, so that no page but the last is
/// written in part.
fn write_at(number: usize) -> (usize, usize) {
    let start = (number * 211 + 1) * PAGE;
    (start, start + 40 * PAGE + 77 * number)
}

fn reads_beside_truncation_and_extension(over: Over, sizes: Sizes) {
    let server = TestServer::with(over, sizes);
    let (writer, reader) = (server.client(), server.client());
    let written = create(&writer, "file");
    let bytes = pattern(LONG, 7);
    written.write_all_at(&bytes, 0).unwrap();
    let read = reader.open("file").unwrap();
    let stop = AtomicBool::new(false);
    let changes = std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let _stop = Stop(&stop);
            let mut changes = 0;
            while !stop.load(Ordering::Relaxed) {
                written.set_len(SHORT as u64).unwrap();
                match changes % 3 {
                    0 => {
                        let (start, end) = write_at(changes % WRITES);
                        written.write_all_at(&bytes[start..end], start as u64).unwrap();
                    }
                    _ => written.set_len(LONG as u64).unwrap(),
                }
                changes += 1;
            }
            changes
        });
        scope.spawn(|| {
            let _stop = Stop(&stop);
            read_whole(&read, &bytes, over);
        });
        changing.join().expect("the one who changes the size")
    });
    println!("{over:?}: {changes} changes; {:?}", reader.counters());
    assert!(changes > 20, "{changes} changes: nothing was tested");
}

fn read_whole(file: &File, bytes: &[u8], over: Over) {
    let mut buffer = vec![0xEE; LONG + PAGE];
    let ends = ends();
    let mut lengths = std::collections::BTreeSet::new();
    for number in 0..READS {
        let path = match number % 4 {
            0 => Path::Inline,
            1 => Path::Direct,
            _ => Path::Auto,
        };
        let report = match file.read_at_by(&mut buffer, 0, path) {
            Ok(report) => report,
            Err(error) => panic!("{over:?}: read {number} by {path:?}: {error}"),
        };
        let what = format!("{over:?}: read {number} by {path:?}, {report:?}");
        assert!(ends.contains(&report.bytes), "{what}: the file never ended there");
        lengths.insert(report.bytes);
        for (block, page) in buffer[..report.bytes].chunks(PAGE).enumerate() {
            let whole = &bytes[block * PAGE..][..page.len()];
            // As written, or never written since it was cut off, or written up to an end.
            let good = |kept: usize| {
                page[..kept] == whole[..kept] && page[kept..].iter().all(|byte| *byte == 0)
            };
            let cuts = ends.iter().filter(|end| **end / PAGE == block).map(|end| end % PAGE);
            let mut cuts = [page.len(), 0].into_iter().chain(cuts);
            let any = cuts.any(|kept| good(kept.min(page.len())));
            assert!(any, "{what}: page {block} is none that the file had");
        }
    }
    assert!(lengths.len() > 1, "the end never moved: nothing was tested");
}
