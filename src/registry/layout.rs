//! OCI image layouts on disk (OCI image spec, `image-layout.md`). Blobs are used where they lie, once verified.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::RegistryError;
use crate::oci::{Descriptor, Digest, Hasher, Index, MANIFEST_MAX, Manifest};

/// The media type of an image's manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Of an index.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The annotation that holds a tag.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The part of `index.json` that `tag` names: an index with one entry, or with all where no tag is needed.
pub(super) fn index(dir: &Path, tag: Option<&str>) -> Result<Index, RegistryError> {
    let no_layout = |source| RegistryError::NoLayout {
        dir: dir.to_owned(),
        source,
    };
    let bytes = read(&dir.join("index.json")).map_err(no_layout)?;
    select(&bytes, dir, tag)
}

/// The part of an `index.json` that `tag` names; `dir` is where it lies.
pub(super) fn select(bytes: &[u8], dir: &Path, tag: Option<&str>) -> Result<Index, RegistryError> {
    let no_layout = |source| RegistryError::NoLayout {
        dir: dir.to_owned(),
        source,
    };
    let index = match Manifest::parse(bytes) {
        Ok(Manifest::Index(index)) => index,
        Ok(Manifest::Image(_) | Manifest::Schema1(_)) => {
            return Err(no_layout(io::Error::new(io::ErrorKind::InvalidData, "index.json is no index")));
        }
        Err(source) => {
            let image = dir.display().to_string();
            return Err(RegistryError::Manifest { image, source });
        }
    };
    let available = || index.manifests.iter().filter_map(name).map(str::to_owned).collect::<Vec<_>>();
    let Some(tag) = tag else {
        // Several images for several platforms are a choice that the platform makes; several names are not.
        let names = available();
        let mut named: Vec<&Digest> = index
            .manifests
            .iter()
            .filter(|entry| name(entry).is_some())
            .map(|entry| &entry.digest)
            .collect();
        named.sort();
        named.dedup();
        return if named.len() > 1 {
            Err(RegistryError::WhichTag {
                dir: dir.to_owned(),
                available: names,
            })
        } else {
            Ok(index)
        };
    };
    let manifests: Vec<Descriptor> = index.manifests.iter().filter(|entry| name(entry) == Some(tag)).cloned().collect();
    if manifests.is_empty() {
        return Err(RegistryError::NoTag {
            dir: dir.to_owned(),
            tag: tag.to_owned(),
            available: available(),
        });
    }
    Ok(Index { manifests, ..index })
}

fn name(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(REF_NAME).map(String::as_str)
}

/// A small blob (manifest, config); `None` where it is missing or damaged.
pub(super) fn small_blob(dir: &Path, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
    let path = path(dir, digest);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RegistryError::io("open", &path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(RegistryError::io("read", &path))?;
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(&bytes);
    Ok((bytes.len() as u64 <= limit && hasher.finish() == *digest).then_some(bytes))
}

/// A blob of any size, read once to verify it; its path. Blocks.
pub(super) fn verify(dir: &Path, blob: &Descriptor, image: &str) -> Result<PathBuf, RegistryError> {
    let path = path(dir, &blob.digest);
    let damaged = || RegistryError::LayoutBlob {
        image: image.to_owned(),
        digest: blob.digest.clone(),
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged()),
        Err(error) => return Err(RegistryError::io("open", &path)(error)),
    };
    let mut file = file.take(blob.size + 1);
    let mut hasher = Hasher::new(blob.digest.algorithm());
    let (mut buffer, mut len) = (vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer).map_err(RegistryError::io("read", &path))?;
        if read == 0 {
            break;
        }
        len += read as u64;
        hasher.update(&buffer[..read]);
    }
    if len != blob.size || hasher.finish() != blob.digest {
        return Err(damaged());
    }
    Ok(path)
}

fn path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One more than is allowed, so that the parser refuses it by its length.
    File::open(path)?.take(MANIFEST_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
