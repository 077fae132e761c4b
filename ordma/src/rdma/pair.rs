//! Reliable connected queue pairs.

use super::cm::Id;
use super::completion::{Completion, CompletionQueue, Status};
use super::memory::Domain;
use super::work::{Kind, Local, Op, Parts, Work, WrId};
use super::{Error, Result, check, pointer, tell};
use rdma_mummy_sys as sys;
use std::collections::VecDeque;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much a queue pair can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// Requests of the send queue.
    pub sends: u32,
    /// Requests of the receive queue.
    pub receives: u32,
    /// Parts of a request.
    pub parts: u32,
    /// Bytes that can be sent from where they are.
    pub inline: u32,
}

/// How a queue pair is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// The peer may read what is registered for that.
    pub remote_read: bool,
    /// The peer may write what is registered for that.
    pub remote_write: bool,
    /// How long to wait for an answer before it is tried again: 4.096 us times 2 to this.
    pub timeout: u8,
    /// How often to try again. Not 7, which rxe takes for ever (rxe_comp.c).
    pub retries: u8,
    /// How often to try again where the peer had no receive posted; 7 is for ever.
    pub not_ready_retries: u8,
    /// How long the peer is to wait before it tries that again: a code of the specification's table,
    /// 1 for 10 us, 12 for 640 us, 0 for 655 ms.
    pub not_ready_timer: u8,
    /// Most bytes of a packet's payload, as both sides can take them.
    pub mtu: u32,
    /// READs under way that this side asks for.
    pub reads_out: u8,
    /// READs under way that this side answers.
    pub reads_in: u8,
    /// The numbers of the first packets, of this side and of the peer, where they are not those of
    /// the connection's beginning.
    pub packets: Option<(u32, u32)>,
}

/// What a queue pair had when it was reset.
#[derive(Debug)]
pub struct Flushed<S, R> {
    /// Requests of the send queue that had not completed. `None` are those without memory.
    pub sends: Vec<Option<S>>,
    /// Requests of the receive queue.
    pub receives: Vec<R>,
}

/// Requests that were posted and have not completed, in their order.
#[derive(Debug)]
struct Posted<T> {
    items: VecDeque<T>,
    /// Number of the first.
    first: u32,
    life: u32,
    scratch: Scratch,
}

/// Memory that is used again for each post.
#[derive(Default)]
struct Scratch {
    requests: Vec<sys::ibv_send_wr>,
    parts: Vec<Parts>,
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

// SAFETY: the pointers in it are of no meaning between posts.
unsafe impl Send for Scratch {}

impl<T> Posted<T> {
    fn new(room: u32) -> Self {
        let items = VecDeque::with_capacity(room as usize);
        Self { items, first: 0, life: 0, scratch: Scratch::default() }
    }

    fn next(&self) -> u32 {
        self.first.wrapping_add(self.items.len() as u32)
    }

    /// How many requests a completion ends: those up to its own. 0 where it is of an earlier life.
    fn ended(&self, id: WrId) -> usize {
        let count = id.number.wrapping_sub(self.first).wrapping_add(1) as usize;
        let current = id.life == WrId::new(id.kind, self.life, 0).life;
        if current && count <= self.items.len() { count } else { 0 }
    }

    fn pop(&mut self) -> Option<T> {
        let item = self.items.pop_front()?;
        self.first = self.first.wrapping_add(1);
        Some(item)
    }

    /// Ends the life, and gives what it leaves.
    fn renew(&mut self) -> Vec<T> {
        self.life = self.life.wrapping_add(1);
        self.first = 0;
        self.items.drain(..).collect()
    }
}

/// A reliable connected queue pair. `S` is memory of requests of the send queue, `R` of those of the
/// receive queue.
pub struct QueuePair<S: Local, R: Local> {
    pair: NonNull<sys::ibv_qp>,
    cap: Cap,
    sends: Mutex<Posted<Option<S>>>,
    receives: Mutex<Posted<R>>,
    domain: Arc<Domain>,
    send_queue: Arc<CompletionQueue>,
    receive_queue: Arc<CompletionQueue>,
}

// SAFETY: libibverbs may be called from any thread; the pair is destroyed once, by drop.
unsafe impl<S: Local, R: Local> Send for QueuePair<S, R> {}
// SAFETY: as above; what is posted is under locks.
unsafe impl<S: Local, R: Local> Sync for QueuePair<S, R> {}

impl<S: Local, R: Local> fmt::Debug for QueuePair<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair").field("number", &self.number()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Local, R: Local> QueuePair<S, R> {
    /// A queue pair in the state RESET. Its completions go to the two queues, which must have room
    /// for them, and may be one.
    ///
    /// # Errors
    /// When the device cannot have another, or not as large a one.
    pub fn new(
        domain: &Arc<Domain>,
        send_queue: &Arc<CompletionQueue>,
        receive_queue: &Arc<CompletionQueue>,
        cap: Cap,
    ) -> Result<Self> {
        // SAFETY: plain data, for which zero is a value.
        let mut init: sys::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        init.send_cq = send_queue.as_ptr();
        init.recv_cq = receive_queue.as_ptr();
        init.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
        init.cap = sys::ibv_qp_cap {
            max_send_wr: cap.sends,
            max_recv_wr: cap.receives,
            max_send_sge: cap.parts.max(1),
            max_recv_sge: 1,
            max_inline_data: cap.inline,
        };
        // SAFETY: domain and queues live, and the pair holds them from now on.
        let pair = unsafe { sys::ibv_create_qp(domain.as_ptr(), &raw mut init) };
        Ok(Self {
            pair: pointer("ibv_create_qp", pair)?,
            cap,
            sends: Mutex::new(Posted::new(cap.sends)),
            receives: Mutex::new(Posted::new(cap.receives)),
            domain: Arc::clone(domain),
            send_queue: Arc::clone(send_queue),
            receive_queue: Arc::clone(receive_queue),
        })
    }

