//! Exact words and exit codes.

use std::fs;

use crate::support::{Sandbox, checkout, finish};

const GOOD: &str = "\
version: 1
name: small
params: {word: hello}
stages:
  greet: {image: none, run: 'echo ${{ params.word }} > greeting.txt', outputs: [greeting.txt]}
  count: {image: none, needs: [greet], run: 'wc -c < greeting.txt > count.txt; echo counted', outputs: [count.txt]}
";

/// Arguments, exit code, standard output, standard error. `~` stands for the sandbox.
const TABLE: &[(&[&str], i32, &str, &str)] = &[
    (&["validate", "good.yaml"], 0, "good.yaml: 2 stages, 2 tasks, no mistakes\n", ""),
    (&["validate", "good.yaml", "--quiet"], 0, "", ""),
    (
        &["validate", "good.yaml", "--json"],
        0,
        "{\"valid\":true,\"name\":\"small\",\"stages\":2}\n",
        "",
    ),
    (
        &["validate", "good.yaml", "--set", "wrod=x"],
        2,
        "",
        "error: the workflow has no parameter `wrod`; did you mean `word`?\ngood.yaml: 1 mistake\n",
    ),
    (
        &["validate", "good.yaml", "--set", "word"],
        2,
        "",
        "error: --set takes KEY=VALUE, not `word`\n",
    ),
    (
        &["validate", "bad.yaml"],
        2,
        "",
        "error: unknown stage `aa`\n --> bad.yaml:5:31\n  |\n5 |   b: {image: none, needs: [a, aa], run: 'true'}\n  |                               ^^\n  |\n  = help: did you mean `a`?\n\nbad.yaml: 1 mistake\n",
    ),
    (
        &["validate", "nothere.yaml"],
        2,
        "",
        "error: cannot read nothere.yaml: No such file or directory (os error 2)\n  hint: name the workflow file: dvrun run pipeline.yaml\n",
    ),
    (
        &["plan", "good.yaml"],
        0,
        "small: 2 stages, 2 tasks to run\n  greet  1 task           never ran\n  count  1 task           never ran\n",
        "",
    ),
    (
        &["plan", "good.yaml", "--only", "grete"],
        2,
        "",
        "error: the workflow has no stage `grete`\n  hint: did you mean `greet`?\n",
    ),
    (
        &["run", "good.yaml", "--only", "count"],
        2,
        "",
        "error: stage `count` needs `greet`, which is left out and has not finished as it now is\n  hint: run `greet` too\n",
    ),
    (
        &["status"],
        2,
        "",
        "error: no run here: neither ~/work nor a folder above it has a .dvrun folder\n  hint: go to the workflow's folder, or name the run: its path is WORKFLOW_FOLDER/.dvrun/runs/ID\n",
    ),
    (
        &["--profile", "site", "plan", "good.yaml"],
        2,
        "",
        "error: the configuration has no profile `site`\n  hint: it has none: add `profiles:`\n",
    ),
    (
        &["--config", "nothere.yaml", "plan", "good.yaml"],
        2,
        "",
        "error: there is no configuration file nothere.yaml\n",
    ),
    (&["image", "ls"], 0, "", ""),
    (&["image", "ls", "--json"], 0, "[]\n", ""),
    (
        &["image", "rm", "docker://debian:12"],
        2,
        "",
        "error: there is no image docker://debian:12 in the store\n  hint: `dvrun image ls` lists what is there, `dvrun pull` fetches\n",
    ),
    (&["fetch", "good.yaml", "--json"], 0, "{\"images\":{},\"data\":{}}\n", ""),
];

