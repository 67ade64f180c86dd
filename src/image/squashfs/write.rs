//! The whole file system.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::Compression;
use super::bodies::{self, Output};
use super::inodes;
use super::metadata;
use crate::image::layers::Merged;
use crate::squashfs::format::{BLOCK_SIZES, FRAGMENT_ENTRY, MAGIC, METADATA_STORED, NO_TABLE, SUPERBLOCK};

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SquashfsOptions {
    pub compression: Compression,
    /// In bytes: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
}

impl Default for SquashfsOptions {
    /// zstd, level 3, in blocks of 128 KiB.
    fn default() -> SquashfsOptions {
        SquashfsOptions {
            compression: Compression::default(),
            block_size: 128 << 10,
        }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes, padded to 4 KiB.
    pub bytes: u64,
    pub inodes: u32,
    /// Inodes with attributes that SquashFS cannot hold (anything but `user.`, `trusted.` and `security.`).
    pub lost_xattrs: u64,
}

const PADDING: u64 = 4096;

/// Flags of the superblock (`squashfs_fs.h`).
mod flag {
    pub(super) const STORED_INODES: u16 = 0x1;
    pub(super) const STORED_DATA: u16 = 0x2;
    pub(super) const STORED_FRAGMENTS: u16 = 0x8;
    pub(super) const DUPLICATES_CHECKED: u16 = 0x40;
    pub(super) const EXPORTABLE: u16 = 0x80;
    pub(super) const STORED_XATTRS: u16 = 0x100;
    pub(super) const NO_XATTRS: u16 = 0x200;
    pub(super) const OPTIONS: u16 = 0x400;
    pub(super) const STORED_IDS: u16 = 0x800;
}

/// Writes `merged` as a file system that begins at `base` of `file`. Nothing is synced: that is for whoever finishes the file.
///
/// # Errors
/// What the disk says, and trees that the format has no room for. On one of rayon's own threads it works on that alone.
pub fn write_squashfs(merged: &Merged, file: &File, base: u64, options: &SquashfsOptions) -> io::Result<Written> {
    if !options.block_size.is_power_of_two() || !BLOCK_SIZES.contains(&options.block_size) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a block has 4 KiB to 1 MiB, a power of two",
        ));
    }
    let compression = options.compression;
    let output = Output {
        file,
        base,
        options: *options,
    };
    let mut head = Vec::new();
    if let Some(bytes) = compression.options(options.block_size) {
        let length = u16::try_from(bytes.len()).expect("they are a few numbers");
        head.extend((length | METADATA_STORED).to_le_bytes());
        head.extend(bytes);
    }
    let bodies = bodies::write(merged, &output, SUPERBLOCK + head.len() as u64)?;
    let mut tail = Tail {
        output: &output,
        end: bodies.end,
    };
    let inode_table = tail.end;
    let tables = inodes::build(merged, &bodies, *options, &mut tail)?;
    let directory_table = tail.end;
    tail.write_all(&tables.directories)?;
    let fragment_table = tail.table(bodies.fragments.iter().map(|&(start, size)| fragment(start, size)))?;
    let export_table = tail.table(tables.places.iter().map(|place| place.reference().to_le_bytes()))?;
    let id_table = tail.table(tables.ids.iter().map(|id| id.to_le_bytes()))?;
    let xattr_table = match tables.xattrs.finish(*options, tail.end)? {
        Some((bytes, header)) => {
            tail.write_all(&bytes)?;
            header
        }
        None => NO_TABLE,
    };
    let used = tail.end;
    let padding = usize::try_from(used.next_multiple_of(PADDING) - used).expect("less than a page");
    tail.write_all(&vec![0; padding])?;

    let mut flags = flag::DUPLICATES_CHECKED | flag::EXPORTABLE;
    if compression == Compression::None {
        flags |= flag::STORED_INODES | flag::STORED_DATA | flag::STORED_FRAGMENTS | flag::STORED_XATTRS | flag::STORED_IDS;
    }
    if xattr_table == NO_TABLE {
        flags |= flag::NO_XATTRS;
    }
    if !head.is_empty() {
        flags |= flag::OPTIONS;
    }
    let count = |length: usize| u32::try_from(length).expect("checked when they were built");
    let inodes = count(tables.places.len());
    // The newest thing in it, not the clock: the same tree gives the same bytes.
    let newest = merged.tree.files().map(|(_, inode)| inode.meta.mtime.seconds).max();
    let created = u32::try_from(newest.unwrap_or(0).clamp(0, u32::MAX.into())).expect("clamped");
    let mut superblock = Vec::new();
    for field in [MAGIC, inodes, created, options.block_size, count(bodies.fragments.len())] {
        superblock.extend(field.to_le_bytes());
    }
    let log = u16::try_from(options.block_size.trailing_zeros()).expect("at most 20");
    let id_count = u16::try_from(tables.ids.len()).expect("checked when they were numbered");
    for field in [compression.id(), log, flags, id_count, 4, 0] {
        superblock.extend(field.to_le_bytes());
    }
    let root = tables.root.reference();
    for field in [
        root,
        used,
        id_table,
        xattr_table,
        inode_table,
        directory_table,
        fragment_table,
        export_table,
    ] {
        superblock.extend(field.to_le_bytes());
    }
    superblock.extend(&head);
    file.write_all_at(&superblock, base)?;
    Ok(Written {
        bytes: used.next_multiple_of(PADDING),
        inodes,
        lost_xattrs: tables.lost_xattrs,
    })
}

fn fragment(start: u64, size: u32) -> [u8; FRAGMENT_ENTRY] {
    let mut entry = [0; FRAGMENT_ENTRY];
    entry[..8].copy_from_slice(&start.to_le_bytes());
    entry[8..12].copy_from_slice(&size.to_le_bytes());
    entry
}

/// The tables behind the data, as they are written.
struct Tail<'a> {
    output: &'a Output<'a>,
    /// Where the next one begins in the file system.
    end: u64,
}

impl Tail<'_> {
    /// Returns what the superblock has to say.
    fn table(&mut self, records: impl Iterator<Item: AsRef<[u8]>>) -> io::Result<u64> {
        let at = self.end;
        metadata::table(self.output.options, records, self, at)
    }
}

impl Write for Tail<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.file.write_all_at(bytes, self.output.base + self.end)?;
        self.end += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
