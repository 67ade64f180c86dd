//! The graph on this machine, or on the nodes of an allocation: as many tasks at once as their budgets allow.
//!
//! One thread a running task (`workers`) goes from its folders to its record. The scheduler decides what may start,
//! and tells tasks to end; the records are written by this one process, which keeps them open. On another node a task is a
//! job step, which writes its own.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::apart::Apart;
use super::graph::{Graph, Ready, Skipped};
use super::logs::Spares;
use super::memory::Counter;
use super::nodes::{Asked, Nodes, Taken};
use super::place::Place;
use super::task::{self, Work};
use super::watch::Watch;
use super::workers::{Given, Workers};
use crate::plan::Plan;
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

/// What stops a local run before its tasks are done.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot write the record of {stage}/{index}")]
    Record { stage: StageName, index: u32, source: io::Error },
    #[error("cannot remove empty logs")]
    Logs(#[source] io::Error),
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
    stop: Receiver<Stop>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Summary, LocalError> {
    nodes.fits(plan)?;
    let (counter, spares) = (Counter::open(), Spares::default());
    let work = Work {
        run,
        plan,
        place,
        counter: &counter,
        spares: Some(&spares),
    };
    let scheduler = Scheduler {
        run,
        nodes: nodes.clone(),
        graph: Graph::new(plan, |stage| Asked::by(stage, 0)),
        given: VecDeque::new(),
        running: Vec::new(),
        records: Open::default(),
        stopping: None,
        failed: None,
        summary: Summary::default(),
        progress,
    };
    let scheduler = Workers::new(work, scheduler, stop).run();
    let removed = spares.remove();
    let summary = scheduler.over()?;
    removed.map_err(LocalError::Logs)?;
    run.sync_records(plan.stages.iter().filter(|(_, stage)| !stage.todo.is_empty()).map(|(name, _)| name))?;
    Ok(summary)
}

/// What may start, what runs, and what has become of the rest.
pub(super) struct Scheduler<'a> {
    run: &'a RunDir,
    nodes: Nodes,
    graph: Graph<'a, Asked>,
    /// Tasks that count as running and that no worker has yet.
    pub given: VecDeque<Given<'a>>,
    running: Vec<Running>,
    records: Open,
    stopping: Option<Stop>,
    /// What keeps records from being written: nothing starts any more.
    failed: Option<LocalError>,
    summary: Summary,
    progress: &'a mut (dyn FnMut(Progress) + Send),
}

struct Running {
    task: Ready,
    taken: Taken,
    gpus: Vec<u32>,
    watch: Arc<Watch>,
}

impl<'a> Scheduler<'a> {
    /// Starts what may start and has a place: it is in [`Scheduler::given`] then.
    pub fn start_what_fits(&mut self) {
        while self.stopping.is_none() && self.failed.is_none() && (self.running.len() as u32) < self.nodes.jobs() {
            let nodes = &self.nodes;
            let Some((next, asked)) = self.graph.take(|asked| nodes.place(asked).is_some()) else {
                break;
            };
            let taken = self.nodes.place(asked).expect("it was chosen because it has a place");
            let started = self.start(next, taken);
            self.unless(started);
        }
    }

    /// A task has ended. What may start because of that has.
    pub fn ended(&mut self, task: Ready, record: io::Result<Record>) {
        let settled = self.settle(task, record);
        self.unless(settled);
        self.start_what_fits();
    }

    /// Nothing runs. Nothing will, after [`Scheduler::start_what_fits`].
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Does what has become due to the tasks that run.
    pub fn look(&self) {
        self.running.iter().for_each(|running| running.watch.look());
    }

    /// How it went, when nothing runs any more.
    fn over(mut self) -> Result<Summary, LocalError> {
        self.summary.stopped = self.stopping.is_some();
        self.summary.not_run += self.graph.never_started();
        self.failed.map_or(Ok(self.summary), Err)
    }

    fn unless(&mut self, done: Result<(), LocalError>) {
        let Err(error) = done else { return };
        // Nobody would write down how they end.
        self.running.iter().for_each(|running| running.watch.stop());
        self.failed.get_or_insert(error);
    }

    /// A wish to stop.
    pub fn heed(&mut self, wish: Stop) {
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
        let apart = Apart::of(&stage.stage, self.nodes.step(taken), taken.memory());
        let watch = Arc::new(apart.as_ref().map_or_else(Watch::new, Apart::watch));
        self.running.push(Running {
            task: next,
            taken,
            gpus: gpus.clone(),
            watch: Arc::clone(&watch),
        });
        self.given.push_back(Given {
            task: next,
            stage,
            apart,
            gpus,
            records,
            watch,
        });
        Ok(())
    }

    fn settle(&mut self, task: Ready, record: io::Result<Record>) -> Result<(), LocalError> {
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
