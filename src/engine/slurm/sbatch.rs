//! One script → one job, and certainty about it.
//!
//! A call of `sbatch` may submit without giving an id, and give an error for what is queued all the same. An [`Attempt`] has ended
//! only when it is known which, or known that it cannot be told yet.

use std::ffi::OsStr;

use super::call::{Call, CallError, Slurm, is_unreachable, start};
use super::journal::{Intent, SubmittedJob};
use super::noted::Noted;
use super::reconcile::{Search, When, find, queued};
use super::script::{Script, job_name};
use super::submit::SubmitError;
use crate::plan::Plan;
use crate::state::RunDir;
use crate::workflow::StageName;

/// How often a submission is tried that certainly did not reach the controller.
const TRIES: u32 = 3;

pub struct Sbatch<'a> {
    pub run: &'a RunDir,
    pub plan: &'a Plan,
    pub slurm: &'a Slurm,
}

/// A call of `sbatch` that is under way. The journal says that it is meant.
pub struct Attempt {
    script: Script,
    intent: Intent,
    /// What follows `--dependency=`; may be empty.
    dependency: String,
    call: Result<Call, CallError>,
}

impl Attempt {
    pub fn stage(&self) -> &StageName {
        &self.script.stage
    }
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

impl Sbatch<'_> {
    /// Calls `sbatch` for one script, as the journal says that it is about to be, and does not wait for it.
    pub fn begin(&self, script: Script, intent: Intent, dependency: String, journal: &mut Noted) -> Attempt {
        journal.tries(&intent);
        let call = self.call(&script, &dependency, &intent.token);
        Attempt {
            script,
            intent,
            dependency,
            call,
        }
    }

    /// Waits for a call, and knows afterwards whether the job was submitted; tries it anew where it certainly was not, and `again`
    /// allows.
    pub fn end(&self, attempt: Attempt, again: bool, journal: &mut Noted) -> Result<SubmittedJob, SubmitError> {
        let Attempt {
            script,
            mut intent,
            dependency,
            mut call,
        } = attempt;
        let mut tries = 1;
        loop {
            let error = match call.and_then(|call| self.id(call)) {
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
                        stage: script.stage,
                        source,
                    });
                }
                Found::Nothing => {}
            }
            journal.not_submitted(&intent, error.to_string())?;
            match verdict(&script.stage, error) {
                SubmitError::Unreachable { .. } if again && !nothing_ran && tries < TRIES => tries += 1,
                error => return Err(error),
            }
            intent = self::intent(&script);
            journal.intend([&intent])?;
            journal.tries(&intent);
            call = self.call(&script, &dependency, &intent.token);
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

    fn call(&self, script: &Script, dependency: &str, token: &str) -> Result<Call, CallError> {
        // On the command line, where they go before whatever the script says.
        let name = format!("--job-name={}.{token}", job_name(self.plan, &script.stage));
        let comment = format!("--comment=dvrun:{token}");
        let dependency = format!("--dependency={dependency}");
        let mut args: Vec<&OsStr> = vec!["--parsable".as_ref(), name.as_ref(), comment.as_ref()];
        if !dependency.ends_with('=') {
            args.push(dependency.as_ref());
        }
        args.push(script.path.as_os_str());
        start(self.slurm, &self.slurm.sbatch, &args)
    }

    fn id(&self, call: Call) -> Result<String, CallError> {
        let answer = call.answer()?;
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
