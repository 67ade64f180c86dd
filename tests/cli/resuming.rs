//! What is done is not done again, and what is not as it should be is.

use std::fs;

use serde_json::json;

use crate::support::{Sandbox, finish};

fn chain(prefix: &str, word: &str) -> String {
    format!(
        "version: 1\nname: {prefix}\nstages:\n  one: {{image: none, run: 'echo {word} > {prefix}1', outputs: [{prefix}1]}}\n  two: {{image: none, needs: [one], run: 'cat {prefix}1 > {prefix}2', outputs: [{prefix}2]}}\n  three: {{image: none, needs: [two], run: 'cat {prefix}2 > {prefix}3', outputs: [{prefix}3]}}\n"
    )
}

/// `done` and reasons to run, a word a stage.
#[track_caller]
fn plan(sandbox: &Sandbox, arguments: &[&str]) -> Vec<String> {
    let plan = finish(sandbox.dvrun().arg("plan").args(arguments).arg("--json")).ok().json();
    let stages = plan["stages"].as_array().expect("a plan has stages").clone();
    stages
        .iter()
        .map(|stage| stage["reason"].as_str().expect("each has a reason").to_owned())
        .collect()
}

#[test]
fn parts_add_up_to_the_whole() {
    let sandbox = Sandbox::new();
    sandbox.write("a.yaml", chain("a", "x"));
    let run = |arguments: &[&str]| finish(sandbox.dvrun().args(["run", "a.yaml"]).args(arguments));
    run(&["--until", "one"]).ok();
    let status = finish(sandbox.dvrun().args(["status", "--json"])).ok().json();
    let counts = |stage: &str| status["stages"][stage]["counts"].clone();
    assert_eq!([counts("one"), counts("two")], [json!({"ok": 1}), json!({"not_selected": 1})]);
    run(&["--only", "three"]).exits(2).complains("stage `three` needs `two`");
    run(&["--until", "two"]).ok();
    assert_eq!(plan(&sandbox, &["a.yaml"]), ["done", "done", "never ran"]);
    run(&["--only", "three"]).ok();
    assert_eq!(plan(&sandbox, &["a.yaml"]), ["done"; 3]);
}

#[test]
fn a_stage_is_not_run_on_what_an_older_file_made() {
    let sandbox = Sandbox::new();
    sandbox.write("a.yaml", chain("a", "x"));
    finish(sandbox.dvrun().args(["run", "a.yaml"])).ok();
    sandbox.write("a.yaml", chain("a", "y"));
    let only = finish(sandbox.dvrun().args(["run", "a.yaml", "--only", "three"])).exits(2);
    only.complains("stage `three` needs `two`, which is left out and has not finished as it now is");
    finish(sandbox.dvrun().args(["run", "a.yaml"])).ok();
    assert_eq!(sandbox.read("a3"), "y\n");
}

#[test]
fn two_files_of_one_folder_do_not_undo_each_other_unless_they_do() {
    let sandbox = Sandbox::new();
    sandbox.write("a.yaml", chain("a", "x"));
    sandbox.write("b.yaml", chain("b", "y"));
    let run = |file: &str| finish(sandbox.dvrun().args(["run", file])).ok();
    run("a.yaml");
    run("b.yaml");
    assert_eq!(plan(&sandbox, &["a.yaml"]), ["done"; 3]);
    assert_eq!(plan(&sandbox, &["b.yaml"]), ["done"; 3]);
    // The same stages of another file, into the same places.
    sandbox.write("c.yaml", chain("a", "z"));
    run("c.yaml");
    assert_eq!(sandbox.read("a3"), "z\n");
    assert_eq!(plan(&sandbox, &["b.yaml"]), ["done"; 3]);
    run("a.yaml");
    assert_eq!(sandbox.read("a3"), "x\n");
}

#[test]
fn a_copied_folder_is_looked_at_where_it_is() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("first/a.yaml", chain("a", "x"));
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    let copy = sandbox.copy(&sandbox.work().join("first"), "second");
    assert_eq!(plan(&sandbox, &["second/a.yaml"]), ["done"; 3]);
    fs::remove_file(copy.join("a3")).expect("it was copied");
    let reasons = plan(&sandbox, &["second/a.yaml"]);
    assert_eq!(reasons[..2], ["done", "done"]);
    assert!(reasons[2].ends_with("second/a3"), "{reasons:?}");
}

#[test]
fn what_a_stage_on_the_host_leaves_in_the_background_ends_with_it() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "a.yaml",
        "version: 1\nname: a\nstages:\n  s: {image: none, run: 'sleep 1000 & echo $! > pid', outputs: [pid]}\n",
    );
    finish(sandbox.dvrun().args(["run", "a.yaml"])).ok();
    let pid = sandbox.read("pid");
    let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // Gone, or dead and not yet collected by init.
    assert!(state.is_empty() || state.contains(") Z ") || state.contains(") X "), "{state}");
}

#[test]
fn mistakes_that_only_the_place_shows_are_told_before_anything_runs() {
    crate::support::assert_ordinary_user();
    let sandbox = Sandbox::new();
    sandbox.copy(&crate::support::checkout().join("workflows/quickstart/image"), "image");
    sandbox.write(
        "x.yaml",
        "version: 1\nname: x\nimages: {t: 'oci:image:1.0'}\ndefaults: {image: t}\nstages:\n  first: {run: 'echo > made/1', image: none, outputs: [made/1]}\n  fine: {needs: [first], run: [busybox, cat, /one], binds: ['./made/1:/one', {source: ./perhaps, target: /p, optional: true}]}\n  bind: {run: 'true', binds: ['./no:/no']}\n  program: {run: [bussybox, uname]}\n  path: {run: [/bin/busybos]}\n  bound: {run: [/own/tool], binds: ['./image:/own']}\n  app: {app: cal}\n",
    );
    let ended = finish(sandbox.dvrun().args(["run", "x.yaml", "-q"])).exits(2);
    let no = sandbox.work().join("no");
    let expected = format!(
        "error: stage `bind`: the bind source {} does not exist\n  hint: declare it as `data`, or as the output of a stage that is needed, or make the bind `optional`\nerror: stage `program`: the image has no program `bussybox` (looked in /bin)\n  hint: did you mean `busybox`?\nerror: stage `path`: the image has no program `/bin/busybos` (looked in /bin/busybos)\n  hint: did you mean `/bin/busybox`?\nerror: stage `app`: the image has no app `cal` (it has call, evaluate)\n  hint: did you mean `call`?\n",
        no.display()
    );
    assert_eq!(ended.stderr, expected, "{ended:#}");
    assert!(!sandbox.work().join(".dvrun/runs").exists() && !sandbox.work().join("made").exists());
}
