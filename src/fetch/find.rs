//! What a source means now: an image of layers, or a file or a folder that is an image already.

use super::PullError;
use super::local::{Local, look};
use crate::oci::{Digest, Platform, Source};
use crate::registry::{self, RegistryError, Resolved, ResolvedSif, Session};

/// An image that was found; nothing large of it was touched.
#[derive(Clone, Debug)]
pub enum Found {
    Layers(Resolved),
    /// A SIF file in a registry.
    Sif(ResolvedSif),
    /// A SIF or SquashFS file, or a root folder, of the user's.
    Local(Local),
}

impl Found {
    /// What the image is known by: see [`crate::store::ImageInfo`].
    pub fn digest(&self) -> &Digest {
        match self {
            Found::Layers(resolved) => &resolved.digest,
            Found::Sif(sif) => &sif.digest,
            Found::Local(local) => &local.digest,
        }
    }

    /// As people write it.
    pub fn name(&self) -> String {
        match self {
            Found::Layers(resolved) => resolved.source.to_string(),
            Found::Sif(sif) => Source::Artifact(sif.reference.clone()).to_string(),
            Found::Local(local) => local.path.display().to_string(),
        }
    }
}

/// Finds what `source` means for `platform`. A file of the user's that is not in the store is read to its end, to know its
/// digest.
///
/// # Errors
/// What registry and disk say.
pub async fn find(session: &Session<'_>, source: &Source, platform: &Platform) -> Result<Found, PullError> {
    let image = || source.to_string();
    let in_registry = |error: RegistryError| PullError::Registry {
        image: image(),
        source: Box::new(error),
    };
    match source {
        Source::Artifact(reference) => registry::resolve_sif(session, reference).await.map(Found::Sif).map_err(in_registry),
        Source::Path(path) => {
            let (path, store) = (path.clone(), session.store.clone());
            let looked = tokio::task::spawn_blocking(move || look(&path, &store)).await;
            let local = looked.expect("the thread neither panics nor is cancelled")?;
            local.suits(platform).map_err(in_registry)?;
            Ok(Found::Local(local))
        }
        Source::Registry(_) | Source::Layout { .. } | Source::Archive { .. } => registry::resolve(session, source, platform)
            .await
            .map(Found::Layers)
            .map_err(in_registry),
    }
}
