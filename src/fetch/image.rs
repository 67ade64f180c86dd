//! One image: from where it is into the store, converted while it arrives; or noted there, where it is a file or folder that
//! can be run as it is.

use std::path::Path;

use super::find::suits;
use super::{FileError, FileFacts, Found, Local, file_facts};

use crate::image::{ImageError, LayerBlob, Layers, Limits, write_folder};
use crate::net::Event;
use crate::oci::{Digest, ImageConfig};
use crate::registry::{self, RegistryError, Resolved, ResolvedSif, Session};
use crate::store::{BlobState, Guard, ImageDraft, ImageInfo, Place, Store, StoreError, StoredImage, StoredLayer};

/// Why an image is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("cannot fetch {image}")]
    Registry { image: String, source: Box<RegistryError> },
    #[error("cannot convert {image}")]
    Image { image: String, source: ImageError },
    #[error("cannot keep {image}")]
    Store { image: String, source: StoreError },
    #[error("{image} has {layers} layers, but its configuration describes {described}")]
    Layers { image: String, layers: usize, described: usize },
    #[error("cannot use {image}")]
    File { image: String, source: FileError },
    #[error("{image} is one file already: it is copied as sif or squashfs, not unpacked")]
    Packed { image: String },
    #[error("{image} is a folder: it is run as it is")]
    Folder { image: String },
}

impl PullError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PullError::Registry { source, .. } => source.hint(),
            PullError::Image { source, .. } => source.hint(),
            PullError::Store { source, .. } => source.hint(),
            PullError::Layers { .. } => Some("the image is damaged: build and push it again, or use another tag".to_owned()),
            PullError::File { source, .. } => source.hint(),
            PullError::Packed { image } => Some(format!("`dvrun image extract {image} FOLDER` unpacks it")),
            PullError::Folder { image } => Some(format!("`apptainer build FILE.sif {image}` makes a file of it")),
        }
    }
}

/// After a failure: whether it came of a layer that was damaged in the store. That layer is deleted, and will be fetched again.
pub(super) async fn forget_damaged(session: &Session<'_>, found: &Found, error: &PullError) -> Result<bool, PullError> {
    let (Found::Layers(resolved), PullError::Image { image, source }) = (found, error) else {
        return Ok(false);
    };
    let named = |layer: &&str| resolved.layers.iter().find(|known| known.digest.to_string() == **layer);
    let Some(layer) = source.damaged_layer().as_ref().and_then(named) else {
        return Ok(false);
    };
    let (store, digest) = (session.store.clone(), layer.digest.clone());
    let checked = tokio::task::spawn_blocking(move || store.check_blob(&digest)).await;
    let state = checked.expect("the thread neither panics nor is cancelled");
    let state = state.map_err(|source| PullError::Store {
        image: image.clone(),
        source,
    })?;
    let removed = state == BlobState::Removed;
    if removed {
        let text = format!("layer {} was damaged in the store; it is fetched again", layer.digest);
        (session.progress)(Event::Note { what: image, text: &text });
    }
    Ok(removed)
}

/// Makes sure that an image is in the store, and says where. Layers are read as they arrive; two processes that want the same
/// image do the work once; the one that waits says so through the session's progress. A layer that was damaged in the store is fetched
/// once more.
///
/// # Errors
/// What registry, layers and disk have to say. Then the store is as before, except for blobs that are whole: they are not
/// fetched again.
pub async fn image(session: &Session<'_>, found: &Found, limits: Limits) -> Result<StoredImage, PullError> {
    let stored = match into_store(session, found, limits.clone()).await {
        Err(error) if forget_damaged(session, found, &error).await? => into_store(session, found, limits).await?,
        other => other?,
    };
    let platform = match found {
        Found::Layers(resolved) => Some(&resolved.platform),
        Found::Sif { platform, .. } => Some(platform),
        Found::Local(_) => None,
    };
    // It may be in the store because somebody wanted it for another platform, or a SIF of a server that gives only the whole.
    if let Some(platform) = platform {
        let image = found.name();
        suits(&image, &stored.info.config, platform).map_err(|source| PullError::Registry {
            image,
            source: Box::new(source),
        })?;
    }
    Ok(stored)
}

