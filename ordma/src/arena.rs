//! The arena: chunks of exported memory, and the slots in them.
//!
//! The arena hands out slots and generations; which page lives where, and which one has to go, is
//! its user's business. A slot is *killed* before its page may live elsewhere, differ or end.

use crate::memory::{Mapping, MemoryFile, publish};
use crate::slot::{FOOTER_LEN, generation_of};
use crate::{ChunkId, schedule_point};
use arc_swap::ArcSwap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Payload bytes of a chunk unless configured otherwise: 64 MiB.
pub const DEFAULT_CHUNK_BYTES: usize = 64 << 20;

/// Sizes of a chunk. Payloads come first, page-aligned; the footers lie side by side behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a page: a power of two, 4 KiB to 64 KiB.
    pub page_size: usize,
    /// Slots of a chunk.
    pub slots: u32,
}

impl Geometry {
    /// The geometry of chunks with `chunk_bytes` of payloads.
    ///
    /// # Errors
    /// A sentence that names what is wrong where the page size is not a power of two between 4 KiB
    /// and 64 KiB, or the chunk does not hold a whole number of pages between 1 and 2^20.
    pub fn new(page_size: usize, chunk_bytes: usize) -> Result<Self, String> {
        if !page_size.is_power_of_two() || !(4096..=65536).contains(&page_size) {
            return Err(format!(
                "page size {page_size}: must be 4096, 8192, 16384, 32768 or 65536"
            ));
        }
        if chunk_bytes == 0
            || !chunk_bytes.is_multiple_of(page_size)
            || chunk_bytes / page_size > 1 << 20
        {
            return Err(format!(
                "chunk of {chunk_bytes} bytes: must be a whole number of pages, at most 2^20"
            ));
        }
        Ok(Self { page_size, slots: u32::try_from(chunk_bytes / page_size).unwrap_or(u32::MAX) })
    }

    /// Bytes of memory that a chunk takes, footers included.
    #[must_use]
    pub fn chunk_len(&self) -> usize {
        self.slots as usize * (self.page_size + FOOTER_LEN)
    }

    /// Where in a chunk a slot's payload begins.
    #[must_use]
    pub fn payload_at(&self, slot: u32) -> usize {
        slot as usize * self.page_size
    }

    /// Where in a chunk a slot's footer begins.
    #[must_use]
    pub fn footer_at(&self, slot: u32) -> usize {
        self.slots as usize * self.page_size + slot as usize * FOOTER_LEN
    }
}

/// Who a chunk's pages are given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// Everyone who may read one-sidedly at all: pages that are sealed, or need no protection.
    None,
    /// Who shows a right tag with the request: pages in the clear at level `keyed`. The chunk is
    /// never handed over as memory.
    Tags,
}

/// 64 MiB of payloads and then their footers: one memory region, one memfd, one export.
#[derive(Debug)]
pub struct Chunk {
    id: ChunkId,
    guard: Guard,
    geometry: Geometry,
    memory: Mapping,
    file: MemoryFile,
}

impl Chunk {
    fn create(id: ChunkId, guard: Guard, geometry: Geometry) -> io::Result<Self> {
        let (file, memory) = MemoryFile::create("dafs-chunk", geometry.chunk_len())?;
        Ok(Self { id, guard, geometry, memory, file })
    }

