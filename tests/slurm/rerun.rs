//! Tasks again, on a real cluster.

use std::collections::BTreeSet;

use dvrun::engine::rerun::{Changes, Reach, Request, RerunError};
use dvrun::engine::slurm::{Rerun, Slurm, SlurmProfile, SlurmRerunError, rerun};
use dvrun::engine::{RunState, TaskState};
use dvrun::plan::TaskSet;
use dvrun::workflow::units::Bytes;

use super::real::{clear, cluster, count, end, name, until};
use super::{Work, stage};

fn request(stage: &str, tasks: &[u32], reach: Reach) -> Request {
    Request {
        stage: name(stage),
        tasks: tasks.iter().copied().collect(),
        reach,
        changes: Changes::default(),
    }
}

fn again(work: &mut Work, slurm: &Slurm, request: &Request) -> Result<Rerun, SlurmRerunError> {
    let program = work.program().into();
    rerun(&work.run, &mut work.plan, request, &SlurmProfile::default(), slurm, &program)
}

#[test]
fn what_waits_for_a_failed_shard_waits_for_its_second_run() {
    let Some(slurm) = cluster() else { return };
    let mut work = Work::new([stage("a", &[], Some(4)), stage("b", &["a"], None), stage("c", &["b"], Some(2))]);
    work.behave("a.2", "exit 3");
    let before = work.submit(&slurm).unwrap();
    assert_eq!(end(&work, &slurm).stuck.len(), 2);
    work.behave("a.2", "");
    let mut wish = request("a", &[2], Reach::Unfinished);
    wish.changes.memory = Some(Bytes(96 << 20));
    let done = again(&mut work, &slurm, &wish).unwrap();
    assert!(done.left.is_empty() && done.submission.stopped.is_none(), "{done:?}");
    // What waits is neither cancelled nor submitted anew.
    assert_eq!(done.chosen.keys().collect::<Vec<_>>(), [&name("a")]);
    assert_eq!(done.repointed, before.stages[1].jobs);
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Done, "{status:#?}");
    let started = work.started();
    assert_eq!(started.len(), 4 + 1 + 1 + 2, "{started:?}");
    assert_eq!(&started[5], "b 0");
    let script = std::fs::read_to_string(work.run.script(&name("a")).with_file_name("a.2.sbatch")).unwrap();
    assert!(script.contains("--mem=96M") && script.contains("--array=2\n"), "{script}");
    assert_eq!(work.run.plan().unwrap().stages[0].stage.resources.memory, Some(Bytes(96 << 20)));
}

#[test]
fn what_slurm_killed_is_submitted_with_it() {
    let Some(slurm) = cluster() else { return };
    let mut work = Work::new([stage("a", &[], None), stage("b", &["a"], Some(2)), stage("c", &["b"], None)]);
    work.behave("a", "exit 1");
    let profile = SlurmProfile {
        kill_invalid_depend: Some(true),
        ..SlurmProfile::default()
    };
    work.submit_as(&slurm, &profile).unwrap();
    assert_eq!(end(&work, &slurm).state, RunState::Failed);
    work.behave("a", "");
    let done = again(&mut work, &slurm, &request("a", &[0], Reach::Unfinished)).unwrap();
    assert_eq!((done.chosen.len(), done.repointed.len()), (3, 0), "{done:?}");
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Done, "{status:#?}");
    assert_eq!(work.started().len(), 5);
}

#[test]
fn a_shard_again_lets_its_own_shard_go_on() {
    let Some(slurm) = cluster() else { return };
    let mut pairs = stage("b", &["a"], Some(3));
    pairs.stage.needs[0].same_shard = true;
    let mut work = Work::new([stage("a", &[], Some(3)), pairs]);
    work.behave("a.0", "exit 1");
    work.behave("a.1", "exit 1");
    work.submit(&slurm).unwrap();
    end(&work, &slurm);
    work.behave("a.1", "");
    let done = again(&mut work, &slurm, &request("a", &[1], Reach::Unfinished)).unwrap();
    assert_eq!(done.repointed.len(), 1, "{done:?}");
    let status = end(&work, &slurm);
    assert_eq!(
        (count(&status, "a", TaskState::Failed), count(&status, "b", TaskState::Ok)),
        (1, 2),
        "{status:#?}"
    );
    clear(&work, &slurm);
}

#[test]
fn what_is_done_again_holds_back_what_waits_and_reaches_as_far_as_asked() {
    let Some(slurm) = cluster() else { return };
    let mut work = Work::new([
        stage("a", &[], None),
        stage("gate", &[], None),
        stage("b", &["a", "gate"], None),
        stage("used", &["a"], None),
    ]);
    work.behave("gate", "while [ ! -e \"$dir/open\" ]; do sleep 0.2; done");
    work.submit(&slurm).unwrap();
    until(&work, &slurm, |status| {
        count(status, "used", TaskState::Ok) == 1 && count(status, "gate", TaskState::Running) == 1
    });
    let running = again(&mut work, &slurm, &request("gate", &[0], Reach::Unfinished)).unwrap_err();
    assert!(matches!(running, SlurmRerunError::Choose(RerunError::Active { .. })), "{running}");
    let early = again(&mut work, &slurm, &request("b", &[0], Reach::Only)).unwrap_err();
    assert!(matches!(early, SlurmRerunError::Choose(RerunError::NotReady { .. })), "{early}");
    work.behave("a", "while [ ! -e \"$dir/open2\" ]; do sleep 0.2; done");
    let done = again(&mut work, &slurm, &request("a", &[0], Reach::Downstream)).unwrap();
    assert_eq!(
        done.chosen.keys().map(|name| name.0.as_str()).collect::<Vec<_>>(),
        ["a", "used"],
        "{done:?}"
    );
    assert_eq!(done.repointed.len(), 1, "{done:?}");
    std::fs::write(work.dir.join("open"), "").unwrap();
    until(&work, &slurm, |status| count(status, "gate", TaskState::Ok) == 1);
    assert_eq!(work.started().iter().filter(|task| task.starts_with('b')).count(), 0);
    std::fs::write(work.dir.join("open2"), "").unwrap();
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Done, "{status:#?}");
    let started: Vec<String> = work.started();
    assert_eq!(started.len(), 6, "{started:?}");
    assert_eq!(started.iter().collect::<BTreeSet<_>>().len(), 4);
    assert_eq!(work.run.records(&name("a")).read_one(0).unwrap().unwrap().attempt, 0);
    assert_eq!(TaskSet::all(1), work.run.plan().unwrap().stages[&name("b")].todo);
}
