//! A copy of an image on this node, for hosts without FUSE: made once, shared by the containers that run at a time, removed
//! by the last of them.
//!
//! ```text
//! SCRATCH/dvrun-images-UID/KEY/       the root folder; KEY.new while it is made
//! SCRATCH/dvrun-images-UID/KEY.lock   locked (flock, shared) by each container that uses it
//! SCRATCH/dvrun-images-UID/KEY.make   locked by whoever makes, takes or removes it
//! ```
//!
//! The kernel frees the locks of the dead: what a killed container left is removed by the next one that comes by.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::squashfs::{Inode, InodeRef, Node, Squashfs, SquashfsError};

/// Why an image could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Image(#[from] SquashfsError),
    #[error("{} belongs to someone else", .0.display())]
    NotOurs(PathBuf),
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> UnpackError + 'a {
    move |source| UnpackError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// A copy in use. The lock is held by every process that has inherited it, the container's first one among them.
pub struct Copy {
    pub folder: PathBuf,
    lock_path: PathBuf,
    lock: File,
}

/// The copy of the image that lies at `offset` of `file`, made below `scratch` if there is none.
pub fn obtain(image: &Squashfs, file: &File, offset: u64, scratch: &Path) -> Result<Copy, UnpackError> {
    let base = base(scratch)?;
    sweep(&base)?;
    let meta = file.metadata().map_err(at("look at the image in", scratch))?;
    let stamp = meta.mtime() as i128 * 1_000_000_000 + i128::from(meta.mtime_nsec());
    let key = format!("{:x}-{:x}-{:x}-{stamp:x}-{offset:x}", meta.dev(), meta.ino(), meta.size());
    let [folder, lock_path, make_path] = ["", ".lock", ".make"].map(|suffix| base.join(format!("{key}{suffix}")));
    loop {
        let make = open_lock(&make_path)?;
        make.lock().map_err(at("lock", &make_path))?;
        if is_removed(&make, &make_path)? {
            continue;
        }
        let lock = open_lock(&lock_path)?;
        lock.lock_shared().map_err(at("lock", &lock_path))?;
        if !folder.is_dir() {
            let new = base.join(format!("{key}.new"));
            remove(&new)?;
            write(image, &new).or_else(|error| remove(&new).and(Err(error)))?;
            fs::rename(&new, &folder).map_err(at("rename", &new))?;
        }
        return Ok(Copy { folder, lock_path, lock });
    }
}

impl Copy {
    /// Lets go of the copy; removes it if no other container uses it.
    pub fn release(self) -> Result<(), UnpackError> {
        let make_path = self.lock_path.with_extension("make");
        let make = open_lock(&make_path)?;
        // Whoever has it for a moment only looks whether the copy is used, and sees that it is: of two that end together each
        // would leave it to the other.
        make.lock().map_err(at("lock", &make_path))?;
        remove_unused(&make, &self.lock, &self.lock_path)
    }
}

/// The caller's own folder: nobody else may put an image there.
fn base(scratch: &Path) -> Result<PathBuf, UnpackError> {
    let uid = nix::unistd::geteuid().as_raw();
    let base = scratch.join(format!("dvrun-images-{uid}"));
    match DirBuilder::new().mode(0o700).create(&base) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at("make", &base)(error)),
        _ => {}
    }
    let meta = fs::symlink_metadata(&base).map_err(at("look at", &base))?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
        return Err(UnpackError::NotOurs(base));
    }
    Ok(base)
}

fn open_lock(path: &Path) -> Result<File, UnpackError> {
    let options = File::options().create(true).truncate(false).write(true).read(true).open(path);
    options.map_err(at("open", path))
}

/// Whether a lock's file was removed while it was waited for.
fn is_removed(lock: &File, path: &Path) -> Result<bool, UnpackError> {
    Ok(lock.metadata().map_err(at("look at", path))?.nlink() == 0)
}

/// Locks it, unless somebody else has.
fn is_ours(lock: &File, path: &Path) -> Result<bool, UnpackError> {
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(at("lock", path)(error)),
    }
}

/// Removes what no living container uses.
fn sweep(base: &Path) -> Result<(), UnpackError> {
    for entry in fs::read_dir(base).map_err(at("read", base))? {
        let path = entry.map_err(at("read", base))?.path();
        if path.extension().is_some_and(|extension| extension == "lock") {
            match File::options().write(true).open(&path) {
                Ok(lock) => {
                    let make_path = path.with_extension("make");
                    let make = open_lock(&make_path)?;
                    // Whoever has that is about to use the copy, or to remove it.
                    if is_ours(&make, &make_path)? {
                        remove_unused(&make, &lock, &path)?;
                    }
                }
                // Another one was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at("open", &path)(error)),
            }
        }
    }
    Ok(())
}

