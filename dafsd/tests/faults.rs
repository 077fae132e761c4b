//! Random operations against a model, over the engine `sim` in foul weather: lost connections at any
//! moment, refused ones, torn copies, faults without a reason. Every operation is executed exactly
//! once, every read returns what the model has. Even seeds have two clients; odd ones have one, and
//! crashes of the server, after which it sends again what it had not committed.
//!
//! `DAFS_SEEDS` says how many seeds are run (default 60), `DAFS_SEED` runs a single one. A failing
//! seed is printed. `DAFS_PROTECTION` names the level, `sealed` by default.

mod common;

use common::{Kind, Over, PAGE, Sizes, TestServer};
use dafs_client::blocking::{Client, File};
use dafs_client::{Error, OpenOptions, Path, Status};
use ordma::sim::{Faults, World};
use std::collections::BTreeMap;
use std::time::Duration;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const MAX: usize = 12 * PAGE;

#[test]
fn random_operations_in_foul_weather() {
    let one = std::env::var("DAFS_SEED").ok().map(|seed| seed.parse().expect("DAFS_SEED"));
    let seeds = std::env::var("DAFS_SEEDS").map_or(60, |n| n.parse().expect("DAFS_SEEDS"));
    let mut torn = 0;
    for seed in one.map_or(0..seeds, |seed: u64| seed..seed + 1) {
        let result = std::panic::catch_unwind(|| run(seed));
        torn += result.unwrap_or_else(|panic| {
            eprintln!("failed with DAFS_SEED={seed}");
            std::panic::resume_unwind(panic);
        });
    }
    println!("{torn} direct reads were torn and repeated whole");
    assert!(one.is_some() || seeds < 20 || torn > 0, "no direct read was torn");
}

/// What the files should hold. Files by name; contents by number, since names move.
#[derive(Default)]
struct Model {
    names: BTreeMap<&'static str, usize>,
    contents: Vec<Vec<u8>>,
}

struct Run {
    server: TestServer,
    clients: [Client; 2],
    /// Open files, each with the client and the model's file.
    open: Vec<(usize, File, usize)>,
    model: Model,
    random: fastrand::Rng,
    crashes: bool,
}

/// Runs a seed; how many direct reads were torn.
fn run(seed: u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    let crashes = seed % 2 == 1;
    let world = World::new(seed);
    // A cache that does not hold everything, so that pages come and go.
    let sizes = Sizes { chunk_pages: 8, chunks: random.usize(2..6) };
    let server = TestServer::in_world(Over::chosen(Kind::Sim), sizes, Some(world));
    let mut options = server.options();
    options.timeout = Duration::from_secs(3600);
    options.directory_entries = random.usize(4..100);
    let clients = [server.client_with(options.clone()), server.client_with(options)];
    server.world.as_ref().unwrap().set_faults(Faults::foul());
    let mut run =
        Run { server, clients, open: Vec::new(), model: Model::default(), random, crashes };
    for _ in 0..150 {
        run.step();
    }
    run.server.world.as_ref().unwrap().set_faults(Faults::default());
    for name in run.model.names.keys() {
        let file = run.clients[0].open(name).unwrap();
        let content = &run.model.contents[run.model.names[name]];
        assert!(common::read_to_end(&file, 1 << 16) == *content, "{name} in the end");
        file.sync().unwrap();
    }
    for (client, file, _) in &run.open {
        assert!(file.sync().is_ok(), "client {client}");
    }
    for (name, number) in &run.model.names {
        let bytes = std::fs::read(run.server.tree().join(name)).unwrap();
        assert!(bytes == run.model.contents[*number], "{name} on disk");
    }
    run.clients.iter().map(|client| client.counters().direct_torn).sum()
}

impl Run {
    fn step(&mut self) {
        let client = if self.crashes { 0 } else { self.random.usize(0..2) };
        let name = NAMES[self.random.usize(0..NAMES.len())];
        match self.random.u32(0..100) {
            0..15 => self.open(client, name),
            15..20 => self.create_new(client, name),
            20..50 => self.write(),
            50..80 => self.read(),
            80..85 => self.truncate(),
            85..88 => self.rename(client, name),
            88..90 => self.unlink(client, name),
            90..93 => self.close(),
            93..96 => self.sync(),
            96..98 => self.retire(),
            _ if self.crashes => self.restart(),
            _ => {}
        }
    }

    fn pick(&mut self) -> Option<usize> {
        (!self.open.is_empty()).then(|| self.random.usize(0..self.open.len()))
    }

    fn open(&mut self, client: usize, name: &'static str) {
        // In which order two opens send again what they wrote is not defined.
        let number = self.model.names.get(name);
        if self.crashes && self.open.iter().any(|(_, _, open)| Some(open) == number) {
            return;
        }
        let options = OpenOptions::new().read(true).write(true).create(true);
        let file = self.clients[client].open_with(name, options).expect("open");
        let number = *self.model.names.entry(name).or_insert_with(|| {
            self.model.contents.push(Vec::new());
            self.model.contents.len() - 1
        });
        self.open.push((client, file, number));
    }

