//! On a real cluster, as whoever runs the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use dvrun::engine::slurm::{Missing, Slurm, SlurmProfile, SubmitError, Submitter, cancel, sweep, wait, with_dependants};
use dvrun::engine::{RunState, RunStatus, TaskState, status};
use dvrun::state::Outcome;
use dvrun::workflow::units::Bytes;
use dvrun::workflow::{Array, StageName};

use super::whole::nothing_twice;
use super::{Work, sbatch_with_limit, stage};
use crate::support::{as_root, lane};

const PATIENCE: Duration = Duration::from_secs(60);

pub fn cluster() -> Option<Slurm> {
    let up = || Command::new("sinfo").output().is_ok_and(|output| output.status.success());
    lane("slurm", std::env::var_os("SLURM_CONF").is_some() && up()).then(|| Slurm {
        settle: Duration::from_millis(500),
        ..Slurm::new(std::env::vars_os())
    })
}

/// Whether the cluster holds jobs and steps to the memory that they asked for.
pub fn holds_to_memory() -> bool {
    let conf = std::env::var("SLURM_CONF").unwrap();
    let limits = std::fs::read_to_string(std::path::Path::new(&conf).with_file_name("cgroup.conf")).unwrap_or_default();
    lane("slurm memory limits", limits.contains("ConstrainRAMSpace=yes"))
}

pub fn name(name: &str) -> StageName {
    StageName(name.into())
}

pub fn count(status: &RunStatus, stage: &str, state: TaskState) -> u32 {
    status.stages[&name(stage)].counts.get(&state).copied().unwrap_or(0)
}

/// Sees a run to its end, after which nothing is there that nobody knows of.
#[track_caller]
pub fn end(work: &Work, slurm: &Slurm) -> RunStatus {
    let status = wait(&work.run, &work.plan, slurm, |_| {}).unwrap();
    nothing_twice(work);
    status
}

/// Ends what a test leaves in the queue.
pub fn clear(work: &Work, slurm: &Slurm) {
    let all = work.plan.stages.keys().cloned().collect();
    assert_eq!(
        cancel(&work.run, slurm, &all, Submitter::Gone, PATIENCE).unwrap().lingering,
        Vec::<String>::new()
    );
}

/// Until `is` holds of the status. There is no other way to see what a queue does.
pub fn until(work: &Work, slurm: &Slurm, is: impl Fn(&RunStatus) -> bool) -> RunStatus {
    for _ in 0..300 {
        let status = status(&work.run, &work.plan, Some(slurm)).unwrap();
        if is(&status) {
            return status;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("never came: {:#?}", status(&work.run, &work.plan, Some(slurm)).unwrap());
}

#[test]
fn a_diamond_runs_in_order_and_each_task_once() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([
        stage("first", &[], None),
        stage("left", &["first"], Some(3)),
        stage("right", &["first"], None),
        stage("last", &["left", "right"], None),
    ]);
    let submission = work.submit(&slurm).unwrap();
    assert!(submission.stopped.is_none() && submission.missing.is_empty(), "{submission:?}");
    assert_eq!(submission.stages.iter().map(|stage| stage.tasks).sum::<u32>(), 6);
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Done, "{status:#?}");
    let mut started = work.started();
    assert_eq!((started[0].as_str(), started[5].as_str()), ("first 0", "last 0"));
    started.sort();
    assert_eq!(started, ["first 0", "last 0", "left 0", "left 1", "left 2", "right 0"]);
    // A second submission of the same run finds nothing to do.
    let again = work.submit(&slurm).unwrap();
    assert!(
        again.stages.iter().all(|stage| stage.new == 0) && again.stages.len() == 4,
        "{again:?}"
    );
    assert_eq!(work.started().len(), 6);
    // Slurm's own words have one place an array, and the tasks none.
    let logs: Vec<_> = std::fs::read_dir(work.run.logs(&name("left"))).unwrap().collect();
    assert_eq!(logs.len(), 1);
}

