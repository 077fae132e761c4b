//! One client's or one device's trouble, and what it is to others.

use crate::harness::*;
use ordma::rdma::{DeviceEvent, EventChannel, Id};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// The interface of the device. Up again when this is dropped.
struct Down(String);

fn set(interface: &str, how: &str) {
    let status = Command::new("ip").args(["link", "set", interface, how]).status();
    assert!(status.expect("the command ip (package iproute2)").success(), "{interface} {how}");
}

impl Down {
    fn new() -> Self {
        let interface = std::env::var("DAFS_RDMA_INTERFACE").unwrap_or_else(|_| "rx0".to_owned());
        set(&interface, "down");
        Self(interface)
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        set(&self.0, "up");
    }
}

/// Connections that the kernel's connection manager knows, listeners included.
fn connections() -> usize {
    let output = Command::new("rdma").args(["resource", "show", "cm_id"]).output();
    let output = output.expect("the command rdma (package iproute2)");
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// The peer cannot be told while the port is down, and has to be told afterwards, by itself.
#[test]
fn connections_that_end_while_the_port_is_down_are_not_kept() {
    let world = World::new(&Row::verbs());
    let before = connections();
    for _ in 0..2 {
        let client = world.client();
        assert!(connections() > before);
        let down = Down::new();
        client.endpoint.close();
        client.link.close("the test says so");
        world.wait_closed(client.link.id());
        drop(client);
        assert!(connections() > before, "nothing can be said while the port is down");
        drop(down);
        // Nobody connects meanwhile.
        let deadline = Instant::now() + PATIENCE;
        while connections() != before {
            assert!(Instant::now() < deadline, "{} connections, {before} before", connections());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert_eq!(world.client().read(&[]), []);
}

/// Notes in which order what it wakes for is done.
struct Noted(usize, Arc<Watched<Vec<usize>>>);

impl Wake for Noted {
    fn wake(self: Arc<Self>) {
        self.1.change(|order| order.push(self.0));
    }
}

/// What one client lends and is slow to be fetched does not keep another's waiting.
#[test]
fn a_client_with_much_to_be_fetched_has_its_share_of_the_buffers() {
    const LEN: usize = 1 << 20;
    const COUNT: usize = 64;
    let world = World::new(&Row::verbs());
    let (greedy, other) = (world.client(), world.client());
    let data = pattern(LEN);
    let region = ordma::Region::owned(data.clone());
    let lend = |client: &Client| {
        let tag = client.lend(vec![region.segment(0, LEN)]);
        client.catch_up();
        tag
    };
    let (much, little) = (lend(&greedy), lend(&other));
    // All are asked for before the server can begin with any.
    other.endpoint.send(b"hold", &[]).unwrap();
    world.service.0.wait("a hold", |seen| (seen.hold == Hold::Held).then_some(()));
    let mut fetches: Vec<_> =
        (0..COUNT).map(|_| Box::pin(greedy.link.read_from(much, 0, vec![0; LEN]))).collect();
    fetches.push(Box::pin(other.link.read_from(little, 0, vec![0; 64 << 10])));
    let order = Arc::new(Watched::default());
    for (number, fetch) in fetches.iter_mut().enumerate() {
        let waker = Waker::from(Arc::new(Noted(number, Arc::clone(&order))));
        assert!(fetch.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    world.service.0.change(|seen| seen.hold = Hold::Over);
    let order = order.wait("all", |order| (order.len() > COUNT).then(|| std::mem::take(order)));
    for fetch in &mut fetches {
        let Poll::Ready(Ok(fetched)) = fetch.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("not fetched");
        };
        assert!(fetched == data[..fetched.len()]);
    }
    let before = order.iter().position(|number| *number == COUNT).expect("the other's");
    assert!(before < COUNT / 2, "{before} of {COUNT} came before the other's");
}

/// A queue pair that the device does not even reset any more: what was under way ends all the same,
/// and memory that was lent for it comes back.
#[test]
fn reads_on_a_queue_pair_that_cannot_be_reset_end() {
    const PAGES: usize = 64;
    let world = World::new(&Row::verbs());
    let client = world.client();
    let pages: Vec<_> = (0..PAGES).map(|_| world.page(5)).collect();
    let region = ordma::Region::owned(vec![0; 4 << 20]);
    let post = || {
        let mut reads = ordma::PageReads::into(&region, PAGE, &client.key, PAGES);
        for (i, (_, reference)) in pages.iter().enumerate() {
            reads.push(*reference, 0, i * PAGE);
        }
        client.endpoint.read(reads)
    };
    client.finish(&post());
    // Nobody drives, so these are under way for the client however fast they are.
    let batch = post();
    let gone = Gone::new();
    // This one cannot be posted, nor can what is under way be taken back.
    let later = post();
    let taken = std::thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel();
        let region = region.clone();
        scope.spawn(move || send.send(region.take().is_some()));
        let taken = receive.recv_timeout(PATIENCE);
        drop(gone);
        // Where it was in vain, so that the thread ends, too.
        client.endpoint.close();
        taken
    });
    assert_eq!(taken, Ok(true), "the memory does not come back");
    // The connection may be lost; whatever was under way has ended.
    for batch in [batch, later] {
        assert!(poll_batch(&batch).is_some());
    }
    drop(client);
    works(&world);
}

/// What clients send keeps nobody from connecting.
#[test]
fn connections_are_made_while_messages_are_handled() {
    let world = World::new(&Row::verbs());
    let client = world.client();
    let connector = world.engine.connector(&world.listener.address());
    // Whoever handles a message waits for this lock.
    let connected = world.service.0.change(|_| {
        client.endpoint.send(b"d", &[]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        connector.connect(std::sync::Arc::new(Inbox::default()), Duration::from_secs(5))
    });
    assert!(connected.is_ok(), "{connected:?}");
}

#[test]
fn a_device_tells_of_its_port() {
    let host = std::env::var("DAFS_RDMA_ADDRESS").unwrap_or_else(|_| "10.9.9.1".to_owned());
    let id = Id::new(&EventChannel::new().unwrap()).unwrap();
    id.bind(format!("{host}:0").parse().unwrap()).unwrap();
    let device = id.device().unwrap();
    let tells = |expected: DeviceEvent| {
        let deadline = Instant::now() + PATIENCE;
        while device.next_event().unwrap().as_ref() != Some(&expected) {
            assert!(Instant::now() < deadline, "no {expected:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let down = Down::new();
    tells(DeviceEvent::PortDown);
    drop(down);
    tells(DeviceEvent::PortUp);
}

fn works(world: &World) {
    let (_slot, reference) = world.page(9);
    let client = world.client();
    client.echo(b"e", &pattern(20_000));
    assert_eq!(client.read_one(reference), Ok(9));
}

/// The device answers no call any more, as one that was taken away: its descriptors lead elsewhere,
/// until this is dropped.
struct Gone(Vec<(OwnedFd, RawFd)>);

impl Gone {
    fn new() -> Self {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
            let entry = entry.unwrap();
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            if target.to_string_lossy().starts_with("/dev/infiniband/uverbs") {
                numbers.push(entry.file_name().to_str().unwrap().parse::<RawFd>().unwrap());
            }
        }
        assert!(!numbers.is_empty(), "no descriptor of a device");
        // Neither calls nor writes are taken by this one.
        let nothing = std::fs::File::open("/dev/null").unwrap();
        let swap = |number: RawFd| {
            // SAFETY: it makes a new descriptor, which is owned from then on.
            let kept =
                unsafe { OwnedFd::from_raw_fd(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3)) };
            put(&nothing, number);
            (kept, number)
        };
        Self(numbers.into_iter().map(swap).collect())
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.iter().for_each(|(kept, number)| put(kept, *number));
    }
}

/// Has a descriptor's number lead where another does.
fn put(from: &impl AsRawFd, number: RawFd) {
    // SAFETY: it stays open, whoever owns it; only where it leads changes, which is the purpose.
    assert_eq!(unsafe { libc::dup2(from.as_raw_fd(), number) }, number);
}
