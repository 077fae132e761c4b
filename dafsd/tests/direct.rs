//! Direct reads that are placed from the slots, which change meanwhile: what is torn is never handed
//! out, and asked for once more as copies.

mod common;

use common::{Kind, Over, PAGE, Sizes, TestServer, create, pattern};
use dafs_client::blocking::{Outcome, Queue};
use dafs_client::{Path, Stability};
use ordma::sim::{Faults, World};

const PAGES: usize = 4;

/// A server in a world where direct transfers take two steps.
fn torn(over: Over, sizes: Sizes, seed: u64) -> TestServer {
    let world = World::new(seed);
    world.set_faults(Faults { tear: true, ..Faults::default() });
    TestServer::in_world(over, sizes, Some(world))
}

#[test]
fn a_torn_read_is_repeated_whole() {
    for over in [Over::sealed(Kind::Sim), Over::clear(Kind::Sim)] {
        let server = torn(over, Sizes::default(), 5);
        let (writer, reader) = (server.client(), server.client());
        let written = create(&writer, "file");
        written.write_all_at(&[0; PAGES * PAGE], 0).unwrap();
        let read = reader.open("file").unwrap();
        let mut writes = Queue::new(&writer);
        let mut buffer = vec![0; PAGES * PAGE];
        for round in 1..=200 {
            // On its way while the pages are.
            writes.write(&written, vec![round; PAGES * PAGE], 0, Stability::Unstable, 0);
            assert!(writes.poll_completion().is_none());
            buffer.fill(0xee);
            let report = read.read_at_by(&mut buffer, 0, Path::Direct).unwrap();
            assert_eq!((report.bytes, report.direct), (PAGES * PAGE, PAGES as u32));
            for page in buffer.chunks(PAGE) {
                assert!(page.iter().all(|byte| *byte == page[0]), "a mixed page");
                assert!([round - 1, round].contains(&page[0]), "{} in round {round}", page[0]);
            }
            let done = writes.wait().unwrap();
            assert!(matches!(done.result, Ok(Outcome::Written(_))), "{:?}", done.result);
            // What is acknowledged is seen.
            read.read_at_by(&mut buffer, 0, Path::Direct).unwrap();
            assert!(buffer.iter().all(|byte| *byte == round));
        }
        let counters = reader.counters();
        println!(
            "{over:?}: {} of {} direct reads torn",
            counters.direct_torn, counters.direct_reads
        );
        assert!(counters.direct_torn > 0, "none was torn");
        assert_eq!(counters.direct_reads, 400 + counters.direct_torn);
        assert_eq!((counters.direct_pages, counters.reconnects), (400 * PAGES as u64, 0));
    }
}

/// The file is larger than the cache: pages that were found first go while others are filled.
#[test]
fn pages_that_are_evicted_by_the_read_itself() {
    for over in [Over::sealed(Kind::Sim), Over::clear(Kind::Sim)] {
        let server = torn(over, Sizes { chunk_pages: 8, chunks: 2 }, 6);
        let content = pattern(40 * PAGE, 3);
        std::fs::write(server.tree().join("file"), &content).unwrap();
        let client = server.client();
        let file = client.open("file").unwrap();
        let mut buffer = vec![0; 40 * PAGE];
        for _ in 0..3 {
            let read = file.read_at_by(&mut buffer, 0, Path::Direct).unwrap();
            assert!(read.bytes == 40 * PAGE && buffer == content);
        }
        let counters = client.counters();
        assert_eq!((counters.direct_torn, counters.direct_reads), (3, 6), "{over:?}");
    }
}
