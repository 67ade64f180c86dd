//! What can go wrong between a [`Container`](super::Container) and a running program.

use std::fmt;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::forbidden::Forbidden;
use super::kernel_mount::NoKernelMount;

/// A failure of the host's kernel, by number: it crosses from the contained process to its parent as JSON.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Os(pub i32);

impl From<Errno> for Os {
    fn from(errno: Errno) -> Os {
        Os(errno as i32)
    }
}

impl From<&io::Error> for Os {
    fn from(error: &io::Error) -> Os {
        Os(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Display for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from_raw_os_error(self.0), f)
    }
}

impl fmt::Debug for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Os {}

/// Why a program could not be started in a container. Never the program's own failure: that is its exit status.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeError {
    #[error("this host does not let ordinary users make containers: {forbidden}")]
    NoUserNamespaces { forbidden: Forbidden, source: Os },
    #[error("the image's root folder {path} cannot be opened")]
    Root { path: PathBuf, source: Os },
    #[error("the image {path} cannot be used: {reason}")]
    Image {
        path: PathBuf,
        reason: String,
        hint: Option<String>,
    },
    #[error("the image {path} cannot be mounted by the kernel")]
    KernelMount { path: PathBuf, source: NoKernelMount },
    #[error("the image {path} cannot be mounted through /dev/fuse")]
    Fuse { path: PathBuf, source: Os },
    #[error("{path} cannot be bound to {target}")]
    BindSource { path: PathBuf, target: PathBuf, source: Os },
    #[error("{path}, to be bound to {target}, does not exist")]
    BindSourceMissing { path: PathBuf, target: PathBuf },
    #[error("there is no program `{program}` in the container (looked in {path})")]
    ProgramNotFound { program: String, path: String },
    #[error("`{program}` cannot be executed in the container: {reason}")]
    NotExecutable { program: String, reason: String, source: Os },
    #[error("{what} cannot be mounted on {target}")]
    Mount { what: String, target: PathBuf, source: Os },
    #[error("the mount point {target} cannot be made")]
    MountPoint { target: PathBuf, source: Os },
    #[error("this host cannot lay a writable layer over the image")]
    Overlay { source: Os },
    #[error("{path} cannot take the container's writes")]
    Layer { path: PathBuf, source: Os },
    #[error("the image's user `{user}` cannot be used: {reason}")]
    User { user: String, reason: String },
    #[error("the working directory {path} cannot be used")]
    WorkingDir { path: PathBuf, source: Os },
    #[error("not a container: {what}")]
    Invalid { what: String },
    #[error("{what} failed")]
    Setup { what: String, source: Os },
    #[error("the container's first process ended before the program was started")]
    Lost,
}

impl RuntimeError {
    pub(super) fn setup(what: &str) -> impl FnOnce(Errno) -> RuntimeError + use<'_> {
        move |errno| RuntimeError::Setup {
            what: what.to_owned(),
            source: errno.into(),
        }
    }

    pub(super) fn invalid(what: impl Into<String>) -> RuntimeError {
        RuntimeError::Invalid { what: what.into() }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            RuntimeError::NoUserNamespaces { forbidden, .. } => forbidden.hint(),
            RuntimeError::Image { hint, .. } => return hint.clone(),
            RuntimeError::KernelMount { .. } => NoKernelMount::HINT.to_owned(),
            RuntimeError::Fuse { source, .. } if source.0 == libc::EACCES => {
                "ask for /dev/fuse with mode 0666, or set `runtime.image_access: extract`".to_owned()
            }
            RuntimeError::Fuse { .. } => "ordinary users need Linux 4.18 for it; otherwise set `runtime.image_access: extract`".to_owned(),
            RuntimeError::BindSourceMissing { path, .. } => {
                format!("create {} first, or mark the bind as optional", path.display())
            }
            RuntimeError::ProgramNotFound { program, .. } if program.contains('/') => {
                "paths are the image's, not the host's: bind the folder that holds the program if it is the host's".to_owned()
            }
            RuntimeError::ProgramNotFound { .. } => "give its path in the image, or add its folder to PATH with `env`".to_owned(),
            RuntimeError::NotExecutable { source, .. } if source.0 == libc::ENOEXEC => {
                "a script needs `#!` in its first line; a program must be built for this machine's processor".to_owned()
            }
            RuntimeError::NotExecutable { source, .. } if source.0 == libc::ENOENT => {
                "its interpreter or dynamic loader must be in the image too".to_owned()
            }
            RuntimeError::MountPoint { target, source } if source.0 == libc::EROFS => format!(
                "{} lies in a folder that is bound read-only: create it there on the host, or bind that folder read-write",
                target.display()
            ),
            RuntimeError::MountPoint { source, .. } | RuntimeError::Mount { source, .. }
                if matches!(source.0, libc::ENOTDIR | libc::EISDIR) =>
            {
                "a folder can only be bound to a folder, a file to a file: choose another target".to_owned()
            }
            RuntimeError::Overlay { .. } => {
                "ordinary users can have one from Linux 5.11 on: run without a writable root (bind a folder to write to), or use a copy of the image that you own".to_owned()
            }
            RuntimeError::Layer { source, .. } if source.0 == libc::EWOULDBLOCK => {
                "another container is writing to it: wait for its end, or name another folder".to_owned()
            }
            RuntimeError::Layer { source, .. } if source.0 == libc::ENOENT => "make the folder that it lies in first".to_owned(),
            RuntimeError::Layer { .. } => {
                "it must be yours, on a file system of this machine: network and parallel file systems, and kernels before 5.11, cannot do it".to_owned()
            }
            RuntimeError::User { .. } => "run as yourself, or as root inside (`user: root`, `--user root`)".to_owned(),
            RuntimeError::WorkingDir { .. } => "choose a folder that exists in the image or is bound".to_owned(),
            _ => return None,
        })
    }
}
