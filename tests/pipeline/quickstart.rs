//! The first of the README's two commands.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Where;
use crate::support::{Sandbox, assert_ordinary_user, checkout, finish, slurm};

pub const ANSWER: &str = "\
called 16
shared 15
only called 1
only truth 1
sha256 87adaf7032b1f5d2bc02432867fed587408d13ccc3210a53be87cfaa107e2474
";

#[test]
fn the_answer_is_right_and_the_second_run_runs_nothing() {
    assert_ordinary_user();
    twice(Where::Here);
}

#[test]
fn on_slurm_it_is_the_same() {
    assert_ordinary_user();
    if slurm().is_some() {
        twice(Where::Slurm);
    }
}

fn twice(place: Where) {
    let sandbox = Sandbox::new();
    let folder = sandbox.copy(&checkout().join("workflows/quickstart"), "quickstart");
    let call = || finish(sandbox.dvrun().args(place.command()).arg("quickstart/pipeline.yaml")).ok();
    call();
    assert_eq!(sandbox.read("quickstart/work/report.txt"), ANSWER);
    let before = snapshot(&folder.join("work"));
    call();
    assert_eq!(snapshot(&folder.join("work")), before, "the second run touched a file");
}

#[test]
fn the_answer_does_not_depend_on_the_number_of_shards() {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    for shards in [1, 3, 7] {
        let name = format!("in-{shards}");
        sandbox.copy(&checkout().join("workflows/quickstart"), &name);
        let file = format!("{name}/pipeline.yaml");
        finish(sandbox.dvrun().args(["run", &file, "--set", &format!("shards={shards}")])).ok();
        assert_eq!(sandbox.read(&format!("{name}/work/report.txt")), ANSWER, "{shards} shards");
    }
}

#[test]
fn wrong_data_stop_it_before_anything_runs() {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    let folder = sandbox.copy(&checkout().join("workflows/quickstart"), "quickstart");
    let reads = folder.join("data/reads.sam");
    let text = fs::read_to_string(&reads).expect("it was just copied");
    fs::write(&reads, text.replacen("\t60\t", "\t61\t", 1)).expect("the sandbox is writable");
    let ended = finish(sandbox.dvrun().args(["run", "quickstart/pipeline.yaml"])).exits(3);
    ended
        .complains("reads.sam")
        .complains("f3e41f6facd6f9f6e8a202b24070add8490e6db37a53de9c6b2584ceb9ca8e87");
    assert!(!folder.join("work/reference.txt").exists(), "a stage ran");
}

/// Name → inode and time of change: what is equal was not written again.
pub fn snapshot(folder: &Path) -> BTreeMap<String, (u64, i64, i64)> {
    let entries = fs::read_dir(folder)
        .expect("the run made the folder")
        .map(|entry| entry.expect("it is readable"));
    entries
        .map(|entry| {
            let meta = entry.metadata().expect("nobody removes it");
            let name = entry.file_name().into_string().expect("names are text");
            (name, (meta.ino(), meta.ctime(), meta.ctime_nsec()))
        })
        .collect()
}
