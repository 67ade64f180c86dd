//! Converted images: found by manifest digest, published whole or not at all.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Scratch, Store, StoreError, remove_tree};
use crate::oci::{Digest, ImageConfig};

/// `image.json`: what is known of a converted image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Of the manifest for the platform, and of the configuration blob.
    pub manifest: Digest,
    pub config_digest: Digest,
    pub config: ImageConfig,
    /// The sources that it was pulled as, oldest first.
    pub names: Vec<String>,
    /// Lowest first.
    pub layers: Vec<StoredLayer>,
    /// Bytes of file content in `rootfs/`.
    pub bytes: u64,
    /// Files, folders and links in `rootfs/`.
    pub files: u64,
    /// What the conversion had to leave out, a sentence each.
    pub notes: Vec<String>,
    /// When it was converted, in Unix milliseconds, and by which version of dvrun.
    pub created: i64,
    pub version: String,
}

/// A layer's descriptor, as the manifest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLayer {
    pub digest: Digest,
    /// Compressed, in bytes.
    pub size: u64,
    pub media_type: String,
}

/// An image that is whole.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredImage {
    pub digest: Digest,
    /// The folder with `rootfs/` and `image.json`.
    pub path: PathBuf,
    pub info: ImageInfo,
}

impl StoredImage {
    pub fn rootfs(&self) -> PathBuf {
        self.path.join(ROOTFS)
    }

    /// The image in the folder `path` of a store, if it is there and whole.
    ///
    /// # Errors
    /// As [`Store::find_image`].
    pub fn open(path: PathBuf) -> Result<Option<StoredImage>, StoreError> {
        let info = path.join(INFO);
        let text = match fs::read(&info) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(StoreError::at("read", &info))?,
        };
        let image = serde_json::from_slice(&text).ok().map(|info: ImageInfo| StoredImage {
            digest: info.manifest.clone(),
            path,
            info,
        });
        Ok(image.filter(|image| image.rootfs().is_dir()))
    }
}

/// An image being converted; dropped, it leaves nothing.
#[derive(Debug)]
pub struct ImageDraft {
    store: Store,
    scratch: Scratch,
    folder: PathBuf,
}

pub(super) const ROOTFS: &str = "rootfs";
const INFO: &str = "image.json";

impl Store {
    /// The key of the lock ([`Store::lock`]) that makes two processes convert an image once. Whoever holds it looks with
    /// [`Store::find_image`] first.
    pub fn image_lock(manifest: &Digest) -> String {
        format!("image-{}-{}", manifest.algorithm().name(), manifest.hex())
    }

    /// The converted image, if it is there and whole. A damaged `image.json` is none: the image is converted again.
    ///
    /// # Errors
    /// What the file system says, other than that there is nothing.
    pub fn find_image(&self, manifest: &Digest) -> Result<Option<StoredImage>, StoreError> {
        let image = StoredImage::open(self.image(manifest))?;
        Ok(image.filter(|image| image.digest == *manifest))
    }

    /// All whole images, oldest first.
    ///
    /// # Errors
    /// As [`Store::find_image`].
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let folder = self.root().join("images");
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(StoreError::at("read", &folder))?,
        };
        let mut images = Vec::new();
        for entry in entries {
            let name = entry.map_err(StoreError::at("read", &folder))?.file_name();
            let digest = name.to_str().and_then(|name| name.replacen('-', ":", 1).parse::<Digest>().ok());
            if let Some(digest) = digest {
                images.extend(self.find_image(&digest)?);
            }
        }
        images.sort_by(|a, b| (a.info.created, &a.digest).cmp(&(b.info.created, &b.digest)));
        Ok(images)
    }

    /// Records that an image was pulled as `name` too. The caller holds the image's lock.
    ///
    /// # Errors
    /// What the file system says.
    pub fn name_image(&self, image: &mut StoredImage, name: &str) -> Result<(), StoreError> {
        if !image.info.names.iter().any(|known| known == name) {
            image.info.names.push(name.to_owned());
            write_info(&image.path, &image.info)?;
        }
        Ok(())
    }

    /// Starts a conversion. The caller holds the image's lock.
    ///
    /// # Errors
    /// What the file system says.
    pub fn draft_image(&self) -> Result<ImageDraft, StoreError> {
        let scratch = self.new_scratch()?;
        let folder = scratch.path().join("image");
        fs::create_dir(&folder).map_err(StoreError::at("create", &folder))?;
        Ok(ImageDraft {
            store: self.clone(),
            scratch,
            folder,
        })
    }

    /// Deletes an image; whether there was one. The caller holds the image's lock.
    ///
    /// # Errors
    /// What the file system says. The image is out of sight from the first moment on, whole or half deleted.
    pub fn remove_image(&self, manifest: &Digest) -> Result<bool, StoreError> {
        let path = self.image(manifest);
        let scratch = self.new_scratch()?;
        let doomed = scratch.path().join("doomed");
        match fs::rename(&path, &doomed) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(StoreError::at("move", &path)(error)),
        }
        remove_tree(&doomed).map_err(StoreError::at("remove", &doomed))?;
        Ok(true)
    }
}

