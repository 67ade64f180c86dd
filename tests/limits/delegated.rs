//! Control groups that an ordinary user may divide, of the version that this machine has. Root makes them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dvrun::state::Outcome;

use super::{flow, record, record_of, stage};
use crate::support::{Finished, Running, Sandbox, as_root, finish, lane, wait_until};

const USER: &str = "4321";
const ALL: &str = "/sys/fs/cgroup";

/// In a task: what its own group says, a line each; and then it is in the group's folder.
const LIMITS: &str = "\
g=$(sed -n s/^0:://p /proc/self/cgroup); if [ -e /sys/fs/cgroup/cgroup.controllers ]; then \
cd /sys/fs/cgroup$g; cat memory.max memory.swap.max cpu.max; else \
cd /sys/fs/cgroup/memory$(sed -n s/.*:memory://p /proc/self/cgroup); cat memory.limit_in_bytes; echo 0; \
cd /sys/fs/cgroup/cpu$(sed -nE 's/.*:cpu(,cpuacct)?://p' /proc/self/cgroup); \
echo $(cat cpu.cfs_quota_us cpu.cfs_period_us); fi";

/// Where in a delegated group dvrun starts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    /// Alone in it (`systemd-run --user --scope -p Delegate=yes dvrun run`).
    Alone,
    /// In a group below, with the shell that started it (a terminal on a desktop).
    Below,
}

/// Gone when dropped.
struct Delegated {
    folders: Vec<PathBuf>,
    start: Start,
    sandbox: Sandbox,
}

impl Delegated {
    /// One for each way to start. Nothing where this test is not root's.
    fn all() -> Vec<Delegated> {
        if !as_root() {
            return Vec::new();
        }
        // Version 2 hands on what the root does. The file is not to be made where there is none.
        let control = File::options().write(true).open(Path::new(ALL).join("cgroup.subtree_control"));
        let two = control.and_then(|mut control| control.write_all(b"+memory +cpu")).is_ok();
        let one = Path::new(ALL).join("memory/cgroup.procs").exists();
        if !lane("control groups that root may divide", one || two) {
            return Vec::new();
        }
        // Version 1 has a group within a group whatever is in that.
        let starts: &[Start] = if two { &[Start::Alone, Start::Below] } else { &[Start::Alone] };
        let trees: &[&str] = if two { &["."] } else { &["memory", "cpu"] };
        starts.iter().map(|&start| Delegated::new(trees, start)).collect()
    }

    fn new(trees: &[&str], start: Start) -> Delegated {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("dvrun-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let folders: Vec<PathBuf> = trees.iter().map(|tree| Path::new(ALL).join(tree).join(&name)).collect();
        for folder in &folders {
            fs::create_dir(folder).expect("root may make groups");
            if start == Start::Below {
                fs::write(folder.join("cgroup.subtree_control"), "+memory +cpu").expect("the root hands them on");
                fs::create_dir(folder.join("shell")).expect("root may make groups");
            }
            let files = [
                "",
                "cgroup.procs",
                "tasks",
                "cgroup.threads",
                "cgroup.subtree_control",
                "shell",
                "shell/cgroup.procs",
            ];
            for file in files.iter().map(|file| folder.join(file)).filter(|file| file.exists()) {
                finish(Command::new("chown").arg(USER).arg(file)).ok();
            }
        }
        let sandbox = Sandbox::new();
        finish(Command::new("chmod").args(["-R", "a+rwX"]).arg(sandbox.path())).ok();
        Delegated { folders, start, sandbox }
    }

    /// `dvrun run` of a workflow.
    fn command(&self, workflow: &str) -> Command {
        let file = self.sandbox.write("flow.yaml", workflow);
        finish(Command::new("chmod").args(["-R", "a+rwX"]).arg(self.sandbox.work())).ok();
        let mut command = self.dvrun();
        command.arg("run").arg(&file);
        command
    }

    /// As the user, in the group.
    fn dvrun(&self) -> Command {
        let (inner, run) = match self.start {
            Start::Alone => ("", "exec setpriv"),
            Start::Below => ("shell/", "setpriv"),
        };
        let mut script = String::new();
        for folder in &self.folders {
            script += &format!("echo $$ >{}/{inner}cgroup.procs && ", folder.display());
        }
        script += &format!("{run} --reuid {USER} --regid {USER} --clear-groups \"$@\"; exit $?");
        let dvrun = self.sandbox.dvrun();
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(dvrun.get_program()).args(dvrun.get_args());
        command.current_dir(self.sandbox.work());
        for (name, value) in dvrun.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        command
    }

    fn run(&self, workflow: &str) -> Finished {
        let ended = finish(&mut self.command(workflow));
        assert_eq!(self.groups(), Vec::<PathBuf>::new(), "groups are left{ended}");
        ended
    }

    /// Those that dvrun made.
    fn groups(&self) -> Vec<PathBuf> {
        let mut groups = Vec::new();
        for folder in &self.folders {
            let below = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
            groups.extend(below.filter(|path| path.is_dir() && !path.ends_with("shell")));
        }
        groups
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for folder in &self.folders {
            let shell = folder.join("shell");
            for folder in [shell.as_path(), folder].into_iter().filter(|folder| folder.exists()) {
                if let Err(error) = fs::remove_dir(folder) {
                    eprintln!("{} is left behind: {error}", folder.display());
                }
            }
        }
    }
}

/// Whether this user may make groups where these tests run, which then limit memory.
pub fn here() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let may_write = |folder: &Path| nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_ok();
    own.lines().any(|line| match line.split_once(":memory:/") {
        Some((_, own)) => may_write(&Path::new(ALL).join("memory").join(own)),
        None => line
            .strip_prefix("0::/")
            .is_some_and(|own| Path::new(own).ancestors().any(|above| may_write(&Path::new(ALL).join(above)))),
    })
}

