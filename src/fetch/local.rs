//! Files and folders of the user's that are images already: used where they lie, known by what is in them.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::PullError;
use crate::oci::{Algorithm, Digest, Hasher, ImageConfig};
use crate::sif::{self, Sif, SifError};
use crate::squashfs::{Squashfs, SquashfsError};
use crate::store::{Place, Stamp, Store};

/// An image of the user's.
#[derive(Clone, Debug)]
pub struct Local {
    /// Absolute, without links.
    pub path: PathBuf,
    /// Of the file's bytes; of a folder's inventory: names, kinds, modes, and the sizes and times of files.
    pub digest: Digest,
    /// What the file says of itself; nothing of a folder.
    pub config: ImageConfig,
    pub place: Place,
    /// In bytes.
    pub size: u64,
    /// Files, folders and links in it.
    pub files: u64,
}

/// Why a file or folder is no image that can be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Sif(#[from] SifError),
    #[error(transparent)]
    Squashfs(#[from] SquashfsError),
    #[error("it changed while it was read")]
    Changed,
    #[error("cannot write {}", path.display())]
    Copy { path: PathBuf, source: io::Error },
}

impl FileError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            FileError::Io { .. } | FileError::Copy { .. } => None,
            FileError::Sif(source) => source.hint(),
            FileError::Squashfs(SquashfsError::NotSquashfs(_)) => Some(
                "an image on disk is a SIF or SquashFS file, a root folder, oci:DIR, oci-archive:FILE or docker-archive:FILE".to_owned(),
            ),
            FileError::Squashfs(source) => source.hint(),
            FileError::Changed => Some("wait until whatever writes it is done".to_owned()),
        }
    }
}

/// What an image that is one file says of itself.
#[derive(Clone, Debug)]
pub struct FileFacts {
    /// Where the SquashFS begins.
    pub offset: u64,
    pub config: ImageConfig,
    /// Files, folders and links in it.
    pub files: u64,
}

/// Reads the beginning of a SIF or SquashFS file.
///
/// # Errors
/// A file that is neither, or damaged.
pub fn file_facts(path: &Path) -> Result<FileFacts, FileError> {
    let unreadable = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let (offset, config) = if sif::is_sif(&file).map_err(unreadable)? {
        let sif = Sif::read(&file)?;
        let config = ImageConfig {
            os: "linux".to_owned(),
            architecture: sif.architecture.to_owned(),
            created: jiff::Timestamp::from_second(sif.created).ok().map(|time| time.to_string()),
            config: sif.execution(&file)?,
            ..ImageConfig::default()
        };
        (sif.primary()?.offset, config)
    } else {
        (0, ImageConfig::default())
    };
    // Nothing is read but the superblock.
    let files = Squashfs::open(file, offset, 0)?.inode_count().into();
    Ok(FileFacts { offset, config, files })
}

/// Looks at the file or folder at `path`. Blocks: a file that `store` does not know yet is read to its end, of a folder each
/// name is looked at.
///
/// # Errors
/// What the disk says; a file that is no image.
pub(super) fn look(path: &Path, store: &Store) -> Result<Local, PullError> {
    let failed = |source: FileError| PullError::File {
        image: path.display().to_string(),
        source,
    };
    let unreadable = |source| {
        failed(FileError::Io {
            path: path.to_owned(),
            source,
        })
    };
    let path = fs::canonicalize(path).map_err(unreadable)?;
    let meta = fs::metadata(&path).map_err(unreadable)?;
    if meta.is_dir() {
        return folder(path.clone()).map_err(failed);
    }
    let facts = file_facts(&path).map_err(failed)?;
    let stamp = Stamp::of(&meta);
    let place = Place::File {
        path: path.clone(),
        offset: facts.offset,
        stamp,
    };
    let known = store.images().map_err(|source| PullError::Store {
        image: path.display().to_string(),
        source,
    })?;
    let digest = match known.into_iter().find(|image| image.info.root == place) {
        Some(image) => image.digest,
        None => sum(&path, stamp).map_err(failed)?,
    };
    Ok(Local {
        path,
        digest,
        config: facts.config,
        place,
        size: stamp.size,
        files: facts.files,
    })
}

/// The digest of a file that stays as `stamp` says.
fn sum(path: &Path, stamp: Stamp) -> Result<Digest, FileError> {
    let unreadable = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    if Stamp::of(&file.metadata().map_err(unreadable)?) != stamp {
        return Err(FileError::Changed);
    }
    Ok(hasher.finish())
}

/// A root folder. Its contents are not read: who changes a file changes its size or its time.
fn folder(path: PathBuf) -> Result<Local, FileError> {
    let (mut hasher, mut size, mut files) = (Hasher::new(Algorithm::Sha256), 0, 0);
    for entry in WalkDir::new(&path).sort_by_file_name() {
        let entry = entry.map_err(|error| FileError::Io {
            path: error.path().unwrap_or(&path).to_owned(),
            source: error.into(),
        })?;
        let unreadable = |source| FileError::Io {
            path: entry.path().to_owned(),
            source,
        };
        let meta = fs::symlink_metadata(entry.path()).map_err(unreadable)?;
        let name = entry.path().strip_prefix(&path).unwrap_or(entry.path());
        let target = match meta.is_symlink() {
            true => fs::read_link(entry.path()).map_err(unreadable)?,
            false => PathBuf::new(),
        };
        for text in [name, target.as_path()] {
            hasher.update(&(text.as_os_str().len() as u64).to_le_bytes());
            hasher.update(text.as_os_str().as_bytes());
        }
        hasher.update(&inventory(&meta));
        files += 1;
        if meta.is_file() {
            size += meta.len();
        }
    }
    Ok(Local {
        digest: hasher.finish(),
        config: ImageConfig::default(),
        place: Place::Folder { path: path.clone() },
        path,
        size,
        files,
    })
}

/// What counts of an entry beside its name. A folder's own time does not: mount points come and go.
fn inventory(meta: &Metadata) -> Vec<u8> {
    let mut bytes = meta.mode().to_le_bytes().to_vec();
    if meta.is_file() {
        let Stamp { size, changed } = Stamp::of(meta);
        bytes.extend(size.to_le_bytes());
        bytes.extend(changed.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_another_when_a_file_in_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/x"), "one").unwrap();
        std::os::unix::fs::symlink("x", root.join("bin/y")).unwrap();
        let store = Store::new(dir.path());
        let digest = || look(&root, &store).unwrap().digest;
        let first = digest();
        assert_eq!(digest(), first);
        fs::create_dir(root.join("made")).unwrap();
        fs::remove_dir(root.join("made")).unwrap();
        assert_eq!(digest(), first, "a folder's time does not count");
        fs::write(root.join("bin/x"), "three").unwrap();
        let second = digest();
        assert_ne!(second, first);
        fs::remove_file(root.join("bin/y")).unwrap();
        std::os::unix::fs::symlink("z", root.join("bin/y")).unwrap();
        assert_ne!(digest(), second);
        assert_eq!(look(&root, &store).unwrap().files, 4);
    }

    #[test]
    fn what_is_no_image_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sif");
        let store = Store::new(dir.path());
        let error = look(&path, &store).unwrap_err();
        assert!(error.to_string().contains("x.sif"), "{error}");
        fs::write(&path, vec![0; 4096]).unwrap();
        let error = look(&path, &store).unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("SIF or SquashFS")), "{error:?}");
    }
}
