//! The image of a task, as the plan names it and the store has it.

use std::path::Path;

use super::task::TaskError;
use crate::lock::LockedImage;
use crate::oci::Execution;
use crate::runtime::{ImageAccess, Root};
use crate::store::{Hold, StoredImage, StoredRoot};

/// A root to run in, and how its image wants to be run.
pub(super) struct TaskImage {
    pub root: Root,
    pub execution: Execution,
    /// As long as it runs.
    _hold: Option<Hold>,
}

/// The image, if it is there. `access` and `scratch` are for one that is a file.
///
/// # Errors
/// A store that cannot be read.
pub(super) fn find(locked: &LockedImage, access: ImageAccess, scratch: &Path) -> Result<Option<TaskImage>, TaskError> {
    let Some(path) = &locked.path else { return Ok(None) };
    let Some(stored) = StoredImage::open(path.clone())? else {
        return Ok(None);
    };
    Ok(Some(TaskImage {
        _hold: stored.hold()?,
        root: match stored.root() {
            StoredRoot::Folder(path) => Root::Folder(path),
            StoredRoot::Squashfs { file, offset } => Root::Squashfs {
                file,
                offset,
                access,
                scratch: scratch.to_owned(),
            },
        },
        execution: stored.info.config.config,
    }))
}
