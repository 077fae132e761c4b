//! What is particular to the engine `shm`: what a client is handed, and how it is taken back.

use crate::harness::*;
use crate::hostile::{dial_unix, greet};
use dafs_keys::FileKey;
use ordma::ReadAccess;
use ordma::arena::Guard;
use ordma::shm::Shm;
use ordma::{AccessFault, Engine, RemoteRef};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Receives a control message and the descriptor that came with it.
fn receive(socket: &UnixStream) -> ([u8; 16], Option<OwnedFd>) {
    let mut bytes = [0; 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).unwrap();
    assert_eq!(got.bytes, 16);
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.into_iter().next();
        }
    }
    (bytes, descriptor)
}

/// A client that is handed everything and keeps to nothing.
struct Rogue {
    first: UnixStream,
    second: UnixStream,
    boot: OwnedFd,
    chunk: OwnedFd,
    link: u64,
}

fn rogue(world: &World) -> Rogue {
    let known = world.service.0.change(|seen| seen.connected.len());
    let mut first = dial_unix(&world.listener.address());
    let ticket = greet(&mut first, None);
    let link = world.service.0.wait("the link", |seen| seen.connected.get(known).cloned());
    let mut second = dial_unix(&world.listener.address());
    greet(&mut second, Some(ticket));
    let (message, boot) = receive(&second);
    assert_eq!(message[0], 1, "the boot page");
    link.allow_reads(Some(ReadAccess::default()));
    assert_eq!(receive(&second).0[0], 2, "the permission");
    let (message, chunk) = receive(&second);
    assert_eq!((message[0], message[4]), (4, 0), "chunk 0");
    Rogue { first, second, boot: boot.unwrap(), chunk: chunk.unwrap(), link: link.id() }
}

#[test]
fn what_a_client_is_handed_cannot_be_changed() {
    let world = World::new(&Row::shm());
    let rogue = rogue(&world);
    for fd in [&rogue.boot, &rogue.chunk] {
        let refused = |fd: rustix::fd::BorrowedFd<'_>| {
            assert!(rustix::io::pwrite(fd, b"x", 0).is_err());
            assert!(rustix::fs::ftruncate(fd, 1).is_err());
            assert!(rustix::fs::ftruncate(fd, 1 << 40).is_err());
            let none = rustix::fs::SealFlags::empty();
            assert!(rustix::fs::fcntl_add_seals(fd, none).is_err(), "sealed for good");
            let length = 4096;
            // SAFETY: a fresh mapping that must not come about; nothing points into it.
            let mapped = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    length,
                    rustix::mm::ProtFlags::WRITE,
                    rustix::mm::MapFlags::SHARED,
                    fd,
                    0,
                )
            };
            assert!(mapped.is_err());
        };
        refused(fd.as_fd());
        // Reopened for writing, where that is possible at all.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Ok(file) = std::fs::File::options().read(true).write(true).open(path) {
            refused(file.as_fd());
        }
    }
    drop(rogue);
}

#[test]
fn a_client_that_does_not_let_go_is_fenced() {
    let world = World::new(&Row::shm());
    let good = world.client();
    let rogue = rogue(&world);
    let (slot, reference) = world.page(3);
    assert_eq!(good.read_one(reference), Ok(3));
    assert!(world.arena.begin_retire(0));
    slot.kill();
    drop(slot);
    block_on(world.listener.retire(0, Duration::from_millis(100)));
    world.arena.finish_retire(0);
    assert_eq!(receive(&rogue.second).0[..5], [5, 0, 0, 0, 0], "it was told");
    let reason = world.wait_closed(rogue.link).to_string();
    assert!(reason.contains("did not let go of chunk 0"), "{reason}");
    let size = world.arena.geometry().chunk_len();
    assert_eq!(world.arena.bytes(), size, "its memory counts as long as the rogue has it");
    drop(rogue.chunk);
    assert_eq!(world.arena.bytes(), 0);
    good.echo(b"e", b"unharmed");
    assert_eq!(good.read_one(reference), Err(AccessFault::Gone));
    drop((rogue.first, rogue.second, rogue.boot));
}

#[test]
fn letting_go_of_what_one_does_not_have_breaks_the_protocol() {
    let world = World::new(&Row::shm());
    let mut rogue = rogue(&world);
    let mut message = [0; 16];
    message[0] = 6;
    rogue.second.write_all(&message).unwrap();
    message[4] = 7;
    rogue.second.write_all(&message).unwrap();
    let reason = world.wait_closed(rogue.link).to_string();
    assert!(reason.contains("chunk 7"), "{reason}");
}

