//! The graph on this machine, or on the nodes of an allocation: as many tasks at once as their budgets allow.
//!
//! One thread a running task goes through [`super::task`] from its folders to its record, and lives to the end of the run: a
//! program dies with the thread that started it, and so with this process. The scheduler decides what may start, and
//! tells tasks to end; the records are written by this one process, which keeps them open. On another node a task is a job
//! step, which writes its own.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::apart::Apart;
use super::graph::{Graph, Ready, Skipped};
use super::nodes::{Asked, Nodes, Taken};
use super::place::Place;
use super::task::{self, Numbered};
use super::watch::Watch;
use crate::plan::{Plan, StagePlan};
use crate::state::{Outcome, Record, Records, RunDir, StateError};
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

/// Runs what the plan says is to do of `run` on `nodes`, here in `place`; `stop` may be sent to at any time.
///
/// # Errors
/// A stage that can never fit on any of `nodes` (found before anything starts), or a run folder that cannot be written.
/// A failing task is no error: it is counted in the [`Summary`].
pub fn run(
    run: &RunDir,
    plan: &Plan,
    nodes: &Nodes,
    place: &Place,
    stop: &Receiver<Stop>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, LocalError> {
    nodes.fits(plan)?;
    let summary = std::thread::scope(|scope| {
        let (sender, ended) = mpsc::channel();
        let mut scheduler = Scheduler {
            run,
            nodes: nodes.clone(),
            graph: Graph::new(plan, |stage| Asked::by(stage, 0)),
            workers: Workers {
                scope,
                work: Work { run, plan, place },
                threads: Vec::new(),
                idle: Vec::new(),
                ended: sender,
            },
            running: Vec::new(),
            records: Open::default(),
            stopping: None,
            summary: Summary::default(),
            progress,
        };
        let done = scheduler.schedule(stop, &ended);
        if done.is_err() {
            // Nobody would write down how they end.
            scheduler.running.iter().for_each(|running| running.watch.stop());
            while !scheduler.running.is_empty() {
                scheduler.running.iter().for_each(|running| running.watch.look());
                if let Ok(end) = ended.recv_timeout(TICK) {
                    scheduler.running.retain(|running| running.task != end.task);
                }
            }
        }
        done.map(|()| scheduler.summary)
    })?;
    run.sync_records(plan.stages.iter().filter(|(_, stage)| !stage.todo.is_empty()).map(|(name, _)| name))?;
    Ok(summary)
}

struct Scheduler<'scope, 'env, 'a> {
    run: &'a RunDir,
    nodes: Nodes,
    graph: Graph<'a, Asked>,
    workers: Workers<'scope, 'env, 'a>,
    running: Vec<Running>,
    records: Open,
    stopping: Option<Stop>,
    summary: Summary,
    progress: &'a mut dyn FnMut(Progress),
}

struct Running {
    task: Ready,
    taken: Taken,
    gpus: Vec<u32>,
    watch: Arc<Watch>,
}

impl<'scope, 'a: 'scope> Scheduler<'scope, '_, 'a> {
    fn schedule(&mut self, stop: &Receiver<Stop>, ended: &Receiver<End>) -> Result<(), LocalError> {
        let mut looked = Instant::now();
        loop {
            stop.try_iter().for_each(|wish| self.heed(wish));
            while self.stopping.is_none() && (self.running.len() as u32) < self.nodes.jobs() {
                let nodes = &self.nodes;
                let Some((next, asked)) = self.graph.take(|asked| nodes.place(asked).is_some()) else {
                    break;
                };
                let taken = self.nodes.place(asked).expect("it was chosen because it has a place");
                self.start(next, taken)?;
            }
            if self.running.is_empty() {
                break;
            }
            // Woken now and then to see whether a stop was asked for, or a time limit reached.
            if let Ok(end) = ended.recv_timeout(TICK) {
                self.ended(end)?;
            }
            if looked.elapsed() >= TICK {
                self.running.iter().for_each(|running| running.watch.look());
                looked = Instant::now();
            }
        }
        self.summary.stopped = self.stopping.is_some();
        self.summary.not_run += self.graph.never_started();
        Ok(())
    }

    fn heed(&mut self, wish: Stop) {
        if self.stopping == Some(Stop::Now) || self.stopping == Some(wish) {
            return;
        }
        self.stopping = Some(wish);
        (self.progress)(Progress::Stopping {
            wish,
            running: self.running.len(),
        });
        if wish == Stop::Now {
            self.running.iter().for_each(|running| running.watch.stop());
        }
    }

    fn start(&mut self, next: Ready, taken: Taken) -> Result<(), LocalError> {
        let stage = self.graph.stage(next);
        let name = &stage.stage.name;
        let records = self.records.of(self.run, name).map_err(failed(name, next.index))?;
        let gpus = self.nodes.take(taken);
        (self.progress)(Progress::Started {
            stage: name.clone(),
            index: next.index,
            attempt: next.attempt,
        });
        let apart = Apart::of(&stage.stage, self.nodes.step(taken));
        let watch = Arc::new(apart.as_ref().map_or_else(Watch::new, Apart::watch));
        self.running.push(Running {
            task: next,
            taken,
            gpus: gpus.clone(),
            watch: Arc::clone(&watch),
        });
        self.workers.give(Given {
            task: next,
            stage,
            apart,
            gpus,
            records,
            watch,
        });
        Ok(())
    }

