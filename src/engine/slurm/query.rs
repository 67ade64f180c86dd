//! How jobs stand: one call of `squeue` for all, then one of `sacct` for what it no longer knows.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;

use super::call::{CallError, Slurm, call};
use super::job_state::JobState;

/// A job, or one task of an array.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobTask {
    /// The job's id, an array's base id.
    pub job: String,
    /// The array index.
    pub index: Option<u32>,
}

/// What Slurm says of some jobs.
pub type States = BTreeMap<JobTask, JobState>;

/// What Slurm knows. What is not in `states` is unknown: neither well nor badly ended.
#[derive(Debug, Default)]
pub struct Jobs {
    pub states: States,
    /// The controller answered: what is not in `states` is not queued and not running.
    pub queue_answered: bool,
    /// Calls that gave no answer.
    pub problems: Vec<CallError>,
}

/// How `wanted` stand; and `ended`, whose end is known, where they are in the queue again.
pub fn query(slurm: &Slurm, wanted: &BTreeSet<JobTask>, ended: &BTreeSet<JobTask>) -> Jobs {
    let mut jobs = Jobs::default();
    match queue(slurm, &wanted.union(ended).map(|task| task.job.as_str()).collect()) {
        Ok(states) => {
            jobs.queue_answered = true;
            jobs.states = states;
        }
        Err(problem) => jobs.problems.push(problem),
    }
    let missing = wanted.iter().filter(|task| !jobs.states.contains_key(task));
    let missing: BTreeSet<&str> = missing.map(|task| task.job.as_str()).collect();
    match accounts(slurm, &missing) {
        Ok(accounted) => {
            for (task, state) in accounted {
                // Accounts lag behind: what is not in the queue is not active, whatever they say.
                if !(jobs.queue_answered && state.is_active()) {
                    jobs.states.entry(task).or_insert(state);
                }
            }
        }
        Err(problem) => jobs.problems.push(problem),
    }
    jobs
}

/// How these jobs stand in the queue, which knows them until some minutes after their end.
///
/// # Errors
/// [`CallError`] when the controller does not answer.
pub fn queue(slurm: &Slurm, ids: &BTreeSet<&str>) -> Result<States, CallError> {
    let mut states = States::new();
    if ids.is_empty() {
        return Ok(states);
    }
    let ids = Vec::from_iter(ids.iter().copied()).join(",");
    let args = ["-h", "-r", "-t", "all", "-o", "%F|%K|%T|%S|%r", "-j", &ids].map(OsStr::new);
    match call(slurm, &slurm.squeue, &args) {
        Ok(text) => parse_squeue(&text, &mut states),
        // What it says of one job that it no longer knows.
        Err(CallError::Failed { message, .. }) if message.contains("Invalid job id") => {}
        Err(error) => return Err(error),
    }
    Ok(states)
}

/// Base ids of the jobs that will go on by themselves, or wait for ever.
pub fn active(states: &States) -> BTreeSet<String> {
    let active = states.iter().filter(|(_, state)| state.is_active());
    active.map(|(task, _)| task.job.clone()).collect()
}

/// How these jobs stand in the accounts; nothing where there are none.
fn accounts(slurm: &Slurm, ids: &BTreeSet<&str>) -> Result<States, CallError> {
    let mut states = States::new();
    let Some(sacct) = slurm.sacct.as_ref().filter(|_| !ids.is_empty()) else {
        return Ok(states);
    };
    let ids = Vec::from_iter(ids.iter().copied()).join(",");
    let args = ["-X", "-P", "-n", "--format=JobID,ExitCode,State", "-j", &ids].map(OsStr::new);
    if let Some(text) = without_accounts(call(slurm, sacct, &args))? {
        parse_sacct(&text, &mut states);
    }
    Ok(states)
}

