//! The root of the container: the image itself, or something laid over it where mount points are missing or our server answers.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag};

use super::attributes;
use super::error::RuntimeError;
use super::inside::{self, Kind, Sights};
use super::kernel::Kernel;
use super::layer::Layer;
use super::mounts::Access;
use super::sys::Depth;

/// Where everything is put together before it becomes the root: a private tmpfs over a folder that every host has.
/// Sources below it are opened before it is mounted.
pub const STAGE: &str = "/tmp";
const ROOT: &str = "/tmp/root";
const UPPER: &str = "/tmp/upper";
const WORK: &str = "/tmp/work";
const POINTS: &str = "/tmp/points";

/// A mount point that the image must have.
pub struct Need<'a> {
    pub target: &'a Path,
    pub kind: Kind,
}

/// Mounts the stage.
pub fn stage() -> Result<(), RuntimeError> {
    memory(Path::new(STAGE), 0o755, MsFlags::MS_NOSUID | MsFlags::MS_NODEV).map_err(RuntimeError::setup("mounting a tmpfs"))?;
    make_folders(&[ROOT]).map_err(RuntimeError::setup("making the folder of the root"))
}

fn make_folders(folders: &[&str]) -> nix::Result<()> {
    folders.iter().try_for_each(|folder| fs::create_dir(folder).map_err(errno))
}

/// Mounts the root on the stage, every mount point in it; returns its `O_PATH`. `sights` are the image's. One that is `served` by a
/// process of ours is laid under an overlay also where it could do without: the kernel hands each `ioctl` on to a FUSE server, and
/// Python asks of each file that it opens whether it is a terminal. An overlay says itself that it is none.
pub fn prepare(
    image: &OwnedFd,
    served: bool,
    sights: &Sights<'_>,
    layer: &Layer,
    needs: &[Need<'_>],
    kernel: Kernel,
) -> Result<OwnedFd, RuntimeError> {
    let missing = missing(sights, needs)?;
    let folders = layer.folders((UPPER, WORK));
    let access = match folders {
        None => Access::Read,
        Some(_) => Access::ReadWrite,
    };
    let plain = folders.is_none() && all_in_empty_folders(image, &missing);
    if plain && !(served && kernel.overlay) {
        return bound(image, &missing, kernel);
    }
    let refused = if kernel.overlay {
        let laid = make_folders(&[UPPER, WORK, POINTS])
            .and_then(|()| points(image, &missing))
            .and_then(|()| overlay(image, folders, &missing));
        match laid {
            Ok(()) => return seal(access, kernel),
            Err(errno) => errno,
        }
    } else {
        Errno::ENOSYS
    };
    if plain {
        return bound(image, &missing, kernel);
    }
    match layer {
        Layer::Memory => return Err(RuntimeError::Overlay { source: refused.into() }),
        Layer::Folder { path, .. } => {
            return Err(RuntimeError::Layer {
                path: path.clone(),
                source: refused.into(),
            });
        }
        Layer::None => {}
    }
    synthetic(image, &missing)?;
    seal(Access::Read, kernel)
}

/// The image itself, with its empty folders covered in which mount points are missing.
fn bound(image: &OwnedFd, missing: &[Missing<'_>], kernel: Kernel) -> Result<OwnedFd, RuntimeError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    let root = open_root()
        .and_then(|point| attributes::put(image, point, flags, kernel, open_root))
        .map_err(RuntimeError::setup("binding the image"))?;
    cover(&root, missing, kernel).map_err(RuntimeError::setup("covering an empty folder"))?;
    Ok(root)
}

/// A mount point that the image lacks.
struct Missing<'a> {
    need: &'a Need<'a>,
    /// The folder of the image in which something has to be made, without links.
    existing: PathBuf,
    /// The whole path, without links.
    path: PathBuf,
}

fn missing<'a>(sights: &Sights<'_>, needs: &'a [Need<'a>]) -> Result<Vec<Missing<'a>>, RuntimeError> {
    let mut all = Vec::new();
    for need in needs {
        let wrong = |errno: Errno| RuntimeError::MountPoint {
            target: need.target.to_owned(),
            source: errno.into(),
        };
        let sight = sights.at(need.target).map_err(wrong)?;
        match (sight.missing.is_empty(), sight.kind == need.kind) {
            (true, true) => {}
            (true, false) => {
                return Err(wrong(if need.kind == Kind::Folder { Errno::ENOTDIR } else { Errno::EISDIR }));
            }
            (false, _) => all.push(Missing {
                need,
                path: sight.path(),
                existing: sight.existing.clone(),
            }),
        }
    }
    Ok(all)
}

