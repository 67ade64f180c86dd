//! SIF files kept in registries (`oras://`, as Singularity and Apptainer keep them): a manifest with one layer, which is
//! the file.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::layout::MANIFEST;
use super::push::{LocalBlob, push};
use super::remote::Expect;
use super::{RegistryError, Session};
use crate::oci::{Descriptor, Digest, Manifest, Reference, Source};

/// The media type of the layer that is a SIF file.
pub const SIF_LAYER: &str = "application/vnd.sylabs.sif.layer.v1.sif";
const SIF_CONFIG: &str = "application/vnd.sylabs.sif.config.v1+json";
/// There is nothing to configure.
const CONFIG: &[u8] = b"{}";

/// Brings the SIF file of an artifact into the store; its path there, not to be changed, and its digest.
///
/// # Errors
/// [`RegistryError::NoArtifact`] where the reference names something else, an image say.
pub async fn pull_sif(session: &Session<'_>, reference: &Reference) -> Result<(PathBuf, Digest), RegistryError> {
    let expect = reference.digest().map_or(Expect::Anything, Expect::Digest);
    let (_, bytes) = session.remote_manifest(reference, &reference.to_ask(), expect).await?;
    let name = || format!("oras://{reference}");
    let manifest = Manifest::parse(&bytes).map_err(|source| RegistryError::Manifest { image: name(), source })?;
    let sif: Option<Descriptor> = match manifest {
        Manifest::Image(image) => image.layers.into_iter().find(|layer| layer.media_type == SIF_LAYER),
        Manifest::Index(_) | Manifest::Schema1(_) => None,
    };
    let Some(sif) = sif else {
        return Err(RegistryError::NoArtifact { image: name() });
    };
    let path = session.blob(&Source::Registry(reference.clone()), &sif).await?;
    Ok((path, sif.digest))
}

/// Puts the SIF file at `path`, of `size` bytes and with this digest, into a registry. Gives the manifest's digest.
///
/// # Errors
/// As [`push`].
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
    let blobs = [
        LocalBlob {
            digest: &config,
            size: CONFIG.len() as u64,
            path: &config_path,
        },
        LocalBlob { digest, size, path },
    ];
    push(session, reference, &blobs, manifest.to_string().as_bytes(), MANIFEST).await
}
