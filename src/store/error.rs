//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

/// A failed operation on a file of the store.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct StoreError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StoreError {
    /// For `map_err`: what was being done, and to what.
    pub fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError { doing, path, source }
    }

    pub fn hint(&self) -> Option<String> {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Some("free some space, or let DVRUN_CACHE name a folder on a larger file system".to_owned())
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Some("let DVRUN_CACHE name a folder that you may write to".to_owned())
            }
            _ => None,
        }
    }
}
