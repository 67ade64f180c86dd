//! What a cluster does to jobs, on a cluster of the test's own, as an ordinary user of it: nodes that lose their power,
//! administrators, more important jobs, a controller that is gone, full disks, jobs that are forgotten.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dvrun::state::{Outcome, Record, RunDir};

use super::real::name;
use super::sbatch_with_limit;
use super::whole::nothing_unknown;
use crate::support::{Cluster, Finished, Sandbox, as_root, finish, lane, wait_until};

/// Commands of Slurm's are not asked more often than this.
const PAUSE: Duration = Duration::from_millis(300);

const LIMIT: Duration = Duration::from_secs(150);

/// A node is called dead after five seconds, a requeued job waits for as long as its credential lives, and two partitions
/// share the nodes, of which one goes first.
const OPTIONS: &[&str] = &[
    "--no-cgroups",
    "--no-accounting",
    "--set",
    "SlurmdTimeout=5",
    "--set",
    "MinJobAge=20",
    "--set",
    "MessageTimeout=5",
    "--set",
    "MaxArraySize=6001",
    "--set",
    "PreemptType=preempt/partition_prio",
    "--set",
    "PreemptMode=REQUEUE",
    "--line",
    "PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP",
];

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_until(what, LIMIT, || {
        let holds = condition();
        if !holds {
            std::thread::sleep(PAUSE);
        }
        holds
    });
}

/// A workflow of an ordinary user's. Its tasks leave a line in `work/STAGE.starts` each time they start.
struct Site<'a> {
    cluster: &'a Cluster,
    sandbox: Sandbox,
}

impl<'a> Site<'a> {
    fn new(cluster: &'a Cluster, stages: &str) -> Site<'a> {
        let site = Site {
            cluster,
            sandbox: cluster.sandbox(),
        };
        site.write("flow.yaml", stages);
        fs::create_dir(site.sandbox.work().join("work")).unwrap();
        cluster.give(&site.sandbox.work());
        site
    }

    fn write(&self, file: &str, stages: &str) {
        let text = format!("version: 1\nname: disturbed\ndefaults: {{image: none}}\nstages:\n{stages}");
        self.sandbox.write(file, text);
    }

    fn dvrun(&self, words: &[&str]) -> Finished {
        finish(&mut self.cluster.dvrun(&self.sandbox, words))
    }

    fn submit(&self) {
        self.dvrun(&["submit", "flow.yaml"]).ok();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.work().join("work").join(name)
    }

    fn starts(&self, stage: &str) -> usize {
        fs::read_to_string(self.path(&format!("{stage}.starts")))
            .unwrap_or_default()
            .lines()
            .count()
    }

    fn until_starts(&self, stage: &str, times: usize) {
        until(&format!("{stage} was started {times} times"), || self.starts(stage) == times);
    }

    /// Lets go of the tasks that wait for it.
    fn open(&self) {
        fs::write(self.path("open"), "").unwrap();
    }

    fn run(&self) -> RunDir {
        RunDir::latest(&self.sandbox.work()).unwrap().unwrap()
    }

    fn record(&self, stage: &str) -> Record {
        self.run().records(&name(stage)).read_one(0).unwrap().unwrap()
    }

    /// Slurm's id of a stage's job.
    fn job(&self, stage: &str) -> String {
        let shown = finish(&mut self.squeue(&["-o", "%F %j %Z"])).stdout;
        let folder = self.sandbox.work().display().to_string();
        let is_it = |line: &&str| line.contains(&format!(".{stage}.")) && line.ends_with(&folder);
        let line = shown.lines().find(is_it).unwrap_or_else(|| panic!("no job of {stage} in {shown}"));
        line.split(' ').next().unwrap().to_owned()
    }

    /// All jobs that the controller knows.
    fn squeue(&self, words: &[&str]) -> Command {
        let mut command = self.cluster.command("squeue");
        command.args(["-h", "-t", "all"]).args(words);
        command
    }

    fn done(&self) {
        self.dvrun(&["wait"]).ok();
        self.known();
    }

    fn known(&self) {
        nothing_unknown(&self.run(), Some(&self.cluster.conf()));
    }
}

impl Drop for Site<'_> {
    /// A test that failed says what was to be seen last.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut nodes = self.cluster.command("sinfo");
            nodes.args(["-N", "-l"]);
            let jobs = self.squeue(&["-o", "%i %j %T %r %Z"]);
            for mut command in [self.cluster.dvrun(&self.sandbox, &["status"]), nodes, jobs] {
                eprintln!("{}", finish(&mut command));
            }
        }
    }
}

