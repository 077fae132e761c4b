//! Waiting for one-sided reads.

use super::Session;
use super::pump::{READS, want};
use ordma::{Endpoint, Outcome, PageReads, ReadBatch};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

/// One-sided reads under way. They began when this was made.
pub(crate) struct Reads<'a> {
    session: &'a Session,
    batch: Arc<ReadBatch>,
    /// Counted among what the connection is driven for.
    counted: bool,
}

impl Session {
    /// Posts one-sided reads.
    pub(crate) fn post(&self, endpoint: &Arc<dyn Endpoint>, reads: PageReads) -> Reads<'_> {
        Reads { session: self, batch: endpoint.read(reads), counted: false }
    }
}

impl Future for Reads<'_> {
    type Output = Vec<Outcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let result = this.batch.poll(cx);
        if result.is_pending() {
            want(READS);
            if !std::mem::replace(&mut this.counted, true) {
                this.session.pump.reads.fetch_add(1, Ordering::SeqCst);
            }
        } else if result.is_ready() && std::mem::take(&mut this.counted) {
            this.session.pump.reads.fetch_sub(1, Ordering::SeqCst);
        }
        result
    }
}

impl Drop for Reads<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.session.pump.reads.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
