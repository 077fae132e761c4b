//! Where the server's work runs.
//!
//! An operation is an `async fn` that begins on the thread that received its request and, as long
//! as all it needs is in memory, ends there too. What has to wait for the disk or a transfer is
//! suspended; whoever completes the wait queues the task on the worker threads. Calls that may
//! block run there as well, through [`Runtime::blocking`].
//!
//! Each task and each call belongs to a session of a client, or to the server. The workers serve the
//! clients in turn, and the sessions of a client in turn, however much each of them asks for. What a task
//! calls and starts belongs to its client as well. Tasks that go on come before calls that begin, since
//! they hold what the calls before them have brought.

use crate::turns::{FairQueue, Whose};
use ordma::Party;
use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() + Send>;

/// A handle to the worker threads. Clones share them.
#[derive(Clone)]
pub struct Runtime(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
    inline: bool,
}

#[derive(Default)]
struct Queue {
    /// Tasks that can go on.
    tasks: FairQueue<Job>,
    calls: FairQueue<Job>,
    stopping: bool,
}

impl Queue {
    fn pop(&mut self) -> Option<(Whose, Job)> {
        self.tasks.pop().or_else(|| self.calls.pop())
    }
}

thread_local! {
    /// Whose task this thread runs.
    static WHOSE: Cell<Whose> = const { Cell::new(Whose { party: Party::SERVER, session: 0 }) };
}

