//! Attributes of mounts, for a whole tree of them.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::kernel::Kernel;
use super::root::{bind, handle};
use super::sys::{self, Depth};

/// The flags that `mount_setattr` and a remount number alike.
const COMMON: MsFlags = MsFlags::MS_RDONLY
    .union(MsFlags::MS_NOSUID)
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Puts a copy of what is mounted at `source`, with all that is mounted below it, on `point`, with `flags` (as for [`add`]). `look`
/// finds what is where the point is. Gives the root of what is there now.
///
/// # Errors
/// What the kernel says.
pub fn put(
    source: impl AsFd,
    point: impl AsFd,
    flags: MsFlags,
    kernel: Kernel,
    look: impl FnOnce() -> nix::Result<OwnedFd>,
) -> nix::Result<OwnedFd> {
    if kernel.mount_attributes {
        match attach(&source, &point, flags) {
            Err(Errno::ENOSYS) => {}
            done => return done,
        }
    }
    bind(&source, Path::new(&handle(&point)))?;
    // The point's descriptor is of what is now hidden.
    let top = look()?;
    add(&top, flags, Depth::All, kernel)?;
    Ok(top)
}

/// With its flags from the first moment on, and without a path. ENOSYS before Linux 5.12.
fn attach(source: impl AsFd, point: impl AsFd, flags: MsFlags) -> nix::Result<OwnedFd> {
    debug_assert!(COMMON.contains(flags));
    let copy =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(source, c"", copy).map_err(errno)?;
    sys::set_mount_attributes(&tree, flags.bits(), Depth::All)?;
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, c"", point, c"", both).map_err(errno)?;
    Ok(tree)
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Sets `flags` (of `MS_RDONLY`, `MS_NOSUID`, `MS_NODEV`, `MS_NOEXEC`) on the mount whose root `fd` refers to, and on
/// those below it.
pub fn add(fd: impl AsFd, flags: MsFlags, depth: Depth, kernel: Kernel) -> nix::Result<()> {
    debug_assert!(COMMON.contains(flags));
    if kernel.mount_attributes {
        match sys::set_mount_attributes(&fd, flags.bits(), depth) {
            Err(Errno::ENOSYS) => {}
            done => return done,
        }
    }
    remount(fd, flags, depth)
}

/// One mount after another. A remount sets all flags anew, and in a user namespace those that were inherited are locked:
/// they must be repeated.
fn remount(fd: impl AsFd, flags: MsFlags, depth: Depth) -> nix::Result<()> {
    let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let top = fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).map_err(io)?;
    let table = fs::read("/proc/self/mountinfo").map_err(io)?;
    for (point, present) in table.split(|&b| b == b'\n').filter_map(parse) {
        let wanted = match depth {
            Depth::One => point == top,
            Depth::All => point.starts_with(&top),
        };
        if !wanted || present.contains(flags) {
            continue;
        }
        let all = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | present | flags;
        match mount(None::<&Path>, &point, None::<&Path>, all, None::<&Path>) {
            Ok(()) => {}
            // A mount below that the caller may not reach: neither may the program.
            Err(Errno::EACCES | Errno::ENOENT) if point != top => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Mount point and flags of a line of mountinfo (proc(5)).
fn parse(line: &[u8]) -> Option<(PathBuf, MsFlags)> {
    let mut fields = line.split(|&b| b == b' ');
    let point = unescape(fields.nth(4)?);
    let options = fields.next()?;
    let mut flags = MsFlags::empty();
    for option in options.split(|&b| b == b',') {
        flags |= match option {
            b"ro" => MsFlags::MS_RDONLY,
            b"nosuid" => MsFlags::MS_NOSUID,
            b"nodev" => MsFlags::MS_NODEV,
            b"noexec" => MsFlags::MS_NOEXEC,
            b"noatime" => MsFlags::MS_NOATIME,
            b"nodiratime" => MsFlags::MS_NODIRATIME,
            b"relatime" => MsFlags::MS_RELATIME,
            _ => MsFlags::empty(),
        };
    }
    Some((point, flags))
}

/// Undoes the octal escapes of blanks, newlines and backslashes.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match digits {
            Some(d) => {
                bytes.push(d.iter().fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402\134x ro,nosuid,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let (point, flags) = parse(line).unwrap();
        assert_eq!(point.as_os_str().as_bytes(), br"/mnt 2\x");
        assert_eq!(flags, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME);
        assert!(parse(b"").is_none());
        assert_eq!(unescape(br"\9\04"), PathBuf::from(r"\9\04"));
    }
}