#[test]
fn a_chunk_is_known_before_the_first_message_after_its_export() {
    let world = World::new(&Row::shm());
    let client = world.client();
    for i in 1..30u8 {
        world.grow();
        let slots: Vec<_> = std::iter::from_fn(|| world.arena.take(Guard::None)).collect();
        let slot = slots.iter().find(|slot| slot.chunk.id() == u32::from(i));
        let slot = slot.expect("a slot of the new chunk");
        let reference = world.fill(slot, i, 0);
        client.link.send(b"go", &[]);
        client.message();
        assert_eq!(client.read_one(reference), Ok(i));
    }
}

#[test]
fn a_socket_in_use_is_not_replaced() {
    let row = Row::shm();
    let world = World::new(&row);
    let error = row
        .engine
        .listen(&row.address, Arc::new(TestService::default()), Arc::clone(&world.arena))
        .unwrap_err();
    assert!(error.to_string().contains("another server"), "{error}");
    world.client().echo(b"e", b"still there");
    world.listener.stop();
    assert!(!std::path::Path::new(&row.address).exists(), "removed at the end");

    // What a server that was killed leaves behind is replaced, any other file is not.
    drop(std::os::unix::net::UnixListener::bind(&row.address).unwrap());
    let world = World::new(&row);
    world.client().echo(b"e", b"there again");
    drop(world);
    std::fs::write(&row.address, b"precious").unwrap();
    let arena = Arc::new(ordma::Arena::new(ordma::arena::Geometry::new(PAGE, PAGE).unwrap()));
    let listened = row.engine.listen(&row.address, Arc::new(TestService::default()), arena);
    assert!(listened.unwrap_err().to_string().contains("not a socket"));
    assert_eq!(std::fs::read(&row.address).unwrap(), b"precious");
}

const CHILD: &str = "ORDMA_TEST_SERVER";

/// Not a test of its own: the server process of the next one.
#[test]
fn server_process() {
    let Ok(address) = std::env::var(CHILD) else { return };
    let row = Row::new(Shm::default(), &address);
    let world = World::new(&row);
    let (_slot, reference) = world.page(9);
    println!("\nserving {}", reference.generation);
    std::io::stdout().flush().unwrap();
    world
        .service
        .0
        .wait("the link", |seen| seen.connected.first().cloned())
        .allow_reads(Some(ReadAccess::default()));
    loop {
        std::thread::park();
    }
}

#[test]
fn the_memory_of_a_killed_server_is_not_read() {
    let directory = Directory::new();
    let address = directory.0.join("socket").to_str().unwrap().to_owned();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "host_local::server_process", "--nocapture"])
        .env(CHILD, &address)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let generation = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("serving ").map(|n| n.parse().unwrap()))
        .expect("the server starts");
    let reference = RemoteRef { chunk: 0, slot: 0, file: 77, block: 0, generation };

    let engine = Shm::default();
    let receiver = Arc::new(Inbox::default());
    let endpoint = engine.connector(&address).connect(receiver.clone(), PATIENCE).unwrap();
    let region = ordma::Region::owned(vec![0; PAGE]);
    let read = || {
        let page = one_page(&region, &FileKey::clear(), reference);
        poll_batch(&endpoint.read(page)).expect("local reads are done at once")[0]
    };
    drive_until(&*endpoint, MESSAGES, "the permission", || read().ok());
    assert!(endpoint.capabilities().local_reads);

    // Reads go on without a pause while the server dies and the next one takes its place.
    let next_serves = std::sync::atomic::AtomicBool::new(false);
    let row = Row::new(Shm::default(), &address);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            loop {
                let too_late = next_serves.load(std::sync::atomic::Ordering::SeqCst);
                match read() {
                    Ok(_) => assert!(!too_late, "a page of a dead server was accepted"),
                    Err(fault) => break assert_eq!(fault, AccessFault::Unreachable),
                }
            }
        });
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        let arena = Arc::new(ordma::Arena::new(ordma::arena::Geometry::new(PAGE, PAGE).unwrap()));
        let _next = loop {
            let service = Arc::new(TestService::default());
            match row.engine.listen(&address, service, Arc::clone(&arena)) {
                Ok(listener) => break listener,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
        };
        next_serves.store(true, std::sync::atomic::Ordering::SeqCst);
        reader.join().unwrap();
    });
    child.wait().unwrap();
    assert_eq!(read(), Err(AccessFault::Unreachable));
    drive_until(&*endpoint, BOTH, "the end", || receiver.closed.lock().unwrap().first().cloned());
}
