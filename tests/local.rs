//! The engine on this machine: the built program with stages that need no container.

use std::time::Duration;

use dvrun::state::{Outcome, RunDir};
use dvrun::workflow::StageName;

use crate::support::{Running, Sandbox, finish, wait_until};

const FLOW: &str = "version: 1\nname: flow\nparams: {greeting: hello}\ndefaults: {image: none}\nstages:\n  \
    a:\n    array: 3\n    outputs: [\"work/a${{ array.index }}\"]\n    run: |\n      echo ${{ array.index }} >>work/a.starts\n      \
    if [ ${{ array.index }} = 1 ] && [ -e work/fail ]; then exit 3; fi\n      echo ${{ params.greeting }} ${{ array.index }} >work/a${{ array.index }}\n  \
    b:\n    needs: [a]\n    outputs: [work/b]\n    run: \"echo >>work/b.starts; cat work/a0 work/a1 work/a2 >work/b\"\n  \
    other:\n    outputs: [work/other]\n    run: \"echo >>work/other.starts; echo >work/other\"\n";

fn flow(sandbox: &Sandbox) -> [usize; 3] {
    ["a", "b", "other"].map(|stage| {
        let path = sandbox.work().join(format!("work/{stage}.starts"));
        std::fs::read_to_string(path).unwrap_or_default().lines().count()
    })
}

#[test]
fn the_failed_task_runs_again_in_its_own_run_and_what_waited_for_it_follows() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("flow.yaml", FLOW);
    sandbox.write("work/fail", "");
    finish(sandbox.dvrun().arg("run").arg(&file)).exits(1);
    assert_eq!(flow(&sandbox), [3, 0, 1]);
    std::fs::remove_file(sandbox.work().join("work/fail")).unwrap();
    finish(sandbox.dvrun().args(["rerun", "b"]))
        .exits(2)
        .complains("needs a, which has not ended well");
    finish(sandbox.dvrun().args(["rerun", "a/3"]))
        .exits(2)
        .complains("tasks 0 to 2, not 3");
    finish(sandbox.dvrun().args(["rerun", "a/failed", "--memory", "64M"]))
        .ok()
        .complains("a/1 runs again");
    assert_eq!(
        (flow(&sandbox), sandbox.read("work/b")),
        ([4, 1, 1], "hello 0\nhello 1\nhello 2\n".into())
    );
    let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
    assert_eq!(RunDir::list(&sandbox.work()).unwrap().len(), 1);
    let a = StageName("a".into());
    assert_eq!(run.records(&a).read_one(1).unwrap().unwrap().outcome, Outcome::Ok);
    assert_eq!(run.plan().unwrap().stages[&a].stage.resources.memory.unwrap().to_string(), "64M");
    finish(sandbox.dvrun().arg("status")).ok().says("done");
    finish(sandbox.dvrun().args(["rerun", "a/failed"])).ok().complains("nothing to run");

    finish(sandbox.dvrun().args(["rerun", "a/0"]))
        .ok()
        .complains("b used the earlier outputs");
    assert_eq!(flow(&sandbox), [5, 1, 1]);
    finish(sandbox.dvrun().args(["rerun", "a/0", "--downstream"])).ok();
    assert_eq!(flow(&sandbox), [6, 2, 1]);
}

#[test]
fn of_an_array_no_more_run_at_once_than_it_says() {
    let sandbox = Sandbox::new();
    // Two at a time would meet in the folder.
    let text = "version: 1\nname: narrow\ndefaults: {image: none}\nstages:\n  narrow:\n    array: {count: 6, max_parallel: 1}\n    \
        run: \"mkdir busy; sleep 0.05; rmdir busy\"\n    resources: {cpus: 1}\n";
    sandbox.write("flow.yaml", text);
    finish(sandbox.dvrun().args(["run", "flow.yaml", "--jobs", "6"])).ok();
}

