//! Manifests and indexes: OCI image spec (`manifest.md`, `image-index.md`) and Docker's schema 2 (image manifest V2);
//! schema 1 is in its own file.
//!
//! What a document is, its fields say: Content-Types lie, and `mediaType` may be absent.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{Digest, Platform, Schema1};

/// The largest manifest that is read, in bytes (what registries accept).
pub const MANIFEST_MAX: u64 = 4 << 20;
/// The most layers an image may have; overlay file systems end far below.
pub const LAYERS_MAX: usize = 1024;
/// What to ask a registry for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.v1+prettyjws, \
     application/vnd.docker.distribution.manifest.v1+json";

/// A blob by digest (OCI image spec, `descriptor.md`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Where a foreign layer may also be had. Credentials never go there (CVE-2020-15157).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "IndexMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: IndexMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// One image, or a choice of images.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    Image(Box<ImageManifest>),
    Index(Index),
    Schema1(Box<Schema1>),
}

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    /// Lowest first.
    #[serde(deserialize_with = "null_is_default")]
    pub layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub annotations: IndexMap<String, String>,
}

/// A Docker list or an OCI index; its entries may be indexes again.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    #[serde(default)]
    pub media_type: String,
    #[serde(deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
}

/// Why a document is no manifest that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not the JSON that it should be")]
    Json(#[source] serde_json::Error),
    #[error("the manifest has both `layers` and `manifests`: it could be read as two different images (CVE-2021-41190)")]
    Ambiguous,
    #[error("the manifest of schema version 1 has {layers} layers, but {history} entries in its history")]
    Schema1 { layers: usize, history: usize },
    #[error("the signature in the manifest of schema version 1 does not say what it signs")]
    Signature,
    #[error("the document has neither `layers` nor `manifests`: it is not a manifest")]
    Neither,
    #[error("the manifest has {0} layers; at most {LAYERS_MAX} are read")]
    TooManyLayers(usize),
    #[error("the manifest is {0} bytes long; at most {MANIFEST_MAX} are read")]
    TooLong(u64),
}

impl ManifestError {
    pub fn hint(&self) -> Option<String> {
        match self {
            ManifestError::Neither => Some("check that the reference names a container image".to_owned()),
            _ => None,
        }
    }
}

/// The fields that tell documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Reads a manifest of any supported kind.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() as u64 > MANIFEST_MAX {
            return Err(ManifestError::TooLong(bytes.len() as u64));
        }
        let shape: Shape = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        match (shape.layers, shape.manifests, shape.fs_layers) {
            (Some(_), None, None) => {
                let image: ImageManifest = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
                if image.layers.len() > LAYERS_MAX {
                    return Err(ManifestError::TooManyLayers(image.layers.len()));
                }
                Ok(Manifest::Image(Box::new(image)))
            }
            (None, Some(_), None) => serde_json::from_slice(bytes).map(Manifest::Index).map_err(ManifestError::Json),
            (None, None, Some(_)) => Schema1::parse(bytes).map(|image| Manifest::Schema1(Box::new(image))),
            (None, None, None) => Err(ManifestError::Neither),
            _ => Err(ManifestError::Ambiguous),
        }
    }
}

impl Index {
    /// The entries to try for `wanted`, best first: the images that suit it, then entries without a platform, which
    /// may be nested indexes. Attestations (`unknown/unknown`) and artifacts are no images.
    pub fn choose(&self, wanted: &Platform) -> Vec<&Descriptor> {
        let mut suiting: Vec<(u32, &Descriptor)> = self
            .images()
            .filter_map(|entry| Some((wanted.suits(entry.platform.as_ref()?)?, entry)))
            .collect();
        // Stable: among equals the first one counts, as with Docker.
        suiting.sort_by_key(|(suits, _)| std::cmp::Reverse(*suits));
        let unknown = self.images().filter(|entry| entry.platform.is_none());
        suiting.into_iter().map(|(_, entry)| entry).chain(unknown).collect()
    }

    /// The platforms that there are, each once.
    pub fn platforms(&self) -> Vec<Platform> {
        let mut platforms = Vec::new();
        for platform in self.images().filter_map(|entry| entry.platform.clone()) {
            if !platforms.contains(&platform) {
                platforms.push(platform);
            }
        }
        platforms
    }

