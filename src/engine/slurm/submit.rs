//! The graph → jobs, each exactly once.
//!
//! Before the first `sbatch` the journal says what is about to be submitted, after each under which id. Whatever goes wrong in
//! between, the next call settles it ([`reconcile`]) before it goes on with what is left.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::call::{CallError, Slurm, call, is_unreachable};
use super::journal::{Intent, SubmittedJob, by_stage, jobs};
use super::noted::Noted;
use super::parents::{Dependency, Needed, Parent, dependency, standing};
use super::profile::SlurmProfile;
use super::reconcile::{Search, When, find, queued, reconcile};
use super::script::{Limits, Program, Script, ScriptError, job_name, scripts};
use crate::plan::{Plan, StagePlan, TaskSet};
use crate::state::{Journal, RunDir, StateError};
use crate::workflow::StageName;

/// How often a submission is tried that certainly did not reach the controller.
const TRIES: u32 = 3;

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
    let submitter = Submitter {
        run,
        plan,
        profile,
        slurm,
        program,
        limits: limits(slurm)?,
    };
    let mut submission = Submission::default();
    let earlier = by_stage(jobs(&events));
    // All before the first job: between two jobs each would wait for the disk.
    let mut written: BTreeMap<&StageName, Result<Vec<Intended>, SubmitError>> = BTreeMap::new();
    for (name, stage) in &plan.stages {
        let left = left(&stage.todo, earlier.get(name).map_or(&[], Vec::as_slice));
        if !left.is_empty() {
            written.insert(name, submitter.write(stage, &left));
        }
    }
    let mut journal = Noted::new(journal);
    let scripts = plan.stages.keys().filter_map(|name| written.get(name)?.as_ref().ok());
    journal.intend(scripts.flatten().map(|(_, intent)| intent))?;
    // How the stages stand that the ones after them need.
    let mut parents: BTreeMap<StageName, Parent> = BTreeMap::new();
    for (name, stage) in &plan.stages {
        if stage.todo.is_empty() {
            parents.insert(name.clone(), Parent::Done);
            continue;
        }
        let before = earlier.get(name).cloned().unwrap_or_default();
        let mut parent = Parent::Done;
        // Once stopped, nothing will be submitted that would have to know.
        if !before.is_empty() && submission.stopped.is_none() {
            match standing(run, slurm, name, &before) {
                Ok(standing) => parent = standing,
                Err(error) => submission.stopped = Some(error),
            }
        }
        let Some(scripts) = written.remove(name) else {
            submission.stages.push(stage_jobs(stage, &before, &[]));
            parents.insert(name.clone(), parent);
            continue;
        };
        let mut new = Vec::new();
        let problem = match (&submission.stopped, dependency(stage, &parents)) {
            (Some(_), _) => Some(Missing::Stopped),
            (None, Dependency::Missing(why)) => Some(why),
            (None, Dependency::Jobs(needs)) => {
                submission.stopped = scripts
                    .and_then(|scripts| submitter.stage(stage, scripts, &needs, parent.open(), &mut journal, &mut new))
                    .err();
                submission.stopped.as_ref().map(|_| Missing::Stopped)
            }
        };
        if !before.is_empty() || !new.is_empty() {
            submission.stages.push(stage_jobs(stage, &before, &new));
        }
        if let Some(why) = problem {
            submission.missing.push((name.clone(), why));
            parent = Parent::Missing;
        } else {
            parent = parent.with(new);
        }
        parents.insert(name.clone(), parent);
    }
    journal.close()?;
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

/// What became of a submission that gave no id.
enum Found {
    /// This is its id.
    Job(String),
    /// No such job is, or was.
    Nothing,
    /// Slurm could not be asked.
    Unknown(CallError),
}

/// A script, and what is meant to be done with it.
type Intended = (Script, Intent);

struct Submitter<'a> {
    run: &'a RunDir,
    plan: &'a Plan,
    profile: &'a SlurmProfile,
    slurm: &'a Slurm,
    program: &'a Program,
    limits: Limits,
}

