//! The asynchronous interface, queues, and several threads.

mod common;

use common::{PAGE, Server, Verdict, options, pattern};
use dafs_client::blocking::{Outcome, Queue};
use dafs_client::{Client, OpenOptions, Options, Path, Stability};
use dafs_proto::Op;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

/// An executor that knows nothing of the client.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        std::thread::park();
    }
}

/// Polls all futures until each is ready.
fn join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|f| Some(Box::pin(f))).collect();
    let mut results: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    block_on(std::future::poll_fn(|cx| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if let Some(running) = future
                && let Poll::Ready(value) = running.as_mut().poll(cx)
            {
                (*result, *future) = (Some(value), None);
            }
        }
        if futures.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    }));
    results.into_iter().flatten().collect()
}

fn rw() -> OpenOptions {
    OpenOptions::new().read(true).write(true).create(true)
}

#[test]
fn the_asynchronous_interface_needs_no_runtime() {
    let server = Server::new();
    let data = pattern(200 * PAGE);
    server.add_file("a", &data);
    block_on(async {
        let client = Client::connect_over(server.connector(), "data", options()).await.unwrap();
        let file = client.open_with("a", rw()).await.unwrap();
        let (report, buf) = file.read_at(vec![0; data.len()], 0).await;
        assert_eq!(report.unwrap().bytes, data.len());
        assert!(buf == data);
        let (report, buf) = file.read_at(buf, 0).await;
        assert_eq!(report.unwrap().ordma, 200);
        let (written, buf) = file.write_at(buf, 10).await;
        assert_eq!(written.unwrap(), buf.len());
        file.commit(0, 0).await.unwrap();
        assert_eq!(file.attr().await.unwrap().size, data.len() as u64 + 10);
        assert_eq!(client.read_dir("/").await.unwrap().len(), 1);
        file.close().await.unwrap();
    });
}

#[test]
fn many_asynchronous_operations_go_on_at_the_same_time() {
    let server = Server::new();
    let data = pattern(64 * PAGE);
    server.add_file("a", &data);
    let client = block_on(Client::connect_over(server.connector(), "data", options())).unwrap();
    let file = block_on(client.open("a")).unwrap();
    // Far more than there are slots.
    for path in [Path::Inline, Path::Auto, Path::Auto, Path::Direct] {
        let reads =
            (0..200).map(|i| {
                let file = file.clone();
                async move {
                    (i % 64, file.read_at_by(vec![0; PAGE], (i % 64) * PAGE as u64, path).await)
                }
            });
        for (block, (report, buf)) in join(reads.collect()) {
            assert_eq!(report.unwrap().bytes, PAGE);
            let start = block as usize * PAGE;
            assert!(buf == data[start..start + PAGE]);
        }
    }
}

#[test]
fn a_dropped_future_leaves_the_connection_in_order() {
    let server = Server::new();
    let data = pattern(64 * PAGE);
    server.add_file("a", &data);
    let client = block_on(Client::connect_over(server.connector(), "data", options())).unwrap();
    let file = block_on(client.open_with("a", rw())).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..50 {
        for path in [Path::Inline, Path::Direct, Path::Auto] {
            let mut read = pin!(file.read_at_by(vec![0; 20 * PAGE], 0, path));
            let _ = read.as_mut().poll(&mut cx);
        }
        let mut write = pin!(file.write_at(data.clone(), 0));
        let _ = write.as_mut().poll(&mut cx);
    }
    let (report, buf) = block_on(file.read_at(vec![0; data.len()], 0));
    assert_eq!(report.unwrap().bytes, data.len());
    assert!(buf == data);
}

#[test]
fn asynchronous_operations_ride_out_a_lost_connection() {
    let server = Server::new();
    server.add_file("a", &pattern(PAGE));
    let client = block_on(Client::connect_over(server.connector(), "data", options())).unwrap();
    let file = block_on(client.open("a")).unwrap();
    for verdict in [(|| Verdict::Cut) as fn() -> Verdict, || Verdict::ServeAndCut] {
        server.once(Op::Read, verdict);
        let (report, _) = block_on(file.read_at_by(vec![0; PAGE], 0, Path::Inline));
        assert_eq!(report.unwrap().bytes, PAGE);
    }
    server.restart();
    let (report, _) = block_on(file.read_at(vec![0; PAGE], 0));
    assert_eq!(report.unwrap().bytes, PAGE);
}

