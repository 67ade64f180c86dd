//! What is in the store already.

use super::FetchError;
use crate::data::place;
use crate::lock::Lock;
use crate::store::Store;
use crate::workflow::{DataSource, Workflow};

/// Whether the images that `wanted` names, and all data sets that are downloaded, are in the store.
///
/// # Errors
/// What the file system says, other than that something is not there.
pub fn is_there(store: &Store, workflow: &Workflow, lock: &Lock, wanted: &dyn Fn(&str) -> bool) -> Result<bool, FetchError> {
    for name in workflow.images.keys().filter(|name| wanted(name)) {
        let digest = lock.images.get(name).and_then(|locked| locked.digest.as_ref());
        match digest {
            Some(digest) if store.find_image(digest)?.is_some() => {}
            _ => return Ok(false),
        }
    }
    let downloaded = workflow.data.values().filter(|set| !matches!(set.source, DataSource::Path(_)));
    Ok(downloaded.into_iter().all(|set| place(store, set).is_dir()))
}
