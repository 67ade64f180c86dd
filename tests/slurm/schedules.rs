//! Schedules of faults and kills, each from one seed, on a cluster of files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use dvrun::engine::slurm::{Missing, intents, jobs};
use dvrun::plan::TaskSet;
use dvrun::state::{Event, Journal, Outcome, RunDir};
use dvrun::workflow::StageName;

use super::fake::{Fake, submit_elsewhere};
use super::{Work, record, stage};

/// A graph, faults and kills from one seed; what the fake cluster holds at the end is what matters.
fn schedule(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let work = Work::new(graph(&mut random));
    let mut fake = Fake::new(&work);
    fake.at_once(random.usize(1..=3));
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
