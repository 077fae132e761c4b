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
//!
//! Each call also names the [`Disk`] that it waits for. A disk that does not answer holds as many calls
//! as there are workers by configuration, and no more: where all threads are in calls, further threads
//! are started for the tasks and for the calls of other disks, and end when they have nothing to do.

mod calls;

use crate::turns::{FairQueue, Whose};
use calls::Calls;
pub use calls::Disk;
use ordma::Party;
use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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

/// How long a thread beyond the configured ones waits for something to do before it ends.
const IDLE: Duration = Duration::from_secs(10);

struct Queue {
    /// Tasks that can go on.
    tasks: FairQueue<Job>,
    calls: Calls<Job>,
    /// Threads that are always there.
    workers: usize,
    /// Threads that there are, how many of them wait for something to do, and how many are in calls.
    threads: usize,
    idle: usize,
    in_calls: usize,
    stopping: bool,
}

/// Something that a thread can do now.
enum Work {
    Task(Whose, Job),
    Call(Disk, Whose, Job),
}

impl Queue {
    fn new(workers: usize) -> Self {
        Self {
            tasks: FairQueue::default(),
            calls: Calls::new(workers),
            workers,
            threads: workers,
            idle: 0,
            in_calls: 0,
            stopping: false,
        }
    }

    fn pop(&mut self) -> Option<Work> {
        if let Some((whose, job)) = self.tasks.pop() {
            return Some(Work::Task(whose, job));
        }
        let (disk, whose, job) = self.calls.begin()?;
        self.in_calls += 1;
        Some(Work::Call(disk, whose, job))
    }

    /// Something was done, which was a call if it has a disk.
    fn ended(&mut self, disk: Option<Disk>) {
        if let Some(disk) = disk {
            self.calls.ended(disk);
            self.in_calls -= 1;
        }
    }

    fn has_work(&self) -> bool {
        !self.tasks.is_empty() || self.calls.any_can_begin()
    }

    /// Whether there is something to do and each thread waits for a disk.
    fn wants_thread(&self) -> bool {
        self.in_calls == self.threads && self.idle == 0 && self.has_work()
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
        let runtime = Self::new(false, threads);
        for number in 0..threads {
            runtime.0.start(number)?;
        }
        Ok(runtime)
    }

    /// A runtime without threads: blocking calls run where they are awaited, woken tasks when
    /// [`run_queued`](Self::run_queued) is called. For the engine `sim`, whose world is one thread.
    #[must_use]
    pub fn inline() -> Self {
        Self::new(true, 1)
    }

    fn new(inline: bool, workers: usize) -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::new(Queue::new(workers)),
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

    /// Runs a call that may block on a worker thread. It waits for this disk.
    ///
    /// # Panics
    /// Resumes the panic of `call`, in the task that awaits it.
    pub async fn blocking<T: Send + 'static>(
        &self,
        disk: Disk,
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
        self.0.push(|queue| queue.calls.push(disk, whose, call));
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
        while let Some(work) = { lock(&self.0.queue).pop() } {
            let disk = run(work);
            lock(&self.0.queue).ended(disk);
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
    fn start(self: &Arc<Self>, number: usize) -> std::io::Result<()> {
        let shared = Arc::clone(self);
        let builder = std::thread::Builder::new().name(format!("dafs-work-{number}"));
        let thread = builder.spawn(move || shared.work())?;
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    fn push(self: &Arc<Self>, push: impl FnOnce(&mut Queue)) {
        let mut queue = lock(&self.queue);
        push(&mut queue);
        self.grow(queue);
        self.work.notify_one();
    }

    /// Starts a thread where all others wait for disks and there is something to do besides.
    fn grow(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) {
        if self.inline || !queue.wants_thread() {
            return;
        }
        let number = queue.threads;
        queue.threads += 1;
        drop(queue);
        if let Err(error) = self.start(number) {
            lock(&self.queue).threads -= 1;
            tracing::warn!(%error, "no further thread; requests wait for those that wait for a disk");
        }
    }

    /// Does a thread's work, until there is none and it is not wanted any more.
    fn work(self: &Arc<Self>) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(work) = queue.pop() {
                self.grow(queue);
                let disk = run(work);
                queue = lock(&self.queue);
                queue.ended(disk);
                continue;
            }
            if queue.stopping {
                return;
            }
            let extra = queue.threads > queue.workers;
            queue.idle += 1;
            let mut late = false;
            if extra {
                let waited = self.work.wait_timeout(queue, IDLE);
                let (waited, time) = waited.unwrap_or_else(PoisonError::into_inner);
                (queue, late) = (waited, time.timed_out());
            } else {
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            queue.idle -= 1;
            if late && queue.threads > queue.workers && !queue.has_work() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

/// Does something; the disk of a call.
fn run(work: Work) -> Option<Disk> {
    let (disk, whose, job) = match work {
        Work::Task(whose, job) => (None, whose, job),
        Work::Call(disk, whose, job) => (Some(disk), whose, job),
    };
    let job = AssertUnwindSafe(|| as_theirs(whose, job));
    if std::panic::catch_unwind(job).is_err() {
        tracing::error!("a task panicked; its request gets no reply");
    }
    disk
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
            let number = inner.blocking(Disk::NONE, move || wait.recv().unwrap()).await;
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
                inner.blocking(Disk::NONE, call).await;
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

    /// A disk that does not answer keeps neither the calls of another nor tasks that can go on.
    #[test]
    fn a_silent_disk_has_no_more_than_its_threads() {
        const WORKERS: usize = 2;
        let runtime = Runtime::start(WORKERS).unwrap();
        let (silent, good) = (Disk::of_export("silent"), Disk::of_export("good"));
        let (answer, silence) = mpsc::channel::<()>();
        let silence = Arc::new(Mutex::new(silence));
        let (ended, ends) = mpsc::channel();
        for _ in 0..20 {
            let (inner, ended, silence) = (runtime.clone(), ended.clone(), Arc::clone(&silence));
            runtime.run(async move {
                let wait = move || lock(&silence).recv().is_ok();
                inner.blocking(silent, wait).await;
                ended.send("silent").unwrap();
            });
        }
        for _ in 0..20 {
            let (inner, ended) = (runtime.clone(), ended.clone());
            runtime.run(async move {
                inner.blocking(good, || ()).await;
                ended.send("good").unwrap();
            });
        }
        for _ in 0..20 {
            assert_eq!(ends.recv_timeout(Duration::from_secs(10)), Ok("good"));
        }
        let threads = lock(&runtime.0.queue).threads;
        assert!((WORKERS + 1..=2 * WORKERS + 1).contains(&threads), "{threads} threads");
        drop(answer);
        for _ in 0..20 {
            assert_eq!(ends.recv_timeout(Duration::from_secs(10)), Ok("silent"));
        }
        assert!(runtime.stop(Duration::from_secs(10)));
    }

    #[test]
    fn an_inline_runtime_needs_no_thread() {
        let runtime = Runtime::inline();
        let (sender, receiver) = mpsc::channel();
        let inner = runtime.clone();
        runtime.run(async move { sender.send(inner.blocking(Disk::NONE, || 7).await).unwrap() });
        assert_eq!(receiver.try_recv(), Ok(7));
    }
}
