//! Connections by address (`rdma_cm`).
//!
//! The queue pairs are not librdmacm's: it would give the peer of each the right to write, read and
//! change memory (kernel, drivers/infiniband/core/cm.c, `cm_init_qp_init_attr`), and its own waiting
//! times. They are taken from state to state here, with what `rdma_init_qp_attr` knows of the path.

use super::completion::set_nonblocking;
use super::{Device, Error, Result, check, pointer, tell};
use rdma_mummy_sys as sys;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Most bytes that a client can say when it connects.
pub const MAX_HELLO: usize = 56;
/// Most bytes of an answer to that which are looked at: those of an acceptance.
const MAX_PRIVATE: usize = 196;

/// Where events of connections come from. Its descriptor does not block.
pub struct EventChannel(NonNull<sys::rdma_event_channel>);

// SAFETY: librdmacm may be called from any thread; the channel is destroyed once, by drop.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

impl fmt::Debug for EventChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventChannel").field(&self.as_fd()).finish()
    }
}

/// Names a connection among those that live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdKey(usize);

/// What happened to a connection.
#[derive(Debug)]
pub struct Event {
    /// To which.
    pub id: IdKey,
    /// What.
    pub kind: EventKind,
    /// Why, as an errno or a reason of the connection manager, where something failed.
    pub status: i32,
    /// What the peer says with it; zeros may follow.
    pub private: Vec<u8>,
}

/// What can happen to a connection.
#[derive(Debug)]
pub enum EventKind {
    /// The address was found behind a device.
    AddressResolved,
    /// The way there was found.
    RouteResolved,
    /// A client wants to connect.
    Request {
        /// Its connection.
        id: Id,
        /// READs under way that it can answer, and those that it may ask for.
        depths: (u8, u8),
    },
    /// The server has accepted.
    Accepted {
        /// READs under way that the server can answer, and those that it may ask for.
        depths: (u8, u8),
    },
    /// The connection is made.
    Established,
    /// The server does not want the connection.
    Rejected,
    /// The connection could not be made.
    Failed(&'static str),
    /// The connection is over.
    Disconnected,
    /// Anything else.
    Other(u32),
}

impl EventChannel {
    /// A channel.
    ///
    /// # Errors
    /// rdma-core or the kernel's module are not there.
    pub fn new() -> Result<Arc<Self>> {
        // SAFETY: takes nothing.
        let channel = unsafe { sys::rdma_create_event_channel() };
        let channel = Self(pointer("rdma_create_event_channel", channel)?);
        set_nonblocking(channel.as_fd()).map_err(|error| Error::new("fcntl", error))?;
        Ok(Arc::new(channel))
    }

