//! The graph → jobs, each exactly once.
//!
//! Before the first `sbatch` the journal says what is about to be submitted, after each under which id. Whatever goes wrong in
//! between, the next call settles it ([`reconcile`]) before it goes on with what is left.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::call::{CallError, Slurm, call};
use super::journal::{Intent, SubmittedJob, by_stage, jobs};
use super::noted::Noted;
use super::parents::{Dependency, Parent, dependency, standing};
use super::profile::SlurmProfile;
use super::reconcile::reconcile;
use super::sbatch::{Attempt, Sbatch, intent};
use super::script::{Limits, Program, Script, ScriptError, scripts};
use crate::plan::{Plan, StagePlan, TaskSet};
use crate::state::{Journal, RunDir, StateError};
use crate::workflow::StageName;

/// What is queued now.
#[derive(Debug, Default)]
pub struct Submission {
    /// In the plan's order; every stage with something to run is here or in `missing`.
    pub stages: Vec<StageJobs>,
    /// What was not submitted, or only in part, and why.
    pub missing: Vec<(StageName, Missing)>,
    /// What stopped the submission, where something did. What is in `stages` is queued all the same.
    pub stopped: Option<SubmitError>,
}

/// A stage's jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageJobs {
    pub stage: StageName,
    /// Ids (an array's base id), one for each chunk.
    pub jobs: Vec<String>,
    pub tasks: u32,
    /// How many of `jobs`, the last ones, this call submitted; earlier calls the others.
    pub new: usize,
}

/// Why a stage has no jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The submission stopped at it, or before it.
    Stopped,
    /// A stage that it needs is not submitted.
    Needs(StageName),
    /// A stage that it needs was submitted earlier, and failed since.
    Failed(StageName),
}

impl fmt::Display for Missing {
    /// As what follows `stage NAME: `.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Stopped => f.write_str("the submission stopped before it was done"),
            Missing::Needs(stage) => write!(f, "it needs {stage}, which is not submitted"),
            Missing::Failed(stage) => write!(f, "it needs {stage}, which failed"),
        }
    }
}

/// Why a submission stopped.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("stage {stage}: Slurm takes no more jobs: {message}")]
    Limit { stage: StageName, message: String },
    #[error("stage {stage}: Slurm refuses the job: {message}")]
    Rejected { stage: StageName, message: String },
    #[error("stage {stage}: Slurm cannot be reached; nothing was submitted for it")]
    Unreachable { stage: StageName, source: CallError },
    #[error("stage {stage}: Slurm gave no answer, and whether the job was submitted cannot be told yet")]
    Unknown { stage: StageName, source: CallError },
    #[error("Slurm cannot be asked for its limits")]
    Limits { source: CallError },
    #[error("stage {stage}: no job script")]
    Script { stage: StageName, source: ScriptError },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write to the journal {}", path.display())]
    Journal { path: PathBuf, source: io::Error },
    #[error("cannot read the records {}", path.display())]
    Records { path: PathBuf, source: io::Error },
    #[error(transparent)]
    State(#[from] StateError),
}

impl SubmitError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        match self {
            SubmitError::Limit { .. } => Some("when some jobs have ended, submit again: it goes on from here".to_owned()),
            SubmitError::Unknown { .. } => Some("submit again later: it finds out first, and submits nothing twice".to_owned()),
            SubmitError::Unreachable { source, .. } | SubmitError::Limits { source } => source.hint(),
            SubmitError::Rejected { .. } => {
                Some("see the stage's resources and slurm options, and the profile's account and partition".to_owned())
            }
            SubmitError::Script { source, .. } => source.hint(),
            SubmitError::State(_) | SubmitError::Write { .. } | SubmitError::Journal { .. } | SubmitError::Records { .. } => None,
        }
    }
}

