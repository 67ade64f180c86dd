//! How a run stands: exit records first, then what Slurm says of the tasks that have none. Nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde::Serialize;

use super::seen::{Seen, SlurmView, View, cancelled, from_record, job_task, local, local_runner, slurm};
use super::slurm::{Intent, JobTask, Jobs, Slurm, SubmittedJob, active, by_stage, intents, jobs, query, stuck};
use crate::plan::{Plan, Reason, StagePlan, TaskSet};
use crate::state::{Journal, Mode, Outcome, Record, Records, RunDir, StateError};
use crate::workflow::StageName;

/// Tasks of one stage that are listed one by one; the others are counted, and their indices told.
const LISTED: usize = 100;

/// The whole run.
#[derive(Debug, Serialize)]
pub struct RunStatus {
    /// The run's id.
    pub run: String,
    pub name: String,
    pub mode: Mode,
    pub state: RunState,
    /// In the plan's order.
    pub stages: IndexMap<StageName, StageStatus>,
    /// Slurm's ids of the jobs that are queued or running and will go on.
    pub jobs: Vec<String>,
    /// Slurm's ids of the jobs that are queued and never run: what they need failed.
    pub stuck: Vec<String>,
    /// Slurm's queue gave no answer: what is active is not known.
    pub unanswered: bool,
    /// What could not be found out, and why.
    pub problems: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Every task that was selected ended well.
    Done,
    /// Something runs or will run.
    Active,
    /// Nothing runs any more, and something failed.
    Failed,
    /// Nothing runs, nothing failed, and not all is done: cancelled, interrupted, or not all was submitted.
    Incomplete,
}

#[derive(Debug, Serialize)]
pub struct StageStatus {
    pub tasks: u32,
    pub counts: BTreeMap<TaskState, u32>,
    /// Indices of the tasks that did not end well.
    pub failed: TaskSet,
    /// Why tasks wait, in words, and how many for that reason.
    pub waiting: BTreeMap<String, u32>,
    /// When the first of them is expected to start: the cluster's local time, as Slurm writes it.
    pub expected: Option<String>,
    /// The first tasks that did not end well.
    pub problems: Vec<TaskStatus>,
}

impl StageStatus {
    fn ended_badly(&self) -> bool {
        self.counts.keys().any(|state| state.is_failure() || *state == TaskState::Cancelled)
    }
}

/// One task that did not end well.
#[derive(Debug, Serialize)]
pub struct TaskStatus {
    pub index: u32,
    pub state: TaskState,
    /// The program's exit status, where there is one.
    pub exit: Option<i32>,
    pub attempt: u32,
    pub host: Option<String>,
    pub job: Option<String>,
    /// One line for people.
    pub message: String,
    /// The task's standard error; where it left none, what Slurm had to say.
    pub log: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Ended well: in this run, or before it.
    Ok,
    Running,
    /// Queued, or its turn has not come.
    Waiting,
    Failed,
    OutputMissing,
    OutOfMemory,
    TimedOut,
    NodeFail,
    Preempted,
    /// Never ran: something that it needs did not end well.
    UpstreamFailed,
    /// dvrun or the cluster could not do its part.
    Broken,
    Cancelled,
    /// Its process is gone and wrote no end.
    Interrupted,
    /// Not begun, and nothing will begin it.
    NotStarted,
    /// The selection left it out: this run says nothing of it.
    NotSelected,
    /// Nobody could be asked.
    Unknown,
}

impl TaskState {
    /// Whether it ended, and not well.
    pub fn is_failure(self) -> bool {
        use TaskState::*;
        matches!(
            self,
            Failed | OutputMissing | OutOfMemory | TimedOut | NodeFail | Preempted | UpstreamFailed | Broken
        )
    }

    fn is_active(self) -> bool {
        matches!(self, TaskState::Running | TaskState::Waiting)
    }
}

/// Why a status cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    State(#[from] StateError),
}

impl StatusError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        None
    }
}

/// How the run in `run` stands.
///
/// `slurm`: whom to ask about tasks without a final record, and whether those that ended badly are queued again; without it, or without
/// its answer, the former are unknown.
pub fn status(run: &RunDir, plan: &Plan, slurm: Option<&Slurm>) -> Result<RunStatus, StatusError> {
    Ok(seen(run, plan, slurm)?.0)
}

