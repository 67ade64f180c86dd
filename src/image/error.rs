//! Why an image cannot be converted.

use std::io;
use std::path::PathBuf;

use super::tar::TarError;
use crate::squashfs::SquashfsError;

/// An image that asks for more than [`super::Limits`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {limit} {what}")]
pub struct Excess {
    pub what: &'static str,
    pub limit: u64,
}

/// What can go wrong between layers and a root file system. Layers are named by their digests, entries by their paths.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("layer {layer} cannot be decompressed")]
    Inflate { layer: String, source: io::Error },
    #[error("layer {layer} is compressed with {format}, which images do not use")]
    Compression { layer: String, format: &'static str },
    #[error("layer {layer} unpacks to {found}, but the image's configuration says {expected}")]
    Content { layer: String, expected: String, found: String },
    #[error("layer {layer}: entry `{entry}`")]
    Tar { layer: String, entry: String, source: TarError },
    #[error("layer {layer}: entry `{entry}`: {reason}")]
    Entry { layer: String, entry: String, reason: EntryFault },
    #[error("layer {layer}: the image has {excess}")]
    TooBig { layer: String, excess: Excess },
    #[error("layer {index} of {count} is missing")]
    Missing { index: usize, count: usize },
    #[error("{image} cannot be read")]
    Packed { image: String, source: SquashfsError },
    /// Another layer failed first; its error is the one to be told.
    #[error("layer {layer} was not read to its end")]
    Cancelled { layer: String },
}

/// Why an entry has no place in a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    #[error("it leads outside the image")]
    Outside,
    #[error("a name in it is longer than 255 bytes")]
    LongName,
    #[error("its path is longer than {0} bytes")]
    LongPath(u64),
    #[error("it is nested deeper than {0} folders")]
    TooDeep(usize),
    #[error("the root of an image is a folder")]
    RootIsNoFolder,
    #[error("a whiteout has to name what it hides")]
    NamelessWhiteout,
    #[error("it lies below a whiteout")]
    BelowWhiteout,
    #[error("a symbolic link needs a target")]
    EmptyTarget,
    #[error("its folder is reached through more than {0} symbolic links")]
    LinkLoop(usize),
    #[error("the target `{0}` of the hard link is not there")]
    NoTarget(String),
    #[error("the target `{0}` of the hard link is a folder")]
    FolderTarget(String),
    #[error("the image has {0}")]
    Excess(#[from] Excess),
}

impl ImageError {
    /// The layer whose content is not what it should be, by its digest.
    pub fn damaged_layer(&self) -> Option<&str> {
        match self {
            ImageError::Inflate { layer, .. }
            | ImageError::Compression { layer, .. }
            | ImageError::Content { layer, .. }
            | ImageError::Tar { layer, .. }
            | ImageError::Entry { layer, .. } => Some(layer),
            _ => None,
        }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ImageError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
                    "free some space, or put the cache on a larger disk (DVRUN_CACHE; `spool` in the configuration for layers)".to_owned(),
                ),
                _ => None,
            },
            ImageError::Inflate { .. } | ImageError::Content { .. } => {
                Some("the image in the registry is damaged: build and push it again, or use another tag".to_owned())
            }
            ImageError::Packed { source, .. } => source.hint(),
            ImageError::TooBig { .. } => Some("an image of this size is refused; is it the one you meant?".to_owned()),
            _ => None,
        }
    }
}

/// What is said in the place of a layer's digest for files that are not an image's.
pub(super) const OWN: &str = "of dvrun's own files";

/// For `map_err`: an I/O error with what was being done to which path.
pub(super) fn at<'a>(doing: &'static str, path: &'a std::path::Path) -> impl FnOnce(io::Error) -> ImageError + 'a {
    move |source| ImageError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// A name from an archive, fit for a message: no control characters, and not without end.
pub(super) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut shown = String::new();
    for character in text.chars().take(300) {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
