//! The writable layer over an image: in memory, or in a folder of the host that stays.
//!
//! ```text
//! FOLDER/upper   what containers wrote, as the overlay file system keeps it (deletions are `user.overlay` attributes)
//! FOLDER/work    its own
//! ```

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::container::Writable;
use super::error::RuntimeError;
use super::root::handle;

/// What takes the container's writes, opened while the host can still be seen.
pub enum Layer {
    None,
    Memory,
    Folder { path: PathBuf, upper: OwnedFd, work: OwnedFd },
}

impl Layer {
    /// Opens what [`keep`] made.
    pub fn open(writable: &Writable) -> Result<Layer, RuntimeError> {
        let folder = |path: &Path, name: &str| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            open(&path.join(name), flags, Mode::empty()).map_err(|errno| RuntimeError::Layer {
                path: path.to_owned(),
                source: errno.into(),
            })
        };
        Ok(match writable {
            Writable::No => Layer::None,
            Writable::Tmpfs => Layer::Memory,
            Writable::Folder(path) => Layer::Folder {
                upper: folder(path, UPPER)?,
                work: folder(path, WORK)?,
                path: path.clone(),
            },
        })
    }

    /// The overlay's `upperdir` and `workdir`, given those of the layer in memory.
    pub fn folders(&self, memory: (&str, &str)) -> Option<(String, String)> {
        match self {
            Layer::None => None,
            Layer::Memory => Some((memory.0.to_owned(), memory.1.to_owned())),
            Layer::Folder { upper, work, .. } => Some((handle(upper), handle(work))),
        }
    }
}

const UPPER: &str = "upper";
const WORK: &str = "work";

/// Makes the folders of a layer that stays, and locks it for as long as the returned file is open: two overlays that write to
/// one folder spoil it.
pub fn keep(writable: &Writable) -> Result<Option<File>, RuntimeError> {
    let Writable::Folder(path) = writable else { return Ok(None) };
    let wrong = |error: io::Error| RuntimeError::Layer {
        path: path.clone(),
        source: (&error).into(),
    };
    for folder in [path.clone(), path.join(UPPER), path.join(WORK)] {
        match DirBuilder::new().mode(0o755).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(wrong(error)),
            _ => {}
        }
    }
    let lock = File::open(path).map_err(wrong)?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(RuntimeError::Layer {
            path: path.clone(),
            source: Errno::EWOULDBLOCK.into(),
        }),
        Err(TryLockError::Error(error)) => Err(wrong(error)),
    }
}
