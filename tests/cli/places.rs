//! Folders that the environment and the configuration name, or do not.

use std::fs;

use crate::support::{Sandbox, dvrun, finish};

const FILE: &str = "version: 1\nname: x\ndata:\n  d: {url: 'file:word', sha256: 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824}\nstages:\n  s: {image: none, run: 'cat ${{ data.d }}/word > out.txt', outputs: [out.txt]}\n";

#[test]
fn without_home_the_user_database_or_the_cache_is_enough() {
    let sandbox = Sandbox::new();
    sandbox.write("x.yaml", FILE);
    sandbox.write("word", "hello");
    let mut command = dvrun();
    command
        .current_dir(sandbox.work())
        .env_remove("HOME")
        .env("DVRUN_CACHE", sandbox.cache());
    finish(command.args(["run", "x.yaml"])).ok();
    assert_eq!(sandbox.read("out.txt"), "hello");
}

#[test]
fn relative_folders_are_relative_to_who_names_them() {
    let sandbox = Sandbox::new();
    sandbox.write("flow/x.yaml", FILE);
    sandbox.write("flow/word", "hello");
    sandbox.write("site/config.yaml", "cache: kept\nscratch: tmp\n");
    let run = |config: &str, cache: Option<&str>| {
        let mut command = dvrun();
        command
            .current_dir(sandbox.work())
            .env("HOME", sandbox.home())
            .env_remove("DVRUN_CACHE");
        command.envs(cache.map(|cache| ("DVRUN_CACHE", cache)));
        finish(command.args(["--config", config, "run", "flow/x.yaml", "--force", "s"])).ok();
        assert_eq!(sandbox.read("flow/out.txt"), "hello");
    };
    run("site/config.yaml", None);
    assert!(
        sandbox.work().join("site/kept/v1/data").is_dir(),
        "beside the configuration that says so"
    );
    run("site/config.yaml", Some("mine"));
    assert!(sandbox.work().join("mine/v1/data").is_dir(), "from where the command was given");
    assert!(!sandbox.home().join(".cache").exists());
}

#[test]
fn a_wrong_configuration_is_told_with_its_place_and_keeps_nobody_from_the_manual() {
    let sandbox = Sandbox::new();
    sandbox.write("x.yaml", FILE);
    sandbox.config("cache: /x\nmirorrs: {}\n");
    let ended = finish(sandbox.dvrun().args(["plan", "x.yaml"])).exits(2);
    ended
        .complains("config.yaml")
        .complains("line 2 column 1")
        .complains("unknown field `mirorrs`");
    finish(sandbox.dvrun().arg("man")).ok().says("dvrun");
    sandbox.config("tag_ttl: 3 parsecs\n");
    finish(sandbox.dvrun().args(["plan", "x.yaml"]))
        .exits(2)
        .complains("`3 parsecs` is not a time");
}

#[test]
fn a_task_is_told_where_its_own_tmp_could_not_be_made() {
    let sandbox = Sandbox::new();
    crate::support::assert_ordinary_user();
    sandbox.copy(&crate::support::checkout().join("workflows/quickstart/image"), "image");
    sandbox.write(
        "x.yaml",
        "version: 1\nname: x\nimages: {t: 'oci:image:1.0'}\nstages:\n  s: {image: t, run: 'true'}\n",
    );
    let nowhere = sandbox.path().join("nowhere");
    let ended = finish(sandbox.dvrun().env("TMPDIR", &nowhere).args(["run", "x.yaml"])).exits(1);
    ended
        .complains(&format!("cannot make or remove a private /tmp in {}", nowhere.display()))
        .complains("let TMPDIR, or `scratch` in the configuration, name a folder that you may write to");
    assert!(!nowhere.exists());
}

#[test]
fn names_with_spaces_quotes_and_lines_are_names() {
    let sandbox = Sandbox::new();
    let folder = "it's \"a\" folder\nof $HOME";
    let text = "version: 1\nname: x\nstages:\n  s:\n    image: none\n    run: [sh, -c, 'echo done > \"$1\"', sh, \"new\\nline é\\\"q'\"]\n    outputs: [\"new\\nline é\\\"q'\"]\n";
    let file = sandbox.write(&format!("{folder}/x.yaml"), text);
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    assert_eq!(sandbox.read(&format!("{folder}/new\nline é\"q'")), "done\n");
    let entries = fs::read_dir(sandbox.work()).expect("it is ours").count();
    assert_eq!(entries, 1, "nothing beside the workflow's folder");
}
