//! A pulled image → an OCI image layout (OCI image spec, `image-layout.md`), byte for byte as it came; but a schema 1
//! image, which no layout can hold, becomes an OCI image.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::task;

use super::layout::{MANIFEST, REF_NAME};
use super::modern::from_schema1;
use super::{Pulled, RegistryError, Resolved, Session};
use crate::oci::{Digest, Source};

/// Writes the new folder `dir`: manifest, config and layers keep their digests. The tag is the reference's. Gives the
/// manifest's digest, which is another than the image's for schema 1.
///
/// # Errors
/// What the disk says. Whatever was written stays: it is the caller's to remove.
pub async fn write_layout(session: &Session<'_>, resolved: &Resolved, pulled: &Pulled, dir: &Path) -> Result<Digest, RegistryError> {
    let config = session.blob(&resolved.source, &resolved.config).await?;
    let failed = RegistryError::io("write", dir);
    let (resolved, pulled, dir) = (resolved.clone(), pulled.clone(), dir.to_owned());
    let written = task::spawn_blocking(move || write(&resolved, &pulled, &config, &dir)).await;
    written.expect("the thread neither panics nor is cancelled").map_err(failed)
}

fn write(resolved: &Resolved, pulled: &Pulled, config: &Path, dir: &Path) -> io::Result<Digest> {
    // The store's blobs never change, so that the layout may share them. Another's layout is another's.
    let place = match resolved.source {
        Source::Layout { .. } => copy,
        _ => share,
    };
    for (path, layer) in pulled.layers.iter().zip(&resolved.layers) {
        place(path, &blob(dir, &layer.digest)?)?;
    }
    let (digest, manifest) = match from_schema1(resolved, pulled)? {
        Some(made) => {
            create(&blob(dir, &Digest::sha256(&made.config))?, &made.config)?;
            (Digest::sha256(&made.manifest), made.manifest)
        }
        None => {
            place(config, &blob(dir, &resolved.config.digest)?)?;
            (resolved.digest.clone(), resolved.manifest.clone())
        }
    };
    create(&blob(dir, &digest)?, &manifest)?;
    let kind: serde_json::Value = serde_json::from_slice(&manifest)?;
    let media_type = kind["mediaType"].as_str().unwrap_or(MANIFEST);
    let mut entry = json!({"mediaType": media_type, "digest": digest, "size": manifest.len()});
    if let Some(tag) = tag(&resolved.source) {
        entry["annotations"] = json!({REF_NAME: tag});
    }
    create(
        &dir.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string().as_bytes(),
    )?;
    create(
        &dir.join("oci-layout"),
        json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes(),
    )?;
    File::open(dir)?.sync_all()?;
    Ok(digest)
}

/// Where a blob is to be, its folder made.
fn blob(dir: &Path, digest: &Digest) -> io::Result<PathBuf> {
    let folder = dir.join("blobs").join(digest.algorithm().name());
    fs::create_dir_all(&folder)?;
    Ok(folder.join(digest.hex()))
}

fn share(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        // The same layer twice.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Another file system, or one without links; or not the user's own file.
        Err(_) => copy(from, to),
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if to.is_file() {
        return Ok(());
    }
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn tag(source: &Source) -> Option<&str> {
    match source {
        Source::Registry(reference) | Source::Artifact(reference) => reference.tag(),
        Source::Path(_) => None,
        Source::Layout { tag, .. } => tag.as_deref(),
        // Of a saved image's whole name (`lab/x:1`) what comes last.
        Source::Archive { tag, .. } => tag.as_deref().and_then(|tag| tag.rsplit(':').next()),
    }
}
