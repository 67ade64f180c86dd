//! One shard fails: what is said, what does not run, and what runs the next time.

use super::Where;
use super::counting::{Counting, MERGED};
use crate::support::{assert_ordinary_user, finish, slurm};

#[test]
fn a_failing_shard_here() {
    assert_ordinary_user();
    a_failing_shard(Where::Here);
}

#[test]
fn a_failing_shard_on_slurm() {
    assert_ordinary_user();
    if slurm().is_some() {
        a_failing_shard(Where::Slurm);
    }
}

fn a_failing_shard(place: Where) {
    let pipeline = Counting::new();
    pipeline.set("fail");
    finish(&mut pipeline.start(place)).exits(1);
    assert_eq!(pipeline.all_runs(), [1, 1, 1, 1, 1, 0], "each shard once, and nothing downstream");

    let status = finish(&mut pipeline.dvrun(&["status"]));
    let named = status
        .stdout
        .lines()
        .filter(|line| line.contains("call/2"))
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        named.contains("exit status 3"),
        "status does not name the task with its exit code{status}"
    );
    assert!(status.stdout.contains("logs/call/2.err"), "status does not name the log{status}");
    let json = finish(&mut pipeline.dvrun(&["status", "--json"])).json().to_string();
    assert!(json.contains("\"call\"") && json.contains("logs/call/2.err"), "{json}");
    finish(&mut pipeline.dvrun(&["logs", "call/2", "--stderr"]))
        .ok()
        .says("shard 2 cannot");
    finish(&mut pipeline.dvrun(&["logs", "call/7"])).exits(2);

    pipeline.unset("fail");
    finish(&mut pipeline.start(place)).ok();
    assert_eq!(
        pipeline.all_runs(),
        [1, 1, 1, 2, 1, 1],
        "the failed shard and what follows, and nothing else"
    );
    assert_eq!(pipeline.merged(), MERGED);
    finish(&mut pipeline.start(place)).ok();
    assert_eq!(pipeline.all_runs(), [1, 1, 1, 2, 1, 1], "a finished workflow runs nothing");
}

#[test]
fn a_mended_command_runs_its_stage_and_what_follows_again() {
    assert_ordinary_user();
    let pipeline = Counting::new();
    finish(&mut pipeline.start(Where::Here)).ok();
    let text = pipeline.sandbox.read("counting/pipeline.yaml");
    pipeline
        .sandbox
        .write("counting/pipeline.yaml", text.replace("echo \"$(cat", "echo \"my $(cat"));
    finish(&mut pipeline.start(Where::Here)).ok();
    assert_eq!(
        pipeline.all_runs(),
        [1, 2, 2, 2, 2, 2],
        "all shards and the merge, and not the first stage"
    );
    assert_eq!(pipeline.merged(), MERGED.replace("shard", "my shard"));
}
