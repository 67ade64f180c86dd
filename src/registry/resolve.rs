//! From a source to the one manifest for a platform, and to what the image says of itself.

use indexmap::IndexMap;
use jiff::Timestamp;

use super::named::{Named, named};
use super::remote::Expect;
use super::tags::{near, tags};
use super::{RegistryError, Session, TagPolicy, layout};
use crate::oci::{Descriptor, Digest, ImageConfig, ImageManifest, Index, MANIFEST_MAX, Manifest, Platform, Reference, Schema1, Source};
use crate::store::Tag;

/// How deep indexes may lie in indexes.
pub(super) const NESTING_MAX: usize = 4;
/// The largest configuration that is read, in bytes; a long history makes it long.
const CONFIG_MAX: u64 = 16 << 20;

/// What a schema 1 image's parts would be in schema 2.
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// One image: a source, and what it means now.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub source: Source,
    pub platform: Platform,
    /// Of the platform's manifest.
    pub digest: Digest,
    /// The manifest as it was sent: these bytes hash to `digest`.
    pub manifest: Vec<u8>,
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
}

/// Finds the manifest for `platform`. No layer is touched.
///
/// # Errors
/// What registry and disk say; [`RegistryError::NoLayers`] for sources that are files or folders already.
pub async fn resolve(session: &Session<'_>, source: &Source, platform: &Platform) -> Result<Resolved, RegistryError> {
    let (digest, manifest, image) = match source {
        Source::Layout { dir, tag } => {
            let index = layout::index(dir, tag.as_deref())?;
            session.choose(source, index, platform).await?
        }
        Source::Archive { file, tag, .. } => {
            let index = session.archive(file).await?.index(tag.as_deref())?;
            session.choose(source, index, platform).await?
        }
        Source::Registry(reference) => {
            let (digest, bytes) = session.root(source, reference).await?;
            match parse(source, &bytes)? {
                Manifest::Image(image) => (digest, bytes, *image),
                Manifest::Schema1(image) => {
                    let image = session.modern(reference, *image).await?;
                    (digest, bytes, image)
                }
                Manifest::Index(index) => session.choose(source, index, platform).await?,
            }
        }
        Source::Artifact(_) | Source::Path(_) => return Err(RegistryError::NoLayers { image: source.to_string() }),
    };
    Ok(Resolved {
        source: source.clone(),
        platform: platform.clone(),
        digest,
        manifest,
        config: image.config,
        layers: image.layers,
    })
}

/// The image's configuration blob as it was sent: a few kilobytes, no layer.
pub async fn config_blob(session: &Session<'_>, resolved: &Resolved) -> Result<Vec<u8>, RegistryError> {
    let size = resolved.config.size;
    if size > CONFIG_MAX {
        return Err(RegistryError::ConfigTooLong {
            image: resolved.source.to_string(),
            size,
            limit: CONFIG_MAX,
        });
    }
    let path = session.blob(&resolved.source, &resolved.config).await?;
    std::fs::read(&path).map_err(RegistryError::io("read", &path))
}

/// The image's configuration.
pub async fn config(session: &Session<'_>, resolved: &Resolved) -> Result<ImageConfig, RegistryError> {
    let image = || resolved.source.to_string();
    let bytes = config_blob(session, resolved).await?;
    let config: ImageConfig = serde_json::from_slice(&bytes).map_err(|source| RegistryError::Config { image: image(), source })?;
    let found = Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
    };
    // Some builders leave it empty.
    let stated = !found.os.is_empty() && !found.architecture.is_empty();
    if stated && resolved.platform.suits(&found).is_none() {
        return Err(RegistryError::WrongPlatform {
            image: image(),
            wanted: Box::new(resolved.platform.clone()),
            found: Box::new(found),
        });
    }
    Ok(config)
}

