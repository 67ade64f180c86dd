//! A task's private `/tmp` on the host, and what tasks that were killed left of theirs.
//!
//! The ranks of one task on one node share theirs: the last that leaves removes it.
//!
//! `dvrun-UID-NAME/` in the scratch folder belongs to whoever holds the lock on `dvrun-UID-NAME.lock` beside it; the lock's
//! file is made before the folder and removed after it. A folder whose lock is free is a dead task's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::store::remove_tree;

/// Deleted by [`Scratch::close`], or when dropped.
pub(super) struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    /// Held as long as the folder is wanted.
    lock: File,
}

impl Scratch {
    /// A new, empty folder in `folder` that only this user can enter, after sweeping what dead tasks of this user left there.
    pub fn new_in(folder: &Path) -> io::Result<Scratch> {
        sweep(folder)?;
        loop {
            let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
            let path = folder.join(format!("{}{}-{name}", prefix(), std::process::id()));
            let lock_path = path.with_extension("lock");
            let lock = match File::options().write(true).create_new(true).open(&lock_path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                other => other?,
            };
            // A file system without locks has no sweepers either: they leave alone what they cannot lock.
            let locked = lock.try_lock();
            let swept = matches!(locked, Err(fs::TryLockError::WouldBlock)) || lock.metadata()?.nlink() == 0;
            if swept {
                continue;
            }
            let scratch = Scratch { path, lock_path, lock };
            DirBuilder::new().mode(0o700).create(&scratch.path)?;
            return Ok(scratch);
        }
    }

    /// The folder of that name in `folder`, which all who hold it share, after the same sweeping. A name has no dot.
    pub fn shared_in(folder: &Path, name: &str) -> io::Result<Scratch> {
        sweep(folder)?;
        let path = folder.join(format!("{}{name}", prefix()));
        let lock_path = path.with_extension("lock");
        loop {
            let options = OpenOptions::new()
                .write(true)
                .create(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .clone();
            let lock = options.open(&lock_path)?;
            lock.lock_shared()?;
            // Whoever left last may have removed it before the lock was had.
            if lock.metadata()?.nlink() == 0 {
                continue;
            }
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made?,
            }
            // The folder around it may be open to all: what another user put there is not ours.
            let meta = fs::symlink_metadata(&path)?;
            if !meta.is_dir() || meta.uid() != geteuid().as_raw() {
                return Err(ErrorKind::PermissionDenied.into());
            }
            return Ok(Scratch { path, lock_path, lock });
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes the folder with all that the task left in it, whatever its modes.
    pub fn close(self) -> io::Result<()> {
        self.remove()
    }

    fn remove(&self) -> io::Result<()> {
        // Others who share it still hold it; or their file system knows no locks, and it is left to sweepers.
        if matches!(self.lock.try_lock(), Err(fs::TryLockError::WouldBlock)) {
            return Ok(());
        }
        remove_tree(&self.path)?;
        remove_file(&self.lock_path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After `close` there is nothing left; what cannot be deleted now is swept by a later task.
        drop(self.remove());
    }
}

fn prefix() -> String {
    format!("dvrun-{}-", geteuid())
}

fn sweep(folder: &Path) -> io::Result<()> {
    let prefix = prefix();
    for entry in fs::read_dir(folder)? {
        let lock_path = entry?.path();
        let name = lock_path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with(&prefix) || !name.ends_with(".lock") {
            continue;
        }
        // The folder is open to all: what another user put there under this name is not touched.
        let ours = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() == geteuid().as_raw());
        let Some(lock) = ours(&lock_path)
            .then(|| File::options().write(true).open(&lock_path).ok())
            .flatten()
        else {
            continue;
        };
        // Held to the end of the removal. What cannot be removed is no reason for this task not to run.
        if lock.try_lock().is_ok() {
            let work = lock_path.with_extension("");
            if !work.exists() || ours(&work) {
                drop(remove_tree(&work).and_then(|()| remove_file(&lock_path)));
            }
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_shared_goes_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let first = Scratch::shared_in(dir.path(), "7-0-1").unwrap();
        let second = Scratch::shared_in(dir.path(), "7-0-1").unwrap();
        fs::write(first.path().join("segment"), "x").unwrap();
        let path = second.path().to_owned();
        first.close().unwrap();
        assert!(path.join("segment").exists(), "another still holds it");
        // Nobody's sweeping takes it either.
        Scratch::new_in(dir.path()).unwrap().close().unwrap();
        assert!(path.join("segment").exists());
        second.close().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // What is another's, or no folder, is not used.
        fs::write(&path, "").unwrap();
        Scratch::shared_in(dir.path(), "7-0-1").map(drop).unwrap_err();
    }

    #[test]
    fn dead_tasks_are_swept_up_after_and_living_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let living = Scratch::new_in(dir.path()).unwrap();
        fs::write(living.path().join("work"), "x").unwrap();
        let dead = dir.path().join(format!("{}1-dead", prefix()));
        fs::create_dir_all(dead.join("sealed")).unwrap();
        fs::write(dead.join("sealed/file"), "x").unwrap();
        fs::set_permissions(dead.join("sealed"), fs::Permissions::from_mode(0o555)).unwrap();
        fs::write(dead.with_extension("lock"), "").unwrap();
        let other = dir.path().join("dvrun-of-somebody-else");
        fs::create_dir(&other).unwrap();
        let second = Scratch::new_in(dir.path()).unwrap();
        assert!(living.path().join("work").exists() && other.exists());
        assert!(!dead.exists() && !dead.with_extension("lock").exists());
        fs::create_dir(second.path().join("sealed")).unwrap();
        fs::write(second.path().join("sealed/file"), "x").unwrap();
        fs::set_permissions(second.path().join("sealed"), fs::Permissions::from_mode(0o555)).unwrap();
        second.close().unwrap();
        drop(living);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only what is not ours");
    }
}
