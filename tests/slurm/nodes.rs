//! `dvrun run` inside an allocation of several nodes: its tasks are job steps on all of them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use dvrun::state::{Event, Journal, Outcome, RunDir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::real::{cluster, holds_to_memory, name};
use crate::support::{Running, Sandbox, finish, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// Tasks of a whole node each, which begin only when so many have been started at a time, and say where they are.
fn flow(sandbox: &Sandbox, tasks: u32, at_once: u32) -> PathBuf {
    sandbox.write(
        "flow.yaml",
        format!(
            "version: 1\nname: spread\ndefaults: {{image: none}}\nstages:\n  wide:\n    array: {tasks}\n    \
             resources: {{cpus: 2, memory: 100M, time: 2m}}\n    outputs: [\"work/node-${{{{ array.index }}}}\"]\n    run: |\n      \
             echo >work/started-${{{{ array.index }}}}\n      \
             while [ $(ls work | grep -c started) -lt {at_once} ]; do sleep 0.1; done\n      \
             echo ${{SLURM_STEP_NODELIST:-here}} >work/node-${{{{ array.index }}}}\n"
        ),
    )
}

/// `dvrun run` of the flow, started by `salloc` or as the script of `sbatch`.
fn allocated(sandbox: &Sandbox, program: &str, options: &[&str]) -> Command {
    let run = sandbox.dvrun();
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
        .current_dir(sandbox.work())
        .args(["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--mem=400M"]);
    command
        .args(options)
        .arg(run.get_program())
        .args(run.get_args())
        .args(["run", "flow.yaml"]);
    command
}

fn nodes(sandbox: &Sandbox, tasks: u32) -> BTreeSet<String> {
    (0..tasks)
        .map(|index| sandbox.read(&format!("work/node-{index}")).trim().to_owned())
        .collect()
}

#[test]
fn the_nodes_of_an_allocation_share_the_tasks() {
    if cluster().is_none() {
        return;
    }
    let sandbox = Sandbox::new();
    flow(&sandbox, 4, 2);
    // From a host that is no node of it: all tasks are steps.
    finish(&mut allocated(&sandbox, "salloc", &["--quiet"])).ok().complains("4 ok");
    let both = nodes(&sandbox, 4);
    assert_eq!(both.len(), 2, "{both:?}");
    assert!(!both.contains("here"));
}

#[test]
fn on_the_first_node_of_a_batch_job_its_own_tasks_need_no_step() {
    if cluster().is_none() {
        return;
    }
    let sandbox = Sandbox::new();
    flow(&sandbox, 3, 2);
    let run = sandbox.dvrun();
    let words: Vec<String> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let script = format!("#!/bin/sh\nexec {} run flow.yaml\n", words.join(" "));
    let script = sandbox.write("job.sh", script);
    let mut sbatch = Command::new("sbatch");
    sbatch
        .env_clear()
        .envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    sbatch.args([
        "--wait",
        "--parsable",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=2",
        "--mem=400M",
        "--output=log",
    ]);
    let ended = finish(sbatch.arg(script).current_dir(sandbox.work()));
    assert!(ended.status.success(), "{ended}{}", sandbox.read("log"));
    let both = nodes(&sandbox, 3);
    assert!(both.len() == 2 && both.contains("here"), "{both:?}");
}

#[test]
fn a_step_is_held_to_the_memory_of_its_task() {
    if cluster().is_none() || !holds_to_memory() {
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.write(
        "flow.yaml",
        "version: 1\nname: hungry\ndefaults: {image: none}\nstages:\n  eat:\n    array: 2\n    \
         resources: {cpus: 1, memory: 64M, time: 2m}\n    run: |\n      \
         case ${{ array.index }} in 0) dd if=/dev/zero of=/dev/null bs=150M count=1 ;; esac\n",
    );
    finish(&mut allocated(&sandbox, "salloc", &["--quiet"])).exits(1);
    let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
    let outcome = |index: u32| run.records(&name("eat")).read_one(index).unwrap().unwrap().outcome;
    assert_eq!([outcome(0), outcome(1)], [Outcome::OutOfMemory, Outcome::Ok]);
}

/// The processes of the run's tasks, by their numbers.
fn processes(run: &RunDir) -> Vec<String> {
    let found = Command::new("pgrep")
        .args(["-f", &format!("__task {}", run.path().display())])
        .output()
        .unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn told_to_stop_it_ends_the_steps_and_killed_it_takes_them_along() {
    if cluster().is_none() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let sandbox = Sandbox::new();
        // They wait for a third that never comes; the allocation outlives the run.
        flow(&sandbox, 2, 3);
        let stay = [
            "--quiet",
            "sh",
            "-c",
            "\"$@\"; while [ -e flow.yaml ] && [ ! -e over ]; do sleep 0.2; done",
            "sh",
        ];
        let mut running = Running::start(&mut allocated(&sandbox, "salloc", &stay));
        let started = |index: u32| sandbox.work().join(format!("work/started-{index}")).exists();
        running.reaches("both tasks run", || started(0) && started(1));
        let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
        let tasks = processes(&run);
        assert!(!tasks.is_empty());
        for task in tasks {
            // Slurm removes its groups when it has killed all that is in them, and cannot remove those of others.
            let groups = std::fs::read_to_string(format!("/proc/{task}/cgroup")).unwrap_or_default();
            assert!(!groups.contains("/dvrun-"), "{groups}");
        }
        let events = Journal::read(&run.journal_path()).unwrap();
        let pid = events.iter().find_map(|event| match event {
            Event::Started { pid, .. } => Some(*pid),
            _ => None,
        });
        kill(Pid::from_raw(pid.unwrap() as i32), signal).unwrap();
        let records = run.records(&name("wide"));
        for index in 0..2 {
            wait_until(&format!("{index} has ended after {signal}"), LIMIT, || {
                records.read_one(index).unwrap().unwrap().outcome == Outcome::Cancelled
            });
        }
        wait_until("no process of the run is left", LIMIT, || processes(&run).is_empty());
        sandbox.write("over", "");
        running.finish().ok();
    }
}
