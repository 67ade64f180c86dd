//! Retries on a real cluster, with nobody there: the program itself runs in the jobs.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use dvrun::state::{Outcome, RunDir};

use super::real::{cluster, name};
use crate::support::{Sandbox, finish, lane};

/// A workflow of stages without containers; submitted, and seen to its end. Slurm lets a requeued job wait for two
/// minutes, which nobody wants to watch: each is told to start soon. (Not at once: a node refuses a job in the very second in
/// which it ended it.)
fn to_the_end(sandbox: &Sandbox, workflow: &str) -> RunDir {
    let file = sandbox.write("flow.yaml", workflow);
    finish(sandbox.dvrun().arg("submit").arg(&file)).ok();
    let mut told = BTreeSet::new();
    for _ in 0..600 {
        let status = finish(sandbox.dvrun().args(["status", "--json"])).json();
        let jobs: Vec<&str> = status["jobs"].as_array().unwrap().iter().filter_map(|job| job.as_str()).collect();
        if status["state"] != "active" {
            return RunDir::latest(&sandbox.work()).unwrap().unwrap();
        }
        for job in jobs {
            let queue = Command::new("squeue")
                .args(["-h", "-r", "-o", "%i %r", "-j", job])
                .output()
                .unwrap();
            for line in String::from_utf8_lossy(&queue.stdout).lines() {
                if let Some(id) = line.strip_suffix(" BeginTime")
                    && told.insert(id.to_owned())
                {
                    // It may have begun in this moment.
                    Command::new("scontrol")
                        .args(["update", &format!("JobId={id}"), "StartTime=now+3"])
                        .output()
                        .unwrap();
                }
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    panic!("never ended");
}

fn memory_is_limited() -> bool {
    let conf = std::env::var("SLURM_CONF").unwrap();
    let limits = std::fs::read_to_string(std::path::Path::new(&conf).with_file_name("cgroup.conf")).unwrap_or_default();
    lane("slurm memory limits", limits.contains("ConstrainRAMSpace=yes"))
}

#[test]
fn a_shard_that_lacked_memory_gets_more_and_what_needs_it_waits() {
    if cluster().is_none() || !memory_is_limited() {
        return;
    }
    let sandbox = Sandbox::new();
    // It counts its starts, and what it was given; the second shard of three is the hungry one.
    let run = to_the_end(
        &sandbox,
        "version: 1\nname: hungry\ndefaults: {image: none}\nstages:\n  a:\n    array: 3\n    resources: {memory: 100M}\n    \
         retry: {max: 2, when: [oom], scale: {memory: 4}}\n    outputs: [\"work/a${{ array.index }}\"]\n    run: |\n      \
         echo ${{ array.index }} $SLURM_MEM_PER_NODE >>work/starts\n      \
         [ ${{ array.index }} != 1 ] || head -c 180M /dev/zero | tail -c 180M | wc -c\n      echo done >work/a${{ array.index }}\n  \
         b:\n    needs: [a]\n    run: cat work/a0 work/a1 work/a2 >work/b\n    outputs: [work/b]\n",
    );
    let record = run.records(&name("a")).read_one(1).unwrap().unwrap();
    assert_eq!((record.outcome, record.attempt), (Outcome::Ok, 1));
    assert_eq!(run.records(&name("a")).read_one(0).unwrap().unwrap().attempt, 0);
    let mut starts: Vec<String> = sandbox.read("work/starts").lines().map(str::to_owned).collect();
    starts.sort();
    assert_eq!(starts, ["0 100", "1 100", "1 400", "2 100"]);
    assert_eq!(sandbox.read("work/b"), "done\ndone\ndone\n");
    finish(sandbox.dvrun().arg("status")).ok();
}

#[test]
fn a_status_to_retry_for_is_told_from_others_and_tries_end() {
    if cluster().is_none() {
        return;
    }
    let sandbox = Sandbox::new();
    let run = to_the_end(
        &sandbox,
        "version: 1\nname: stubborn\ndefaults: {image: none, retry: {max: 1, when: [75]}}\nstages:\n  \
         other: {run: \"echo x >>work/other; exit 3\", outputs: [\"work/o\"]}\n  \
         never: {run: \"echo x >>work/never; exit 75\", outputs: [\"work/n\"]}\n  after: {needs: [never], run: \"true\"}\n",
    );
    let outcome = |stage: &str| {
        let record = run.records(&name(stage)).read_one(0).unwrap();
        record.map(|record| (record.outcome, record.attempt))
    };
    assert_eq!(outcome("other"), Some((Outcome::Failed { exit: 3 }, 0)));
    assert_eq!(outcome("never"), Some((Outcome::Failed { exit: 75 }, 1)));
    assert_eq!(outcome("after").filter(|(outcome, _)| *outcome != Outcome::UpstreamFailed), None);
    assert_eq!(
        (sandbox.read("work/other"), sandbox.read("work/never")),
        ("x\n".into(), "x\nx\n".into())
    );
    finish(sandbox.dvrun().arg("status")).exits(1).says("exit status 75");
    finish(sandbox.dvrun().arg("cancel")).ok();
}

#[test]
fn who_ran_out_of_time_gets_more_and_who_was_cancelled_stays_so() {
    if cluster().is_none() {
        return;
    }
    let sandbox = Sandbox::new();
    let run = to_the_end(
        &sandbox,
        "version: 1\nname: slow\ndefaults: {image: none, retry: {max: 1, when: [timeout], scale: {time: 3}}}\nstages:\n  \
         slow:\n    resources: {time: 1m}\n    outputs: [work/slow]\n    run: |\n      squeue -h -j $SLURM_JOB_ID -o %l >>work/limits\n      \
         [ $(wc -l <work/limits) = 2 ] || sleep 600\n      echo >work/slow\n  \
         stopped:\n    resources: {time: 10m}\n    outputs: [work/stopped]\n    run: \"echo x >>work/starts; scancel $SLURM_JOB_ID; sleep 600\"\n",
    );
    let outcome = |stage: &str| {
        let record = run.records(&name(stage)).read_one(0).unwrap().unwrap();
        (record.outcome, record.attempt)
    };
    assert_eq!(outcome("slow"), (Outcome::Ok, 1));
    assert_eq!(outcome("stopped"), (Outcome::Cancelled, 0));
    assert_eq!(
        (sandbox.read("work/limits"), sandbox.read("work/starts")),
        ("1:00\n3:00\n".into(), "x\n".into())
    );
}
