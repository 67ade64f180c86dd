//! The process that reads ahead.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::fchdir;
use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags, openat2};

use super::list::{Item, List, What};
use crate::runtime::monitor::release_caller;
use crate::runtime::sys::{self, Fate, Side};

/// As much is read at once.
const PIECE: usize = 1 << 20;
/// For names of a folder, in bytes.
const NAMES: usize = 32 << 10;

/// Asks for what `list` names of `image`, an `O_PATH` of the image's root, in a process of its own beside the program, with no more
/// rights than this one has left. It ends by itself, and with the container. The caller must have one thread.
///
/// Nothing happens where there is only one processor: the program would wait for it.
pub fn start(image: &OwnedFd, list: &List) -> nix::Result<()> {
    if list.items().is_empty() || sys::processors() < 2 {
        return Ok(());
    }
    match sys::fork()? {
        Side::Parent(_) => Ok(()),
        Side::Child => {
            let asked = prepare(image).map(|root| {
                let mut buffer = vec![0; PIECE];
                for item in list.items() {
                    ask(&root, item, &mut buffer);
                }
            });
            sys::exit_now(i32::from(asked.is_err()))
        }
    }
}

/// Keeps nothing of what its parent holds open but the image's root.
fn prepare(image: &OwnedFd) -> nix::Result<OwnedFd> {
    // Where there is no PID namespace that would take it along.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // For whoever lists processes in there.
    prctl::set_name(c"read-ahead")?;
    release_caller();
    fchdir(image)?;
    sys::close_from(3, Fate::Closed)?;
    open(
        ".",
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
}

/// Asks for an item; what is not there, or something else, is passed over.
fn ask(root: &OwnedFd, item: &Item, buffer: &mut [u8]) -> Option<()> {
    let open = |flags| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        // The root has no name.
        let path = if item.path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &item.path
        };
        openat2(root.as_fd(), path, flags, Mode::empty(), within).ok()
    };
    match item.what {
        What::Itself => {
            let link = open(OFlags::PATH)?;
            rustix::fs::readlinkat_raw(&link, c"", buffer).ok()?;
        }
        What::Names => {
            let folder = open(OFlags::RDONLY | OFlags::DIRECTORY)?;
            let mut names = Vec::with_capacity(NAMES);
            let mut listing = RawDir::new(folder, names.spare_capacity_mut());
            while listing.next()?.is_ok() {}
        }
        What::Bytes { offset, length } => {
            // Nonblocking: what is no file holds nobody up.
            let file = File::from(open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?);
            let size = file.metadata().ok().filter(Metadata::is_file)?.len();
            let end = offset.saturating_add(length).min(size);
            let mut at = offset;
            while at < end {
                let length = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
                match file.read_at(&mut buffer[..length], at).ok()? {
                    0 => break,
                    read => at += read as u64,
                }
            }
        }
    }
    Some(())
}
