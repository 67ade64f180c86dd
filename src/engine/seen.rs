//! How one task stands: from its record, from the process that runs the graph here, or from what Slurm says.

use std::collections::{BTreeMap, BTreeSet};

use super::slurm::{JobState, JobTask, Jobs, SubmittedJob, reason_in_words};
use super::status::TaskState;
use crate::plan::StagePlan;
use crate::state::{Event, Outcome, Record};
use crate::workflow::StageName;

/// Who knows more than the records.
pub enum View {
    /// Whether the process that runs the graph is there.
    Local(Runner),
    Slurm(SlurmView),
}

/// The process that runs the graph on some machine.
#[derive(Clone, Copy, PartialEq)]
pub enum Runner {
    Here,
    Gone,
    /// On another host: it cannot be seen from here.
    Elsewhere,
}

/// A run's jobs, and how they stand.
pub struct SlurmView {
    pub ours: BTreeMap<StageName, Vec<SubmittedJob>>,
    pub answer: Jobs,
    pub stuck: BTreeSet<String>,
    /// Jobs that were ended by a user's wish.
    pub cancelled: BTreeSet<String>,
    pub asked: BTreeSet<JobTask>,
}

impl SlurmView {
    /// The job that a task is in: the latest, where it was submitted anew.
    pub fn job_of(&self, stage: &StagePlan, index: u32) -> Option<(&str, JobTask)> {
        let jobs = self.ours.get(&stage.stage.name)?;
        let job = jobs.iter().rev().find(|job| job.intent.tasks.contains(index))?;
        Some((&job.job, job_task(stage, job, index)))
    }

    /// Whether a task that ended badly is in the queue again, so that its record is that of an earlier attempt. One that a user
    /// cancelled may be there for a moment yet.
    pub fn runs_again(&self, stage: &StagePlan, index: u32) -> bool {
        self.job_of(stage, index).is_some_and(|(job, task)| {
            let state = self.answer.states.get(&task);
            state.is_some_and(JobState::runs_again) && !self.stuck.contains(job) && !self.cancelled.contains(job)
        })
    }
}

/// What Slurm calls a task of `job`.
pub fn job_task(stage: &StagePlan, job: &SubmittedJob, index: u32) -> JobTask {
    JobTask {
        job: job.job.clone(),
        index: stage.stage.array.as_ref().map(|_| index.saturating_sub(job.intent.offset)),
    }
}

/// What was seen of a task.
pub struct Seen {
    pub state: TaskState,
    pub exit: Option<i32>,
    pub message: String,
    /// When it is expected to start, where Slurm says so.
    pub start: Option<String>,
}

impl Seen {
    fn new(state: TaskState, message: impl Into<String>) -> Seen {
        Seen {
            state,
            exit: None,
            message: message.into(),
            start: None,
        }
    }
}

/// A task that ended.
pub fn from_record(record: &Record) -> Seen {
    let (state, exit, words) = match &record.outcome {
        Outcome::Running => (TaskState::Running, None, String::new()),
        Outcome::Ok => (TaskState::Ok, None, String::new()),
        Outcome::Failed { exit } => (TaskState::Failed, Some(*exit), format!("exit status {exit}")),
        Outcome::OutputMissing => (TaskState::OutputMissing, None, "a declared output is missing".to_owned()),
        Outcome::OutOfMemory => (TaskState::OutOfMemory, None, "ran out of memory".to_owned()),
        Outcome::TimedOut => (TaskState::TimedOut, None, "ran out of time".to_owned()),
        Outcome::UpstreamFailed => (TaskState::UpstreamFailed, None, "never ran: what it needs failed".to_owned()),
        Outcome::Cancelled => (TaskState::Cancelled, None, "cancelled".to_owned()),
        Outcome::Broken => (TaskState::Broken, None, "could not be run".to_owned()),
    };
    let message = if record.message.is_empty() { words } else { record.message.clone() };
    Seen {
        state,
        exit,
        message,
        start: None,
    }
}

