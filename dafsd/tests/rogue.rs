//! A client that may use one export and speaks the protocol by hand gets nothing of what it may not
//! read: not out of memory that it is handed, not by references that it guesses or steals, not by
//! handles or names, not as somebody else, and not by what others have said before.

mod common;
#[path = "rogue/log.rs"]
mod log;
#[path = "rogue/read_only.rs"]
mod read_only;
#[path = "rogue/replay.rs"]
mod replay;
#[path = "rogue/shares.rs"]
mod shares;
#[path = "rogue/wire.rs"]
mod wire;

use common::raw::{Failure, Raw, RawFile, connect_request, file_key};
use common::{Kind, OTHER, Over, PAGE, Setup, Sizes, Stop, TestServer, line, pattern};
use dafs_client::OpenOptions;
use dafs_client::blocking::Client;
use dafs_keys::{Protection, ReadKey, Secret};
use dafs_proto::{
    Create, Credential, Extent, GetAttrRequest, GetRefsRequest, LookupRequest, OpenReply,
    OpenRequest, ReadRequest, ReaddirRequest, SetAttr, SetAttrRequest, Status, SymlinkRequest,
    UnlinkRequest, WireRef,
};
use ordma::secure::SecureConnector;
use ordma::{Connector, FOOTER_LEN, RemoteRef};
use read_only::every_operation_with_every_right;
use replay::{Proxy, frames, replay};
use std::collections::HashSet;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wire::{PATIENCE, Rogue, Socket, entry, fields};

/// May use the export `open`, as user 1000.
const ROGUE: u8 = 6;
/// May choose its user, within bounds.
const ASKER: u8 = 7;

macro_rules! over_sockets {
    ($($name:ident),* $(,)?) => {
        over_every_engine!(tcp, Over::sealed(Kind::Tcp), $($name),*);
        over_every_engine!(shm, Over::sealed(Kind::Shm), $($name),*);
        over_every_engine!(tcp_keyed, Over::keyed(), $($name),*);
    };
}

over_sockets!(
    second_connections_need_the_right_proof,
    forged_and_foreign_handles_are_stale,
    names_do_not_lead_out_of_the_export,
    a_client_acts_as_nobody_but_its_user,
    sessions_and_opens_of_others_are_not_to_be_had,
    every_operation_with_every_right,
    set_id_bits_go_with_writes_through_an_older_open,
);

fn server(over: Over) -> TestServer {
    assert!(rustix::process::geteuid().is_root(), "this test acts as other users: run it as root");
    let asker = common::identity(ASKER).public();
    let authorized = line(OTHER, "other", "*", 0)
        + &line(ROGUE, "rogue", "open", 1000)
        + &format!("{asker} asker exports=open uids=1000-1000\n");
    let setup = Setup {
        sizes: Sizes { chunk_pages: 64, chunks: 4 },
        authorized: Some(authorized),
        exports: &["open", "private"],
    };
    let server = TestServer::set_up(over, setup);
    let everyone = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(server.tree_of("open"), everyone).unwrap();
    server
}

fn raw(server: &TestServer, number: u8, export: &str) -> Raw {
    Raw::connect(&*server.connector_of(number), export, server.over.protection).unwrap()
}

/// A page in the clear, and how it is recognised by any part of it.
struct Plaintext {
    page: Vec<u8>,
    parts: HashSet<[u8; 16]>,
}

impl Plaintext {
    fn random() -> Self {
        let page: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(PAGE).collect();
        let parts = page.windows(16).map(|part| part.try_into().unwrap()).collect();
        Self { page, parts }
    }

    /// How many parts of the page lie in these bytes. Whatever of it is 31 bytes long is found.
    fn found(&self, bytes: &[u8]) -> usize {
        bytes.as_chunks::<16>().0.iter().filter(|part| self.parts.contains(*part)).count()
    }
}

/// How many pages of each file: more than the page cache holds of both.
const PAGES: u64 = 160;

/// Files that the rogue may not read, which another client writes, flushes, and has come and go.
struct Victim {
    /// Of `open` and of `private`.
    sessions: [Raw; 2],
    files: [RawFile; 2],
}

impl Victim {
    fn new(server: &TestServer, plaintext: &Plaintext) -> Self {
        let sessions = ["open", "private"].map(|export| raw(server, OTHER, export));
        let files = std::array::from_fn(|at| sessions[at].create("secret", 0o600).unwrap());
        let mut victim = Self { sessions, files };
        victim.work(plaintext);
        victim
    }