    /// Its number on its device.
    #[must_use]
    pub fn number(&self) -> u32 {
        // SAFETY: the pair lives; its number does not change.
        unsafe { (*self.pair.as_ptr()).qp_num }
    }

    /// Where its requests of the send queue complete.
    #[must_use]
    pub fn send_queue(&self) -> &Arc<CompletionQueue> {
        &self.send_queue
    }

    /// Where its receives complete.
    #[must_use]
    pub fn receive_queue(&self) -> &Arc<CompletionQueue> {
        &self.receive_queue
    }

    /// Its domain.
    #[must_use]
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// What it can hold.
    #[must_use]
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// Requests of the send queue that can be posted now.
    #[must_use]
    pub fn room(&self) -> usize {
        (self.cap.sends as usize).saturating_sub(lock(&self.sends).items.len())
    }

    /// From RESET to INIT: receives can be posted.
    ///
    /// # Errors
    /// In another state, or where the connection is gone.
    pub fn init(&self, id: &Id, tuning: &Tuning) -> Result<()> {
        let (mut attr, mask) = id.attributes(sys::ibv_qp_state::IBV_QPS_INIT)?;
        attr.qp_access_flags = access(tuning.remote_read, tuning.remote_write);
        self.modify(attr, mask | sys::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0 as i32)
    }

    /// From INIT over RTR to RTS: connected.
    ///
    /// # Errors
    /// In another state, or where the connection is gone.
    pub fn connect(&self, id: &Id, tuning: &Tuning) -> Result<()> {
        use sys::ibv_qp_state as s;
        let (mut attr, mask) = id.attributes(s::IBV_QPS_RTR)?;
        attr.path_mtu = tuning.mtu.max(256).ilog2() - 7;
        attr.max_dest_rd_atomic = tuning.reads_in;
        attr.min_rnr_timer = tuning.not_ready_timer;
        if let Some((_, theirs)) = tuning.packets {
            attr.rq_psn = theirs;
        }
        self.modify(attr, mask & !(sys::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0 as i32))?;
        let (mut attr, mask) = id.attributes(s::IBV_QPS_RTS)?;
        attr.timeout = tuning.timeout;
        attr.retry_cnt = tuning.retries;
        attr.rnr_retry = tuning.not_ready_retries;
        attr.max_rd_atomic = tuning.reads_out;
        if let Some((ours, _)) = tuning.packets {
            attr.sq_psn = ours;
        }
        self.modify(attr, mask & !(sys::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0 as i32))
    }

    /// Sets what the peer may do, while connected.
    ///
    /// # Errors
    /// Where it is not connected.
    pub fn allow(&self, remote_read: bool, remote_write: bool) -> Result<()> {
        let mut attr = self.state(sys::ibv_qp_state::IBV_QPS_RTS);
        attr.qp_access_flags = access(remote_read, remote_write);
        let mask = sys::ibv_qp_attr_mask::IBV_QP_STATE | sys::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS;
        self.modify(attr, mask.0 as i32)
    }

