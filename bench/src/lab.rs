//! What every experiment needs: a server, a peer for the floors, and CPUs that are awake.

use crate::cli::{Engine, Options, Wait, name};
use crate::data::Offsets;
use crate::error::{Error, Result};
use crate::floor::verbs::whole;
use crate::floor::{Exchange, PAGE, Peer, Waiting, Where};
use crate::measure::{Label, Plan, Subject, measure};
use crate::placement::{Awake, Place, Placement, bind};
use crate::report::Row;
use crate::server::Server;
use crate::session::Session;
use crate::signals::Stop;
use dafs_client::keys::Protection;
use std::cell::RefCell;

/// The surroundings of one experiment.
#[derive(Debug)]
pub(crate) struct Lab<'a> {
    pub(crate) options: &'a Options,
    pub(crate) placement: &'a Placement,
    pub(crate) stop: &'a Stop,
    pub(crate) server: Server,
    peer: Peer,
    awake: RefCell<Awake>,
    /// What is to be told besides the rows.
    notes: RefCell<Vec<String>>,
}

/// A subject of an experiment.
pub(crate) type Subjects<'a> = Vec<Box<dyn Subject + 'a>>;

impl<'a> Lab<'a> {
    /// Starts what an experiment with at most so many clients needs, and binds this process to the
    /// first client's CPU.
    pub(crate) fn start(
        options: &'a Options,
        placement: &'a Placement,
        clients: usize,
        stop: &'a Stop,
    ) -> Result<Self> {
        if options.protection == Protection::Keyed && options.engine != Engine::Tcp {
            return Err(Error::Usage(format!(
                "--protection keyed: clients that read the server's memory themselves read what \
                 they like, so engine {} has sealed and none alone",
                name(&options.engine)
            )));
        }
        bind(placement.client(0))?;
        let server = Server::start(options, placement)?;
        let at = match options.engine {
            Engine::Tcp => Where::Tcp,
            Engine::Shm => Where::Unix(server.directory()),
            Engine::Verbs => Where::Verbs(options.device.address),
        };
        let peer = Peer::start(at, options.file_size, placement)?;
        let awake = Awake::new(options.timing.keep_awake, &placement.cpus(clients))?;
        let (awake, notes) = (RefCell::new(awake), RefCell::default());
        Ok(Self { options, placement, stop, server, peer, awake, notes })
    }

    /// Ends it all; gives the notes.
    pub(crate) fn end(self) -> Result<Vec<String>> {
        let Self { server, peer, awake, notes, .. } = self;
        drop((peer, awake));
        server.stop()?;
        Ok(notes.into_inner())
    }

    /// A client.
    pub(crate) fn connect(&self) -> Result<Session> {
        let location = self.server.location(self.options.engine);
        let identity = self.server.identity();
        Session::open(&location, identity, self.options.wait, Some(self.server.pid()))
    }

    /// A client whose references are warm; tells how they became so.
    pub(crate) fn warm(&self) -> Result<Session> {
        let session = self.connect()?;
        let pass = session.first_pass(self.stop)?;
        self.note(pass.to_string());
        Ok(session)
    }

    /// Tells something besides the rows.
    pub(crate) fn note(&self, note: String) {
        self.notes.borrow_mut().push(note);
    }

    /// Measures subjects in turn: those that are asked for.
    pub(crate) fn measure(&self, mut subjects: Subjects<'_>) -> Result<Vec<Row>> {
        let wanted = &self.options.rows;
        subjects.retain(|subject| {
            wanted.is_empty() || wanted.iter().any(|row| row == subject.label().path)
        });
        if subjects.is_empty() {
            return Ok(Vec::new());
        }
        measure(&mut subjects, Plan::of(&self.options.timing), &mut self.awake.borrow_mut())
    }

    /// The ping-pongs that rows are held against: a blocking one, and one that spins where the
    /// client may spin as well and has a CPU of its own to do so. Where there are `offsets`, replies
    /// come from these places of the peer's memory, as pages do from the server's.
    pub(crate) fn ping_pongs<'b>(
        &'b self,
        block: u64,
        depth: u64,
        exchange: Exchange,
        offsets: Option<&Offsets>,
    ) -> Result<Subjects<'b>> {
        let spinning = self.spins(depth).then_some(Waiting::Spinning);
        let ping_pong =
            |waiting| self.peer.ping_pong((block, depth), exchange, waiting, offsets, self.stop);
        [Some(Waiting::Blocking), spinning].into_iter().flatten().map(ping_pong).collect()
    }

    /// The READs that rows are held against over verbs: one that waits as the client does, and one
    /// that polls, as `ib_read_lat` does by itself.
    pub(crate) fn raw_reads<'b>(&'b self, depth: u64, offsets: &Offsets) -> Result<Subjects<'b>> {
        let polling = self.spins(depth).then_some(("floor-spin", Waiting::Polling));
        let own = match self.options.wait {
            Wait::Adaptive => ("floor", Waiting::Spinning),
            Wait::Sleep => ("floor", Waiting::Blocking),
        };
        let reads = |(path, waiting)| {
            let label = Label { path, block: offsets.block() as u64, depth, clients: 1 };
            let parts = whole(offsets.block());
            self.peer.reads(label, parts, offsets.clone(), waiting, self.stop)
        };
        [Some(own), polling].into_iter().flatten().map(reads).collect()
    }

    /// Whether there are floors that spin: where the client may spin as well and has a CPU of its
    /// own to do so.
    fn spins(&self, depth: u64) -> bool {
        let Self { options, placement, .. } = self;
        options.wait == Wait::Adaptive && placement.place == Place::Cross && depth == 1
    }

    /// The block size that was asked for, or the experiment's own. Reads are of whole pages.
    pub(crate) fn read_blocks(&self, own: &[u64]) -> Result<Vec<u64>> {
        let (page, most) = (PAGE as u64, self.options.file_size);
        match self.options.block {
            Some(block) if block % page == 0 && block <= most => Ok(vec![block]),
            Some(block) => Err(Error::Usage(format!(
                "--block {block}: reads are of whole pages of {page} bytes, and not more than \
                 the file's {most}"
            ))),
            None => Ok(own.iter().copied().filter(|block| *block <= most).collect()),
        }
    }
}
