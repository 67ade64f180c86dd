//! On a cluster of files (`tests/support/fake_slurm`): what a real one cannot be made to show at will.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dvrun::engine::slurm::{Limits, Missing, Slurm, SlurmProfile, SubmitError, cancel, given_up, intents, jobs, scripts, wait};
use dvrun::engine::{RunState, TaskState, status};
use dvrun::plan::TaskSet;
use dvrun::state::{Event, Journal, Outcome, RunDir};
use dvrun::workflow::StageName;

use super::{Work, record, stage};

/// Names the run folder for a test process that submits and may be killed; see [`submitting_process`].
const SUBMIT: &str = "DVRUN_TEST_SUBMIT";

struct Fake {
    dir: PathBuf,
    slurm: Slurm,
}

impl Fake {
    fn new(work: &Work) -> Fake {
        let dir = work.dir.with_file_name("cluster");
        for folder in ["bin", "jobs", "state", "reason", "faults", "account"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let script = crate::support::checkout().join("tests/support/fake_slurm");
        for name in ["sbatch", "squeue", "sacct", "scancel", "scontrol"] {
            symlink(&script, dir.join("bin").join(name)).unwrap();
        }
        fs::write(dir.join("accounts"), "").unwrap();
        Fake { slurm: slurm(&dir), dir }
    }

    fn faults(&self, command: &str, faults: &[&str]) {
        fs::write(
            self.dir.join("faults").join(command),
            faults.iter().map(|fault| format!("{fault}\n")).collect::<String>(),
        )
        .unwrap();
    }

    /// All jobs, oldest first.
    fn jobs(&self) -> Vec<FakeJob> {
        let mut ids: Vec<u32> = fs::read_dir(self.dir.join("jobs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        ids.sort_unstable();
        ids.iter().map(|id| self.job(&id.to_string())).collect()
    }

    fn job(&self, id: &str) -> FakeJob {
        let line = fs::read_to_string(self.dir.join("jobs").join(id)).unwrap();
        let fields: Vec<&str> = line.trim_end().split('|').collect();
        let file = Path::new(fields[3]).file_name().unwrap().to_str().unwrap();
        FakeJob {
            id: id.to_owned(),
            token: fields[0].rsplit('.').next().unwrap().to_owned(),
            comment: fields[1].to_owned(),
            dependency: fields[2].to_owned(),
            stage: file.split('.').next().unwrap().to_owned(),
        }
    }

    fn calls(&self, command: &str) -> usize {
        let calls = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.split(' ').next() == Some(command)).count()
    }

    fn set_state(&self, id: &str, state: &str) {
        fs::write(self.dir.join("state").join(id), state).unwrap();
    }

    /// The controller forgets a job; the accounts keep how it ended.
    fn forget(&self, id: &str) {
        fs::rename(self.dir.join("state").join(id), self.dir.join("account").join(id)).unwrap();
    }
}

#[derive(Debug)]
struct FakeJob {
    id: String,
    token: String,
    comment: String,
    dependency: String,
    stage: String,
}

fn slurm(dir: &Path) -> Slurm {
    let path = format!("{}:/usr/bin:/bin", dir.join("bin").display());
    Slurm {
        limit: Duration::from_secs(3),
        settle: Duration::ZERO,
        ..Slurm::new([("PATH".into(), path.into()), ("FAKE_SLURM".into(), dir.into())])
    }
}

fn name(name: &str) -> StageName {
    StageName(name.into())
}

/// Submits in a process of its own; false when that was killed.
fn submit_elsewhere(work: &Work, fake: &Fake) -> bool {
    work.program();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["slurm::faults::submitting_process", "--exact", "--nocapture"])
        .env(SUBMIT, work.run.path())
        .env("FAKE_SLURM", &fake.dir)
        .output()
        .unwrap();
    output.status.success()
}

/// Not a test by itself: [`submit_elsewhere`] runs it.
#[test]
fn submitting_process() {
    let Some(run) = std::env::var_os(SUBMIT) else { return };
    let work = Work::at(Path::new(&run));
    let slurm = slurm(Path::new(&std::env::var_os("FAKE_SLURM").unwrap()));
    if let Err(error) = work.submit(&slurm) {
        println!("{error}");
    }
}

#[test]
fn what_goes_wrong_with_one_submission_submits_exactly_once() {
    for (fault, process) in [
        ("banner", "here"),
        ("submitted-timeout", "here"),
        ("submitted-error", "here"),
        ("submitted-garbage", "here"),
        ("submitted-hang", "here"),
        ("timeout", "here"),
        ("down", "here"),
        ("kill", "elsewhere"),
        ("submitted-kill", "elsewhere"),
    ] {
        let work = Work::new([stage("a", &[], Some(3))]);
        let fake = Fake::new(&work);
        fake.faults("sbatch", &[fault]);
        match process {
            "here" => {
                let submission = work.submit(&fake.slurm).unwrap();
                assert!(submission.stopped.is_none(), "{fault}: {submission:?}");
            }
            _ => assert!(!submit_elsewhere(&work, &fake), "{fault}: not killed"),
        }
        let again = work.submit(&fake.slurm).unwrap();
        assert!(again.stopped.is_none() && again.missing.is_empty(), "{fault}: {again:?}");
        let jobs = fake.jobs();
        assert_eq!(jobs.len(), 1, "{fault}: {jobs:?}");
        assert_eq!(again.stages[0].jobs, [jobs[0].id.clone()], "{fault}");
        assert_eq!(jobs[0].comment, format!("dvrun:{}", jobs[0].token));
    }
}

#[test]
fn refusals_and_limits_stop_and_say_how_far_it_got() {
    for (fault, limit) in [("limit", true), ("reject", false)] {
        let work = Work::new([stage("a", &[], None), stage("b", &[], None), stage("c", &["a"], None)]);
        let fake = Fake::new(&work);
        fake.faults("sbatch", &["ok", fault]);
        let stopped = work.submit(&fake.slurm).unwrap();
        assert_eq!(stopped.stages.len(), 1);
        assert_eq!(stopped.missing, [(name("b"), Missing::Stopped), (name("c"), Missing::Stopped)]);
        match stopped.stopped.unwrap() {
            SubmitError::Limit { stage, message } if limit => assert!(stage == name("b") && message.contains("QOSMaxSubmit")),
            SubmitError::Rejected { stage, message } if !limit => assert!(stage == name("b") && message.contains("Invalid account")),
            error => panic!("{error}"),
        }
        assert_eq!(work.submit(&fake.slurm).unwrap().stages.len(), 3);
        assert_eq!(fake.jobs().len(), 3);
    }
}

#[test]
fn an_answer_that_cannot_be_had_stops_before_anything_is_submitted_twice() {
    let work = Work::new([stage("a", &[], None)]);
    let fake = Fake::new(&work);
    fake.faults("sbatch", &["submitted-timeout"]);
    fake.faults("squeue", &["down", "down", "down"]);
    fake.faults("sacct", &["down"]);
    let stopped = work.submit(&fake.slurm).unwrap();
    assert!(matches!(stopped.stopped, Some(SubmitError::Unknown { .. })), "{stopped:?}");
    // The queue answers by now; what it says is not in doubt.
    let status = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
    assert!(
        status.problems.iter().any(|problem| problem.contains("not known yet")),
        "{status:#?}"
    );
    assert_eq!(work.submit(&fake.slurm).unwrap().stages.len(), 1);
    assert_eq!(fake.jobs().len(), 1);
}

#[test]
fn a_job_that_ran_and_was_forgotten_is_known_by_its_record() {
    let work = Work::new([stage("a", &[], None), stage("b", &["a"], None)]);
    let fake = Fake::new(&work);
    fs::remove_file(fake.dir.join("accounts")).unwrap();
    fake.faults("sbatch", &["submitted-kill"]);
    assert!(!submit_elsewhere(&work, &fake));
    let job = fake.jobs().remove(0);
    work.run.records(&name("a")).write(0, &record(Outcome::Ok, Some(&job.id))).unwrap();
    fake.forget(&job.id);
    let rest = work.submit(&fake.slurm).unwrap();
    assert_eq!(rest.stages[0].jobs, [job.id]);
    let jobs = fake.jobs();
    assert_eq!((jobs.len(), jobs[1].dependency.as_str()), (2, ""));
}

#[test]
fn a_submission_that_was_given_up_is_marked_so_that_its_job_can_tell() {
    let work = Work::new([stage("a", &[], None)]);
    let fake = Fake::new(&work);
    fake.faults("sbatch", &["timeout"]);
    work.submit(&fake.slurm).unwrap();
    let events = Journal::read(&work.run.journal_path()).unwrap();
    let lost = events.iter().find_map(|event| match event {
        Event::NotSubmitted { token, .. } => Some(token.clone()),
        _ => None,
    });
    assert!(given_up(&events, &format!("test_flow.a.{}", lost.unwrap()), &name("a"), 0));
    assert!(!given_up(&events, &format!("test_flow.a.{}", fake.jobs()[0].token), &name("a"), 0));
}

#[test]
fn dependencies_name_every_job_of_what_is_needed() {
    let mut same = stage("same", &["wide"], Some(10));
    same.stage.needs[0].same_shard = true;
    let mut odd = stage("odd", &["wide"], Some(10));
    odd.stage.needs[0].same_shard = true;
    odd.todo = [1, 9].into_iter().collect();
    let mut always = stage("always", &["wide", "same"], None);
    always.stage.always = true;
    let mut done = stage("done", &[], None);
    done.todo = TaskSet::default();
    let work = Work::new([
        done,
        stage("wide", &["done"], Some(10)),
        same,
        odd,
        always,
        stage("last", &["wide"], None),
    ]);
    let fake = Fake::new(&work);
    fs::write(fake.dir.join("array_size"), "4").unwrap();
    work.submit(&fake.slurm).unwrap();
    let of = |stage: &str| -> Vec<String> {
        let jobs = fake.jobs().into_iter().filter(|job| job.stage == stage);
        jobs.map(|job| job.dependency).collect()
    };
    assert_eq!(of("wide"), ["", "", ""]);
    assert_eq!(of("same"), ["aftercorr:101", "aftercorr:102", "aftercorr:103"]);
    assert_eq!(of("odd"), ["afterok:101", "afterok:103"]);
    assert_eq!(of("always"), ["afterany:101:102:103,afterany:104:105:106"]);
    assert_eq!(of("last"), ["afterok:101:102:103"]);
    assert!(of("done").is_empty());
}

#[test]
fn status_of_a_hundred_thousand_shards_is_two_calls_and_a_few_lines() {
    let work = Work::new([stage("wide", &[], Some(100_000))]);
    let fake = Fake::new(&work);
    let submission = work.submit(&fake.slurm).unwrap();
    assert_eq!((submission.stages[0].jobs.len(), fake.calls("sbatch")), (100, 100));
    for job in fake.jobs() {
        fs::write(fake.dir.join("reason").join(job.id), "Priority").unwrap();
    }
    work.run
        .records(&name("wide"))
        .write(77_777, &record(Outcome::Failed { exit: 9 }, Some("178_700")))
        .unwrap();
    let status = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
    assert_eq!((fake.calls("squeue"), fake.calls("sacct")), (1, 0));
    let wide = &status.stages[&name("wide")];
    assert_eq!(wide.counts, BTreeMap::from([(TaskState::Waiting, 99_999), (TaskState::Failed, 1)]));
    assert_eq!(wide.waiting, BTreeMap::from([("other jobs go first".to_owned(), 99_999)]));
    assert_eq!(
        (wide.failed.ranges(), wide.problems[0].exit),
        ([(77_777, 77_777)].as_slice(), Some(9))
    );
    assert!(serde_json::to_string(&status).unwrap().len() < 10_000);
}

#[test]
fn states_that_are_odd_or_new_are_neither_well_nor_badly_ended() {
    for (word, expected) in [
        ("HIBERNATING", TaskState::Unknown),
        ("NODE_FAIL", TaskState::NodeFail),
        ("PREEMPTED", TaskState::Preempted),
        ("TIMEOUT", TaskState::TimedOut),
        ("OUT_OF_MEMORY", TaskState::OutOfMemory),
        ("CONFIGURING", TaskState::Running),
        ("CANCELLED by 77", TaskState::Cancelled),
        ("COMPLETED", TaskState::Broken),
    ] {
        let work = Work::new([stage("a", &[], Some(2))]);
        let fake = Fake::new(&work);
        work.submit(&fake.slurm).unwrap();
        let job = fake.jobs().remove(0).id;
        fake.set_state(&job, word);
        let seen = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
        assert_eq!(seen.stages[&name("a")].counts, BTreeMap::from([(expected, 2)]), "{word}");
        // The same from the accounts alone, but that nothing runs there that the queue does not know.
        fake.forget(&job);
        let seen = status(&work.run, &work.plan, Some(&fake.slurm)).unwrap();
        let expected = if expected == TaskState::Running {
            TaskState::Unknown
        } else {
            expected
        };
        assert_eq!(
            seen.stages[&name("a")].counts,
            BTreeMap::from([(expected, 2)]),
            "{word} in the accounts"
        );
    }
}

#[test]
fn neither_accounts_nor_queue_nor_record_is_unknown() {
    let work = Work::new([stage("a", &[], None)]);
    let fake = Fake::new(&work);
    fs::remove_file(fake.dir.join("accounts")).unwrap();
    work.submit(&fake.slurm).unwrap();
    fake.forget(&fake.jobs()[0].id);
    let seen = wait(&work.run, &work.plan, &fake.slurm, |_| {}).unwrap();
    assert_eq!((seen.state, seen.problems.len()), (RunState::Incomplete, 0), "{seen:#?}");
    assert_eq!(seen.stages[&name("a")].problems[0].state, TaskState::Unknown);
}

#[test]
fn cancel_ends_what_an_interrupted_submission_left_behind() {
    let work = Work::new([stage("a", &[], Some(2))]);
    let fake = Fake::new(&work);
    fake.faults("sbatch", &["submitted-kill"]);
    assert!(!submit_elsewhere(&work, &fake));
    fake.faults("scancel", &["down"]);
    let cancelled = cancel(&work.run, &fake.slurm, &BTreeSet::from([name("a")]), Duration::ZERO);
    assert!(cancelled.is_err(), "{cancelled:?}");
    let cancelled = cancel(&work.run, &fake.slurm, &BTreeSet::from([name("a")]), Duration::from_secs(10)).unwrap();
    assert_eq!((cancelled.jobs.len(), cancelled.tasks), (1, 2), "{cancelled:?}");
    let seen = status(&work.run, &work.plan, None).unwrap();
    assert_eq!(seen.stages[&name("a")].counts, BTreeMap::from([(TaskState::Cancelled, 2)]));
}

#[test]
fn the_scripts_of_a_plan_are_those_that_are_submitted() {
    let work = Work::new([stage("a", &[], Some(1200))]);
    let fake = Fake::new(&work);
    let profile = SlurmProfile {
        account: Some("lab 7".into()),
        ..SlurmProfile::default()
    };
    let shown = scripts(
        &work.run,
        &work.plan,
        &work.plan.stages[0],
        &TaskSet::all(1200),
        &profile,
        &work.program().into(),
        Limits::default(),
    )
    .unwrap();
    work.submit_as(&fake.slurm, &profile).unwrap();
    assert_eq!(shown.len(), 2);
    for script in shown {
        assert_eq!(fs::read_to_string(&script.path).unwrap(), script.text);
        assert!(script.text.contains("#SBATCH '--account=lab 7'\n"), "{}", script.text);
    }
}

// --- schedules ---------------------------------------------------------------------------------------------------

/// A graph, faults and kills from one seed; what the fake cluster holds at the end is what matters.
fn schedule(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let work = Work::new(graph(&mut random));
    let fake = Fake::new(&work);
    fs::write(fake.dir.join("array_size"), "4").unwrap();
    for _ in 0..random.usize(1..4) {
        let faults = [
            "ok",
            "ok",
            "ok",
            "banner",
            "submitted-timeout",
            "submitted-error",
            "submitted-garbage",
            "timeout",
            "down",
            "limit",
            "reject",
            "kill",
            "submitted-kill",
        ];
        let sbatch: Vec<&str> = (0..8).map(|_| random.choice(faults).unwrap()).collect();
        fake.faults("sbatch", &sbatch);
        for command in ["squeue", "sacct"] {
            let some: Vec<&str> = (0..4).map(|_| random.choice(["ok", "ok", "ok", "down", "kill"]).unwrap()).collect();
            fake.faults(command, &some);
        }
        submit_elsewhere(&work, &fake);
        check(seed, &work, &fake);
        advance(&mut random, &work, &fake);
    }
    for command in ["sbatch", "squeue", "sacct"] {
        fake.faults(command, &[]);
    }
    let last = work.submit(&fake.slurm).unwrap();
    assert!(last.stopped.is_none(), "seed {seed}: {last:?}");
    check(seed, &work, &fake);
    // Everything is submitted, or named with a reason that holds.
    let missing: BTreeMap<&StageName, &Missing> = last.missing.iter().map(|(stage, why)| (stage, why)).collect();
    let submitted = tasks(&work, &fake);
    for (stage, plan) in &work.plan.stages {
        match missing.get(stage) {
            None => assert_eq!(
                submitted.get(stage).map_or(0, Vec::len) as u32,
                plan.todo.len(),
                "seed {seed}: {stage}"
            ),
            Some(Missing::Failed(parent)) => {
                let records = work.run.records(parent).read(plan.stage.tasks().max(32)).unwrap();
                assert!(
                    records.iter().flatten().any(|record| record.outcome != Outcome::Ok),
                    "seed {seed}: {parent}"
                );
            }
            Some(Missing::Needs(parent)) => assert!(missing.contains_key(parent), "seed {seed}"),
            Some(Missing::Stopped) => panic!("seed {seed}: {last:?}"),
        }
    }
    let events = Journal::read(&work.run.journal_path()).unwrap();
    let known: BTreeSet<String> = jobs(&events).into_iter().map(|job| job.job).collect();
    let there: BTreeSet<String> = fake.jobs().into_iter().map(|job| job.id).collect();
    assert_eq!((known, intents(&events).len()), (there, 0), "seed {seed}");
}

fn graph(random: &mut fastrand::Rng) -> Vec<dvrun::plan::StagePlan> {
    let names = ["a", "b", "c", "d", "e"];
    let count = random.usize(2..=names.len());
    let stage_of = |at: usize, random: &mut fastrand::Rng| {
        let needs: Vec<&str> = names[..at].iter().copied().filter(|_| random.u8(0..3) == 0).collect();
        let tasks = random.bool().then(|| random.u32(1..10));
        let mut plan = stage(names[at], &needs, tasks);
        plan.stage.always = random.u8(0..6) == 0;
        for need in &mut plan.stage.needs {
            need.same_shard = random.u8(0..4) == 0;
        }
        plan
    };
    (0..count).map(|at| stage_of(at, random)).collect()
}

/// Each task of each stage that a job on the cluster holds.
fn tasks(work: &Work, fake: &Fake) -> BTreeMap<StageName, Vec<u32>> {
    let intents: BTreeMap<String, (StageName, TaskSet)> = intents_ever(&work.run);
    let mut tasks: BTreeMap<StageName, Vec<u32>> = BTreeMap::new();
    for job in fake.jobs() {
        let (stage, some) = &intents[&job.token];
        tasks.entry(stage.clone()).or_default().extend(some.iter());
    }
    tasks
}

fn intents_ever(run: &RunDir) -> BTreeMap<String, (StageName, TaskSet)> {
    let events = Journal::read(&run.journal_path()).unwrap();
    let submitting = events.into_iter().filter_map(|event| match event {
        Event::Submitting { token, stage, tasks, .. } => Some((token, (stage, tasks))),
        _ => None,
    });
    submitting.collect()
}

/// No task is in two jobs, and no job is without an intent.
fn check(seed: u64, work: &Work, fake: &Fake) {
    for (stage, mut tasks) in tasks(work, fake) {
        let all = tasks.len();
        tasks.sort_unstable();
        tasks.dedup();
        assert_eq!(tasks.len(), all, "seed {seed}: a task of {stage} is in two jobs");
    }
}

/// Some jobs run, a few fail, some of those that ended are forgotten by the controller.
fn advance(random: &mut fastrand::Rng, work: &Work, fake: &Fake) {
    let intents = intents_ever(&work.run);
    for job in fake.jobs() {
        let state = fs::read_to_string(fake.dir.join("state").join(&job.id)).unwrap_or_default();
        let ready = job
            .dependency
            .split([':', ','])
            .filter(|word| word.parse::<u32>().is_ok())
            .all(|id| {
                let state = fs::read_to_string(fake.dir.join("state").join(id));
                let state = state.or_else(|_| fs::read_to_string(fake.dir.join("account").join(id)));
                state.unwrap().starts_with("COMPLETED")
            });
        if !state.starts_with("PENDING") || !ready || random.bool() {
            continue;
        }
        let (stage, tasks) = &intents[&job.token];
        let outcome = if random.u8(0..8) == 0 {
            Outcome::Failed { exit: 1 }
        } else {
            Outcome::Ok
        };
        for index in tasks.iter() {
            work.run
                .records(stage)
                .write(index, &record(outcome.clone(), Some(&job.id)))
                .unwrap();
        }
        fake.set_state(&job.id, if outcome == Outcome::Ok { "COMPLETED\n" } else { "FAILED\n" });
        if random.bool() {
            fake.forget(&job.id);
        }
    }
}

#[test]
fn after_any_schedule_of_faults_each_stage_is_submitted_once_or_named() {
    let seeds = std::env::var("DVRUN_TEST_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(200);
    std::thread::scope(|scope| {
        for first in 0..4 {
            scope.spawn(move || (first..seeds).step_by(4).for_each(schedule));
        }
    });
}
