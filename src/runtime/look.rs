//! Looking into an image before anything runs in it: into a folder, or into a file system that lies in a file, without mounting.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag};

use super::container::Root;
use super::error::Os;
use super::inside::{self, Kind, LINKS};
use super::root::handle;
use crate::squashfs::{self, Inode, Node, Squashfs, SquashfsError};

/// Why an image cannot be looked into.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LookError {
    #[error(transparent)]
    Os(#[from] Os),
    /// Of an image that is one file.
    #[error("{0}")]
    Image(String),
}

impl From<Errno> for LookError {
    fn from(errno: Errno) -> LookError {
        LookError::Os(errno.into())
    }
}

impl From<SquashfsError> for LookError {
    fn from(error: SquashfsError) -> LookError {
        LookError::Image(match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })
    }
}

/// An image's files. Symbolic links are the image's own and never lead out of it.
pub enum Tree {
    Folder(OwnedFd),
    Squashfs(Box<Squashfs>),
}

/// Decompressed blocks that are kept for the few questions that are asked, in bytes.
const CACHE: usize = 4 << 20;

impl Tree {
    /// # Errors
    /// A folder or file that cannot be opened, or is no image.
    pub fn open(root: &Root) -> Result<Tree, LookError> {
        Ok(match root {
            Root::Folder(folder) => Tree::Folder(open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?),
            Root::Squashfs { file, offset, .. } => {
                let opened = File::open(file).map_err(|error| Os::from(&error))?;
                Tree::Squashfs(Box::new(Squashfs::open(opened, *offset, CACHE)?))
            }
        })
    }

    /// What `path` leads to; `None` where there is nothing.
    ///
    /// # Errors
    /// Links that go round in circles; folders that cannot be read.
    pub fn kind(&self, path: &Path) -> Result<Option<Kind>, LookError> {
        Ok(match self {
            Tree::Folder(root) => within(root, path)?.map(|found| found.sight.kind),
            Tree::Squashfs(image) => follow(image, path)?.map(|inode| kind(&inode)),
        })
    }

    /// The names in a folder that are text, sorted; none where there is no such folder.
    ///
    /// # Errors
    /// As [`Tree::kind`].
    pub fn names(&self, folder: &Path) -> Result<Vec<String>, LookError> {
        let mut names: Vec<String> = match self {
            Tree::Folder(root) => match within(root, folder)?.filter(|found| found.sight.kind == Kind::Folder) {
                None => Vec::new(),
                Some(found) => {
                    let entries = fs::read_dir(handle(&found.fd)).map_err(|error| Os::from(&error))?;
                    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
                    let names: std::io::Result<Vec<Option<String>>> = names.collect();
                    names.map_err(|error| Os::from(&error))?.into_iter().flatten().collect()
                }
            },
            Tree::Squashfs(image) => match follow(image, folder)?.filter(|inode| kind(inode) == Kind::Folder) {
                None => Vec::new(),
                Some(inode) => {
                    let listing = image.list(&inode)?;
                    let names = listing.iter().map(|entry| std::str::from_utf8(entry.name).map(str::to_owned));
                    names.filter_map(Result::ok).collect()
                }
            },
        };
        names.sort_unstable();
        Ok(names)
    }

    /// The first `limit` bytes of a regular file; `None` where there is none.
    ///
    /// # Errors
    /// As [`Tree::kind`]; a file that cannot be read.
    pub fn text(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, LookError> {
        let mut text = Vec::new();
        match self {
            Tree::Folder(root) => {
                let Some(found) = within(root, path)? else { return Ok(None) };
                if inside::file_type(&found.fd)? != SFlag::S_IFREG {
                    return Ok(None);
                }
                let read = File::open(handle(&found.fd)).and_then(|file| file.take(limit as u64).read_to_end(&mut text));
                read.map_err(|error| Os::from(&error))?;
            }
            Tree::Squashfs(image) => {
                let Some(inode) = follow(image, path)? else { return Ok(None) };
                let Node::File(_) = &inode.node else { return Ok(None) };
                text.resize(limit.min(usize::try_from(inode.size()).unwrap_or(limit)), 0);
                let got = image.read(&inode, 0, &mut text)?;
                text.truncate(got);
            }
        }
        Ok(Some(text))
    }
}

fn within(root: &OwnedFd, path: &Path) -> Result<Option<inside::Found>, LookError> {
    match inside::find(root.as_fd(), path) {
        Ok(found) => Ok(Some(found).filter(|found| found.sight.missing.is_empty())),
        Err(Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// As [`inside::find`] for what exists, by the image's inodes.
fn follow(image: &Squashfs, path: &Path) -> Result<Option<Inode>, LookError> {
    let root = image.inode(image.root())?;
    let mut todo: VecDeque<OsString> = inside::names(path).collect();
    let mut passed: Vec<Inode> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            passed.pop();
            continue;
        }
        let here = passed.last().unwrap_or(&root);
        let Some(next) = image.lookup(here, name.as_bytes())? else {
            return Ok(None);
        };
        let next = image.inode(next)?;
        let Node::Symlink(text) = &next.node else {
            passed.push(next);
            continue;
        };
        links += 1;
        if links > LINKS {
            return Err(Errno::ELOOP.into());
        }
        let text = Path::new(OsStr::from_bytes(text));
        if text.is_absolute() {
            passed.clear();
        }
        for name in inside::names(text).collect::<Vec<_>>().into_iter().rev() {
            todo.push_front(name);
        }
    }
    Ok(Some(passed.pop().unwrap_or(root)))
}

fn kind(inode: &Inode) -> Kind {
    match inode.kind() {
        squashfs::Kind::Folder => Kind::Folder,
        _ => Kind::File,
    }
}