    /// Takes the next event; `None` where there is none.
    ///
    /// # Errors
    /// When descriptors or memory are short.
    pub fn next(self: &Arc<Self>) -> Result<Option<Event>> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the channel lives, and there is room for the answer.
        if unsafe { sys::rdma_get_cm_event(self.0.as_ptr(), &raw mut event) } != 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(Error::new("rdma_get_cm_event", error)),
            };
        }
        // SAFETY: an event that is not acknowledged yet.
        let read = unsafe { self.read(&*event) };
        // SAFETY: acknowledged once; nothing points into it any more.
        tell("rdma_ack_cm_event", unsafe { sys::rdma_ack_cm_event(event) });
        Ok(read)
    }

    /// # Safety
    /// The event comes from librdmacm and is not acknowledged yet.
    unsafe fn read(self: &Arc<Self>, event: &sys::rdma_cm_event) -> Option<Event> {
        use sys::rdma_cm_event_type as t;
        // SAFETY: connections are the only kind here, for which this is the one that is set; where
        // nothing is, it is zeros.
        let param = unsafe { &event.param.conn };
        let depths = (param.responder_resources, param.initiator_depth);
        let kind = match event.event {
            t::RDMA_CM_EVENT_ADDR_RESOLVED => EventKind::AddressResolved,
            t::RDMA_CM_EVENT_ROUTE_RESOLVED => EventKind::RouteResolved,
            t::RDMA_CM_EVENT_CONNECT_REQUEST => {
                let id = Id { id: NonNull::new(event.id)?, channel: Arc::clone(self) };
                EventKind::Request { id, depths }
            }
            t::RDMA_CM_EVENT_CONNECT_RESPONSE => EventKind::Accepted { depths },
            t::RDMA_CM_EVENT_ESTABLISHED => EventKind::Established,
            t::RDMA_CM_EVENT_REJECTED => EventKind::Rejected,
            t::RDMA_CM_EVENT_ADDR_ERROR => EventKind::Failed("the address cannot be resolved"),
            t::RDMA_CM_EVENT_ROUTE_ERROR => EventKind::Failed("there is no route to it"),
            t::RDMA_CM_EVENT_CONNECT_ERROR => EventKind::Failed("the connection failed"),
            t::RDMA_CM_EVENT_UNREACHABLE => EventKind::Failed("it does not answer"),
            t::RDMA_CM_EVENT_DISCONNECTED => EventKind::Disconnected,
            t::RDMA_CM_EVENT_DEVICE_REMOVAL => EventKind::Disconnected,
            other => EventKind::Other(other),
        };
        let len = usize::from(param.private_data_len).min(MAX_PRIVATE);
        let mut private = Vec::new();
        let carries = matches!(
            kind,
            EventKind::Request { .. } | EventKind::Accepted { .. } | EventKind::Rejected
        );
        if carries && !param.private_data.is_null() {
            // SAFETY: so many bytes come with the event.
            private.extend_from_slice(unsafe {
                std::slice::from_raw_parts(param.private_data.cast(), len)
            });
        }
        Some(Event { id: IdKey(event.id as usize), kind, status: event.status, private })
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the channel, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw((*self.0.as_ptr()).fd) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: no connection is left that uses it: each holds it.
        unsafe { sys::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// What the two sides of a connection tell each other when it is made.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionParameters<'a> {
    /// The number of this side's queue pair.
    pub pair: u32,
    /// READs under way that this side answers.
    pub reads_in: u8,
    /// READs under way that this side asks for.
    pub reads_out: u8,
    /// What to say with it: at most [`MAX_HELLO`] bytes of a client.
    pub private: &'a [u8],
}

impl ConnectionParameters<'_> {
    fn encode(&self) -> sys::rdma_conn_param {
        sys::rdma_conn_param {
            private_data: self.private.as_ptr().cast(),
            private_data_len: u8::try_from(self.private.len()).unwrap_or(u8::MAX),
            responder_resources: self.reads_in,
            initiator_depth: self.reads_out,
            flow_control: 1,
            retry_count: 6,
            rnr_retry_count: 7,
            srq: 0,
            qp_num: self.pair,
        }
    }
}

/// A connection, or what listens for some.
pub struct Id {
    id: NonNull<sys::rdma_cm_id>,
    channel: Arc<EventChannel>,
}

// SAFETY: librdmacm may be called from any thread; the id is destroyed once, by drop.
unsafe impl Send for Id {}
// SAFETY: as above.
unsafe impl Sync for Id {}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Id").field(&self.key()).finish()
    }
}

impl Id {
    /// A connection to be, whose events come from the channel.
    ///
    /// # Errors
    /// When descriptors or memory are short.
    pub fn new(channel: &Arc<EventChannel>) -> Result<Self> {
        destroy_parked();
        let mut id = std::ptr::null_mut();
        // SAFETY: the channel lives, and the id holds it from now on.
        let returned = unsafe {
            sys::rdma_create_id(
                channel.0.as_ptr(),
                &raw mut id,
                std::ptr::null_mut(),
                sys::rdma_port_space::RDMA_PS_TCP,
            )
        };
        check("rdma_create_id", returned)?;
        Ok(Self { id: pointer("rdma_create_id", id)?, channel: Arc::clone(channel) })
    }

    /// By which events name it.
    #[must_use]
    pub fn key(&self) -> IdKey {
        IdKey(self.id.as_ptr() as usize)
    }

    /// The channel of its events.
    #[must_use]
    pub fn channel(&self) -> &Arc<EventChannel> {
        &self.channel
    }

    /// Its device, where it is known yet.
    #[must_use]
    pub fn device(&self) -> Option<Device> {
        // SAFETY: the id lives.
        let context = NonNull::new(unsafe { (*self.id.as_ptr()).verbs })?;
        // SAFETY: librdmacm's.
        Some(unsafe { Device::of(context) })
    }

