//! Docker's first manifest format (distribution, "Image Manifest V2, Schema 1"), which old registries still hold:
//! layers newest first, the configuration spread over `history`, a signature inside the document.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::manifest::{LAYERS_MAX, ManifestError};
use super::{Digest, Platform};

/// What there is in a schema 1 manifest of an image. Layer sizes are not: the registry has to be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema1 {
    /// Lowest first, without those that only changed the configuration.
    pub layers: Vec<Digest>,
    /// A configuration as a schema 2 image has it, without `diff_ids`: they are nowhere said.
    pub config: Vec<u8>,
    pub platform: Platform,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    architecture: String,
    fs_layers: Vec<FsLayer>,
    history: Vec<History>,
}

#[derive(Deserialize)]
struct FsLayer {
    #[serde(rename = "blobSum")]
    blob_sum: Digest,
}

#[derive(Deserialize)]
struct History {
    #[serde(rename = "v1Compatibility")]
    v1_compatibility: String,
}

/// The fields of `v1Compatibility` that name a layer of the old kind, not the image.
const OLD: [&str; 8] = [
    "id",
    "parent",
    "Size",
    "parent_id",
    "layer_id",
    "throwaway",
    "container",
    "container_config",
];

impl Schema1 {
    pub(super) fn parse(bytes: &[u8]) -> Result<Schema1, ManifestError> {
        let document: Document = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        let (layers, history) = (document.fs_layers, document.history);
        if layers.len() > LAYERS_MAX {
            return Err(ManifestError::TooManyLayers(layers.len()));
        }
        if layers.len() != history.len() || layers.is_empty() {
            return Err(ManifestError::Schema1 {
                layers: layers.len(),
                history: history.len(),
            });
        }
        let mut compatibility = Vec::with_capacity(history.len());
        for entry in &history {
            let fields: Map<String, Value> = serde_json::from_str(&entry.v1_compatibility).map_err(ManifestError::Json)?;
            compatibility.push(fields);
        }
        let throwaway = |fields: &Map<String, Value>| fields.get("throwaway").and_then(Value::as_bool).unwrap_or(false);
        let kept = layers.into_iter().zip(&compatibility).rev();
        let layers = kept.filter(|(_, fields)| !throwaway(fields)).map(|(layer, _)| layer.blob_sum);
        let layers = layers.collect();
        let steps: Vec<Value> = compatibility.iter().rev().map(|fields| step(fields, throwaway(fields))).collect();
        let mut config = compatibility.swap_remove(0);
        config.retain(|key, _| !OLD.contains(&key.as_str()));
        let text = |config: &Map<String, Value>, key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut platform = Platform {
            os: text(&config, "os"),
            architecture: text(&config, "architecture"),
            variant: None,
        };
        if platform.architecture.is_empty() {
            platform.architecture = document.architecture;
        }
        if platform.os.is_empty() {
            platform.os = "linux".to_owned();
        }
        config.insert("os".to_owned(), json!(platform.os));
        config.insert("architecture".to_owned(), json!(platform.architecture));
        config.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": []}));
        config.insert("history".to_owned(), Value::Array(steps));
        Ok(Schema1 {
            layers,
            config: Value::Object(config).to_string().into_bytes(),
            platform,
        })
    }
}

/// One entry of a schema 2 configuration's history.
fn step(fields: &Map<String, Value>, empty: bool) -> Value {
    let mut step = Map::new();
    for key in ["created", "author", "comment"] {
        if let Some(value) = fields.get(key).filter(|value| value.as_str() != Some("")) {
            step.insert(key.to_owned(), value.clone());
        }
    }
    let command = fields.get("container_config").and_then(|config| config.get("Cmd")?.as_array());
    if let Some(command) = command {
        let words: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
        step.insert("created_by".to_owned(), json!(words.join(" ")));
    }
    if empty {
        step.insert("empty_layer".to_owned(), json!(true));
    }
    Value::Object(step)
}

