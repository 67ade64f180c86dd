//! Small images made in memory, for registries that are no registry and for layouts on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use dvrun::oci::Digest;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::faults::{Asked, Reply};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Blobs by digest, and the one that a tag names.
#[derive(Clone, Debug)]
pub struct Image {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub root: Digest,
    pub layers: Vec<Digest>,
}

/// Compressed, as skopeo leaves it alone.
pub fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory is writable");
    encoder.finish().expect("memory is writable")
}

fn plain(layer: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    if layer.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(layer).read_to_end(&mut plain).expect("it was compressed here");
    } else {
        plain.extend_from_slice(layer);
    }
    plain
}

/// An image for linux/amd64 whose layers are these bytes.
pub fn image(layers: &[&[u8]]) -> Image {
    image_for("amd64", layers)
}

pub fn image_for(architecture: &str, layers: &[&[u8]]) -> Image {
    image_of(architecture, json!({"Env": ["A=1"], "Entrypoint": ["/bin/true"]}), layers)
}

/// With `execution` as the `config` of its configuration.
pub fn image_of(architecture: &str, execution: Value, layers: &[&[u8]]) -> Image {
    let mut blobs = BTreeMap::new();
    let mut keep = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        blobs.insert(digest.to_string(), bytes.to_vec());
        digest
    };
    let digests: Vec<Digest> = layers.iter().map(|layer| keep(layer)).collect();
    let config = json!({
        "os": "linux", "architecture": architecture,
        "config": execution,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| Digest::sha256(&plain(layer))).collect::<Vec<_>>()},
        "history": digests.iter().map(|_| json!({"created": "2020-01-01T00:00:00Z", "created_by": "a test"})).collect::<Vec<_>>(),
    });
    let config = config.to_string().into_bytes();
    let described: Vec<Value> = digests
        .iter()
        .zip(layers)
        .map(|(digest, layer)| {
            let suffix = if layer.starts_with(&[0x1f, 0x8b]) { "+gzip" } else { "" };
            json!({"mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"), "digest": digest, "size": layer.len()})
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": keep(&config), "size": config.len()},
        "layers": described,
    });
    let root = keep(manifest.to_string().as_bytes());
    Image {
        blobs,
        root,
        layers: digests,
    }
}

/// An index over images, each with its `platform` object or `null`.
pub fn index(images: &[(Value, &Image)]) -> Image {
    let mut blobs = BTreeMap::new();
    let mut entries = Vec::new();
    for (platform, image) in images {
        blobs.extend(image.blobs.clone());
        let bytes = &image.blobs[&image.root.to_string()];
        let mut entry = json!({"mediaType": OCI_MANIFEST, "digest": image.root, "size": bytes.len()});
        if !platform.is_null() {
            entry["platform"] = platform.clone();
        }
        entries.push(entry);
    }
    let bytes = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
        .to_string()
        .into_bytes();
    let root = Digest::sha256(&bytes);
    blobs.insert(root.to_string(), bytes);
    Image {
        blobs,
        root,
        layers: Vec::new(),
    }
}

impl Image {
    /// As a registry answers: any tag is this image, a digest is its blob, anything else is not there.
    pub fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.target.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let unknown = |code: &str| Reply::new(404, json!({"errors": [{"code": code, "message": "not here"}]}).to_string());
        if path == "/v2/" {
            return Reply::new(200, "{}");
        }
        if path.contains("/manifests/") {
            let digest = if name.contains(':') {
                name.to_owned()
            } else {
                self.root.to_string()
            };
            return match self.blobs.get(&digest) {
                Some(bytes) => Reply::new(200, bytes.clone()).with("Content-Type", "text/plain"),
                None => unknown("MANIFEST_UNKNOWN"),
            };
        }
        match self.blobs.get(name) {
            Some(bytes) => Reply::file(bytes, asked),
            None => unknown("BLOB_UNKNOWN"),
        }
    }

    /// Writes an OCI layout.
    pub fn write(&self, dir: &Path, tag: &str) {
        let folder = dir.join("blobs/sha256");
        fs::create_dir_all(&folder).expect("the folder is writable");
        for (digest, bytes) in &self.blobs {
            let name = digest.trim_start_matches("sha256:");
            fs::write(folder.join(name), bytes).expect("the folder is writable");
        }
        let root = &self.blobs[&self.root.to_string()];
        let media_type = serde_json::from_slice::<Value>(root).expect("a manifest is JSON")["mediaType"].clone();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": media_type, "digest": self.root, "size": root.len(),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }],
        });
        fs::write(dir.join("index.json"), index.to_string()).expect("the folder is writable");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the folder is writable");
    }
}