/// A cluster without accounting is no error.
pub fn without_accounts(answer: Result<String, CallError>) -> Result<Option<String>, CallError> {
    match answer {
        Ok(text) => Ok(Some(text)),
        Err(CallError::Spawn { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(CallError::Failed { message, .. }) if message.contains("accounting storage is disabled") => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_squeue(text: &str, states: &mut States) {
    for line in text.lines() {
        let mut fields = line.splitn(5, '|').map(str::trim);
        let (Some(job), Some(index), Some(state), Some(start), Some(reason)) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let state = match JobState::parse(state) {
            JobState::Pending { .. } => JobState::Pending {
                reason: reason.to_owned(),
                start: (start != "N/A" && !start.is_empty()).then(|| start.to_owned()),
            },
            state => state,
        };
        insert(states, job, index, state);
    }
}

fn parse_sacct(text: &str, states: &mut States) {
    for line in text.lines() {
        let mut fields = line.splitn(3, '|').map(str::trim);
        let (Some(job), Some(exit), Some(state)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let state = match JobState::parse(state) {
            JobState::Failed { .. } => JobState::Failed { exit: exit_status(exit) },
            state => state,
        };
        match job.split_once('_') {
            Some((job, index)) => insert(states, job, index.trim_matches(['[', ']']), state),
            None => insert(states, job, "N/A", state),
        }
    }
}

/// `STATUS:SIGNAL`, as a shell would say it.
fn exit_status(text: &str) -> Option<i32> {
    let (status, signal) = text.split_once(':')?;
    match signal.parse() {
        Ok(0) => status.parse().ok(),
        Ok(signal) => Some(128i32.checked_add(signal)?),
        Err(_) => None,
    }
}

/// `index`: `N/A`, a number, or what of an array waits: `3,5-9%4`.
fn insert(states: &mut States, job: &str, index: &str, state: JobState) {
    if job.is_empty() || !job.bytes().all(|b| b.is_ascii_digit()) {
        return;
    }
    let job = job.to_owned();
    if index == "N/A" {
        states.insert(JobTask { job, index: None }, state);
        return;
    }
    // No cluster has larger arrays; a line that says so is not believed.
    const LARGEST: u32 = 5_000_000;
    let ranges = index.split('%').next().unwrap_or_default();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else {
            continue;
        };
        for index in first..=last.min(first.saturating_add(LARGEST)) {
            states.insert(
                JobTask {
                    job: job.clone(),
                    index: Some(index),
                },
                state.clone(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(job: &str, index: impl Into<Option<u32>>) -> JobTask {
        JobTask {
            job: job.into(),
            index: index.into(),
        }
    }

    #[test]
    fn squeue_lines() {
        let mut states = BTreeMap::new();
        parse_squeue(
            "12|N/A|PENDING|N/A|(null)|x\n13|4|RUNNING|2026-01-01T00:00:00|None\n13|5-6%2|PENDING|N/A|JobArrayTaskLimit\nnoise\n",
            &mut states,
        );
        assert_eq!(states.len(), 4);
        assert_eq!(states[&task("13", 4)], JobState::Running);
        assert!(matches!(&states[&task("13", 6)], JobState::Pending { reason, start: None } if reason == "JobArrayTaskLimit"));
        assert!(matches!(&states[&task("12", None)], JobState::Pending { reason, .. } if reason == "(null)|x"));
    }

    #[test]
    fn sacct_lines() {
        let mut states = BTreeMap::new();
        parse_sacct(
            "12|0:125|OUT_OF_MEMORY\n13_2|3:0|FAILED\n13_3|0:9|FAILED\n13_[5-6%3]|0:0|PENDING\n14|0:15|CANCELLED by 1000\n",
            &mut states,
        );
        assert_eq!(states[&task("12", None)], JobState::OutOfMemory);
        assert_eq!(states[&task("13", 2)], JobState::Failed { exit: Some(3) });
        assert_eq!(states[&task("13", 3)], JobState::Failed { exit: Some(137) });
        assert!(states[&task("13", 6)].is_active());
        assert_eq!(states[&task("14", None)], JobState::Cancelled { by: Some("1000".into()) });
    }

    #[test]
    fn nonsense_takes_no_memory() {
        let mut states = BTreeMap::new();
        parse_squeue("x|1|RUNNING|a|b\n9|a-b|RUNNING|a|b\n9|||||\n\u{0}\n|||", &mut states);
        assert!(states.is_empty(), "{states:?}");
    }
}
