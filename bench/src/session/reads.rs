//! Reads as rows.

use super::{Session, path_name};
use crate::data::{self, Aligned, Offsets};
use crate::error::{Context, Error, Result};
use crate::measure::{Block, Label, Recorder, Subject, one_by_one};
use crate::signals::Stop;
use dafs_client::blocking::{Outcome, Queue};
use dafs_client::{Path, ReadReport};
use std::fmt;
use std::time::{Duration, Instant};

/// Reads by one path.
pub(crate) struct Reads<'a> {
    session: &'a Session,
    stop: &'a Stop,
    path: Path,
    label: Label,
    offsets: Offsets,
    way: Way,
}

/// One at a time into one buffer, or several under way.
enum Way {
    One(Aligned),
    Several { queue: Queue, buffers: Vec<Vec<u8>> },
}

impl fmt::Debug for Reads<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").field("label", &self.label).finish_non_exhaustive()
    }
}

/// What keeps several reads under way.
struct Flight {
    begun: Instant,
    offset: u64,
}

impl<'a> Reads<'a> {
    /// Keeps `depth` reads under way, in the order of `offsets`.
    pub(crate) fn new(
        session: &'a Session,
        path: Path,
        depth: u64,
        offsets: Offsets,
        stop: &'a Stop,
    ) -> Self {
        let block = offsets.block();
        let label = Label { path: path_name(path), block: block as u64, depth, clients: 1 };
        let way = match depth {
            0 | 1 => Way::One(Aligned::new(block)),
            _ => Way::Several {
                queue: Queue::new(&session.client),
                buffers: (0..depth).map(|_| vec![0; block]).collect(),
            },
        };
        Self { session, stop, path, label, offsets, way }
    }

    /// The block without what it cost the server.
    pub(crate) fn unaccounted(&mut self, time: Duration) -> Result<Block> {
        let Self { session, stop, path, label, offsets, way } = self;
        session.served_by(*path, &label.name(), || match way {
            Way::One(buffer) => one(session, stop, *path, offsets, buffer.get_mut(), time),
            Way::Several { queue, buffers } => {
                several(session, stop, *path, offsets, (queue, buffers), time)
            }
        })
    }
}

impl Subject for Reads<'_> {
    fn label(&self) -> Label {
        self.label.clone()
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let session = self.session;
        session.accounted(|| self.unaccounted(time))
    }
}

fn one(
    session: &Session,
    stop: &Stop,
    path: Path,
    offsets: &mut Offsets,
    buffer: &mut [u8],
    time: Duration,
) -> Result<Block> {
    one_by_one(time, stop, || {
        let offset = offsets.next();
        let report = session
            .file
            .read_at_by(buffer, offset, path)
            .context(|| format!("reading at {offset}"))?;
        check(report, buffer, offset)
    })
}

fn several(
    session: &Session,
    stop: &Stop,
    path: Path,
    offsets: &mut Offsets,
    (queue, buffers): (&mut Queue, &mut Vec<Vec<u8>>),
    time: Duration,
) -> Result<Block> {
    let mut recorder = Recorder::begin(time, stop);
    let mut flights: Vec<Flight> = Vec::with_capacity(buffers.len());
    for buffer in std::mem::take(buffers) {
        let (begun, offset) = (Instant::now(), offsets.next());
        queue.read(&session.file, buffer, offset, path, flights.len() as u64);
        flights.push(Flight { begun, offset });
    }
    while let Some(completion) = queue.wait() {
        let token = usize::try_from(completion.token).unwrap_or(usize::MAX);
        let flight = flights
            .get_mut(token)
            .ok_or_else(|| Error::Peer(format!("a completion of no read: {token}")))?;
        let offset = flight.offset;
        let outcome = completion.result.context(|| format!("reading at {offset}"))?;
        let Outcome::Read(report) = outcome else {
            return Err(Error::Peer(format!("a read at {offset} ended as a write")));
        };
        let bytes = check(report, &completion.buffer, offset)?;
        let now = Instant::now();
        if recorder.done(flight.begun, now, bytes)? {
            *flight = Flight { begun: now, offset: offsets.next() };
            let (token, buffer) = (completion.token, completion.buffer);
            queue.read(&session.file, buffer, flight.offset, path, token);
        } else {
            buffers.push(completion.buffer);
        }
    }
    Ok(recorder.end())
}

/// Checks that the whole block came and is that of the file; its length.
fn check(report: ReadReport, buffer: &[u8], offset: u64) -> Result<u64> {
    if report.bytes != buffer.len() {
        let (came, wanted) = (report.bytes, buffer.len());
        return Err(Error::Peer(format!("{came} of {wanted} bytes came from offset {offset}")));
    }
    data::check(buffer, offset)?;
    Ok(buffer.len() as u64)
}

/// The smallest operation there is, without data: the attributes of the open file.
#[derive(Debug)]
pub(crate) struct NullRpc<'a> {
    pub(crate) session: &'a Session,
    pub(crate) stop: &'a Stop,
}

impl Subject for NullRpc<'_> {
    fn label(&self) -> Label {
        Label { path: "null-rpc", block: 0, depth: 1, clients: 1 }
    }

    fn block(&mut self, time: Duration) -> Result<Block> {
        let Self { session, stop } = *self;
        session.accounted(|| {
            one_by_one(time, stop, || {
                let attr = session.file.attr().context(|| "attributes".into())?;
                if attr.size != session.size {
                    return Err(Error::Peer(format!("the file has {} bytes now", attr.size)));
                }
                Ok(0)
            })
        })
    }
}
