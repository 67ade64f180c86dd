//! Images and files into a registry (OCI distribution spec, "Push"): blobs that are not there yet, then the manifest, and an
//! index after all that it names.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::task;

use super::layout::{self, INDEX, MANIFEST};
use super::modern::from_schema1;
use super::named::Named;
use super::resolve::NESTING_MAX;
use super::upload::{BlobPlace, PushBlob, Target};
use super::{Pulled, RegistryError, Resolved, Session, pull};
use crate::net::Request;
use crate::oci::{Descriptor, Digest, ImageManifest, Index, Manifest, Platform, Reference, Source};

/// What is pushed of an image that is made for several platforms.
#[derive(Clone, Debug, PartialEq)]
pub enum Extent {
    /// All of it: the index, and whatever it names.
    Whole,
    /// The image for one platform.
    Platform(Platform),
}

/// Puts blobs and then `manifest` into the repository of `reference`, under its tag, or `latest` where it names none.
/// Blobs that are there are not sent. Gives the manifest's digest.
///
/// # Errors
/// The registry's refusal; what the network or the disk say.
pub async fn push(
    session: &Session<'_>,
    reference: Named<'_>,
    blobs: &[PushBlob<'_>],
    manifest: &[u8],
    media_type: &str,
) -> Result<Digest, RegistryError> {
    let endpoint = session.origin(&reference).await?;
    let target = Target {
        session,
        endpoint: &endpoint,
        reference,
        from: None,
    };
    target.image(blobs, manifest, media_type, &reference.to_ask()).await
}

/// Puts the image of `source` into the repository of `reference`, byte for byte, so that digests stay; a schema 1 image as the
/// OCI image that it becomes. What the registry has in another of its repositories is neither fetched nor sent. Gives the digest
/// of what the tag names now.
///
/// # Errors
/// The registry's refusal; what the network or the disk say.
pub async fn push_image(session: &Session<'_>, source: &Source, extent: &Extent, reference: &Reference) -> Result<Digest, RegistryError> {
    let endpoint = session.origin(reference).await?;
    let from = match source {
        Source::Registry(from) if from.host() == reference.host() && from.repository() != reference.repository() => Some(from.repository()),
        _ => None,
    };
    let target = Target {
        session,
        endpoint: &endpoint,
        reference: Named::image(reference),
        from,
    };
    let ask = reference.to_ask();
    let platform = match extent {
        Extent::Platform(platform) => platform.clone(),
        Extent::Whole => match session.whole(source).await? {
            Some((bytes, manifest)) => return target.document(source, bytes, manifest, &ask, 1).await,
            None => Platform::host(),
        },
    };
    let resolved = super::resolve(session, source, &platform).await?;
    match Manifest::parse(&resolved.manifest) {
        Ok(Manifest::Image(image)) => {
            target
                .document(source, resolved.manifest.clone(), Manifest::Image(image), &ask, 1)
                .await
        }
        _ => {
            let pulled = pull(session, &resolved, &|_, _| {}).await?;
            target.schema1(&resolved, &pulled, &ask).await
        }
    }
}

impl Session<'_> {
    /// What a source names, as it is; `None` for an image of schema 1, which cannot stay as it is.
    async fn whole(&self, source: &Source) -> Result<Option<(Vec<u8>, Manifest)>, RegistryError> {
        let index = match source {
            Source::Registry(reference) => {
                let (_, bytes) = self.root(source, reference).await?;
                let manifest = super::resolve::parse(source, &bytes)?;
                return Ok(Some((bytes, manifest)).filter(|(_, manifest)| !matches!(manifest, Manifest::Schema1(_))));
            }
            Source::Layout { dir, tag } => layout::index(dir, tag.as_deref())?,
            Source::Archive { file, tag, .. } => self.archive(file).await?.index(tag.as_deref())?,
            Source::Artifact(_) | Source::Path(_) => return Err(RegistryError::NoLayers { image: source.to_string() }),
        };
        // One entry, maybe under several names, is what the name means; several are an index of their own.
        let digests: BTreeSet<&Digest> = index.manifests.iter().map(|entry| &entry.digest).collect();
        let bytes = match (digests.len(), index.manifests.first()) {
            (1, Some(entry)) => self.manifest(source, &entry.digest).await?,
            _ => index_of(&index),
        };
        let manifest = super::resolve::parse(source, &bytes)?;
        Ok(Some((bytes, manifest)))
    }
}

/// An index without the names that its entries have in a layout.
fn index_of(index: &Index) -> Vec<u8> {
    let mut entries = index.manifests.clone();
    for entry in &mut entries {
        entry.annotations.shift_remove(layout::REF_NAME);
    }
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
        .to_string()
        .into_bytes()
}

