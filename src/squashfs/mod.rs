//! Reading SquashFS 4.0 (the Linux kernel's `Documentation/filesystems/squashfs.rst` and `fs/squashfs/squashfs_fs.h`).
//!
//! ```text
//! superblock │ options │ data and fragment blocks │ inodes │ directories │ fragments │ export │ ids │ attributes
//! ```
//!
//! Beside `image`, which writes the format, and `runtime`, which serves it, since neither knows the other. Knows no other
//! part. All reads are positioned, so that any number of threads share one [`Squashfs`]; what they keep is bounded in bytes.
//!
//! An image is not to be trusted: every number in it is checked before it is used, a damaged or hostile one gives a
//! [`SquashfsError`], and memory grows with what is really in the file, up to fixed limits.

mod cache;
mod compression;
mod directory;
mod error;
mod file;
pub(crate) mod format;
mod inode;
mod metadata;
mod open;
mod source;
mod xattr;

pub use compression::Codec;
pub use directory::{Entry, Listing};
pub use error::SquashfsError;
pub use inode::{Inode, InodeRef, Kind, Node};
pub use open::Squashfs;
pub use xattr::Xattr;
