//! How an image becomes a folder: decided by the monitor, done by it and by the first process.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::RawDir;

use super::container::{Container, ImageAccess, Root};
use super::enter::Ids;
use super::error::RuntimeError;
use super::fuse::{self, Handover, Owner};
use super::kernel_mount;
use super::read_ahead::{Learning, List};
use super::unpack::{self, Copy};
use crate::squashfs::Squashfs;

/// What the first process has to open, inside the namespaces.
pub enum View {
    Folder(PathBuf),
    /// The kernel's own mount, which has no place yet.
    Mounted(OwnedFd),
    /// A mount of the image in the namespace's own user namespace, answered by the server behind `server`.
    Fuse {
        file: PathBuf,
        owner: Owner,
        server: Handover,
        /// What is to be read ahead of the program.
        list: List,
    },
}

/// What the monitor keeps for as long as the container lives.
#[derive(Default)]
pub struct Keeper {
    server: Option<Pid>,
    copy: Option<Copy>,
    learning: Option<Learning>,
}

/// A folder that every host has, on which nothing of a container's depends: the image is mounted on it until it lies where
/// it belongs.
const QUIET: &str = "/proc/fs";

/// Decompressed blocks that a server keeps, in bytes: the kernel itself caches what programs read.
const CACHE: usize = 64 << 20;

/// For the names of a folder that are learnt at once, in bytes.
const NAMES: usize = 32 << 10;

/// Prepares the container's image. The caller must have one thread.
pub fn image(container: &Container, ids: Ids, control: &OwnedFd) -> Result<(View, Keeper), RuntimeError> {
    let (file, offset, access, scratch) = match &container.root {
        Root::Folder(folder) => return Ok((View::Folder(folder.clone()), Keeper::default())),
        Root::Squashfs {
            file,
            offset,
            access,
            scratch,
        } => (file, *offset, *access, scratch),
    };
    let opened = File::open(file).map_err(|error| RuntimeError::Root {
        path: file.clone(),
        source: (&error).into(),
    })?;
    let again = opened.try_clone().map_err(|error| RuntimeError::Root {
        path: file.clone(),
        source: (&error).into(),
    })?;
    let image = Squashfs::open(again, offset, CACHE).map_err(|error| unusable(file, &error, error.hint()))?;
    let mounted = match access {
        ImageAccess::Kernel => {
            let mounted = kernel_mount::mount(&opened, offset);
            Some(mounted.map_err(|source| RuntimeError::KernelMount {
                path: file.clone(),
                source,
            })?)
        }
        ImageAccess::Auto => mounted_alike(&image, &opened, offset, ids),
        ImageAccess::Fuse | ImageAccess::Extract => None,
    };
    if let Some(mounted) = mounted {
        return Ok((View::Mounted(mounted), Keeper::default()));
    }
    let access = match access {
        ImageAccess::Auto => best_of_ours().0,
        chosen => chosen,
    };
    if access == ImageAccess::Extract {
        let hint = "the folder for it is `scratch` in the configuration, or TMPDIR";
        let copy = unpack::obtain(&image, &opened, offset, scratch).map_err(|error| unusable(file, &error, Some(hint.to_owned())))?;
        let view = View::Folder(copy.folder.clone());
        let keeper = Keeper {
            copy: Some(copy),
            ..Keeper::default()
        };
        return Ok((view, keeper));
    }
    drop(opened);
    let owner = ids.inside;
    // Without it the program only starts more slowly.
    let learning = (container.read_ahead.as_ref()).and_then(|place| Learning::begin(place, &image, file, offset).ok());
    let (learning, trace) = learning.unzip();
    let (pid, server) = fuse::start(image, owner, trace, control).map_err(RuntimeError::setup("starting the image's server"))?;
    let view = View::Fuse {
        file: file.clone(),
        owner,
        server,
        list: learning.as_ref().map(|learning| learning.known().clone()).unwrap_or_default(),
    };
    let keeper = Keeper {
        server: Some(pid),
        learning,
        ..Keeper::default()
    };
    Ok((view, keeper))
}

/// The kernel's own mount where it can be had, and shows a program nothing else than the other ways do.
fn mounted_alike(image: &Squashfs, file: &File, offset: u64, ids: Ids) -> Option<OwnedFd> {
    kernel_mount::is_privileged().ok()?;
    let same = kernel_mount::belongs_to(image, ids.uid.as_raw(), ids.gid.as_raw());
    // What a damaged image has to say of it, it will say again by another way.
    if !same.unwrap_or(false) {
        return None;
    }
    kernel_mount::mount(file, offset).ok()
}

fn unusable(file: &Path, error: &dyn std::error::Error, hint: Option<String>) -> RuntimeError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    RuntimeError::Image {
        path: file.to_owned(),
        reason,
        hint,
    }
}

