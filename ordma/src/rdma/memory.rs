//! Protection domains, memory regions, slabs of registered buffers.

use super::work::{Local, Parts, Remote};
use super::{Device, Result, pointer, tell};
use crate::memory::Mapping;
use rdma_mummy_sys as sys;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// A protection domain: queue pairs of one reach no memory of another.
pub struct Domain {
    domain: NonNull<sys::ibv_pd>,
    device: Device,
}

// SAFETY: libibverbs may be called from any thread; the domain is deallocated once, by drop.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Domain {
    /// A domain without anything in it.
    ///
    /// # Errors
    /// When the device has no more.
    pub fn new(device: Device) -> Result<Arc<Self>> {
        // SAFETY: an open context.
        let domain = pointer("ibv_alloc_pd", unsafe { sys::ibv_alloc_pd(device.context()) })?;
        Ok(Arc::new(Self { domain, device }))
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_pd {
        self.domain.as_ptr()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: nothing is left in it: queue pairs and regions hold it.
        tell("ibv_dealloc_pd", unsafe { sys::ibv_dealloc_pd(self.domain.as_ptr()) });
    }
}

/// Who may do what with a memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// This side's own requests, reading alone.
    Source,
    /// This side's own requests.
    Local,
    /// The peer reads; this side's requests read.
    RemoteRead,
    /// The peer reads and writes.
    RemoteWrite,
}

impl Access {
    fn flags(self) -> i32 {
        use sys::ibv_access_flags as f;
        let flags = match self {
            Self::Source => 0,
            Self::Local => f::IBV_ACCESS_LOCAL_WRITE.0,
            Self::RemoteRead => f::IBV_ACCESS_REMOTE_READ.0,
            Self::RemoteWrite => {
                f::IBV_ACCESS_LOCAL_WRITE.0
                    | f::IBV_ACCESS_REMOTE_READ.0
                    | f::IBV_ACCESS_REMOTE_WRITE.0
            }
        };
        i32::try_from(flags).unwrap_or(0)
    }
}

/// Memory that can be registered.
///
/// # Safety
/// The range stays mapped until the value is dropped; or, where the region is for local access
/// alone, as long as requests name it. (A region keeps the pages themselves: what else is mapped
/// there meanwhile is out of the device's reach.)
pub unsafe trait Memory: Send + Sync {
    /// Where it begins, and how many bytes it has.
    fn range(&self) -> (*const u8, usize);
}

// SAFETY: a mapping lives until it is dropped.
unsafe impl Memory for Mapping {
    fn range(&self) -> (*const u8, usize) {
        (self.address(0), self.len())
    }
}

/// Memory of this process that can be registered, as often as one likes and for whatever the peer
/// is to be allowed.
#[derive(Debug)]
pub struct Buffer(Mapping);

impl Buffer {
    /// So many zero bytes, which take no memory before something is copied in.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(len: usize) -> Result<Arc<Self>> {
        let mapping = Mapping::anonymous(len.max(1));
        Ok(Arc::new(Self(mapping.map_err(|error| super::Error::new("mmap", error))?)))
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Panics
    /// Where they lie outside of it.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        self.0.copy_in(offset, from);
    }

    /// Copies bytes out, from `offset` on, that the peer may be changing meanwhile.
    ///
    /// # Panics
    /// Where they lie outside of it.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.0.copy_out(offset, into);
    }
}

// SAFETY: it holds its mapping, and gives out no references to the bytes.
unsafe impl Memory for Buffer {
    fn range(&self) -> (*const u8, usize) {
        self.0.range()
    }
}

/// A memory region: memory that the device may use, which stays pinned in place.
pub struct Region {
    region: NonNull<sys::ibv_mr>,
    address: u64,
    len: usize,
    domain: Arc<Domain>,
    _memory: Arc<dyn Memory>,
}

// SAFETY: libibverbs may be called from any thread; the region is deregistered once, by drop.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Region {
    /// Registers memory. What it costs grows with the number of pages.
    ///
    /// # Errors
    /// When no more memory may be locked, or it is not of a kind that can be.
    pub fn new(domain: &Arc<Domain>, memory: Arc<dyn Memory>, access: Access) -> Result<Self> {
        let (base, len) = memory.range();
        // SAFETY: the range is mapped (`Memory`); what the device may do with it is what the users
        // of the memory allow for: see `Local` and `Access`.
        let region = unsafe {
            sys::ibv_reg_mr(domain.as_ptr(), base.cast_mut().cast(), len, access.flags())
        };
        let region = pointer("ibv_reg_mr", region)?;
        Ok(Self { region, address: base as u64, len, domain: Arc::clone(domain), _memory: memory })
    }

    /// Its memory from `offset` on, as the peer names it.
    #[must_use]
    pub fn remote(&self, offset: usize) -> Remote {
        // SAFETY: the region lives; its keys do not change.
        let key = unsafe { (*self.region.as_ptr()).rkey };
        Remote { address: self.address + offset as u64, key }
    }

    /// The key by which this side's requests name it.
    #[must_use]
    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.region.as_ptr()).lkey }
    }

    /// The address of its first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its domain.
    #[must_use]
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Returns when the device does not use the memory any more (for rxe: rxe_pool.c,
        // __rxe_cleanup).
        // SAFETY: registered by `new`, deregistered once.
        tell("ibv_dereg_mr", unsafe { sys::ibv_dereg_mr(self.region.as_ptr()) });
    }
}