#[test]
fn a_failing_shard_is_named_and_what_needs_it_never_runs() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([stage("a", &[], Some(4)), stage("b", &["a"], None), stage("c", &["b"], None)]);
    work.behave("a.2", "exit 3");
    work.submit(&slurm).unwrap();
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Failed, "{status:#?}");
    let problem = &status.stages[&name("a")].problems[0];
    assert_eq!((problem.index, problem.state, problem.exit), (2, TaskState::Failed, Some(3)));
    assert_eq!(status.stages[&name("a")].failed.ranges(), [(2, 2)]);
    assert_eq!(count(&status, "a", TaskState::Ok), 3);
    assert_eq!(count(&status, "b", TaskState::UpstreamFailed), 1);
    assert_eq!(count(&status, "c", TaskState::UpstreamFailed), 1);
    assert_eq!((status.jobs.len(), status.stuck.len()), (0, 2));
    assert_eq!(sweep(&work.run, &work.plan, &slurm, PATIENCE).unwrap().tasks, 2);
    let records = work.run.records(&name("c")).read_one(0).unwrap().unwrap();
    assert_eq!(records.outcome, Outcome::UpstreamFailed);
    let status = end(&work, &slurm);
    assert_eq!((status.state, status.stuck.len()), (RunState::Failed, 0));
    assert!(!work.started().iter().any(|task| task.starts_with('b') || task.starts_with('c')));
}

#[test]
fn slurm_itself_sweeps_where_the_profile_says_so() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([stage("a", &[], None), stage("b", &["a"], Some(2)), stage("c", &["b"], None)]);
    work.behave("a", "exit 1");
    let profile = SlurmProfile {
        kill_invalid_depend: Some(true),
        ..SlurmProfile::default()
    };
    work.submit_as(&slurm, &profile).unwrap();
    let status = end(&work, &slurm);
    assert_eq!((status.state, status.stuck.len()), (RunState::Failed, 0), "{status:#?}");
    assert_eq!(count(&status, "b", TaskState::UpstreamFailed), 2);
    assert_eq!(count(&status, "c", TaskState::UpstreamFailed), 1);
}

#[test]
fn an_array_larger_than_slurm_takes_is_several_jobs() {
    let Some(mut slurm) = cluster() else { return };
    let mut wide = stage("wide", &[], Some(11));
    wide.stage.array = Some(Array {
        count: 11,
        max_parallel: Some(3),
        values: Vec::new(),
    });
    let mut pairs = stage("pairs", &["wide"], Some(11));
    pairs.stage.needs[0].same_shard = true;
    let work = Work::new([wide, pairs]);
    let scontrol = work.program().with_file_name("scontrol");
    std::fs::write(&scontrol, "#!/bin/sh\necho 'MaxArraySize            = 4'\n").unwrap();
    std::fs::set_permissions(&scontrol, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    slurm.scontrol = scontrol;
    let submission = work.submit(&slurm).unwrap();
    assert_eq!(submission.stages.iter().map(|stage| stage.jobs.len()).collect::<Vec<_>>(), [3, 3]);
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Done, "{status:#?}");
    let started: BTreeSet<String> = work.started().into_iter().collect();
    let expected: BTreeSet<String> = (0..11)
        .flat_map(|index| [format!("wide {index}"), format!("pairs {index}")])
        .collect();
    assert_eq!((started, work.started().len()), (expected, 22));
}

#[test]
fn a_shard_waits_for_its_own_shard_alone() {
    let Some(slurm) = cluster() else { return };
    let mut pairs = stage("b", &["a"], Some(3));
    pairs.stage.needs[0].same_shard = true;
    let work = Work::new([stage("a", &[], Some(3)), pairs]);
    work.behave("a.1", "exit 1");
    work.submit(&slurm).unwrap();
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Failed, "{status:#?}");
    assert_eq!(count(&status, "b", TaskState::Ok), 2);
    assert_eq!(count(&status, "b", TaskState::UpstreamFailed), 1);
    clear(&work, &slurm);
}

