//! Folders for work in progress: each belongs to one process, and to nobody when that is dead.
//!
//! `scratch/NAME/` is owned by whoever holds the lock on `scratch/NAME.lock`. The lock's file is made before the folder and
//! removed after it, so a folder whose lock is free, or that has none, is a dead process's. Beside what a user asked for, the names
//! are `.dvrun-NAME` and `.dvrun-NAME.lock`.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Store, StoreError, remove_tree};

/// A folder of this process; deleted when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    /// Held as long as the folder is wanted.
    _lock: File,
}

impl Scratch {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be deleted now keeps its lock's file, and a later process sweeps it.
        drop(remove_tree(&self.path).and_then(|()| fs::remove_file(&self.lock_path)));
    }
}

/// Before the names of scratch folders that lie among a user's own files.
const BESIDE: &str = ".dvrun-";
/// Letters that tell the folders of one process apart.
const NAME: usize = 8;

impl Scratch {
    /// A new, empty folder in `folder`, for what is to be renamed into it: on its file system, hidden. What dead processes of this user
    /// left there is swept first.
    ///
    /// # Errors
    /// What the file system says.
    pub fn beside(folder: &Path) -> Result<Scratch, StoreError> {
        match fs::read_dir(folder) {
            // One may write where one may not look.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => return Err(StoreError::at("read", folder)(error)),
            Ok(entries) => {
                for entry in entries {
                    let path = entry.map_err(StoreError::at("read", folder))?.path();
                    // One without a lock is no folder of ours.
                    if is_lock_beside(&path) {
                        sweep(&path.with_extension(""), &path)?;
                    }
                }
            }
        }
        Scratch::new(folder, BESIDE)
    }

    fn new(folder: &Path, prefix: &str) -> Result<Scratch, StoreError> {
        loop {
            let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(NAME).collect();
            let path = folder.join(format!("{prefix}{}-{name}", std::process::id()));
            let lock_path = path.with_extension("lock");
            let lock = match File::options().write(true).create_new(true).open(&lock_path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                other => other.map_err(StoreError::at("create", &lock_path))?,
            };
            lock.lock().map_err(StoreError::at("lock", &lock_path))?;
            // A sweeper may have been quicker than the lock, and taken the file for a dead process's.
            if !is_at(&lock, &lock_path) {
                continue;
            }
            let scratch = Scratch {
                path,
                lock_path,
                _lock: lock,
            };
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&scratch.path)
                .map_err(StoreError::at("create", &scratch.path))?;
            return Ok(scratch);
        }
    }
}

impl Store {
    /// A new, empty folder that only this user can enter, after sweeping what dead processes left.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new_scratch(&self) -> Result<Scratch, StoreError> {
        let folder = self.scratch();
        fs::create_dir_all(&folder).map_err(StoreError::at("create", &folder))?;
        self.sweep_scratch()?;
        Scratch::new(&folder, "")
    }

    /// Deletes what processes that are no more left in the scratch folder. One sweeper at a time; the others go on without.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sweep_scratch(&self) -> Result<(), StoreError> {
        let folder = self.scratch();
        let Some(_sweeping) = self.try_lock("sweep")? else {
            return Ok(());
        };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(StoreError::at("read", &folder))?,
        };
        for entry in entries {
            let path = entry.map_err(StoreError::at("read", &folder))?.path();
            let (work, lock_path) = (path.with_extension(""), path.with_extension("lock"));
            if sweep(&work, &lock_path)? == Owner::Nobody {
                remove_tree(&path).map_err(StoreError::at("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// `.dvrun-PROCESS-NAME.lock`, as [`Scratch::new`] makes it.
fn is_lock_beside(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let own = name.strip_prefix(BESIDE).and_then(|rest| rest.strip_suffix(".lock"));
    own.and_then(|own| own.split_once('-')).is_some_and(|(process, name)| {
        process.bytes().all(|byte| byte.is_ascii_digit()) && name.len() == NAME && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Whose a scratch folder turned out to be.
#[derive(PartialEq)]
enum Owner {
    /// A living process's, another user's, or it is gone by now.
    Settled,
    /// It never had a lock, or has none any more.
    Nobody,
}

/// Deletes `work` if the lock at `lock_path` is there and free.
fn sweep(work: &Path, lock_path: &Path) -> Result<Owner, StoreError> {
    match File::options().write(true).open(lock_path) {
        Ok(lock) => match lock.try_lock() {
            // Held to the end of the removal, so that no owner can come between.
            Ok(()) => {
                remove_tree(work).map_err(StoreError::at("remove", work))?;
                remove_file(lock_path)?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(StoreError::at("lock", lock_path)(error)),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Owner::Nobody),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        Err(error) => return Err(StoreError::at("open", lock_path)(error)),
    }
    Ok(Owner::Settled)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
        _ => false,
    }
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_dead_owners_folder_is_swept_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let living = store.new_scratch().unwrap();
        fs::write(living.path().join("work"), "x").unwrap();
        // A dead process's: folder and lock file are there, the lock is free.
        let dead = store.scratch().join("1-dead");
        fs::create_dir_all(dead.join("sealed")).unwrap();
        fs::write(dead.join("sealed/file"), "x").unwrap();
        fs::set_permissions(dead.join("sealed"), fs::Permissions::from_mode(0o555)).unwrap();
        fs::write(dead.with_extension("lock"), "").unwrap();
        // And one that died between folder and lock file.
        fs::create_dir(store.scratch().join("2-dead")).unwrap();

        let second = store.new_scratch().unwrap();
        assert!(living.path().join("work").exists());
        assert!(!dead.exists() && !dead.with_extension("lock").exists());
        assert!(!store.scratch().join("2-dead").exists());
        // Among a user's files, only what is named and locked as ours is.
        let beside = Scratch::beside(dir.path()).unwrap();
        fs::create_dir(dir.path().join(".dvrun-7-abcdefgh")).unwrap();
        fs::write(dir.path().join(".dvrun-7-abcdefgh.lock"), "").unwrap();
        fs::create_dir(dir.path().join(".dvrun-mine")).unwrap();
        fs::write(dir.path().join(".dvrun-mine.lock"), "").unwrap();
        let other = Scratch::beside(dir.path()).unwrap();
        assert!(beside.path().is_dir() && other.path().is_dir() && dir.path().join(".dvrun-mine").is_dir());
        assert!(!dir.path().join(".dvrun-7-abcdefgh").exists() && !dir.path().join(".dvrun-7-abcdefgh.lock").exists());
        drop((living, second));
        assert_eq!(
            fs::read_dir(store.scratch()).unwrap().count(),
            0,
            "owners clean up after themselves"
        );
    }
}
