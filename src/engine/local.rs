//! The graph on this machine, or on the nodes of an allocation: as many tasks at once as their budgets allow.
//!
//! Every task is a child process, `dvrun __task RUN STAGE INDEX` (on another node behind `srun`), that writes its own record; the scheduler only
//! decides what may start. One thread a running task waits for it, so that a task dies with the scheduler.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::graph::{Graph, Ready};
use super::nodes::{Nodes, Taken};
use crate::plan::{Plan, StagePlan};
use crate::runtime::spawn_host;
use crate::state::{Outcome, Record, RunDir, StateError};
use crate::workflow::StageName;

/// What may be in use at once on one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    pub gpus: u32,
    /// Tasks at once, whatever they ask for.
    pub jobs: u32,
}

/// What the scheduler tells its caller while it works.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    Started {
        stage: StageName,
        index: u32,
        attempt: u32,
    },
    Ended {
        stage: StageName,
        index: u32,
        record: Record,
    },
    Retrying {
        stage: StageName,
        index: u32,
        attempt: u32,
    },
    /// It will not start, since what it needs did not end well.
    Skipped {
        stage: StageName,
        index: u32,
        by: StageName,
    },
    /// Asked to stop; this many tasks still run.
    Stopping {
        wish: Stop,
        running: usize,
    },
}

/// How much of a hurry a stop is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing new starts; what runs may end.
    Finish,
    /// What runs is told to end (SIGTERM), and made to after [`GRACE`].
    Now,
}

/// Time between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);

/// How soon a wish to stop is seen.
const TICK: Duration = Duration::from_millis(50);

/// What stops a local run before its tasks are done.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot write the record of {stage}/{index}")]
    Record { stage: StageName, index: u32, source: io::Error },
    #[error("stage `{stage}` asks for {asked}, and this machine has {available}")]
    TooLarge {
        stage: StageName,
        asked: String,
        available: String,
    },
}

impl LocalError {
    pub fn hint(&self) -> Option<String> {
        match self {
            LocalError::State(error) => error.hint(),
            LocalError::TooLarge { .. } => {
                Some("lower the stage's `resources`, or submit the workflow to a cluster: `dvrun submit`".into())
            }
            _ => None,
        }
    }
}

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub ok: u32,
    pub failed: u32,
    /// Tasks that did not start: something they need failed, or a stop came first.
    pub not_run: u32,
    pub stopped: bool,
}

/// Makes the command of one task, given stage, index, attempt and the node (`None`: this machine).
pub type MakeTask<'a> = dyn Fn(&StageName, u32, u32, Option<&str>) -> Command + Sync + 'a;

/// Runs what the plan says is to do; `task` makes the tasks' commands, and `stop` may be sent to at any time.
///
/// # Errors
/// A stage that can never fit on any of `nodes` (found before anything starts), or a run folder that cannot be written.
/// A failing task is no error: it is counted in the [`Summary`].
pub fn run(
    run: &RunDir,
    plan: &Plan,
    nodes: &Nodes,
    task: &MakeTask<'_>,
    stop: &Receiver<Stop>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, LocalError> {
    nodes.fits(plan)?;
    let mut graph = Graph::new(plan);
    let (ended_sender, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut nodes = nodes.clone();
        let mut running: Vec<Running> = Vec::new();
        let mut summary = Summary::default();
        let mut stopping = Stopping::default();
        loop {
            stopping.heed(stop, &running, progress);
            while stopping.wish.is_none() && (running.len() as u32) < nodes.jobs() {
                let mut place = None;
                let fits = |stage: &StagePlan, attempt| {
                    place = nodes.place(stage, attempt);
                    place.is_some()
                };
                let (Some(next), Some(taken)) = (graph.take(fits), place) else {
                    break;
                };
                let stage = graph.stage(next);
                nodes.take(taken);
                let name = &stage.stage.name;
                progress(Progress::Started {
                    stage: name.clone(),
                    index: next.index,
                    attempt: next.attempt,
                });
                let command = task(name, next.index, next.attempt, nodes.name(taken));
                let (pid_sender, pid) = mpsc::channel();
                let ended_sender = ended_sender.clone();
                let elsewhere = nodes.name(taken).is_some();
                let spawn = if elsewhere { spawn_step } else { spawn_host };
                scope.spawn(move || wait_for(command, spawn, next, pid_sender, ended_sender));
                running.push(Running {
                    task: next,
                    elsewhere,
                    taken,
                    pid: pid.recv().ok().flatten(),
                });
            }
            if running.is_empty() {
                break;
            }
            // Woken now and then to see whether a stop was asked for.
            let Ok((task, spawned)) = ended.recv_timeout(TICK) else { continue };
            let place = running
                .iter()
                .position(|running| running.task == task)
                .expect("only running tasks end");
            nodes.give_back(running.swap_remove(place).taken);
            let stage = &graph.stage(task).stage;
            let name = &stage.name;
            let record = final_record(run, name, task, spawned)?;
            let again = stopping.wish.is_none() && super::task::retries(&stage.retry, &record);
            progress(Progress::Ended {
                stage: name.clone(),
                index: task.index,
                record: record.clone(),
            });
            if again {
                progress(Progress::Retrying {
                    stage: name.clone(),
                    index: task.index,
                    attempt: task.attempt + 1,
                });
                graph.put_back(Ready {
                    attempt: task.attempt + 1,
                    ..task
                });
                continue;
            }
            if record.outcome == Outcome::Ok {
                summary.ok += 1;
            } else {
                summary.failed += 1;
            }
            for skipped in graph.ended(task, record.outcome == Outcome::Ok) {
                let record = unstarted(Outcome::UpstreamFailed, format!("{} did not end well", skipped.by));
                let failed = |source| LocalError::Record {
                    stage: skipped.stage.clone(),
                    index: skipped.index,
                    source,
                };
                run.records(skipped.stage).write(skipped.index, &record).map_err(failed)?;
                summary.not_run += 1;
                progress(Progress::Skipped {
                    stage: skipped.stage.clone(),
                    index: skipped.index,
                    by: skipped.by.clone(),
                });
            }
        }
        summary.stopped = stopping.wish.is_some();
        summary.not_run += graph.never_started();
        Ok(summary)
    })
}