/// What [`ImageAccess::Auto`] means on this host for the caller, and why.
pub fn best_image_access() -> (ImageAccess, String) {
    let (access, why) = best_of_ours();
    match kernel_mount::is_allowed() {
        Ok(()) => {
            let why = format!("you may mount, and SquashFS and loop devices are there; where files are not all root's, {access}");
            (ImageAccess::Kernel, why)
        }
        Err(error) => (access, format!("{why}; the kernel's own mount cannot be had: {error}")),
    }
}

/// The first way but the kernel's own mount.
fn best_of_ours() -> (ImageAccess, String) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if !is_at_least(release, (4, 18)) {
        let why = format!("Linux {release} does not let ordinary users mount FUSE; 4.18 does");
        return (ImageAccess::Extract, why);
    }
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => (ImageAccess::Fuse, "/dev/fuse can be used".to_owned()),
        Err(error) => (ImageAccess::Extract, format!("/dev/fuse cannot be used: {error}")),
    }
}

fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= wanted
}

impl View {
    /// Opens the image's root with `O_PATH`.
    pub fn open(&self) -> Result<OwnedFd, RuntimeError> {
        let path = match self {
            View::Folder(folder) => folder.as_path(),
            View::Mounted(mounted) => {
                kernel_mount::put(mounted, Path::new(QUIET)).map_err(RuntimeError::setup("taking over the image's mount"))?;
                Path::new(QUIET)
            }
            View::Fuse { file, owner, server, .. } => {
                let device = fuse::mount(Path::new(QUIET), *owner).map_err(|errno| RuntimeError::Fuse {
                    path: file.clone(),
                    source: errno.into(),
                })?;
                server.give(&device).map_err(RuntimeError::setup("telling the image's server"))?;
                look_around(Path::new(QUIET));
                Path::new(QUIET)
            }
        };
        open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| RuntimeError::Root {
            path: path.to_owned(),
            source: errno.into(),
        })
    }

    /// Whether a process of our own answers for the image.
    pub fn is_served(&self) -> bool {
        matches!(self, View::Fuse { .. })
    }

    /// What is to be read ahead of the program; may be nothing.
    pub fn list(&self) -> Option<&List> {
        match self {
            View::Fuse { list, .. } => Some(list),
            View::Folder(_) | View::Mounted(_) => None,
        }
    }

    /// Takes away what [`View::open`] mounted, once the image lies where it belongs.
    pub fn close(&self) -> nix::Result<()> {
        match self {
            View::Folder(_) => Ok(()),
            View::Mounted(_) | View::Fuse { .. } => umount2(QUIET, MntFlags::MNT_DETACH),
        }
    }
}

/// Has the kernel learn all names of the folders in which most mount points lie, with one question each instead of one for each
/// mount point. What cannot be listed is asked for later, and complained of then.
fn look_around(root: &Path) {
    for folder in [root.to_owned(), root.join("etc")] {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        if let Ok(folder) = open(&folder, flags, Mode::empty()) {
            let mut names = Vec::with_capacity(NAMES);
            // The first of the names: there is no second question then.
            RawDir::new(folder, names.spare_capacity_mut()).next();
        }
    }
}

impl Keeper {
    /// Whether the server has ended, so that the container must.
    pub fn is_lost(&mut self) -> nix::Result<bool> {
        let lost = match self.server {
            None => false,
            Some(server) => gone(server, WaitPidFlag::WNOHANG)?,
        };
        if lost {
            // Its number may be another's from now on.
            self.server = None;
        }
        Ok(lost)
    }

    /// Ends what the container needed.
    pub fn end(self) -> Result<(), RuntimeError> {
        if let Some(server) = self.server {
            kill(server, Signal::SIGKILL)
                .and_then(|()| gone(server, WaitPidFlag::empty()))
                .map_err(RuntimeError::setup("ending the image's server"))?;
        }
        if let Some(learning) = self.learning {
            learning.end();
        }
        match self.copy {
            None => Ok(()),
            Some(copy) => copy.release().map_err(|error| RuntimeError::Setup {
                what: error.to_string(),
                source: std::error::Error::source(&error)
                    .and_then(|source| source.downcast_ref::<std::io::Error>())
                    .map_or(Errno::EIO.into(), Into::into),
            }),
        }
    }
}

fn gone(process: Pid, flags: WaitPidFlag) -> nix::Result<bool> {
    loop {
        return match waitpid(process, Some(flags)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => Ok(true),
            Ok(_) => Ok(false),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(errno),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_linux() {
        for (release, good) in [
            ("6.18.44-fc", true),
            ("4.18.0-553.el8_10.x86_64", true),
            ("4.17.99", false),
            ("3.10.0-1160.el7", false),
            ("", false),
        ] {
            assert_eq!(is_at_least(release, (4, 18)), good, "{release}");
        }
    }
}
