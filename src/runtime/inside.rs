//! Paths inside a root folder, whose symbolic links are the image's and must never lead out of it.
//!
//! One component at a time, with the folders passed so far held open: an absolute link starts again at the root,
//! `..` of the root is the root, and the text of a link under `/proc` is a text like any other. Works on every kernel
//! and tells what is missing. What is there without a link on the way is had from `openat2` in one step.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat};
use rustix::fs::{OFlags, ResolveFlags, openat2};

const HANDLE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// As many as the kernel follows.
pub const LINKS: usize = 40;

/// Folder or anything else: the two kinds of mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    File,
}

impl Kind {
    /// What something of this type can be a mount point for.
    pub fn of(file_type: SFlag) -> Kind {
        if file_type == SFlag::S_IFDIR { Kind::Folder } else { Kind::File }
    }
}

/// Where a path leads.
pub struct Found {
    /// `O_PATH` of the deepest part that exists.
    pub fd: OwnedFd,
    pub sight: Sight,
}

/// What there is of a path.
pub struct Sight {
    /// Of the deepest part that exists.
    pub kind: Kind,
    /// Its path without symbolic links, as seen inside.
    pub existing: PathBuf,
    /// What would have to be made below it; empty when all is there.
    pub missing: Vec<OsString>,
}

impl Sight {
    /// The whole path without symbolic links.
    pub fn path(&self) -> PathBuf {
        self.missing.iter().fold(self.existing.clone(), |path, name| path.join(name))
    }
}

/// A root folder in which nothing changes, so that each path is looked for once.
pub struct Sights<'a> {
    root: BorrowedFd<'a>,
    /// Not by `Path`, which is taken apart to be looked up.
    seen: RefCell<HashMap<OsString, Rc<Sight>>>,
}

impl<'a> Sights<'a> {
    pub fn of(root: BorrowedFd<'a>) -> Sights<'a> {
        let seen = RefCell::default();
        Sights { root, seen }
    }

    /// As [`find`].
    pub fn at(&self, path: &Path) -> nix::Result<Rc<Sight>> {
        if let Some(sight) = self.seen.borrow().get(path.as_os_str()) {
            return Ok(Rc::clone(sight));
        }
        let sight = Rc::new(find(self.root, path)?.sight);
        let mut seen = self.seen.borrow_mut();
        seen.insert(path.into(), Rc::clone(&sight));
        // There the same is found.
        seen.insert(sight.path().into(), Rc::clone(&sight));
        Ok(sight)
    }
}

/// Follows `path` (absolute or relative to the root) from `root`, a folder opened with `O_PATH` or for reading.
pub fn find(root: BorrowedFd<'_>, path: &Path) -> nix::Result<Found> {
    if let Some(found) = at_once(root, path) {
        return Ok(found);
    }
    let mut todo: VecDeque<OsString> = names(path).collect();
    let mut passed: Vec<(OwnedFd, OsString)> = Vec::new();
    let mut missing: Vec<OsString> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            if missing.pop().is_none() {
                passed.pop();
            }
            continue;
        }
        if !missing.is_empty() {
            missing.push(name);
            continue;
        }
        let here = passed.last().map_or(root, |(fd, _)| fd.as_fd());
        let next = match openat(here, name.as_os_str(), HANDLE, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => {
                missing.push(name);
                continue;
            }
            Err(errno) => return Err(errno),
        };
        if file_type(&next)? == SFlag::S_IFLNK {
            links += 1;
            if links > LINKS {
                return Err(Errno::ELOOP);
            }
            let text = PathBuf::from(readlinkat(&next, c"")?);
            if text.is_absolute() {
                passed.clear();
            }
            for name in names(&text).collect::<Vec<_>>().into_iter().rev() {
                todo.push_front(name);
            }
        } else {
            passed.push((next, name));
        }
    }
    let existing = Path::new("/").join(passed.iter().map(|(_, name)| name).collect::<PathBuf>());
    let fd = match passed.pop() {
        Some((fd, _)) => fd,
        None => openat(root, c".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?,
    };
    let kind = kind(&fd)?;
    if kind == Kind::File && !missing.is_empty() {
        return Err(Errno::ENOTDIR);
    }
    let sight = Sight { kind, existing, missing };
    Ok(Found { fd, sight })
}

