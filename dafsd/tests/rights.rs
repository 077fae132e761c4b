//! Who loses the right to read loses it at once: with keys and references from before, on the
//! connection that it still has, or with the memory that it was handed, nothing opens that is stored
//! afterwards. Others go on.

mod common;

use common::raw::{Failure, Raw, RawFile, file_key};
use common::{
    CLIENT, Kind, OTHER, Over, PAGE, STRANGER, Setup, Sizes, Stop, TestServer, create, line,
    pattern,
};
use dafs_client::blocking::Client;
use dafs_keys::{PageKey, Protection, Secret};
use dafs_proto::Status;
use ordma::{AccessFault, FOOTER_LEN};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

macro_rules! over_guarded {
    ($($name:ident),* $(,)?) => {
        over_every_engine!(sim, Over::sealed(Kind::Sim), $($name),*);
        over_every_engine!(tcp, Over::sealed(Kind::Tcp), $($name),*);
        over_every_engine!(shm, Over::sealed(Kind::Shm), $($name),*);
        over_every_engine!(tcp_keyed, Over::keyed(), $($name),*);
        #[cfg(feature = "device-tests")]
        over_every_engine!(verbs, Over::sealed(Kind::Verbs), $($name),*);
    };
}

over_guarded!(
    chmod_by_another_client,
    a_line_that_is_removed,
    a_line_that_names_another_user,
    fence,
    the_owner_reads_on_after_its_own_chmod,
    others_go_on_during_a_fence,
    a_fence_outlives_a_restart,
    nothing_stored_after_a_fence_at_full_speed,
    nothing_stored_after_a_chmod_at_full_speed,
);

/// Acts as a user that is not root.
const READER: u8 = 5;
const PAGES: u64 = 8;
const LEN: usize = PAGES as usize * PAGE;

/// A server, a client that acts as root, and one that is to lose its rights.
struct World {
    server: TestServer,
    writer: Raw,
    reader: Raw,
    /// The writer's opens of the two files.
    written: [RawFile; 2],
    /// What the reader has of them: the first is open, the second closed again.
    kept: [RawFile; 2],
    /// Exported memory, which a client of the engine `shm` may keep.
    memory: Vec<OwnedFd>,
}

fn lines() -> String {
    line(CLIENT, "writer", "*", 0) + &line(OTHER, "other", "*", 0)
}

fn world(over: Over) -> World {
    assert!(rustix::process::geteuid().is_root(), "this test acts as other users: run it as root");
    let authorized = lines() + &line(READER, "reader", "*", 1000);
    let sizes = Sizes { chunk_pages: 32, chunks: 2 };
    let setup = Setup { sizes, authorized: Some(authorized), ..Setup::default() };
    let server = TestServer::set_up(over, setup);
    let writer = Raw::connect(&*server.connector_of(CLIENT), "data", over.protection).unwrap();
    let reader = Raw::connect(&*server.connector_of(READER), "data", over.protection).unwrap();
    let old = pattern(LEN, 1);
    let written = ["first", "second"].map(|name| writer.create(name, 0o644).unwrap());
    for file in &written {
        writer.write(file, 0, &old).unwrap();
        writer.commit(file).unwrap();
        // Half of the pages are dirty.
        writer.write(file, (LEN / 2) as u64, &old[LEN / 2..]).unwrap();
    }
    let kept = ["first", "second"].map(|name| {
        let mut file = reader.open(name, 1).unwrap();
        assert!(reader.read(&mut file, 0, PAGES).unwrap() == old);
        file
    });
    reader.close(&kept[1]).unwrap();
    for file in &kept {
        let key = file_key(over.protection, file.epoch, &file.secret);
        assert_eq!(file.references.len() as u64, PAGES);
        for (block, reference) in &file.references {
            let (outcome, bytes) = reader.one_sided(*reference, &key);
            let at = *block as usize * PAGE;
            assert!(outcome.is_ok() && bytes == old[at..at + PAGE], "{outcome:?} before");
        }
    }
    let chunks = server.cache().arena().chunks();
    let memory = chunks.iter().map(|chunk| chunk.reader().unwrap()).collect();
    let world = World { server, writer, reader, written, kept, memory };
    for file in &world.kept {
        let opened = world.opened(file, &|page| old.chunks(PAGE).any(|old| old == page));
        assert_eq!(opened as u64, if over.protection == Protection::Sealed { PAGES } else { 0 });
    }
    world
}