    fn work(&mut self, plaintext: &Plaintext) {
        let many = plaintext.page.repeat(16);
        for (session, file) in self.sessions.iter().zip(&mut self.files) {
            for first in (0..PAGES).step_by(16) {
                let at = first * PAGE as u64;
                session.write(file, at, &many).unwrap();
                session.write(file, at + 100, &plaintext.page[100..1000]).unwrap();
                if first % 32 == 0 {
                    session.commit(file).unwrap();
                }
            }
            session.commit(file).unwrap();
            for first in (0..PAGES).step_by(16) {
                assert!(session.read(file, first, 16).unwrap() == many);
            }
        }
    }
}

/// Reads all memory that comes over the second connection, as long as the other client works.
/// Returns how many bytes were looked at, and how many parts of its pages were found.
fn look_into_memory(over: Over) -> (usize, usize) {
    let server = server(over);
    let plaintext = Plaintext::random();
    let mut victim = Victim::new(&server, &plaintext);
    let mut rogue = Rogue::session(&server, ROGUE, "open");
    let stop = AtomicBool::new(false);
    let (mut memory, mut scanned, mut found) = (Vec::<OwnedFd>::new(), 0, 0);
    let rounds = std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        let working = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                victim.work(&plaintext);
                rounds += 1;
            }
            rounds
        });
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end && !working.is_finished() {
            while let Some((_, descriptors)) = rogue.second().control() {
                memory.extend(descriptors);
            }
            for descriptor in &memory {
                let mut bytes = vec![0; rustix::fs::fstat(descriptor).unwrap().st_size as usize];
                assert_eq!(rustix::io::pread(descriptor, &mut bytes, 0).unwrap(), bytes.len());
                found += plaintext.found(&bytes);
                scanned += bytes.len();
            }
        }
        stop.store(true, Ordering::Relaxed);
        working.join().unwrap()
    });
    // The boot page and at least one chunk: there was something to look at.
    let chunks = server.cache().arena().chunks().len();
    assert_eq!(memory.len(), 1 + chunks);
    assert!(rounds > 0 && chunks > 1 && scanned > 8 << 20, "{rounds} rounds, {scanned} bytes");
    println!(
        "{over:?}: {scanned} bytes of {} files scanned while {rounds} rounds of work went on: \
         {found} pieces of plaintext",
        memory.len()
    );
    cannot_be_written(&memory);
    (scanned, found)
}

fn cannot_be_written(memory: &[OwnedFd]) {
    for descriptor in memory {
        assert!(rustix::io::pwrite(descriptor, b"mine", 0).is_err());
        assert!(rustix::fs::ftruncate(descriptor, 0).is_err());
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        if let Ok(file) = std::fs::File::options().write(true).open(path) {
            assert!(file.write_at(b"mine", 0).is_err(), "a file that is handed out is written");
            assert!(file.set_len(0).is_err() && file.set_len(1 << 30).is_err());
        }
    }
}

#[test]
fn memory_that_is_handed_out_holds_no_plaintext_at_sealed() {
    assert_eq!(look_into_memory(Over::sealed(Kind::Shm)).1, 0);
}

#[test]
fn the_same_look_finds_it_at_none() {
    assert!(look_into_memory(Over::clear(Kind::Shm)).1 > 1000);
}

fn set_id_bits_go_with_writes_through_an_older_open(over: Over) {
    let server = server(over);
    let mode = |name: &str| {
        let metadata = std::fs::metadata(server.tree_of("open").join(name)).unwrap();
        metadata.mode() & 0o7777
    };
    // By its owner, who may set them, and may write.
    let rogue = raw(&server, ROGUE, "open");
    let file = rogue.create("program", 0o6755).unwrap();
    assert_eq!(mode("program"), 0o6755);
    rogue.write(&file, 0, b"mine").unwrap();
    assert_eq!(mode("program"), 0o755);
    rogue.chmod(&file.handle, 0o4755).unwrap();
    rogue.write(&file, 0, b"mine once more").unwrap();
    assert_eq!(mode("program"), 0o755);
    rogue.commit(&file).unwrap();
    // They are for what is there: a flush of what was written before takes none away.
    rogue.write(&file, 0, b"and more").unwrap();
    rogue.chmod(&file.handle, 0o4755).unwrap();
    rogue.commit(&file).unwrap();
    assert_eq!(mode("program"), 0o4755);
    // As on one host they stay when root writes.
    let other = raw(&server, OTHER, "open");
    let again = other.open("program", 3).unwrap();
    other.write(&again, 0, b"root").unwrap();
    assert_eq!(mode("program"), 0o4755);
    rogue.write(&file, 0, b"mine again").unwrap();
    assert_eq!(mode("program"), 0o755);
}

