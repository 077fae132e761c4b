//! Making and replacing connections.

use super::pump::{DRIVE, ThreadWaker};
use super::receive::{HELLO_SLOT, LinkReceiver};
use super::{Grant, Link, Live, Protected, Session, lock};
use crate::error::{Error, Result};
use crate::slots::Slots;
use dafs_keys::Protection;
use dafs_proto::{
    ConnectReply, ConnectRequest, ErrorReply, Header, Op, Status, VERSION, encode_message,
};
use ordma::{Endpoint, FOOTER_LEN, Interest, LinkError};
use prost::Message;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The first pause between two attempts; doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a session's name.
const SESSION_ID: usize = 16;

/// A CONNECT under way.
#[derive(Debug)]
pub(super) struct Hello {
    pub(super) epoch: u64,
    pub(super) reply: Option<(Header, Vec<u8>)>,
    pub(super) lost: Option<LinkError>,
}

impl Session {
    /// Connects for the first time: one attempt. The caller must be the only user of the session.
    ///
    /// # Errors
    /// What the engine or the server said; nothing is left behind.
    pub(crate) fn connect(&self) -> Result<()> {
        self.attempt(self.options.connect_timeout.min(self.options.timeout))
    }

    /// Replaces a lost connection, trying until the outage's deadline; then gives up. One thread at
    /// a time.
    pub(super) fn reconnect(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let (old, deadline) = match &mut lock(&self.state).link {
                Link::Down(outage) => (outage.old.take(), outage.deadline),
                Link::Up(_) | Link::Recovering(_) | Link::Closed => return,
            };
            if let Some(old) = old {
                old.close();
            }
            let Some(deadline) = deadline else { return };
            let now = self.now();
            if now >= deadline {
                return self.give_up();
            }
            match self.attempt(self.options.connect_timeout.min(deadline - now)) {
                Ok(()) => {
                    self.counters.reconnects.add(1);
                    tracing::info!(server = %self.peer(), "connected again");
                    return;
                }
                Err(error) => self.note_outage(&error),
            }
            let before = self.now();
            let nap = pause.min(deadline.saturating_duration_since(before));
            self.nap(nap);
            // A clock that stands still while a thread sleeps, as virtual time does, must not put
            // the deadline off for ever.
            let short = nap.saturating_sub(self.now().saturating_duration_since(before));
            if let Link::Down(outage) = &mut lock(&self.state).link {
                outage.deadline = outage.deadline.and_then(|deadline| deadline.checked_sub(short));
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// One attempt after the server had been given up, without anybody waiting for it.
    pub(super) fn try_again(&self) {
        let old = match &mut lock(&self.state).link {
            Link::Down(outage) if outage.deadline.is_none() => outage.old.take(),
            _ => return,
        };
        if let Some(old) = old {
            old.close();
        }
        match self.attempt(self.options.connect_timeout) {
            Ok(()) => self.counters.reconnects.add(1),
            Err(error) => self.note_outage(&error),
        }
    }

    fn note_outage(&self, error: &Error) {
        tracing::debug!(server = %self.peer(), %error, "could not connect");
        if let Link::Down(outage) = &mut lock(&self.state).link {
            outage.reason = error.to_string();
        }
    }

    fn attempt(&self, timeout: Duration) -> Result<()> {
        let deadline = self.now() + timeout;
        let (epoch, resume) = {
            let mut state = lock(&self.state);
            state.epoch += 1;
            state.hello = Some(Hello { epoch: state.epoch, reply: None, lost: None });
            let resume = match &state.grant {
                Some(grant) if state.resumable => grant.id.clone(),
                _ => Vec::new(),
            };
            (state.epoch, resume)
        };
        let receiver = Arc::new(LinkReceiver { session: self.this.clone(), epoch });
        let result = self.connector.connect(receiver, timeout).map_err(Error::from);
        let result = result.and_then(|endpoint| {
            let result = self
                .guarded(&endpoint)
                .and_then(|()| self.hello(&endpoint, &resume, deadline))
                .and_then(|reply| {
                    self.install(&endpoint, epoch, &resume, reply)?;
                    self.recover_files(&endpoint, epoch)
                });
            if result.is_err() {
                endpoint.close();
            }
            result
        });
        lock(&self.state).hello = None;
        result
    }

    /// Nothing is said over a connection that cannot be as protected as it must.
    fn guarded(&self, endpoint: &Arc<dyn Endpoint>) -> Result<()> {
        let least = self.options.protection;
        if least == Protection::None || endpoint.channel().is_some() {
            return Ok(());
        }
        Err(Error::Protection(format!(
            "protection level {least} takes a handshake, which this connection to {} does not \
             make: use a connector that does, or ask for level none",
            self.peer()
        )))
    }

    /// Sends CONNECT and waits for its reply.
    fn hello(
        &self,
        endpoint: &Arc<dyn Endpoint>,
        resume: &[u8],
        deadline: Instant,
    ) -> Result<(Header, ConnectReply)> {
        let request = ConnectRequest {
            version: u32::from(VERSION),
            export: self.export.clone(),
            session: resume.to_vec(),
            client: self.options.name.clone(),
            protection: self.options.protection.to_wire(),
            slots: u32::from(self.options.slots),
            credential: self.options.credential.clone(),
            instance: self.instance.to_vec(),
        };
        let header = Header::request(Op::Connect, HELLO_SLOT, 0, self.options.slots);
        endpoint.send(&encode_message(header, &request), &[])?;
        let (header, body) = loop {
            if let Some(hello) = &mut lock(&self.state).hello {
                if let Some(reply) = hello.reply.take() {
                    break reply;
                }
                if let Some(error) = hello.lost.take() {
                    return Err(error.into());
                }
            }
            let left = deadline.saturating_duration_since(self.now());
            if left.is_zero() || self.is_closing() {
                let reason = "no answer to CONNECT in time".into();
                return Err(LinkError::Connect { target: self.peer(), reason }.into());
            }
            endpoint.drive(Interest { messages: true, reads: false }, left.min(DRIVE));
        };
        if header.op != Op::Connect || header.sequence != 0 {
            return Err(self.bad_hello(format!("CONNECT was answered by {}", header.op)));
        }
        match header.status {
            Status::Ok => {
                let reply = ConnectReply::decode(body.as_slice()).map_err(|error| {
                    self.bad_hello(format!("the body of a CONNECT reply does not decode: {error}"))
                })?;
                Ok((header, reply))
            }
            status => {
                if status == Status::BadSession {
                    lock(&self.state).resumable = false;
                }
                let message = ErrorReply::decode(body.as_slice()).unwrap_or_default().message;
                let what = format!("to export {:?} of {}", self.export, self.peer());
                Err(Error::Status { op: Op::Connect, status, message, what })
            }
        }
    }

    fn bad_hello(&self, reason: String) -> Error {
        Error::Protocol { peer: self.peer(), reason }
    }

    /// Looks at what the server granted.
    fn check(
        &self,
        reply: &ConnectReply,
        resume: &[u8],
        protected: &Protected,
    ) -> std::result::Result<Grant, String> {
        let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let page_size = size(reply.page_size);
        if reply.session.len() != SESSION_ID {
            return Err(format!("a session name of {} bytes", reply.session.len()));
        }
        if !page_size.is_power_of_two() || !(4096..=65536).contains(&page_size) {
            return Err(format!("a page size of {page_size} bytes"));
        }
        if reply.slots == 0 || reply.slots >= u32::from(HELLO_SLOT) {
            return Err(format!("a grant of {} request slots", reply.slots));
        }
        if size(reply.max_transfer) < page_size + FOOTER_LEN {
            return Err(format!("transfers of at most {} bytes", reply.max_transfer));
        }
        if reply.resumed && reply.session != resume {
            return Err("another session than the one to be resumed".into());
        }
        Ok(Grant {
            id: reply.session.clone(),
            boot: reply.boot,
            machine_boot: reply.machine_boot,
            page_size,
            max_inline: size(reply.max_inline),
            max_transfer: size(reply.max_transfer),
            lease: Duration::from_millis(u64::from(reply.lease_ms.max(1))),
            read_only: reply.read_only,
            root: reply.root.clone(),
            root_attr: reply.root_attr.unwrap_or_default(),
            shm_socket: reply.shm_socket.clone(),
            verbs_address: reply.verbs_address.clone(),
            level: protected.level,
            server_key: protected.server_key(),
        })
    }

    /// Makes the connection the current one: goes on with the session, or begins a new one.
    fn install(
        &self,
        endpoint: &Arc<dyn Endpoint>,
        epoch: u64,
        resume: &[u8],
        (header, reply): (Header, ConnectReply),
    ) -> Result<()> {
        let bad = |reason| self.bad_hello(reason);
        let before = {
            let state = lock(&self.state);
            state.grant.is_some().then(|| state.protected.clone())
        };
        let least = self.options.protection;
        let protected = Protected::granted(reply.protection, least, &**endpoint, before.as_ref())
            .map_err(bad)?;
        let grant = self.check(&reply, resume, &protected).map_err(bad)?;
        let geometry = endpoint.capabilities().geometry;
        if geometry.is_some_and(|geometry| geometry.page_size != grant.page_size) {
            return Err(self.bad_hello("its slots are not of page size".into()));
        }
        let mut state = lock(&self.state);
        if let Some(before) = &state.grant {
            if before.page_size != grant.page_size {
                return Err(self.bad_hello(format!(
                    "its page size was {} bytes and is {} now: open the client anew",
                    before.page_size, grant.page_size
                )));
            }
            if reply.resumed && before.boot != grant.boot {
                return Err(self.bad_hello("a session of one boot resumed in another".into()));
            }
            if reply.resumed && before.level != grant.level {
                return Err(self.bad_hello("a session resumed at another protection level".into()));
            }
        }
        if matches!(state.link, Link::Closed) {
            return Err(self.closed_error());
        }
        if let Some(lost) = state.hello.as_mut().and_then(|hello| hello.lost.take()) {
            return Err(lost.into());
        }
        let boot_changed = state.grant.as_ref().is_some_and(|before| before.boot != grant.boot);
        let first = state.grant.is_none();
        state.grant = Some(Arc::new(grant));
        state.protected = protected;
        if reply.resumed {
            let credits = state.slots.set_credits(header.credits);
            credits.map_err(|error| self.bad_hello(error.to_string()))?;
            state.link = Link::Up(Arc::clone(endpoint));
            self.pump.kick();
            let live = Live { endpoint: Arc::clone(endpoint), epoch, session: state.session };
            let wake = state.wakeable();
            drop(state);
            self.send_again(&live);
            wake.into_iter().for_each(Waker::wake);
            return Ok(());
        }
        // Checked to be below HELLO_SLOT.
        let granted = u16::try_from(reply.slots).unwrap_or(1);
        let mut slots = Slots::new(granted.min(self.options.slots.max(1)));
        slots.set_credits(header.credits).map_err(|error| self.bad_hello(error.to_string()))?;
        let outstanding = state.slots.end();
        state.slots = slots;
        state.session += 1;
        state.resumable = true;
        state.link = Link::Recovering(Arc::clone(endpoint));
        drop(state);
        if !first {
            self.counters.sessions_lost.add(1);
        }
        if boot_changed {
            tracing::info!(server = %self.peer(), "the server was restarted");
            let mut table = lock(&self.table);
            table.directory.clear();
            table.heat.clear();
        }
        for request in outstanding {
            request.lost();
        }
        Ok(())
    }

    /// Sends the outstanding requests of a resumed session again, each in its slot and under its
    /// number, so that the server does each once.
    fn send_again(&self, live: &Live) {
        let mut again = Vec::new();
        let mut state = lock(&self.state);
        for (ticket, kept) in state.slots.outstanding() {
            // Without a frame its sender is about to find this connection itself.
            let Some(frame) = &kept.frame else { continue };
            kept.resent |= kept.sent;
            kept.sent = true;
            let (direct, cell) = (kept.direct.clone(), Arc::clone(&kept.cell));
            again.push((ticket, kept.op, Arc::clone(frame), kept.data.clone(), direct, cell));
        }
        again.iter().for_each(|(ticket, ..)| state.slots.sent_again(*ticket));
        drop(state);
        for (ticket, op, frame, data, direct, cell) in again {
            self.counters.resent_requests.add(1);
            let Some(direct) = direct else {
                self.send(live, &frame, &data);
                continue;
            };
            let lent = direct.lend(&live.endpoint, &cell);
            let header = super::rpc::header(op, ticket, self.options.slots);
            let frame = Arc::new((direct.encode)(header, &lent));
            let mut state = lock(&self.state);
            let Some(kept) = state.slots.get_mut(ticket) else { continue };
            kept.frame = Some(Arc::clone(&frame));
            drop(state);
            self.send(live, &frame, &[]);
        }
    }

    /// In a new session, opens the files again and sends again what the server may have lost; then
    /// lets operations go on.
    fn recover_files(&self, endpoint: &Arc<dyn Endpoint>, epoch: u64) -> Result<()> {
        let session = {
            let state = lock(&self.state);
            match state.link {
                Link::Recovering(_) if state.epoch == epoch => state.session,
                _ => return Ok(()),
            }
        };
        let recovery = crate::file::recover(self, epoch, session);
        self.drive_alone(endpoint, epoch, recovery)?;
        let mut state = lock(&self.state);
        if let Link::Recovering(_) = &state.link
            && state.epoch == epoch
        {
            state.link = Link::Up(Arc::clone(endpoint));
            let wake = state.wakeable();
            drop(state);
            wake.into_iter().for_each(Waker::wake);
            self.pump.kick();
        }
        Ok(())
    }

    /// Runs a future over a connection that nobody else uses yet.
    fn drive_alone<T>(
        &self,
        endpoint: &Arc<dyn Endpoint>,
        epoch: u64,
        future: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let me = Arc::new(ThreadWaker::new());
        let waker = Waker::from(Arc::clone(&me));
        let mut future = pin!(future);
        loop {
            me.reset();
            if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return result;
            }
            while !me.is_woken() {
                {
                    let state = lock(&self.state);
                    if state.epoch != epoch || !matches!(state.link, Link::Recovering(_)) {
                        let reason = "lost again while files were being opened".into();
                        return Err(LinkError::Lost { peer: self.peer(), reason }.into());
                    }
                }
                if self.closing.load(Ordering::Acquire) {
                    return Err(self.closed_error());
                }
                endpoint.drive(Interest { messages: true, reads: false }, DRIVE);
            }
        }
    }
}