    /// Who its pages are given to.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.guard
    }

    /// The chunk's name.
    #[must_use]
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// The chunk's sizes.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A read-only descriptor of the chunk's memory, sealed so that its holder can neither write
    /// nor resize it.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn reader(&self) -> io::Result<OwnedFd> {
        self.file.reader()
    }

    /// Copies a slot's payload and footer out, without judging them; `false` where the chunk has no
    /// such slot. Safe at any time: the copy may be torn, and [`crate::slot::accept`] will tell.
    ///
    /// # Panics
    /// If `payload` is not of page size.
    pub fn copy_out(&self, slot: u32, payload: &mut [u8], footer: &mut [u8; FOOTER_LEN]) -> bool {
        assert_eq!(payload.len(), self.geometry.page_size);
        copy_slot(&self.memory, self.geometry, slot, payload, footer)
    }

    /// Copies a slot's footer out; `None` where the chunk has no such slot.
    #[must_use]
    pub fn footer(&self, slot: u32) -> Option<[u8; FOOTER_LEN]> {
        (slot < self.geometry.slots).then(|| self.read_footer(slot))
    }

    fn read_footer(&self, slot: u32) -> [u8; FOOTER_LEN] {
        let mut footer = [0; FOOTER_LEN];
        self.memory.copy_words_out(self.geometry.footer_at(slot), &mut footer);
        footer
    }

    /// The address of a slot's payload, for a system call that reads it. Good while the chunk lives.
    ///
    /// # Panics
    /// If the chunk has no such slot.
    pub(crate) fn payload_address(&self, slot: u32) -> *const u8 {
        assert!(slot < self.geometry.slots);
        self.memory.address(self.geometry.payload_at(slot))
    }

    /// All of the chunk's memory, for an engine that registers it. Good while the chunk lives.
    pub(crate) fn memory_range(&self) -> (*const u8, usize) {
        (self.memory.address(0), self.memory.len())
    }

    /// Writes a page into a slot: the payload, then the footer, its generation last. Readers see
    /// the old page, a torn one, or the new one.
    ///
    /// Only the slot's owner may call it, one at a time.
    ///
    /// # Panics
    /// If the payload is not of page size or the chunk has no such slot.
    pub fn write(&self, slot: u32, payload: &[u8], footer: &[u8; FOOTER_LEN]) {
        assert_eq!(payload.len(), self.geometry.page_size);
        assert!(slot < self.geometry.slots);
        let at = self.geometry.payload_at(slot);
        let (first, second) = payload.split_at(payload.len() / 2);
        schedule_point("slot: payload");
        self.memory.copy_in(at, first);
        schedule_point("slot: payload, second half");
        self.memory.copy_in(at + first.len(), second);
        schedule_point("slot: footer");
        let at = self.geometry.footer_at(slot);
        self.memory.copy_in(at, &footer[..32]);
        self.memory.copy_in(at + 40, &footer[40..]);
        schedule_point("slot: generation");
        publish(self.memory.word(at + 32), generation_of(footer));
    }

    /// Kills a slot: from now on every reader finds it stale. Idempotent.
    ///
    /// # Panics
    /// If the chunk has no such slot.
    pub fn kill(&self, slot: u32) {
        assert!(slot < self.geometry.slots);
        schedule_point("slot: kill");
        publish(self.memory.word(self.geometry.footer_at(slot) + 32), 0);
    }
}

/// Copies a slot out of a chunk's mapping; `false` where there is no such slot. The footer comes
/// first, so that waiting for its bytes overlaps with the long copy: the check over both tells in
/// any order whether they belong together.
fn copy_slot(
    memory: &Mapping,
    geometry: Geometry,
    slot: u32,
    payload: &mut [u8],
    footer: &mut [u8; FOOTER_LEN],
) -> bool {
    if slot >= geometry.slots {
        return false;
    }
    schedule_point("read: footer");
    memory.copy_words_out(geometry.footer_at(slot), footer);
    let at = geometry.payload_at(slot);
    schedule_point("read: payload");
    if cfg!(feature = "explore") {
        // In two halves, so that a test can have the page change in between.
        let (first, second) = payload.split_at_mut(geometry.page_size / 2);
        memory.copy_out(at, first);
        schedule_point("read: payload, second half");
        memory.copy_out(at + first.len(), second);
    } else {
        memory.copy_out(at, payload);
    }
    true
}

/// A peer's chunk, mapped for reading.
#[derive(Debug)]
pub struct PeerChunk {
    geometry: Geometry,
    memory: Mapping,
}

