//! What can go wrong with a workflow's images and data.

use std::path::PathBuf;

use super::PullError;
use crate::data::DataError;
use crate::oci::{Digest, PlatformError, SourceError};
use crate::registry::RegistryError;
use crate::store::StoreError;

/// Which image or data set cannot be had, and why.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("image `{name}` cannot be used")]
    Source {
        name: String,
        #[source]
        source: SourceError,
    },
    #[error("image `{name}` cannot be used")]
    Platform {
        name: String,
        #[source]
        source: PlatformError,
    },
    #[error("image `{name}` cannot be had")]
    Image {
        name: String,
        #[source]
        source: Box<RegistryError>,
    },
    #[error("image `{name}` cannot be read from {}", path.display())]
    File {
        name: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("image `{name}` was {expected} when the workflow was planned, and is {found} now")]
    Moved { name: String, expected: Digest, found: Digest },
    #[error("image `{name}` cannot be had")]
    Pull {
        name: String,
        #[source]
        source: Box<PullError>,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("data set `{name}` cannot be had")]
    Data {
        name: String,
        #[source]
        source: Box<DataError>,
    },
}

impl FetchError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            FetchError::Source { source, .. } => source.hint(),
            FetchError::Platform { .. } => None,
            FetchError::Image { source, .. } => source.hint(),
            FetchError::File { .. } => {
                Some("the path of an image file is relative to the workflow file; `dvrun pull REF -o FILE.sif` makes one".to_owned())
            }
            FetchError::Moved { .. } => Some("run the same command again".to_owned()),
            FetchError::Pull { source, .. } => source.hint(),
            FetchError::Store(source) => source.hint(),
            FetchError::Data { source, .. } => source.hint(),
        }
    }
}
