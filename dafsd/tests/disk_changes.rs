//! Where nobody but the server works on its disk, it finds no change by others there, whatever clients
//! do at the same time.

mod common;

use common::{Kind, Over, PAGE, Stop, TestServer, create};
use std::sync::atomic::{AtomicBool, Ordering};

/// Opens of the file beside the writes.
const OPENS: usize = 2000;

#[test]
fn writes_write_backs_and_opens_look_like_nobody_elses_changes() {
    let server = TestServer::start(Over::clear(Kind::Tcp));
    let (writer, opener) = (server.client(), server.client());
    let written = create(&writer, "file");
    written.write_all_at(&vec![1; 64 * PAGE], 0).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = Stop(&stop);
            let mut random = fastrand::Rng::with_seed(1);
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..random.usize(1..6) {
                    let block = random.u64(0..64);
                    written.write_all_at(&[7; PAGE], block * PAGE as u64).unwrap();
                }
                match random.u8(0..8) {
                    0 => written.set_len(random.u64(32..64) * PAGE as u64).unwrap(),
                    _ => written.sync().unwrap(),
                }
            }
        });
        scope.spawn(|| {
            let _stop = Stop(&stop);
            for _ in 0..OPENS {
                drop(opener.open("file").unwrap());
            }
        });
    });
    let counter = |name: &str| {
        let counters = server.cache().counters();
        counters.iter().find(|(other, _)| *other == name).expect(name).1
    };
    assert!(counter("cache_pages_written_back") > 100, "nothing was written back beside the opens");
    assert_eq!(counter("cache_changed_on_disk"), 0);
}