impl Session<'_> {
    /// What the reference itself names: an image's manifest or an index.
    pub(super) async fn root(&self, source: &Source, reference: &Reference) -> Result<(Digest, Vec<u8>), RegistryError> {
        let name = reference.to_string();
        let known = match (reference.digest(), self.tags) {
            (Some(digest), _) => Some(digest.clone()),
            (None, TagPolicy::Ask) => None,
            (None, TagPolicy::Cached(ttl)) => {
                let fresh = self.store.tag(&name)?.filter(|tag| tag.is_fresh(Timestamp::now(), ttl));
                fresh.map(|tag| tag.digest)
            }
            (None, TagPolicy::Offline) => self.store.tag(&name)?.map(|tag| tag.digest),
        };
        if let Some(digest) = known {
            let bytes = self.manifest(source, &digest).await?;
            return Ok((digest, bytes));
        }
        if self.tags == TagPolicy::Offline {
            return Err(RegistryError::Offline { image: source.to_string() });
        }
        let asked = self
            .remote_manifest(named(source, reference), &reference.to_ask(), Expect::Anything)
            .await;
        let (digest, bytes) = match asked {
            Err(error @ RegistryError::Refused { status: 404, .. }) => return Err(self.no_such_tag(source, reference, error).await),
            asked => asked?,
        };
        self.store.write_blob(&digest, &bytes)?;
        self.store.set_tag(&Tag {
            reference: name,
            digest: digest.clone(),
            asked: Timestamp::now(),
        })?;
        Ok((digest, bytes))
    }

    /// With the tags that there are, if the registry tells.
    async fn no_such_tag(&self, source: &Source, reference: &Reference, error: RegistryError) -> RegistryError {
        match tags(self, reference).await {
            Ok(tags) if !tags.is_empty() => RegistryError::NoSuchTag {
                image: source.to_string(),
                near: near(&reference.to_ask(), tags),
                source: Box::new(error),
            },
            // The first error says what there is to say.
            _ => error,
        }
    }

    /// A schema 1 image as if it were a schema 2 one: its configuration becomes a blob of the store.
    async fn modern(&self, reference: &Reference, image: Schema1) -> Result<ImageManifest, RegistryError> {
        let describe = |media_type: &str, digest: &Digest, size: u64| Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.clone(),
            size,
            urls: Vec::new(),
            annotations: IndexMap::new(),
            platform: None,
            artifact_type: None,
        };
        let mut layers = Vec::with_capacity(image.layers.len());
        for digest in &image.layers {
            let size = match self.store.find_blob(digest) {
                Some(path) => std::fs::metadata(&path).map_err(RegistryError::io("look at", &path))?.len(),
                None if self.tags == TagPolicy::Offline => {
                    let image = format!("docker://{reference}");
                    return Err(RegistryError::Offline { image });
                }
                None => self.remote_size(Named::image(reference), digest).await?,
            };
            layers.push(describe(LAYER, digest, size));
        }
        let digest = Digest::sha256(&image.config);
        if self.store.find_blob(&digest).is_none() {
            self.store.write_blob(&digest, &image.config)?;
        }
        Ok(ImageManifest {
            media_type: String::new(),
            artifact_type: None,
            config: describe(CONFIG, &digest, image.config.len() as u64),
            layers,
            annotations: IndexMap::new(),
        })
    }

    /// The best image for `platform` in an index, through nested ones.
    async fn choose(&self, source: &Source, index: Index, platform: &Platform) -> Result<(Digest, Vec<u8>, ImageManifest), RegistryError> {
        let mut available = index.platforms();
        // A stack of what to try, the best on top.
        let mut to_try: Vec<(Descriptor, usize)> = Vec::new();
        let push = |to_try: &mut Vec<(Descriptor, usize)>, index: &Index, depth: usize| {
            let chosen = index.choose(platform).into_iter().rev();
            to_try.extend(chosen.map(|entry| (entry.clone(), depth)));
        };
        push(&mut to_try, &index, 1);
        while let Some((entry, depth)) = to_try.pop() {
            let bytes = self.manifest(source, &entry.digest).await?;
            match parse(source, &bytes)? {
                Manifest::Image(image) => return Ok((entry.digest, bytes, *image)),
                // No list has them: they are older than lists.
                Manifest::Schema1(_) => {}
                Manifest::Index(_) if depth == NESTING_MAX => {
                    return Err(RegistryError::Nested {
                        image: source.to_string(),
                        limit: NESTING_MAX,
                    });
                }
                Manifest::Index(nested) => {
                    available.extend(nested.platforms());
                    push(&mut to_try, &nested, depth + 1);
                }
            }
        }
        Err(RegistryError::NoPlatform {
            image: source.to_string(),
            wanted: Box::new(platform.clone()),
            available,
        })
    }

    /// A manifest by digest: from the store, else from the source.
    pub(super) async fn manifest(&self, source: &Source, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let missing = || RegistryError::LayoutBlob {
            image: source.to_string(),
            digest: digest.clone(),
        };
        match source {
            Source::Layout { dir, .. } => layout::small_blob(dir, digest, MANIFEST_MAX)?.ok_or_else(missing),
            Source::Archive { file, .. } => {
                let archive = self.archive(file).await?;
                archive.small_blob(digest, MANIFEST_MAX)?.ok_or_else(missing)
            }
            Source::Path(_) => Err(missing()),
            Source::Registry(reference) | Source::Artifact(reference) => {
                if let Some(bytes) = self.store.read_blob(digest, MANIFEST_MAX)? {
                    return Ok(bytes);
                }
                if self.tags == TagPolicy::Offline {
                    return Err(RegistryError::Offline { image: source.to_string() });
                }
                let (_, bytes) = self
                    .remote_manifest(named(source, reference), &digest.to_string(), Expect::Digest(digest))
                    .await?;
                self.store.write_blob(digest, &bytes)?;
                Ok(bytes)
            }
        }
    }
}

pub(super) fn parse(source: &Source, bytes: &[u8]) -> Result<Manifest, RegistryError> {
    Manifest::parse(bytes).map_err(|error| RegistryError::Manifest {
        image: source.to_string(),
        source: error,
    })
}