#[test]
fn commands_say_exactly_this() {
    let sandbox = Sandbox::new();
    sandbox.write("good.yaml", GOOD);
    sandbox.write(
        "bad.yaml",
        "version: 1\nname: bad\nstages:\n  a: {image: none, run: 'true'}\n  b: {image: none, needs: [a, aa], run: 'true'}\n",
    );
    let root = sandbox.path().display().to_string();
    for (arguments, code, stdout, stderr) in TABLE {
        let mut command = sandbox.dvrun();
        if arguments[0] == "--config" {
            // Of the same option, given once.
            command = crate::support::dvrun();
            command.current_dir(sandbox.work()).env("HOME", sandbox.home());
        }
        let ended = finish(command.args(*arguments)).exits(*code);
        let here = |text: &str| text.replace(&root, "~");
        assert_eq!(here(&ended.stdout), *stdout, "standard output of {arguments:?}{ended:#}");
        assert_eq!(here(&ended.stderr), *stderr, "standard error of {arguments:?}{ended:#}");
    }
    assert!(!sandbox.work().join(".dvrun/runs").exists(), "nothing ran");
}

#[test]
fn the_version_is_the_packages() {
    let package = fs::read_to_string(checkout().join("Cargo.toml")).expect("the checkout is readable");
    let line = package.lines().find_map(|line| line.strip_prefix("version = "));
    let version = line.expect("a package has a version").trim_matches('"');
    let ended = finish(Sandbox::new().dvrun().arg("--version")).ok();
    assert_eq!((ended.stdout, ended.stderr), (format!("dvrun {version}\n"), String::new()));
}

#[test]
fn usage_errors_are_2_and_help_is_0() {
    let sandbox = Sandbox::new();
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["run"],
        &["run", "x.yaml", "--jobs", "0"],
        &["run", "x.yaml", "--nosuch"],
        &["completions", "nosh"],
    ] {
        let ended = finish(sandbox.dvrun().args(arguments)).exits(2);
        assert_eq!(ended.stdout, "", "{ended:#}");
        assert!(!ended.stderr.is_empty());
    }
    for command in [
        "validate",
        "plan",
        "fetch",
        "run",
        "submit",
        "status",
        "logs",
        "cancel",
        "pull",
        "inspect",
        "exec",
        "run-app",
        "shell",
        "doctor",
        "apps",
        "image",
        "completions",
        "man",
    ] {
        let ended = finish(sandbox.dvrun().args([command, "--help"])).ok();
        assert_eq!(ended.stderr, "");
        assert!(ended.stdout.contains("Example"), "{command} --help has no example{ended:#}");
    }
}

#[test]
fn json_is_all_that_is_on_standard_output() {
    let sandbox = Sandbox::new();
    sandbox.write("good.yaml", GOOD);
    let json = |arguments: &[&str]| finish(sandbox.dvrun().args(arguments).arg("--json")).json();
    assert_eq!(json(&["plan", "good.yaml", "--scripts"])["stages"][1]["todo"], 1);
    let ran = json(&["run", "good.yaml"]);
    assert_eq!((&ran["state"], &ran["ok"]), (&"done".into(), &2.into()));
    let again = json(&["run", "good.yaml"]);
    assert_eq!(
        (&again["state"], &again["ok"], &again["failed"]),
        (&"done".into(), &0.into(), &0.into())
    );
    assert_eq!(json(&["status"])["state"], "done");
    assert_eq!(json(&["image", "df"])["places"]["images"]["files"], 0);
    assert_eq!(json(&["image", "prune"])["files"], 0);
}

#[test]
fn quiet_says_nothing_where_all_is_well() {
    let sandbox = Sandbox::new();
    sandbox.write("good.yaml", GOOD);
    for arguments in [["run", "good.yaml"], ["run", "good.yaml"], ["fetch", "good.yaml"]] {
        let ended = finish(sandbox.dvrun().args(arguments).arg("--quiet")).ok();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""), "{ended:#}");
    }
    sandbox.write("good.yaml", GOOD.replace("wc -c", "nosuch -c"));
    let ended = finish(sandbox.dvrun().args(["run", "good.yaml", "-q"])).exits(1);
    ended.complains("count").complains("127").complains("log: .dvrun/runs/");
}
