//! Runs on this machine: what they leave behind, and how they end.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Running, Sandbox, assert_ordinary_user, checkout, finish, wait_until};

/// A workflow of one stage in the quick start's image.
fn stage(sandbox: &Sandbox, stage: &str) {
    sandbox.copy(&checkout().join("workflows/quickstart/image"), "image");
    let text = format!("version: 1\nname: x\nimages: {{t: 'oci:image:1.0'}}\nstages:\n  s: {{image: t, {stage}}}\n");
    sandbox.write("x.yaml", text);
}

fn scratch(sandbox: &Sandbox) -> usize {
    fs::read_dir(sandbox.path().join("tmp")).expect("it is ours").count()
}

#[test]
fn sealed_folders_in_tmp_and_in_outputs_are_no_obstacle() {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    stage(
        &sandbox,
        "run: 'mkdir -p /tmp/a out/b; touch /tmp/a/f out/b/f; chmod 555 /tmp/a out/b out', outputs: [out]",
    );
    for _ in 0..2 {
        finish(sandbox.dvrun().args(["run", "x.yaml", "--force", "s"])).ok();
        assert_eq!(scratch(&sandbox), 0);
    }
    assert!(sandbox.work().join("out/b/f").is_file());
}

#[test]
fn what_a_killed_run_left_in_tmp_is_swept_by_the_next() {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    stage(&sandbox, "run: 'touch started; [ -e go ] || sleep 1000', outputs: [started]");
    let run = Running::start(sandbox.dvrun().args(["run", "x.yaml"]));
    run.kill_when("the task has started", || sandbox.work().join("started").exists());
    sandbox.write("go", "");
    finish(sandbox.dvrun().args(["run", "x.yaml"])).ok();
    assert_eq!(scratch(&sandbox), 0);
}

#[test]
fn a_stage_too_large_for_this_machine_is_told_before_anything_is_made() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "x.yaml",
        "version: 1\nname: x\nstages:\n  small: {image: none, run: 'true'}\n  large: {image: none, run: 'true', resources: {memory: 900T}}\n",
    );
    let ended = finish(sandbox.dvrun().args(["run", "x.yaml"])).exits(3);
    ended
        .complains("error: stage `large` asks for 900T of memory, and this machine has ")
        .complains("dvrun submit");
    assert!(!sandbox.work().join(".dvrun/runs").exists());
}

/// More than the kernel takes as one argument, with a last line of its own.
fn long_script(last: &str) -> String {
    let filler = "      # nothing that is run, and much of it\n".repeat(5000);
    format!(
        "version: 1\nname: x\nimages: {{t: 'oci:image:1.0'}}\nstages:\n  s:\n    image: IMAGE\n    outputs: [out]\n    run: |\n{filler}      {last}\n"
    )
}

#[test]
fn a_script_may_be_longer_than_an_argument() {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    sandbox.copy(&checkout().join("workflows/quickstart/image"), "image");
    for image in ["none", "t"] {
        let text = |last: &str| long_script(last).replace("IMAGE", image);
        sandbox.write("x.yaml", text("echo all of it >out; : \"${TMPDIR-}\""));
        finish(sandbox.dvrun().args(["run", "x.yaml"])).ok();
        assert_eq!(sandbox.read("out"), "all of it\n");
        // `-e` and `-u` hold in it as in a short one.
        for (last, exit) in [
            ("exit 7", "exit status 7"),
            ("false; echo >out", "exit status 1"),
            ("echo $not_set >out", "exit status 2"),
        ] {
            sandbox.write("x.yaml", text(last));
            finish(sandbox.dvrun().args(["run", "x.yaml"])).exits(1).complains(exit);
        }
        assert_eq!(scratch(&sandbox), 0);
    }
}

/// Whether the process whose id is in `name` has ended.
fn gone(sandbox: &Sandbox, name: &str) -> bool {
    let pid = sandbox.read(name);
    fs::read_to_string(format!("/proc/{}/stat", pid.trim())).map_or(true, |stat| stat.contains(") Z "))
}

/// A stage on the host whose program ignores what it is told, with a child in the background.
fn stubborn(sandbox: &Sandbox, more: &str) {
    sandbox.write(
        "x.yaml",
        format!(
            "version: 1\nname: x\nstages:\n  s:\n    image: none\n{more}    run: |\n      sleep 1000 &\n      echo $! >child\n      echo $$ >leader\n      touch started\n      wait\n    outputs: [leader, child, started]\n"
        ),
    );
}

#[test]
fn a_time_limit_ends_the_whole_process_group() {
    let sandbox = Sandbox::new();
    stubborn(
        &sandbox,
        "    resources: {time: \"0:00:01\"}\n    retry: {max: 1, when: [timeout]}\n",
    );
    let ended = finish(sandbox.dvrun().args(["run", "x.yaml"])).exits(1);
    ended.complains("out of time").complains("trying again (1)");
    assert!(gone(&sandbox, "leader") && gone(&sandbox, "child"));
    finish(sandbox.dvrun().args(["explain", "s"]))
        .ok()
        .says("attempt   2 of at most 2")
        .says("--time ");
}

