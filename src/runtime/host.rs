//! A program on the host itself: its own process group, and it dies with the thread that started it.

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, chdir, getpid, getppid, setpgid};

use super::exit::{Exit, Usage};
use super::sys::{self, Words};

/// A command of the host: the program and its arguments, and its whole environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// What is started, and with what.
pub struct HostProgram<'a> {
    /// The program, looked up along `PATH` of `env` where it has no slash, and its arguments.
    pub argv: &'a [String],
    /// The whole environment.
    pub env: &'a [(String, String)],
    pub cwd: &'a Path,
    /// Empty where absent.
    pub stdin: Option<&'a File>,
    pub stdout: &'a File,
    pub stderr: &'a File,
    /// Whether it goes on when the thread that started it ends.
    pub outlives: bool,
}

/// A started program. It has to be waited for on the thread that started it.
#[derive(Debug)]
pub struct HostRunning {
    leader: Pid,
    began: Instant,
}

/// Starts `program` as the leader of a new process group, so that a Ctrl-C at the terminal reaches dvrun alone and
/// one signal reaches all of the program. Should the calling thread end first, by `kill -9` for instance, the kernel
/// ends the program: the caller must therefore wait for it on the same thread.
///
/// The memory is shared until the program is executed: what a start costs does not grow with what the caller holds.
///
/// # Errors
/// When the program is not found or cannot be executed, and when there can be no further process.
pub fn spawn_host(program: &HostProgram) -> io::Result<HostRunning> {
    let path = program.env.iter().rfind(|(name, _)| name == "PATH").map(|(_, path)| path.as_str());
    let name = program.argv.first().ok_or(io::ErrorKind::InvalidInput)?;
    let candidates = c_strings(candidates(name, path.unwrap_or(super::DEFAULT_PATH)))?;
    let (argv, cwd) = (c_strings(program.argv)?, CString::new(program.cwd.as_os_str().as_bytes())?);
    let env = c_strings(program.env.iter().map(|(name, value)| format!("{name}={value}")))?;
    let (argv, env) = (Words::new(&argv), Words::new(&env));
    let stdin = match program.stdin {
        Some(file) => file,
        None => null()?,
    };
    let streams = [stdin.as_raw_fd(), program.stdout.as_raw_fd(), program.stderr.as_raw_fd()];
    // Those below would be overwritten before they are copied.
    debug_assert!(streams.iter().all(|&fd| fd > 2));
    let parent = getpid();
    let mut become_it = || -> Errno {
        match prepare(parent, program.outlives, streams, &cwd) {
            Err(errno) => errno,
            Ok(()) => execute(&candidates, &argv, &env),
        }
    };
    // A handler of this process must not run in the child, which shares its memory.
    let mut mask = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    let began = Instant::now();
    let started = sys::spawn_sharing_memory(&mut become_it);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    Ok(HostRunning { leader: started?, began })
}

impl HostRunning {
    /// The leader of the program's process group.
    pub fn leader(&self) -> Pid {
        self.leader
    }

    /// Waits until the leader has ended. Its id stays taken until [`HostRunning::reap`].
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match waitid(Id::Pid(self.leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Err(Errno::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// How it ended. What its peak of memory says is never less than what this process had when it started the program.
    pub fn reap(self) -> io::Result<Exit> {
        let (status, cpu, max_rss) = sys::wait_for_usage(self.leader)?;
        let usage = Usage {
            wall: self.began.elapsed(),
            cpu: Duration::from_micros(cpu),
            max_rss,
            // The kernel shows what a process that has ended did to root alone.
            io: None,
        };
        Ok(Exit { status, usage })
    }
}

/// An empty standard input: one for all, as it has no position.
fn null() -> io::Result<&'static File> {
    static NULL: OnceLock<File> = OnceLock::new();
    match NULL.get() {
        Some(file) => Ok(file),
        None => File::open("/dev/null").map(|file| NULL.get_or_init(|| file)),
    }
}

/// Where a program of this name may be, in the order in which it is tried.
fn candidates<'a>(name: &'a str, path: &'a str) -> Vec<String> {
    match name.contains('/') {
        true => vec![name.to_owned()],
        false => path
            .split(':')
            .map(|folder| format!("{}/{name}", if folder.is_empty() { "." } else { folder }))
            .collect(),
    }
}

fn c_strings(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<CString>, NulError> {
    texts.into_iter().map(|text| CString::new(text.as_ref())).collect()
}

/// In the child, whose memory is the parent's: system calls alone, no allocation.
fn prepare(parent: Pid, outlives: bool, streams: [RawFd; 3], cwd: &CString) -> nix::Result<()> {
    sys::default_signals();
    if !outlives {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if getppid() != parent {
            return Err(Errno::ESRCH);
        }
    }
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    for (number, fd) in (0..).zip(streams) {
        sys::duplicate_to(fd, number)?;
    }
    chdir(cwd.as_c_str())?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// The first candidate that is there. As a shell does, one that may not be executed is passed over, and told of at the end.
fn execute(candidates: &[CString], argv: &Words, env: &Words) -> Errno {
    let mut worst = Errno::ENOENT;
    for candidate in candidates {
        match sys::execute_words(candidate, argv, env) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = Errno::EACCES,
            errno => return errno,
        }
    }
    worst
}
