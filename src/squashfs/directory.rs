//! Folders: runs of entries, each with a header, sorted by name.

use std::cmp::Ordering;
use std::sync::Arc;

use super::format::inode_type;
use super::inode::{Folder, Inode, InodeRef, Kind, Node};
use super::metadata::Cursor;
use super::{Squashfs, SquashfsError};

/// The entries of a folder, sorted by name, without `.` and `..`.
#[derive(Debug, Default)]
pub struct Listing {
    names: Vec<u8>,
    entries: Vec<Stored>,
}

#[derive(Debug)]
struct Stored {
    name: u32,
    length: u16,
    kind: Kind,
    inode: InodeRef,
    number: u32,
}

/// One name of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub name: &'a [u8],
    pub kind: Kind,
    pub inode: InodeRef,
    pub number: u32,
}

/// The longest folder that is read: 10 million entries with names of 40 bytes.
const LENGTH_MAX: u32 = 512 << 20;
/// Folders up to this length are read whole even for one name: the next name will be asked for soon.
const SMALL: u32 = 64 << 10;
/// Entries of one run.
const RUN_MAX: u32 = 256;

impl Listing {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry at `index`, from 0.
    pub fn get(&self, index: usize) -> Option<Entry<'_>> {
        self.entries.get(index).map(|stored| self.entry(stored))
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.entries.iter().map(|stored| self.entry(stored))
    }

    pub fn find(&self, name: &[u8]) -> Option<Entry<'_>> {
        let at = self.entries.binary_search_by(|stored| self.entry(stored).name.cmp(name)).ok()?;
        self.get(at)
    }

    fn entry(&self, stored: &Stored) -> Entry<'_> {
        let start = stored.name as usize;
        Entry {
            name: &self.names[start..start + usize::from(stored.length)],
            kind: stored.kind,
            inode: stored.inode,
            number: stored.number,
        }
    }

    fn push(&mut self, name: &[u8], kind: Kind, inode: InodeRef, number: u32) {
        let start = u32::try_from(self.names.len()).expect("a folder is shorter than 4 GiB");
        let length = u16::try_from(name.len()).expect("a name has 256 bytes at most");
        self.names.extend_from_slice(name);
        self.entries.push(Stored {
            name: start,
            length,
            kind,
            inode,
            number,
        });
    }

    fn size(&self) -> usize {
        self.names.capacity() + self.entries.capacity() * size_of::<Stored>() + 64
    }
}

impl Squashfs {
    /// The entries of `folder`; none if it is no folder.
    ///
    /// # Errors
    /// A damaged directory table; names that no folder can have.
    pub fn list(&self, folder: &Inode) -> Result<Arc<Listing>, SquashfsError> {
        let Node::Folder(place) = &folder.node else {
            return Ok(Arc::default());
        };
        self.listings.get(folder.at, || {
            let mut listing = Listing::default();
            self.runs(place, 0, |name, kind, inode, number| {
                listing.push(name, kind, inode, number);
                Ordering::Less
            })?;
            // What is written by the rules is sorted.
            if !listing.entries.is_sorted_by(|a, b| listing.entry(a).name < listing.entry(b).name) {
                return Err(SquashfsError::damaged(
                    "a folder whose names are not in order",
                    self.tables.directories,
                ));
            }
            let size = listing.size();
            Ok((listing, size))
        })
    }

    /// The inode that `name` has in `folder`.
    ///
    /// # Errors
    /// As [`Squashfs::list`].
    pub fn lookup(&self, folder: &Inode, name: &[u8]) -> Result<Option<InodeRef>, SquashfsError> {
        let Node::Folder(place) = &folder.node else {
            return Ok(None);
        };
        if place.index.is_none() || place.length <= SMALL {
            return Ok(self.list(folder)?.find(name).map(|entry| entry.inode));
        }
        if let Some(listing) = self.listings.peek(folder.at) {
            return Ok(listing.find(name).map(|entry| entry.inode));
        }
        let mut found = None;
        self.runs(place, self.nearest(place, name)?, |entry, _, inode, _| {
            let order = entry.cmp(name);
            if order == Ordering::Equal {
                found = Some(inode);
            }
            order
        })?;
        Ok(found)
    }

    /// By the folder's index: how many bytes of it come before the last metadata block that begins with no later name.
    fn nearest(&self, folder: &Folder, name: &[u8]) -> Result<u32, SquashfsError> {
        let Some((count, (block, offset))) = folder.index else {
            return Ok(0);
        };
        let mut cursor = self.cursor(block, offset)?;
        let mut nearest = 0;
        for _ in 0..count {
            let (position, _block, length) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
            if length >= RUN_MAX {
                return Err(SquashfsError::damaged("a folder's index", block));
            }
            if cursor.bytes(length as usize + 1)?.as_slice() > name {
                break;
            }
            nearest = position;
        }
        Ok(nearest)
    }

    /// Hands over each entry from `skip` bytes on (where a run must begin), until one is not `Less`.
    fn runs(&self, folder: &Folder, skip: u32, mut each: impl FnMut(&[u8], Kind, InodeRef, u32) -> Ordering) -> Result<(), SquashfsError> {
        if folder.length > LENGTH_MAX {
            return Err(SquashfsError::TooBig("a folder with too many entries"));
        }
        let mut left = folder.length.saturating_sub(skip);
        if left == 0 {
            return Ok(());
        }
        let start = self.table(self.tables.directories, u64::from(folder.block))?;
        let damaged = |what| move || SquashfsError::damaged(what, start);
        let mut cursor = self.cursor(start, usize::from(folder.offset))?;
        cursor.skip(u64::from(skip))?;
        let mut name = [0; 256];
        while left > 0 {
            let (count, block, base) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
            if count >= RUN_MAX {
                return Err(damaged("a folder with a run that is too long")());
            }
            left = left.checked_sub(12).ok_or_else(damaged("a folder that is too short"))?;
            for _ in 0..=count {
                let (offset, difference, kind, length) = entry(&mut cursor)?;
                let length = usize::from(length) + 1;
                let name = name.get_mut(..length).ok_or_else(damaged("a name that is too long"))?;
                cursor.read(name)?;
                left = u32::try_from(8 + length)
                    .ok()
                    .and_then(|length| left.checked_sub(length))
                    .ok_or_else(damaged("a folder that is too short"))?;
                if name.contains(&b'/') || name.contains(&0) || *name == *b"." || *name == *b".." {
                    return Err(damaged("a name that no file can have")());
                }
                let kind = basic_kind(kind).ok_or_else(damaged("an entry of no known type"))?;
                let inode = InodeRef(u64::from(block) << 16 | u64::from(offset));
                let number = base.wrapping_add_signed(i32::from(difference));
                if each(name, kind, inode, number) != Ordering::Less {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Offset of the inode, difference of its number, type, length of the name less one.
fn entry(cursor: &mut Cursor<'_>) -> Result<(u16, i16, u16, u16), SquashfsError> {
    let bytes: [u8; 8] = cursor.array()?;
    let at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    Ok((at(0), at(2).cast_signed(), at(4), at(6)))
}

fn basic_kind(kind: u16) -> Option<Kind> {
    Some(match kind {
        inode_type::FOLDER => Kind::Folder,
        inode_type::FILE => Kind::File,
        inode_type::SYMLINK => Kind::Symlink,
        inode_type::BLOCK_DEVICE => Kind::BlockDevice,
        inode_type::CHAR_DEVICE => Kind::CharDevice,
        inode_type::FIFO => Kind::Fifo,
        inode_type::SOCKET => Kind::Socket,
        _ => return None,
    })
}
