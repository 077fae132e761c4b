//! Devices, their ports and limits.

use super::completion::set_nonblocking;
use super::{Error, Result};
use rdma_mummy_sys as sys;
use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Mutex;

/// An open RDMA device. Devices that were opened stay open for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device(NonNull<sys::ibv_context>);

// SAFETY: libibverbs may be called from any thread (rdma-core, Documentation/libibverbs.md), and the
// context is never closed.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// What a device is and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name: `rxe0`, `mlx5_0`.
    pub name: String,
    /// Whether its first port is up.
    pub active: bool,
    /// Most bytes of a packet's payload on its first port.
    pub mtu: u32,
    /// READs that it can have under way on a queue pair as the one that asks.
    pub reads_out: u8,
    /// READs that it can have under way on a queue pair as the one that is asked.
    pub reads_in: u8,
    /// Most work requests of a queue.
    pub work_requests: u32,
    /// Most parts of a work request.
    pub parts: u32,
    /// Most entries of a completion queue.
    pub completions: u32,
}

/// What happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// It works no more, or was taken away.
    Gone,
    /// A port is up.
    PortUp,
    /// A port is down.
    PortDown,
    /// Anything else, in libibverbs' words.
    Other(String),
}

/// Readable when something has happened to the device. Whoever asks takes it from all others.
impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the context's, which is never closed.
        unsafe { BorrowedFd::borrow_raw((*self.context()).async_fd) }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

impl Device {
    /// The device behind a connection's context.
    ///
    /// # Safety
    /// `context` comes from librdmacm.
    pub(super) unsafe fn of(context: NonNull<sys::ibv_context>) -> Self {
        keep_open(context);
        Self(context)
    }

    pub(super) fn context(self) -> *mut sys::ibv_context {
        self.0.as_ptr()
    }

    /// Its name: `rxe0`, `mlx5_0`.
    #[must_use]
    pub fn name(self) -> String {
        // SAFETY: the context is open, and so is its device.
        unsafe { name_of((*self.context()).device) }
    }

    /// What happened to it, where something did; see [`AsFd`] for when to ask.
    ///
    /// # Errors
    /// The device is gone, and will tell nothing any more.
    pub fn next_event(self) -> Result<Option<DeviceEvent>> {
        use sys::ibv_event_type as t;
        set_nonblocking(self.as_fd()).map_err(|error| Error::new("fcntl", error))?;
        let mut event = MaybeUninit::<sys::ibv_async_event>::zeroed();
        // SAFETY: an open context, and room for what is written.
        if unsafe { sys::ibv_get_async_event(self.context(), event.as_mut_ptr()) } != 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(Error::new("ibv_get_async_event", error)),
            };
        }
        // SAFETY: zeroed, then filled.
        let mut event = unsafe { event.assume_init() };
        let kind = event.event_type;
        // SAFETY: what it is of is not destroyed before this: that waits for it.
        unsafe { sys::ibv_ack_async_event(&raw mut event) };
        // SAFETY: a constant text, of any number.
        let text = unsafe { CStr::from_ptr(sys::ibv_event_type_str(kind)) };
        let text = text.to_string_lossy().into_owned();
        Ok(Some(match kind {
            t::IBV_EVENT_DEVICE_FATAL => DeviceEvent::Gone,
            t::IBV_EVENT_PORT_ACTIVE => DeviceEvent::PortUp,
            t::IBV_EVENT_PORT_ERR => DeviceEvent::PortDown,
            _ => DeviceEvent::Other(text),
        }))
    }

    /// What it can do.
    ///
    /// # Errors
    /// The device does not answer.
    pub fn info(self) -> Result<DeviceInfo> {
        let mut device = MaybeUninit::<sys::ibv_device_attr>::zeroed();
        // SAFETY: an open context, and room for what is written.
        let returned = unsafe { sys::ibv_query_device(self.context(), device.as_mut_ptr()) };
        super::check("ibv_query_device", returned)?;
        // SAFETY: plain integers; zeroed, then filled.
        let device = unsafe { device.assume_init() };
        let mut port = MaybeUninit::<sys::ibv_port_attr>::zeroed();
        // SAFETY: as above. Ports count from 1.
        let returned = unsafe { sys::ibv_query_port(self.context(), 1, port.as_mut_ptr()) };
        super::check("ibv_query_port", returned)?;
        // SAFETY: as above.
        let port = unsafe { port.assume_init() };
        let number = |value: std::ffi::c_int| u32::try_from(value).unwrap_or(0);
        let depth = |value| u8::try_from(number(value)).unwrap_or(u8::MAX);
        Ok(DeviceInfo {
            name: self.name(),
            active: port.state == sys::ibv_port_state::IBV_PORT_ACTIVE,
            mtu: 128 << port.active_mtu,
            reads_out: depth(device.max_qp_init_rd_atom),
            reads_in: depth(device.max_qp_rd_atom),
            work_requests: number(device.max_qp_wr),
            parts: number(device.max_sge).min(number(device.max_sge_rd)),
            completions: number(device.max_cqe),
        })
    }
}

/// # Safety
/// `device` is a device of libibverbs.
unsafe fn name_of(device: *mut sys::ibv_device) -> String {
    // SAFETY: the caller's promise; the name is part of the device, and ends with a zero.
    let name = unsafe { sys::ibv_get_device_name(device) };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// Sees to it that librdmacm keeps a context open, which it may close with its last connection: it
/// counts every list of devices that was not given back.
fn keep_open(context: NonNull<sys::ibv_context>) {
    static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let mut kept = KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let address = context.as_ptr() as usize;
    if kept.contains(&address) {
        return;
    }
    // SAFETY: the list is never freed, which is the purpose; it is not even looked at.
    let list = unsafe { sys::rdma_get_devices(std::ptr::null_mut()) };
    if !list.is_null() {
        kept.push(address);
    }
}

/// The RDMA devices of this machine.
///
/// # Errors
/// rdma-core is not installed. An empty list is not an error, nor is a kernel without RDMA.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let mut count = 0;
    // SAFETY: room for the count.
    let list = unsafe { sys::ibv_get_device_list(&raw mut count) };
    let Some(list) = NonNull::new(list) else {
        let error = std::io::Error::last_os_error();
        return match error.raw_os_error() {
            // The kernel has no RDMA (libibverbs, ibverbs_init).
            Some(libc::ENOSYS) => Ok(Vec::new()),
            _ => Err(Error::new("ibv_get_device_list", error)),
        };
    };
    let mut found = Vec::new();
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has so many entries.
        let device = unsafe { *list.as_ptr().add(at) };
        // SAFETY: a device of the list, which is not freed yet.
        let context = NonNull::new(unsafe { sys::ibv_open_device(device) });
        if let Some(context) = context {
            let info = Device(context).info();
            // SAFETY: opened here, and nothing was made of it.
            unsafe { sys::ibv_close_device(context.as_ptr()) };
            found.extend(info);
        }
    }
    // SAFETY: from ibv_get_device_list, freed once.
    unsafe { sys::ibv_free_device_list(list.as_ptr()) };
    Ok(found)
}