/// A registered region that is divided into blocks of one size.
#[derive(Debug)]
pub struct Slab {
    region: Region,
    memory: Arc<Mapping>,
    block: usize,
    free: Mutex<Vec<u32>>,
}

impl Slab {
    /// A slab of `count` blocks of `block` bytes.
    ///
    /// # Errors
    /// When no more memory may be locked.
    pub fn new(
        domain: &Arc<Domain>,
        block: usize,
        count: u32,
        access: Access,
    ) -> Result<Arc<Self>> {
        let memory = Mapping::anonymous(block.max(1) * count.max(1) as usize)
            .map_err(|error| super::Error::new("mmap", error))?;
        let memory = Arc::new(memory);
        let region = Region::new(domain, Arc::<Mapping>::clone(&memory), access)?;
        let free = Mutex::new((0..count).rev().collect());
        Ok(Arc::new(Self { region, memory, block, free }))
    }

    /// Takes a block, with anything in it; `None` where all are taken.
    pub fn take(self: &Arc<Self>) -> Option<Block> {
        let index = self.free().pop()?;
        Some(Block { slab: Arc::clone(self), index, len: self.block })
    }

    /// Blocks that are not taken.
    pub fn available(&self) -> usize {
        self.free().len()
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block of a slab: a registered buffer. Back in the slab when dropped.
pub struct Block {
    slab: Arc<Slab>,
    index: u32,
    len: usize,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("index", &self.index).field("len", &self.len).finish()
    }
}

impl Block {
    fn start(&self) -> usize {
        self.index as usize * self.slab.block
    }

    /// Bytes that it holds, or is to hold.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slab.block
    }

    /// Sets how many bytes it holds; at most its capacity.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.slab.block);
    }

    /// The bytes. Not for slabs that the peer may write to.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let base = self.slab.memory.address(self.start());
        // SAFETY: a block is nobody else's: it was taken from the free list, and is not with the
        // device, which gets blocks by value. The peer writes to blocks of other slabs only.
        unsafe { std::slice::from_raw_parts(base, self.len) }
    }

    /// The bytes, to be changed. Not for slabs that the peer may write to.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let base = self.slab.memory.address(self.start()).cast_mut();
        // SAFETY: as above; the mapping is writable.
        unsafe { std::slice::from_raw_parts_mut(base, self.len) }
    }

    /// Copies bytes out, from `offset` on, that the peer may be changing meanwhile.
    ///
    /// # Panics
    /// Where they lie outside of the block.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        assert!(offset.checked_add(into.len()).is_some_and(|end| end <= self.slab.block));
        self.slab.memory.copy_out(self.start() + offset, into);
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Panics
    /// Where they lie outside of the block.
    pub fn copy_in(&mut self, offset: usize, from: &[u8]) {
        assert!(offset.checked_add(from.len()).is_some_and(|end| end <= self.slab.block));
        self.slab.memory.copy_in(self.start() + offset, from);
    }

    /// The block as the peer names it.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.slab.region.remote(self.start())
    }

    /// Names part of the block in a request that holds it.
    pub(crate) fn push_part(&self, parts: &mut Parts, offset: usize, len: usize) -> bool {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.slab.block);
        let address = self.slab.region.address() + (self.start() + offset) as u64;
        inside && parts.push(address, len as u32, self.slab.region.local_key())
    }
}

// SAFETY: the block lies in a registered region that it keeps, and is nobody else's.
unsafe impl Local for Block {
    fn parts(&self, parts: &mut Parts) {
        self.push_part(parts, 0, self.len);
    }
}

/// Part of a block, which nobody has any more as a whole. Back in the slab with its last part.
#[derive(Debug)]
pub struct Part {
    block: Arc<Block>,
    offset: usize,
    len: usize,
}

impl Block {
    /// Divides a block in two: what is before `at`, and what is from there to its length.
    #[must_use]
    pub fn split(self, at: usize) -> (Part, Part) {
        let len = self.len;
        let at = at.min(len);
        let block = Arc::new(self);
        let first = Part { block: Arc::clone(&block), offset: 0, len: at };
        (first, Part { block, offset: at, len: len - at })
    }
}

impl Part {
    /// The bytes. Not for slabs that the peer may write to.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let base = self.block.slab.memory.address(self.block.start() + self.offset);
        // SAFETY: as for a block; other parts of it are other bytes: see `split`.
        unsafe { std::slice::from_raw_parts(base, self.len) }
    }
}

// SAFETY: the part lies in a registered region that it keeps, and is nobody else's: other parts of
// the block are other bytes.
unsafe impl Local for Part {
    fn parts(&self, parts: &mut Parts) {
        self.block.push_part(parts, self.offset, self.len);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.slab.free().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_keeps_what_is_copied_in() {
        let buffer = Buffer::new(8192).unwrap();
        buffer.copy_in(4090, b"across pages");
        let mut found = [0; 13];
        buffer.copy_out(4089, &mut found);
        assert_eq!(&found, b"\0across pages");
        let (base, len) = buffer.range();
        assert_eq!((base.align_offset(4096), len), (0, 8192));
    }

    #[test]
    #[should_panic(expected = "end <= self.len")]
    fn nothing_is_copied_past_a_buffers_end() {
        Buffer::new(4096).unwrap().copy_in(4090, &[0; 7]);
    }
}