impl PeerChunk {
    /// Maps the chunk that a peer handed over.
    ///
    /// # Errors
    /// When the file is shorter than the geometry says, not sealed against shrinking, or cannot be
    /// mapped.
    pub fn map(file: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Self> {
        Ok(Self { geometry, memory: Mapping::of_peer(file, geometry.chunk_len())? })
    }

    /// The chunk's sizes.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Like [`Chunk::copy_out`].
    ///
    /// # Panics
    /// If `payload` is not of page size.
    pub fn copy_out(&self, slot: u32, payload: &mut [u8], footer: &mut [u8; FOOTER_LEN]) -> bool {
        assert_eq!(payload.len(), self.geometry.page_size);
        copy_slot(&self.memory, self.geometry, slot, payload, footer)
    }
}

/// A slot handed out by the arena. Whoever holds it owns the slot until [`Arena::free`], but for
/// clones that are only read by: what those find is for the reader to judge.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The chunk it lies in.
    pub chunk: Arc<Chunk>,
    /// Its number within the chunk.
    pub index: u32,
}

impl Slot {
    /// Writes a page into the slot; see [`Chunk::write`].
    pub fn write(&self, payload: &[u8], footer: &[u8; FOOTER_LEN]) {
        self.chunk.write(self.index, payload, footer);
    }

    /// Kills the slot; see [`Chunk::kill`].
    pub fn kill(&self) {
        self.chunk.kill(self.index);
    }

    /// Copies the slot's footer out. Not torn when the owner calls it.
    #[must_use]
    pub fn footer(&self) -> [u8; FOOTER_LEN] {
        self.chunk.read_footer(self.index)
    }

    /// Copies the slot out; see [`Chunk::copy_out`]. Not torn when the owner calls it.
    pub fn copy_out(&self, payload: &mut [u8], footer: &mut [u8; FOOTER_LEN]) {
        self.chunk.copy_out(self.index, payload, footer);
    }
}

/// Copies slots of one geometry out, without judging them: first all footers, then all payloads.
pub(crate) fn copy_slots(slots: &[Slot]) -> Vec<u8> {
    let page = slots.first().map_or(0, |slot| slot.chunk.geometry.page_size);
    let mut bytes = vec![0; slots.len() * (FOOTER_LEN + page)];
    let (footers, payloads) = bytes.split_at_mut(slots.len() * FOOTER_LEN);
    let places = footers.as_chunks_mut().0.iter_mut().zip(payloads.chunks_mut(page.max(1)));
    for (slot, (footer, payload)) in slots.iter().zip(places) {
        slot.copy_out(payload, footer);
    }
    bytes
}

