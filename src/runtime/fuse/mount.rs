//! Mounting, in the container's user and mount namespaces.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;

use super::server::Owner;

/// Opens `/dev/fuse` and mounts it on `target`; the descriptor is the server's to read. Both must happen in one user
/// namespace: the kernel refuses it otherwise.
///
/// # Errors
/// What the kernel says: `ENODEV` without FUSE, `EACCES` for a device that the caller may not open, `EPERM` before Linux 4.18.
pub fn mount(target: &Path, owner: Owner) -> nix::Result<OwnedFd> {
    let device = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    // All in the namespace may use it, as the modes of the files say.
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        device.as_raw_fd(),
        owner.uid,
        owner.gid
    );
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    nix::mount::mount(Some("dvrun"), target, Some("fuse.dvrun"), flags, Some(options.as_str()))?;
    Ok(device)
}