/// A stage that says when it starts, and waits for [`Site::open`] in its first attempt where it is held ([`hold`]).
fn stage(name: &str, needs: &str, options: &str) -> String {
    let shard = if options.contains("array:") { "-${{ array.index }}" } else { "" };
    format!(
        "  {name}:\n    needs: [{needs}]\n    outputs: [\"work/{name}{shard}\"]\n    {options}\n    run: |\n      echo x >>work/{name}.starts\n      \
         if [ ${{SLURM_RESTART_COUNT:-0}} = 0 ] && [ -e work/hold-{name} ]; then while [ ! -e work/open ]; do sleep 0.2; done; fi\n      \
         echo >work/{name}{shard}\n"
    )
}

fn hold(site: &Site, stages: &[&str]) {
    for stage in stages {
        fs::write(site.path(&format!("hold-{stage}")), "").unwrap();
    }
}

#[test]
fn what_a_cluster_does_to_runs_as_root() {
    if !as_root() {
        return;
    }
    let Some(cluster) = Cluster::up(OPTIONS) else { return };
    std::thread::scope(|scope| {
        for scenario in [
            a_node_loses_its_power,
            an_administrator_requeues,
            an_administrator_requeues_the_only_job,
            a_more_important_job_comes,
            it_is_submitted_from_inside_a_job,
            two_submit_at_once,
            the_disk_is_full,
            what_is_submitted_late_finds_its_parents_forgotten,
            an_array_of_thousands_is_cancelled,
        ] {
            let cluster = &cluster;
            scope.spawn(move || scenario(cluster));
        }
    });
    the_controller_is_gone(&cluster);
}

fn a_node_loses_its_power(cluster: &Cluster) {
    let site = Site::new(
        cluster,
        &(stage("back", "", "slurm: {args: [--nodelist=c4]}")
            + &stage("lost", "", "slurm: {args: [--nodelist=c4, --no-requeue]}")
            + &stage("after", "back", "resources: {cpus: 1}")
            + &stage("never", "lost", "resources: {cpus: 1}")),
    );
    hold(&site, &["back", "lost"]);
    site.submit();
    site.until_starts("back", 1);
    site.until_starts("lost", 1);
    cluster.daemon("c4", "kill");
    until("Slurm has seen it", || {
        let status = site.dvrun(&["status", "--json"]).json();
        status["stages"]["lost"]["counts"]["node_fail"] == 1 && status["stages"]["back"]["counts"]["waiting"] == 1
    });
    site.dvrun(&["explain", "lost"]).says("node");
    cluster.daemon("c4", "start");
    site.dvrun(&["wait"]).exits(1);
    assert_eq!(
        [site.starts("back"), site.starts("lost"), site.starts("after"), site.starts("never")],
        [2, 1, 1, 0]
    );
    assert_eq!((site.record("back").outcome, site.record("back").attempt), (Outcome::Ok, 1));
    site.open();
    site.dvrun(&["rerun", "lost"]).ok();
    site.done();
    assert_eq!(
        [site.starts("back"), site.starts("lost"), site.starts("after"), site.starts("never")],
        [2, 2, 1, 1]
    );
}