/// A file of the rogue's own: its references, and its key in the rogue's session.
struct Own {
    /// Keeps the pages in the cache.
    _session: Raw,
    references: Vec<RemoteRef>,
    epoch: u64,
    key: Option<ReadKey>,
}

fn own_file(server: &TestServer, rogue: &mut Rogue, content: &[u8]) -> Own {
    let session = raw(server, if is_none(server) { OTHER } else { ROGUE }, "open");
    let mut file = session.create("own", 0o600).unwrap();
    session.write(&file, 0, content).unwrap();
    session.read(&mut file, 0, (content.len() / PAGE) as u64).unwrap();
    let reply = open(rogue, "own", 1).unwrap();
    let references = WireRef::iter(&reply.refs).unwrap().map(|wire| {
        let WireRef { block, generation, chunk, slot } = wire;
        RemoteRef { chunk, slot, file: reply.file, block, generation }
    });
    let references: Vec<_> = references.collect();
    assert_eq!(references.len(), content.len() / PAGE);
    let (epoch, key) = match reply.key {
        None => (0, None),
        Some(key) => {
            let secret = Secret::from_bytes(key.secret.try_into().unwrap());
            (key.epoch, Some(ReadKey::new(key.epoch, secret)))
        }
    };
    Own { _session: session, references, epoch, key }
}

fn is_none(server: &TestServer) -> bool {
    server.over.protection == Protection::None
}

fn open(rogue: &mut Rogue, name: &str, access: u32) -> Result<OpenReply, Failure> {
    let directory = rogue.root.clone();
    rogue.call(&OpenRequest {
        directory,
        name: name.as_bytes().to_vec(),
        access,
        create: Create::No.into(),
        want_refs: 256,
        ..OpenRequest::default()
    })
}

/// References of all pages in all slots, as their footers tell, but for those of one file.
fn all_references(server: &TestServer, but: u64) -> Vec<RemoteRef> {
    let arena = server.cache().arena();
    let chunks = arena.chunks();
    let slots = chunks.iter().flat_map(|c| (0..c.geometry().slots).map(move |slot| (c, slot)));
    let references = slots.map(|(chunk, slot)| {
        let footer: [u8; FOOTER_LEN] = chunk.footer(slot).unwrap();
        let word = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().unwrap());
        let (file, block, generation) = (word(16), word(24), word(32));
        RemoteRef { chunk: chunk.id(), slot, file, block, generation }
    });
    references.filter(|reference| reference.file != but && reference.generation != 0).collect()
}

/// References that are near to one, and nobody's.
fn guesses(reference: RemoteRef) -> [RemoteRef; 7] {
    [
        RemoteRef { generation: reference.generation + 1_000_000, ..reference },
        RemoteRef { generation: 0, ..reference },
        RemoteRef { file: reference.file + 1_000_000, ..reference },
        RemoteRef { block: reference.block + 1_000_000, ..reference },
        RemoteRef { slot: u32::MAX, ..reference },
        RemoteRef { chunk: reference.chunk + 1_000_000, ..reference },
        RemoteRef { generation: u64::MAX, file: 0, block: 0, ..reference },
    ]
}

/// Asks without tags for everything there is. Returns how many parts of plaintext came.
fn steal(over: Over) -> usize {
    let server = server(over);
    let plaintext = Plaintext::random();
    let mut victim = Victim::new(&server, &plaintext);
    let mut rogue = Rogue::session(&server, ROGUE, "open");
    let own = own_file(&server, &mut rogue, &pattern(2 * PAGE, 5));
    let stolen = all_references(&server, own.references[0].file);
    assert!(stolen.len() > 100);
    let (mut asked, mut bytes, mut found, mut given) = (0, 0, 0, 0);
    for (number, references) in (1..).zip(stolen.chunks(16)) {
        let entries: Vec<_> = references.iter().map(entry).collect();
        let answer = rogue.ask(number, &entries);
        given += answer.statuses.iter().filter(|status| **status == 0).count();
        // Pages are aligned in their own part of the answer.
        found += plaintext.found(&answer.payloads) + plaintext.found(&answer.bytes);
        (asked, bytes) = (asked + entries.len(), bytes + answer.bytes.len());
        let nobodys: Vec<_> =
            references.iter().take(2).flat_map(|r| guesses(*r)).map(|r| entry(&r)).collect();
        let answer = rogue.ask(number + (1 << 32), &nobodys);
        assert!(answer.statuses.iter().all(|status| *status != 0) && answer.payloads.is_empty());
        asked += nobodys.len();
    }
    println!("{over:?}: {asked} pages asked for, {given} given, {bytes} bytes, {found} found");
    // At `keyed` nothing comes at all, and otherwise all that is there.
    assert_eq!(given, if over.protection == Protection::Keyed { 0 } else { stolen.len() });
    victim.work(&plaintext);
    found
}

