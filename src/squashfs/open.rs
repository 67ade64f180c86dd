//! An image, opened.

use std::fs::File;

use super::cache::Cache;
use super::compression::Codec;
use super::directory::Listing;
use super::file::Layout;
use super::format::{BLOCK_SIZES, MAGIC, NO_TABLE, SUPERBLOCK};
use super::inode::InodeRef;
use super::metadata::Block;
use super::source::Source;
use super::{SquashfsError, metadata};

/// A SquashFS 4.0 file system in a file. Any number of threads may read it.
pub struct Squashfs {
    pub(super) source: Source,
    pub(super) codec: Codec,
    pub(super) block_size: u32,
    superblock: [u8; SUPERBLOCK as usize],
    pub(super) root: InodeRef,
    pub(super) inodes: u32,
    pub(super) fragments: u32,
    pub(super) tables: Tables,
    pub(super) metadata: Cache<u64, Block>,
    /// Data and fragment blocks, by place and size word.
    pub(super) data: Cache<(u64, u32), Vec<u8>>,
    pub(super) listings: Cache<InodeRef, Listing>,
    pub(super) layouts: Cache<InodeRef, Layout>,
}

/// Where tables begin, in bytes of the file system.
pub(super) struct Tables {
    pub(super) ids: u64,
    pub(super) id_count: u16,
    pub(super) xattrs: u64,
    pub(super) inodes: u64,
    pub(super) directories: u64,
    pub(super) fragments: u64,
}

/// Shares of a cache's bytes, in 16ths: data gets the most.
const METADATA_SHARE: usize = 4;
const LISTING_SHARE: usize = 2;
const LAYOUT_SHARE: usize = 1;

impl Squashfs {
    /// Opens the file system that begins at `offset` of `file`; `cache` bytes of decompressed blocks are kept in memory.
    ///
    /// # Errors
    /// A file that is no SquashFS 4.0, is cut off, or is compressed in a way that is not known.
    pub fn open(file: File, offset: u64, cache: usize) -> Result<Squashfs, SquashfsError> {
        let source = Source::new(file, offset)?;
        let mut bytes = [0; SUPERBLOCK as usize];
        if source.length < SUPERBLOCK {
            return Err(SquashfsError::NotSquashfs("it is too short"));
        }
        source.read(0, &mut bytes)?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC {
            return Err(SquashfsError::NotSquashfs("it does not begin like one"));
        }
        if (u16_at(28), u16_at(30)) != (4, 0) {
            return Err(SquashfsError::NotSquashfs("it has another version"));
        }
        let block_size = u32_at(12);
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) || u32::from(u16_at(22)) != block_size.trailing_zeros() {
            return Err(SquashfsError::NotSquashfs("its block size is impossible"));
        }
        let codec = Codec::from_id(u16_at(20))?;
        if u64_at(40) > source.length {
            return Err(SquashfsError::NotSquashfs("its end is missing"));
        }
        let share = |sixteenths: usize| cache / 16 * sixteenths;
        Ok(Squashfs {
            codec,
            block_size,
            superblock: bytes,
            root: InodeRef(u64_at(32)),
            inodes: u32_at(4),
            fragments: u32_at(16),
            tables: Tables {
                id_count: u16_at(26),
                ids: u64_at(48),
                xattrs: u64_at(56),
                inodes: u64_at(64),
                directories: u64_at(72),
                fragments: u64_at(80),
            },
            source,
            metadata: Cache::new(share(METADATA_SHARE)),
            data: Cache::new(share(16 - METADATA_SHARE - LISTING_SHARE - LAYOUT_SHARE)),
            listings: Cache::new(share(LISTING_SHARE)),
            layouts: Cache::new(share(LAYOUT_SHARE)),
        })
    }

    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// In bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How many files, folders and other things there are said to be.
    pub fn inode_count(&self) -> u32 {
        self.inodes
    }

    /// Bytes from the file system's beginning to the end of the file.
    pub fn length(&self) -> u64 {
        self.source.length
    }

    /// The file system's first bytes: where its tables lie, how many things there are. Two images that share them are the same, by all
    /// that is likely.
    pub fn superblock(&self) -> &[u8] {
        &self.superblock
    }

    /// The root folder.
    pub fn root(&self) -> InodeRef {
        self.root
    }

    /// How many numbers there are for the owners and groups of all files: [`Squashfs::id`] tells each.
    pub fn id_count(&self) -> u16 {
        self.tables.id_count
    }

    /// The uid or gid behind an inode's index.
    ///
    /// # Errors
    /// An index past the table's end; a damaged table.
    pub fn id(&self, index: u16) -> Result<u32, SquashfsError> {
        if index >= self.tables.id_count {
            return Err(SquashfsError::damaged(
                "an owner that is not in the table of owners",
                self.tables.ids,
            ));
        }
        let mut cursor = self.record(self.tables.ids, u64::from(index), 4)?;
        cursor.u32()
    }

    /// Record `index` of the lookup table whose list of metadata blocks begins at `list`. `size` divides 8192.
    pub(super) fn record(&self, list: u64, index: u64, size: usize) -> Result<metadata::Cursor<'_>, SquashfsError> {
        if list == NO_TABLE {
            return Err(SquashfsError::damaged("a table is missing that something refers to,", 0));
        }
        let per_block = (super::format::METADATA_BLOCK / size) as u64;
        let entry = (index / per_block)
            .checked_mul(8)
            .and_then(|at| at.checked_add(list))
            .ok_or(SquashfsError::damaged("a table that cannot be so long,", list))?;
        let block = self.source.u64(entry)?;
        self.cursor(block, (index % per_block) as usize * size)
    }
}