    /// Takes an address of this host.
    ///
    /// # Errors
    /// It is none, or taken.
    pub fn bind(&self, address: SocketAddr) -> Result<()> {
        let mut address = Address::of(address);
        // SAFETY: id and address live.
        let returned = unsafe { sys::rdma_bind_addr(self.id.as_ptr(), address.as_ptr()) };
        check("rdma_bind_addr", returned)
    }

    /// Begins to listen: [`EventKind::Request`] comes for each client.
    ///
    /// # Errors
    /// The address is taken.
    pub fn listen(&self, backlog: i32) -> Result<()> {
        // SAFETY: the id lives.
        check("rdma_listen", unsafe { sys::rdma_listen(self.id.as_ptr(), backlog) })
    }

    /// The port that was taken.
    #[must_use]
    pub fn port(&self) -> u16 {
        // SAFETY: the id lives. The port is at the same place in addresses of both families.
        u16::from_be(unsafe { (*self.id.as_ptr()).route.addr.src_addr_union.src_sin.sin_port })
    }

    /// The peer's address, as far as it is known.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        // SAFETY: the id lives; the address is of the family that it says.
        unsafe {
            let address = &(*self.id.as_ptr()).route.addr.dst_addr_union;
            match i32::from(address.dst_addr.sa_family) {
                libc::AF_INET => {
                    let v4 = address.dst_sin;
                    let ip = std::net::Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                    Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))))
                }
                libc::AF_INET6 => {
                    let v6 = address.dst_sin6;
                    let ip = std::net::Ipv6Addr::from(v6.sin6_addr.s6_addr);
                    Some(SocketAddr::from((ip, u16::from_be(v6.sin6_port))))
                }
                _ => None,
            }
        }
    }

    /// Looks for the device behind which an address is.
    ///
    /// # Errors
    /// There is none. Other failures come as events.
    pub fn resolve_address(&self, address: SocketAddr, timeout: Duration) -> Result<()> {
        let mut address = Address::of(address);
        // SAFETY: id and address live.
        let returned = unsafe {
            sys::rdma_resolve_addr(
                self.id.as_ptr(),
                std::ptr::null_mut(),
                address.as_ptr(),
                millis(timeout),
            )
        };
        check("rdma_resolve_addr", returned)
    }

    /// Looks for the way there.
    ///
    /// # Errors
    /// Failures that do not come as events.
    pub fn resolve_route(&self, timeout: Duration) -> Result<()> {
        // SAFETY: the id lives.
        let returned = unsafe { sys::rdma_resolve_route(self.id.as_ptr(), millis(timeout)) };
        check("rdma_resolve_route", returned)
    }

    /// Asks the server for a connection.
    ///
    /// # Errors
    /// Failures that do not come as events.
    pub fn connect(&self, parameters: ConnectionParameters<'_>) -> Result<()> {
        let mut param = parameters.encode();
        // SAFETY: the id lives, and so do the bytes that go along.
        check("rdma_connect", unsafe { sys::rdma_connect(self.id.as_ptr(), &raw mut param) })
    }

    /// Tells the server that the connection is made.
    ///
    /// # Errors
    /// It is gone.
    pub fn establish(&self) -> Result<()> {
        // SAFETY: the id lives.
        check("rdma_establish", unsafe { sys::rdma_establish(self.id.as_ptr()) })
    }

    /// Accepts a client's request.
    ///
    /// # Errors
    /// It is gone.
    pub fn accept(&self, parameters: ConnectionParameters<'_>) -> Result<()> {
        let mut param = parameters.encode();
        // SAFETY: as in `connect`.
        check("rdma_accept", unsafe { sys::rdma_accept(self.id.as_ptr(), &raw mut param) })
    }

    /// Refuses a client's request, and says why.
    ///
    /// # Errors
    /// It is gone.
    pub fn reject(&self, private: &[u8]) -> Result<()> {
        let len = u8::try_from(private.len()).unwrap_or(u8::MAX);
        // SAFETY: as in `connect`.
        let returned = unsafe { sys::rdma_reject(self.id.as_ptr(), private.as_ptr().cast(), len) };
        check("rdma_reject", returned)
    }

    /// What a queue pair needs to know of the path for the way into a state, and which fields.
    pub(super) fn attributes(
        &self,
        state: sys::ibv_qp_state::Type,
    ) -> Result<(sys::ibv_qp_attr, i32)> {
        // SAFETY: plain data, for which zero is a value.
        let mut attr: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
        let mut mask = 0;
        attr.qp_state = state;
        // SAFETY: the id lives, and there is room for the answers.
        let returned =
            unsafe { sys::rdma_init_qp_attr(self.id.as_ptr(), &raw mut attr, &raw mut mask) };
        check("rdma_init_qp_attr", returned)?;
        Ok((attr, mask))
    }
}