#[test]
fn stolen_references_bring_sealed_bytes_at_sealed() {
    assert_eq!(steal(Over::sealed(Kind::Tcp)), 0);
}

#[test]
fn stolen_references_bring_nothing_without_a_tag_at_keyed() {
    assert_eq!(steal(Over::keyed()), 0);
}

#[test]
fn stolen_references_bring_the_page_at_none() {
    assert!(steal(Over::clear(Kind::Tcp)) > 1000);
}

const STALE: u8 = 1;
const REVOKED: u8 = 4;

/// Nobody checks tags of those who reach the memory itself.
#[test]
fn a_keyed_export_is_refused_to_engines_that_give_memory() {
    let kinds = [
        Kind::Shm,
        #[cfg(feature = "device-tests")]
        Kind::Verbs,
    ];
    for kind in kinds {
        let server = server(Over { kind, protection: Protection::Keyed });
        let refused = Raw::connect(&*server.connector_of(ROGUE), "open", Protection::Keyed);
        let why = refused.err().expect("refused");
        assert!(why.contains("Protection") && why.contains("sealed"), "{kind:?}: {why}");
    }
}

#[test]
fn forged_tags_bring_nothing_at_keyed() {
    let server = server(Over::keyed());
    let plaintext = Plaintext::random();
    let mut victim = Victim::new(&server, &plaintext);
    let mut rogue = Rogue::session(&server, ROGUE, "open");
    let content = pattern(2 * PAGE, 5);
    let own = own_file(&server, &mut rogue, &content);
    let (key, nonce) = (own.key.as_ref().unwrap(), rogue.nonce);
    let secret = key.secret().clone();
    let tagged = |key: &ReadKey, number: u64, index: u32, fields: Vec<u8>| {
        let tag = key.tag(&nonce, number, index, &fields);
        [fields, tag.to_vec()].concat()
    };
    let mine = own.references[0];
    // As it should be done, it works; so what follows is refused for what is wrong with it.
    let good = rogue.ask(1, &[tagged(key, 1, 0, fields(&mine, own.epoch))]);
    assert!(good.statuses == [0] && good.payloads == content[..PAGE]);

    let stolen = all_references(&server, mine.file);
    assert!(stolen.len() > 100);
    let (mut number, mut asked) = (10, 0);
    for reference in stolen {
        number += 1;
        let theirs =
            victim.files.iter().find(|file| file.number == reference.file).expect("a secret file");
        let their_key = ReadKey::new(theirs.epoch, Secret::from_bytes(theirs.secret));
        let renumbered = ReadKey::new(theirs.epoch, secret.clone());
        let disguised = RemoteRef { file: mine.file, ..reference };
        let own_tag = key.tag(&nonce, number, 2, &fields(&mine, own.epoch));
        let tries = [
            // The rogue's own key, for this epoch and the file's.
            (tagged(key, number, 0, fields(&reference, own.epoch)), REVOKED),
            (tagged(&renumbered, number, 1, fields(&reference, theirs.epoch)), REVOKED),
            // A tag of its own for a page of its own.
            ([fields(&reference, theirs.epoch), own_tag.to_vec()].concat(), REVOKED),
            // Its own file's number on the other's slot, block and generation.
            (tagged(key, number, 3, fields(&disguised, own.epoch)), STALE),
            // The other's key, were it known: it is good in the other's session.
            (tagged(&their_key, number, 4, fields(&reference, theirs.epoch)), REVOKED),
            // Epochs to come, and no tag.
            (tagged(&renumbered, number, 5, fields(&reference, u64::MAX)), REVOKED),
            ([fields(&reference, theirs.epoch), vec![0; 16]].concat(), REVOKED),
        ];
        let entries: Vec<_> = tries.iter().map(|(entry, _)| entry.clone()).collect();
        let answer = rogue.ask(number, &entries);
        let expected: Vec<_> = tries.iter().map(|(_, status)| *status).collect();
        assert_eq!(answer.statuses, expected);
        assert!(answer.payloads.is_empty() && plaintext.found(&answer.bytes) == 0);
        for guess in guesses(reference) {
            number += 1;
            let answer = rogue.ask(number, &[tagged(key, number, 0, fields(&guess, own.epoch))]);
            assert!(answer.statuses != [0] && answer.payloads.is_empty());
        }
        asked += entries.len() + 7;
    }
    // The same request again, under another number, and out of order.
    let entry = tagged(key, number + 5, 0, fields(&mine, own.epoch));
    assert_eq!(rogue.ask(number + 5, std::slice::from_ref(&entry)).statuses, [0]);
    for again in [number + 5, number + 4, number + 6, u64::MAX - 1, 1] {
        let answer = rogue.ask(again, std::slice::from_ref(&entry));
        assert!(answer.statuses == [REVOKED] && answer.payloads.is_empty(), "{again}");
    }
    println!("{asked} pages asked for with forged tags: none given");

    // The server goes on serving others, with tags of theirs.
    victim.work(&plaintext);
    let file = &victim.files[1];
    let key = file_key(Protection::Keyed, file.epoch, &file.secret);
    let (_, reference) = file.references.last_key_value().unwrap();
    let (outcome, bytes) = victim.sessions[1].one_sided(*reference, &key);
    assert!(outcome.is_ok() && bytes == plaintext.page, "{outcome:?}");
}