/// Removes a copy whose lock `path` is, unless a container uses it. The caller has locked `make`.
fn remove_unused(make: &File, lock: &File, path: &Path) -> Result<(), UnpackError> {
    let make_path = path.with_extension("make");
    if is_removed(make, &make_path)? || !is_ours(lock, path)? || is_removed(lock, path)? {
        return Ok(());
    }
    remove(&path.with_extension("new"))?;
    remove(&path.with_extension(""))?;
    fs::remove_file(path).map_err(at("remove", path))?;
    fs::remove_file(&make_path).map_err(at("remove", &make_path))
}

/// A tree of whatever modes; none is fine.
fn remove(folder: &Path) -> Result<(), UnpackError> {
    for entry in walkdir::WalkDir::new(folder) {
        match entry {
            // Before its entries are read.
            Ok(entry) if entry.file_type().is_dir() => {
                fs::set_permissions(entry.path(), Permissions::from_mode(0o700)).map_err(at("open", entry.path()))?;
            }
            Ok(_) => {}
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => return Ok(()),
            Err(error) => return Err(at("read", folder)(error.into())),
        }
    }
    fs::remove_dir_all(folder).map_err(at("remove", folder))
}

/// Folders and what is not a file first, on this thread; then the files, on all.
fn write(image: &Squashfs, root: &Path) -> Result<(), UnpackError> {
    let (mut files, mut links, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    let mut todo = vec![(image.root(), root.to_owned())];
    let (mut entered, mut first): (HashSet<InodeRef>, HashMap<InodeRef, PathBuf>) = Default::default();
    while let Some((at_inode, path)) = todo.pop() {
        let inode = image.inode(at_inode)?;
        match &inode.node {
            Node::Folder(_) => {
                // A folder that is its own grandchild would never end.
                if !entered.insert(at_inode) {
                    return Err(UnpackError::Image(SquashfsError::TooBig("a folder that lies in two places")));
                }
                DirBuilder::new().mode(0o700).create(&path).map_err(at("make", &path))?;
                for entry in image.list(&inode)?.iter() {
                    todo.push((entry.inode, path.join(OsStr::from_bytes(entry.name))));
                }
                folders.push((path, inode));
            }
            Node::Symlink(target) => {
                symlink(OsStr::from_bytes(target), &path).map_err(at("make", &path))?;
                set_time(&path, &inode)?;
            }
            Node::Fifo => nix::unistd::mkfifo(&path, Mode::from_bits_truncate(u32::from(inode.mode)))
                .map_err(|errno| at("make", &path)(errno.into()))?,
            // Only root can make devices, and containers have their own; sockets are their program's.
            Node::BlockDevice(_) | Node::CharDevice(_) | Node::Socket => {}
            Node::File(_) => match first.get(&at_inode) {
                Some(known) => links.push((known.clone(), path)),
                None => {
                    first.insert(at_inode, path.clone());
                    files.push((inode, path));
                }
            },
        }
    }
    contents(image, &files)?;
    for (known, path) in links {
        fs::hard_link(&known, &path).map_err(at("link", &path))?;
    }
    // Inner folders were met after outer ones, and a closed one cannot be entered.
    for (path, inode) in folders.iter().rev() {
        set_time(path, inode)?;
        fs::set_permissions(path, Permissions::from_mode(inode.mode.into())).map_err(at("set the mode of", path))?;
    }
    Ok(())
}

fn set_time(path: &Path, inode: &Inode) -> Result<(), UnpackError> {
    let time = TimeSpec::new(inode.mtime.into(), 0);
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(|errno| at("set the time of", path)(errno.into()))
}

fn contents(image: &Squashfs, files: &[(Inode, PathBuf)]) -> Result<(), UnpackError> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), UnpackError> {
        let mut buffer = vec![0; 1 << 20];
        while let Some((inode, path)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            file(image, inode, path, &mut buffer)?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined = others.into_iter().map(|other| other.join().expect("it does not panic"));
        joined.fold(own, Result::and)
    })
}

fn file(image: &Squashfs, inode: &Inode, path: &Path, buffer: &mut [u8]) -> Result<(), UnpackError> {
    let parts = image.parts(inode)?;
    let out = File::create_new(path).map_err(at("make", path))?;
    // What is not written stays a hole.
    out.set_len(inode.size()).map_err(at("write", path))?;
    for part in parts {
        let mut offset = part.start;
        while offset < part.end {
            let length = (part.end - offset).min(buffer.len() as u64) as usize;
            let bytes = &mut buffer[..length];
            image.read(inode, offset, bytes)?;
            if bytes.iter().any(|&byte| byte != 0) {
                out.write_all_at(bytes, offset).map_err(at("write", path))?;
            }
            offset += length as u64;
        }
    }
    out.set_permissions(Permissions::from_mode(inode.mode.into()))
        .map_err(at("set the mode of", path))?;
    set_time(path, inode)
}
