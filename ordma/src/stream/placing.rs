//! The client's advertised memory, and data on its way there.

use super::inbox::Body;
use super::io;
use crate::lock;
use crate::region::{Access, Iovecs, Region, Segment, parts, with_iovecs};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

/// Memory that the server may write into and read from.
pub(super) struct Advert {
    pub(super) segments: Vec<Segment>,
    pub(super) len: u64,
    /// Held while bytes move.
    pub(super) state: Mutex<AdvertState>,
}

#[derive(Default)]
pub(super) struct AdvertState {
    pub(super) withdrawn: bool,
    pub(super) placed: u64,
}

/// Data on its way into an advertised buffer, or nowhere where that is withdrawn.
pub(crate) struct Placing {
    pub(super) advert: Option<Arc<Advert>>,
    pub(super) at: u64,
}

impl Body for Placing {
    fn put(&mut self, bytes: &[u8]) {
        let start = self.at;
        self.at += bytes.len() as u64;
        let Some(advert) = &self.advert else { return };
        let mut state = lock(&advert.state);
        if state.withdrawn {
            return;
        }
        let mut rest = bytes;
        for (region, start, len) in parts(&advert.segments, start, bytes.len() as u64) {
            let (here, after) = rest.split_at(len);
            rest = after;
            region.with(|bytes| {
                let place = start.checked_add(len).and_then(|end| bytes.get_mut(start..end));
                place.into_iter().for_each(|place| place.copy_from_slice(here));
            });
        }
        state.placed = state.placed.max(self.at);
    }

    fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        left: usize,
        scratch: &mut [u8],
    ) -> std::io::Result<Option<(usize, usize)>> {
        let advert = self.advert.clone();
        let segments = advert.as_ref().map_or(&[][..], |advert| &advert.segments);
        let mut state = advert.as_ref().map(|advert| lock(&advert.state));
        let kept = state.as_ref().is_some_and(|state| !state.withdrawn);
        let got = if kept {
            let (places, spill) = (parts(segments, self.at, left as u64), scratch.len());
            receive_into(socket, places, left, scratch, spill)?
        } else {
            let trash = left.min(scratch.len());
            io::receive(socket, &mut scratch[..trash])?.map(|n| (n, 0))
        };
        if let Some((placed, _)) = got {
            self.at += placed as u64;
            if let Some(state) = state.as_mut().filter(|_| kept) {
                state.placed = state.placed.max(self.at);
            }
        }
        Ok(got)
    }
}

/// Receives into parts of regions, `left` bytes together, and at most `spill` bytes of what follows
/// them into `scratch`; what belongs into memory that is withdrawn is dropped. Returns how many bytes of each, or `None`
/// where nothing has arrived.
pub(crate) fn receive_into<'a>(
    socket: BorrowedFd<'_>,
    parts: impl Iterator<Item = (&'a Region, usize, usize)> + Clone,
    left: usize,
    scratch: &mut [u8],
    spill: usize,
) -> std::io::Result<Option<(usize, usize)>> {
    with_iovecs(parts, Access::Write, Iovecs::new(), |iovecs| {
        let mut whole = iovecs.bytes() == left && !iovecs.is_full();
        let gap = iovecs.as_mut_slice().iter().position(|part| part.iov_base.is_null());
        if let Some(gap) = gap {
            // The scratch buffer takes what no one wants, and then nothing else.
            let part = &mut iovecs.as_mut_slice()[gap];
            part.iov_base = scratch.as_mut_ptr().cast();
            part.iov_len = part.iov_len.min(scratch.len());
            iovecs.truncate(gap + 1);
            whole = false;
        }
        if whole {
            iovecs.push(scratch.as_mut_ptr(), scratch.len().min(spill));
        }
        // SAFETY: the vectors are parts of locked regions and the scratch buffer, each of them
        // exclusively ours for the time of the call.
        let got = unsafe { io::receive_raw(socket, iovecs) }?;
        Ok(got.map(|n| (n.min(left), n.saturating_sub(left))))
    })
}
