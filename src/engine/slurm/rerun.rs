//! Tasks run again while others of the run still wait for them in the queue.
//!
//! A waiting job is not submitted anew: `scontrol update Dependency=` points it to the new jobs, and revives it where
//! what it waited for had failed. While that is done it is held, lest it start before it knows.

use std::collections::BTreeMap;

use super::array::{Chunk, indices};
use super::call::{CallError, Slurm};
use super::hold::control;
use super::journal::{SubmittedJob, by_stage, jobs};
use super::parents::{Dependency, Parent, dependency, standing};
use super::profile::SlurmProfile;
use super::query::{JobTask, States, queue};
use super::reconcile::settle;
use super::script::Program;
use super::submit::{Submission, SubmitError, submit};
use crate::engine::rerun::{Chosen, Request, RerunError, change, choose, reset};
use crate::engine::seen::job_task;
use crate::engine::slurm::JobState;
use crate::plan::{Plan, StagePlan, TaskSet};
use crate::state::{Journal, RunDir};
use crate::workflow::StageName;

/// What was done.
#[derive(Debug)]
pub struct Rerun {
    /// The tasks that were taken back.
    pub chosen: Chosen,
    pub submission: Submission,
    /// Jobs that waited, and wait for the new ones now.
    pub repointed: Vec<String>,
    /// Jobs that wait and could not be told to wait for the new ones, and why.
    pub left: Vec<(String, CallError)>,
}

/// Why nothing, or not all, was done.
#[derive(Debug, thiserror::Error)]
pub enum SlurmRerunError {
    #[error(transparent)]
    Choose(#[from] RerunError),
    #[error("what is queued is not known")]
    Ask { source: CallError },
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

impl SlurmRerunError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        match self {
            SlurmRerunError::Choose(error) => error.hint(),
            SlurmRerunError::Ask { source } => source.hint(),
            SlurmRerunError::Submit(error) => error.hint(),
        }
    }
}

/// Submits the tasks of `request` again, and lets what waits in the queue wait for them. What needs them and is gone from
/// the queue is submitted with them. `plan` is the run's, and is changed as [`change`] and [`reset`] say.
///
/// # Errors
/// Tasks that are active, or may not run yet; Slurm or the run folder. Calling again goes on.
pub fn rerun(
    run: &RunDir,
    plan: &mut Plan,
    request: &Request,
    profile: &SlurmProfile,
    slurm: &Slurm,
    program: &Program,
) -> Result<Rerun, SlurmRerunError> {
    settle(run, slurm)?;
    let ours = by_stage(jobs(&events(run)?));
    let ids = ours.values().flatten().map(|job| job.job.as_str()).collect();
    let states = queue(slurm, &ids).map_err(|source| SlurmRerunError::Ask { source })?;
    let mut chosen = choose(run, plan, request)?;
    for (name, tasks) in &mut chosen {
        let stage = &plan.stages[name];
        let (waiting, running) = active_tasks(stage, ours.get(name), &states);
        let refused = if *name == request.stage { running.union(&waiting) } else { running };
        let refused = refused.intersection(tasks);
        if !refused.is_empty() {
            return Err(SlurmRerunError::Choose(RerunError::Active {
                stage: name.clone(),
                tasks: refused,
            }));
        }
        *tasks = tasks.difference(&waiting);
    }
    chosen.retain(|_, tasks| !tasks.is_empty());
    let waiting = waiting_jobs(plan, &ours, &states, &chosen);
    let held = hold(slurm, &waiting, &states);
    change(plan, request);
    let submission = reset(run, plan, &chosen)
        .map_err(RerunError::Reset)
        .map_err(SlurmRerunError::Choose)
        .and_then(|()| Ok(submit(run, plan, profile, slurm, program)?));
    let pointed = submission.and_then(|submission| {
        let (repointed, left) = repoint(run, plan, slurm, &waiting, &chosen)?;
        Ok((submission, repointed, left))
    });
    let released = release(slurm, &held);
    let (submission, repointed, mut left) = pointed?;
    left.extend(released);
    Ok(Rerun {
        chosen,
        submission,
        repointed,
        left,
    })
}

fn events(run: &RunDir) -> Result<Vec<crate::state::Event>, SubmitError> {
    let path = run.journal_path();
    Journal::read(&path).map_err(|source| SubmitError::Journal { path, source })
}

