//! Signals, deaths, and what is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio as ProcessStdio};
use std::time::Duration;

use dvrun::runtime::{Container, Kernel, Running, Signal, Status, Stdio, Stream, spawn};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::fixture::*;
use crate::support::binary;
use crate::support::wait_until;

/// Set for a test that runs itself again in a process of its own.
const ALONE: &str = "DVRUN_TEST_ALONE";

/// A started container whose program has printed its first line.
struct Started {
    running: Running,
    lines: BufReader<std::io::PipeReader>,
}

impl Started {
    fn rest(&mut self) -> String {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).unwrap();
        text
    }

    /// The processes of the container on the host: monitor, first process, program, its children.
    fn processes(&self) -> Vec<u32> {
        descendants(self.running.pid())
    }
}

fn started(container: &Container) -> Started {
    let (reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio {
        stdin: Stream::Null,
        stdout: Stream::Fd(writer.into()),
        stderr: Stream::Null,
    };
    let running = spawn(&binary(), container, stdio).unwrap();
    let mut lines = BufReader::new(reader);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Started { running, lines }
}

/// A process and all below it.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        let pid = all[next];
        next += 1;
        // Each thread has its own. A process that ends meanwhile has none.
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten() {
            let children = fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
    }
    all
}

pub fn alive(pid: u32) -> bool {
    // A zombie is dead: its parent is about to read it.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// For what the kernel does by itself, soon.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn signals_reach_the_program() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
        (Signal::SIGWINCH, "WINCH"),
    ] {
        let script = format!("trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 1000 & wait; done");
        let mut by_socket = started(&fixture.shell(&script));
        by_socket.running.signal(signal).unwrap();
        assert_eq!(by_socket.rest(), format!("got {name}\n"));
        assert_eq!(by_socket.running.wait().unwrap().status, Status::Exited(9));

        let mut by_pid = started(&fixture.shell(&script));
        kill(Pid::from_raw(by_pid.running.pid() as i32), signal).unwrap();
        assert_eq!(by_pid.rest(), format!("got {name}\n"));
        assert_eq!(by_pid.running.wait().unwrap().status, Status::Exited(9));
    }
}

#[test]
fn a_signal_that_is_not_handled_ends_the_program_and_its_children() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for (signal, number) in [(Signal::SIGTERM, 15), (Signal::SIGUSR1, 10), (Signal::SIGKILL, 9)] {
        let mut container = started(&fixture.shell("sleep 1000 & echo ready; wait"));
        let processes = container.processes();
        assert_eq!(processes.len(), 4);
        container.running.signal(signal).unwrap();
        assert_eq!(container.running.wait().unwrap().status, Status::Signaled(number));
        assert!(!processes.into_iter().any(alive));
        assert_eq!(container.rest(), "");
        // Neither is an error afterwards.
        container.running.signal(signal).unwrap();
        assert_eq!(container.running.wait().unwrap().status.code(), 128 + number);
    }
}

#[test]
fn waiting_has_a_limit() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let mut container = started(&fixture.shell("echo ready; exec sleep 1000"));
    assert_eq!(container.running.wait_for(Duration::ZERO).unwrap(), None);
    assert_eq!(container.running.wait_for(Duration::from_millis(5)).unwrap(), None);
    container.running.signal(Signal::SIGTERM).unwrap();
    let exit = container.running.wait_for(Duration::from_secs(60)).unwrap();
    assert_eq!(exit.map(|exit| exit.status), Some(Status::Signaled(15)));
    assert_eq!(container.running.wait_for(Duration::ZERO).unwrap(), exit);
}

#[test]
fn orphans_are_reaped_and_end_with_the_program() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    // Each inner shell leaves an orphan, which the first process must reap.
    let script = "i=0; while [ $i -lt 50 ]; do sh -c 'sleep 0 &'; i=$((i + 1)); done; sleep 1000 & echo ready; exec sleep 1000";
    let mut container = started(&fixture.shell(script));
    wait_until("orphans are reaped", SOON, || container.processes().len() == 4);
    let processes = container.processes();
    container.running.signal(Signal::SIGTERM).unwrap();
    container.running.wait().unwrap();
    assert!(!processes.into_iter().any(alive));
}

#[test]
fn kill_of_any_process_of_the_tree_leaves_none() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    for victim in 0..3 {
        let mut container = started(&fixture.shell("sleep 1000 & echo ready; wait"));
        let processes = container.processes();
        assert_eq!(processes.len(), 4);
        kill(Pid::from_raw(processes[victim] as i32), Signal::SIGKILL).unwrap();
        assert_eq!(container.running.wait().unwrap().status, Status::Signaled(9), "victim {victim}");
        assert_eq!(container.rest(), "");
        wait_until("all are dead", SOON, || !processes.iter().copied().any(alive));
    }
}

