//! One command of Slurm's: a clean environment, a time limit, standard output and standard error kept apart.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Slurm's commands, and how long to wait for them. Names without a slash are looked up along `PATH` of `env`.
#[derive(Clone, Debug)]
pub struct Slurm {
    pub sbatch: PathBuf,
    pub squeue: PathBuf,
    /// `None`: this cluster keeps no accounts.
    pub sacct: Option<PathBuf>,
    pub scancel: PathBuf,
    pub scontrol: PathBuf,
    /// The whole environment of these commands.
    pub env: Vec<(OsString, OsString)>,
    /// Whose jobs to look among when one of unknown id is looked for: the caller's user id.
    pub user: u32,
    /// For one call. A call that takes longer is ended, and what it did is unknown.
    pub limit: Duration,
    /// How long a request that was cut short may still be on its way to the controller.
    pub settle: Duration,
    /// Calls of `sbatch` under way at once: while the controller works on one, the next program starts and reads its configuration.
    pub at_once: usize,
}

impl Slurm {
    /// The commands along `PATH`, in the caller's environment less what would change their behaviour or answers.
    pub fn new(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Slurm {
        let mut env: Vec<_> = environment.into_iter().filter(|(name, _)| is_harmless(name)).collect();
        // squeue cuts the list of an array's indices short unless told not to.
        env.push(("SLURM_BITSTR_LEN".into(), "0".into()));
        Slurm {
            sbatch: "sbatch".into(),
            squeue: "squeue".into(),
            sacct: Some("sacct".into()),
            scancel: "scancel".into(),
            scontrol: "scontrol".into(),
            env,
            user: nix::unistd::getuid().as_raw(),
            limit: Duration::from_secs(120),
            settle: Duration::from_secs(5),
            // More would wait for the controller's lock, and look like a flood to a site.
            at_once: 2,
        }
    }
}

/// From inside a job, or with a user's own defaults set, these commands do and say other things.
fn is_harmless(name: &OsStr) -> bool {
    const CHANGES: [&[u8]; 10] = [
        b"SLURM_",
        b"SBATCH_",
        b"SQUEUE_",
        b"SACCT_",
        b"SCANCEL_",
        b"SCONTROL_",
        b"SINFO_",
        b"SALLOC_",
        b"XDG_",
        b"DBUS_",
    ];
    let name = name.as_encoded_bytes();
    name == b"SLURM_CONF" || !CHANGES.iter().any(|prefix| name.starts_with(prefix))
}

/// The configuration that `SLURM_CONF` of `env` names, where it is not there: Slurm's commands would look for it for a minute each.
pub fn missing_configuration<'a>(env: impl IntoIterator<Item = &'a (OsString, OsString)>) -> Option<PathBuf> {
    let (_, path) = env.into_iter().find(|(name, _)| name == "SLURM_CONF")?;
    let path = PathBuf::from(path);
    (!path.exists()).then_some(path)
}

/// Why a command gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing was started.
    #[error("Slurm's configuration, {}, is not there", path.display())]
    NoConfiguration { path: PathBuf },
    #[error("cannot run {command}")]
    Spawn { command: String, source: io::Error },
    #[error("{command} gave no answer within {} s", limit.as_secs())]
    TimedOut { command: String, limit: Duration },
    /// `status` as people say it (`exit status: 1`), `message` what was on standard error.
    #[error("{command} failed ({status}): {message}")]
    Failed { command: String, status: String, message: String },
    #[error("{command} gave an answer that makes no sense: `{answer}`")]
    Unreadable { command: String, answer: String },
}

impl CallError {
    /// What to try next.
    pub fn hint(&self) -> Option<String> {
        match self {
            CallError::NoConfiguration { .. } => Some("SLURM_CONF names it: is this a host of the cluster?".to_owned()),
            CallError::Spawn { command, .. } => Some(format!(
                "is this a host from which jobs can be submitted? `{command}` has to be on PATH"
            )),
            CallError::TimedOut { .. } => Some("the cluster's controller may be down or busy: `scontrol ping` tells".to_owned()),
            CallError::Failed { message, .. } if is_unreachable(message) => {
                Some("the cluster's controller does not answer: `scontrol ping` tells; try again later".to_owned())
            }
            CallError::Failed { .. } | CallError::Unreadable { .. } => None,
        }
    }
}

/// Whether an error text says that the controller (or the way to it) is at fault, rather than the request.
pub fn is_unreachable(message: &str) -> bool {
    const SIGNS: [&str; 12] = [
        "timed out",
        "Unable to contact",
        "Unable to establish",
        "Zero Bytes were transmitted",
        "Transport endpoint",
        "Connection refused",
        "Connection reset",
        "connect failure",
        "Communication connection failure",
        "Protocol authentication error",
        "Munge",
        "Unexpected message received",
    ];
    SIGNS.iter().any(|sign| message.contains(sign))
}

/// Runs `program` and gives its standard output.
pub fn call(slurm: &Slurm, program: &Path, args: &[&OsStr]) -> Result<String, CallError> {
    start(slurm, program, args)?.answer()
}

/// A command that was started.
pub struct Call {
    child: Child,
    /// Standard output and standard error.
    pipes: [File; 2],
    command: String,
    limit: Duration,
    deadline: Instant,
}

/// Starts `program`. What it says has to be asked for: it may wait for that.
pub fn start(slurm: &Slurm, program: &Path, args: &[&OsStr]) -> Result<Call, CallError> {
    if let Some(path) = missing_configuration(&slurm.env) {
        return Err(CallError::NoConfiguration { path });
    }
    let command = program.display().to_string();
    let child = Command::new(along_path(slurm, program))
        .arg0(program)
        .args(args)
        .env_clear()
        .envs(slurm.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C in a terminal must not cut a submission short half-way.
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(source) => return Err(CallError::Spawn { command, source }),
    };
    let pipes: [OwnedFd; 2] = [
        child.stdout.take().expect("was asked for").into(),
        child.stderr.take().expect("was asked for").into(),
    ];
    Ok(Call {
        child,
        pipes: pipes.map(File::from),
        command,
        limit: slurm.limit,
        deadline: Instant::now() + slurm.limit,
    })
}

