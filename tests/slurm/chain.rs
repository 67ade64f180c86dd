//! dvrun among people's own scripts: jobs written for submission by hand, ids taken and given, profiles tried.

use std::process::Command;

use dvrun::engine::slurm::intents;
use dvrun::state::{Journal, RunDir};

use super::real::cluster;
use crate::support::{Sandbox, checkout, finish};

const FLOW: &str = "version: 1\nname: chain\ndefaults: {image: none}\nstages:\n  \
    first: {run: \"echo first >>work/log; echo >work/first\", outputs: [work/first]}\n  \
    many:\n    needs: [first]\n    array: {count: 2, max_parallel: 1}\n    outputs: [\"work/many${{ array.index }}\"]\n    \
    run: \"echo many >>work/log; echo >work/many${{ array.index }}\"\n  \
    last: {needs: [many], run: \"echo last >>work/log; echo >work/last\", outputs: [work/last]}\n";

fn until_over(sandbox: &Sandbox) -> String {
    for _ in 0..300 {
        let status = finish(sandbox.dvrun().args(["status", "--json"])).json();
        if status["state"] != "active" && status["jobs"].as_array().is_some_and(Vec::is_empty) {
            return status["state"].as_str().unwrap().to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    panic!("never ended");
}

#[test]
fn scripts_submitted_by_hand_do_the_same_and_are_known() {
    let Some(_) = cluster() else { return };
    let sandbox = Sandbox::new();
    let file = sandbox.write("flow.yaml", FLOW);
    let written = finish(sandbox.dvrun().args(["plan", "--scripts", "-o", "jobs"]).arg(&file)).ok();
    assert_eq!(
        written.stdout.lines().collect::<Vec<_>>(),
        ["jobs/first.sbatch", "jobs/many.sbatch", "jobs/last.sbatch", "jobs/submit.sh"]
    );
    assert!(!sandbox.work().join("work/log").exists());
    let by_hand = finish(Command::new("sh").arg("jobs/submit.sh").current_dir(sandbox.work())).ok();
    assert_eq!(by_hand.stdout.lines().count(), 3);
    // The status finds them by their tokens.
    assert_eq!(until_over(&sandbox), "done");
    assert_eq!(sandbox.read("work/log"), "first\nmany\nmany\nlast\n");
    let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
    assert!(intents(&Journal::read(&run.journal_path()).unwrap()).is_empty());
    finish(sandbox.dvrun().arg("submit").arg(&file)).ok().complains("nothing to run");
}

#[test]
fn scripts_that_nobody_submitted_come_too_late_once_the_run_is_submitted() {
    let Some(_) = cluster() else { return };
    let sandbox = Sandbox::new();
    let file = sandbox.write("flow.yaml", FLOW);
    finish(sandbox.dvrun().args(["plan", "--scripts", "-o", "jobs"]).arg(&file)).ok();
    finish(sandbox.dvrun().args(["submit", "--wait"]).arg(&file)).ok();
    let late = Command::new("sbatch")
        .args(["--wait", "--parsable", "jobs/first.sbatch"])
        .current_dir(sandbox.work())
        .output()
        .unwrap();
    assert!(late.status.success());
    assert_eq!(sandbox.read("work/log"), "first\nmany\nmany\nlast\n");
}

#[test]
fn ids_are_taken_and_given() {
    let Some(_) = cluster() else { return };
    let sandbox = Sandbox::new();
    let file = sandbox.write("flow.yaml", FLOW);
    sandbox.write("work/here", "");
    let sbatch = |args: &[&str]| {
        let output = Command::new("sbatch")
            .args(["--parsable", "-o", "/dev/null"])
            .args(args)
            .current_dir(sandbox.work())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let before = sbatch(&["--wrap", "sleep 2; echo before >>work/log"]);
    finish(
        sandbox
            .dvrun()
            .args(["submit", "--dependency", "afterok:", "--parsable"])
            .arg(&file),
    )
    .exits(2);
    let submitted = finish(
        sandbox
            .dvrun()
            .args(["submit", "--parsable", "--dependency", &format!("afterok:{before}")])
            .arg(&file),
    )
    .ok();
    let ids = submitted.stdout.trim();
    assert!(!ids.is_empty() && ids.bytes().all(|b| b.is_ascii_digit()), "{submitted}");
    sbatch(&["--wait", &format!("--dependency=afterok:{ids}"), "--wrap", "echo after >>work/log"]);
    assert_eq!(sandbox.read("work/log"), "before\nfirst\nmany\nmany\nlast\nafter\n");
}

#[test]
fn a_profile_is_tried_on_the_cluster_at_hand() {
    let Some(_) = cluster() else { return };
    let sandbox = Sandbox::new();
    finish(sandbox.dvrun().args(["profile", "check"])).ok().says("ok    job");
    sandbox.config("profile: x\nprofiles: {x: {slurm: {partition: nowhere}}}\n");
    finish(sandbox.dvrun().args(["profile", "check"]))
        .exits(3)
        .says("FAIL  job")
        .says("nowhere");
    sandbox.config("profile: x\nprofiles: {x: {slurm: {partitions: [{name: main}, {name: nowhere, time: 1h}]}}}\n");
    finish(sandbox.dvrun().args(["profile", "check"]))
        .exits(3)
        .says("ok    partition main")
        .says("FAIL  partition nowhere");
}

#[test]
fn a_profile_s_environment_modules_and_partition_are_those_of_its_jobs() {
    let Some(_) = cluster() else { return };
    let sandbox = Sandbox::new();
    // In the place of a site's modules: a program of that name, which the environment makes known.
    let module = sandbox.write(
        "bin/module",
        format!("#!/bin/sh\necho \"$@\" >>'{}/loaded'\n", sandbox.work().display()),
    );
    std::fs::set_permissions(&module, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = sandbox.write(
        "flow.yaml",
        "version: 1\nname: site\ndefaults: {image: none}\nstages:\n  \
         a: {run: 'echo \"$LAB\" $SLURM_JOB_PARTITION >work/a; srun -n1 printenv LAB SRUN_CPUS_PER_TASK >work/step', outputs: [work/a, work/step]}\n",
    );
    let profile = |more: &str| {
        sandbox.config(&format!(
            "profiles:\n  site:\n    slurm:\n      partitions: [{{name: tiny, time: 1m, cpus: 0}}, {{name: main}}]\n      \
             env: {{LAB: \"it's 7 o'clock\", PATH: \"{}:/usr/bin:/bin\"}}\n{more}",
            sandbox.work().join("bin").display()
        ));
    };
    profile("");
    finish(sandbox.dvrun().args(["--profile", "site", "submit", "--wait"]).arg(&file)).ok();
    assert_eq!(
        (sandbox.read("work/a"), sandbox.read("work/step")),
        ("it's 7 o'clock main\n".into(), "it's 7 o'clock\n1\n".into())
    );
    assert!(!sandbox.work().join("loaded").exists());
    profile("      modules: [gcc/12, 'open mpi']\n");
    finish(
        sandbox
            .dvrun()
            .args(["--profile", "site", "submit", "--force", "a", "--wait"])
            .arg(&file),
    )
    .ok();
    assert_eq!(sandbox.read("loaded"), "load gcc/12 open mpi\n");
    // No partition has room: said before anything is submitted.
    sandbox.config("profile: x\nprofiles: {x: {slurm: {partitions: [{name: main, cpus: 0}]}}}\n");
    finish(sandbox.dvrun().args(["submit", "--force", "a"]).arg(&file))
        .exits(3)
        .complains("main (cpus: 1 of 0)");
}

#[test]
fn the_profiles_that_are_shown_are_read() {
    for name in ["plain", "account", "per-cpu", "gpu", "modules"] {
        let sandbox = Sandbox::new();
        let file = sandbox.write("flow.yaml", FLOW);
        sandbox.config(&std::fs::read_to_string(checkout().join(format!("slurm/profiles/{name}.yaml"))).unwrap());
        finish(sandbox.dvrun().args(["--profile", name, "plan", "--scripts"]).arg(&file))
            .ok()
            .says("#SBATCH --cpus-per-task=1");
    }
}