/// Whether nothing of the image is hidden where a folder with the mount points is laid over each in which one is missing: most
/// images lack a home and nothing else. No overlay is needed then, which takes longer to make than all the rest.
fn all_in_empty_folders(image: &OwnedFd, missing: &[Missing<'_>]) -> bool {
    let base = PathBuf::from(handle(image));
    missing.iter().all(|missing| {
        let inner = missing.existing.strip_prefix("/").unwrap_or(&missing.existing);
        // The path is without links. One that cannot be read is not known to be empty.
        !inner.as_os_str().is_empty() && fs::read_dir(base.join(inner)).is_ok_and(|mut entries| entries.next().is_none())
    })
}

/// Lays folders in memory, with the mount points and otherwise as the image's, over those in which they are missing.
fn cover(root: &OwnedFd, missing: &[Missing<'_>], kernel: Kernel) -> nix::Result<()> {
    let folders: BTreeSet<&Path> = missing.iter().map(|missing| missing.existing.as_path()).collect();
    for folder in folders {
        let point = inside::find(root.as_fd(), folder)?.fd;
        let cover = memory_folder(nix::sys::stat::fstat(&point)?.st_mode & 0o7777 | 0o700)?;
        for missing in missing.iter().filter(|missing| missing.existing == folder) {
            let rest = missing.path.strip_prefix(folder).unwrap_or(&missing.path);
            inside::make(inside::find(cover.as_fd(), rest)?, missing.need.kind)?;
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
        attributes::put(&cover, &point, flags, kernel, || Ok(inside::find(root.as_fd(), folder)?.fd))?;
    }
    Ok(())
}

/// A layer of nothing but missing mount points, in folders that look like the image's.
///
/// As a layer of its own it works where making them in the overlay would not: files of the image whose group is not the
/// caller's (a store in a folder with the setgid bit, or another user's) cannot be copied up in a user namespace.
fn points(image: &OwnedFd, missing: &[Missing<'_>]) -> nix::Result<()> {
    let layer = Path::new(POINTS);
    let base = PathBuf::from(handle(image));
    for missing in missing {
        let outer: Vec<&Path> = missing.existing.ancestors().collect();
        for folder in outer.into_iter().rev() {
            let folder = folder.strip_prefix("/").unwrap_or(folder);
            let copy = layer.join(folder);
            // The path is without links, and its folders exist.
            let mode = fs::metadata(base.join(folder)).map_err(errno)?.permissions().mode() & 0o7777;
            match fs::create_dir(&copy) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(errno(error)),
                // Writable for the points that are to be made in it.
                _ => fs::set_permissions(&copy, fs::Permissions::from_mode(mode | 0o700)).map_err(errno)?,
            }
        }
        make_in(layer, missing)?;
    }
    Ok(())
}

fn make_in(folder: &Path, missing: &Missing<'_>) -> nix::Result<()> {
    let folder = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    inside::make(inside::find(folder.as_fd(), &missing.path)?, missing.need.kind).map(drop)
}

fn overlay(image: &OwnedFd, folders: Option<(String, String)>, missing: &[Missing<'_>]) -> nix::Result<()> {
    let mut layers = match (missing, &folders) {
        ([], Some(_)) => format!("lowerdir={}", handle(image)),
        // An overlay that cannot be written to has two layers. The upper one's root is the root.
        ([], None) => format!("lowerdir={}:{POINTS}", handle(image)),
        _ => format!("lowerdir={POINTS}:{}", handle(image)),
    };
    if let Some((upper, work)) = folders {
        layers += &format!(",upperdir={upper},workdir={work}");
    }
    let attempt = |data: &str| {
        mount(
            Some("overlay"),
            ROOT,
            Some("overlay"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some(data),
        )
    };
    match attempt(&format!("{layers},userxattr")) {
        // Distributions that allowed it before Linux 5.11 do not know the option.
        Err(Errno::EINVAL) => attempt(&layers),
        done => done,
    }
}

/// A tmpfs with the image's entries bound into it. Folders in which something is missing are made anew, the same way.
fn synthetic(image: &OwnedFd, missing: &[Missing<'_>]) -> Result<(), RuntimeError> {
    let setup = RuntimeError::setup;
    memory(Path::new(ROOT), 0o755, MsFlags::MS_NOSUID | MsFlags::MS_NODEV).map_err(setup("mounting a tmpfs"))?;
    let opened: BTreeSet<&Path> = missing.iter().flat_map(|missing| missing.existing.ancestors()).collect();
    graft(image, Path::new(ROOT), Path::new("/"), &opened).map_err(setup("making a root of parts of the image"))?;
    missing
        .iter()
        .try_for_each(|missing| make_in(Path::new(ROOT), missing))
        .map_err(setup("making mount points"))
}

fn graft(source: &OwnedFd, target: &Path, inside: &Path, opened: &BTreeSet<&Path>) -> nix::Result<()> {
    for entry in fs::read_dir(handle(source)).map_err(errno)? {
        let name = entry.map_err(errno)?.file_name();
        let child = openat(
            source,
            name.as_os_str(),
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let (inside, target) = (inside.join(&name), target.join(&name));
        match inside::file_type(&child)? {
            SFlag::S_IFLNK => symlink(readlinkat(&child, c"")?, &target).map_err(errno)?,
            SFlag::S_IFDIR => {
                fs::create_dir(&target).map_err(errno)?;
                if opened.contains(inside.as_path()) {
                    let mode = nix::sys::stat::fstat(&child)?.st_mode & 0o7777;
                    graft(&child, &target, &inside, opened)?;
                    fs::set_permissions(&target, fs::Permissions::from_mode(mode | 0o700)).map_err(errno)?;
                } else {
                    bind(&child, &target)?;
                }
            }
            _ => {
                fs::File::create_new(&target).map_err(errno)?;
                bind(&child, &target)?;
            }
        }
    }
    Ok(())
}

fn open_root() -> nix::Result<OwnedFd> {
    open(ROOT, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn seal(access: Access, kernel: Kernel) -> Result<OwnedFd, RuntimeError> {
    let root = open_root().map_err(RuntimeError::setup("opening the root"))?;
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if access == Access::Read {
        flags |= MsFlags::MS_RDONLY;
    }
    attributes::add(&root, flags, Depth::All, kernel).map_err(RuntimeError::setup("making the root read-only"))?;
    Ok(root)
}

/// Makes the root the root, and lets go of the host's.
pub fn pivot(kernel: Kernel) -> Result<(), RuntimeError> {
    let setup = RuntimeError::setup;
    nix::unistd::chdir(ROOT).map_err(setup("entering the root"))?;
    // The old root comes to lie over the new one, from where it is taken away: no folder for it is needed.
    let pivoted = if kernel.pivot_root {
        nix::unistd::pivot_root(".", ".")
    } else {
        Err(Errno::EINVAL)
    };
    match pivoted {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).map_err(setup("detaching the host's root"))?,
        // The host's root is the kernel's initial one, which cannot be replaced but covered. What is below could be reached
        // with CAP_SYS_CHROOT or CAP_SYS_ADMIN alone, and both are given up.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(setup("covering the host's root"))?;
            nix::unistd::chroot(".").map_err(setup("chroot"))?;
        }
        Err(errno) => return Err(setup("pivot_root")(errno)),
    }
    nix::unistd::chdir("/").map_err(setup("entering the root"))
}

/// An empty folder in memory. All of them, and the layer in memory, are parts of the stage: one file system of half
/// the machine's memory, since making each and taking it down again would take longer than all the rest of a mount.
pub fn memory_folder(mode: u32) -> nix::Result<OwnedFd> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let folder = Path::new(STAGE).join(format!("folder-{}", MADE.fetch_add(1, Ordering::Relaxed)));
    // Nothing of the mode is masked here.
    fs::DirBuilder::new().mode(mode).create(&folder).map_err(errno)?;
    open(&folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// An empty tmpfs.
fn memory(target: &Path, mode: u32, flags: MsFlags) -> nix::Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(format!("mode={mode:o}").as_str()))
}

/// Binds with all that is mounted below: what the host mounted cannot be taken apart in a user namespace.
pub fn bind(source: &impl AsFd, target: &Path) -> nix::Result<()> {
    mount(
        Some(handle(source).as_str()),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
}

/// A path to what a descriptor refers to, for calls that take none. Needs the host's `/proc`.
pub fn handle(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// A regular file below `root`, opened for reading. Needs the host's `/proc`.
pub fn regular(root: impl AsFd, path: &Path) -> Option<fs::File> {
    let found = inside::find(root.as_fd(), path).ok()?;
    let is_file = found.sight.missing.is_empty() && inside::file_type(&found.fd).ok()? == SFlag::S_IFREG;
    is_file.then(|| fs::File::open(handle(&found.fd)).ok()).flatten()
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
