//! What can go wrong with a data set.

use std::io;
use std::path::{Path, PathBuf};

use crate::net::NetError;
use crate::oci::Digest;
use crate::store::StoreError;

/// Why a data set cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("`{url}` is no URL that data can come from (https:, http:, gs: or file:)")]
    Url { url: String },
    #[error("`{0}` is no file name")]
    Name(String),
    #[error("cannot get {name}")]
    Net {
        name: String,
        #[source]
        source: NetError,
    },
    #[error("{name} from {url} has the checksum {actual}, but {expected} is declared; nothing of it was kept")]
    Checksum {
        name: String,
        url: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("cannot unpack {name}")]
    Archive {
        name: String,
        #[source]
        source: ArchiveError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it is {0}, which is not supported")]
    Format(&'static str),
    #[error("the archive is damaged")]
    Damaged(#[source] io::Error),
    #[error("its member `{0}` would lie outside its folder")]
    Outside(String),
    #[error("its link `{link}` points outside its folder, to `{target}`")]
    Link { link: String, target: String },
    #[error("its member `{0}` is a device or another special file")]
    Special(String),
    #[error("its member `{0}` lies below a file")]
    BelowFile(String),
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl DataError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
        let path = path.to_owned();
        move |source| DataError::Io { doing, path, source }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            DataError::Net { source, .. } => return source.hint(),
            DataError::Store(source) => return source.hint(),
            DataError::Checksum { .. } => {
                "if the file was renewed on purpose, put its new checksum into the workflow file; else do not trust it"
            }
            DataError::Archive {
                source: ArchiveError::Format(_),
                ..
            } => "archives are tar, plain or compressed with gzip or zstd; without `unpack` the file is kept as it is",
            DataError::Missing { .. } => "a `path` must be there already: check it, on this host",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl ArchiveError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
        let path = path.to_owned();
        move |source| ArchiveError::Io { doing, path, source }
    }
}