async fn into_store(session: &Session<'_>, found: &Found, limits: Limits) -> Result<StoredImage, PullError> {
    let name = found.name();
    let in_store = |source| PullError::Store {
        image: name.clone(),
        source,
    };
    let key = Store::image_lock(found.digest());
    let waiting = || (session.progress)(Event::Waiting { what: &name });
    let guard = session.store.lock_async(&key, waiting).await.map_err(in_store)?;
    if let Some(mut stored) = session.store.find_image(found.digest()).map_err(in_store)? {
        session.store.name_image(&mut stored, &name).map_err(in_store)?;
        return Ok(stored);
    }
    let draft = session.store.draft_image().map_err(in_store)?;
    let resolved = match found {
        Found::Layers(resolved) => resolved,
        Found::Sif { sif, .. } => return artifact(session, sif, draft, name).await,
        Found::Local(local) => return draft.publish(noted(local, name.clone())).map_err(in_store),
    };
    let spool = session.store.spool().unwrap_or_else(|| draft.scratch());
    let (config, layers) = arrive(session, resolved, spool, limits).await?;
    (session.progress)(Event::Converting { what: &name });
    let work = Work {
        layers,
        draft,
        info: converted(resolved, config, &name),
        _guard: guard,
    };
    let image = name.clone();
    let stored = match tokio::task::spawn_blocking(move || work.finish(image)).await {
        Ok(result) => result?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    for text in &stored.info.notes {
        (session.progress)(Event::Note { what: &name, text });
    }
    Ok(stored)
}

/// The configuration, and the layers: each is indexed while the next ones are under way, and spooled in `spool`.
pub(super) async fn arrive(
    session: &Session<'_>,
    resolved: &Resolved,
    spool: &Path,
    limits: Limits,
) -> Result<(ImageConfig, Layers), PullError> {
    let image = resolved.source.to_string();
    let in_registry = |source| PullError::Registry {
        image: image.clone(),
        source: Box::new(source),
    };
    let config = registry::config(session, resolved).await.map_err(in_registry)?;
    let diff_ids = &config.rootfs.diff_ids;
    // Images of schema 1 do not say what their layers unpack to.
    if !diff_ids.is_empty() && diff_ids.len() != resolved.layers.len() {
        return Err(PullError::Layers {
            image,
            layers: resolved.layers.len(),
            described: diff_ids.len(),
        });
    }
    let layers = Layers::new(resolved.layers.len(), spool, limits);
    let arrived = |index: usize, path: &Path| {
        let blob = LayerBlob {
            path: path.to_owned(),
            digest: resolved.layers[index].digest.clone(),
            diff_id: diff_ids.get(index).cloned(),
        };
        layers.add(index, blob);
    };
    registry::pull(session, resolved, &arrived).await.map_err(in_registry)?;
    Ok((config, layers))
}

/// The part that is plain threads. It owns the lock and the draft: whatever becomes of the caller, they end with it.
struct Work {
    layers: Layers,
    draft: ImageDraft,
    info: ImageInfo,
    _guard: Guard,
}

impl Work {
    fn finish(mut self, image: String) -> Result<StoredImage, PullError> {
        let merged = self.layers.finish();
        let written = match merged.and_then(|merged| write_folder(&merged, &self.draft.rootfs(), Some(&self.draft.checksums()))) {
            Ok(written) => written,
            Err(source) => return Err(PullError::Image { image, source }),
        };
        self.info.bytes = written.bytes;
        self.info.files = written.files;
        self.info.notes = written.notes.iter().map(ToString::to_string).collect();
        self.draft.publish(self.info).map_err(|source| PullError::Store { image, source })
    }
}

/// Brings a registry's SIF file into the store, where it is run from.
async fn artifact(session: &Session<'_>, sif: &ResolvedSif, draft: ImageDraft, name: String) -> Result<StoredImage, PullError> {
    let blob = registry::pull_sif(session, sif).await.map_err(|source| PullError::Registry {
        image: name.clone(),
        source: Box::new(source),
    })?;
    let FileFacts { offset, config, files } = file_facts(&blob).map_err(|source| PullError::File {
        image: name.clone(),
        source,
    })?;
    let layer = StoredLayer {
        digest: sif.sif.digest.clone(),
        size: sif.sif.size,
        media_type: sif.sif.media_type.clone(),
    };
    let in_store = |source| PullError::Store {
        image: name.clone(),
        source,
    };
    let root = draft.link_sif(&blob, offset).map_err(in_store)?;
    let info = ImageInfo {
        root,
        layers: vec![layer],
        bytes: sif.sif.size,
        files,
        ..info(&sif.digest, &sif.sif.digest, config, &name)
    };
    draft.publish(info).map_err(in_store)
}

/// Of an image that stays where it is.
fn noted(local: &Local, name: String) -> ImageInfo {
    ImageInfo {
        root: local.place.clone(),
        bytes: local.size,
        files: local.files,
        ..info(&local.digest, &local.digest, local.config.clone(), &name)
    }
}

/// Of an image whose layers were unpacked, before that is done.
fn converted(resolved: &Resolved, config: ImageConfig, name: &str) -> ImageInfo {
    let layers = resolved.layers.iter().map(|layer| StoredLayer {
        digest: layer.digest.clone(),
        size: layer.size,
        media_type: layer.media_type.clone(),
    });
    ImageInfo {
        layers: layers.collect(),
        ..info(&resolved.digest, &resolved.config.digest, config, name)
    }
}

fn info(digest: &Digest, config_digest: &Digest, config: ImageConfig, name: &str) -> ImageInfo {
    ImageInfo {
        manifest: digest.clone(),
        config_digest: config_digest.clone(),
        config,
        root: Place::Unpacked,
        names: vec![name.to_owned()],
        layers: Vec::new(),
        bytes: 0,
        files: 0,
        notes: Vec::new(),
        created: jiff::Timestamp::now().as_millisecond(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