fn an_administrator_requeues(cluster: &Cluster) {
    let site = Site::new(
        cluster,
        &(stage("a", "", "resources: {cpus: 1}") + &stage("b", "a", "resources: {cpus: 1}")),
    );
    hold(&site, &["a"]);
    site.submit();
    site.until_starts("a", 1);
    finish(cluster.command("scontrol").args(["requeue", &site.job("a")])).ok();
    site.done();
    assert_eq!((site.starts("a"), site.starts("b"), site.record("a").attempt), (2, 1, 1));
    // A user's own scancel of what runs is an end, and is said to be one.
    let site = Site::new(
        cluster,
        &(stage("a", "", "resources: {cpus: 1}") + &stage("b", "a", "resources: {cpus: 1}")),
    );
    hold(&site, &["a"]);
    site.submit();
    site.until_starts("a", 1);
    finish(cluster.command("scancel").arg(site.job("a"))).ok();
    site.dvrun(&["wait"]).exits(1);
    assert_eq!((site.record("a").outcome, site.starts("b")), (Outcome::Cancelled, 0));
    site.known();
}

/// Where nothing else of a run goes on: what wrote that it was stopped is neither over nor submitted a second time.
fn an_administrator_requeues_the_only_job(cluster: &Cluster) {
    let site = Site::new(cluster, &stage("a", "", "resources: {cpus: 1}"));
    hold(&site, &["a"]);
    site.submit();
    site.until_starts("a", 1);
    let job = site.job("a");
    finish(cluster.command("scontrol").args(["requeue", &job])).ok();
    until("it waits again", || {
        site.dvrun(&["status", "--json"]).json()["stages"]["a"]["counts"]["waiting"] == 1
    });
    assert_eq!(site.record("a").outcome, Outcome::Cancelled);
    site.dvrun(&["submit", "flow.yaml"]).ok().complains("is active");
    assert_eq!(site.job("a"), job);
    site.dvrun(&["rerun", "a"]).exits(2).complains("still queued or running");
    site.done();
    assert_eq!((site.starts("a"), site.record("a").attempt), (2, 1));
}

fn a_more_important_job_comes(cluster: &Cluster) {
    let site = Site::new(
        cluster,
        &(stage("a", "", "slurm: {args: [--nodelist=c3, --exclusive]}") + &stage("b", "a", "resources: {cpus: 1}")),
    );
    hold(&site, &["a"]);
    site.submit();
    site.until_starts("a", 1);
    let urgent = [
        "--partition=urgent",
        "--nodelist=c3",
        "--exclusive",
        "--wait",
        "--output=/dev/null",
        "--wrap",
        "sleep 1",
    ];
    finish(cluster.command("sbatch").args(urgent)).ok();
    site.done();
    assert_eq!((site.starts("a"), site.starts("b"), site.record("a").attempt), (2, 1, 1));
}

fn it_is_submitted_from_inside_a_job(cluster: &Cluster) {
    let site = Site::new(cluster, &(stage("a", "", "array: 3") + &stage("b", "a", "resources: {cpus: 1}")));
    let submit = cluster.dvrun(&site.sandbox, &["submit", "flow.yaml", "--wait"]);
    let mut words = vec![submit.get_program().to_string_lossy().into_owned()];
    words.extend(submit.get_args().map(|word| word.to_string_lossy().into_owned()));
    site.sandbox.write("job.sh", format!("#!/bin/sh\nexec {}\n", words.join(" ")));
    // With all that a job has of its own: a partition and a time limit by environment, an array's index.
    let mut sbatch = cluster.command_of_user(&site.sandbox, "sbatch");
    sbatch.args([
        "--array=7",
        "--partition=urgent",
        "--time=5",
        "--ntasks=2",
        "--wait",
        "--output=job.log",
        "job.sh",
    ]);
    let ended = finish(&mut sbatch);
    let log = std::fs::read_to_string(site.sandbox.work().join("job.log")).unwrap_or_default();
    assert!(ended.status.success(), "{ended}{log}");
    assert_eq!((site.starts("a"), site.starts("b")), (3, 1));
    site.known();
}

