//! What can go wrong with an image's source.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::net::{NetError, Refusal};
use crate::oci::{Digest, ManifestError, Platform};
use crate::store::StoreError;

/// Why an image cannot be had. `image` is the source as people write it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot get {what} of {image}")]
    Net {
        what: String,
        image: String,
        #[source]
        source: Box<NetError>,
    },
    #[error("{host} refused {what} of {image}: {}", reasons(errors, *status))]
    Refused {
        what: String,
        image: String,
        host: String,
        status: u16,
        errors: Vec<ApiError>,
    },
    #[error("cannot log in to {host} for {image}")]
    Token {
        host: String,
        image: String,
        #[source]
        source: Box<NetError>,
    },
    #[error("{host} gave no token for {image}: its answer is not the JSON that it should be")]
    TokenFormat { host: String, image: String },
    #[error("cannot use {image}")]
    Manifest {
        image: String,
        #[source]
        source: ManifestError,
    },
    #[error("cannot take credentials for {host} from {}: {why}", path.display())]
    Credentials { path: PathBuf, host: String, why: String },
    #[error("cannot keep credentials for {host} in {}: {why}", path.display())]
    Keep { path: PathBuf, host: String, why: String },
    #[error("{host} does not say where to upload a blob of {image}")]
    NoUpload { image: String, host: String },
    #[error("{image} is not a SIF file kept in a registry")]
    NoArtifact { image: String },
    #[error("{image} is a file or a folder, not an image of layers")]
    NoLayers { image: String },
    #[error("`{text}` is not the name of a registry")]
    NoRegistry { text: String },
    #[error("{image} does not exist: the repository has other tags, {}", list(near))]
    NoSuchTag {
        image: String,
        /// The likeliest first.
        near: Vec<String>,
        #[source]
        source: Box<RegistryError>,
    },
    #[error("the list of tags of {image} is not the JSON that it should be")]
    TagsFormat {
        image: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} is no archive of an image: {why}", path.display())]
    Archive { path: PathBuf, why: &'static str },
    #[error("{} is compressed: an image in it cannot be found without reading all of it", path.display())]
    Compressed { path: PathBuf },
    #[error("the registry does not say how long the blob {digest} of {image} is")]
    NoSize { image: String, digest: Digest },
    #[error("{image} nests its indexes more than {limit} deep")]
    Nested { image: String, limit: usize },
    #[error("{image} has nothing for {wanted}; it is made for {}", list(available))]
    NoPlatform {
        image: String,
        wanted: Box<Platform>,
        available: Vec<Platform>,
    },
    #[error("{image} is made for {found}, not for {wanted}")]
    WrongPlatform {
        image: String,
        wanted: Box<Platform>,
        found: Box<Platform>,
    },
    #[error("the manifest that {host} sent for {image} has the checksum {actual}, expected {expected}")]
    Mismatch {
        image: String,
        host: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{} has no image tagged `{tag}`; its tags are {}", dir.display(), list(available))]
    NoTag { dir: PathBuf, tag: String, available: Vec<String> },
    #[error("{} has several images; its tags are {}", dir.display(), list(available))]
    WhichTag { dir: PathBuf, available: Vec<String> },
    #[error("{} is no OCI image layout", dir.display())]
    NoLayout {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the blob {digest} of {image} is damaged or missing in the layout")]
    LayoutBlob { image: String, digest: Digest },
    #[error("the configuration of {image} is not the JSON that it should be")]
    Config {
        image: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the configuration of {image} is {size} bytes long; at most {limit} are read")]
    ConfigTooLong { image: String, size: u64, limit: u64 },
    #[error("{image} is not in the store, and the network is not to be used")]
    Offline { image: String },
    #[error("`{text}` in the settings is not a base URL of a registry")]
    Setting { text: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// One of a registry's own errors (OCI distribution spec, "Error Codes").
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ApiError {
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub message: String,
}

/// How much of a server's words is repeated.
const MESSAGE_MAX: usize = 300;

impl ApiError {
    /// What a body says; nothing where it is something else than the specified JSON.
    pub(super) fn parse(body: &[u8]) -> Vec<ApiError> {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<ApiError>,
        }
        let errors = serde_json::from_slice(body).map(|Errors { errors }| errors).unwrap_or_default();
        let clean = |text: String| text.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect();
        errors
            .into_iter()
            .take(5)
            .map(|ApiError { code, message }| ApiError {
                code: clean(code),
                message: clean(message),
            })
            .collect()
    }
}

impl RegistryError {
    /// An error of the network, or the registry's own words where it has answered.
    pub(super) fn net(what: impl Into<String>, image: impl Into<String>, host: &str, source: NetError) -> RegistryError {
        let (what, image) = (what.into(), image.into());
        match source.refusal() {
            Some(refusal) => RegistryError::refused(what, image, host, refusal),
            None => RegistryError::Net {
                what,
                image,
                source: Box::new(source),
            },
        }
    }

    fn refused(what: String, image: String, host: &str, refusal: &Refusal) -> RegistryError {
        RegistryError::Refused {
            what,
            image,
            host: host.to_owned(),
            status: refusal.status.as_u16(),
            errors: ApiError::parse(&refusal.body),
        }
    }

    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
        let path = path.to_owned();
        move |source| RegistryError::Io { doing, path, source }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            RegistryError::Net { source, .. } | RegistryError::Token { source, .. } => return source.hint(),
            RegistryError::Refused { status, errors, host, .. } => return refused_hint(host, *status, errors),
            RegistryError::Manifest { source, .. } => return source.hint(),
            RegistryError::Store(source) => return source.hint(),
            RegistryError::NoPlatform { .. } | RegistryError::WrongPlatform { .. } => "choose one with `platform:`, or use another image",
            RegistryError::NoSuchTag { .. } => "check the tag",
            RegistryError::NoArtifact { .. } => "an image of layers is named docker://HOST/NAME:TAG",
            RegistryError::NoLayers { .. } => "SIF files are pushed to oras://HOST/NAME:TAG; layers come from docker://, oci: and archives",
            RegistryError::NoRegistry { .. } => "a registry is named by its host, as in ghcr.io or 127.0.0.1:5000",
            RegistryError::WhichTag { .. } => "name one after a colon, as in oci:FOLDER:TAG",
            RegistryError::Compressed { .. } => "decompress it first (gunzip, unzstd)",
            RegistryError::NoLayout { .. } => "a layout is a folder with `oci-layout`, `index.json` and `blobs`",
            RegistryError::Mismatch { .. } => "a proxy or a mirror may have changed it; nothing of it was kept",
            RegistryError::Offline { .. } => "fetch it first, where there is a network",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn refused_hint(host: &str, status: u16, errors: &[ApiError]) -> Option<String> {
    let code = errors.first().map(|error| error.code.as_str()).unwrap_or_default();
    let hint = match (code, status) {
        ("TOOMANYREQUESTS", _) | (_, 429) => {
            format!("the quota of {host} is used up: wait, log in, or set a mirror (`registries` in the configuration)")
        }
        ("UNAUTHORIZED" | "DENIED", _) | (_, 401 | 403) => {
            "it is private, or it does not exist: registries do not tell which. Check the name, or log in".to_owned()
        }
        ("NAME_UNKNOWN" | "NAME_INVALID", _) => "the registry has no such repository: check its name".to_owned(),
        ("MANIFEST_UNKNOWN" | "NOT_FOUND", _) | (_, 404) => "check the name and the tag".to_owned(),
        (_, 500..=599) => "the registry has a problem: try again later, what was fetched is kept".to_owned(),
        _ => return None,
    };
    Some(hint)
}

fn reasons(errors: &[ApiError], status: u16) -> String {
    let said: Vec<String> = errors
        .iter()
        .map(|ApiError { code, message }| match (code.as_str(), message.as_str()) {
            (code, "") => code.to_owned(),
            ("", message) => message.to_owned(),
            (code, message) => format!("{code}: {message}"),
        })
        .filter(|text| !text.is_empty())
        .collect();
    if said.is_empty() {
        format!("status {status}")
    } else {
        format!("{} (status {status})", said.join("; "))
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "nothing".to_owned(),
        items => items.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_repeated_within_bounds() {
        let body = format!(
            r#"{{"errors":[{{"code":"MANIFEST_UNKNOWN","message":"manifest\u001b[31m unknown{}","detail":{{"Tag":"x"}}}}]}}"#,
            "!".repeat(1000)
        );
        let errors = ApiError::parse(body.as_bytes());
        assert_eq!(errors[0].code, "MANIFEST_UNKNOWN");
        assert!(errors[0].message.starts_with("manifest[31m unknown!") && errors[0].message.len() == MESSAGE_MAX);
        assert_eq!(ApiError::parse(b"<html>"), []);
        assert_eq!(ApiError::parse(br#"{"errors":null}"#), []);
        let error = RegistryError::Refused {
            what: "the manifest".to_owned(),
            image: "docker://h/x:1".to_owned(),
            host: "h".to_owned(),
            status: 404,
            errors: vec![ApiError {
                code: "MANIFEST_UNKNOWN".to_owned(),
                message: "manifest unknown".to_owned(),
            }],
        };
        assert_eq!(
            error.to_string(),
            "h refused the manifest of docker://h/x:1: MANIFEST_UNKNOWN: manifest unknown (status 404)"
        );
        assert!(error.hint().unwrap().contains("tag"));
    }
}