#[test]
fn what_is_left_in_the_background_ends_with_its_task() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "x.yaml",
        "version: 1\nname: x\nstages:\n  s: {image: none, run: 'sleep 1000 & echo $! >child', outputs: [child]}\n",
    );
    finish(sandbox.dvrun().args(["run", "x.yaml"])).ok();
    assert!(gone(&sandbox, "child"));
}

#[test]
fn what_a_program_left_in_a_session_of_its_own_writes_to_no_other_task() {
    let sandbox = Sandbox::new();
    // The first ends at once and without a word; what it left speaks while the others run.
    sandbox.write(
        "x.yaml",
        "version: 1\nname: x\nstages:\n  first:\n    image: none\n    run: |\n      setsid sh -c 'echo $$ >left; until [ -e second ]; do sleep 0.1; done; echo late; echo late >&2; touch spoke' &\n      until [ -s left ]; do sleep 0.1; done\n    outputs: [left]\n  others:\n    image: none\n    needs: [first]\n    array: 3\n    run: |\n      touch second\n      until [ -e spoke ]; do sleep 0.1; done\n      echo own ${{ array.index }}\n",
    );
    finish(sandbox.dvrun().args(["run", "x.yaml", "--jobs", "1"])).ok();
    assert_eq!(
        finish(sandbox.dvrun().args(["logs", "others"])).ok().stdout,
        "==> others/0 <==\nown 0\n==> others/1 <==\nown 1\n==> others/2 <==\nown 2\n"
    );
    assert_eq!(finish(sandbox.dvrun().args(["logs", "others", "--stderr"])).ok().stdout, "");
    let runs = sandbox.work().join(".dvrun/runs");
    let logs = walkdir::WalkDir::new(runs).into_iter().flatten();
    let empty = logs.filter(|entry| {
        let log = entry.path().extension().is_some_and(|end| end == "out" || end == "err");
        log && entry.metadata().is_ok_and(|metadata| metadata.len() == 0)
    });
    assert_eq!(empty.count(), 0, "empty logs help nobody");
}

#[test]
fn a_second_interrupt_ends_what_runs() {
    let sandbox = Sandbox::new();
    stubborn(&sandbox, "");
    let own = sandbox.dvrun();
    let mut command = Command::new("sh");
    // What it says is seen while it runs: two interrupts that nobody has taken are one.
    command
        .args(["-c", "exec \"$0\" \"$@\" 2>said"])
        .arg(own.get_program())
        .args(own.get_args());
    command.args(["run", "x.yaml"]).current_dir(sandbox.work()).env_clear();
    command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut run = Running::start(&mut command);
    run.reaches("the task has started", || sandbox.work().join("started").exists());
    run.signal(Signal::SIGINT);
    run.reaches("the first is taken", || {
        sandbox.read("said").contains("stopping: 1 task running; interrupt again")
    });
    run.signal(Signal::SIGINT);
    run.finish().exits(130);
    let said = sandbox.read("said");
    assert!(
        said.contains("stopping now: 1 task told to end") && said.contains("cancelled"),
        "{said}"
    );
    assert!(gone(&sandbox, "leader") && gone(&sandbox, "child"));
    finish(sandbox.dvrun().arg("status")).says("cancelled");
}

#[test]
fn a_killed_engine_takes_its_programs_on_the_host_along() {
    let sandbox = Sandbox::new();
    stubborn(&sandbox, "");
    let run = Running::start(sandbox.dvrun().args(["run", "x.yaml"]));
    run.kill_when("the task has started", || sandbox.work().join("started").exists());
    // Its own child is nobody's any more; the leader of the group dies with the engine.
    wait_until("the program is gone", Duration::from_secs(60), || gone(&sandbox, "leader"));
    finish(sandbox.dvrun().arg("status")).says("interrupted");
    kill_child(&sandbox);
}

/// Ends what a program left that was killed with its engine.
fn kill_child(sandbox: &Sandbox) {
    let child = sandbox.read("child").trim().parse().expect("a process id");
    match kill(Pid::from_raw(child), Signal::SIGKILL) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_run_in_the_background_can_be_cancelled() {
    let sandbox = Sandbox::new();
    stubborn(&sandbox, "");
    finish(sandbox.dvrun().args(["run", "x.yaml", "--detach"])).ok();
    wait_until("the task has started", Duration::from_secs(60), || {
        sandbox.work().join("started").exists()
    });
    finish(sandbox.dvrun().arg("cancel")).ok();
    wait_until("the program is gone", Duration::from_secs(60), || {
        gone(&sandbox, "leader") && gone(&sandbox, "child")
    });
    finish(sandbox.dvrun().arg("wait")).says("cancelled");
}

#[test]
fn many_shards_are_few_files_and_few_lines() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "x.yaml",
        "version: 1\nname: x\ndefaults: {image: none}\nstages:\n  first: {run: exit 3}\n  wide: {needs: [first], array: 100000, run: 'true'}\n",
    );
    finish(sandbox.dvrun().args(["--quiet", "run", "x.yaml"])).exits(1);
    let status = finish(sandbox.dvrun().arg("status")).says("100000").says("first");
    assert!(status.stdout.lines().count() < 40, "{status}");
    let files = walkdir::WalkDir::new(sandbox.work().join(".dvrun")).into_iter().flatten();
    let files = files.filter(|entry| entry.file_type().is_file()).count();
    assert!(files < 200, "{files} files");
}