/// The server itself refuses the tags of an epoch that is over: the client here would take the page.
#[test]
fn tags_of_an_earlier_epoch_bring_nothing_at_keyed() {
    let server = server(Over::keyed());
    let plaintext = Plaintext::random();
    let other = raw(&server, OTHER, "open");
    let mut file = other.create("shared", 0o644).unwrap();
    other.write(&file, 0, &pattern(4 * PAGE, 1)).unwrap();
    other.commit(&file).unwrap();
    other.write(&file, 2 * PAGE as u64, &pattern(4 * PAGE, 1)[2 * PAGE..]).unwrap();
    other.read(&mut file, 0, 4).unwrap();
    let mut rogue = Rogue::session(&server, ROGUE, "open");
    let reply = open(&mut rogue, "shared", 1).unwrap();
    let (epoch, secret) = reply.key.map(|key| (key.epoch, key.secret)).unwrap();
    let secret: [u8; 32] = secret.try_into().unwrap();
    let mut number = 0;
    let mut ask = |rogue: &mut Rogue, reference: &RemoteRef, epoch: u64| {
        number += 1;
        let fields = fields(reference, epoch);
        let key = ReadKey::new(epoch, Secret::from_bytes(secret));
        let tag = key.tag(&rogue.nonce, number, 0, &fields);
        rogue.ask(number, &[[fields, tag.to_vec()].concat()])
    };
    let kept = file.references.clone();
    for (block, reference) in &kept {
        let (answer, at) = (ask(&mut rogue, reference, epoch), *block as usize * PAGE);
        assert!(answer.statuses == [0] && answer.payloads == pattern(4 * PAGE, 1)[at..at + PAGE]);
    }
    other.chmod(&file.handle, 0o600).unwrap();
    let mut statuses = Vec::new();
    for way in ["as they were", "dirty", "clean"] {
        match way {
            "dirty" => other.write(&file, 0, &plaintext.page.repeat(4)).unwrap(),
            "clean" => other.commit(&file).unwrap(),
            _ => {}
        }
        other.read(&mut file, 0, 4).unwrap();
        for reference in kept.values().chain(file.references.values()) {
            for epoch in [epoch, epoch + 1, epoch + (1 << 16), file.epoch] {
                let answer = ask(&mut rogue, reference, epoch);
                assert!(answer.payloads.is_empty() && plaintext.found(&answer.bytes) == 0, "{way}");
                statuses.extend(answer.statuses);
            }
        }
    }
    let of = |status: u8| statuses.iter().filter(|s| **s == status).count();
    println!("{} requests: {} revoked, {} stale", statuses.len(), of(REVOKED), of(STALE));
    assert!(of(REVOKED) > 0 && of(REVOKED) + of(STALE) == statuses.len());
}