impl Target<'_> {
    /// A manifest, or an index after all that it names, under the tag or digest `ask`.
    async fn document(
        &self,
        source: &Source,
        bytes: Vec<u8>,
        manifest: Manifest,
        ask: &str,
        depth: usize,
    ) -> Result<Digest, RegistryError> {
        let image = || source.to_string();
        match manifest {
            Manifest::Image(image) => {
                let blobs = blobs(&image, source);
                self.image(&blobs, &bytes, &media_type(&bytes, MANIFEST), ask).await
            }
            Manifest::Index(_) if depth > NESTING_MAX => Err(RegistryError::Nested {
                image: image(),
                limit: NESTING_MAX,
            }),
            Manifest::Index(index) => {
                let mut pushed = BTreeSet::new();
                for entry in &index.manifests {
                    if !pushed.insert(&entry.digest) {
                        continue;
                    }
                    let bytes = self.session.manifest(source, &entry.digest).await?;
                    let manifest = super::resolve::parse(source, &bytes)?;
                    let ask = entry.digest.to_string();
                    Box::pin(self.document(source, bytes, manifest, &ask, depth + 1)).await?;
                }
                self.put(&bytes, &media_type(&bytes, INDEX), ask).await
            }
            // No list has them: they are older than lists.
            Manifest::Schema1(_) => Err(RegistryError::NoLayers { image: image() }),
        }
    }

    async fn image(&self, blobs: &[PushBlob<'_>], manifest: &[u8], media_type: &str, ask: &str) -> Result<Digest, RegistryError> {
        stream::iter(blobs)
            .map(async |blob| self.blob(*blob).await)
            .buffer_unordered(self.session.client.options().connections.max(1))
            .try_collect::<()>()
            .await?;
        self.put(manifest, media_type, ask).await
    }

    async fn put(&self, manifest: &[u8], media_type: &str, ask: &str) -> Result<Digest, RegistryError> {
        let wrong = || RegistryError::Setting {
            text: media_type.to_owned(),
        };
        let mut request = Request::get(self.endpoint.manifest(self.reference.repository(), ask)?);
        request = request.header(CONTENT_TYPE, HeaderValue::from_str(media_type).map_err(|_| wrong())?);
        request.method = Method::PUT;
        request.body = Some(Bytes::copy_from_slice(manifest));
        self.ask(&request, "the new manifest").await?;
        Ok(Digest::sha256(manifest))
    }

    async fn schema1(&self, resolved: &Resolved, pulled: &Pulled, ask: &str) -> Result<Digest, RegistryError> {
        let made = {
            let (resolved, pulled) = (resolved.clone(), pulled.clone());
            let made = task::spawn_blocking(move || from_schema1(&resolved, &pulled)).await;
            made.expect("the thread neither panics nor is cancelled")
                .map_err(RegistryError::io("read", self.session.store.root()))?
        };
        let Some(made) = made else {
            return Err(RegistryError::NoLayers {
                image: resolved.source.to_string(),
            });
        };
        let config = Descriptor {
            digest: Digest::sha256(&made.config),
            size: made.config.len() as u64,
            ..resolved.config.clone()
        };
        let path = self.session.store.write_blob(&config.digest, &made.config)?;
        let layers = resolved.layers.iter().zip(&pulled.layers);
        let mut blobs: Vec<PushBlob<'_>> = layers
            .map(|(blob, path)| PushBlob {
                blob,
                place: BlobPlace::File(path),
            })
            .collect();
        blobs.push(PushBlob {
            blob: &config,
            place: BlobPlace::File(&path),
        });
        self.image(&each_once(blobs), &made.manifest, MANIFEST, ask).await
    }
}

/// What a manifest names, but for layers that are nobody's to pass on ("foreign", "nondistributable").
fn blobs<'a>(image: &'a ImageManifest, source: &'a Source) -> Vec<PushBlob<'a>> {
    let foreign = |layer: &&Descriptor| {
        let kind = &layer.media_type;
        !layer.urls.is_empty() && (kind.contains("foreign") || kind.contains("nondistributable"))
    };
    let layers = image.layers.iter().filter(|layer| !foreign(layer));
    let all = layers.chain([&image.config]).map(|blob| PushBlob {
        blob,
        place: BlobPlace::Source(source),
    });
    each_once(all.collect())
}

fn each_once(mut blobs: Vec<PushBlob<'_>>) -> Vec<PushBlob<'_>> {
    blobs.sort_by_key(|push| &push.blob.digest);
    blobs.dedup_by_key(|push| &push.blob.digest);
    blobs
}

fn media_type(document: &[u8], usual: &str) -> String {
    let value: Value = serde_json::from_slice(document).unwrap_or_default();
    value["mediaType"].as_str().unwrap_or(usual).to_owned()
}
