//! Numbers of the format, shared by whoever reads and writes it (`squashfs_fs.h`).

/// `hsqs`, little-endian.
pub const MAGIC: u32 = 0x7371_7368;
/// Bytes of the superblock.
pub const SUPERBLOCK: u64 = 96;
/// Of a table that is not there.
pub const NO_TABLE: u64 = u64::MAX;
/// Smallest and largest block, in bytes; a power of two.
pub const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=1 << 20;
/// Uncompressed bytes of a metadata block.
pub const METADATA_BLOCK: usize = 8192;
/// In the two-byte header of a metadata block: it is stored as it is.
pub const METADATA_STORED: u16 = 0x8000;
/// In a data block's size: it is stored as it is.
pub const DATA_STORED: u32 = 1 << 24;
/// Of a file without a fragment.
pub const NO_FRAGMENT: u32 = u32::MAX;
/// Of an inode without extended attributes.
pub const NO_XATTR: u32 = u32::MAX;
/// Bytes of an entry of the fragment table.
pub const FRAGMENT_ENTRY: usize = 16;
/// Bytes of an entry of the extended attributes' table.
pub const XATTR_ENTRY: usize = 16;

/// Numbers of compressors, as the superblock names them.
pub mod compressor {
    pub const GZIP: u16 = 1;
    pub const LZMA: u16 = 2;
    pub const LZO: u16 = 3;
    pub const XZ: u16 = 4;
    pub const LZ4: u16 = 5;
    pub const ZSTD: u16 = 6;
}

/// Numbers of inode types; the extended ones are seven more.
pub mod inode_type {
    pub const FOLDER: u16 = 1;
    pub const FILE: u16 = 2;
    pub const SYMLINK: u16 = 3;
    pub const BLOCK_DEVICE: u16 = 4;
    pub const CHAR_DEVICE: u16 = 5;
    pub const FIFO: u16 = 6;
    pub const SOCKET: u16 = 7;
    pub const EXTENDED: u16 = 7;
}

/// Prefixes of extended attributes' names, and the mark of a value that is stored elsewhere.
pub mod xattr_type {
    pub const PREFIXES: [&str; 3] = ["user.", "trusted.", "security."];
    pub const PREFIX_MASK: u16 = 0xff;
    pub const ELSEWHERE: u16 = 0x100;
}
