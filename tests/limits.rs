//! What holds a task on this machine to its resources, and what is told of what it used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dvrun::state::{Outcome, Record, RunDir};
use dvrun::workflow::StageName;

use crate::support::{Sandbox, as_root, assert_ordinary_user, checkout, finish, lane};

/// A stage with these resources that runs `script` in the quickstart's image.
fn flow(script: &str, resources: &str) -> String {
    let image = checkout().join("workflows/quickstart/image");
    format!(
        "version: 1\nname: flow\nimages: {{toolbox: \"oci:{}:1.0\"}}\nstages:\n  a:\n    image: toolbox\n    outputs: [work/a]\n    \
         resources: {resources}\n    run: |\n      {script}\n",
        image.display()
    )
}

fn record(sandbox: &Sandbox) -> Record {
    let run = RunDir::latest(&sandbox.work()).unwrap().unwrap();
    run.records(&StageName("a".into())).read_one(0).unwrap().unwrap()
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
    let sandbox = Sandbox::new();
    // One block of 1,200 MiB, more than a process may reserve beside its 64; the program is told that there is no memory for it.
    let script = "dd if=/dev/zero bs=1200M count=1 2>work/log | wc -c >work/a; grep -q '1+0 records out' work/log";
    let file = sandbox.write("flow.yaml", flow(script, "{cpus: 1, memory: 64M}"));
    finish(sandbox.dvrun().arg("run").arg(&file)).exits(1);
    assert!(matches!(record(&sandbox).outcome, Outcome::Failed { .. } | Outcome::OutOfMemory));
    let file = sandbox.write("flow.yaml", flow(script, "{cpus: 1, memory: 600M}"));
    finish(sandbox.dvrun().arg("run").arg(&file)).ok();
    assert_eq!(sandbox.read("work/a"), "1258291200\n");
}

/// Control groups of version 1 that an ordinary user may divide; gone when dropped.
struct Delegated {
    folders: Vec<PathBuf>,
}

impl Delegated {
    fn to(user: &str) -> Delegated {
        let trees = ["memory", "cpu"].map(|tree| Path::new("/sys/fs/cgroup").join(tree));
        let folders: Vec<PathBuf> = trees
            .iter()
            .map(|tree| tree.join(format!("dvrun-test-{}", std::process::id())))
            .collect();
        for folder in &folders {
            fs::create_dir(folder).expect("root may make groups");
            for file in ["", "cgroup.procs", "tasks"] {
                finish(Command::new("chown").arg(user).arg(folder.join(file))).ok();
            }
        }
        Delegated { folders }
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for folder in &self.folders {
            if let Err(error) = fs::remove_dir(folder) {
                eprintln!("{} is left behind: {error}", folder.display());
            }
        }
    }
}

/// A program that allocates more than it asked for is killed by the kernel, and that is told apart from another kill.
#[test]
fn a_delegated_group_holds_a_task_to_its_memory_as_root() {
    if !as_root()
        || !lane(
            "control groups of version 1",
            Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists(),
        )
    {
        return;
    }
    const USER: &str = "4321";
    let delegated = Delegated::to(USER);
    let sandbox = Sandbox::new();
    finish(Command::new("chmod").args(["-R", "a+rwX"]).arg(sandbox.path())).ok();
    let mine = delegated
        .folders
        .iter()
        .map(|folder| format!("echo $$ >{}/cgroup.procs", folder.display()));
    let enter = mine.collect::<Vec<_>>().join(" && ");
    let start = |script: &str| {
        let file = sandbox.write("flow.yaml", flow(script, "{cpus: 1, memory: 64M}"));
        finish(Command::new("chmod").args(["-R", "a+rwX"]).arg(sandbox.work())).ok();
        let dvrun = sandbox.dvrun();
        let mut command = Command::new("sh");
        let drop = format!("{enter} && exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"");
        command
            .args(["-c", &drop, "sh"])
            .arg(dvrun.get_program())
            .args(dvrun.get_args())
            .arg("run")
            .arg(&file);
        command.current_dir(sandbox.work());
        for (name, value) in dvrun.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        finish(&mut command)
    };
    let hungry = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo \"$x\" | wc -c >work/a";
    start(hungry).exits(1);
    let told = record(&sandbox);
    assert_eq!(told.outcome, Outcome::OutOfMemory, "{told:?}");
    assert!(told.message.contains("killed for want of memory (it asked for 64M)"), "{told:?}");
    start("kill -9 $$").exits(1);
    assert_eq!(record(&sandbox).outcome, Outcome::Failed { exit: 137 });
    start("cat /sys/fs/cgroup/memory/memory.limit_in_bytes >/dev/null 2>&1 || true; echo >work/a").ok();
    for folder in &delegated.folders {
        let left = fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_dir());
        assert_eq!(left.count(), 0, "groups are left in {}", folder.display());
    }
}