/// What old keys may still open.
type Allowed<'a> = &'a dyn Fn(&[u8]) -> bool;

impl World {
    fn level(&self) -> Protection {
        self.server.over.protection
    }

    /// The reader finds nothing one-sidedly, whatever it makes of what it has: by its own
    /// references, and by those that others have now.
    fn nothing_one_sidedly(&mut self) -> usize {
        let (level, mut asked) = (self.level(), 0);
        for (kept, written) in self.kept.iter().zip(&mut self.written) {
            self.writer.read(written, 0, PAGES).unwrap();
            let both = [&kept.references, &written.references];
            let references: HashSet<_> = both.into_iter().flat_map(|r| r.values()).collect();
            for reference in references {
                // As it is, and as if it was of the epochs that followed.
                for epoch in [kept.epoch, kept.epoch + 1, kept.epoch + 2, written.epoch] {
                    let key = file_key(level, epoch, &kept.secret);
                    let (outcome, bytes) = self.reader.one_sided(*reference, &key);
                    let fault = outcome.expect_err("a page opens with a key from before");
                    let forged = epoch != kept.epoch;
                    use AccessFault::{Gone, Revoked, Stale, Torn, Unreachable};
                    let allowed = matches!(fault, Revoked | Stale | Gone | Unreachable);
                    assert!(allowed || forged && fault == Torn, "{fault:?}");
                    assert!(bytes == [0; PAGE], "a fault leaves nothing behind");
                    asked += 1;
                }
            }
        }
        asked
    }

    /// Tries a file's key on all slots there are, where pages lie sealed in memory that clients are
    /// given. Returns how many it opens; what it opens must be allowed.
    fn opened(&self, file: &RawFile, allowed: Allowed<'_>) -> usize {
        if self.level() != Protection::Sealed {
            return 0;
        }
        let mut opened = 0;
        let key = PageKey::new(file.epoch, Secret::from_bytes(file.secret));
        for chunk in self.server.cache().arena().chunks().iter() {
            for slot in 0..chunk.geometry().slots {
                let (mut page, mut footer) = (vec![0; PAGE], [0; FOOTER_LEN]);
                assert!(chunk.copy_out(slot, &mut page, &mut footer));
                let known = file.references.values().map(|reference| reference.generation);
                let now = u64::from_le_bytes(footer[32..40].try_into().unwrap());
                // What was killed bears no generation any more, but who has kept it can put it back.
                for generation in known.chain([now]) {
                    let mut payload = page.clone();
                    let mut head: [u8; 48] = footer[..48].try_into().unwrap();
                    head[32..40].copy_from_slice(&generation.to_le_bytes());
                    let version = u64::from_le_bytes(footer[40..48].try_into().unwrap());
                    let check = &footer[48..];
                    if key.open(generation, version, &head, check, &mut payload).is_ok() {
                        assert!(allowed(&payload), "an old key opens what was stored afterwards");
                        opened += 1;
                        break;
                    }
                }
            }
        }
        opened
    }

    /// Bytes of the memory that was handed out, none of which are these in the clear.
    fn not_in_memory(&mut self, secret: &[u8; 16]) -> usize {
        if !self.server.over.kind.gives_memory() {
            return 0;
        }
        let chunks = self.server.cache().arena().chunks();
        self.memory.extend(chunks.iter().map(|chunk| chunk.reader().unwrap()));
        let mut scanned = 0;
        for memory in &self.memory {
            let mut bytes = vec![0; rustix::fs::fstat(memory).unwrap().st_size as usize];
            assert_eq!(rustix::io::pread(memory, &mut bytes, 0).unwrap(), bytes.len());
            assert!(!bytes.as_chunks::<16>().0.contains(secret), "plaintext in exported memory");
            scanned += bytes.len();
        }
        scanned
    }

