//! The program of a task while it runs, as those see it who may end it: signals, a wish to stop, its time limit.
//!
//! The thread that starts the program waits for it. Others look at its [`Watch`] meanwhile: under Slurm two threads of the
//! task's own process ([`attended`]), on this machine the scheduler.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::local::GRACE;
use super::memory;
use crate::runtime::Io;

/// A program's end as its parent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    /// As a shell reports it: 128 + n for signal n.
    pub exit: i32,
    /// User and system time of it and its descendants.
    pub cpu: Duration,
    /// Peak resident memory of the largest of them, bytes.
    pub memory: u64,
    /// Bytes that they read and wrote; `None` where the kernel does not count them.
    pub io: Option<Io>,
    /// What of its image could not be read, a sentence each.
    pub damage: Vec<String>,
}

/// How a program ended, and what made it end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub ended: Ended,
    pub cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// By itself.
    Own,
    /// The time limit was reached.
    Time,
    /// It was told to stop from outside.
    Stopped,
}

/// One program, from before its start to its end.
pub(super) struct Watch {
    program: Mutex<Program>,
    /// Its time limit is known, or it is over.
    changed: Condvar,
}

struct Program {
    /// A negative id is a process group. `None`: not started yet, or over.
    pid: Option<Pid>,
    cause: Cause,
    /// Slurm has said that its time limit is near.
    warned: bool,
    time_up: Option<Instant>,
    /// It was told to stop: when it is killed.
    kill_at: Option<Instant>,
    /// What tells it to stop.
    told_by: Signal,
    /// Between that and SIGKILL.
    grace: Duration,
    over: bool,
}

impl Watch {
    pub fn new() -> Watch {
        Watch::telling(Signal::SIGTERM, GRACE)
    }

    /// Of a task in a process apart, which needs time to end its program and to write its record.
    pub fn of_task() -> Watch {
        Watch::telling(Signal::SIGTERM, GRACE * 3 / 2)
    }

    /// Of what hands a signal on to a task elsewhere.
    pub fn of_step() -> Watch {
        // `srun` makes SIGKILL of SIGTERM.
        Watch::telling(Signal::SIGINT, GRACE * 3 / 2)
    }

