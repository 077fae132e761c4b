//! Changes that clients make: one at a time of each range, handed over where another client has not
//! been told that its own are stable. See [`crate::sharing`].

use super::{Cache, CachedFile, error};
use crate::runtime::Disk;
use crate::sharing::{Claim, END, HandOver, Judged, Owner, Range, Record, Resend, Round};
use crate::store::{Result, StoreError};
use crate::sync::RwLock;
use dafs_proto::{Extent, Status, Time};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often a change makes others' changes stable before it gives up. They cannot come back, since
/// the range is held; so once is enough.
const MOST_HAND_OVERS: usize = 4;

/// Whether a session still stands. Nothing of one that has ended is applied.
#[derive(Debug)]
pub struct Standing(RwLock<bool>);

impl Default for Standing {
    fn default() -> Self {
        Self(RwLock::new(true))
    }
}

impl Standing {
    /// Ends the session. When it returns, nothing of it is being applied, or will be.
    pub fn end(&self) {
        *self.0.write() = false;
    }

    /// Does something while the session stands.
    ///
    /// # Errors
    /// [`Status::BadSession`] where it has ended; nothing is done.
    pub(crate) fn while_it_stands<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let stands = self.0.read();
        if *stands {
            return Ok(work());
        }
        Err(error(Status::BadSession, "the session has ended"))
    }
}

/// Who makes a change.
#[derive(Clone, Debug)]
pub struct Writer {
    /// Whose change it is until it is stable.
    pub owner: Arc<Owner>,
    /// The session that asked for it.
    pub standing: Arc<Standing>,
}

/// What was made stable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The range.
    pub range: Range,
    /// Names it.
    pub round: Round,
    /// All changes up to that number, of the range, are stable.
    pub through: u64,
    /// The write verifier afterwards.
    pub verifier: u64,
}

/// What a client will know once it has a reply.
#[derive(Clone, Debug)]
pub struct Told {
    /// The file.
    pub file: Arc<CachedFile>,
    /// The client.
    pub owner: Arc<Owner>,
    /// What is stable.
    pub what: Committed,
}

impl Told {
    /// The client has the reply.
    pub fn confirm(self) {
        let Self { file, owner, what } = self;
        let Committed { range, round, through, .. } = what;
        file.unstable.lock().told(owner.number(), &range, round, through);
        file.cache.boots.told(file.identity(), owner.id(), &range, through);
    }
}

/// What became of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Its number; 0 where nothing was changed.
    pub number: u64,
    /// The write verifier before the first page was changed.
    pub verifier: u64,
    /// The time of the file's last change on disk, as far as it is known.
    pub ctime: Option<Time>,
    /// Of a change that came again: what was left alone because it is stable.
    pub skipped: Vec<Range>,
    /// Of a change that came again: what was left alone because another client may have changed it.
    pub refused: Vec<Range>,
}

/// Ends a change when dropped, however it ends.
struct UnderWay<'a> {
    file: &'a CachedFile,
    id: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.file.unstable.lock().end(self.id);
        self.file.changed.notify(usize::MAX);
    }
}

impl CachedFile {
    /// Writes the extents' bytes, one after the other out of `data`, for a client. When it returns,
    /// every page shows them to one-sided readers. Not atomic across pages.
    ///
    /// # Errors
    /// Those of [`write`](Self::write), and [`Status::BadSession`] where the session has ended:
    /// extents and pages before the failing one have been written. The store's, where what another
    /// client has written there cannot be made stable, or the disk does not take what was written
    /// before, or has no room: nothing more has been written then.
    pub async fn write_for(
        self: &Arc<Self>,
        writer: &Writer,
        extents: &[Extent],
        data: &[u8],
        resend: Option<&Resend>,
    ) -> Result<Changed> {
        super::write::check_extents(extents, data, self.max_size())?;
        self.check_trouble().await?;
        let mut changed = Changed { verifier: self.verifier(), ..Changed::default() };
        let mut at = 0;
        for extent in extents {
            let range = extent.offset..extent.offset + extent.length;
            let len = range.end - range.start;
            if len > 0 {
                let under_way = self.begin_change(&range).await;
                let parts = self.judge(writer, &range, resend, &mut changed);
                for part in parts {
                    let from = at + usize_of(part.start - range.start);
                    let bytes = &data[from..from + usize_of(part.end - part.start)];
                    let length = part.end - part.start;
                    self.reserve_space(Extent { offset: part.start, length }).await?;
                    changed.number = self.claim(writer, &under_way, &part).await?;
                    self.write_range(part.start, bytes, Some(writer)).await?;
                }
            }
            at += usize_of(len);
        }
        if changed.number > 0 {
            self.meta.write().changed();
        }
        changed.ctime = self.disk_ctime();
        Ok(changed)
    }

    /// Sets the size, for a client; also where from on that had an effect.
    ///
    /// # Errors
    /// Those of [`set_size`](Self::set_size), and as for [`write_for`](Self::write_for); nothing has
    /// changed where it is one of these.
    pub async fn set_size_for(
        self: &Arc<Self>,
        writer: &Writer,
        size: u64,
        resend: Option<(&Resend, u64)>,
    ) -> Result<(Changed, u64)> {
        let mut changed = Changed { verifier: self.verifier(), ..Changed::default() };
        let (from, under_way) = loop {
            let from = size.min(self.size());
            let from = resend.map_or(from, |(_, before)| from.min(before));
            let under_way = self.begin_change(&(from..END)).await;
            // It may have become smaller while others were waited for.
            if from <= self.size() {
                break (from, under_way);
            }
        };
        let range = from..END;
        let parts = self.judge(writer, &range, resend.map(|(resend, _)| resend), &mut changed);
        // A size is set whole or not at all. The sync by which a part of its range was handed over has
        // made it stable.
        if parts != [range.clone()] {
            return Ok((changed, from));
        }
        changed.number = self.claim(writer, &under_way, &range).await?;
        self.set_size_while(size, Some(&writer.standing)).await?;
        changed.ctime = self.disk_ctime();
        Ok((changed, from))
    }

