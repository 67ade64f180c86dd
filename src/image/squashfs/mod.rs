//! Writing SquashFS 4.0 (the format of the Linux kernel's `Documentation/filesystems/squashfs.rst` and `squashfs_fs.h`).
//!
//! ```text
//! superblock │ options │ data and fragment blocks │ inodes │ directories │ fragments │ export │ ids │ attributes
//! ```
//!
//! Everything that decides the file's bytes is planned before the first of them is written: which bodies are the same, which
//! tails share a fragment, which number an inode has. So blocks can be compressed by all cores in any order, and are written
//! by one, in order; and the same tree and options give the same bytes.

mod bodies;
mod compress;
mod contents;
mod inodes;
mod metadata;
mod write;
mod xattrs;

pub use compress::{Compression, CompressionError};
pub use write::{SquashfsOptions, Written, write_squashfs};