    /// Fails the pair: all its requests complete as [`Status::Flushed`], those of the future too.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn fail(&self) -> Result<()> {
        let attr = self.state(sys::ibv_qp_state::IBV_QPS_ERR);
        self.modify(attr, sys::ibv_qp_attr_mask::IBV_QP_STATE.0 as i32)
    }

    /// Back to RESET, from any state. The device is done with all that was posted, which comes back;
    /// completions of it are of nothing from now on.
    ///
    /// # Errors
    /// When the device is gone; nothing comes back then.
    pub fn reset(&self) -> Result<Flushed<S, R>> {
        // Both locked, so that nothing is posted between the reset and the new life.
        let (mut sends, mut receives) = (lock(&self.sends), lock(&self.receives));
        let attr = self.state(sys::ibv_qp_state::IBV_QPS_RESET);
        self.modify(attr, sys::ibv_qp_attr_mask::IBV_QP_STATE.0 as i32)?;
        Ok(Flushed { sends: sends.renew(), receives: receives.renew() })
    }

    /// Destroys it, where it cannot even be reset: the device is done with all that was posted, which
    /// comes back. A device that does not do that either is gone, and with it whatever would write.
    #[must_use]
    pub fn destroy(self) -> Flushed<S, R> {
        let (sends, receives) = (lock(&self.sends).renew(), lock(&self.receives).renew());
        drop(self);
        Flushed { sends, receives }
    }

    fn state(&self, state: sys::ibv_qp_state::Type) -> sys::ibv_qp_attr {
        // SAFETY: plain data, for which zero is a value.
        let mut attr: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attr.qp_state = state;
        attr
    }

    fn modify(&self, mut attr: sys::ibv_qp_attr, mask: i32) -> Result<()> {
        // SAFETY: the pair lives.
        let returned = unsafe { sys::ibv_modify_qp(self.pair.as_ptr(), &raw mut attr, mask) };
        check("ibv_modify_qp", returned)
    }

    /// Posts requests to the send queue, all with one call of the device. They are carried out in
    /// their order.
    ///
    /// # Errors
    /// More than there is [room](Self::room) for, which changes nothing but drops the requests; and
    /// where the device does not take them: the pair is of no use then, and what was given is kept
    /// until it is reset or dropped.
    pub fn post(&self, works: impl IntoIterator<Item = Work<S>>) -> Result<()> {
        let mut posted = lock(&self.sends);
        let Posted { items, first, life, scratch } = &mut *posted;
        let before = items.len();
        scratch.parts.clear();
        scratch.requests.clear();
        for work in works {
            if items.len() >= self.cap.sends as usize {
                items.truncate(before);
                return Err(full("ibv_post_send"));
            }
            let mut parts = Parts::new();
            work.local.parts(&mut parts);
            let number = first.wrapping_add(items.len() as u32);
            let id = WrId::new(Kind::Send, *life, number);
            scratch.requests.push(request(id, work.op, work.signaled));
            scratch.parts.push(parts);
            items.push_back(Some(work.local));
        }
        let count = scratch.requests.len();
        if count == 0 {
            return Ok(());
        }
        for at in 0..count {
            let parts = &mut scratch.parts[at];
            let (list, len) = (parts.items.as_mut_ptr(), parts.len as i32);
            let next = match at + 1 < count {
                // SAFETY: within the vector.
                true => unsafe { scratch.requests.as_mut_ptr().add(at + 1) },
                false => std::ptr::null_mut(),
            };
            let request = &mut scratch.requests[at];
            (request.sg_list, request.num_sge, request.next) = (list, len, next);
        }
        self.post_send(scratch.requests.as_mut_ptr())
    }

    /// Sends bytes from where they are, which may be used again at once; at most `inline` of [`Cap`].
    ///
    /// # Errors
    /// As for [`post`](Self::post).
    pub fn post_inline(&self, bytes: &[u8], signaled: bool) -> Result<()> {
        let mut posted = lock(&self.sends);
        if posted.items.len() >= self.cap.sends as usize || bytes.len() > self.cap.inline as usize {
            return Err(full("ibv_post_send"));
        }
        let id = WrId::new(Kind::Send, posted.life, posted.next());
        let mut part =
            sys::ibv_sge { addr: bytes.as_ptr() as u64, length: bytes.len() as u32, lkey: 0 };
        let mut request = request(id, Op::Send, signaled);
        request.send_flags |= sys::ibv_send_flags::IBV_SEND_INLINE.0;
        (request.sg_list, request.num_sge) = (&raw mut part, 1);
        posted.items.push_back(None);
        self.post_send(&raw mut request)
    }

    fn post_send(&self, first: *mut sys::ibv_send_wr) -> Result<()> {
        let mut bad = std::ptr::null_mut();
        // SAFETY: the requests and their parts live until the call returns, the memory that they
        // name until they complete: `posted` holds it (`Local`), or it was copied (inline).
        let returned = unsafe { sys::ibv_post_send(self.pair.as_ptr(), first, &raw mut bad) };
        check("ibv_post_send", returned)
    }

    /// Posts a receive.
    ///
    /// # Errors
    /// More than there is room for, or the device does not take it: the pair is of no use then.
    pub fn post_receive(&self, local: R) -> Result<()> {
        let mut posted = lock(&self.receives);
        if posted.items.len() >= self.cap.receives as usize {
            return Err(full("ibv_post_recv"));
        }
        let mut parts = Parts::new();
        local.parts(&mut parts);
        let id = WrId::new(Kind::Receive, posted.life, posted.next());
        let mut request = sys::ibv_recv_wr {
            wr_id: id.encode(),
            next: std::ptr::null_mut(),
            sg_list: parts.items.as_mut_ptr(),
            num_sge: parts.len as i32,
        };
        posted.items.push_back(local);
        let mut bad = std::ptr::null_mut();
        // SAFETY: as in `post_send`.
        let returned =
            unsafe { sys::ibv_post_recv(self.pair.as_ptr(), &raw mut request, &raw mut bad) };
        check("ibv_post_recv", returned)
    }

    /// Takes the requests of the send queue that a completion ends: its own, and those before it
    /// whose success is not told. `None` is given for those without memory.
    pub fn sent(&self, completion: &Completion, done: &mut Vec<(Option<S>, Status)>) {
        if completion.id.kind != Kind::Send {
            return;
        }
        let mut posted = lock(&self.sends);
        let count = posted.ended(completion.id);
        for at in 1..=count {
            let status = if at == count { completion.status } else { Status::Success };
            done.extend(posted.pop().map(|item| (item, status)));
        }
    }

    /// Takes the receive that a completion is of. `None` where it is of an earlier life.
    pub fn received(&self, completion: &Completion) -> Option<R> {
        let mut posted = lock(&self.receives);
        let is_first = completion.id.kind == Kind::Receive && posted.ended(completion.id) == 1;
        if is_first { posted.pop() } else { None }
    }
}

