//! Verbs, safe to use: a thin layer over rdma-core.
//!
//! rdma-core is loaded when the process starts, where it is there: the same binary runs on machines
//! without it, and [`devices`] says so. What the layer sees to:
//!
//! - Drop order: queue pairs hold their completion queues and protection domain, regions their
//!   domain and memory. Whatever is dropped first, the device lets go in the right order.
//! - Memory that the device may use belongs to it: what a work request reads or writes is given away
//!   when the request is posted ([`Local`]), and comes back with its completion, or when the queue
//!   pair has been reset or destroyed. It cannot be posted twice or touched meanwhile.
//! - Completions are told apart by what they are of ([`WrId`]): those of an earlier life of a queue
//!   pair, which has been reset since, are of nothing.
//!
//! | module | what it does |
//! |---|---|
//! | `device` | devices, their ports and limits |
//! | `memory` | protection domains, memory that can be registered, regions, slabs |
//! | `completion` | completion queues and the channels that tell of them |
//! | `work` | work requests: what they name, and how their completions are told apart |
//! | `pair` | reliable connected queue pairs |
//! | `cm` | connections by address (`rdma_cm`) |

mod cm;
mod completion;
mod device;
mod memory;
mod pair;
mod work;

pub use cm::{ConnectionParameters, Event, EventChannel, EventKind, Id, IdKey, MAX_HELLO};
pub use completion::{Channel, Completion, CompletionQueue, Status, Told};
pub use device::{Device, DeviceEvent, DeviceInfo, devices};
pub use memory::{Access, Block, Buffer, Domain, Memory, Part, Region, Slab};
pub use pair::{Cap, Flushed, QueuePair, Tuning};
pub use work::{Kind, Local, Op, Parts, Remote, Work, WrId};

use std::ffi::c_int;
use std::io;

/// What a call of rdma-core came to: which, why, and what helps.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {error}{advice}")]
pub struct Error {
    /// The C function.
    pub call: &'static str,
    /// What it returned.
    pub error: io::Error,
    /// What to do about it, with a colon or nothing.
    advice: &'static str,
}

/// What comes of a call of rdma-core.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(call: &'static str, error: io::Error) -> Self {
        let advice = match (call, error.raw_os_error()) {
            ("ibv_reg_mr", Some(libc::ENOMEM)) => {
                ": no more memory may be locked; raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=, \
                 --ulimit memlock=-1)"
            }
            ("ibv_create_qp" | "ibv_create_cq", Some(libc::ENOMEM)) => {
                ": the device or the memory that may be locked (ulimit -l) is exhausted"
            }
            ("rdma_create_event_channel", Some(libc::ENODEV | libc::ENOENT)) => {
                ": /dev/infiniband/rdma_cm is not there; load the module rdma_ucm, and give \
                 containers the device"
            }
            (_, Some(libc::EOPNOTSUPP)) => {
                ": rdma-core (libibverbs.so.1, librdmacm.so.1) is not installed"
            }
            ("rdma_resolve_addr" | "rdma_bind_addr", Some(libc::ENODEV)) => {
                ": the address is not one of an RDMA device's port"
            }
            _ => "",
        };
        Self { call, error, advice }
    }

    fn last(call: &'static str) -> Self {
        Self::new(call, io::Error::last_os_error())
    }
}

/// For functions that return an errno.
fn check(call: &'static str, returned: c_int) -> Result<()> {
    match returned {
        0 => Ok(()),
        // Some return -1 and set errno all the same.
        -1 => Err(Error::last(call)),
        code => Err(Error::new(call, io::Error::from_raw_os_error(code.abs()))),
    }
}

/// For functions that return a pointer, or null and errno.
fn pointer<T>(call: &'static str, returned: *mut T) -> Result<std::ptr::NonNull<T>> {
    std::ptr::NonNull::new(returned).ok_or_else(|| Error::last(call))
}

/// Tells of a failed clean-up: nothing can be done about it.
fn tell(call: &'static str, returned: c_int) {
    if let Err(error) = check(call, returned) {
        tracing::error!(%error, "an RDMA resource is left behind");
    }
}