/// All chunks of a server.
#[derive(Debug)]
pub struct Arena {
    geometry: Geometry,
    /// By chunk id; `None` once dropped. Ids are never reused within a boot.
    chunks: ArcSwap<Vec<Option<Arc<Chunk>>>>,
    free: Mutex<Free>,
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Free {
    /// Of chunks without a guard.
    slots: Vec<Slot>,
    /// Of chunks with [`Guard::Tags`].
    tagged: Vec<Slot>,
    /// Chunks that are dropped but still kept alive by a peer's mapping.
    dropped: Vec<Arc<Chunk>>,
    /// A chunk that is being retired: its slots are not handed out.
    retiring: Option<ChunkId>,
    /// Slots of that chunk that are free.
    set_aside: Vec<Slot>,
}

impl Free {
    fn of(&mut self, guard: Guard) -> &mut Vec<Slot> {
        match guard {
            Guard::None => &mut self.slots,
            Guard::Tags => &mut self.tagged,
        }
    }
}

impl Arena {
    /// An arena without chunks.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            chunks: ArcSwap::default(),
            free: Mutex::default(),
            generation: AtomicU64::new(1),
        }
    }

    /// The sizes of its chunks.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A generation never handed out before in this boot, and not 0.
    #[must_use]
    pub fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a chunk and puts its slots on the free list. Its listeners must [`Listener::export`] it
    /// before the first reference to it is sent.
    ///
    /// # Errors
    /// When memory or descriptors are short; nothing has changed then.
    ///
    /// [`Listener::export`]: crate::Listener::export
    pub fn grow(&self, guard: Guard) -> io::Result<Arc<Chunk>> {
        let mut free = self.lock();
        let mut chunks = Vec::clone(&self.chunks.load());
        let id = ChunkId::try_from(chunks.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let chunk = Arc::new(Chunk::create(id, guard, self.geometry)?);
        chunks.push(Some(Arc::clone(&chunk)));
        self.chunks.store(Arc::new(chunks));
        let slots = (0..self.geometry.slots).rev();
        free.of(guard).extend(slots.map(|index| Slot { chunk: Arc::clone(&chunk), index }));
        Ok(chunk)
    }

    /// Takes a free slot of a chunk with this guard.
    #[must_use]
    pub fn take(&self, guard: Guard) -> Option<Slot> {
        self.lock().of(guard).pop()
    }

    /// Gives a slot back. It must have been killed, or never been written since it was taken.
    pub fn free(&self, slot: Slot) {
        let mut free = self.lock();
        if free.retiring == Some(slot.chunk.id) {
            free.set_aside.push(slot);
        } else if self.chunk(slot.chunk.id).is_some() {
            free.of(slot.chunk.guard).push(slot);
        }
    }

    /// Free slots at the moment.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        let free = self.lock();
        free.slots.len() + free.tagged.len()
    }

    /// The chunk with this id, if it is there.
    #[must_use]
    pub fn chunk(&self, id: ChunkId) -> Option<Arc<Chunk>> {
        self.chunks.load().get(id as usize)?.clone()
    }

    /// All chunks that are there.
    #[must_use]
    pub fn chunks(&self) -> Vec<Arc<Chunk>> {
        self.chunks.load().iter().flatten().cloned().collect()
    }

    /// Begins to retire a chunk: no slot of it is handed out from now on. One at a time: `false`
    /// where another one is being retired or there is no such chunk.
    pub fn begin_retire(&self, id: ChunkId) -> bool {
        let mut free = self.lock();
        if free.retiring.is_some() || self.chunk(id).is_none() {
            return false;
        }
        free.retiring = Some(id);
        let Free { slots, tagged, set_aside, .. } = &mut *free;
        for slots in [slots, tagged] {
            set_aside.extend(slots.extract_if(.., |slot| slot.chunk.id == id));
        }
        true
    }

    /// Gives up what [`begin_retire`](Self::begin_retire) began: slots that were free then, or were
    /// given back meanwhile, are free again.
    pub fn cancel_retire(&self, id: ChunkId) {
        let mut free = self.lock();
        if free.retiring == Some(id) {
            free.retiring = None;
            let set_aside = std::mem::take(&mut free.set_aside);
            set_aside.into_iter().for_each(|slot| free.of(slot.chunk.guard).push(slot));
        }
    }

    /// Whether a page may be put into the chunk: it is there and not being retired.
    #[must_use]
    pub fn accepts(&self, id: ChunkId) -> bool {
        self.lock().retiring != Some(id) && self.chunk(id).is_some()
    }

    /// Ends what [`begin_retire`](Self::begin_retire) began: every slot of the chunk is killed once
    /// more and the chunk is gone. Its memory counts as used until no peer maps it any more.
    pub fn finish_retire(&self, id: ChunkId) {
        let mut free = self.lock();
        free.retiring = None;
        free.set_aside = Vec::new();
        let mut chunks = Vec::clone(&self.chunks.load());
        let Some(chunk) = chunks.get_mut(id as usize).and_then(Option::take) else { return };
        self.chunks.store(Arc::new(chunks));
        (0..self.geometry.slots).for_each(|slot| chunk.kill(slot));
        free.dropped.push(chunk);
    }

    /// Bytes of exported memory in existence: chunks that are there, and dropped ones that a peer
    /// or a read under way still maps. Dropped chunks that no one uses any more are released here.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let mut free = self.lock();
        free.dropped.retain(|chunk| Arc::strong_count(chunk) > 1 || chunk.file.in_use());
        let live = self.chunks.load().iter().flatten().count();
        (live + free.dropped.len()) * self.geometry.chunk_len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::{Footer, Kind, accept};
    use crate::{AccessFault, RemoteRef};
    use dafs_keys::FileKey;
    use std::os::fd::{AsFd, AsRawFd};

    fn arena() -> Arena {
        let arena = Arena::new(Geometry::new(4096, 4 * 4096).unwrap());
        arena.grow(Guard::None).unwrap();
        arena
    }

    fn fill(arena: &Arena, slot: &Slot, byte: u8) -> RemoteRef {
        let generation = arena.next_generation();
        let footer = Footer {
            kind: Kind::Data,
            sealed: false,
            epoch: 0,
            last: false,
            valid: 4096,
            file: 5,
            block: 6,
            generation,
            version: 0,
        };
        let payload = [byte; 4096];
        slot.write(&payload, &footer.encode(&payload));
        RemoteRef { chunk: slot.chunk.id(), slot: slot.index, file: 5, block: 6, generation }
    }

    fn read(chunk: &Chunk, reference: &RemoteRef) -> Result<u8, AccessFault> {
        let (mut payload, mut footer) = ([0; 4096], [0; FOOTER_LEN]);
        assert!(chunk.copy_out(reference.slot, &mut payload, &mut footer));
        accept(&footer, &mut payload, reference, 0, &FileKey::Clear).map(|_| payload[0])
    }

    #[test]
    fn a_retirement_that_is_given_up_loses_no_slot() {
        let arena = arena();
        let (held, back) = (arena.take(Guard::None).unwrap(), arena.take(Guard::None).unwrap());
        let id = held.chunk.id();
        assert!(arena.begin_retire(id));
        assert!(arena.take(Guard::None).is_none());
        arena.free(back);
        assert_eq!(arena.free_slots(), 0);
        arena.cancel_retire(id);
        assert_eq!(arena.free_slots(), 3);
        arena.free(held);
        assert_eq!(arena.free_slots(), 4);
    }

    #[test]
    fn a_page_is_read_until_it_is_killed() {
        let arena = arena();
        let slot = arena.take(Guard::None).unwrap();
        let reference = fill(&arena, &slot, 3);
        assert_eq!(read(&slot.chunk, &reference), Ok(3));
        slot.kill();
        assert_eq!(read(&slot.chunk, &reference), Err(AccessFault::Stale));
        let newer = fill(&arena, &slot, 4);
        assert_eq!(read(&slot.chunk, &reference), Err(AccessFault::Stale));
        assert_eq!(read(&slot.chunk, &newer), Ok(4));
    }

    #[test]
    fn a_reader_sees_the_same_and_can_do_nothing_to_it() {
        let arena = arena();
        let slot = arena.take(Guard::None).unwrap();
        let reference = fill(&arena, &slot, 3);
        let fd = slot.chunk.reader().unwrap();
        let peer = PeerChunk::map(fd.as_fd(), arena.geometry()).unwrap();
        let (mut payload, mut footer) = ([0; 4096], [0; FOOTER_LEN]);
        assert!(peer.copy_out(reference.slot, &mut payload, &mut footer));
        assert!(accept(&footer, &mut payload, &reference, 0, &FileKey::Clear).is_ok());
        assert!(!peer.copy_out(4, &mut payload, &mut footer));

        assert!(rustix::fs::ftruncate(&fd, 1).is_err());
        assert!(rustix::io::pwrite(&fd, b"x", 0).is_err());
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Ok(file) = std::fs::File::options().read(true).write(true).open(path) {
            let fd = file.as_fd();
            assert!(rustix::io::pwrite(fd, b"x", 0).is_err());
            assert!(rustix::fs::ftruncate(fd, 1 << 30).is_err());
            assert!(rustix::fs::fcntl_add_seals(fd, rustix::fs::SealFlags::WRITE).is_err());
            assert!(Mapping::writable(fd, 4096).is_err());
        }
    }

    #[test]
    fn a_dropped_chunk_counts_until_no_one_maps_it() {
        let arena = arena();
        let size = arena.geometry().chunk_len();
        let fd = arena.chunks()[0].reader().unwrap();
        let peer = PeerChunk::map(fd.as_fd(), arena.geometry()).unwrap();
        drop(fd);
        assert!(arena.begin_retire(0));
        assert!(arena.take(Guard::None).is_none());
        arena.finish_retire(0);
        assert!(arena.chunk(0).is_none());
        assert_eq!(arena.bytes(), size);
        drop(peer);
        assert_eq!(arena.bytes(), 0);
        assert_eq!(arena.grow(Guard::None).unwrap().id(), 1);
    }
}