fn full(call: &'static str) -> Error {
    Error::new(call, std::io::Error::from_raw_os_error(libc::ENOSPC))
}

fn access(read: bool, write: bool) -> u32 {
    use sys::ibv_access_flags as f;
    let flag = |set: bool, flag: sys::ibv_access_flags| if set { flag.0 } else { 0 };
    flag(read, f::IBV_ACCESS_REMOTE_READ)
        | flag(write, f::IBV_ACCESS_REMOTE_WRITE)
        | flag(write, f::IBV_ACCESS_LOCAL_WRITE)
}

fn request(id: WrId, op: Op, signaled: bool) -> sys::ibv_send_wr {
    // SAFETY: plain data, for which zero is a value.
    let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
    request.wr_id = id.encode();
    if signaled {
        request.send_flags = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
    }
    use sys::ibv_wr_opcode as o;
    let (opcode, remote) = match op {
        Op::Send => (o::IBV_WR_SEND, None),
        Op::SendAfterReads => {
            request.send_flags |= sys::ibv_send_flags::IBV_SEND_FENCE.0;
            (o::IBV_WR_SEND, None)
        }
        Op::Read(remote) => (o::IBV_WR_RDMA_READ, Some(remote)),
        Op::Write(remote) => (o::IBV_WR_RDMA_WRITE, Some(remote)),
        Op::SendInvalidate(key) => {
            request.imm_data_invalidated_rkey_union.invalidated_rkey = key;
            (o::IBV_WR_SEND_WITH_INV, None)
        }
    };
    request.opcode = opcode;
    if let Some(remote) = remote {
        request.wr.rdma = sys::rdma_t { remote_addr: remote.address, rkey: remote.key };
    }
    request
}

impl<S: Local, R: Local> Drop for QueuePair<S, R> {
    fn drop(&mut self) {
        // What was posted is dropped after this, when the device is done with it.
        // SAFETY: created by `new`, destroyed once.
        tell("ibv_destroy_qp", unsafe { sys::ibv_destroy_qp(self.pair.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posted(numbers: std::ops::Range<u32>, life: u32) -> Posted<u32> {
        let (first, items) = (numbers.start, numbers.collect());
        Posted { items, first, life, scratch: Scratch::default() }
    }

    #[test]
    fn a_completion_ends_all_up_to_its_own() {
        let mut queue = posted(u32::MAX - 1..u32::MAX, 7);
        queue.items.extend([u32::MAX, 0, 1]);
        let id = |life, number| WrId::new(Kind::Send, life, number);
        assert_eq!(queue.ended(id(7, 0)), 3);
        assert_eq!(queue.ended(id(7, 2)), 0, "never posted");
        assert_eq!(queue.ended(id(7, u32::MAX - 2)), 0, "done before");
        assert_eq!(queue.ended(id(6, 0)), 0, "of an earlier life");
        assert_eq!(queue.pop(), Some(u32::MAX - 1));
        assert_eq!(queue.ended(id(7, 1)), 3);
        assert_eq!(queue.renew(), [u32::MAX, 0, 1]);
        assert_eq!((queue.next(), queue.life), (0, 8));
        assert_eq!(queue.ended(id(7, 0)), 0);
    }
}