/// Not a test by itself: the parent that [`kill_of_the_parent_leaves_none`] kills.
#[test]
fn parent_to_be_killed() {
    let Ok(root) = std::env::var(ALONE) else {
        return;
    };
    let fixture = Fixture::new();
    let mut container = fixture.shell("sleep 1000 & echo ready; wait");
    container.root = dvrun::runtime::Root::Folder(root.into());
    let container = started(&container);
    let pids: Vec<String> = container.processes().iter().map(u32::to_string).collect();
    println!("\npids {}", pids.join(" "));
    std::mem::forget(fixture);
    loop {
        std::thread::park();
    }
}

#[test]
fn kill_of_the_parent_leaves_none() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["runtime::care::parent_to_be_killed", "--exact", "--nocapture"])
        .env(ALONE, fixture.root())
        .env("TMPDIR", fixture.host())
        .stdout(ProcessStdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pids = lines
        .find_map(|line| line.unwrap().strip_prefix("pids ").map(str::to_owned))
        .unwrap();
    let pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 4);
    assert!(pids.iter().copied().all(alive));
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until("all are dead", SOON, || !pids.iter().copied().any(alive));
}

#[test]
fn dropping_a_container_ends_it() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let container = started(&fixture.shell("trap '' TERM INT HUP; echo ready; sleep 1000"));
    let processes = container.processes();
    drop(container);
    assert!(!processes.into_iter().any(alive));
}

#[test]
fn a_container_outlives_the_thread_that_started_it() {
    if !ready() {
        return;
    }
    let fixture = Fixture::new();
    let container = fixture.shell("trap 'exit 3' TERM; echo ready; while :; do sleep 1000 & wait; done");
    let mut container = std::thread::spawn(move || started(&container)).join().unwrap();
    let processes = container.processes();
    assert!(processes.iter().copied().all(alive));
    container.running.signal(Signal::SIGTERM).unwrap();
    assert_eq!(container.running.wait().unwrap().status, Status::Exited(3));
}

#[test]
fn many_at_once_and_one_after_another_leave_nothing() {
    if !ready() {
        return;
    }
    if std::env::var_os(ALONE).is_some() {
        return leave_nothing();
    }
    // Other tests' descriptors and processes would count: in a process of its own.
    let fixture = Fixture::new();
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "runtime::care::many_at_once_and_one_after_another_leave_nothing",
            "--exact",
            "--nocapture",
        ])
        .env(ALONE, "1")
        .env("TMPDIR", fixture.host())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::read_dir(fixture.host()).unwrap().count(), 0, "temporary files are left");
}

/// Mounts, descriptors, files, processes.
type State = (Vec<String>, usize, BTreeSet<PathBuf>, usize);

#[track_caller]
fn assert_unchanged(when: &str, before: &State, after: &State) {
    assert_eq!(before.0, after.0, "mounts, {when}");
    assert_eq!(before.1, after.1, "descriptors, {when}");
    assert_eq!(before.2, after.2, "files, {when}");
    assert_eq!(before.3, after.3, "processes, {when}");
}

fn leave_nothing() {
    let fixtures = [Fixture::new(), Fixture::complete()];
    let state = || {
        // Others may mount elsewhere meanwhile. What a container mounts would be on /tmp itself, or be of its image.
        let of_fixture = |line: &str| fixtures.iter().any(|f| line.contains(&f.folder.path().display().to_string()));
        let ours = |line: &&str| line.contains(" /tmp ") || line.contains(" /tmp/root") || of_fixture(line);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts: Vec<String> = table.lines().filter(ours).map(str::to_owned).collect();
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
        let files: BTreeSet<_> = fixtures
            .iter()
            .flat_map(|fixture| walkdir::WalkDir::new(fixture.folder.path()))
            .map(|entry| entry.unwrap().into_path())
            .collect();
        (mounts, descriptors, files, descendants(std::process::id()).len())
    };
    let (out, err) = (capture(), capture());
    let before = state();
    let kernels = [true, false].map(|overlay| Kernel {
        overlay,
        ..Kernel::default()
    });
    for i in 0..1000 {
        let container = fixtures[i % 2].container(&["true"]);
        let mut running = start_with(&container, kernels[i / 2 % 2], Stream::Null, &out, &err).unwrap();
        assert!(running.wait().unwrap().status.success());
    }
    assert_unchanged("one after another", &before, &state());

    let mut crowd: Vec<Started> = (0..50)
        .map(|i| started(&fixtures[i % 2].shell("echo ready; exec sleep 1000")))
        .collect();
    assert_eq!(descendants(std::process::id()).len(), 1 + 50 * 3);
    for container in &crowd {
        container.running.signal(Signal::SIGTERM).unwrap();
    }
    for container in &mut crowd {
        assert_eq!(container.running.wait().unwrap().status, Status::Signaled(15));
    }
    drop(crowd);
    assert_unchanged("at once", &before, &state());

    // Failures, too.
    for _ in 0..20 {
        refused(&fixtures[0].container(&["absent"]));
        let mut missing = fixtures[0].container(&["true"]);
        missing.binds = vec![bind("/nowhere", "/data")];
        refused(&missing);
    }
    assert_unchanged("after failures", &before, &state());
}