impl ImageDraft {
    /// Where the root file system is to be made; it does not exist yet.
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join(ROOTFS)
    }

    /// Where the list of its files' checksums is to be made ([`super::write_checksum`]).
    pub fn checksums(&self) -> PathBuf {
        self.folder.join(super::verify::CHECKSUMS)
    }

    /// A folder for files that are needed meanwhile; on the same file system as the image.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Makes the image appear under its manifest's digest, with everything on disk before the name is.
    ///
    /// # Errors
    /// What the file system says; then nothing appears.
    pub fn publish(self, info: ImageInfo) -> Result<StoredImage, StoreError> {
        let rootfs = self.rootfs();
        let on_disk = File::open(&rootfs).and_then(|folder| Ok(nix::unistd::syncfs(folder)?));
        on_disk.map_err(StoreError::at("write to disk", &rootfs))?;
        write_info(&self.folder, &info)?;
        let path = self.store.image(&info.manifest);
        let images = self.store.root().join("images");
        fs::create_dir_all(&images).map_err(StoreError::at("create", &images))?;
        // What is there now is no whole image, or this conversion would not have been started.
        match fs::rename(&path, self.scratch.path().join("replaced")) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(StoreError::at("move", &path)(error)),
            _ => {}
        }
        fs::rename(&self.folder, &path).map_err(StoreError::at("create", &path))?;
        sync_folder(&images)?;
        Ok(StoredImage {
            digest: info.manifest.clone(),
            path,
            info,
        })
    }
}

fn write_info(folder: &Path, info: &ImageInfo) -> Result<(), StoreError> {
    let path = folder.join(INFO);
    let text = serde_json::to_vec_pretty(info)
        .map_err(io::Error::from)
        .map_err(StoreError::at("write", &path))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(StoreError::at("write in", folder))?;
    file.write_all(&text)
        .and_then(|()| file.as_file().sync_all())
        .map_err(StoreError::at("write", &path))?;
    file.persist(&path)
        .map_err(|error| error.error)
        .map_err(StoreError::at("write", &path))?;
    sync_folder(folder)
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::at("write to disk", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn info(manifest: &Digest) -> ImageInfo {
        ImageInfo {
            manifest: manifest.clone(),
            config_digest: Digest::sha256(b"config"),
            config: ImageConfig::default(),
            names: vec!["docker://a".into()],
            layers: Vec::new(),
            bytes: 1,
            files: 1,
            notes: Vec::new(),
            created: 7,
            version: "0".into(),
        }
    }

    fn fill(draft: &ImageDraft) {
        fs::create_dir(draft.rootfs()).unwrap();
        fs::write(draft.rootfs().join("file"), "x").unwrap();
        fs::set_permissions(draft.rootfs(), fs::Permissions::from_mode(0o555)).unwrap();
    }

    #[test]
    fn an_image_appears_whole_is_found_named_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let manifest = Digest::sha256(b"manifest");
        assert_eq!(store.find_image(&manifest).unwrap(), None);
        let draft = store.draft_image().unwrap();
        fill(&draft);
        assert_eq!(store.find_image(&manifest).unwrap(), None, "not before it is whole");
        let image = draft.publish(info(&manifest)).unwrap();
        let mut found = store.find_image(&manifest).unwrap().expect("published");
        assert_eq!(found, image);
        assert_eq!(fs::read(found.rootfs().join("file")).unwrap(), b"x");
        store.name_image(&mut found, "docker://b").unwrap();
        store.name_image(&mut found, "docker://a").unwrap();
        assert_eq!(store.images().unwrap()[0].info.names, ["docker://a", "docker://b"]);
        assert_eq!(fs::read_dir(store.scratch()).unwrap().count(), 0, "scratch is empty again");
        assert!(store.remove_image(&manifest).unwrap());
        assert!(!store.remove_image(&manifest).unwrap());
        assert!(store.images().unwrap().is_empty() && !image.path.exists());
    }

    #[test]
    fn a_dropped_draft_leaves_nothing_and_a_damaged_image_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let manifest = Digest::sha256(b"manifest");
        let draft = store.draft_image().unwrap();
        fill(&draft);
        drop(draft);
        assert_eq!(fs::read_dir(store.scratch()).unwrap().count(), 0);
        fs::create_dir_all(store.image(&manifest)).unwrap();
        fs::write(store.image(&manifest).join(INFO), "{").unwrap();
        assert_eq!(store.find_image(&manifest).unwrap(), None);
        let draft = store.draft_image().unwrap();
        fill(&draft);
        draft.publish(info(&manifest)).unwrap();
        assert!(store.find_image(&manifest).unwrap().is_some());
    }
}
