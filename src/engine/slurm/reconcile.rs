//! An intent without an outcome: was that job submitted or not?
//!
//! Three witnesses, in this order: the queue (which keeps a job for some minutes after its end), the run's own records
//! (a task writes its job's id before its program starts), the accounts. Only when none of them knows the token is it
//! certain that nothing was submitted; when one that counts cannot be asked, nothing is certain. Intents of a whole graph may
//! be open: each witness is asked once for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::thread;

use super::call::{CallError, Slurm, call};
use super::journal::{Intent, intents, jobs};
use super::query::without_accounts;
use super::submit::SubmitError;
use crate::state::{Event, Journal, Record, RunDir};
use crate::workflow::StageName;

/// What became of submissions.
#[derive(Debug)]
pub struct Search {
    /// The jobs that were found, in the order of what was looked for.
    pub jobs: Vec<Option<String>>,
    /// Why the others may be there all the same. `None`: no such job is, or was.
    pub doubt: Option<CallError>,
}

/// When the submission was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Moments ago: the queue alone can tell, but the request may still be under way.
    Now,
    /// In an earlier process.
    Earlier,
}

/// Whether a living process may be about to submit what is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitter {
    /// The caller holds the lock of the runs' folder.
    Gone,
    Perhaps,
}

/// Settles every open intent of a run that an earlier process left. The caller holds the lock of the runs' folder.
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
    let queued = jobs_with(&everything_queued(slurm).unwrap_or_default(), &tokens(&open));
    let recorded = recorded(run, &open, &events)?;
    let found = open.into_iter().zip(queued.into_iter().zip(recorded));
    let events: Vec<Event> = found
        .filter_map(|(intent, (queued, recorded))| {
            let job = queued.or(recorded)?;
            Some(Event::Submitted { token: intent.token, job })
        })
        .collect();
    write(&mut run.journal()?, &events)
}

/// Settles every open intent of the journal, and writes down what was found. `events` grows by what is written. The caller holds
/// the lock of the runs' folder: nobody else is about to submit what is not there.
///
/// # Errors
/// [`SubmitError::Unknown`] where Slurm cannot be asked: nothing may be submitted before that is known. What is known by then is
/// written.
pub fn reconcile(run: &RunDir, slurm: &Slurm, journal: &mut Journal, events: &mut Vec<Event>) -> Result<(), SubmitError> {
    let open = intents(events);
    let recorded = recorded(run, &open, events)?;
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for (intent, job) in open.into_iter().zip(recorded) {
        match job {
            Some(job) => known.push(Event::Submitted { token: intent.token, job }),
            None => unknown.push(intent),
        }
    }
    let mut problem = None;
    if !unknown.is_empty() {
        let Search { jobs, doubt } = find(run, slurm, &tokens(&unknown), When::Earlier)?;
        let mut in_doubt = None;
        for (Intent { token, stage, .. }, job) in unknown.into_iter().zip(jobs) {
            match job {
                Some(job) => known.push(Event::Submitted { token, job }),
                None if doubt.is_some() => in_doubt = in_doubt.or(Some(stage)),
                None => known.push(Event::NotSubmitted {
                    token,
                    message: "the submitting process ended before Slurm had the job".to_owned(),
                }),
            }
        }
        problem = in_doubt.zip(doubt);
    }
    write(journal, &known)?;
    events.extend(known);
    match problem {
        Some((stage, source)) => Err(SubmitError::Unknown { stage, source }),
        None => Ok(()),
    }
}

fn write(journal: &mut Journal, events: &[Event]) -> Result<(), SubmitError> {
    if events.is_empty() {
        return Ok(());
    }
    let written = events
        .iter()
        .try_for_each(|event| journal.note(event))
        .and_then(|()| journal.sync());
    written.map_err(|source| SubmitError::Journal {
        path: journal.path().to_owned(),
        source,
    })
}

fn tokens(intents: &[Intent]) -> Vec<&str> {
    intents.iter().map(|intent| intent.token.as_str()).collect()
}

/// For each of `open` a job id in the records of its tasks that no journal line explains.
fn recorded(run: &RunDir, open: &[Intent], events: &[Event]) -> Result<Vec<Option<String>>, SubmitError> {
    let known: BTreeSet<String> = jobs(events).into_iter().map(|job| job.job).collect();
    // Each stage's once, up to the last of its tasks that counts.
    let mut counts: BTreeMap<&StageName, u32> = BTreeMap::new();
    for intent in open {
        let last = intent.tasks.ranges().last().map_or(0, |range| range.1.saturating_add(1));
        let count = counts.entry(&intent.stage).or_default();
        *count = last.max(*count);
    }
    let mut read: BTreeMap<&StageName, Vec<Option<Record>>> = BTreeMap::new();
    for (stage, count) in counts {
        let records = run.records(stage);
        let all = records.read(count).map_err(|source| SubmitError::Records {
            path: records.path().to_owned(),
            source,
        })?;
        read.insert(stage, all);
    }
    let job = |intent: &Intent| {
        let records = &read[&intent.stage];
        let mut jobs = intent
            .tasks
            .iter()
            .filter_map(|index| Some(base(records.get(index as usize)?.as_ref()?.job.as_deref()?)));
        jobs.find(|job| !known.contains(*job)).map(str::to_owned)
    };
    Ok(open.iter().map(job).collect())
}

