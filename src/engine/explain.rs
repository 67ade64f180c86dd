//! What happened to one task, with all the evidence there is.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use super::previous::makers;
use super::slurm::{JobState, JobTask, Slurm, query};
use super::status::{RunStatus, StatusError, TaskState, TaskStatus, status_of};
use crate::plan::{Plan, TaskSet};
use crate::state::{Outcome, Record, RunDir};
use crate::workflow::StageName;

/// A task as it stands, and what is known of it.
#[derive(Debug, Serialize)]
pub struct Explanation {
    pub task: TaskStatus,
    /// When it is expected to start, as Slurm writes it.
    pub expected: Option<String>,
    /// What the task itself wrote down last.
    pub record: Option<Record>,
    /// What Slurm says of its job, asked now.
    pub slurm: Option<JobState>,
    /// The needed stages that did not end well, with those tasks.
    pub needs: Vec<(StageName, TaskSet)>,
    /// Both of its logs, where they are.
    pub logs: Vec<PathBuf>,
}

/// What happened to task `index` of `stage`.
///
/// # Errors
/// [`StatusError`] when the run folder cannot be read.
pub fn explain(run: &RunDir, plan: &Plan, stage: &StageName, index: u32, slurm: Option<&Slurm>) -> Result<Explanation, StatusError> {
    let read = |name: &StageName| {
        let records = run.records(name);
        records.read(plan.stages[name].stage.tasks()).map_err(|source| StatusError::Read {
            path: records.path().to_owned(),
            source,
        })
    };
    let (task, expected) = status_of(run, plan, stage, index, slurm)?;
    let record = read(stage)?.swap_remove(index as usize);
    let job = task.job.as_deref().map(|job| match job.split_once('_') {
        Some((job, index)) => JobTask {
            job: job.to_owned(),
            index: index.parse().ok(),
        },
        None => JobTask {
            job: job.to_owned(),
            index: None,
        },
    });
    let said = match (slurm, job) {
        (Some(slurm), Some(job)) => query(slurm, &BTreeSet::from([job.clone()]), &BTreeSet::new()).states.remove(&job),
        _ => None,
    };
    let mut needs = Vec::new();
    for need in &plan.stages[stage].stage.needs {
        let records = read(&need.stage)?;
        let well = |index: &u32| {
            records[*index as usize]
                .as_ref()
                .is_some_and(|record| record.outcome == Outcome::Ok)
        };
        let all = match need.same_shard {
            true => index..index + 1,
            false => 0..plan.stages[&need.stage].stage.tasks(),
        };
        let open: TaskSet = all.filter(|index| !well(index)).collect();
        if !open.is_empty() {
            needs.push((need.stage.clone(), open));
        }
    }
    let mut logs = vec![task.log.clone()];
    if let Some(maker) = makers(run, plan, stage)?.of(index) {
        let (stdout, stderr) = maker.task_logs(stage, index);
        logs.extend([stderr, stdout]);
    }
    let mut seen = BTreeSet::new();
    let logs = logs.into_iter().filter(|log| log.is_file() && seen.insert(log.clone())).collect();
    Ok(Explanation {
        task,
        expected,
        record,
        slurm: said,
        needs,
        logs,
    })
}

/// The task of a stage that says most about how it stands: one that failed, else one that waits or runs, else the first.
pub fn telling(status: &RunStatus, stage: &StageName) -> u32 {
    let problems = status.stages.get(stage).map(|stage| stage.problems.as_slice()).unwrap_or_default();
    let own = problems.iter().find(|task| task.state != TaskState::UpstreamFailed);
    own.or(problems.first()).map_or(0, |task| task.index)
}
