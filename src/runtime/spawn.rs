//! The parent's side: start a container, signal it, wait for it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::container::Container;
use super::error::RuntimeError;
use super::exit::{Exit, Status, Usage};
use super::kernel::Kernel;
use super::monitor::ARGUMENT;
use super::mounts;
use super::terminal::Terminal;
use super::wire::{self, CONTROL_FD, Message, RANK_SOCKET, Rank, SPEC_FD, Spec};

/// The program's standard streams.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Stream,
    pub stdout: Stream,
    pub stderr: Stream,
}

/// One standard stream.
#[derive(Debug, Default)]
pub enum Stream {
    /// The caller's own.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// A file, a pipe's end, a terminal.
    Fd(OwnedFd),
}

impl From<File> for Stream {
    fn from(file: File) -> Stream {
        Stream::Fd(file.into())
    }
}

/// Starts `container`, with every feature of the kernel. `exe` is this program's binary, whose `main` begins with
/// [`reenter`](super::reenter). Returns when the program has been executed, or with the reason why it could not be.
///
/// May be called from any thread; the container belongs to the process.
pub fn spawn(exe: &Path, container: &Container, stdio: Stdio) -> Result<Running, RuntimeError> {
    spawn_with(exe, container, stdio, Kernel::default())
}

/// [`spawn`] with the features of the kernel that may be used.
pub fn spawn_with(exe: &Path, container: &Container, stdio: Stdio, kernel: Kernel) -> Result<Running, RuntimeError> {
    let spec = Spec {
        container: container.clone(),
        kernel,
        terminal: None,
        rank: None,
    };
    begin(exe, &spec, stdio, None).map(|(running, _)| running)
}

/// [`spawn`] of one of several programs that find each other by the host's means (MPI): in the host's PID and IPC namespaces,
/// with the launcher's socket, if there is one, as descriptor [`RANK_SOCKET`](super::RANK_SOCKET).
pub fn spawn_rank(exe: &Path, container: &Container, stdio: Stdio, socket: Option<&OwnedFd>) -> Result<Running, RuntimeError> {
    let spec = Spec {
        container: container.clone(),
        kernel: Kernel::default(),
        terminal: None,
        rank: Some(Rank { socket: socket.is_some() }),
    };
    begin(exe, &spec, stdio, socket).map(|(running, _)| running)
}

/// [`spawn`] for a person: the program gets a terminal of the container's own, of this size (rows, columns), as its three
/// streams and as the controlling one of its session.
pub fn spawn_on_terminal(exe: &Path, container: &Container, size: (u16, u16)) -> Result<(Running, Terminal), RuntimeError> {
    let spec = Spec {
        container: container.clone(),
        kernel: Kernel::default(),
        terminal: Some(size),
        rank: None,
    };
    let stdio = Stdio {
        stdin: Stream::Null,
        stdout: Stream::Null,
        stderr: Stream::Null,
    };
    let (running, terminal) = begin(exe, &spec, stdio, None)?;
    Ok((running, Terminal::new(terminal.ok_or(RuntimeError::Lost)?)))
}