fn base(job: &str) -> &str {
    job.split('_').next().unwrap_or(job)
}

/// Looks for the jobs whose names or comments hold these tokens.
///
/// # Errors
/// What the run folder says.
pub fn find(run: &RunDir, slurm: &Slurm, tokens: &[&str], when: When) -> Result<Search, SubmitError> {
    const TRIES: u32 = 3;
    let mut jobs: Vec<Option<String>> = vec![None; tokens.len()];
    let add = |jobs: &mut Vec<Option<String>>, text: &str| {
        for (job, found) in jobs.iter_mut().zip(jobs_with(text, tokens)) {
            *job = job.take().or(found);
        }
    };
    let mut doubt = None;
    for attempt in 0..TRIES {
        if attempt > 0 {
            thread::sleep(slurm.settle);
        }
        doubt = match everything_queued(slurm) {
            Ok(text) => {
                add(&mut jobs, &text);
                None
            }
            Err(error) => Some(error),
        };
        if jobs.iter().all(Option::is_some) {
            return Ok(Search { jobs, doubt: None });
        }
    }
    match accounts(run, slurm)? {
        Ok(text) => add(&mut jobs, &text),
        Err(error) if when == When::Earlier => doubt = doubt.or(Some(error)),
        Err(_) => {}
    }
    Ok(Search { jobs, doubt })
}

/// Among all jobs of this user that the controller still knows. Asked for by user rather than by name: a site may
/// change names or comments at submission, hardly both.
pub fn queued(slurm: &Slurm, token: &str) -> Result<Option<String>, CallError> {
    Ok(jobs_with(&everything_queued(slurm)?, &[token]).pop().flatten())
}

fn everything_queued(slurm: &Slurm) -> Result<String, CallError> {
    let user = slurm.user.to_string();
    let args = ["-h", "-t", "all", "-o", "%F|%j|%k", "-u", &user].map(OsStr::new);
    call(slurm, &slurm.squeue, &args)
}

/// All jobs of this user since the run began. Nothing where the cluster keeps no accounts.
fn accounts(run: &RunDir, slurm: &Slurm) -> Result<Result<String, CallError>, SubmitError> {
    let Some(sacct) = &slurm.sacct else {
        return Ok(Ok(String::new()));
    };
    let info = run.info()?;
    // Dates are in the cluster's local time: two days are enough for any zone, and for clocks that differ.
    let since = jiff::Timestamp::from_millisecond(info.created).unwrap_or_default() - jiff::SignedDuration::from_hours(48);
    let since = since.strftime("%Y-%m-%d").to_string();
    let user = slurm.user.to_string();
    let args = ["-X", "-P", "-n", "-u", &user, "-S", &since, "--format=JobID,JobName,Comment"].map(OsStr::new);
    Ok(without_accounts(call(slurm, sacct, &args)).map(Option::unwrap_or_default))
}

/// For each token the id at the start of the first line that holds it. There may be thousands of either: each line is gone
/// through once.
fn jobs_with(text: &str, tokens: &[&str]) -> Vec<Option<String>> {
    let places: HashMap<&[u8], usize> = tokens.iter().enumerate().map(|(place, token)| (token.as_bytes(), place)).collect();
    let lengths: BTreeSet<usize> = places.keys().map(|token| token.len()).collect();
    let mut jobs: Vec<Option<String>> = vec![None; tokens.len()];
    for line in text.lines() {
        let id = base(line.split('|').next().unwrap_or_default().trim());
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let words = lengths.iter().flat_map(|&length| line.as_bytes().windows(length));
        for place in words.filter_map(|word| places.get(word)) {
            jobs[*place].get_or_insert_with(|| id.to_owned());
        }
    }
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_by_name_or_comment() {
        let text = "12|other|x\n13|renamed-by-site|dvrun:k2m4\n14_[0-3]|a|b.call.zz99|null\n";
        let found = |text, tokens: &[&str]| jobs_with(text, tokens);
        let some = |id: &str| Some(id.to_owned());
        assert_eq!(found(text, &["k2m4", "none", "zz99"]), [some("13"), None, some("14")]);
        assert_eq!(found("banner k2m4\n", &["k2m4"]), [None]);
    }
}
