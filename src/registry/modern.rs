//! A schema 1 image as an OCI image: what a layout can hold. Its layers stay as they are; that which schema 1 does not
//! say of them, the sums of what they unpack to, is found by reading them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use serde_json::{Value, json};

use super::layout::MANIFEST;
use super::{Pulled, Resolved};
use crate::oci::{Algorithm, Digest, Hasher, Manifest};

/// The two documents of an OCI image.
pub(super) struct Documents {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

/// `None`: it is no schema 1 image and needs nothing. Blocks: it reads all layers.
pub(super) fn from_schema1(resolved: &Resolved, pulled: &Pulled) -> io::Result<Option<Documents>> {
    let Ok(Manifest::Schema1(image)) = Manifest::parse(&resolved.manifest) else {
        return Ok(None);
    };
    let mut config: Value = serde_json::from_slice(&image.config)?;
    let mut layers = Vec::with_capacity(pulled.layers.len());
    let mut diff_ids = Vec::with_capacity(pulled.layers.len());
    for (path, layer) in pulled.layers.iter().zip(&resolved.layers) {
        let (kind, diff_id) = unpacked(path)?;
        diff_ids.push(diff_id);
        layers.push(json!({"mediaType": kind, "digest": layer.digest, "size": layer.size}));
    }
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256(&config), "size": config.len(),
        },
        "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    Ok(Some(Documents { config, manifest }))
}

/// A layer's media type, by its first bytes, and the sum of its tar.
fn unpacked(path: &Path) -> io::Result<(&'static str, Digest)> {
    let mut file = BufReader::new(File::open(path)?);
    let head = file.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        Ok(("application/vnd.oci.image.layer.v1.tar+gzip", sum(MultiGzDecoder::new(file))?))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::stream::read::Decoder::with_buffer(file)?;
        Ok(("application/vnd.oci.image.layer.v1.tar+zstd", sum(decoder)?))
    } else {
        Ok(("application/vnd.oci.image.layer.v1.tar", sum(file)?))
    }
}

fn sum(mut from: impl Read) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
