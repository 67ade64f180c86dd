//! An image's layers, at once and in parallel.

use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{RegistryError, Resolved, Session, config};
use crate::oci::{Digest, ImageConfig};

/// An image whose every byte is on this machine and verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Pulled {
    pub digest: Digest,
    pub config: ImageConfig,
    /// Blobs as they were sent, compressed or not; lowest first. Not to be changed: they are the store's or a layout's.
    pub layers: Vec<PathBuf>,
}

/// Brings configuration and layers to this machine. `on_layer` is called with a layer's index, lowest 0, as soon as
/// all of it is there, in whatever order they arrive; it must be quick, and open the file at once: its name may change
/// when it has been brought to disk. What lies in the store is not fetched again.
pub async fn pull(session: &Session<'_>, resolved: &Resolved, on_layer: &(dyn Fn(usize, &Path) + Sync)) -> Result<Pulled, RegistryError> {
    // First, as it is small and may show that the layers are not wanted.
    let config = config(session, resolved).await?;
    let fetch = async |(index, layer)| {
        let path = session.blob_and(&resolved.source, layer, &|path| on_layer(index, path)).await?;
        Ok::<_, RegistryError>((index, path))
    };
    let mut layers: Vec<(usize, PathBuf)> = stream::iter(resolved.layers.iter().enumerate().map(fetch))
        .buffer_unordered(session.client.options().connections.max(1))
        .try_collect()
        .await?;
    layers.sort_unstable();
    Ok(Pulled {
        digest: resolved.digest.clone(),
        config,
        layers: layers.into_iter().map(|(_, path)| path).collect(),
    })
}