#[test]
fn other_parameters_are_another_run_that_keeps_the_rest() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("flow.yaml", FLOW);
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    finish(sandbox.dvrun().args(["rerun", "a", "--set", "greeting=bye"])).ok();
    assert_eq!(
        (flow(&sandbox), sandbox.read("work/b")),
        ([6, 2, 1], "bye 0\nbye 1\nbye 2\n".into())
    );
    assert_eq!(RunDir::list(&sandbox.work()).unwrap().len(), 2);
    finish(sandbox.dvrun().args(["rerun", "a/1", "--set", "greeting=x"])).exits(2);
    // What the newest run was told stays so.
    finish(sandbox.dvrun().args(["rerun", "b", "--set", "greeting=bye", "--only"])).ok();
    assert_eq!(
        (flow(&sandbox), sandbox.read("work/b")),
        ([6, 3, 1], "bye 0\nbye 1\nbye 2\n".into())
    );
}

#[test]
fn a_plain_number_of_retries_is_for_any_failure() {
    let sandbox = Sandbox::new();
    let file = sandbox.write(
        "flow.yaml",
        "version: 1\nname: flow\ndefaults: {image: none}\nstages:\n  a:\n    retry: 2\n    outputs: [work/a]\n    \
         run: \"echo >>work/starts; [ $(wc -l <work/starts) = 3 ]; echo >work/a\"\n",
    );
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    assert_eq!(sandbox.read("work/starts").lines().count(), 3);
    let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
    assert_eq!(run.records(&StageName("a".into())).read_one(0).unwrap().unwrap().attempt, 2);
}

#[test]
fn a_failure_is_explained_with_its_evidence_and_what_to_type_next() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("flow.yaml", FLOW.replace("exit 3;", "echo no luck >&2; exit 3;"));
    sandbox.write("work/fail", "");
    finish(sandbox.dvrun().arg("run").arg(&file)).exits(1);
    let of_stage = finish(sandbox.dvrun().args(["explain", "a"])).ok();
    let of_stage = of_stage
        .says("a/1 (run ")
        .says("failed: exit status 3")
        .says("| no luck")
        .says("next: dvrun logs a/1 --stderr");
    assert_eq!(of_stage.stdout, finish(sandbox.dvrun().args(["explain", "a/1"])).ok().stdout);
    finish(sandbox.dvrun().args(["explain", "a/0"])).ok().says("a/0 (run ").says(": ok");
    finish(sandbox.dvrun().args(["explain", "b"]))
        .ok()
        .says("needs     a/1, which")
        .says("next: dvrun explain a/1");
    finish(sandbox.dvrun().args(["explain", "a/9"])).exits(2);
    let json = finish(sandbox.dvrun().args(["explain", "a", "--json"])).ok().json();
    assert_eq!(json["explanation"]["record"]["outcome"]["failed"]["exit"], 3);
    let runs = finish(sandbox.dvrun().arg("runs")).ok().says("failed     local");
    assert_eq!(runs.stdout.lines().count(), 1);
}

#[test]
fn what_changed_is_named_back_to_its_root() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("flow.yaml", FLOW);
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    finish(sandbox.dvrun().args(["why", "b"])).ok().says("b does not run: done");
    let why = finish(sandbox.dvrun().args(["why", "b", "--set", "greeting=bye"])).ok();
    let why = why.says("b runs: needs `a`, which runs").says("a runs: changed");
    assert!(why.stdout.contains("params.greeting      \"hello\" → \"bye\""), "{why}");
    sandbox.write("flow.yaml", FLOW.replace("cat work/a0", "cat  work/a0"));
    let why = finish(sandbox.dvrun().args(["why", "b"])).ok().says("command ");
    assert!(!why.stdout.contains("needs.") && !why.stdout.contains("params"), "{why}");
    std::fs::remove_file(sandbox.work().join("work/other")).unwrap();
    finish(sandbox.dvrun().args(["why", "other"])).ok().says("an output is gone");
    finish(sandbox.dvrun().args(["hold"])).exits(2);
}