/// Runs `f` as something of this client's.
fn as_theirs<T>(whose: Whose, f: impl FnOnce() -> T) -> T {
    /// Puts back whose it was before, also after a panic.
    struct Before(Whose);
    impl Drop for Before {
        fn drop(&mut self) {
            WHOSE.set(self.0);
        }
    }
    let _before = Before(WHOSE.replace(whose));
    f()
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("inline", &self.0.inline).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Starts `threads` worker threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let runtime = Self::new(false);
        let mut handles = Vec::with_capacity(threads);
        for number in 0..threads {
            let shared = Arc::clone(&runtime.0);
            let builder = std::thread::Builder::new().name(format!("dafs-work-{number}"));
            handles.push(builder.spawn(move || shared.work())?);
        }
        *lock(&runtime.0.threads) = handles;
        Ok(runtime)
    }

    /// A runtime without threads: blocking calls run where they are awaited, woken tasks when
    /// [`run_queued`](Self::run_queued) is called. For the engine `sim`, whose world is one thread.
    #[must_use]
    pub fn inline() -> Self {
        Self::new(true)
    }

    fn new(inline: bool) -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            threads: Mutex::default(),
            inline,
        }))
    }

    /// Runs a task: its first stretch here and now, the rest on the workers. It is of the client
    /// whose task runs it, or else the server's own.
    pub fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.run_for(WHOSE.get(), task);
    }

    /// As [`run`](Self::run), for this client.
    pub fn run_for(&self, whose: Whose, task: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::downgrade(&self.0);
        let schedule = move |runnable: async_task::Runnable| {
            // After the runtime has gone, tasks end where they are.
            if let Some(shared) = shared.upgrade() {
                let go_on = Box::new(move || {
                    runnable.run();
                });
                shared.push(|queue| queue.tasks.push(whose, go_on));
            }
        };
        let (runnable, task) = async_task::spawn(task, schedule);
        task.detach();
        as_theirs(whose, || runnable.run());
    }

    /// Runs a call that may block on a worker thread.
    ///
    /// # Panics
    /// Resumes the panic of `call`, in the task that awaits it.
    pub async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if self.0.inline {
            return call();
        }
        let result = Arc::new(Oneshot::default());
        let setter = Arc::clone(&result);
        let call = Box::new(move || {
            setter.set(std::panic::catch_unwind(AssertUnwindSafe(call)));
        });
        let whose = WHOSE.get();
        self.0.push(|queue| queue.calls.push(whose, call));
        match Wait(result).await {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs what is queued, on a runtime without threads; whether anything ran. Does nothing on one
    /// with threads, for a call to a disk may take for ever.
    pub fn run_queued(&self) -> bool {
        if !self.0.inline {
            return false;
        }
        let mut ran = false;
        while let Some((whose, job)) = { lock(&self.0.queue).pop() } {
            as_theirs(whose, job);
            ran = true;
        }
        ran
    }

    /// Finishes what is queued and ends the threads. Tasks that still wait are dropped with what
    /// they wait for. `false` where some thread has not ended within `patience`, as a call to a disk
    /// that does not answer cannot be ended.
    pub fn stop(&self, patience: Duration) -> bool {
        lock(&self.0.queue).stopping = true;
        self.0.work.notify_all();
        let end = Instant::now() + patience;
        let mut threads = std::mem::take(&mut *lock(&self.0.threads));
        let me = std::thread::current().id();
        threads.retain(|thread| thread.thread().id() != me);
        loop {
            for thread in threads.extract_if(.., |thread| thread.is_finished()) {
                if thread.join().is_err() {
                    tracing::error!("a worker thread panicked");
                }
            }
            if threads.is_empty() || Instant::now() >= end {
                return threads.is_empty();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Shared {
    fn push(&self, push: impl FnOnce(&mut Queue)) {
        push(&mut lock(&self.queue));
        self.work.notify_one();
    }

    fn work(&self) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some((whose, job)) = queue.pop() {
                drop(queue);
                let job = AssertUnwindSafe(|| as_theirs(whose, job));
                if std::panic::catch_unwind(job).is_err() {
                    tracing::error!("a task panicked; its request gets no reply");
                }
                queue = lock(&self.queue);
            } else if queue.stopping {
                return;
            } else {
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// A value set once and awaited once.
type Panic = Box<dyn Any + Send>;

struct Oneshot<T>(Mutex<Slot<T>>);

/// The value or panic once it is there, and who waits for it.
type Slot<T> = (Option<Result<T, Panic>>, Option<Waker>);

impl<T> Default for Oneshot<T> {
    fn default() -> Self {
        Self(Mutex::new((None, None)))
    }
}

impl<T> Oneshot<T> {
    fn set(&self, value: Result<T, Panic>) {
        let mut state = lock(&self.0);
        state.0 = Some(value);
        let waker = state.1.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Wait<T>(Arc<Oneshot<T>>);

impl<T> Future for Wait<T> {
    type Output = Result<T, Panic>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.0.0);
        if let Some(value) = state.0.take() {
            return Poll::Ready(value);
        }
        state.1 = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing here is left half changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_task_begins_here_and_ends_on_a_worker() {
        let runtime = Runtime::start(2).unwrap();
        let (sender, receiver) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let inner = runtime.clone();
        let here = std::thread::current().id();
        runtime.run(async move {
            assert_eq!(std::thread::current().id(), here);
            // Not done before the task has been suspended.
            let number = inner.blocking(move || wait.recv().unwrap()).await;
            sender.send((number, std::thread::current().id())).unwrap();
        });
        go.send(7).unwrap();
        let (number, there) = receiver.recv().unwrap();
        assert_eq!(number, 7);
        assert_ne!(there, here);
        assert!(runtime.stop(Duration::from_secs(10)));
    }

    #[test]
    fn clients_have_the_workers_in_turn() {
        let runtime = Runtime::start(1).unwrap();
        let whose = |name| Whose { party: Party::of_peer(name), session: 1 };
        let (busy, greedy, other) = (whose("busy"), whose("greedy"), whose("other"));
        let (go, wait) = mpsc::channel();
        let (order, done) = mpsc::channel();
        let begin = |whose, name, call: Box<dyn FnOnce() + Send>| {
            let (inner, order) = (runtime.clone(), order.clone());
            runtime.run_for(whose, async move {
                inner.blocking(call).await;
                // What goes on comes before what begins, and is still the client's.
                assert_eq!(WHOSE.get(), whose);
                order.send(name).unwrap();
            });
        };
        begin(busy, "first", Box::new(move || wait.recv().unwrap()));
        for _ in 0..50 {
            begin(greedy, "greedy", Box::new(|| {}));
        }
        begin(other, "other", Box::new(|| {}));
        assert_eq!(WHOSE.get(), Whose::default());
        go.send(()).unwrap();
        let order: Vec<_> = done.iter().take(52).collect();
        assert_eq!(order[..3], ["first", "greedy", "other"]);
        assert!(runtime.stop(Duration::from_secs(10)));
    }

    #[test]
    fn an_inline_runtime_needs_no_thread() {
        let runtime = Runtime::inline();
        let (sender, receiver) = mpsc::channel();
        let inner = runtime.clone();
        runtime.run(async move { sender.send(inner.blocking(|| 7).await).unwrap() });
        assert_eq!(receiver.try_recv(), Ok(7));
    }
}
