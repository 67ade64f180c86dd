//! What the names in a workflow resolved to, and where that lies in the store. Pure: `fetch` fills it.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::oci::Digest;

/// Every image's digest and every data set's place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lock {
    pub images: IndexMap<String, LockedImage>,
    pub data: IndexMap<String, LockedData>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockedImage {
    /// As the workflow says it.
    pub source: String,
    /// Of the manifest for the chosen platform, or of an image file's bytes. `None`: not resolved (planning without the
    /// network).
    pub digest: Option<Digest>,
    /// The converted image, a folder with `rootfs/` and `image.json` (see [`crate::store`]); or the image file itself, which
    /// runs where it lies. Known with the digest.
    pub path: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockedData {
    /// What the data set is, whatever it is called: a hash over names, URLs and checksums.
    pub identity: Digest,
    /// The folder (or file) on this host; predictable before anything is fetched.
    pub path: PathBuf,
    /// File names in it, for `${{ data.NAME.file }}`. Empty for a `path` or an archive.
    pub files: Vec<String>,
}