/// How one task stands, whether it ended well or not, and when it is expected to start.
///
/// # Errors
/// As [`status`].
pub fn status_of(
    run: &RunDir,
    plan: &Plan,
    stage: &StageName,
    index: u32,
    slurm: Option<&Slurm>,
) -> Result<(TaskStatus, Option<String>), StatusError> {
    let (status, view) = seen(run, plan, slurm)?;
    let planned = &plan.stages[stage];
    let record = read(&run.records(stage), planned.stage.tasks())?.swap_remove(index as usize);
    let upstream_failed = (planned.stage.needs.iter()).any(|need| status.stages.get(&need.stage).is_some_and(StageStatus::ended_badly));
    let seen = look(record.as_ref(), &view, planned, index, upstream_failed);
    let expected = seen.start.clone();
    Ok((task_status(run, planned, index, record.as_ref(), seen, &view), expected))
}

/// What is to be said of submissions of which nobody wrote down how they went: they go on, or were cut short.
fn open(intents: &[Intent]) -> Option<String> {
    const NAMED: usize = 3;
    let mut stages: Vec<&str> = intents.iter().map(|intent| intent.stage.0.as_str()).collect();
    stages.dedup();
    let (named, others) = stages.split_at(stages.len().min(NAMED));
    let names = named.join(", ");
    let which = match (named, others) {
        ([], _) => return None,
        ([_], []) => format!("stage {names}"),
        (_, []) => format!("stages {names}"),
        (_, others) => format!("stages {names} and {} more", others.len()),
    };
    Some(format!(
        "{which}: whether a job was submitted is not known yet; submitting again finds out"
    ))
}

fn seen(run: &RunDir, plan: &Plan, slurm: Option<&Slurm>) -> Result<(RunStatus, View), StatusError> {
    let mode = run.info()?.mode;
    let path = run.journal_path();
    let events = Journal::read(&path).map_err(|source| StatusError::Read { path, source })?;
    let mut problems = Vec::new();
    let mut records = Vec::new();
    for (name, stage) in &plan.stages {
        records.push(read(&run.records(name), stage.stage.tasks())?);
    }
    let view = match mode {
        Mode::Local => View::Local(local_runner(&events)),
        Mode::Slurm => {
            let ours = by_stage(jobs(&events));
            let wanted = job_tasks(plan, &records, &ours, |record| !is_final(record));
            let ended = job_tasks(plan, &records, &ours, |record| record.is_some_and(|record| record.outcome.is_bad()));
            let answer = match slurm {
                Some(slurm) => query(slurm, &wanted, &ended),
                None => Jobs::default(),
            };
            problems.extend(answer.problems.iter().map(chain));
            problems.extend(open(&intents(&events)));
            let stuck = stuck(plan, &ours, &answer.states);
            View::Slurm(SlurmView {
                cancelled: cancelled(&events),
                ours,
                answer,
                stuck,
                asked: wanted,
            })
        }
    };
    let mut stages = IndexMap::new();
    for ((name, stage), mut records) in plan.stages.iter().zip(records) {
        // What ended while the queue was asked has written its record by now.
        if let View::Slurm(_) = view {
            reread(&run.records(name), stage, &mut records, &view)?;
        }
        // What a stage needs stands before it.
        let upstream_failed = (stage.stage.needs.iter()).any(|need| stages.get(&need.stage).is_some_and(StageStatus::ended_badly));
        stages.insert(name.clone(), stage_status(run, stage, &records, &view, upstream_failed));
    }
    let (jobs, stuck, unanswered) = match &view {
        View::Local(_) => (Vec::new(), Vec::new(), false),
        View::Slurm(view) => {
            let active = active(&view.answer.states);
            let going_on = active.difference(&view.stuck).cloned().collect();
            (going_on, view.stuck.iter().cloned().collect(), !view.answer.queue_answered)
        }
    };
    let status = RunStatus {
        run: run.id().to_owned(),
        name: plan.name.clone(),
        mode,
        state: overall(&stages),
        stages,
        jobs,
        stuck,
        unanswered,
        problems,
    };
    Ok((status, view))
}

/// The tasks whose records are `such`, as Slurm calls them.
fn job_tasks(
    plan: &Plan,
    records: &[Vec<Option<Record>>],
    ours: &BTreeMap<StageName, Vec<SubmittedJob>>,
    such: impl Fn(Option<&Record>) -> bool,
) -> BTreeSet<JobTask> {
    let mut chosen = BTreeSet::new();
    for ((name, stage), records) in plan.stages.iter().zip(records) {
        for job in ours.get(name).into_iter().flatten() {
            let tasks = job
                .intent
                .tasks
                .iter()
                .filter(|&index| such(records.get(index as usize).and_then(Option::as_ref)));
            chosen.extend(tasks.map(|index| job_task(stage, job, index)));
        }
    }
    chosen
}

fn is_final(record: Option<&Record>) -> bool {
    record.is_some_and(|record| record.outcome != Outcome::Running)
}

