//! A file as a block device, for as long as something uses it: what the kernel mounts has to be one (loop(4)).

use std::fs::{self, File};
use std::path::PathBuf;

use nix::errno::Errno;

use super::sys;

/// Bytes of which a device shows whole numbers. The offset may be any.
pub const SECTOR: u64 = 512;

const CONTROL: &str = "/dev/loop-control";
/// How often a device that was free a moment ago may turn out to be another's.
const TRIES: u32 = 64;

/// A device that shows a part of a file, read-only. The kernel frees it when this and every mount of it are gone, whoever is
/// killed.
pub struct LoopDevice {
    pub path: PathBuf,
    /// Keeps the device until it is mounted.
    _device: File,
}

/// Shows `file` from byte `offset` to its end. What does not fill a [`SECTOR`] at the end is not seen.
///
/// # Errors
/// What the kernel says: `EACCES` or `EPERM` to who may not, `ENOENT` where there are no such devices, or not all of them.
pub fn attach(file: &File, offset: u64) -> nix::Result<LoopDevice> {
    let control = open(CONTROL.into(), File::options().read(true).write(true))?;
    let mut tries = 0;
    loop {
        let path = PathBuf::from(format!("/dev/loop{}", sys::free_loop_device(&control)?));
        let device = open(path.clone(), File::options().read(true))?;
        match sys::show_on_loop_device(&device, file, offset) {
            Ok(()) => return Ok(LoopDevice { path, _device: device }),
            // Someone else was faster, or still has an eye on it (udev).
            Err(Errno::EBUSY | Errno::EAGAIN) if tries < TRIES => tries += 1,
            Err(errno) => return Err(errno),
        }
    }
}

/// Whether there are such devices, and they may be used.
pub fn are_there() -> nix::Result<()> {
    let control = open(CONTROL.into(), File::options().read(true).write(true))?;
    let number = sys::free_loop_device(&control)?;
    open(format!("/dev/loop{number}").into(), File::options().read(true)).map(drop)
}

fn open(path: PathBuf, options: &mut fs::OpenOptions) -> nix::Result<File> {
    options
        .open(path)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}
