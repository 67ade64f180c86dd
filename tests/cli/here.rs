//! `exec` watches over its container itself: no process stands between.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::runtime::care::{alive, descendants};
use crate::runtime::fixture::{Fixture, ready};
use crate::support::{Sandbox, Terminal, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// `dvrun exec ROOT -- sh -c SCRIPT`
fn exec(sandbox: &Sandbox, fixture: &Fixture, script: &str) -> Command {
    let mut dvrun = sandbox.dvrun();
    dvrun.arg("exec").arg(fixture.root()).args(["--", "sh", "-c", script]);
    dvrun.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    dvrun
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let mut lines = BufReader::new(child.stdout.as_mut().expect("a pipe"));
    lines.read_line(&mut line).expect("a line");
    line
}

#[test]
fn kill_of_any_process_of_it_leaves_none() {
    if !ready() {
        return;
    }
    let (sandbox, fixture) = (Sandbox::new(), Fixture::new());
    for victim in 0..2 {
        let mut child = exec(&sandbox, &fixture, "sleep 1000 & echo ready; wait")
            .spawn()
            .expect("the binary starts");
        assert_eq!(first_line(&mut child), "ready\n");
        let processes = descendants(child.id());
        assert_eq!(processes.len(), 4, "dvrun, the first process, the shell, its child");
        kill(Pid::from_raw(processes[victim] as i32), Signal::SIGKILL).expect("it is ours");
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), [None, Some(137)][victim]);
        wait_until("all are dead", SOON, || !processes.iter().copied().any(alive));
    }
}

#[test]
fn signals_reach_its_program_and_its_end_is_seen() {
    if !ready() {
        return;
    }
    let (sandbox, fixture) = (Sandbox::new(), Fixture::new());
    let script = "trap 'echo term; exit 7' TERM; trap 'echo usr' USR1; echo ready; while :; do sleep 1000 & wait; done";
    let mut child = exec(&sandbox, &fixture, script).spawn().expect("the binary starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("a line");
    assert_eq!(next(), "ready");
    let send = |signal| kill(Pid::from_raw(child.id() as i32), signal).expect("it is ours");
    send(Signal::SIGUSR1);
    assert_eq!(next(), "usr");
    send(Signal::SIGTERM);
    assert_eq!(next(), "term");
    assert_eq!(child.wait().expect("it ends").code(), Some(7));
}

#[test]
fn ctrl_z_stops_it_as_a_shell_wants_to_see_and_it_goes_on() {
    if !ready() {
        return;
    }
    let (sandbox, fixture) = (Sandbox::new(), Fixture::new());
    let mut person = Terminal::new(None);
    let exec = exec(&sandbox, &fixture, "echo ready; read -r line; echo \"got $line\"; exit 5");
    // A shell with job control, on a terminal.
    let mut shell = Command::new("sh");
    shell.args(["-c", "set -m; \"$@\"; echo \"first $?\"; fg; echo \"then $?\"", "sh"]);
    shell.arg(exec.get_program()).args(exec.get_args());
    shell
        .env_clear()
        .envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut shell = person.start(&mut shell);
    person.until("ready");
    person.types("\x1a");
    person.until(&format!("first {}", 128 + Signal::SIGTSTP as i32));
    person.types("on\n");
    person.until("got on");
    person.until("then 5");
    assert!(shell.wait().expect("it ends").success());
}
