//! Where the contents of a tree's files lie: in layers, or in an image that is unpacked or packed already.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

use super::error::{Excess, ImageError, at};
use super::layers::Merged;
use super::limits::{Budget, Limits};
use super::names::Names;
use super::tree::{Body, Data, Inode, InodeId, Meta, Node, Segment, Time, Tree, Xattr};
use crate::squashfs::{self, InodeRef, Squashfs, SquashfsError};
use crate::store::{OpenFolders, open_own};

/// What bodies' offsets count in.
pub(super) enum Spool {
    /// An uncompressed layer.
    Archive(File),
    /// The files of a SquashFS, as if they lay one behind the other.
    Squashfs {
        image: Box<Squashfs>,
        files: Vec<(u64, squashfs::Inode)>,
    },
    /// The files of a folder, likewise.
    Folder {
        files: Vec<(u64, PathBuf)>,
        /// Its folders can be entered as long as their files may be wanted.
        _open: OpenFolders,
    },
}

impl Spool {
    /// Bytes of one file's content.
    pub(super) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Spool::Archive(file) => file.read_exact_at(bytes, offset),
            Spool::Squashfs { image, files } => {
                let (start, inode) = holder(files, offset)?;
                match image.read(inode, offset - start, bytes).map_err(io::Error::other)? {
                    read if read == bytes.len() => Ok(()),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
            Spool::Folder { files, .. } => {
                let (start, path) = holder(files, offset)?;
                open_own(path)?.read_exact_at(bytes, offset - start)
            }
        }
    }
}

/// The file that an offset is in. Empty files are in no list.
fn holder<T>(files: &[(u64, T)], offset: u64) -> io::Result<(u64, &T)> {
    let after = files.partition_point(|(start, _)| *start <= offset);
    let (start, file) = after.checked_sub(1).and_then(|at| files.get(at)).ok_or(io::ErrorKind::NotFound)?;
    Ok((*start, file))
}

/// Decompressed blocks that are kept while an image is read, in bytes: each thread is at another file.
pub const READ_CACHE: usize = 64 << 20;

/// A tree while it is made from something that has one.
struct Builder<F> {
    inodes: Vec<Inode>,
    files: Vec<(u64, F)>,
    /// Where the next file begins: all of them lie one behind the other, with their holes.
    end: u64,
    budget: Budget,
}

impl<F> Builder<F> {
    fn new() -> Builder<F> {
        Builder {
            inodes: Vec::new(),
            files: Vec::new(),
            end: 0,
            budget: Budget::new(Limits::default()),
        }
    }

    fn add(&mut self, meta: Meta, node: Node) -> Result<InodeId, Excess> {
        self.budget.entry(0)?;
        let id = InodeId(u32::try_from(self.inodes.len()).expect("limited just now"));
        self.inodes.push(Inode { meta, node, links: 1 });
        Ok(id)
    }

    /// `parts` are those of its `size` bytes that are no holes.
    fn body(&mut self, size: u64, parts: &[Range<u64>], file: F) -> Result<Body, Excess> {
        let start = self.end;
        self.budget.unpacked(parts.iter().map(|part| part.end - part.start).sum())?;
        self.end = start.checked_add(size).ok_or(Excess {
            what: "bytes of content",
            limit: u64::MAX,
        })?;
        if size > 0 {
            self.files.push((start, file));
        }
        let data = match parts {
            [part] if *part == (0..size) => Data::Plain(start),
            _ if size == 0 => Data::Plain(start),
            parts => {
                self.budget
                    .index((parts.len() * size_of::<Segment>() + size_of_val(parts)) as u64)?;
                let segment = |part: &Range<u64>| Segment {
                    at: part.start,
                    length: part.end - part.start,
                    offset: start + part.start,
                };
                Data::Sparse(parts.iter().map(segment).collect())
            }
        };
        Ok(Body { layer: 0, size, data })
    }

    fn name(&mut self, folder: InodeId, name: &[u8], id: InodeId) {
        if let Node::Folder(names) = &mut self.inodes[folder.0 as usize].node {
            names.insert(name, id);
        }
    }

    fn again(&mut self, id: InodeId) {
        self.inodes[id.0 as usize].links += 1;
    }

