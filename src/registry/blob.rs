//! One blob, from wherever the image is, to a verified file. Two processes that want the same one fetch it once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task;

use super::named::named;
use super::{RegistryError, Session, TagPolicy, layout};
use crate::net::Event;
use crate::oci::{Descriptor, Source};

/// Called with a verified file as soon as it can be read; it may get another name afterwards.
pub(super) type OnWhole<'a> = &'a (dyn Fn(&Path) + Sync);

impl Session<'_> {
    /// The path of a verified blob of `source`.
    pub(super) async fn blob(&self, source: &Source, blob: &Descriptor) -> Result<PathBuf, RegistryError> {
        self.blob_and(source, blob, &|_| ()).await
    }

    /// As [`Session::blob`]; `whole` is called once, as early as can be.
    pub(super) async fn blob_and(&self, source: &Source, blob: &Descriptor, whole: OnWhole<'_>) -> Result<PathBuf, RegistryError> {
        let told = AtomicBool::new(false);
        let once = |path: &Path| {
            if !told.swap(true, Ordering::Relaxed) {
                whole(path);
            }
        };
        let path = self.bring(source, blob, &once).await?;
        once(&path);
        Ok(path)
    }

    async fn bring(&self, source: &Source, blob: &Descriptor, whole: OnWhole<'_>) -> Result<PathBuf, RegistryError> {
        match source {
            Source::Layout { dir, .. } => {
                let (dir, blob, image) = (dir.clone(), blob.clone(), source.to_string());
                let verified = task::spawn_blocking(move || layout::verify(&dir, &blob, &image)).await;
                verified.expect("the thread neither panics nor is cancelled")
            }
            Source::Archive { file, .. } => {
                self.stored(blob, async |partial| self.extract(source, file, blob, partial).await)
                    .await
            }
            Source::Path(_) => Err(RegistryError::NoLayers { image: source.to_string() }),
            Source::Registry(_) | Source::Artifact(_)
                if self.tags == TagPolicy::Offline && self.store.find_blob(&blob.digest).is_none() =>
            {
                Err(RegistryError::Offline { image: source.to_string() })
            }
            Source::Registry(reference) | Source::Artifact(reference) => {
                self.stored(blob, async |partial| {
                    self.remote_blob(named(source, reference), blob, partial, whole).await
                })
                .await
            }
        }
    }

    /// A blob of the store; `bring` makes it, verified and synced, if it is not there.
    async fn stored(
        &self,
        blob: &Descriptor,
        bring: impl AsyncFnOnce(&Path) -> Result<(), RegistryError>,
    ) -> Result<PathBuf, RegistryError> {
        let what = blob.digest.short();
        let present = || {
            let found = self.store.find_blob(&blob.digest);
            found.inspect(|_| (self.progress)(Event::Present { what }))
        };
        if let Some(path) = present() {
            return Ok(path);
        }
        let key = format!("blob-{}", blob.digest.hex());
        let _guard = self.store.lock_async(&key, || (self.progress)(Event::Waiting { what })).await?;
        if let Some(path) = present() {
            return Ok(path);
        }
        let partial = self.store.partial_blob(&blob.digest);
        bring(&partial).await?;
        Ok(self.store.adopt_blob(&blob.digest, &partial)?)
    }

    async fn extract(&self, source: &Source, file: &Path, blob: &Descriptor, to: &Path) -> Result<(), RegistryError> {
        let archive = self.archive(file).await?;
        let (blob, image, to) = (blob.clone(), source.to_string(), to.to_owned());
        let extracted = task::spawn_blocking(move || archive.extract(&blob, &image, &to)).await;
        extracted.expect("the thread neither panics nor is cancelled")
    }
}
