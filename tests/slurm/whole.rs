//! What has to hold after every test on a real cluster: Slurm has no job that dvrun does not know, and no task ran more
//! often than its record says.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use dvrun::engine::slurm::{intents, jobs};
use dvrun::state::{Event, Journal, RunDir};

use super::Work;
use crate::support::finish;

/// Fails where Slurm has a job of this workflow's folder that no journal of its runs holds, or an intent is open. `conf` is
/// the cluster's, where it is not the tests' common one.
#[track_caller]
pub fn nothing_unknown(run: &RunDir, conf: Option<&Path>) {
    let dir = run.plan().unwrap().dir;
    let mut known = BTreeSet::new();
    for run in RunDir::list(&dir).unwrap() {
        let events = Journal::read(&run.journal_path()).unwrap();
        assert_eq!(intents(&events), [], "an intent of {} is open", run.id());
        known.extend(jobs(&events).into_iter().map(|job| job.job));
    }
    let mut squeue = Command::new("squeue");
    if let Some(conf) = conf {
        squeue.env("SLURM_CONF", conf);
    }
    let shown = finish(squeue.args(["-h", "-t", "all", "-o", "%F|%k|%Z"])).ok().stdout;
    for line in shown.lines() {
        let mut fields = line.splitn(3, '|');
        let (Some(job), Some(comment), Some(folder)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let ours = comment.starts_with("dvrun:") && Path::new(folder) == dir;
        assert!(!ours || known.contains(job), "nobody knows of job {line}; known are {known:?}");
    }
}

/// The same of a plan made by hand; and each task was started once for each attempt that its record counts, as long as
/// nobody asked for it again.
#[track_caller]
pub fn nothing_twice(work: &Work) {
    nothing_unknown(&work.run, None);
    let events = Journal::read(&work.run.journal_path()).unwrap();
    if events.iter().any(|event| matches!(event, Event::Rerun { .. })) {
        return;
    }
    for (name, stage) in &work.plan.stages {
        let records = work.run.records(name).read(stage.stage.tasks()).unwrap();
        for (index, record) in records.iter().enumerate() {
            let task = format!("{name} {index}");
            let starts = work.started().iter().filter(|started| **started == task).count();
            let attempts = record.as_ref().map_or(0, |record| record.attempt as usize + 1);
            assert!(starts <= attempts, "{task} was started {starts} times in {attempts} attempts");
        }
    }
}
