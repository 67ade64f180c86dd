//! An intent without an outcome: was that job submitted or not?
//!
//! Three witnesses, in this order: the queue (which keeps a job for some minutes after its end), the run's own records
//! (a task writes its job's id before its program starts), the accounts. Only when none of them knows the token is it
//! certain that nothing was submitted; when one that counts cannot be asked, nothing is certain.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::thread;

use super::call::{CallError, Slurm, call};
use super::journal::{Intent, intents, jobs};
use super::query::without_accounts;
use super::submit::SubmitError;
use crate::state::{Event, Journal, RunDir};

/// What became of a submission.
#[derive(Debug)]
pub enum Found {
    /// This is its id.
    Job(String),
    /// No such job is, or was.
    Nothing,
    /// Slurm could not be asked.
    Unknown(CallError),
}

/// When the submission was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Moments ago: the queue alone can tell, but the request may still be under way.
    Now,
    /// In an earlier process.
    Earlier,
}

/// Settles every open intent of a run that an earlier process left.
///
/// # Errors
/// As [`reconcile`], and what the run folder says.
pub fn settle(run: &RunDir, slurm: &Slurm) -> Result<(), SubmitError> {
    let path = run.journal_path();
    let mut events = Journal::read(&path).map_err(|source| SubmitError::Journal { path, source })?;
    reconcile(run, slurm, &mut run.journal()?, &mut events)
}

/// Writes down the jobs of open intents that are there, and leaves the other intents open: their jobs may yet come.
///
/// # Errors
/// What the run folder says. A queue that gives no answer is none: what is not known stays so.
pub fn adopt(run: &RunDir, slurm: &Slurm) -> Result<(), SubmitError> {
    let path = run.journal_path();
    let events = Journal::read(&path).map_err(|source| SubmitError::Journal { path, source })?;
    let open = intents(&events);
    if open.is_empty() {
        return Ok(());
    }
    let queue = everything_queued(slurm).unwrap_or_default();
    let mut journal = run.journal()?;
    for intent in open {
        let job = match job_with(&queue, &intent.token) {
            Some(job) => Some(job),
            None => recorded(run, &intent, &events)?,
        };
        if let Some(job) = job {
            let event = Event::Submitted { token: intent.token, job };
            journal.append(&event).map_err(|source| SubmitError::Journal {
                path: journal.path().to_owned(),
                source,
            })?;
        }
    }
    Ok(())
}

/// Settles every open intent of the journal, and writes down what was found. `events` grows by what is written.
///
/// # Errors
/// [`SubmitError::Unknown`] where Slurm cannot be asked: nothing may be submitted before that is known.
pub fn reconcile(run: &RunDir, slurm: &Slurm, journal: &mut Journal, events: &mut Vec<Event>) -> Result<(), SubmitError> {
    for intent in intents(events) {
        let found = match recorded(run, &intent, events)? {
            Some(job) => Found::Job(job),
            None => find(run, slurm, &intent.token, When::Earlier)?,
        };
        let event = match found {
            Found::Job(job) => Event::Submitted { token: intent.token, job },
            Found::Nothing => Event::NotSubmitted {
                token: intent.token,
                message: "the submitting process ended before Slurm had the job".to_owned(),
            },
            Found::Unknown(source) => {
                return Err(SubmitError::Unknown {
                    stage: intent.stage,
                    source,
                });
            }
        };
        journal.append(&event).map_err(|source| SubmitError::Journal {
            path: journal.path().to_owned(),
            source,
        })?;
        events.push(event);
    }
    Ok(())
}

/// A job id in the records of the intent's tasks that no journal line explains.
fn recorded(run: &RunDir, intent: &Intent, events: &[Event]) -> Result<Option<String>, SubmitError> {
    let known: BTreeSet<String> = jobs(events).into_iter().map(|job| job.job).collect();
    let records = run.records(&intent.stage);
    let count = intent.tasks.ranges().last().map_or(0, |range| range.1.saturating_add(1));
    let read = records.read(count).map_err(|source| SubmitError::Records {
        path: records.path().to_owned(),
        source,
    })?;
    let recorded = intent
        .tasks
        .iter()
        .filter_map(|index| read.get(index as usize)?.as_ref()?.job.as_deref());
    Ok(recorded.map(base).find(|job| !known.contains(*job)).map(str::to_owned))
}

fn base(job: &str) -> &str {
    job.split('_').next().unwrap_or(job)
}

/// Looks for the job whose name or comment holds `token`.
pub fn find(run: &RunDir, slurm: &Slurm, token: &str, when: When) -> Result<Found, SubmitError> {
    const TRIES: u32 = 3;
    let mut unknown = None;
    for attempt in 0..TRIES {
        if attempt > 0 {
            thread::sleep(slurm.settle);
        }
        match queued(slurm, token) {
            Ok(Some(job)) => return Ok(Found::Job(job)),
            Ok(None) => unknown = None,
            Err(error) => unknown = Some(error),
        }
    }
    match (unknown, accounted(run, slurm, token)?) {
        (_, Found::Job(job)) => Ok(Found::Job(job)),
        (Some(error), _) => Ok(Found::Unknown(error)),
        (None, Found::Unknown(error)) if when == When::Earlier => Ok(Found::Unknown(error)),
        (None, _) => Ok(Found::Nothing),
    }
}

/// Among all jobs of this user that the controller still knows. Asked for by user rather than by name: a site may
/// change names or comments at submission, hardly both.
pub fn queued(slurm: &Slurm, token: &str) -> Result<Option<String>, CallError> {
    Ok(job_with(&everything_queued(slurm)?, token))
}

fn everything_queued(slurm: &Slurm) -> Result<String, CallError> {
    let user = slurm.user.to_string();
    let args = ["-h", "-t", "all", "-o", "%F|%j|%k", "-u", &user].map(OsStr::new);
    call(slurm, &slurm.squeue, &args)
}

fn accounted(run: &RunDir, slurm: &Slurm, token: &str) -> Result<Found, SubmitError> {
    let Some(sacct) = &slurm.sacct else {
        return Ok(Found::Nothing);
    };
    let info = run.info()?;
    // Dates are in the cluster's local time: two days are enough for any zone, and for clocks that differ.
    let since = jiff::Timestamp::from_millisecond(info.created).unwrap_or_default() - jiff::SignedDuration::from_hours(48);
    let since = since.strftime("%Y-%m-%d").to_string();
    let user = slurm.user.to_string();
    let args = ["-X", "-P", "-n", "-u", &user, "-S", &since, "--format=JobID,JobName,Comment"].map(OsStr::new);
    Ok(match without_accounts(call(slurm, sacct, &args)) {
        Ok(text) => match job_with(&text.unwrap_or_default(), token) {
            Some(job) => Found::Job(job),
            None => Found::Nothing,
        },
        Err(error) => Found::Unknown(error),
    })
}

/// The id at the start of the line that holds `token`.
fn job_with(text: &str, token: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains(token))?;
    let id = base(line.split('|').next()?.trim());
    (!id.is_empty() && id.bytes().all(|b| b.is_ascii_digit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_by_name_or_comment() {
        let text = "12|other|x\n13|renamed-by-site|dvrun:k2m4\n14_[0-3]|a|b.call.zz99|null\n";
        assert_eq!(job_with(text, "k2m4").as_deref(), Some("13"));
        assert_eq!(job_with(text, "zz99").as_deref(), Some("14"));
        assert_eq!(job_with(text, "none"), None);
        assert_eq!(job_with("banner k2m4\n", "k2m4"), None);
    }
}