    fn telling(stop: Signal, grace: Duration) -> Watch {
        Watch {
            program: Mutex::new(Program {
                pid: None,
                cause: Cause::Own,
                warned: false,
                time_up: None,
                kill_at: None,
                told_by: stop,
                grace,
                over: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn program(&self) -> MutexGuard<'_, Program> {
        // Nobody panics while holding it, and each change is whole.
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It runs as `pid` (a negative id is a process group), and is ended at `limit`: SIGTERM, and SIGKILL after [`GRACE`]. A
    /// stop that was asked for before reaches it now.
    pub fn began(&self, pid: Pid, limit: Option<Duration>) {
        memory::goes_first(pid);
        let mut program = self.program();
        program.pid = Some(pid);
        program.time_up = limit.map(|limit| Instant::now() + limit);
        if program.kill_at.is_some() {
            program.send(program.told_by);
        }
        self.changed.notify_all();
    }

    /// It has ended and its id is still taken: nothing is sent to it from now on. What made it end.
    pub fn ended(&self) -> Cause {
        let mut program = self.program();
        program.pid = None;
        program.cause
    }

    /// What made it end, after that: the signal that ended it may reach this process a moment later, since whoever ends all of
    /// a job's processes comes to one after the other.
    pub fn told_within(&self, patience: Duration) -> Cause {
        let told = self
            .changed
            .wait_timeout_while(self.program(), patience, |program| program.cause == Cause::Own);
        let (program, _) = told.unwrap_or_else(PoisonError::into_inner);
        program.cause
    }

    /// Hands on SIGTERM (as which SIGINT and SIGHUP count) and SIGUSR2. Slurm's warning before its own time limit is SIGUSR1
    /// (`--signal=B:USR1`): a later SIGTERM then means that limit.
    fn signalled(&self, number: i32) {
        let mut program = self.program();
        match number {
            SIGTERM | SIGINT | SIGHUP => {
                let cause = if program.warned { Cause::Time } else { Cause::Stopped };
                program.stop(cause);
            }
            // Not handed on: a program that does not expect it would die of it, a minute before its time.
            SIGUSR1 => program.warned = true,
            SIGUSR2 => program.send(Signal::SIGUSR2),
            _ => {}
        }
        self.changed.notify_all();
    }

    /// Tells it to stop: SIGTERM now, or as soon as it runs, and SIGKILL after [`GRACE`].
    pub fn stop(&self) {
        self.program().stop(Cause::Stopped);
    }

    /// Does what has become due.
    pub fn look(&self) {
        self.program().look(Instant::now());
    }

    /// Does what becomes due until all is over.
    fn attend(&self) {
        let mut program = self.program();
        while !program.over {
            program = match program.look(Instant::now()) {
                None => self.changed.wait(program).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let left = due.saturating_duration_since(Instant::now());
                    let (program, _) = self.changed.wait_timeout(program, left).unwrap_or_else(PoisonError::into_inner);
                    program
                }
            };
        }
    }

    fn over(&self) {
        self.program().over = true;
        self.changed.notify_all();
    }
}

impl Program {
    fn stop(&mut self, cause: Cause) {
        if self.kill_at.is_none() {
            self.cause = cause;
            self.kill_at = Some(Instant::now() + self.grace);
            self.send(self.told_by);
        }
    }

    /// Does what is due at `now`; gives when there is more to do.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        self.pid?;
        match (self.kill_at, self.time_up) {
            (Some(due), _) if due <= now => {
                self.send(Signal::SIGKILL);
                self.kill_at = Some(now + self.grace);
            }
            (None, Some(due)) if due <= now => self.stop(Cause::Time),
            _ => {}
        }
        self.kill_at.or(self.time_up)
    }

    fn send(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // It may have ended in this moment: then there is nobody left to tell.
            signal::kill(pid, signal).unwrap_or_default();
        }
    }
}

/// Does `work`, during which this process's signals go to `watch`, and its time limit is seen to.
///
/// # Errors
/// Failing to install signal handlers.
pub(super) fn attended<T>(watch: &Watch, work: impl FnOnce() -> T) -> io::Result<T> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
    let handle = signals.handle();
    std::thread::scope(|scope| {
        scope.spawn(move || signals.forever().for_each(|number| watch.signalled(number)));
        scope.spawn(|| watch.attend());
        let done = work();
        handle.close();
        watch.over();
        Ok(done)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command};

    use super::*;

    fn sleeper(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap()
    }

    #[test]
    fn a_stop_before_the_start_is_not_lost() {
        let watch = Watch::new();
        watch.stop();
        let mut child = sleeper("sleep 1000");
        watch.began(Pid::from_raw(-(child.id() as i32)), None);
        assert_eq!(child.wait().unwrap().signal(), Some(SIGTERM));
        assert_eq!(watch.ended(), Cause::Stopped);
    }

    #[test]
    fn a_time_limit_is_a_cause_of_its_own_and_a_warned_stop_too() {
        let watch = Watch::new();
        let mut child = sleeper("sleep 1000");
        watch.began(Pid::from_raw(-(child.id() as i32)), Some(Duration::ZERO));
        watch.look();
        assert_eq!(child.wait().unwrap().signal(), Some(SIGTERM));
        assert_eq!(watch.ended(), Cause::Time);
        let watch = Watch::new();
        watch.signalled(SIGUSR1);
        watch.signalled(SIGTERM);
        assert_eq!(watch.ended(), Cause::Time);
    }

    #[test]
    fn nothing_is_sent_to_what_has_ended() {
        let watch = Watch::new();
        // Not by a shell, which may take a signal for its own while it starts something.
        let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let group = Pid::from_raw(-(child.id() as i32));
        watch.began(group, Some(Duration::ZERO));
        assert_eq!(watch.ended(), Cause::Own);
        watch.stop();
        watch.look();
        signal::kill(group, Signal::SIGUSR1).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(SIGUSR1));
    }

    #[test]
    fn work_is_attended_to_its_end() {
        let watch = Watch::new();
        let status = attended(&watch, || {
            let mut child = sleeper("trap '' TERM; sleep 1000 & wait");
            watch.began(Pid::from_raw(-(child.id() as i32)), Some(Duration::from_millis(50)));
            // What is told to stop and does not is killed after the grace; here it is made due at once.
            loop {
                let mut program = watch.program();
                if program.kill_at.is_some() {
                    program.kill_at = Some(Instant::now());
                    watch.changed.notify_all();
                    break;
                }
                drop(program);
                std::thread::yield_now();
            }
            child.wait().unwrap()
        });
        assert_eq!((status.unwrap().signal(), watch.ended()), (Some(9), Cause::Time));
    }
}