    fn create_new(&mut self, client: usize, name: &'static str) {
        let options = OpenOptions::new().read(true).write(true).create_new(true);
        match (self.clients[client].open_with(name, options), self.model.names.contains_key(name)) {
            (Ok(file), false) => {
                self.model.contents.push(Vec::new());
                let number = self.model.contents.len() - 1;
                self.model.names.insert(name, number);
                self.open.push((client, file, number));
            }
            (Err(error), true) => assert_eq!(error.status(), Some(Status::Exists), "{error}"),
            (result, exists) => panic!("create {name}, which exists: {exists}: {result:?}"),
        }
    }

    fn write(&mut self) {
        let Some(i) = self.pick() else { return };
        let at = self.random.usize(0..MAX);
        let len = self.random.usize(1..=MAX - at).min(self.random.usize(1..=MAX));
        let bytes: Vec<u8> = vec![self.random.u8(..); len];
        let (_, file, number) = &self.open[i];
        file.write_all_at(&bytes, at as u64).expect("write");
        let content = &mut self.model.contents[*number];
        content.resize(content.len().max(at + len), 0);
        content[at..at + len].copy_from_slice(&bytes);
    }

    fn read(&mut self) {
        let Some(i) = self.pick() else { return };
        let at = self.random.usize(0..MAX);
        let len = self.random.usize(1..=MAX);
        let path = [Path::Auto, Path::Auto, Path::Inline, Path::Direct][self.random.usize(0..4)];
        let (client, file, number) = &self.open[i];
        let mut buffer = vec![0xEE; len];
        let report = file.read_at_by(&mut buffer, at as u64, path).expect("read");
        let content = &self.model.contents[*number];
        let expected = content.get(at..).unwrap_or_default();
        let expected = &expected[..expected.len().min(len)];
        assert_eq!(report.bytes, expected.len(), "client {client}: {len} at {at}, {path:?}");
        assert!(buffer[..report.bytes] == *expected, "client {client}: {len} at {at}, {path:?}");
    }

    fn truncate(&mut self) {
        let Some(i) = self.pick() else { return };
        let size = self.random.usize(0..MAX);
        let (_, file, number) = &self.open[i];
        file.set_len(size as u64).expect("truncate");
        self.model.contents[*number].resize(size, 0);
    }

    fn rename(&mut self, client: usize, from: &'static str) {
        let to = NAMES[self.random.usize(0..NAMES.len())];
        match (self.clients[client].rename(from, to), self.model.names.contains_key(from)) {
            (Ok(()), true) => {
                let number = self.model.names.remove(from).expect("it is there");
                self.model.names.insert(to, number);
            }
            (Err(error), false) => assert_eq!(error.status(), Some(Status::NoEntry), "{error}"),
            (result, exists) => panic!("rename {from}, which exists: {exists}: {result:?}"),
        }
    }

    fn unlink(&mut self, client: usize, name: &'static str) {
        match (self.clients[client].unlink(name), self.model.names.remove(name)) {
            (Ok(()), Some(_)) => {}
            (Err(error), None) => assert_eq!(error.status(), Some(Status::NoEntry), "{error}"),
            (result, number) => panic!("unlink {name}, which is {number:?}: {result:?}"),
        }
    }

    fn close(&mut self) {
        if let Some(i) = self.pick() {
            let (_, file, _) = self.open.swap_remove(i);
            if self.crashes {
                // What is closed is not sent again.
                file.sync().expect("sync");
            }
            file.close().expect("close");
        }
    }

    fn sync(&mut self) {
        if let Some(i) = self.pick() {
            self.open[i].1.sync().expect("sync");
        }
    }

    fn retire(&mut self) {
        let cache = self.server.cache().clone();
        self.server.wait(async move { cache.retire_chunk().await }).expect("retire");
    }

    /// A crash: what was written and not committed comes from the clients again. Files without a
    /// name end with it.
    fn restart(&mut self) {
        let named: Vec<usize> = self.model.names.values().copied().collect();
        self.open.retain(|(_, _, number)| named.contains(number));
        self.server.crash();
        self.server.run();
        // Sent over the lost connection, an operation that cannot be repeated would have an outcome
        // that the client cannot know.
        for client in &self.clients {
            client.metadata("/").expect("reconnect");
        }
        for (client, file, _) in &self.open {
            match file.sync() {
                Ok(()) => {}
                Err(error @ Error::OutcomeUnknown { .. }) => panic!("client {client}: {error}"),
                Err(error) => panic!("client {client}: sync after the restart: {error}"),
            }
        }
    }
}
