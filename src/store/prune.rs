//! What the store takes up, and what of it nothing uses.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Store, StoreError};
use crate::oci::Digest;

/// Files and what they take up on disk, in bytes; a file with several names counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub files: u64,
    pub bytes: u64,
}

impl Space {
    fn add(&mut self, meta: &Metadata) {
        self.files += 1;
        self.bytes += meta.blocks() * 512;
    }
}

/// The folders of the store's layout that hold something.
const PLACES: [&str; 6] = ["images", "data", "blobs", "partial", "scratch", "tags"];

impl Store {
    /// What lies in each folder of the store. What was counted in one is not counted in the next.
    ///
    /// # Errors
    /// What the file system says.
    pub fn space(&self) -> Result<Vec<(&'static str, Space)>, StoreError> {
        let mut seen = BTreeSet::new();
        let space = PLACES.iter().map(|place| {
            let mut space = Space::default();
            each_file(&self.root().join(place), &mut |_, meta| {
                if meta.nlink() == 1 || seen.insert((meta.dev(), meta.ino())) {
                    space.add(meta);
                }
                Ok(())
            })?;
            Ok((*place, space))
        });
        space.collect()
    }

    /// Deletes what dead processes left, unfinished downloads, and blobs that no image and no data set needs any more (the
    /// layers of converted images among them), each only when it is older than `age`: what was just fetched is about to be
    /// used.
    ///
    /// # Errors
    /// What the file system says.
    pub fn prune(&self, age: Duration, mode: Prune) -> Result<Space, StoreError> {
        let mut freed = Space::default();
        if mode == Prune::Delete {
            self.sweep_scratch()?;
        }
        let needed = self.needed()?;
        let old = |meta: &Metadata| {
            let now = SystemTime::now();
            meta.modified()
                .ok()
                .and_then(|changed| now.duration_since(changed).ok())
                .is_some_and(|since| since > age)
        };
        let mut doomed: Vec<PathBuf> = Vec::new();
        each_file(&self.partial(), &mut |path, meta| {
            if old(meta) {
                freed.add(meta);
                doomed.push(path.to_owned());
            }
            Ok(())
        })?;
        each_file(&self.root().join("blobs"), &mut |path, meta| {
            // A second name is a data set's.
            if old(meta) && meta.nlink() == 1 && !needed.contains(path) {
                freed.add(meta);
                doomed.push(path.to_owned());
            }
            Ok(())
        })?;
        for path in doomed.iter().filter(|_| mode == Prune::Delete) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(StoreError::at("remove", path)(error)),
                _ => {}
            }
        }
        Ok(freed)
    }

    /// The blobs by which images are found without a network: manifests and configurations.
    fn needed(&self) -> Result<BTreeSet<PathBuf>, StoreError> {
        let mut needed = BTreeSet::new();
        for image in self.images()? {
            needed.insert(self.blob(&image.info.manifest));
            needed.insert(self.blob(&image.info.config_digest));
        }
        each_file(&self.tags(), &mut |path, _| {
            let bytes = fs::read(path).map_err(StoreError::at("read", path))?;
            // Only a cache: a damaged answer needs nothing.
            if let Ok(tag) = serde_json::from_slice::<super::Tag>(&bytes) {
                needed.insert(self.blob(&tag.digest));
                self.add_index(&tag.digest, &mut needed)?;
            }
            Ok(())
        })?;
        Ok(needed)
    }

    /// The manifests that an index names.
    fn add_index(&self, digest: &Digest, needed: &mut BTreeSet<PathBuf>) -> Result<(), StoreError> {
        let Some(bytes) = self.read_blob(digest, crate::oci::MANIFEST_MAX)? else {
            return Ok(());
        };
        if let Ok(crate::oci::Manifest::Index(index)) = crate::oci::Manifest::parse(&bytes) {
            needed.extend(index.manifests.iter().map(|entry| self.blob(&entry.digest)));
        }
        Ok(())
    }
}

/// What lies in a folder.
pub(super) fn space_of(folder: &Path) -> Result<Space, StoreError> {
    let mut space = Space::default();
    each_file(folder, &mut |_, meta| {
        space.add(meta);
        Ok(())
    })?;
    Ok(space)
}

/// Whether [`Store::prune`] deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    /// Says what would go.
    Look,
    Delete,
}

/// Calls `each` for all that is no folder at `path` and below it. What disappears meanwhile is passed over, and so is what
/// this user may not read.
fn each_file(path: &Path, each: &mut dyn FnMut(&Path, &Metadata) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => continue,
            other => other.map_err(StoreError::at("read", &folder))?,
        };
        for entry in entries {
            let path = entry.map_err(StoreError::at("read", &folder))?.path();
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => folders.push(path),
                Ok(meta) => each(&path, &meta)?,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::at("look at", &path)(error)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_young_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let blob = |bytes: &[u8]| store.write_blob(&Digest::sha256(bytes), bytes).unwrap();
        let (layer, manifest, file) = (blob(b"layer"), blob(b"manifest"), blob(b"file"));
        store
            .set_tag(&super::super::Tag {
                reference: "r".into(),
                digest: Digest::sha256(b"manifest"),
                asked: jiff::Timestamp::now(),
            })
            .unwrap();
        let set = store.data(&Digest::sha256(b"set"));
        fs::create_dir_all(&set).unwrap();
        fs::hard_link(&file, set.join("reads.bam")).unwrap();
        fs::write(store.partial().join("sha256-ab"), "half").unwrap();
        assert_eq!(store.prune(Duration::from_secs(3600), Prune::Delete).unwrap(), Space::default());
        let would = store.prune(Duration::ZERO, Prune::Look).unwrap();
        assert_eq!(would.files, 2);
        assert!(layer.exists());
        assert_eq!(store.prune(Duration::ZERO, Prune::Delete).unwrap(), would);
        assert!(!layer.exists() && manifest.exists() && file.exists());
        assert_eq!(store.prune(Duration::ZERO, Prune::Delete).unwrap(), Space::default());
        let space = store.space().unwrap();
        let files = |name: &str| space.iter().find(|(place, _)| *place == name).map(|(_, space)| space.files);
        assert_eq!(
            (files("data"), files("blobs"), files("tags")),
            (Some(1), Some(1), Some(1)),
            "one file, two names"
        );
    }
}
