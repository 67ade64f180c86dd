//! Images that are in use: whoever runs one holds a shared lock on a file beside it, which its removal wants alone. The file's time is
//! when the image was used last.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::SystemTime;

use super::{StoreError, StoredImage};

/// Beside `image.json`; made with the image.
pub(super) const IN_USE: &str = "in-use";

/// Of an image that is not to be removed; dropping it lets go.
#[derive(Debug)]
pub struct Hold {
    _file: File,
}

impl StoredImage {
    /// Keeps the image in the store until the hold is dropped. `None` where the file system has no locks, or somebody took the file away.
    ///
    /// # Errors
    /// What the file system says; that the image is being removed.
    pub fn hold(&self) -> Result<Option<Hold>, StoreError> {
        let path = self.path.join(IN_USE);
        // For reading: the store may be another user's, and a shared lock needs no more.
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(StoreError::at("open", &path))?,
        };
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let busy = io::Error::new(ErrorKind::ResourceBusy, "it is being removed");
                return Err(StoreError::at("use", &self.path)(busy));
            }
            // A network's file system without locks says so in many ways (ENOSYS, ENOLCK, EOPNOTSUPP): its images can be used.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
        match file.set_modified(SystemTime::now()) {
            // Another user's store: whoever owns it has pulled what is in it.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {}
            other => other.map_err(StoreError::at("date", &path))?,
        }
        Ok(Some(Hold { _file: file }))
    }

    /// When it was pulled or run last.
    pub fn used(&self) -> SystemTime {
        let file = self.path.join(IN_USE);
        let noted = file.metadata().and_then(|meta| meta.modified());
        // A file that somebody took away says nothing: the image counts as just used.
        noted.unwrap_or_else(|_| SystemTime::now())
    }
}

/// The lock that removing the image in `folder` wants; `None` while somebody holds it.
pub(super) fn alone(folder: &Path) -> Result<Option<Hold>, StoreError> {
    let path = folder.join(IN_USE);
    let options = File::options().write(true).create(true).truncate(false).open(&path);
    let file = options.map_err(StoreError::at("open", &path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(None),
        // Without locks nobody holds it either.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(Hold { _file: file })),
    }
}