#[test]
fn what_always_runs_runs_behind_what_never_does() {
    let Some(slurm) = cluster() else { return };
    let mut report = stage("report", &["b"], None);
    report.stage.always = true;
    let work = Work::new([stage("a", &[], None), stage("b", &["a"], None), report]);
    work.behave("a", "exit 1");
    work.submit(&slurm).unwrap();
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Failed, "{status:#?}");
    assert_eq!(work.started(), ["a 0", "report 0"]);
    assert_eq!(count(&status, "b", TaskState::UpstreamFailed), 1);
}

#[test]
fn cancelled_jobs_are_gone_and_recorded() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([stage("a", &[], Some(2)), stage("b", &["a"], None), stage("other", &[], None)]);
    work.behave("a", "sleep 600");
    work.behave("other", "sleep 600");
    work.submit(&slurm).unwrap();
    until(&work, &slurm, |status| {
        count(status, "a", TaskState::Running) == 2 && count(status, "other", TaskState::Running) == 1
    });
    let stages = with_dependants(&work.plan, &[name("a")]);
    assert_eq!(stages, BTreeSet::from([name("a"), name("b")]));
    let cancelled = cancel(&work.run, &slurm, &stages, Submitter::Gone, PATIENCE).unwrap();
    assert_eq!(
        (cancelled.jobs.len(), cancelled.tasks, cancelled.lingering.len()),
        (2, 3, 0),
        "{cancelled:?}"
    );
    let now = status(&work.run, &work.plan, Some(&slurm)).unwrap();
    assert_eq!(count(&now, "a", TaskState::Cancelled), 2, "{now:#?}");
    assert_eq!(count(&now, "b", TaskState::Cancelled), 1);
    assert_eq!(
        (count(&now, "other", TaskState::Running), now.state, now.jobs.len()),
        (1, RunState::Active, 1)
    );
    clear(&work, &slurm);
    let now = status(&work.run, &work.plan, None).unwrap();
    assert_eq!(now.state, RunState::Incomplete, "{now:#?}");
}

#[test]
fn cancelled_from_outside_before_a_record_was_written() {
    let Some(slurm) = cluster() else { return };
    let mut held = stage("held", &[], None);
    held.stage.slurm.args.push("--hold".into());
    let work = Work::new([held]);
    let submission = work.submit(&slurm).unwrap();
    let now = until(&work, &slurm, |status| count(status, "held", TaskState::Waiting) == 1);
    assert_eq!(
        now.stages[&name("held")].waiting.keys().next().unwrap(),
        "held by its user (`dvrun release` lets it go)"
    );
    assert!(
        Command::new("scancel")
            .arg(&submission.stages[0].jobs[0])
            .status()
            .unwrap()
            .success()
    );
    let status = end(&work, &slurm);
    assert_eq!(
        (status.state, count(&status, "held", TaskState::Cancelled)),
        (RunState::Incomplete, 1),
        "{status:#?}"
    );
}

#[test]
fn jobs_that_die_without_a_record_are_named_with_or_without_accounts() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([stage("killed", &[], None)]);
    // The stand-in itself dies: no end is recorded.
    work.behave("killed", "kill -KILL $$");
    let submission = work.submit(&slurm).unwrap();
    assert!(submission.stopped.is_none(), "{submission:?}");
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Failed, "{status:#?}");
    assert_eq!(count(&status, "killed", TaskState::Broken), 1, "{status:#?}");
    let without = Slurm { sacct: None, ..slurm };
    let again = dvrun::engine::status(&work.run, &work.plan, Some(&without)).unwrap();
    assert_eq!(count(&again, "killed", TaskState::Broken), 1, "{again:#?}");
    // Nobody to ask: unknown, neither well nor badly ended.
    let alone = dvrun::engine::status(&work.run, &work.plan, None).unwrap();
    assert_eq!((count(&alone, "killed", TaskState::Unknown), alone.unanswered), (1, true));
}

