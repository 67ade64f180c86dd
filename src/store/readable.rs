//! Reading what belongs to an image, and so to this user, though its mode says that nobody may.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Opens a file of the user's own for reading; one whose mode forbids it has the owner's bit for that moment.
///
/// # Errors
/// What the file system says, also that the file is somebody else's.
pub fn open_own(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        other => return other,
    }
    let mode = fs::symlink_metadata(path)?.permissions();
    fs::set_permissions(path, Permissions::from_mode(mode.mode() | 0o400))?;
    let opened = File::open(path);
    fs::set_permissions(path, mode)?;
    opened
}

/// Folders that can be entered and listed for as long as this lives, whatever their modes say otherwise.
#[derive(Debug, Default)]
pub struct OpenFolders {
    /// As they were, outer before inner.
    changed: Vec<(PathBuf, u32)>,
}

impl OpenFolders {
    /// To be called for outer folders first.
    ///
    /// # Errors
    /// What the file system says, also that the folder is somebody else's.
    pub fn enter(&mut self, folder: &Path) -> io::Result<()> {
        let mode = fs::symlink_metadata(folder)?.permissions().mode();
        if mode & 0o500 != 0o500 && fs::read_dir(folder).and_then(|_| fs::symlink_metadata(folder.join("."))).is_err() {
            fs::set_permissions(folder, Permissions::from_mode(mode | 0o500))?;
            self.changed.push((folder.to_owned(), mode));
        }
        Ok(())
    }
}

impl Drop for OpenFolders {
    fn drop(&mut self) {
        for (folder, mode) in self.changed.iter().rev() {
            // One that is gone needs no mode.
            drop(fs::set_permissions(folder, Permissions::from_mode(*mode)));
        }
    }
}