    /// What is stored from now on is out of the reader's reach.
    fn check_afterwards(&mut self) {
        let mut asked = self.nothing_one_sidedly();
        let secret: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
        let new: Vec<u8> = secret.iter().copied().cycle().take(LEN).collect();
        let old = pattern(LEN, 1);
        for file in &self.written {
            self.writer.write(file, 0, &new).unwrap();
        }
        let mut scanned = 0;
        let mut opened = [0, 0];
        for way in ["dirty", "clean", "filled"] {
            match way {
                "clean" => self.written.iter().for_each(|file| self.writer.commit(file).unwrap()),
                "filled" => self.evict(),
                _ => {}
            }
            asked += self.nothing_one_sidedly();
            scanned += self.not_in_memory(&secret);
            for at in 0..2 {
                assert!(self.writer.read(&mut self.written[at], 0, PAGES).unwrap() == new, "{way}");
                let was = |page: &[u8]| old.chunks(PAGE).any(|old| old == page);
                opened[0] += self.opened(&self.kept[at], &was);
                // The same look with the new key finds them, or it would show nothing.
                opened[1] += self.opened(&self.written[at], &|page| *page == new[..PAGE]);
            }
        }
        println!(
            "{asked} one-sided reads refused; {scanned} bytes of memory without plaintext; of all \
             slots old keys open {}, all old pages, and new keys {}",
            opened[0], opened[1]
        );
        assert!(asked as u64 > 4 * 4 * PAGES);
        assert!(self.level() != Protection::Sealed || opened[1] as u64 >= 3 * PAGES);
        assert!(!self.server.over.kind.gives_memory() || scanned > 0);
    }

    /// Has all pages leave the cache, and the first ones come back.
    fn evict(&mut self) {
        let mut large = self.writer.create("large", 0o600).unwrap();
        for first in (0..200).step_by(16) {
            self.writer.write(&large, first * PAGE as u64, &pattern(16 * PAGE, 9)).unwrap();
        }
        self.writer.commit(&large).unwrap();
        for _ in 0..10 {
            for first in (0..200).step_by(16) {
                self.writer.read(&mut large, first, 16).unwrap();
            }
        }
        self.writer.close(&large).unwrap();
    }

    /// Has the server read other authorized clients, and waits until it has acted upon them.
    fn reload(&mut self, authorized: &str) {
        self.server.authorize(authorized);
        self.server.server().reload(true);
        // It does so in the background; until it is done nothing is claimed.
        let end = Instant::now() + Duration::from_secs(20);
        for (kept, written) in self.kept.iter().zip(&mut self.written) {
            while written.epoch <= kept.epoch {
                assert!(Instant::now() < end, "no new epoch");
                self.writer.read(written, 0, 1).unwrap();
            }
        }
    }

    fn fence(&self, name: &'static str) {
        let cut_off = self.server.server().fence(name, Duration::from_secs(20)).unwrap();
        assert_eq!(cut_off.unfinished, 0);
    }

    /// A client of the product, as root.
    fn client(&self) -> Client {
        let connector = self.server.connector_of(OTHER);
        Client::connect_over(connector, "data", self.server.options()).unwrap()
    }
}

fn status<T>(result: Result<T, Failure>) -> Option<Status> {
    result.map(drop).expect_err("refused").status()
}

fn chmod_by_another_client(over: Over) {
    let mut world = world(over);
    for file in &world.written {
        world.writer.chmod(&file.handle, 0o600).unwrap();
    }
    world.check_afterwards();
    let World { reader, kept, .. } = &mut world;
    assert_eq!(status(reader.read(&mut kept[0], 0, 1)), Some(Status::Access));
    let want = dafs_proto::GetRefsRequest { open: kept[0].open, ..Default::default() };
    assert_eq!(status(reader.call(&want, &[])), Some(Status::Access));
    for name in ["first", "second"] {
        assert_eq!(status(reader.open(name, 1)), Some(Status::Access));
    }
    // It may read again once it is let, and with another key.
    world.writer.chmod(&world.written[0].handle, 0o644).unwrap();
    let old = world.kept[0].secret;
    world.reader.read(&mut world.kept[0], 0, 1).unwrap();
    assert_ne!(world.kept[0].secret, old);
    let key = file_key(over.protection, world.kept[0].epoch, &world.kept[0].secret);
    let (outcome, _) = world.reader.one_sided(world.kept[0].references[&0], &key);
    assert!(outcome.is_ok(), "{outcome:?}");
}

