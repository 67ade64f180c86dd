//! SIGKILL during submission and run: the next call goes on, nothing runs twice that ended well, and the result is the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::Where;
use super::counting::{Counting, MERGED};
use crate::support::{Running, assert_ordinary_user, finish, slurm};

#[test]
fn killed_while_tasks_run_here() {
    assert_ordinary_user();
    // Where it is killed, and how often each task has then been started at the end.
    for (task, runs) in [
        ("first", [2, 1, 1, 1, 1, 1]),
        ("call-1", [1, 1, 2, 1, 1, 1]),
        ("merge", [1, 1, 1, 1, 1, 2]),
    ] {
        let pipeline = Counting::new();
        pipeline.set(&format!("hold-{task}"));
        Running::start(pipeline.start(Where::Here).args(["--jobs", "1"])).kill_when(&format!("{task} runs"), || pipeline.runs(task) == 1);
        // Started before the hold is gone: what the killed run left behind, if anything, must not count as done.
        let mut again = Running::start(pipeline.start(Where::Here).args(["--jobs", "1"]));
        again.reaches(&format!("{task} runs again"), || pipeline.runs(task) == 2);
        pipeline.unset(&format!("hold-{task}"));
        again.finish().ok();
        assert_eq!(pipeline.all_runs(), runs, "killed while {task} ran");
        assert_eq!(pipeline.merged(), MERGED);
    }
}

#[test]
fn interrupted_here_it_lets_its_tasks_end_and_starts_no_more() {
    assert_ordinary_user();
    let pipeline = Counting::new();
    pipeline.set("hold-call-1");
    let mut running = Running::start(pipeline.start(Where::Here).args(["--jobs", "1"]));
    running.reaches("the second shard runs", || pipeline.runs("call-1") == 1);
    running.signal(Signal::SIGINT);
    running.says("stopping: 1 task running");
    pipeline.unset("hold-call-1");
    running.finish().exits(130);
    assert_eq!(pipeline.all_runs(), [1, 1, 1, 0, 0, 0]);
    finish(&mut pipeline.start(Where::Here)).ok();
    assert_eq!(pipeline.all_runs(), [1; 6]);
    assert_eq!(pipeline.merged(), MERGED);
}

#[test]
fn terminated_here_it_ends_its_tasks_and_says_so() {
    assert_ordinary_user();
    let pipeline = Counting::new();
    pipeline.set("hold-call-1");
    let mut running = Running::start(pipeline.start(Where::Here).args(["--jobs", "1"]));
    running.reaches("the second shard runs", || pipeline.runs("call-1") == 1);
    running.signal(Signal::SIGTERM);
    running.finish().exits(130).complains("call/1");
    pipeline.unset("hold-call-1");
    finish(&mut pipeline.start(Where::Here)).ok();
    assert_eq!(pipeline.all_runs(), [1, 1, 2, 1, 1, 1]);
    assert_eq!(pipeline.merged(), MERGED);
}

#[test]
fn killed_while_waiting_for_slurm() {
    assert_ordinary_user();
    if slurm().is_none() {
        return;
    }
    for task in ["first", "call-1", "merge"] {
        let pipeline = Counting::new();
        pipeline.set(&format!("hold-{task}"));
        Running::start(&mut pipeline.start(Where::Slurm)).kill_when(&format!("{task} runs"), || pipeline.runs(task) == 1);
        pipeline.unset(&format!("hold-{task}"));
        // The jobs do not need whoever submitted them.
        finish(&mut pipeline.start(Where::Slurm)).ok();
        assert_eq!(pipeline.all_runs(), [1; 6], "killed while {task} ran");
        assert_eq!(pipeline.merged(), MERGED);
    }
}

#[test]
fn killed_while_submitting() {
    assert_ordinary_user();
    if slurm().is_none() {
        return;
    }
    for moment in [Moment::Before, Moment::After] {
        for call in 1..=3 {
            let pipeline = Counting::new();
            let gate = Gate::new(pipeline.sandbox.path(), moment, call);
            Running::start(pipeline.start(Where::Slurm).env("PATH", gate.path())).kill_when("sbatch is held", || gate.is_held());
            finish(&mut pipeline.start(Where::Slurm)).ok();
            assert_eq!(pipeline.all_runs(), [1; 6], "killed at call {call} of sbatch, {moment:?}");
            assert_eq!(pipeline.merged(), MERGED);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Moment {
    /// `sbatch` was called and has done nothing.
    Before,
    /// Slurm has the job, and its id has not been told.
    After,
}

/// The real `sbatch`, held at one of its calls until its caller is dead; it then ends without another word.
struct Gate {
    folder: PathBuf,
}

impl Gate {
    /// Below `parent`; `call` counts from 1.
    fn new(parent: &Path, moment: Moment, call: usize) -> Gate {
        let folder = parent.join("gate");
        fs::create_dir(&folder).expect("the sandbox is writable");
        let real = finish(Command::new("sh").args(["-c", "command -v sbatch"])).ok().stdout;
        let (before, after) = match moment {
            Moment::Before => ("hold; exit 1", ""),
            Moment::After => ("", "hold; exit 1"),
        };
        let script = format!(
            "#!/bin/sh\n\
             hold() {{ : > '{0}/held'; while kill -0 $PPID 2> '{0}/dead'; do sleep 0.05; done; }}\n\
             if [ \"$1\" = --version ] || [ \"$1\" = -V ]; then exec {real} \"$@\"; fi\n\
             echo call >> '{0}/calls'\n\
             n=$(wc -l < '{0}/calls')\n\
             if [ \"$n\" = {call} ]; then :; {before}\nfi\n\
             said=$({real} \"$@\"); status=$?\n\
             if [ \"$n\" = {call} ]; then :; {after}\nfi\n\
             echo \"$said\"; exit $status\n",
            folder.display(),
            real = real.trim(),
        );
        let program = folder.join("sbatch");
        fs::write(&program, script).expect("the sandbox is writable");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        Gate { folder }
    }

    /// `PATH` with the gate in front.
    fn path(&self) -> String {
        format!("{}:{}", self.folder.display(), std::env::var("PATH").unwrap_or_default())
    }

    fn is_held(&self) -> bool {
        self.folder.join("held").exists()
    }
}
