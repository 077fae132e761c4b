//! The engine `sim` in this suite, whose tests wait in real time.

use crate::harness::Row;
use ordma::sim::{Faults, Sim, World};
use ordma::{Arena, Connector, Engine, LinkError, Listener, Service};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The row of the engine.
pub fn row() -> Row {
    let world = World::new(fastrand::u64(..));
    world.set_faults(Faults {
        // Long enough that nothing arrives between two calls of a test, which expects that nothing
        // happens while no one drives.
        latency_min: Duration::from_millis(3),
        latency_max: Duration::from_millis(5),
        ..Faults::default()
    });
    let done = Arc::new(AtomicBool::new(false));
    let (running, ended) = (world.clone(), Arc::clone(&done));
    let pump = std::thread::spawn(move || {
        let mut last = Instant::now();
        while !ended.load(Ordering::Relaxed) {
            let now = Instant::now();
            running.advance(now - last);
            last = now;
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    let engine = Pumped { sim: Sim::new(&world), done, pump: Some(pump) };
    Row::new(engine, "server")
}

/// The engine with a thread that lets virtual time pass at least as fast as real time: where the
/// server's side waits, no one drives.
#[derive(Debug)]
struct Pumped {
    sim: Sim,
    done: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Engine for Pumped {
    fn name(&self) -> &'static str {
        self.sim.name()
    }

    fn listen(
        &self,
        address: &str,
        service: Arc<dyn Service>,
        arena: Arc<Arena>,
    ) -> Result<Arc<dyn Listener>, LinkError> {
        self.sim.listen(address, service, arena)
    }

    fn connector(&self, address: &str) -> Arc<dyn Connector> {
        self.sim.connector(address)
    }
}

impl Drop for Pumped {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take()
            && pump.join().is_err()
            && !std::thread::panicking()
        {
            panic!("a callback panicked");
        }
    }
}
