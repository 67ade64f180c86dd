//! Ending jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::call::{CallError, Slurm, call};
use super::journal::{SubmittedJob, by_stage, intents, jobs};
use super::query::{JobTask, States, active, queue};
use super::reconcile::{Submitter, adopt, settle};
use super::submit::SubmitError;
use crate::plan::Plan;
use crate::state::{Event, Journal, Outcome, Record, RunDir};
use crate::workflow::StageName;

/// Job ids in one call of `scancel`: far below what a command line holds.
const AT_ONCE: usize = 500;

/// What was ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// Jobs that were queued or running.
    pub jobs: Vec<String>,
    /// Tasks that have a record of being cancelled now, and had no end before.
    pub tasks: u32,
    /// Jobs that still had not gone when the time for it was over.
    pub lingering: Vec<String>,
    /// How many jobs are about to be submitted by a process that lives.
    pub to_come: usize,
}

/// Why jobs could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    #[error("Slurm cannot be asked which jobs are active")]
    Ask { source: CallError },
    #[error("Slurm does not end the jobs")]
    Scancel { source: CallError },
    #[error("Slurm does not hold or release the jobs")]
    Hold { source: CallError },
    #[error("what was submitted is not known")]
    Jobs {
        #[source]
        source: SubmitError,
    },
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl CancelError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        match self {
            CancelError::Ask { source } | CancelError::Scancel { source } | CancelError::Hold { source } => source.hint(),
            CancelError::Jobs { source } => source.hint(),
            CancelError::Io { .. } => None,
        }
    }
}

/// `stages` and all that needs them, but for what always runs.
pub fn with_dependants(plan: &Plan, stages: &[StageName]) -> BTreeSet<StageName> {
    let mut all: BTreeSet<StageName> = stages.iter().cloned().collect();
    for (name, stage) in &plan.stages {
        if !stage.stage.always && stage.stage.needs.iter().any(|need| all.contains(&need.stage)) {
            all.insert(name.clone());
        }
    }
    all
}

/// Ends the active jobs of `stages`, waits until they are gone (at most `patience`) and writes a record for each task
/// of theirs that has no end yet.
///
/// # Errors
/// Where Slurm or the run folder fails. What was ended till then stays ended; calling again goes on.
pub fn cancel(
    run: &RunDir,
    slurm: &Slurm,
    stages: &BTreeSet<StageName>,
    submitter: Submitter,
    patience: Duration,
) -> Result<Cancelled, CancelError> {
    let settled = match submitter {
        // A job that nobody knows of must not survive.
        Submitter::Gone => settle(run, slurm),
        Submitter::Perhaps => adopt(run, slurm),
    };
    settled.map_err(|source| CancelError::Jobs { source })?;
    let mut journal = run.journal().map_err(|source| CancelError::Jobs { source: source.into() })?;
    let path = run.journal_path();
    let events = Journal::read(&path).map_err(at("read", path))?;
    let to_come = intents(&events).iter().filter(|intent| stages.contains(&intent.stage)).count();
    let ours: Vec<SubmittedJob> = jobs(&events).into_iter().filter(|job| stages.contains(&job.intent.stage)).collect();
    let active = active(&ask(slurm, &ours)?);
    let cancelled = end(run, slurm, &mut journal, &ours, &active, patience, |record| {
        record.message = "cancelled".to_owned();
        record.outcome = Outcome::Cancelled;
    })?;
    Ok(Cancelled { to_come, ..cancelled })
}

/// Ends the jobs that wait for what cannot happen any more, and what waits for them.
///
/// # Errors
/// As [`cancel`].
pub fn sweep(run: &RunDir, plan: &Plan, slurm: &Slurm, patience: Duration) -> Result<Cancelled, CancelError> {
    let path = run.journal_path();
    let events = Journal::read(&path).map_err(at("read", path))?;
    let ours = jobs(&events);
    let stuck = stuck(plan, &by_stage(ours.clone()), &ask(slurm, &ours)?);
    let mut journal = run.journal().map_err(|source| CancelError::Jobs { source: source.into() })?;
    end(run, slurm, &mut journal, &ours, &stuck, patience, |record| {
        record.message = "never ran: what it needs failed".to_owned();
        record.outcome = Outcome::UpstreamFailed;
    })
}

