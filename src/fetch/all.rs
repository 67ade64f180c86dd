//! Everything that the stages of a plan need.

use super::{FetchError, data, find, image, image_source};
use crate::image::Limits;
use crate::lock::Lock;
use crate::oci::Source;
use crate::registry::Session;
use crate::workflow::Workflow;

/// Brings the images that `wanted` names, and all data sets, into the store: exactly what `lock` says, also when a tag
/// means something else by now.
///
/// # Errors
/// The first image or data set that cannot be had; what arrived stays in the store.
pub async fn all(session: &Session<'_>, workflow: &Workflow, lock: &Lock, wanted: &dyn Fn(&str) -> bool) -> Result<(), FetchError> {
    data(session, workflow).await?;
    for (name, declared) in workflow.images.iter().filter(|(name, _)| wanted(name)) {
        let (source, platform) = image_source(name, declared)?;
        let locked = lock.images.get(name).and_then(|locked| locked.digest.as_ref());
        if let Some(digest) = locked
            && session.store.find_image(digest)?.is_some()
        {
            continue;
        }
        let source = match (locked, source) {
            (Some(digest), Source::Registry(reference)) => Source::Registry(reference.at(digest)),
            (Some(digest), Source::Artifact(reference)) => Source::Artifact(reference.at(digest)),
            (_, source) => source,
        };
        let failed = |source| FetchError::Pull {
            name: name.clone(),
            source: Box::new(source),
        };
        let found = find(session, &source, &platform).await.map_err(failed)?;
        if let Some(digest) = locked
            && digest != found.digest()
        {
            return Err(FetchError::Moved {
                name: name.clone(),
                expected: digest.clone(),
                found: found.digest().clone(),
            });
        }
        image(session, &found, Limits::default()).await.map_err(failed)?;
    }
    Ok(())
}
