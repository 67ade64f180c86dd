//! What holds a task on this machine to its resources, and what is told of what it used.

mod delegated;

use dvrun::state::{Outcome, Record, RunDir};
use dvrun::workflow::StageName;

use crate::support::{Sandbox, assert_ordinary_user, checkout, finish, lane};

/// A stage with these resources that runs `script` in the quickstart's image.
fn flow(script: &str, resources: &str) -> String {
    stage("outputs: [work/a]", script, resources)
}

/// With `outputs` and whatever else it declares.
fn stage(declared: &str, script: &str, resources: &str) -> String {
    let image = checkout().join("workflows/quickstart/image");
    format!(
        "version: 1\nname: flow\nimages: {{toolbox: \"oci:{}:1.0\"}}\nstages:\n  a:\n    image: toolbox\n    {declared}\n    \
         resources: {resources}\n    run: |\n      {script}\n",
        image.display()
    )
}

fn record(sandbox: &Sandbox) -> Record {
    record_of(sandbox, 0)
}

fn record_of(sandbox: &Sandbox, index: u32) -> Record {
    let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
    run.records(&StageName("a".into())).read_one(index).unwrap().unwrap()
}

#[test]
fn bytes_read_and_written_are_in_the_record_and_told() {
    assert_ordinary_user();
    let sandbox = Sandbox::new();
    let script = "head -c 5000000 /dev/zero >work/a; cat work/a >/tmp/again";
    let file = sandbox.write("flow.yaml", flow(script, "{cpus: 1, memory: 100M}"));
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    let record = record(&sandbox);
    for bytes in [record.read, record.written] {
        assert!((10_000_000..12_000_000).contains(&bytes.unwrap()), "{record:?}");
    }
    finish(sandbox.dvrun().args(["explain", "a"])).ok().says("9.5").says(" read, ");
    let told = finish(sandbox.dvrun().args(["efficiency", "--json"])).ok().json();
    assert_eq!(told[0]["written_sum"].as_u64(), record.written);
}

#[test]
fn memory_is_limited_for_each_process_where_there_is_no_group_to_be_had() {
    assert_ordinary_user();
    if !lane("a place where this user may make no control group", !delegated::here()) {
        return;
    }
    let sandbox = Sandbox::new();
    // One block of 1,200 MiB, more than a process may reserve beside its 64; the program is told that there is no memory for it.
    let script = "dd if=/dev/zero of=/dev/null bs=1200M count=1 2>work/a; grep -q '1+0 records out' work/a";
    let file = sandbox.write("flow.yaml", flow(script, "{cpus: 1, memory: 64M}"));
    finish(sandbox.dvrun().arg("run").arg(&file)).exits(1);
    assert!(matches!(record(&sandbox).outcome, Outcome::Failed { .. } | Outcome::OutOfMemory));
    let file = sandbox.write("flow.yaml", flow(script, "{cpus: 1, memory: 600M}"));
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
}