#[test]
fn a_run_in_the_background_is_waited_for_and_seen() {
    let sandbox = Sandbox::new();
    let file = sandbox.write(
        "flow.yaml",
        "version: 1\nname: flow\ndefaults: {image: none}\nstages:\n  a:\n    resources: {memory: 32G, cpus: 1}\n    outputs: [work/a]\n    \
         run: \"while [ ! -e work/open ]; do sleep 0.1; done; echo >work/a\"\n"
            .replace("32G", "1G"),
    );
    finish(sandbox.dvrun().args(["run", "--detach"]).arg(&file))
        .ok()
        .complains("goes on in process");
    finish(sandbox.dvrun().arg("run").arg(&file))
        .exits(2)
        .complains("another dvrun is running");
    finish(sandbox.dvrun().arg("status")).ok().says("active");
    sandbox.write("work/open", "");
    finish(sandbox.dvrun().arg("wait")).ok().says("done");
    assert!(sandbox.read(".dvrun/detached.log").contains("ok"));
    let used = finish(sandbox.dvrun().arg("efficiency")).ok().says("of 1G");
    assert!(used.stdout.contains("a: resources: {memory: 64M} would be enough"), "{used}");
    // Over before it began: said as though it had not been in the background.
    finish(sandbox.dvrun().args(["run", "--detach"]).arg(&file))
        .ok()
        .complains("nothing to run");
    finish(sandbox.dvrun().args(["run", "--detach", "no.yaml"])).exits(2);
    sandbox.write("flow.yaml", "version: 1\nname: flow\nstages:\n  a: {image: none, run: exit 7}\n");
    finish(sandbox.dvrun().args(["run", "--detach"]).arg(&file)).complains("");
    finish(sandbox.dvrun().arg("wait")).exits(1);
}

#[test]
fn what_an_earlier_run_made_has_its_logs() {
    let sandbox = Sandbox::new();
    let file = sandbox.write(
        "flow.yaml",
        FLOW.replace("echo >>work/b.starts", "echo made in the first run; echo >>work/b.starts"),
    );
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    std::fs::remove_file(sandbox.work().join("work/other")).unwrap();
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    assert_eq!(flow(&sandbox), [3, 1, 2]);
    finish(sandbox.dvrun().args(["logs", "b"])).ok().says("made in the first run");
    finish(sandbox.dvrun().args(["explain", "b"])).ok().says("| made in the first run");
    let first = RunDir::list(&sandbox.work()).unwrap().remove(0);
    std::fs::rename(first.path(), sandbox.work().join("away")).unwrap();
    let gone = finish(sandbox.dvrun().args(["logs", "b"])).ok();
    assert_eq!(gone.stdout, "");
    gone.complains("1 task ran in an earlier run that is gone");
    // The run itself has what it did itself.
    let again = finish(sandbox.dvrun().args(["logs", "other"])).ok();
    assert_eq!(again.stderr, "");
}

#[test]
fn what_would_be_enough_is_a_patch_that_applies() {
    let sandbox = Sandbox::new();
    let flow = "version: 1\nname: flow\nparams: {size: 8G}\ndefaults: {image: none}\nstages:\n  a:\n    resources: {memory: 1G, \
                time: \"24:00:00\"}  # a guess\n    run: [\"true\"]\n  b:\n    run: [\"true\"]\n    resources:\n      memory: ${{ params.size }}\n";
    let file = sandbox.write("flow.yaml", flow.replace("8G", "1G"));
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    let patch = finish(sandbox.dvrun().args(["efficiency", "--patch"])).ok();
    let patch = patch.complains("stage `b`: `memory` is left: it is computed").stdout;
    assert!(patch.starts_with("--- a/flow.yaml\n+++ b/flow.yaml\n@@ "), "{patch}");
    let diff = sandbox.write("change.diff", &patch);
    finish(
        std::process::Command::new("git")
            .arg("apply")
            .arg(&diff)
            .current_dir(sandbox.work()),
    )
    .ok();
    let changed = flow
        .replace("8G", "1G")
        .replace("{memory: 1G, time: \"24:00:00\"}", "{memory: 64M, time: 10m}");
    assert_eq!(sandbox.read("flow.yaml"), changed);
    // Resources make nothing run again; and what has changed since is not changed back.
    finish(sandbox.dvrun().arg("run").arg(&file)).ok().complains("nothing to run");
    let again = finish(sandbox.dvrun().args(["efficiency", "--patch"])).ok();
    assert_eq!(again.stdout, "");
    again.complains("stage `a` is left: the file does not ask for what the run had");
    std::fs::remove_file(&file).unwrap();
    finish(sandbox.dvrun().args(["efficiency", "--patch"])).exits(2);
}

