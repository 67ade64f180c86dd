//! The program of a task while it runs: signals and time limit on one side, its end on the other.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::io::Io;
use super::local::GRACE;
use super::memory;
use super::task::TaskError;

/// A program's end as its parent sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    /// As a shell reports it: 128 + n for signal n.
    pub exit: i32,
    /// User and system time of it and its descendants.
    pub cpu: Duration,
    /// Peak resident memory of the largest of them, bytes.
    pub memory: u64,
    /// Bytes that they read and wrote; `None` where the kernel does not count them.
    pub io: Option<Io>,
}

/// How a program ended, and what made it end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

enum Message {
    Signal(i32),
    Ended(Result<Ended, TaskError>),
}

/// Runs `start` on a thread of its own (a program dies with the thread that started it), hands on SIGTERM (as which
/// SIGINT and SIGHUP count) and SIGUSR2, and ends the program at `limit`: SIGTERM, and SIGKILL after [`GRACE`].
///
/// Slurm's warning before its own time limit is SIGUSR1 (`--signal=B:USR1`): a later SIGTERM then means that limit.
///
/// `start` gets a function to report the process (a negative id is a process group).
///
/// # Errors
/// Those of `start`, and failing to install signal handlers.
pub(super) fn supervise(
    limit: Option<Duration>,
    start: impl FnOnce(&dyn Fn(Pid)) -> Result<Ended, TaskError> + Send,
) -> Result<End, TaskError> {
    let (sender, messages) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2]).map_err(TaskError::Supervise)?;
    let handle = signals.handle();
    std::thread::scope(|scope| {
        let signal_sender = sender.clone();
        scope.spawn(move || {
            for signal in signals.forever() {
                if signal_sender.send(Message::Signal(signal)).is_err() {
                    break;
                }
            }
        });
        let (pid_sender, pid) = mpsc::channel();
        scope.spawn(move || {
            let status = start(&|pid| {
                memory::goes_first(pid);
                pid_sender.send(pid).unwrap_or_default();
            });
            drop(pid_sender);
            report(&sender, Message::Ended(status));
        });
        let mut running = Running {
            pid: pid.recv().ok(),
            cause: Cause::Own,
            warned: false,
            kill_at: None,
        };
        let time_up = limit.map(|limit| Instant::now() + limit);
        let status = loop {
            let deadline = match (running.kill_at, time_up) {
                (Some(kill_at), _) => Some(kill_at),
                (None, time_up) => time_up,
            };
            let wait = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            match messages.recv_timeout(wait) {
                Ok(Message::Ended(status)) => break status,
                Ok(Message::Signal(signal)) => running.signalled(signal),
                Err(RecvTimeoutError::Timeout) if running.kill_at.is_some() => running.kill(),
                Err(RecvTimeoutError::Timeout) => running.stop(Cause::Time),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the thread that waits for the program sends its end"),
            }
        };
        handle.close();
        Ok(End {
            ended: status?,
            cause: running.cause,
        })
    })
}

fn report(sender: &Sender<Message>, message: Message) {
    // The receiver waits for exactly this message.
    sender.send(message).unwrap_or_default();
}

struct Running {
    pid: Option<Pid>,
    cause: Cause,
    /// Slurm has said that its time limit is near.
    warned: bool,
    kill_at: Option<Instant>,
}

impl Running {
    fn signalled(&mut self, number: i32) {
        match number {
            SIGTERM | SIGINT | SIGHUP => self.stop(if self.warned { Cause::Time } else { Cause::Stopped }),
            // Not handed on: a program that does not expect it would die of it, a minute before its time.
            SIGUSR1 => self.warned = true,
            SIGUSR2 => self.send(Signal::SIGUSR2),
            _ => {}
        }
    }

    fn stop(&mut self, cause: Cause) {
        if self.kill_at.is_none() {
            self.cause = cause;
            self.kill_at = Some(Instant::now() + GRACE);
            self.send(Signal::SIGTERM);
        }
    }

    fn kill(&mut self) {
        self.send(Signal::SIGKILL);
        self.kill_at = Some(Instant::now() + GRACE);
    }

    fn send(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // It may have ended in this moment: then there is nobody left to tell.
            signal::kill(pid, signal).unwrap_or_default();
        }
    }
}
