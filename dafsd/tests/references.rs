//! A reference outlives what happens to its page: each time it faults, or reads the new bytes, from
//! the moment the operation has been acknowledged, and one RPC heals it.

mod common;

use common::{
    Over, PAGE, Served, Sizes, TestServer, create, pattern, read_page, read_to_end, served,
};
use dafs_client::blocking::{Client, File};

over_every_engine!(
    second_pass_is_one_sided,
    overwrite_is_seen_through_the_reference,
    truncate_and_extend,
    hole,
    eviction,
    replacement,
    chunk_drop,
    restart,
    mappings_that_are_kept,
);

/// A server, one client that changes a file, and another one that holds references to all of it.
struct World {
    server: TestServer,
    writer: Client,
    reader: Client,
    written: File,
    read: File,
    content: Vec<u8>,
}

const PAGES: usize = 10;

fn world(over: Over) -> World {
    world_with(over, Sizes::default())
}

fn world_with(over: Over, sizes: Sizes) -> World {
    let server = TestServer::with(over, sizes);
    let (writer, reader) = (server.client(), server.client());
    let written = create(&writer, "file");
    let content = pattern(PAGES * PAGE - 100, 1);
    written.write_all_at(&content, 0).unwrap();
    let read = reader.open("file").unwrap();
    assert_eq!(read_to_end(&read, 1 << 16), content);
    let world = World { server, writer, reader, written, read, content };
    world.all_one_sided();
    world
}

impl World {
    /// The reader sees `content`, and says how it was served.
    fn check(&self) -> Served {
        let (bytes, served) = served(&self.reader, || read_to_end(&self.read, 1 << 16));
        assert!(bytes == self.content, "the reader sees what was acknowledged");
        served
    }

    /// Nothing but one-sided reads, without a fault.
    fn all_one_sided(&self) {
        let calls = self.server.handler_calls();
        let served = self.check();
        assert_eq!((served.rpcs, served.faults), (0, 0));
        assert!(served.ordma >= self.content.len().div_ceil(PAGE) as u64);
        assert_eq!(self.server.handler_calls(), calls, "handler calls");
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.written.write_all_at(bytes, offset as u64).unwrap();
        let end = offset + bytes.len();
        self.content.resize(self.content.len().max(end), 0);
        self.content[offset..end].copy_from_slice(bytes);
    }
}

fn second_pass_is_one_sided(over: Over) {
    let world = world(over);
    world.all_one_sided();
}

fn overwrite_is_seen_through_the_reference(over: Over) {
    let mut world = world(over);
    world.write(3 * PAGE, &pattern(PAGE, 2));
    world.all_one_sided();
    world.write(5 * PAGE - 10, &pattern(20, 3));
    world.all_one_sided();
    world.write(PAGES * PAGE - 105, &pattern(5, 4));
    world.all_one_sided();
}

fn truncate_and_extend(over: Over) {
    let mut world = world(over);
    // Shrinks: what is before the end is still read one-sidedly, the end included.
    world.written.set_len((4 * PAGE + 5) as u64).unwrap();
    world.content.truncate(4 * PAGE + 5);
    // References to the pages behind are tried along with the others, and found dead.
    let served = world.check();
    assert_eq!((served.rpcs, served.faults), (0, 5), "{served:?}");
    world.all_one_sided();
    // Grows again: the pages behind are other pages now, and zero.
    world.written.set_len((8 * PAGE) as u64).unwrap();
    world.content.resize(8 * PAGE, 0);
    let healing = world.check();
    assert!(healing.faults + healing.rpc_pages > 0, "{healing:?}");
    world.all_one_sided();
    // To nothing, and a byte.
    world.written.set_len(0).unwrap();
    world.content.clear();
    world.check();
    world.write(0, b"x");
    world.check();
    world.all_one_sided();
}

fn hole(over: Over) {
    let mut world = world(over);
    // Written far behind the end: what lies between reads as zeros.
    world.write(20 * PAGE + 7, b"far");
    world.check();
    world.all_one_sided();
    world.write(15 * PAGE, b"in the hole");
    world.all_one_sided();
}