#[test]
fn more_memory_than_asked_for_is_said_to_be_so() {
    let Some(slurm) = cluster() else { return };
    if !holds_to_memory() {
        return;
    }
    let mut hungry = stage("hungry", &[], None);
    hungry.stage.resources.memory = Some(Bytes(60 << 20));
    let work = Work::new([hungry]);
    work.behave("hungry", "head -c 400M /dev/zero | tail >/dev/null; kill -KILL $$");
    work.submit(&slurm).unwrap();
    let status = end(&work, &slurm);
    assert_eq!(count(&status, "hungry", TaskState::OutOfMemory), 1, "{status:#?}");
}

#[test]
fn paths_with_everything_that_slurm_and_the_shell_read() {
    let Some(slurm) = cluster() else { return };
    let work = Work::named("a b'c \"d\" #%j $HOME", [stage("a", &[], Some(2))]);
    work.behave("a", "pwd; exit 0");
    let submission = work.submit(&slurm).unwrap();
    assert!(submission.stopped.is_none(), "{submission:?}");
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Done, "{status:#?}");
    let log = work
        .run
        .logs(&name("a"))
        .join(format!("slurm-{}.log", submission.stages[0].jobs[0]));
    assert_eq!(std::fs::read_to_string(log).unwrap(), format!("{0}\n{0}\n", work.dir.display()));
}

/// `sbatch` that takes so many jobs, and then says what a site with a limit says.
fn limited(work: &Work, slurm: &Slurm, jobs: u32) -> Slurm {
    let sbatch = work.program().with_file_name("limited");
    std::fs::write(&sbatch, sbatch_with_limit(jobs, &work.dir, "sbatch")).unwrap();
    std::fs::set_permissions(&sbatch, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    Slurm { sbatch, ..slurm.clone() }
}

#[test]
fn a_limit_stops_cleanly_and_the_next_submission_goes_on() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([stage("a", &[], None), stage("b", &["a"], Some(2)), stage("c", &["b"], None)]);
    let stopped = work.submit(&limited(&work, &slurm, 1)).unwrap();
    assert!(matches!(stopped.stopped, Some(SubmitError::Limit { .. })), "{stopped:?}");
    assert_eq!(stopped.missing, [(name("b"), Missing::Stopped), (name("c"), Missing::Stopped)]);
    // `a` ends before anything depends on it.
    until(&work, &slurm, |status| {
        count(status, "a", TaskState::Ok) == 1 && status.jobs.is_empty()
    });
    let rest = work.submit(&slurm).unwrap();
    assert!(rest.stopped.is_none() && rest.missing.is_empty(), "{rest:?}");
    let status = end(&work, &slurm);
    assert_eq!(status.state, RunState::Done, "{status:#?}");
    assert_eq!(work.started().len(), 4);
}

#[test]
fn what_failed_before_the_rest_was_submitted_holds_the_rest_back() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([stage("a", &[], None), stage("b", &["a"], Some(2)), stage("c", &["b"], None)]);
    work.behave("a", "exit 1");
    work.submit(&limited(&work, &slurm, 1)).unwrap();
    until(&work, &slurm, |status| count(status, "a", TaskState::Failed) == 1);
    let rest = work.submit(&slurm).unwrap();
    assert_eq!(
        rest.missing,
        [(name("b"), Missing::Failed(name("a"))), (name("c"), Missing::Needs(name("b")))]
    );
    assert_eq!(work.started(), ["a 0"]);
}