fn two_submit_at_once(cluster: &Cluster) {
    let site = Site::new(cluster, &(stage("a", "", "array: 2") + &stage("b", "a", "resources: {cpus: 1}")));
    std::thread::scope(|scope| {
        let submits: Vec<_> = (0..4).map(|_| scope.spawn(|| site.dvrun(&["submit", "flow.yaml"]))).collect();
        for submit in submits {
            let ended = submit.join().unwrap();
            let fine = ended.status.success() || ended.stderr.contains("another dvrun is running or submitting");
            assert!(fine, "{ended}");
        }
    });
    site.done();
    assert_eq!((site.starts("a"), site.starts("b")), (2, 1));
    assert_eq!(RunDir::list(&site.sandbox.work()).unwrap().len(), 1);
}

/// A file system of a few pages, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(path: &Path) -> Option<Small> {
        fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=777", "tmpfs"]).arg(path);
        let mounted = finish(&mut mount).status.success();
        lane("mount: root may mount no file system here", mounted).then(|| Small(path.to_owned()))
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut rest = fs::File::create(self.0.join("rest")).unwrap();
        while std::io::Write::write_all(&mut rest, &[0; 512]).is_ok() {}
    }

    /// Frees what filled it: the rest, and what a task wrote.
    fn empty(&self, log: &Path) {
        fs::remove_file(self.0.join("rest")).unwrap();
        fs::remove_file(log).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn the_disk_is_full(cluster: &Cluster) {
    let site = Site::new(cluster, "");
    let Some(small) = Small::new(&site.sandbox.work().join("small")) else {
        return;
    };
    site.write(
        "small/flow.yaml",
        "  loud: {run: \"echo x >>work/loud.starts; if [ ! -e work/quiet ]; then head -c 1M /dev/zero; fi; echo >work/loud\", outputs: [work/loud]}\n  \
         mute: {slurm: {args: [--hold]}, run: \"echo >work/mute\", outputs: [work/mute]}\n  after: {needs: [loud, mute], run: \"true\"}\n",
    );
    fs::create_dir(small.0.join("work")).unwrap();
    cluster.give(&small.0);
    let dvrun = |words: &[&str]| finish(cluster.dvrun(&site.sandbox, words).current_dir(&small.0));
    dvrun(&["submit", "flow.yaml"]).ok();
    let counts = |stage: &str| {
        let status = dvrun(&["status", "--json"]).json();
        status["stages"][stage]["counts"].clone()
    };
    // The program itself meets it first.
    until("the loud one has failed", || counts("loud")["failed"] == 1);
    small.fill();
    // No record can be written at all: Slurm knows that the job failed.
    dvrun(&["release"]).exits(0);
    until("the mute one has failed", || {
        counts("mute")["waiting"].is_null() && counts("mute")["running"].is_null()
    });
    assert!(
        counts("mute")["ok"].is_null() && counts("after")["ok"].is_null(),
        "{}",
        counts("mute")
    );
    // Nothing is submitted that could not be written down.
    dvrun(&["rerun", "loud"]).exits(3);
    let run = RunDir::latest(&small.0).unwrap().unwrap();
    small.empty(&run.task_logs(&name("loud"), 0).0);
    fs::write(small.0.join("work/quiet"), "").unwrap();
    until("the queue is empty of what failed", || {
        dvrun(&["status", "--json"]).json()["jobs"] == serde_json::json!([])
    });
    dvrun(&["rerun", "loud"]).ok();
    dvrun(&["rerun", "mute", "--only"]);
    dvrun(&["release"]);
    dvrun(&["wait"]).ok();
    nothing_unknown(&run, Some(&cluster.conf()));
}

fn what_is_submitted_late_finds_its_parents_forgotten(cluster: &Cluster) {
    let site = Site::new(
        cluster,
        &(stage("good", "", "resources: {cpus: 1}")
            + &stage("bad", "", "resources: {cpus: 1}").replace("echo >work/bad\n", "exit 9\n")
            + &stage("late", "good", "resources: {cpus: 1}")
            + &stage("never", "bad", "resources: {cpus: 1}")),
    );
    let bin = site.sandbox.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("sbatch"), sbatch_with_limit(2, &bin, "/usr/bin/sbatch")).unwrap();
    fs::set_permissions(bin.join("sbatch"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    cluster.give(&bin);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    finish(cluster.dvrun(&site.sandbox, &["submit", "flow.yaml"]).env("PATH", path)).exits(4);
    let known = || {
        let shown = finish(&mut site.squeue(&["-o", "%F %Z"])).stdout;
        let folder = site.sandbox.work().display().to_string();
        shown.lines().filter(|line| line.ends_with(&folder)).count()
    };
    until("both have ended", || site.starts("good") == 1 && site.starts("bad") == 1);
    until("Slurm has forgotten both", || known() == 0);
    site.dvrun(&["submit", "flow.yaml", "--wait"]).exits(1);
    assert_eq!([site.starts("good"), site.starts("late"), site.starts("never")], [1, 1, 0]);
    site.known();
}

fn an_array_of_thousands_is_cancelled(cluster: &Cluster) {
    let site = Site::new(
        cluster,
        &(stage("wide", "", "array: 5000\n    slurm: {args: [--hold]}") + &stage("last", "wide", "resources: {cpus: 1}")),
    );
    site.submit();
    let status = site.dvrun(&["status", "--json"]).json();
    assert_eq!(
        (
            &status["stages"]["wide"]["counts"]["waiting"],
            status["jobs"].as_array().unwrap().len()
        ),
        (&5000.into(), 2)
    );
    site.dvrun(&["cancel"]).ok();
    let status = site.dvrun(&["status", "--json"]).json();
    assert_eq!(status["stages"]["wide"]["counts"]["cancelled"], 5000, "{status:#}");
    // Whoever waits is not told that all is well.
    site.dvrun(&["wait"]).exits(1);
    site.known();
}

fn the_controller_is_gone(cluster: &Cluster) {
    let site = Site::new(cluster, &(stage("a", "", "array: 2") + &stage("b", "a", "resources: {cpus: 1}")));
    let other = Site::new(cluster, &stage("other", "", "resources: {cpus: 1}"));
    hold(&site, &["a"]);
    site.submit();
    site.until_starts("a", 2);
    // A controller that is killed forgets what it has not written down yet.
    let jobs = finish(&mut site.squeue(&["-o", "%j %Z"])).stdout;
    let folder = site.sandbox.work().display().to_string();
    let last = jobs
        .lines()
        .filter_map(|line| line.strip_suffix(&folder))
        .find(|job| job.contains(".b."));
    let last = last.unwrap_or_else(|| panic!("{jobs}")).trim_end().as_bytes();
    until("the controller has saved its state", || {
        let saved = fs::read(cluster.state().join("job_state")).unwrap_or_default();
        saved.windows(last.len()).any(|part| part == last)
    });
    cluster.daemon("slurmctld", "kill");
    let status = site.dvrun(&["status", "--json"]).json();
    assert_eq!(status["unanswered"], true, "{status:#}");
    // What is not known is neither well nor badly ended.
    assert_eq!(
        (
            &status["stages"]["a"]["counts"]["unknown"],
            &status["stages"]["b"]["counts"]["unknown"]
        ),
        (&2.into(), &1.into())
    );
    site.dvrun(&["cancel"]).exits(3).complains("scontrol ping");
    other.dvrun(&["submit", "flow.yaml"]).exits(3).complains("scontrol ping");
    assert_eq!(other.starts("other"), 0);
    // Tasks need no controller to end, and to be known as ended.
    site.open();
    until("the records say so", || {
        site.dvrun(&["status", "--json"]).json()["stages"]["a"]["counts"]["ok"] == 2
    });
    cluster.daemon("slurmctld", "start");
    until("the controller answers", || {
        cluster
            .command("scontrol")
            .arg("ping")
            .output()
            .is_ok_and(|output| output.status.success())
    });
    other.submit();
    other.done();
    site.done();
    assert_eq!((site.starts("a"), site.starts("b"), other.starts("other")), (2, 1, 1));
}
