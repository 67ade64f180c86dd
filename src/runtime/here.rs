//! A container whose monitor is the caller's own process: one process and one `exec` fewer, where nothing else is to be done
//! meanwhile.

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::container::Container;
use super::error::RuntimeError;
use super::exit::{Exit, Status, Usage};
use super::kernel::Kernel;
use super::monitor::{self, Standing};
use super::mounts;
use super::sys;
use super::wire::{self, Message, Spec};

/// What came of a container.
#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    /// As [`Running::damage`](super::Running::damage) tells it.
    pub damage: Vec<String>,
}

/// Runs `container` to its end with the caller's own streams, and passes on to it the signals that this process gets. `None`
/// where this process has more than one thread: [`spawn`](super::spawn) it then.
///
/// # Errors
/// As [`spawn`](super::spawn).
pub fn run_here(container: &Container) -> Result<Option<Ended>, RuntimeError> {
    if !sys::has_one_thread() {
        return Ok(None);
    }
    mounts::check(container)?;
    let setup = RuntimeError::setup;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).map_err(setup("socketpair"))?;
    let spec = Spec {
        container: container.clone(),
        kernel: Kernel::default(),
        terminal: None,
        rank: None,
    };
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, None, Some(&mut before)).map_err(setup("reading the mask of signals"))?;
    let end = monitor::keep(&spec, &theirs, Standing::Caller);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None).map_err(setup("unblocking signals"))?;
    let status = end?;
    drop(theirs);
    // What was said is in the socket's buffer: a few short messages.
    let mut damage = Vec::new();
    let mut exit = None;
    while let Some(message) = wire::receive(&ours).map_err(setup("reading what the container said"))? {
        match message {
            Message::Started => {}
            Message::Damaged(what) => damage.push(what),
            Message::Failed(error) => return Err(error),
            Message::Ended(ended) => exit = exit.or(Some(ended)),
        }
    }
    match (exit, status) {
        (Some(exit), _) => Ok(Some(Ended { exit, damage })),
        // It was killed.
        (None, status @ Status::Signaled(_)) => {
            let exit = Exit {
                status,
                usage: Usage::default(),
            };
            Ok(Some(Ended { exit, damage }))
        }
        (None, Status::Exited(_)) => Err(RuntimeError::Lost),
    }
}