    fn finish(self, spool: impl FnOnce(Vec<(u64, F)>) -> Spool) -> Merged {
        Merged {
            tree: Tree { inodes: self.inodes },
            spools: vec![spool(self.files)],
        }
    }
}

/// Why a packed image is no tree.
enum Fault {
    Image(SquashfsError),
    Excess(Excess),
}

impl From<SquashfsError> for Fault {
    fn from(error: SquashfsError) -> Fault {
        Fault::Image(error)
    }
}

impl From<Excess> for Fault {
    fn from(excess: Excess) -> Fault {
        Fault::Excess(excess)
    }
}

impl Merged {
    /// The tree of a SquashFS. Sockets are left out: they are nothing without their program. `name` is the image's, for messages.
    ///
    /// # Errors
    /// A damaged or hostile image.
    pub fn from_squashfs(image: Squashfs, name: &str) -> Result<Merged, ImageError> {
        match packed(&image) {
            Ok(builder) => {
                let image = Box::new(image);
                Ok(builder.finish(|files| Spool::Squashfs { image, files }))
            }
            Err(Fault::Image(source)) => Err(ImageError::Packed {
                image: name.to_owned(),
                source,
            }),
            Err(Fault::Excess(excess)) => Err(ImageError::TooBig {
                layer: name.to_owned(),
                excess,
            }),
        }
    }

    /// The tree of a folder of this user's, as a stored image has it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn from_folder(folder: &Path) -> Result<Merged, ImageError> {
        let mut open = OpenFolders::default();
        let builder = unpacked(folder, &mut open)?;
        Ok(builder.finish(|files| Spool::Folder { files, _open: open }))
    }
}

fn packed(image: &Squashfs) -> Result<Builder<squashfs::Inode>, Fault> {
    let mut builder = Builder::new();
    let mut known: HashMap<InodeRef, InodeId> = HashMap::new();
    let root = image.inode(image.root())?;
    if root.kind() != squashfs::Kind::Folder {
        return Err(SquashfsError::damaged("a root that is no folder", 0).into());
    }
    let top = builder.add(packed_meta(image, &root)?, Node::Folder(Names::default()))?;
    known.insert(image.root(), top);
    let mut folders = vec![(root, top)];
    while let Some((folder, id)) = folders.pop() {
        for entry in image.list(&folder)?.iter() {
            if let Some(&same) = known.get(&entry.inode) {
                if entry.kind == squashfs::Kind::Folder {
                    return Err(SquashfsError::TooBig("a folder that lies in two places").into());
                }
                builder.again(same);
                builder.name(id, entry.name, same);
                continue;
            }
            let inode = image.inode(entry.inode)?;
            let node = match &inode.node {
                squashfs::Node::Folder(_) => Node::Folder(Names::default()),
                squashfs::Node::File(file) => {
                    // What is wrong with its blocks is said of the file, when it is read.
                    let parts = image.parts(&inode).unwrap_or_else(|_| std::iter::once(0..file.size).collect());
                    Node::File(builder.body(file.size, &parts, inode.clone())?)
                }
                squashfs::Node::Symlink(target) => Node::Symlink(target.as_slice().into()),
                squashfs::Node::BlockDevice(number) => {
                    let (major, minor) = device(*number);
                    Node::BlockDevice { major, minor }
                }
                squashfs::Node::CharDevice(number) => {
                    let (major, minor) = device(*number);
                    Node::CharDevice { major, minor }
                }
                squashfs::Node::Fifo => Node::Fifo,
                squashfs::Node::Socket => continue,
            };
            let new = builder.add(packed_meta(image, &inode)?, node)?;
            known.insert(entry.inode, new);
            builder.name(id, entry.name, new);
            if inode.kind() == squashfs::Kind::Folder {
                folders.push((inode, new));
            }
        }
    }
    Ok(builder)
}

fn packed_meta(image: &Squashfs, inode: &squashfs::Inode) -> Result<Meta, SquashfsError> {
    let mut xattrs: Vec<Xattr> = image
        .xattrs(inode)?
        .into_iter()
        .map(|xattr| Xattr {
            name: xattr.name.into(),
            value: xattr.value.into(),
        })
        .collect();
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    xattrs.dedup_by(|a, b| a.name == b.name);
    Ok(Meta {
        mode: inode.mode,
        uid: image.id(inode.uid)?,
        gid: image.id(inode.gid)?,
        mtime: Time {
            seconds: inode.mtime.into(),
            nanos: 0,
        },
        xattrs: xattrs.into_iter().collect(),
    })
}

