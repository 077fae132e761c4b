//! Where processes run, and keeping those CPUs awake.
//!
//! A halted virtual CPU takes 30 to 40 us to wake, so the same round trip takes 8 us or 80. The
//! bench therefore decides itself which CPU a process runs on, and keeps each of them awake with a
//! process of the class SCHED_IDLE, which runs when nothing else wants to and yields at once.
//!
//! No process of the bench outlives it: each asks the kernel for a signal when its parent dies.

use crate::cli::Switch;
use crate::error::{Context, Error, Result};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a spinner runs at most; it is replaced if the experiment takes longer.
const SPINNER_LIFE: Duration = Duration::from_secs(600);

/// Which CPUs client and server share or do not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// Client and server on one CPU.
    Same,
    /// Client and server on a CPU each.
    Cross,
}

impl Place {
    /// The name in options and results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Cross => "cross",
        }
    }
}

/// The CPUs of an experiment.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    pub(crate) place: Place,
    /// The server's CPU.
    pub(crate) server: usize,
    /// The clients' CPUs: several clients take them in turn.
    clients: Vec<usize>,
}

impl Placement {
    /// Chooses among the CPUs that this process may use; without a wish, `cross` where there are
    /// two.
    pub(crate) fn choose(wish: Option<Place>) -> Result<Self> {
        Self::among(&allowed_cpus()?, wish)
    }

    fn among(cpus: &[usize], wish: Option<Place>) -> Result<Self> {
        let (first, second) = (cpus.first().copied(), cpus.get(1).copied());
        match (wish, first, second) {
            (Some(Place::Same), Some(cpu), _) | (None, Some(cpu), None) => {
                Ok(Self { place: Place::Same, server: cpu, clients: vec![cpu] })
            }
            (Some(Place::Cross) | None, Some(client), Some(server)) => {
                let mut clients = vec![client];
                clients.extend(&cpus[2..]);
                Ok(Self { place: Place::Cross, server, clients })
            }
            (Some(Place::Cross), Some(cpu), None) => Err(Error::Usage(format!(
                "--place cross needs two CPUs, and CPU {cpu} is the only one this process may use"
            ))),
            (_, None, _) => Err(Error::Usage("this process may use no CPU".into())),
        }
    }

    /// The CPU of the client with this number.
    pub(crate) fn client(&self, number: usize) -> usize {
        self.clients[number % self.clients.len()]
    }

    /// All CPUs of an experiment with so many clients.
    pub(crate) fn cpus(&self, clients: usize) -> Vec<usize> {
        let mut cpus: Vec<usize> = (0..clients.max(1)).map(|n| self.client(n)).collect();
        cpus.push(self.server);
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }
}

fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).context(|| "asking which CPUs may be used".into())?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Binds the calling thread, and those it starts from now on, to a CPU.
pub(crate) fn bind(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU {
        return Err(Error::Usage(format!("CPU {cpu}: at most {}", CpuSet::MAX_CPU - 1)));
    }
    set.set(cpu);
    sched_setaffinity(None, &set).context(|| format!("binding to CPU {cpu}"))
}

/// This very program, to be run as a helper.
pub(crate) fn this_program() -> Result<OsString> {
    let path = std::env::current_exe().context(|| "finding this program".into())?;
    Ok(path.into_os_string())
}

/// A command that runs `program`, in a process group of its own, bound to `cpu` and not longer than
/// this process. The terminal's interrupt goes to the bench alone, which ends its helpers in order.
pub(crate) fn placed(cpu: usize, program: &OsStr) -> Result<Command> {
    let mut command = Command::new(this_program()?);
    command.args(["launch", "--parent", &std::process::id().to_string(), &cpu.to_string(), "--"]);
    command.arg(program).process_group(0);
    Ok(command)
}

/// Asks for `signal` when the parent dies, and makes sure that it still lives.
fn follow_parent(parent: u32, signal: Signal) -> Result<()> {
    set_parent_process_death_signal(Some(signal))
        .context(|| "asking for a signal at the parent's death".into())?;
    if orphaned(parent) { Err(Error::Peer("the parent is gone".into())) } else { Ok(()) }
}

fn orphaned(parent: u32) -> bool {
    let parent = i32::try_from(parent).ok().and_then(Pid::from_raw);
    parent.is_none() || getppid() != parent
}

