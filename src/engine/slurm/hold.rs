//! Jobs that wait until their user lets them go.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use super::JobState;
use super::call::{CallError, Slurm, call};
use super::cancel::CancelError;
use super::journal::{SubmittedJob, jobs};
use super::query::queue;
use super::reconcile::adopt;
use crate::state::{Journal, RunDir};
use crate::workflow::StageName;

/// What is done to waiting jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    Hold,
    Release,
}

/// Holds, or releases, the jobs of `stages` that wait in the queue; gives their ids. What runs goes on.
///
/// # Errors
/// Where Slurm or the run folder fails. What was done till then stays done.
pub fn hold(run: &RunDir, slurm: &Slurm, stages: &BTreeSet<StageName>, what: Hold) -> Result<Vec<String>, CancelError> {
    adopt(run, slurm).map_err(|source| CancelError::Jobs { source })?;
    let path = run.journal_path();
    let events = Journal::read(&path).map_err(|source| CancelError::Io {
        doing: "read",
        path,
        source,
    })?;
    let ours: Vec<SubmittedJob> = jobs(&events).into_iter().filter(|job| stages.contains(&job.intent.stage)).collect();
    let ids = ours.iter().map(|job| job.job.as_str()).collect();
    let states = queue(slurm, &ids).map_err(|source| CancelError::Ask { source })?;
    let mut done = Vec::new();
    for job in &ours {
        let waits = |reason: &str| match what {
            Hold::Hold => !reason.starts_with("JobHeld"),
            Hold::Release => reason == "JobHeldUser",
        };
        let wanted = states
            .iter()
            .any(|(task, state)| task.job == job.job && matches!(state, JobState::Pending { reason, .. } if waits(reason)));
        if wanted {
            control(slurm, &[word(what), &job.job]).map_err(|source| CancelError::Hold { source })?;
            done.push(job.job.clone());
        }
    }
    Ok(done)
}

/// As `scontrol` calls it: `uhold` is one that the user may undo, whoever asks for it.
fn word(what: Hold) -> &'static str {
    match what {
        Hold::Hold => "uhold",
        Hold::Release => "release",
    }
}

/// `scontrol` with `args`.
pub fn control(slurm: &Slurm, args: &[&str]) -> Result<(), CallError> {
    call(slurm, &slurm.scontrol, &Vec::from_iter(args.iter().map(OsStr::new))).map(|_| ())
}