/// Connections that are over, and whose peer cannot be told now.
static PARKED: Mutex<Parking> = Mutex::new(Parking { ids: Vec::new(), watched: false });
/// How often it is looked whether the peers of parked connections can be told.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug)]
struct Parking {
    ids: Vec<Parked>,
    /// There is a thread that looks after them. It ends with the last of them.
    watched: bool,
}

/// A connection that is to be destroyed, and its channel.
struct Parked(NonNull<sys::rdma_cm_id>, #[expect(dead_code, reason = "kept")] Arc<EventChannel>);

// SAFETY: librdmacm may be called from any thread.
unsafe impl Send for Parked {}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Parked").field(&self.0).finish()
    }
}

impl Parked {
    fn can_be_told(&self) -> bool {
        // SAFETY: the id lives.
        let context = NonNull::new(unsafe { (*self.0.as_ptr()).verbs });
        // SAFETY: librdmacm's.
        let device = context.map(|context| unsafe { Device::of(context) });
        // Where the device does not even answer, nothing is to be waited for.
        device.and_then(|device| device.info().ok()).is_none_or(|info| info.active)
    }

    fn destroy(self) {
        // SAFETY: created once, destroyed once; all its events are acknowledged.
        tell("rdma_destroy_id", unsafe { sys::rdma_destroy_id(self.0.as_ptr()) });
    }
}

fn parking() -> std::sync::MutexGuard<'static, Parking> {
    PARKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a connection until its port is up again. The thread that looks for that is a child of the one
/// that parks, so that it has its credential: the kernel takes calls from no other.
fn park(id: Parked) {
    let mut parking = parking();
    parking.ids.push(id);
    if !parking.watched {
        let thread = std::thread::Builder::new().name("dafs-parked".to_owned());
        // Where there can be no thread, the next connection that is made or parked sees to it.
        parking.watched = thread.spawn(watch_parked).is_ok();
    }
}

fn watch_parked() {
    loop {
        std::thread::sleep(LOOK);
        destroy_parked();
        let mut parking = parking();
        if parking.ids.is_empty() {
            parking.watched = false;
            return;
        }
    }
}

/// Destroys parked connections whose port is up again.
fn destroy_parked() {
    let ready: Vec<_> = parking().ids.extract_if(.., |parked| parked.can_be_told()).collect();
    ready.into_iter().for_each(Parked::destroy);
}

impl Drop for Id {
    /// Destroys the connection, of which the kernel tells the peer. Where the port is down it waits
    /// until that is up: on soft-RoCE, a message of the connection manager that cannot be sent fails
    /// the queue pair that carries them all, for good (rxe_req.c, `rxe_requester`).
    fn drop(&mut self) {
        let parked = Parked(self.id, Arc::clone(&self.channel));
        if parked.can_be_told() { parked.destroy() } else { park(parked) }
    }
}

fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis().max(1)).unwrap_or(i32::MAX)
}

/// A socket address in the form that C takes.
union Address {
    any: libc::sockaddr,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Address {
    fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self {
                v4: libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                },
            },
            SocketAddr::V6(address) => Self {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                },
            },
        }
    }

    fn as_ptr(&mut self) -> *mut libc::sockaddr {
        (self as *mut Self).cast()
    }
}

const _: () = assert!(size_of::<libc::sockaddr>() <= size_of::<libc::sockaddr_in6>());

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the family is at the same place in all of them.
        write!(f, "Address(family {})", unsafe { self.any.sa_family })
    }
}