fn read(records: &Records, count: u32) -> Result<Vec<Option<Record>>, StatusError> {
    records.read(count).map_err(|source| StatusError::Read {
        path: records.path().to_owned(),
        source,
    })
}

fn reread(records: &Records, stage: &StagePlan, read: &mut Vec<Option<Record>>, view: &View) -> Result<(), StatusError> {
    let View::Slurm(view) = view else { return Ok(()) };
    let open = (stage.todo.iter()).filter(|&index| !is_final(read.get(index as usize).and_then(Option::as_ref)));
    let ended = open.filter_map(|index| view.job_of(stage, index)).any(|(_, task)| {
        let state = view.answer.states.get(&task);
        view.asked.contains(&task) && view.answer.queue_answered && state.is_none_or(|state| !state.is_active())
    });
    if ended {
        *read = self::read(records, stage.stage.tasks())?;
    }
    Ok(())
}

fn stage_status(run: &RunDir, stage: &StagePlan, records: &[Option<Record>], view: &View, upstream_failed: bool) -> StageStatus {
    let mut status = StageStatus {
        tasks: stage.stage.tasks(),
        counts: BTreeMap::new(),
        failed: TaskSet::default(),
        waiting: BTreeMap::new(),
        expected: None,
        problems: Vec::new(),
    };
    let mut failed = Vec::new();
    let before = status.tasks - stage.todo.len().min(status.tasks);
    if before > 0 {
        let state = match stage.reason {
            Reason::NotSelected => TaskState::NotSelected,
            _ => TaskState::Ok,
        };
        status.counts.insert(state, before);
    }
    for index in stage.todo.iter() {
        let record = records.get(index as usize).and_then(Option::as_ref);
        let seen = look(record, view, stage, index, upstream_failed);
        *status.counts.entry(seen.state).or_default() += 1;
        if seen.state == TaskState::Waiting && !seen.message.is_empty() {
            *status.waiting.entry(seen.message.clone()).or_default() += 1;
        }
        // Slurm writes times so that they sort.
        if let Some(start) = &seen.start
            && status.expected.as_ref().is_none_or(|earliest| start < earliest)
        {
            status.expected = Some(start.clone());
        }
        if seen.state.is_failure() {
            failed.push(index);
        }
        let is_problem = !(seen.state == TaskState::Ok || seen.state.is_active() || seen.state == TaskState::NotStarted);
        if is_problem && status.problems.len() < LISTED {
            status.problems.push(task_status(run, stage, index, record, seen, view));
        }
    }
    status.failed = failed.into_iter().collect();
    status
}

fn look(record: Option<&Record>, view: &View, stage: &StagePlan, index: u32, upstream_failed: bool) -> Seen {
    match (record, view) {
        (Some(record), View::Slurm(view)) if record.outcome.is_bad() && view.runs_again(stage, index) => {
            slurm(view, stage, index, upstream_failed)
        }
        (Some(record), _) if record.outcome != Outcome::Running => from_record(record),
        _ => match view {
            View::Local(runner) => local(record, *runner),
            View::Slurm(view) => slurm(view, stage, index, upstream_failed),
        },
    }
}

fn task_status(run: &RunDir, stage: &StagePlan, index: u32, record: Option<&Record>, seen: Seen, view: &View) -> TaskStatus {
    let name = &stage.stage.name;
    let job = match view {
        View::Slurm(view) => view.job_of(stage, index).map(|(job, _)| job.to_owned()),
        View::Local(_) => None,
    };
    let (_, standard_error) = run.task_logs(name, index);
    let log = match &job {
        Some(job) if !standard_error.exists() => run.logs(name).join(format!("slurm-{job}.log")),
        _ => standard_error,
    };
    TaskStatus {
        index,
        state: seen.state,
        exit: seen.exit,
        attempt: record.map_or(0, |record| record.attempt),
        host: record.map(|record| record.host.clone()).filter(|host| !host.is_empty()),
        job: record.and_then(|record| record.job.clone()).or(job),
        message: seen.message,
        log,
    }
}

fn overall(stages: &IndexMap<StageName, StageStatus>) -> RunState {
    let counts = || stages.values().flat_map(|stage| stage.counts.iter());
    if counts().any(|(state, _)| state.is_active()) {
        RunState::Active
    } else if counts().any(|(state, _)| state.is_failure()) {
        RunState::Failed
    } else if counts().all(|(state, _)| matches!(state, TaskState::Ok | TaskState::NotSelected)) {
        RunState::Done
    } else {
        RunState::Incomplete
    }
}

/// An error and its causes on one line.
fn chain(error: &impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
