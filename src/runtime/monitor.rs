//! One thread, outside the namespaces, between the parent and the container's first process: the re-executed binary, or the
//! caller's own process where that has but one thread (`here`).
//!
//! It lives as long as both: when the parent dies, the socket closes and it kills the container; when it dies itself,
//! the kernel kills the container's first process, and with that all of the PID namespace.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, pipe2, tcgetpgrp, tcsetpgrp};

use super::enter::{self, Ids};
use super::error::RuntimeError;
use super::exit::{Exit, Status, Usage};
use super::init::{self, Inherited};
use super::layer;
use super::orphans;
use super::serve::{self, Keeper};
use super::sys::{self, Affinity, Company, Fate, Side};
use super::wire::{self, CONTROL_FD, Message, RANK_SOCKET, SPEC_FD, Spec};

/// The hidden argument that makes the binary a monitor.
pub const ARGUMENT: &str = "__enter";

/// Does the monitor's work when `args` (with the program's name) are those of a monitor. Must be called first of all in
/// `main`, before any thread exists.
pub fn reenter(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if args.nth(1)? != ARGUMENT {
        return None;
    }
    Some(match monitor() {
        Ok(code) => code,
        // Started by hand, or the parent is gone: there is nobody to tell.
        Err(_) => ExitCode::from(3),
    })
}

