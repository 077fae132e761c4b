//! Completion queues and the channels that tell of them.

use super::work::{Kind, WrId};
use super::{Device, Error, Result, check, pointer, tell};
use rdma_mummy_sys as sys;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Tells that completions have come. One channel serves any number of queues.
pub struct Channel(NonNull<sys::ibv_comp_channel>);

// SAFETY: libibverbs may be called from any thread; the channel is destroyed once, by drop.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.as_fd()).finish()
    }
}

impl Channel {
    /// A channel, whose descriptor does not block.
    ///
    /// # Errors
    /// When descriptors are short.
    pub fn new(device: Device) -> Result<Arc<Self>> {
        // SAFETY: an open context.
        let channel = unsafe { sys::ibv_create_comp_channel(device.context()) };
        let channel = Self(pointer("ibv_create_comp_channel", channel)?);
        set_nonblocking(channel.as_fd()).map_err(|error| Error::new("fcntl", error))?;
        Ok(Arc::new(channel))
    }

    /// Takes an event, where there is one: a queue that was armed is not any more. The descriptor stays
    /// readable while there are others.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn take(&self) -> Result<Option<Told>> {
        let (mut queue, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the channel lives, and there is room for both answers.
        let got =
            unsafe { sys::ibv_get_cq_event(self.0.as_ptr(), &raw mut queue, &raw mut context) };
        if got != 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(Error::new("ibv_get_cq_event", error)),
            };
        }
        // SAFETY: the queue that the event is of is not destroyed before its events are acknowledged:
        // ibv_destroy_cq waits for that.
        unsafe { sys::ibv_ack_cq_events(queue, 1) };
        Ok(Some(Told(queue)))
    }
}

/// An event of a channel: completions have come.
#[derive(Debug)]
#[must_use = "the queue that it is of has to be armed again"]
pub struct Told(*const sys::ibv_cq);

impl Told {
    /// Whether they have come to this queue.
    #[must_use]
    pub fn is_of(&self, queue: &CompletionQueue) -> bool {
        std::ptr::eq(self.0, queue.queue.as_ptr())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the channel, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw((*self.0.as_ptr()).fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: no queue is left that uses it: each holds it.
        tell("ibv_destroy_comp_channel", unsafe { sys::ibv_destroy_comp_channel(self.0.as_ptr()) });
    }
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> std::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(())
}

/// How a work request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should.
    Success,
    /// Not at all: the queue pair has failed before.
    Flushed,
    /// The peer's device refuses the access: key, range, domain or right.
    RemoteAccess,
    /// The peer's queue pair does not take such requests.
    RemoteInvalid,
    /// No answer, however often it was tried.
    NoAnswer,
    /// The peer had no receive posted, however often it was tried.
    NotReady,
    /// Anything else, in the numbers of `ibv_wc_status`.
    Other(u32),
}

impl Status {
    fn of(status: sys::ibv_wc_status::Type) -> Self {
        use sys::ibv_wc_status as s;
        match status {
            s::IBV_WC_SUCCESS => Self::Success,
            s::IBV_WC_WR_FLUSH_ERR => Self::Flushed,
            s::IBV_WC_REM_ACCESS_ERR => Self::RemoteAccess,
            s::IBV_WC_REM_INV_REQ_ERR => Self::RemoteInvalid,
            s::IBV_WC_RETRY_EXC_ERR => Self::NoAnswer,
            s::IBV_WC_RNR_RETRY_EXC_ERR => Self::NotReady,
            other => Self::Other(other),
        }
    }

    /// Whether it is [`Success`](Self::Success).
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Success
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Flushed => f.write_str("flushed after an earlier failure"),
            Self::RemoteAccess => f.write_str("the peer's device refuses the access"),
            Self::RemoteInvalid => f.write_str("the peer's queue pair refuses the request"),
            Self::NoAnswer => f.write_str("the peer does not answer"),
            Self::NotReady => f.write_str("the peer posts no receives"),
            Self::Other(status) => write!(f, "work completion status {status}"),
        }
    }
}

/// A completion.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// Of which request.
    pub id: WrId,
    /// How it ended.
    pub status: Status,
    /// Bytes received. Of no meaning for other requests.
    pub len: u32,
}

/// A completion queue.
pub struct CompletionQueue {
    queue: NonNull<sys::ibv_cq>,
    channel: Option<Arc<Channel>>,
}

// SAFETY: libibverbs may be called from any thread; the queue is destroyed once, by drop.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").field("channel", &self.channel).finish_non_exhaustive()
    }
}

/// Completions that are taken at a time.
const AT_ONCE: usize = 16;

impl CompletionQueue {
    /// A queue for so many completions that were not taken yet. Where more come the device drops
    /// them and fails the queue pair: there must be room for all that its queue pairs have posted.
    ///
    /// # Errors
    /// More than the device can have; no memory.
    pub fn new(device: Device, len: u32, channel: Option<&Arc<Channel>>) -> Result<Arc<Self>> {
        let told = channel.map_or(std::ptr::null_mut(), |channel| channel.0.as_ptr());
        let len = i32::try_from(len).unwrap_or(i32::MAX);
        // SAFETY: an open context, and a channel that the queue holds from now on.
        let queue =
            unsafe { sys::ibv_create_cq(device.context(), len, std::ptr::null_mut(), told, 0) };
        let queue = pointer("ibv_create_cq", queue)?;
        Ok(Arc::new(Self { queue, channel: channel.cloned() }))
    }

    /// Takes what has completed, as much as fits; how much there was.
    ///
    /// # Errors
    /// When the device is gone, or has dropped completions.
    pub fn poll(&self, out: &mut Vec<Completion>) -> Result<usize> {
        // SAFETY: plain integers, for which zero is a value.
        let mut found: [sys::ibv_wc; AT_ONCE] = unsafe { std::mem::zeroed() };
        // SAFETY: the queue lives, and there is room for so many.
        let count =
            unsafe { sys::ibv_poll_cq(self.queue.as_ptr(), AT_ONCE as i32, found.as_mut_ptr()) };
        let Ok(count) = usize::try_from(count) else {
            return Err(Error::new("ibv_poll_cq", std::io::Error::from_raw_os_error(libc::EIO)));
        };
        let found = found[..count].iter().filter_map(|wc| {
            let id = WrId::decode(wc.wr_id)?;
            Some(Completion { id, status: Status::of(wc.status), len: wc.byte_len })
        });
        out.extend(found.inspect(|completion| {
            debug_assert!(matches!(completion.id.kind, Kind::Send | Kind::Receive));
        }));
        Ok(count)
    }

    /// Asks the channel to tell of the next completion, once. What has come before is not told: look
    /// once more afterwards.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn arm(&self) -> Result<()> {
        // SAFETY: the queue lives.
        check("ibv_req_notify_cq", unsafe { sys::ibv_req_notify_cq(self.queue.as_ptr(), 0) })
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_cq {
        self.queue.as_ptr()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: no queue pair is left that uses it: each holds it.
        tell("ibv_destroy_cq", unsafe { sys::ibv_destroy_cq(self.queue.as_ptr()) });
    }
}