impl Submitter<'_> {
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

    /// Submits the scripts of a stage, of whose jobs `before` are active; `jobs` grows by each job that Slurm took.
    fn stage(
        &self,
        stage: &StagePlan,
        scripts: Vec<Intended>,
        needs: &[Needed],
        before: &[SubmittedJob],
        journal: &mut Noted,
        jobs: &mut Vec<SubmittedJob>,
    ) -> Result<(), SubmitError> {
        let limited = stage.stage.array.as_ref().is_some_and(|array| array.max_parallel.is_some());
        for (script, intent) in scripts {
            let mut clauses: Vec<String> = needs.iter().filter_map(|need| need.clause(&script.chunk)).collect();
            // A limit on what runs at once holds for one array: the stage's next array waits for the one before it.
            if let (true, Some(before)) = (limited, jobs.last().or(before.last())) {
                clauses.push(format!("afterany:{}", before.job));
            }
            jobs.push(self.script(&script, intent, &clauses.join(","), journal)?);
        }
        Ok(())
    }

    /// Submits one script, as the journal says that it is about to be, and knows afterwards whether it was.
    fn script(&self, script: &Script, mut intent: Intent, dependency: &str, journal: &mut Noted) -> Result<SubmittedJob, SubmitError> {
        let stage = &script.stage;
        let mut tries = 1;
        loop {
            journal.tries(&intent);
            let error = match self.sbatch(script, dependency, &intent.token) {
                Ok(job) => return journal.submitted(intent, job),
                Err(error) => error,
            };
            let nothing_ran = matches!(error, CallError::Spawn { .. } | CallError::NoConfiguration { .. });
            let found = if nothing_ran {
                Found::Nothing
            } else {
                self.find(&error, &intent.token)?
            };
            match found {
                Found::Job(job) => return journal.submitted(intent, job),
                Found::Unknown(source) => {
                    return Err(SubmitError::Unknown {
                        stage: stage.clone(),
                        source,
                    });
                }
                Found::Nothing => {}
            }
            journal.not_submitted(&intent, error.to_string())?;
            match verdict(stage, error) {
                SubmitError::Unreachable { .. } if !nothing_ran && tries < TRIES => tries += 1,
                error => return Err(error),
            }
            intent = self::intent(script);
            journal.intend([&intent])?;
        }
    }

    /// A plain refusal is looked for once; a request without an answer may still be under way.
    fn find(&self, error: &CallError, token: &str) -> Result<Found, SubmitError> {
        match error {
            CallError::Failed { message, .. } if !is_unreachable(message) => Ok(match queued(self.slurm, token) {
                Ok(Some(job)) => Found::Job(job),
                Ok(None) => Found::Nothing,
                Err(error) => Found::Unknown(error),
            }),
            _ => {
                let Search { mut jobs, doubt } = find(self.run, self.slurm, &[token], When::Now)?;
                Ok(match (jobs.pop().flatten(), doubt) {
                    (Some(job), _) => Found::Job(job),
                    (None, Some(error)) => Found::Unknown(error),
                    (None, None) => Found::Nothing,
                })
            }
        }
    }

    fn sbatch(&self, script: &Script, dependency: &str, token: &str) -> Result<String, CallError> {
        // On the command line, where they go before whatever the script says.
        let name = format!("--job-name={}.{token}", job_name(self.plan, &script.stage));
        let comment = format!("--comment=dvrun:{token}");
        let dependency = format!("--dependency={dependency}");
        let mut args: Vec<&OsStr> = vec!["--parsable".as_ref(), name.as_ref(), comment.as_ref()];
        if !dependency.ends_with('=') {
            args.push(dependency.as_ref());
        }
        args.push(script.path.as_os_str());
        let answer = call(self.slurm, &self.slurm.sbatch, &args)?;
        job_id(&answer).ok_or_else(|| CallError::Unreadable {
            command: self.slurm.sbatch.display().to_string(),
            answer: answer.chars().take(200).collect(),
        })
    }
}

/// The last line that is an id, or `id;cluster`: sites print banners before and after.
fn job_id(answer: &str) -> Option<String> {
    answer.lines().rev().find_map(|line| {
        let (id, cluster) = line.trim().split_once(';').unwrap_or((line.trim(), "c"));
        let is_id = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
        let is_cluster = !cluster.is_empty() && cluster.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        (is_id && is_cluster).then(|| id.to_owned())
    })
}

/// What a job that certainly was not submitted means for the rest.
fn verdict(stage: &StageName, error: CallError) -> SubmitError {
    const LIMITS: [&str; 7] = [
        "SubmitJobLimit",
        "SubmitJobPerUserLimit",
        "SubmitJobPerAccountLimit",
        "Job violates accounting/QOS policy",
        "temporarily unable to accept job",
        "Resource temporarily unavailable",
        "MaxJobCount",
    ];
    let stage = stage.clone();
    match error {
        CallError::Failed { message, .. } if LIMITS.iter().any(|limit| message.contains(limit)) => SubmitError::Limit { stage, message },
        CallError::Failed { message, .. } if !is_unreachable(&message) => SubmitError::Rejected { stage, message },
        source => SubmitError::Unreachable { stage, source },
    }
}

/// What is meant to be done with `script`.
pub fn intent(script: &Script) -> Intent {
    Intent {
        token: token(),
        stage: script.stage.clone(),
        tasks: script.chunk.tasks.clone(),
        offset: script.chunk.offset,
    }
}

/// Twelve characters, as good as unique among all jobs of a cluster.
fn token() -> String {
    let letters = std::iter::repeat_with(|| fastrand::choice(b"abcdefghjkmnpqrstvwxyz23456789"));
    letters.flatten().map(|&b| char::from(b)).take(12).collect()
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
    fn ids_stand_among_banners() {
        assert_eq!(job_id("123\n").as_deref(), Some("123"));
        assert_eq!(job_id("Welcome to X 2026\n123;alpha-1\nHave a nice day\n").as_deref(), Some("123"));
        assert_eq!(job_id("Budget left: 17\n"), None);
        assert_eq!(job_id(""), None);
        assert_eq!(job_id("12a\n;x\n5;\n"), None);
    }

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

    #[test]
    fn limits_are_told_from_refusals() {
        let failed = |message: &str| {
            verdict(
                &StageName("s".into()),
                CallError::Failed {
                    command: "sbatch".into(),
                    status: "exit status: 1".into(),
                    message: message.into(),
                },
            )
        };
        assert!(matches!(
            failed("sbatch: error: QOSMaxSubmitJobPerUserLimit"),
            SubmitError::Limit { .. }
        ));
        assert!(matches!(
            failed("sbatch: error: invalid partition specified: x"),
            SubmitError::Rejected { .. }
        ));
        assert!(matches!(
            failed("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"),
            SubmitError::Unreachable { .. }
        ));
    }
}
