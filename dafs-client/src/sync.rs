//! Locks that a panic elsewhere does not take away, and waiting for several futures at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// Locks a mutex. What the mutexes of this crate hold stays consistent at every step, so a panic of
/// another holder is no reason to stop.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A boxed future that may move between threads.
pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Waits for all of a few futures; the results are in their order.
pub(crate) struct JoinAll<'a, T> {
    futures: Vec<Option<Boxed<'a, T>>>,
    results: Vec<Option<T>>,
}

/// Starts with the first poll; each poll polls those that are not ready.
pub(crate) fn join_all<T>(futures: Vec<Boxed<'_, T>>) -> JoinAll<'_, T> {
    let results = futures.iter().map(|_| None).collect();
    JoinAll { futures: futures.into_iter().map(Some).collect(), results }
}

impl<T: Unpin> Future for JoinAll<'_, T> {
    type Output = Vec<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<T>> {
        let this = &mut *self;
        let mut pending = false;
        for (slot, result) in this.futures.iter_mut().zip(&mut this.results) {
            if let Some(future) = slot {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => {
                        *result = Some(value);
                        *slot = None;
                    }
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return Poll::Pending;
        }
        Poll::Ready(this.results.drain(..).flatten().collect())
    }
}

/// Does something to each of several inputs, at most `most` of them at a time, from one task; the
/// results are in the order of the inputs.
pub(crate) async fn for_each<'a, I, T: Unpin + 'a>(
    inputs: impl IntoIterator<Item = I>,
    most: usize,
    start: impl Fn(I) -> Boxed<'a, T>,
) -> Vec<T> {
    let mut inputs = inputs.into_iter();
    let mut results: Vec<Option<T>> = Vec::new();
    let mut running: Vec<(usize, Boxed<'a, T>)> = Vec::new();
    std::future::poll_fn(|cx| {
        loop {
            while running.len() < most {
                let Some(input) = inputs.next() else { break };
                running.push((results.len(), start(input)));
                results.push(None);
            }
            if running.is_empty() {
                return Poll::Ready(());
            }
            let before = running.len();
            running.retain_mut(|(at, future)| match future.as_mut().poll(cx) {
                Poll::Ready(value) => {
                    results[*at] = Some(value);
                    false
                }
                Poll::Pending => true,
            });
            // Those that are started in place of what is done have to be polled too.
            if running.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                return value;
            }
        }
    }

    #[test]
    fn so_many_run_at_a_time_and_all_come_in_order() {
        // Each takes so many polls; in the first row all of a round are ready together.
        for polls in [|_| 0, |number: usize| number % 5, |number| 50 - number] {
            let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let all = for_each(0..50_usize, 7, |number| {
                let mut polled = 0;
                let (running, most) = (&running, &most);
                Box::pin(std::future::poll_fn(move |_| {
                    if polled == 0 {
                        let now = running.fetch_add(1, Ordering::Relaxed) + 1;
                        most.fetch_max(now, Ordering::Relaxed);
                    }
                    polled += 1;
                    if polled <= polls(number) {
                        return Poll::Pending;
                    }
                    running.fetch_sub(1, Ordering::Relaxed);
                    Poll::Ready(number)
                }))
            });
            assert_eq!(run(all), (0..50).collect::<Vec<_>>());
            assert!(most.load(Ordering::Relaxed) <= 7);
        }
        assert!(run(for_each(0..0, 7, |number: i32| Box::pin(async move { number }))).is_empty());
    }
}
