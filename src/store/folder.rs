//! Where things lie.

use std::path::{Path, PathBuf};

use crate::oci::Digest;

/// The layout of the module's documentation; nothing is made until it is used.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    spool: Option<PathBuf>,
}

impl Store {
    /// `cache` is the cache folder; the versioned layout lies below it.
    pub fn new(cache: &Path) -> Store {
        Store {
            root: cache.join("v1"),
            spool: None,
        }
    }

    /// With a place of its own for the layers of images that are being converted, uncompressed and in files without names.
    #[must_use]
    pub fn with_spool(self, spool: Option<PathBuf>) -> Store {
        Store { spool, ..self }
    }

    /// That place; `None`: in the scratch folder of the conversion.
    pub fn spool(&self) -> Option<&Path> {
        self.spool.as_deref()
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm().name())
            .join(&digest.hex()[..2])
            .join(digest.hex())
    }

    /// The folder of a converted image: `rootfs/` and `image.json`.
    pub fn image(&self, manifest: &Digest) -> PathBuf {
        self.root.join("images").join(name(manifest))
    }

    pub fn data(&self, identity: &Digest) -> PathBuf {
        self.root.join("data").join(name(identity))
    }

    pub fn tags(&self) -> PathBuf {
        self.root.join("tags")
    }

    pub fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Lists of what programs read of their images when they start.
    pub fn read_ahead(&self) -> PathBuf {
        self.root.join("read-ahead")
    }

    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }
}

fn name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}
