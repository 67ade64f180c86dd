//! Inodes and directories.

use std::collections::HashMap;
use std::io::{self, Write};

use super::bodies::Bodies;
use super::metadata::{Place, Stream};
use super::write::SquashfsOptions;
use super::xattrs::Xattrs;
use crate::image::layers::Merged;
use crate::image::tree::{Inode, InodeId, Node, Tree};
use crate::squashfs::format::{METADATA_BLOCK, NO_FRAGMENT, NO_XATTR, inode_type};

/// The tables that describe the tree, but for that of the inodes, which are written at once.
pub(super) struct Tables {
    pub(super) directories: Vec<u8>,
    pub(super) xattrs: Xattrs,
    pub(super) ids: Vec<u32>,
    pub(super) root: Place,
    /// By number, from 1: inodes are written in the order of their numbers.
    pub(super) places: Vec<Place>,
    /// Attributes that the format cannot hold: how many inodes had some.
    pub(super) lost_xattrs: u64,
}

/// Writes the inode table to `out`, and builds the others. Inner folders come first: a directory names the places of its inodes.
pub(super) fn build(merged: &Merged, bodies: &Bodies, options: SquashfsOptions, out: &mut impl Write) -> io::Result<Tables> {
    let tree = &merged.tree;
    let folders = tree.folders();
    let mut builder = Builder {
        tree,
        bodies,
        numbers: number(tree, &folders)?,
        id_numbers: HashMap::new(),
        inodes: Stream::new(options, out),
        directories: Stream::new(options, Vec::new()),
        xattrs: Xattrs::new(options),
        ids: Vec::new(),
        places: Vec::with_capacity(tree.inodes.len()),
        lost_xattrs: 0,
    };
    for &(folder, parent) in folders.iter().rev() {
        for (_, id) in tree.names(folder) {
            if !matches!(tree.inode(id).node, Node::Folder(_)) && builder.number(id) as usize > builder.places.len() {
                builder.leaf(id)?;
            }
        }
        builder.folder(folder, parent)?;
    }
    let root = builder.place(Tree::ROOT);
    builder.inodes.finish()?;
    Ok(Tables {
        directories: builder.directories.finish()?.0,
        xattrs: builder.xattrs,
        ids: builder.ids,
        root,
        places: builder.places,
        lost_xattrs: builder.lost_xattrs,
    })
}

/// Of each inode, its number: in the order of the inode table, so that what lies side by side in a folder has numbers side by side.
fn number(tree: &Tree, folders: &[(InodeId, Option<InodeId>)]) -> io::Result<Vec<u32>> {
    let mut numbers = vec![0; tree.inodes.len()];
    let mut last = 0_u32;
    for &(folder, _) in folders.iter().rev() {
        let leaves = tree
            .names(folder)
            .map(|(_, id)| id)
            .filter(|id| !matches!(tree.inode(*id).node, Node::Folder(_)));
        for id in leaves.chain([folder]) {
            let number = &mut numbers[id.0 as usize];
            if *number == 0 {
                last = last.checked_add(1).ok_or_else(|| io::Error::other("too many files for SquashFS"))?;
                *number = last;
            }
        }
    }
    Ok(numbers)
}

struct Builder<'a, W> {
    tree: &'a Tree,
    bodies: &'a Bodies,
    /// By inode; 0 of what has no name.
    numbers: Vec<u32>,
    id_numbers: HashMap<u32, u16>,
    inodes: Stream<W>,
    directories: Stream<Vec<u8>>,
    xattrs: Xattrs,
    ids: Vec<u32>,
    places: Vec<Place>,
    lost_xattrs: u64,
}

fn kind_of(node: &Node) -> u16 {
    match node {
        Node::Folder(_) => inode_type::FOLDER,
        Node::File(_) => inode_type::FILE,
        Node::Symlink(_) => inode_type::SYMLINK,
        Node::BlockDevice { .. } => inode_type::BLOCK_DEVICE,
        Node::CharDevice { .. } => inode_type::CHAR_DEVICE,
        Node::Fifo => inode_type::FIFO,
    }
}