/// A program that allocates more than it asked for is killed by the kernel, and that is told apart from another kill.
#[test]
fn a_delegated_group_holds_a_task_to_its_memory_as_root() {
    for delegated in Delegated::all() {
        let asked = |script: &str| flow(script, "{cpus: 1, memory: 64M}");
        let hungry = "dd if=/dev/zero of=/dev/null bs=100M count=1; echo >work/a";
        delegated.run(&asked(hungry)).exits(1);
        let told = record(&delegated.sandbox);
        assert_eq!(told.outcome, Outcome::OutOfMemory, "{told:?}");
        assert!(told.message.contains("killed for want of memory (it asked for 64M)"), "{told:?}");
        delegated.run(&asked("kill -9 $$")).exits(1);
        assert_eq!(record(&delegated.sandbox).outcome, Outcome::Failed { exit: 137 });
        // What is asked for can be had.
        let fed = "dd if=/dev/zero of=/dev/null bs=40M count=1; echo >work/a";
        delegated.run(&asked(fed)).ok();
        let told = record(&delegated.sandbox);
        assert!(
            (40 << 20..64 << 20).contains(&told.memory.unwrap()) && told.cpu.is_some(),
            "{told:?}"
        );
    }
}

#[test]
fn a_delegated_group_holds_a_task_to_its_cpus_as_root() {
    for delegated in Delegated::all() {
        // One processor has no more to give than that.
        let busy = match std::thread::available_parallelism() {
            Ok(count) if count.get() > 1 => "for i in 1 2 3; do (until grep -q '^nr_throttled [1-9]' cpu.stat; do :; done) & done; wait",
            _ => "true",
        };
        let asked = flow(&format!("({LIMITS}; {busy}) >work/a"), "{cpus: 1, memory: 64M}");
        delegated.run(&asked).ok();
        let limits = delegated.sandbox.read("work/a");
        assert_eq!(limits, "67108864\n0\n100000 100000\n");
        let told = record(&delegated.sandbox);
        assert!(told.cpu.is_some_and(|cpu| cpu > 0), "{told:?}");
        finish(delegated.dvrun().arg("doctor"))
            .says("ok    cgroups")
            .says("delegated to you: a task is held");
    }
}

#[test]
fn tasks_at_once_are_in_a_group_each_and_one_s_end_is_not_another_s_as_root() {
    for delegated in Delegated::all() {
        let script = "i=${{ array.index }}; touch work/here$i; until [ -e work/here0 ] && [ -e work/here1 ]; do sleep 0.1; done\n      \
                      if [ $i = 0 ]; then\n        dd if=/dev/zero of=/dev/null bs=100M count=1 || touch work/over; exit 7\n      fi\n      \
                      until [ -e work/over ]; do sleep 0.1; done; grep -o 'dvrun-[0-9-]*$' /proc/self/cgroup | sort -u >work/a$i";
        let ended = delegated
            .run(&stage(
                "array: 2\n    outputs: [\"work/a${{ array.index }}\"]",
                script,
                "{cpus: 1, memory: 64M}",
            ))
            .exits(1);
        let (hungry, other) = (record_of(&delegated.sandbox, 0), record_of(&delegated.sandbox, 1));
        assert_eq!(hungry.outcome, Outcome::OutOfMemory, "{hungry:?}{ended}");
        assert_eq!(other.outcome, Outcome::Ok, "{other:?}{ended}");
        assert_eq!(delegated.sandbox.read("work/a1"), format!("dvrun-{USER}-{}\n", other.pid));
        assert!(hungry.pid != other.pid);
    }
}

#[test]
fn the_groups_of_a_killed_run_are_removed_by_the_next_as_root() {
    for delegated in Delegated::all()
        .iter()
        .filter(|delegated| delegated.folders.len() > 1 || delegated.start == Start::Below)
    {
        let asked = |script: &str| flow(script, "{cpus: 1, memory: 64M}");
        let running = Running::start(&mut delegated.command(&asked("echo >work/a; sleep 600")));
        running.kill_when("the task runs", || delegated.sandbox.work().join("work/a").exists());
        let groups = delegated.groups();
        assert!(!groups.is_empty());
        // The kernel takes a moment to end what was in them.
        let is_empty = |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty());
        wait_until("all of it has ended", Duration::from_secs(60), || groups.iter().all(is_empty));
        delegated.run(&asked("echo >work/a")).ok();
    }
}
