//! The container's first process: makes the container, starts the program, reaps, passes signals on.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, posix_openpt, ptsname_r, unlockpt};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SignalFd, siginfo};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

use super::container::{Container, User};
use super::enter::{self, Ids};
use super::error::RuntimeError;
use super::exit::{Exit, Status, Usage};
use super::filter;
use super::launch::DEFAULT_PATH;
use super::monitor;
use super::orphans;
use super::read_ahead;
use super::serve::View;
use super::sys::{self, Affinity, Fate, Words};
use super::wire::{self, Message, RANK_SOCKET, Spec};

/// Whose session the program joins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// The caller's, and its process group: what the terminal sends arrives, and job control works.
    Callers,
    /// One of its own: no terminal can be reached, and `kill 0` stays inside.
    Own,
}

/// What the program has of the caller, beside what the container says.
#[derive(Clone, Copy)]
pub struct Inherited {
    pub session: Session,
    /// Given back to it where the way to it was kept on one processor.
    pub affinity: Option<Affinity>,
}

/// What root in a container needs to handle files: chown, dac_override, fowner, fsetid, setgid, setuid, by their numbers
/// (capabilities(7)). All of them count in the container's user namespace alone.
const ROOT_CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7;

/// The life of the first process. `alive` is closed on the other side when the monitor dies.
pub fn run(spec: &Spec, ids: Ids, inherited: Inherited, view: View, control: &OwnedFd, alive: OwnedFd, signals: SignalFd) -> ! {
    // In a PID namespace of its own it has none that has a number there.
    let monitor = getppid();
    let code = match start(spec, ids, inherited, view, &alive) {
        Ok((program, terminal)) => {
            let started = Instant::now();
            match terminal {
                Some(near) => wire::report_started(control, near),
                None => wire::report(control, &Message::Started),
            }
            monitor::release_caller();
            let status = reap(program, monitor, inherited.session, &signals).unwrap_or(Status::Signaled(libc::SIGKILL));
            let usage = Usage {
                wall: started.elapsed(),
                ..monitor::usage()
            };
            if spec.rank.is_some() {
                // What fails here the monitor does once more.
                orphans::end().unwrap_or_default();
            }
            wire::report(control, &Message::Ended(Exit { status, usage }));
            status.code()
        }
        Err(error) => {
            wire::report(control, &Message::Failed(error));
            1
        }
    };
    // As PID 1: the kernel kills whatever the program left behind.
    sys::exit_now(code)
}