/// The jobs that never run: what they need failed, or waits itself for what failed.
pub fn stuck(plan: &Plan, ours: &BTreeMap<StageName, Vec<SubmittedJob>>, states: &States) -> BTreeSet<String> {
    let mut stuck = BTreeSet::new();
    let mut stages: BTreeSet<&StageName> = BTreeSet::new();
    for (name, stage) in &plan.stages {
        let behind = !stage.stage.always && stage.stage.needs.iter().any(|need| stages.contains(&need.stage));
        for job in ours.get(name).into_iter().flatten() {
            let mut tasks = states
                .range(first_of(&job.job)..)
                .take_while(|(task, _)| task.job == job.job)
                .map(|(_, state)| state)
                .filter(|state| state.is_active())
                .peekable();
            let waits = tasks.peek().is_some() && tasks.all(|state| state.never_runs() || (behind && state.waits_for_another()));
            if waits {
                stuck.insert(job.job.clone());
                stages.insert(name);
            }
        }
    }
    stuck
}

fn first_of(job: &str) -> JobTask {
    JobTask {
        job: job.to_owned(),
        index: None,
    }
}

fn ask(slurm: &Slurm, ours: &[SubmittedJob]) -> Result<States, CancelError> {
    let ids = ours.iter().map(|job| job.job.as_str()).collect();
    queue(slurm, &ids).map_err(|source| CancelError::Ask { source })
}

fn end(
    run: &RunDir,
    slurm: &Slurm,
    journal: &mut Journal,
    ours: &[SubmittedJob],
    ids: &BTreeSet<String>,
    patience: Duration,
    write: impl Fn(&mut Record),
) -> Result<Cancelled, CancelError> {
    let mut cancelled = Cancelled {
        jobs: ids.iter().cloned().collect(),
        ..Cancelled::default()
    };
    if ids.is_empty() {
        return Ok(cancelled);
    }
    let event = Event::Cancelling {
        jobs: cancelled.jobs.clone(),
    };
    journal.append(&event).map_err(at("write", journal.path().to_owned()))?;
    let ours: Vec<SubmittedJob> = ours.iter().filter(|job| ids.contains(&job.job)).cloned().collect();
    let deadline = Instant::now() + patience;
    let mut left = cancelled.jobs.clone();
    let mut pause = Duration::from_millis(100);
    loop {
        // Again each time: a job that was just being started may have missed it.
        let mut refused = None;
        for some in left.chunks(AT_ONCE) {
            refused = call(slurm, &slurm.scancel, &Vec::from_iter(some.iter().map(OsStr::new)))
                .err()
                .or(refused);
        }
        let still = active(&ask(slurm, &ours)?);
        left.retain(|job| still.contains(job));
        match refused {
            // Jobs that ended by themselves in the meantime make scancel fail: the queue knows better.
            Some(source) if left.len() == cancelled.jobs.len() => return Err(CancelError::Scancel { source }),
            _ => {}
        }
        if left.is_empty() || Instant::now() >= deadline {
            break;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(5));
    }
    for job in ours.iter().filter(|job| !left.contains(&job.job)) {
        cancelled.tasks += record_all(run, job, &write)?;
    }
    cancelled.lingering = left;
    Ok(cancelled)
}

/// Writes a record for each task of a job that is gone and left none, or none of its end.
fn record_all(run: &RunDir, job: &SubmittedJob, write: &impl Fn(&mut Record)) -> Result<u32, CancelError> {
    let records = run.records(&job.intent.stage);
    let count = job.intent.tasks.ranges().last().map_or(0, |range| range.1.saturating_add(1));
    let read = records.read(count).map_err(at("read", records.path().to_owned()))?;
    let now = jiff::Timestamp::now().as_millisecond();
    let mut written = 0;
    for index in job.intent.tasks.iter() {
        let mut record = match read.get(index as usize).cloned().flatten() {
            Some(record) if record.outcome != Outcome::Running => continue,
            Some(record) => record,
            None => Record {
                job: Some(job.job.clone()),
                ..Record::new(Outcome::Cancelled)
            },
        };
        record.ended = Some(now);
        write(&mut record);
        records.write(index, &record).map_err(at("write", records.path().to_owned()))?;
        written += 1;
    }
    Ok(written)
}

fn at(doing: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> CancelError {
    move |source| CancelError::Io { doing, path, source }
}
