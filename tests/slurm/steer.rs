//! Waiting jobs held and released, and what is said of them, on a real cluster.

use std::collections::BTreeSet;

use dvrun::engine::slurm::{Hold, hold};
use dvrun::engine::{RunState, TaskState, explain};

use super::real::{clear, cluster, count, end, name, until};
use super::{Work, stage};

#[test]
fn held_jobs_wait_until_they_are_released() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([
        stage("first", &[], None),
        stage("a", &["first"], Some(2)),
        stage("other", &["first"], None),
    ]);
    work.behave("first", "while [ ! -e \"$dir/open\" ]; do sleep 0.2; done");
    let submission = work.submit(&slurm).unwrap();
    until(&work, &slurm, |status| count(status, "first", TaskState::Running) == 1);
    let only = BTreeSet::from([name("a")]);
    assert_eq!(hold(&work.run, &slurm, &only, Hold::Hold).unwrap(), submission.stages[1].jobs);
    assert_eq!(hold(&work.run, &slurm, &only, Hold::Hold).unwrap(), Vec::<String>::new());
    // What runs is not held.
    assert_eq!(
        hold(&work.run, &slurm, &BTreeSet::from([name("first")]), Hold::Hold).unwrap(),
        Vec::<String>::new()
    );
    std::fs::write(work.dir.join("open"), "").unwrap();
    until(&work, &slurm, |status| count(status, "other", TaskState::Ok) == 1);
    let status = until(&work, &slurm, |status| {
        status.stages[&name("a")]
            .waiting
            .keys()
            .any(|reason| reason.starts_with("held by its user"))
    });
    assert_eq!((status.state, count(&status, "a", TaskState::Waiting)), (RunState::Active, 2));
    let explained = explain(&work.run, &work.plan, &name("a"), 1, Some(&slurm)).unwrap();
    assert_eq!((explained.task.state, explained.record), (TaskState::Waiting, None));
    assert!(
        explained.task.message.starts_with("held by its user"),
        "{explained:?}",
        explained = explained.task
    );
    assert_eq!(hold(&work.run, &slurm, &only, Hold::Release).unwrap().len(), 1);
    assert_eq!(end(&work, &slurm).state, RunState::Done);
    clear(&work, &slurm);
}

#[test]
fn a_job_that_was_killed_is_explained_by_what_slurm_says() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([stage("a", &[], Some(2)), stage("b", &["a"], None)]);
    work.behave("a.1", "kill -KILL $$");
    work.submit(&slurm).unwrap();
    end(&work, &slurm);
    let explained = explain(&work.run, &work.plan, &name("a"), 1, Some(&slurm)).unwrap();
    assert_eq!(explained.task.state, TaskState::Broken);
    assert!(explained.slurm.is_some_and(|state| !state.is_active()));
    let explained = explain(&work.run, &work.plan, &name("b"), 0, Some(&slurm)).unwrap();
    assert_eq!(explained.needs, [(name("a"), [1].into_iter().collect())]);
    clear(&work, &slurm);
}