/// Submits every stage of `plan` that has something to run and is not submitted yet, in the plan's order.
///
/// The caller holds the lock of the runs' folder.
///
/// # Errors
/// When nothing could be tried at all. What stops it half-way is in [`Submission::stopped`].
pub fn submit(run: &RunDir, plan: &Plan, profile: &SlurmProfile, slurm: &Slurm, program: &Program) -> Result<Submission, SubmitError> {
    let mut journal = run.journal()?;
    let path = run.journal_path();
    let mut events = Journal::read(&path).map_err(|source| SubmitError::Journal {
        path: path.clone(),
        source,
    })?;
    reconcile(run, slurm, &mut journal, &mut events)?;
    let writer = Writer {
        run,
        plan,
        profile,
        program,
        limits: limits(slurm)?,
    };
    let earlier = by_stage(jobs(&events));
    // All before the first job: between two jobs each would wait for the disk.
    let mut written: BTreeMap<&StageName, Result<Vec<Intended>, SubmitError>> = BTreeMap::new();
    for (name, stage) in &plan.stages {
        let left = left(&stage.todo, earlier.get(name).map_or(&[], Vec::as_slice));
        if !left.is_empty() {
            written.insert(name, writer.write(stage, &left));
        }
    }
    let mut going = Going {
        sbatch: Sbatch { run, plan, slurm },
        journal: Noted::new(journal),
        attempts: VecDeque::new(),
        parents: BTreeMap::new(),
        new: BTreeMap::new(),
        missing: BTreeMap::new(),
        stopped: None,
    };
    let scripts = plan.stages.keys().filter_map(|name| written.get(name)?.as_ref().ok());
    going.journal.intend(scripts.flatten().map(|(_, intent)| intent))?;
    for (name, stage) in plan.stages.iter().filter(|(_, stage)| !stage.todo.is_empty()) {
        let before = earlier.get(name).map_or(&[][..], Vec::as_slice);
        let mut parent = Parent::Done;
        // Once stopped, nothing will be submitted that would have to know.
        if !before.is_empty() && going.stopped.is_none() {
            match standing(run, slurm, stage, before) {
                Ok(standing) => parent = standing,
                Err(error) => going.stopped = Some(error),
            }
        }
        going.stage(stage, written.remove(name), parent);
    }
    going.settle(|_| true);
    going.journal.close()?;
    let mut submission = Submission {
        stopped: going.stopped,
        ..Submission::default()
    };
    for (name, stage) in plan.stages.iter().filter(|(_, stage)| !stage.todo.is_empty()) {
        let before = earlier.get(name).map_or(&[][..], Vec::as_slice);
        let new = going.new.remove(name).unwrap_or_default();
        if !before.is_empty() || !new.is_empty() {
            submission.stages.push(stage_jobs(stage, before, &new));
        }
        if let Some(why) = going.missing.remove(name) {
            submission.missing.push((name.clone(), why));
        }
    }
    Ok(submission)
}

/// What this cluster takes at once, as `scontrol show config` says.
///
/// # Errors
/// [`SubmitError::Limits`] when it does not answer: then it takes no jobs either.
pub fn limits(slurm: &Slurm) -> Result<Limits, SubmitError> {
    let args = ["show", "config"].map(OsStr::new);
    let text = call(slurm, &slurm.scontrol, &args).map_err(|source| SubmitError::Limits { source })?;
    let value = |key: &str| setting(&text, key);
    let array_size = value("MaxArraySize").and_then(|text| text.parse().ok());
    let array_tasks = value("SchedulerParameters")
        .and_then(|text| text.split(',').find_map(|word| word.strip_prefix("max_array_tasks=")))
        .and_then(|text| text.parse().ok());
    Ok(Limits {
        array_size: array_size.unwrap_or(Limits::default().array_size),
        array_tasks,
    })
}

/// The value of `key` in what `scontrol show config` says.
pub fn setting<'a>(config: &'a str, key: &str) -> Option<&'a str> {
    let line = config
        .lines()
        .find(|line| line.split('=').next().is_some_and(|name| name.trim() == key))?;
    line.split_once('=').map(|(_, value)| value.trim())
}

/// A script, and what is meant to be done with it.
type Intended = (Script, Intent);

struct Writer<'a> {
    run: &'a RunDir,
    plan: &'a Plan,
    profile: &'a SlurmProfile,
    program: &'a Program,
    limits: Limits,
}

impl Writer<'_> {
    /// Writes the scripts of the tasks `left` of a stage into the run folder; with what is meant to be done with each.
    fn write(&self, stage: &StagePlan, left: &TaskSet) -> Result<Vec<Intended>, SubmitError> {
        let name = &stage.stage.name;
        let failed = |path: PathBuf| move |source| SubmitError::Write { path, source };
        // Slurm drops the output of a job whose log folder is missing.
        let logs = self.run.logs(name);
        fs::create_dir_all(&logs).map_err(failed(logs))?;
        let scripts = scripts(self.run, self.plan, stage, left, self.profile, self.program, self.limits);
        let mut scripts = scripts.map_err(|source| SubmitError::Script {
            stage: name.clone(),
            source,
        })?;
        for script in &mut scripts {
            // Thousands of them are not kept in memory too.
            let text = std::mem::take(&mut script.text);
            fs::write(&script.path, text).map_err(failed(script.path.clone()))?;
        }
        Ok(scripts
            .into_iter()
            .map(|script| {
                let intent = intent(&script);
                (script, intent)
            })
            .collect())
    }
}