#[test]
fn an_allocation_is_the_budget() {
    let sandbox = Sandbox::new();
    let flow = "version: 1\nname: flow\ndefaults: {image: none, resources: {memory: 200M}}\nstages:\n  a: {run: \"true\"}\n";
    let file = sandbox.write("flow.yaml", flow);
    let inside = |memory: &str| {
        let mut command = sandbox.dvrun();
        command
            .arg("run")
            .arg(&file)
            .envs([("SLURM_JOB_ID", "1"), ("SLURM_CPUS_ON_NODE", "1"), ("SLURM_MEM_PER_NODE", memory)]);
        command
    };
    finish(&mut inside("100"))
        .exits(3)
        .complains("asks for 200M of memory, and this machine has 100M");
    finish(&mut inside("300")).ok();
}

#[test]
fn a_task_reads_its_part_of_the_plan() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("flow.yaml", FLOW);
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
    let (whole, b) = (run.plan().unwrap(), StageName("b".into()));
    let part = run.plan_of(&b).unwrap();
    assert_eq!(part.stages.keys().map(|name| name.0.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        serde_json::to_value(&part.stages[&b]).unwrap(),
        serde_json::to_value(&whole.stages[&b]).unwrap()
    );
    assert_eq!((&part.params, &part.dir), (&whole.params, &whole.dir));
    let path = run.path().join("plan.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"version\": 1", "\"version\": 99", 1)).unwrap();
    assert!(run.plan_of(&b).unwrap_err().to_string().contains("format 99"));
    std::fs::write(&path, &text[..text.len() - 9]).unwrap();
    assert!(run.plan_of(&b).is_err() && run.plan().is_err());
}

#[test]
fn a_run_is_watched_to_its_end() {
    let sandbox = Sandbox::new();
    let file = sandbox.write(
        "flow.yaml",
        "version: 1\nname: flow\ndefaults: {image: none}\nstages:\n  a: {run: 'touch begun; while [ ! -e work/open ]; do sleep 0.1; done', outputs: [work]}\n  \
         b: {needs: [a], run: 'exit 4'}\n  c: {needs: [b], array: 50, run: 'true'}\n"
            .replace("outputs: [work]", "outputs: [\"work/*\"]"),
    );
    finish(sandbox.dvrun().args(["run", "--detach"]).arg(&file)).ok();
    let watching = Running::start(sandbox.dvrun().args(["status", "--watch"]));
    // Outputs of earlier runs are removed before it begins.
    wait_until("the task has begun", Duration::from_secs(60), || {
        sandbox.work().join("begun").exists()
    });
    sandbox.write("work/open", "");
    let seen = watching.finish().exits(1);
    let last = seen.stdout.rsplit("flow (run ").next().unwrap_or_default();
    assert!(last.contains("): failed\n") && last.contains("b: failed: exit status 4"), "{seen}");
    // What never ran is one line, with its cause.
    assert_eq!(last.matches("did not end well").count(), 1, "{seen}");
    assert!(!last.contains("c/0"), "{seen}");
    assert_eq!(
        finish(sandbox.dvrun().args(["status", "--watch"]))
            .exits(1)
            .stdout
            .matches("flow (run ")
            .count(),
        1
    );
}
