//! One-sided reads against the floor that the transport sets: p50, p99 and mean of each, and the
//! ratio of their medians. Floor and row alternate in blocks, with client and server on the same
//! CPU and on different ones.
//!
//! `cargo run --release -p ordma --example pingpong -- [--awake] [--spin MICROSECONDS] [--blocks N]
//! [--only SUBSTRING] [--level none|keyed|sealed]`: `--awake` keeps the CPUs from halting, by a
//! spinner of class SCHED_IDLE on each.

use dafs_keys::{FileKey, PageKey, Protection, ReadKey, Secret};
use ordma::arena::{Geometry, Guard};
use ordma::{
    Arena, Endpoint, Engine, Footer, Interest, Kind, Link, LinkError, PageReads, ReadAccess,
    ReadBatch, Receiver, RemoteRef, Service,
};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const REQUEST: usize = 56;
const REPLY: usize = 16 + 64 + PAGE;
const BULK: usize = 1 << 20;

struct Options {
    awake: bool,
    spin: Option<Duration>,
    blocks: usize,
    only: String,
    level: Protection,
}

fn options() -> Options {
    let (only, level) = (String::new(), Protection::None);
    let mut options = Options { awake: false, spin: None, blocks: 30, only, level };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("a value");
        match argument.as_str() {
            "--awake" => options.awake = true,
            "--spin" => options.spin = Some(Duration::from_micros(value().parse().unwrap())),
            "--blocks" => options.blocks = value().parse().unwrap(),
            "--only" => options.only = value(),
            "--level" => options.level = value().parse().unwrap(),
            other => panic!("unknown option {other}"),
        }
    }
    options
}

/// Binds this thread, and those that it starts from now on, to a CPU.
fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

fn keep_awake(cpus: usize) {
    for cpu in 0..cpus {
        std::thread::spawn(move || {
            pin(cpu);
            let parameters = libc::sched_param { sched_priority: 0 };
            // SAFETY: the parameters outlive the call, which concerns this thread alone.
            let result =
                unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
            assert_eq!(result, 0);
            loop {
                std::hint::spin_loop();
            }
        });
    }
}

/// Allows each client to read so.
struct Echo(ReadAccess);