#[test]
fn a_queue_keeps_its_depth_and_gives_every_buffer_back() {
    let server = Server::new();
    let data = pattern(256 * PAGE);
    server.add_file("a", &data);
    for local_reads in [false, true] {
        server.state().local_reads = local_reads;
        let client = server.client();
        let file = client.open("a").unwrap();
        let mut queue = Queue::new(&client);
        let mut rng = fastrand::Rng::with_seed(3);
        let (mut asked, mut next, mut done) = (HashMap::new(), 0u64, 0);
        while done < 2000 {
            while queue.len() < 32 && next < 2000 {
                let block = rng.usize(0..256);
                asked.insert(next, block);
                queue.read(&file, vec![0; PAGE], (block * PAGE) as u64, Path::Auto, next);
                next += 1;
            }
            let completion = queue.wait().expect("some are in flight");
            let block = asked.remove(&completion.token).expect("each token once");
            assert!(completion.buffer == data[block * PAGE..(block + 1) * PAGE]);
            assert!(matches!(completion.result, Ok(Outcome::Read(report)) if report.bytes == PAGE));
            done += 1;
        }
        assert!(queue.wait().is_none() && queue.is_empty());
        assert!(client.counters().ordma_pages > 1000);
    }
}

#[test]
fn a_queue_mixes_reads_and_writes_and_can_be_polled() {
    let server = Server::new();
    let client = server.client();
    let file = client.open_with("a", rw()).unwrap();
    let mut queue = Queue::new(&client);
    for i in 0..40u64 {
        let page = vec![i as u8; PAGE];
        queue.write(&file, page, i * PAGE as u64, Stability::Unstable, i);
    }
    let mut written = 0;
    while written < 40 {
        match queue.poll_completion() {
            Some(completion) => {
                assert!(matches!(completion.result, Ok(Outcome::Written(PAGE))));
                written += 1;
            }
            None => std::thread::yield_now(),
        }
    }
    for i in 0..40u64 {
        queue.read(&file, vec![0; PAGE], i * PAGE as u64, Path::Auto, i);
    }
    let mut read = 0;
    while let Some(completion) = queue.wait_timeout(Duration::from_secs(5)) {
        assert!(completion.buffer.iter().all(|byte| *byte == completion.token as u8));
        read += 1;
    }
    assert_eq!(read, 40);
}

#[test]
fn a_queue_may_be_dropped_with_operations_in_flight() {
    let server = Server::new();
    server.add_file("a", &pattern(64 * PAGE));
    let client = server.client();
    let file = client.open("a").unwrap();
    let mut queue = Queue::new(&client);
    for i in 0..64 {
        queue.read(&file, vec![0; PAGE], i * PAGE as u64, Path::Inline, i);
    }
    drop(queue);
    assert_eq!(file.read_at_by(&mut [0; PAGE], 0, Path::Inline).unwrap().bytes, PAGE);
}

#[test]
fn several_threads_share_a_client() {
    let server = Server::new();
    let data = pattern(64 * PAGE);
    server.add_file("a", &data);
    // Few slots and fewer credits, so that requests wait for each other.
    server.state().slots = 4;
    server.state().credits = 2;
    let client = server.client_with(Options { slots: 4, ..options() });
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let (client, data) = (&client, &data);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let file = client.open("a").unwrap();
                let mut buf = vec![0; PAGE];
                for _ in 0..500 {
                    let block = rng.usize(0..64);
                    let path = [Path::Auto, Path::Inline, Path::Direct][rng.usize(0..3)];
                    file.read_at_by(&mut buf, (block * PAGE) as u64, path).unwrap();
                    assert!(buf == data[block * PAGE..(block + 1) * PAGE]);
                }
            });
        }
    });
}

#[test]
fn blocking_and_asynchronous_users_share_a_client() {
    let server = Server::new();
    let data = pattern(32 * PAGE);
    server.add_file("a", &data);
    let client = server.client();
    let file = client.open("a").unwrap();
    let there = client.clone().into_async();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            block_on(async {
                let file = there.open("a").await.unwrap();
                for i in 0..300 {
                    let path = [Path::Auto, Path::Inline][i % 2];
                    let (report, _) = file.read_at_by(vec![0; PAGE], 0, path).await;
                    assert_eq!(report.unwrap().bytes, PAGE);
                }
            });
        });
        let mut buf = vec![0; PAGE];
        for i in 0..300 {
            let path = [Path::Inline, Path::Auto][i % 2];
            assert_eq!(file.read_at_by(&mut buf, 0, path).unwrap().bytes, PAGE);
        }
    });
}

#[test]
fn clients_and_files_may_move_between_threads() {
    fn sendable<T: Send + Sync>() {}
    sendable::<dafs_client::blocking::Client>();
    sendable::<dafs_client::blocking::File>();
    sendable::<dafs_client::Client>();
    sendable::<dafs_client::File>();
    fn send<T: Send>(_: T) {}
    let server = Server::new();
    server.add_file("a", b"x");
    let client = block_on(Client::connect_over(server.connector(), "data", options())).unwrap();
    let file = block_on(client.open("a")).unwrap();
    send(file.read_at(Vec::new(), 0));
    send(file.write_at(Vec::new(), 0));
    send(client.open("a"));
    send(client.read_dir("a"));
    send(file.commit(0, 0));
}
