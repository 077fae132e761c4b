//! Several client processes at one server, by block size: the dissertation's figure 18.

mod worker;

pub(crate) use worker::work;

use super::{length, throughput};
use crate::cli::Options;
use crate::error::Result;
use crate::lab::{Lab, Subjects};
use crate::measure::{Block, Label, Subject};
use crate::report::Row;
use crate::session::{Session, path_name};
use dafs_client::Path;
use std::cell::RefCell;
use std::time::Duration;
use worker::{Done, Order, Worker};

/// 4 KiB to 64 KiB.
const BLOCKS: [u64; 5] = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
const CLIENTS: [u64; 4] = [1, 2, 3, 4];

fn clients(options: &Options) -> Vec<u64> {
    options.clients.map_or(CLIENTS.to_vec(), |clients| vec![clients])
}

pub(super) fn most_clients(options: &Options) -> usize {
    length(clients(options).into_iter().max().unwrap_or(1))
}

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>> {
    let session = lab.connect()?;
    let depth = lab.options.depth.unwrap_or(throughput::DEPTH);
    let blocks = lab.read_blocks(&BLOCKS)?;
    let mut workers = Vec::new();
    let mut rows = Vec::new();
    for clients in clients(lab.options) {
        while workers.len() < length(clients) {
            let (worker, pass) = Worker::start(lab, workers.len())?;
            lab.note(pass);
            workers.push(worker);
        }
        let workers = RefCell::new(&mut workers[..]);
        for &block in &blocks {
            let several =
                |path| Several { session: &session, workers: &workers, path, block, depth };
            let subjects: Subjects<'_> =
                vec![Box::new(several(Path::Direct)), Box::new(several(Path::Ordma))];
            rows.extend(lab.measure(subjects)?);
        }
    }
    for worker in workers {
        worker.end()?;
    }
    Ok(rows)
}

/// Several clients that read at the same time.
struct Several<'a, 'w> {
    /// Asks the server for its counters.
    session: &'a Session,
    workers: &'a RefCell<&'w mut [Worker]>,
    path: Path,
    block: u64,
    depth: u64,
}

impl Subject for Several<'_, '_> {
    fn label(&self) -> Label {
        let clients = self.workers.borrow().len() as u64;
        Label { path: path_name(self.path), block: self.block, depth: self.depth, clients }
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let order = Order::new(self.path, self.block, self.depth, time);
        self.session.accounted(|| {
            let workers = &mut **self.workers.borrow_mut();
            for worker in workers.iter_mut() {
                worker.begin(&order)?;
            }
            let done: Result<Vec<Done>> = workers.iter_mut().map(Worker::result).collect();
            Ok(Done::together(&done?))
        })
    }
}