    /// Waits until no other change of an overlapping range is under way, and begins one.
    async fn begin_change(&self, range: &Range) -> UnderWay<'_> {
        loop {
            if let Some(id) = self.unstable.lock().begin(range) {
                return UnderWay { file: self, id };
            }
            let ended = self.changed.listen();
            if let Some(id) = self.unstable.lock().begin(range) {
                return UnderWay { file: self, id };
            }
            ended.await;
        }
    }

    /// What of a change is to be done; the rest is noted in `changed`.
    fn judge(
        &self,
        writer: &Writer,
        range: &Range,
        resend: Option<&Resend>,
        changed: &mut Changed,
    ) -> Vec<Range> {
        let Some(resend) = resend else { return vec![range.clone()] };
        let owner = &writer.owner;
        let boots = &self.cache.boots;
        let since = boots.since(resend, self.identity(), owner.id());
        let unstable = self.unstable.lock();
        let Judged { take, skip, refuse } = if since.nothing {
            Judged { refuse: vec![range.clone()], ..Judged::default() }
        } else if resend.boot == boots.boot() {
            unstable.judge_same_boot(owner.number(), range, resend)
        } else {
            let recorded = &since.handed_over;
            unstable.judge_earlier_boot(owner.number(), range, resend, recorded, since.next_began)
        };
        changed.skipped.extend(skip);
        changed.refused.extend(refuse);
        take
    }

    /// Makes a range that is under way the writer's, after others' changes of it have been handed
    /// over; the number of the change.
    async fn claim(
        self: &Arc<Self>,
        writer: &Writer,
        under_way: &UnderWay<'_>,
        range: &Range,
    ) -> Result<u64> {
        let owner = &writer.owner;
        for _ in 0..MOST_HAND_OVERS {
            let hull = {
                let mut unstable = self.unstable.lock();
                match unstable.claim(owner.number(), range) {
                    Claim::Free => {
                        let number = self.cache.changes.fetch_add(1, Ordering::AcqRel) + 1;
                        if unstable.enter(under_way.id, owner, range, number) {
                            drop(unstable);
                            owner.has(self);
                        }
                        return Ok(number);
                    }
                    Claim::HandOver(hull) => hull,
                }
            };
            self.hand_over(owner, &hull).await?;
        }
        let what = "change a range that other clients change all the time";
        Err(error(Status::TryAgain, what))
    }

    /// Makes a range stable and records that it is, for those other than `owner` that have changed
    /// it.
    async fn hand_over(self: &Arc<Self>, owner: &Arc<Owner>, hull: &Range) -> Result<()> {
        let length = if hull.end == END { 0 } else { hull.end - hull.start };
        self.commit(Extent { offset: hull.start, length }).await?;
        let ranges = self.unstable.lock().to_hand_over(owner.number(), hull);
        if ranges.is_empty() {
            return Ok(());
        }
        let (boots, record) = (Arc::clone(&self.cache.boots), self.to_record(&ranges));
        let number = self.cache.changes.load(Ordering::Acquire);
        let hand_over = move || boots.hand_over(&record, number);
        let recorded = self.cache.runtime.blocking(Disk::STATE, hand_over).await;
        recorded.map_err(|error| {
            StoreError::io("record in the state directory what other clients have written", &error)
        })?;
        self.unstable.lock().handed_over(&ranges);
        Ok(())
    }

    fn to_record(&self, ranges: &[HandOver]) -> Vec<Record> {
        let record = |HandOver { owner, range, through }: &HandOver| Record {
            identity: self.identity(),
            owner: owner.id(),
            range: range.clone(),
            through: *through,
        };
        ranges.iter().map(record).collect()
    }

    /// Whether an owner has ranges of the file that it has not been told are stable.
    pub(crate) fn is_unstable_for(&self, owner: u64) -> bool {
        self.unstable.lock().has(owner)
    }

    /// An owner will send nothing again.
    pub(crate) fn forget_owner(&self, owner: u64) {
        self.unstable.lock().forget(owner);
    }

    /// The time of the file's last change, as the disk was last seen to have it.
    fn disk_ctime(&self) -> Option<Time> {
        self.meta.read().on_disk.ctime()
    }
}

impl Cache {
    /// Records all that is stable and whose owners do not know, as a server does that ends in good
    /// order: they need not send it again. Blocks.
    ///
    /// # Errors
    /// When the record cannot be written: the owners send again what nobody else has changed.
    pub fn record_stable(&self) -> io::Result<()> {
        let mut record = Vec::new();
        for file in self.files.iter() {
            let ranges = file.unstable.lock().all_stable();
            record.extend(file.to_record(&ranges));
        }
        self.boots.hand_over(&record, self.changes.load(Ordering::Acquire))
    }

    /// Forgets what clients have changed and were not told is stable, where they have had no session
    /// for so long; and records that nothing of it is taken from them any more. Blocks.
    pub fn forget_gone(&self, patience: Duration, now: Instant) {
        for owner in self.owners.take_gone(patience, now) {
            let number = self.changes.load(Ordering::Acquire);
            if owner.has_ranges()
                && let Err(error) = self.boots.cut_off(owner.id(), number)
            {
                tracing::error!(%error, ?owner, "the record of the server's runs");
                self.owners.put_back(owner);
                continue;
            }
            self.owners.forget(&owner);
        }
    }
}

/// A length that is in memory.
fn usize_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