fn second_connections_need_the_right_proof(over: Over) {
    let server = server(over);
    let victim = raw(&server, OTHER, "private");
    let mut file = victim.create("secret", 0o600).unwrap();
    victim.write(&file, 0, &pattern(PAGE, 1)).unwrap();
    victim.read(&mut file, 0, 1).unwrap();
    // Without one, the session begins and nothing can be read.
    let mut rogue = Rogue::dial(&server, ROGUE);
    rogue.dial_second(&server);
    rogue.begin("open", None).unwrap();
    match over.kind {
        Kind::Shm => {
            let mut kinds = Vec::new();
            let mut end = Instant::now() + PATIENCE;
            while Instant::now() < end {
                match rogue.second().control() {
                    Some((kind, _)) => {
                        kinds.push(kind);
                        // What comes without the proof comes soon after.
                        end = Instant::now() + Duration::from_millis(300);
                    }
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            assert_eq!(kinds, [1], "the boot page and no chunk");
        }
        _ => {
            let reference = file.references[&0];
            let tagged = [fields(&reference, file.epoch), vec![0; 16]].concat();
            assert_eq!(rogue.ask(1, &[entry(&reference)]).statuses, [REVOKED]);
            assert_eq!(rogue.ask(2, &[tagged]).statuses, [REVOKED]);
        }
    }
    let other = Rogue::session(&server, ROGUE, "open");
    let mut refused = 0;
    for when in ["before the session", "after"] {
        for what in ["a guess", "of another session", "for another connection"] {
            let mut rogue = Rogue::dial(&server, ROGUE);
            rogue.dial_second(&server);
            let proof = match what {
                "a guess" => [7; 16],
                "of another session" => other.proof_for(rogue.nonce).unwrap(),
                _ => rogue.proof_for(other.nonce).unwrap(),
            };
            if when == "after" {
                rogue.begin("open", None).unwrap();
                rogue.prove(proof);
            } else {
                rogue.prove(proof);
                let _ = rogue.begin("open", None);
            }
            let said = rogue.second().expect_end();
            assert!(said.len() <= 16 * 2, "{what} {when}: nothing is handed out");
            rogue.main.expect_end();
            refused += 1;
        }
    }
    // The right one, but a second time.
    let mut rogue = Rogue::session(&server, ROGUE, "open");
    let proof = rogue.proof_for(rogue.nonce).unwrap();
    rogue.prove(proof);
    rogue.main.expect_end();
    println!("{refused} wrong proofs refused");
    assert!(victim.read(&mut file, 0, 1).unwrap() == pattern(PAGE, 1));
}

fn forged_and_foreign_handles_are_stale(over: Over) {
    let server = server(over);
    let victim = raw(&server, OTHER, "private");
    let secret = victim.create("secret", 0o666).unwrap();
    victim.write(&secret, 0, b"secret").unwrap();
    victim.commit(&secret).unwrap();
    let mut rogue = Rogue::session(&server, ROGUE, "open");
    let root = rogue.root.clone();
    rogue.call(&GetAttrRequest { handle: root.clone() }).expect("its own handle is good");
    let mut forged = vec![Vec::new(), secret.handle.clone(), victim.root.clone()];
    forged.push(root[..root.len() - 16].to_vec());
    forged.push(secret.handle[..secret.handle.len() - 16].to_vec());
    // The other's handle with a check of the rogue's own, and the other way round.
    let bare = &secret.handle[..secret.handle.len() - 16];
    forged.push([bare, &root[root.len() - 16..]].concat());
    for bit in 0..root.len() * 8 {
        let mut flipped = root.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        forged.push(flipped);
    }
    for handle in &forged {
        let stale = |result: Result<(), Failure>, what: &str| {
            let status = result.expect_err(what).status();
            assert_eq!(status, Some(Status::StaleHandle), "{what} of {handle:02x?}");
        };
        let directory = || handle.clone();
        let name = || b"secret".to_vec();
        stale(rogue.call(&GetAttrRequest { handle: directory() }).map(drop), "GETATTR");
        let lookup = LookupRequest { directory: directory(), name: name() };
        stale(rogue.call(&lookup).map(drop), "LOOKUP");
        let by_name =
            OpenRequest { directory: directory(), name: name(), access: 1, ..Default::default() };
        stale(rogue.call(&by_name).map(drop), "OPEN by name");
        let by_handle = OpenRequest { handle: directory(), access: 1, ..Default::default() };
        stale(rogue.call(&by_handle).map(drop), "OPEN by handle");
        let list = ReaddirRequest { directory: directory(), cookie: 0, max_bytes: 4096 };
        stale(rogue.call(&list).map(drop), "READDIR");
        let attr = Some(SetAttr { mode: Some(0o777), ..SetAttr::default() });
        stale(
            rogue
                .call(&SetAttrRequest { handle: directory(), attr, ..Default::default() })
                .map(drop),
            "SETATTR",
        );
        let unlink = UnlinkRequest { directory: directory(), name: name() };
        stale(rogue.call(&unlink).map(drop), "UNLINK");
    }
    println!("{} handles, 7 operations with each: all stale", forged.len());
    let file = server.tree_of("private").join("secret");
    assert_eq!(std::fs::read(file).unwrap(), b"secret");
}

fn names_do_not_lead_out_of_the_export(over: Over) {
    let server = server(over);
    let victim = raw(&server, OTHER, "private");
    let secret = victim.create("secret", 0o666).unwrap();
    victim.write(&secret, 0, b"secret").unwrap();
    let mut rogue = Rogue::session(&server, ROGUE, "open");
    let absolute = server.tree_of("private").join("secret");
    let links = [("absolute", absolute.to_str().unwrap()), ("relative", "../private/secret")];
    for (name, target) in links.into_iter().chain([("directory", "../private")]) {
        let (name, target) = (name.as_bytes().to_vec(), target.as_bytes().to_vec());
        let directory = rogue.root.clone();
        rogue.call(&SymlinkRequest { directory, name, target }).expect("a link is but text");
    }
    let names = [
        "..",
        "../private/secret",
        "../../private/secret",
        "./../private/secret",
        "x/../../private/secret",
        absolute.to_str().unwrap(),
        "/etc/passwd",
        "absolute",
        "relative",
        "directory",
        "directory/secret",
        "..\0",
        "",
    ];
    for name in names {
        for access in [1, 2] {
            let refused = open(&mut rogue, name, access).map(|reply| reply.attr).expect_err(name);
            println!("OPEN {name:?}: {:?}", refused.status().expect("answered"));
        }
        let create = OpenRequest {
            directory: rogue.root.clone(),
            name: name.as_bytes().to_vec(),
            access: 2,
            create: Create::Unchecked.into(),
            truncate: true,
            ..OpenRequest::default()
        };
        assert!(rogue.call(&create).is_err(), "{name}");
    }
    for export in ["private", "PRIVATE", "open/../private", "*", ""] {
        let mut other = Rogue::dial(&server, ROGUE);
        let refused = other.begin(export, None).expect_err(export);
        assert_eq!(refused.status(), Some(Status::NoExport));
        assert!(!format!("{refused:?}").contains("there are: open, private"), "{refused:?}");
    }
    assert!(
        victim.read(&mut victim.open("secret", 1).unwrap(), 0, 1).unwrap().starts_with(b"secret")
    );
    assert_eq!(std::fs::read_dir(server.tree_of("private")).unwrap().count(), 1);
}

fn a_client_acts_as_nobody_but_its_user(over: Over) {
    let server = server(over);
    std::fs::write(server.tree_of("open").join("roots"), "secret").unwrap();
    let roots = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(server.tree_of("open").join("roots"), roots).unwrap();
    let as_user = |uid, gid, groups: &[u32]| Credential { uid, gid, groups: groups.to_vec() };
    let mut refused = 0;
    for number in [ROGUE, ASKER] {
        let mut asked =
            vec![as_user(0, 0, &[]), as_user(1001, 1001, &[]), as_user(u32::MAX, 0, &[])];
        match number {
            ROGUE => asked.push(as_user(1000, 1000, &[])),
            _ => asked.extend([as_user(1000, 0, &[]), as_user(1000, 1000, &[0])]),
        }
        for credential in asked {
            let mut rogue = Rogue::dial(&server, number);
            rogue.dial_second(&server);
            let failure = rogue.begin("open", Some(credential)).expect_err("refused");
            assert_eq!(failure.status(), Some(Status::Access), "{failure:?}");
            // Nor is there a session for what comes next.
            let attr = rogue.call(&GetAttrRequest { handle: Vec::new() });
            assert_eq!(attr.expect_err("no session").status(), Some(Status::BadSession));
            refused += 1;
        }
    }
    println!("{refused} credentials refused");
    for (number, credential) in [(ROGUE, None), (ASKER, Some(as_user(1000, 1000, &[])))] {
        let mut rogue = Rogue::dial(&server, number);
        rogue.root = rogue.begin("open", credential).unwrap().root;
        let create = OpenRequest {
            directory: rogue.root.clone(),
            name: format!("by {number}").into_bytes(),
            access: 3,
            create: Create::Exclusive.into(),
            attr: Some(SetAttr { uid: Some(0), mode: Some(0o4755), ..SetAttr::default() }),
            ..OpenRequest::default()
        };
        // Making it for root is refused, or does not make it root's.
        let _ = rogue.call(&create);
        let plain = OpenRequest { attr: None, create: Create::Unchecked.into(), ..create };
        let handle = rogue.call(&plain).unwrap().handle;
        let path = server.tree_of("open").join(format!("by {number}"));
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), 1000);
        let attr = Some(SetAttr { uid: Some(0), ..SetAttr::default() });
        let given = rogue.call(&SetAttrRequest { handle, attr, ..Default::default() });
        assert_eq!(given.expect_err("chown").status(), Some(Status::Permission));
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), 1000);
        let read = open(&mut rogue, "roots", 1).map(|reply| reply.open);
        assert_eq!(read.expect_err("root's").status(), Some(Status::Access));
    }
}

