//! Images that can be run: found by digest, published whole or not at all. Most are converted and lie here; a SIF file, and a
//! root folder of the user's, are used as they are.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hold::{self, IN_USE};
use super::{Scratch, Store, StoreError, remove_tree};
use crate::oci::{Digest, ImageConfig};

/// `image.json`: what is known of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Of the manifest for the platform; of the file's bytes, or of a folder's inventory, where the image is one of the user's.
    pub manifest: Digest,
    /// Of the configuration blob; of the file where that holds it.
    pub config_digest: Digest,
    pub config: ImageConfig,
    /// Where the root file system is.
    #[serde(default)]
    pub root: Place,
    /// The sources that it was pulled as, oldest first.
    pub names: Vec<String>,
    /// Lowest first.
    pub layers: Vec<StoredLayer>,
    /// Bytes of file content in a folder; of the whole file where the image is one.
    pub bytes: u64,
    /// Files, folders and links in the image.
    pub files: u64,
    /// What the conversion had to leave out, a sentence each.
    pub notes: Vec<String>,
    /// When it was converted, in Unix milliseconds, and by which version of dvrun.
    pub created: i64,
    pub version: String,
}

/// Where an image's root file system is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// `rootfs/` beside `image.json`.
    #[default]
    Unpacked,
    /// A SquashFS at byte `offset` of a file: of `image.sif` beside `image.json`, or of one of the user's by its absolute path.
    File { path: PathBuf, offset: u64, stamp: Stamp },
    /// A folder of the user's.
    Folder { path: PathBuf },
}

/// What tells that a file is still the one that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// In bytes.
    pub size: u64,
    /// When it was changed last, in nanoseconds since 1970.
    pub changed: i64,
}

impl Stamp {
    pub fn of(meta: &fs::Metadata) -> Stamp {
        Stamp {
            size: meta.size(),
            changed: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
        }
    }
}

/// What a container's root is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredRoot {
    Folder(PathBuf),
    /// A SquashFS that begins at byte `offset` of `file`.
    Squashfs {
        file: PathBuf,
        offset: u64,
    },
}

impl StoredRoot {
    /// The folder, or the file.
    pub fn path(&self) -> &Path {
        match self {
            StoredRoot::Folder(path) | StoredRoot::Squashfs { file: path, .. } => path,
        }
    }

    /// The folder, where it is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            StoredRoot::Folder(path) => Some(path),
            StoredRoot::Squashfs { .. } => None,
        }
    }
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
    /// The folder with `image.json`.
    pub path: PathBuf,
    pub info: ImageInfo,
}

impl StoredImage {
    /// What it is run from.
    pub fn root(&self) -> StoredRoot {
        match &self.info.root {
            Place::Unpacked => StoredRoot::Folder(self.path.join(ROOTFS)),
            Place::Folder { path } => StoredRoot::Folder(path.clone()),
            Place::File { path, offset, .. } => StoredRoot::Squashfs {
                file: self.path.join(path),
                offset: *offset,
            },
        }
    }

    /// Whether that is there, a file of the user's as it was looked at.
    fn is_whole(&self) -> bool {
        let root = self.root();
        match &self.info.root {
            Place::Unpacked | Place::Folder { .. } => root.path().is_dir(),
            Place::File { stamp, .. } => fs::metadata(root.path()).is_ok_and(|meta| meta.is_file() && Stamp::of(&meta) == *stamp),
        }
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
        Ok(image.filter(StoredImage::is_whole))
    }
}

/// What came of removing an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// Somebody runs it ([`StoredImage::hold`]); it is as before.
    InUse,
    /// There was none.
    Absent,
}

/// An image being converted; dropped, it leaves nothing.
#[derive(Debug)]
pub struct ImageDraft {
    store: Store,
    scratch: Scratch,
    folder: PathBuf,
}

pub(super) const ROOTFS: &str = "rootfs";
/// The file of [`Place::File`] that lies in the store.
const SIF: &str = "image.sif";
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
        // Its time tells that it was wanted.
        image.hold().map(drop)
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

    /// Deletes an image that nobody holds. The caller holds the image's lock.
    ///
    /// # Errors
    /// What the file system says. The image is out of sight from the first moment on, whole or half deleted.
    pub fn remove_image(&self, manifest: &Digest) -> Result<Removal, StoreError> {
        let path = self.image(manifest);
        if !path.is_dir() {
            return Ok(Removal::Absent);
        }
        let Some(_alone) = hold::alone(&path)? else {
            return Ok(Removal::InUse);
        };
        let scratch = self.new_scratch()?;
        let doomed = scratch.path().join("doomed");
        fs::rename(&path, &doomed).map_err(StoreError::at("move", &path))?;
        remove_tree(&doomed).map_err(StoreError::at("remove", &doomed))?;
        Ok(Removal::Removed)
    }
}

