//! Inodes.

use super::format::{NO_FRAGMENT, NO_XATTR, inode_type};
use super::{Squashfs, SquashfsError};

/// Where an inode lies in the inode table: the block's place in it and the offset in the block, as the format stores it.
/// Hard links to one file have one reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeRef(pub u64);

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Folder,
    File,
    Symlink,
    BlockDevice,
    CharDevice,
    Fifo,
    Socket,
}

/// An inode, without a file's list of blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Inode {
    pub at: InodeRef,
    /// As `ls -i` shows it.
    pub number: u32,
    /// Permissions: the lower 12 bits.
    pub mode: u16,
    /// Indices for [`Squashfs::id`].
    pub uid: u16,
    pub gid: u16,
    /// Unix seconds.
    pub mtime: u32,
    pub links: u32,
    pub node: Node,
    /// Of the table of extended attributes.
    pub(super) xattr: Option<u32>,
}

/// What is particular to a kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Folder(Folder),
    File(File),
    Symlink(Vec<u8>),
    /// The device number as `new_encode_dev` of the kernel makes it.
    BlockDevice(u32),
    CharDevice(u32),
    Fifo,
    Socket,
}

/// Where a folder's entries are.
#[derive(Clone, Debug, PartialEq)]
pub struct Folder {
    /// Of the directory table's block, counted from the table's beginning.
    pub(super) block: u32,
    pub(super) offset: u16,
    /// Bytes of entries.
    pub(super) length: u32,
    /// How many entries of the index there are, and where they begin.
    pub(super) index: Option<(u16, (u64, usize))>,
}

/// Where a file's content is.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// In bytes.
    pub size: u64,
    /// Of the first block.
    pub(super) start: u64,
    /// Of the last bytes: fragment and offset in it.
    pub(super) fragment: Option<(u32, u32)>,
    /// Where the list of blocks begins.
    pub(super) list: (u64, usize),
}

/// The longest target that the kernel takes.
const TARGET_MAX: u32 = 4095;

impl Inode {
    pub fn kind(&self) -> Kind {
        match self.node {
            Node::Folder(_) => Kind::Folder,
            Node::File(_) => Kind::File,
            Node::Symlink(_) => Kind::Symlink,
            Node::BlockDevice(_) => Kind::BlockDevice,
            Node::CharDevice(_) => Kind::CharDevice,
            Node::Fifo => Kind::Fifo,
            Node::Socket => Kind::Socket,
        }
    }

    /// In bytes, as `stat` shows it.
    pub fn size(&self) -> u64 {
        match &self.node {
            Node::File(file) => file.size,
            Node::Symlink(target) => target.len() as u64,
            Node::Folder(folder) => u64::from(folder.length),
            _ => 0,
        }
    }
}

impl Squashfs {
    /// Reads an inode.
    ///
    /// # Errors
    /// A reference that leads nowhere; a damaged inode.
    pub fn inode(&self, at: InodeRef) -> Result<Inode, SquashfsError> {
        // 48 bits, so that nothing overflows.
        let block = self.table(self.tables.inodes, at.0 >> 16 & 0xffff_ffff)?;
        let mut cursor = self.cursor(block, (at.0 & 0xffff) as usize)?;
        let kind = cursor.u16()?;
        let (mode, uid, gid) = (cursor.u16()? & 0o7777, cursor.u16()?, cursor.u16()?);
        let (mtime, number) = (cursor.u32()?, cursor.u32()?);
        let extended = kind > inode_type::EXTENDED;
        let (mut links, mut xattr) = (1, NO_XATTR);
        let node = match if extended { kind - inode_type::EXTENDED } else { kind } {
            inode_type::FOLDER if extended => {
                links = cursor.u32()?;
                let (length, block, _parent) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
                let (count, offset) = (cursor.u16()?, cursor.u16()?);
                xattr = cursor.u32()?;
                Node::Folder(Folder {
                    block,
                    offset,
                    length: length.saturating_sub(DOTS),
                    index: Some((count, cursor.place())).filter(|_| count > 0),
                })
            }
            inode_type::FOLDER => {
                let block = cursor.u32()?;
                links = cursor.u32()?;
                let (length, offset) = (cursor.u16()?, cursor.u16()?);
                Node::Folder(Folder {
                    block,
                    offset,
                    length: u32::from(length).saturating_sub(DOTS),
                    index: None,
                })
            }
            inode_type::FILE => {
                let (start, size) = if extended {
                    let (start, size, _sparse) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
                    links = cursor.u32()?;
                    (start, Some(size))
                } else {
                    (u64::from(cursor.u32()?), None)
                };
                let (fragment, offset) = (cursor.u32()?, cursor.u32()?);
                let size = match size {
                    Some(size) => {
                        xattr = cursor.u32()?;
                        size
                    }
                    None => u64::from(cursor.u32()?),
                };
                Node::File(File {
                    size,
                    start,
                    fragment: (fragment != NO_FRAGMENT).then_some((fragment, offset)),
                    list: cursor.place(),
                })
            }
            inode_type::SYMLINK => {
                links = cursor.u32()?;
                let length = cursor.u32()?;
                if length == 0 || length > TARGET_MAX {
                    return Err(SquashfsError::damaged("a symbolic link of impossible length", block));
                }
                let target = cursor.bytes(length as usize)?;
                if extended {
                    xattr = cursor.u32()?;
                }
                Node::Symlink(target)
            }
            device @ (inode_type::BLOCK_DEVICE | inode_type::CHAR_DEVICE) => {
                links = cursor.u32()?;
                let number = cursor.u32()?;
                if extended {
                    xattr = cursor.u32()?;
                }
                if device == inode_type::BLOCK_DEVICE {
                    Node::BlockDevice(number)
                } else {
                    Node::CharDevice(number)
                }
            }
            quiet @ (inode_type::FIFO | inode_type::SOCKET) => {
                links = cursor.u32()?;
                if extended {
                    xattr = cursor.u32()?;
                }
                if quiet == inode_type::FIFO { Node::Fifo } else { Node::Socket }
            }
            _ => return Err(SquashfsError::damaged("an inode of no known type", block)),
        };
        Ok(Inode {
            at,
            number,
            mode,
            uid,
            gid,
            mtime,
            links,
            node,
            xattr: (xattr != NO_XATTR).then_some(xattr),
        })
    }

    /// The place `offset` bytes into the table at `start`.
    pub(super) fn table(&self, start: u64, offset: u64) -> Result<u64, SquashfsError> {
        start
            .checked_add(offset)
            .ok_or(SquashfsError::damaged("a table that cannot be where it is said to be,", start))
    }
}

/// A folder's length counts three bytes for `.` and `..`, which are not stored.
const DOTS: u32 = 3;