fn sessions_and_opens_of_others_are_not_to_be_had(over: Over) {
    let server = server(over);
    let victim = raw(&server, OTHER, "open");
    let mut file = victim.create("secret", 0o600).unwrap();
    victim.write(&file, 0, b"secret").unwrap();
    let mut thief = Rogue::dial(&server, ROGUE);
    let mut request = connect_request("open", over.protection, None);
    request.session = victim.session.clone();
    let refused = thief.ask_for_session(&request).expect_err("another client's session");
    assert_eq!(refused.status(), Some(Status::BadSession));
    let mut rogue = Rogue::session(&server, ROGUE, "open");
    for open in (0..1000).chain([file.open, file.number, u64::MAX]) {
        let extents = vec![Extent { offset: 0, length: 1 }];
        let read = ReadRequest { open, extents, ..ReadRequest::default() };
        assert_eq!(rogue.call(&read).expect_err("read").status(), Some(Status::BadOpen));
        let refs = GetRefsRequest { open, ..GetRefsRequest::default() };
        assert_eq!(rogue.call(&refs).expect_err("refs").status(), Some(Status::BadOpen));
    }
    assert!(victim.read(&mut file, 0, 1).unwrap().starts_with(b"secret"));
}

/// What the server has done for clients so far, but for what they do by themselves from time to time.
fn done(server: &TestServer) -> Vec<(String, u64)> {
    let mut counters = server.server().counters().list();
    counters.retain(|(name, _)| {
        (name.starts_with("op_") || name == "handler_calls")
            && name != "op_renew"
            && name != "op_stats"
    });
    counters
}

