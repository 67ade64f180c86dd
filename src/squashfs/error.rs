//! Why an image, or a part of it, cannot be read.

use std::io;

/// Positions are bytes from the file system's beginning.
#[derive(Debug, thiserror::Error)]
pub enum SquashfsError {
    #[error("the image cannot be read at byte {at}")]
    Read { at: u64, source: io::Error },
    #[error("this is no SquashFS 4.0 image: {0}")]
    NotSquashfs(&'static str),
    #[error("the image is compressed with {0}, which cannot be read")]
    Compressor(String),
    #[error("the image is damaged: {what} at byte {at}")]
    Damaged { what: &'static str, at: u64 },
    #[error("the image has {0}")]
    TooBig(&'static str),
}

impl SquashfsError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            SquashfsError::NotSquashfs(_) => Some("is the file complete? Compare its size and checksum with the original's".to_owned()),
            SquashfsError::Compressor(_) => Some("build it again with zstd, gzip, xz or lz4".to_owned()),
            SquashfsError::Damaged { .. } => Some("fetch or copy the image again: its bytes have changed".to_owned()),
            SquashfsError::Read { .. } | SquashfsError::TooBig(_) => None,
        }
    }

    pub(crate) fn damaged(what: &'static str, at: u64) -> SquashfsError {
        SquashfsError::Damaged { what, at }
    }
}
