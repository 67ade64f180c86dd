//! Data sets: downloaded, verified while read, kept in the store. Async.
//!
//! What a set *is*, [`identity`] says without asking anyone, so its folder is known before it is there. [`fetch`]
//! makes the folder: files are blobs of the store, hard-linked under their names and not to be written to. Beside
//! the folder lies `sha256-….json`, which tells what came from where, with the sums of files that had none declared.

mod error;
mod fetch;
mod file;
mod identity;
mod location;
mod unpack;

pub use error::{ArchiveError, DataError};
pub use fetch::fetch;
pub use identity::{files, identity, place};