/// Tasks that wait in the queue, and tasks that run.
fn active_tasks(stage: &StagePlan, jobs: Option<&Vec<SubmittedJob>>, states: &States) -> (TaskSet, TaskSet) {
    let (mut waiting, mut running) = (Vec::new(), Vec::new());
    for job in jobs.into_iter().flatten() {
        for index in job.intent.tasks.iter() {
            match states.get(&job_task(stage, job, index)) {
                Some(JobState::Pending { .. }) => waiting.push(index),
                Some(state) if state.is_active() => running.push(index),
                _ => {}
            }
        }
    }
    (waiting.into_iter().collect(), running.into_iter().collect())
}

/// A job of which some tasks wait for what runs again.
struct WaitingJob {
    stage: StageName,
    job: SubmittedJob,
    /// The tasks that wait for it.
    tasks: TaskSet,
    /// What Slurm calls them.
    target: String,
}

fn waiting_jobs(plan: &Plan, ours: &BTreeMap<StageName, Vec<SubmittedJob>>, states: &States, chosen: &Chosen) -> Vec<WaitingJob> {
    let mut waiting = Vec::new();
    for (name, stage) in &plan.stages {
        for job in ours.get(name).into_iter().flatten() {
            let (pending, _) = active_tasks(stage, Some(&vec![job.clone()]), states);
            let mut tasks = TaskSet::default();
            for need in &stage.stage.needs {
                match chosen.get(&need.stage) {
                    Some(again) if need.same_shard => tasks = tasks.union(&pending.intersection(again)),
                    Some(_) => tasks = pending.clone(),
                    None => {}
                }
            }
            if tasks.is_empty() {
                continue;
            }
            let target = if stage.stage.array.is_none() || tasks == pending {
                job.job.clone()
            } else {
                let chunk = Chunk {
                    tasks: tasks.clone(),
                    offset: job.intent.offset,
                };
                format!("{}_[{}]", job.job, indices(&chunk))
            };
            waiting.push(WaitingJob {
                stage: name.clone(),
                job: job.clone(),
                tasks,
                target,
            });
        }
    }
    waiting
}

/// Holds those that might start at any moment. A job that cannot be held has started by now, and looks at records itself.
fn hold<'a>(slurm: &Slurm, waiting: &'a [WaitingJob], states: &States) -> Vec<&'a str> {
    let stuck = |job: &WaitingJob| {
        let first = JobTask {
            job: job.job.job.clone(),
            index: None,
        };
        let mut tasks = states.range(first..).take_while(|(task, _)| task.job == job.job.job);
        tasks.all(|(_, state)| state.never_runs() || !state.is_active())
    };
    let may_start = waiting.iter().filter(|job| !stuck(job));
    let hold = |target: &&str| control(slurm, &["uhold", target]).is_ok();
    may_start.map(|job| job.target.as_str()).filter(hold).collect()
}

fn release(slurm: &Slurm, held: &[&str]) -> Vec<(String, CallError)> {
    let failed = |target: &&str| {
        control(slurm, &["release", target])
            .err()
            .map(|error| ((*target).to_owned(), error))
    };
    held.iter().filter_map(failed).collect()
}

type Repointed = (Vec<String>, Vec<(String, CallError)>);

fn repoint(run: &RunDir, plan: &Plan, slurm: &Slurm, waiting: &[WaitingJob], chosen: &Chosen) -> Result<Repointed, SubmitError> {
    let mut done: Repointed = Default::default();
    if waiting.is_empty() {
        return Ok(done);
    }
    let ours = by_stage(jobs(&events(run)?));
    for job in waiting {
        let stage = &plan.stages[&job.stage];
        let mut parents = BTreeMap::new();
        for need in &stage.stage.needs {
            let parent = match ours.get(&need.stage) {
                Some(jobs) => standing(run, slurm, &plan.stages[&need.stage], jobs)?,
                None => Parent::Done,
            };
            // Only some shards of it matter to these tasks: others may have failed.
            let parent = match parent {
                Parent::Failed(jobs) if need.same_shard && chosen.contains_key(&need.stage) => Parent::Queued(jobs),
                parent => parent,
            };
            parents.insert(need.stage.clone(), parent);
        }
        let Dependency::Jobs(needed) = dependency(stage, &parents) else {
            continue;
        };
        let chunk = Chunk {
            tasks: job.tasks.clone(),
            offset: job.job.intent.offset,
        };
        let clauses: Vec<String> = needed.iter().filter_map(|need| need.clause(&chunk)).collect();
        let dependency = format!("Dependency={}", clauses.join(","));
        match control(slurm, &["update", &format!("JobId={}", job.target), &dependency]) {
            Ok(()) => done.0.push(job.target.clone()),
            Err(error) => done.1.push((job.target.clone(), error)),
        }
    }
    Ok(done)
}