/// A task of a run on this machine, without a final record.
pub fn local(record: Option<&Record>, runner: Runner) -> Seen {
    match (record, runner) {
        (Some(_), Runner::Here) => Seen::new(TaskState::Running, ""),
        (Some(_), Runner::Gone) => Seen::new(TaskState::Interrupted, "its process is gone and wrote no end"),
        (None, Runner::Here) => Seen::new(TaskState::Waiting, "its turn has not come"),
        (None, Runner::Gone) => Seen::new(TaskState::NotStarted, ""),
        (_, Runner::Elsewhere) => Seen::new(TaskState::Unknown, "it runs on another host"),
    }
}

/// A task of a run on SLURM, without a final record or in the queue again. `upstream_failed`: something that its stage needs ended badly.
pub fn slurm(view: &SlurmView, stage: &StagePlan, index: u32, upstream_failed: bool) -> Seen {
    let Some((job, task)) = view.job_of(stage, index) else {
        return Seen::new(TaskState::NotStarted, "not submitted");
    };
    let Some(state) = view.answer.states.get(&task) else {
        return match (view.answer.queue_answered, view.cancelled.contains(job)) {
            (true, true) => Seen::new(TaskState::Cancelled, "cancelled"),
            (true, false) => Seen::new(
                TaskState::Unknown,
                "its job is gone and left no record; Slurm keeps no account of it",
            ),
            (false, _) => Seen::new(TaskState::Unknown, "Slurm could not be asked"),
        };
    };
    match state {
        JobState::Pending { .. } if state.never_runs() || view.stuck.contains(job) => {
            Seen::new(TaskState::UpstreamFailed, "never runs: what it needs failed")
        }
        JobState::Pending { reason, start } => Seen {
            start: start.clone(),
            ..Seen::new(TaskState::Waiting, reason_in_words(reason))
        },
        JobState::Running | JobState::Completing => Seen::new(TaskState::Running, ""),
        JobState::Suspended => Seen::new(TaskState::Waiting, "suspended"),
        JobState::Completed => Seen::new(TaskState::Broken, "its job ended well in Slurm's eyes, but left no record"),
        JobState::Failed { exit } => {
            let code = exit.map(|exit| format!(" with status {exit}")).unwrap_or_default();
            Seen::new(
                TaskState::Broken,
                format!("its job ended{code} before the task could write a record"),
            )
        }
        // Slurm itself cancels what cannot run any more, where it is told to.
        JobState::Cancelled { by } if upstream_failed && !view.cancelled.contains(job) && by.as_deref().is_none_or(|by| by == "0") => {
            Seen::new(TaskState::UpstreamFailed, "never ran: what it needs failed")
        }
        JobState::Cancelled { by: Some(by) } if !view.cancelled.contains(job) => {
            Seen::new(TaskState::Cancelled, format!("cancelled by user {by}"))
        }
        JobState::Cancelled { .. } => Seen::new(TaskState::Cancelled, "cancelled"),
        JobState::TimedOut => Seen::new(TaskState::TimedOut, "ran out of time"),
        JobState::OutOfMemory => Seen::new(TaskState::OutOfMemory, "ran out of memory"),
        JobState::NodeFail => Seen::new(TaskState::NodeFail, "its node failed"),
        JobState::Preempted => Seen::new(TaskState::Preempted, "had to make room for another job"),
        JobState::Unknown(word) => Seen::new(TaskState::Unknown, format!("Slurm calls its state `{word}`")),
    }
}

/// Jobs that were ended by a user's wish.
pub fn cancelled(events: &[Event]) -> BTreeSet<String> {
    let jobs = events.iter().filter_map(|event| match event {
        Event::Cancelling { jobs } => Some(jobs),
        _ => None,
    });
    jobs.flatten().cloned().collect()
}

/// Whether the process that began this run last is still at it.
pub fn local_runner(events: &[Event]) -> Runner {
    let last = events
        .iter()
        .rev()
        .find(|event| matches!(event, Event::Started { .. } | Event::Ended { .. }));
    let Some(Event::Started { pid, host }) = last else {
        return Runner::Gone;
    };
    match nix::unistd::gethostname() {
        Ok(here) if here.to_string_lossy() == host.as_str() => {
            match nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), None) {
                Ok(()) | Err(nix::errno::Errno::EPERM) => Runner::Here,
                Err(_) => Runner::Gone,
            }
        }
        _ => Runner::Elsewhere,
    }
}