impl Call {
    /// Waits for its end and gives its standard output. The time limit runs from the start; a command that passes it is ended.
    pub fn answer(mut self) -> Result<String, CallError> {
        match self.finish() {
            Ok(Some((status, [text, _]))) if status.success() => Ok(text),
            Ok(Some((status, [_, complaint]))) => Err(CallError::Failed {
                command: self.command,
                status: status.to_string(),
                message: one_line(&complaint),
            }),
            Ok(None) => Err(CallError::TimedOut {
                command: self.command,
                limit: self.limit,
            }),
            Err(source) => Err(CallError::Spawn {
                command: self.command,
                source,
            }),
        }
    }

    /// Its status and both texts; `None` if that took too long.
    fn finish(&mut self) -> io::Result<Option<(ExitStatus, [String; 2])>> {
        let Some(texts) = collect(&self.pipes, self.deadline)? else {
            return end(&mut self.child).map(|()| None);
        };
        // Both pipes are closed: the end is near, or (a program that closed them and stays) within the limit.
        let mut pause = Duration::from_micros(20);
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(Some((status, texts))),
                None if Instant::now() < self.deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(10));
                }
                None => return end(&mut self.child).map(|()| None),
            }
        }
    }
}

/// A whole path, for which the standard library needs no copy of this process to start a program in another environment.
fn along_path(slurm: &Slurm, program: &Path) -> PathBuf {
    let path = slurm.env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
    let folders = path.filter(|_| program.components().count() == 1).unwrap_or_default();
    let found = std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| program.to_owned())
}

/// Reads both to their ends; `None` where that takes too long. Neither may fill up while the other is waited for.
fn collect(pipes: &[File; 2], deadline: Instant) -> io::Result<Option<[String; 2]>> {
    let mut texts = [Vec::new(), Vec::new()];
    let mut open = vec![0, 1];
    let mut buffer = [0; 8 << 10];
    while !open.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ready: Vec<_> = open.iter().map(|&at| PollFd::new(pipes[at].as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut ready, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = ready.iter().map(|pipe| pipe.any().unwrap_or(false)).collect();
        for (at, _) in open.clone().into_iter().zip(ready).filter(|(_, ready)| *ready) {
            match (&pipes[at]).read(&mut buffer)? {
                0 => open.retain(|&other| other != at),
                read => texts[at].extend(&buffer[..read]),
            }
        }
    }
    Ok(Some(texts.map(|text| String::from_utf8_lossy(&text).into_owned())))
}

/// Ends the command and what it started.
fn end(child: &mut Child) -> io::Result<()> {
    let group = nix::unistd::Pid::from_raw(child.id() as i32);
    match nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error.into()),
    }
    child.wait().map(|_| ())
}

/// Messages of Slurm's come with line ends, prefixes and repetitions.
fn one_line(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.dedup();
    let joined = lines.join("; ");
    match joined.char_indices().nth(500) {
        Some((cut, _)) => format!("{}…", &joined[..cut]),
        None => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slurm() -> Slurm {
        Slurm::new(
            [
                ("PATH", "/usr/bin:/bin"),
                ("SLURM_JOB_ID", "7"),
                ("SLURM_CONF", "/dev/null"),
                ("SBATCH_QOS", "q"),
            ]
            .map(|(k, v)| (k.into(), v.into())),
        )
    }

    fn sh(slurm: &Slurm, script: &str) -> Result<String, CallError> {
        call(slurm, Path::new("sh"), &["-c".as_ref(), script.as_ref()])
    }

    #[test]
    fn the_environment_of_a_job_does_not_reach_a_command() {
        let env = sh(&slurm(), "env").unwrap();
        assert!(env.contains("SLURM_CONF=/dev/null"));
        assert!(!env.contains("SLURM_JOB_ID") && !env.contains("SBATCH_QOS"), "{env}");
    }

    #[test]
    fn a_configuration_that_is_not_there_is_not_looked_for() {
        let mut slurm = slurm();
        slurm.env.retain(|(name, _)| name != "SLURM_CONF");
        slurm.env.push(("SLURM_CONF".into(), "/no/slurm.conf".into()));
        let error = sh(&slurm, "sleep 60").unwrap_err();
        assert_eq!(error.to_string(), "Slurm's configuration, /no/slurm.conf, is not there");
    }

    #[test]
    fn a_failure_keeps_what_was_said_and_a_missing_command_is_named() {
        let error = sh(&slurm(), "echo noise; echo 'sbatch: error: no' >&2; exit 3").unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 3): sbatch: error: no");
        let error = call(&slurm(), Path::new("no-such-command"), &[]).unwrap_err();
        assert!(matches!(error, CallError::Spawn { .. }) && error.hint().is_some(), "{error}");
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_what_it_started() {
        let slurm = Slurm {
            limit: Duration::from_millis(300),
            ..slurm()
        };
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let error = sh(&slurm, &format!("sleep 1000 & echo $! > {}; wait", pid.display())).unwrap_err();
        assert!(matches!(error, CallError::TimedOut { .. }), "{error}");
        let pid = std::fs::read_to_string(pid).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let gone = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z"));
        // The signal is sent to the whole group at once, but only the child is waited for: its own child, which
        // nobody here can wait for, may take a moment more to die.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(Instant::now() < deadline, "still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