/// The bytes that a manifest's digest is of: all of them, but for a signed schema 1 manifest what was signed, which
/// is the document without its `signatures` (JSON Web Signature, libtrust's "pretty" form).
pub fn signed_payload(bytes: &[u8]) -> Result<Cow<'_, [u8]>, ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Signed {
        fs_layers: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        protected: String,
    }
    #[derive(Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Protected {
        format_length: usize,
        format_tail: String,
    }
    let signed: Signed = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
    if signed.fs_layers.is_none() || signed.signatures.is_empty() {
        return Ok(Cow::Borrowed(bytes));
    }
    let protected = |signature: &Signature| {
        let json = BASE64_URL_SAFE_NO_PAD.decode(&signature.protected).ok()?;
        serde_json::from_slice::<Protected>(&json).ok()
    };
    let mut all = signed.signatures.iter().map(protected);
    let first = all.next().flatten().ok_or(ManifestError::Signature)?;
    if all.any(|other| other.as_ref() != Some(&first)) {
        return Err(ManifestError::Signature);
    }
    let head = bytes.get(..first.format_length).ok_or(ManifestError::Signature)?;
    let tail = BASE64_URL_SAFE_NO_PAD
        .decode(&first.format_tail)
        .map_err(|_| ManifestError::Signature)?;
    Ok(Cow::Owned([head, &tail].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Manifest;

    fn document() -> String {
        let layer = |text: &str| json!({"blobSum": Digest::sha256(text.as_bytes())});
        let history = |value: Value| json!({"v1Compatibility": value.to_string()});
        json!({
            "schemaVersion": 1, "name": "lab/x", "tag": "1", "architecture": "amd64",
            "fsLayers": [layer("empty"), layer("upper"), layer("lower")],
            "history": [
                history(json!({
                    "id": "c", "parent": "b", "os": "linux", "architecture": "amd64", "throwaway": true, "created": "2015",
                    "config": {"Env": ["A=1"], "Cmd": ["x"], "Labels": null}, "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) CMD"]},
                })),
                history(json!({"id": "b", "parent": "a", "created": "2014"})),
                history(json!({"id": "a", "created": "2013"})),
            ],
        })
        .to_string()
    }

    #[test]
    fn layers_are_turned_round_and_the_config_is_rebuilt() {
        let Ok(Manifest::Schema1(image)) = Manifest::parse(document().as_bytes()) else {
            panic!("schema 1")
        };
        assert_eq!(image.layers, [Digest::sha256(b"lower"), Digest::sha256(b"upper")]);
        assert_eq!(image.platform.to_string(), "linux/amd64");
        let config: Value = serde_json::from_slice(&image.config).unwrap();
        assert_eq!(config["config"]["Env"], json!(["A=1"]));
        assert_eq!(
            config["history"][2],
            json!({"created": "2015", "created_by": "/bin/sh -c #(nop) CMD", "empty_layer": true})
        );
        assert_eq!(config.get("id"), None);
        let typed: crate::oci::ImageConfig = serde_json::from_slice(&image.config).unwrap();
        assert_eq!((typed.config.cmd, typed.rootfs.diff_ids), (vec!["x".to_owned()], vec![]));
    }

    #[test]
    fn the_digest_is_of_what_was_signed() {
        let payload = document();
        let (head, tail) = payload.split_at(payload.len() - 1);
        let sign = |length: usize, tail: &str| {
            let tail = BASE64_URL_SAFE_NO_PAD.encode(tail);
            BASE64_URL_SAFE_NO_PAD.encode(json!({"formatLength": length, "formatTail": tail, "time": "x"}).to_string())
        };
        let signed = |protected: &[String]| {
            let signatures: Vec<Value> = protected.iter().map(|p| json!({"protected": p, "signature": "x"})).collect();
            format!("{head},\"signatures\":{}}}", Value::Array(signatures))
        };
        let good = sign(head.len(), tail);
        let text = signed(&[good.clone(), good.clone()]);
        assert_eq!(signed_payload(text.as_bytes()).unwrap(), payload.as_bytes());
        assert!(matches!(Manifest::parse(text.as_bytes()), Ok(Manifest::Schema1(_))));
        assert_eq!(signed_payload(payload.as_bytes()).unwrap(), payload.as_bytes());
        for bad in [
            vec![good.clone(), sign(1, tail)],
            vec![sign(usize::MAX, tail)],
            vec!["!".to_owned()],
        ] {
            assert!(matches!(signed_payload(signed(&bad).as_bytes()), Err(ManifestError::Signature)));
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let mut short: Value = serde_json::from_str(&document()).unwrap();
        short["history"] = json!([]);
        assert!(matches!(
            Manifest::parse(short.to_string().as_bytes()),
            Err(ManifestError::Schema1 { layers: 3, history: 0 })
        ));
        let mut odd: Value = serde_json::from_str(&document()).unwrap();
        odd["history"][0]["v1Compatibility"] = json!("[]");
        assert!(matches!(Manifest::parse(odd.to_string().as_bytes()), Err(ManifestError::Json(_))));
        let mut both: Value = serde_json::from_str(&document()).unwrap();
        both["layers"] = json!([]);
        assert!(matches!(
            Manifest::parse(both.to_string().as_bytes()),
            Err(ManifestError::Ambiguous)
        ));
        let mut many: Value = serde_json::from_str(&document()).unwrap();
        for part in ["fsLayers", "history"] {
            many[part] = vec![many[part][1].clone(); LAYERS_MAX + 1].into();
        }
        assert!(matches!(
            Manifest::parse(many.to_string().as_bytes()),
            Err(ManifestError::TooManyLayers(_))
        ));
    }
}
