//! Plaintext of a sealed export is never in exported memory, not for a moment.

use super::*;
use std::thread::scope;
use std::time::Instant;

/// What no ciphertext has by chance. It is written over and over, at every eighth byte.
const MARKER: [u8; 8] = *b"PLAINTXT";

/// Looks for the marker in payloads and footers of all chunks.
fn found(cache: &Cache) -> bool {
    slots(&cache.arena).iter().any(|(payload, footer)| {
        payload.as_chunks().0.contains(&MARKER) || footer.as_chunks().0.contains(&MARKER)
    })
}

/// Uses a file in all ways at once for some time; whether one who reads all exported memory over
/// and over finds what the file holds, and how often he has looked.
fn leaks(level: Protection, time: Duration) -> (bool, usize) {
    let cache = cache(level, 16, 3);
    let marked = MARKER.repeat(PAGE / MARKER.len());
    let file = open(&cache, level, &MemoryFile::with(marked.repeat(64)));
    let end = Instant::now() + time;
    let until_the_end = |mut step: Box<dyn FnMut() + '_>| {
        while Instant::now() < end {
            step();
        }
    };
    let page = |below: u64| fastrand::u64(..below) * PAGE as u64;
    let (mut leaked, mut scans) = (false, 0);
    scope(|scope| {
        // Whole pages and parts, within the file and beyond its end.
        scope.spawn(|| {
            until_the_end(Box::new(|| {
                let part = 8 * (1 + fastrand::usize(..PAGE / 8));
                write(&file, page(64), &marked[..part]);
                write(&file, page(64) + (PAGE - part) as u64, &marked[..part]);
                write(&file, page(80), &marked);
            }));
        });
        // Fills, and evictions: there are fewer slots than pages.
        scope.spawn(|| {
            until_the_end(Box::new(|| {
                let bytes = read(&file, page(64), 4 * PAGE as u64);
                assert!(bytes.as_chunks().0.iter().all(|b| *b == MARKER || *b == [0; 8]));
            }));
        });
        scope.spawn(|| {
            until_the_end(Box::new(|| {
                wait(&cache, file.commit(Extent::default())).unwrap();
                let size = page(64) + 8 * fastrand::u64(..512);
                wait(&cache, file.set_size(size)).unwrap();
                write(&file, 60 * PAGE as u64, &marked);
            }));
        });
        scope.spawn(|| {
            until_the_end(Box::new(|| {
                wait(&cache, file.new_epoch()).unwrap();
                wait(&cache, cache.retire_chunk()).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }));
        });
        until_the_end(Box::new(|| {
            leaked |= found(&cache);
            scans += 1;
        }));
    });
    cache.close();
    (leaked, scans)
}

#[test]
fn a_reader_of_all_memory_finds_no_plaintext() {
    let (leaked, scans) = leaks(Protection::Sealed, Duration::from_secs(3));
    println!("{scans} looks at all of the memory");
    assert!(!leaked && scans > 10);
}

/// The test above can fail.
#[test]
fn in_the_clear_it_does() {
    for level in [Protection::None, Protection::Keyed] {
        assert!(leaks(level, Duration::from_millis(300)).0);
    }
}