#[test]
fn without_a_controller_nothing_is_submitted_and_nothing_is_guessed() {
    let Some(slurm) = cluster() else { return };
    let work = Work::new([stage("a", &[], None)]);
    let conf = std::fs::read_to_string(std::env::var("SLURM_CONF").unwrap()).unwrap();
    // A port that nobody listens on.
    let lines = conf
        .lines()
        .filter(|line| !line.starts_with("SlurmctldPort=") && !line.starts_with("MessageTimeout="));
    let elsewhere = work.dir.join("slurm.conf");
    let lines: Vec<&str> = lines.chain(["SlurmctldPort=1", "MessageTimeout=2"]).collect();
    std::fs::write(&elsewhere, lines.join("\n") + "\n").unwrap();
    let mut deaf = slurm.clone();
    deaf.env.retain(|(name, _)| name != "SLURM_CONF");
    deaf.env.push(("SLURM_CONF".into(), elsewhere.into()));
    let error = work.submit(&deaf).unwrap_err();
    assert!(matches!(error, SubmitError::Limits { .. }) && error.hint().is_some(), "{error:?}");
    // The limits were told, and then the controller went away.
    let sbatch_only = Slurm {
        scontrol: slurm.scontrol.clone(),
        ..deaf.clone()
    };
    let stopped = work
        .submit(&Slurm {
            scontrol: "true".into(),
            ..sbatch_only
        })
        .unwrap();
    assert!(
        matches!(stopped.stopped, Some(SubmitError::Unknown { .. } | SubmitError::Unreachable { .. })),
        "{stopped:?}"
    );
    let blind = status(&work.run, &work.plan, Some(&deaf)).unwrap();
    assert_eq!((blind.state, blind.jobs.len()), (RunState::Incomplete, 0));
    assert!(!blind.problems.is_empty(), "{blind:#?}");
    let rest = work.submit(&slurm).unwrap();
    assert!(rest.stopped.is_none(), "{rest:?}");
    assert_eq!(end(&work, &slurm).state, RunState::Done);
    assert_eq!(work.started(), ["a 0"]);
}

#[test]
fn a_submission_from_inside_a_job_is_like_any_other() {
    let Some(_) = cluster() else { return };
    let work = Work::new([stage("a", &[], None)]);
    let inside = [
        ("SLURM_JOB_ID", "1"),
        ("SBATCH_PARTITION", "nowhere"),
        ("SQUEUE_FORMAT", "%i"),
        ("SLURM_TIME_FORMAT", "relative"),
    ];
    let inside: BTreeMap<_, _> = inside.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
    let slurm = Slurm::new(std::env::vars_os().chain(inside));
    assert!(work.submit(&slurm).unwrap().stopped.is_none());
    assert_eq!(end(&work, &slurm).state, RunState::Done);
}

/// Stops a process; it goes on when this is dropped.
struct Stopped(nix::unistd::Pid);

impl Stopped {
    fn new(pid: i32) -> Stopped {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGCONT).unwrap();
    }
}

/// The request lies in the controller's socket when `sbatch` is given up, and becomes a job later.
#[test]
fn a_controller_that_stands_still_during_a_submission_gets_the_job_once_as_root() {
    if !as_root() {
        return;
    }
    let Some(slurm) = cluster() else { return };
    let conf = std::env::var("SLURM_CONF").unwrap();
    let pid = std::fs::read_to_string(std::path::Path::new(&conf).with_file_name("pid").join("slurmctld"));
    let Ok(pid) = pid else {
        println!("skipped: not a cluster of slurm/cluster/up");
        return;
    };
    let work = Work::new([stage("a", &[], None), stage("b", &["a"], None)]);
    let hasty = Slurm {
        limit: Duration::from_secs(1),
        scontrol: "true".into(),
        ..slurm.clone()
    };
    let stopped = {
        let _controller = Stopped::new(pid.split(' ').next().unwrap().parse().unwrap());
        work.submit(&hasty).unwrap()
    };
    assert!(matches!(stopped.stopped, Some(SubmitError::Unknown { .. })), "{stopped:?}");
    let rest = work.submit(&slurm).unwrap();
    assert!(rest.stopped.is_none() && rest.missing.is_empty(), "{rest:?}");
    assert_eq!(end(&work, &slurm).state, RunState::Done);
    assert_eq!(work.started(), ["a 0", "b 0"]);
    let names = Command::new("squeue").args(["-h", "-t", "all", "-o", "%k %Z"]).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    let folder = work.dir.display().to_string();
    assert_eq!(names.lines().filter(|line| line.ends_with(&folder)).count(), 2, "{names}");
}
