//! The merged image: inodes and names, with bodies that point into spooled layers.

use std::ops::Deref;

use super::names::Names;

/// Names an inode of one [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(pub(super) u32);

/// A whole file system. The root is inode 0; what nothing names any more keeps its slot, with no links.
#[derive(Debug)]
pub struct Tree {
    pub(super) inodes: Vec<Inode>,
}

/// One file, folder, link or device, by however many names.
#[derive(Debug)]
pub struct Inode {
    pub meta: Meta,
    pub node: Node,
    /// How many names there are; 0 for what a layer hid. Folders have 1.
    pub links: u32,
}

/// What an inode is.
#[derive(Debug)]
pub enum Node {
    Folder(Names),
    File(Body),
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// Index of the layer whose spool holds it.
    pub layer: u32,
    /// In bytes, holes included.
    pub size: u64,
    pub data: Data,
}

/// Where a file's bytes are, as offsets into the uncompressed layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// All of them, from this offset on.
    Plain(u64),
    /// Ascending parts; between them are holes.
    Sparse(Few<Segment>),
}

/// A stored part of a sparse file; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it belongs in the file.
    pub at: u64,
    pub length: u64,
    /// Where it is in the uncompressed layer.
    pub offset: u64,
}

/// What every inode has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permissions with set-ID and sticky bits: twelve bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Sorted by name, without duplicates.
    pub xattrs: Few<Xattr>,
}

/// Since the epoch; `nanos` counts forward from `seconds` before it too. Packed: there is one in every inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(Rust, packed(4))]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

/// A list that nearly all inodes have nothing in: the empty one takes eight bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<T>(Option<Box<Box<[T]>>>);

impl<T> Default for Few<T> {
    fn default() -> Few<T> {
        Few(None)
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], |list| list)
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Few<T> {
        let list: Box<[T]> = items.into_iter().collect();
        Few((!list.is_empty()).then(|| Box::new(list)))
    }
}

/// An extended attribute, with its full name (`user.note`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Xattr {
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

impl Meta {
    /// What a folder has that no layer describes: root's, readable, and as old as can be, so that conversion is reproducible.
    pub(super) fn unstated() -> Meta {
        Meta {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Few::default(),
        }
    }
}

impl Tree {
    pub const ROOT: InodeId = InodeId(0);

    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// A file's content; none of anything else.
    pub(super) fn body(&self, id: InodeId) -> Option<&Body> {
        match &self.inode(id).node {
            Node::File(body) => Some(body),
            _ => None,
        }
    }

    /// A folder's names, in byte order; none for anything else.
    pub fn names(&self, id: InodeId) -> impl Iterator<Item = (&[u8], InodeId)> {
        let names = match &self.inode(id).node {
            Node::Folder(names) => Some(names),
            _ => None,
        };
        names.into_iter().flat_map(Names::iter)
    }

    /// Every inode that has a name.
    pub(super) fn files(&self) -> impl Iterator<Item = (InodeId, &Inode)> {
        let numbered = (0..).map(InodeId).zip(&self.inodes);
        numbered.filter(|(_, inode)| inode.links > 0)
    }

    /// Every folder with its own, outer before inner; the root is in none.
    pub(super) fn folders(&self) -> Vec<(InodeId, Option<InodeId>)> {
        let mut folders = vec![(Tree::ROOT, None)];
        let mut next = 0;
        while let Some(&(folder, _)) = folders.get(next) {
            next += 1;
            let inner = self.names(folder).map(|(_, id)| id);
            folders.extend(
                inner
                    .filter(|id| matches!(self.inode(*id).node, Node::Folder(_)))
                    .map(|id| (id, Some(folder))),
            );
        }
        folders
    }
}

impl Body {
    /// The stored parts: place in the file, length, offset in the layer.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> {
        self.segments_from(0)
    }

    /// As [`Body::segments`], from the first part on that ends behind `start` of the file: found without looking at those before it.
    pub(super) fn segments_from(&self, start: u64) -> impl Iterator<Item = Segment> {
        let (plain, sparse) = match &self.data {
            Data::Plain(offset) => {
                let all = Segment {
                    at: 0,
                    length: self.size,
                    offset: *offset,
                };
                (Some(all), &[][..])
            }
            Data::Sparse(segments) => {
                let first = segments.partition_point(|segment| segment.at + segment.length <= start);
                (None, &segments[first..])
            }
        };
        plain.into_iter().chain(sparse.iter().copied())
    }

    /// How many bytes of the file are nothing but a hole from `start` on: as many as whole blocks of `block_size` have, or as there are
    /// up to the end. `None` where the first block has a stored part.
    pub(super) fn hole_from(&self, start: u64, block_size: u32) -> Option<u64> {
        let block_size = u64::from(block_size);
        let hole = match self.segments_from(start).find(|segment| segment.length > 0) {
            Some(segment) => segment.at.saturating_sub(start) / block_size * block_size,
            None => self.size - start,
        };
        (hole > 0).then_some(hole)
    }
}
