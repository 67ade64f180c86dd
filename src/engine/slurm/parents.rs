//! What a stage has to wait for.
//!
//! Before version 23.02 Slurm takes `afterok` on a job that it has forgotten, and runs. So a stage that was submitted by
//! an earlier call counts by its own records, and only jobs that are still queued or running become dependencies.

use std::collections::BTreeMap;

use super::array::Chunk;
use super::call::Slurm;
use super::job_state::JobState;
use super::journal::SubmittedJob;
use super::query::{active, queue};
use super::submit::{Missing, SubmitError};
use crate::engine::seen::job_task;
use crate::plan::{StagePlan, TaskSet};
use crate::state::{Outcome, RunDir};
use crate::workflow::StageName;

/// How a stage stands that others need.
#[derive(Clone, Debug, PartialEq)]
pub enum Parent {
    /// All its tasks ended well.
    Done,
    /// These jobs are queued or running; what is not in them ended well.
    Queued(Vec<SubmittedJob>),
    /// It was submitted, and some task of it failed. The jobs that are still active.
    Failed(Vec<SubmittedJob>),
    /// Not submitted, or only in part.
    Missing,
}

impl Parent {
    /// The jobs that are still active.
    pub fn open(&self) -> &[SubmittedJob] {
        match self {
            Parent::Done | Parent::Missing => &[],
            Parent::Queued(jobs) | Parent::Failed(jobs) => jobs,
        }
    }

    /// One more job was submitted.
    pub fn add(&mut self, job: SubmittedJob) {
        match self {
            Parent::Done => *self = Parent::Queued(vec![job]),
            Parent::Queued(jobs) | Parent::Failed(jobs) => jobs.push(job),
            Parent::Missing => {}
        }
    }
}

/// What a stage has to wait for.
pub enum Dependency {
    Jobs(Vec<Needed>),
    /// It must not be submitted now.
    Missing(Missing),
}

/// Jobs of one stage that another one waits for.
pub struct Needed {
    kind: Kind,
    jobs: Vec<SubmittedJob>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    AfterOk,
    AfterAny,
    /// Only for the tasks with the same index.
    SameShard,
}

impl Needed {
    /// The clause of `--dependency` for the tasks of `chunk`.
    pub fn clause(&self, chunk: &Chunk) -> Option<String> {
        let same = |job: &&SubmittedJob| !job.partial && job.intent.tasks == chunk.tasks && job.intent.offset == chunk.offset;
        if let (Kind::SameShard, Some(job)) = (self.kind, self.jobs.iter().find(same)) {
            return Some(format!("aftercorr:{}", job.job));
        }
        // Where the two arrays are cut differently Slurm cannot pair them: wait for every job that shares a task.
        let jobs = (self.jobs.iter()).filter(|job| self.kind != Kind::SameShard || meet(&job.intent.tasks, &chunk.tasks));
        // A job of which a task failed that was handed on since never counts as ended well: tasks look at records.
        let (any, ok): (Vec<&SubmittedJob>, Vec<&SubmittedJob>) = jobs.partition(|job| self.kind == Kind::AfterAny || job.partial);
        let clauses: Vec<String> = [("afterany", any), ("afterok", ok)]
            .into_iter()
            .filter(|(_, jobs)| !jobs.is_empty())
            .map(|(word, jobs)| format!("{word}:{}", Vec::from_iter(jobs.iter().map(|job| job.job.as_str())).join(":")))
            .collect();
        (!clauses.is_empty()).then(|| clauses.join(","))
    }
}

fn meet(a: &TaskSet, b: &TaskSet) -> bool {
    (a.ranges().iter()).any(|&(first, last)| b.ranges().iter().any(|&(from, to)| from <= last && first <= to))
}

/// What `stage` waits for; everything that it needs is in `parents`.
pub fn dependency(stage: &StagePlan, parents: &BTreeMap<StageName, Parent>) -> Dependency {
    let mut needed = Vec::new();
    for need in &stage.stage.needs {
        let kind = match (stage.stage.always, need.same_shard && stage.stage.array.is_some()) {
            (true, _) => Kind::AfterAny,
            (false, true) => Kind::SameShard,
            (false, false) => Kind::AfterOk,
        };
        let jobs = match parents.get(&need.stage) {
            Some(Parent::Done) | None => continue,
            Some(Parent::Queued(jobs)) => jobs,
            Some(Parent::Failed(jobs)) if stage.stage.always => jobs,
            Some(Parent::Failed(_)) => return Dependency::Missing(Missing::Failed(need.stage.clone())),
            Some(Parent::Missing) => return Dependency::Missing(Missing::Needs(need.stage.clone())),
        };
        needed.push(Needed { kind, jobs: jobs.clone() });
    }
    Dependency::Jobs(needed)
}

/// How a stage stands whose `jobs` were submitted by an earlier call.
///
/// # Errors
/// [`SubmitError::Unreachable`] when the queue cannot be asked.
pub fn standing(run: &RunDir, slurm: &Slurm, stage: &StagePlan, jobs: &[SubmittedJob]) -> Result<Parent, SubmitError> {
    let name = &stage.stage.name;
    let ids = jobs.iter().map(|job| job.job.as_str()).collect();
    let states = queue(slurm, &ids).map_err(|source| SubmitError::Unreachable {
        stage: name.clone(),
        source,
    })?;
    let active = active(&states);
    // Read after the queue was asked: a job that is gone from it has written all that it ever will.
    let records = run.records(name);
    let count = jobs
        .iter()
        .filter_map(|job| job.intent.tasks.ranges().last())
        .map(|range| range.1.saturating_add(1))
        .max();
    let read = records.read(count.unwrap_or(0)).map_err(|source| SubmitError::Records {
        path: records.path().to_owned(),
        source,
    })?;
    let (mut open, mut failed) = (Vec::new(), false);
    for job in jobs {
        let is_active = active.contains(&job.job);
        let mut all_well = true;
        for index in job.intent.tasks.iter() {
            match read.get(index as usize).and_then(Option::as_ref).map(|record| &record.outcome) {
                Some(Outcome::Ok) => {}
                Some(Outcome::Running) | None => {
                    all_well = false;
                    failed |= !is_active;
                }
                // In the queue again it may yet end well.
                Some(_) => {
                    all_well = false;
                    failed |= !states.get(&job_task(stage, job, index)).is_some_and(JobState::runs_again);
                }
            }
        }
        if is_active && !all_well {
            open.push(job.clone());
        }
    }
    Ok(match (failed, open.is_empty()) {
        (true, _) => Parent::Failed(open),
        (false, true) => Parent::Done,
        (false, false) => Parent::Queued(open),
    })
}