fn eviction(over: Over) {
    let world = world_with(over, Sizes { chunk_pages: 32, chunks: 2 });
    world.written.sync().unwrap();
    let other = create(&world.writer, "other");
    other.write_all_at(&pattern(200 * PAGE, 9), 0).unwrap();
    other.sync().unwrap();
    for _ in 0..20 {
        read_to_end(&other, 1 << 16);
    }
    let (page, healing) = served(&world.reader, || read_page(&world.read, 0));
    assert!(page == world.content[..PAGE]);
    assert_eq!((healing.faults, healing.rpcs, healing.ordma), (1, 1, 0), "{healing:?}");
    let (_, healed) = served(&world.reader, || read_page(&world.read, 0));
    assert_eq!((healed.faults, healed.rpcs, healed.ordma), (0, 0, 1), "{healed:?}");
    assert!(world.check().faults > 0, "the other pages were evicted as well");
}

fn replacement(over: Over) {
    let world = world(over);
    let new = create(&world.writer, "new");
    new.write_all_at(b"another file", 0).unwrap();
    world.writer.rename("new", "file").unwrap();
    // Who has the old file open still has it, as after rename(2); a new open finds the new one.
    world.all_one_sided();
    let reopened = world.reader.open("file").unwrap();
    assert_eq!(read_to_end(&reopened, 100), b"another file");
    let arena = world.server.cache().arena();
    let live = |arena: &ordma::Arena| -> usize {
        let chunks = arena.chunks();
        let slots = chunks.iter().flat_map(|c| (0..c.geometry().slots).map(move |s| (c, s)));
        slots.filter(|(c, s)| c.footer(*s).is_some_and(|f| f[32..40] != [0; 8])).count()
    };
    // Else the client keeps it open until it is committed.
    world.written.sync().unwrap();
    let before = live(&arena);
    world.read.close().unwrap();
    world.written.close().unwrap();
    // The last close ends the file: not one of its slots is alive.
    assert_eq!(live(&arena), before - PAGES);
}

fn chunk_drop(over: Over) {
    let mut world = world_with(over, Sizes { chunk_pages: 4, chunks: 4 });
    let cache = world.server.cache().clone();
    let chunks = cache.arena().chunks().len();
    assert!(chunks > 1, "the file takes several chunks");
    let retired = world.server.wait(async move { cache.retire_chunk().await });
    assert!(retired.unwrap());
    world.write(0, b"goes on");
    let healing = world.check();
    assert!(healing.faults > 0, "{healing:?}");
    world.check();
    world.all_one_sided();
}

fn restart(over: Over) {
    let mut world = world(over);
    world.written.sync().unwrap();
    let references = world.reader.references();
    assert!(references >= PAGES);
    world.server.crash();
    world.server.run();
    let after = world.check();
    assert!(after.rpc_pages >= PAGES as u64, "no reference outlived the boot: {after:?}");
    world.all_one_sided();
    // The writer's open file lives on as well.
    world.write(0, b"after the restart");
    world.all_one_sided();
}

/// A client that keeps what it was handed: the memory counts, so that the server stays within its
/// budget, and goes on with what is left.
fn mappings_that_are_kept(over: Over) {
    let world = world_with(over, Sizes { chunk_pages: 16, chunks: 4 });
    let cache = world.server.cache().clone();
    let arena = cache.arena();
    let budget = 4 * arena.geometry().chunk_len();
    let mut kept = Vec::new();
    for round in 0..6 {
        // What a rogue client has: read-only descriptors of every chunk, kept for ever.
        kept.extend(arena.chunks().iter().map(|chunk| chunk.reader().unwrap()));
        let cache = cache.clone();
        // `false` once there is only one chunk left.
        world.server.wait(async move { cache.retire_chunk().await }).unwrap();
        let large = create(&world.writer, "large");
        large.write_all_at(&pattern(100 * PAGE, round), 0).unwrap();
        assert!(read_to_end(&large, 1 << 16) == pattern(100 * PAGE, round));
        assert!(arena.bytes() <= budget, "{} bytes of {budget}", arena.bytes());
    }
    world.check();
    assert!(arena.bytes() > arena.geometry().chunk_len(), "what is kept counts");
    drop(kept);
    assert!(arena.bytes() <= budget);
}