/// What is there, with no link and no `..` on the way. `None`: step by step it will be told why.
fn at_once(root: BorrowedFd<'_>, path: &Path) -> Option<Found> {
    let mut inner = PathBuf::with_capacity(path.as_os_str().len());
    for component in path.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => inner.push(name),
            _ => return None,
        }
    }
    if inner.as_os_str().is_empty() {
        return None;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let fd = openat2(root, inner.as_path(), flags, rustix::fs::Mode::empty(), within).ok()?;
    let kind = match file_type(&fd).ok()? {
        SFlag::S_IFLNK => return None,
        other => Kind::of(other),
    };
    let sight = Sight {
        kind,
        existing: Path::new("/").join(inner),
        missing: Vec::new(),
    };
    Some(Found { fd, sight })
}

/// Makes what is missing of `found`: folders, and at the end what `kind` says, empty. Returns the end's `O_PATH`.
pub fn make(found: Found, kind: Kind) -> nix::Result<OwnedFd> {
    if found.sight.missing.is_empty() && found.sight.kind != kind {
        return Err(if kind == Kind::Folder { Errno::ENOTDIR } else { Errno::EISDIR });
    }
    let mut here = found.fd;
    let last = found.sight.missing.len().saturating_sub(1);
    for (i, name) in found.sight.missing.iter().enumerate() {
        let kind = if i == last { kind } else { Kind::Folder };
        here = match make_in(&here, name, kind) {
            // Two containers may share a writable bind.
            Err(Errno::EEXIST) if kind == Kind::Folder => openat(&here, name.as_os_str(), HANDLE, Mode::empty())?,
            made => made?,
        };
    }
    Ok(here)
}

/// Makes `name` in a folder: a folder, or an empty file. Gives its `O_PATH`; EEXIST where there is something of that name.
pub fn make_in(folder: impl AsFd, name: &OsStr, kind: Kind) -> nix::Result<OwnedFd> {
    match kind {
        Kind::Folder => mkdirat(&folder, name, Mode::from_bits_truncate(0o755))?,
        Kind::File => mknodat(&folder, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0)?,
    }
    openat(&folder, name, HANDLE, Mode::empty())
}

/// The kind of what `fd` refers to.
pub fn kind(fd: impl AsFd) -> nix::Result<Kind> {
    file_type(fd).map(Kind::of)
}

/// The file type bits of what `fd` refers to.
pub fn file_type(fd: impl AsFd) -> nix::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode & SFlag::S_IFMT.bits()))
}

/// The components that matter: names and `..`.
pub fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::new("..").to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/usr/lib")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/secret"), "s").unwrap();
        fs::write(folder.path().join("root/file"), "f").unwrap();
        let root = folder.path().join("root");
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("/usr", root.join("absolute")).unwrap();
        symlink("../../../outside", root.join("up")).unwrap();
        symlink(folder.path().join("outside"), root.join("out")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/run/nothing", root.join("dangling")).unwrap();
        let fd = nix::fcntl::open(&root, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        (folder, fd)
    }

    fn end(root: &OwnedFd, path: &str) -> (String, usize) {
        let found = find(root.as_fd(), Path::new(path)).unwrap();
        (found.sight.path().display().to_string(), found.sight.missing.len())
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let (folder, root) = root();
        assert_eq!(end(&root, "/lib"), ("/usr/lib".into(), 0));
        assert_eq!(end(&root, "/absolute/lib/.."), ("/usr".into(), 0));
        assert_eq!(end(&root, "/"), ("/".into(), 0));
        assert_eq!(end(&root, "/../../usr"), ("/usr".into(), 0));
        assert_eq!(end(&root, "/up/secret"), ("/outside/secret".into(), 2));
        let inside = folder.path().join("outside").display().to_string();
        let (path, missing) = end(&root, "/out/secret");
        assert_eq!(path, format!("{inside}/secret"));
        assert!(missing >= 2, "nothing of the host's path is taken for the image's");
        assert_eq!(end(&root, "/dangling"), ("/run/nothing".into(), 2));
        assert_eq!(end(&root, "/no/../usr"), ("/usr".into(), 0));
        assert!(matches!(find(root.as_fd(), Path::new("/loop")), Err(Errno::ELOOP)));
        assert!(matches!(find(root.as_fd(), Path::new("/file/x")), Err(Errno::ENOTDIR)));
    }

    #[test]
    fn what_is_missing_is_made_inside() {
        let (folder, root) = root();
        make(find(root.as_fd(), Path::new("/up/new/leaf")).unwrap(), Kind::File).unwrap();
        assert!(folder.path().join("root/outside/new/leaf").is_file());
        assert!(!folder.path().join("outside/new").exists());
        let clash = |path: &str, kind| make(find(root.as_fd(), Path::new(path)).unwrap(), kind).unwrap_err();
        assert_eq!(clash("/file", Kind::Folder), Errno::ENOTDIR);
        assert_eq!(clash("/usr", Kind::File), Errno::EISDIR);
    }
}
