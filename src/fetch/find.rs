//! What a source means now: an image of layers, or a file or a folder that is an image already.

use super::PullError;
use super::local::{Local, look};
use crate::oci::{Digest, ImageConfig, Platform, Reference, Source};
use crate::registry::{self, RegistryError, Resolved, ResolvedSif, Session, TagPolicy};
use crate::sif;

/// An image that was found; nothing large of it was touched.
#[derive(Clone, Debug)]
pub enum Found {
    Layers(Resolved),
    /// A SIF file in a registry.
    Sif {
        sif: ResolvedSif,
        platform: Platform,
    },
    /// A SIF or SquashFS file, or a root folder, of the user's.
    Local(Local),
}

impl Found {
    /// What the image is known by: see [`crate::store::ImageInfo`].
    pub fn digest(&self) -> &Digest {
        match self {
            Found::Layers(resolved) => &resolved.digest,
            Found::Sif { sif, .. } => &sif.digest,
            Found::Local(local) => &local.digest,
        }
    }

    /// As people write it.
    pub fn name(&self) -> String {
        match self {
            Found::Layers(resolved) => resolved.source.to_string(),
            Found::Sif { sif, .. } => Source::Artifact(sif.reference.clone()).to_string(),
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
        Source::Artifact(reference) => artifact(session, reference, platform).await.map_err(in_registry),
        Source::Path(path) => {
            let (path, store) = (path.clone(), session.store.clone());
            let looked = tokio::task::spawn_blocking(move || look(&path, &store)).await;
            let local = looked.expect("the thread neither panics nor is cancelled")?;
            suits(&source.to_string(), &local.config, platform).map_err(in_registry)?;
            Ok(Found::Local(local))
        }
        Source::Registry(_) | Source::Layout { .. } | Source::Archive { .. } => registry::resolve(session, source, platform)
            .await
            .map(Found::Layers)
            .map_err(in_registry),
    }
}

/// A registry's SIF file: a few bytes of it tell that it is made for another platform, before all of it is fetched.
async fn artifact(session: &Session<'_>, reference: &Reference, platform: &Platform) -> Result<Found, RegistryError> {
    let sif = registry::resolve_sif(session, reference).await?;
    let there = session.store.find_blob(&sif.sif.digest).is_some();
    if !there && session.tags != TagPolicy::Offline {
        let head = registry::sif_head(session, &sif, sif::format::HEADER as u64).await?;
        let config = ImageConfig {
            os: "linux".to_owned(),
            architecture: head.as_deref().and_then(sif::made_for).unwrap_or_default().to_owned(),
            ..ImageConfig::default()
        };
        suits(&Source::Artifact(reference.clone()).to_string(), &config, platform)?;
    }
    Ok(Found::Sif {
        sif,
        platform: platform.clone(),
    })
}

/// Whether `image` is made for `platform`, as far as it says for what.
pub(super) fn suits(image: &str, config: &ImageConfig, platform: &Platform) -> Result<(), RegistryError> {
    if config.os.is_empty() || config.architecture.is_empty() {
        return Ok(());
    }
    let found = Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
    };
    match platform.suits(&found) {
        Some(_) => Ok(()),
        None => Err(RegistryError::WrongPlatform {
            image: image.to_owned(),
            wanted: Box::new(platform.clone()),
            found: Box::new(found),
        }),
    }
}
