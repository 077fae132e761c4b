//! Two clients at full speed, one writing and one reading the same pages: never a mix of two
//! versions within a page, never a version older than one already seen, never bytes from before a
//! write that was acknowledged before the read began.
//!
//! Runs for `DAFS_SOAK_SECONDS` (default 6) on each engine, half of it with a page cache that holds
//! the file, half with one that does not. The seed is printed; `DAFS_SEED` sets it.
//! `DAFS_PROTECTION` names the level, `sealed` by default.

mod common;

use common::{Kind, Over, PAGE, Sizes, TestServer, create};
use dafs_client::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[test]
fn sim() {
    never_torn_never_older_never_before_an_acknowledged_write(Over::chosen(Kind::Sim));
}

#[test]
fn tcp() {
    never_torn_never_older_never_before_an_acknowledged_write(Over::chosen(Kind::Tcp));
}

#[test]
fn shm() {
    never_torn_never_older_never_before_an_acknowledged_write(Over::chosen(Kind::Shm));
}

#[cfg(feature = "device-tests")]
#[test]
fn verbs() {
    never_torn_never_older_never_before_an_acknowledged_write(Over::chosen(Kind::Verbs));
}

const PAGES: usize = 64;

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect(name))
}

fn never_torn_never_older_never_before_an_acknowledged_write(over: Over) {
    let time = Duration::from_secs(environment("DAFS_SOAK_SECONDS", 6)) / 2;
    let seed = environment("DAFS_SEED", fastrand::u64(..));
    println!("{over:?}: seed {seed}, twice {time:?}");
    run(over, Sizes { chunk_pages: 256, chunks: 2 }, time, seed);
    run(over, Sizes { chunk_pages: 16, chunks: 2 }, time, seed);
}

fn fill(buffer: &mut [u8], version: u64) {
    buffer.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&version.to_le_bytes()));
}

/// The version that all of a page's words bear.
fn version(page: &[u8], what: &str) -> u64 {
    let words = page.as_chunks::<8>().0;
    assert!(words.iter().all(|word| *word == words[0]), "{what}: a mix of versions");
    u64::from_le_bytes(words[0])
}

fn run(over: Over, sizes: Sizes, time: Duration, seed: u64) {
    let server = TestServer::with(over, sizes);
    let (writer, reader) = (server.client(), server.client());
    let written = create(&writer, "file");
    written.write_all_at(&vec![0; PAGES * PAGE], 0).unwrap();
    let read = reader.open("file").unwrap();
    let acknowledged: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    let end = Instant::now() + time;
    let (writes, reads) = std::thread::scope(|scope| {
        // Whoever fails stops the other one.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let writing = scope.spawn(|| {
            let _stop = Stop(&stop);
            let mut random = fastrand::Rng::with_seed(seed);
            let mut buffer = vec![0; 8 * PAGE];
            let mut issued = 0;
            while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                let count = random.usize(1..=8);
                let first = random.usize(0..=PAGES - count);
                issued += 1;
                let bytes = &mut buffer[..count * PAGE];
                fill(bytes, issued);
                written.write_all_at(bytes, (first * PAGE) as u64).unwrap();
                for page in &acknowledged[first..first + count] {
                    page.store(issued, Ordering::SeqCst);
                }
                if issued % 1000 == 0 {
                    written.sync().unwrap();
                }
            }
            issued
        });
        let reading = scope.spawn(|| {
            let _stop = Stop(&stop);
            let mut random = fastrand::Rng::with_seed(seed ^ 1);
            let mut buffer = vec![0; 8 * PAGE];
            let mut seen = vec![0; PAGES];
            let mut reads = 0u64;
            while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                let count = random.usize(1..=8);
                let first = random.usize(0..=PAGES - count);
                let path = match random.u8(0..16) {
                    0 => Path::Inline,
                    1 => Path::Direct,
                    _ => Path::Auto,
                };
                let floors: Vec<u64> = acknowledged[first..first + count]
                    .iter()
                    .map(|page| page.load(Ordering::SeqCst))
                    .collect();
                let bytes = &mut buffer[..count * PAGE];
                bytes.fill(0xEE);
                let report = read.read_at_by(bytes, (first * PAGE) as u64, path).unwrap();
                assert_eq!(report.bytes, count * PAGE);
                for (i, page) in bytes.chunks_exact(PAGE).enumerate() {
                    let what = format!("{over:?}, page {}, {path:?}, {report:?}", first + i);
                    let version = version(page, &what);
                    assert!(version >= floors[i], "{what}: {version}, acknowledged {}", floors[i]);
                    let seen = &mut seen[first + i];
                    assert!(version >= *seen, "{what}: {version} after {seen}");
                    *seen = version;
                }
                reads += 1;
            }
            reads
        });
        (writing.join().expect("the writer"), reading.join().expect("the reader"))
    });
    let counters = reader.counters();
    println!(
        "{over:?}, {} slots for {PAGES} pages: {writes} writes, {reads} reads; pages by ordma {}, \
         inline {}, direct {}; torn and read again {}; faults {:?}",
        sizes.chunk_pages * sizes.chunks,
        counters.ordma_pages,
        counters.inline_pages,
        counters.direct_pages,
        counters.torn_retries,
        counters.faults,
    );
    assert!(writes > 10 && reads > 10, "{writes} writes, {reads} reads: nothing was tested");
    assert!(counters.ordma_pages > 0, "nothing was read one-sidedly");
}