impl Service for Echo {
    fn connected(&self, link: Arc<dyn Link>) {
        link.allow_reads(Some(self.0.clone()));
    }
    fn message(&self, link: &Arc<dyn Link>, head: &[u8], _data: &[u8]) {
        link.send(&head[..16], &[7; 64 + PAGE]);
    }
    fn closed(&self, _link: &Arc<dyn Link>, _reason: &LinkError) {}
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Receiver for Count {
    fn message(&self, _head: &[u8], _data: &[u8]) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn closed(&self, error: LinkError) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// A client of an engine, and what it reads.
struct Ordma {
    endpoint: Arc<dyn Endpoint>,
    received: Arc<Count>,
    pages: Vec<RemoteRef>,
    key: Arc<FileKey>,
}

fn secret() -> Secret {
    Secret::from_bytes([1; 32])
}

fn page_key() -> PageKey {
    PageKey::derive(&secret(), 1, 1)
}

impl Ordma {
    fn start(
        engine: &dyn Engine,
        address: &str,
        level: Protection,
        server: usize,
        client: usize,
    ) -> Self {
        pin(server);
        let session = secret().keyed();
        let (key, guard, access) = match level {
            Protection::None => (FileKey::Clear, Guard::None, ReadAccess::default()),
            Protection::Keyed => {
                let key = FileKey::Keyed(ReadKey::derive(&session, 1, 1));
                let access = ReadAccess { connection: Some(secret()), session: Some(session) };
                (key, Guard::Tags, access)
            }
            Protection::Sealed => {
                let access = ReadAccess { connection: Some(secret()), session: None };
                (FileKey::Sealed(page_key()), Guard::None, access)
            }
        };
        let arena = Arc::new(Arena::new(Geometry::new(PAGE, 4 * BULK).unwrap()));
        let service = Arc::new(Echo(access));
        let listener = engine.listen(address, service, Arc::clone(&arena)).unwrap();
        listener.export(&arena.grow(guard).unwrap());
        let pages = (0..(BULK / PAGE) as u64).map(|block| {
            let slot = arena.take(guard).unwrap();
            let generation = arena.next_generation();
            let valid = PAGE as u32;
            let footer = Footer {
                kind: Kind::Data,
                sealed: false,
                epoch: key.footer_epoch(),
                last: false,
                valid,
                file: 1,
                block,
                generation,
                version: 0,
            };
            let mut payload = [block as u8; PAGE];
            let footer = match &key {
                FileKey::Sealed(key) => footer.seal(&mut payload, key),
                _ => footer.encode(&payload),
            };
            slot.write(&payload, &footer);
            RemoteRef { chunk: slot.chunk.id(), slot: slot.index, file: 1, block, generation }
        });
        let pages = pages.collect();
        pin(client);
        let received = Arc::new(Count::default());
        let connector = engine.connector(&listener.address());
        let endpoint = connector.connect(received.clone(), Duration::from_secs(5)).unwrap();
        if level > Protection::None {
            endpoint.prove(&secret());
            // The proof has been taken when what is sent later is answered.
            std::thread::sleep(Duration::from_millis(20));
        }
        // The server runs until the process ends.
        std::mem::forget(listener);
        Self { endpoint, received, pages, key: Arc::new(key) }
    }

    fn finish(&self, batch: &ReadBatch) {
        const READS: Interest = Interest { messages: false, reads: true };
        loop {
            match batch.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(outcomes) => {
                    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
                    return;
                }
                Poll::Pending => self.endpoint.drive(READS, Duration::from_secs(1)),
            }
        }
    }

    fn read(&self, buffer: &mut [u8], turn: usize) {
        ordma::region::lend(buffer, |region| {
            let count = region.len() / PAGE;
            let mut reads = PageReads::into(region, PAGE, &self.key, count);
            for i in 0..count {
                reads.push(self.pages[(turn + i) % self.pages.len()], 0, i * PAGE);
            }
            self.finish(&self.endpoint.read(reads));
        });
    }

    fn call(&self) {
        const MESSAGES: Interest = Interest { messages: true, reads: false };
        let before = self.received.0.load(Ordering::Relaxed);
        self.endpoint.send(&[1; REQUEST - 24], &[]).unwrap();
        while self.received.0.load(Ordering::Relaxed) == before {
            self.endpoint.drive(MESSAGES, Duration::from_secs(1));
        }
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A plain connection whose server answers each request with `reply` bytes.
fn raw(tcp: bool, reply: usize, server: usize, client: usize) -> Box<dyn Stream> {
    fn serve(mut socket: impl Stream + 'static, reply: usize) {
        std::thread::spawn(move || {
            let (mut request, reply) = ([0; REQUEST], vec![1; reply]);
            while socket.read_exact(&mut request).is_ok() && socket.write_all(&reply).is_ok() {}
        });
    }
    pin(server);
    let socket: Box<dyn Stream> = if tcp {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        socket.set_nodelay(true).unwrap();
        served.set_nodelay(true).unwrap();
        serve(served, reply);
        Box::new(socket)
    } else {
        let path = std::env::temp_dir().join(format!("pingpong-raw-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let socket = UnixStream::connect(&path).unwrap();
        serve(listener.accept().unwrap().0, reply);
        std::fs::remove_file(path).unwrap();
        Box::new(socket)
    };
    pin(client);
    socket
}

fn ping(socket: &mut dyn Stream, buffer: &mut [u8]) {
    socket.write_all(&[2; REQUEST]).unwrap();
    socket.read_exact(buffer).unwrap();
}

/// Times in nanoseconds, and the median of each block.
#[derive(Default)]
struct Samples {
    all: Vec<u64>,
    medians: Vec<u64>,
}

impl Samples {
    fn block(&mut self, count: usize, each: usize, mut f: impl FnMut(usize)) {
        let mut block = Vec::with_capacity(count);
        for i in 0..count {
            let start = Instant::now();
            (0..each).for_each(|j| f(i * each + j));
            block.push(start.elapsed().as_nanos() as u64 / each as u64);
        }
        self.all.extend(&block);
        block.sort_unstable();
        self.medians.push(block[count / 2]);
    }

    fn print(&mut self, name: &str) -> f64 {
        self.all.sort_unstable();
        self.medians.sort_unstable();
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let mean = self.all.iter().sum::<u64>() / self.all.len() as u64;
        let p99 = self.all[self.all.len() * 99 / 100];
        let median = self.medians[self.medians.len() / 2];
        let (p50, p99, mean) = (micros(median), micros(p99), micros(mean));
        println!("  {name:<34} p50 {p50:>8.2} us   p99 {p99:>8.2} us   mean {mean:>8.2} us");
        median as f64
    }
}

struct Pair<'a> {
    name: &'a str,
    count: usize,
    /// Operations timed together, where one is too short for the clock.
    each: usize,
}

fn compare(
    options: &Options,
    pair: &Pair<'_>,
    floor_name: &str,
    mut floor: impl FnMut(usize),
    mut row: impl FnMut(usize),
) {
    let (mut floors, mut rows) = (Samples::default(), Samples::default());
    (0..pair.count).for_each(|i| (floor(i), row(i)).0);
    for _ in 0..options.blocks {
        floors.block(pair.count, pair.each, &mut floor);
        rows.block(pair.count, pair.each, &mut row);
    }
    let floor = floors.print(floor_name);
    let row = rows.print(pair.name);
    println!("  {:<34} {:.2} x the floor, {:.2} of its rate\n", "", row / floor, floor / row);
}

fn placement(options: &Options, name: &str, server: usize, client: usize) {
    let keyed = options.level == Protection::Keyed;
    let wanted = |row: &str| {
        let named = row.contains(&options.only) || name.contains(&options.only);
        named && !(keyed && row.starts_with("shm"))
    };
    println!("{name}: server on CPU {server}, client on CPU {client}");
    let mut settings = ordma::tcp::Settings::default();
    settings.spin = options.spin.unwrap_or(settings.spin);
    let tcp = ordma::tcp::Tcp::new(settings.clone());
    let shm = ordma::shm::Shm::new(settings);
    let path = std::env::temp_dir().join(format!("pingpong-{name}-{}", std::process::id()));
    let tcp = Ordma::start(&tcp, "127.0.0.1:0", options.level, server, client);
    let level = if keyed { Protection::None } else { options.level };
    let shm = Ordma::start(&shm, path.to_str().unwrap(), level, server, client);
    let (mut a, mut b) = (vec![0; BULK], vec![0; BULK]);

    if wanted("tcp-4k") {
        let mut socket = raw(true, REPLY, server, client);
        let pair = Pair { name: "ordma 4 KiB, tcp", count: 1000, each: 1 };
        let floor = |_| ping(&mut *socket, &mut a[..REPLY]);
        compare(options, &pair, "raw tcp 56 B / 4176 B", floor, |i| tcp.read(&mut b[..PAGE], i));
    }
    if wanted("tcp-rpc") {
        let mut socket = raw(true, REPLY, server, client);
        let pair = Pair { name: "message 4 KiB, tcp", count: 1000, each: 1 };
        let floor = |_| ping(&mut *socket, &mut a[..REPLY]);
        compare(options, &pair, "raw tcp 56 B / 4176 B", floor, |_| tcp.call());
    }
    if wanted("tcp-1m") {
        let mut socket = raw(true, BULK, server, client);
        let pair = Pair { name: "ordma 256 x 4 KiB, tcp", count: 30, each: 1 };
        let floor = |_| ping(&mut *socket, &mut a);
        compare(options, &pair, "raw tcp 56 B / 1 MiB", floor, |i| tcp.read(&mut b, i));
    }
    if wanted("shm-rpc") {
        let mut socket = raw(false, REPLY, server, client);
        let pair = Pair { name: "message 4 KiB, shm", count: 1000, each: 1 };
        let floor = |_| ping(&mut *socket, &mut a[..REPLY]);
        compare(options, &pair, "raw unix 56 B / 4176 B", floor, |_| shm.call());
    }
    // The floor: payload and footer copied out of plain memory, and checked or opened.
    let mut source: Vec<u8> = (0..BULK).map(|i| (i / PAGE) as u8).collect();
    let heads: Vec<[u8; 48]> = (0..BULK / PAGE).map(|i| [i as u8; 48]).collect();
    let key = (level == Protection::Sealed).then(page_key);
    let pages = (0..).zip(source.chunks_mut(PAGE).zip(&heads));
    let close = |(i, (page, head)): (u64, (&mut [u8], &[u8; 48]))| match &key {
        Some(key) => key.seal(i, 0, head, page),
        None => dafs_keys::clear_check(head, page),
    };
    let checks: Vec<_> = pages.map(close).collect();
    let copy_and_check = |to: &mut [u8], turn: usize| {
        for (i, page) in to.chunks_mut(PAGE).enumerate() {
            let i = (turn + i) % heads.len();
            page.copy_from_slice(&source[i * PAGE..(i + 1) * PAGE]);
            let (head, check) = (heads[i], checks[i]);
            match &key {
                Some(key) => key.open(i as u64, 0, &head, &check, page).unwrap(),
                None => assert!(dafs_keys::clear_check(&head, page) == check),
            }
        }
    };
    if wanted("shm-4k") {
        let pair = Pair { name: "ordma 4 KiB, shm", count: 1000, each: 16 };
        let floor = |i| copy_and_check(&mut a[..PAGE], i);
        compare(options, &pair, "copy and check 4 KiB", floor, |i| shm.read(&mut b[..PAGE], i));
    }
    if wanted("shm-1m") {
        let pair = Pair { name: "ordma 256 x 4 KiB, shm", count: 30, each: 1 };
        let floor = |i| copy_and_check(&mut a, i);
        compare(options, &pair, "copy and check 1 MiB", floor, |i| shm.read(&mut b, i));
    }
    let _ = std::fs::remove_file(path);
}

fn main() {
    let options = options();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if options.awake {
        keep_awake(cpus);
    }
    let awake = if options.awake { "kept awake" } else { "left to halt" };
    let Options { spin, blocks, level, .. } = &options;
    println!("{cpus} CPUs, {awake}; spin {spin:?}; blocks {blocks}; level {level}\n");
    placement(&options, "same", 0, 0);
    if cpus > 1 {
        placement(&options, "cross", 1, 0);
    }
}