struct Running {
    task: Ready,
    taken: Taken,
    /// Its process here is an `srun`.
    elsewhere: bool,
    pid: Option<Pid>,
}

/// How a run is being stopped.
#[derive(Default)]
struct Stopping {
    wish: Option<Stop>,
    /// When what still runs is killed: the tasks themselves turn SIGTERM into SIGKILL after [`GRACE`], and this is for
    /// one that cannot.
    kill_at: Option<Instant>,
}

impl Stopping {
    /// Takes what was asked since, and what has become due.
    fn heed(&mut self, stop: &Receiver<Stop>, running: &[Running], progress: &mut dyn FnMut(Progress)) {
        for wish in stop.try_iter() {
            if self.wish == Some(Stop::Now) || self.wish == Some(wish) {
                continue;
            }
            self.wish = Some(wish);
            progress(Progress::Stopping {
                wish,
                running: running.len(),
            });
            if wish == Stop::Now {
                self.kill_at = Some(Instant::now() + GRACE + GRACE / 2);
                send(running, Signal::SIGTERM);
            }
        }
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            send(running, Signal::SIGKILL);
        }
    }
}

fn send(running: &[Running], signal: Signal) {
    for task in running {
        let Some(pid) = task.pid else { continue };
        // `srun` hands on an interrupt, which means the same to the task behind it, and makes SIGKILL of SIGTERM.
        let signal = match signal {
            Signal::SIGTERM if task.elsewhere => Signal::SIGINT,
            signal => signal,
        };
        // A task that has just ended by itself is as good as one that was ended.
        signal::kill(pid, signal).unwrap_or_default();
    }
}

type Spawn = fn(&mut Command) -> io::Result<Child>;

/// An `srun` must not die with this process: it tells the task behind it that its standard input has ended, and then ends.
fn spawn_step(command: &mut Command) -> io::Result<Child> {
    command.process_group(0).spawn()
}

/// Runs on a thread of its own for as long as the task does.
fn wait_for(mut command: Command, spawn: Spawn, task: Ready, pid: Sender<Option<Pid>>, ended: Sender<(Ready, io::Result<()>)>) {
    let result = match spawn(&mut command) {
        Ok(mut child) => {
            pid.send(Some(Pid::from_raw(child.id() as i32))).unwrap_or_default();
            child.wait().map(|_| ())
        }
        Err(error) => {
            pid.send(None).unwrap_or_default();
            Err(error)
        }
    };
    // The receiver lives as long as the scope; a send can only fail when the scheduler gave up on an error.
    ended.send((task, result)).unwrap_or_default();
}

/// The task's own record; where it left none (it was killed, or never started), one that says so.
fn final_record(run: &RunDir, stage: &StageName, task: Ready, spawned: io::Result<()>) -> Result<Record, LocalError> {
    let records = run.records(stage);
    let failed = |source| LocalError::Record {
        stage: stage.clone(),
        index: task.index,
        source,
    };
    let written = records.read_one(task.index).map_err(failed)?;
    let message = match (&written, spawned) {
        (Some(record), Ok(())) if record.outcome != Outcome::Running && record.attempt == task.attempt => return Ok(record.clone()),
        (_, Err(error)) => format!("the task could not be started: {error}"),
        (_, Ok(())) => "the task ended without a record: it was killed from outside".to_owned(),
    };
    let record = Record {
        attempt: task.attempt,
        ..unstarted(Outcome::Broken, message)
    };
    records.write(task.index, &record).map_err(failed)?;
    Ok(record)
}

/// The record of a task that did not get as far as writing its own.
pub(super) fn unstarted(outcome: Outcome, message: String) -> Record {
    let now = jiff::Timestamp::now().as_millisecond();
    Record {
        outcome,
        attempt: 0,
        host: String::new(),
        pid: 0,
        job: None,
        started: now,
        ended: Some(now),
        cpu: None,
        memory: None,
        message,
    }
}