/// As the kernel's `new_decode_dev`.
fn device(number: u32) -> (u32, u32) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00)
}

fn unpacked(top: &Path, open: &mut OpenFolders) -> Result<Builder<PathBuf>, ImageError> {
    let mut builder = Builder::new();
    let excess = |excess| ImageError::TooBig {
        layer: top.display().to_string(),
        excess,
    };
    let meta = fs::symlink_metadata(top).map_err(at("look at", top))?;
    let root = builder
        .add(
            unpacked_meta(top, &meta).map_err(at("look at", top))?,
            Node::Folder(Names::default()),
        )
        .map_err(excess)?;
    let mut known: HashMap<(u64, u64), InodeId> = HashMap::new();
    let mut folders = vec![(top.to_owned(), root)];
    while let Some((folder, id)) = folders.pop() {
        open.enter(&folder).map_err(at("open", &folder))?;
        for entry in fs::read_dir(&folder).map_err(at("read", &folder))? {
            let path = entry.map_err(at("read", &folder))?.path();
            let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
            let meta = fs::symlink_metadata(&path).map_err(at("look at", &path))?;
            let kind = meta.file_type();
            let place = (meta.dev(), meta.ino());
            if meta.nlink() > 1
                && !kind.is_dir()
                && let Some(&same) = known.get(&place)
            {
                builder.again(same);
                builder.name(id, &name, same);
                continue;
            }
            let number = meta.rdev();
            let (major, minor) = (libc::major(number), libc::minor(number));
            let node = if kind.is_dir() {
                Node::Folder(Names::default())
            } else if kind.is_file() {
                let parts = stored_parts(&path, &meta).map_err(at("read", &path))?;
                Node::File(builder.body(meta.len(), &parts, path.clone()).map_err(excess)?)
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(at("read", &path))?;
                Node::Symlink(target.as_os_str().as_bytes().into())
            } else if kind.is_block_device() {
                Node::BlockDevice { major, minor }
            } else if kind.is_char_device() {
                Node::CharDevice { major, minor }
            } else if kind.is_fifo() {
                Node::Fifo
            } else {
                continue;
            };
            let facts = unpacked_meta(&path, &meta).map_err(at("look at", &path))?;
            let new = builder.add(facts, node).map_err(excess)?;
            known.insert(place, new);
            builder.name(id, &name, new);
            if kind.is_dir() {
                folders.push((path, new));
            }
        }
    }
    Ok(builder)
}

/// Which bytes of a file are no holes, as far as its file system says (lseek(2), `SEEK_DATA`).
fn stored_parts(path: &Path, meta: &Metadata) -> io::Result<Vec<Range<u64>>> {
    let (mut parts, mut end, size) = (Vec::new(), 0, meta.len());
    if meta.blocks().saturating_mul(512) >= size {
        parts.push(0..size);
        return Ok(parts);
    }
    let file = open_own(path)?;
    while end < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(end)) {
            Ok(start) if start < size => start,
            // Nothing but a hole from there on.
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            // It cannot say.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                parts.push(end..size);
                break;
            }
            Err(error) => return Err(error.into()),
        };
        end = rustix::fs::seek(&file, SeekFrom::Hole(start))?.min(size);
        parts.push(start..end);
    }
    Ok(parts)
}

fn unpacked_meta(path: &Path, meta: &Metadata) -> io::Result<Meta> {
    let mut xattrs: Vec<Xattr> = Vec::new();
    // The kernel's own limits of a list and of a value.
    let (mut names, mut value) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ACCESS) => 0,
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|&byte| byte == 0).filter(|name| name.starts_with(b"user.")) {
        let length = match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::ACCESS) => continue,
            Err(error) => return Err(error.into()),
        };
        xattrs.push(Xattr {
            name: name.into(),
            value: value[..length].into(),
        });
    }
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Meta {
        mode: u16::try_from(meta.mode() & 0o7777).expect("twelve bits"),
        // Everything in an unpacked image is its owner's; in the image it was root's.
        uid: 0,
        gid: 0,
        mtime: Time {
            seconds: meta.mtime(),
            nanos: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
        },
        xattrs: xattrs.into_iter().collect(),
    })
}
