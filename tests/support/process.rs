//! Programs run to their end, with all that they said shown when it is not what was asked for.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::checkout::binary;
use super::wait_until;

/// No test's program may take longer.
const LIMIT: Duration = Duration::from_secs(600);

/// The built binary in an environment of its own: nothing of the caller's but `PATH` and the cluster's address.
/// It has no home and no cache; [`super::Sandbox::dvrun`] has both.
pub fn dvrun() -> Command {
    let mut command = Command::new(binary());
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin")))
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/nonexistent");
    if let Some(conf) = std::env::var_os("SLURM_CONF") {
        command.env("SLURM_CONF", conf);
    }
    command
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `command` to its end, without input.
#[track_caller]
pub fn finish(command: &mut Command) -> Finished {
    Running::start(command).finish()
}

impl Finished {
    /// Fails unless it exited with 0; gives back itself, for more questions.
    #[track_caller]
    pub fn ok(self) -> Finished {
        self.exits(0)
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Finished {
        assert_eq!(self.status.code(), Some(code), "wrong exit status{self:#}");
        self
    }

    /// Fails unless standard output has `text` in it.
    #[track_caller]
    pub fn says(self, text: &str) -> Finished {
        assert!(self.stdout.contains(text), "{text:?} is not in standard output{self:#}");
        self
    }

    /// Fails unless standard error has `text` in it.
    #[track_caller]
    pub fn complains(self, text: &str) -> Finished {
        assert!(self.stderr.contains(text), "{text:?} is not in standard error{self:#}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("standard output is not JSON: {error}{self:#}"),
        }
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "\n--- {} ({})\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}

/// A program at work, in a process group of its own; killed when dropped.
pub struct Running {
    command: String,
    child: Child,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

/// What comes through a pipe.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Running {
        let mut text = command.get_program().to_string_lossy().into_owned();
        for arg in command.get_args() {
            write!(text, " {}", arg.to_string_lossy()).expect("a String takes all");
        }
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => panic!("cannot start {text}: {error}"),
        };
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Running {
            command: text,
            child,
            stdout,
            stderr,
        }
    }

    /// Waits for its own end. What it left behind in its group is killed, so that no pipe stays open.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let mut status = None;
        wait_until(&format!("`{}` ended", self.command), LIMIT, || {
            status = self.child.try_wait().expect("the child is ours to wait for");
            status.is_some()
        });
        self.end(status.expect("it has ended"))
    }

    /// Waits until `moment` has come; fails when the program ends before that.
    #[track_caller]
    pub fn reaches(&mut self, what: &str, mut moment: impl FnMut() -> bool) {
        let mut early = None;
        wait_until(what, LIMIT, || {
            if moment() {
                return true;
            }
            early = self.child.try_wait().expect("the child is ours to wait for");
            early.is_some()
        });
        if let Some(status) = early {
            panic!("it ended before {what}{:#}", self.end(status));
        }
    }

    /// Waits until `text` stands in its standard error.
    #[track_caller]
    pub fn says(&mut self, text: &str) {
        let bytes = Arc::clone(&self.stderr.as_ref().expect("it has not ended").bytes);
        self.reaches(&format!("it says `{text}`"), || {
            String::from_utf8_lossy(&bytes.lock().unwrap()).contains(text)
        });
    }

    /// SIGKILL to the one process (not to what it started) as soon as `moment` has come.
    #[track_caller]
    pub fn kill_when(mut self, what: &str, moment: impl FnMut() -> bool) -> Finished {
        self.reaches(what, moment);
        self.child.kill().expect("an unreaped child can be killed");
        let status = self.child.wait().expect("the child is ours to wait for");
        assert_eq!(status.signal(), Some(9), "it ended by itself when {what}");
        self.end(status)
    }

    /// Whether it ends by itself before `moment` comes.
    pub fn ends_before(&mut self, mut moment: impl FnMut() -> bool) -> bool {
        let mut ended = false;
        wait_until("the moment came", LIMIT, || {
            ended = self.child.try_wait().expect("the child is ours to wait for").is_some();
            ended || moment()
        });
        ended
    }

    /// SIGKILL to the one process, not to what it started.
    pub fn kill(mut self) {
        self.child.kill().expect("an unreaped child can be killed");
        self.child.wait().expect("the child is ours to wait for");
    }

    /// Sends `signal` to the process alone.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("an unreaped child can be signalled");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is an i32"))
    }

    #[track_caller]
    fn end(&mut self, status: ExitStatus) -> Finished {
        self.kill_group();
        self.collect(status)
    }

    /// All that was said; fails when something that the program started keeps its pipes open after its end.
    #[track_caller]
    fn collect(&mut self, status: ExitStatus) -> Finished {
        let command = &self.command;
        let text = |pipe: Option<Collected>| {
            let Some(Collected { bytes, reader }) = pipe else {
                return String::new();
            };
            wait_until(&format!("what `{command}` started has ended"), Duration::from_secs(60), || {
                reader.is_finished()
            });
            reader.join().expect("the reader does not panic");
            String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned()
        };
        let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
        Finished {
            command: self.command.clone(),
            status,
            stdout,
            stderr,
        }
    }

    fn kill_group(&self) {
        match killpg(self.pid(), Signal::SIGKILL) {
            Ok(()) | Err(nix::Error::ESRCH | nix::Error::EPERM) => {}
            Err(error) => panic!("cannot kill what `{}` left behind: {error}", self.command),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill_group();
            self.child.wait().expect("the child is ours to wait for");
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&bytes);
    let reader = thread::spawn(move || {
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = pipe.read(&mut chunk).expect("a pipe can be read");
            if read == 0 {
                break;
            }
            all.lock().unwrap().extend_from_slice(&chunk[..read]);
        }
    });
    Collected { bytes, reader }
}