fn monitor() -> nix::Result<ExitCode> {
    let control = sys::inherited(CONTROL_FD)?;
    let spec = File::from(sys::inherited(SPEC_FD)?);
    match supervise(spec, &control) {
        Ok(code) => Ok(code),
        Err(error) => {
            wire::report(&control, &Message::Failed(error));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn supervise(mut spec: File, control: &OwnedFd) -> Result<ExitCode, RuntimeError> {
    let unreadable = |_| RuntimeError::invalid("the description cannot be read");
    spec.rewind().map_err(unreadable)?;
    let text = std::io::read_to_string(&mut spec).map_err(unreadable)?;
    let spec: Spec = serde_json::from_str(&text).map_err(|error| RuntimeError::invalid(error.to_string()))?;

    let first = if spec.has_socket() { RANK_SOCKET + 1 } else { CONTROL_FD + 1 };
    sys::close_from(first, Fate::Closed).map_err(RuntimeError::setup("closing descriptors"))?;
    let end = keep(&spec, control, Standing::Apart)?;
    Ok(ExitCode::from(end.code() as u8))
}

/// Whose process the monitor is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its own: the caller's streams and working directory are the program's alone, and no signal stops it.
    Apart,
    /// The caller's: what stops the program from the terminal stops the caller with it, as a shell wants to see.
    Caller,
}

/// What a terminal stops programs with. A shell learns from the stop of the process that it started.
const STOPS: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// The monitor's life, from the making of the container until nothing is left of it; what there is to say goes to `control`. The
/// process must have one thread. All signals are blocked when this returns.
pub fn keep(spec: &Spec, control: &OwnedFd, standing: Standing) -> Result<Status, RuntimeError> {
    let setup = RuntimeError::setup;
    // Every signal becomes something to read, for the first process as well.
    mask(&SigSet::all())?;
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(setup("signalfd"))?;
    let ids = Ids::of(&spec.container)?;
    let layer = layer::keep(&spec.container.writable)?;
    let session = match [
        std::io::stdin().is_terminal(),
        std::io::stdout().is_terminal(),
        std::io::stderr().is_terminal(),
    ] {
        [false, false, false] => init::Session::Own,
        _ => init::Session::Callers,
    };
    let foreground = Foreground::held();
    let (view, mut keeper) = serve::image(&spec.container, ids, control)?;
    let (alive, life) = pipe2(OFlag::O_CLOEXEC).map_err(setup("pipe"))?;
    let company = if spec.rank.is_some() { Company::Hosts } else { Company::Own };
    if company == Company::Hosts {
        orphans::adopt().map_err(setup("PR_SET_CHILD_SUBREAPER"))?;
    }
    // A container that is there in two milliseconds is made by three processes one after another: a wake across processors, of which
    // there would be four, takes longer than the change from one to the next on the same. A served image has a server beside them.
    let affinity = if view.is_served() { None } else { Affinity::narrow() };
    let restore = || affinity.iter().for_each(Affinity::restore);
    let side = sys::fork_into_namespaces(company).map_err(|errno| {
        restore();
        enter::refused(errno, "making namespaces")
    })?;
    let first = match side {
        Side::Child => {
            drop(life);
            init::run(spec, ids, Inherited { session, affinity }, view, control, alive, signals)
        }
        Side::Parent(first) => first,
    };
    drop((alive, view));
    match standing {
        // A pipe that the program closes is to be closed, and no folder is to be kept busy.
        Standing::Apart => release_caller(),
        Standing::Caller => mask(&STOPS.into_iter().fold(SigSet::all(), |mut set, stop| {
            set.remove(stop);
            set
        }))?,
    }
    let end = watch(first, &mut keeper, control, &signals);
    restore();
    let end = end.map_err(setup("waiting for the container"))?;
    mask(&SigSet::all())?;
    drop(life);
    if let Some(foreground) = foreground {
        foreground.take_back();
    }
    keeper.end()?;
    if company == Company::Hosts {
        // Where the first process was killed before it could.
        orphans::end().map_err(|error| setup("ending what is left")(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
    }
    drop(layer);
    if let Status::Signaled(_) = end {
        // It could not report itself.
        wire::report(
            control,
            &Message::Ended(Exit {
                status: end,
                usage: usage(),
            }),
        );
    }
    Ok(end)
}

fn mask(blocked: &SigSet) -> Result<(), RuntimeError> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(blocked), None).map_err(RuntimeError::setup("blocking signals"))
}

/// The caller's terminal, when the caller's process group is the one in front of it.
struct Foreground(OwnedFd);

impl Foreground {
    fn held() -> Option<Foreground> {
        let stdin = std::io::stdin();
        let mine = tcgetpgrp(&stdin).is_ok_and(|group| group == getpgrp());
        mine.then(|| stdin.as_fd().try_clone_to_owned().ok().map(Foreground)).flatten()
    }

    /// A shell in the container puts itself in front and cannot name the caller's group when it ends: without this the
    /// caller would be stopped as soon as it reads. SIGTTOU is blocked here.
    fn take_back(self) {
        // A terminal that hung up has no front.
        tcsetpgrp(&self.0, getpgrp()).unwrap_or_default();
    }
}

/// Lets go of the standard streams and of the working directory.
pub fn release_caller() {
    let null = File::options().read(true).write(true).open("/dev/null");
    let released = null.map_err(|_| Errno::ENODEV).and_then(|null| {
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(&null)?;
        nix::unistd::chdir("/")
    });
    debug_assert!(released.is_ok(), "{released:?}");
}

/// Passes signals on until the first process ends; kills it when the parent is gone.
fn watch(first: Pid, keeper: &mut Keeper, control: &OwnedFd, signals: &SignalFd) -> nix::Result<Status> {
    loop {
        let mut ready = [
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let asked = ready[0].any().unwrap_or(false);
        while let Some(info) = signals.read_signal()? {
            if info.ssi_signo == libc::SIGCHLD as u32 {
                if let Some(end) = ended(first, WaitPidFlag::WNOHANG)? {
                    return Ok(end);
                }
                if keeper.is_lost()? {
                    // Nothing of the image can be read any more.
                    pass(first, libc::SIGKILL)?;
                }
            } else if !from_terminal(&info) {
                pass(first, info.ssi_signo as i32)?;
            }
        }
        if asked {
            let mut byte = [0];
            match recv(control.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => {
                    pass(first, libc::SIGKILL)?;
                    return Ok(ended(first, WaitPidFlag::empty())?.unwrap_or(Status::Signaled(libc::SIGKILL)));
                }
                Ok(_) => pass(first, i32::from(byte[0]))?,
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Whether the terminal sent a signal to its whole foreground group: then the program got it, or was not meant to.
fn from_terminal(info: &siginfo) -> bool {
    info.ssi_code == libc::SI_KERNEL
}

fn pass(first: Pid, signal: i32) -> nix::Result<()> {
    match Signal::try_from(signal).and_then(|signal| kill(first, signal)) {
        // Ended a moment ago, or not a signal that can be sent on.
        Ok(()) | Err(Errno::ESRCH | Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn ended(first: Pid, flags: WaitPidFlag) -> nix::Result<Option<Status>> {
    loop {
        return match waitpid(first, Some(flags)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(Status::Exited(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Status::Signaled(signal as i32))),
            Ok(_) => Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(errno),
        };
    }
}

/// What the children waited for have used; without their wall time.
pub fn usage() -> Usage {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).expect("RUSAGE_CHILDREN is always valid");
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64;
    Usage {
        wall: std::time::Duration::ZERO,
        cpu: std::time::Duration::from_micros(micros(used.user_time()) + micros(used.system_time())),
        max_rss: used.max_rss() as u64 * 1024,
        // The kernel shows what a process did to its own user, and this one has become another's.
        io: None,
    }
}