fn begin(exe: &Path, spec: &Spec, stdio: Stdio, socket: Option<&OwnedFd>) -> Result<(Running, Option<OwnedFd>), RuntimeError> {
    mounts::check(&spec.container)?;
    let setup = RuntimeError::setup;
    let (control, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(setup("socketpair"))?;
    let pid = start(exe, &describe(spec)?, &theirs, stdio, socket)?;
    drop(theirs);
    let mut running = Running {
        pid,
        control,
        damage: Vec::new(),
        ended: None,
        reaped: false,
    };
    loop {
        match wire::receive_with(&running.control).map_err(setup("waiting for the container"))? {
            Some((Message::Started, terminal)) => return Ok((running, terminal)),
            Some((Message::Damaged(what), _)) => running.damage.push(what),
            // Dropping it reaps the monitor.
            Some((Message::Failed(error), _)) => return Err(error),
            Some((Message::Ended(_), _)) | None => return Err(RuntimeError::Lost),
        }
    }
}

fn describe(spec: &Spec) -> Result<OwnedFd, RuntimeError> {
    let fd = memfd_create(c"container", MFdFlags::MFD_CLOEXEC).map_err(RuntimeError::setup("memfd_create"))?;
    let mut file = File::from(fd);
    let text = serde_json::to_vec(spec).map_err(|error| RuntimeError::invalid(error.to_string()))?;
    file.write_all(&text).map_err(|error| RuntimeError::Setup {
        what: "writing the container's description".to_owned(),
        source: (&error).into(),
    })?;
    Ok(file.into())
}

/// `posix_spawn` shares the memory until exec: the cost does not grow with the parent, and threads do not matter.
fn start(exe: &Path, spec: &OwnedFd, control: &OwnedFd, stdio: Stdio, socket: Option<&OwnedFd>) -> Result<Pid, RuntimeError> {
    let failed = |errno: Errno| RuntimeError::Setup {
        what: format!("starting {}", exe.display()),
        source: errno.into(),
    };
    let mut null = None;
    let mut actions = PosixSpawnFileActions::init().map_err(failed)?;
    let mut kept = Vec::new();
    let streams = [(stdio.stdin, 0), (stdio.stdout, 1), (stdio.stderr, 2)];
    for (stream, number) in &streams {
        let fd = match stream {
            Stream::Inherit => continue,
            Stream::Fd(fd) => fd,
            Stream::Null => match &null {
                Some(fd) => fd,
                None => null.insert(open_null().map_err(failed)?),
            },
        };
        kept.push((high(fd).map_err(failed)?, *number));
    }
    kept.push((high(spec).map_err(failed)?, SPEC_FD));
    kept.push((high(control).map_err(failed)?, CONTROL_FD));
    if let Some(socket) = socket {
        kept.push((high(socket).map_err(failed)?, RANK_SOCKET));
    }
    for (fd, number) in &kept {
        actions.add_dup2(fd.as_raw_fd(), *number).map_err(failed)?;
    }
    let mut attributes = PosixSpawnAttr::init().map_err(failed)?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
    attributes.set_flags(flags).map_err(failed)?;
    attributes.set_sigdefault(&SigSet::all()).map_err(failed)?;
    // All blocked until the monitor reads them: none may end it before it can tell.
    attributes.set_sigmask(&SigSet::all()).map_err(failed)?;
    let path = CString::new(exe.as_os_str().as_bytes()).map_err(|_| RuntimeError::invalid("a NUL character in a path"))?;
    let argument = CString::new(ARGUMENT).expect("no NUL in it");
    let number = CString::new(SPEC_FD.to_string()).expect("no NUL in it");
    posix_spawn(
        path.as_c_str(),
        &actions,
        &attributes,
        &[c"dvrun", &argument, &number],
        &[] as &[CString],
    )
    .map_err(failed)
}

/// A duplicate beyond all numbers that are assigned in the child, so that no assignment overwrites a source.
fn high(fd: &OwnedFd) -> nix::Result<OwnedFd> {
    const FIRST: RawFd = 10;
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST))?;
    super::sys::inherited(number)
}

fn open_null() -> nix::Result<OwnedFd> {
    let io = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    Ok(File::options().read(true).write(true).open("/dev/null").map_err(io)?.into())
}

/// A started container. Dropping it kills all that runs in it.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    control: OwnedFd,
    damage: Vec<String>,
    ended: Option<Exit>,
    reaped: bool,
}

impl Running {
    /// The process that stands for the container on the host. It passes on the signals that it gets.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// What of the image could not be read so far, a sentence each, the first few: the program was told "Input/output error".
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Sends a signal to the program (TERM, INT, HUP, QUIT: to its process group); KILL ends the whole container. Nothing
    /// happens when it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match send(self.control.as_raw_fd(), &[signal as i32 as u8], MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for the program's end; by then nothing of the container is left. Safe to call again.
    pub fn wait(&mut self) -> io::Result<Exit> {
        while self.ended.is_none() {
            match wire::receive(&self.control)? {
                Some(Message::Ended(exit)) => self.ended = Some(exit),
                Some(Message::Damaged(what)) => self.damage.push(what),
                Some(Message::Started | Message::Failed(_)) => {}
                // The monitor was killed, and the container with it.
                None => {
                    self.ended = Some(Exit {
                        status: Status::Signaled(libc::SIGKILL),
                        usage: Usage::default(),
                    });
                }
            }
        }
        self.reap()?;
        Ok(self.ended.expect("set above"))
    }

    /// Waits at most `limit`; `None` when the program is still running then.
    pub fn wait_for(&mut self, limit: Duration) -> io::Result<Option<Exit>> {
        let until = Instant::now() + limit;
        while self.ended.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up, so that it does not spin through the last millisecond.
            let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, if left.is_zero() { PollTimeout::ZERO } else { timeout }) {
                Ok(0) if left.is_zero() => return Ok(None),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return self.wait().map(Some),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.wait().map(Some)
    }

    fn reap(&mut self) -> io::Result<()> {
        while !self.reaped {
            match waitpid(self.pid, None) {
                Ok(_) => self.reaped = true,
                Err(Errno::EINTR) => {}
                // Someone else waited for it.
                Err(Errno::ECHILD) => self.reaped = true,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Readable when [`Running::wait`] will not block for long.
impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            // Ends both directions, as the parent's death would.
            let shut = nix::sys::socket::shutdown(self.control.as_raw_fd(), nix::sys::socket::Shutdown::Both);
            debug_assert!(matches!(shut, Ok(()) | Err(Errno::ENOTCONN)), "{shut:?}");
            let reaped = self.reap();
            debug_assert!(reaped.is_ok(), "{reaped:?}");
        }
    }
}
