//! Trees as the reader sees them and as the disk has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dvrun::squashfs::{InodeRef, Node, Squashfs, SquashfsError};
use walkdir::WalkDir;

use crate::support::{finish, lane};

/// One name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub mtime: i64,
    pub links: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Folder,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Other(char),
}

pub type Tree = BTreeMap<PathBuf, Seen>;

/// Whether SquashFS images can be made here.
pub fn mksquashfs() -> bool {
    lane(
        "mksquashfs: not installed",
        Command::new("mksquashfs").arg("-version").output().is_ok(),
    )
}

/// Packs `folder` with the options of `mksquashfs`.
pub fn pack(folder: &Path, image: &Path, options: &[&str]) {
    let mut command = Command::new("mksquashfs");
    command
        .arg(folder)
        .arg(image)
        .args(["-noappend", "-quiet", "-no-progress"])
        .args(options);
    finish(&mut command).ok();
}

pub fn open(image: &Path) -> Squashfs {
    Squashfs::open(File::open(image).unwrap(), 0, 4 << 20).unwrap()
}

/// Everything in an image; no folder is entered twice, and no more than `limit` bytes of each file are read.
pub fn read_all(image: &Squashfs, limit: usize) -> Result<Tree, SquashfsError> {
    let mut tree = Tree::new();
    let mut todo = vec![(PathBuf::new(), image.root())];
    let mut entered: BTreeSet<InodeRef> = BTreeSet::new();
    while let Some((path, at)) = todo.pop() {
        let inode = image.inode(at)?;
        let what = match &inode.node {
            Node::Folder(_) => {
                if entered.insert(at) {
                    let listing = image.list(&inode)?;
                    for entry in listing.iter() {
                        assert_eq!(image.lookup(&inode, entry.name)?, Some(entry.inode));
                        todo.push((path.join(std::ffi::OsStr::from_bytes(entry.name)), entry.inode));
                    }
                }
                What::Folder
            }
            Node::File(_) => {
                let mut bytes = vec![0; usize::try_from(inode.size()).unwrap_or(limit).min(limit)];
                let got = image.read(&inode, 0, &mut bytes)?;
                assert_eq!(got, bytes.len());
                What::File(bytes)
            }
            Node::Symlink(target) => What::Symlink(target.clone()),
            Node::BlockDevice(_) => What::Other('b'),
            Node::CharDevice(_) => What::Other('c'),
            Node::Fifo => What::Other('p'),
            Node::Socket => What::Other('s'),
        };
        image.xattrs(&inode)?;
        let seen = Seen {
            mode: inode.mode.into(),
            mtime: inode.mtime.into(),
            links: inode.links.into(),
            what,
        };
        tree.insert(path, seen);
    }
    Ok(tree)
}

/// Everything below a folder of this host.
pub fn on_disk(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    for entry in WalkDir::new(folder) {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        let what = if meta.is_dir() {
            What::Folder
        } else if meta.is_symlink() {
            What::Symlink(fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec())
        } else if meta.is_file() {
            What::File(fs::read(entry.path()).unwrap())
        } else {
            What::Other('p')
        };
        let seen = Seen {
            mode: meta.mode() & 0o7777,
            mtime: meta.mtime(),
            links: meta.nlink(),
            what,
        };
        tree.insert(entry.path().strip_prefix(folder).unwrap().to_owned(), seen);
    }
    tree
}

/// Names what is different instead of printing both trees.
#[track_caller]
pub fn assert_same(got: &Tree, expected: &Tree) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(expected));
    for (path, seen) in got {
        let wanted = &expected[path];
        // How a folder's links are counted is the file system's own affair.
        let links = matches!(seen.what, What::Folder) || seen.links == wanted.links;
        assert!(
            (seen.mode, seen.mtime, &seen.what) == (wanted.mode, wanted.mtime, &wanted.what) && links,
            "{}: mode {:o} or {:o}, time {} or {}, links {} or {}, the same content: {}",
            path.display(),
            seen.mode,
            wanted.mode,
            seen.mtime,
            wanted.mtime,
            seen.links,
            wanted.links,
            seen.what == wanted.what
        );
    }
}

/// A folder with one of everything that an ordinary user can make: sizes around the blocks', holes, links, odd names.
pub fn make_tree(folder: &Path) {
    let noise = |length: usize, seed: u64| -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..length).map(|_| random.u8(..)).collect()
    };
    let text = |length: usize| -> Vec<u8> { b"all work and no play ".iter().copied().cycle().take(length).collect() };
    fs::create_dir_all(folder.join("a/b/c")).unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    for (at, size) in [0, 1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 1 << 20, 2_500_000]
        .into_iter()
        .enumerate()
    {
        fs::write(folder.join(format!("a/noise-{size}")), noise(size, at as u64)).unwrap();
        fs::write(folder.join(format!("a/text-{size}")), text(size)).unwrap();
    }
    let sparse = File::create(folder.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 3_000_000).unwrap();
    sparse.set_len(5_000_001).unwrap();
    fs::hard_link(folder.join("a/text-4097"), folder.join("a/b/hard")).unwrap();
    std::os::unix::fs::symlink("../a/b", folder.join("a/b/c/link")).unwrap();
    nix::unistd::mkfifo(&folder.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    fs::write(folder.join(std::ffi::OsStr::from_bytes(b"odd \xff\n name")), b"odd").unwrap();
    fs::write(folder.join("n".repeat(255)), b"long").unwrap();
    fs::set_permissions(folder.join("a/noise-1"), std::os::unix::fs::PermissionsExt::from_mode(0o4711)).unwrap();
    fs::create_dir(folder.join("many")).unwrap();
    for at in 0..3000 {
        fs::write(folder.join(format!("many/file with a long name, number {at}")), at.to_string()).unwrap();
    }
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).expect("the temporary folder takes attributes of users");
}
