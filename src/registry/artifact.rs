//! SIF files kept in registries (`oras://`, as Singularity and Apptainer keep them): a manifest with one layer, which is
//! the file.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::json;

use super::layout::MANIFEST;
use super::named::Named;
use super::push::push;
use super::upload::{BlobPlace, PushBlob};
use super::{RegistryError, Session};
use crate::oci::{Descriptor, Digest, Manifest, Reference, Source};

/// The media type of the layer that is a SIF file.
pub const SIF_LAYER: &str = "application/vnd.sylabs.sif.layer.v1.sif";
const SIF_CONFIG: &str = "application/vnd.sylabs.sif.config.v1+json";
/// There is nothing to configure.
const CONFIG: &[u8] = b"{}";

/// A SIF file in a registry, and which one it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedSif {
    pub reference: Reference,
    /// Of the manifest.
    pub digest: Digest,
    /// The manifest as it was sent: these bytes hash to `digest`.
    pub manifest: Vec<u8>,
    /// The file.
    pub sif: Descriptor,
}

/// Finds the SIF file that a reference names. It is not touched.
///
/// # Errors
/// [`RegistryError::NoArtifact`] where the reference names something else, an image say.
pub async fn resolve_sif(session: &Session<'_>, reference: &Reference) -> Result<ResolvedSif, RegistryError> {
    let source = Source::Artifact(reference.clone());
    let (digest, bytes) = session.root(&source, reference).await?;
    let parsed = Manifest::parse(&bytes).map_err(|error| RegistryError::Manifest {
        image: source.to_string(),
        source: error,
    })?;
    let sif = match parsed {
        Manifest::Image(image) => image.layers.into_iter().find(|layer| layer.media_type == SIF_LAYER),
        Manifest::Index(_) | Manifest::Schema1(_) => None,
    };
    let Some(sif) = sif else {
        return Err(RegistryError::NoArtifact { image: source.to_string() });
    };
    Ok(ResolvedSif {
        reference: reference.clone(),
        digest,
        manifest: bytes,
        sif,
    })
}

/// Brings the file into the store; its path there, not to be changed.
///
/// # Errors
/// What the registry and the disk say.
pub async fn pull_sif(session: &Session<'_>, resolved: &ResolvedSif) -> Result<PathBuf, RegistryError> {
    session.blob(&Source::Artifact(resolved.reference.clone()), &resolved.sif).await
}

/// The beginning of the file, at most `length` bytes, unverified: enough to see what it is. `None` where the server gives the
/// whole or nothing.
///
/// # Errors
/// What the registry says.
pub async fn sif_head(session: &Session<'_>, resolved: &ResolvedSif, length: u64) -> Result<Option<Vec<u8>>, RegistryError> {
    session.blob_head(Named::artifact(&resolved.reference), &resolved.sif, length).await
}

/// Puts the SIF file at `path`, of `size` bytes and with this digest, into a registry. Gives the manifest's digest.
///
/// # Errors
/// The registry's refusal; what the network or the disk say.
pub async fn push_sif(
    session: &Session<'_>,
    path: &Path,
    digest: &Digest,
    size: u64,
    reference: &Reference,
) -> Result<Digest, RegistryError> {
    let config = Digest::sha256(CONFIG);
    let config_path = match session.store.find_blob(&config) {
        Some(path) => path,
        None => session.store.write_blob(&config, CONFIG)?,
    };
    let title = path.file_name().unwrap_or_default().to_string_lossy();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": SIF_CONFIG, "digest": config, "size": CONFIG.len()},
        "layers": [{
            "mediaType": SIF_LAYER, "digest": digest, "size": size,
            "annotations": {"org.opencontainers.image.title": title},
        }],
    });
    let (config, file) = (
        descriptor(SIF_CONFIG, config, CONFIG.len() as u64),
        descriptor(SIF_LAYER, digest.clone(), size),
    );
    let blobs = [(&config, config_path.as_path()), (&file, path)].map(|(blob, path)| PushBlob {
        blob,
        place: BlobPlace::File(path),
    });
    push(
        session,
        Named::artifact(reference),
        &blobs,
        manifest.to_string().as_bytes(),
        MANIFEST,
    )
    .await
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        urls: Vec::new(),
        annotations: IndexMap::new(),
        platform: None,
        artifact_type: None,
    }
}