fn a_line_that_is_removed(over: Over) {
    let mut world = world(over);
    world.reload(&lines());
    world.check_afterwards();
    assert_eq!(status(world.reader.read(&mut world.kept[0], 0, 1)), None, "cut off");
    let again = Raw::attach(&*world.server.connector_of(READER), over.protection);
    let error = again.err().expect("the handshake is refused");
    assert!(error.contains("does not know this client"), "{error}");
}

fn a_line_that_names_another_user(over: Over) {
    let mut world = world(over);
    for file in &world.written {
        // Nothing that is taken away by itself: user 1000 could read by this before.
        world.writer.chmod(&file.handle, 0o664).unwrap();
    }
    world.reload(&(lines() + &line(READER, "reader", "*", 1001)));
    world.check_afterwards();
    assert_eq!(status(world.reader.read(&mut world.kept[0], 0, 1)), None, "cut off");
}

fn fence(over: Over) {
    let mut world = world(over);
    world.fence("reader");
    world.check_afterwards();
    assert_eq!(status(world.reader.read(&mut world.kept[0], 0, 1)), None, "cut off");
    // It may come again, and is told; it gets nothing with what it kept.
    world.reader = Raw::attach(&*world.server.connector_of(READER), over.protection).unwrap();
    world.nothing_one_sidedly();
    assert_eq!(status(world.reader.begin("data")), Some(Status::Fenced));
    world.nothing_one_sidedly();
}

fn the_owner_reads_on_after_its_own_chmod(over: Over) {
    let world = world(over);
    let tree = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(world.server.tree(), tree).unwrap();
    let reader = &world.reader;
    let mut own = reader.create("own", 0o644).unwrap();
    reader.write(&own, 0, &pattern(2 * PAGE, 3)).unwrap();
    let epoch = own.epoch;
    reader.chmod(&own.handle, 0).unwrap();
    assert!(reader.read(&mut own, 0, 2).unwrap() == pattern(2 * PAGE, 3));
    assert!(own.epoch > epoch, "the chmod took the old keys away");
    let key = file_key(over.protection, own.epoch, &own.secret);
    let (outcome, bytes) = reader.one_sided(own.references[&0], &key);
    assert!(outcome.is_ok() && bytes == pattern(PAGE, 3), "{outcome:?}");
}

fn others_go_on_during_a_fence(over: Over) {
    let world = world(over);
    let client = world.client();
    let file = create(&client, "others");
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let shared = client.open("first").unwrap();
    let last = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let going_on = scope.spawn(|| {
            let mut page = vec![0; PAGE];
            let mut last = [0; PAGES as usize];
            while !stop.load(Ordering::Relaxed) {
                let round = rounds.load(Ordering::Relaxed) + 1;
                let block = round % PAGES;
                last[block as usize] = round as u8;
                file.write_all_at(&vec![round as u8; PAGE], block * PAGE as u64).unwrap();
                file.read_exact_at(&mut page, block * PAGE as u64).unwrap();
                assert!(page == vec![round as u8; PAGE]);
                shared.read_exact_at(&mut page, block * PAGE as u64).unwrap();
                let at = block as usize * PAGE;
                assert!(page == pattern(LEN, 1)[at..at + PAGE]);
                rounds.store(round, Ordering::Relaxed);
            }
            last
        });
        let wait_for = |round| {
            let end = Instant::now() + Duration::from_secs(30);
            while rounds.load(Ordering::Relaxed) < round && !going_on.is_finished() {
                assert!(Instant::now() < end, "the other client stands still");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        for _ in 0..3 {
            wait_for(rounds.load(Ordering::Relaxed) + 2 * PAGES);
            world.fence("reader");
        }
        wait_for(rounds.load(Ordering::Relaxed) + 2 * PAGES);
        stop.store(true, Ordering::Relaxed);
        going_on.join().unwrap()
    });
    file.sync().unwrap();
    let stored = std::fs::read(world.server.tree().join("others")).unwrap();
    for (page, last) in stored.chunks(PAGE).zip(last) {
        assert!(page == vec![last; PAGE], "what was not committed at the fence is there");
    }
    assert_eq!(stored.len(), LEN);
    let faults: u64 = client.counters().faults.iter().sum();
    println!("{} rounds, {faults} faults that healed", rounds.load(Ordering::Relaxed));
}

