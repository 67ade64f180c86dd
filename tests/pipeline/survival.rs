//! Real reads through a real image on SLURM, while nodes and submitters die: the known variants come out all the same.

use std::time::{Duration, Instant};

use dvrun::plan::TaskSet;
use dvrun::state::{Event, Journal, Outcome, RunDir};

use super::na12878::{Reads, known_variants};
use crate::support::{Cluster, Running, Sandbox, as_root, assert_ordinary_user, finish, slurm, wait_until};

const LIMIT: Duration = Duration::from_secs(300);

/// Kills of the submitter; `DVRUN_TEST_KILLS=20` for more.
const KILLS: u32 = 4;

#[test]
fn a_node_dies_in_the_middle_as_root() {
    if !as_root() {
        return;
    }
    let options = [
        "--no-cgroups",
        "--no-accounting",
        "--set",
        "SlurmdTimeout=5",
        "--set",
        "MessageTimeout=5",
    ];
    let Some(cluster) = Cluster::up(&options) else { return };
    let sandbox = cluster.sandbox();
    let profile = "profile: site\nprofiles: {site: {slurm: {export: nil}}}\n";
    let Some(reads) = Reads::serve(&sandbox, profile) else { return };
    sandbox.write("na12878-freebayes.yaml", &reads.workflow);
    cluster.give(sandbox.path());
    let dvrun = |words: &[&str]| finish(&mut cluster.dvrun(&sandbox, words));
    dvrun(&["submit", "na12878-freebayes.yaml", "--set", "shards=8"]).ok();
    // The node of some shard that is being called.
    let mut victim = String::new();
    wait_until("a shard is being called", LIMIT, || {
        let shown = finish(cluster.command("squeue").args(["-h", "-t", "R", "-o", "%N %j"])).ok().stdout;
        let call = shown.lines().find(|line| line.contains(".call"));
        victim = call.and_then(|line| line.split(' ').next()).unwrap_or_default().to_owned();
        std::thread::sleep(Duration::from_millis(50));
        !victim.is_empty()
    });
    cluster.daemon(&victim, "kill");
    wait_until("Slurm has seen it", LIMIT, || {
        std::thread::sleep(Duration::from_millis(300));
        let shown = finish(cluster.command("sinfo").args(["-h", "-N", "-o", "%t", "-n", &victim])).stdout;
        shown.contains("down")
    });
    cluster.daemon(&victim, "start");
    dvrun(&["wait"]).ok();
    known_variants(&sandbox.work(), &format!("{victim} died"));
    once(&RunDir::latest(&sandbox.work()).unwrap().unwrap());
}

#[test]
fn the_submitter_is_killed_at_random_moments() {
    assert_ordinary_user();
    if slurm().is_none() {
        return;
    }
    let kills = std::env::var("DVRUN_TEST_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(KILLS);
    let sandbox = Sandbox::new();
    let Some(reads) = Reads::serve(&sandbox, "") else { return };
    sandbox.write("na12878-freebayes.yaml", &reads.workflow);
    let submit = || {
        let mut command = sandbox.dvrun();
        command.args(["submit", "--wait", "na12878-freebayes.yaml", "--set", "shards=4"]);
        command
    };
    let mut random = fastrand::Rng::with_seed(20);
    let (mut killed, mut ended) = (0, 0);
    for _ in 0..kills {
        // Most of them early, while something is still to be submitted.
        let moment = Duration::from_millis(random.u64(0..=1500) * random.u64(1..=4) / 2);
        let mut running = Running::start(&mut submit());
        let begun = Instant::now();
        if running.ends_before(|| begun.elapsed() >= moment) {
            ended += 1;
        } else {
            running.kill();
            killed += 1;
        }
    }
    assert!(killed > 0, "all {ended} ended before they were killed");
    finish(&mut submit()).ok();
    known_variants(&sandbox.work(), &format!("killed {killed} times"));
    for run in RunDir::list(&sandbox.work()).unwrap() {
        once(&run);
    }
}

/// No task was in two jobs, each ended well, and each intent has an outcome.
fn once(run: &RunDir) {
    let events = Journal::read(&run.journal_path()).unwrap();
    let open = dvrun::engine::slurm::intents(&events);
    assert!(open.is_empty(), "{open:?}");
    let mut held: std::collections::BTreeMap<_, TaskSet> = Default::default();
    for job in dvrun::engine::slurm::jobs(&events) {
        let stage = held.entry(job.intent.stage).or_default();
        assert!(
            stage.intersection(&job.intent.tasks).is_empty(),
            "{} twice in {}",
            job.intent.tasks,
            run.id()
        );
        *stage = stage.union(&job.intent.tasks);
    }
    for (name, tasks) in &held {
        for index in tasks.iter() {
            let record = run.records(name).read_one(index).unwrap().unwrap();
            assert_eq!(record.outcome, Outcome::Ok, "{name}/{index}: {}", record.message);
        }
    }
    assert!(!events.iter().any(|event| matches!(event, Event::Rerun { .. })));
}