fn start(spec: &Spec, ids: Ids, inherited: Inherited, view: View, alive: &OwnedFd) -> Result<(Pid, Option<PtyMaster>), RuntimeError> {
    let setup = RuntimeError::setup;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(setup("PR_SET_PDEATHSIG"))?;
    // The monitor may have died before that call.
    let mut ready = [PollFd::new(alive.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::ZERO).map_err(setup("poll"))? > 0 {
        sys::exit_now(1);
    }
    let container = &spec.container;
    enter::map_ids(ids)?;
    forbid_namespaces()?;
    if spec.rank.is_some() {
        orphans::adopt().map_err(setup("PR_SET_CHILD_SUBREAPER"))?;
    }
    if let Some(name) = &container.hostname {
        nix::unistd::sethostname(name).map_err(setup("setting the host name"))?;
    }
    let image = enter::enter(container, ids, &view, spec.kernel)?;
    confine(container.user != User::Caller && ids.inside.uid == 0)?;
    if let Some(list) = view.list() {
        // Without it the program only starts more slowly.
        read_ahead::start(&image, list).unwrap_or_default();
    }
    drop((image, view));
    nix::unistd::chdir(&container.cwd).map_err(|errno| RuntimeError::WorkingDir {
        path: container.cwd.clone(),
        source: errno.into(),
    })?;
    let terminal = spec.terminal.map(open_terminal).transpose()?;
    let (near, far) = terminal.unzip();
    Ok((launch(spec, inherited, far)?, near))
}

/// A new pair of the container's own terminals: the caller's end and the program's.
fn open_terminal(size: (u16, u16)) -> Result<(PtyMaster, OwnedFd), RuntimeError> {
    let open = || -> nix::Result<(PtyMaster, OwnedFd)> {
        let near = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        unlockpt(&near)?;
        let name = ptsname_r(&near)?;
        let far = nix::fcntl::open(name.as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
        sys::set_window_size(&far, size)?;
        Ok((near, far))
    };
    open().map_err(RuntimeError::setup("opening a terminal"))
}

/// No user namespace within this one: the program would have all capabilities again in there.
fn forbid_namespaces() -> Result<(), RuntimeError> {
    set("/proc/sys/user/max_user_namespaces", "0", "forbidding namespaces")
}

/// Writes one of the kernel's settings for these namespaces.
fn set(file: &str, value: &str, what: &str) -> Result<(), RuntimeError> {
    match std::fs::write(file, value) {
        Ok(()) => Ok(()),
        // Not this kernel's, or read-only on a host that is a container itself: then that host's own rules hold.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EROFS | libc::EACCES | libc::EPERM)) => Ok(()),
        Err(error) => Err(RuntimeError::Setup {
            what: what.to_owned(),
            source: (&error).into(),
        }),
    }
}

/// Gives up what making the container needed, for good.
fn confine(as_root: bool) -> Result<(), RuntimeError> {
    let setup = RuntimeError::setup;
    prctl::set_no_new_privs().map_err(setup("PR_SET_NO_NEW_PRIVS"))?;
    // Memory of a dead program is nothing to fill a disk with, least of all at a path that the host chose.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(setup("setrlimit"))?;
    match sys::new_session_keyring() {
        // Over quota, or a kernel without keys: then there is none to be kept from either, or none of value.
        Ok(()) | Err(Errno::EDQUOT | Errno::ENOSYS | Errno::EPERM | Errno::ENOMEM) => {}
        Err(errno) => return Err(setup("joining a keyring")(errno)),
    }
    sys::drop_capabilities(if as_root { ROOT_CAPABILITIES } else { 0 }).map_err(setup("dropping capabilities"))?;
    // This process came from the host: its executable, memory and descriptors under /proc/1 are not the program's.
    prctl::set_dumpable(false).map_err(setup("PR_SET_DUMPABLE"))
}

/// Starts the program; returns when it has been executed.
fn launch(spec: &Spec, inherited: Inherited, terminal: Option<OwnedFd>) -> Result<Pid, RuntimeError> {
    let container = &spec.container;
    let setup = RuntimeError::setup;
    let words = |texts: &mut dyn Iterator<Item = String>| -> Result<Vec<CString>, RuntimeError> {
        texts
            .map(|text| CString::new(text).map_err(|_| RuntimeError::invalid("a NUL character in an argument or a variable")))
            .collect()
    };
    let argv = words(&mut container.argv.iter().cloned())?;
    let env = words(&mut container.env.iter().map(|(name, value)| format!("{name}={value}")))?;
    let candidates = words(&mut candidates(container))?;
    let (argv, env) = (Words::new(&argv), Words::new(&env));
    let filter = filter::program();
    // None of this process's descriptors is the program's; the child gets a copy of what is decided here.
    sys::close_from(3, Fate::ClosedOnExec).map_err(setup("closing descriptors"))?;
    if spec.has_socket() {
        sys::keep_on_exec(RANK_SOCKET).map_err(setup("keeping the launcher's socket"))?;
    }
    let mut failed = Failed::At("starting the program");
    let mut become_it = || match prepare(inherited, spec.rank.is_some(), terminal.as_ref(), &filter) {
        Err((what, errno)) => {
            failed = Failed::At(what);
            errno
        }
        Ok(()) => {
            let (which, errno) = execute(&candidates, &argv, &env);
            failed = Failed::Executing(which);
            errno
        }
    };
    // All signals are blocked here, and there is no other thread.
    let errno = match sys::spawn_sharing_memory(&mut become_it) {
        Ok(program) => return Ok(program),
        Err(errno) => errno,
    };
    let program = container.argv[0].clone();
    Err(match failed {
        Failed::At(what) => setup(what)(errno),
        Failed::Executing(None) => RuntimeError::ProgramNotFound {
            path: if program.contains('/') {
                container.cwd.display().to_string()
            } else {
                search_path(container).to_owned()
            },
            program,
        },
        Failed::Executing(Some(which)) => RuntimeError::NotExecutable {
            program,
            reason: reason(Path::new(OsStr::from_bytes(candidates[which].as_bytes())), errno),
            source: errno.into(),
        },
    })
}

/// What the child could not do.
enum Failed {
    At(&'static str),
    /// The candidate that is there, if any is.
    Executing(Option<usize>),
}

/// `PATH` of the container.
fn search_path(container: &Container) -> &str {
    let path = container.env.iter().rev().find(|(name, _)| name == "PATH");
    path.map_or(DEFAULT_PATH, |(_, path)| path)
}

/// Where the program may be, in the order in which it is tried.
pub fn candidates(container: &Container) -> Box<dyn Iterator<Item = String> + '_> {
    let program = &container.argv[0];
    match program.contains('/') {
        true => Box::new(std::iter::once(program.clone())),
        false => Box::new(
            search_path(container)
                .split(':')
                .map(move |folder| format!("{}/{program}", if folder.is_empty() { "." } else { folder })),
        ),
    }
}

/// In the child, whose memory is this process's: system calls alone, no allocation.
fn prepare(
    inherited: Inherited,
    rank: bool,
    terminal: Option<&OwnedFd>,
    filter: &[libc::sock_filter],
) -> Result<(), (&'static str, Errno)> {
    let at = |what: &'static str| move |errno: Errno| (what, errno);
    if rank {
        // Who is not PID 1 does not take its children with it.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(at("PR_SET_PDEATHSIG"))?;
    }
    if let Some(affinity) = inherited.affinity {
        affinity.restore();
    }
    if inherited.session == Session::Own {
        nix::unistd::setsid().map_err(at("setsid"))?;
    }
    if let Some(terminal) = terminal {
        let taken = sys::control_terminal(terminal).and_then(|()| {
            nix::unistd::dup2_stdin(terminal)?;
            nix::unistd::dup2_stdout(terminal)?;
            nix::unistd::dup2_stderr(terminal)
        });
        taken.map_err(at("taking the terminal"))?;
    }
    sys::default_signals();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(at("unblocking signals"))?;
    filter::apply(filter).map_err(at("filtering system calls"))
}

/// Becomes the program; returns only to say why not, and of which candidate: the first that is there.
fn execute(candidates: &[CString], argv: &Words, env: &Words) -> (Option<usize>, Errno) {
    let mut found = None;
    for (which, candidate) in candidates.iter().enumerate() {
        match sys::execute_words(candidate, argv, env) {
            // Not there; or its interpreter is not.
            Errno::ENOENT | Errno::ENOTDIR if !sys::is_there(candidate) => {}
            errno => {
                found.get_or_insert((Some(which), errno));
            }
        }
    }
    found.unwrap_or((None, Errno::ENOENT))
}

fn reason(file: &Path, errno: Errno) -> String {
    let file = file.display();
    match errno {
        Errno::ENOENT => format!("{file} needs an interpreter that is not there"),
        Errno::ENOEXEC => format!("{file} is no program for this machine"),
        Errno::E2BIG => "its arguments and environment are too long (128 KiB each at most)".to_owned(),
        Errno::EACCES => format!("{file} is a folder, has no execute permission, or lies on a file system without"),
        _ => format!("{file} was refused"),
    }
}

/// Waits for the program, and for every orphan meanwhile.
fn reap(program: Pid, monitor: Pid, session: Session, signals: &SignalFd) -> nix::Result<Status> {
    let mut ready = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    loop {
        // First the dead: one may have died before its signal could be read.
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == program => return Ok(Status::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == program => return Ok(Status::Signaled(signal as i32)),
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        while let Some(info) = signals.read_signal()? {
            if is_from(monitor, &info) {
                forward(program, session, info.ssi_signo as i32)?;
            }
        }
    }
}

/// Only the monitor's signals are orders, and not the terminal's or the program's own. Senders from outside the PID namespace
/// have the number 0.
fn is_from(monitor: Pid, info: &siginfo) -> bool {
    info.ssi_signo != libc::SIGCHLD as u32 && info.ssi_code != libc::SI_KERNEL && info.ssi_pid == monitor.as_raw() as u32
}

/// To the program; and what asks to end, or is about the terminal, to the whole of its process group, as a terminal does.
fn forward(program: Pid, session: Session, signal: i32) -> nix::Result<()> {
    let Ok(signal) = Signal::try_from(signal) else {
        return Ok(());
    };
    let group = matches!(
        signal,
        Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT | Signal::SIGWINCH | Signal::SIGCONT | Signal::SIGTSTP
    );
    let target = if group && session == Session::Own {
        Pid::from_raw(-program.as_raw())
    } else {
        program
    };
    match kill(target, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno),
    }
}