    fn ended(&mut self, end: End) -> Result<(), LocalError> {
        let End { task, record, worker } = end;
        self.workers.idle.push(worker);
        let place = self.running.iter().position(|running| running.task == task);
        let running = self.running.swap_remove(place.expect("only running tasks end"));
        self.nodes.give_back(running.taken, running.gpus);
        let stage = self.graph.stage(task);
        let name = &stage.stage.name;
        let record = record.map_err(failed(name, task.index))?;
        let ok = record.outcome == Outcome::Ok;
        let again = self.stopping.is_none() && task::retries(&stage.stage.retry, &record);
        (self.progress)(Progress::Ended {
            stage: name.clone(),
            index: task.index,
            record,
        });
        if again {
            let attempt = task.attempt + 1;
            (self.progress)(Progress::Retrying {
                stage: name.clone(),
                index: task.index,
                attempt,
            });
            self.graph.put_back(Ready { attempt, ..task }, Asked::by(stage, attempt));
            return Ok(());
        }
        if ok {
            self.summary.ok += 1;
        } else {
            self.summary.failed += 1;
        }
        for skipped in self.graph.ended(task, ok) {
            self.skipped(&skipped)?;
        }
        Ok(())
    }

    fn skipped(&mut self, skipped: &Skipped<'a>) -> Result<(), LocalError> {
        let record = unstarted(Outcome::UpstreamFailed, format!("{} did not end well", skipped.by));
        let records = self.records.of(self.run, skipped.stage);
        let written = records.and_then(|records| records.write(skipped.index, &record));
        written.map_err(failed(skipped.stage, skipped.index))?;
        self.summary.not_run += 1;
        (self.progress)(Progress::Skipped {
            stage: skipped.stage.clone(),
            index: skipped.index,
            by: skipped.by.clone(),
        });
        Ok(())
    }
}

fn failed(stage: &StageName, index: u32) -> impl FnOnce(io::Error) -> LocalError + '_ {
    move |source| LocalError::Record {
        stage: stage.clone(),
        index,
        source,
    }
}

/// The records that were written last, kept open: there may be more stages than a process may have files.
#[derive(Default)]
struct Open(VecDeque<(StageName, Arc<Records>)>);

impl Open {
    const MOST: usize = 32;

    fn of(&mut self, run: &RunDir, stage: &StageName) -> io::Result<Arc<Records>> {
        if let Some((_, records)) = self.0.iter().rev().find(|(name, _)| name == stage) {
            return Ok(Arc::clone(records));
        }
        if self.0.len() == Open::MOST {
            self.0.pop_front();
        }
        let records = Arc::new(run.records(stage).keep_open()?);
        self.0.push_back((stage.clone(), Arc::clone(&records)));
        Ok(records)
    }
}

/// What all tasks have in common.
#[derive(Clone, Copy)]
struct Work<'a> {
    run: &'a RunDir,
    plan: &'a Plan,
    place: &'a Place,
}

/// A task for a worker.
struct Given<'a> {
    task: Ready,
    stage: &'a StagePlan,
    /// Where it runs, if not on a worker's own thread.
    apart: Option<Apart>,
    /// The numbers of its own.
    gpus: Vec<u32>,
    records: Arc<Records>,
    watch: Arc<Watch>,
}

/// What a worker sends when its task has ended, and its record is written.
struct End {
    worker: usize,
    task: Ready,
    record: io::Result<Record>,
}

/// The threads that tasks run on: as many as there ever were tasks at once.
struct Workers<'scope, 'env, 'a> {
    scope: &'scope Scope<'scope, 'env>,
    work: Work<'a>,
    threads: Vec<Sender<Given<'a>>>,
    idle: Vec<usize>,
    ended: Sender<End>,
}

impl<'scope, 'a: 'scope> Workers<'scope, '_, 'a> {
    fn give(&mut self, given: Given<'a>) {
        let worker = self.idle.pop().unwrap_or_else(|| {
            let (sender, given) = mpsc::channel();
            let (work, ended, worker) = (self.work, self.ended.clone(), self.threads.len());
            self.scope.spawn(move || work.through(worker, &given, &ended));
            self.threads.push(sender);
            worker
        });
        self.threads[worker].send(given).expect("a worker lives as long as its sender");
    }
}

impl<'a> Work<'a> {
    /// A worker's life.
    fn through(self, worker: usize, given: &Receiver<Given<'a>>, ended: &Sender<End>) {
        for Given {
            task,
            stage,
            apart,
            gpus,
            records,
            watch,
        } in given
        {
            let numbered = Numbered {
                index: task.index,
                attempt: task.attempt,
            };
            let gpus = self.place.visible(apart.as_ref(), &gpus);
            let record = match apart {
                Some(apart) => {
                    let call = apart.call(self.run.path(), &stage.stage.name, numbered, self.place, &gpus);
                    task::apart(self.run, numbered, &records, &apart, &call, self.place, &watch)
                }
                None if gpus.is_empty() => task::once(self.run, self.plan, &stage.stage, numbered, &records, self.place, &watch),
                None => {
                    let place = self.place.with_variables(&gpus);
                    task::once(self.run, self.plan, &stage.stage, numbered, &records, &place, &watch)
                }
            };
            let record = record.and_then(|record| records.write(task.index, &record).map(|()| record));
            if ended.send(End { worker, task, record }).is_err() {
                break;
            }
        }
    }
}

/// The record of a task that did not get as far as writing its own.
pub(super) fn unstarted(outcome: Outcome, message: String) -> Record {
    let record = Record::new(outcome);
    Record {
        ended: Some(record.started),
        message,
        ..record
    }
}

/// Whether a stage that is to run asks for GPUs in a container, which then must see the driver.
pub fn wants_gpus(plan: &Plan) -> bool {
    let mut running = plan.stages.values().filter(|stage| !stage.todo.is_empty());
    running.any(|stage| stage.stage.resources.gpus > 0 && stage.stage.image.is_some())
}
