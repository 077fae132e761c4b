//! A request on its way through its operation.

use super::{encode_error, refuse};
use crate::counters::count;
use crate::live::Message;
use crate::ops::{self, OpContext, OpError, Reply};
use crate::reply_cache::{Abandoned, Ticket};
use crate::server::{Running, Server};
use dafs_proto::{Call, Header, Op, Status, encode_message};
use prost::Message as _;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

/// Longest reply that is kept whole; a longer one is kept without its references, which are of no
/// use after a reconnect anyway.
const MAX_KEPT: usize = 1024;

/// An operation panicked.
pub(super) struct Panicked;

/// Runs a future to its end or its panic.
pub(super) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut future = pin!(future);
    poll_fn(move |cx| {
        // After a panic the future is not polled again; what it holds is dropped with it.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

pub(super) fn panicked(server: &Server, op: Op) -> OpError {
    count(&server.counters().panics);
    tracing::error!(%op, "an operation panicked; its client gets an I/O error");
    OpError::new(Status::Io, format!("{op}: the server failed; its log says more"))
}

/// A request that is being executed. It gets exactly one reply, whatever happens to it.
pub(super) struct Job {
    pub cx: OpContext,
    pub header: Header,
    pub ticket: Ticket,
    pub credits: u16,
    pub replied: bool,
    /// Ends with it.
    pub _running: Running,
}

impl Job {
    /// Ends the request with its operation's result. `strip` takes away what a kept reply does not
    /// need.
    pub fn finish<C: Call>(
        mut self,
        result: Result<Result<impl Into<Reply<C::Reply>>, OpError>, Panicked>,
        strip: fn(&mut C::Reply),
    ) {
        match result.unwrap_or_else(|Panicked| Err(panicked(&self.cx.server, C::OP))) {
            Ok(reply) => {
                let Reply { mut body, data } = reply.into();
                let header = Header::reply(&self.header, Status::Ok, self.credits);
                let message = encode_message(header, &body);
                if self.ticket.idempotent() {
                    self.send(None, &message, &data);
                } else if message.len() > MAX_KEPT {
                    strip(&mut body);
                    self.send(Some(Arc::new(encode_message(header, &body))), &message, &data);
                } else {
                    let message = Arc::new(message);
                    self.send(Some(Arc::clone(&message)), &message, &data);
                }
            }
            Err(error) => self.fail(error),
        }
    }

    fn send(&mut self, kept: Option<Arc<Message>>, message: &[u8], data: &[u8]) {
        self.replied = true;
        let cx = &self.cx;
        if let Some(link) = cx.session.finish(&self.ticket, kept, &cx.link) {
            link.send(message, data);
        }
    }

    fn fail(&mut self, error: OpError) {
        self.replied = true;
        count(&self.cx.server.counters().errors);
        tracing::debug!(op = %self.header.op, %error, "not done");
        if error.status == Status::BadSession {
            // The session ended while its request was executed. By this name the client would hear
            // that nothing was done; a lost connection says that it is not known.
            self.cx.session.finish(&self.ticket, None, &self.cx.link);
            self.cx.link.close("the session ended while one of its requests was executed");
            return;
        }
        if !error.unexecuted {
            let message = Arc::new(encode_error(&self.header, self.credits, error));
            let kept = (!self.ticket.idempotent()).then(|| Arc::clone(&message));
            return self.send(kept, &message, &[]);
        }
        match self.cx.session.abandon(&self.ticket) {
            Abandoned::Repeatable => refuse(&self.cx.link, &self.header, self.credits, error),
            // The client sent it again over a new connection, and was told nothing because it was
            // still being executed. Over the next connection it will be.
            Abandoned::Awaited => {
                if let Some(link) = self.cx.session.link() {
                    link.close("a request that came again was not executed: connect and resend");
                }
            }
            Abandoned::Superseded => {}
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.replied {
            let what = format!("{}: the server stopped working on it", self.header.op);
            self.fail(OpError::new(Status::Io, what));
        }
    }
}

/// Decodes a request and starts its operation.
pub(super) fn execute(job: Job, body: &[u8]) {
    /// Runs one operation. `strip` is [`Job::finish`]'s.
    macro_rules! run {
        ($request:ident, $operation:path) => {
            run!($request, $operation, |_| {})
        };
        ($request:ident, $operation:path, $strip:expr) => {
            match dafs_proto::$request::decode(body) {
                Ok(request) => {
                    let server = Arc::clone(&job.cx.server);
                    let whose = job.cx.session.whose();
                    server.runtime().run_for(whose, async move {
                        let result = caught($operation(&job.cx, request)).await;
                        job.finish::<dafs_proto::$request>(result, $strip);
                    });
                }
                Err(error) => {
                    let what = format!("{}: {error}", job.header.op);
                    let error = OpError::new(Status::BadMessage, what);
                    let result: Result<Result<<dafs_proto::$request as Call>::Reply, _>, _> =
                        Ok(Err(error));
                    job.finish::<dafs_proto::$request>(result, |_| {});
                }
            }
        };
    }
    match job.header.op {
        // Handled before it comes here, for it belongs to no session.
        Op::Connect => drop(job),
        Op::Disconnect => run!(DisconnectRequest, ops::disconnect::disconnect),
        Op::Renew => run!(RenewRequest, ops::renew::renew),
        Op::Stats => run!(StatsRequest, ops::stats::stats),
        Op::Lookup => run!(LookupRequest, ops::lookup::lookup),
        Op::Open => run!(OpenRequest, ops::open::open, |reply| reply.refs.clear()),
        Op::Close => run!(CloseRequest, ops::close::close),
        Op::Read => run!(ReadRequest, ops::read::read),
        Op::Write => run!(WriteRequest, ops::write::write, |reply| reply.refs.clear()),
        Op::Commit => run!(CommitRequest, ops::commit::commit),
        Op::GetAttr => run!(GetAttrRequest, ops::getattr::getattr),
        Op::SetAttr => run!(SetAttrRequest, ops::setattr::setattr),
        Op::Mkdir => run!(MkdirRequest, ops::mkdir::mkdir),
        Op::Unlink => run!(UnlinkRequest, ops::unlink::unlink),
        Op::Rmdir => run!(RmdirRequest, ops::rmdir::rmdir),
        Op::Rename => run!(RenameRequest, ops::rename::rename),
        Op::Readdir => run!(ReaddirRequest, ops::readdir::readdir),
        Op::Symlink => run!(SymlinkRequest, ops::symlink::symlink),
        Op::Readlink => run!(ReadlinkRequest, ops::readlink::readlink),
        Op::Link => run!(LinkRequest, ops::link::link),
        Op::Statfs => run!(StatfsRequest, ops::statfs::statfs),
        Op::GetRefs => run!(GetRefsRequest, ops::get_refs::get_refs),
    }
}
