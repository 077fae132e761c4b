//! Slots as a device reads them: their bytes, first all footers, then all payloads, as stretches of
//! registered memory. What neighbouring slots have is one stretch.

use crate::arena::Geometry;
use crate::rdma::{Local, Parts, Region};
use crate::slot::FOOTER_LEN;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most bytes of one request. Few requests are cheap to post; with more than one, others of the
/// device get their turn in between.
const MOST: usize = 1 << 20;

/// What is left to be sent of some slots. `R` is what registered memory is known by.
#[derive(Debug)]
pub(super) struct Gather<R = Region> {
    stretches: VecDeque<Stretch<R>>,
    len: usize,
    left: usize,
}

/// Neighbouring bytes of a region.
#[derive(Debug)]
struct Stretch<R> {
    region: Arc<R>,
    offset: usize,
    len: usize,
}

impl<R> Stretch<R> {
    fn split(&mut self, at: usize) -> Self {
        let first = Self { region: Arc::clone(&self.region), offset: self.offset, len: at };
        (self.offset, self.len) = (self.offset + at, self.len - at);
        first
    }
}

impl<R> Gather<R> {
    /// All bytes of slots, each given as the region of its chunk and its number in there.
    pub(super) fn new(geometry: Geometry, slots: &[(Arc<R>, u32)]) -> Self {
        let mut gather = Self { stretches: VecDeque::new(), len: 0, left: 0 };
        for (region, slot) in slots {
            gather.push(region, geometry.footer_at(*slot), FOOTER_LEN);
        }
        for (region, slot) in slots {
            gather.push(region, geometry.payload_at(*slot), geometry.page_size);
        }
        gather.len = gather.left;
        gather
    }

    fn push(&mut self, region: &Arc<R>, offset: usize, len: usize) {
        self.left += len;
        match self.stretches.back_mut() {
            Some(last) if Arc::ptr_eq(&last.region, region) && last.offset + last.len == offset => {
                last.len += len;
            }
            _ => {
                let region = Arc::clone(region);
                self.stretches.push_back(Stretch { region, offset, len });
            }
        }
    }

    /// Bytes of all of the slots.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// How many bytes the next request can have, of at most so many parts.
    pub(super) fn fitting(&self, parts: usize) -> usize {
        let fitting: usize = self.stretches.iter().take(parts).map(|stretch| stretch.len).sum();
        fitting.min(MOST)
    }

    /// Takes the next bytes, at most as many as are [fitting](Self::fitting).
    pub(super) fn take(&mut self, len: usize) -> Gathered<R> {
        let mut gathered = Vec::new();
        let mut missing = len.min(self.left);
        self.left -= missing;
        while missing > 0
            && let Some(mut stretch) = self.stretches.pop_front()
        {
            if stretch.len > missing {
                let rest = stretch.split(missing);
                self.stretches.push_front(std::mem::replace(&mut stretch, rest));
            }
            missing -= stretch.len;
            gathered.push(stretch);
        }
        Gathered(gathered)
    }
}

/// Memory of slots that a request reads.
#[derive(Debug)]
pub(super) struct Gathered<R = Region>(Vec<Stretch<R>>);

// SAFETY: the stretches lie in regions that this holds, and with them the chunks. Slots are changed
// by raw copies alone, and nobody has a reference to their bytes.
unsafe impl Local for Gathered {
    fn parts(&self, parts: &mut Parts) {
        for Stretch { region, offset, len } in &self.0 {
            parts.push(region.address() + *offset as u64, *len as u32, region.local_key());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;
    const SLOTS: u32 = 64;
    const FOOTERS: usize = SLOTS as usize * PAGE;

    /// Slots, each as chunk and number.
    fn gather(slots: &[(usize, u32)]) -> Gather<usize> {
        let chunks: Vec<_> = (0..2).map(Arc::new).collect();
        let slots: Vec<_> =
            slots.iter().map(|(chunk, slot)| (Arc::clone(&chunks[*chunk]), *slot)).collect();
        Gather::new(Geometry { page_size: PAGE, slots: SLOTS }, &slots)
    }

    fn taken(gather: &mut Gather<usize>, len: usize) -> Vec<(usize, usize, usize)> {
        let Gathered(stretches) = gather.take(len);
        stretches.iter().map(|s| (*s.region, s.offset, s.len)).collect()
    }

    #[test]
    fn neighbours_are_one_stretch() {
        let mut one = gather(&[(0, 3)]);
        assert_eq!((one.len(), one.fitting(16)), (PAGE + 64, PAGE + 64));
        assert_eq!(taken(&mut one, PAGE + 64), [(0, FOOTERS + 3 * 64, 64), (0, 3 * PAGE, PAGE)]);
        assert_eq!((one.len(), one.left(), one.fitting(16)), (PAGE + 64, 0, 0));

        let mut many = gather(&[(0, 3), (0, 4), (1, 5), (0, 6), (0, 5)]);
        let all = many.left();
        assert_eq!(all, 5 * (PAGE + 64));
        assert_eq!(
            taken(&mut many, all),
            [
                (0, FOOTERS + 3 * 64, 2 * 64),
                (1, FOOTERS + 5 * 64, 64),
                (0, FOOTERS + 6 * 64, 64),
                (0, FOOTERS + 5 * 64, 64),
                (0, 3 * PAGE, 2 * PAGE),
                (1, 5 * PAGE, PAGE),
                (0, 6 * PAGE, PAGE),
                (0, 5 * PAGE, PAGE),
            ]
        );
    }

    #[test]
    fn a_request_has_as_many_parts_as_the_device_takes() {
        // No two are neighbours: a part each.
        let slots: Vec<_> = (0..5).map(|i| (0, i * 2)).collect();
        let mut scattered = gather(&slots);
        assert_eq!(scattered.fitting(3), 3 * 64);
        assert_eq!(taken(&mut scattered, 3 * 64).len(), 3);
        assert_eq!(scattered.fitting(3), 2 * 64 + PAGE);
        assert_eq!(taken(&mut scattered, 2 * 64 + PAGE).len(), 3);
        assert_eq!(scattered.fitting(16), 4 * PAGE);
        assert_eq!(scattered.left(), 4 * PAGE);
    }

    #[test]
    fn what_the_clients_memory_divides_goes_on_where_it_ended() {
        let mut pages = gather(&[(0, 0), (0, 1)]);
        assert_eq!(taken(&mut pages, 100), [(0, FOOTERS, 100)]);
        assert_eq!(taken(&mut pages, 128), [(0, FOOTERS + 100, 28), (0, 0, 100)]);
        assert_eq!(taken(&mut pages, usize::MAX), [(0, 100, 2 * PAGE - 100)]);
        assert_eq!(pages.left(), 0);
    }

    #[test]
    fn a_request_has_an_end() {
        let geometry = Geometry { page_size: 65536, slots: SLOTS };
        let chunk = Arc::new(0);
        let slots: Vec<_> = (0..SLOTS).map(|slot| (Arc::clone(&chunk), slot)).collect();
        assert_eq!(Gather::new(geometry, &slots[..1]).fitting(16), 65536 + 64);
        assert_eq!(Gather::new(geometry, &slots).fitting(16), MOST);
    }
}
