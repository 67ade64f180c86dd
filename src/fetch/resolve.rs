//! Names to digests and places.

use indexmap::IndexMap;

use super::{FetchError, PullError, find};
use crate::data::{files, identity, place};
use crate::lock::{Lock, LockedData, LockedImage};
use crate::oci::{Platform, Source};
use crate::registry::{RegistryError, Session};
use crate::workflow::{Image, Workflow};

/// What every image and data set of a workflow is, and where it lies or will lie. Fetches manifests and headers of SIF files at
/// most; in an offline session an image whose tag was never asked stays without a digest.
pub async fn resolve(session: &Session<'_>, workflow: &Workflow) -> Result<Lock, FetchError> {
    let mut images = IndexMap::new();
    for (name, image) in &workflow.images {
        let (source, platform) = image_source(name, image)?;
        let digest = match find(session, &source, &platform).await {
            Ok(found) => Some(found.digest().clone()),
            Err(error) if is_offline(&error) => None,
            Err(source) => {
                return Err(FetchError::Pull {
                    name: name.clone(),
                    source: Box::new(source),
                });
            }
        };
        let locked = LockedImage {
            source: image.source.clone(),
            path: digest.as_ref().map(|digest| session.store.image(digest)),
            digest,
        };
        images.insert(name.clone(), locked);
    }
    let data = workflow.data.iter().map(|(name, set)| {
        let locked = LockedData {
            identity: identity(set),
            path: place(session.store, set),
            files: files(set),
        };
        (name.clone(), locked)
    });
    let data = data.collect();
    Ok(Lock { images, data })
}

fn is_offline(error: &PullError) -> bool {
    matches!(error, PullError::Registry { source, .. } if matches!(**source, RegistryError::Offline { .. }))
}

/// What a workflow's image names, typed: its source, and the platform or this host's.
pub fn image_source(name: &str, image: &Image) -> Result<(Source, Platform), FetchError> {
    let name = || name.to_owned();
    let source = image.source.parse().map_err(|source| FetchError::Source { name: name(), source })?;
    let platform = match &image.platform {
        Some(platform) => platform.parse().map_err(|source| FetchError::Platform { name: name(), source })?,
        None => Platform::host(),
    };
    Ok((source, platform))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::net::{Client, Options, silent};
    use crate::oci::Digest;
    use crate::registry::{Credentials, TagPolicy};
    use crate::store::{Store, Tag};
    use crate::workflow::{DataFile, DataSet, DataSource};

    fn workflow(images: &[(&str, &str)]) -> Workflow {
        let file = DataFile {
            name: "a".to_owned(),
            url: "http://h.invalid/a".to_owned(),
            digest: None,
        };
        let set = DataSet {
            source: DataSource::Files(vec![file]),
        };
        let image = |source: &str| Image {
            source: source.to_owned(),
            platform: Some("linux/amd64".to_owned()),
            apps: IndexMap::new(),
        };
        Workflow {
            file: PathBuf::from("/w/flow.yaml"),
            dir: PathBuf::from("/w"),
            name: "flow".to_owned(),
            description: None,
            params: IndexMap::new(),
            images: images.iter().map(|(name, source)| ((*name).to_owned(), image(source))).collect(),
            data: IndexMap::from([("input".to_owned(), set)]),
            stages: IndexMap::new(),
        }
    }

    #[tokio::test]
    async fn without_the_network_what_is_known_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let (store, client, credentials) = (
            Store::new(dir.path()),
            Client::new(Options::default()).unwrap(),
            Credentials::none(),
        );
        let empty = Digest::sha256(b"{}");
        let manifest = format!(r#"{{"config":{{"digest":"{empty}","size":2}},"layers":[]}}"#);
        let digest = Digest::sha256(manifest.as_bytes());
        store.write_blob(&digest, manifest.as_bytes()).unwrap();
        let reference = "h.invalid/known:1".to_owned();
        let asked = jiff::Timestamp::UNIX_EPOCH;
        store
            .set_tag(&Tag {
                reference,
                digest: digest.clone(),
                asked,
            })
            .unwrap();
        let session = Session::new(&client, &store, &credentials, TagPolicy::Offline, &silent);
        let known = workflow(&[("known", "docker://h.invalid/known:1"), ("unknown", "docker://h.invalid/unknown:1")]);
        let lock = resolve(&session, &known).await.unwrap();
        assert_eq!(lock.images["known"].path, Some(store.image(&digest)));
        assert_eq!(lock.images["known"].digest, Some(digest));
        assert_eq!((&lock.images["unknown"].digest, &lock.images["unknown"].path), (&None, &None));
        assert_eq!(lock.data["input"].path, store.data(&lock.data["input"].identity));
        assert_eq!(lock.data["input"].files, ["a"]);

        let error = resolve(&session, &workflow(&[("bad", "shub://a/b")])).await.unwrap_err();
        assert!(error.to_string().contains("`bad`") && error.hint().is_some(), "{error}");
    }
}
