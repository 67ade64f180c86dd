//! Blobs: verified bytes, each named by its digest. A blob that exists is whole and right: it was hashed before it
//! got its name.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Store, StoreError};
use crate::oci::{Digest, Hasher};

/// Nobody changes a blob, not even its owner by accident.
const MODE: u32 = 0o444;

impl Store {
    /// The blob's path, if it is there.
    pub fn find_blob(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.blob(digest);
        path.is_file().then_some(path)
    }

    /// A small blob (a manifest, a config), hashed again on its way; `None` where it is absent, damaged or longer
    /// than `limit` bytes.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::at("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(StoreError::at("read", &path))?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        Ok((bytes.len() as u64 <= limit && hasher.finish() == *digest).then_some(bytes))
    }

    /// Keeps bytes that the caller has hashed to `digest`.
    pub fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        let folder = self.partial();
        fs::create_dir_all(&folder).map_err(StoreError::at("create", &folder))?;
        let mut file = tempfile::NamedTempFile::new_in(&folder).map_err(StoreError::at("create a file in", &folder))?;
        file.write_all(bytes)
            .and_then(|()| file.as_file().sync_all())
            .map_err(StoreError::at("write", file.path()))?;
        let path = file.into_temp_path();
        // After this the temporary name is gone; dropping it finds nothing to remove.
        self.adopt_blob(digest, &path)
    }

    /// Makes the file at `from`, hashed to `digest` and synced by the caller and on the store's file system, a blob.
    pub fn adopt_blob(&self, digest: &Digest, from: &Path) -> Result<PathBuf, StoreError> {
        let path = self.blob(digest);
        let folder = path.parent().expect("a blob lies in a folder");
        fs::create_dir_all(folder).map_err(StoreError::at("create", folder))?;
        fs::set_permissions(from, fs::Permissions::from_mode(MODE)).map_err(StoreError::at("make read-only", from))?;
        fs::rename(from, &path).map_err(StoreError::at("create", &path))?;
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(StoreError::at("sync", folder))?;
        Ok(path)
    }

    /// Where a download with this digest goes on.
    pub fn partial_blob(&self, digest: &Digest) -> PathBuf {
        self.partial().join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_blob_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let digest = Digest::sha256(b"hello");
        assert_eq!(store.read_blob(&digest, 10).unwrap(), None);
        let path = store.write_blob(&digest, b"hello").unwrap();
        assert_eq!(store.find_blob(&digest), Some(path.clone()));
        assert_eq!(store.read_blob(&digest, 10).unwrap().unwrap(), b"hello");
        assert_eq!(store.read_blob(&digest, 4).unwrap(), None, "longer than the limit");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        assert_eq!(fs::read_dir(store.partial()).unwrap().count(), 0, "nothing is left behind");
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"hellO").unwrap();
        assert_eq!(store.read_blob(&digest, 10).unwrap(), None);
    }
}
