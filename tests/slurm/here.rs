//! How a run on this machine stands.

use std::collections::BTreeMap;
use std::process::Command;

use dvrun::engine::{RunState, TaskState, status};
use dvrun::state::{Event, Outcome};
use dvrun::workflow::StageName;

use super::{Work, record, stage};

fn counts(work: &Work) -> (RunState, BTreeMap<TaskState, u32>) {
    let status = status(&work.run, &work.plan, None).unwrap();
    (status.state, status.stages[&StageName("a".into())].counts.clone())
}

fn work() -> Work {
    let work = Work::local([stage("a", &[], Some(3))]);
    let records = work.run.records(&StageName("a".into()));
    records.write(0, &record(Outcome::Ok, None)).unwrap();
    records.write(1, &record(Outcome::Running, None)).unwrap();
    work
}

fn started(work: &Work, pid: u32, host: &str) {
    let host = host.to_owned();
    work.run.journal().unwrap().append(&Event::Started { pid, host }).unwrap();
}

fn this_host() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

#[test]
fn while_its_process_is_there_it_runs() {
    let work = work();
    started(&work, std::process::id(), &this_host());
    let expected = [(TaskState::Ok, 1), (TaskState::Running, 1), (TaskState::Waiting, 1)];
    assert_eq!(counts(&work), (RunState::Active, BTreeMap::from(expected)));
}

#[test]
fn when_its_process_is_gone_it_was_interrupted() {
    let work = work();
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    started(&work, child.id(), &this_host());
    let expected = [(TaskState::Ok, 1), (TaskState::Interrupted, 1), (TaskState::NotStarted, 1)];
    assert_eq!(counts(&work), (RunState::Incomplete, BTreeMap::from(expected)));
}

#[test]
fn on_another_host_nobody_can_tell() {
    let work = work();
    started(&work, std::process::id(), "elsewhere");
    assert_eq!(counts(&work).1[&TaskState::Unknown], 2);
}

#[test]
fn all_done_is_done_and_a_failure_is_named() {
    let work = work();
    let records = work.run.records(&StageName("a".into()));
    records.write(1, &record(Outcome::Ok, None)).unwrap();
    records.write(2, &record(Outcome::Ok, None)).unwrap();
    assert_eq!(counts(&work), (RunState::Done, BTreeMap::from([(TaskState::Ok, 3)])));
    records.write(2, &record(Outcome::Failed { exit: 4 }, None)).unwrap();
    let status = status(&work.run, &work.plan, None).unwrap();
    let problem = &status.stages[0].problems[0];
    assert_eq!((status.state, problem.index, problem.exit), (RunState::Failed, 2, Some(4)));
    assert_eq!(problem.log, work.run.task_logs(&StageName("a".into()), 2).1);
}
