//! Whole workflows by real Apptainer (`runtime: apptainer` of a profile): the same answers, verdicts and resuming as by ours.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::Where;
use super::quickstart::{ANSWER, snapshot};
use crate::support::{Finished, Sandbox, apptainer, assert_ordinary_user, checkout, finish, slurm};

/// A sandbox whose profile `site` demands Apptainer, here and on nodes.
pub fn demanding() -> Option<Sandbox> {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    // Nodes find it under one path, and other users' daemons go through it.
    std::fs::set_permissions(sandbox.path(), PermissionsExt::from_mode(0o755)).expect("it is the test's");
    let path = path(&sandbox)?;
    sandbox.config(&format!(
        "profiles:\n  site: {{runtime: apptainer, slurm: {{mpi: pmix, env: {{PATH: '{path}'}}}}}}\n  \
         mpich: {{runtime: apptainer, slurm: {{mpi: pmi2, env: {{PATH: '{path}'}}}}}}\n"
    ));
    Some(sandbox)
}

/// `PATH` with Apptainer in front.
fn path(sandbox: &Sandbox) -> Option<String> {
    let folder = sandbox.path().join("apptainer");
    let folder = if folder.exists() { folder } else { apptainer(sandbox.path())? };
    Some(format!("{}:{}", folder.display(), env::var("PATH").expect("there is one")))
}

/// dvrun where that is demanded.
pub fn dvrun(sandbox: &Sandbox, profile: &str) -> Command {
    let mut command = sandbox.dvrun();
    command.args(["--profile", profile]);
    command.env("PATH", path(sandbox).expect("it was there a moment ago"));
    command
}

#[test]
fn the_quickstart_by_apptainer_gives_its_answer() {
    let Some(sandbox) = demanding() else { return };
    quickstart(&sandbox, Where::Here);
}

#[test]
fn on_slurm_by_apptainer_it_is_the_same() {
    if slurm().is_some()
        && let Some(sandbox) = demanding()
    {
        quickstart(&sandbox, Where::Slurm);
    }
}

fn quickstart(sandbox: &Sandbox, place: Where) {
    let folder = sandbox.copy(&checkout().join("workflows/quickstart"), "quickstart");
    let call = || finish(dvrun(sandbox, "site").args(place.command()).arg("quickstart/pipeline.yaml")).ok();
    call();
    assert_eq!(sandbox.read("quickstart/work/report.txt"), ANSWER);
    let before = snapshot(&folder.join("work"));
    call();
    assert_eq!(snapshot(&folder.join("work")), before, "the second run touched a file");
}

/// Its first stage tells by what it ran: Apptainer names its containers.
const FLOW: &str = "version: 1\nname: fails\nimages: {tools: 'oci:quickstart/image:1.0'}\ndefaults: {image: tools}\nstages:\n  \
    first: {run: 'echo $APPTAINER_NAME >first; echo once >>count', outputs: [first], binds: ['.:/here'], workdir: /here}\n";

#[test]
fn a_stage_that_fails_by_apptainer_is_told_and_gone_on_with() {
    let Some(sandbox) = demanding() else { return };
    sandbox.copy(&checkout().join("workflows/quickstart"), "quickstart");
    let flow = |second: &str| {
        let second = format!(
            "  second: {{needs: [first], run: '{second}', env: {{WORD: \"it's $HOME\"}}, resources: {{time: 5s}}}}\n  \
             third: {{needs: [second], run: 'true'}}\n"
        );
        sandbox.write("flow.yaml", format!("{FLOW}{second}"));
    };
    let run = |more: &[&str]| -> Finished { finish(dvrun(&sandbox, "site").args(["run", "flow.yaml"]).args(more)) };
    flow("echo \"$WORD\" >&2; exit 7");
    run(&[]).exits(1);
    let explained = finish(dvrun(&sandbox, "site").args(["explain", "second"])).ok();
    explained.says("exit status 7").says("it's $HOME");
    assert_eq!(
        sandbox.read("first"),
        "rootfs\n",
        "Apptainer names a container by its image's last folder"
    );
    flow("kill -9 $$");
    run(&[]).exits(1);
    finish(dvrun(&sandbox, "site").args(["explain", "second"]))
        .ok()
        .says("ended by SIGKILL");
    flow("sleep 600");
    run(&[]).exits(1);
    finish(dvrun(&sandbox, "site").args(["explain", "second"])).ok().says("time");
    flow("true");
    run(&[]).ok();
    assert_eq!(run(&["--json"]).ok().json()["ok"], 0, "nothing is left to do");
    assert_eq!(sandbox.read("count"), "once\n");
}