fn a_fence_outlives_a_restart(over: Over) {
    let mut world = world(over);
    let connect =
        |world: &World| Raw::connect(&*world.server.connector_of(READER), "data", over.protection);
    world.fence("reader");
    let refused = |world: &World| connect(world).err().is_some_and(|why| why.contains("Fenced"));
    assert!(refused(&world));
    world.writer.commit(&world.written[0]).unwrap();
    world.server.crash();
    world.server.run();
    assert!(refused(&world), "after a restart");
    // Only the one that was fenced.
    Raw::connect(&*world.server.connector_of(CLIENT), "data", over.protection).unwrap();
    world.server.server().unfence("reader").unwrap();
    let reader = connect(&world).unwrap();
    let mut file = reader.open("first", 1).unwrap();
    assert!(reader.read(&mut file, 0, PAGES).unwrap() == pattern(LEN, 1));
    assert!(Raw::attach(&*world.server.connector_of(STRANGER), over.protection).is_err());
}

fn nothing_stored_after_a_fence_at_full_speed(over: Over) {
    at_full_speed(over, |world| world.fence("reader"));
}

fn nothing_stored_after_a_chmod_at_full_speed(over: Over) {
    at_full_speed(over, |world| {
        let other = Raw::connect(&*world.server.connector_of(OTHER), "data", over.protection);
        let other = other.unwrap();
        for file in &world.written {
            other.chmod(&file.handle, 0o600).unwrap();
        }
    });
}

/// Pages are overwritten without a pause while a right is taken away. All words of a page are a
/// number, and one that was issued afterwards must not be read with what the reader has.
fn at_full_speed(over: Over, take_away: impl Fn(&World)) {
    let world = world(over);
    let (stop, issued) = (AtomicBool::new(false), AtomicU64::new(0));
    let word = |page: &[u8]| u64::from_le_bytes(page[..8].try_into().unwrap());
    let old = pattern(LEN, 1);
    let is_old = |page: &[u8]| old.chunks(PAGE).any(|old| old == page);
    let writer = Raw::connect(&*world.server.connector_of(OTHER), "data", over.protection).unwrap();
    let (after, looked, read) = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let files = ["first", "second"].map(|name| writer.open(name, 2).unwrap());
        let (stop, issued) = (&stop, &issued);
        let going_on = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
                let page: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(PAGE).collect();
                let file = &files[(number % 2) as usize];
                writer.write(file, number / 2 % PAGES * PAGE as u64, &page).unwrap();
                if number.is_multiple_of(50) {
                    writer.commit(file).unwrap();
                }
            }
        });
        let wait_for = |number| {
            let end = Instant::now() + Duration::from_secs(30);
            while issued.load(Ordering::SeqCst) < number && !going_on.is_finished() {
                assert!(Instant::now() < end, "the writer stands still");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        wait_for(100);
        if over.protection == Protection::Sealed {
            while world.opened(&world.kept[0], &|_| true) == 0 {}
        }
        take_away(&world);
        let floor = issued.load(Ordering::SeqCst);
        let before = |page: &[u8]| is_old(page) || word(page) <= floor;
        let (mut looked, mut read) = (0, 0);
        while issued.load(Ordering::SeqCst) < floor + 300 && !going_on.is_finished() {
            for file in &world.kept {
                looked += 1;
                world.opened(file, &before);
                for reference in file.references.values() {
                    for epoch in [file.epoch, file.epoch + 1] {
                        let key = file_key(over.protection, epoch, &file.secret);
                        let (outcome, _) = world.reader.one_sided(*reference, &key);
                        assert!(outcome.is_err(), "read with a key from before");
                        read += 1;
                    }
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        going_on.join().unwrap();
        (issued.load(Ordering::SeqCst) - floor, looked, read)
    });
    println!("{after} writes afterwards; {looked} looks at all slots, {read} one-sided reads");
    assert!(after >= 300 && looked > 0 && read > 0);
}
