//! The image of a task, as the plan names it: converted in the store, or a file that runs where it lies.

use std::fs::File;
use std::path::Path;

use super::task::TaskError;
use crate::lock::LockedImage;
use crate::oci::Execution;
use crate::runtime::{ImageAccess, Root};
use crate::sif::{self, SifError};
use crate::store::StoredImage;

/// A root to run in, and how its image wants to be run.
pub(super) struct TaskImage {
    pub root: Root,
    pub execution: Execution,
}

/// The image, if it is there. `access` and `scratch` are for one that is a file.
///
/// # Errors
/// A store or a file that cannot be read; a file that is no image.
pub(super) fn find(locked: &LockedImage, access: ImageAccess, scratch: &Path) -> Result<Option<TaskImage>, TaskError> {
    let Some(path) = &locked.path else { return Ok(None) };
    if !path.is_file() {
        let stored = StoredImage::open(path.clone())?;
        return Ok(stored.map(|stored| TaskImage {
            root: Root::Folder(stored.rootfs()),
            execution: stored.info.config.config,
        }));
    }
    let unusable = |source| TaskError::ImageFile {
        path: path.clone(),
        source,
    };
    let opened = File::open(path).map_err(|error| unusable(SifError::Read(error)))?;
    let (offset, execution) = sif::file_system(&opened).map_err(unusable)?;
    let root = Root::Squashfs {
        file: path.clone(),
        offset,
        access,
        scratch: scratch.to_owned(),
    };
    Ok(Some(TaskImage { root, execution }))
}