impl ImageDraft {
    /// Where the root file system is to be made; it does not exist yet.
    pub fn rootfs(&self) -> PathBuf {
        self.folder.join(ROOTFS)
    }

    /// Puts a second name of `blob`, or a copy where the file system has no such thing, beside the `image.json` to be.
    ///
    /// # Errors
    /// What the file system says.
    pub fn link_sif(&self, blob: &Path, offset: u64) -> Result<Place, StoreError> {
        let to = self.folder.join(SIF);
        match fs::hard_link(blob, &to) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                return Err(StoreError::at("create", &to)(error));
            }
            Err(_) => {
                fs::copy(blob, &to).map_err(StoreError::at("write", &to))?;
            }
        }
        let meta = fs::metadata(&to).map_err(StoreError::at("look at", &to))?;
        let (path, stamp) = (SIF.into(), Stamp::of(&meta));
        Ok(Place::File { path, offset, stamp })
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
        let on_disk = File::open(&self.folder).and_then(|folder| Ok(nix::unistd::syncfs(folder)?));
        on_disk.map_err(StoreError::at("write to disk", &self.folder))?;
        let in_use = self.folder.join(IN_USE);
        File::create(&in_use).map_err(StoreError::at("create", &in_use))?;
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
            root: Place::Unpacked,
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
        assert_eq!(fs::read(found.root().path().join("file")).unwrap(), b"x");
        store.name_image(&mut found, "docker://b").unwrap();
        store.name_image(&mut found, "docker://a").unwrap();
        assert_eq!(store.images().unwrap()[0].info.names, ["docker://a", "docker://b"]);
        assert_eq!(fs::read_dir(store.scratch()).unwrap().count(), 0, "scratch is empty again");
        let hold = found.hold().unwrap();
        let second = found.hold().unwrap();
        assert!(second.is_some(), "any number may run it");
        drop(second);
        assert_eq!(store.remove_image(&manifest).unwrap(), Removal::InUse);
        assert!(found.root().path().join("file").exists());
        drop(hold);
        assert_eq!(store.remove_image(&manifest).unwrap(), Removal::Removed);
        assert_eq!(store.remove_image(&manifest).unwrap(), Removal::Absent);
        assert!(store.images().unwrap().is_empty() && !image.path.exists());
    }

    #[test]
    fn a_file_is_an_image_as_long_as_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(&dir.path().join("cache"));
        let theirs = dir.path().join("x.sif");
        fs::write(&theirs, "sif").unwrap();
        let place = Place::File {
            path: theirs.clone(),
            offset: 1,
            stamp: Stamp::of(&fs::metadata(&theirs).unwrap()),
        };
        let digest = Digest::sha256(b"sif");
        let keep = |root: Place| {
            let draft = store.draft_image().unwrap();
            draft.publish(ImageInfo { root, ..info(&digest) }).unwrap()
        };
        let root = StoredRoot::Squashfs {
            file: theirs.clone(),
            offset: 1,
        };
        assert_eq!(keep(place).root(), root);
        assert!(store.find_image(&digest).unwrap().is_some());
        fs::write(&theirs, "sif!").unwrap();
        assert_eq!(store.find_image(&digest).unwrap(), None, "another file by now");

        let blob = store.write_blob(&digest, b"sif").unwrap();
        let draft = store.draft_image().unwrap();
        let root = draft.link_sif(&blob, 7).unwrap();
        let image = draft.publish(ImageInfo { root, ..info(&digest) }).unwrap();
        store.prune(std::time::Duration::ZERO, super::super::Prune::Delete).unwrap();
        assert!(blob.exists(), "what an image is run from is needed");
        fs::remove_file(blob).unwrap();
        let StoredRoot::Squashfs { file, offset: 7 } = image.root() else {
            panic!("{:?}", image.root())
        };
        assert_eq!(fs::read(file).unwrap(), b"sif");
        assert_eq!(store.find_image(&digest).unwrap(), Some(image));
        fs::remove_file(theirs).unwrap();

        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let image = keep(Place::Folder { path: folder.clone() });
        assert_eq!(image.root(), StoredRoot::Folder(folder.clone()));
        fs::remove_dir(folder).unwrap();
        assert_eq!(store.find_image(&digest).unwrap(), None);
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