impl<W: Write> Builder<'_, W> {
    fn number(&self, id: InodeId) -> u32 {
        self.numbers[id.0 as usize]
    }

    /// Of an inode that has been written.
    fn place(&self, id: InodeId) -> Place {
        self.places[self.number(id) as usize - 1]
    }

    fn leaf(&mut self, id: InodeId) -> io::Result<()> {
        let inode = self.tree.inode(id);
        let xattr = self.xattr(inode)?;
        let extended = xattr != NO_XATTR;
        let bytes = match &inode.node {
            Node::File(body) => return self.file(id, inode, body.size, xattr),
            Node::Symlink(target) => {
                let mut bytes = Bytes::default();
                bytes
                    .u32(inode.links)
                    .u32(u32::try_from(target.len()).expect("limited when it was read"));
                bytes.0.extend(&**target);
                bytes
            }
            Node::BlockDevice { major, minor } | Node::CharDevice { major, minor } => {
                let mut bytes = Bytes::default();
                bytes.u32(inode.links).u32(device(*major, *minor));
                bytes
            }
            Node::Fifo => {
                let mut bytes = Bytes::default();
                bytes.u32(inode.links);
                bytes
            }
            Node::Folder(_) => unreachable!("folders are no leaves"),
        };
        self.put(id, inode, extended, |out| {
            out.0.extend(&bytes.0);
            if extended {
                out.u32(xattr);
            }
        })
    }

    fn file(&mut self, id: InodeId, inode: &Inode, size: u64, xattr: u32) -> io::Result<()> {
        let stored = self.bodies.stored(id);
        let (fragment, offset) = stored.fragment.unwrap_or((NO_FRAGMENT, 0));
        let basic = match (u32::try_from(stored.start), u32::try_from(size)) {
            (Ok(start), Ok(size)) if inode.links == 1 && xattr == NO_XATTR && stored.sparse == 0 => Some((start, size)),
            _ => None,
        };
        self.put(id, inode, basic.is_none(), |out| {
            match basic {
                Some((start, size)) => out.u32(start).u32(fragment).u32(offset).u32(size),
                // A file that is all hole still holds a byte, or its count of blocks would be negative.
                None => out
                    .u64(stored.start)
                    .u64(size)
                    .u64(stored.sparse.min(size.saturating_sub(1)))
                    .u32(inode.links)
                    .u32(fragment)
                    .u32(offset)
                    .u32(xattr),
            };
            for block in stored.blocks {
                out.u32(*block);
            }
        })
    }

    fn folder(&mut self, id: InodeId, parent: Option<InodeId>) -> io::Result<()> {
        let inode = self.tree.inode(id);
        let xattr = self.xattr(inode)?;
        let start = self.directories.place()?;
        let Listing { size, index } = self.listing(id)?;
        let folders = self
            .tree
            .names(id)
            .filter(|(_, id)| matches!(self.tree.inode(*id).node, Node::Folder(_)));
        let links = 2 + u32::try_from(folders.count()).expect("fewer than inodes");
        // The root's parent is a number that no inode has.
        let parent = match parent {
            Some(parent) => self.number(parent),
            None => self
                .number(id)
                .checked_add(1)
                .ok_or_else(|| io::Error::other("too many files for SquashFS"))?,
        };
        // The format counts `.` and `..` as three bytes.
        let size = size + 3;
        let basic = u16::try_from(size).ok().filter(|_| xattr == NO_XATTR && index.is_empty());
        let count = u16::try_from(index.len()).map_err(|_| io::Error::other("a folder is too large for SquashFS"))?;
        self.put(id, inode, basic.is_none(), |out| match basic {
            Some(size) => {
                out.u32(start.block).u32(links).u16(size).u16(start.offset).u32(parent);
            }
            None => {
                out.u32(links)
                    .u32(size)
                    .u32(start.block)
                    .u32(parent)
                    .u16(count)
                    .u16(start.offset)
                    .u32(xattr);
                for (at, block, name) in &index {
                    out.u32(*at).u32(*block).u32(u32::try_from(name.len() - 1).expect("at most 255"));
                    out.0.extend(name);
                }
            }
        })
    }

    /// Writes a folder's names, in runs whose inodes lie in one metadata block.
    fn listing(&mut self, folder: InodeId) -> io::Result<Listing> {
        let mut listing = Listing {
            size: 0,
            index: Vec::new(),
        };
        let names: Vec<(&[u8], InodeId)> = self.tree.names(folder).collect();
        let mut rest = &names[..];
        let mut last_block = None;
        while let Some(&(first, first_id)) = rest.first() {
            let (block, base) = (self.place(first_id).block, self.number(first_id));
            let place = self.directories.place()?;
            // A run that begins in another block of the table can be found without reading what is before it.
            if last_block.is_some_and(|last| last != place.block) {
                listing.index.push((listing.size, place.block, first.to_vec()));
            }
            last_block = Some(place.block);
            let mut run = Bytes::default();
            let mut count = 0_u32;
            for (name, id) in rest {
                let delta = i64::from(self.number(*id)) - i64::from(base);
                let Ok(delta) = i16::try_from(delta) else { break };
                let next_block = count > 0 && usize::from(place.offset) + 12 + run.0.len() > METADATA_BLOCK;
                let at = self.place(*id);
                if count == 256 || at.block != block || next_block {
                    break;
                }
                run.u16(at.offset)
                    .u16(delta.cast_unsigned())
                    .u16(kind_of(&self.tree.inode(*id).node));
                run.u16(u16::try_from(name.len() - 1).expect("at most 255"));
                run.0.extend(*name);
                count += 1;
            }
            let mut header = Bytes::default();
            header.u32(count - 1).u32(block).u32(base);
            self.directories.push(&header.0)?;
            self.directories.push(&run.0)?;
            let length = u32::try_from(header.0.len() + run.0.len()).expect("a run has at most 256 names");
            listing.size = listing
                .size
                .checked_add(length)
                .ok_or_else(|| io::Error::other("a folder is too large for SquashFS"))?;
            rest = &rest[count as usize..];
        }
        Ok(listing)
    }

    /// The inode's header, then what `body` adds.
    fn put(&mut self, id: InodeId, inode: &Inode, extended: bool, body: impl FnOnce(&mut Bytes)) -> io::Result<()> {
        let place = self.inodes.place()?;
        let number = self.number(id);
        let mut bytes = Bytes::default();
        let mtime = u32::try_from(inode.meta.mtime.seconds.clamp(0, u32::MAX.into())).expect("clamped");
        bytes
            .u16(kind_of(&inode.node) + if extended { inode_type::EXTENDED } else { 0 })
            .u16(inode.meta.mode)
            .u16(self.id_number(inode.meta.uid)?)
            .u16(self.id_number(inode.meta.gid)?)
            .u32(mtime)
            .u32(number);
        body(&mut bytes);
        self.inodes.push(&bytes.0)?;
        self.places.push(place);
        Ok(())
    }

    fn xattr(&mut self, inode: &Inode) -> io::Result<u32> {
        let (number, lost) = self.xattrs.add(&inode.meta.xattrs)?;
        self.lost_xattrs += u64::from(lost);
        Ok(number)
    }

    fn id_number(&mut self, id: u32) -> io::Result<u16> {
        if let Some(&number) = self.id_numbers.get(&id) {
            return Ok(number);
        }
        let number = u16::try_from(self.ids.len())
            .ok()
            .filter(|&number| number < u16::MAX)
            .ok_or_else(|| io::Error::other("more than 65535 users and groups"))?;
        self.id_numbers.insert(id, number);
        self.ids.push(id);
        Ok(number)
    }
}

/// What a folder's inode says of its names.
struct Listing {
    size: u32,
    /// Offset in the listing, block in the directory table, first name: for looking names up.
    index: Vec<(u32, u32, Vec<u8>)>,
}

/// As the kernel's `new_encode_dev`.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// Little-endian fields.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(&mut self, value: u16) -> &mut Bytes {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Bytes {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Bytes {
        self.0.extend(value.to_le_bytes());
        self
    }
}