    fn images(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|entry| !entry.is_attestation())
    }
}

impl Descriptor {
    /// BuildKit's attestations stand in the index beside the images.
    fn is_attestation(&self) -> bool {
        let unknown = |platform: &Platform| platform.os == "unknown" && platform.architecture == "unknown";
        self.platform.as_ref().is_some_and(unknown)
            || self
                .annotations
                .get("vnd.docker.reference.type")
                .is_some_and(|t| t == "attestation-manifest")
    }
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn entry(platform: &str, size: u64) -> String {
        format!(r#"{{"mediaType":"x","digest":"{SHA}","size":{size}{platform}}}"#)
    }

    #[test]
    fn fields_decide_what_a_document_is() {
        let config = entry("", 2);
        let image = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{config}],"mediaType":"text/html"}}"#);
        assert!(matches!(Manifest::parse(image.as_bytes()), Ok(Manifest::Image(m)) if m.layers.len() == 1 && m.layers[0].size == 2));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{config}]}}"#);
        assert!(matches!(Manifest::parse(index.as_bytes()), Ok(Manifest::Index(i)) if i.manifests.len() == 1));
        let both = format!(r#"{{"config":{config},"layers":[],"manifests":[]}}"#);
        assert!(matches!(Manifest::parse(both.as_bytes()), Err(ManifestError::Ambiguous)));
        let empty = format!(r#"{{"config":{config},"layers":null}}"#);
        assert!(matches!(Manifest::parse(empty.as_bytes()), Err(ManifestError::Neither)));
    }

    #[test]
    fn hostile_documents_are_refused() {
        let config = entry("", 2);
        let layers = vec![config.clone(); LAYERS_MAX + 1].join(",");
        let many = format!(r#"{{"config":{config},"layers":[{layers}]}}"#);
        assert!(matches!(Manifest::parse(many.as_bytes()), Err(ManifestError::TooManyLayers(_))));
        let long = vec![b' '; MANIFEST_MAX as usize + 1];
        assert!(matches!(Manifest::parse(&long), Err(ManifestError::TooLong(_))));
        for bad in [
            "",
            "[]",
            "nope",
            r#"{"config":{},"layers":[]}"#,
            r#"{"config":{"digest":"sha256:../../x","size":1},"layers":[]}"#,
            &format!(r#"{{"config":{{"digest":"{SHA}","size":-1}},"layers":[]}}"#),
            &"[".repeat(100_000),
        ] {
            assert!(matches!(Manifest::parse(bad.as_bytes()), Err(ManifestError::Json(_))), "{bad:.40}");
        }
    }

    #[test]
    fn the_platform_decides_the_entry() {
        let on = |os: &str, arch: &str, variant: &str, size| {
            entry(
                &format!(r#","platform":{{"os":"{os}","architecture":"{arch}","variant":"{variant}"}}"#),
                size,
            )
        };
        let entries = [
            on("unknown", "unknown", "", 1),
            on("linux", "arm64", "v8", 2),
            on("linux", "amd64", "", 3),
            on("linux", "amd64", "v3", 4),
            on("linux", "amd64", "", 5),
            entry("", 6),
            on("linux", "arm", "v6", 7),
            on("linux", "arm", "v7", 8),
            entry(r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#, 9),
        ]
        .join(",");
        let Ok(Manifest::Index(index)) = Manifest::parse(format!(r#"{{"manifests":[{entries}]}}"#).as_bytes()) else {
            panic!("an index")
        };
        let chosen = |platform: &str| -> Vec<u64> { index.choose(&platform.parse().unwrap()).iter().map(|d| d.size).collect() };
        assert_eq!(chosen("linux/amd64"), [3, 5, 6]);
        assert_eq!(chosen("linux/amd64/v4"), [4, 3, 5, 6]);
        assert_eq!(chosen("linux/arm64"), [2, 6]);
        assert_eq!(chosen("linux/arm"), [8, 7, 6]);
        assert_eq!(chosen("linux/s390x"), [6]);
        assert!(index.platforms().iter().all(|p| p.os == "linux"));
    }
}