/// A submission that is going on.
struct Going<'a> {
    sbatch: Sbatch<'a>,
    journal: Noted,
    /// Oldest first; no more than [`Slurm::at_once`].
    attempts: VecDeque<Attempt>,
    /// How the stages so far stand, as far as attempts have ended; what is not here has nothing to run.
    parents: BTreeMap<StageName, Parent>,
    /// What was submitted.
    new: BTreeMap<StageName, Vec<SubmittedJob>>,
    missing: BTreeMap<StageName, Missing>,
    stopped: Option<SubmitError>,
}

impl Going<'_> {
    /// Submits the scripts of a stage, which stood as `parent` before: `None` where all of it is submitted already.
    fn stage(&mut self, stage: &StagePlan, scripts: Option<Result<Vec<Intended>, SubmitError>>, parent: Parent) {
        let name = &stage.stage.name;
        let before = parent.open().last().map(|job| job.job.clone());
        self.parents.insert(name.clone(), parent);
        let Some(scripts) = scripts else { return };
        // Ids of what it needs.
        self.settle(|under_way| stage.stage.needs.iter().any(|need| need.stage == *under_way));
        let needs = match (&self.stopped, dependency(stage, &self.parents)) {
            (Some(_), _) => return self.miss(name, Missing::Stopped),
            (None, Dependency::Missing(why)) => return self.miss(name, why),
            (None, Dependency::Jobs(needs)) => needs,
        };
        let scripts = match scripts {
            Ok(scripts) => scripts,
            Err(error) => {
                self.stopped = Some(error);
                return self.miss(name, Missing::Stopped);
            }
        };
        let limited = stage.stage.array.as_ref().is_some_and(|array| array.max_parallel.is_some());
        for (script, intent) in scripts {
            let mut clauses: Vec<String> = needs.iter().filter_map(|need| need.clause(&script.chunk)).collect();
            // A limit on what runs at once holds for one array: the stage's next array waits for the one before it.
            if limited {
                self.settle(|under_way| under_way == name);
                let last = self.new.get(name).and_then(|jobs| jobs.last()).map(|job| &job.job);
                clauses.extend(last.or(before.as_ref()).map(|job| format!("afterany:{job}")));
            }
            while self.attempts.len() >= self.sbatch.slurm.at_once {
                self.settle_first();
            }
            if self.stopped.is_some() {
                return self.miss(name, Missing::Stopped);
            }
            let attempt = self.sbatch.begin(script, intent, clauses.join(","), &mut self.journal);
            self.attempts.push_back(attempt);
        }
    }

    /// Waits until no stage is under way that `which` names.
    fn settle(&mut self, which: impl Fn(&StageName) -> bool) {
        while self.attempts.iter().any(|attempt| which(attempt.stage())) {
            self.settle_first();
        }
    }

    fn settle_first(&mut self) {
        let Some(attempt) = self.attempts.pop_front() else { return };
        let stage = attempt.stage().clone();
        match self.sbatch.end(attempt, self.stopped.is_none(), &mut self.journal) {
            Ok(job) => {
                self.new.entry(stage.clone()).or_default().push(job.clone());
                if let Some(parent) = self.parents.get_mut(&stage) {
                    parent.add(job);
                }
            }
            Err(error) => {
                self.stopped.get_or_insert(error);
                self.miss(&stage, Missing::Stopped);
            }
        }
    }

    /// The stage is not submitted, or only in part.
    fn miss(&mut self, stage: &StageName, why: Missing) {
        self.parents.insert(stage.clone(), Parent::Missing);
        self.missing.entry(stage.clone()).or_insert(why);
    }
}

/// The tasks of `todo` that are in none of `jobs`.
fn left(todo: &TaskSet, jobs: &[SubmittedJob]) -> TaskSet {
    jobs.iter().fold(todo.clone(), |left, job| left.difference(&job.intent.tasks))
}

fn stage_jobs(stage: &StagePlan, before: &[SubmittedJob], new: &[SubmittedJob]) -> StageJobs {
    let jobs = || before.iter().chain(new);
    StageJobs {
        stage: stage.stage.name.clone(),
        jobs: jobs().map(|job| job.job.clone()).collect(),
        tasks: jobs().map(|job| job.intent.tasks.len()).sum(),
        new: new.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_what_no_job_holds() {
        let job = |tasks: &[u32]| SubmittedJob {
            intent: Intent {
                token: "t".into(),
                stage: StageName("s".into()),
                tasks: tasks.iter().copied().collect(),
                offset: 0,
            },
            job: "1".into(),
            partial: false,
        };
        let left = left(&TaskSet::all(8), &[job(&[0, 1, 6]), job(&[3])]);
        assert_eq!(left.iter().collect::<Vec<_>>(), [2, 4, 5, 7]);
    }
}