fn a_recorded_session(over: Over) {
    let server = server(over);
    let proxy = Proxy::start(&server);
    let plain = server.engine().connector(&proxy.address);
    let connector: Arc<dyn Connector> = if is_none(&server) {
        plain
    } else {
        let key = common::identity(common::SERVER).public();
        let identity = Arc::new(common::identity(OTHER));
        Arc::new(SecureConnector::new(plain, identity, key, over.protection))
    };
    let client = Client::connect_over(connector, "private", server.options()).unwrap();
    let file = common::create(&client, "file");
    let content = pattern(4 * PAGE, 1);
    file.write_all_at(&content, 0).unwrap();
    file.sync().unwrap();
    client.mkdir("directory", 0o755).unwrap();
    let read = || {
        let mut bytes = vec![0; content.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(read() == content && read() == content, "by RPC, and one-sidedly");
    // Another client changes it all, so that what happens again shows.
    let later = pattern(4 * PAGE, 2);
    let direct = server.connector_of(OTHER);
    let other = Client::connect_over(direct, "private", server.options()).unwrap();
    let changed = other.open_with("file", OpenOptions::new().write(true)).unwrap();
    changed.write_all_at(&later, 0).unwrap();
    changed.sync().unwrap();
    other.rmdir("directory").unwrap();
    for live in [true, false] {
        if !live {
            file.close().unwrap();
            client.close();
            let end = Instant::now() + PATIENCE;
            while server.server().session_counts() != (1, 1) {
                assert!(Instant::now() < end, "{:?}", server.server().session_counts());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let recorded = proxy.recorded();
        assert!(recorded.iter().all(|bytes| bytes.len() > 100), "both connections");
        let before = (done(&server), server.server().session_counts());
        if is_none(&server) {
            let mut third = Socket::dial(&server);
            third.greet(None).unwrap();
            for frame in frames(&recorded[0]) {
                third.write_all(frame).unwrap();
                third.receive_frame().expect("a reply to each");
            }
            assert!(server.tree_of("private").join("directory").exists(), "{:?}", done(&server));
            return;
        }
        let answers = replay(&server, &recorded);
        assert_eq!((done(&server), server.server().session_counts()), before);
        println!(
            "{} and {} bytes said again, {} bytes answered",
            recorded[0].len(),
            recorded[1].len(),
            answers.len()
        );
        for content in [&content, &later] {
            assert!(
                !answers
                    .windows(64)
                    .any(|part| content.windows(64).step_by(512).any(|c| c == part))
            );
        }
        assert!(std::fs::read(server.tree_of("private").join("file")).unwrap() == later);
        assert!(!server.tree_of("private").join("directory").exists());
        if live {
            assert!(read() == later, "the client goes on");
            file.write_all_at(&later, 0).unwrap();
            file.sync().unwrap();
        }
    }
}

#[test]
fn a_recorded_session_does_nothing_at_sealed() {
    a_recorded_session(Over::sealed(Kind::Tcp));
}

#[test]
fn a_recorded_session_does_nothing_at_keyed() {
    a_recorded_session(Over::keyed());
}

#[test]
fn a_recorded_session_is_executed_at_none() {
    a_recorded_session(Over::clear(Kind::Tcp));
}
