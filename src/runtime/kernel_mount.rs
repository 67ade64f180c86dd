//! An image mounted by the kernel itself, for callers that may mount: root, as a rule.
//!
//! The mount has no place at first (`fsopen`, `fsmount`; Linux 5.2): it is a descriptor that the monitor opens before it makes
//! the namespaces and the first process attaches inside. So nothing is ever mounted in the host's namespace, the monitor needs
//! none of its own, and whoever is killed, the last of both to go takes the mount and the device below with it.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    move_mount,
};
use serde::{Deserialize, Serialize};

use super::error::Os;
use super::{loop_device, sys};
use crate::squashfs::{Squashfs, SquashfsError};

/// Why the kernel's own mount cannot be had.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoKernelMount {
    #[error("it takes CAP_SYS_ADMIN, which root has and this process has not")]
    NotPrivileged,
    #[error("it takes root of the host, and this process is in a user namespace")]
    InUserNamespace,
    #[error("this kernel mounts no SquashFS")]
    NoSquashfs { source: Os },
    #[error("there is no loop device to be had (/dev/loop-control, /dev/loop0 and on)")]
    NoLoopDevice { source: Os },
    #[error("the end of the file does not fill a sector of 512 bytes")]
    LastSector,
    #[error("the kernel refuses it{}", Said(.said))]
    Refused { said: String, source: Os },
}

impl NoKernelMount {
    /// What the user can do about it.
    pub const HINT: &str = "set `runtime.image_access: auto`, which takes the first way that is open (or `fuse`, or `extract`): \
         they need no privilege";
}

struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            said => write!(f, " ({said})"),
        }
    }
}

/// The bit of CAP_SYS_ADMIN (capabilities(7)).
const SYS_ADMIN: u64 = 1 << 21;

/// The initial user namespace's number (PROC_USER_INIT_INO, `include/linux/proc_ns.h`).
const INITIAL: &str = "user:[4026531837]";

/// Whether this process may mount, this kernel knows SquashFS, and there are loop devices.
///
/// # Errors
/// What lacks. To one without the privilege it costs one system call.
pub fn is_allowed() -> Result<(), NoKernelMount> {
    is_privileged()?;
    open_squashfs()?;
    loop_device::are_there().map_err(|errno| NoKernelMount::NoLoopDevice { source: errno.into() })
}

pub fn is_privileged() -> Result<(), NoKernelMount> {
    // Root of a user namespace has it as well, and may mount no block device.
    if !sys::effective_capabilities().is_ok_and(|all| all & SYS_ADMIN != 0) {
        return Err(NoKernelMount::NotPrivileged);
    }
    match fs::read_link("/proc/self/ns/user") {
        Ok(number) if number == Path::new(INITIAL) => Ok(()),
        _ => Err(NoKernelMount::InUserNamespace),
    }
}

/// A mount to be. The kernel loads its module where it is one.
fn open_squashfs() -> Result<OwnedFd, NoKernelMount> {
    fsopen("squashfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| NoKernelMount::NoSquashfs {
        source: Os(error.raw_os_error()),
    })
}

/// Mounts the file system at byte `offset` of `file`, nowhere yet.
///
/// # Errors
/// What lacks, or what the kernel says of the image.
pub fn mount(file: &File, offset: u64) -> Result<OwnedFd, NoKernelMount> {
    is_privileged()?;
    let context = open_squashfs()?;
    let device = loop_device::attach(file, offset).map_err(|errno| NoKernelMount::NoLoopDevice { source: errno.into() })?;
    let mounted = fsconfig_set_string(&context, "source", &device.path)
        .and_then(|()| fsconfig_set_flag(&context, "ro"))
        .and_then(|()| fsconfig_create(&context))
        .and_then(|()| {
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOATIME;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        });
    mounted.map_err(|error| match said(context) {
        // What a device does not show the kernel takes for missing, and says nothing.
        said if said.is_empty() && !fills_sectors(file, offset) => NoKernelMount::LastSector,
        said => NoKernelMount::Refused {
            said,
            source: Os(error.raw_os_error()),
        },
    })
}

fn fills_sectors(file: &File, offset: u64) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.len().saturating_sub(offset).is_multiple_of(loop_device::SECTOR))
}

/// What the kernel noted about a mount that did not come about: `e squashfs: …` a line.
fn said(context: OwnedFd) -> String {
    let mut context = File::from(context);
    let mut lines = Vec::new();
    let mut buffer = [0; 1024];
    // One message a read, and an error when there are no more.
    while let Ok(length @ 1..) = context.read(&mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]);
        lines.push(line.trim().trim_start_matches("e ").to_owned());
    }
    lines.join("; ")
}

/// Puts what [`mount`] gave on `target`, in this process's mount namespace.
pub fn put(mounted: &OwnedFd, target: &Path) -> nix::Result<()> {
    move_mount(mounted, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|error| Errno::from_raw(error.raw_os_error()))
}

/// Whether all files of `image` belong to `uid` and `gid`: then they look the same by every access, which shows them as the
/// caller's, and by the kernel's, which shows them as they are.
pub fn belongs_to(image: &Squashfs, uid: u32, gid: u32) -> Result<bool, SquashfsError> {
    for index in 0..image.id_count() {
        let id = image.id(index)?;
        if id != uid || id != gid {
            return Ok(false);
        }
    }
    Ok(true)
}
