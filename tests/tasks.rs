//! Runs on this machine: what they leave behind, and how they end.

use std::fs;

use crate::support::{Running, Sandbox, assert_ordinary_user, checkout, finish};

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
