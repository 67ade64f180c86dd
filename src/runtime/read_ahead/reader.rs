//! The process that reads ahead.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{OFlag, open};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, fchdir};
use rustix::fs::{OFlags, ResolveFlags, openat2};

use super::list::{Extent, List};
use crate::runtime::monitor::release_caller;
use crate::runtime::sys::{self, Fate, Side};

/// As much is read at once.
const PIECE: usize = 1 << 20;

/// Reads what `list` names of `image`, an `O_PATH` of the image's root, in a process of its own beside the program, with no more
/// rights than this one has left. It ends by itself, and with the container. The caller must have one thread.
///
/// Nothing happens where there is only one processor: the program would wait for it.
pub fn start(image: &OwnedFd, list: &List) -> nix::Result<()> {
    let cpus = sched_getaffinity(Pid::this()).map_or(1, |set| {
        (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count()
    });
    if list.extents().is_empty() || cpus < 2 {
        return Ok(());
    }
    match sys::fork()? {
        Side::Parent(_) => Ok(()),
        Side::Child => {
            let read = prepare(image).map(|root| list.extents().iter().for_each(|extent| read(&root, extent)));
            sys::exit_now(i32::from(read.is_err()))
        }
    }
}

/// Keeps nothing of what its parent holds open but the image's root.
fn prepare(image: &OwnedFd) -> nix::Result<OwnedFd> {
    // Where there is no PID namespace that would take it along.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    release_caller();
    fchdir(image)?;
    sys::close_from(3, Fate::Closed)?;
    open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// What is not there, or no regular file, is passed over.
fn read(root: &OwnedFd, extent: &Extent) {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let Ok(file) = openat2(root.as_fd(), &extent.path, flags, rustix::fs::Mode::empty(), within).map(File::from) else {
        return;
    };
    let Ok(size) = file.metadata().map(|meta| if meta.is_file() { meta.len() } else { 0 }) else {
        return;
    };
    let mut buffer = vec![0; PIECE];
    let end = extent.offset.saturating_add(extent.length).min(size);
    let mut at = extent.offset;
    while at < end {
        let length = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
        match file.read_at(&mut buffer[..length], at) {
            Ok(read) if read > 0 => at += read as u64,
            _ => return,
        }
    }
}