/// The helper `launch`: becomes another program, bound to a CPU. Returns only on failure.
pub(crate) fn launch(parent: u32, cpu: usize, command: &[OsString]) -> Result<()> {
    follow_parent(parent, Signal::TERM)?;
    bind(cpu)?;
    let (program, args) =
        command.split_first().ok_or_else(|| Error::Usage("launch: no command".into()))?;
    let error = Command::new(program).args(args).exec();
    Err(error).context(|| format!("running {}", program.display()))
}

/// The helper `spin`: keeps a CPU awake.
pub(crate) fn spin(parent: u32, cpu: usize) -> Result<()> {
    follow_parent(parent, Signal::KILL)?;
    bind(cpu)?;
    let begun = Instant::now();
    while begun.elapsed() < SPINNER_LIFE && !orphaned(parent) {
        for _ in 0..10_000 {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// Spinners that keep CPUs awake until this is dropped.
#[derive(Debug)]
pub(crate) struct Awake {
    spinners: Vec<(usize, Child)>,
}

impl Awake {
    /// Keeps no CPU awake.
    pub(crate) fn none() -> Self {
        Self { spinners: Vec::new() }
    }

    /// Keeps these CPUs awake, if that is wanted.
    pub(crate) fn new(wanted: Switch, cpus: &[usize]) -> Result<Self> {
        match wanted {
            Switch::On => Self::keep(cpus),
            Switch::Off => Ok(Self::none()),
        }
    }

    fn keep(cpus: &[usize]) -> Result<Self> {
        let mut awake = Self::none();
        for &cpu in cpus {
            let child = Self::start(cpu)?;
            awake.spinners.push((cpu, child));
        }
        for (cpu, child) in &mut awake.spinners {
            Self::confirm(*cpu, child)?;
        }
        Ok(awake)
    }

    /// Replaces spinners whose life has ended.
    pub(crate) fn renew(&mut self) -> Result<()> {
        for (cpu, child) in &mut self.spinners {
            if child.try_wait().context(|| "looking after a spinner".into())?.is_some() {
                *child = Self::start(*cpu)?;
                Self::confirm(*cpu, child)?;
            }
        }
        Ok(())
    }

    fn start(cpu: usize) -> Result<Child> {
        // The class is set by util-linux's `chrt`, for want of a safe call that does it.
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(this_program()?);
        command.args(["spin", "--parent", &std::process::id().to_string(), &cpu.to_string()]);
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().context(|| "starting chrt (of util-linux) to keep a CPU awake".into())
    }

    /// Waits until the spinner is in the idle class.
    fn confirm(cpu: usize, child: &mut Child) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let wrong = |what: &str| Error::Peer(format!("the spinner of CPU {cpu} {what}"));
        while Instant::now() < deadline {
            if child.try_wait().context(|| "looking after a spinner".into())?.is_some() {
                return Err(wrong("ended at once"));
            }
            if scheduling_class(child.id()) == Some(SCHED_IDLE) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(wrong("did not get into the class SCHED_IDLE"))
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for (_, child) in &mut self.spinners {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The kernel's number of the class.
const SCHED_IDLE: u32 = 5;

/// A process's scheduling class, field 41 of its `stat`.
fn scheduling_class(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, field 2, may hold spaces and brackets; field 3 comes after the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(41 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_needs_two_cpus_and_same_takes_one() {
        let same = Placement::among(&[4, 5], Some(Place::Same)).unwrap();
        assert_eq!((same.client(0), same.server, same.cpus(3)), (4, 4, vec![4]));
        let cross = Placement::among(&[4, 5], Some(Place::Cross)).unwrap();
        assert_eq!((cross.client(0), cross.client(1), cross.server), (4, 4, 5));
        assert!(Placement::among(&[4], Some(Place::Cross)).is_err());
        assert_eq!(Placement::among(&[4], None).unwrap().place, Place::Same);
        assert_eq!(Placement::among(&[4, 5], None).unwrap().place, Place::Cross);
    }

    #[test]
    fn clients_take_the_cpus_that_are_left() {
        let cross = Placement::among(&[0, 1, 2, 3], None).unwrap();
        assert_eq!([0, 1, 2, 3].map(|n| cross.client(n)), [0, 2, 3, 0]);
        assert_eq!(cross.cpus(2), [0, 1, 2]);
    }

    #[test]
    fn this_process_has_a_scheduling_class() {
        assert!(scheduling_class(std::process::id()).is_some());
        assert_eq!(scheduling_class(0), None);
    }
}
